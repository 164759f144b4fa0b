package pxe

import (
	"bytes"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"polder/vswitch"
)

// TestCloseLeavesNothing starts and closes the service in the middle of everything it does, and counts
// goroutines.
func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("use", func(t *testing.T) {
		for range 5 {
			cfg := testConfig()
			cfg.Files = bigFS(1 << 30)
			cfg.Timeout = patience
			w := newWorld(t, cfg)
			g := w.join("guest", guestMAC, guestAddr)
			g.dhcp(bootp{vend: vend(opt(53, 1))})
			for _, mode := range []string{"octet", "netascii"} {
				g.sendUDP(2000+uint16(len(mode)), portTFTP, rrq("big", mode))
				w.event(EventRequest)
			}
			h := w.joinHost("host", vswitch.MAC{2, 2}, netip.MustParseAddr("10.21.140.9"))
			c, err := h.stack.DialTCP(t.Context(), netip.AddrPortFrom(testServer, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte("GET /big HTTP/1.1\r\nHost: x\r\n\r\n"))
			w.event(EventRequest)
			if err := w.server.Close(); err != nil {
				t.Error(err)
			}
			if err := w.server.Close(); err != nil {
				t.Errorf("closing again: %v", err)
			}
			w.mu.Lock()
			n := len(w.events)
			w.mu.Unlock()
			g.sendDHCP(bootp{vend: vend(opt(53, 1))})
			g.sendUDP(2100, portTFTP, rrq("big", "octet"))
			w.mu.Lock()
			if len(w.events) != n {
				t.Errorf("events after Close: %+v", w.events[n:])
			}
			w.mu.Unlock()
			if n := w.server.Deliver([]*vswitch.Frame{{Head: make([]byte, 60), Len: 60}}); n != 0 {
				t.Error("a closed service takes frames")
			}
			w.server.tftp.mu.Lock()
			if n := len(w.server.tftp.transfers); n != 0 {
				t.Errorf("%d transfers after Close", n)
			}
			w.server.tftp.mu.Unlock()
		}
	})
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			var b [64 << 10]byte
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b[:], true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCloseWithoutStart(t *testing.T) {
	s, err := New(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Start(nil); err == nil {
		t.Error("a closed service was started")
	}
}

func TestConfigRefused(t *testing.T) {
	a := netip.MustParseAddr
	for _, c := range []struct {
		name string
		edit func(*Config)
	}{
		{"no address", func(c *Config) { c.Address = netip.Prefix{} }},
		{"IPv6 address", func(c *Config) { c.Address = netip.MustParsePrefix("fd00::1/64") }},
		{"no MAC", func(c *Config) { c.MAC = vswitch.MAC{} }},
		{"group MAC", func(c *Config) { c.MAC = broadcast }},
		{"no pool", func(c *Config) { c.PoolFirst = netip.Addr{} }},
		{"lease of seconds", func(c *Config) { c.Lease = time.Second }},
		{"lease of ages", func(c *Config) { c.Lease = 1 << 62 }},
		{"IPv6 router", func(c *Config) { c.Router = a("fd00::1") }},
		{"IPv6 DNS", func(c *Config) { c.DNS = []netip.Addr{a("fd00::1")} }},
		{"more DNS than an option holds", func(c *Config) { c.DNS = make([]netip.Addr, 64) }},
		{"negative limit", func(c *Config) { c.MaxTransfers = -1 }},
		{"time-out below a tick", func(c *Config) { c.Timeout = time.Millisecond }},
		{"a rule for nothing", func(c *Config) { c.Boot = []BootRule{{}} }},
		{"a reservation for nobody", func(c *Config) { c.Reservations = []Reservation{{Addr: a("10.21.140.9")}} }},
	} {
		cfg := testConfig()
		c.edit(&cfg)
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "pxe: ") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestWarningsAreLimited floods the service with nonsense and counts lines.
func TestWarningsAreLimited(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	w := newWorld(t, cfg)
	g := w.join("guest", guestMAC, guestAddr)
	for range 1000 {
		g.sendUDP(2000, portTFTP, []byte{0, opRRQ})
		g.recvUDP()
	}
	w.server.Close()
	// A test that takes longer than a second may see another second's lines.
	if n := strings.Count(log.String(), "\n"); n == 0 || n > 500 {
		t.Errorf("%d lines for 1000 wrong requests", n)
	}
	if !strings.Contains(log.String(), "00:15:5d:00:00:02") {
		t.Errorf("the log does not name the guest:\n%s", &log)
	}
}

// TestClientsForgotten proves that guests with ever new MAC addresses use no more memory.
func TestClientsForgotten(t *testing.T) {
	g := newGuests()
	now := time.Now()
	for i := range maxClients + 100 {
		g.met(Client{MAC: vswitch.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}}, true, now.Add(time.Duration(i)))
	}
	if len(g.byID) != maxClients {
		t.Errorf("%d clients are remembered, want %d", len(g.byID), maxClients)
	}
	if _, start := g.find(vswitch.MAC{2}); !start.IsZero() {
		t.Error("the client not seen for longest is remembered")
	}
}

// TestElapsedBeginsAnew proves what a boot is: it begins with the first DISCOVER after a lease.
func TestElapsedBeginsAnew(t *testing.T) {
	g := newGuests()
	c := nth(1)
	at := func(s int) time.Time { return day.Add(time.Duration(s) * time.Second) }
	for _, s := range []struct {
		at     int
		settle bool
		start  int
	}{{0, false, 0}, {4, false, 0}, {8, true, 0}, {60, false, 60}, {61, true, 60}, {62, false, 62}} {
		g.met(c, true, at(s.at))
		if s.settle {
			g.settle(c)
		}
		if _, start := g.find(c.MAC); start != at(s.start) {
			t.Errorf("DISCOVER at %d s: the boot began at %v, want %v", s.at, start, at(s.start))
		}
	}
}

// TestFlood sends broadcast after broadcast from a guest that does not listen, and boots another one.
func TestFlood(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"f": {Data: content(100_000)}}
	w := newWorld(t, cfg)
	flood := w.join("flood", vswitch.MAC{2, 9}, netip.IPv4Unspecified())
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		m := bootp{vend: vend(opt(53, 1))}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			flood.mac = vswitch.MAC{2, 9, 0, 0, byte(i >> 8), byte(i)}
			m.chaddr = flood.mac
			flood.sendDHCP(m)
			runtime.Gosched()
		}
	}()
	g := w.join("guest", guestMAC, guestAddr)
	r, err := (&tftpClient{g: g, port: 2000, timeout: tickInterval}).get("f", "blksize", "1468")
	close(stop)
	<-ended
	if err != nil || len(r.data) != 100_000 {
		t.Errorf("%d bytes, %v", len(r.data), err)
	}
}
