package vswitch_test

import (
	"testing"

	"polder/vswitch"
)

// loads are what a sender may find: what is learned, and where it all goes.
// start returns a function that forwards a batch of 32 frames of 64 bytes.
var loads = []struct {
	name  string
	start func(tb testing.TB) func()
}{
	{"unicast", func(tb testing.TB) func() { return unicast(tb, 1) }},
	{"macs=1023", func(tb testing.TB) func() { return unicast(tb, 1023) }},
	{"flood=1", func(tb testing.TB) func() { return flood(tb, 1) }},
	{"flood=16", func(tb testing.TB) func() { return flood(tb, 16) }},
	{"mixed", mixed},
	{"drop", func(tb testing.TB) func() {
		s := newSwitch(tb, vswitch.Config{})
		a := attach(tb, s, "a")
		return sender(a, 1, func(int) vswitch.Frame { return short(mac(1), mac(1)) })
	}},
}

const batchLen = 32

// bin is a port that copies each frame over the one before.
type bin struct{ memory [2048]byte }

func (b *bin) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		n := copy(b.memory[:], f.Head)
		for _, part := range f.Body {
			n += copy(b.memory[n:], part)
		}
	}
	return len(frames)
}

func attach(tb testing.TB, s *vswitch.Switch, name string) *vswitch.Member {
	tb.Helper()
	m, err := s.Join(name, new(bin), vswitch.PortOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// short makes a frame of 64 bytes.
func short(dst, src vswitch.MAC) vswitch.Frame {
	f := frame(dst, src, 0)
	f.Head = append(f.Head, make([]byte, 4)...)
	f.Len = len(f.Head)
	return f
}

// sender returns a function that forwards n different batches in turn.
func sender(m *vswitch.Member, n int, make func(i int) vswitch.Frame) func() {
	in := m.NewIngress()
	var batches [][]vswitch.Frame
	for b := range n {
		var batch []vswitch.Frame
		for i := range batchLen {
			batch = append(batch, make(b*batchLen+i))
		}
		batches = append(batches, batch)
	}
	next := 0
	return func() {
		in.Forward(batches[next])
		if next++; next == n {
			next = 0
		}
	}
}

// unicast has pairs of addresses behind two ports talk, each address known.
func unicast(tb testing.TB, pairs int) func() {
	s := newSwitch(tb, vswitch.Config{})
	a, b := attach(tb, s, "a"), attach(tb, s, "b")
	back := b.NewIngress()
	for i := range pairs {
		back.Forward([]vswitch.Frame{short(broadcast, mac(0x10000+i))})
	}
	return sender(a, (pairs+batchLen-1)/batchLen, func(i int) vswitch.Frame {
		return short(mac(0x10000+i%pairs), mac(i%pairs))
	})
}

// flood sends broadcasts to a number of other ports.
func flood(tb testing.TB, others int) func() {
	s := newSwitch(tb, vswitch.Config{})
	a := attach(tb, s, "a")
	for i := range others {
		attach(tb, s, string(rune('b'+i)))
	}
	return sender(a, 1, func(int) vswitch.Frame { return short(broadcast, mac(1)) })
}

// mixed sends to eight ports in turn, with a broadcast now and then.
func mixed(tb testing.TB) func() {
	const others = 8
	s := newSwitch(tb, vswitch.Config{})
	a := attach(tb, s, "a")
	for i := range others {
		m := attach(tb, s, string(rune('b'+i)))
		m.NewIngress().Forward([]vswitch.Frame{short(broadcast, mac(10+i))})
	}
	return sender(a, 1, func(i int) vswitch.Frame {
		if i%11 == 0 {
			return short(broadcast, mac(1))
		}
		return short(mac(10+i%others), mac(1))
	})
}

// BenchmarkForward is one sender's goroutine, with ports that only copy: what
// the switch itself costs a frame.
func BenchmarkForward(b *testing.B) {
	for _, load := range loads {
		b.Run(load.name, func(b *testing.B) {
			forward := load.start(b)
			forward() // the lists grow
			b.ReportAllocs()
			for b.Loop() {
				forward()
			}
			frames := float64(b.N) * batchLen
			b.ReportMetric(frames/b.Elapsed().Seconds()/1e6, "Mpps")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/frames, "ns/frame")
		})
	}
}
