package tulip_test

import (
	"bytes"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// seg is one hand-made transmit descriptor.
type seg struct {
	flags uint32
	len   int // bytes in buffer 1
	len2  int // bytes in buffer 2
}

// queue writes segs into the ring from descriptor 0 on, buffers one after the other
// with the bytes of p, and gives them all to the chip.
func queue(d *tt.Driver, p []byte, segs ...seg) {
	buf := d.TxBuf(0)
	d.HW.WriteMem(buf, p)
	for i, s := range segs {
		control := s.flags | uint32(s.len) | uint32(s.len2)<<11
		if i == d.TxCount-1 {
			control |= tt.ER
		}
		d.PutDesc(d.TxDesc(i), tt.OWN, control, buf, buf+uint32(s.len))
		buf += uint32(s.len + s.len2)
	}
}

// startAt0 is start with the transmit list rewound to descriptor 0.
func startAt0(t testing.TB, cfg tulip.Config, o tt.Options) (*tt.Bare, *tt.Driver) {
	hw, d := start(t, cfg, o)
	d.RewindTx()
	hw.WriteCSR(5, ^uint32(0))
	return hw, d
}

func TestTransmitForms(t *testing.T) {
	data := tt.Frame(tt.Other, tt.Station, 3000)
	const fs, ls, ic = tt.FS, tt.LS, tt.IC
	const jabber = 0xc000
	for _, tc := range []struct {
		name   string
		segs   []seg
		frames [][]byte // on the wire
		status []uint32 // TDES0 of each descriptor; nil means all zero
		events uint32   // besides TU
	}{
		{"odd lengths at odd addresses", []seg{{fs, 1, 2}, {0, 3, 0}, {ls | ic, 0, 101}}, [][]byte{data[:107]}, nil, tt.TI},
		{"no buffer in one descriptor", []seg{{fs, 50, 0}, {0, 0, 0}, {ls, 50, 0}}, [][]byte{data[:100]}, nil, 0},
		{"no interrupt asked for", []seg{{fs | ls, 60, 0}}, [][]byte{data[:60]}, nil, 0},
		{"interrupt flag without last segment", []seg{{fs | ic, 30, 0}, {ls, 30, 0}}, [][]byte{data[:60]}, nil, 0},
		{"padding", []seg{{fs | ls, 14, 0}}, [][]byte{tt.Pad(data[:14])}, nil, 0},
		{"no Ethernet header", []seg{{fs | ls | ic, 13, 0}, {fs | ls, 60, 0}}, [][]byte{data[13:73]}, nil, tt.TI},
		{"nothing at all", []seg{{fs | ls, 0, 0}}, nil, nil, 0},
		{"FCS from the driver", []seg{{fs | ls | tt.AC, 104, 0}}, [][]byte{data[:100]}, nil, 0},
		{"FCS in a descriptor of its own", []seg{{fs | tt.AC, 100, 0}, {ls | tt.AC, 4, 0}}, [][]byte{data[:100]}, nil, 0},
		{"FCS over two descriptors", []seg{{fs | tt.AC, 101, 0}, {ls | tt.AC, 3, 0}}, [][]byte{data[:100]}, nil, 0},
		{"short frame with FCS", []seg{{fs | ls | tt.AC, 24, 0}}, [][]byte{tt.Pad(data[:20])}, nil, 0},
		{"FCS and nothing else", []seg{{fs | ls | tt.AC, 3, 0}}, nil, nil, 0},
		{"empty descriptor", []seg{{0, 0, 0}, {fs | ls, 60, 0}}, [][]byte{data[:60]}, nil, 0},
		{"empty descriptor with IC", []seg{{ic, 0, 0}}, nil, nil, 0},
		{"first segment missing", []seg{{0, 10, 0}, {ls | ic, 10, 0}, {fs | ls, 60, 0}}, [][]byte{data[20:80]}, nil, tt.TI},
		{"last segment missing", []seg{{fs, 10, 0}, {0, 10, 0}, {fs | ls, 60, 0}}, [][]byte{data[20:80]}, nil, 0},
		{"set-up frame inside a frame", []seg{{fs, 8, 0}, {tt.SET | ic, 192, 0}, {fs | ls, 60, 0}},
			[][]byte{data[200:260]}, []uint32{0, tt.SetupDone, 0}, tt.TI},
		{"longest buffers", []seg{{fs | ls, 1000, 1000}}, [][]byte{data[:2000]}, nil, 0},
		{"several frames at once", []seg{{fs | ls, 60, 0}, {fs | ls | ic, 61, 0}, {fs | ls, 62, 0}},
			[][]byte{data[:60], data[60:121], data[121:183]}, nil, tt.TI},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := startAt0(t, tulip.Config{}, tt.Options{})
			queue(d, data, tc.segs...)
			d.Kick()
			for _, want := range tc.frames {
				if got := hw.Transmitted(); !bytes.Equal(got, want) {
					t.Errorf("on the wire:\n got % x\nwant % x", got, want)
				}
			}
			d.WantNoTx()
			for i := range tc.segs {
				want := uint32(0)
				if tc.status != nil {
					want = tc.status[i]
				}
				if got := d.Load(d.TxDesc(i)); got != want {
					t.Errorf("TDES0 of descriptor %d = %#x, want %#x", i, got, want)
				}
			}
			d.WantState(3, 6)
			if got := hw.ReadCSR(5) &^ (tt.RS | tt.TS) & 0x7fff; got != tt.TU|tc.events {
				t.Errorf("events %#x, want TU and %#x", got, tc.events)
			}
		})
	}

	long := make([]seg, 16)
	for i := range long {
		long[i] = seg{0, 2000, 0}
	}
	long[0].flags, long[15].flags = fs, ls|ic
	big := make([]byte, 32000)
	copy(big, data)
	for _, tc := range []struct {
		name  string
		csr15 uint32
		segs  []seg
		cut   int // descriptor at which the frame ends with an error, or -1
	}{
		{"2600 bytes", 0, []seg{{fs, 1300, 0}, {ls, 1300, 0}}, -1},
		{"2600 bytes, jabber clock", 4, []seg{{fs, 1300, 0}, {ls, 1300, 0}}, 1},
		{"2600 bytes, jabber clock, jabber disable", 5, []seg{{fs, 1300, 0}, {ls, 1300, 0}}, -1},
		{"32000 bytes", 0, long, 9},
		{"32000 bytes, jabber disable", 1, long, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := startAt0(t, tulip.Config{}, tt.Options{})
			hw.WriteCSR(15, tc.csr15)
			queue(d, big, tc.segs...)
			d.Kick()
			if sent := hw.Transmitted() != nil; sent != (tc.cut < 0) {
				t.Errorf("sent %v", sent)
			}
			for i := range tc.segs {
				want := uint32(0)
				if i == tc.cut {
					want = jabber
				}
				if got := d.Load(d.TxDesc(i)); got != want {
					t.Errorf("TDES0 of descriptor %d = %#x, want %#x", i, got, want)
				}
			}
			if got := hw.ReadCSR(5)&tt.TJT != 0; got != (tc.cut >= 0) {
				t.Errorf("TJT %v", got)
			}
			d.WantState(3, 6)
		})
	}
}

