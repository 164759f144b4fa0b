package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

var (
	broadcast = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	zero      vswitch.MAC
)

// mac returns the n-th of a range of addresses.
func mac(n int) vswitch.MAC {
	return vswitch.MAC{0x00, 0x15, 0x5d, byte(n >> 16), byte(n >> 8), byte(n)}
}

// frame makes a frame whose payload is a number, whole in Head.
func frame(dst, src vswitch.MAC, number int) vswitch.Frame {
	b := slices.Concat(dst[:], src[:], []byte{0x88, 0xb5})
	b = binary.BigEndian.AppendUint32(b, uint32(number))
	b = append(b, make([]byte, 60-len(b))...)
	return vswitch.Frame{Head: b, Len: len(b)}
}

func number(b []byte) int { return int(binary.BigEndian.Uint32(b[14:])) }

// station is a port of a test with the member it became and a way in.
type station struct {
	*vswitch.Member
	*vswitch.Ingress
	*porttest.Recorder
}

func join(t testing.TB, s *vswitch.Switch, name string, o vswitch.PortOptions) *station {
	t.Helper()
	r := porttest.NewRecorder(256)
	m, err := s.Join(name, r, o)
	if err != nil {
		t.Fatal(err)
	}
	return &station{m, m.NewIngress(), r}
}

// numbers returns those of the frames that arrived since the last call.
func (s *station) numbers() []int {
	var ns []int
	for _, b := range s.Take() {
		ns = append(ns, number(b))
	}
	return ns
}

func newSwitch(t testing.TB, c vswitch.Config) *vswitch.Switch {
	s := vswitch.New(c)
	t.Cleanup(s.Close)
	return s
}

// fdb renders what the switch knows, like "1@a 2@b".
func fdb(s *vswitch.Switch) string {
	var entries []string
	for _, e := range s.FDB() {
		n := int(e.MAC[3])<<16 | int(e.MAC[4])<<8 | int(e.MAC[5])
		entries = append(entries, fmt.Sprintf("%d@%s", n, e.Port))
	}
	return strings.Join(entries, " ")
}

