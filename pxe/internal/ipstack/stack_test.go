package ipstack

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

var (
	ownMAC  = [6]byte{0x00, 0x15, 0x5d, 0, 0, 1}
	peerMAC = [6]byte{0x00, 0x15, 0x5d, 0, 0, 2}
	own     = netip.MustParsePrefix("10.21.140.1/24")
	peer    = netip.MustParseAddr("10.21.140.9")
)

// wire is a stack with what it sent.
type wire struct {
	*Stack
	mu   sync.Mutex
	sent [][]byte
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{}
	s, err := New(Config{MAC: ownMAC, Addr: own, RouterAdvertisement: true, Output: func(frames [][]byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, f := range frames {
			w.sent = append(w.sent, bytes.Clone(f))
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.Stack = s
	t.Cleanup(s.Close)
	return w
}

// take returns what was sent since the last call.
func (w *wire) take() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.sent = nil }()
	return w.sent
}

// sum is RFC 1071's checksum, byte by byte.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for i, b := range bytes.Join(parts, nil) {
		s += uint32(b) << (8 * (1 - i%2))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func ethernet(dst, src [6]byte, typ int, payload []byte) []byte {
	return bytes.Join([][]byte{dst[:], src[:], be16(typ), payload}, nil)
}

func ip4(src, dst netip.Addr, proto byte, payload []byte) []byte {
	h := bytes.Join([][]byte{{0x45, 0}, be16(20 + len(payload)), {0, 0, 0, 0, 64, proto, 0, 0}, src.AsSlice(), dst.AsSlice()}, nil)
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, payload...)
}

func udp4(src, dst netip.AddrPort, payload []byte) []byte {
	u := bytes.Join([][]byte{be16(int(src.Port())), be16(int(dst.Port())), be16(8 + len(payload)), {0, 0}, payload}, nil)
	binary.BigEndian.PutUint16(u[6:], sum(src.Addr().AsSlice(), dst.Addr().AsSlice(), []byte{0, protoUDP}, be16(len(u)), u))
	return ip4(src.Addr(), dst.Addr(), protoUDP, u)
}

func datagram(port uint16, payload []byte) []byte {
	return ethernet(ownMAC, peerMAC, typeIPv4, udp4(netip.AddrPortFrom(peer, 2000), netip.AddrPortFrom(own.Addr(), port), payload))
}

// echo sends back what comes to a port.
func (w *wire) echo(t testing.TB, port uint16) {
	t.Helper()
	buf := make([]byte, MaxFrame)
	batch := make([][]byte, 1)
	_, _, err := w.HandleUDP(port, func(d *Datagram) {
		batch[0] = append(buf[:Headroom], d.Payload...)
		from := d.From
		w.Send(port, &from, batch)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUDPEcho(t *testing.T) {
	w := newWire(t)
	w.echo(t, 7)
	for _, n := range []int{0, 1, 18, 511, 512, MaxPayload} {
		payload := bytes.Repeat([]byte{0xa5, 0x5a, 0xff}, n/3+1)[:n]
		w.Input(datagram(7, payload))
		sent := w.take()
		want := ethernet(peerMAC, ownMAC, typeIPv4, udp4(netip.AddrPortFrom(own.Addr(), 7), netip.AddrPortFrom(peer, 2000), payload))
		want[etherLen+6] = 0x40 // DF
		binary.BigEndian.PutUint16(want[etherLen+10:], 0)
		binary.BigEndian.PutUint16(want[etherLen+10:], sum(want[etherLen:etherLen+ipv4Len]))
		if len(sent) != 1 || !bytes.Equal(sent[0], want) {
			t.Errorf("%d bytes: sent % x\nwant % x", n, sent, want)
		}
	}
}

// TestUDPChecksumZero proves both meanings of zero: none in what comes, and never zero in what goes.
func TestUDPChecksumZero(t *testing.T) {
	w := newWire(t)
	w.echo(t, 7)
	f := datagram(7, []byte("no checksum"))
	f[etherLen+ipv4Len+6], f[etherLen+ipv4Len+7] = 0, 0
	w.Input(f)
	if n := len(w.take()); n != 1 {
		t.Errorf("a datagram without checksum got %d answers, want 1", n)
	}
	for i := range 1 << 16 {
		w.Input(datagram(7, be16(i)))
		for _, f := range w.take() {
			if f[Headroom-2]|f[Headroom-1] == 0 {
				t.Fatalf("payload %04x was sent with checksum 0", i)
			}
		}
	}
}

// TestUDPRefused lists what must not reach a handler.
func TestUDPRefused(t *testing.T) {
	base := datagram(7, []byte("hello"))
	const ip, u = etherLen, etherLen + ipv4Len
	fix := func(f []byte) { // the IPv4 checksum
		f[ip+10], f[ip+11] = 0, 0
		binary.BigEndian.PutUint16(f[ip+10:], sum(f[ip:u]))
	}
	for _, c := range []struct {
		name string
		edit func(f []byte) []byte
	}{
		{"bad UDP checksum", func(f []byte) []byte { f[len(f)-1]++; return f }},
		{"bad IPv4 checksum", func(f []byte) []byte { f[ip+8]--; return f }},
		{"version 6 in an IPv4 frame", func(f []byte) []byte { f[ip] = 0x65; fix(f); return f }},
		{"header shorter than 20", func(f []byte) []byte { f[ip] = 0x44; fix(f); return f }},
		{"header longer than the packet", func(f []byte) []byte { f[ip] = 0x4f; fix(f); return f }},
		{"total length longer than the frame", func(f []byte) []byte { f[ip+3]++; fix(f); return f }},
		{"total length shorter than the header", func(f []byte) []byte { f[ip+3] = 19; fix(f); return f }},
		{"UDP length longer than the packet", func(f []byte) []byte { f[u+5]++; return f }},
		{"UDP length shorter than its header", func(f []byte) []byte { f[u+5] = 7; return f }},
		{"first fragment", func(f []byte) []byte { f[ip+6] = 0x20; fix(f); return f }},
		{"later fragment", func(f []byte) []byte { f[ip+7] = 1; fix(f); return f }},
		{"another's address", func(f []byte) []byte { f[ip+19] = 2; fix(f); return f }},
		{"from our address", func(f []byte) []byte { copy(f[ip+12:], own.Addr().AsSlice()); fix(f); return f }},
		{"from a multicast address", func(f []byte) []byte { f[ip+12] = 224; fix(f); return f }},
		{"from the broadcast address", func(f []byte) []byte { f[ip+15] = 255; fix(f); return f }},
		{"from our MAC", func(f []byte) []byte { copy(f[6:], ownMAC[:]); return f }},
		{"from a group MAC", func(f []byte) []byte { f[6] |= 1; return f }},
		{"truncated", func(f []byte) []byte { return f[:u+4] }},
		{"no network header", func(f []byte) []byte { return f[:ip] }},
		{"shorter than Ethernet", func(f []byte) []byte { return f[:13] }},
		{"longer than the MTU", func(f []byte) []byte { return append(f, make([]byte, MaxFrame)...) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t)
			handled := 0
			if _, _, err := w.HandleUDP(7, func(*Datagram) { handled++ }); err != nil {
				t.Fatal(err)
			}
			w.Input(c.edit(slices.Clone(base)))
			if handled != 0 {
				t.Error("the datagram was handled")
			}
			w.Input(base)
			if handled != 1 {
				t.Error("the sound datagram was not handled")
			}
		})
	}
}

func TestUDPAccepted(t *testing.T) {
	for _, c := range []struct {
		name, dst string
	}{
		{"own address", "10.21.140.1"}, {"limited broadcast", "255.255.255.255"}, {"subnet broadcast", "10.21.140.255"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t)
			var got Datagram
			if _, _, err := w.HandleUDP(67, func(d *Datagram) { got = *d; got.Payload = bytes.Clone(d.Payload) }); err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(netip.MustParseAddr(c.dst), 67)
			from := netip.AddrPortFrom(netip.IPv4Unspecified(), 68)
			// Padded, as short frames are, and with IPv4 options.
			f := append(ethernet(broadcastMAC, peerMAC, typeIPv4, udp4(from, to, []byte("who"))), make([]byte, 20)...)
			w.Input(f)
			if got.From != (Peer{MAC: peerMAC, Addr: from}) || got.To != to || string(got.Payload) != "who" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestUDPPorts(t *testing.T) {
	w := newWire(t)
	nop := func(*Datagram) {}
	port, release, err := w.HandleUDP(69, nop)
	if err != nil || port != 69 {
		t.Fatalf("port %d, %v", port, err)
	}
	if _, _, err := w.HandleUDP(69, nop); err == nil {
		t.Error("a port was given twice")
	}
	release()
	release() // again does nothing
	if _, _, err := w.HandleUDP(69, nop); err != nil {
		t.Error(err)
	}
	release() // not the second owner's
	if _, _, err := w.HandleUDP(69, nop); err == nil {
		t.Error("the first owner released the second's port")
	}
	seen := make(map[uint16]bool)
	for range 16384 {
		port, _, err := w.HandleUDP(0, nop)
		if err != nil {
			t.Fatal(err)
		}
		if port < 49152 || seen[port] {
			t.Fatalf("dynamic port %d", port)
		}
		seen[port] = true
	}
	if _, _, err := w.HandleUDP(0, nop); err == nil {
		t.Error("more ports than there are")
	}
}

// TestUnreachable proves that a datagram to a port nobody handles is answered as by any host.
func TestUnreachable(t *testing.T) {
	w := newWire(t)
	w.arp(t)
	w.Input(datagram(9, []byte("anybody?")))
	sent := w.take()
	if len(sent) != 1 || sent[0][etherLen+9] != 1 || !bytes.Equal(sent[0][etherLen+ipv4Len:][:2], []byte{3, 3}) {
		t.Errorf("sent % x, want ICMP port unreachable", sent)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("10.21.140.255"), 137)
	w.Input(ethernet(broadcastMAC, peerMAC, typeIPv4, udp4(netip.AddrPortFrom(peer, 137), to, []byte("noise"))))
	if sent := w.take(); len(sent) != 0 {
		t.Errorf("a broadcast was answered: % x", sent)
	}
}

// arp asks for the stack's address and expects the answer; netstack knows the peer then.
func (w *wire) arp(t *testing.T) {
	t.Helper()
	body := bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, 1}, peerMAC[:], peer.AsSlice(), make([]byte, 6), own.Addr().AsSlice()}, nil)
	w.Input(append(ethernet(broadcastMAC, peerMAC, typeARP, body), make([]byte, 18)...))
	want := ethernet(peerMAC, ownMAC, typeARP, bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, 2}, ownMAC[:], own.Addr().AsSlice(), peerMAC[:], peer.AsSlice()}, nil))
	if sent := w.take(); len(sent) != 1 || !bytes.Equal(sent[0], want) {
		t.Fatalf("ARP answer % x\nwant % x", sent, want)
	}
}

