package virtq

import "sync/atomic"

// Publish shows the driver everything that Done and Fill noted since the last time, with one store, and
// reports whether the driver wants to be called for it.
//
// The first time it reports true if the driver did not switch calls off altogether: a device that took over
// a running ring does not know what its predecessor left unsaid.
func (q *Queue) Publish() (notify bool) {
	if q.cfg.Packed {
		first, count := q.publishPacked()
		if count == 0 {
			return false
		}
		if q.log != nil {
			q.logUsedPacked(first, count)
		}
		notify = q.wantsCallPacked(first, count)
	} else {
		old, moved := q.publishSplit()
		if !moved {
			return false
		}
		if q.log != nil {
			q.logUsedSplit(old)
		}
		notify = q.wantsCallSplit(old)
	}
	q.signalled = true
	return notify
}

// wantsCallSplit decides by virtio 2.7.7.2. The driver states its wish, then looks at the used index; we stored
// the index and now look at its wish. Both do so in that order, so one of the two sees the other's.
func (q *Queue) wantsCallSplit(old uint16) bool {
	r := &q.split
	if !q.cfg.EventIdx {
		return r.availFlags.load()&availNoInterrupt == 0
	}
	return needEvent(r.usedEvent.load(), r.published, old) || !q.signalled
}

// needEvent reports whether a free-running index that went from old to idx passed event: whether
// the entry with that index was among those added.
func needEvent(event, idx, old uint16) bool {
	return idx-event-1 < idx-old
}

// wantsCallPacked decides by virtio 2.8.10, for count descriptors from first on.
func (q *Queue) wantsCallPacked(first cursor, count int) bool {
	wish := atomic.LoadUint32(q.packed.driver) // after the store in publishPacked
	switch flags := wish >> 16 & 3; {
	case flags == eventDisable:
		return false
	case flags == eventDesc && q.cfg.EventIdx:
		event := cursor{index: uint16(wish) &^ (1 << 15), wrap: wish&(1<<15) != 0}
		return event.within(first, count, int(q.cfg.Num)) || !q.signalled
	}
	return true
}

// within reports whether c is one of count positions from first on, in a ring of num.
func (c cursor) within(first cursor, count, num int) bool {
	d := int(c.index) - int(first.index)
	if c.wrap != first.wrap {
		d += num // in the next round
	}
	return 0 <= d && d < count
}

// Arm asks the driver to kick when it makes the next buffer available, and reports whether it already did: then
// there may be no kick, and the owner goes on instead of going to sleep.
func (q *Queue) Arm() (pending bool) {
	r := &q.split
	switch {
	case q.cfg.Packed:
		wish := uint32(eventEnable) << 16
		if q.cfg.EventIdx {
			wish = eventDesc<<16 | uint32(q.next.packed())
		}
		q.wish(wish)
		return q.availablePacked()
	case q.cfg.EventIdx:
		*r.availEvent = q.next.index
		// A field of 16 bits at the end of the ring: the bytes behind it are not ours, so it cannot be stored as 32. But
		// storing the other word anew is a barrier between that field and the load below: XCHG on amd64, and on
		// arm64 a store that is seen after the field's (release) and never after an LDAR that follows.
		r.storeUsed()
		if q.log != nil {
			q.log(q.cfg.Device+4+8*uint64(q.cfg.Num), 2)
		}
	default:
		q.setFlags(0)
	}
	// An index that is out of bounds also ends the sleep; Take then says what is wrong.
	return r.availIdx.load() != q.next.index
}

// Disarm tells the driver that kicks are not needed. It is a hint: they may come nevertheless.
func (q *Queue) Disarm() {
	switch {
	case q.cfg.Packed:
		q.wish(eventDisable << 16)
	case q.cfg.EventIdx:
		// The event index stays behind, so the driver passes it once in 65536 buffers. The flag must be 0 (virtio 2.7.10.2).
	default:
		q.setFlags(usedNoNotify)
	}
}

// wish stores the packed ring's device event suppression; all 32 bits are ours.
func (q *Queue) wish(w uint32) {
	atomic.StoreUint32(q.packed.device, w)
	if q.log != nil {
		q.log(q.cfg.Device, 4)
	}
}

// setFlags stores the flags of the used ring next to the index that the driver sees now.
func (q *Queue) setFlags(flags uint16) {
	r := &q.split
	r.flags = flags
	r.storeUsed()
	if q.log != nil {
		q.log(q.cfg.Device, 4)
	}
}
