package tulip_test

import (
	"bytes"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

func TestReceiveStatus(t *testing.T) {
	length := func(n int, typ uint16) []byte {
		p := tt.Frame(tt.Station, tt.Other, n)
		p[12], p[13] = byte(typ>>8), byte(typ)
		return p
	}
	for _, tc := range []struct {
		name   string
		frame  []byte
		csr15  uint32
		want   tulip.RxResult
		status uint32
		events uint32
	}{
		{"Ethernet type", length(100, 0x0800), 0, tulip.RxAccepted, tt.RxFT, tt.RI},
		{"first value that is a type", length(100, 1501), 0, tulip.RxAccepted, tt.RxFT, tt.RI},
		{"last value that is a length", length(100, 1500), 0, tulip.RxAccepted, 0, tt.RI},
		{"nothing but a header", length(14, 0x0800), 0, tulip.RxAccepted, tt.RxFT, tt.RI},
		{"less than a header", length(14, 0x0800)[:13], 0, tulip.RxFiltered, 0, 0},
		{"nothing", nil, 0, tulip.RxFiltered, 0, 0},
		{"longest ordinary frame", length(1514, 0x0800), 0, tulip.RxAccepted, tt.RxFT, tt.RI},
		{"tagged frame", length(1518, 0x8100), 0, tulip.RxAccepted, tt.RxFT | tt.RxTL | tt.RxES, tt.RI},
		{"short of the watchdog", length(2556, 0x0800), 0, tulip.RxAccepted, tt.RxFT | tt.RxTL | tt.RxES, tt.RI},
		{"watchdog", length(2557, 0x0800), 0, tulip.RxAccepted, tt.RxFT | tt.RxTL | tt.RxES | tt.RxRW, tt.RI | tt.RWT},
		{"watchdog disabled", length(2557, 0x0800), 1 << 4, tulip.RxAccepted, tt.RxFT | tt.RxTL | tt.RxES, tt.RI},
		{"the longest that RDES0 can tell", length(16379, 0x0800), 1 << 4, tulip.RxAccepted, tt.RxFT | tt.RxTL | tt.RxES, tt.RI},
		{"longer", length(16380, 0x0800), 1 << 4, tulip.RxFiltered, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := start(t, tulip.Config{}, tt.Options{})
			hw.WriteCSR(15, tc.csr15)
			hw.Inject(tc.frame)
			if hw.Last != tc.want {
				t.Fatalf("%v, want %v", hw.Last, tc.want)
			}
			if tc.want == tulip.RxAccepted {
				d.WantRx(tc.frame, tc.status)
			}
			d.WantNoRx()
			if got := hw.ReadCSR(5) & 0x7fff; got != tc.events {
				t.Errorf("events %#x, want %#x", got, tc.events)
			}
		})
	}
}

// TestReceiveParts gives one frame in many pieces, some of them empty, with the header
// over several.
func TestReceiveParts(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{RxBuf1: 64, RxBuf2: 36})
	frame := tt.Frame(tt.Station, tt.Other, 200)
	for cut := range 40 {
		parts := [][]byte{frame[:cut], nil, frame[cut : cut+1], frame[cut+1 : cut+20], {}, frame[cut+20:]}
		if got := hw.Chip.Receive(parts, 0); got != tulip.RxAccepted {
			t.Fatalf("cut at %d: %v", cut, got)
		}
		d.WantRx(frame, tt.RxFT)
	}
	for i, p := range [][]byte{frame[:5], frame[5:]} {
		if len(p) != []int{5, 195}[i] {
			t.Fatal("a part was changed")
		}
	}
}

// TestFCSSpill has buffers that hold a frame but not all of its FCS.
func TestFCSSpill(t *testing.T) {
	for _, spill := range []bool{false, true} {
		for room := 1508; room <= 1520; room += 2 {
			hw, d := start(t, tulip.Config{SpillFCS: spill}, tt.Options{RxBuf1: room})
			frame := tt.Frame(tt.Station, tt.Other, 1514)
			hw.Inject(frame)
			one := room >= 1518 || !spill && room >= 1514
			if got := d.Load(d.RxDesc(0))&tt.RxLS != 0; got != one {
				t.Errorf("spill %v, buffers of %d: complete in one descriptor: %v, want %v", spill, room, got, one)
			}
			if one {
				if got := d.Load(d.RxDesc(0)) >> 16; got != 1518 {
					t.Errorf("spill %v, buffers of %d: length %d, want 1518", spill, room, got)
				}
			}
			d.WantRx(frame, tt.RxFT).WantNoRx().WantInterrupt(tt.RI)
		}
	}
}

