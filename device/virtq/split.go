package virtq

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// splitRing is the memory of a split ring (virtio 2.7).
type splitRing struct {
	mask uint16

	desc []uint64 // two words each: address; length, flags, next

	// available ring: the driver's
	availFlags, availIdx field16
	avail                []uint16
	usedEvent            field16 // with EVENT_IDX
	seen                 uint16  // availIdx as last loaded

	// used ring: ours
	usedWord   *uint32 // flags in the low half, idx in the high half
	usedRing   []byte  // 8 bytes each: id; bytes written
	availEvent *uint16 // with EVENT_IDX

	flags     uint16 // what flags in usedWord is
	published uint16 // what idx in usedWord is
	batch     uint16 // index of the last entry, if further buffers may join it
	joins     bool   // they may
}

const (
	availNoInterrupt = 1 // driver: no need to call (virtio 2.7.6)
	usedNoNotify     = 1 // device: no need to kick (virtio 2.7.8)
)

// place points r at its memory. n is the number of entries.
func (r *splitRing) place(n int, eventIdx bool, desc, driver, device []byte) {
	r.mask = uint16(n - 1)
	r.desc = words64(desc)
	r.availFlags, r.availIdx = fieldAt(driver), fieldAt(driver[2:])
	r.avail = words16(driver[4 : 4+2*n])
	r.usedWord = &words32(device)[0]
	r.usedRing = device[4 : 4+8*n]
	if eventIdx {
		r.usedEvent = fieldAt(driver[4+2*n:])
		r.availEvent = &words16(device[4+8*n:])[0]
	}
}

// startSplit finds the positions. The used index is kept in the ring itself, by
// whoever served it before; whatever it is, it only counts.
func (q *Queue) startSplit() error {
	if q.cfg.Base > 0xffff {
		return fmt.Errorf("base %#x of a split ring has more than 16 bits", q.cfg.Base)
	}
	r := &q.split
	word := atomic.LoadUint32(r.usedWord)
	q.next.index, r.seen = uint16(q.cfg.Base), uint16(q.cfg.Base)
	q.used.index, r.published = uint16(word>>16), uint16(word>>16)
	r.flags = uint16(word) & usedNoNotify
	if q.cfg.EventIdx {
		r.flags = 0 // virtio 2.7.10.2
	}
	return nil
}

// availableSplit returns how many chains, up to most, are available. The index is in a cache line that the
// driver writes all the time, so it is looked at only when those that were seen do not suffice.
func (q *Queue) availableSplit(most int) (int, error) {
	r := &q.split
	ready := int(r.seen - q.next.index)
	if ready >= most {
		return most, nil
	}
	seen := r.availIdx.load() // acquires the entries up to it and their descriptors
	ready = int(seen - q.next.index)
	if ready > len(r.avail) { // virtio 2.7.13.3: there are no more entries; a decrement (2.7.6.1) is a large step, too
		return 0, malformed("available index %d is %d ahead of %d in a queue of %d", seen, ready, q.next.index, len(r.avail))
	}
	r.seen = seen
	return min(ready, most), nil
}

// takeSplit is Take.
func (q *Queue) takeSplit(chains []Chain) (n int, err error) {
	ready, err := q.availableSplit(len(chains))
	if err != nil {
		return 0, err
	}
	r := &q.split
	parts := 0 // of the chains that are not so simple
	for ; n < ready; n++ {
		c := &chains[n]
		c.reset()
		// Nearly every buffer is one descriptor to read, in the piece of memory of the one before. If not, nothing of this
		// first look is kept.
		if head := int(r.avail[q.next.index&r.mask]); head <= int(r.mask) {
			addr, rest := r.desc[2*head], r.desc[2*head+1]
			if uint16(rest>>32) == 0 {
				if b := q.readable.hit.window(addr, uint32(rest)); b != nil {
					c.Out = append(c.Out, b)
					c.id = uint16(head)
					q.next.index++
					continue
				}
			}
		}
		if err := q.walkSplit(c); err != nil {
			return n, err
		}
		if parts += len(c.Out) + len(c.In); parts >= maxParts {
			return n + 1, nil
		}
	}
	return n, nil
}

// fillSplit is FillEach, up to the first buffer that is not one descriptor of n[i] bytes or more, in the piece of
// memory of the one before.
func (q *Queue) fillSplit(n []int, bufs [][]byte) (i int) {
	ready, _ := q.availableSplit(len(n))
	r, hit := &q.split, &q.writable.hit
	for ; i < ready; i++ {
		head := int(r.avail[q.next.index&r.mask])
		if head > int(r.mask) {
			break
		}
		addr, rest := r.desc[2*head], r.desc[2*head+1]
		if uint16(rest>>32) != descWrite || int64(uint32(rest)) < int64(n[i]) {
			break
		}
		b := hit.window(addr, uint32(rest))
		if b == nil {
			break
		}
		bufs[i] = b[:n[i]]
		q.next.index++
		r.setUsed(q.used.index, entry{uint16(head), 0, uint32(n[i])})
		q.used.index++
	}
	if i > 0 {
		r.joins = false
	}
	return i
}

