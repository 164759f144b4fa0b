package device_test

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/vfiouser"
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

// adaptive returns a worker for guests that come and go before the test ends.
func adaptive(tb testing.TB) *device.Workers {
	tb.Helper()
	w, err := device.NewWorkers(1, vfiouser.NewSpinners(1))
	check(tb, err)
	tb.Cleanup(func() { check(tb, w.Close()) })
	return w
}

// newPollers returns workers on the given processors, likewise.
func newPollers(tb testing.TB, cpus ...int) *device.Workers {
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
				va := newVirtioNet(t, device.VirtioNetConfig{Workers: p, Pairs: 2})
				vb := newVirtioNet(t, device.VirtioNetConfig{Workers: p, Pairs: 2})
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

// TestWorkersShared has one worker for the rings of several guests: those that are silent are heard when they kick, whatever
// another sends meanwhile without end.
func TestWorkersShared(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			sw, w := newSwitch(t), adaptive(t)
			guests := make([]*virtioGuest, 4)
			for i := range guests {
				v := newVirtioNet(t, device.VirtioNetConfig{Workers: w})
				joinVirtioNet(t, sw, v, fmt.Sprint(i))
				guests[i] = attachVirtio(t, v, virtioOptions{Options: o, features: fMergeable})
			}
			var over atomic.Bool
			var sending sync.WaitGroup
			sending.Go(func() { // to nobody's address, so that it meets no full ring
				for frame := tt.Frame(macA, macA, 60); !over.Load(); {
					for token := range 16 {
						guests[0].queue(0, token, packet{frame: frame})
					}
					guests[0].flush(0, 16)
				}
			})
			for n := range 20 {
				from, to := guests[1+n%3], guests[1+(n+1)%3]
				frame := tt.Frame(tt.Broadcast, macB, 60+n)
				time.Sleep(time.Millisecond) // enough, as a rule, to be left alone
				from.send(frame)
				if got := to.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
					t.Errorf("frame %d: got %x, want %x", n, got, frame)
				}
				guests[1+(n+2)%3].receive(0)
				guests[0].receive(0)
			}
			over.Store(true)
			sending.Wait()
		})
	}
}

// TestWorkersIdle finds no waste: guests that are attached and silent cost next to nothing, neither in time of a processor nor in
// wake-ups.
func TestWorkersIdle(t *testing.T) {
	sw, w := newSwitch(t), adaptive(t)
	for i := range 16 {
		v := newVirtioNet(t, device.VirtioNetConfig{Workers: w})
		joinVirtioNet(t, sw, v, fmt.Sprint(i))
		attachVirtio(t, v, virtioOptions{Options: layouts[i%len(layouts)]}).send(tt.Frame(tt.Broadcast, macA, 60))
	}
	used := func() (seconds float64, switches int64) {
		var u unix.Rusage
		check(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9, u.Nvcsw
	}
	time.Sleep(100 * time.Millisecond) // the workers sleep after a thousandth of that
	seconds, switches := used()
	time.Sleep(500 * time.Millisecond)
	after, afterSwitches := used()
	// A worker that looks out would use all of the half second, one that wakes up every millisecond 500 switches.
	if after-seconds > 0.1 || afterSwitches-switches > 250 {
		t.Errorf("half a second in which nothing happens took %.3f s of a processor and %d switches", after-seconds, afterSwitches-switches)
	}
	t.Logf("half a second in which nothing happens took %.4f s of a processor and %d switches", after-seconds, afterSwitches-switches)
}