// TestForward sends one frame after another over a switch with ports a, b, c
// and d, and looks who gets each.
func TestForward(t *testing.T) {
	group := vswitch.MAC{0x01, 0x00, 0x5e, 0x00, 0x00, 0x01}
	type step struct {
		from     string
		dst, src vswitch.MAC
		want     string // ports that get it
		drop     string // reason at the sender, if nobody does
	}
	for _, test := range []struct {
		name  string
		steps []step
		fdb   string
	}{
		{"unknown unicast is flooded", []step{{"a", mac(2), mac(1), "bcd", ""}}, "1@a"},
		{"a learned address gets its frames alone", []step{
			{"b", broadcast, mac(2), "acd", ""},
			{"a", mac(2), mac(1), "b", ""},
			{"b", mac(1), mac(2), "a", ""},
		}, "1@a 2@b"},
		{"broadcast is flooded whatever is known", []step{
			{"a", broadcast, mac(1), "bcd", ""},
			{"b", broadcast, mac(2), "acd", ""},
		}, "1@a 2@b"},
		{"multicast is flooded", []step{{"c", group, mac(3), "abd", ""}}, "3@c"},
		{"an address that moves is followed", []step{
			{"a", broadcast, mac(1), "bcd", ""},
			{"b", mac(1), mac(2), "a", ""},
			{"c", broadcast, mac(1), "abd", ""},
			{"b", mac(1), mac(2), "c", ""},
		}, "1@c 2@b"},
		{"several addresses behind one port", []step{
			{"a", broadcast, mac(1), "bcd", ""},
			{"a", broadcast, mac(11), "bcd", ""},
			{"b", mac(11), mac(2), "a", ""},
			{"b", mac(1), mac(2), "a", ""},
		}, "1@a 2@b 11@a"},
		{"two addresses behind the same port need no switch", []step{
			{"a", broadcast, mac(1), "bcd", ""},
			{"a", mac(1), mac(11), "", "hairpin"},
		}, "1@a 11@a"},
		{"a frame to its own source", []step{{"a", mac(1), mac(1), "", "hairpin"}}, "1@a"},
		{"a group address as source", []step{{"a", mac(2), group, "", "bad-source"}}, ""},
		{"broadcast as source", []step{{"a", mac(2), broadcast, "", "bad-source"}}, ""},
		{"zeros as source", []step{{"a", mac(2), zero, "", "bad-source"}}, ""},
		{"zeros as destination are flooded", []step{{"a", zero, mac(1), "bcd", ""}}, "1@a"},
		{"spanning tree", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x00}, mac(1), "", "reserved-multicast"}}, ""},
		{"pause", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x01}, mac(1), "", "reserved-multicast"}}, ""},
		{"LLDP", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}, mac(1), "", "reserved-multicast"}}, ""},
		{"the last reserved address", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0f}, mac(1), "", "reserved-multicast"}}, ""},
		{"the first after the reserved", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x10}, mac(1), "bcd", ""}}, "1@a"},
		{"a bad source and a reserved destination", []step{{"a", vswitch.MAC{0x01, 0x80, 0xc2}, zero, "", "bad-source"}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSwitch(t, vswitch.Config{})
			ports := map[string]*station{}
			for _, name := range []string{"a", "b", "c", "d"} {
				ports[name] = join(t, s, name, vswitch.PortOptions{})
			}
			for i, step := range test.steps {
				before := ports[step.from].Stats()
				f := frame(step.dst, step.src, i)
				ports[step.from].Forward([]vswitch.Frame{f})
				var got string
				for _, name := range slices.Sorted(maps.Keys(ports)) {
					for _, b := range ports[name].Take() {
						got += name
						if !bytes.Equal(b, f.Head) {
							t.Errorf("step %d: port %s got\n%x, want\n%x", i, name, b, f.Head)
						}
					}
				}
				if got != step.want {
					t.Errorf("step %d: %v to %v went to %q, want %q", i, step.src, step.dst, got, step.want)
				}
				after := ports[step.from].Stats()
				for r, n := range after.Drops {
					want := before.Drops[r]
					if vswitch.DropReason(r).String() == step.drop {
						want++
					}
					if n != want {
						t.Errorf("step %d: %d frames dropped as %v, want %d", i, n, vswitch.DropReason(r), want)
					}
				}
			}
			if got := fdb(s); got != test.fdb {
				t.Errorf("the switch knows %q, want %q", got, test.fdb)
			}
		})
	}
}

// TestFormat has frames that are not frames.
func TestFormat(t *testing.T) {
	whole := func(n int) []byte {
		b := make([]byte, n)
		copy(b, broadcast[:])
		if n >= 12 {
			m := mac(1)
			copy(b[6:], m[:])
		}
		return b
	}
	cut := func(n, head int) vswitch.Frame {
		b := whole(n)
		return vswitch.Frame{Head: b[:head], Body: [][]byte{b[head:]}, Len: n}
	}
	wrong := func(n, length int) vswitch.Frame {
		f := cut(n, min(n, vswitch.HeadLen))
		f.Len = length
		return f
	}
	for _, test := range []struct {
		name  string
		frame vswitch.Frame
		drop  string
	}{
		{"nothing", vswitch.Frame{}, "runt"},
		{"13 bytes", cut(13, 13), "runt"},
		{"14 bytes", cut(14, 14), ""},
		{"60 bytes", cut(60, 60), ""},
		{"1518 bytes", cut(1518, 128), ""},
		{"the longest", cut(vswitch.MaxFrameLen, 128), ""},
		{"one longer", cut(vswitch.MaxFrameLen+1, 128), "oversize"},
		{"all in Head", cut(1514, 1514), ""},
		{"Head of 14 bytes", cut(1514, 14), ""},
		{"Head short of the header", cut(1514, 13), "malformed"},
		{"no Head", cut(1514, 0), "malformed"},
		{"Len too small", wrong(1514, 1513), "malformed"},
		{"Len too large", wrong(1514, 1515), "malformed"},
		{"Len negative", wrong(1514, -1), "malformed"},
		{"Len of a runt", wrong(1514, 13), "malformed"},
		{"a runt that claims more", wrong(13, 60), "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSwitch(t, vswitch.Config{})
			a := join(t, s, "a", vswitch.PortOptions{})
			b := join(t, s, "b", vswitch.PortOptions{})
			a.Forward([]vswitch.Frame{test.frame})
			want := vswitch.PortStats{RxFrames: 1, RxBytes: uint64(test.frame.Len), RxMulticast: 1, MACs: 1}
			if test.drop != "" {
				want = vswitch.PortStats{}
				for r := range want.Drops {
					if vswitch.DropReason(r).String() == test.drop {
						want.Drops[r] = 1
					}
				}
			}
			if got := a.Stats(); got != want {
				t.Errorf("counters %+v\nwant     %+v", got, want)
			}
			got := b.Take()
			switch {
			case test.drop != "" && len(got) != 0:
				t.Errorf("%d frames arrived, want none", len(got))
			case test.drop == "" && (len(got) != 1 || !bytes.Equal(got[0], test.frame.AppendTo(nil))):
				t.Errorf("what arrived is not what was sent: %x", got)
			}
		})
	}
}

