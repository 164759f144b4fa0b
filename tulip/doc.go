// Package tulip models the DEC/Intel 21140A PCI Fast Ethernet controller, the
// chip behind Virtual PC's network card and Hyper-V's legacy network adapter, as
// its Hardware Reference Manual (HRM) and its drivers describe it.
//
// # The nouns
//
// A [Chip] is one controller: PCI configuration space, the registers CSR0 to
// CSR15, the two descriptor lists, the address filter, a 93C46 serial ROM, one
// PHY and the general-purpose timer. A [Bus] is the machine around it: guest
// memory for the chip to master, and the INTA pin. Everything of a chip that
// outlives a call is its [State], a plain struct that can be copied, compared
// and put back.
//
// # Who owns what
//
// The chip is pure. It has no goroutine, lock, clock or file descriptor: time is
// an argument (nanoseconds of any monotonic clock), memory is an interface and
// the pin is a bool. One caller at a time; the host serialises. Guest memory that
// the chip hands out in a [TxFrame] belongs to the guest, which may change it at
// any moment; a decision must be taken on a copy.
//
// # The life of one frame
//
// Transmit. The driver fills a descriptor, sets OWN and writes CSR1. The write
// only makes the transmit process runnable: [Chip.TxPending] turns true. The host
// calls [Chip.PollTx], which snapshots descriptors and lends out the buffers of
// complete frames; the host forwards them with its lock released, then calls
// [Chip.FinishTx], which gives the descriptors back, raises TI and suspends the
// process with TU when the list is empty. Set-up frames and empty descriptors
// never leave the chip: they take effect inside PollTx in list order, so a set-up
// frame behind an unfinished frame waits for the next call. Stopping the process,
// or moving its list, closes the frames in flight there and then, so that no write
// to guest memory follows a stop; a reset forgets them. Either way the FinishTx
// that follows finds nothing to do.
//
// Receive. The host calls [Chip.Receive] with the parts of one frame. The filter
// judges a private copy of the header; the frame is padded to 60 bytes, copied
// into the driver's buffers, followed by its FCS, and the descriptors are released
// with one 32-bit write each. A frame that finds no descriptor is counted in CSR8
// and dropped: the chip never holds frames back.
//
// # Bounds
//
// Descriptors are the guest's and are not trusted. Each is read once. No call
// walks more than a few hundred of them, however they are linked; when PollTx runs
// out of budget the process stays runnable and the host calls again. Every DMA
// access goes through the Bus and stays below 4 GiB; one that the Bus refuses is a
// PCI master abort: CSR5<FBE>, and silence until software reset.
//
// # What is left out
//
// The media are not timed: frames move at once, and the port select, scrambler and
// threshold bits of CSR6 are stored without effect. Collisions, underflows and FIFO
// overflows do not happen; the overflow field of CSR8 stays zero because drivers
// start errata work-arounds when it does not. The parallel boot ROM is not readable
// through CSR9 (its lines read as ones); it is the host's to map at the expansion
// ROM base address.
package tulip
