package pxe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"polder/vswitch"
)

var day = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func testTable(t *testing.T, size int, reserved ...Reservation) *leaseTable {
	t.Helper()
	first := netip.MustParseAddr("10.21.140.100")
	last := first
	for range size - 1 {
		last = last.Next()
	}
	table, err := newLeaseTable(testPrefix, first, last, reserved)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func nth(n byte) Client { return Client{MAC: vswitch.MAC{2, 0, 0, 0, 0, n}} }

func addrN(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 21, 140, n}) }

// TestLeaseSteps runs sequences: each step names who does what when, and what comes of it.
func TestLeaseSteps(t *testing.T) {
	const lease = time.Hour
	type step struct {
		at   time.Duration
		who  byte
		verb string // offer, bind, bootp, release, decline
		addr byte   // wish or subject; 0: none
		want byte   // address offered; for the others 1: yes, 0: no
	}
	for _, c := range []struct {
		name  string
		pool  int
		steps []step
	}{
		{"a client keeps its offer, another gets the next", 2, []step{
			{0, 1, "offer", 0, 100}, {0, 1, "offer", 0, 100}, {0, 2, "offer", 0, 101}, {0, 3, "offer", 0, 0},
		}},
		{"a wish is granted if free", 3, []step{
			{0, 1, "offer", 102, 102}, {0, 2, "offer", 102, 100}, {0, 3, "offer", 250, 101},
		}},
		{"an offer not taken up is free after its time", 1, []step{
			{0, 1, "offer", 0, 100}, {29 * time.Second, 2, "bind", 100, 0}, {31 * time.Second, 2, "offer", 0, 100},
		}},
		{"a lease is free after its time, not before", 1, []step{
			{0, 1, "bind", 100, 1}, {lease - time.Second, 2, "offer", 0, 0}, {lease + time.Second, 2, "offer", 0, 100},
		}},
		{"renewing moves the end", 1, []step{
			{0, 1, "bind", 100, 1}, {lease / 2, 1, "bind", 100, 1}, {lease + time.Minute, 2, "offer", 0, 0}, {lease*3/2 + time.Second, 2, "offer", 0, 100},
		}},
		{"a DISCOVER does not shorten a lease", 1, []step{
			{0, 1, "bind", 100, 1}, {time.Second, 1, "offer", 0, 100}, {time.Minute, 2, "offer", 0, 0},
		}},
		{"the address used longest ago is used first", 3, []step{
			{0, 1, "bind", 100, 1}, {0, 1, "release", 100, 1}, {0, 2, "offer", 0, 101}, {0, 3, "offer", 0, 102}, {0, 4, "offer", 0, 100},
		}},
		{"binding another address frees the first", 2, []step{
			{0, 1, "bind", 100, 1}, {0, 1, "bind", 101, 1}, {0, 2, "bind", 100, 1},
		}},
		{"only the holder can release or decline", 2, []step{
			{0, 1, "bind", 100, 1}, {0, 2, "release", 100, 0}, {0, 2, "decline", 100, 0}, {0, 2, "bind", 100, 0}, {0, 1, "release", 100, 1}, {0, 1, "release", 100, 0},
		}},
		{"a declined address rests", 2, []step{
			{0, 1, "bind", 100, 1}, {0, 1, "decline", 100, 1}, {0, 1, "offer", 100, 101}, {0, 2, "bind", 100, 0},
			{quarantineTime + time.Second, 2, "offer", 100, 100},
		}},
		{"a declined address is used when the pool is exhausted", 1, []step{
			{0, 1, "bind", 100, 1}, {0, 1, "decline", 100, 1}, {2 * time.Second, 2, "offer", 0, 100},
		}},
		{"a BOOTP client keeps its address", 2, []step{
			{0, 1, "bootp", 100, 1}, {0, 2, "bind", 101, 1}, {2 * lease, 3, "offer", 0, 101},
		}},
		{"a BOOTP client's address is reused when the pool is exhausted", 1, []step{
			{0, 1, "bootp", 100, 1}, {lease / 2, 2, "offer", 0, 0}, {2 * lease, 2, "offer", 0, 100},
		}},
		{"nobody gets the service's address or one outside the pool", 1, []step{
			{0, 1, "bind", 1, 0}, {0, 1, "bind", 99, 0}, {0, 1, "bind", 101, 0}, {0, 1, "bind", 0, 0},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := testTable(t, c.pool)
			for i, s := range c.steps {
				now := day.Add(s.at)
				addr := netip.Addr{}
				if s.addr != 0 {
					addr = addrN(s.addr)
				}
				var got byte
				ok := false
				switch s.verb {
				case "offer":
					var a netip.Addr
					if a, ok = table.offer(nth(s.who), addr, now); ok {
						got = a.As4()[3]
					}
				case "bind":
					ok = table.bind(nth(s.who), addr, leaseBound, lease, now)
				case "bootp":
					ok = table.bind(nth(s.who), addr, leaseBOOTP, lease, now)
				case "release":
					ok = table.release(nth(s.who).MAC, addr)
				case "decline":
					ok = table.decline(nth(s.who).MAC, addr, now)
				}
				if ok && s.verb != "offer" {
					got = 1
				}
				if got != s.want {
					t.Fatalf("step %d: %s by %d at %v: got %d, want %d", i, s.verb, s.who, s.at, got, s.want)
				}
			}
		})
	}
}

