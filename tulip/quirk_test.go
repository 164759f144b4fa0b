package tulip_test

import (
	"bytes"
	"fmt"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// TestQuirks has one row for each behaviour that some driver is known to rely on.
func TestQuirks(t *testing.T) {
	out := tt.Frame(tt.Other, tt.Station, 100)
	in := tt.Frame(tt.Station, tt.Other, 100)
	up := func(t *testing.T) (*tt.Bare, *tt.Driver) { return startAt0(t, tulip.Config{}, tt.Options{}) }

	for _, tc := range []struct {
		n    int
		name string
		test func(t *testing.T)
	}{
		{1, "CSR0<SWR> reads 0, and the chip works without it being cleared (tlp, dc; de, illumos, MINIX)", func(t *testing.T) {
			hw, _ := up(t)
			hw.WriteCSR(0, hw.ReadCSR(0)|1)
			if got := hw.ReadCSR(0); got != 0xfe000000 {
				t.Errorf("CSR0 = %#x", got)
			}
			d := tt.NewDriver(t, hw, tt.Options{})
			d.Reset()
			d.Start()
			d.Send(out).WantTx(out)
		}},
		{2, "states are 0 right after a stop, TPS and RPS set (Linux, tlp, illumos, ReactOS, de)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(6, d.CSR6)
			if got := hw.ReadCSR(5) & (tt.TS | tt.RS | tt.TPS | tt.RPS); got != tt.TPS|tt.RPS {
				t.Errorf("CSR5 = %#x", got)
			}
		}},
		{3, "no TPS, RPS or AIS when nothing ran (tlp, MINIX, illumos)", func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{})
			d := tt.NewDriver(t, hw, tt.Options{})
			d.Reset()
			for range 3 {
				hw.WriteCSR(6, d.CSR6)
				hw.WriteCSR(6, 0)
			}
			if got := hw.ReadCSR(5); got != 0xfc000000 {
				t.Errorf("CSR5 = %#x", got)
			}
		}},
		{4, "masked events do not show in AIS or NIS (illumos, MINIX)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(7, tt.NIS|tt.AIS|tt.RI|tt.TI)
			hw.WriteCSR(6, d.CSR6)
			d.WantQuiet()
			hw.WriteCSR(7, tt.AIS|tt.TPS)
			d.WantInterrupt(tt.TPS | tt.AIS)
		}},
		{5, "interrupts without CSR7<NIE> (MINIX)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(7, 0x8041)
			hw.Inject(in)
			d.WantInterrupt(tt.RI)

			hw, d = startAt0(t, tulip.Config{StrictINTA: true}, tt.Options{Mask: 0x8041})
			hw.Inject(in)
			if hw.INTA {
				t.Error("StrictINTA: interrupt without NIE")
			}
			hw.WriteCSR(7, tt.NIS|tt.RI)
			d.WantInterrupt(tt.RI)
		}},
		{6, "a byte written to CSR1 is a poll demand (illumos)", func(t *testing.T) {
			for _, off := range []int{8, 9, 0x88} {
				hw, d := up(t)
				d.Queue(out, tt.FS|tt.LS)
				hw.Chip.WriteIO(off, 1, 1, 0)
				hw.Pump()
				d.WantTx(out)
			}
		}},
		{7, "CSR1 writes while stopped do nothing (MINIX)", func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{})
			before := hw.Chip.State()
			for range 1000 {
				hw.WriteCSR(1, 0)
			}
			if hw.Chip.State() != before {
				t.Error("the state changed")
			}
		}},
		{8, "set-up frames with FS, LS and IC; TDES1 to TDES3 unchanged (de, tlp)", func(t *testing.T) {
			_, d := up(t)
			d.LoadSetupFrame(tt.FS|tt.LS, tt.Station)
			d.WantInterrupt(tt.TI)
		}},
		{9, "TDES0 of a set-up frame is 7FFFFFFF (U-Boot)", func(t *testing.T) {
			_, d := up(t)
			i := d.Queue(make([]byte, 192), tt.SET)
			d.Kick()
			if got := d.Load(d.TxDesc(i)); got != 0x7fffffff {
				t.Errorf("TDES0 = %#x", got)
			}
			d.WantInterrupt(tt.TU)
		}},
		{10, "an empty transmit descriptor before a set-up frame (Linux, ReactOS)", func(t *testing.T) {
			_, d := up(t)
			i := d.Queue(nil, 0)
			d.LoadSetupFrame(0, tt.Station)
			if got := d.Load(d.TxDesc(i)); got != 0 {
				t.Errorf("TDES0 = %#x", got)
			}
		}},
		{11, "filtering by hash only (illumos)", func(t *testing.T) {
			hw, d := up(t)
			d.LoadHashFrame(tt.FT0|tt.FT1, [6]byte{}, tt.Station, tt.Broadcast)
			hw.Inject(in)
			d.WantRx(in, tt.RxFT)
		}},
		{12, "only the low half of each longword of a set-up frame counts (Linux, 9front)", func(t *testing.T) {
			hw, d := up(t)
			d.LoadSetupFrame(0, tt.Station) // with rubbish in the high halves
			hw.Inject(in)
			d.WantRx(in, tt.RxFT)
		}},
		{13, "broadcast passes a perfect table sent with FT0 (ReactOS)", func(t *testing.T) {
			hw, d := up(t)
			d.LoadSetupFrame(tt.FT0, tt.Station, tt.Broadcast)
			f := tt.Frame(tt.Broadcast, tt.Other, 60)
			hw.Inject(f)
			d.WantRx(f, tt.RxFT|tt.RxMF)
		}},
		{14, "a 1514-byte frame fits a buffer of 1516 or 1514 (MINIX, KolibriOS)", func(t *testing.T) {
			for _, room := range []int{1516, 1514} {
				hw, d := start(t, tulip.Config{}, tt.Options{RxBuf1: room})
				f := tt.Frame(tt.Station, tt.Other, 1514)
				hw.Inject(f)
				if got := d.Load(d.RxDesc(0)); got != 1518<<16|tt.RxFS|tt.RxLS|tt.RxFT {
					t.Errorf("RDES0 = %#x", got)
				}
				d.WantRx(f, tt.RxFT)
			}
		}},
		{15, "RDES0<31:30> are 0 and the length includes the FCS (U-Boot and all)", func(t *testing.T) {
			hw, d := up(t)
			hw.Inject(in)
			if got := d.Load(d.RxDesc(0)) >> 16; got != 104 {
				t.Errorf("RDES0>>16 = %d, want 104", got)
			}
		}},
		{16, "FS and LS set, ES clear (MINIX, Linux)", func(t *testing.T) {
			hw, d := up(t)
			hw.Inject(in[:20])
			if got := d.Load(d.RxDesc(0)) & (tt.RxFS | tt.RxLS | tt.RxES); got != tt.RxFS|tt.RxLS {
				t.Errorf("RDES0 flags %#x", got)
			}
		}},
		{17, "MF for multicast and broadcast (ReactOS)", func(t *testing.T) {
			hw, d := up(t)
			d.LoadSetupFrame(0, tt.Station, tt.AllHosts)
			for _, dst := range [][6]byte{tt.AllHosts, tt.Broadcast} {
				f := tt.Frame(dst, tt.Other, 60)
				hw.Inject(f)
				d.WantRx(f, tt.RxFT|tt.RxMF)
			}
		}},
		{18, "descriptors with two buffers (illumos, NT, tlp, de)", func(t *testing.T) {
			hw, d := start(t, tulip.Config{}, tt.Options{RxBuf1: 60, RxBuf2: 60, TxBuf2: true})
			d.Send(out).WantTx(out)
			hw.Inject(in)
			d.WantRx(in, tt.RxFT)
		}},
		{19, "transmit buffers at any address and of any length (BSD, Linux)", func(t *testing.T) {
			for shift := range uint32(4) {
				hw, d := up(t)
				buf := d.TxBuf(0) + shift
				hw.WriteMem(buf, out)
				d.PutDesc(d.TxDesc(0), tt.OWN, tt.FS|33<<11, 0, buf)
				d.PutDesc(d.TxDesc(1), tt.OWN, tt.LS|67, buf+33, 0)
				d.Kick()
				if got := hw.Transmitted(); !bytes.Equal(got, out) {
					t.Errorf("shift %d: % x", shift, got)
				}
			}
		}},
		{20, "reception resumes without CSR2 (several)", func(t *testing.T) {
			hw, d := start(t, tulip.Config{}, tt.Options{RxCount: 1})
			for range 5 {
				hw.Inject(in)
				hw.Inject(in)
				d.WantState(4, 6).WantRx(in, tt.RxFT)
			}
		}},
		{21, "the overflow field of CSR8 stays 0 (de, illumos, ReactOS)", func(t *testing.T) {
			hw, _ := start(t, tulip.Config{}, tt.Options{RxCount: 1})
			for range 100 {
				hw.Inject(in)
			}
			if got := hw.ReadCSR(8); got != 99 {
				t.Errorf("CSR8 = %#x, want 99", got)
			}
		}},
		{22, "CSR8 is cleared by reading, not by writing (Linux, Solaris)", func(t *testing.T) {
			hw, _ := start(t, tulip.Config{}, tt.Options{RxCount: 1})
			hw.Inject(in)
			hw.Inject(in)
			csr9 := hw.ReadCSR(9)
			hw.WriteCSR(8, 0)
			if a, b := hw.ReadCSR(8), hw.ReadCSR(8); a != 1 || b != 0 || hw.ReadCSR(9) != csr9 {
				t.Errorf("CSR8 = %d, then %d; CSR9 = %#x", a, b, hw.ReadCSR(9))
			}
		}},
		{23, "CSR5 never reads all ones (iPXE, Linux)", func(t *testing.T) {
			hw, _ := up(t)
			hw.WriteCSR(5, 0xffffffff)
			hw.WriteCSR(7, 0xffffffff)
			if got := hw.ReadCSR(5); got == 0xffffffff || got>>26 != 0x3f {
				t.Errorf("CSR5 = %#x", got)
			}
		}},
		{24, "CSR5 is acknowledged with all ones or with itself (all)", func(t *testing.T) {
			for _, itself := range []bool{false, true} {
				hw, d := up(t)
				hw.Inject(in)
				v := uint32(0xffffffff)
				if itself {
					v = hw.ReadCSR(5)
				}
				hw.WriteCSR(5, v)
				d.WantQuiet().WantState(3, 6)
			}
		}},
		{25, "writes to CSR13 and CSR14 are ignored, to CSR15 harmless (U-Boot, dc)", func(t *testing.T) {
			hw, d := up(t)
			for n := 13; n <= 15; n++ {
				hw.WriteCSR(n, 0)
				hw.WriteCSR(n, 0xffffffff)
			}
			d.Send(out).WantTx(out)
			hw.Inject(in)
			d.WantRx(in, tt.RxFT)
		}},
		{26, "the general-purpose timer raises GTE (Linux, illumos)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(11, 0x12)
			hw.Advance(2 * ms)
			d.WantInterrupt(tt.GTE)
		}},
		{27, "automatic polling (dc, VMS, Tru64)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(0, 1<<17)
			d.Queue(out, tt.FS|tt.LS)
			hw.Advance(ms)
			d.WantTx(out)
		}},
		{28, "the serial ROM pulls its data line low at the sixth address bit (9front, tlp, Linux)", func(t *testing.T) {
			_, d := up(t)
			for _, style := range tt.SROMStyles {
				if _, bits := style.Read(d, 0); bits != 6 {
					t.Errorf("%s: %d address bits", style.Name, bits)
				}
			}
		}},
		{29, "a PHY register is stored at the sixteenth data bit (tlp)", func(t *testing.T) {
			hw, d := up(t)
			d.WritePHY(1, 4, 0x0061)
			if got := hw.Chip.State().PHY.ANAR; got != 0x0061 {
				t.Errorf("ANAR = %#x before the next clock", got)
			}
		}},
		{30, "CSR9<13> and <14> do not disturb the PHY (illumos)", func(t *testing.T) {
			_, d := up(t)
			style := tt.MDIOStyles[len(tt.MDIOStyles)-1]
			if got, ok := style.Read(d, 1, 1); got != 0x782d || !ok {
				t.Errorf("%s: BMSR = %#x, answered %v", style.Name, got, ok)
			}
		}},
		{31, "the byte at 43h of configuration space is writable (U-Boot)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteConfig(0x43, 1, 0x80)
			if got := hw.ReadConfig(0x40, 4); got != 0x80000000 {
				t.Errorf("CFDA = %#x", got)
			}
			d.Send(out).WantTx(out) // it does not sleep
			hw.WriteConfig(0x43, 1, 0)
			if got := hw.ReadConfig(0x40, 4); got != 0 {
				t.Errorf("CFDA = %#x", got)
			}
		}},
		{32, "the I/O window is 128 bytes (ReactOS)", func(t *testing.T) {
			hw, _ := up(t)
			hw.WriteConfig(0x10, 4, 0xffffffff)
			if got := hw.ReadConfig(0x10, 4); -(got &^ 3) != 128 {
				t.Errorf("CBIO = %#x", got)
			}
		}},
		{33, "revision 20 (MINIX, Windows Vista)", func(t *testing.T) {
			hw, _ := up(t)
			if got := hw.ReadConfig(8, 1); got != 0x20 {
				t.Errorf("revision %#x", got)
			}
		}},
		{34, "subsystem 0A00:2114 (Windows Vista)", func(t *testing.T) {
			hw, _ := up(t)
			if got := hw.ReadConfig(0x2c, 4); got != 0x21140a00 {
				t.Errorf("CSID = %#x", got)
			}
		}},
		{35, "TDES1 changed by the driver after queueing (9front)", func(t *testing.T) {
			hw, d := up(t)
			hw.Hold = true
			i := d.Queue(out, tt.FS|tt.LS|tt.IC)
			d.Kick()
			var batch [1]tulip.TxFrame
			n := hw.Chip.PollTx(batch[:], 0)
			at := d.TxDesc(i) + 4
			d.Store(at, d.Load(at)&^tt.IC)
			hw.Chip.FinishTx(n, 0)
			if n != 1 || batch[0].Len != 100 {
				t.Fatalf("%d frames", n)
			}
			d.WantInterrupt(tt.TI) // as it was when it was fetched
			if got := d.Load(at) & tt.IC; got != 0 {
				t.Error("TDES1 was written back")
			}
		}},
		{36, "transmission needs no time (U-Boot, iPXE)", func(t *testing.T) {
			hw, d := up(t)
			now := hw.Now
			i := d.Queue(out, tt.FS|tt.LS)
			d.Kick()
			if d.Load(d.TxDesc(i))&tt.OWN != 0 || hw.Now != now {
				t.Error("the descriptor is still the chip's")
			}
		}},
		{37, "TI of a set-up frame before reception starts (de)", func(t *testing.T) {
			hw := tt.NewBare(tulip.Config{})
			d := tt.NewDriver(t, hw, tt.Options{})
			d.Reset()
			hw.WriteCSR(6, d.CSR6|tt.ST)
			d.LoadSetupFrame(tt.FS|tt.LS, tt.Station)
			d.WantState(0, 6).WantInterrupt(tt.TI)
		}},
		{38, "HP, HO and IF written by the driver change nothing (illumos, MINIX, KolibriOS)", func(t *testing.T) {
			hw, d := up(t)
			hw.WriteCSR(6, hw.ReadCSR(6)|0x15)
			hw.Inject(in)
			d.WantRx(in, tt.RxFT)
			hw.Inject(out)
			d.WantNoRx()
		}},
		{39, "reading CSR9 has no effect (all)", func(t *testing.T) {
			hw, _ := up(t)
			hw.WriteCSR(9, tt.SROMSelect|tt.SROMCS|tt.SROMClock)
			before := hw.Chip.State()
			v := hw.ReadCSR(9)
			for range 100 {
				if got := hw.ReadCSR(9); got != v {
					t.Fatalf("CSR9 = %#x, then %#x", v, got)
				}
			}
			if hw.Chip.State() != before {
				t.Error("the state changed")
			}
		}},
		{40, "a single-function header, and a subsystem for each function (Hyper-V)", func(t *testing.T) {
			for fn := range uint16(4) {
				hw := tt.NewBare(tulip.Config{SubsystemVendor: 0x0a00 + fn, SubsystemID: 0x2114})
				if got := hw.ReadConfig(0x2c, 4); got != 0x21140a00+uint32(fn) {
					t.Errorf("CSID of function %d = %#x", fn, got)
				}
				if got := hw.ReadConfig(0x0e, 1); got != 0 {
					t.Errorf("header type %#x", got)
				}
			}
		}},
	} {
		t.Run(fmt.Sprintf("%02d %s", tc.n, tc.name), tc.test)
	}
}