func TestAlone(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(mac(2), mac(1), 1)})
	if n := a.Stats().Drops[vswitch.DropNoPort]; n != 2 {
		t.Errorf("%d frames dropped for want of a port, want 2", n)
	}
	if ns := a.numbers(); ns != nil {
		t.Errorf("frames %d came back to their sender", ns)
	}
}

// TestOrder mixes floods and unicast in one batch: each port must get what is
// for it in the order of the batch.
func TestOrder(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	c := join(t, s, "c", vswitch.PortOptions{})
	d := join(t, s, "d", vswitch.PortOptions{})
	b.Forward([]vswitch.Frame{frame(mac(9), mac(2), 0)})
	c.Forward([]vswitch.Frame{frame(mac(9), mac(3), 0)})
	for _, p := range []*station{a, b, c, d} {
		p.Take()
	}
	for range 3 { // again with the lists of the batch before
		a.Forward([]vswitch.Frame{
			frame(broadcast, mac(1), 0),
			frame(mac(2), mac(1), 1),
			frame(mac(9), mac(1), 2),
			frame(mac(3), mac(1), 3),
			frame(mac(2), mac(1), 4),
			frame(broadcast, mac(1), 5),
			frame(mac(3), mac(1), 6),
		})
		for _, test := range []struct {
			port *station
			want []int
		}{
			{a, nil}, {b, []int{0, 1, 2, 4, 5}}, {c, []int{0, 2, 3, 5, 6}}, {d, []int{0, 2, 5}},
		} {
			if got := test.port.numbers(); !slices.Equal(got, test.want) {
				t.Errorf("port %s got %d, want %d", test.port.Member.Name(), got, test.want)
			}
		}
	}
}

// TestLearnWithinBatch: a frame profits from what the one before it taught.
func TestLearnWithinBatch(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(mac(1), mac(11), 1)})
	if got := b.numbers(); !slices.Equal(got, []int{0}) {
		t.Errorf("b got %d, want only the broadcast", got)
	}
}

