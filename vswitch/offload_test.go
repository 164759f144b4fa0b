package vswitch_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

// packet is a TCP or UDP packet to be made.
type packet struct {
	dst     vswitch.MAC
	tags    int    // VLAN tags
	v6      bool   // IPv6
	between []byte // IPv4 options or IPv6 extension headers, whose last says what next it is
	next    byte   // the first of the extension headers
	udp     bool
	options []byte // of TCP
	flags   byte   // of TCP
	payload int    // bytes
	padding int    // bytes behind the packet
}

const (
	fin, psh, ack, cwr = 0x01, 0x08, 0x10, 0x80

	firstSeq = 0xffffff00 // wraps soon
	firstID  = 0xfffe
)

// bytes returns the frame, with the checksum left out.
func (p packet) bytes() []byte {
	src := mac(1)
	b := slices.Concat(p.dst[:], src[:])
	for i := range p.tags {
		b = append(b, [][]byte{{0x88, 0xa8, 0x20, 0x07}, {0x81, 0x00, 0xe0, 0x63}}[(i+p.tags)%2]...)
	}
	l4 := p.l4()
	proto := byte(6)
	if p.udp {
		proto = 17
	}
	if p.v6 {
		next := proto
		if len(p.between) > 0 {
			next = p.next
		}
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.between)+len(l4)))
		b = append(b, next, 64)
		b = append(b, "\xfe\x80\x00\x00\x00\x00\x00\x00\x02\x15\x5d\xff\xfe\x00\x00\x01"...)
		b = append(b, "\xfe\x80\x00\x00\x00\x00\x00\x00\x02\x15\x5d\xff\xfe\x00\x00\x02"...)
	} else {
		n := 20 + len(p.between)
		b = append(b, 0x08, 0x00, byte(0x40|n/4), 0)
		b = binary.BigEndian.AppendUint16(b, uint16(n+len(l4)))
		b = binary.BigEndian.AppendUint16(b, firstID)
		b = append(b, 0x40, 0, 64, proto, 0, 0, 192, 168, 0, 1, 192, 168, 0, 2)
	}
	b = append(b, p.between...)
	if !p.v6 {
		ip := b[len(b)-20-len(p.between):]
		binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip))
	}
	b = append(b, l4...)
	for range p.padding {
		b = append(b, 0xdd)
	}
	return b
}

// l4 returns the TCP or UDP header and the payload.
func (p packet) l4() []byte {
	b := []byte{0x30, 0x39, 0x00, 0x50}
	if p.udp {
		b = binary.BigEndian.AppendUint16(b, uint16(8+p.payload))
		b = append(b, 0xab, 0xcd)
	} else {
		b = binary.BigEndian.AppendUint32(b, firstSeq)
		b = append(b, 1, 2, 3, 4, byte((20+len(p.options))/4)<<4, p.flags, 0xff, 0xff, 0xab, 0xcd, 0, 0)
		b = append(b, p.options...)
	}
	for i := range p.payload {
		b = append(b, byte(i*i>>3))
	}
	return b
}

// checksum returns an Offload that asks for the checksum.
func (p packet) checksum() vswitch.Offload {
	at := 14 + 4*p.tags + 20 + len(p.between)
	if p.v6 {
		at += 20
	}
	o := vswitch.Offload{NeedsChecksum: true, ChecksumStart: uint16(at), ChecksumOffset: 16}
	if p.udp {
		o.ChecksumOffset = 6
	}
	return o
}

// gso returns an Offload that asks for pieces of so many bytes.
func (p packet) gso(size int) vswitch.Offload {
	o := p.checksum()
	o.GSOSize = uint16(size)
	switch {
	case p.udp:
		o.GSO = vswitch.GSOUDP
	case p.v6:
		o.GSO = vswitch.GSOTCPv6
	default:
		o.GSO = vswitch.GSOTCPv4
	}
	return o
}

// lent makes a frame as senders do: HeadLen bytes and the rest in parts of
// odd sizes.
func lent(b []byte, o vswitch.Offload) vswitch.Frame {
	n := min(len(b), vswitch.HeadLen)
	f := vswitch.Frame{Head: slices.Clone(b[:n]), Len: len(b), Offload: o}
	rest := b[n:]
	for _, cut := range []int{0, 1, 700, 3, 1501} {
		k := min(cut, len(rest))
		f.Body = append(f.Body, rest[:k])
		rest = rest[k:]
	}
	f.Body = append(f.Body, rest)
	return f
}

