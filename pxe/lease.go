package pxe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"polder/vswitch"
)

// Lease is an address given to a client, as [Server.Leases] shows it.
type Lease struct {
	Addr     netip.Addr
	Client   Client
	Expires  time.Time // zero for a BOOTP client, which keeps its address
	Reserved bool
}

// Reservation gives a client a fixed address, inside or outside the pool. The client is known by its
// MAC, or by its UUID if the MAC is zero. Name, if not empty, becomes its host name.
type Reservation struct {
	MAC  vswitch.MAC
	UUID UUID
	Addr netip.Addr
	Name string
}

// maxPool bounds the addresses of a pool, and with it the memory that guests with ever new MAC
// addresses can use.
const maxPool = 1 << 16

const (
	offerTime      = 30 * time.Second // an offer is kept free for its client this long
	quarantineTime = 10 * time.Minute // an address somebody else was found to use is not given out
	expiryInterval = time.Second      // the table is scanned for expired entries at most this often
)

type leaseState uint8

const (
	leaseOffered  leaseState = iota // until the client requests it
	leaseBound                      // acknowledged
	leaseBOOTP                      // given to a BOOTP client: never expires unless the pool is exhausted
	leaseDeclined                   // quarantined: in use by somebody unknown; the last, see reclaim
)

// leaseEntry is one address that is not free.
type leaseEntry struct {
	addr    netip.Addr
	client  Client // zero for leaseDeclined
	state   leaseState
	expires time.Time
}

// leaseTable gives addresses to clients. A client is its MAC; a UUID counts for reservations only.
// It has no clock, no lock and no goroutine: the time is an argument, the caller serialises.
//
// Free addresses are handed out in order, and used again in the order in which they became free, so
// that an address rests as long as possible and a client that comes back late finds its own.
type leaseTable struct {
	first, last netip.Addr
	own         netip.Addr
	reserved    []Reservation
	fixed       map[netip.Addr]bool // the addresses of reserved

	byAddr map[netip.Addr]*leaseEntry
	byMAC  map[vswitch.MAC]*leaseEntry
	fresh  netip.Addr          // never used from here to last; invalid when there is none left
	freed  []netip.Addr        // used before; may hold addresses that are in use again
	queued map[netip.Addr]bool // the addresses in freed

	lastExpiry, lastReclaim time.Time
}

func newLeaseTable(own netip.Prefix, first, last netip.Addr, reserved []Reservation) (*leaseTable, error) {
	for _, a := range []netip.Addr{first, last} {
		if !a.Is4() || !own.Masked().Contains(a) {
			return nil, fmt.Errorf("pxe: pool address %v is not in %v", a, own.Masked())
		}
	}
	if size := ipIndex(last) - ipIndex(first) + 1; size < 1 || size > maxPool {
		return nil, fmt.Errorf("pxe: pool %v-%v has %d addresses, want 1 to %d", first, last, size, maxPool)
	}
	t := &leaseTable{
		first: first, last: last, own: own.Addr(), reserved: reserved,
		byAddr: make(map[netip.Addr]*leaseEntry), byMAC: make(map[vswitch.MAC]*leaseEntry),
		fresh: first, queued: make(map[netip.Addr]bool), fixed: make(map[netip.Addr]bool),
	}
	for _, r := range reserved {
		switch {
		case !own.Masked().Contains(r.Addr) || r.Addr == own.Addr():
			return nil, fmt.Errorf("pxe: reserved address %v is not a guest's address in %v", r.Addr, own.Masked())
		case r.MAC == vswitch.MAC{} && r.UUID.IsZero():
			return nil, fmt.Errorf("pxe: reservation of %v names neither MAC nor UUID", r.Addr)
		case t.fixed[r.Addr]:
			return nil, fmt.Errorf("pxe: address %v is reserved twice", r.Addr)
		}
		t.fixed[r.Addr] = true
	}
	return t, nil
}

func ipIndex(a netip.Addr) int64 {
	b := a.As4()
	return int64(binary.BigEndian.Uint32(b[:]))
}

func (t *leaseTable) reservation(c Client) (Reservation, bool) {
	return reservationFor(t.reserved, c)
}

// reservationFor returns the first reservation that is the client's.
func reservationFor(all []Reservation, c Client) (Reservation, bool) {
	for _, r := range all {
		if r.MAC == c.MAC || r.MAC == (vswitch.MAC{}) && r.UUID == c.UUID && !c.UUID.IsZero() {
			return r, true
		}
	}
	return Reservation{}, false
}

// assignable reports whether an address may go to any client: in the pool, not ours, not reserved.
func (t *leaseTable) assignable(a netip.Addr) bool {
	return a.Is4() && !a.Less(t.first) && !t.last.Less(a) && a != t.own && !t.fixed[a]
}

// offer finds an address for a client and keeps it for offerTime: its reservation, what it has, what
// it wishes (wish may be invalid) if that is free, or any. It reports false when the pool is exhausted.
func (t *leaseTable) offer(c Client, wish netip.Addr, now time.Time) (netip.Addr, bool) {
	t.expire(now)
	e := t.byMAC[c.MAC]
	if r, ok := t.reservation(c); ok {
		if e != nil && e.addr != r.Addr {
			t.free(e)
			e = nil
		}
		if other := t.byAddr[r.Addr]; other != nil && other != e {
			t.free(other) // e.g. the same machine with another MAC, reserved by UUID
		}
		return t.hold(e, r.Addr, c, now), true
	}
	if e != nil && t.assignable(e.addr) {
		return t.hold(e, e.addr, c, now), true
	}
	if e != nil {
		t.free(e)
	}
	if t.assignable(wish) && t.byAddr[wish] == nil {
		return t.hold(nil, wish, c, now), true
	}
	a, ok := t.take(now)
	if !ok {
		return netip.Addr{}, false
	}
	return t.hold(nil, a, c, now), true
}