// walkSplit appends the chain at q.next, which is available, to c.
func (q *Queue) walkSplit(c *Chain) error {
	r := &q.split
	i := r.avail[q.next.index&r.mask]
	c.id = i
	for n := 1; ; n++ {
		if i > r.mask {
			if n == 1 {
				return malformed("available entry %d names descriptor %d in a table of %d", q.next.index&r.mask, i, len(r.avail))
			}
			return malformed("chain of descriptor %d goes on to descriptor %d in a table of %d", c.id, i, len(r.avail))
		}
		addr, rest := r.desc[2*int(i)], r.desc[2*int(i)+1]
		size, flags, next := uint32(rest), uint16(rest>>32), uint16(rest>>48)
		if flags&descIndirect != 0 {
			if flags&descNext != 0 { // virtio 2.7.5.3.1
				return malformed("descriptor %d has both INDIRECT and NEXT", i)
			}
			if err := q.walkTable(c, addr, size, n-1); err != nil {
				return err
			}
			break
		}
		if err := q.add(c, addr, size, flags); err != nil {
			return err
		}
		if flags&descNext == 0 {
			break
		}
		if n >= min(len(r.avail), maxParts) { // virtio 2.7.5: the queue size is the longest chain; a loop is longer
			return malformed("chain of descriptor %d has more than %d descriptors", c.id, n)
		}
		i = next
	}
	q.next.index++
	return nil
}

// walkTable appends the chain in an indirect table to c, which already has n descriptors.
func (q *Queue) walkTable(c *Chain, addr uint64, size uint32, n int) error {
	table, err := q.table(addr, size)
	if err != nil {
		return err
	}
	for i := 0; ; n++ {
		if n >= maxParts { // a loop, if the table is not very long
			return malformed("chain of descriptor %d has more than %d descriptors", c.id, n)
		}
		a, rest := loadDesc(table, i)
		flags, next := uint16(rest>>32), int(rest>>48)
		if flags&descIndirect != 0 { // virtio 2.7.5.3.1: only one table per descriptor
			return malformed("entry %d of the indirect table at address %#x is indirect", i, addr)
		}
		if err := q.add(c, a, uint32(rest), flags); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		if next >= len(table)/16 {
			return malformed("entry %d of the indirect table at address %#x goes on to entry %d of %d", i, addr, next, len(table)/16)
		}
		i = next
	}
}

// putSplit writes the used entry of e behind what the driver sees.
func (q *Queue) putSplit(e entry, inner bool) {
	r := &q.split
	at := q.used.index
	if inner && r.joins {
		at = r.batch // virtio 2.7.9: the place of the first, the id of the last
	}
	r.batch, r.joins = at, inner
	r.setUsed(at, e)
	q.used.index++
}

// readSplit is DoneAll for chains without a part to write.
func (q *Queue) readSplit(chains []Chain) {
	if q.cfg.InOrder {
		last := len(chains) - 1
		q.putSplit(entry{id: chains[last].id}, true)
		q.used.index += uint16(last)
		return
	}
	for i := range chains {
		q.split.setUsed(q.used.index, entry{id: chains[i].id})
		q.used.index++
	}
}

// setUsed writes a used entry, both halves in one store, which neither processor needs aligned. The entry
// may be the same as in the last round: then it is not written, and its cache line stays with the
// processor that reads it.
func (r *splitRing) setUsed(index uint16, e entry) {
	at := 8 * int(index&r.mask)
	b, v := r.usedRing[at:at+8], uint64(e.id)|uint64(e.written)<<32
	if binary.LittleEndian.Uint64(b) != v {
		binary.LittleEndian.PutUint64(b, v)
	}
}

// publishSplit moves the driver's used index, and reports from where if it moved.
func (q *Queue) publishSplit() (old uint16, moved bool) {
	r := &q.split
	old = r.published
	if old == q.used.index {
		return old, false
	}
	r.published, r.joins = q.used.index, false
	r.storeUsed()
	return old, true
}

// storeUsed releases idx with all used entries before it, and flags. Both halves of the word are ours.
func (r *splitRing) storeUsed() {
	atomic.StoreUint32(r.usedWord, uint32(r.flags)|uint32(r.published)<<16)
}
