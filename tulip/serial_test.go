package tulip_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

func idle(t *testing.T, cfg tulip.Config) (*tt.Bare, *tt.Driver) {
	hw := tt.NewBare(cfg)
	return hw, tt.NewDriver(t, hw, tt.Options{})
}

func TestSROMImage(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  tulip.Config
		head string // bytes 0 to 47
		tail string // bytes 126 and 127
	}{
		{
			"the legacy adapter", tulip.Config{MAC: tt.Station},
			"000a1421 00000000 00000000 00000000" +
				"1d000101 00155d12 3456001e 00000008" +
				"00018c01 00000000 78e00100 50001800",
			"9d2f",
		},
		{
			"another board: both checksums follow", tulip.Config{MAC: tt.Other, SubsystemVendor: 0x1011, SubsystemID: 0x500b},
			"11100b50 00000000 00000000 00000000" +
				"d4000101 00155daa bbcc001e 00000008" +
				"00018c01 00000000 78e00100 50001800",
			"58e9",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, d := idle(t, tc.cfg)
			var want [128]byte
			decode := func(p []byte, s string) {
				b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
				if err != nil {
					t.Fatal(err)
				}
				copy(p, b)
			}
			decode(want[:], tc.head)
			decode(want[126:], tc.tail)
			d.WantSROM(t, want)
		})
	}
}

// TestSROMStyles reads words as drivers do, which find out the number of address bits
// in different ways from the same data line.
func TestSROMStyles(t *testing.T) {
	for _, style := range tt.SROMStyles {
		t.Run(style.Name, func(t *testing.T) {
			_, d := idle(t, tulip.Config{MAC: tt.Station})
			image := d.ReadSROM()
			for addr := range uint32(64) {
				want := uint16(image[2*addr]) | uint16(image[2*addr+1])<<8
				word, bits := style.Read(d, addr)
				if word != want || bits != 6 {
					t.Fatalf("word %d = %04x with %d address bits, want %04x with 6", addr, word, bits, want)
				}
			}
		})
	}
}

// TestSROMDataLine follows the data line through one read, edge by edge.
func TestSROMDataLine(t *testing.T) {
	hw, _ := idle(t, tulip.Config{MAC: tt.Station})
	const cs = tt.SROMSelect | tt.SROMCS
	clock := func(bit uint32) string {
		hw.WriteCSR(9, cs|bit*tt.SROMIn)
		hw.WriteCSR(9, cs|bit*tt.SROMIn|tt.SROMClock)
		level := hw.ReadCSR(9) & tt.SROMOut
		hw.WriteCSR(9, cs)
		if again := hw.ReadCSR(9) & tt.SROMOut; again != level {
			t.Errorf("the line moved with a falling edge")
		}
		if level != 0 {
			return "1"
		}
		return "0"
	}
	hw.WriteCSR(9, cs)
	got := ""
	for _, bit := range []uint32{0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0} { // leading zeros, start, READ, 10
		got += clock(bit)
	}
	for range 32 { // words 10 and 11: MAC bytes 0 to 3
		got += clock(1)
	}
	const want = "11111111110" + "0001010100000000" + "0001001001011101"
	if got != want {
		t.Errorf("data line\n got %s\nwant %s", got, want)
	}
	hw.WriteCSR(9, tt.SROMSelect)
	if hw.ReadCSR(9)&tt.SROMOut == 0 {
		t.Error("the line is low while the ROM is not selected")
	}
}