// plainSum is the ones' complement sum of RFC 1071, word by word.
func plainSum(pieces ...[]byte) uint16 {
	var sum uint32
	b := slices.Concat(pieces...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// parsed is what a receiver sees in a packet.
type parsed struct {
	headers []byte // with zeros in the fields that change from piece to piece
	v6, tcp bool
	id      uint16 // IPv4
	seq     uint32 // TCP
	flags   byte   // TCP
	payload []byte
	padding []byte
}

// errUDPLength is of a datagram that is shorter than the packet it is in.
var errUDPLength = errors.New("the packet is longer than the datagram")

// parse takes a packet apart. It returns an error if a length or checksum is
// wrong, but also what it found.
func parse(b []byte) (p parsed, err error) {
	at := 12
	for b[at] == 0x81 || b[at] == 0x88 {
		at += 4
	}
	p.v6 = b[at] == 0x86
	ip := b[at+2:]
	headers := slices.Clone(b)
	h := headers[at+2:]
	var proto byte
	var addresses []byte
	var n, end int
	if p.v6 {
		proto, n, end = ip[6], 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		for proto == 0 || proto == 43 || proto == 60 {
			proto, n = ip[n], n+8+8*int(ip[n+1])
		}
		addresses = ip[8:40]
		clear(h[4:6])
	} else {
		proto, n, end = ip[9], int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if sum := plainSum(ip[:n]); sum != 0xffff {
			err = fmt.Errorf("IPv4 header checksum: sum %#04x", sum)
		}
		addresses = ip[12:20]
		p.id = binary.BigEndian.Uint16(ip[4:])
		clear(h[2:6])
		clear(h[10:12])
	}
	if end > len(ip) || end < n {
		return p, fmt.Errorf("%d bytes of IP in %d", end, len(ip))
	}
	l4 := ip[n:end]
	h = h[n:]
	p.padding = ip[end:]
	k, covered := 8, len(l4)
	switch proto {
	case 6:
		p.tcp = true
		k = int(l4[12]>>4) * 4
		p.seq = binary.BigEndian.Uint32(l4[4:])
		p.flags = l4[13]
		clear(h[4:8])
		h[13] = 0
		clear(h[16:18])
	case 17:
		covered = int(binary.BigEndian.Uint16(l4[4:]))
		switch {
		case covered < 8 || covered > len(l4):
			err = fmt.Errorf("%d bytes of UDP in %d", covered, len(l4))
			covered = len(l4)
		case covered < len(l4):
			err = cmp.Or(err, errUDPLength)
		}
		if l4[6] == 0 && l4[7] == 0 {
			err = fmt.Errorf("UDP without a checksum")
		}
		clear(h[4:8])
	default:
		return p, fmt.Errorf("protocol %d", proto)
	}
	p.payload = l4[k:]
	p.headers = headers[:at+2+n+k]
	pseudo := slices.Concat(addresses, []byte{0, proto}, binary.BigEndian.AppendUint16(nil, uint16(covered)))
	if sum := plainSum(pseudo, l4[:covered]); sum != 0xffff {
		err = fmt.Errorf("checksum of protocol %d: sum %#04x", proto, sum)
	}
	return p, err
}

// taker is a recorder that accepts frames with an Offload.
type taker struct {
	*porttest.Recorder
	accepts atomic.Uint32 // an OffloadSet
	got     []vswitch.Offload
	heads   []int // lengths
}

func (p *taker) Accepts() vswitch.OffloadSet { return vswitch.OffloadSet(p.accepts.Load()) }

func (p *taker) Deliver(frames []*vswitch.Frame) int {
	n := p.Recorder.Deliver(frames)
	for _, f := range frames[:n] {
		p.got = append(p.got, f.Offload)
		p.heads = append(p.heads, len(f.Head))
	}
	return n
}

// pair joins a sender and a taker, with room for so many frames.
func pair(t testing.TB, room int, accepts vswitch.OffloadSet) (s *vswitch.Switch, a *station, b *taker, m *vswitch.Member) {
	t.Helper()
	s = newSwitch(t, vswitch.Config{MaxMACs: 16})
	a = join(t, s, "a", vswitch.PortOptions{})
	b = &taker{Recorder: porttest.NewRecorder(room)}
	b.accepts.Store(uint32(accepts))
	m, err := s.Join("b", b, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, a, b, m
}

// checkPieces checks that pieces are what whole, whose payload is to be cut at
// size, should have become.
func checkPieces(pieces [][]byte, whole []byte, size int) error {
	want, _ := parse(whole) // its checksum is not filled in
	rest := want.payload
	for i, b := range pieces {
		got, err := parse(b)
		if err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
		n := min(size, len(rest))
		if !bytes.Equal(got.payload, rest[:n]) || n == 0 && i > 0 {
			return fmt.Errorf("piece %d of %d has %d bytes of payload, want %d of those left", i, len(pieces), len(got.payload), n)
		}
		flags := want.flags
		if i > 0 {
			flags &^= cwr
		}
		if i < len(pieces)-1 {
			flags &^= fin | psh
		}
		switch {
		case len(got.padding) != 0:
			return fmt.Errorf("piece %d is followed by %x", i, got.padding)
		case !bytes.Equal(got.headers, want.headers):
			return fmt.Errorf("headers of piece %d\n%x, want\n%x", i, got.headers, want.headers)
		case !got.v6 && got.id != want.id+uint16(i):
			return fmt.Errorf("piece %d has identification %#x, the whole %#x", i, got.id, want.id)
		case got.tcp && got.seq != want.seq+uint32(len(want.payload)-len(rest)):
			return fmt.Errorf("piece %d has sequence number %#x, the whole %#x", i, got.seq, want.seq)
		case got.flags != flags:
			return fmt.Errorf("piece %d of %d has flags %#x, want %#x", i, len(pieces), got.flags, flags)
		}
		rest = rest[n:]
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes of payload are missing", len(rest))
	}
	return nil
}

var (
	timestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	hopByHop   = []byte{60, 0, 5, 2, 0, 0, 1, 0}
	options    = []byte{43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	routing    = []byte{6, 0, 4, 0, 0, 0, 0, 0} // nothing left of the way
)

// packets are of all the kinds that can be cut.
var packets = []struct {
	name string
	packet
}{
	{"TCP over IPv4", packet{flags: ack}},
	{"TCP over IPv4 with options", packet{between: []byte{0x94, 4, 0, 0}, options: timestamps, flags: ack}},
	{"TCP over IPv4 with the last flags", packet{flags: ack | fin | psh}},
	{"TCP over IPv4 with congestion window reduced", packet{flags: ack | cwr | psh}},
	{"TCP over IPv4 in a VLAN", packet{tags: 1, flags: ack}},
	{"TCP over IPv4 in a VLAN in a VLAN", packet{tags: 2, flags: ack, options: timestamps}},
	{"TCP over IPv6", packet{v6: true, flags: ack | psh}},
	{"TCP over IPv6 with extension headers", packet{v6: true, between: slices.Concat(hopByHop, options, routing), flags: ack}},
	{"TCP over IPv6 in a VLAN", packet{v6: true, tags: 1, options: timestamps, flags: ack}},
	{"UDP over IPv4", packet{udp: true}},
	{"UDP over IPv6 in a VLAN", packet{v6: true, tags: 1, udp: true}},
}

// TestSegmentation cuts packets of all kinds and sizes.
func TestSegmentation(t *testing.T) {
	for _, test := range packets {
		t.Run(test.name, func(t *testing.T) {
			for _, n := range []struct{ payload, size, pieces int }{
				{1, 1, 1},
				{2, 1, 2},
				{100, 1000, 1},
				{1000, 1000, 1},
				{1001, 1000, 2},
				{1999, 1000, 2},
				{2000, 1000, 2},
				{128, 1, 128},
				{65280, 64, 1020},
				{65280, 1448, 46},
				{65280, 1447, 46},
				{65280, 65000, 2},
				{65280, 65535, 1},
				{300, 77, 4},
				{8063, 63, 128},
			} {
				p := test.packet
				p.dst = broadcast
				p.payload = n.payload
				whole := p.bytes()
				_, a, b, m := pair(t, 1100, 0)
				before := lent(whole, p.gso(n.size))
				head := slices.Clone(before.Head)
				a.Forward([]vswitch.Frame{before})
				if !bytes.Equal(head, before.Head) {
					t.Fatal("the sender's bytes have changed")
				}
				got := b.Take()
				if len(got) != n.pieces {
					t.Fatalf("%d bytes at %d make %d pieces, want %d", n.payload, n.size, len(got), n.pieces)
				}
				if err := checkPieces(got, whole, n.size); err != nil {
					t.Fatalf("%d bytes at %d: %v", n.payload, n.size, err)
				}
				for i, o := range b.got {
					if o != (vswitch.Offload{}) {
						t.Errorf("piece %d has Offload %+v", i, o)
					}
					if want := min(len(got[i]), vswitch.HeadLen); b.heads[i] != want {
						t.Errorf("piece %d has %d bytes in Head, want %d", i, b.heads[i], want)
					}
				}
				st := m.Stats()
				if st.TxFrames != uint64(n.pieces) || st.GSOSegmented+st.ChecksumsCompleted != 1 {
					t.Errorf("%d bytes at %d: %+v", n.payload, n.size, st)
				}
			}
		})
	}
}

// TestChecksumCompletion has packets that lack nothing but their checksum.
func TestChecksumCompletion(t *testing.T) {
	for _, test := range packets {
		t.Run(test.name, func(t *testing.T) {
			for _, n := range []struct{ payload, padding int }{{0, 0}, {0, 6}, {1, 5}, {99, 0}, {100, 3}, {1459, 0}, {60000, 1}} {
				p := test.packet
				p.dst = broadcast
				p.payload, p.padding = n.payload, n.padding
				whole := p.bytes()
				s, a, b, m := pair(t, 4, vswitch.OffloadTSO4|vswitch.OffloadECN)
				a.Forward([]vswitch.Frame{lent(whole, p.checksum())})
				got := b.Take()
				if len(got) != 1 {
					t.Fatalf("%d frames arrived", len(got))
				}
				if q, err := parse(got[0]); err != nil || len(q.padding) != n.padding || len(q.payload) != n.payload {
					t.Fatalf("%d bytes: %d and %d, %v", n.payload, len(q.payload), len(q.padding), err)
				}
				at := int(p.checksum().ChecksumStart + p.checksum().ChecksumOffset)
				clear(got[0][at : at+2])
				clear(whole[at : at+2])
				if !bytes.Equal(got[0], whole) {
					t.Errorf("more than the checksum has changed")
				}
				if st := m.Stats(); st.TxFrames != 1 || st.ChecksumsCompleted != 1 || st.GSOSegmented != 0 {
					t.Errorf("%+v", st)
				}
				if st := s.Stats(); st.ChecksumsCompleted != 1 || st.GSOSegmented != 0 {
					t.Errorf("%+v", st)
				}
			}
		})
	}
}

// TestUDPChecksumZero has a datagram whose sum is such that the checksum would be
// zero, which UDP has for none.
func TestUDPChecksumZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := packet{dst: broadcast, v6: v6, udp: true, payload: 2}
		b := p.bytes()
		clear(b[len(b)-4:])
		l4 := b[p.checksum().ChecksumStart:]
		addresses := b[26:34]
		if v6 {
			addresses = b[22:54]
		}
		sum := plainSum(addresses, []byte{0, 17, 0, 10}, l4)
		binary.BigEndian.PutUint16(b[len(b)-2:], ^sum)
		_, a, port, _ := pair(t, 4, 0)
		a.Forward([]vswitch.Frame{lent(b, p.checksum())})
		got := port.Take()[0]
		if at := len(got) - 4; got[at] != 0xff || got[at+1] != 0xff {
			t.Errorf("the checksum is %x, want ffff", got[at:at+2])
		}
	}
}

// TestOffloadMatrix has each kind of frame for each kind of port: it arrives as
// it is or finished.
func TestOffloadMatrix(t *testing.T) {
	const (
		sum  = vswitch.OffloadChecksum
		tso4 = sum | vswitch.OffloadTSO4
		tso6 = sum | vswitch.OffloadTSO6
		uso  = sum | vswitch.OffloadUSO
		ecn  = vswitch.OffloadECN
		all  = tso4 | tso6 | uso | ecn
	)
	sets := []vswitch.OffloadSet{0, sum, tso4, tso6, uso, ecn, tso4 | ecn, tso6 | ecn, vswitch.OffloadTSO4, all &^ sum, all &^ ecn, all}
	for _, test := range []struct {
		name string
		packet
		size  int                // 0: only the checksum
		whole vswitch.OffloadSet // what a port must accept to get it as it is
	}{
		{"TCP", packet{payload: 5000}, 0, sum},
		{"UDP", packet{udp: true, v6: true, payload: 500}, 0, sum},
		{"TCP over IPv4 to be cut", packet{payload: 5000}, 1000, tso4},
		{"TCP over IPv6 to be cut", packet{v6: true, payload: 5000}, 1000, tso6},
		{"UDP over IPv4 to be cut", packet{udp: true, payload: 5000}, 1000, uso},
		{"UDP over IPv6 to be cut", packet{udp: true, v6: true, payload: 5000}, 1000, uso},
		{"TCP over IPv4 to be cut with CWR", packet{payload: 5000, flags: cwr}, 1000, tso4 | ecn},
		{"TCP over IPv6 to be cut with CWR", packet{v6: true, payload: 5000, flags: cwr}, 1000, tso6 | ecn},
		{"TCP that is one segment", packet{payload: 1000, flags: cwr}, 1000, sum},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, a, b, m := pair(t, 8, 0)
			p := test.packet
			p.dst = broadcast
			want := p.checksum()
			sent := want
			if test.size != 0 {
				sent = p.gso(test.size)
				if p.payload > test.size {
					want = sent
					want.HeadersLen = want.ChecksumStart + 20
					if p.udp {
						want.HeadersLen = want.ChecksumStart + 8
					}
					want.ECN = p.flags&cwr != 0
				}
			}
			sent.ECN = !want.ECN
			sent.HeadersLen = 9999
			whole := p.bytes()
			var finished uint64
			for _, set := range sets {
				b.accepts.Store(uint32(set))
				b.got = nil
				a.Forward([]vswitch.Frame{lent(whole, sent)})
				got := b.Take()
				if test.whole&^set == 0 {
					if len(got) != 1 || !bytes.Equal(got[0], whole) || b.got[0] != want {
						t.Errorf("port that accepts %05b: %d frames with Offload %+v, want %+v", set, len(got), b.got, want)
					}
					continue
				}
				finished++
				size := test.size
				if size == 0 {
					size = p.payload
				}
				if err := checkPieces(got, whole, size); err != nil {
					t.Errorf("port that accepts %05b: %v", set, err)
				}
			}
			if st := m.Stats(); st.GSOSegmented+st.ChecksumsCompleted != finished {
				t.Errorf("finished %d frames: %+v", finished, st)
			}
		})
	}
}

