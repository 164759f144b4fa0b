package tulip_test

import (
	"fmt"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// rig is a chip with full rings, for measurements: no driver checks what it does.
type rig struct {
	*tt.Bare
	d     *tt.Driver
	batch [16]tulip.TxFrame
	parts [][]byte
	rx    int
}

func newRig(t testing.TB, indirect bool, n int) *rig {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	hw.Indirect = indirect
	r := &rig{Bare: hw, d: d}
	queue(d, tt.Frame(tt.Other, tt.Station, 2000), r.segs(n)...)
	frame := tt.Frame(tt.Station, tt.Other, n)
	r.parts = [][]byte{frame[:14], frame[14:]}
	return r
}

func (r *rig) segs(n int) []seg {
	segs := make([]seg, 16)
	for i := range segs {
		segs[i] = seg{tt.FS | tt.LS | tt.IC, n, 0}
	}
	return segs
}

// transmit gives the ring to the chip again and takes all frames out of it.
func (r *rig) transmit() int {
	for i := range 16 {
		r.PutUint32(r.d.TxDesc(i), tt.OWN)
	}
	r.Chip.WriteCSR(5, 0xffffffff, 0)
	r.Chip.WriteCSR(1, 0, 0)
	n := r.Chip.PollTx(r.batch[:], 0)
	r.Chip.FinishTx(n, 0)
	return n
}

// receive stores one frame and gives its descriptor back.
func (r *rig) receive() tulip.RxResult {
	res := r.Chip.Receive(r.parts, 0)
	r.PutUint32(r.d.RxDesc(r.rx), tt.OWN)
	r.rx = (r.rx + 1) % 16
	return res
}

// TestAllocs wants no allocation for a frame, once the chip has seen a batch.
func TestAllocs(t *testing.T) {
	for _, indirect := range []bool{false, true} {
		for _, n := range []int{60, 20, 1514} {
			r := newRig(t, indirect, n)
			if got := r.transmit(); got != 16 {
				t.Fatalf("%d frames", got)
			}
			if got := r.receive(); got != tulip.RxAccepted {
				t.Fatalf("%v", got)
			}
			if got := testing.AllocsPerRun(100, func() { r.transmit() }); got != 0 {
				t.Errorf("indirect %v, %d bytes: %v allocations to transmit", indirect, n, got)
			}
			if got := testing.AllocsPerRun(100, func() { r.receive() }); got != 0 {
				t.Errorf("indirect %v, %d bytes: %v allocations to receive", indirect, n, got)
			}
			r.Chip.WriteCSR(3, 0, 0)
			if got := testing.AllocsPerRun(100, func() { r.Chip.Receive(r.parts, 0); r.Chip.Tick(0) }); got != 0 {
				t.Errorf("indirect %v, %d bytes: %v allocations after an abort", indirect, n, got)
			}
		}
	}
}

func BenchmarkTransmit(b *testing.B) {
	for _, n := range []int{64, 1514} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, false, n)
			b.SetBytes(int64(n))
			frames := 0
			for frames < b.N {
				frames += r.transmit()
			}
			b.ReportMetric(float64(frames)/b.Elapsed().Seconds()/1e6, "Mpps")
		})
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, n := range []int{64, 1514} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, false, n)
			b.SetBytes(int64(n))
			for range b.N {
				r.receive()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
		})
	}
}
