package tulip

// The names are those of the 21140A Hardware Reference Manual (HRM). Access
// classes: rw read and write, ro read only, w1c write one to clear, wo write only.

// PCI configuration space, as offsets of longwords (HRM, "Configuration Registers").
const (
	cfID   = 0x00 // CFID: device and vendor identification
	cfCS   = 0x04 // CFCS: command and status
	cfRV   = 0x08 // CFRV: class code and revision
	cfLT   = 0x0c // CFLT: latency timer and cache line size
	cfBIO  = 0x10 // CBIO: I/O base address
	cfBMA  = 0x14 // CBMA: memory base address
	cfSID  = 0x2c // CSID: subsystem identification
	cfBER  = 0x30 // CBER: expansion ROM base address
	cfIT   = 0x3c // CFIT: interrupt line and pin, grant, latency
	cfDA   = 0x40 // CFDA: driver area and power management
	cfSize = 0x44 // all above reads as zero
)

// CFCS.
const (
	cfcsIO     = 1 << 0  // rw: answer I/O accesses
	cfcsMemory = 1 << 1  // rw: answer memory accesses
	cfcsMaster = 1 << 2  // rw: may master the bus
	cfcsParity = 1 << 6  // rw: parity error response, stored
	cfcsSERR   = 1 << 8  // rw: SERR enable, stored
	cfcsFBB    = 1 << 23 // ro: fast back-to-back capable
	cfcsMedium = 1 << 25 // ro: DEVSEL timing medium
	cfcsRMA    = 1 << 29 // w1c: received master abort
	cfcsErrors = 0xf9000000
)

// CSR0, Bus Mode Register.
const (
	csr0SWR      = 1 << 0     // wo: software reset
	csr0DSL      = 0x1f << 2  // rw: longwords skipped between ring descriptors
	csr0DSLShift = 2          //
	csr0BLE      = 1 << 7     // rw: frame buffers are big endian
	csr0TAP      = 7 << 17    // rw: transmit automatic polling, one of tapPeriods
	csr0TAPShift = 17         //
	csr0DBO      = 1 << 20    // rw: descriptors are big endian
	csr0RW       = 0x01bffffe // all but SWR, the reserved bit 22 and the ones on top
)

// CSR5, Status Register. RS and TS hold one of rs* and ts*.
const (
	csr5TI      = 1 << 0  // w1c: a frame or set-up frame with TDES1<IC> was closed
	csr5TPS     = 1 << 1  // w1c: transmit process stopped
	csr5TU      = 1 << 2  // w1c: transmit buffer unavailable, process suspended
	csr5TJT     = 1 << 3  // w1c: transmit jabber timeout
	csr5UNF     = 1 << 5  // w1c: transmit underflow
	csr5RI      = 1 << 6  // w1c: a frame was received
	csr5RU      = 1 << 7  // w1c: receive buffer unavailable, process suspended
	csr5RPS     = 1 << 8  // w1c: receive process stopped
	csr5RWT     = 1 << 9  // w1c: receive watchdog timeout
	csr5ETI     = 1 << 10 // w1c: early transmit, never set
	csr5GTE     = 1 << 11 // w1c: general-purpose timer expired
	csr5FBE     = 1 << 13 // w1c: fatal bus error
	csr5ERI     = 1 << 14 // w1c: early receive, never set
	csr5AIS     = 1 << 15 // ro: abnormal interrupt summary
	csr5NIS     = 1 << 16 // ro: normal interrupt summary
	csr5RS      = 7 << csr5RSShift
	csr5RSShift = 17
	csr5TS      = 7 << csr5TSShift
	csr5TSShift = 20
	csr5EB      = 7 << 23 // ro: kind of bus error
	csr5EBAbort = 1 << 23 // ro: master abort

	csr5Normal   = csr5TI | csr5TU | csr5RI | csr5GTE | csr5ERI
	csr5Abnormal = csr5TPS | csr5TJT | csr5UNF | csr5RU | csr5RPS | csr5RWT | csr5ETI | csr5FBE
	csr5Events   = csr5Normal | csr5Abnormal
)

// Receive and transmit process states visible at rest in CSR5<19:17> and <22:20>.
const (
	rsStopped   = 0
	rsWaiting   = 3 // running, waiting for a frame
	rsSuspended = 4 // no descriptor

	tsStopped   = 0
	tsRunning   = 1 // running, fetching a descriptor
	tsSuspended = 6 // no descriptor
)

// CSR6, Operation Mode Register. The filter bits HP, HO and IF mirror the last
// set-up frame; writes do not reach them.
const (
	csr6HP         = 1 << 0  // ro: hash filter with one perfect address
	csr6SR         = 1 << 1  // rw: start receive
	csr6HO         = 1 << 2  // ro: hash filter only
	csr6IF         = 1 << 4  // ro: inverse filtering
	csr6PR         = 1 << 6  // rw: promiscuous
	csr6PM         = 1 << 7  // rw: pass all multicast
	csr6FD         = 1 << 9  // rw: full duplex
	csr6OM         = 3 << 10 // rw: operating mode, one of csr6OM*
	csr6OMInternal = 1 << 10 // internal loopback
	csr6OMExternal = 2 << 10 // external loopback
	csr6ST         = 1 << 13 // rw: start transmit
	csr6PS         = 1 << 18 // rw: MII/SYM port
	csr6TTM        = 1 << 22 // rw: 10 Mb/s on the MII port
	csr6MBO        = 1 << 25 // ro: must be one
	csr6RA         = 1 << 30 // rw: receive all
	csr6Filter     = csr6HP | csr6HO | csr6IF
	csr6RW         = 0xffffffff &^ (csr6Filter | csr6MBO | 1<<16)
)

