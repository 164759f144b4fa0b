package vswitch

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a [Config].
const (
	DefaultAgeingTime = 300 * time.Second // as IEEE 802.1D-2004, table 7-5, recommends
	DefaultMaxMACs    = 8192
)

// tick is the unit of the switch's clock, which the data path reads instead of
// asking for the time: ages are multiples of it, and an address that is heard
// all the time is marked once a tick.
const tick = time.Second

// Config is how a switch is made. The zero value is usable.
type Config struct {
	// Name is for people.
	Name string

	// AgeingTime is how long an address is remembered after the last frame from
	// it, at least; it may be a second more. Zero stands for DefaultAgeingTime.
	AgeingTime time.Duration

	// MaxMACs is how many addresses the switch has room for, rounded up to a
	// power of two. From about half of that on, a new address may find its
	// places in the table taken, and then pushes out another or is not learned.
	// Zero stands for DefaultMaxMACs. The room is reserved at once, 16 bytes
	// for each.
	MaxMACs int
}

// Switch is a learning switch. Its methods may be called from any goroutine.
type Switch struct {
	name   string
	ageing uint32 // in ticks
	fdb    *fdb
	table  atomic.Pointer[table]
	epoch  atomic.Uint32 // ticks since the switch was made; stored by housekeep
	moves  atomic.Uint64

	segmented, completed atomic.Uint64

	quit chan struct{} // closed by Close
	done chan struct{} // closed by housekeep

	mu     sync.Mutex // serialises changes of table; never held while calling a port
	closed bool
}

// Errors of Join, found with errors.Is.
var (
	ErrClosed    = errors.New("the switch is closed")
	ErrNameTaken = errors.New("the name is taken")
	ErrNoSlot    = errors.New("no more ports are possible")
)

// New makes a switch without ports. Close ends it.
func New(c Config) *Switch {
	if c.AgeingTime <= 0 {
		c.AgeingTime = DefaultAgeingTime
	}
	if c.MaxMACs <= 0 {
		c.MaxMACs = DefaultMaxMACs
	}
	s := &Switch{
		name:   c.Name,
		ageing: uint32((c.AgeingTime + tick - 1) / tick),
		fdb:    newFDB(c.MaxMACs),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	s.table.Store(&table{})
	go s.housekeep()
	return s
}

// housekeep drives the clock and removes what has aged.
func (s *Switch) housekeep() {
	defer close(s.done)
	start := time.Now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-ticker.C:
			now := uint32(time.Since(start) / tick)
			s.epoch.Store(now)
			s.fdb.expire(now, s.ageing)
		}
	}
}

// Name returns the name given in Config.
func (s *Switch) Name() string { return s.name }

// Join puts p on the switch under a name that no other member has. Frames may
// be delivered to it from then on, before Join returns.
func (s *Switch) Join(name string, p Port, o PortOptions) (*Member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table.Load()
	m := &Member{sw: s, name: name, port: p, slot: t.freeSlot()}
	m.offload, _ = p.(OffloadPort)
	switch {
	case s.closed:
		return nil, s.joinError(name, ErrClosed)
	case slices.ContainsFunc(t.members, func(o *Member) bool { return o.name == name }):
		return nil, s.joinError(name, ErrNameTaken)
	case m.slot == 0:
		return nil, s.joinError(name, ErrNoSlot)
	}
	limit := o.MaxMACs
	if limit <= 0 {
		limit = s.fdb.size() / 2
	}
	s.fdb.admit(m.slot, limit)
	s.table.Store(t.with(m))
	return m, nil
}

func (s *Switch) joinError(name string, err error) error {
	return fmt.Errorf("vswitch: port %q cannot join switch %q: %w", name, s.name, err)
}

// Close takes all ports off the switch and ends its housekeeping. Senders may
// still call Forward, which then drops every frame, until they stop and their
// members leave. Closing twice does nothing.
func (s *Switch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.table.Store(&table{})
	close(s.quit)
	<-s.done
}

// Members returns who is on the switch, in the order they joined.
func (s *Switch) Members() []*Member {
	return slices.Clone(s.table.Load().members)
}

// Stats returns the state of the whole switch.
func (s *Switch) Stats() Stats {
	st := Stats{
		Ports:    len(s.table.Load().members),
		MACMoves: s.moves.Load(),

		GSOSegmented:       s.segmented.Load(),
		ChecksumsCompleted: s.completed.Load(),
	}
	s.fdb.mu.Lock()
	defer s.fdb.mu.Unlock()
	st.MACs = s.fdb.total
	st.Evictions = s.fdb.evictions
	st.Refusals = s.fdb.refusals
	return st
}

// FDBEntry is one address the switch has learned.
type FDBEntry struct {
	MAC  MAC
	Port string        // name of the member the address is behind
	Age  time.Duration // since the last frame from it, in whole seconds
}

// FDB returns the addresses the switch knows, in ascending order.
func (s *Switch) FDB() []FDBEntry {
	// Whoever holds mu knows that slots stay with the members of table.
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table.Load()
	var entries []FDBEntry
	s.fdb.each(func(k macKey, n slot, seen uint32) {
		if m := t.member(n); m != nil {
			// epoch is read last, so it is no less than seen.
			age := time.Duration(s.epoch.Load()-seen) * tick
			entries = append(entries, FDBEntry{MAC: k.mac(), Port: m.name, Age: age})
		}
	})
	slices.SortFunc(entries, func(a, b FDBEntry) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	return entries
}

// Flush forgets the addresses behind m, or, if m is nil, all that the switch
// knows. It returns how many they were. They are learned again as they send.
func (s *Switch) Flush(m *Member) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case m == nil:
		return s.fdb.flush(0)
	case m.left:
		return 0 // Leave has done it, and the slot may be another's
	}
	return s.fdb.flush(m.slot)
}