// TestBadOffload has frames whose Offload is not to be believed.
func TestBadOffload(t *testing.T) {
	type mess struct {
		b []byte
		o vswitch.Offload
	}
	for _, test := range []struct {
		name string
		p    packet
		mess func(m *mess)
		ok   bool
	}{
		{"nothing wrong", packet{}, func(m *mess) {}, true},
		{"no Offload, but numbers", packet{}, func(m *mess) { m.o = vswitch.Offload{ChecksumStart: 65535, GSOSize: 1, ECN: true} }, true},
		{"to be cut without a checksum", packet{}, func(m *mess) { m.o.NeedsChecksum = false }, false},
		{"start one too low", packet{}, func(m *mess) { m.o.ChecksumStart-- }, false},
		{"start one too high", packet{}, func(m *mess) { m.o.ChecksumStart++ }, false},
		{"start beyond the frame", packet{}, func(m *mess) { m.o.ChecksumStart = 65535 }, false},
		{"start and offset that add up", packet{}, func(m *mess) { m.o.ChecksumStart -= 2; m.o.ChecksumOffset += 2 }, false},
		{"offset of UDP in TCP", packet{}, func(m *mess) { m.o.ChecksumOffset = 6 }, false},
		{"offset of TCP in UDP", packet{udp: true}, func(m *mess) { m.o.ChecksumOffset = 16 }, false},
		{"offset beyond the frame", packet{}, func(m *mess) { m.o.ChecksumOffset = 65535 }, false},
		{"pieces of nothing", packet{}, func(m *mess) { m.o.GSOSize = 0 }, false},
		{"pieces of one byte", packet{}, func(m *mess) { m.o.GSOSize = 1 }, false},
		{"more tiny pieces than 128", packet{}, func(m *mess) { m.o.GSOSize = 31 }, false},
		{"129 pieces of 63 bytes", packet{payload: 63*128 + 1}, func(m *mess) { m.o.GSOSize = 63 }, false},
		{"129 pieces of 64 bytes", packet{payload: 64*128 + 1}, func(m *mess) { m.o.GSOSize = 64 }, true},
		{"65 pieces of 63 bytes", packet{}, func(m *mess) { m.o.GSOSize = 63 }, true},
		{"128 tiny pieces", packet{}, func(m *mess) { m.o.GSOSize = 32 }, true},
		{"TCP over IPv6 that is IPv4", packet{}, func(m *mess) { m.o.GSO = vswitch.GSOTCPv6 }, false},
		{"TCP over IPv4 that is IPv6", packet{v6: true}, func(m *mess) { m.o.GSO = vswitch.GSOTCPv4 }, false},
		{"UDP that is TCP", packet{}, func(m *mess) { m.o.GSO = vswitch.GSOUDP }, false},
		{"TCP that is UDP", packet{udp: true}, func(m *mess) { m.o.GSO = vswitch.GSOTCPv4 }, false},
		{"UDP fragmentation", packet{udp: true}, func(m *mess) { m.o.GSO = 3 }, false},
		{"ECN as in virtio", packet{}, func(m *mess) { m.o.GSO |= 0x80 }, false},
		{"another protocol", packet{}, func(m *mess) { m.b[14+9] = 1 }, false},
		{"another protocol over IPv6", packet{v6: true}, func(m *mess) { m.b[14+6] = 58 }, false},
		{"another type", packet{}, func(m *mess) { m.b[12] = 0x88 }, false},
		{"three VLAN tags", packet{tags: 3}, func(m *mess) {}, false},
		{"IPv6 that says IPv4", packet{v6: true}, func(m *mess) { m.b[12], m.b[13] = 8, 0 }, false},
		{"IPv4 that says IPv6", packet{}, func(m *mess) { m.b[12], m.b[13] = 0x86, 0xdd }, false},
		{"first fragment", packet{}, func(m *mess) { m.b[14+6] = 0x20 }, false},
		{"last fragment", packet{}, func(m *mess) { m.b[14+7] = 1 }, false},
		{"fragment header", packet{v6: true, next: 44, between: []byte{6, 0, 0, 0, 0, 0, 0, 0}}, func(m *mess) {}, false},
		{"authentication header", packet{v6: true, next: 51, between: make([]byte, 16)}, func(m *mess) {}, false},
		{"routing header with a way to go", packet{v6: true, next: 43, between: []byte{6, 0, 4, 1, 0, 0, 0, 0}}, func(m *mess) {}, false},
		{"extension header past the Head", packet{v6: true, next: 60, between: []byte{6, 255, 0, 0, 0, 0, 0, 0}}, func(m *mess) {}, false},
		{"extension headers without end", packet{v6: true, next: 60, between: bytes.Repeat([]byte{60, 0, 0, 0, 0, 0, 0, 0}, 20)}, func(m *mess) {}, false},
		{"headers of 126 bytes", packet{tags: 2, between: make([]byte, 40), options: make([]byte, 24)}, func(m *mess) {}, true},
		{"headers of 130 bytes", packet{tags: 2, between: make([]byte, 40), options: make([]byte, 28)}, func(m *mess) {}, false},
		{"IPv4 header too short", packet{}, func(m *mess) { m.b[14] = 0x44 }, false},
		{"IPv4 header into the payload", packet{}, func(m *mess) { m.b[14] = 0x4f }, false},
		{"IPv4 shorter than its headers", packet{}, func(m *mess) { m.b[14+2], m.b[14+3] = 0, 39 }, false},
		{"IPv4 longer than the frame", packet{}, func(m *mess) { m.b[14+3]++ }, false},
		{"IPv6 without a length", packet{v6: true}, func(m *mess) { m.b[14+4], m.b[14+5] = 0, 0 }, false},
		{"IPv6 longer than the frame", packet{v6: true}, func(m *mess) { m.b[14+5]++ }, false},
		{"TCP header too short", packet{}, func(m *mess) { m.b[14+20+12] = 0x40 }, false},
		{"TCP header into the payload", packet{}, func(m *mess) { m.b[14+20+12] = 0xf0 }, true},
		{"frame that ends in its headers", packet{}, func(m *mess) { m.b = m.b[:14+20+19] }, false},
		{"frame that ends in its type", packet{}, func(m *mess) { m.b = m.b[:14] }, false},
		{"frame that ends in a tag", packet{tags: 1}, func(m *mess) { m.b = m.b[:17] }, false},
		{"UDP shorter than its header", packet{udp: true}, func(m *mess) { m.o.GSO = 0; m.b[14+20+4], m.b[14+20+5] = 0, 7 }, false},
		{"UDP longer than its packet", packet{udp: true}, func(m *mess) { m.o.GSO = 0; m.b[14+20+5]++ }, false},
		{"UDP shorter than its packet", packet{udp: true}, func(m *mess) { m.o.GSO = 0; m.b[14+20+5]-- }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, accepts := range []vswitch.OffloadSet{0, 0xff} {
				p := test.p
				p.dst = broadcast
				p.payload = cmp.Or(p.payload, 4096)
				m := mess{p.bytes(), p.gso(1000)}
				test.mess(&m)
				_, a, b, _ := pair(t, 256, accepts)
				// A good one behind it: a bad one takes nothing else with it.
				a.Forward([]vswitch.Frame{lent(m.b, m.o), frame(broadcast, mac(1), 7)})
				got := b.Take()
				st := a.Stats()
				if dropped := st.Drops[vswitch.DropBadOffload]; dropped != st.Drops.Total() || dropped != 0 == test.ok {
					t.Fatalf("dropped: %v, want bad-offload: %v", st.Drops, !test.ok)
				}
				if !test.ok && len(got) != 1 || test.ok && len(got) < 2 || number(got[len(got)-1]) != 7 {
					t.Errorf("%d frames arrived", len(got))
				}
				if st.RxFrames != 2 {
					t.Errorf("%d frames counted, want 2", st.RxFrames)
				}
			}
		})
	}
}