// hold makes the entry of an offer, or leaves a bound one as it is.
func (t *leaseTable) hold(e *leaseEntry, a netip.Addr, c Client, now time.Time) netip.Addr {
	if e == nil {
		e = &leaseEntry{addr: a}
		t.byAddr[a], t.byMAC[c.MAC] = e, e
	}
	c.Addr = a
	e.client = c
	if e.state == leaseOffered {
		e.expires = now.Add(offerTime)
	}
	return a
}

// take returns a free address of the pool.
func (t *leaseTable) take(now time.Time) (netip.Addr, bool) {
	for t.fresh.IsValid() {
		a := t.fresh
		if t.fresh = a.Next(); t.last.Less(t.fresh) {
			t.fresh = netip.Addr{}
		}
		if t.assignable(a) && t.byAddr[a] == nil && !t.queued[a] {
			return a, true
		}
	}
	for range 2 {
		for len(t.freed) > 0 {
			a := t.freed[0]
			t.freed = t.freed[1:]
			delete(t.queued, a)
			if t.byAddr[a] == nil {
				return a, true
			}
		}
		if !t.reclaim(now) {
			break
		}
	}
	return netip.Addr{}, false
}

// reclaim frees, in an exhausted pool, the address it hurts least to lose: the oldest quarantine, else
// a BOOTP client's that is past a lease's time. Offers and leases are left to run out. It looks at
// most once per expiryInterval, so that a flood of requests costs no scan each.
func (t *leaseTable) reclaim(now time.Time) bool {
	if now.Sub(t.lastReclaim) < expiryInterval {
		return false
	}
	t.lastReclaim = now
	var victim *leaseEntry
	for _, e := range t.byAddr {
		if !t.assignable(e.addr) || e.state != leaseDeclined && (e.state != leaseBOOTP || now.Before(e.expires)) {
			continue
		}
		if victim == nil || e.state > victim.state || e.state == victim.state && e.expires.Before(victim.expires) {
			victim = e
		}
	}
	if victim == nil {
		return false
	}
	t.free(victim)
	return true
}

// expire frees what has run out. It scans at most once per expiryInterval.
func (t *leaseTable) expire(now time.Time) {
	if now.Sub(t.lastExpiry) < expiryInterval {
		return
	}
	t.lastExpiry = now
	for _, e := range t.byAddr {
		if e.state != leaseBOOTP && !now.Before(e.expires) {
			t.free(e)
		}
	}
}

// bind makes addr the client's for d, and reports false if the client may not have it. The client's
// earlier address, if another, becomes free.
func (t *leaseTable) bind(c Client, addr netip.Addr, state leaseState, d time.Duration, now time.Time) bool {
	e := t.byAddr[addr]
	if e != nil && e.state != leaseDeclined && e.client.MAC != c.MAC && !now.Before(e.expires) && e.state != leaseBOOTP {
		t.free(e)
		e = nil
	}
	if e != nil && e.client.MAC != c.MAC {
		return false // somebody else's, or quarantined: its client is zero
	}
	if r, ok := t.reservation(c); ok {
		if r.Addr != addr {
			return false
		}
	} else if !t.assignable(addr) {
		return false
	}
	if old := t.byMAC[c.MAC]; old != nil && old != e {
		t.free(old)
	}
	if e == nil {
		e = &leaseEntry{addr: addr}
		t.byAddr[addr], t.byMAC[c.MAC] = e, e
	}
	c.Addr = addr
	e.client, e.state, e.expires = c, state, now.Add(d)
	return true
}

// release frees addr if it is the client's.
func (t *leaseTable) release(mac vswitch.MAC, addr netip.Addr) bool {
	e := t.byAddr[addr]
	if e == nil || e.state == leaseDeclined || e.client.MAC != mac {
		return false
	}
	t.free(e)
	return true
}

// forget frees an offer that the client did not take: it chose another server.
func (t *leaseTable) forget(mac vswitch.MAC) {
	if e := t.byMAC[mac]; e != nil && e.state == leaseOffered {
		t.free(e)
	}
}

// decline quarantines addr if it was given to the client, which found somebody else using it.
func (t *leaseTable) decline(mac vswitch.MAC, addr netip.Addr, now time.Time) bool {
	if !t.release(mac, addr) {
		return false
	}
	t.byAddr[addr] = &leaseEntry{addr: addr, state: leaseDeclined, expires: now.Add(quarantineTime)}
	return true
}

// free removes an entry; its address can be given out again.
func (t *leaseTable) free(e *leaseEntry) {
	delete(t.byAddr, e.addr)
	if t.byMAC[e.client.MAC] == e {
		delete(t.byMAC, e.client.MAC)
	}
	if t.assignable(e.addr) && !t.queued[e.addr] {
		t.queued[e.addr] = true
		t.freed = append(t.freed, e.addr)
	}
}

// leases returns the bound leases in the order of their addresses.
func (t *leaseTable) leases(now time.Time) []Lease {
	var all []Lease
	for _, e := range t.byAddr {
		l := Lease{Addr: e.addr, Client: e.client, Expires: e.expires}
		switch {
		case e.state == leaseBOOTP:
			l.Expires = time.Time{}
		case e.state != leaseBound || !now.Before(e.expires):
			continue
		}
		_, l.Reserved = t.reservation(e.client)
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return all
}