func TestPing(t *testing.T) {
	w := newWire(t)
	w.arp(t)
	icmp := append([]byte{8, 0, 0, 0, 1, 2, 3, 4}, "ping"...)
	binary.BigEndian.PutUint16(icmp[2:], sum(icmp))
	w.Input(ethernet(ownMAC, peerMAC, typeIPv4, ip4(peer, own.Addr(), 1, icmp)))
	sent := w.take()
	icmp[0], icmp[2], icmp[3] = 0, 0, 0
	binary.BigEndian.PutUint16(icmp[2:], sum(icmp))
	if len(sent) != 1 || !bytes.Equal(sent[0][:12], append(peerMAC[:], ownMAC[:]...)) || !bytes.Equal(sent[0][etherLen+ipv4Len:], icmp) {
		t.Errorf("sent % x", sent)
	}
}

// solicitation is a Router Solicitation as iPXE sends it, with its source link-layer address.
func solicitation(src string) []byte {
	m := bytes.Join([][]byte{{133, 0, 0, 0, 0, 0, 0, 0, 1, 1}, peerMAC[:]}, nil)
	from, to := netip.MustParseAddr(src), netip.MustParseAddr("ff02::2")
	binary.BigEndian.PutUint16(m[2:], sum(from.AsSlice(), to.AsSlice(), []byte{0, 0}, be16(len(m)), []byte{0, 0, 0, protoICMPv6}, m))
	p := bytes.Join([][]byte{{0x60, 0, 0, 0}, be16(len(m)), {protoICMPv6, 255}, from.AsSlice(), to.AsSlice(), m}, nil)
	return ethernet([6]byte{0x33, 0x33, 0, 0, 0, 2}, peerMAC, typeIPv6, p)
}

