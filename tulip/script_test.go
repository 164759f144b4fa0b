package tulip_test

import (
	"bytes"
	"testing"

	"polder/tulip"
	tt "polder/tulip/tuliptest"
)

// TestBootROMScript does what iPXE's driver does: it polls, has one transmit descriptor
// in use at a time, and for each frame stops the transmitter, rewinds the list, starts
// and kicks it. It takes no interrupts and never writes CSR2.
func TestBootROMScript(t *testing.T) {
	hw := tt.NewBare(tulip.Config{MAC: tt.Station})
	base := hw.MemBase()
	rx, tx, buf, rxBuf := base, base+0x100, base+0x1000, base+0x2000

	hw.WriteConfig(4, 2, 7)
	hw.WriteCSR(6, 0x814c0000)
	hw.WriteCSR(0, 1)
	hw.WriteCSR(0, 0x01a08000)
	d := tt.NewDriver(t, hw, tt.Options{})
	if mac := d.ReadSROM(); !bytes.Equal(mac[20:26], tt.Station[:]) {
		t.Fatalf("MAC % x", mac[20:26])
	}
	if got := d.ReadPHY(1, 1); got&0x24 != 0x24 {
		t.Fatalf("BMSR = %#x, no link", got)
	}

	for i := range uint32(4) {
		control := uint32(1536)
		if i == 3 {
			control |= tt.ER
		}
		d.PutDesc(rx+16*i, tt.OWN, control, rxBuf+2048*i, 0)
	}
	hw.WriteCSR(3, rx)
	hw.WriteCSR(4, tx)
	const csr6 = 0x020e0000 | tt.PM | tt.SR
	hw.WriteCSR(7, 0)
	hw.WriteCSR(6, csr6)

	transmit := func(control uint32, p []byte, want uint32) {
		t.Helper()
		hw.WriteCSR(6, csr6)
		hw.WriteMem(buf, p)
		d.PutDesc(tx+16, 0, tt.ER, 0, 0)
		d.PutDesc(tx, tt.OWN, control|uint32(len(p)), buf, tx+16)
		hw.WriteCSR(4, tx)
		hw.WriteCSR(6, csr6|tt.ST)
		hw.WriteCSR(1, 0)
		if got := d.Load(tx); got != want {
			t.Fatalf("TDES0 = %#x, want %#x", got, want)
		}
		hw.WriteCSR(6, csr6)
		d.WantState(3, 0)
	}
	setup := bytes.Repeat([]byte{0xff}, 192)
	for i := range 3 {
		copy(setup[4*i:], tt.Station[2*i:2*i+2])
	}
	transmit(tt.SET, setup, tt.SetupDone)

	for round := range uint32(10) {
		out := tt.Frame(tt.Broadcast, tt.Station, 60+int(round)*100)
		transmit(tt.FS|tt.LS, out, 0)
		if got := hw.Transmitted(); !bytes.Equal(got, out) {
			t.Fatalf("round %d: sent % x", round, got)
		}
		in := tt.Frame(tt.Station, tt.Other, 60+int(round)*100)
		hw.Inject(in)
		at := rx + 16*(round%4)
		want := uint32(len(in)+4)<<16 | tt.RxFS | tt.RxLS | tt.RxFT
		if got := d.Load(at); got != want {
			t.Fatalf("round %d: RDES0 = %#x, want %#x", round, got, want)
		}
		d.Store(at, tt.OWN)
	}
	if hw.Edges != 0 {
		t.Error("there was an interrupt")
	}
}

// TestInterruptScript does what Linux's driver does when its interface goes up, is busy,
// and goes down: an empty descriptor before each set-up frame, TI for some frames only,
// TU for the rest, and a stop that takes the ring back.
func TestInterruptScript(t *testing.T) {
	hw := tt.NewBare(tulip.Config{MAC: tt.Station})
	d := tt.NewDriver(t, hw, tt.Options{TxCount: 32, RxCount: 32, Mask: 0x1ebef, CSR6: 0x020e0200})
	for range 3 { // up and down
		d.Reset()
		d.Queue(nil, 0)
		d.Start()
		d.LoadSetupFrame(0, tt.Station, tt.Broadcast, tt.AllHosts)
		d.WantInterrupt(tt.TI | tt.TU)

		hw.Hold = true // a burst into a chip that is busy
		var sent [][]byte
		for i := range 20 {
			flags := uint32(tt.FS | tt.LS)
			if i == 15 {
				flags |= tt.IC
			}
			frame := tt.Frame(tt.Other, tt.Station, 60+i)
			sent = append(sent, frame)
			d.Queue(frame, flags)
			d.Kick()
		}
		d.WantQuiet()
		hw.Pump()
		for _, frame := range sent {
			d.WantTx(frame)
		}
		d.WantNoTx().WantInterrupt(tt.TI | tt.TU)

		frame := tt.Frame(tt.AllHosts, tt.Other, 1514)
		for range 40 {
			hw.Inject(frame)
		}
		d.WantInterrupt(tt.RI | tt.RU)
		for range 32 {
			d.WantRx(frame, tt.RxFT|tt.RxMF)
		}
		if got := hw.ReadCSR(8); got != 8 {
			t.Errorf("CSR8 = %d, want 8", got)
		}

		// Down with two frames queued: one in flight, one not fetched.
		first := d.Queue(frame, tt.FS|tt.LS)
		second := d.Queue(frame, tt.FS|tt.LS)
		d.Kick()
		var batch [1]tulip.TxFrame
		n := hw.Chip.PollTx(batch[:], hw.Now)
		hw.WriteCSR(7, 0)
		d.Stop()
		if v := d.Load(d.TxDesc(first)); v != 0 {
			t.Errorf("TDES0 of the frame in flight = %#x, want 0", v)
		}
		if v := d.Load(d.TxDesc(second)); v != tt.OWN {
			t.Errorf("TDES0 of the frame not fetched = %#x, want it untouched", v)
		}
		ring := make([]byte, 32*16)
		hw.WriteMem(d.TxDesc(0), ring) // the driver's again
		hw.Chip.FinishTx(n, hw.Now)
		hw.ReadMem(d.TxDesc(0), ring)
		if !bytes.Equal(ring, make([]byte, len(ring))) {
			t.Error("the chip wrote to the ring after the stop")
		}
		hw.Hold = false
	}
}

// TestIdleScript does what NetBSD's driver does to idle the processes: it clears TPS and
// RPS, stops, and waits for them to be set, unless the state reads as stopped already.
// It starts all over again when it sees them without having asked.
func TestIdleScript(t *testing.T) {
	hw, d := start(t, tulip.Config{}, tt.Options{})
	hw.WriteCSR(5, tt.TPS|tt.RPS)
	hw.WriteCSR(6, d.CSR6)
	if v := hw.ReadCSR(5); v&(tt.TPS|tt.RPS) != tt.TPS|tt.RPS {
		t.Fatalf("CSR5 = %#x: failed to idle", v)
	}
	d.WantInterrupt(tt.TPS | tt.RPS)
	for _, v := range []uint32{0, d.CSR6, tt.PR} {
		hw.WriteCSR(6, v)
		d.WantQuiet()
	}
	hw.WriteCSR(6, d.CSR6|tt.SR)
	d.WantQuiet().WantState(3, 0)
	hw.WriteCSR(6, d.CSR6)
	d.WantInterrupt(tt.RPS).WantState(0, 0)
}