// TestFrameLongerThanRing never has a last segment; the chip gives it back and waits.
func TestFrameLongerThanRing(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{TxCount: 4})
	queue(d, make([]byte, 400), seg{tt.FS, 100, 0}, seg{0, 100, 0}, seg{0, 100, 0}, seg{0, 100, 0})
	d.Kick()
	d.WantNoTx().WantInterrupt(tt.TJT|tt.TU).WantState(3, 6)
	frame := tt.Frame(tt.Other, tt.Station, 60)
	queue(d, frame, seg{tt.FS | tt.LS, 60, 0})
	d.Kick()
	if got := hw.Transmitted(); !bytes.Equal(got, frame) {
		t.Errorf("on the wire afterwards: % x", got)
	}
}

// TestIncompleteFrame kicks the chip before the frame's last descriptor is its own. It
// waits with TU, gives nothing back, and sends the frame when it is complete.
func TestIncompleteFrame(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	data := tt.Frame(tt.Other, tt.Station, 200)
	queue(d, data, seg{tt.FS | tt.LS, 60, 0}, seg{tt.FS, 70, 0}, seg{tt.LS, 70, 0})
	third := d.TxDesc(2)
	d.Store(third, 0)
	d.Kick()
	if got := hw.Transmitted(); !bytes.Equal(got, data[:60]) {
		t.Errorf("the complete frame: % x", got)
	}
	d.WantNoTx().WantState(3, 6).WantInterrupt(tt.TU)
	d.Store(third, tt.OWN)
	d.Kick()
	if got := hw.Transmitted(); !bytes.Equal(got, data[60:]) {
		t.Errorf("the completed frame: % x", got)
	}
	d.WantNoTx().WantState(3, 6).WantInterrupt(tt.TU)
}

