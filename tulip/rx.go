package tulip

import (
	"encoding/binary"
	"hash/crc32"
)

// RxResult says what became of a frame given to Receive.
type RxResult int

const (
	RxAccepted RxResult = iota // stored, and RI raised
	RxFiltered                 // not for this station, or not an Ethernet frame
	RxNoBuffer                 // no descriptor for it or for its end; counted in CSR8 or marked DE
	RxStopped                  // not listening: stopped, no link, no bus mastering, or in loopback
)

func (r RxResult) String() string {
	switch r {
	case RxAccepted:
		return "accepted"
	case RxFiltered:
		return "filtered"
	case RxNoBuffer:
		return "no buffer"
	case RxStopped:
		return "stopped"
	}
	return "unknown"
}

// Limits of the receive process, in bytes where not said otherwise.
const (
	maxRxDescs    = 256            // descriptors of one frame
	maxRxFrame    = rdes0MaxFL - 4 // without FCS: what RDES0<FL> can express
	maxEthernet   = 1518           // with FCS: longer frames have RDES0<TL>
	rxWatchdog    = 2560           // with FCS: longer frames have RDES0<RW>
	maxLengthType = 1500           // the last 802.3 length in the length/type field
)

// rxFrame is a frame on its way into guest memory.
type rxFrame struct {
	src  [][]byte        // parts, padding and FCS; what is taken is cut off
	next int             // index of the first that is left
	left int             // bytes that are left
	fcs  [fcsLen]byte    //
	head [headerLen]byte // private copy: what the filter judges
	one  [1][]byte       // the only part of a loopback frame
	buf  [des1Size1]byte // what Bus.Write stores
}

// Receive takes one frame from the wire: parts is the frame without FCS, in order, and
// is read only during the call. It is stored in the driver's buffers or dropped; the
// result says which. Received frames are never held back, because the 21140A has no
// way to ask for them later.
func (c *Chip) Receive(parts [][]byte, now int64) RxResult {
	c.runTimer(now)
	if !c.s.PHY.Link || c.s.CSR[6]&csr6OM == csr6OMInternal {
		return RxStopped
	}
	r := c.receive(parts, 0)
	c.updateINTA()
	return r
}

// receive is Receive for frames of any origin; loopback is RDES0<DT>.
func (c *Chip) receive(parts [][]byte, loopback uint32) RxResult {
	if c.rs() == rsStopped || !c.canDMA() {
		return RxStopped
	}
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n < headerLen || n > maxRxFrame {
		return RxFiltered
	}
	c.rx.copyHead(parts)
	accepted, matched := c.filter()
	if !accepted {
		return RxFiltered
	}

	d, err := c.fetch(c.s.RxAt)
	if err != nil {
		c.abort()
		return RxNoBuffer
	}
	if !d.owned() {
		c.suspendRx()
		c.countMissed()
		return RxNoBuffer
	}
	c.setRS(rsWaiting)
	defer c.rx.forget()
	c.rx.load(parts, n, c.zeros[:])
	return c.place(d, c.rxStatus(matched)|loopback)
}

// rxStatus returns RDES0 of the frame in c.rx as it is in its last descriptor, but for
// FS and DE, and raises RWT.
func (c *Chip) rxStatus(matched bool) uint32 {
	n := c.rx.left
	status := uint32(n)<<rdes0FLShift | rdes0LS
	if !matched {
		status |= rdes0FF
	}
	if c.rx.head[0]&1 != 0 {
		status |= rdes0MF
	}
	if binary.BigEndian.Uint16(c.rx.head[12:]) > maxLengthType {
		status |= rdes0FT
	}
	if n > maxEthernet {
		status |= rdes0TL | rdes0ES
	}
	if n > rxWatchdog && c.s.CSR[15]&csr15RWD == 0 {
		status |= rdes0RW
		c.raise(csr5RWT)
	}
	return status
}

