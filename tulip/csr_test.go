package tulip_test

import (
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// TestRegisters is the manual's table: reset values, and what sticks when ones and then
// zeros are written to a stopped chip.
func TestRegisters(t *testing.T) {
	for _, tc := range []struct {
		n                  int
		name               string
		reset, ones, zeros uint32
	}{
		{0, "bus mode", 0xfe000000, 0xffbffffe, 0xfe000000},
		{1, "transmit poll demand", 0xffffffff, 0xffffffff, 0xffffffff},
		{2, "receive poll demand", 0xffffffff, 0xffffffff, 0xffffffff},
		{3, "receive list base", 0, 0xfffffffc, 0},
		{4, "transmit list base", 0, 0xfffffffc, 0},
		{5, "status", 0xfc000000, 0xfc000000, 0xfc000000},
		{6, "operation mode", 0x32000040, 0xfffeffea &^ 0x2002, 0x02000000},
		{7, "interrupt enable", 0xfffe0000, 0xffffefef, 0xfffe0000},
		{8, "missed frames", 0, 0, 0},
		{9, "ROM and MII management", 0xfff483ff, 0xffffffff, 0xfff00300},
		{10, "boot ROM address", 0, 0x0003ffff, 0},
		{11, "general-purpose timer", 0xfffe0000, 0xffffffff, 0xfffe0000},
		{12, "general-purpose port", 0xfffffeff, 0xfffffe00, 0xfffffe00},
		{13, "reserved", 0xffff0000, 0xffff0000, 0xffff0000},
		{14, "reserved", 0xffffffff, 0xffffffff, 0xffffffff},
		{15, "watchdog timers", 0x8ff00000, 0x8ff00037, 0x8ff00000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{MAC: tt.Station})
			want := func(when string, want uint32) {
				t.Helper()
				if got := hw.ReadCSR(tc.n); got != want {
					t.Errorf("CSR%d %s = %08x, want %08x", tc.n, when, got, want)
				}
			}
			want("after power-on", tc.reset)
			ones := uint32(0xffffffff)
			switch tc.n {
			case 0:
				ones &^= tt.SWR
			case 6:
				ones &^= tt.ST | tt.SR
			}
			hw.WriteCSR(tc.n, ones)
			want("after writing ones", tc.ones)
			hw.WriteCSR(tc.n, 0)
			want("after writing zeros", tc.zeros)
			hw.WriteCSR(tc.n, ones)
			hw.WriteCSR(0, tt.SWR)
			want("after software reset", tc.reset)
		})
	}
	hw := tt.NewBare(tulip.Config{})
	for _, n := range []int{-1, 16} {
		hw.WriteCSR(n, 0xffffffff)
		if got := hw.ReadCSR(n); got != 0 {
			t.Errorf("CSR%d = %#x", n, got)
		}
	}
}

// TestPort turns the general-purpose pins into outputs one after the other: an output
// reads as driven, an input as one.
func TestPort(t *testing.T) {
	hw := tt.NewBare(tulip.Config{})
	hw.WriteCSR(12, 0x100|0x0f)
	hw.WriteCSR(12, 0x05)
	if got := hw.ReadCSR(12); got != 0xfffffef5 {
		t.Errorf("CSR12 = %#x, want fffffef5", got)
	}
	hw.WriteCSR(12, 0x100)
	if got := hw.ReadCSR(12); got != 0xfffffeff {
		t.Errorf("CSR12 = %#x, want fffffeff", got)
	}
}

// TestAccessSizes reaches registers by byte offset.
func TestAccessSizes(t *testing.T) {
	hw := tt.NewBare(tulip.Config{})
	c := hw.Chip
	read := func(off, size int, want uint32) {
		t.Helper()
		if got := c.ReadIO(off, size, 0); got != want {
			t.Errorf("%d bytes at %#x = %#x, want %#x", size, off, got, want)
		}
	}
	read(0x30, 4, 0x32000040)
	read(0x30+128, 4, 0x32000040) // the registers repeat
	read(0x30+0xf80, 4, 0x32000040)
	read(0x30, 1, 0x40)
	read(0x33, 1, 0x32)
	read(0x32, 2, 0x3200)
	read(0x34, 4, 0) // between registers
	read(0x31, 2, 0) // misaligned
	read(0x32, 4, 0)
	read(0x30, 8, 0)
	read(0x30, 3, 0)

	c.WriteIO(0x18, 4, 0x12345678, 0)
	c.WriteIO(0x19, 1, 0xab, 0)
	read(0x18, 4, 0x1234ab78)
	c.WriteIO(0x1a, 2, 0xcdef, 0)
	read(0x18, 4, 0xcdefab78)
	c.WriteIO(0x1a, 4, 0, 0)
	c.WriteIO(0x19, 2, 0, 0)
	c.WriteIO(0x1c, 4, 0, 0)
	read(0x18, 4, 0xcdefab78)
}

// TestStatusByte acknowledges one byte of CSR5: the events in the others stay.
func TestStatusByte(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	hw.Inject(tt.Frame(tt.Station, tt.Other, 60))
	d.Stop()
	hw.Chip.WriteIO(0x29, 1, tt.RPS>>8, 0)
	if got := hw.ReadCSR(5) & 0x7fff; got != tt.RI|tt.TPS {
		t.Errorf("events %#x, want RI and TPS", got)
	}
	hw.Chip.WriteIO(0x28, 2, 0xffff, 0)
	d.WantQuiet()
}

// TestMissedFrames counts in CSR8, which a full read clears and a byte read does not.
func TestMissedFrames(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{RxCount: 1})
	frame := tt.Frame(tt.Station, tt.Other, 60)
	hw.Inject(frame)
	for range 3 {
		hw.Inject(frame)
	}
	hw.Inject(tt.Frame(tt.Other, tt.Station, 60)) // not for us, not missed
	if got := hw.Chip.ReadIO(0x40, 1, 0); got != 3 {
		t.Errorf("CSR8 by byte = %d, want 3", got)
	}
	if got := hw.Chip.ReadIO(0x42, 2, 0); got != 0 {
		t.Errorf("CSR8 high half = %d, want 0", got)
	}
	hw.WriteCSR(8, 0)
	if got := hw.ReadCSR(8); got != 3 {
		t.Errorf("CSR8 = %d, want 3", got)
	}
	if got := hw.ReadCSR(8); got != 0 {
		t.Errorf("CSR8 = %d after a read, want 0", got)
	}
	hw.Inject(frame)
	if got := hw.Chip.ReadIO(0x40, 2, 0); got != 1 {
		t.Errorf("CSR8 by word = %d, want 1", got)
	}
	for range 1<<16 + 1 {
		hw.Inject(frame)
	}
	if got := hw.ReadCSR(8); got != 1<<16|1 {
		t.Errorf("CSR8 = %#x after 65537 frames, want the overflow bit and 1", got)
	}
	d.WantRx(frame, tt.RxFT)
}
