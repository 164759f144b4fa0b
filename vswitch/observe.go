package vswitch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ObserverConfig is what an [Observer] sees.
type ObserverConfig struct {
	// Members are the ports whose frames are seen. If there are none it is all
	// ports, also those that join later.
	Members []*Member

	// DropsOnly leaves out frames that are not dropped.
	DropsOnly bool

	// SnapLen is how many bytes of each frame are kept, up to MaxFrameLen. Zero
	// stands for that: all, but of a frame that is dropped for its length.
	SnapLen int

	// Buffer is how many bytes of frames can wait to be read. There are two
	// buffers of that size, and room for one frame for each 512 bytes. What
	// does not fit is lost, and counted. Zero stands for DefaultBuffer.
	Buffer int
}

// DefaultBuffer is the default of [ObserverConfig].Buffer, in bytes.
const DefaultBuffer = 4 << 20

// bufferShare is how many bytes of a buffer there are for each frame it has room
// for.
const bufferShare = 512

// Observer collects copies of frames as they enter and leave ports, or are
// dropped there. As long as a switch has none, observing costs nothing.
//
// A frame is seen where it comes In, with the reason if it goes nowhere; and
// at each port it is for, where it goes Out, with the reason if it does not. Out
// is what the port gets: with its VLAN tag or without, and cut or not.
type Observer struct {
	sw     *Switch
	config ObserverConfig
	wake   chan struct{} // has room for one; closed in the end

	mu      sync.Mutex // held by senders to copy one frame
	ended   bool
	data    []byte // of packets, one behind the other
	packets []Packet
	ports   []*observed

	readMu sync.Mutex // serialises Read; taken before mu
	spare  struct {   // what the last Read returned
		data    []byte
		packets []Packet
	}
}

// Packet is a copy of a frame seen by an Observer.
type Packet struct {
	Time      time.Time
	Port      string
	Direction Direction

	// Dropped says that the frame went no further, and Reason why.
	Dropped bool
	Reason  DropReason

	// Data is the beginning of the frame, and Len its length in bytes, without
	// frame check sequence. A TCP or UDP checksum that was left to an adapter is
	// filled in.
	Data []byte
	Len  int

	// Offload is what was left to do in the frame itself.
	Offload Offload

	// Lost is how many frames were lost at the port since the packet before,
	// for want of room in the buffer.
	Lost uint64
}

// ObservedPort counts what an Observer saw at one port.
type ObservedPort struct {
	Port string
	Seen uint64 // frames, with those lost
	Lost uint64 // frames for which the buffer had no room
}

// observed is ObservedPort in the making, guarded by Observer.mu.
type observed struct {
	ObservedPort
	pending uint64 // lost since the last packet
}

// tap is how a port's frames get to an observer.
type tap struct {
	o    *Observer
	port *observed
}

// ErrObserverEnded is what Read returns when there is nothing more to come.
var ErrObserverEnded = errors.New("vswitch: the observer has ended")

// notDropped stands where a DropReason does for a frame that is not dropped.
const notDropped = numDropReasons

// Observe lets an observer see frames from now on. Close ends it.
func (s *Switch) Observe(c ObserverConfig) (*Observer, error) {
	if c.SnapLen <= 0 || c.SnapLen > MaxFrameLen {
		c.SnapLen = MaxFrameLen
	}
	if c.Buffer <= 0 {
		c.Buffer = DefaultBuffer
	}
	c.Buffer = max(c.Buffer, MaxFrameLen)
	c.Members = slices.Clone(c.Members)
	o := &Observer{sw: s, config: c, wake: make(chan struct{}, 1)}
	o.data, o.packets = make([]byte, 0, c.Buffer), make([]Packet, 0, c.Buffer/bufferShare)
	o.spare.data, o.spare.packets = make([]byte, 0, c.Buffer), make([]Packet, 0, c.Buffer/bufferShare)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("vswitch: switch %q cannot be observed: %w", s.name, ErrClosed)
	}
	for _, m := range c.Members {
		if m.sw != s || m.left {
			return nil, fmt.Errorf("vswitch: port %q cannot be observed at switch %q: it is not there", m.name, s.name)
		}
	}
	before := s.observers
	s.observers = append(slices.Clone(before), o)
	t := s.table.Load()
	if err := s.publish(t.same()); err != nil {
		panic(err) // the options are the same as before
	}
	for _, m := range t.members {
		s.attachTaps(m)
	}
	return o, nil
}

// attachTaps connects a member with the observers that are to see it, and those
// only. s.mu is held.
func (s *Switch) attachTaps(m *Member) {
	var taps []*tap
	if old := m.taps.Load(); old != nil {
		taps = slices.DeleteFunc(slices.Clone(*old), func(t *tap) bool { return !slices.Contains(s.observers, t.o) })
	}
	for _, o := range s.observers {
		known := slices.ContainsFunc(taps, func(t *tap) bool { return t.o == o })
		if !known && (len(o.config.Members) == 0 || slices.Contains(o.config.Members, m)) {
			taps = append(taps, &tap{o, o.port(m.name)})
		}
	}
	if len(taps) == 0 {
		m.taps.Store(nil)
		return
	}
	m.taps.Store(&taps)
}