// TestBatch fetches more frames than fit, finishes fewer than were fetched, and has a
// full ring of them.
func TestBatch(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{TxCount: 8})
	hw.Hold = true
	var segs []seg
	for range 8 {
		segs = append(segs, seg{tt.FS | tt.LS | tt.IC, 100, 0})
	}
	data := make([]byte, 800)
	for i := range data {
		data[i] = byte(i / 100)
	}
	queue(d, data, segs...)
	d.Kick()

	var batch [16]tulip.TxFrame
	poll := func(max, want, first int) {
		t.Helper()
		if got := hw.Chip.PollTx(batch[:max], 0); got != want {
			t.Fatalf("%d frames, want %d", got, want)
		}
		for i, f := range batch[:want] {
			if f.Len != 100 || len(f.Parts) != 1 || f.Parts[0][0] != byte(first+i) {
				t.Fatalf("frame %d: %d bytes, begins % x, want number %d", i, f.Len, f.Parts[0][:1], first+i)
			}
		}
	}
	owned := func(want string) {
		t.Helper()
		got := ""
		for i := range 8 {
			if d.Load(d.TxDesc(i))&tt.OWN != 0 {
				got += "1"
			} else {
				got += "0"
			}
		}
		if got != want {
			t.Fatalf("OWN bits %s, want %s", got, want)
		}
	}
	poll(0, 0, 0)
	poll(3, 3, 0)
	owned("11111111")
	d.WantQuiet()
	hw.Chip.FinishTx(0, 0)
	owned("11111111")
	hw.Chip.FinishTx(3, 0) // that batch is gone
	owned("11111111")
	poll(3, 3, 0)
	hw.Chip.FinishTx(2, 0)
	owned("00111111")
	d.WantInterrupt(tt.TI).WantState(3, 1)
	poll(16, 6, 2) // not round the ring to descriptor 2 again
	poll(16, 6, 2) // a batch that was never finished
	hw.Chip.FinishTx(-1, 0)
	owned("00111111")
	poll(16, 6, 2)
	hw.Chip.FinishTx(100, 0)
	owned("00000000")
	if batch[0].Parts[0] != nil {
		t.Error("a slice of guest memory is left behind")
	}
	d.WantInterrupt(tt.TI|tt.TU).WantState(3, 6)
	if hw.Chip.TxPending() {
		t.Error("still pending")
	}
}

// TestSetupWaits queues a set-up frame between two frames: it takes effect after the
// first is closed and before the second is fetched.
func TestSetupWaits(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	hw.Hold = true
	data := make([]byte, 500)
	queue(d, data, seg{tt.FS | tt.LS, 60, 0}, seg{tt.SET, 192, 0}, seg{tt.FS | tt.LS, 60, 0})
	d.Kick()
	before := hw.Chip.State().Filter
	var batch [8]tulip.TxFrame
	if n := hw.Chip.PollTx(batch[:], 0); n != 1 {
		t.Fatalf("%d frames, want 1", n)
	}
	if hw.Chip.State().Filter != before {
		t.Fatal("the set-up frame took effect too early")
	}
	hw.Chip.FinishTx(1, 0)
	if n := hw.Chip.PollTx(batch[:], 0); n != 1 {
		t.Fatalf("%d frames, want 1", n)
	}
	if hw.Chip.State().Filter == before {
		t.Fatal("the set-up frame took no effect")
	}
}