func TestReceiverFull(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	r := porttest.NewRecorder(3)
	small, err := s.Join("small", r, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	big := join(t, s, "big", vswitch.PortOptions{})
	batch := make([]vswitch.Frame, 5)
	for i := range batch {
		batch[i] = frame(broadcast, mac(1), i)
	}
	a.Forward(batch)
	want := vswitch.PortStats{TxFrames: 3, TxBytes: 3 * 60, TxMulticast: 3}
	want.Drops[vswitch.DropReceiverFull] = 2
	if got := small.Stats(); got != want {
		t.Errorf("counters of the small port %+v\nwant                       %+v", got, want)
	}
	if got, want := big.Stats(), (vswitch.PortStats{TxFrames: 5, TxBytes: 5 * 60, TxMulticast: 5}); got != want {
		t.Errorf("counters of the big port %+v\nwant                     %+v", got, want)
	}
	if got, want := a.Stats(), (vswitch.PortStats{RxFrames: 5, RxBytes: 5 * 60, RxMulticast: 5, MACs: 1}); got != want {
		t.Errorf("counters of the sender %+v\nwant                   %+v", got, want)
	}
}

func TestMoves(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	for range 3 {
		a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(broadcast, mac(1), 0)})
		b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(broadcast, mac(2), 0)})
	}
	if n := a.Stats().MACMoves; n != 2 {
		t.Errorf("%d moves to a, want 2", n)
	}
	if n := b.Stats().MACMoves; n != 3 {
		t.Errorf("%d moves to b, want 3", n)
	}
	if got, want := s.Stats(), (vswitch.Stats{Ports: 2, MACs: 2, MACMoves: 5}); got != want {
		t.Errorf("switch %+v, want %+v", got, want)
	}
}

func TestAgeing(t *testing.T) {
	for _, test := range []struct {
		name   string
		config time.Duration
		ageing time.Duration
	}{
		{"default", 0, 300 * time.Second},
		{"configured", 15 * time.Second, 15 * time.Second},
		{"fractions round up", 1500 * time.Millisecond, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := vswitch.New(vswitch.Config{AgeingTime: test.config})
				defer s.Close()
				a := join(t, s, "a", vswitch.PortOptions{})
				b := join(t, s, "b", vswitch.PortOptions{})
				hear := func(src int) {
					a.Forward([]vswitch.Frame{frame(broadcast, mac(src), 0)})
					b.Take()
				}
				time.Sleep(700 * time.Millisecond) // out of step with the switch's clock
				hear(1)
				hear(2)
				time.Sleep(test.ageing - 500*time.Millisecond)
				hear(2)
				time.Sleep(499 * time.Millisecond)
				synctest.Wait()
				if got := fdb(s); got != "1@a 2@a" {
					t.Errorf("just before the ageing time the switch knows %q", got)
				}
				time.Sleep(time.Second + time.Millisecond)
				synctest.Wait()
				if got := fdb(s); got != "2@a" {
					t.Errorf("a second after the ageing time the switch knows %q", got)
				}
				b.Forward([]vswitch.Frame{frame(mac(1), mac(3), 7)})
				if got := a.numbers(); !slices.Equal(got, []int{7}) {
					t.Errorf("an aged address got %d by flooding, want 7", got)
				}
				time.Sleep(test.ageing + time.Second)
				synctest.Wait()
				if got := fdb(s); got != "" {
					t.Errorf("in the end the switch knows %q", got)
				}
			})
		})
	}
}

func TestFDBAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := vswitch.New(vswitch.Config{})
		defer s.Close()
		a := join(t, s, "a", vswitch.PortOptions{})
		b := join(t, s, "b", vswitch.PortOptions{})
		a.Forward([]vswitch.Frame{frame(broadcast, mac(2), 0)})
		time.Sleep(30*time.Second + time.Millisecond)
		b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0)})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want := []vswitch.FDBEntry{
			{MAC: mac(1), Port: "b", Age: 10 * time.Second},
			{MAC: mac(2), Port: "a", Age: 40 * time.Second},
		}
		if got := s.FDB(); !slices.Equal(got, want) {
			t.Errorf("the switch knows %v, want %v", got, want)
		}
	})
}