// TestReceiveRunsDry runs out of descriptors in the middle of a frame, of every length
// of list, and wants nothing of it to be left for the next frame.
func TestReceiveRunsDry(t *testing.T) {
	frame := tt.Frame(tt.Station, tt.Other, 500)
	for armed := 1; armed < 5; armed++ {
		for _, chain := range []bool{false, true} {
			hw, d := start(t, tulip.Config{}, tt.Options{RxBuf1: 100, Chain: chain})
			for i := armed; i < 16; i++ {
				d.Store(d.RxDesc(i), 0)
			}
			hw.Inject(frame)
			if hw.Last != tulip.RxNoBuffer {
				t.Fatalf("%d descriptors: %v", armed, hw.Last)
			}
			d.WantState(4, 6).WantInterrupt(tt.RI | tt.RU)
			got, status := d.Receive()
			if !bytes.Equal(got, frame[:100*armed]) {
				t.Errorf("%d descriptors: % x", armed, got)
			}
			if status&(tt.RxES|tt.RxDE) != tt.RxES|tt.RxDE {
				t.Errorf("%d descriptors: RDES0 = %#x, want DE", armed, status)
			}

			hw.Inject(frame[:60]) // still dry
			if want := tulip.RxNoBuffer; hw.Last != want {
				t.Errorf("%d descriptors: next frame %v", armed, hw.Last)
			}
			d.WantQuiet() // RU is an edge
			for i := range 16 {
				d.Arm(i)
			}
			hw.Inject(frame) // no poll demand needed
			d.WantState(3, 6)
			d.WantRx(frame, tt.RxFT).WantInterrupt(tt.RI)
			if got := hw.ReadCSR(8); got != 1 {
				t.Errorf("%d descriptors: CSR8 = %d, want 1", armed, got)
			}
		}
	}
}

// TestReceiveLoops has lists that lead back to the frame's own descriptors.
func TestReceiveLoops(t *testing.T) {
	frame := tt.Frame(tt.Station, tt.Other, 500)
	for _, tc := range []struct {
		name  string
		build func(d *tt.Driver)
		last  int    // descriptor with the end of the frame
		len   uint32 // bytes stored
	}{
		{"a ring of one", func(d *tt.Driver) {
			d.PutDesc(d.RxDesc(0), tt.OWN, 100|tt.ER, d.RxBuf(0), 0)
		}, 0, 100},
		{"chained to itself, without a buffer", func(d *tt.Driver) {
			d.PutDesc(d.RxDesc(0), tt.OWN, tt.CH, d.RxBuf(0), d.RxDesc(0))
		}, 0, 0},
		{"two in a circle", func(d *tt.Driver) {
			d.PutDesc(d.RxDesc(0), tt.OWN, 100|tt.CH, d.RxBuf(0), d.RxDesc(1)|3)
			d.PutDesc(d.RxDesc(1), tt.OWN, 100|tt.CH, d.RxBuf(1), d.RxDesc(0)|3)
		}, 1, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := start(t, tulip.Config{}, tt.Options{})
			tc.build(d)
			hw.Inject(frame)
			if hw.Last != tulip.RxNoBuffer {
				t.Errorf("%v", hw.Last)
			}
			if got := d.Load(d.RxDesc(tc.last)); got&(tt.OWN|tt.RxLS|tt.RxDE) != tt.RxLS|tt.RxDE {
				t.Errorf("RDES0 = %#x, want LS and DE", got)
			} else if got := got >> 16 & 0x3fff; got != tc.len {
				t.Errorf("length %d, want %d", got, tc.len)
			}
			d.WantState(4, 6)
		})
	}
}

