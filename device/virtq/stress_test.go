//go:build !race

// The rings are in memory that the race detector does not follow, and rightly so: it knows the rules of Go's memory
// model, and would call the plain accesses to 16-bit fields races, though the protocol and the processors
// order them. What it would do here is to slow both sides down until they never meet.

package virtq_test

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

// bells are the doorbells of two sides, 0 and 1. Whoever goes to sleep while the other sleeps and neither
// bell has rung will never be woken: a doorbell was missed. So no clock is needed to notice.
type bells struct {
	mu     sync.Mutex
	wake   sync.Cond
	rung   [2]bool
	asleep [2]bool
	over   bool
	sleeps int
}

// ring wakes a side, or keeps it from going to sleep.
func (b *bells) ring(side int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung[side] = true
	b.wake.Broadcast()
}

// wait sleeps until the bell of side rings. It returns false if that cannot happen any more.
func (b *bells) wait(side int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sleeps++
	b.asleep[side] = true
	for !b.rung[side] && !b.over {
		if b.asleep[1-side] && !b.rung[1-side] {
			b.over = true
			b.wake.Broadcast()
			break
		}
		b.wake.Wait()
	}
	b.asleep[side], b.rung[side] = false, false
	return !b.over
}

// Case 32: a driver and a device on two threads, which sleep whenever they may, lose no buffer, see what the other wrote
// before it handed a buffer over, and miss no doorbell.
func TestCase32Stress(t *testing.T) {
	const frames = 2000
	for _, num := range []int{1, 2, 16} {
		list := rings(num)[:8] // tables have the same doorbells
		forEach(t, list, func(t *testing.T, o virtqtest.Options) {
			ram := virtqtest.NewRAM(t, base, size)
			d := virtqtest.NewDriver(ram, o)
			q := mustNew(t, ram, d.Jump(65536-num))
			b := &bells{}
			b.wake.L = &b.mu
			var both sync.WaitGroup
			both.Go(func() { driveStress(t, ram, d, b, frames) })
			both.Go(func() { serveStress(t, q, b, frames) })
			both.Wait()
			t.Logf("%d frames, %d sleeps", frames, b.sleeps)
		})
	}
}

const (
	driverSide = 0
	deviceSide = 1
)

// patience is how often a side looks again before it goes to sleep: between once and a few thousand times, at random, so that
// the two meet at every point of each other's steps.
type patience struct {
	seed uint32
	left int
}

// more reports whether to look again.
func (p *patience) more() bool {
	if p.left--; p.left > 0 {
		return true
	}
	p.seed = p.seed*1664525 + 1013904223
	p.left = 1 << (p.seed >> 16 % 12)
	return false
}

// driveStress sends numbers in buffers of 8 bytes and wants their complements back.
func driveStress(t *testing.T, ram *virtqtest.RAM, d *virtqtest.Driver, b *bells, frames int) {
	runtime.LockOSThread() // in parallel, also when one wakes the other
	defer runtime.UnlockOSThread()
	defer b.ring(deviceSide)
	var patience patience
	num := d.Options().Num
	addr := func(i int) uint64 { return base + size/2 + uint64(64*(i%num)) }
	d.Disarm()
	for sent, back := 0, 0; back < frames; {
		added := false
		for sent < frames && sent-back < num {
			binary.LittleEndian.PutUint64(ram.Bytes(addr(sent), 8), uint64(sent))
			if !d.Add([]virtqtest.Buffer{{Addr: addr(sent), Len: 8, Write: true}}, sent, false) {
				t.Errorf("no room for frame %d, %d are back", sent, back)
				return
			}
			sent++
			added = true
			if sent%3 == 0 {
				break // a batch of another size than the device's
			}
		}
		if added && d.Publish() {
			b.ring(deviceSide)
		}
		got := false
		for {
			u, ok := d.Reap()
			if !ok {
				break
			}
			got = true
			if v := binary.LittleEndian.Uint64(ram.Bytes(addr(back), 8)); u.Token != back || u.Written != 8 || v != ^uint64(back) {
				t.Errorf("frame %d came back as %+v with %#x", back, u, v)
				return
			}
			back++
		}
		if added || got || patience.more() {
			continue
		}
		if !d.Arm() && !b.wait(driverSide) {
			t.Errorf("both asleep: %d frames sent, %d back", sent, back)
			return
		}
		d.Disarm()
	}
}

