package vswitch

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// EventKind says what happened.
type EventKind uint8

// The kinds of events.
const (
	// EventMACConflict: Port sent from MAC, which is one of Other's.
	EventMACConflict EventKind = iota

	// EventOwnMAC: from the uplink Port came a frame from MAC, which is one of
	// Other's. Either somebody else has the address or there is a loop.
	EventOwnMAC

	// EventLoop: MAC moves between Port and Other more often than
	// [Config.MaxMoves] allows, and is held at Other. Most often there is a loop.
	EventLoop

	// EventStorm: Port sends more than its StormLimit.
	EventStorm

	// EventBPDUShutdown: Port sent a spanning tree frame, and its link was taken
	// down.
	EventBPDUShutdown
	numEventKinds
)

var eventNames = [numEventKinds]string{
	EventMACConflict:  "mac-conflict",
	EventOwnMAC:       "own-mac-from-uplink",
	EventLoop:         "loop",
	EventStorm:        "storm",
	EventBPDUShutdown: "bpdu-shutdown",
}

// String returns the kind's name as operators see it, like "loop".
func (k EventKind) String() string {
	if k < numEventKinds {
		return eventNames[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// Event is something an operator may want to know, seen by the data path.
type Event struct {
	Time  time.Time // when it was reported, soon after it happened
	Kind  EventKind
	Port  string // where it was seen
	Other string // the other port concerned, if there is one
	MAC   MAC    // the address concerned, or zero
	VLAN  uint16 // the VLAN of the address; of a private VLAN, the primary
}

// eventQueue takes events from the data path to the housekeeper. It holds a
// bounded number, and no more than one of each kind, port and second: what
// repeats is to be read from the counters.
type eventQueue struct {
	wake chan struct{} // has room for one

	mu     sync.Mutex // held for a copy, by data path and housekeeper
	queued int
	queue  [64]queued
}

// queued is an event before it has names.
type queued struct {
	kind        EventKind
	port, other *Member
	mac         macKey
	vlan        uint16
}

// lastEvents is when a port had the last event of each kind: 1 + the epoch, or 0.
type lastEvents [numEventKinds]atomic.Uint32

// post queues an event unless the port had one of its kind in this epoch, or
// there is no room.
func (s *Switch) post(e queued) {
	if s.report == nil {
		return
	}
	last, now := &e.port.state.events[e.kind], s.epoch.Load()+1
	if old := last.Load(); old == now || !last.CompareAndSwap(old, now) {
		return
	}
	q := &s.events
	q.mu.Lock()
	if q.queued < len(q.queue) {
		q.queue[q.queued] = e
		q.queued++
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default: // it is to wake up anyway
	}
}

// reportEvents hands what is queued to whoever wants to know.
func (s *Switch) reportEvents() {
	q := &s.events
	q.mu.Lock()
	events := append([]queued(nil), q.queue[:q.queued]...)
	q.queued = 0
	clear(q.queue[:])
	q.mu.Unlock()
	for _, e := range events {
		ev := Event{Time: time.Now(), Kind: e.kind, Port: e.port.name, MAC: e.mac.mac(), VLAN: e.vlan}
		if e.other != nil {
			ev.Other = e.other.name
		}
		s.report(ev)
	}
}
