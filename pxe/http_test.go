package pxe

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

// host is a guest with TCP: a stack like the service's.
type host struct {
	stack *ipstack.Stack
	inbox *inbox
	out   outbox
	done  chan struct{}
}

func (h *host) Deliver(frames []*vswitch.Frame) int { return h.inbox.deliver(frames) }

func (w *world) joinHost(name string, mac vswitch.MAC, addr netip.Addr) *host {
	w.t.Helper()
	h := &host{inbox: &inbox{own: mac, wake: make(chan struct{}, 1)}, done: make(chan struct{})}
	m, err := w.sw.Join(name, h, vswitch.PortOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	h.out.in = m.NewIngress()
	h.stack, err = ipstack.New(ipstack.Config{MAC: mac, Addr: netip.PrefixFrom(addr, testPrefix.Bits()), Output: h.out.send})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(h.done)
		h.inbox.receive(h.stack.Input)
	}()
	w.t.Cleanup(func() {
		h.inbox.close()
		<-h.done
		h.stack.Close()
	})
	return h
}

// client is an HTTP client on the host that follows nothing.
func (h *host) client(t *testing.T) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return h.stack.DialTCP(ctx, netip.MustParseAddrPort(addr))
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func TestHTTP(t *testing.T) {
	cfg := testConfig()
	big := content(3 << 20)
	cfg.Files = fstest.MapFS{"dir/Big.efi": {Data: big}, "boot.ipxe": {Data: []byte("#!ipxe\n")}}
	w := newWorld(t, cfg)
	c := w.joinHost("guest", guestMAC, guestAddr).client(t)
	for _, x := range []struct {
		name, method, path string
		header             http.Header
		status             int
		length             int64
		body               []byte
		event              EventKind
	}{
		{"whole", "GET", "/dir/Big.efi", nil, 200, int64(len(big)), big, EventDone},
		{"another case", "GET", "/DIR/BIG.EFI", nil, 200, int64(len(big)), big, EventDone},
		{"two slashes are not redirected", "GET", "//dir/Big.efi", nil, 200, int64(len(big)), big, EventDone},
		{"size alone", "HEAD", "/dir/Big.efi", nil, 200, int64(len(big)), nil, EventProbe},
		{"a range", "GET", "/dir/Big.efi", http.Header{"Range": {"bytes=1000-1999"}}, 206, 1000, big[1000:2000], EventDone},
		{"the end", "GET", "/dir/Big.efi", http.Header{"Range": {"bytes=-10"}}, 206, 10, big[len(big)-10:], EventDone},
		{"a script", "GET", "/boot.ipxe", nil, 200, 7, []byte("#!ipxe\n"), EventDone},
		{"not found", "GET", "/nothing", nil, 404, -1, nil, EventNotFound},
		{"a directory", "GET", "/dir", nil, 404, -1, nil, EventNotFound},
		{"the root", "GET", "/", nil, 404, -1, nil, EventNotFound},
		{"above the root", "GET", "/%2e%2e/%2e%2e/etc/passwd", nil, 403, -1, nil, EventError},
		{"writing", "PUT", "/boot.ipxe", nil, 405, -1, nil, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			req, err := http.NewRequest(x.method, "http://10.21.140.1"+x.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range x.header {
				req.Header[k] = v
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != x.status || x.length >= 0 && resp.ContentLength != x.length {
				t.Errorf("status %d, %d bytes; want %d, %d", resp.StatusCode, resp.ContentLength, x.status, x.length)
			}
			if x.status < 300 && !bytes.Equal(body, x.body) {
				t.Errorf("body of %d bytes, want %d", len(body), len(x.body))
			}
			if x.event != "" {
				e := w.event(x.event)
				if e.Proto != "http" || e.Client.Addr != guestAddr || x.event == EventDone && e.Bytes != x.length {
					t.Errorf("event %+v", e)
				}
			}
		})
	}
}

// TestHTTPGenerated proves that a script shows the client that DHCP knows at the address.
func TestHTTPGenerated(t *testing.T) {
	w := newWorld(t, testConfig())
	g := w.join("rom", guestMAC, netip.IPv4Unspecified())
	r := g.dhcp(bootp{vend: vend(opt(53, 3), opt(50, guestPool...), opt(93, 0, 7), opt(97, uuidA...))})
	if r.opts[53][0] != 5 {
		t.Fatalf("no lease: %v", r.opts)
	}
	c := w.joinHost("guest", vswitch.MAC{2, 2}, r.yiaddr).client(t)
	resp, err := c.Get("http://10.21.140.1/default.ipxe")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, want := range []string{"#!ipxe", guestMAC.String(), "44454c4c-0102-0304-0506-0708090a0b0c", "UEFI x64"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %q in %s", want, body)
		}
	}
}

// guestPool is an address of the pool.
var guestPool = []byte{10, 21, 140, 150}

// TestHTTPLimit proves that the connections are bounded, and those beyond are closed, not left.
func TestHTTPLimit(t *testing.T) {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"f": {Data: []byte("x")}}
	w := newWorld(t, cfg)
	h := w.joinHost("guest", guestMAC, guestAddr)
	get := func() (io.ReadCloser, string) {
		c, err := h.stack.DialTCP(t.Context(), netip.AddrPortFrom(testServer, 80))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET /f HTTP/1.1\r\nHost: x\r\n\r\n")
		var first [4]byte
		n, _ := io.ReadFull(c, first[:])
		return c, string(first[:n])
	}
	for i := range maxHTTPConns {
		c, got := get()
		defer c.Close()
		if got != "HTTP" {
			t.Fatalf("connection %d got %q", i, got)
		}
	}
	c, got := get()
	defer c.Close()
	if got != "" {
		t.Errorf("a connection too many got %q", got)
	}
}