// CSR7, Interrupt Enable Register: the enables stand where CSR5 has the events.
const (
	csr7AIE = csr5AIS // rw: abnormal interrupt summary enable
	csr7NIE = csr5NIS // rw: normal interrupt summary enable
)

// CSR8, Missed Frames Counter. The FIFO overflow field above it stays zero.
const (
	csr8Missed   = 0xffff  // frames that found no descriptor
	csr8Overflow = 1 << 16 // the counter passed 65535
)

// CSR9, Boot ROM, Serial ROM and MII Management Register.
const (
	csr9SRCS = 1 << 0     // rw: serial ROM chip select, with SR
	csr9SRSK = 1 << 1     // rw: serial ROM clock, with SR
	csr9SRDI = 1 << 2     // rw: to the serial ROM, with SR
	csr9SRDO = 1 << 3     // ro: from the serial ROM, with SR
	csr9Data = 0xff       // boot ROM data, with BR
	csr9SR   = 1 << 11    // rw: serial ROM select
	csr9BR   = 1 << 12    // rw: boot ROM select
	csr9RD   = 1 << 14    // rw: read
	csr9MDC  = 1 << 16    // rw: MII management clock
	csr9MDO  = 1 << 17    // rw: MII management data out
	csr9MII  = 1 << 18    // rw: 1 the PHY may drive the data line, 0 the chip does
	csr9MDI  = 1 << 19    // ro: MII management data in
	csr9RW   = 0x0007fcff // the input lines among these are set again after each write
)

// CSR11, General-Purpose Timer Register.
const (
	csr11Value = 0xffff  // rw: ticks
	csr11CON   = 1 << 16 // rw: continuous
)

// CSR12, General-Purpose Port Register.
const (
	csr12GPC  = 1 << 8 // wo: bits 7:0 are directions (1 output), not data
	csr12Pins = 0xff   // rw
)

// CSR15, Watchdog Timers Register.
const (
	csr15JBD = 1 << 0 // rw: jabber timer disabled
	csr15JCK = 1 << 2 // rw: jabber timer cuts after 2560 bytes
	csr15RWD = 1 << 4 // rw: receive watchdog disabled
	csr15RW  = 0x37
)

// OWN is the same in RDES0 and TDES0: the descriptor belongs to the chip.
const desOWN = 1 << 31

// RDES1 and TDES1 agree on the list and size fields.
const (
	des1ER     = 1 << 25 // RER, TER: last descriptor of the ring
	des1CH     = 1 << 24 // RCH, TCH: the second address is the next descriptor's
	des1Size1  = 0x7ff   // bytes of buffer 1
	des1Size2  = 0x7ff << des1Shift2
	des1Shift2 = 11
)

// RDES0, as the chip writes it.
const (
	rdes0FF         = 1 << 30   // filtering fail: only promiscuous or receive-all let the frame in
	rdes0FLShift    = 16        // frame length in bytes, FCS included
	rdes0ES         = 1 << 15   // error summary
	rdes0DE         = 1 << 14   // truncated: the next descriptor was not the chip's
	rdes0DTInternal = 1 << 12   // internal loopback frame
	rdes0DTExternal = 2 << 12   // external loopback frame
	rdes0MF         = 1 << 10   // group address
	rdes0FS         = 1 << 9    // first descriptor
	rdes0LS         = 1 << 8    // last descriptor
	rdes0TL         = 1 << 7    // longer than 1518 bytes
	rdes0FT         = 1 << 5    // Ethernet type, not 802.3 length
	rdes0RW         = 1 << 4    // receive watchdog
	rdes0MaxFL      = 1<<14 - 1 // the widest value of the length field
)

// TDES0, as the chip writes it.
const (
	tdes0Setup = 0x7fffffff // set-up frame done
	tdes0ES    = 1 << 15    // error summary
	tdes0TO    = 1 << 14    // transmit jabber timeout
	tdes0LO    = 1 << 11    // loss of carrier
	tdes0NC    = 1 << 10    // no carrier
)

// TDES1.
const (
	tdes1IC  = 1 << 31 // interrupt on completion, with LS or SET
	tdes1LS  = 1 << 30 // last segment
	tdes1FS  = 1 << 29 // first segment
	tdes1FT1 = 1 << 28 // filter type, high bit
	tdes1SET = 1 << 27 // set-up frame
	tdes1AC  = 1 << 26 // the buffers hold the FCS already
	tdes1FT0 = 1 << 22 // filter type, low bit
)
