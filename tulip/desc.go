package tulip

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// desc is a descriptor as it was when it was fetched; the guest's memory is not
// looked at again. Receive and transmit descriptors share this form.
type desc struct {
	at      uint32 // its address
	status  uint32 // RDES0, TDES0
	control uint32 // RDES1, TDES1; this and the addresses only if owned
	addr1   uint32 // buffer 1
	addr2   uint32 // buffer 2, or the next descriptor
}

const descLen = 16 // bytes

func (d *desc) owned() bool { return d.status&desOWN != 0 }

// size1 and size2 are the lengths of the buffers in bytes, 0 to 2047.
func (d *desc) size1() int { return int(d.control & des1Size1) }
func (d *desc) size2() int {
	if d.control&des1CH != 0 {
		return 0
	}
	return int(d.control & des1Size2 >> des1Shift2)
}

// next returns the address of the descriptor that follows in a list that begins at
// base and has skip bytes between the descriptors of a ring. The end of a ring
// takes precedence over a chain address (HRM, "Descriptor Lists").
func (d *desc) next(base, skip uint32) uint32 {
	switch {
	case d.control&des1ER != 0:
		return base
	case d.control&des1CH != 0:
		return d.addr2 &^ 3
	}
	return d.at + descLen + skip
}

// skip returns the gap between ring descriptors in bytes, from CSR0<DSL>.
func (c *Chip) skip() uint32 { return c.s.CSR[0] & csr0DSL >> csr0DSLShift * 4 }

// errAddress is a bus access that runs past the end of the 32-bit address space.
var errAddress = errors.New("tulip: DMA past 4 GiB")

// window is Bus.Window, within the 32-bit address space.
func (c *Chip) window(addr uint32, n int) []byte {
	if uint64(addr)+uint64(n) > 1<<32 {
		return nil
	}
	return c.bus.Window(addr, n)
}

// read is Bus.Read, within the 32-bit address space.
func (c *Chip) read(addr uint32, p []byte) error {
	if uint64(addr)+uint64(len(p)) > 1<<32 {
		return errAddress
	}
	return c.bus.Read(addr, p)
}

// write is Bus.Write, within the 32-bit address space.
func (c *Chip) write(addr uint32, p []byte) error {
	if uint64(addr)+uint64(len(p)) > 1<<32 {
		return errAddress
	}
	return c.bus.Write(addr, p)
}

// fetch reads the descriptor at addr: its status first, and the rest only if the
// chip owns it, so that a driver that sets OWN last is never seen half-way.
func (c *Chip) fetch(addr uint32) (desc, error) {
	d := desc{at: addr}
	m := c.window(addr, descLen)
	if m == nil {
		m = c.lw[:]
		if err := c.read(addr, m[:4]); err != nil {
			return d, err
		}
		if err := c.read(addr+4, m[4:]); err != nil {
			return d, err
		}
	}
	d.status = c.longword(m)
	if d.owned() {
		d.control = c.longword(m[4:])
		d.addr1 = c.longword(m[8:])
		d.addr2 = c.longword(m[12:])
	}
	return d, nil
}

// release writes the status of the descriptor at addr, the only longword of it that
// the chip ever writes, in one piece.
func (c *Chip) release(addr, status uint32) error {
	if c.s.CSR[0]&csr0DBO != 0 {
		status = bits.ReverseBytes32(status)
	}
	if m := c.window(addr, 4); m != nil {
		binary.LittleEndian.PutUint32(m, status)
		return nil
	}
	binary.LittleEndian.PutUint32(c.lw[:4], status)
	return c.write(addr, c.lw[:4])
}

// longword decodes one longword of a descriptor, in the byte order of CSR0<DBO>.
func (c *Chip) longword(m []byte) uint32 {
	v := binary.LittleEndian.Uint32(m)
	if c.s.CSR[0]&csr0DBO != 0 {
		v = bits.ReverseBytes32(v)
	}
	return v
}

// bigEndianBuffers reports CSR0<BLE>: the byte at address a then travels in the place
// of a^3, that is, each longword of a frame is swapped on its way.
func (c *Chip) bigEndianBuffers() bool { return c.s.CSR[0]&csr0BLE != 0 }

// load fills p from a buffer at addr, in the byte order of CSR0<BLE>.
func (c *Chip) load(addr uint32, p []byte) error {
	if !c.bigEndianBuffers() {
		return c.read(addr, p)
	}
	span, err := c.swappedSpan(addr, len(p))
	if err != nil {
		return err
	}
	copy(p, span[addr&3:])
	return nil
}

// store writes p to a buffer at addr, in the byte order of CSR0<BLE>. The longwords at
// the ends of a big-endian buffer are read first, and keep the bytes that are not p's.
func (c *Chip) store(addr uint32, p []byte) error {
	if !c.bigEndianBuffers() {
		return c.write(addr, p)
	}
	span, err := c.swappedSpan(addr, len(p))
	if err != nil {
		return err
	}
	copy(span[addr&3:], p)
	swapLongwords(span)
	return c.write(addr&^3, span)
}

// swappedSpan reads the whole longwords around [addr, addr+n), swapped, into scratch
// that is valid until the next call.
func (c *Chip) swappedSpan(addr uint32, n int) ([]byte, error) {
	n = (int(addr&3) + n + 3) &^ 3
	if cap(c.span) < n {
		c.span = make([]byte, n)
	}
	span := c.span[:n]
	if err := c.read(addr&^3, span); err != nil {
		return nil, err
	}
	swapLongwords(span)
	return span, nil
}

// swapLongwords reverses the bytes of each longword in p, a multiple of 4 long.
func swapLongwords(p []byte) {
	for ; len(p) > 0; p = p[4:] {
		p[0], p[1], p[2], p[3] = p[3], p[2], p[1], p[0]
	}
}