func TestJoin(t *testing.T) {
	s := vswitch.New(vswitch.Config{Name: "LAN"})
	a := join(t, s, "a", vswitch.PortOptions{})
	if _, err := s.Join("a", porttest.NewRecorder(1), vswitch.PortOptions{}); !errors.Is(err, vswitch.ErrNameTaken) {
		t.Errorf("a second a: %v, want ErrNameTaken", err)
	}
	b := join(t, s, "b", vswitch.PortOptions{})
	if got, want := s.Members(), []*vswitch.Member{a.Member, b.Member}; !slices.Equal(got, want) {
		t.Errorf("members are %v, want %v", got, want)
	}
	if got := s.Name(); got != "LAN" {
		t.Errorf("the switch is called %q, want LAN", got)
	}
	if err := a.Leave(); err != nil {
		t.Error(err)
	}
	if err := a.Leave(); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("a left twice: %v, want an error that names it", err)
	}
	c := join(t, s, "a", vswitch.PortOptions{}) // the name is free again
	if got, want := s.Members(), []*vswitch.Member{b.Member, c.Member}; !slices.Equal(got, want) {
		t.Errorf("members are %v, want %v", got, want)
	}

	s.Close()
	s.Close()
	if _, err := s.Join("d", porttest.NewRecorder(1), vswitch.PortOptions{}); !errors.Is(err, vswitch.ErrClosed) ||
		!strings.Contains(err.Error(), `"LAN"`) {
		t.Errorf("join after Close: %v, want ErrClosed with the switch's name", err)
	}
	b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0)})
	if got := c.numbers(); got != nil {
		t.Errorf("frames %d passed a closed switch", got)
	}
	if n := b.Stats().Drops[vswitch.DropNoPort]; n != 1 {
		t.Errorf("%d frames dropped by the closed switch, want 1", n)
	}
	if err := b.Leave(); err != nil {
		t.Errorf("leave after Close: %v", err)
	}
	if got := s.Members(); len(got) != 0 {
		t.Errorf("a closed switch has members %v", got)
	}
}

func TestLeave(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	c := join(t, s, "c", vswitch.PortOptions{})
	for i, p := range []*station{a, b, c} {
		p.Forward([]vswitch.Frame{frame(broadcast, mac(i+1), 0), frame(broadcast, mac(i+11), 0)})
	}
	if err := b.Leave(); err != nil {
		t.Fatal(err)
	}
	if got, want := fdb(s), "1@a 3@c 11@a 13@c"; got != want {
		t.Errorf("after b left the switch knows %q, want %q", got, want)
	}
	if st := b.Stats(); st.MACs != 0 || st.RxFrames != 2 || st.TxFrames != 4 {
		t.Errorf("after b left its counters are %+v", st)
	}

	// The next to join must not inherit what was b's.
	d := join(t, s, "d", vswitch.PortOptions{})
	for _, p := range []*station{a, b, c, d} {
		p.Take()
	}
	a.Forward([]vswitch.Frame{frame(mac(2), mac(1), 5)})
	if got := b.numbers(); got != nil {
		t.Errorf("b has left and got %d", got)
	}
	for _, p := range []*station{c, d} {
		if got := p.numbers(); !slices.Equal(got, []int{5}) {
			t.Errorf("port %s got %d, want the frame to an address that left", p.Member.Name(), got)
		}
	}
	d.Forward([]vswitch.Frame{frame(broadcast, mac(4), 0)})
	if n := s.Flush(b.Member); n != 0 {
		t.Errorf("flushing b, which has left, forgot %d addresses", n)
	}
	if st := b.Stats(); st.MACs != 0 {
		t.Errorf("b has left and owns %d addresses", st.MACs)
	}
}

func TestFlush(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	teach := func() {
		for i := range 5 {
			a.Forward([]vswitch.Frame{frame(broadcast, mac(i), 0)})
		}
		b.Forward([]vswitch.Frame{frame(broadcast, mac(5), 0)})
	}
	teach()
	if n := s.Flush(a.Member); n != 5 || fdb(s) != "5@b" {
		t.Errorf("flushing a forgot %d addresses and left %q", n, fdb(s))
	}
	teach()
	if n := s.Flush(nil); n != 6 || fdb(s) != "" {
		t.Errorf("flushing all forgot %d addresses and left %q", n, fdb(s))
	}
}

