package virtq_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"polder/device/virtq"
	"polder/device/virtq/virtqtest"
)

// wire is a guest that sends and one that receives, with a back end between their queues that
// does no more than copy: header and frame from the one's memory to the other's.
type wire struct {
	tx, rx   *virtqtest.Driver
	from, to *virtq.Queue
	chains   []virtq.Chain
	sizes    []int
	bufs     [][]byte
	out, in  []virtqtest.Buffer // one for each token
	pending  int                // chains[at:pending] are taken and not forwarded
	at       int
}

// bufferSize is the distance of buffers, as drivers lay them out.
const bufferSize = 2048

func newWire(tb testing.TB, o virtqtest.Options, frame int) *wire {
	w := &wire{chains: make([]virtq.Chain, 32), sizes: make([]int, 32), bufs: make([][]byte, 32)}
	for i, d := range []**virtqtest.Driver{&w.tx, &w.rx} {
		ram := virtqtest.NewRAM(tb, base, 4*size)
		*d = virtqtest.NewDriver(ram, o)
		q := mustNew(tb, ram, (*d).Config())
		q.Disarm()
		(*d).Disarm()
		for range o.Num {
			addr := ram.Alloc(bufferSize, 64)
			if i == 0 {
				w.out = append(w.out, virtqtest.Buffer{Addr: addr, Len: uint32(12 + frame)})
			} else {
				w.in = append(w.in, virtqtest.Buffer{Addr: addr, Len: bufferSize, Write: true})
			}
		}
		if i == 0 {
			w.from = q
		} else {
			w.to = q
		}
	}
	for i := range o.Num {
		w.tx.Add(w.out[i:i+1], i, false)
		w.rx.Add(w.in[i:i+1], i, false)
	}
	w.tx.Publish()
	w.rx.Publish()
	return w
}

// forward moves what it can, up to 32 frames, and returns how many.
func (w *wire) forward(tb testing.TB) int {
	if w.at == w.pending {
		n, err := w.from.Take(w.chains)
		if err != nil {
			tb.Fatal(err)
		}
		w.at, w.pending = 0, n
		if n == 0 {
			return 0
		}
	}
	left := w.chains[w.at:w.pending]
	for i := range left {
		w.sizes[i] = len(left[i].Out[0])
	}
	n := w.to.FillEach(w.sizes[:len(left)], w.bufs)
	for i, b := range w.bufs[:n] {
		copy(b, left[i].Out[0])
	}
	if n == 0 { // the driver has not yet given buffers, or the queue has to find the memory first
		parts, buffers, err := w.to.Fill(len(left[0].Out[0]), true)
		if err != nil {
			tb.Fatal(err)
		}
		if buffers == 0 {
			return 0
		}
		copy(parts[0], left[0].Out[0])
		n = 1
	}
	w.from.DoneAll(left[:n])
	w.at += n
	w.to.Publish()
	w.from.Publish()
	return n
}

// refill takes up to 64 buffers back from each queue and gives them to the device again.
func (w *wire) refill() {
	for _, d := range []struct {
		*virtqtest.Driver
		bufs []virtqtest.Buffer
	}{{w.tx, w.out}, {w.rx, w.in}} {
		for range 64 {
			u, ok := d.Reap()
			if !ok {
				break
			}
			d.Add(d.bufs[u.Token:u.Token+1], u.Token, false)
		}
		d.Publish()
	}
}

func benchmarkForward(b *testing.B, run func(b *testing.B, w *wire)) {
	for _, o := range []virtqtest.Options{
		{Num: 256, InOrder: true, Indirect: true},
		{Num: 256, EventIdx: true, Indirect: true},
		{Num: 256, Packed: true, InOrder: true, Indirect: true},
		{Num: 256, Packed: true, EventIdx: true, Indirect: true},
	} {
		for _, n := range []int{64, 1500} {
			b.Run(fmt.Sprintf("%v/%d", o, n), func(b *testing.B) {
				w := newWire(b, o, n)
				b.SetBytes(int64(n))
				b.ResetTimer()
				run(b, w)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
			})
		}
	}
}

// BenchmarkForward has the drivers in the same goroutine: all caches are warm, and the time is that of both halves.
func BenchmarkForward(b *testing.B) {
	benchmarkForward(b, func(b *testing.B, w *wire) {
		for i := 0; i < b.N; {
			i += w.forward(b)
			w.refill()
		}
	})
}

// BenchmarkForwardAcross has the drivers on another processor, as they are in real life: the time is mostly that of cache
// lines on their way.
func BenchmarkForwardAcross(b *testing.B) {
	benchmarkForward(b, func(b *testing.B, w *wire) {
		if runtime.GOMAXPROCS(0) < 2 {
			b.Fatal("needs two processors")
		}
		var quit atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			for !quit.Load() {
				w.refill()
			}
		}()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for i := 0; i < b.N; {
			i += w.forward(b)
		}
		quit.Store(true)
		<-done
	})
}