// TestState freezes a chip in the middle of everything and goes on with a copy.
func TestState(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	hw.WriteCSR(11, 1<<16|100)
	hw.WriteCSR(0, 0x01a08000|1<<17)
	hw.Chip.SetLink(false)
	hw.Chip.SetLink(true)
	frame := tt.Frame(tt.Other, tt.Station, 100)
	in := tt.Frame(tt.Station, tt.Other, 100)

	// move replaces the chip by a new one that is given its state.
	move := func() {
		t.Helper()
		s := hw.Chip.State()
		inta := hw.INTA
		hw.INTA = false
		hw.Chip = tulip.New(hw.RAM, tulip.Config{MAC: tt.Other})
		hw.Chip.SetState(s)
		if got := hw.Chip.State(); got != s {
			t.Fatalf("state\n got %+v\nwant %+v", got, s)
		}
		if hw.INTA != inta {
			t.Errorf("pin %v, want %v", hw.INTA, inta)
		}
	}

	// Every write to CSR9 of a serial ROM read and of a PHY read goes to another chip.
	serial := tt.NewDriver(t, moving{hw, move}, tt.Options{})
	if word, _ := tt.SROMStyles[0].Read(serial, 10); word != 0x1500 {
		t.Errorf("serial ROM word 10 = %#x", word)
	}
	if v := serial.ReadPHY(1, 1); v != 0x7829 {
		t.Errorf("BMSR = %#x, want the lost link remembered", v)
	}

	hw.Inject(in)
	move()
	d.WantRx(in, tt.RxFT).WantInterrupt(tt.RI)
	hw.Hold = true
	d.Send(frame)
	var batch [4]tulip.TxFrame
	if n := hw.Chip.PollTx(batch[:], hw.Now); n != 1 {
		t.Fatalf("%d frames", n)
	}
	move() // the frame is fetched again
	hw.Hold = false
	hw.Pump()
	d.WantTx(frame).WantInterrupt(tt.TI | tt.TU)
	move()
	d.Queue(frame, tt.FS|tt.LS)
	hw.Advance(100 * 81_920)
	d.WantTx(frame).WantInterrupt(tt.GTE)
}

// moving is a Hardware whose chip is replaced before each write.
type moving struct {
	*tt.Bare
	move func()
}

func (m moving) WriteCSR(n int, v uint32) {
	m.move()
	m.Bare.WriteCSR(n, v)
}