// TestSROMReset breaks a read off by a software reset, which lets go of the lines.
func TestSROMReset(t *testing.T) {
	hw, d := idle(t, tulip.Config{MAC: tt.Station})
	const cs = tt.SROMSelect | tt.SROMCS
	hw.WriteCSR(9, cs)
	for _, bit := range []uint32{1, 1, 0, 0, 0, 0, 0, 0, 0} { // READ word 0
		hw.WriteCSR(9, cs|bit*tt.SROMIn)
		hw.WriteCSR(9, cs|bit*tt.SROMIn|tt.SROMClock)
	}
	if hw.ReadCSR(9)&tt.SROMOut != 0 {
		t.Fatal("the ROM does not answer")
	}
	hw.WriteCSR(0, tt.SWR)
	hw.WriteCSR(9, cs)
	if hw.ReadCSR(9)&tt.SROMOut == 0 {
		t.Error("the ROM still answers")
	}
	if got := d.ReadSROM(); got[20] != tt.Station[0] || got[25] != tt.Station[5] {
		t.Errorf("MAC % x", got[20:26])
	}
}

func TestSROMWrite(t *testing.T) {
	hw, d := idle(t, tulip.Config{MAC: tt.Station})
	want := d.ReadSROM()
	send := func(bits string) {
		hw.WriteCSR(9, tt.SROMSelect|tt.SROMCS)
		for _, b := range strings.ReplaceAll(bits, " ", "") {
			v := uint32(tt.SROMSelect | tt.SROMCS)
			if b == '1' {
				v |= tt.SROMIn
			}
			hw.WriteCSR(9, v)
			hw.WriteCSR(9, v|tt.SROMClock)
		}
		hw.WriteCSR(9, tt.SROMSelect)
	}
	fill := func(words ...uint16) {
		for i, w := range words {
			want[2*i], want[2*i+1] = byte(w), byte(w>>8)
		}
	}

	send("101 000000 1111000011110000") // WRITE without EWEN
	send("111 000000")                  // ERASE without EWEN
	d.WantSROM(t, want)

	d.WriteSROM(0, 0xbeef)
	fill(0xbeef)
	d.WantSROM(t, want)
	send("101 000001 1111000011110000") // disabled again
	d.WantSROM(t, want)

	send("100 110000")                 // EWEN
	send("101 000001 111100001111000") // a bit is missing
	d.WantSROM(t, want)
	send("111 000001") // ERASE
	fill(0xbeef, 0xffff)
	d.WantSROM(t, want)
	hw.WriteCSR(0, tt.SWR)
	d.WantSROM(t, want)
	send("100 010000 0101010110101010") // WRAL: EWEN outlives a software reset
	for i := range 64 {
		want[2*i], want[2*i+1] = 0xaa, 0x55
	}
	d.WantSROM(t, want)
	hw.Chip.Reset()
	d.WantSROM(t, want)
	if got := hw.ReadConfig(0x2c, 4); got != 0x55aa55aa {
		t.Errorf("CSID = %#x after RST#, want what the serial ROM holds", got)
	}
	send("100 100000") // ERAL
	for i := range want {
		want[i] = 0xff
	}
	d.WantSROM(t, want)
}

// TestBootROMPort reads the parallel boot ROM port, on which there is nothing.
func TestBootROMPort(t *testing.T) {
	hw, _ := idle(t, tulip.Config{})
	hw.WriteCSR(10, 0x1234)
	hw.WriteCSR(9, 1<<12|1<<14)
	if got := hw.ReadCSR(9) & 0xff; got != 0xff {
		t.Errorf("boot ROM data = %#x, want ff", got)
	}
}

func TestMDIOStyles(t *testing.T) {
	for _, style := range tt.MDIOStyles {
		t.Run(style.Name, func(t *testing.T) {
			_, d := idle(t, tulip.Config{})
			regs := []struct {
				reg  uint32
				want uint16
			}{
				{0, 0x3100}, {1, 0x782d}, {2, 0x2000}, {3, 0x5c01}, {4, 0x01e1}, {5, 0x45e1}, {6, 1}, {7, 0}, {16, 0}, {25, 0x80}, {31, 0},
			}
			for _, r := range regs {
				if v, ok := style.Read(d, 1, r.reg); v != r.want || !ok {
					t.Errorf("register %d = %#x, answered %v, want %#x", r.reg, v, ok, r.want)
				}
			}
			for _, phy := range []uint32{0, 2, 31} {
				v, ok := style.Read(d, phy, 1)
				if v != 0xffff || ok && !strings.Contains(style.Name, "no turnaround check") {
					t.Errorf("PHY %d = %#x, answered %v", phy, v, ok)
				}
			}
		})
	}
}

