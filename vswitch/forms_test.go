package vswitch_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

// TestTagging has frames of all lengths, in all divisions, with and without work
// left undone, go from ports without tag to trunks and back.
func TestTagging(t *testing.T) {
	for _, test := range packets {
		if test.tags > 0 {
			continue // an access port may not send them
		}
		for _, n := range []int{0, 40, 120, 1400, 9000} {
			for _, kind := range []string{"plain", "checksum", "gso"} {
				for _, accepts := range []vswitch.OffloadSet{0, 0xff} {
					t.Run(fmt.Sprintf("%s/%d/%s/%#x", test.name, n, kind, accepts), func(t *testing.T) {
						p := test.packet
						p.dst, p.payload = broadcast, n
						checkTagging(t, p, kind, accepts)
					})
				}
			}
		}
	}
}

func checkTagging(t *testing.T, p packet, kind string, accepts vswitch.OffloadSet) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 16})
	access := joinSmall(t, s, "access", inVLAN(t, "access 99"))
	trunk := joinSmall(t, s, "trunk", inVLAN(t, "trunk 99"))
	see := &taker{Recorder: porttest.NewRecorder(30)}
	blind := &taker{Recorder: porttest.NewRecorder(30)}
	see.accepts.Store(uint32(accepts))
	blind.accepts.Store(uint32(accepts))
	if _, err := s.Join("see", see, inVLAN(t, "trunk 99")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join("blind", blind, inVLAN(t, "access 99")); err != nil {
		t.Fatal(err)
	}
	for _, from := range []*station{access, trunk} {
		q := p
		whole := q.bytes() // without tag
		const wantTag = "99"
		var o vswitch.Offload
		shift := uint16(0)
		sent := whole
		if from == trunk {
			f := tagged(vswitch.Frame{Head: whole, Len: len(whole)}, wantTag)
			sent, shift = f.Head, 4
		}
		switch kind {
		case "checksum":
			o = q.checksum()
		case "gso":
			o = q.gso(1000)
		}
		if o.NeedsChecksum {
			o.ChecksumStart += shift
		}
		f := lent(sent, o)
		from.Forward([]vswitch.Frame{f})
		for _, to := range []*taker{see, blind} {
			frames := to.Take()
			want := whole
			tags := "-"
			if to == see {
				want, tags = tagged(vswitch.Frame{Head: whole, Len: len(whole)}, wantTag).Head, wantTag
			}
			for i, b := range frames {
				if got := tagsOf(b); got != tags {
					t.Errorf("from %s: piece %d has tags %s, want %s", from.Member.Name(), i, got, tags)
				}
			}
			cut := kind == "gso" && (accepts == 0 && p.payload > 1000)
			switch {
			case kind == "plain":
				if len(frames) != 1 || !bytes.Equal(frames[0], want) {
					t.Errorf("from %s: got %x\nwant %x", from.Member.Name(), frames, want)
				}
			case accepts == 0:
				size := p.payload + 1
				if cut {
					size = 1000
				}
				if err := checkPieces(frames, want, size); err != nil {
					t.Errorf("from %s: %v", from.Member.Name(), err)
				}
			default:
				if len(frames) != 1 || !bytes.Equal(frames[0], want) {
					t.Fatalf("from %s: %d frames, which are not the one that was sent", from.Member.Name(), len(frames))
				}
				got := to.got[len(to.got)-1]
				at := q.checksum().ChecksumStart
				if to == see {
					at += 4
				}
				if !got.NeedsChecksum || got.ChecksumStart != at {
					t.Errorf("from %s: Offload %+v, want the checksum from %d on", from.Member.Name(), got, at)
				}
				if got.GSO != vswitch.GSONone && int(got.HeadersLen) != len(want)-p.payload-p.padding {
					t.Errorf("from %s: headers of %d bytes, want %d", from.Member.Name(), got.HeadersLen, len(want)-p.payload-p.padding)
				}
			}
		}
		access.Take()
		trunk.Take()
	}
}

// TestNoRoomForTag has frames that get too long, or headers that get out of
// Head, with a tag.
func TestNoRoomForTag(t *testing.T) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 16})
	a := joinSmall(t, s, "a", inVLAN(t, "access 5"))
	trunk := joinSmall(t, s, "trunk", inVLAN(t, "trunk 5"))
	b := joinSmall(t, s, "b", inVLAN(t, "access 5"))
	long := frame(broadcast, mac(1), 1)
	long.Body = [][]byte{make([]byte, vswitch.MaxFrameLen-60-3)}
	long.Len = vswitch.MaxFrameLen - 3
	deep := packet{dst: broadcast, v6: true, next: 60, between: slices.Concat([]byte{6, 4}, make([]byte, 38)), options: make([]byte, 12), flags: ack, payload: 10}
	f := lent(deep.bytes(), deep.checksum())
	if n := f.Len - deep.payload; n <= 124 || n > vswitch.HeadLen {
		t.Fatalf("headers of %d bytes are not what the test is about", n)
	}
	a.Forward([]vswitch.Frame{long, f})
	if got := droppedAs(trunk); got != "mtu mtu" {
		t.Errorf("dropped at the trunk as %q", got)
	}
	if n, m := len(trunk.Take()), len(b.Take()); n != 0 || m != 2 {
		t.Errorf("%d frames to the trunk and %d to b, want 0 and 2", n, m)
	}
}

