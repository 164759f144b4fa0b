package porttest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"polder/vswitch"
)

func recorderHarness(*testing.T) Harness {
	r := NewRecorder(64)
	return Harness{Port: r, Take: r.Take, Close: r.Close}
}

func TestRecorder(t *testing.T) { TestPort(t, recorderHarness) }

func TestJumboFrames(t *testing.T) {
	h := recorderHarness(t).withDefaults()
	h.MaxLen = 9000
	if err := checkContent(h); err != nil {
		t.Fatal(err)
	}
}

func TestFaultyWithoutFaults(t *testing.T) {
	TestPort(t, func(t *testing.T) Harness {
		h := recorderHarness(t)
		h.Port = NewFaulty(h.Port, Faults{}, 1)
		return h
	})
}

// queue is a port whose receiver runs by itself, like a service's.
type queue struct {
	*Recorder
	mu      sync.Mutex
	stalled bool
	got     [][]byte
}

func (q *queue) drain() {
	if !q.stalled {
		q.got = append(q.got, q.Recorder.Take()...)
	}
}

func (q *queue) Deliver(frames []*vswitch.Frame) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drain()
	return q.Recorder.Deliver(frames)
}

func (q *queue) Take() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stalled = false
	q.drain()
	taken := q.got
	q.got = nil
	return taken
}

func (q *queue) Stall() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stalled = true
}

func TestPortThatDrainsItself(t *testing.T) {
	TestPort(t, func(t *testing.T) Harness {
		q := &queue{Recorder: NewRecorder(32)}
		return Harness{Port: q, Take: q.Take, Close: q.Close, Stall: q.Stall}
	})
}

// portFunc is a port made of its Deliver.
type portFunc func(frames []*vswitch.Frame) int

func (f portFunc) Deliver(frames []*vswitch.Frame) int { return f(frames) }

// TestBrokenPorts has one port for each way to break the contract, and the
// check that must find it.
func TestBrokenPorts(t *testing.T) {
	for _, test := range []struct {
		name  string
		check func(Harness) error
		wrap  func(r *Recorder) portFunc
	}{
		{"takes something from nothing", checkEmpty, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int { return max(1, r.Deliver(frames)) }
		}},
		{"forgets the body", checkContent, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				for i, f := range frames {
					if r.Deliver([]*vswitch.Frame{{Head: f.Head}}) == 0 {
						return i
					}
				}
				return len(frames)
			}
		}},
		{"believes every body has one part", checkContent, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				for i, f := range frames {
					if r.Deliver([]*vswitch.Frame{{Head: f.Head, Body: f.Body[:min(1, len(f.Body))]}}) == 0 {
						return i
					}
				}
				return len(frames)
			}
		}},
		{"delivers backwards", checkOrder, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				backwards := slices.Clone(frames)
				slices.Reverse(backwards)
				return r.Deliver(backwards)
			}
		}},
		{"sorts the caller's list", checkOrder, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				n := r.Deliver(frames)
				slices.Reverse(frames)
				return n
			}
		}},
		{"writes to the frame", checkContent, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				n := r.Deliver(frames)
				for _, f := range frames {
					f.Head[0] = 2
				}
				return n
			}
		}},
		{"cuts the frame", checkContent, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				n := r.Deliver(frames)
				for _, f := range frames {
					f.Body = nil
				}
				return n
			}
		}},
		{"delivers twice", checkOrder, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				r.Deliver(frames)
				return r.Deliver(frames)
			}
		}},
		{"claims too much", checkOrder, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int { return r.Deliver(frames) + 1 }
		}},
		{"hides that it is full", checkFull, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int { r.Deliver(frames); return len(frames) }
		}},
		{"counts one less when full", checkFull, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				n := r.Deliver(frames)
				if 0 < n && n < len(frames) {
					n--
				}
				return n
			}
		}},
		{"never recovers", checkFull, func(r *Recorder) portFunc {
			full := false
			return func(frames []*vswitch.Frame) int {
				if full {
					return 0
				}
				n := r.Deliver(frames)
				full = n < len(frames)
				return n
			}
		}},
		{"takes frames when closed", checkClose, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int { r.Deliver(frames); return len(frames) }
		}},
		{"loses frames between senders", checkSenders, func(r *Recorder) portFunc {
			var mu sync.Mutex
			calls := 0
			return func(frames []*vswitch.Frame) int {
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls%10 == 0 {
					return len(frames)
				}
				return r.Deliver(frames)
			}
		}},
		{"allocates", checkAllocations, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int { return r.Deliver(slices.Clone(frames)) }
		}},
		{"allocates when full", checkAllocations, func(r *Recorder) portFunc {
			return func(frames []*vswitch.Frame) int {
				n := r.Deliver(frames)
				if n < len(frames) {
					sink = fmt.Sprint(n, " fitted")
				}
				return n
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := NewRecorder(50)
			h := Harness{Port: test.wrap(r), Take: r.Take, Close: r.Close}
			err := test.check(h.withDefaults())
			if err == nil {
				t.Fatal("the port passed")
			}
			t.Log(err)
		})
	}
}

