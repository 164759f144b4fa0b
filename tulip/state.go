package tulip

// State is everything of a chip that outlives a call: what a snapshot needs, and
// what a test can compare. It holds no pointers. Frames lent out by PollTx are not
// part of it: their descriptors are still the chip's, and are fetched again.
//
// Times are nanoseconds on the clock of the now arguments; who moves a State to
// another clock must move them.
type State struct {
	Config [cfSize / 4]uint32 // configuration space as read, in longwords
	CSR    [16]uint32         // as last written or derived; see csr.go for 11 and 12
	Halted bool               // a bus error happened: no DMA until software reset

	RxAt     uint32 // current receive descriptor
	TxAt     uint32 // current transmit descriptor
	TxPollAt int64  // next automatic poll, while transmit is suspended

	TimerAt   int64 // expiry of the general-purpose timer, while it runs
	TimerTick int64 // length of its tick, fixed when it was started

	PortDirection uint8 // CSR12 pins driven by the chip
	PortOutput    uint8 // and their levels

	Filter Filter
	SROM   SROM
	MII    MII
	PHY    PHY
}

// State returns a copy of the chip's state.
func (c *Chip) State() State { return c.s }

// SetState puts a state back. Frames in flight are forgotten, and the interrupt pin
// follows.
func (c *Chip) SetState(s State) {
	c.tx.forget()
	c.s = s
	c.updateINTA()
}