// TestGap does things to the chip between PollTx and FinishTx.
func TestGap(t *testing.T) {
	for _, tc := range []struct {
		name   string
		do     func(hw *tt.Bare, d *tt.Driver)
		closed bool   // the descriptors were given back
		events uint32 // before FinishTx, which adds none
		ts     uint32 // transmit state in the end
	}{
		{"stop", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(6, d.CSR6|tt.SR) }, true, tt.TI | tt.TPS, 0},
		{"new list base", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(4, d.TxDesc(8)) }, true, tt.TI, 1},
		{"software reset", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(0, 1) }, false, 0, 0},
		{"RST#", func(hw *tt.Bare, d *tt.Driver) { hw.Chip.Reset() }, false, 0, 0},
		{"bus mastering off", func(hw *tt.Bare, d *tt.Driver) { hw.WriteConfig(4, 2, 3) }, false, 0, 1},
		{"bus error", func(hw *tt.Bare, d *tt.Driver) {
			hw.WriteCSR(3, 0)
			hw.Inject(tt.Frame(tt.Station, tt.Other, 60))
		}, false, tt.FBE, 0},
		{"memory read only", func(hw *tt.Bare, d *tt.Driver) {
			hw.ReadOnly = true
			hw.WriteCSR(6, d.CSR6|tt.SR)
		}, false, tt.FBE, 0},
		{"old state put back", func(hw *tt.Bare, d *tt.Driver) { hw.Chip.SetState(hw.Chip.State()) }, false, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := startAt0(t, tulip.Config{}, tt.Options{})
			hw.Hold = true
			data := tt.Frame(tt.Other, tt.Station, 180)
			queue(d, data, seg{tt.FS | tt.LS, 60, 0}, seg{tt.FS, 60, 0}, seg{tt.LS | tt.IC, 60, 0})
			d.Kick()
			var batch [8]tulip.TxFrame
			n := hw.Chip.PollTx(batch[:], 0)
			if n != 2 {
				t.Fatalf("%d frames, want 2", n)
			}
			tc.do(hw, d)
			for i, f := range batch[:n] { // the host may be reading them
				if got := bytes.Join(f.Parts, nil); !bytes.Equal(got, data[60*i:60*i+f.Len]) {
					t.Errorf("frame %d has changed: % x", i, got)
				}
			}
			want := uint32(tt.OWN)
			if tc.closed {
				want = 0
			}
			check := func(when string) {
				t.Helper()
				for i := range 3 {
					if got := d.Load(d.TxDesc(i)); got != want {
						t.Errorf("%s: TDES0 of descriptor %d = %#x, want %#x", when, i, got, want)
					}
				}
				if got := hw.ReadCSR(5) & 0x7fff; got != tc.events {
					t.Errorf("%s: events %#x, want %#x", when, got, tc.events)
				}
			}
			check("before FinishTx")
			hw.Chip.FinishTx(n, 0)
			check("after FinishTx")
			d.WantState(hw.ReadCSR(5)&tt.RS>>17, tc.ts)
		})
	}
}

// TestBusMaster switches bus mastering off and on again under running processes.
func TestBusMaster(t *testing.T) {
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	hw.WriteConfig(4, 2, 3)
	frame := tt.Frame(tt.Other, tt.Station, 60)
	in := tt.Frame(tt.Station, tt.Other, 60)
	d.Send(frame).WantNoTx().WantState(3, 1)
	hw.Inject(in)
	if hw.Last != tulip.RxStopped {
		t.Errorf("received: %v, want stopped", hw.Last)
	}
	hw.WriteCSR(2, 0)
	d.WantQuiet().WantNoRx()
	hw.WriteConfig(4, 2, 7)
	d.WantTx(frame)
	hw.Inject(in)
	d.WantRx(in, tt.RxFT).WantInterrupt(tt.TI | tt.TU | tt.RI)

	hw.WriteConfig(4, 2, 3) // start without bus mastering
	hw.WriteCSR(6, d.CSR6)
	hw.WriteCSR(6, d.CSR6|tt.ST|tt.SR)
	d.WantState(3, 1)
	hw.WriteConfig(4, 2, 7)
	hw.Inject(in)
	d.WantRx(in, tt.RxFT)
}

// TestLoopback sends frames to itself.
func TestLoopback(t *testing.T) {
	for _, tc := range []struct {
		name   string
		mode   uint32
		wire   bool // frames reach the wire, and come from it
		status uint32
	}{
		{"internal", 1 << 10, false, 1 << 12},
		{"external", 2 << 10, true, 2 << 12},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := start(t, tulip.Config{}, tt.Options{CSR6: tt.MII | tt.FD | tc.mode})
			for n := 14; n < 1514; n += 100 {
				out := tt.Frame(tt.Station, tt.Other, n)
				d.Send(out)
				if tc.wire {
					d.WantTx(out)
				}
				d.WantNoTx().WantRx(out, tc.status|tt.RxFT).WantNoRx().WantInterrupt(tt.TI | tt.RI | tt.TU)
			}
			d.Send(tt.Frame(tt.Other, tt.Station, 60)).WantNoRx() // the filter applies
			hw.Transmitted()

			in := tt.Frame(tt.Station, tt.Other, 60)
			hw.Inject(in)
			if tc.wire {
				d.WantRx(in, tt.RxFT)
			} else if hw.Last != tulip.RxStopped {
				t.Errorf("a frame from the wire was %v", hw.Last)
			}
			hw.WriteCSR(6, d.CSR6|tt.ST) // receiver off: nothing comes back
			d.Send(in).WantNoRx()
		})
	}
}

