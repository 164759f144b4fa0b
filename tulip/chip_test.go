package tulip_test

import (
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// start returns a bare chip with a driver that has come up on it.
func start(t testing.TB, cfg tulip.Config, o tt.Options) (*tt.Bare, *tt.Driver) {
	t.Helper()
	if cfg.MAC == ([6]byte{}) {
		cfg.MAC = tt.Station
	}
	hw := tt.NewBare(cfg)
	d := tt.NewDriver(t, hw, o)
	d.Reset()
	d.Start()
	d.LoadSetupFrame(0, tt.Station, tt.Broadcast)
	hw.WriteCSR(5, ^uint32(0))
	return hw, d
}

// TestTraffic sends and receives frames of all lengths, in every form of list.
func TestTraffic(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    tt.Options
	}{
		{"rings", tt.Options{}},
		{"chains", tt.Options{Chain: true}},
		{"rings with gaps, CSR0<DSL>", tt.Options{Skip: 5}},
		{"two buffers", tt.Options{RxBuf1: 512, RxBuf2: 1024, TxBuf2: true}},
		{"first buffer empty", tt.Options{RxBuf2: 1536, TxBuf2: true}},
		{"several receive descriptors to a frame", tt.Options{RxBuf1: 256, RxBuf2: 128}},
		{"several, chained", tt.Options{RxBuf1: 256, Chain: true}},
		{"one transmit descriptor", tt.Options{TxCount: 1}},
		{"big-endian descriptors, CSR0<DBO>", tt.Options{BigEndian: true}},
	} {
		for _, indirect := range []bool{false, true} {
			name := tc.name
			if indirect {
				name += ", memory not mapped"
			}
			t.Run(name, func(t *testing.T) {
				hw, d := start(t, tulip.Config{}, tc.o)
				hw.Indirect = indirect
				for n := 14; n <= 1514; n += 25 {
					frame := tt.Frame(tt.Other, tt.Station, n)
					d.Send(frame).WantTx(frame).WantNoTx().WantInterrupt(tt.TI | tt.TU)
					d.WantState(3, 6)

					frame = tt.Frame(tt.Station, tt.Other, n)
					hw.Inject(frame)
					d.WantRx(frame, tt.RxFT).WantNoRx().WantInterrupt(tt.RI)
				}
				if len(hw.Aborted) > 0 {
					t.Errorf("DMA outside the memory: %+v", hw.Aborted)
				}
			})
		}
	}
}