func TestPHY(t *testing.T) {
	hw, d := idle(t, tulip.Config{})
	read := func(when string, reg uint32, want uint16) {
		t.Helper()
		if got := d.ReadPHY(1, reg); got != want {
			t.Errorf("%s: register %d = %04x, want %04x", when, reg, got, want)
		}
	}
	hw.Chip.SetLink(false)
	read("no link", 1, 0x7809)
	read("no link", 5, 0)
	read("no link", 6, 0)
	hw.Chip.SetLink(true)
	read("link, not read since it was lost", 1, 0x7829)
	read("link", 1, 0x782d)
	hw.Chip.SetLink(false)
	hw.Chip.SetLink(true)
	read("link lost for a moment", 1, 0x7829)
	read("link", 1, 0x782d)

	d.WritePHY(1, 4, 0xffff)
	read("advertisement", 4, 0xbfe1)
	d.WritePHY(1, 1, 0)
	read("read only", 1, 0x782d)
	d.WritePHY(1, 0, 0x2100) // forced 100 Mb/s full duplex
	read("forced", 0, 0x2100)
	read("forced", 1, 0x780d)
	read("forced", 5, 0)
	d.WritePHY(1, 0, 0x3300) // negotiate, restart
	read("negotiated", 0, 0x3100)
	read("negotiated", 1, 0x782d)
	d.WritePHY(1, 0, 0x3800) // power down
	read("power down", 1, 0x7809)
	d.WritePHY(1, 0, 0x8000) // reset
	read("reset", 0, 0x3100)
	read("reset", 4, 0x01e1)
	read("reset", 1, 0x7829)
	d.WritePHY(2, 0, 0)
	read("another PHY was written", 0, 0x3100)

	d.WritePHY(1, 4, 0x0061)
	hw.WriteCSR(0, tt.SWR)
	read("software reset leaves the PHY alone", 4, 0x0061)
	hw.Chip.Reset()
	read("RST#", 4, 0x01e1)
}

// TestMDIOResync breaks frames off at every bit and then reads with a full preamble.
func TestMDIOResync(t *testing.T) {
	for name, frame := range map[string]uint32{
		"write": 0b0101<<28 | 1<<23 | 0b10<<16,
		"read":  0b0110<<28 | 1<<23 | 1<<18,
	} {
		for n := range 33 {
			hw, d := idle(t, tulip.Config{})
			for i := range n {
				v := frame >> (31 - i) & 1 * tt.MDO
				hw.WriteCSR(9, v)
				hw.WriteCSR(9, v|tt.MDC)
			}
			if got := d.ReadPHY(1, 2); got != 0x2000 {
				t.Errorf("after %d bits of a %s: register 2 = %#x, want 2000", n, name, got)
			}
		}
	}
}

// TestMDIONoPreamble sends frames back to back, without any ones between them.
func TestMDIONoPreamble(t *testing.T) {
	hw, _ := idle(t, tulip.Config{})
	for range 3 {
		for i := 13; i >= 0; i-- {
			v := uint32(0b0110<<10|1<<5|2) >> i & 1 * tt.MDO
			hw.WriteCSR(9, v)
			hw.WriteCSR(9, v|tt.MDC)
		}
		var got uint32
		for range 18 {
			hw.WriteCSR(9, tt.MIIIn)
			got <<= 1
			if hw.ReadCSR(9)&tt.MDI != 0 {
				got |= 1
			}
			hw.WriteCSR(9, tt.MIIIn|tt.MDC)
		}
		if got != 1<<17|0x2000 {
			t.Fatalf("read %#x, want one half of the turnaround high, one low, and 2000", got)
		}
	}
}