// port returns the counters of the port of that name.
func (o *Observer) port(name string) *observed {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.ports {
		if p.Port == name {
			return p // of a member that has left
		}
	}
	p := &observed{ObservedPort: ObservedPort{Port: name}}
	o.ports = append(o.ports, p)
	return p
}

// Close ends the observer. What it has seen can still be read. Closing twice
// does nothing.
func (o *Observer) Close() {
	s := o.sw
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.observers, o); i >= 0 {
		s.observers = slices.Delete(slices.Clone(s.observers), i, i+1)
		t := s.table.Load()
		for _, m := range t.members {
			s.attachTaps(m)
		}
		if err := s.publish(t.same()); err != nil {
			panic(err) // the options are the same as before
		}
	}
	o.end()
}

// end says that nothing more comes.
func (o *Observer) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.ended = true
		close(o.wake)
	}
}

// Read returns what was seen since the last Read, in order, and waits if that
// is nothing. One goroutine at a time reads. The packets and their Data are valid until the next Read. It
// returns ErrObserverEnded when nothing is left to come, and ctx's error when
// that is done first.
func (o *Observer) Read(ctx context.Context) ([]Packet, error) {
	o.readMu.Lock()
	defer o.readMu.Unlock()
	for {
		o.mu.Lock()
		ended := o.ended
		if len(o.packets) > 0 {
			o.data, o.spare.data = o.spare.data[:0], o.data
			o.packets, o.spare.packets = o.spare.packets[:0], o.packets
			o.mu.Unlock()
			return o.spare.packets, nil
		}
		o.mu.Unlock()
		if ended {
			return nil, ErrObserverEnded
		}
		select {
		case <-o.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ports returns what was seen at each port until now, in the order in which
// they were first observed.
func (o *Observer) Ports() []ObservedPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	ports := make([]ObservedPort, len(o.ports))
	for i, p := range o.ports {
		ports[i] = p.ObservedPort
	}
	return ports
}

// observe shows f to observers. reason is notDropped if it was not.
func observe(taps []*tap, d Direction, f *Frame, reason DropReason, now time.Time) {
	for _, t := range taps {
		if !t.o.config.DropsOnly || reason != notDropped {
			t.o.see(t.port, d, f, reason, now)
		}
	}
}

// observeDelivery shows frames to observers of the port they went to, which did
// not take those that are Lost.
func observeDelivery(taps []*tap, frames []*Frame) {
	now := time.Now()
	for _, f := range frames {
		reason := DropReason(notDropped)
		if f.Lost {
			reason = DropReceiverFull
		}
		observe(taps, Out, f, reason, now)
	}
}

// see copies a frame into the buffer.
func (o *Observer) see(port *observed, d Direction, f *Frame, reason DropReason, now time.Time) {
	length := len(f.Head)
	for _, part := range f.Body {
		length += len(part) // Len of a malformed frame is not it
	}
	keep := min(length, o.config.SnapLen)
	at, sum := f.finalChecksum(length) // reads all of the frame: not under the lock

	o.mu.Lock()
	defer o.mu.Unlock() // also if the sender's memory is gone
	if o.ended {
		return
	}
	port.Seen++
	first := len(o.data)
	if first+keep > cap(o.data) || len(o.packets) == cap(o.packets) {
		port.Lost++
		port.pending++
		return
	}
	data := o.data[first : first+keep : first+keep]
	n := copy(data, f.Head)
	for _, part := range f.Body {
		n += copy(data[n:], part)
	}
	if at != 0 && at+2 <= keep {
		data[at], data[at+1] = byte(sum>>8), byte(sum)
	}
	o.data = o.data[:first+keep]
	p := Packet{
		Time: now, Port: port.Port, Direction: d, Dropped: reason != notDropped,
		Data: data, Len: length, Offload: f.Offload, Lost: port.pending,
	}
	if p.Dropped {
		p.Reason = reason
	}
	o.packets = append(o.packets, p)
	port.pending = 0
	select {
	case o.wake <- struct{}{}:
	default: // the reader is to look anyway
	}
}

// finalChecksum returns where the checksum is that f, of length bytes, leaves
// out, and what it would be for f as a whole; or 0 if it leaves out none, or its
// headers do not tell. f may be one that is dropped because of them.
func (f *Frame) finalChecksum(length int) (at int, sum uint16) {
	if !f.Offload.NeedsChecksum {
		return 0, 0
	}
	h, ok := parseHeaders(f.Head, length)
	if !ok {
		return 0, 0
	}
	n := h.end - h.l4
	if h.proto == protoUDP && f.Offload.GSO == GSONone {
		if n = h.udpLen(f.Head); n > h.end-h.l4 {
			return 0, 0
		}
	}
	return h.l4 + h.checksumAt(), h.checksumOf(f, n)
}

// Switch returns the switch that is observed.
func (o *Observer) Switch() *Switch { return o.sw }

// SnapLen returns how many bytes of each frame are kept.
func (o *Observer) SnapLen() int { return o.config.SnapLen }
