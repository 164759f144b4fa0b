package tulip

// Ticks of the general-purpose timer in nanoseconds (HRM, "General-Purpose Timer
// Register"): by the port that CSR6 selects.
const (
	tickMII100 = 81_920
	tickSerial = 204_800
	tickMII10  = 819_200
)

// startTimer is a write to CSR11, already stored: it starts, restarts or, with a value
// of zero, stops the timer.
func (c *Chip) startTimer(now int64) {
	c.s.TimerTick = tickSerial
	switch c.s.CSR[6] & (csr6PS | csr6TTM) {
	case csr6PS:
		c.s.TimerTick = tickMII100
	case csr6PS | csr6TTM:
		c.s.TimerTick = tickMII10
	}
	c.s.TimerAt = now + c.timerPeriod()
}

// timerPeriod returns the programmed time in nanoseconds; zero means that the timer is
// stopped.
func (c *Chip) timerPeriod() int64 {
	return int64(c.s.CSR[11]&csr11Value) * c.s.TimerTick
}

// timerLeft returns the ticks until expiry, as CSR11 shows them.
func (c *Chip) timerLeft(now int64) uint32 {
	if c.timerPeriod() == 0 {
		return 0
	}
	left := (c.s.TimerAt - now + c.s.TimerTick - 1) / c.s.TimerTick
	return uint32(min(max(left, 0), csr11Value))
}

// runTimer raises GTE if the timer has expired. A one-shot timer then reads as zero,
// which is how Linux sees that it is idle.
func (c *Chip) runTimer(now int64) {
	period := c.timerPeriod()
	if period == 0 || now < c.s.TimerAt {
		return
	}
	if c.s.CSR[11]&csr11CON != 0 {
		c.s.TimerAt += ((now-c.s.TimerAt)/period + 1) * period
	} else {
		c.s.CSR[11] &^= csr11Value
	}
	c.raise(csr5GTE)
	c.updateINTA()
}

// Tick tells the chip the time. It needs calling at Deadline, and may be called at any
// other time.
func (c *Chip) Tick(now int64) {
	c.runTimer(now)
	c.runAutoPoll(now)
	c.updateINTA()
}

// Deadline returns when Tick next matters; ok is false if it does not. It may change
// with every other call.
func (c *Chip) Deadline() (at int64, ok bool) {
	if c.timerPeriod() != 0 {
		at, ok = c.s.TimerAt, true
	}
	if c.autoPolling() && (!ok || c.s.TxPollAt < at) {
		at, ok = c.s.TxPollAt, true
	}
	return at, ok
}