// TestLoopbackAbort loses the receive list while frames loop: the chip stops there, and
// neither closes nor fetches another frame.
func TestLoopbackAbort(t *testing.T) {
	for _, mode := range []uint32{1 << 10, 2 << 10} {
		hw, d := startAt0(t, tulip.Config{}, tt.Options{CSR6: tt.MII | tt.FD | mode})
		hw.WriteCSR(3, 0)
		frame := tt.Frame(tt.Station, tt.Other, 60)
		queue(d, append(frame, frame...), seg{tt.FS | tt.LS, 60, 0}, seg{tt.FS | tt.LS, 60, 0})
		d.Kick()
		d.WantInterrupt(tt.FBE).WantState(0, 0)
		if got := d.Load(d.TxDesc(1)); got != tt.OWN {
			t.Errorf("TDES0 of the second frame = %#x, want it untouched", got)
		}
	}
}

// TestNoLink sends without a partner: frames complete, with errors only where a half
// duplex transmitter would notice.
func TestNoLink(t *testing.T) {
	for _, tc := range []struct {
		name string
		csr6 uint32
		want uint32
	}{
		{"full duplex", tt.MII | tt.FD, 0},
		{"half duplex", tt.MII, 0x8c00},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hw, d := startAt0(t, tulip.Config{}, tt.Options{CSR6: tc.csr6})
			hw.Chip.SetLink(false)
			d.LoadSetupFrame(0, tt.Station)
			i := d.Queue(tt.Frame(tt.Other, tt.Station, 60), tt.FS|tt.LS|tt.IC)
			d.Kick()
			d.WantNoTx().WantInterrupt(tt.TI | tt.TU)
			if got := d.Load(d.TxDesc(i)); got != tc.want {
				t.Errorf("TDES0 = %#x, want %#x", got, tc.want)
			}
			hw.Inject(tt.Frame(tt.Station, tt.Other, 60))
			if hw.Last != tulip.RxStopped {
				t.Errorf("received: %v", hw.Last)
			}
			hw.Chip.SetLink(true)
			frame := tt.Frame(tt.Other, tt.Station, 60)
			d.Send(frame)
			if got := hw.Transmitted(); !bytes.Equal(got, frame) {
				t.Errorf("with the link back: % x", got)
			}
		})
	}
}

