package tulip

// csrRule is one control and status register (HRM, "Command and Status Registers").
// Bits in neither mask keep their reset value unless the chip changes them.
type csrRule struct {
	name  string
	reset uint32
	rw    uint32 // readable and writable
	w1c   uint32 // write one to clear
}

// csrs can be laid beside the manual. CSR1 and CSR2 are commands, CSR12 is a port
// whose reads depend on its pins, and CSR13 and CSR14 do not exist on this chip:
// writes to those change nothing here.
var csrs = [16]csrRule{
	0:  {name: "bus mode", reset: 0xfe000000, rw: csr0RW},
	1:  {name: "transmit poll demand", reset: 0xffffffff},
	2:  {name: "receive poll demand", reset: 0xffffffff},
	3:  {name: "receive list base", rw: 0xfffffffc},
	4:  {name: "transmit list base", rw: 0xfffffffc},
	5:  {name: "status", reset: 0xfc000000, w1c: csr5Events},
	6:  {name: "operation mode", reset: 0x32000040, rw: csr6RW},
	7:  {name: "interrupt enable", reset: 0xfffe0000, rw: csr5Events | csr7AIE | csr7NIE},
	8:  {name: "missed frames"},
	9:  {name: "ROM and MII management", reset: 0xfff483ff, rw: csr9RW},
	10: {name: "boot ROM address", rw: 0x0003ffff},
	11: {name: "general-purpose timer", reset: 0xfffe0000, rw: csr11Value | csr11CON},
	12: {name: "general-purpose port", reset: 0xfffffe00},
	13: {name: "reserved", reset: 0xffff0000},
	14: {name: "reserved", reset: 0xffffffff},
	15: {name: "watchdog timers", reset: 0x8ff00000, rw: csr15RW},
}

// ReadCSR reads register n, 0 to 15; any other reads as zero. Only CSR8 changes by
// being read.
func (c *Chip) ReadCSR(n int, now int64) uint32 {
	if n < 0 || n >= len(csrs) {
		return 0
	}
	c.runTimer(now)
	v := c.peekCSR(n, now)
	if n == 8 {
		c.s.CSR[8] = csrs[8].reset
	}
	return v
}

// peekCSR is ReadCSR without its side effect.
func (c *Chip) peekCSR(n int, now int64) uint32 {
	switch n {
	case 11:
		return c.s.CSR[11]&^csr11Value | c.timerLeft(now)
	case 12: // inputs are pulled up
		return c.s.CSR[12] | uint32(c.s.PortOutput|^c.s.PortDirection)
	}
	return c.s.CSR[n]
}

// WriteCSR writes register n, 0 to 15; writes to any other are ignored. Processes
// that stop do so before WriteCSR returns.
func (c *Chip) WriteCSR(n int, v uint32, now int64) {
	if n < 0 || n >= len(csrs) {
		return
	}
	c.runTimer(now)
	old, r := c.s.CSR[n], &csrs[n]
	c.s.CSR[n] = (old&^r.rw | v&r.rw) &^ (v & r.w1c)

	switch n {
	case 0:
		if v&csr0SWR != 0 {
			c.softReset()
		} else {
			c.scheduleAutoPoll(now)
		}
	case 1:
		if c.ts() == tsSuspended {
			c.setTS(tsRunning)
		}
	case 2:
		c.pollRx()
	case 3:
		c.s.RxAt = c.s.CSR[3]
	case 4:
		c.closeBatch()
		c.s.TxAt = c.s.CSR[4]
	case 6:
		c.changeMode(old)
	case 9:
		c.clockSerial(c.s.CSR[9])
	case 11:
		c.startTimer(now)
	case 12:
		if v&csr12GPC != 0 {
			c.s.PortDirection = uint8(v)
		} else {
			c.s.PortOutput = uint8(v)
		}
	}
	c.updateINTA()
}

// changeMode starts and stops the processes when CSR6 has changed from old.
func (c *Chip) changeMode(old uint32) {
	v := c.s.CSR[6]
	switch {
	case v&^old&csr6ST != 0:
		c.startTx()
	case old&^v&csr6ST != 0:
		c.stopTx()
	}
	switch {
	case v&^old&csr6SR != 0:
		c.startRx()
	case old&^v&csr6SR != 0:
		c.stopRx()
	}
}

// ReadIO reads size bytes (1, 2 or 4) at byte offset off of either register window.
// The registers stand at multiples of 8 and repeat every 128 bytes; between them, and
// at misaligned addresses, zero is read. A byte read of CSR8 leaves it as it is.
func (c *Chip) ReadIO(off, size int, now int64) uint32 {
	n, shift, ok := decodeIO(off, size)
	switch {
	case !ok:
		return 0
	case size == 4 || size == 2 && shift == 0:
		return c.ReadCSR(n, now) & lane(size)
	}
	c.runTimer(now)
	return c.peekCSR(n, now) >> shift & lane(size)
}

// WriteIO writes size bytes (1, 2 or 4) at byte offset off of either register window.
// The manual asks for aligned longwords. Drivers also write single bytes to the poll
// demand registers, which is as good as a longword; elsewhere the bytes are merged
// into the register's value, or into zero for CSR5, where writing back a one would
// clear an event. Misaligned writes, and writes between registers, are ignored.
func (c *Chip) WriteIO(off, size int, v uint32, now int64) {
	n, shift, ok := decodeIO(off, size)
	if !ok {
		return
	}
	v = v & lane(size) << shift
	if size < 4 && n != 5 {
		v |= c.peekCSR(n, now) &^ (lane(size) << shift)
	}
	c.WriteCSR(n, v, now)
}

// decodeIO finds the register and the bit position of an access; ok is false for one
// that no register answers.
func decodeIO(off, size int) (n, shift int, ok bool) {
	off &= 127
	switch size {
	case 1, 2, 4:
		return off / 8, off % 8 * 8, off%size == 0 && off&4 == 0
	}
	return 0, 0, false
}

// lane returns a mask of size bytes.
func lane(size int) uint32 { return 1<<(size*8) - 1 }
