package virtq

import (
	"fmt"
	"sync/atomic"
)

// packedRing is the memory of a packed ring (virtio 2.8).
type packedRing struct {
	// desc has two words for each descriptor: address; length, buffer id, flags. The second belongs to the driver until
	// its flags say available, then to us until we say used: length, id and flags are written in one store.
	desc []uint64

	driver *uint32 // the driver's wishes for calls: offset and wrap counter in the low half, flags in the high half
	device *uint32 // ours for kicks, likewise

	// The first used descriptor since the last Publish is written last: the driver does not look
	// at the others before (virtio 2.8.2), so that they may be plain stores.
	first cursor
	value uint64 // of its second word
	count int    // ring descriptors used since the last Publish

	batch int  // position of the last used descriptor, if further buffers may join it
	joins bool // they may
}

// Values of the flags in event suppression (virtio 2.8.10).
const (
	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2 // when the descriptor at an offset is used, or made available; EVENT_IDX only
)

// place points r at its memory.
func (r *packedRing) place(desc, driver, device []byte) {
	r.desc = words64(desc)
	r.driver = &words32(driver)[0]
	r.device = &words32(device)[0]
}

// startPacked takes the positions from the ring, or if that does not tell them, from the base. The base of a ring whose
// device died is from before: QEMU 11.1 says where the ring was when it was last stopped.
func (q *Queue) startPacked() error {
	base := q.cfg.Base
	if base>>16 == 0 {
		base |= base << 16
	}
	for i, c := range []*cursor{&q.next, &q.used} {
		half := uint16(base >> (16 * i))
		*c = cursor{index: half &^ (1 << 15), wrap: half>>15 != 0}
		if c.index >= q.cfg.Num {
			return fmt.Errorf("base %#x is beyond a packed ring of %d", q.cfg.Base, q.cfg.Num)
		}
	}
	if at, ok := q.locatePacked(); ok && q.next == q.used {
		q.next, q.used = at, at
	}
	return nil
}

// locatePacked finds where the device is. A driver that makes a descriptor available leaves its USED bit as the device
// last left it, so these bits are the device's own account: in those before its position they are like the wrap counter, in
// the others they are not. That holds if the device has written each descriptor that it passed; it did not where
// buffers have several or where order made it skip some, and then the ring does not tell.
func (q *Queue) locatePacked() (at cursor, ok bool) {
	ok = !q.cfg.InOrder
	used := false
	for i := range q.cfg.Num {
		flags := atomic.LoadUint32(flagsWord(q.packed.desc, int(i))) >> 16
		bit := flags&descUsed != 0
		if i == 0 {
			at.wrap = bit
		}
		used = used || bit
		switch {
		case flags&descNext != 0 || bit == at.wrap && at.index < i:
			ok = false
		case bit == at.wrap:
			at.index++
		}
	}
	if at.index == q.cfg.Num {
		at = cursor{0, !at.wrap}
	}
	if q.cfg.Base == 0 && !used { // User Mode Linux's base of a new ring: the counter begins at 1 (virtio 2.8.1)
		return cursor{0, true}, true
	}
	return at, ok
}

// advance moves c on by n descriptors in a ring of num, n up to num.
func (c *cursor) advance(n, num uint16) {
	c.index += n
	if c.index >= num {
		c.index -= num
		c.wrap = !c.wrap
	}
}

// availablePacked reports whether the driver made the descriptor at q.next available (virtio 2.8.1), and if so acquires
// it and those chained to it.
func (q *Queue) availablePacked() bool {
	flags := atomic.LoadUint32(flagsWord(q.packed.desc, int(q.next.index))) >> 16
	if q.next.wrap {
		return flags&(descAvail|descUsed) == descAvail
	}
	return flags&(descAvail|descUsed) == descUsed
}

// takePacked is Take.
func (q *Queue) takePacked(chains []Chain) (n int, err error) {
	r, num := &q.packed, int(q.cfg.Num)
	most := min(len(chains), num)
	extra, parts := 0, 0 // of the chains that are not so simple: descriptors of the ring but one each, and all there are
	for ; n < most; n++ {
		if !q.availablePacked() {
			break
		}
		c := &chains[n]
		c.reset()
		// As in a split ring: nearly every buffer is one descriptor to read.
		i := int(q.next.index)
		addr, rest := r.desc[2*i], r.desc[2*i+1]
		if rest>>48&(descNext|descWrite|descIndirect) == 0 {
			if b := q.readable.hit.window(addr, uint32(rest)); b != nil {
				c.Out = append(c.Out, b)
				c.id, c.descs = uint16(rest>>32), 1
				q.next.advance(1, q.cfg.Num)
				continue
			}
		}
		if ok, err := q.walkPacked(c); !ok {
			return n, err
		}
		// A driver that makes descriptors available again before it has them back makes more available than there are.
		if extra += int(c.descs) - 1; n+extra >= num {
			return n, malformed("more than %d descriptors are available in a ring of as many", num)
		}
		most = min(len(chains), num-extra)
		if parts += len(c.Out) + len(c.In); parts >= maxParts {
			return n + 1, nil
		}
	}
	return n, nil
}