var sink string // keeps an allocation alive

// TestPortThatKeepsFrames is apart from the other broken ports, since what it
// breaks shows only after Deliver.
func TestPortThatKeepsFrames(t *testing.T) {
	var kept []*vswitch.Frame
	h := Harness{
		Port: portFunc(func(frames []*vswitch.Frame) int {
			for _, f := range frames {
				kept = append(kept, &vswitch.Frame{Head: f.Head, Body: slices.Clone(f.Body), Len: f.Len})
			}
			return len(frames)
		}),
		Take: func() (got [][]byte) {
			for _, f := range kept {
				got = append(got, f.AppendTo(nil))
			}
			kept = nil
			return got
		},
	}
	if err := checkContent(h.withDefaults()); err == nil {
		t.Fatal("the port passed")
	}
}

func TestFaulty(t *testing.T) {
	const batches, size = 1000, 8
	run := func(faults Faults) (fitted int, arrived []byte) {
		r := NewRecorder(2 * size)
		f := NewFaulty(r, faults, 21140)
		for b := range batches {
			list := make([]*vswitch.Frame, size)
			for i := range list {
				list[i] = &vswitch.Frame{Head: []byte{byte(b*size + i)}, Len: 1}
			}
			fitted += f.Deliver(list)
			for _, got := range r.Take() {
				arrived = append(arrived, got[0])
			}
		}
		return fitted, arrived
	}
	const sent = batches * size
	within := func(what string, got int, share float64) {
		t.Helper()
		if want := share * sent; float64(got) < 0.9*want || float64(got) > 1.1*want {
			t.Errorf("%s: %d of %d frames, want about %.0f", what, got, sent, want)
		}
	}

	fitted, arrived := run(Faults{Lose: 0.25})
	if fitted != sent {
		t.Errorf("lost frames show: %d of %d fitted", fitted, sent)
	}
	within("arrived of a quarter lost", len(arrived), 0.75)

	fitted, arrived = run(Faults{Double: 0.5})
	if fitted != sent {
		t.Errorf("doubled frames show: %d of %d fitted", fitted, sent)
	}
	within("arrived with half of them doubled", len(arrived), 1.5)

	fitted, arrived = run(Faults{Refuse: 1}) // 0 to 7 of 8 pass, equally often
	within("fitted of batches all cut short", fitted, 3.5/8)
	if fitted != len(arrived) {
		t.Errorf("%d frames fitted, %d arrived", fitted, len(arrived))
	}

	all := Faults{Refuse: 0.1, Lose: 0.1, Double: 0.1}
	_, arrived = run(all)
	if _, again := run(all); !slices.Equal(arrived, again) {
		t.Error("the same seed gives other faults")
	}
}

// TestFaultyBeforeFullPort has doubled and lost frames around the one that
// finds no room: the count must still be of the caller's frames.
func TestFaultyBeforeFullPort(t *testing.T) {
	frames := make([]*vswitch.Frame, 8)
	for i := range frames {
		frames[i] = &vswitch.Frame{Head: []byte{byte(i)}, Len: 1}
	}
	for seed := range uint64(100) {
		r := NewRecorder(5)
		n := NewFaulty(r, Faults{Lose: 0.3, Double: 0.3}, seed).Deliver(frames)
		for _, got := range r.Take() {
			if i := int(got[0]); i > n { // frame n itself may have had room for one of two copies
				t.Errorf("seed %d: frame %d arrived, but %d fitted", seed, i, n)
			}
		}
	}
}