// TestReceiveEmptyDescriptors walks over descriptors without buffers, but not over any
// number of them.
func TestReceiveEmptyDescriptors(t *testing.T) {
	frame := tt.Frame(tt.Station, tt.Other, 100)
	for _, tc := range []struct {
		empty int
		want  tulip.RxResult
	}{
		{1, tulip.RxAccepted}, {255, tulip.RxAccepted}, {256, tulip.RxNoBuffer}, {1000, tulip.RxNoBuffer},
	} {
		hw, d := start(t, tulip.Config{}, tt.Options{})
		at := d.RxDesc(0)
		for i := range uint32(tc.empty) {
			d.PutDesc(at+16*i, tt.OWN, 0, 0, 0)
		}
		d.PutDesc(at+16*uint32(tc.empty), tt.OWN, 1000, d.RxBuf(0), 0)
		hw.Inject(frame)
		if hw.Last != tc.want {
			t.Errorf("%d empty descriptors: %v, want %v", tc.empty, hw.Last, tc.want)
		}
		d.WantState(3, 6)
		if tc.want == tulip.RxNoBuffer {
			if got := d.Load(at + 16*255); got != tt.RxLS|tt.RxDE|tt.RxES|tt.RxFT {
				t.Errorf("RDES0 of the last one walked = %#x", got)
			}
			if got := d.Load(at + 16*256); got != tt.OWN {
				t.Errorf("RDES0 of the one after it = %#x", got)
			}
		}
	}
}

// TestReceivePoll stops, starts and polls the receive process.
func TestReceivePoll(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{RxCount: 2})
	frame := tt.Frame(tt.Station, tt.Other, 60)
	hw.WriteCSR(2, 0) // running: nothing to do
	d.WantState(3, 6).WantQuiet()
	for range 3 {
		hw.Inject(frame)
	}
	d.WantState(4, 6).WantInterrupt(tt.RI | tt.RU)
	hw.WriteCSR(2, 1) // still nothing there
	d.WantState(4, 6).WantQuiet()
	d.WantRx(frame, tt.RxFT)
	hw.WriteCSR(2, 1)
	d.WantState(3, 6).WantQuiet()

	d.Stop()
	d.WantInterrupt(tt.TPS | tt.RPS)
	hw.WriteCSR(2, 1)
	hw.Inject(frame)
	if hw.Last != tulip.RxStopped {
		t.Errorf("%v while stopped", hw.Last)
	}
	d.WantState(0, 0).WantQuiet()
	d.Start()
	d.WantState(3, 6).WantInterrupt(tt.TU)
	d.Stop()
	d.Store(d.RxDesc(0), 0)
	hw.WriteCSR(5, tt.TPS|tt.RPS)
	d.Start()
	d.WantState(4, 6).WantInterrupt(tt.RU)
	if got := hw.ReadCSR(8); got != 1 {
		t.Errorf("CSR8 = %d: only the third frame was missed", got)
	}
}

func TestRxResultString(t *testing.T) {
	for r, want := range map[tulip.RxResult]string{
		tulip.RxAccepted: "accepted", tulip.RxFiltered: "filtered", tulip.RxNoBuffer: "no buffer",
		tulip.RxStopped: "stopped", tulip.RxResult(9): "unknown",
	} {
		if got := r.String(); got != want {
			t.Errorf("%d: %q, want %q", int(r), got, want)
		}
	}
}

// vanishing is RAM in front of which a copy panics once, as it does when the memory that the frame
// comes from goes away.
type vanishing struct {
	*tt.RAM
	at uint32 // guest address of the buffer; 0: none
}

func (v *vanishing) Window(addr uint32, n int) []byte {
	if addr == v.at && addr != 0 {
		v.at = 0
		panic("the sender's memory has gone")
	}
	return v.RAM.Window(addr, n)
}

// A frame that breaks off in its second descriptor costs that frame: the list goes on behind what
// was given back.
func TestReceiveSurvivesAVanishingSender(t *testing.T) {
	hw := tt.NewBare(tulip.Config{})
	bus := &vanishing{RAM: hw.RAM}
	hw.Chip = tulip.New(bus, tulip.Config{})
	d := tt.NewDriver(t, hw, tt.Options{RxBuf1: 64})
	d.Reset()
	d.Start()
	d.LoadSetupFrame(0, tt.Station)
	frame := tt.Frame(tt.Station, tt.Other, 100)
	bus.at = d.RxBuf(1)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the copy did not panic")
			}
		}()
		hw.Inject(frame)
	}()
	hw.Inject(tt.Frame(tt.Station, tt.Other, 60))
	if hw.Last != tulip.RxAccepted {
		t.Fatalf("the next frame: %v", hw.Last)
	}
	if got := d.Load(d.RxDesc(0)); got != tt.RxFS {
		t.Errorf("the broken frame's descriptor is %#x, want %#x: given back, and not the last", got, tt.RxFS)
	}
	if got := d.Load(d.RxDesc(1)); got>>31 != 0 || got&tt.RxFS == 0 || got&tt.RxLS == 0 {
		t.Errorf("the next frame's descriptor is %#x", got)
	}
}