// TestBusErrors makes each kind of access fail.
func TestBusErrors(t *testing.T) {
	const bad = 0x10 // below the memory
	frame := tt.Frame(tt.Station, tt.Other, 60)
	send := func(d *tt.Driver, control, addr1, addr2 uint32) {
		d.PutDesc(d.TxDesc(0), tt.OWN, control, addr1, addr2)
		d.Kick()
	}
	arm := func(hw *tt.Bare, d *tt.Driver, control, addr1, addr2 uint32) {
		at := d.RxDesc(0)
		d.PutDesc(at, tt.OWN, control, addr1, addr2)
		hw.WriteCSR(3, at)
		hw.Inject(frame)
	}
	for _, tc := range []struct {
		name string
		do   func(hw *tt.Bare, d *tt.Driver)
	}{
		{"transmit descriptor", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(4, bad); d.Kick() }},
		{"transmit descriptor at the end of memory", func(hw *tt.Bare, d *tt.Driver) {
			hw.WriteCSR(4, hw.Base+uint32(len(hw.Bytes))-8)
			d.Kick()
		}},
		{"transmit descriptor past 4 GiB", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(4, 0xfffffff8); d.Kick() }},
		{"next transmit descriptor", func(hw *tt.Bare, d *tt.Driver) {
			send(d, tt.FS|tt.LS|tt.CH|60, d.TxBuf(0), bad)
		}},
		{"transmit buffer 1", func(hw *tt.Bare, d *tt.Driver) { send(d, tt.FS|tt.LS|60, bad, 0) }},
		{"transmit buffer 2", func(hw *tt.Bare, d *tt.Driver) { send(d, tt.FS|tt.LS|60<<11, 0, bad) }},
		{"transmit buffer past 4 GiB", func(hw *tt.Bare, d *tt.Driver) { send(d, tt.FS|tt.LS|60, 0xfffffff0, 0) }},
		{"set-up frame", func(hw *tt.Bare, d *tt.Driver) { send(d, tt.SET|192, bad, 0) }},
		{"receive descriptor at start", func(hw *tt.Bare, d *tt.Driver) {
			hw.WriteCSR(6, d.CSR6|tt.ST)
			hw.WriteCSR(5, tt.RPS)
			hw.WriteCSR(3, bad)
			d.Start()
		}},
		{"receive descriptor", func(hw *tt.Bare, d *tt.Driver) { hw.WriteCSR(3, bad); hw.Inject(frame) }},
		{"receive descriptor at poll demand", func(hw *tt.Bare, d *tt.Driver) {
			d.Store(d.RxDesc(0), 0)
			hw.Inject(frame)
			hw.WriteCSR(5, tt.RU)
			hw.WriteCSR(3, bad)
			hw.WriteCSR(2, 0)
		}},
		{"next receive descriptor", func(hw *tt.Bare, d *tt.Driver) { arm(hw, d, tt.CH|32, d.RxBuf(0), bad) }},
		{"receive buffer 1", func(hw *tt.Bare, d *tt.Driver) { arm(hw, d, 64, bad, 0) }},
		{"receive buffer 2", func(hw *tt.Bare, d *tt.Driver) { arm(hw, d, 32|32<<11, d.RxBuf(0), bad) }},
		{"status of a transmit descriptor", func(hw *tt.Bare, d *tt.Driver) {
			hw.ReadOnly = true
			send(d, tt.FS|tt.LS|60, d.TxBuf(0), 0)
		}},
		{"status of a receive descriptor", func(hw *tt.Bare, d *tt.Driver) {
			hw.ReadOnly = true
			arm(hw, d, 0, 0, 0)
		}},
		{"status of the last receive descriptor", func(hw *tt.Bare, d *tt.Driver) {
			hw.ReadOnly = true
			arm(hw, d, tt.CH, 0, d.RxDesc(0))
		}},
		{"big-endian transmit buffer", func(hw *tt.Bare, d *tt.Driver) {
			hw.WriteCSR(0, 1<<7)
			send(d, tt.FS|tt.LS|60, bad, 0)
		}},
		{"big-endian receive buffer", func(hw *tt.Bare, d *tt.Driver) {
			hw.WriteCSR(0, 1<<7)
			arm(hw, d, 64, bad, 0)
		}},
		{"receive buffer past 4 GiB", func(hw *tt.Bare, d *tt.Driver) { arm(hw, d, 64, 0xfffffff0, 0) }},
	} {
		for _, indirect := range []bool{false, true} {
			name := tc.name
			if indirect {
				name += ", memory not mapped"
			}
			t.Run(name, func(t *testing.T) {
				hw, d := startAt0(t, tulip.Config{}, tt.Options{})
				hw.Indirect = indirect
				tc.do(hw, d)
				hw.ReadOnly = false
				hw.Transmitted() // the frame before the error, in one case
				d.WantNoTx().WantState(0, 0)
				if v := hw.ReadCSR(5); v&(7<<23|0x7fff) != 1<<23|tt.FBE {
					t.Errorf("CSR5 = %#x, want FBE alone, with a master abort", v)
				}
				d.WantInterrupt(tt.FBE)
				if got := hw.ReadConfig(6, 2); got != 0x2280 {
					t.Errorf("CFCS status = %#x, want received master abort", got)
				}

				// Nothing moves before software reset.
				before := bytes.Clone(hw.Bytes)
				hw.WriteCSR(6, d.CSR6)
				d.Start()
				d.Kick()
				hw.WriteCSR(2, 0)
				hw.Inject(frame)
				d.WantState(0, 0).WantQuiet()
				if !bytes.Equal(before, hw.Bytes) {
					t.Error("the chip wrote to memory after the error")
				}

				d.Reset()
				d.Start()
				d.LoadSetupFrame(0, tt.Station)
				hw.Inject(frame)
				d.WantRx(frame, tt.RxFT)
			})
		}
	}
}

