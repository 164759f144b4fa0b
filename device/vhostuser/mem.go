package vhostuser

import (
	"encoding/binary"
	"os"
	"slices"
)

// last returns the last of n bytes from addr on, and whether there is one: n is not 0, and the range does not wrap around.
func last(addr, n uint64) (uint64, bool) {
	l := addr + (n - 1)
	return l, n != 0 && l >= addr
}

// overlap reports whether two ranges, neither empty nor wrapping around, have a byte in common.
func overlap(a, an, b, bn uint64) bool { return a <= b+(bn-1) && b <= a+(an-1) }

// decodeRegion takes a region from the first regionSize bytes of b, and finds what is wrong with it.
func (c *conn) decodeRegion(b []byte) (MemRegion, error) {
	r := MemRegion{
		GPA:    binary.LittleEndian.Uint64(b[0:]),
		Size:   binary.LittleEndian.Uint64(b[8:]),
		UVA:    binary.LittleEndian.Uint64(b[16:]),
		Offset: binary.LittleEndian.Uint64(b[24:]),
	}
	for _, start := range []struct {
		name string
		addr uint64
	}{{"guest address", r.GPA}, {"user address", r.UVA}, {"offset", r.Offset}} {
		if _, ok := last(start.addr, r.Size); !ok {
			return r, c.h.malformed("%s %#x and size %#x: empty or wraps around", start.name, start.addr, r.Size)
		}
	}
	return r, nil
}

// checkTable finds regions that have addresses in common.
func (c *conn) checkTable(table []MemRegion) error {
	for i := range table {
		a := &table[i]
		for j := range i {
			b := &table[j]
			if overlap(a.GPA, a.Size, b.GPA, b.Size) {
				return c.h.malformed("guest addresses %#x+%#x overlap %#x+%#x", a.GPA, a.Size, b.GPA, b.Size)
			}
			if overlap(a.UVA, a.Size, b.UVA, b.Size) {
				return c.h.malformed("user addresses %#x+%#x overlap %#x+%#x", a.UVA, a.Size, b.UVA, b.Size)
			}
		}
	}
	return nil
}

// closeRegions closes the files of a table.
func closeRegions(table []MemRegion) {
	for _, r := range table {
		r.File.Close()
	}
}

// setMemTable serves SET_MEM_TABLE. The payload may be longer than its regions: User Mode Linux always sends room
// for two.
func (c *conn) setMemTable(body []byte) ([]byte, error) {
	if len(body) < tableSize {
		return nil, c.h.malformed("payload of %d bytes, want at least %d", len(body), tableSize)
	}
	n := binary.LittleEndian.Uint32(body)
	body = body[tableSize:]
	switch {
	case n > maxTable:
		return nil, c.h.malformed("%d regions, of at most %d", n, maxTable)
	case len(body) < int(n)*regionSize || len(body) > maxTable*regionSize:
		return nil, c.h.malformed("%d bytes for %d regions", len(body), n)
	case len(c.fds) != int(n):
		return nil, c.h.malformed("%d descriptors for %d regions", len(c.fds), n)
	}
	table := make([]MemRegion, n)
	for i := range table {
		var err error
		if table[i], err = c.decodeRegion(body[i*regionSize:]); err != nil {
			return nil, err
		}
	}
	if err := c.checkTable(table); err != nil {
		return nil, err
	}
	for i := range table {
		table[i].File = memoryFile(c.fds[i])
	}
	c.fds = c.fds[:0]
	defer closeRegions(c.mem)
	return nil, c.setMemory(table)
}

func memoryFile(fd int) *os.File { return os.NewFile(uintptr(fd), "guest memory") }

func (c *conn) getMaxMemSlots([]byte) ([]byte, error) { return u64(maxSlots), nil }

// addMemReg serves ADD_MEM_REG: 8 bytes of padding, then one region.
func (c *conn) addMemReg(body []byte) ([]byte, error) {
	r, err := c.decodeRegion(body[8:])
	switch {
	case err != nil:
		return nil, err
	case len(c.fds) != 1:
		return nil, c.h.malformed("no descriptor")
	case len(c.mem) == maxSlots:
		return nil, c.h.malformed("one more than %d regions", maxSlots)
	}
	table := append(slices.Clone(c.mem), r)
	if err := c.checkTable(table); err != nil {
		return nil, err
	}
	table[len(table)-1].File = memoryFile(c.take())
	return nil, c.setMemory(table)
}

