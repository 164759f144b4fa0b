package device_test

import (
	"bytes"
	"testing"

	"polder/device"
	"polder/tulip"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// TestScripts has drivers do the same things to a bare chip and to one behind a socket: neither
// they nor the wire can tell which it is.
func TestScripts(t *testing.T) {
	hardware := []struct {
		name  string
		start func(t *testing.T) tt.Hardware
	}{
		{"bare chip", func(t *testing.T) tt.Hardware { return tt.NewBare(tulip.Config{MAC: tt.Station}) }},
		{"I/O window", func(t *testing.T) tt.Hardware { return plugged(t, 0) }},
		{"memory window", func(t *testing.T) tt.Hardware { return plugged(t, 1) }},
	}
	scripts := []struct {
		name string
		run  func(t *testing.T, hw tt.Hardware)
	}{
		{"serial ROM and PHY", identify},
		{"boot ROM", bootROM},
		{"interrupts", func(t *testing.T, hw tt.Hardware) { interrupts(t, hw, tt.Options{}) }},
		{"chained", func(t *testing.T, hw tt.Hardware) { interrupts(t, hw, tt.Options{Chain: true}) }},
		{"two buffers", func(t *testing.T, hw tt.Hardware) {
			interrupts(t, hw, tt.Options{RxBuf1: 600, RxBuf2: 1000, TxBuf2: true, Skip: 4})
		}},
		{"big-endian descriptors", func(t *testing.T, hw tt.Hardware) { interrupts(t, hw, tt.Options{BigEndian: true}) }},
		{"small buffers", func(t *testing.T, hw tt.Hardware) { interrupts(t, hw, tt.Options{RxBuf1: 128, RxCount: 32}) }},
	}
	for _, script := range scripts {
		for _, h := range hardware {
			t.Run(script.name+"/"+h.name, func(t *testing.T) { script.run(t, h.start(t)) })
		}
	}
}

// plugged returns a guest alone on a switch with the wire.
func plugged(tb testing.TB, bar int) *guest {
	tb.Helper()
	sw := newSwitch(tb)
	a := newAdapter(tb, vswitch.MAC(tt.Station))
	join(tb, sw, a, "guest")
	g := attach(tb, a)
	g.bar = bar
	g.plug(sw)
	return g
}

func identify(t *testing.T, hw tt.Hardware) {
	if v := hw.ReadConfig(0, 4); v != 0x00091011 {
		t.Errorf("CFID = %#x", v)
	}
	d := tt.NewDriver(t, hw, tt.Options{})
	d.Reset()
	for _, style := range tt.SROMStyles {
		var mac []byte
		for i := range uint32(3) { // bytes 20 to 25
			word, _ := style.Read(d, 10+i)
			mac = append(mac, byte(word), byte(word>>8))
		}
		if !bytes.Equal(mac, tt.Station[:]) {
			t.Errorf("%s: MAC % x, want % x", style.Name, mac, tt.Station)
		}
	}
	if v := d.ReadPHY(1, 1); v&0x24 != 0x24 {
		t.Errorf("BMSR = %#x, no link", v)
	}
}

// bootROM polls, has one transmit descriptor in use at a time, and stops, rewinds and starts the
// transmitter for each frame, as iPXE does.
func bootROM(t *testing.T, hw tt.Hardware) {
	d := tt.NewDriver(t, hw, tt.Options{RxCount: 4})
	d.Reset()
	hw.WriteCSR(7, 0)
	d.Start()
	d.LoadSetupFrame(0, tt.Station, tt.Broadcast)
	for i := range 10 {
		out := tt.Frame(tt.Broadcast, tt.Station, 60+i*160)
		d.RewindTx()
		d.Send(out).WantTx(out).WantNoTx()
		in := tt.Frame(tt.Station, tt.Other, 60+i*160)
		hw.Inject(in)
		d.WantRx(in, tt.RxFT).WantNoRx()
		d.WantQuiet()
	}
}

// interrupts does what a driver does when its interface goes up, is busy, and goes down.
func interrupts(t *testing.T, hw tt.Hardware, o tt.Options) {
	o.TxCount = 32
	d := tt.NewDriver(t, hw, o)
	for range 2 {
		d.Reset()
		d.Queue(nil, 0)
		d.Start()
		d.LoadSetupFrame(0, tt.Station, tt.Broadcast, tt.AllHosts)
		d.WantInterrupt(tt.TI | tt.TU)

		var sent [][]byte
		for i := range 20 {
			flags := uint32(tt.FS | tt.LS)
			if i == 19 {
				flags |= tt.IC
			}
			frame := tt.Frame(tt.Other, tt.Station, 60+i*71)
			sent = append(sent, frame)
			d.Queue(frame, flags)
		}
		d.Kick()
		for _, frame := range sent {
			d.WantTx(frame)
		}
		d.WantNoTx().WantInterrupt(tt.TI | tt.TU)

		short := tt.Frame(tt.AllHosts, tt.Other, 20)
		hw.Inject(short)
		d.WantInterrupt(tt.RI).WantRx(short, tt.RxFT|tt.RxMF)
		long := tt.Frame(tt.Station, tt.Other, 1514)
		hw.Inject(long)
		d.WantInterrupt(tt.RI).WantRx(long, tt.RxFT)
		hw.Inject(tt.Frame(tt.Other, tt.Broadcast, 60)) // not from anybody, nor for us
		hw.Inject(tt.Frame([6]byte{0, 0x15, 0x5d, 1, 1, 1}, tt.Other, 60))
		d.WantNoRx().WantQuiet()

		n := d.RxCount
		for range n + 3 {
			hw.Inject(short)
		}
		d.WantInterrupt(tt.RI | tt.RU)
		for range n {
			d.WantRx(short, tt.RxFT|tt.RxMF)
		}
		d.WantNoRx()
		if v := hw.ReadCSR(8); v != 3 {
			t.Errorf("CSR8 = %d, want 3", v)
		}
		d.Stop()
		d.WantInterrupt(tt.TPS | tt.RPS)
	}
}

// TestStats has one frame for each reason for which an adapter takes none.
func TestStats(t *testing.T) {
	g := plugged(t, 0)
	in := tt.Frame(tt.Station, tt.Other, 60)
	g.Inject(in) // before the driver is there
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{RxCount: 2})
	for range 3 {
		g.Inject(in)
	}
	g.Inject(tt.Frame(tt.AllHosts, tt.Other, 60))
	d.WantRx(in, tt.RxFT).WantRx(in, tt.RxFT).WantNoRx()
	want := device.TulipStats{Attachments: 1, Attached: true, Stopped: 1, NoBuffer: 1, Filtered: 1}
	if got := g.tulip.Stats(); got != want {
		t.Errorf("stats %+v\nwant  %+v", got, want)
	}
	if err := g.gone(); err != nil {
		t.Error(err)
	}
	g.Inject(in)
	want.Attached = false
	if got := g.tulip.Stats(); got != want {
		t.Errorf("detached: stats %+v\nwant  %+v", got, want)
	}
}