// TestOffloadLyingLength has frames that are dropped for their length before
// anybody looks at their Offload.
func TestOffloadLyingLength(t *testing.T) {
	_, a, b, _ := pair(t, 4, 0)
	p := packet{dst: broadcast, payload: 100}
	f := lent(p.bytes(), p.gso(64))
	f.Len++
	runt := vswitch.Frame{Head: make([]byte, 13), Len: 13, Offload: p.checksum()}
	a.Forward([]vswitch.Frame{f, runt})
	st := a.Stats()
	if st.Drops[vswitch.DropMalformed] != 1 || st.Drops[vswitch.DropRunt] != 1 || st.Drops.Total() != 2 {
		t.Errorf("dropped: %v", st.Drops)
	}
	if got := b.Take(); len(got) != 0 {
		t.Errorf("%d frames arrived", len(got))
	}
}

// TestOffloadOrder mixes all kinds of frames in one batch, floods and unicast,
// to ports that accept all and nothing.
func TestOffloadOrder(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	none := join(t, s, "none", vswitch.PortOptions{})
	none.Forward([]vswitch.Frame{frame(broadcast, mac(2), 0)})
	all := &taker{Recorder: porttest.NewRecorder(64)}
	all.accepts.Store(0xff)
	if _, err := s.Join("all", all, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	big := packet{dst: broadcast, payload: 65000}
	small := packet{dst: mac(2), udp: true, payload: 10}
	bad := big.gso(1)
	a.Forward([]vswitch.Frame{
		frame(broadcast, mac(1), 1),
		lent(big.bytes(), big.gso(650)),
		frame(mac(2), mac(1), 2),
		lent(big.bytes(), bad),
		lent(small.bytes(), small.checksum()),
		frame(broadcast, mac(1), 3),
	})
	got := none.Take()
	if len(got) != 1+100+3 {
		t.Fatalf("%d frames arrived, want 104", len(got))
	}
	if err := checkPieces(got[1:101], big.bytes(), 650); err != nil {
		t.Error(err)
	}
	if _, err := parse(got[102]); err != nil {
		t.Error(err)
	}
	for i, n := range map[int]int{0: 1, 101: 2, 103: 3} {
		if number(got[i]) != n {
			t.Errorf("frame %d is %d, want %d", i, number(got[i]), n)
		}
	}
	whole := all.Take()
	if len(whole) != 3 || number(whole[0]) != 1 || !bytes.Equal(whole[1], big.bytes()) || number(whole[2]) != 3 {
		t.Errorf("%d frames arrived, want 3 as they were sent", len(whole))
	}
}

// TestOffloadReceiverFull cuts for a port that has room for a part only.
func TestOffloadReceiverFull(t *testing.T) {
	for _, room := range []int{0, 1, 2, 47, 48, 49, 50, 99, 102} {
		_, a, b, m := pair(t, room, 0)
		p := packet{dst: broadcast, payload: 65000}
		a.Forward([]vswitch.Frame{
			frame(broadcast, mac(1), 1),
			lent(p.bytes(), p.gso(650)),
			lent(p.bytes(), p.checksum()),
			frame(broadcast, mac(1), 2),
		})
		if got := len(b.Take()); got != room {
			t.Errorf("room for %d: %d frames arrived", room, got)
		}
		st := m.Stats()
		if st.TxFrames != uint64(room) || st.Drops[vswitch.DropReceiverFull] != uint64(103-room) {
			t.Errorf("room for %d of 103: %+v", room, st)
		}
		a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 3)})
		if got := b.Take(); room > 0 && number(got[0]) != 3 {
			t.Errorf("room for %d: after that frame %d arrived", room, number(got[0]))
		}
	}
}

