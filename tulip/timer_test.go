package tulip_test

import (
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

const (
	us = 1_000
	ms = 1_000_000
)

func TestTimer(t *testing.T) {
	for _, tc := range []struct {
		name string
		csr6 uint32
		tick int64
	}{
		{"MII 100 Mb/s", 1 << 18, 81_920},
		{"MII 10 Mb/s", 1<<18 | 1<<22, 819_200},
		{"serial port", 0, 204_800},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := idle(t, tulip.Config{})
			hw.Now = 12345
			hw.WriteCSR(6, tc.csr6)
			hw.WriteCSR(7, tt.GTE|tt.NIS)
			hw.WriteCSR(11, 0x12)
			left := func(want uint32) {
				t.Helper()
				if got := hw.ReadCSR(11); got != 0xfffe0000|want {
					t.Errorf("CSR11 = %#x, want %#x ticks left", got, want)
				}
			}
			left(0x12)
			if at, ok := hw.Chip.Deadline(); !ok || at != 12345+0x12*tc.tick {
				t.Errorf("deadline %d, %v", at, ok)
			}
			hw.Advance(tc.tick)
			left(0x11)
			hw.Advance(0x11*tc.tick - 1)
			left(1)
			d.WantQuiet()
			hw.Advance(1)
			left(0)
			d.WantInterrupt(tt.GTE)
			hw.Advance(ms * 1000)
			d.WantQuiet()
			if _, ok := hw.Chip.Deadline(); ok {
				t.Error("a timer that has expired has a deadline")
			}
		})
	}
}

func TestTimerContinuous(t *testing.T) {
	hw, d := idle(t, tulip.Config{})
	hw.WriteCSR(6, tt.MII)
	hw.WriteCSR(7, tt.GTE|tt.NIS)
	hw.WriteCSR(11, 1<<16|10)
	for range 5 {
		hw.Advance(10 * 81_920)
		d.WantInterrupt(tt.GTE)
		if got := hw.ReadCSR(11); got != 0xffff000a {
			t.Errorf("CSR11 = %#x, want a full count", got)
		}
	}
	hw.Now += 95 * 81_920 // nobody calls Tick for long: one event, and the beat is kept
	d.WantInterrupt(tt.GTE)
	if at, ok := hw.Chip.Deadline(); !ok || at != 150*81_920 {
		t.Errorf("deadline %d, %v, want the next multiple", at, ok)
	}
	hw.WriteCSR(11, 0)
	hw.Advance(ms * 1000)
	d.WantQuiet()
}

// TestTimerAlone is Linux's way out of too much work: every event but GTE is masked,
// and the timer must come.
func TestTimerAlone(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	hw.WriteCSR(7, tt.GTE|tt.NIS|tt.AIS)
	hw.WriteCSR(11, 0x12)
	frame := tt.Frame(tt.Station, tt.Other, 60)
	hw.Inject(frame)
	d.WantQuiet()
	hw.Advance(0x12 * 81_920)
	d.WantInterrupt(tt.GTE | tt.RI)
}

// TestAutoPoll finds a descriptor that nobody announces, and raises TU once.
func TestAutoPoll(t *testing.T) {
	for tap, period := range []int64{0, 200 * us, 800 * us, 1600 * us, 200 * us, 200 * us, 200 * us, 200 * us} {
		hw, d := start(t, tulip.Config{}, tt.Options{})
		hw.WriteCSR(0, 0x01a08000|uint32(tap)<<17)
		at, ok := hw.Chip.Deadline()
		if tap == 0 {
			if ok {
				t.Error("TAP 0 has a deadline")
			}
			continue
		}
		if !ok || at != hw.Now+period {
			t.Errorf("TAP %d: deadline %d, %v, want %d", tap, at, ok, hw.Now+period)
		}
		hw.Advance(10 * period)
		d.WantQuiet() // no TU for each poll
		d.WantState(3, 6)

		frame := tt.Frame(tt.Other, tt.Station, 100)
		d.Queue(frame, tt.FS|tt.LS|tt.IC)
		hw.Advance(period - 1)
		d.WantNoTx()
		hw.Advance(1)
		d.WantTx(frame).WantInterrupt(tt.TI | tt.TU)
		if _, ok := hw.Chip.Deadline(); !ok {
			t.Errorf("TAP %d: polling has ended", tap)
		}

		d.Stop()
		if _, ok := hw.Chip.Deadline(); ok {
			t.Errorf("TAP %d: polling while stopped", tap)
		}
	}
}

// TestAutoPollAbort polls a list that is no longer in memory.
func TestAutoPollAbort(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	hw.WriteCSR(4, 0x10)
	hw.WriteCSR(0, 0x01a08000|1<<17)
	hw.Advance(ms)
	d.WantInterrupt(tt.FBE).WantState(0, 0)
	if _, ok := hw.Chip.Deadline(); ok {
		t.Error("polling after a bus error")
	}
}
