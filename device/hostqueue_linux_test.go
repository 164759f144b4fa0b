package device_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"polder/device"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

// hostPort is what a TAP device and a packet socket have in common.
type hostPort interface {
	vswitch.OffloadPort
	Run(context.Context, *vswitch.Member) error
	Stats() device.HostStats
	Close() error
}

// hostKind is a kind of port that leads to the host.
type hostKind struct {
	name string
	here string // the port's device
	wire string // the interface at which the host sends to the port, and receives from it
	gone string // what Run says when the device is deleted

	// open makes the port and its device in the namespace that the goroutine is in.
	open func(n *network, queues int, noOffload bool) hostPort
}

var hostKinds = []hostKind{
	{"tap", "tap0", "tap0", "somebody has deleted it", func(n *network, queues int, noOffload bool) hostPort {
		p, err := device.OpenTap(device.TapConfig{Name: "tap0", Queues: queues, NoOffload: noOffload, Log: discard})
		check(n.tb, err)
		n.up("tap0")
		return p
	}},
	{"packet", "nic0", "far0", "it was removed", func(n *network, queues int, noOffload bool) hostPort {
		n.veth("nic0", "far0")
		p, err := device.OpenPacket(device.PacketConfig{Interface: "nic0", Queues: queues, NoOffload: noOffload, Log: discard})
		check(n.tb, err)
		return p
	}},
}

// eachHostKind runs a test for each kind of port.
func eachHostKind(t *testing.T, test func(t *testing.T, k hostKind)) {
	if !asRoot(t) {
		return
	}
	for _, k := range hostKinds {
		t.Run(k.name, func(t *testing.T) { test(t, k) })
	}
}

// opened is a port of a kind in a namespace of its own, not on a switch.
func (k hostKind) opened(tb testing.TB, queues int, noOffload bool) (*network, hostPort) {
	n := newNetwork(tb)
	p := k.open(n, queues, noOffload)
	tb.Cleanup(func() { check(tb, p.Close()) })
	return n, p
}

// run puts a port on a switch until the test ends. leave makes it leave before, and returns Run's error.
func run(tb testing.TB, sw *vswitch.Switch, name string, p hostPort) (m *vswitch.Member, leave func() error) {
	m, err := sw.Join(name, p, vswitch.PortOptions{})
	check(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx, m) }()
	leave = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		check(tb, m.Leave())
		return err
	})
	tb.Cleanup(func() { leave() })
	return m, leave
}

// sluggish is a port whose device goes down after so many frames, once it was told to, so that it has no more room.
type sluggish struct {
	hostPort
	n    *network
	name string

	mu   sync.Mutex
	room int // -1: without end
}

func (s *sluggish) Deliver(frames []*vswitch.Frame) (n int) {
	s.mu.Lock()
	if s.room < 0 {
		s.mu.Unlock() // senders go on side by side
		return s.hostPort.Deliver(frames)
	}
	defer s.mu.Unlock()
	if s.room > 0 {
		k := min(s.room, len(frames))
		n = s.hostPort.Deliver(frames[:k])
		if s.room -= k; s.room == 0 {
			s.n.down(s.name)
		}
		frames = frames[k:]
	}
	if s.room == 0 {
		n += s.hostPort.Deliver(frames)
	}
	return n
}

func TestHostPorts(t *testing.T) {
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			eachHostKind(t, func(t *testing.T, k hostKind) {
				porttest.TestPort(t, func(t *testing.T) porttest.Harness {
					n, p := k.opened(t, queues, false)
					w := newWire(t, k.wire, false)
					s := &sluggish{hostPort: p, n: n, name: k.here, room: -1}
					return porttest.Harness{
						Port: s,
						Take: func() [][]byte {
							s.mu.Lock()
							defer s.mu.Unlock()
							if s.room >= 0 {
								n.up(k.here)
								s.room = -1
							}
							return w.take()
						},
						Close: func() { p.Close() },
						Stall: func() { s.room = 100 },
					}
				})
			})
		})
	}
}

// hostPacket is a TCP or UDP packet in a frame from 02:00:00:00:00:01 to everybody.
type hostPacket struct {
	tags    int // VLAN tags
	v6, udp bool
	payload int
	size    int // of the pieces that it is to be cut to; 0: not at all
}