// place puts the frame in c.rx into descriptors from d on and gives them back in list
// order, the last one with status. A frame that finds no further descriptor ends where
// it is, truncated: nothing of it is left over for the next frame.
func (c *Chip) place(d desc, status uint32) RxResult {
	spare := fcsLen // bytes that may be left when no buffer is
	if c.cfg.SpillFCS {
		spare = 0
	}
	total := c.rx.left
	first := uint32(rdes0FS)
	for walked := 1; ; walked++ {
		if !c.fill(d.addr1, d.size1()) || !c.fill(d.addr2, d.size2()) {
			c.abort()
			return RxNoBuffer
		}
		next := d.next(c.s.CSR[3], c.skip())
		if c.rx.left <= spare {
			if !c.closeRx(d.at, next, status|first) {
				return RxNoBuffer
			}
			return RxAccepted
		}

		// The next descriptor is looked at before this one is given back, because
		// this one's status depends on it.
		following, err := c.fetch(next)
		if err != nil {
			c.abort()
			return RxNoBuffer
		}
		dry := next == d.at || !following.owned()
		if dry || walked == maxRxDescs {
			stored := uint32(total-c.rx.left) << rdes0FLShift
			status = status&^(rdes0MaxFL<<rdes0FLShift) | stored | rdes0DE | rdes0ES
			if c.closeRx(d.at, next, status|first) && dry {
				c.suspendRx()
			}
			return RxNoBuffer
		}
		if c.release(d.at, first) != nil {
			c.abort()
			return RxNoBuffer
		}
		// The position moves with each descriptor: the sender's memory can vanish while it is read, and
		// the panic that this is must leave a list that the next frame can go on in.
		c.s.RxAt = next
		d, first = following, 0
	}
}

// closeRx gives the last descriptor of a frame back and moves on to next. It reports
// whether the bus allowed it.
func (c *Chip) closeRx(at, next, status uint32) bool {
	if c.release(at, status) != nil {
		c.abort()
		return false
	}
	c.s.RxAt = next
	c.raise(csr5RI)
	return true
}

// fill moves up to n bytes of the frame to addr; false means that the bus refused.
func (c *Chip) fill(addr uint32, n int) bool {
	n = min(n, c.rx.left)
	if n == 0 {
		return true
	}
	if !c.bigEndianBuffers() {
		if p := c.window(addr, n); p != nil {
			c.rx.take(p)
			return true
		}
	}
	p := c.rx.buf[:n]
	c.rx.take(p)
	return c.store(addr, p) == nil
}

// copyHead takes the Ethernet header out of parts, which hold at least that much.
func (f *rxFrame) copyHead(parts [][]byte) {
	n := 0
	for _, p := range parts {
		n += copy(f.head[n:], p)
		if n == headerLen {
			return
		}
	}
}

// load prepares parts, n bytes together, to be taken: with padding and FCS behind.
func (f *rxFrame) load(parts [][]byte, n int, zeros []byte) {
	f.src = append(f.src[:0], parts...)
	if n < minFrame {
		f.src = append(f.src, zeros[:minFrame-n])
		n = minFrame
	}
	crc := uint32(0)
	for _, p := range f.src {
		crc = crc32.Update(crc, crc32.IEEETable, p)
	}
	binary.LittleEndian.PutUint32(f.fcs[:], crc)
	f.src = append(f.src, f.fcs[:])
	f.next, f.left = 0, n+fcsLen
}

// forget lets go of the sender's memory, which may be unmapped next.
func (f *rxFrame) forget() { clear(f.src) }

// take fills p, which is not longer than f.left, with the next bytes of the frame.
func (f *rxFrame) take(p []byte) {
	f.left -= len(p)
	for len(p) > 0 {
		src := &f.src[f.next]
		n := copy(p, *src)
		p, *src = p[n:], (*src)[n:]
		if len(*src) == 0 {
			f.next++
		}
	}
}

// countMissed counts a frame that found no descriptor.
func (c *Chip) countMissed() {
	if c.s.CSR[8]&csr8Missed == csr8Missed {
		c.s.CSR[8] = csr8Overflow
		return
	}
	c.s.CSR[8]++
}

// startRx is CSR6<SR> going from 0 to 1.
func (c *Chip) startRx() {
	if c.s.Halted {
		return
	}
	c.setRS(rsWaiting)
	if !c.canDMA() {
		return
	}
	switch d, err := c.fetch(c.s.RxAt); {
	case err != nil:
		c.abort()
	case !d.owned():
		c.suspendRx()
	}
}

// stopRx is CSR6<SR> going from 1 to 0.
func (c *Chip) stopRx() {
	if c.rs() != rsStopped {
		c.setRS(rsStopped)
		c.raise(csr5RPS)
	}
}

// suspendRx is the running process finding no descriptor. RU is an edge, like TU.
func (c *Chip) suspendRx() {
	if c.rs() != rsSuspended {
		c.setRS(rsSuspended)
		c.raise(csr5RU)
	}
}

// pollRx is a write to CSR2: the suspended process looks again.
func (c *Chip) pollRx() {
	if c.rs() != rsSuspended || !c.canDMA() {
		return
	}
	switch d, err := c.fetch(c.s.RxAt); {
	case err != nil:
		c.abort()
	case d.owned():
		c.setRS(rsWaiting)
	}
}
