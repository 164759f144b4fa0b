package tulip_test

import (
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

func TestConfigSpace(t *testing.T) {
	for _, tc := range []struct {
		name            string
		off             int
		reset, writable uint32 // writable: what an all-ones longword write leaves set
	}{
		{"CFID: 1011:0009", 0x00, 0x00091011, 0x00091011},
		{"CFCS: I/O, memory, master, parity and SERR enables; no capability list", 0x04, 0x02800000, 0x02800147},
		{"CFRV: Ethernet, revision 20", 0x08, 0x02000020, 0x02000020},
		{"CFLT: latency timer and cache line size", 0x0c, 0, 0x0000ffff},
		{"CBIO: 128 bytes of I/O", 0x10, 1, 0xffffff81},
		{"CBMA: 4 KiB of memory", 0x14, 0, 0xfffff000},
		{"no third base address", 0x18, 0, 0},
		{"no CardBus CIS", 0x28, 0, 0},
		{"CSID: 0A00:2114", 0x2c, 0x21140a00, 0x21140a00},
		{"CBER: none", 0x30, 0, 0},
		{"no capability pointer", 0x34, 0, 0},
		{"CFIT: line, INTA, 5 us, 10 us", 0x3c, 0x281401ff, 0x281401ff},
		{"CFDA: sleep, snooze, driver's byte", 0x40, 0, 0xc000ff00},
		{"nothing above", 0x44, 0, 0},
		{"nothing at the end", 0xfc, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{MAC: tt.Station})
			if got := hw.ReadConfig(tc.off, 4); got != tc.reset {
				t.Errorf("reset value %08x, want %08x", got, tc.reset)
			}
			hw.WriteConfig(tc.off, 4, 0xffffffff)
			if got := hw.ReadConfig(tc.off, 4); got != tc.writable {
				t.Errorf("after writing ones %08x, want %08x", got, tc.writable)
			}
			for i := range 4 {
				hw.WriteConfig(tc.off+i, 1, 0)
			}
			hw.WriteConfig(tc.off+2, 2, 0xffff)
			hw.WriteConfig(tc.off, 2, 0xffff)
			if got := hw.ReadConfig(tc.off, 4); got != tc.writable {
				t.Errorf("after writing ones in halves %08x, want %08x", got, tc.writable)
			}
			hw.Chip.Reset()
			if got := hw.ReadConfig(tc.off, 4); got != tc.reset {
				t.Errorf("after RST# %08x, want %08x", got, tc.reset)
			}
		})
	}
}

func TestConfigROM(t *testing.T) {
	for _, tc := range []struct{ size, mask uint32 }{
		{0, 0},
		{1, 0xfffff801},
		{2 << 10, 0xfffff801},
		{2<<10 + 1, 0xfffff001},
		{64 << 10, 0xffff0001},
		{100 << 10, 0xfffe0001},
		{256 << 10, 0xfffc0001},
	} {
		hw := tt.NewBare(tulip.Config{ROMSize: tc.size})
		hw.WriteConfig(0x30, 4, 0xffffffff)
		if got := hw.ReadConfig(0x30, 4); got != tc.mask {
			t.Errorf("ROM of %d bytes: CBER takes %08x, want %08x", tc.size, got, tc.mask)
		}
	}
}

// TestConfigAccess reads and writes across longwords and out of range.
func TestConfigAccess(t *testing.T) {
	hw := tt.NewBare(tulip.Config{SubsystemVendor: 0x1234, SubsystemID: 0x5678})
	for _, tc := range []struct {
		off, size int
		want      uint32
	}{
		{0x00, 2, 0x1011}, {0x02, 2, 0x0009}, {0x08, 1, 0x20}, {0x09, 1, 0}, {0x0b, 1, 2}, {0x0e, 1, 0},
		{0x2c, 2, 0x1234}, {0x2e, 2, 0x5678}, {0x3d, 1, 1}, {0x02, 4, 0x00000009}, {0x01, 2, 0x0910},
		{0x43, 4, 0}, {-1, 4, 0x09101100}, {1 << 20, 4, 0},
	} {
		if got := hw.ReadConfig(tc.off, tc.size); got != tc.want {
			t.Errorf("%d bytes at %#x = %#x, want %#x", tc.size, tc.off, got, tc.want)
		}
	}
	before := hw.Chip.State()
	hw.WriteConfig(-4, 4, 0xffffffff)
	hw.WriteConfig(0x44, 4, 0xffffffff)
	if hw.Chip.State() != before {
		t.Error("a write outside configuration space changed it")
	}
}