// frame returns the packet without its checksum, and what is to be done to it.
func (p hostPacket) frame() ([]byte, vswitch.Offload) {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1}
	for i := range p.tags {
		b = append(b, 0x81, 0x00, 0x20, byte(7+i))
	}
	l4, proto, at := 20, byte(6), uint16(16)
	if p.udp {
		l4, proto, at = 8, 17, 6
	}
	if p.v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(l4+p.payload))
		b = append(b, proto, 64)
		b = append(b, "\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"...)
	} else {
		b = append(b, 0x08, 0x00, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+l4+p.payload))
		b = append(b, 0, 1, 0x40, 0, 64, proto, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2)
		var sum uint32
		for i := len(b) - 20; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(b[len(b)-10:], ^uint16(sum>>16+sum))
	}
	o := vswitch.Offload{NeedsChecksum: true, ChecksumStart: uint16(len(b)), ChecksumOffset: at}
	b = append(b, 0x30, 0x39, 0x00, 0x50)
	if p.udp {
		b = binary.BigEndian.AppendUint16(b, uint16(8+p.payload))
		b = append(b, 0xab, 0xcd)
	} else {
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0xab, 0xcd, 0, 0)
	}
	if p.size != 0 {
		o.GSOSize, o.HeadersLen = uint16(p.size), uint16(len(b))
		switch {
		case p.udp:
			o.GSO = vswitch.GSOUDP
		case p.v6:
			o.GSO = vswitch.GSOTCPv6
		default:
			o.GSO = vswitch.GSOTCPv4
		}
	}
	for i := range p.payload {
		b = append(b, byte(i*i>>3))
	}
	return b, o
}

// header returns o as a struct virtio_net_hdr, as the kernel writes it.
func header(o vswitch.Offload) []byte {
	h := []byte{0, byte(o.GSO)}
	if o.NeedsChecksum {
		h[0] = 1
	}
	for _, v := range []uint16{o.HeadersLen, o.GSOSize, o.ChecksumStart, o.ChecksumOffset} {
		h = binary.NativeEndian.AppendUint16(h, v)
	}
	return h
}

// lend returns b as a sender hands it to the switch, in a few pieces.
func lend(b []byte, o vswitch.Offload) *vswitch.Frame {
	n := min(len(b), vswitch.HeadLen)
	f := &vswitch.Frame{Head: b[:n], Len: len(b), Offload: o}
	rest := b[n:]
	for _, k := range []int{0, 1, 700, 3, 1501} {
		k = min(k, len(rest))
		f.Body = append(f.Body, rest[:k])
		rest = rest[k:]
	}
	f.Body = append(f.Body, rest)
	return f
}

var packets = []hostPacket{
	{payload: 100},
	{payload: 1000, v6: true, tags: 1},
	{payload: 33, udp: true, tags: 2},
	{payload: 0, udp: true, v6: true},
	{payload: 60000, size: 1448},
	{payload: 60000, size: 1428, v6: true},
	{payload: 60000, size: 1440, tags: 1},
	{payload: 1400, size: 500, v6: true, tags: 2},
	{payload: 20000, size: 1400, udp: true},
	{payload: 20000, size: 1400, udp: true, v6: true, tags: 1},
}

// TestHostOffloadsOut has the host receive what the switch delivers with work left undone, as it is.
func TestHostOffloadsOut(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		_, p := k.opened(t, 1, false)
		w := newWire(t, k.wire, true)
		for _, packet := range packets {
			b, o := packet.frame()
			if o.GSO == vswitch.GSOUDP && p.Accepts()&vswitch.OffloadUSO == 0 {
				continue // the switch does not deliver it so
			}
			if n := p.Deliver([]*vswitch.Frame{lend(b, o)}); n != 1 {
				t.Fatalf("%+v: delivered %d of 1: %+v", packet, n, p.Stats())
			}
			got, frame := w.receive()
			if packet.tags > 0 { // the first is handed over apart from the frame
				b = slices.Concat(b[:12], b[16:])
				o.ChecksumStart -= 4
			}
			o.HeadersLen = binary.NativeEndian.Uint16(got[2:]) // a hint
			if want := header(o); !bytes.Equal(got, want) {
				t.Errorf("%+v: header %x, want %x", packet, got, want)
			}
			if !bytes.Equal(frame, b) {
				t.Errorf("%+v: %d bytes arrived, not the %d sent\n%.80x\n%.80x", packet, len(frame), len(b), frame, b)
			}
		}
		if s := p.Stats(); s != (device.HostStats{}) {
			t.Errorf("stats: %+v", s)
		}
	})
}