// TestPast4GiB has memory on both sides of 4 GiB. The chip has 32 address lines: it
// reaches the lower side only, and never half of something.
func TestPast4GiB(t *testing.T) {
	const top = 0xffff_f000
	for _, indirect := range []bool{false, true} {
		for _, tc := range []struct {
			desc, buf uint32
			sent      bool
		}{
			{top, top + 0x100, true},
			{0xffff_fff0, top + 0x100, true},
			{0xffff_fff4, top + 0x100, false},
			{top, 0xffff_ffc0, true},
			{top, 0xffff_ffc1, false},
		} {
			hw := &tt.Bare{RAM: tt.NewRAM(top, 0x2000)}
			hw.Chip = tulip.New(hw.RAM, tulip.Config{})
			hw.Indirect = indirect
			d := tt.NewDriver(t, hw, tt.Options{})
			hw.WriteConfig(4, 2, 7)
			var p [16]byte
			for i, v := range []uint32{tt.OWN, tt.FS | tt.LS | tt.ER | 64, tc.buf, 0} {
				p[4*i], p[4*i+1], p[4*i+2], p[4*i+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
			}
			copy(hw.Bytes[tc.desc-top:], p[:])
			hw.WriteCSR(4, tc.desc)
			hw.WriteCSR(6, tt.ST|tt.MII)
			if sent := hw.Transmitted() != nil; sent != tc.sent {
				t.Errorf("descriptor at %#x, buffer at %#x: sent %v, want %v", tc.desc, tc.buf, sent, tc.sent)
			}
			if fatal := hw.ReadCSR(5)&tt.FBE != 0; fatal == tc.sent {
				t.Errorf("descriptor at %#x, buffer at %#x: FBE %v", tc.desc, tc.buf, fatal)
			}
			d.WantNoTx()
		}
	}
}

// TestBudget gives the chip an endless chain of empty descriptors, which it walks a bit
// at a time.
func TestBudget(t *testing.T) {
	const n = 1000
	hw, d := startAt0(t, tulip.Config{}, tt.Options{})
	hw.Hold = true
	at := d.TxDesc(0)
	for i := range uint32(n) {
		d.PutDesc(at+16*i, tt.OWN, 0, 0, 0)
	}
	d.Kick()
	var batch [1]tulip.TxFrame
	calls := 0
	for hw.Chip.TxPending() {
		if got := hw.Chip.PollTx(batch[:], 0); got != 0 {
			t.Fatalf("%d frames", got)
		}
		calls++
	}
	if calls != 4 || d.Load(at+16*(n-1)) != 0 {
		t.Errorf("%d calls, want 4", calls)
	}
}

// TestBigEndianBuffers swaps the longwords of frames at all alignments.
func TestBigEndianBuffers(t *testing.T) {
	const ble = 1 << 7
	swap := func(hw *tt.Bare, addr uint32, n int) []byte {
		p := make([]byte, n)
		for i := range p {
			hw.ReadMem((addr+uint32(i))^3, p[i:i+1])
		}
		return p
	}
	for shift := range uint32(4) {
		hw, d := startAt0(t, tulip.Config{}, tt.Options{})
		hw.WriteCSR(0, 0x01a08000|ble)
		frame := tt.Frame(tt.Station, tt.Other, 101)
		buf := d.TxBuf(0) + shift
		for i := range frame {
			hw.WriteMem((buf+uint32(i))^3, frame[i:i+1])
		}
		d.PutDesc(d.TxDesc(0), tt.OWN, tt.FS|tt.LS|50|51<<11, buf, buf+50)
		d.Kick()
		if got := hw.Transmitted(); !bytes.Equal(got, frame) {
			t.Errorf("shift %d: sent\n got % x\nwant % x", shift, got, frame)
		}

		room := d.RxBuf(0)
		for i := range uint32(256) {
			hw.WriteMem(room+i, []byte{0xee})
		}
		d.PutDesc(d.RxDesc(0), tt.OWN, 50|60<<11, room+8+shift, room+58+shift)
		hw.Inject(frame)
		want := bytes.Repeat([]byte{0xee}, 140)
		copy(want[8+shift:], frame)
		got := swap(hw, room, 140)
		copy(want[8+shift+101:], got[8+shift+101:][:4]) // FCS, checked elsewhere
		if !bytes.Equal(got, want) {
			t.Errorf("shift %d: received\n got % x\nwant % x", shift, got, want)
		}
	}
}
