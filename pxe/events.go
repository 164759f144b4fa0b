package pxe

import (
	"net/netip"
	"sync"
	"time"

	"polder/vswitch"
)

// EventKind says what happened. The texts are meant for logs.
type EventKind string

// The kinds of events, in the order in which a boot shows them.
const (
	EventDiscover EventKind = "discover"  // DHCP: a client looks for a server
	EventOffer    EventKind = "offer"     // DHCP: Addr is offered, Detail is the boot file
	EventAck      EventKind = "ack"       // DHCP: Addr is the client's, Detail is the boot file; BOOTP too
	EventNak      EventKind = "nak"       // DHCP: the client may not have the address it asked for
	EventDecline  EventKind = "decline"   // DHCP: the client found Addr in use by somebody else
	EventRelease  EventKind = "release"   // DHCP: the client gave Addr back
	EventExhaust  EventKind = "exhausted" // DHCP: no address is left for the client

	EventRequest  EventKind = "request"   // a file is about to be sent: File, Size
	EventProgress EventKind = "progress"  // Bytes of it are acknowledged; a few times a second at most
	EventDone     EventKind = "done"      // all of it; Took
	EventProbe    EventKind = "probe"     // the client only asked for the size
	EventNotFound EventKind = "not-found" // there is no such file; firmware tries many names, so this is no failure yet
	EventStalled  EventKind = "stalled"   // the client stopped answering
	EventAborted  EventKind = "aborted"   // the client gave up, or asked anew; Detail
	EventError    EventKind = "error"     // we gave up; Detail
)

// Event is a step of a guest's boot.
type Event struct {
	Time    time.Time
	Elapsed time.Duration // since the DISCOVER (or BOOTP request) that began this boot; 0 if there was none
	Kind    EventKind
	Client  Client // what is known of the guest; at least MAC and Addr
	Detail  string

	// Of file events only.
	Proto    string // "tftp" or "http"
	Transfer uint64 // the same in all events of one transfer, and in no other's
	File     string // the name as the guest asked for it, printable
	Size     int64  // bytes; -1: not known
	Bytes    int64  // bytes acknowledged (TFTP) or handed to TCP (HTTP)
	Took     time.Duration
}

// maxClients bounds how many guests the service remembers: 1,024 is the most a switch has MACs for in
// practice, and beyond it the one not seen for longest is forgotten.
const maxClients = 1024

// guests remembers what clients said of themselves, and when they began to boot.
type guests struct {
	mu   sync.Mutex
	byID map[vswitch.MAC]*guest
}

type guest struct {
	client  Client
	start   time.Time // of this boot
	settled bool      // a lease was acknowledged: the next DISCOVER begins another boot
	seen    time.Time
}

func newGuests() *guests { return &guests{byID: make(map[vswitch.MAC]*guest)} }

// met records what a DHCP message says of its client. begin marks one that can begin a boot.
func (g *guests) met(c Client, begin bool, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.byID[c.MAC]
	if k == nil {
		if len(g.byID) >= maxClients {
			g.forgetOldest()
		}
		k = &guest{}
		g.byID[c.MAC] = k
	}
	if begin && (k.start.IsZero() || k.settled) {
		k.start, k.settled = now, false
	}
	if !c.Addr.IsValid() {
		c.Addr = k.client.Addr
	}
	k.client, k.seen = c, now
}

// settle records that a client has an address.
func (g *guests) settle(c Client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.byID[c.MAC]; k != nil {
		k.client, k.settled = c, true
	}
}

// find returns what is known of the client with a MAC, at least the MAC, and when its boot began.
func (g *guests) find(mac vswitch.MAC) (Client, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.byID[mac]; k != nil {
		return k.client, k.start
	}
	return Client{MAC: mac, Arch: ArchUnknown}, time.Time{}
}

// holder returns the client that has an address.
func (g *guests) holder(a netip.Addr) (Client, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found *guest
	for _, k := range g.byID {
		if k.client.Addr == a && (found == nil || k.seen.After(found.seen)) {
			found = k
		}
	}
	if found == nil {
		return Client{}, false
	}
	return found.client, true
}

func (g *guests) forgetOldest() {
	var oldest *guest
	for _, k := range g.byID {
		if oldest == nil || k.seen.Before(oldest.seen) {
			oldest = k
		}
	}
	delete(g.byID, oldest.client.MAC)
}

// emit completes an event and hands it to Config.Events. now is the time it happened.
func (s *Server) emit(e Event, now time.Time) {
	if s.cfg.Events == nil {
		return
	}
	e.Time = now
	if _, start := s.guests.find(e.Client.MAC); !start.IsZero() {
		e.Elapsed = now.Sub(start)
	}
	s.cfg.Events(e)
}