func TestRouterAdvertisement(t *testing.T) {
	for _, c := range []struct{ name, src, dst string }{
		{"from a link-local address", "fe80::215:5dff:fe00:2", "fe80000000000000" + "02155dfffe000002"},
		{"from the unspecified address", "::", "ff02000000000000" + "0000000000000001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t)
			w.Input(solicitation(c.src))
			sent := w.take()
			if len(sent) != 1 {
				t.Fatalf("sent % x", sent)
			}
			p := sent[0][etherLen:]
			if sum(p[8:40], []byte{0, 0, 0, 16, 0, 0, 0, protoICMPv6}, p[40:]) != 0 {
				t.Errorf("bad checksum in % x", p)
			}
			p[42], p[43] = 0, 0
			want := "00155d000002" + "00155d000001" + "86dd" + // Ethernet
				"60000000" + "0010" + "3a" + "ff" + "fe80000000000000" + "02155dfffe000001" + c.dst + // IPv6
				"86" + "00" + "0000" + // type, code, checksum
				"00" + "00" + "0000" + "00000000" + "00000000" // hop limit, flags, lifetime, timers
			if got := hex.EncodeToString(sent[0]); got != want {
				t.Errorf("sent %s\nwant %s", got, want)
			}
		})
	}
	for _, c := range []struct {
		name string
		at   int
	}{{"hop limit", etherLen + 7}, {"checksum", etherLen + 42}, {"code", etherLen + 41}, {"type", etherLen + 40}, {"length", etherLen + 4}} {
		t.Run("wrong "+c.name, func(t *testing.T) {
			w := newWire(t)
			f := solicitation("fe80::1")
			f[c.at]++
			w.Input(f)
			if sent := w.take(); len(sent) != 0 {
				t.Errorf("answered with % x", sent)
			}
		})
	}
}