// sink is a port that hands on what it is given, whole.
type sink struct{ frames chan vswitch.Frame }

func (s sink) Accepts() vswitch.OffloadSet { return ^vswitch.OffloadSet(0) }

func (s sink) Deliver(frames []*vswitch.Frame) int {
	for i, f := range frames {
		select {
		case s.frames <- vswitch.Frame{Head: f.AppendTo(nil), Len: f.Len, Offload: f.Offload}:
		default:
			return i
		}
	}
	return len(frames)
}

// next waits for the next frame from the test's senders.
func (s sink) next(tb testing.TB) vswitch.Frame {
	tb.Helper()
	limit := time.After(patience)
	for {
		select {
		case f := <-s.frames:
			if f.Head[6] == 2 && f.Head[7] == 0 && f.Head[8] == 0 {
				return f
			}
		case <-limit:
			tb.Fatal("no frame came")
		}
	}
}

// TestHostOffloadsIn has the switch get what the host sends with work left undone, as it is.
func TestHostOffloadsIn(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		_, p := k.opened(t, 1, false)
		w := newWire(t, k.wire, true)
		sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 100)}
		_, err := sw.Join("sink", s, vswitch.PortOptions{})
		check(t, err)
		run(t, sw, "host", p)
		for _, packet := range packets {
			b, o := packet.frame()
			w.send(header(o), b)
			f := s.next(t)
			if f.Offload != o {
				t.Errorf("%+v: %+v, want %+v", packet, f.Offload, o)
			}
			if !bytes.Equal(f.Head, b) {
				t.Errorf("%+v: %d bytes arrived, not the %d sent\n%.80x\n%.80x", packet, len(f.Head), len(b), f.Head, b)
			}
		}
	})
}

// TestHostLengths has frames of all lengths come in, in order, with and without a VLAN tag.
func TestHostLengths(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		n, p := k.opened(t, 1, false)
		w := newWire(t, k.wire, false)
		sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 1000)}
		_, err := sw.Join("sink", s, vswitch.PortOptions{})
		check(t, err)
		run(t, sw, "host", p)
		n.mtu(k.here, 2000) // for the tags
		n.mtu(k.wire, 2000)
		lengths := []int{14, 15, 17, 59, 60, 61, 63, 64, 65, 127, 128, 129, 1000, 1513, 1514}
		var sent [][]byte
		for _, tag := range []string{"", "\x81\x00\xe0\x05", "\x81\x00\x00\x00", "\x88\xa8\x20\x07\x81\x00\x00\x09"} {
			for i, length := range lengths {
				if tag != "" && length < 16 {
					continue // the kernel wants two bytes behind a tag and what comes after it
				}
				b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, byte(i)}
				b = append(append(b, tag...), 0x88, 0xb5)
				for len(b) < length+len(tag) {
					b = append(b, byte(len(b)*7+i))
				}
				w.send(b)
				sent = append(sent, b)
			}
		}
		for i, b := range sent {
			if f := s.next(t); !bytes.Equal(f.Head, b) || f.Offload != (vswitch.Offload{}) {
				t.Fatalf("frame %d: %+v\n%.80x\nwant %d bytes\n%.80x", i, f.Offload, f.Head, len(b), b)
			}
		}
	})
}