func TestLeaseReservedByUUID(t *testing.T) {
	u := UUID{1, 2, 3}
	table := testTable(t, 3, Reservation{UUID: u, Addr: addrN(10)})
	a, b := nth(1), nth(2)
	a.UUID, b.UUID = u, u
	if got, _ := table.offer(a, netip.Addr{}, day); got != addrN(10) {
		t.Errorf("offered %v", got)
	}
	if !table.bind(a, addrN(10), leaseBound, time.Hour, day) || table.bind(a, addrN(100), leaseBound, time.Hour, day) {
		t.Error("a reservation must bind its own address and no other")
	}
	// The same machine with another adapter.
	if got, _ := table.offer(b, netip.Addr{}, day); got != addrN(10) {
		t.Errorf("offered %v to the second adapter", got)
	}
	if l := table.leases(day); len(l) != 0 {
		t.Errorf("leases %v: the first adapter's should have gone", l)
	}
}

func TestLeaseConfig(t *testing.T) {
	a := netip.MustParseAddr
	for _, c := range []struct {
		name        string
		first, last string
		own         string
		r           []Reservation
	}{
		{"pool outside the subnet", "10.21.141.1", "10.21.141.9", "10.21.140.1/24", nil},
		{"pool backwards", "10.21.140.9", "10.21.140.8", "10.21.140.1/24", nil},
		{"pool too large", "10.0.0.2", "10.1.0.2", "10.0.0.1/8", nil},
		{"IPv6", "fd00::1", "fd00::2", "10.0.0.1/8", nil},
		{"reservation outside", "10.21.140.5", "10.21.140.9", "10.21.140.1/24", []Reservation{{MAC: guestMAC, Addr: a("10.9.9.9")}}},
		{"reservation of our own", "10.21.140.5", "10.21.140.9", "10.21.140.1/24", []Reservation{{MAC: guestMAC, Addr: a("10.21.140.1")}}},
		{"reservation of nobody", "10.21.140.5", "10.21.140.9", "10.21.140.1/24", []Reservation{{Addr: a("10.21.140.7")}}},
		{"two reservations", "10.21.140.5", "10.21.140.9", "10.21.140.1/24", []Reservation{{MAC: guestMAC, Addr: a("10.21.140.7")}, {MAC: serverMAC, Addr: a("10.21.140.7")}}},
	} {
		if _, err := newLeaseTable(netip.MustParsePrefix(c.own), a(c.first), a(c.last), c.r); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

// TestLeaseInvariants runs random clients against a small pool and checks after every step that the
// two indexes agree, that no address has two holders, and that memory is bounded.
func TestLeaseInvariants(t *testing.T) {
	const pool, clients = 8, 20
	r := rand.New(rand.NewPCG(1, 2))
	table := testTable(t, pool, Reservation{MAC: nth(1).MAC, Addr: addrN(103)}, Reservation{MAC: nth(2).MAC, Addr: addrN(20)})
	now := day
	for i := range 20_000 {
		now = now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
		c, a := nth(byte(r.IntN(clients))), addrN(byte(98+r.IntN(pool+4)))
		var what string
		switch r.IntN(6) {
		case 0, 1:
			got, ok := table.offer(c, a, now)
			what = fmt.Sprintf("offer to %v: %v %v", c.MAC, got, ok)
			if ok && table.byAddr[got].client.MAC != c.MAC {
				t.Fatalf("step %d: %s, but the table has it for %v", i, what, table.byAddr[got].client.MAC)
			}
		case 2:
			what = fmt.Sprintf("bind %v to %v: %v", a, c.MAC, table.bind(c, a, leaseBound, time.Minute, now))
		case 3:
			what = fmt.Sprintf("BOOTP %v to %v: %v", a, c.MAC, table.bind(c, a, leaseBOOTP, time.Minute, now))
		case 4:
			what = fmt.Sprintf("release %v by %v: %v", a, c.MAC, table.release(c.MAC, a))
		case 5:
			what = fmt.Sprintf("decline %v by %v: %v", a, c.MAC, table.decline(c.MAC, a, now))
		}
		holders := 0
		for addr, e := range table.byAddr {
			if e.addr != addr || addr == testServer {
				t.Fatalf("step %d: %s: entry of %v is under %v", i, what, e.addr, addr)
			}
			if e.state == leaseDeclined {
				continue
			}
			holders++
			if table.byMAC[e.client.MAC] != e || e.client.Addr != addr {
				t.Fatalf("step %d: %s: %v has no entry of its own", i, what, e.client.MAC)
			}
		}
		if holders != len(table.byMAC) || len(table.byAddr) > pool+1 || len(table.freed) > pool || len(table.freed) != len(table.queued) {
			t.Fatalf("step %d: %s: %d holders, %d clients, %d addresses, %d freed", i, what, holders, len(table.byMAC), len(table.byAddr), len(table.freed))
		}
	}
}
