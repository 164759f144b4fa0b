package pxe

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"polder/pxe/internal/ipstack"
	"polder/vswitch"
)

// deaf is a port that counts what it gets, and checks that each frame is one.
type deaf struct{ t *testing.T }

func (d deaf) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		if f.Len < 60 || f.Len > ipstack.MaxFrame || f.Head[6]&1 != 0 {
			d.t.Errorf("the service sent % x", f.AppendTo(nil))
		}
	}
	return len(frames)
}

// fuzzServer is a service whose frames the fuzz target puts into the stack itself, so that what a
// frame does is done when it returns.
func fuzzServer(t *testing.T) *Server {
	cfg := testConfig()
	cfg.Files = fstest.MapFS{"f": {Data: content(3000)}, "pxelinux.0": {}}
	cfg.Events = func(e Event) { _ = e.Client.Platform() }
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{Name: "fuzz"})
	m, err := sw.Join("pxe", s, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sw.Join("guest", deaf{t}, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(m.NewIngress()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		m.Leave()
		sw.Close()
	})
	return s
}

// FuzzDHCP gives messages to the DHCP service. No reply may be longer than a packet or name an address
// that is not the client's to have, and a second client must still be served.
func FuzzDHCP(f *testing.F) {
	for _, rom := range bootROMs {
		for _, typ := range []byte{1, 3, 8} {
			m := bootp{flags: rom.flags, chaddr: guestMAC, size: rom.size, vend: vend(append([][]byte{opt(53, typ)}, rom.options...)...)}
			f.Add(m.bytes(), false)
			f.Add(m.bytes(), true)
		}
	}
	f.Add(bootp{chaddr: guestMAC, size: 300}.bytes(), false)
	f.Add(bootp{chaddr: guestMAC, giaddr: "10.21.140.2", vend: vend(opt(53, 1), opt(82, 1, 2, 3, 4))}.bytes(), false)
	f.Add(bootp{chaddr: guestMAC, vend: vend(opt(53, 4), opt(50, 10, 21, 140, 100))}.bytes(), false)
	f.Add(bootp{chaddr: guestMAC, ciaddr: "10.21.140.100", vend: vend(opt(53, 7))}.bytes(), false)
	f.Fuzz(func(t *testing.T, message []byte, bootServer bool) {
		s, err := New(testConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sent := captureReplies(t, s)
		r := dhcpRequest{from: ipstack.Peer{MAC: guestMAC, Addr: netip.AddrPortFrom(guestAddr, 68)}, port: portDHCPServer, payload: message}
		if bootServer {
			r.port = portPXE
		}
		for range 2 {
			s.handleDHCP(r, day)
		}
		for _, d := range sent() {
			reply := parseReply(t, d)
			if y := reply.yiaddr; !y.IsUnspecified() && bootServer {
				t.Errorf("the boot server gave %v", y)
			}
			if y := reply.yiaddr; y == testServer {
				t.Errorf("the service gave its own address away")
			}
		}
		other := dhcpRequest{from: ipstack.Peer{MAC: nth(9).MAC}, port: portDHCPServer, payload: bootp{chaddr: nth(9).MAC, vend: vend(opt(53, 1))}.bytes()}
		s.handleDHCP(other, day)
		if got := sent(); len(got) != 1 {
			t.Errorf("another client got %d replies, want 1", len(got))
		}
	})
}

// captureReplies makes a service that is not started send into a list.
func captureReplies(t *testing.T, s *Server) func() []udp {
	sw := vswitch.New(vswitch.Config{Name: "fuzz"})
	m, err := sw.Join("pxe", s, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g := &machine{t: t, frames: make(chan []byte, 16)}
	if _, err := sw.Join("guest", g, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	s.outbox.in = m.NewIngress()
	return func() (all []udp) {
		for len(g.frames) > 0 {
			d, ok, err := parseUDP(<-g.frames)
			if err != nil || !ok {
				t.Fatalf("the service sent no UDP: %v", err)
			}
			all = append(all, d)
		}
		return all
	}
}

// FuzzTFTP runs a program: a request, then packets for the transfer, each with an operation in its
// first byte. What is sent stays bounded by what came: a window for each packet, and what time-outs add.
func FuzzTFTP(f *testing.F) {
	add := func(request []byte, ops ...[]byte) {
		f.Add(request, slices.Concat(ops...))
	}
	ack := func(n int) []byte { return append([]byte{0}, be16(n)...) }
	tick := []byte{1, 0, 0}
	add(rrq("f", "octet"), ack(1), ack(2), ack(6))
	add(rrq("f", "octet", "blksize", "8", "windowsize", "16", "tsize", "0"), ack(0), ack(16), ack(20), ack(20), tick, ack(32))
	add(rrq("f", "netascii", "blksize", "512", "tsize", "0"), ack(0), ack(1), ack(1), []byte{2, 0, 8})
	add(rrq("../f", "octet"), ack(0))
	add(rrq("f", "octet", "timeout", "1"), tick, tick, tick, []byte{3, 0, 0}, ack(0))
	f.Fuzz(func(t *testing.T, request, program []byte) {
		s := fuzzServer(t)
		peer := ipstack.Peer{MAC: guestMAC, Addr: netip.AddrPortFrom(guestAddr, 2000)}
		request = request[:min(len(request), ipstack.MaxPayload)]
		s.receiveTFTP(&ipstack.Datagram{From: peer, To: netip.AddrPortFrom(testServer, portTFTP), Payload: request})
		s.tftp.mu.Lock()
		transfer := s.tftp.transfers[peer]
		s.tftp.mu.Unlock()
		for n := 0; transfer != nil && len(program) >= 3 && n < 200; n++ {
			op, arg := program[0], program[1:3]
			program = program[3:]
			switch op % 5 {
			case 0:
				transfer.sender.receive(append([]byte{0, opACK}, arg...))
			case 1:
				transfer.sender.tick()
			case 2:
				transfer.sender.receive([]byte{0, opERROR, arg[0], arg[1], 'x'})
			case 3:
				s.receiveTFTP(&ipstack.Datagram{From: peer, To: netip.AddrPortFrom(testServer, portTFTP), Payload: request})
			case 4:
				transfer.sender.receive(arg[:min(len(arg), int(arg[0])%3)])
			}
			if w, ok := transfer.sender.(*windowed); ok {
				w.mu.Lock()
				if w.base > w.next || w.next > w.filled || w.filled > w.base+w.window || w.last != 0 && w.filled != w.last+1 {
					t.Errorf("base %d, next %d, filled %d, window %d, last %d", w.base, w.next, w.filled, w.window, w.last)
				}
				w.mu.Unlock()
			}
		}
	})
}

// FuzzFrames puts frames into the service as they come from a guest: any bytes, and the same bytes with
// the checksums made right, so that they get further.
func FuzzFrames(f *testing.F) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(testServer, port) }
	from := netip.AddrPortFrom(guestAddr, 2000)
	f.Add(udpFrame(guestMAC, serverMAC, from, at(portTFTP), rrq("f", "octet")), true)
	f.Add(udpFrame(guestMAC, broadcast, from, at(portDHCPServer), bootp{chaddr: guestMAC, vend: vend(opt(53, 1))}.bytes()), true)
	f.Add(udpFrame(guestMAC, serverMAC, from, at(9), nil), false)
	f.Add(slices.Concat(broadcast[:], guestMAC[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, guestMAC[:], guestAddr.AsSlice(), make([]byte, 6), testServer.AsSlice()), false)
	syn := slices.Concat(be16(3000), be16(80), []byte{0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0})
	ip := slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0}, guestAddr.AsSlice(), testServer.AsSlice())
	f.Add(slices.Concat(serverMAC[:], guestMAC[:], []byte{8, 0}, ip, syn), true)
	f.Add(slices.Concat(allRouters[:], guestMAC[:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 255}, make([]byte, 16), make([]byte, 16), []byte{133, 0, 0, 0, 0, 0, 0, 0}), true)
	f.Fuzz(func(t *testing.T, frame []byte, mend bool) {
		s := fuzzServer(t)
		if len(frame) < vswitch.HeaderLen {
			return
		}
		if mend {
			mendChecksums(frame)
		}
		for range 2 {
			s.Deliver([]*vswitch.Frame{{Head: frame, Len: len(frame)}})
		}
		// The service must come through all of them.
		deadline := time.Now().Add(patience)
		for {
			s.inbox.mu.Lock()
			left := s.inbox.count
			s.inbox.mu.Unlock()
			if left == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the service does not take its frames")
			}
			time.Sleep(10 * time.Microsecond)
		}
	})
}

// mendChecksums makes an IPv4 packet's header checksum right, and the checksum of the UDP, TCP or
// ICMP in it.
func mendChecksums(f []byte) {
	if len(f) < 14+20 || f[12] != 8 || f[13] != 0 {
		return
	}
	p := f[14:]
	ihl := int(p[0]&15) * 4
	total := int(binary.BigEndian.Uint16(p[2:]))
	if ihl < 20 || total < ihl || total > len(p) {
		return
	}
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], sum(p[:ihl]))
	body := p[ihl:total]
	at, ok := map[byte]int{1: 2, 6: 16, 17: 6}[p[9]]
	if !ok || len(body) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	pseudo := slices.Concat(p[12:20], []byte{0, p[9]}, be16(len(body)))
	if p[9] == 1 {
		pseudo = nil
	}
	binary.BigEndian.PutUint16(body[at:], sum(pseudo, body))
}
