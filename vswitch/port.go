package vswitch

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Port takes the frames the switch has for one of its members.
// Package porttest has the tests that every implementation must pass.
type Port interface {
	// Deliver copies frames, in order, for as long as they fit, and returns how
	// many did. The rest are lost, and the switch counts them. It never waits
	// for room. The frames are complete, whatever their senders left undone,
	// unless the port is an [OffloadPort]. Head can be 4 bytes longer or shorter
	// than the sender made it, by a VLAN tag.
	//
	// Some ports can take a frame though not one before it, as those with several
	// queues. They take what they can, and set Lost in each frame that they do not
	// take.
	//
	// The list, the frames and the memory they point to belong to the caller.
	// Deliver reads them, and keeps none of them after it returns.
	// Reading Body can panic when it is memory of a guest that goes away, so a
	// lock held meanwhile is released by defer.
	//
	// Any goroutine may call it, several at once. It must not call the switch.
	// A call that was on its way when the port left the switch may arrive
	// afterwards; a port that is closed by then takes no frames.
	Deliver(frames []*Frame) int
}

// Member is a port's place on a switch, from Join to Leave.
// Its methods may be called from any goroutine.
type Member struct {
	sw   *Switch
	name string
	port Port
	slot slot // fixed; free for others only after Leave has flushed it

	offload OffloadPort // port, if it is one

	left  bool        // guarded by sw.mu
	opts  PortOptions // guarded by sw.mu
	rules []*rule     // those of opts.ACL, compiled; guarded by sw.mu

	taps atomic.Pointer[[]*tap] // of observers; nil without

	_     [cacheLine]byte
	rx    counters // this line and the next are written by the member's own senders
	drops [numDropReasons]atomic.Uint64
	moves atomic.Uint64

	_    [cacheLine]byte
	tx   counters // this line is written by everybody who sends to the port
	full atomic.Uint64

	segmented, completed atomic.Uint64

	_     [cacheLine]byte
	state portState
	_     [cacheLine]byte
}

// Name returns the name the port joined with.
func (m *Member) Name() string { return m.name }

// Leave takes the port off the switch and forgets the addresses behind it. The
// goroutines that send for it must have stopped using their Ingress. Another
// port can then join under the same name.
//
// A frame that another member was sending at the same time may still be
// delivered after Leave returned: see [Port].
func (m *Member) Leave() error {
	s := m.sw
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.left {
		return fmt.Errorf("vswitch: port %q has left switch %q before", m.name, s.name)
	}
	m.left = true
	if s.closed {
		return nil // Close has emptied the table
	}
	// The order matters: once no new batch can find the member, and nothing
	// points at its slot any more, the slot may go to somebody else.
	s.statics = slices.DeleteFunc(s.statics, func(e static) bool { return e.m == m })
	if err := s.publish(s.table.Load().without(m)); err != nil {
		panic(err) // without a member there is no new conflict
	}
	s.expel(m)
	return nil
}

// NewIngress returns a way into the switch for one more goroutine that sends
// for the port.
func (m *Member) NewIngress() *Ingress { return &Ingress{sw: m.sw, from: m} }

// Stats returns the port's counters. They are read one by one while frames pass,
// and remain readable after Leave.
func (m *Member) Stats() PortStats {
	st := PortStats{
		RxFrames:    m.rx.frames.Load(),
		RxBytes:     m.rx.bytes.Load(),
		RxMulticast: m.rx.multicast.Load(),
		TxFrames:    m.tx.frames.Load(),
		TxBytes:     m.tx.bytes.Load(),
		TxMulticast: m.tx.multicast.Load(),
		MACMoves:    m.moves.Load(),

		GSOSegmented:       m.segmented.Load(),
		ChecksumsCompleted: m.completed.Load(),
	}
	for r := range st.Drops {
		st.Drops[r] = m.drops[r].Load()
	}
	for i, r := range egressReasons {
		st.Drops[r] += m.state.egress[i].Load()
	}
	st.Drops[DropReceiverFull] = m.full.Load()
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	if !m.left { // otherwise the slot may be another's
		st.MACs = m.sw.known(m)
	}
	return st
}

// accepts returns what the port can do without in the frames it takes now.
func (m *Member) accepts() OffloadSet {
	if m.offload == nil {
		return 0
	}
	return m.offload.Accepts()
}

// deliver hands frames to the port and counts what became of them. It reports
// whether the port took the last of them, and so may have room for more.
func (m *Member) deliver(frames []*Frame) bool {
	n := m.port.Deliver(frames)
	var sent tally
	if n == len(frames) {
		for _, f := range frames {
			sent.add(f)
		}
	} else {
		m.full.Add(uint64(len(frames) - n))
		if !slices.ContainsFunc(frames, isLost) {
			for _, f := range frames[n:] {
				f.Lost = true
			}
		}
		for _, f := range frames {
			if !f.Lost {
				sent.add(f)
			}
		}
	}
	if n > 0 {
		m.tx.add(sent)
	}
	if taps := m.taps.Load(); taps != nil {
		observeDelivery(*taps, frames)
	}
	if n == len(frames) {
		return true
	}
	full := frames[len(frames)-1].Lost
	for _, f := range frames {
		f.Lost = false
	}
	return !full
}

func isLost(f *Frame) bool { return f.Lost }

// lose counts n frames, which are f or would have been made of it, as not
// delivered for want of room.
func (m *Member) lose(f *Frame, n int) {
	m.full.Add(uint64(n))
	if taps := m.taps.Load(); taps != nil {
		observe(*taps, Out, f, DropReceiverFull, time.Now())
	}
}
