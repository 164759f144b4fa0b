package pxe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/vswitch"
)

// The network of the tests.
var (
	testPrefix = netip.MustParsePrefix("10.21.140.1/24")
	testServer = testPrefix.Addr()
	serverMAC  = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 1}
	guestMAC   = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 2}
	guestAddr  = netip.MustParseAddr("10.21.140.77")
)

// patience is how long a test waits for what must happen; nothing is measured with it.
const patience = 10 * time.Second

func testConfig() Config {
	return Config{
		Address: testPrefix, MAC: serverMAC,
		PoolFirst: netip.MustParseAddr("10.21.140.100"),
		PoolLast:  netip.MustParseAddr("10.21.140.199"),
		Timeout:   tickInterval,
	}
}

// world is a service on a real switch.
type world struct {
	t      testing.TB
	sw     *vswitch.Switch
	server *Server
	member *vswitch.Member

	mu     sync.Mutex
	events []Event
	came   chan struct{} // a token when there are new events
}

func newWorld(t testing.TB, cfg Config, edit ...func(*Server)) *world {
	t.Helper()
	w := &world{t: t, sw: vswitch.New(vswitch.Config{Name: "test"}), came: make(chan struct{}, 1)}
	cfg.Events = func(e Event) {
		w.mu.Lock()
		w.events = append(w.events, e)
		w.mu.Unlock()
		select {
		case w.came <- struct{}{}:
		default:
		}
	}
	var err error
	if w.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, f := range edit {
		f(w.server)
	}
	if w.member, err = w.sw.Join("pxe", w.server, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Start(w.member.NewIngress()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	w.server.Close()
	w.member.Leave()
	w.sw.Close()
}

// event waits for the next event of a kind, from the first after those that were returned or skipped.
func (w *world) event(kind EventKind) Event {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		for i, e := range w.events {
			if e.Kind == kind {
				w.events = w.events[i+1:]
				w.mu.Unlock()
				return e
			}
		}
		w.mu.Unlock()
		select {
		case <-w.came:
		case <-deadline:
			w.t.Fatalf("no event %q; have %v", kind, w.events)
		}
	}
}

// machine is a guest on the switch, written from a boot ROM's point of view.
type machine struct {
	t      testing.TB
	mac    vswitch.MAC
	addr   netip.Addr
	in     *vswitch.Ingress
	frames chan []byte

	// What to send, or to receive, instead of a frame; nil: the frame itself.
	sendFault, recvFault func(frame []byte) [][]byte
}

func (w *world) join(name string, mac vswitch.MAC, addr netip.Addr) *machine {
	w.t.Helper()
	g := &machine{t: w.t, mac: mac, addr: addr, frames: make(chan []byte, 1024)}
	m, err := w.sw.Join(name, g, vswitch.PortOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	g.in = m.NewIngress()
	return g
}

// Deliver implements [vswitch.Port].
func (g *machine) Deliver(frames []*vswitch.Frame) int {
	for i, f := range frames {
		all := [][]byte{f.AppendTo(nil)}
		if g.recvFault != nil {
			all = g.recvFault(all[0])
		}
		for _, b := range all {
			select {
			case g.frames <- b:
			default:
				return i
			}
		}
	}
	return len(frames)
}

func (g *machine) send(frame []byte) {
	all := [][]byte{frame}
	if g.sendFault != nil {
		all = g.sendFault(frame)
	}
	for _, f := range all {
		g.in.Forward([]vswitch.Frame{{Head: f, Len: len(f)}})
	}
}

// recv returns the next frame.
func (g *machine) recv() []byte {
	g.t.Helper()
	select {
	case f := <-g.frames:
		return f
	case <-time.After(patience):
		g.t.Fatal("nothing came")
		return nil
	}
}

// udp is a received datagram.
type udp struct {
	dstMAC   vswitch.MAC
	src, dst netip.AddrPort
	payload  []byte
}

// sum is the Internet checksum (RFC 1071) written another way than the stack's.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i++ {
			if i%2 == 0 {
				s += uint32(b[i]) << 8
			} else {
				s += uint32(b[i])
			}
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

// udpFrame builds a frame with a UDP datagram in it.
func udpFrame(srcMAC, dstMAC vswitch.MAC, src, dst netip.AddrPort, payload []byte) []byte {
	u := bytes.Join([][]byte{be16(int(src.Port())), be16(int(dst.Port())), be16(8 + len(payload)), {0, 0}, payload}, nil)
	pseudo := bytes.Join([][]byte{src.Addr().AsSlice(), dst.Addr().AsSlice(), {0, 17}, be16(len(u))}, nil)
	c := sum(pseudo, u)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], c)
	ip := bytes.Join([][]byte{{0x45, 0}, be16(20 + len(u)), {0, 0, 0, 0, 64, 17, 0, 0}, src.Addr().AsSlice(), dst.Addr().AsSlice()}, nil)
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	return bytes.Join([][]byte{dstMAC[:], srcMAC[:], {8, 0}, ip, u}, nil)
}