// TestMaxMACs: a port cannot take more of the table than its share.
func TestMaxMACs(t *testing.T) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 64})
	few := join(t, s, "few", vswitch.PortOptions{MaxMACs: 3})
	usual := join(t, s, "usual", vswitch.PortOptions{})
	for i := range 1000 {
		few.Forward([]vswitch.Frame{frame(broadcast, mac(i), 0)})
		usual.Forward([]vswitch.Frame{frame(broadcast, mac(1000+i), 0)})
	}
	if n := few.Stats().MACs; n != 3 {
		t.Errorf("a port limited to 3 addresses has %d", n)
	}
	if n := usual.Stats().MACs; n != 32 {
		t.Errorf("a port on a switch for 64 addresses has %d, want half of them", n)
	}
	st := s.Stats()
	if st.MACs != 35 || st.Evictions == 0 || st.Refusals == 0 {
		t.Errorf("switch %+v, want 35 addresses, evictions and refusals", st)
	}
}

// TestModel sends random batches over a switch whose ports come and go, and
// compares with a model that could not be simpler.
func TestModel(t *testing.T) {
	const frames, addresses, maxPorts = 100_000, 60, 8
	random := rand.New(rand.NewPCG(21140, 1))
	s := newSwitch(t, vswitch.Config{})

	type modelPort struct {
		*station
		want  []int // frames to arrive
		stats vswitch.PortStats
	}
	var ports []*modelPort
	at := map[vswitch.MAC]*modelPort{} // the model's forwarding database
	drop := func(p *modelPort, r vswitch.DropReason) { p.stats.Drops[r]++ }

	pick := func() vswitch.MAC {
		switch n := random.IntN(100); {
		case n < 5:
			return broadcast
		case n < 8:
			return vswitch.MAC{0x33, 0x33, 0, 0, 0, byte(n)}
		case n < 9:
			return vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, byte(random.IntN(0x20))}
		case n < 10:
			return zero
		}
		return mac(random.IntN(addresses))
	}
	send := func(p *modelPort, f vswitch.Frame) {
		if f.Len < 14 {
			drop(p, vswitch.DropRunt)
			return
		}
		dst, src := vswitch.MAC(f.Head[:6]), vswitch.MAC(f.Head[6:12])
		p.stats.RxFrames++
		p.stats.RxBytes += uint64(f.Len)
		if dst.IsMulticast() {
			p.stats.RxMulticast++
		}
		switch {
		case src == zero || src.IsMulticast():
			drop(p, vswitch.DropBadSource)
			return
		case bytes.HasPrefix(dst[:], []byte{0x01, 0x80, 0xc2, 0, 0}) && dst[5] < 0x10:
			drop(p, vswitch.DropReserved)
			return
		}
		if old := at[src]; old != nil && old != p {
			p.stats.MACMoves++
		}
		at[src] = p
		give := func(q *modelPort) {
			q.want = append(q.want, number(f.Head))
			q.stats.TxFrames++
			q.stats.TxBytes += uint64(f.Len)
			if dst.IsMulticast() {
				q.stats.TxMulticast++
			}
		}
		switch q := at[dst]; {
		case q == p:
			drop(p, vswitch.DropHairpin)
		case q != nil:
			give(q)
		case len(ports) == 1:
			drop(p, vswitch.DropNoPort)
		default:
			for _, q := range ports {
				if q != p {
					give(q)
				}
			}
		}
	}

	names := 0
	for n := 0; n < frames; {
		switch change := random.IntN(200); {
		case len(ports) == 0 || change == 0 && len(ports) < maxPorts:
			names++
			ports = append(ports, &modelPort{station: join(t, s, fmt.Sprint("port", names), vswitch.PortOptions{})})
		case change == 1:
			i := random.IntN(len(ports))
			p := ports[i]
			if err := p.Leave(); err != nil {
				t.Fatal(err)
			}
			maps.DeleteFunc(at, func(_ vswitch.MAC, q *modelPort) bool { return q == p })
			ports = slices.Delete(ports, i, i+1)
			continue
		}
		p := ports[random.IntN(len(ports))]
		batch := make([]vswitch.Frame, 1+random.IntN(40))
		for i := range batch {
			batch[i] = frame(pick(), pick(), n)
			if random.IntN(50) == 0 {
				length := random.IntN(14)
				batch[i] = vswitch.Frame{Head: batch[i].Head[:length], Len: length}
			}
			n++
			send(p, batch[i])
		}
		p.Forward(batch)
		for _, p := range ports {
			if got := p.numbers(); !slices.Equal(got, p.want) {
				t.Fatalf("before frame %d, port %s got\n%d, want\n%d", n, p.Member.Name(), got, p.want)
			}
			p.want = nil
		}
	}

	known := map[string]int{}
	for addr, p := range at {
		known[addr.String()+" "+p.Member.Name()]++
	}
	for _, e := range s.FDB() {
		known[e.MAC.String()+" "+e.Port]--
	}
	for entry, n := range known {
		if n != 0 {
			t.Errorf("forwarding database: %s is %+d times more in the model", entry, n)
		}
	}
	for _, p := range ports {
		for _, q := range at {
			if q == p {
				p.stats.MACs++
			}
		}
		if got := p.Stats(); got != p.stats {
			t.Errorf("port %s counts %+v\nwant          %+v", p.Member.Name(), got, p.stats)
		}
	}
}

