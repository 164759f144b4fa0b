package vswitch

// Ingress is the way into the switch for one goroutine that sends for one
// member: its methods must not be called by two goroutines at once. It needs
// no closing; it ends with its member.
//
// It holds what a batch is sorted into, so that a batch allocates nothing once
// the lists have grown to the sender's batch size.
type Ingress struct {
	sw   *Switch
	from *Member

	// A batch, sorted. Most ports get nothing but floods, and share one list.
	// A port that also gets frames of its own has a list with both, which keeps
	// them in order.
	flood []*Frame
	own   []ownList
	where []uint16 // index slot; 1 + the index in own, or 0

	// A batch that came with an Offload is sorted as a copy whose Offloads were
	// checked. Where such a frame goes to a port that does not accept it,
	// finisher makes others of it; it is there once it was needed.
	checked    []Frame
	unfinished bool // one of checked has an Offload
	finisher   *finisher

	// What a batch adds to the counters of from.
	rx    tally
	moves uint64
	drops DropCounts
	lost  bool // drops is not all zero

	_ [cacheLine]byte
}

// ownList is the frames for one port that gets more than floods.
type ownList struct {
	to     *Member
	frames []*Frame
}

// Forward sends frames, in order, to where they belong: it sorts the batch
// into a list per port, then calls each port's Deliver once. It never waits.
// When it returns, every frame has been copied or dropped, and the frames and
// their memory are the caller's again.
//
// If a port panics, so does Forward: a fault in the sender's memory shows when
// a port reads it. The rest of the batch may be lost then; the next is not
// affected.
//
// Forward must not be called after the member has left, or from Deliver, or
// with a lock held that any port's Deliver takes.
func (in *Ingress) Forward(frames []Frame) {
	t := in.sw.table.Load() // one view of the switch for the whole batch
	if len(in.where) < len(t.bySlot) {
		in.where = make([]uint16, len(t.bySlot))
	}
	defer in.finish() // also after a panic, or the next batch would begin with this one's lists
	if anyOffload(frames) {
		frames = in.checkOffloads(frames)
	}
	in.sort(t, frames)
	in.deliver(t)
}

// sort puts each frame on the lists of the ports that are to get it. Frames come in runs, from one address to
// another: what was found out about them holds for the frames that follow.
func (in *Ingress) sort(t *table, frames []Frame) {
	fdb := in.sw.fdb
	epoch := in.sw.epoch.Load()
	alone := t.only(in.from)
	var (
		rx            tally
		learned, last macKey   // addresses of the frame before
		to            *Member  // where last is; nil: not known, or everywhere
		list          *ownList // of to; nil: not looked for yet
	)
	for i := range frames {
		f := &frames[i]
		if reason, ok := f.check(); !ok {
			in.drop(reason)
			continue
		}
		rx.add(f)
		dst, src := addresses(f.Head)
		if src&groupBit != 0 || src == 0 {
			in.drop(DropBadSource)
			continue
		}
		if dst&reservedMask == reservedBase {
			in.drop(DropReserved)
			continue
		}
		if src != learned {
			learned = src
			if fdb.learn(src, in.from.slot, epoch) {
				in.moves++
			}
			last, to, list = 0, nil, nil // it may be the address that was looked up; of zeros, nothing is ever known
		}
		if dst != last {
			last, to, list = dst, nil, nil
			if dst&groupBit == 0 {
				to = t.member(fdb.lookup(dst))
			}
		}
		switch {
		case to == in.from:
			in.drop(DropHairpin)
		case to != nil:
			if list == nil {
				list = in.list(to)
			}
			list.frames = append(list.frames, f)
		case alone:
			in.drop(DropNoPort)
		default:
			in.everybody(f)
		}
	}
	in.rx.join(rx)
}

func (in *Ingress) drop(reason DropReason) {
	in.drops[reason]++
	in.lost = true
}

// list returns the list of one port, until another port's is asked for. It begins with the floods that came
// before.
func (in *Ingress) list(to *Member) *ownList {
	n := int(in.where[to.slot])
	if n == 0 {
		n = len(in.own) + 1
		if n <= cap(in.own) {
			in.own = in.own[:n] // a list of an earlier batch, for its capacity
		} else {
			in.own = append(in.own, ownList{})
		}
		l := &in.own[n-1]
		l.to = to
		l.frames = append(l.frames, in.flood...)
		in.where[to.slot] = uint16(n)
	}
	return &in.own[n-1]
}

// everybody adds f to the list of every port but the sender's.
func (in *Ingress) everybody(f *Frame) {
	in.flood = append(in.flood, f)
	for i := range in.own {
		in.own[i].frames = append(in.own[i].frames, f)
	}
}

// deliver gives every port its list.
func (in *Ingress) deliver(t *table) {
	if len(in.flood) > 0 {
		for _, m := range t.members {
			if m != in.from && in.where[m.slot] == 0 {
				in.deliverTo(m, in.flood)
			}
		}
	}
	for i := range in.own {
		in.deliverTo(in.own[i].to, in.own[i].frames)
	}
}

// deliverTo gives a port a list, with those frames finished that the port does
// not accept as they are.
func (in *Ingress) deliverTo(m *Member, frames []*Frame) {
	if !in.unfinished {
		m.deliver(frames)
		return
	}
	if in.finisher == nil {
		in.finisher = new(finisher)
	}
	in.finisher.deliver(m, frames)
}

// finish forgets the lists, since the frames on them are only lent, and adds the
// batch to the member's counters.
func (in *Ingress) finish() {
	clear(in.flood)
	in.flood = in.flood[:0]
	for i := range in.own {
		l := &in.own[i]
		in.where[l.to.slot] = 0
		clear(l.frames)
		l.to, l.frames = nil, l.frames[:0]
	}
	in.own = in.own[:0]
	if len(in.checked) > 0 {
		clear(in.checked)
		in.checked = in.checked[:0]
		in.unfinished = false
		if in.finisher != nil {
			in.finisher.reset() // it is in the middle of a list if a port panicked, or the sender's memory went
		}
	}

	m := in.from
	m.rx.add(in.rx)
	in.rx = tally{}
	if in.moves != 0 {
		m.moves.Add(in.moves)
		m.sw.moves.Add(in.moves)
		in.moves = 0
	}
	if in.lost {
		for r, n := range in.drops {
			if n != 0 {
				m.drops[r].Add(n)
			}
		}
		in.drops, in.lost = DropCounts{}, false
	}
}