// loser is a port that does not take the first frame of a list.
type loser struct{ bytes int }

func (p *loser) Deliver(frames []*vswitch.Frame) int {
	frames[0].Lost = true
	for _, f := range frames[1:] {
		p.bytes += f.Len
	}
	return len(frames) - 1
}

// TestFirstLost has a port lose the first frame of each list: the others are
// counted, and there is room for more.
func TestFirstLost(t *testing.T) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 16})
	a := join(t, s, "a", vswitch.PortOptions{})
	p := new(loser)
	m, err := s.Join("loser", p, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var batch []vswitch.Frame
	for i := range 100 {
		p := packet{dst: broadcast, payload: 100 + i}
		batch = append(batch, lent(p.bytes(), p.checksum()))
	}
	a.Forward(batch)
	a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 1), frame(broadcast, mac(1), 2)})
	st := m.Stats()
	if st.TxFrames != 98 || st.TxBytes != uint64(p.bytes) || st.Drops[vswitch.DropReceiverFull] != 4 {
		t.Errorf("the port took %d bytes in 98 frames of 102, and is said to have got %+v", p.bytes, st)
	}
}

// TestOffloadPanic has a port that panics when it is given the second lot of
// pieces, as if the sender's memory had gone: the next batch begins clean.
func TestOffloadPanic(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	bad := &panicsAt{Recorder: porttest.NewRecorder(256), call: 2}
	m, err := s.Join("bad", bad, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := packet{dst: broadcast, payload: 65000}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not reach the sender")
			}
		}()
		a.Forward([]vswitch.Frame{lent(p.bytes(), p.gso(650))})
	}()
	if st := m.Stats(); st.GSOSegmented != 1 || st.TxFrames != uint64(len(bad.Take())) {
		t.Errorf("after the panic: %+v", st)
	}
	a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 1), lent(p.bytes(), p.gso(32500))})
	got := bad.Take()
	if len(got) != 3 || number(got[0]) != 1 {
		t.Fatalf("%d frames arrived, want 3", len(got))
	}
	if err := checkPieces(got[1:], p.bytes(), 32500); err != nil {
		t.Error(err)
	}
}