// TestMTU has ports with different limits for frames, tags and segments.
func TestMTU(t *testing.T) {
	p := packet{dst: broadcast, flags: ack, payload: 4000}
	for _, test := range []struct {
		name string
		mtu  int
		vlan string
		f    vswitch.Frame
		want int
	}{
		{"fits", 1500, "access 5", frameOf(1514), 1},
		{"one too long", 1500, "access 5", frameOf(1515), 0},
		{"a tag does not count", 1500, "trunk 5", frameOf(1514), 1},
		{"one too long with a tag", 1500, "trunk 5", frameOf(1515), 0},
		{"segments that fit", 1500, "access 5", lent(p.bytes(), p.gso(1460)), 3},
		{"segments that do not", 1500, "access 5", lent(p.bytes(), p.gso(1461)), 0},
		{"segments that fit with a tag", 1500, "trunk 5", lent(p.bytes(), p.gso(1460)), 3},
		{"segments that do not with a tag", 1500, "trunk 5", lent(p.bytes(), p.gso(1461)), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSwitch(t, vswitch.Config{MaxMACs: 16})
			a := joinSmall(t, s, "a", inVLAN(t, "access 5"))
			o := inVLAN(t, test.vlan)
			o.MTU = test.mtu
			b := joinSmall(t, s, "b", o)
			a.Forward([]vswitch.Frame{test.f})
			if n := len(b.Take()); n != test.want {
				t.Errorf("%d frames arrived, want %d", n, test.want)
			}
			if n := b.Stats().Drops[vswitch.DropMTU]; (n != 0) != (test.want == 0) {
				t.Errorf("%d frames were dropped for their length", n)
			}
		})
	}
}

// frameOf returns a broadcast of n bytes.
func frameOf(n int) vswitch.Frame {
	f := frame(broadcast, mac(1), 1)
	f.Body = [][]byte{make([]byte, n-f.Len)}
	f.Len = n
	return f
}

// blackHole is a port that takes everything and keeps nothing.
type blackHole struct{}

func (blackHole) Deliver(frames []*vswitch.Frame) int { return len(frames) }