func TestInputDoesNotAllocate(t *testing.T) {
	s, err := New(Config{MAC: ownMAC, Addr: own, Output: func([][]byte) {}})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Stack: s}
	t.Cleanup(s.Close)
	buf, batch := make([]byte, MaxFrame), make([][]byte, 1)
	var to Peer
	if _, _, err := w.HandleUDP(7, func(d *Datagram) {
		to, batch[0] = d.From, append(buf[:Headroom], d.Payload...)
		w.Send(7, &to, batch)
	}); err != nil {
		t.Fatal(err)
	}
	f := datagram(7, make([]byte, 1400))
	if n := testing.AllocsPerRun(100, func() { w.Input(f) }); n != 0 {
		t.Errorf("%v allocations for a datagram and its answer, want 0", n)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"no address", Config{MAC: ownMAC}},
		{"IPv6", Config{MAC: ownMAC, Addr: netip.MustParsePrefix("fd00::1/64")}},
		{"no MAC", Config{Addr: own}},
		{"group MAC", Config{Addr: own, MAC: broadcastMAC}},
	} {
		if _, err := New(c.cfg); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

// BenchmarkUDP compares an echo of 1,472 bytes through a Handler with one through netstack's own UDP
// endpoint and a goroutine that reads it.
func BenchmarkUDP(b *testing.B) {
	payload := make([]byte, MaxPayload)
	answered := make(chan struct{}, 1)
	newStack := func(b *testing.B) *Stack {
		s, err := New(Config{MAC: ownMAC, Addr: own, Output: func(frames [][]byte) {
			if len(frames[0]) == MaxFrame {
				answered <- struct{}{}
			}
		}})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(s.Close)
		return s
	}
	b.Run("handler", func(b *testing.B) {
		w := &wire{Stack: newStack(b)}
		w.echo(b, 7)
		b.ReportAllocs()
		f := datagram(7, payload)
		for b.Loop() {
			w.Input(f)
			<-answered
		}
	})
	b.Run("netstack", func(b *testing.B) {
		s := newStack(b)
		conn, err := gonet.DialUDP(s.net, &tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(s.addr), Port: 7}, nil, ipv4.ProtocolNumber)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		go func() {
			buf := make([]byte, MaxFrame)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				conn.WriteTo(buf[:n], from)
			}
		}()
		// Its MAC, as an ARP request tells it.
		body := bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, 1}, peerMAC[:], peer.AsSlice(), make([]byte, 6), own.Addr().AsSlice()}, nil)
		s.Input(ethernet(broadcastMAC, peerMAC, typeARP, body))
		b.ReportAllocs()
		f := datagram(7, payload)
		for b.Loop() {
			s.Input(f)
			<-answered
		}
	})
}