// panicsAt is a port that panics at one of its calls.
type panicsAt struct {
	*porttest.Recorder
	call int
}

func (p *panicsAt) Deliver(frames []*vswitch.Frame) int {
	if p.call--; p.call == 0 {
		panic("unexpected fault address")
	}
	return p.Recorder.Deliver(frames)
}

// offloads are what a sender of unfinished frames may find, as loads are.
var offloads = []struct {
	name    string
	accepts vswitch.OffloadSet
	packet
	size int
}{
	{"tso-cut", 0, packet{payload: 65160, options: timestamps}, 1448},
	{"tso-pass", 0xff, packet{payload: 65160, options: timestamps}, 1448},
	{"uso-cut", 0, packet{payload: 65160, udp: true, v6: true}, 1448},
	{"checksum", 0, packet{payload: 1448}, 0},
}

// takesAll is a bin that accepts frames with an Offload.
type takesAll struct{ memory [70000]byte }

func (b *takesAll) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		f.AppendTo(b.memory[:0])
	}
	return len(frames)
}

func (*takesAll) Accepts() vswitch.OffloadSet { return 0xff }

// sendOffload returns a function that forwards a batch of 32 equal frames.
func sendOffload(tb testing.TB, accepts vswitch.OffloadSet, p packet, size int) func() {
	s := newSwitch(tb, vswitch.Config{})
	a := attach(tb, s, "a")
	if accepts == 0 {
		attach(tb, s, "b")
	} else if _, err := s.Join("b", new(takesAll), vswitch.PortOptions{}); err != nil {
		tb.Fatal(err)
	}
	p.dst = broadcast
	o := p.checksum()
	if size != 0 {
		o = p.gso(size)
	}
	f := lent(p.bytes(), o)
	return sender(a, 1, func(int) vswitch.Frame { return f })
}