// fillPacked is FillEach, up to the first buffer that is not one descriptor of n[i] bytes or more, in the piece of
// memory of the one before.
func (q *Queue) fillPacked(n []int, bufs [][]byte) (i int) {
	r, hit := &q.packed, &q.writable.hit
	for ; i < len(n) && q.availablePacked(); i++ {
		at := int(q.next.index)
		addr, rest := r.desc[2*at], r.desc[2*at+1]
		if rest>>48&(descNext|descWrite|descIndirect) != descWrite || int64(uint32(rest)) < int64(n[i]) {
			break
		}
		b := hit.window(addr, uint32(rest))
		if b == nil {
			break
		}
		bufs[i] = b[:n[i]]
		q.next.advance(1, q.cfg.Num)
		q.putPacked(entry{uint16(rest >> 32), 1, uint32(n[i])}, false)
	}
	return i
}

// readPacked is DoneAll for chains without a part to write.
func (q *Queue) readPacked(chains []Chain) {
	if !q.cfg.InOrder {
		for i := range chains {
			q.putPacked(entry{chains[i].id, chains[i].descs, 0}, false)
		}
		return
	}
	last, descs := len(chains)-1, uint16(0)
	for i := range chains {
		descs += chains[i].descs
	}
	q.putPacked(entry{chains[last].id, descs, 0}, true)
}

// walkPacked appends the chain at q.next to c, and returns false if there is none.
func (q *Queue) walkPacked(c *Chain) (bool, error) {
	if !q.availablePacked() {
		return false, nil
	}
	r, num := &q.packed, q.cfg.Num
	at := q.next
	for n := uint16(1); ; n++ {
		// Loaded anew after the load that acquired: it is then certain that all of it is what the driver wrote
		// before. Its bits for available are not looked at again.
		addr, rest := r.desc[2*int(at.index)], r.desc[2*int(at.index)+1]
		size, id, flags := uint32(rest), uint16(rest>>32), uint16(rest>>48)
		at.advance(1, num)
		if flags&descIndirect != 0 {
			if n > 1 || flags&descNext != 0 { // virtio 2.8.19
				return false, malformed("indirect descriptor of buffer %d is part of a list", id)
			}
			if err := q.walkPackedTable(c, addr, size); err != nil {
				return false, err
			}
		} else {
			if err := q.add(c, addr, size, flags); err != nil {
				return false, err
			}
			if flags&descNext != 0 {
				if int(n) >= min(int(num), maxParts) { // virtio 2.8.17: no longer than the queue
					return false, malformed("list from descriptor %d on has more than %d descriptors", q.next.index, n)
				}
				continue
			}
		}
		c.id, c.descs = id, n // virtio 2.8.6: the id is in the last one
		q.next = at
		return true, nil
	}
}

// walkPackedTable appends all entries of an indirect table to c. Of the flags only WRITE
// has a meaning there, others are ignored (virtio 2.8.7): there is no indirect in indirect.
func (q *Queue) walkPackedTable(c *Chain, addr uint64, size uint32) error {
	table, err := q.table(addr, size)
	if err != nil {
		return err
	}
	for i := range len(table) / 16 {
		a, rest := loadDesc(table, i)
		flags := uint16(rest >> 48)
		if q.cfg.Sends {
			flags = 0
		}
		if err := q.add(c, a, uint32(rest), flags); err != nil {
			return err
		}
	}
	return nil
}

// putPacked writes the used descriptor of e, or keeps it if it is the first since Publish.
func (q *Queue) putPacked(e entry, inner bool) {
	r := &q.packed
	var flags uint64
	if q.used.wrap {
		flags = descAvail | descUsed
	}
	if e.written > 0 {
		flags |= descWrite // virtio 2.8.3
	}
	if e.descs > 1 {
		flags |= descNext // which drivers ignore (virtio 2.8.6): for locatePacked
	}
	value := uint64(e.written) | uint64(e.id)<<32 | flags<<48
	switch {
	case r.count == 0:
		r.first, r.value = q.used, value
		r.batch = int(q.used.index)
	case inner && r.joins: // virtio 2.8.8: the place of the first, the id of the last
		if r.batch == int(r.first.index) {
			r.value = r.value&^(0xffff<<32) | uint64(e.id)<<32
		} else {
			w := &r.desc[2*r.batch+1]
			*w = *w&^(0xffff<<32) | uint64(e.id)<<32
		}
	default:
		r.batch = int(q.used.index)
		r.desc[2*r.batch+1] = value
	}
	r.joins = inner
	r.count += int(e.descs)
	q.used.advance(e.descs, q.cfg.Num)
}

// publishPacked writes the descriptor that was kept. It returns it and how many descriptors follow, itself included.
func (q *Queue) publishPacked() (first cursor, count int) {
	r := &q.packed
	first, count = r.first, r.count
	if count > 0 {
		atomic.StoreUint64(&r.desc[2*int(first.index)+1], r.value) // releases the others, and the buffers
		r.count, r.joins = 0, false
	}
	return first, count
}