// TestHostTCP has TCP between two namespaces through the switch, over both kinds of port, in frames longer than any wire
// takes, or not.
func TestHostTCP(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		for _, noOffload := range []bool{false, true} {
			t.Run(fmt.Sprintf("noOffload=%v", noOffload), func(t *testing.T) {
				sw := newSwitch(t)
				near, a := k.opened(t, 1, noOffload)
				near.address(k.wire, "10.9.0.1/24")
				near.address(k.wire, "fd00::1/64")
				run(t, sw, "near", a)
				far, b := hostKinds[0].opened(t, 1, noOffload)
				far.address("tap0", "10.9.0.2/24")
				far.address("tap0", "fd00::2/64")
				m, _ := run(t, sw, "far", b)
				for _, address := range []string{"10.9.0.1", "fd00::1"} {
					near.enter()
					l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(address)})
					check(t, err)
					defer l.Close()
					far.enter()
					c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
					check(t, err)
					defer c.Close()
					d, err := l.AcceptTCP()
					check(t, err)
					defer d.Close()
					for _, ends := range [][2]*net.TCPConn{{c, d}, {d, c}} {
						check(t, transfer(ends[0], ends[1], 4<<20))
					}
				}
				s := m.Stats()
				if whole := s.TxBytes/s.TxFrames > 1514; whole == noOffload {
					t.Errorf("%d frames of %d bytes went out", s.TxFrames, s.TxBytes)
				}
			})
		}
	})
}

// transfer sends random bytes from one end to the other.
func transfer(from, to *net.TCPConn, n int64) error {
	sent := make(chan error, 1)
	var sums [2][]byte
	go func() {
		h := sha256.New()
		_, err := io.Copy(io.MultiWriter(h, from), io.LimitReader(rand.NewChaCha8([32]byte{}), n))
		sums[0] = h.Sum(nil)
		sent <- err
	}()
	h := sha256.New()
	if _, err := io.CopyN(h, to, n); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	if sums[1] = h.Sum(nil); !bytes.Equal(sums[0], sums[1]) {
		return fmt.Errorf("%d bytes arrived, but not those that were sent", n)
	}
	return nil
}

// TestHostQueues has many flows in both directions over several queues, each in order.
func TestHostQueues(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		const flows, each = 64, 20
		_, p := k.opened(t, 4, false)
		w := newWire(t, k.wire, true)
		sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 2*flows*each)}
		_, err := sw.Join("sink", s, vswitch.PortOptions{})
		check(t, err)
		run(t, sw, "host", p)
		var frames [flows][each][]byte
		flow := func(b []byte) (flow, number int) { return int(b[35]), int(b[42]) }
		for i := range each {
			for j := range flows {
				b, _ := hostPacket{payload: 18, udp: true}.frame()
				b[35], b[42] = byte(j), byte(i)
				b[40], b[41] = 0, 0 // no checksum
				frames[j][i] = b
				w.send(header(vswitch.Offload{}), b)
			}
		}
		var next [flows]int
		for range flows * each {
			f := s.next(t)
			j, i := flow(f.Head)
			if i != next[j] || !bytes.Equal(f.Head, frames[j][i]) {
				t.Fatalf("flow %d: number %d came, want %d", j, i, next[j])
			}
			next[j]++
		}
		next = [flows]int{}
		for i := range each {
			list := make([]*vswitch.Frame, flows)
			for j := range list {
				list[j] = lend(frames[j][i], vswitch.Offload{})
			}
			if n := p.Deliver(list); n != flows {
				t.Fatalf("%d of %d fitted: %+v", n, flows, p.Stats())
			}
			for range list {
				_, frame := w.receive()
				j, got := flow(frame)
				if got != next[j] {
					t.Fatalf("flow %d: number %d came, want %d", j, got, next[j])
				}
				next[j]++
			}
		}
	})
}