// TestJoinLeaveUnderLoad has ports come and go while others send to all of
// them: nobody gets a frame that was not for him, and between two ports that
// stay the frames keep their order.
func TestJoinLeaveUnderLoad(t *testing.T) {
	const joins, batch = 1000, 8
	s := newSwitch(t, vswitch.Config{})

	// a and b stay and send to each other and to everybody.
	var stop atomic.Bool
	var wg sync.WaitGroup
	names := []string{"a", "b"}
	orders := make([]*order, len(names))
	members := make([]*vswitch.Member, len(names))
	for i, name := range names {
		orders[i] = &order{from: mac(2 - i)}
		m, err := s.Join(name, orders[i], vswitch.PortOptions{})
		if err != nil {
			t.Fatal(err)
		}
		members[i] = m
	}
	for i, m := range members {
		m.NewIngress().Forward([]vswitch.Frame{frame(broadcast, mac(1+i), 0)})
	}
	for i, m := range members {
		wg.Go(func() {
			in := m.NewIngress()
			frames := make([]vswitch.Frame, batch)
			for n := 1; !stop.Load(); {
				for j := range frames {
					dst := []vswitch.MAC{broadcast, mac(2 - i), mac(100 + n%50)}[j%3]
					frames[j] = frame(dst, mac(1+i), n)
					n++
				}
				in.Forward(frames)
			}
		})
	}

	for i := range joins {
		r := porttest.NewRecorder(16)
		m, err := s.Join(fmt.Sprint("guest", i%3), r, vswitch.PortOptions{})
		if err != nil {
			t.Fatal(err)
		}
		in := m.NewIngress()
		in.Forward([]vswitch.Frame{
			frame(broadcast, mac(100+i%50), i),
			frame(mac(1), mac(100+i%50), i),
		})
		if err := m.Leave(); err != nil {
			t.Fatal(err)
		}
		r.Close()
		for _, b := range r.Take() {
			if dst := vswitch.MAC(b[:6]); dst == mac(1) || dst == mac(2) {
				t.Fatalf("guest %d got frame %d, which was for %v alone", i, number(b), dst)
			}
		}
		if i%100 == 0 {
			s.FDB()
			s.Stats()
			s.Members()
			m.Stats()
		}
	}
	stop.Store(true)
	wg.Wait()
	for i, o := range orders {
		if o.bad != "" {
			t.Errorf("port %s: %s", names[i], o.bad)
		}
		if o.frames == 0 {
			t.Errorf("port %s got nothing", names[i])
		}
	}
	if got := s.Stats(); got.Ports != 2 || got.MACs != 2 {
		t.Errorf("in the end %+v, want two ports with an address each", got)
	}
}

