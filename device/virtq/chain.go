package virtq

import "encoding/binary"

// Flags of a descriptor (virtio 2.7.5; the last two in packed rings only, 2.8.1).
const (
	descNext     = 1 << 0
	descWrite    = 1 << 1 // the device writes; otherwise it reads
	descIndirect = 1 << 2
	descAvail    = 1 << 7
	descUsed     = 1 << 15
)

// maxParts bounds the descriptors of a chain, in ring and table together. A device may have a reasonable
// limit (virtio 2.7.4.1).
const maxParts = 1024

// Chain is one buffer of the driver: what the device may read, then what it may write. The
// slices point into guest memory. Its zero value is ready for [Queue.Take].
type Chain struct {
	Out [][]byte // device-readable
	In  [][]byte // device-writable

	id    uint16
	descs uint16
	dirty []span // where In is, if there is a log
}

// reset empties c and keeps the room in it.
func (c *Chain) reset() {
	c.Out, c.In, c.dirty = c.Out[:0], c.In[:0], c.dirty[:0]
}

// trim takes n bytes off the end of c.In.
func (c *Chain) trim(n int) {
	for left := n; left > 0; {
		last := &c.In[len(c.In)-1]
		if left < len(*last) {
			*last = (*last)[:len(*last)-left]
			break
		}
		left -= len(*last)
		c.In = c.In[:len(c.In)-1]
	}
	for left := n; left > 0 && len(c.dirty) > 0; {
		last := &c.dirty[len(c.dirty)-1]
		if left < last.n {
			last.n -= left
			break
		}
		left -= last.n
		c.dirty = c.dirty[:len(c.dirty)-1]
	}
}

// add appends the memory that one descriptor names to c.
func (q *Queue) add(c *Chain, addr uint64, n uint32, flags uint16) (err error) {
	if flags&descWrite == 0 {
		if len(c.In) != 0 { // virtio 2.7.4.2, 2.8.17
			return malformed("device-readable descriptor at address %#x of length %#x follows a device-writable one", addr, n)
		}
		if b := q.readable.hit.window(addr, n); b != nil {
			c.Out = append(c.Out, b)
			return nil
		}
		c.Out, err = q.readable.scatter(c.Out, addr, n)
		return err
	}
	q.writes = true
	if q.log != nil {
		c.dirty = append(c.dirty, span{addr, int(n)})
	}
	if b := q.writable.hit.window(addr, n); b != nil {
		c.In = append(c.In, b)
		return nil
	}
	c.In, err = q.writable.scatter(c.In, addr, n)
	return err
}

// table returns the indirect table that a descriptor names. More entries than
// a chain may have are of use to nobody.
func (q *Queue) table(addr uint64, n uint32) ([]byte, error) {
	switch {
	case !q.cfg.Indirect: // virtio 2.7.5.3.1, 2.8.19
		return nil, malformed("indirect descriptor at address %#x, which was not negotiated", addr)
	case n == 0 || n%16 != 0 || n > 16*maxParts:
		return nil, malformed("indirect table at address %#x of length %#x: must be 1 to %d times 16", addr, n, maxParts)
	}
	if b := q.readable.hit.window(addr, n); b != nil {
		return b, nil
	}
	b := q.readable.find(addr, uint64(n))
	if uint64(len(b)) < uint64(n) {
		return nil, malformed("indirect table at address %#x of length %#x is not in one piece of readable memory", addr, n)
	}
	return b[:n], nil
}

// loadDesc reads entry i of an indirect table once: address, length, flags and, of a split ring, next. A
// table has no alignment, and it is read after the load that acquired its descriptor.
func loadDesc(table []byte, i int) (addr uint64, rest uint64) {
	d := table[16*i : 16*i+16]
	return binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
}