func (g *machine) sendUDP(sport, dport uint16, payload []byte) {
	g.send(udpFrame(g.mac, serverMAC, netip.AddrPortFrom(g.addr, sport), netip.AddrPortFrom(testServer, dport), payload))
}

// parseUDP checks a frame as strictly as a boot ROM does; ok is false if it holds no UDP datagram.
func parseUDP(f []byte) (d udp, ok bool, err error) {
	if len(f) < 60 {
		return d, false, fmt.Errorf("runt of %d bytes", len(f))
	}
	if f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[14+9] != 17 {
		return d, false, nil
	}
	ip := f[14:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total > len(ip) || sum(ip[:20]) != 0 {
		return d, false, fmt.Errorf("bad IPv4 header % x", ip[:20])
	}
	u := ip[20:total]
	if int(binary.BigEndian.Uint16(u[4:])) != len(u) {
		return d, false, fmt.Errorf("UDP length % x in %d bytes", u[4:6], len(u))
	}
	if sum(ip[12:20], []byte{0, 17}, u[4:6], u) != 0 {
		return d, false, fmt.Errorf("bad UDP checksum")
	}
	addr := func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	d = udp{
		dstMAC:  vswitch.MAC(f[0:6]),
		src:     netip.AddrPortFrom(addr(ip[12:]), binary.BigEndian.Uint16(u[0:])),
		dst:     netip.AddrPortFrom(addr(ip[16:]), binary.BigEndian.Uint16(u[2:])),
		payload: u[8:],
	}
	return d, true, nil
}

// recvUDP returns the next UDP datagram from the service; guests hear each other's broadcasts too.
func (g *machine) recvUDP() udp {
	g.t.Helper()
	for {
		d, ok, err := parseUDP(g.recv())
		if err != nil {
			g.t.Fatal(err)
		}
		if ok && d.src.Addr() == testServer {
			return d
		}
	}
}

// tftpResult is how a transfer ended for the client.
type tftpResult struct {
	data    []byte
	oack    map[string]string
	errCode int // of an ERROR packet, else -1
	errText string
	blocks  int
}

// tftpClient is an RFC 1350/2347/2348/7440 client.
type tftpClient struct {
	g      *machine
	port   uint16
	copies int // of each ACK
	// timeout is how long it waits before it repeats its last packet; 0: patience, once.
	timeout time.Duration
}

func rrq(file, mode string, options ...string) []byte {
	b := []byte{0, opRRQ}
	for _, s := range append([]string{file, mode}, options...) {
		b = append(append(b, s...), 0)
	}
	return b
}

// get fetches a file.
func (c *tftpClient) get(file string, options ...string) (tftpResult, error) {
	return c.request(rrq(file, "octet", options...))
}

func (c *tftpClient) request(rq []byte) (tftpResult, error) {
	r := tftpResult{errCode: -1}
	copies := max(c.copies, 1)
	tid := uint16(0)
	blksize, window := 512, 1
	last, lastTo := rq, uint16(portTFTP)
	send := func(p []byte, to uint16) {
		last, lastTo = p, to
		c.g.sendUDP(c.port, to, p)
	}
	ack := func(block int) {
		for range copies {
			send(append([]byte{0, opACK}, be16(block)...), tid)
		}
	}
	send(rq, portTFTP)
	next, inWindow := 1, 0
	tries := 0
	var buf bytes.Buffer
	for {
		var f []byte
		wait := c.timeout
		if wait == 0 {
			wait = patience
		}
		timer := time.NewTimer(wait)
		select {
		case f = <-c.g.frames:
			timer.Stop()
		case <-timer.C:
			if tries++; c.timeout == 0 || tries > 100 {
				return r, fmt.Errorf("nothing came after block %d", next-1)
			}
			inWindow = 0
			send(last, lastTo)
			continue
		}
		d, ok, err := parseUDP(f)
		if err != nil {
			return r, err
		}
		if !ok || d.dst.Port() != c.port {
			continue
		}
		tries = 0
		p := d.payload
		if tid == 0 {
			tid = d.src.Port()
		}
		if d.src.Port() != tid {
			c.g.sendUDP(c.port, d.src.Port(), []byte{0, opERROR, 0, errUnknownID, 0})
			continue
		}
		switch binary.BigEndian.Uint16(p) {
		case opOACK:
			if next != 1 {
				continue
			}
			r.oack = parseOACK(p[2:])
			if v, ok := r.oack["blksize"]; ok {
				fmt.Sscan(v, &blksize)
			}
			if v, ok := r.oack["windowsize"]; ok {
				fmt.Sscan(v, &window)
			}
			ack(0)
		case opERROR:
			r.errCode = int(binary.BigEndian.Uint16(p[2:]))
			r.errText = strings.TrimRight(string(p[4:]), "\x00")
			return r, nil
		case opDATA:
			block := binary.BigEndian.Uint16(p[2:])
			if block != uint16(next) {
				if inWindow > 0 || block == uint16(next-1) {
					// Of the last in order: what follows was lost, or the ACK was.
					inWindow = 0
					ack(next - 1)
				}
				continue
			}
			buf.Write(p[4:])
			r.blocks++
			next++
			inWindow++
			final := len(p)-4 < blksize
			if inWindow == window || final {
				inWindow = 0
				ack(next - 1)
			}
			if final {
				r.data = buf.Bytes()
				return r, nil
			}
		default:
			return r, fmt.Errorf("unexpected packet % x", p[:min(len(p), 32)])
		}
	}
}

func parseOACK(p []byte) map[string]string {
	m := make(map[string]string)
	words := strings.Split(strings.TrimSuffix(string(p), "\x00"), "\x00")
	for i := 0; i+1 < len(words); i += 2 {
		m[words[i]] = words[i+1]
	}
	return m
}

// bigFS has one file "big" of any size, whose content can be computed.
type bigFS int64

func (n bigFS) Open(name string) (fs.File, error) {
	if name != "big" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &bigFile{size: int64(n)}, nil
}

type bigFile struct{ at, size int64 }

func (f *bigFile) Read(p []byte) (int, error) {
	if f.at == f.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), f.size-f.at))
	pattern(p[:n], f.at)
	f.at += int64(n)
	return n, nil
}

// pattern fills p with the content at an offset: it repeats only after 4 GiB.
func pattern(p []byte, at int64) {
	for i := range p {
		o := at + int64(i)
		p[i] = byte(uint32(o>>2*2654435761) >> (8 * (o & 3)))
	}
}

func (f *bigFile) Close() error               { return nil }
func (f *bigFile) Stat() (fs.FileInfo, error) { return f, nil }
func (f *bigFile) Name() string               { return "big" }
func (f *bigFile) Size() int64                { return f.size }
func (f *bigFile) Mode() fs.FileMode          { return 0o444 }
func (f *bigFile) ModTime() time.Time         { return time.Time{} }
func (f *bigFile) IsDir() bool                { return false }
func (f *bigFile) Sys() any                   { return nil }

func content(n int) []byte {
	b := make([]byte, n)
	pattern(b, 0)
	return b
}