// TestHostDown has the device go down and come up again.
func TestHostDown(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		n, p := k.opened(t, 2, false)
		sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 100)}
		_, err := sw.Join("sink", s, vswitch.PortOptions{})
		check(t, err)
		_, leave := run(t, sw, "host", p)
		b, _ := hostPacket{payload: 100}.frame()
		list := []*vswitch.Frame{lend(b, vswitch.Offload{}), lend(b, vswitch.Offload{})}
		for round := range uint64(3) {
			if n := p.Deliver(list); n != 2 {
				t.Fatalf("delivered %d frames of 2: %+v", n, p.Stats())
			}
			newWire(t, k.wire, false).send(b)
			if f := s.next(t); !bytes.Equal(f.Head, b) {
				t.Fatalf("another frame arrived: %x", f.Head)
			}
			n.down(k.here)
			if n := p.Deliver(list); n != 0 {
				t.Fatalf("delivered %d frames of 2 to a device that is down", n)
			}
			if got := p.Stats(); got != (device.HostStats{Down: 2 * (round + 1)}) {
				t.Errorf("stats: %+v", got)
			}
			n.up(k.here, k.wire)
		}
		if err := leave(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestHostGone deletes the device under the port, which reports it and takes no more.
func TestHostGone(t *testing.T) {
	for _, first := range []string{"delete", "down", "down and deliver"} {
		t.Run(first, func(t *testing.T) {
			eachHostKind(t, func(t *testing.T, k hostKind) {
				n, p := k.opened(t, 2, false)
				sw := newSwitch(t)
				m, err := sw.Join("host", p, vswitch.PortOptions{})
				check(t, err)
				ended := make(chan error, 1)
				go func() { ended <- p.Run(context.Background(), m) }()
				b, _ := hostPacket{payload: 100}.frame()
				list := []*vswitch.Frame{lend(b, vswitch.Offload{})}
				if first != "delete" {
					n.down(k.here)
				}
				if first == "down and deliver" {
					p.Deliver(list)
				}
				n.delete(k.here)
				err = <-ended
				if err == nil || !strings.Contains(err.Error(), k.here) || !strings.Contains(err.Error(), k.gone) {
					t.Errorf("Run: %v, want %q", err, k.gone)
				}
				if n := p.Deliver(list); n != 0 {
					t.Errorf("delivered to a device that is gone")
				}
				check(t, m.Leave())
			})
		})
	}
}

// TestHostClose closes a port while frames go both ways.
func TestHostClose(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		for range 5 {
			_, p := k.opened(t, 2, false)
			w := newWire(t, k.wire, false)
			sw := newSwitch(t)
			m, err := sw.Join("host", p, vswitch.PortOptions{})
			check(t, err)
			b, _ := hostPacket{payload: 100}.frame()
			var (
				senders sync.WaitGroup
				closed  atomic.Bool
				began   = make(chan struct{}, 2)
			)
			for range 2 {
				senders.Go(func() {
					list := []*vswitch.Frame{lend(b, vswitch.Offload{})}
					for first := true; !closed.Load(); first = false {
						p.Deliver(list)
						if first {
							began <- struct{}{}
						}
					}
				})
			}
			ended := make(chan error, 1)
			go func() { ended <- p.Run(context.Background(), m) }()
			<-began
			<-began
			w.send(b)
			p.Stats()
			check(t, p.Close())
			check(t, <-ended)
			closed.Store(true)
			senders.Wait()
			check(t, m.Leave())
			check(t, p.Close())
			p.Stats()
		}
	})
}

// TestHostHostile delivers what a guest may bring about that is no ordinary frame. What follows it is not harmed.
func TestHostHostile(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		_, p := k.opened(t, 1, false)
		w := newWire(t, k.wire, true)
		whole, o := hostPacket{payload: 60000, size: 1448}.frame()

		pieces := &vswitch.Frame{Head: whole[:128], Len: len(whole), Offload: o}
		for rest := whole[128:]; len(rest) > 0; {
			n := min(200, len(rest))
			pieces.Body = append(pieces.Body, nil, rest[:n])
			rest = rest[n:]
		}
		if n := p.Deliver([]*vswitch.Frame{pieces}); n != 1 {
			t.Errorf("a frame of %d pieces was not delivered: %+v", len(pieces.Body), p.Stats())
		} else if _, got := w.receive(); !bytes.Equal(got, whole) {
			t.Errorf("a frame of %d pieces arrived as another", len(pieces.Body))
		}

		page := syscall.Getpagesize()
		memory, err := syscall.Mmap(-1, 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		check(t, err)
		defer syscall.Munmap(memory)
		check(t, syscall.Mprotect(memory[page:], syscall.PROT_NONE))
		func() {
			defer func() {
				if recover() == nil {
					t.Error("memory that went away: its owner does not learn of it")
				}
			}()
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			p.Deliver([]*vswitch.Frame{{Head: whole[:128], Body: [][]byte{memory[page-500 : page+500]}, Len: 1128}})
		}()

		long := &vswitch.Frame{Head: whole[:128], Body: [][]byte{whole[128:9000]}, Len: 9000}
		small, so := hostPacket{payload: 40}.frame()
		uso := hostPacket{payload: 64 * 400, size: 64, udp: true}
		many, mo := uso.frame()
		refused := uint64(0)
		for _, f := range []*vswitch.Frame{long, lend(many, mo)} {
			before := p.Stats()
			last := lend(small, so)
			n := p.Deliver([]*vswitch.Frame{f, last})
			after := p.Stats()
			if refused += after.Refused - before.Refused; n+int(after.Refused-before.Refused) != 2 {
				t.Errorf("%d of 2 delivered, then %+v", n, after)
			}
			if f.Lost != (n == 1) || last.Lost {
				t.Errorf("%d of 2 delivered, and the first is said to be lost: %t, the last: %t", n, f.Lost, last.Lost)
			}
			for got := []byte(nil); !bytes.Equal(got, small); {
				_, got = w.receive()
			}
		}
		if refused == 0 {
			t.Error("the kernel took what it cannot cut")
		}
	})
}