// TestSetOptionsUnderLoad changes options, static addresses, observers and links
// while others send, with work left undone, in all VLANs.
func TestSetOptionsUnderLoad(t *testing.T) {
	const senders, rounds = 3, 60
	events := make(chan vswitch.Event, 1)
	s := newSwitch(t, vswitch.Config{MaxMACs: 64, MaxMoves: 5, Events: func(e vswitch.Event) {
		select {
		case events <- e:
		default:
		}
	}})
	places := []string{"none", "access 10", "trunk 10,20", "trunk 10,100-102 native 20", "isolated 100 101", "community 100 102", "promiscuous 100 101,102"}
	var wg sync.WaitGroup
	quit := make(chan struct{})
	var members []*vswitch.Member
	for i := range senders {
		m, err := s.Join(fmt.Sprint(i), blackHole{}, vswitch.PortOptions{})
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, m)
		p := packet{dst: broadcast, flags: ack, payload: 1500}
		var batch []vswitch.Frame
		for j := range 16 {
			f := lent(p.bytes(), p.gso(700))
			if j%2 == 0 {
				f = tagged(frame(mac(j%4), mac(i), j), []string{"-", "10", "20", "101"}[j/4])
			}
			batch = append(batch, f)
		}
		for range 2 {
			in := m.NewIngress()
			wg.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
						in.Forward(batch)
					}
				}
			})
		}
	}
	for i := range rounds {
		o := inVLAN(t, places[i%len(places)])
		o.Spoofing = i%2 == 0
		o.MACs = []vswitch.MAC{mac(i % senders)}
		o.StormLimit, o.Bandwidth = uint32(i*1000), uint64(i)*1e9
		o.DHCPGuard, o.RouterGuard, o.LinkDown = true, true, i%11 == 0
		o.Mirror = vswitch.Mirror(i % 3)
		o.ACL = []vswitch.Rule{{Action: vswitch.Meter, Protocol: uint8(i % 3 * 3)}}
		if i%10 == 9 {
			o = vswitch.PortOptions{}
		}
		m := members[i%senders]
		if err := m.SetOptions(o); err != nil && !errors.Is(err, vswitch.ErrMACTaken) {
			t.Fatal(err)
		}
		if i%20 == 0 {
			obs, err := s.Observe(vswitch.ObserverConfig{Buffer: 1 << 17, DropsOnly: i%40 == 0})
			if err != nil {
				t.Fatal(err)
			}
			if packets, err := obs.Read(t.Context()); err != nil || len(packets) == 0 {
				t.Fatalf("%d packets, %v", len(packets), err)
			}
			obs.Close()
		}
		late, err := s.Join("late", blackHole{}, inVLAN(t, "trunk 1-110"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AddStatic(late, 10, mac(2)); err != nil && !errors.Is(err, vswitch.ErrMACTaken) {
			t.Fatal(err)
		}
		m.Stats()
		m.RuleCounts()
		s.FDB()
		if err := late.Leave(); err != nil {
			t.Fatal(err)
		}
	}
	close(quit)
	wg.Wait()
	for _, m := range members {
		st := m.Stats()
		if st.RxFrames == 0 {
			t.Errorf("port %s sent nothing", m.Name())
		}
		if err := m.Leave(); err != nil {
			t.Error(err)
		}
	}
	if st := s.Stats(); st.Ports != 0 || st.MACs != 0 {
		t.Errorf("in the end %+v", st)
	}
}

// policedLoads are what a sender may find where there are policies.
func policedLoads(tb testing.TB) map[string]func() {
	guarded := vswitch.PortOptions{
		MACs: []vswitch.MAC{mac(1)}, DHCPGuard: true, RouterGuard: true, BPDU: vswitch.BPDUDrop,
		StormLimit: 1 << 30, Bandwidth: 1e12,
		ACL: []vswitch.Rule{{Action: vswitch.Meter, Protocol: 17}, {Action: vswitch.Deny, DestinationPorts: vswitch.PortRange{First: 25}}},
	}
	closed := func(n int) vswitch.PortOptions { return vswitch.PortOptions{MACs: []vswitch.MAC{mac(n)}} }
	start := func(a, b vswitch.PortOptions, f func() vswitch.Frame) func() {
		s := newSwitch(tb, vswitch.Config{MaxMoves: 10, Events: func(vswitch.Event) {}})
		m, err := s.Join("a", new(bin), a)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := s.Join("b", new(bin), b); err != nil {
			tb.Fatal(err)
		}
		return sender(m, 1, func(int) vswitch.Frame { return f() })
	}
	udpFrame := func() vswitch.Frame {
		f := wire(before(slices.Concat([]byte{0, 0x15, 0x5d, 0, 0, 2}, []byte{0, 0x15, 0x5d, 0, 0, 1})...), ip4(udpProto), udp(1000, 2000), data(18))
		f.Body = nil
		return f
	}
	tagging := vswitch.PortOptions{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 5}}
	trunk := vswitch.PortOptions{VLAN: vswitch.VLAN{Mode: vswitch.VLANTrunk, Allowed: vswitch.VLANSet{1 << 5}}}
	p := packet{dst: broadcast, flags: ack, payload: 6000}
	return map[string]func(){
		"bpdu":       start(vswitch.PortOptions{BPDU: vswitch.BPDUDrop}, closed(2), func() vswitch.Frame { return short(mac(2), mac(1)) }),
		"closed":     start(closed(1), closed(2), func() vswitch.Frame { return short(mac(2), mac(1)) }),
		"learning":   start(vswitch.PortOptions{Uplink: true}, closed(2), func() vswitch.Frame { return short(mac(2), mac(1)) }),
		"everything": start(guarded, closed(2), udpFrame),
		"flood":      start(closed(1), closed(2), func() vswitch.Frame { return short(broadcast, mac(1)) }),
		"tagging":    start(tagging, trunk, func() vswitch.Frame { return short(broadcast, mac(1)) }),
		"untagging":  start(trunk, tagging, func() vswitch.Frame { return tagged(short(broadcast, mac(1)), "5") }),
		"segments":   start(tagging, trunk, func() vswitch.Frame { return lent(p.bytes(), p.gso(1400)) }),
		"conflict":   start(closed(1), closed(2), func() vswitch.Frame { return short(broadcast, mac(2)) }),
		"spoofing":   start(closed(1), closed(2), func() vswitch.Frame { return short(broadcast, mac(3)) }),
	}
}

func TestPolicingDoesNotAllocate(t *testing.T) {
	for name, forward := range policedLoads(t) {
		t.Run(name, func(t *testing.T) {
			if n := testing.AllocsPerRun(100, forward); n != 0 {
				t.Errorf("a batch allocates %v times", n)
			}
		})
	}
}

// TestObservingDoesNotAllocate: an observer has its memory from the beginning.
func TestObservingDoesNotAllocate(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := attach(t, s, "a")
	attach(t, s, "b")
	o, err := s.Observe(vswitch.ObserverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	forward := sender(a, 1, func(int) vswitch.Frame { return short(broadcast, mac(1)) })
	if n := testing.AllocsPerRun(100, func() {
		forward()
		if packets, err := o.Read(t.Context()); err != nil || len(packets) != 2*batchLen {
			t.Fatalf("%d packets, %v", len(packets), err)
		}
	}); n != 0 {
		t.Errorf("a batch allocates %v times", n)
	}
}

// BenchmarkPolicing is BenchmarkForward with policies.
func BenchmarkPolicing(b *testing.B) {
	loads := policedLoads(b)
	for _, name := range []string{"bpdu", "closed", "learning", "everything", "flood", "tagging", "untagging", "conflict", "spoofing"} {
		b.Run(name, func(b *testing.B) {
			forward := loads[name]
			forward()
			b.ReportAllocs()
			for b.Loop() {
				forward()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchLen), "ns/frame")
		})
	}
}