// remMemReg serves REM_MEM_REG: 8 bytes of padding, then one region, of which the offset does not matter. A
// descriptor is allowed, and closed.
func (c *conn) remMemReg(body []byte) ([]byte, error) {
	r, err := c.decodeRegion(body[8:])
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.mem, func(m MemRegion) bool { return m.GPA == r.GPA && m.Size == r.Size && m.UVA == r.UVA })
	if i < 0 {
		return nil, c.h.malformed("no region has guest address %#x, size %#x and user address %#x", r.GPA, r.Size, r.UVA)
	}
	defer c.mem[i].File.Close()
	return nil, c.setMemory(slices.Delete(slices.Clone(c.mem), i, i+1))
}

// setMemory makes table the guest's memory, and starts the rings that run anew on it. It takes the files in table over. Those that
// are only in the table before are the caller's to close.
func (c *conn) setMemory(table []MemRegion) error {
	c.mem = table
	var running []int
	for i := range c.rings {
		if c.rings[i].running {
			running = append(running, i)
			if err := c.stop(i); err != nil {
				return err
			}
		}
	}
	if c.holds() {
		if err := c.dev.SetMemory(slices.Clone(table)); err != nil {
			return err
		}
	}
	for _, i := range running {
		if err := c.start(i); err != nil {
			return err
		}
	}
	for i := range c.rings {
		if err := c.settle(i); err != nil {
			return err
		}
	}
	return nil
}

// translate returns the guest-physical address of n bytes at a user address, which must be a multiple of align.
func (c *conn) translate(ring int, what string, uva, n, align uint64) (uint64, error) {
	if uva%align != 0 {
		return 0, c.h.malformed("ring %d: %s at %#x, want a multiple of %d", ring, what, uva, align)
	}
	for _, r := range c.mem {
		if off := uva - r.UVA; uva >= r.UVA && off < r.Size && n <= r.Size-off {
			return r.GPA + off, nil
		}
	}
	return 0, c.h.malformed("ring %d: %s at %#x+%#x is not in one region of the memory", ring, what, uva, n)
}

// setLogBase serves SET_LOG_BASE. It has a reply, of which QEMU looks at the header only.
func (c *conn) setLogBase(body []byte) ([]byte, error) {
	l := Log{Size: binary.LittleEndian.Uint64(body), Offset: binary.LittleEndian.Uint64(body[8:])}
	if _, ok := last(l.Offset, l.Size); !ok {
		return nil, c.h.malformed("offset %#x and size %#x: empty or wraps around", l.Offset, l.Size)
	}
	if len(c.fds) != 1 {
		return nil, c.h.malformed("no descriptor")
	}
	for _, r := range c.mem {
		if end, _ := last(r.GPA, r.Size); end/logPage/8 >= l.Size {
			return nil, c.h.malformed("size %#x does not cover the memory up to %#x", l.Size, end)
		}
	}
	l.File = os.NewFile(uintptr(c.take()), "dirty log")
	if c.logBase.File != nil {
		c.logBase.File.Close()
	}
	c.logBase = l
	return u64(0), c.tellLog(true)
}

// logPage is how many bytes of guest memory one bit of the log is for: VHOST_LOG_PAGE.
const logPage = 4096

// setLogFD serves SET_LOG_FD, an eventfd to signal when something was logged. QEMU passes none and nobody needs it.
func (c *conn) setLogFD([]byte) ([]byte, error) { return nil, nil }

// tellLog tells the device whether and where to log, if that has changed; anew says that where has.
func (c *conn) tellLog(anew bool) error {
	on := c.logBase.File != nil && c.features&featureLogAll != 0 && c.holds()
	was := c.logging
	c.logging = on
	switch {
	case on && (anew || !was):
		l := c.logBase
		return c.dev.SetLog(&l)
	case was && !on:
		return c.dev.SetLog(nil)
	}
	return nil
}