// TestHostAllocations has nothing allocated for frames that come in.
func TestHostAllocations(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		_, p := k.opened(t, 1, false)
		w := newWire(t, k.wire, false)
		sw := newSwitch(t)
		m, err := sw.Join("host", p, vswitch.PortOptions{})
		check(t, err)
		_, err = sw.Join("bin", bin{}, vswitch.PortOptions{})
		check(t, err)
		pull := p.(interface {
			Puller(*vswitch.Member) func() int
		}).Puller(m)
		b, _ := hostPacket{payload: 1000, tags: 1}.frame()
		if n := testing.AllocsPerRun(100, func() {
			for range 8 {
				if _, err := syscall.Write(w.fd, b); err != nil {
					t.Fatal(err)
				}
			}
			for n := 0; n < 8; {
				n += pull()
			}
		}); n != 0 {
			t.Errorf("%v allocations for 8 frames", n)
		}
	})
}

// BenchmarkHostDeliver gives frames to the host, which takes them as far as its stack. An operation is one frame.
func BenchmarkHostDeliver(b *testing.B) {
	for _, k := range hostKinds {
		for _, load := range hostLoads {
			b.Run(k.name+"/"+load.name, func(b *testing.B) {
				_, p := k.opened(b, 1, false)
				frame, o := load.packet.frame()
				list := make([]*vswitch.Frame, 32)
				for i := range list {
					list[i] = lend(frame, o)
				}
				b.SetBytes(int64(len(frame)))
				b.ReportAllocs()
				for sent := 0; sent < b.N; sent += len(list) {
					if n := p.Deliver(list); n != len(list) {
						b.Fatalf("%d of %d fitted: %+v", n, len(list), p.Stats())
					}
				}
			})
		}
	}
}

// BenchmarkHostPull takes frames from the host; that it sends them is not measured. An operation is one frame.
func BenchmarkHostPull(b *testing.B) {
	for _, k := range hostKinds {
		for _, load := range hostLoads {
			b.Run(k.name+"/"+load.name, func(b *testing.B) {
				_, p := k.opened(b, 1, false)
				w := newWire(b, k.wire, true)
				sw := newSwitch(b)
				m, err := sw.Join("host", p, vswitch.PortOptions{})
				check(b, err)
				_, err = sw.Join("sink", offloadBin{}, vswitch.PortOptions{})
				check(b, err)
				pull := p.(interface {
					Puller(*vswitch.Member) func() int
				}).Puller(m)
				frame, o := load.packet.frame()
				frame = slices.Concat(header(o), frame)
				b.SetBytes(int64(len(frame)))
				b.ReportAllocs()
				var took time.Duration
				for sent := 0; sent < b.N; sent += 32 {
					for range 32 {
						if _, err := syscall.Write(w.fd, frame); err != nil {
							b.Fatal(err)
						}
					}
					begin := time.Now()
					for n := 0; n < 32; {
						n += pull()
					}
					took += time.Since(begin)
				}
				b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "pull-ns/op")
			})
		}
	}
}

// offloadBin is a bin that takes frames with work left undone.
type offloadBin struct{ bin }

func (offloadBin) Accepts() vswitch.OffloadSet { return ^vswitch.OffloadSet(0) }

var hostLoads = []struct {
	name   string
	packet hostPacket
}{
	{"60B", hostPacket{payload: 18, udp: true}},
	{"1514B", hostPacket{payload: 1472, udp: true}},
	{"64KB", hostPacket{payload: 65000, size: 1448}},
}