// serveStress complements what it receives.
func serveStress(t *testing.T, q *virtq.Queue, b *bells, frames int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer b.ring(driverSide)
	patience := patience{seed: 12345}
	chains := make([]virtq.Chain, 4)
	for seen := 0; seen < frames; {
		n, err := q.Take(chains)
		if err != nil {
			t.Error(err)
			return
		}
		for i := range n {
			p := chains[i].In[0]
			if v := binary.LittleEndian.Uint64(p); v != uint64(seen) {
				t.Errorf("frame %d arrived as %#x", seen, v)
				return
			}
			binary.LittleEndian.PutUint64(p, ^uint64(seen))
			q.Done(&chains[i], 8)
			seen++
		}
		if q.Publish() {
			b.ring(driverSide)
		}
		if n > 0 || patience.more() {
			continue
		}
		if !q.Arm() && !b.wait(deviceSide) {
			t.Errorf("both asleep: %d frames seen", seen)
			return
		}
		q.Disarm()
	}
}

// barrier is where two goroutines meet, over and over, without a lock: they leave it within nanoseconds of each other.
type barrier struct{ arrived atomic.Uint32 }

// meet returns when both have called it for the round-th time, counted from 1, and after a pause of a few
// nanoseconds that is different each time.
func (b *barrier) meet(round int, pause uint32) {
	b.arrived.Add(1)
	for n := 0; b.arrived.Load() < 2*uint32(round); n++ {
		if n%256 == 255 {
			runtime.Gosched()
		}
	}
	for pause = pause * 2654435761 >> 23; pause > 0; pause-- {
		b.arrived.Load()
	}
}

// The litmus test of the doorbells. One side shows a buffer and looks whether the other sleeps, while the other goes to sleep and
// looks whether there is a buffer. Each may be told no, but not both: that is the order of a store and
// a later load, which processors give up first.
func TestCase32Litmus(t *testing.T) {
	const rounds = 10000
	forEach(t, rings(4)[:4], func(t *testing.T, o virtqtest.Options) {
		ram := virtqtest.NewRAM(t, base, size)
		d := virtqtest.NewDriver(ram, o)
		q := mustNew(t, ram, d.Jump(65536-100))
		var (
			b                           barrier
			kick, devicePending         bool // each written by one side, between two meetings
			call, driverPending, reaped bool
			both                        sync.WaitGroup
		)
		both.Go(func() { // the driver
			for i := range rounds {
				d.Disarm()
				d.Add([]virtqtest.Buffer{{Addr: base + size/2, Len: 8}}, i, false)
				b.meet(4*i+1, uint32(i))
				kick = d.Publish()
				b.meet(4*i+2, 0)
				if !kick && !devicePending {
					t.Errorf("round %d: the device is not kicked and sees no buffer", i)
				}
				b.meet(4*i+3, uint32(i))
				driverPending = d.Arm()
				b.meet(4*i+4, 0)
				if _, reaped = d.Reap(); !reaped || i > 0 && !call && !driverPending {
					t.Errorf("round %d: reaped %t, called %t, pending %t", i, reaped, call, driverPending)
				}
			}
		})
		both.Go(func() { // the device
			chains := make([]virtq.Chain, 1)
			for i := range rounds {
				b.meet(4*i+1, uint32(i)*7)
				devicePending = q.Arm()
				b.meet(4*i+2, 0)
				q.Disarm()
				if n, err := q.Take(chains); n != 1 || err != nil {
					t.Errorf("round %d: took %d, %v", i, n, err)
				}
				q.Done(&chains[0], 0)
				b.meet(4*i+3, uint32(i)*7)
				call = q.Publish()
				b.meet(4*i+4, 0)
			}
		})
		both.Wait()
	})
}