func TestOffloadDoesNotAllocate(t *testing.T) {
	for _, load := range offloads {
		t.Run(load.name, func(t *testing.T) {
			forward := sendOffload(t, load.accepts, load.packet, load.size)
			if n := testing.AllocsPerRun(5, forward); n != 0 {
				t.Errorf("a batch allocates %v times", n)
			}
		})
	}
}

// BenchmarkOffload is what the switch does for ports that do not, a copy
// included.
func BenchmarkOffload(b *testing.B) {
	for _, load := range offloads {
		b.Run(load.name, func(b *testing.B) {
			forward := sendOffload(b, load.accepts, load.packet, load.size)
			forward() // the lists grow
			b.SetBytes(int64(batchLen * load.payload))
			b.ReportAllocs()
			for b.Loop() {
				forward()
			}
		})
	}
}

// keeper is a taker without a limit, quicker to make.
type keeper struct {
	accepts vswitch.OffloadSet
	frames  [][]byte
	got     []vswitch.Offload
}

func (k *keeper) Accepts() vswitch.OffloadSet { return k.accepts }

func (k *keeper) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		k.frames = append(k.frames, f.AppendTo(nil))
		k.got = append(k.got, f.Offload)
	}
	return len(frames)
}

// FuzzOffload sends a frame of arbitrary bytes and Offload to a port that accepts
// some. Whatever comes of it, the frame is dropped at the sender or arrives;
// pieces are few, have right checksums, and their payload is that of the whole.
func FuzzOffload(f *testing.F) {
	random := rand.New(rand.NewPCG(4, 4))
	for i, test := range packets {
		p := test.packet
		p.payload = 1 + random.IntN(600)
		p.padding = i % 3
		b := p.bytes()
		for _, o := range []vswitch.Offload{p.checksum(), p.gso(64), p.gso(3)} {
			f.Add(b, uint16(128), o.NeedsChecksum, o.ChecksumStart, o.ChecksumOffset, uint8(o.GSO), o.GSOSize, uint8(0))
			f.Add(b, uint16(14+random.IntN(100)), o.NeedsChecksum, o.ChecksumStart, o.ChecksumOffset, uint8(o.GSO), o.GSOSize, uint8(7))
		}
	}
	short := packet{udp: true, payload: 9}
	b := short.bytes()
	b[14+20+5] -= 4
	o := short.checksum()
	f.Add(b, uint16(128), true, o.ChecksumStart, o.ChecksumOffset, uint8(0), uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, head uint16, needs bool, start, offset uint16, gso uint8, size uint16, accepts uint8) {
		if len(b) < 14 {
			return // FuzzFrame has those
		}
		whole := slices.Clone(b)
		copy(whole, broadcast[:])
		src := mac(1)
		copy(whole[6:], src[:])
		n := min(max(int(head), 14), len(whole))
		rest := whole[n:]
		fr := vswitch.Frame{
			Head: whole[:n],
			Body: [][]byte{rest[:len(rest)/3], nil, rest[len(rest)/3:]},
			Len:  len(whole),
			Offload: vswitch.Offload{
				NeedsChecksum: needs, ChecksumStart: start, ChecksumOffset: offset,
				GSO: vswitch.GSOKind(gso), GSOSize: size, ECN: accepts&1 != 0, HeadersLen: start,
			},
		}
		original := slices.Clone(whole)
		s := vswitch.New(vswitch.Config{MaxMACs: 16})
		defer s.Close()
		from, err := s.Join("a", porttest.NewRecorder(0), vswitch.PortOptions{})
		if err != nil {
			t.Fatal(err)
		}
		to := &keeper{accepts: vswitch.OffloadSet(accepts)}
		if _, err := s.Join("b", to, vswitch.PortOptions{}); err != nil {
			t.Fatal(err)
		}
		from.NewIngress().Forward([]vswitch.Frame{fr})
		if !bytes.Equal(whole, original) {
			t.Fatal("the sender's bytes have changed")
		}
		got := to.frames
		drops := from.Stats().Drops
		if (drops.Total() == 0) != (len(got) > 0) {
			t.Fatalf("%d frames arrived; dropped: %v", len(got), drops)
		}
		if len(got) == 0 {
			return
		}
		if !needs {
			if len(got) != 1 || !bytes.Equal(got[0], whole) {
				t.Fatal("an ordinary frame has changed")
			}
			return
		}
		if o := to.got[0]; o != (vswitch.Offload{}) {
			if len(got) != 1 || !bytes.Equal(got[0], whole) {
				t.Fatal("a frame that was accepted has changed")
			}
			if int(o.ChecksumStart)+int(o.ChecksumOffset)+2 > len(whole) || int(o.HeadersLen) > len(whole) || o.GSO != 0 && o.GSOSize == 0 {
				t.Fatalf("Offload %+v of %d bytes", o, len(whole))
			}
			return
		}
		if want, _ := parse(whole); gso == 0 || want.tcp && len(want.payload) <= int(size) {
			// Only the checksums may have changed, and those of TCP and UDP are right.
			q, err := parse(got[0])
			if len(got) != 1 || !bytes.Equal(q.payload, want.payload) || !bytes.Equal(q.padding, want.padding) ||
				!bytes.Equal(q.headers, want.headers) || q.flags != want.flags || q.seq != want.seq {
				t.Fatalf("the frame became\n%x", got)
			}
			if err != nil && err != errUDPLength && !strings.HasPrefix(err.Error(), "IPv4") {
				t.Fatal(err)
			}
			return
		}
		if limit := max(128, len(whole)/64); len(got) > limit {
			t.Fatalf("%d bytes became %d frames", len(whole), len(got))
		}
		if err := checkPieces(got, whole, int(size)); err != nil {
			t.Fatal(err)
		}
	})
}
