package vswitch

import (
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
	// for each. Each VLAN that ports are in has as much room of its own, and one
	// that only passes from trunk to trunk has room for 256.
	MaxMACs int

	// MaxMoves is how often an address may change ports within ten seconds.
	// When it does so once more, which hardly happens without a loop, it is held
	// where it is for ten seconds, and frames from it at other ports are
	// dropped. Zero: there is no limit.
	MaxMoves int

	// Events, if not nil, is called with what happens, one call at a time, on a
	// goroutine of the switch's that has other things to do, so it should return
	// soon. Of one kind and port there is one event a second at most. It may call
	// any method of Switch and Member but Close.
	Events func(Event)
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

	start    time.Time // when the switch was made
	maxMoves int
	flaps    flaps
	report   func(Event) // may be nil
	events   eventQueue

	quit chan struct{} // closed by Close
	done chan struct{} // closed by housekeep

	mu     sync.Mutex // serialises changes of table; never held while calling a port
	closed bool

	// What follows is guarded by mu, and what the data path needs of it is in
	// table.
	vlans     map[uint16]*vlanFDB // but VLAN 0, which is fdb
	statics   []static            // added by hand
	observers []*Observer
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

		start:    time.Now(),
		maxMoves: c.MaxMoves,
		report:   c.Events,
		events:   eventQueue{wake: make(chan struct{}, 1)},
		vlans:    map[uint16]*vlanFDB{},
	}
	if err := s.publish(&table{}); err != nil {
		panic(err) // an empty table has no conflict
	}
	go s.housekeep()
	return s
}

// housekeep drives the clock and removes what has aged.
func (s *Switch) housekeep() {
	defer close(s.done)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-ticker.C:
			now := uint32(time.Since(s.start) / tick)
			s.epoch.Store(now)
			s.fdb.expire(now, s.ageing)
			if p := s.table.Load().police; p != nil {
				for _, f := range p.fdbs {
					f.expire(now, s.ageing)
				}
			}
		case <-s.events.wake:
			s.reportEvents()
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
	if err := o.check(); err != nil {
		return nil, s.joinError(name, err)
	}
	m.setOptions(o)
	s.fdb.admit(m.slot, s.limit(o.MaxMACs))
	if err := s.publish(t.with(m)); err != nil {
		return nil, s.joinError(name, err)
	}
	s.attachTaps(m)
	s.claim(m)
	return m, nil
}

func (s *Switch) joinError(name string, err error) error {
	return fmt.Errorf("vswitch: port %q cannot join switch %q: %w", name, s.name, err)
}

// Close takes all ports off the switch and ends its housekeeping. Senders may
// still call Forward, which then drops every frame, until they stop and their
// members leave. Closing twice does nothing.
//
// Observers end; what they have seen can still be read.
func (s *Switch) Close() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.table.Store(&table{})
	for _, o := range s.observers {
		o.end()
	}
	s.observers = nil
	s.mu.Unlock()
	if !closed {
		close(s.quit)
	}
	<-s.done // without the lock: Config.Events may be about to take it
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
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.fdbs() {
		f.mu.Lock()
		st.MACs += f.total
		st.Evictions += f.evictions
		st.Refusals += f.refusals
		f.mu.Unlock()
	}
	st.MACs += s.table.Load().police.statics()
	return st
}