// order is a port that checks that frames from one address come in order and
// none of them twice.
type order struct {
	from vswitch.MAC

	mu     sync.Mutex
	frames int
	last   int
	bad    string
}

func (o *order) Deliver(frames []*vswitch.Frame) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range frames {
		if vswitch.MAC(f.Head[6:12]) != o.from {
			continue
		}
		n := number(f.Head)
		if o.frames > 0 && n <= o.last && o.bad == "" {
			o.bad = fmt.Sprintf("frame %d came after %d", n, o.last)
		}
		o.frames++
		o.last = n
	}
	return len(frames)
}

// TestSeveralIngresses has the queues of one port send at the same time.
func TestSeveralIngresses(t *testing.T) {
	const queues, batches, batch = 4, 100, 8
	s := newSwitch(t, vswitch.Config{})
	sink := join(t, s, "sink", vswitch.PortOptions{})
	m, err := s.Join("source", porttest.NewRecorder(1), vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for q := range queues {
		wg.Go(func() {
			in := m.NewIngress()
			frames := make([]vswitch.Frame, batch)
			for b := range batches {
				for i := range frames {
					frames[i] = frame(broadcast, mac((q*b+i)%20), 0)
				}
				in.Forward(frames)
			}
		})
	}
	wg.Wait()
	const sent = queues * batches * batch
	if st := m.Stats(); st.RxFrames != sent || st.MACs != 20 {
		t.Errorf("source: %+v, want %d frames from 20 addresses", st, sent)
	}
	if st := sink.Stats(); st.TxFrames+st.Drops[vswitch.DropReceiverFull] != sent {
		t.Errorf("sink: %+v, want %d frames received or dropped", st, sent)
	}
}

// TestPanic has a port panic, as one does that reads a sender's memory when it
// has gone. The sender recovers, and its next batch has nothing of the last.
func TestPanic(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	m, err := s.Join("bad", panics{}, vswitch.PortOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := join(t, s, "c", vswitch.PortOptions{})
	m.NewIngress().Forward([]vswitch.Frame{frame(broadcast, mac(2), 0)})
	a.Take()
	c.Take()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the port's panic did not reach the sender")
			}
		}()
		a.Forward([]vswitch.Frame{
			frame(mac(3), mac(1), 1),
			frame(mac(2), mac(1), 2),
			frame(broadcast, mac(1), 3),
		})
	}()
	c.Take()
	if err := m.Leave(); err != nil {
		t.Fatal(err)
	}
	a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 4)})
	if got := c.numbers(); !slices.Equal(got, []int{4}) {
		t.Errorf("after the panic c got %d, want 4", got)
	}
	if n := a.Stats().RxFrames; n != 4 {
		t.Errorf("a sent 4 frames, counted are %d", n)
	}
}

// panics is a port that does.
type panics struct{}

func (panics) Deliver([]*vswitch.Frame) int { panic("unexpected fault address") }

func TestForwardDoesNotAllocate(t *testing.T) {
	for _, load := range loads {
		t.Run(load.name, func(t *testing.T) {
			forward := load.start(t)
			if n := testing.AllocsPerRun(100, forward); n != 0 {
				t.Errorf("a batch allocates %v times", n)
			}
		})
	}
}

func TestDropReasonString(t *testing.T) {
	seen := map[string]bool{}
	for r := range (vswitch.DropCounts{}) {
		name := vswitch.DropReason(r).String()
		if name == "" || seen[name] || strings.ToLower(name) != name {
			t.Errorf("reason %d is called %q", r, name)
		}
		seen[name] = true
	}
	if got := vswitch.DropReason(200).String(); got != "DropReason(200)" {
		t.Errorf("reason 200 is called %q", got)
	}
	d := vswitch.DropCounts{vswitch.DropRunt: 2, vswitch.DropReceiverFull: 3}
	if n := d.Total(); n != 5 {
		t.Errorf("2 and 3 drops are %d in total", n)
	}
}
