package vswitch

import "sync"

// flapTime is how long moves of an address are counted, and how long it is held
// when there were too many, in ticks.
const flapTime = 10

// flaps counts how often addresses move. It has room for a few, since few move,
// and in a loop those of whoever sends most come back most.
type flaps struct {
	mu    sync.Mutex // held for moves only
	flaps [64]flap
}

type flap struct {
	mac   macKey
	vlan  uint16
	held  bool
	moves int
	since uint32 // epoch of the first of moves, or of being held
}

// move counts that an address is about to move, and reports whether it may:
// no more than limit times within flapTime. once is true for the move that is
// the first one too many.
func (f *flaps) move(k macKey, vlan uint16, now uint32, limit int) (may, once bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &f.flaps[0]
	for i := range f.flaps {
		g := &f.flaps[i]
		if g.mac == k && g.vlan == vlan {
			e = g
			break
		}
		if g.since < e.since {
			e = g
		}
	}
	if e.mac != k || e.vlan != vlan || now-e.since >= flapTime {
		*e = flap{mac: k, vlan: vlan, since: now}
	}
	if e.held {
		return false, false
	}
	e.moves++
	if e.moves > limit {
		e.held, e.since = true, now
		return false, true
	}
	return true, false
}
