package device_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device"
	tt "polder/tulip/tuliptest"
)

// allowed returns the processors that the test may use.
func allowed(tb testing.TB) (cpus []int) {
	tb.Helper()
	var set unix.CPUSet
	check(tb, unix.SchedGetaffinity(0, &set))
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// newPollers returns workers on the given processors. It comes after what is to be closed before they are.
func newPollers(tb testing.TB, cpus ...int) *device.Pollers {
	tb.Helper()
	before := runtime.GOMAXPROCS(0)
	p, err := device.NewPollers(cpus)
	check(tb, err)
	tb.Cleanup(func() {
		p.Close()
		runtime.GOMAXPROCS(before)
	})
	return p
}

// TestPollers has guests send, come and go in poll mode, also in a process that has one processor for everything, which a
// worker that never sleeps must not keep for itself.
func TestPollers(t *testing.T) {
	cpus := allowed(t)
	for _, n := range []int{1, len(cpus)} {
		for _, o := range layouts {
			t.Run(fmt.Sprintf("workers=%d,%v", n, o), func(t *testing.T) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
				p := newPollers(t, cpus[:n]...)
				if got := runtime.GOMAXPROCS(0); got != n+1 {
					t.Errorf("GOMAXPROCS is %d with %d workers, want one more", got, n)
				}
				sw := newSwitch(t)
				va := newVirtioNet(t, device.VirtioNetConfig{Pollers: p, Pairs: 2})
				vb := newVirtioNet(t, device.VirtioNetConfig{Pollers: p, Pairs: 2})
				joinVirtioNet(t, sw, va, "a")
				joinVirtioNet(t, sw, vb, "b")
				b := attachVirtio(t, vb, virtioOptions{Options: o, features: fMergeable, pairs: 2})
				for range 3 { // b's rings are looked after all the time, a's come and go
					a := attachVirtio(t, va, virtioOptions{Options: o, features: fMergeable, pairs: 2})
					for pair := range 2 {
						frame := tt.Frame(tt.Broadcast, macA, 60+pair)
						a.queue(pair, 0, packet{frame: frame})
						a.tx[pair].Publish() // and no kick
						a.flush(pair, 1)
						if got := b.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
							t.Fatalf("pair %d: got %x, want %x", pair, got, frame)
						}
					}
					runtime.GC() // which stops all goroutines
					a.gone()
				}
			})
		}
	}
}

// TestPollersThread leaves no thread behind that is bound to a processor.
func TestPollersThread(t *testing.T) {
	cpus := allowed(t)
	p, err := device.NewPollers(cpus[:1])
	check(t, err)
	check(t, p.Close())
	if got := allowed(t); len(got) != len(cpus) {
		t.Errorf("a goroutine runs on processors %v after that, want %v", got, cpus)
	}
}

func TestPollersBadProcessor(t *testing.T) {
	cpus := allowed(t)
	last := cpus[len(cpus)-1]
	for _, c := range []struct {
		cpus []int
		want string
	}{
		{nil, "at least one processor"},
		{[]int{last, last}, fmt.Sprintf("processor %d is listed twice", last)},
		{[]int{-1}, "processor -1 is none that this process may run on"},
		{[]int{last + 1}, fmt.Sprintf("processor %d is none that this process may run on", last+1)},
		{[]int{1 << 20}, "which are " + fmt.Sprint(cpus[0])},
	} {
		if _, err := device.NewPollers(c.cpus); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error %v, want one with %q", c.cpus, err, c.want)
		}
	}
}
