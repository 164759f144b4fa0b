package device_test

import (
	"testing"

	tt "polder/tulip/tuliptest"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

func TestPort(t *testing.T) {
	porttest.TestPort(t, func(t *testing.T) porttest.Harness {
		g := attach(t, newAdapter(t, macA))
		d := tt.NewDriver(t, g, tt.Options{RxCount: 32, CSR6: tt.MII | tt.FD | tt.PM})
		d.Reset()
		d.Start()
		return porttest.Harness{
			Port: g.tulip,
			Take: func() (frames [][]byte) {
				for {
					frame, _ := d.Receive() // which checks the FCS and takes it off
					if frame == nil {
						return frames
					}
					frames = append(frames, frame)
				}
			},
			Close: func() { g.gone() },
		}
	})
}

// bin is a port that takes everything and keeps nothing.
type bin struct{}

func (bin) Deliver(frames []*vswitch.Frame) int { return len(frames) }

// TestAllocations has nothing allocated for a register access, nor for a frame in either direction.
func TestAllocations(t *testing.T) {
	sw := newSwitch(t)
	a, b := newAdapter(t, macA), newAdapter(t, macB)
	join(t, sw, a, "a")
	member := join(t, sw, b, "b")
	if _, err := sw.Join("bin", bin{}, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	ga, gb := attach(t, a), attach(t, b)
	da, db := ga.driver(macA, tt.Options{}), gb.driver(macB, tt.Options{})

	var word [4]byte
	for name, access := range map[string]func() error{
		"read of a register":  func() error { return ga.client.RegionRead(0, 5*8, word[:]) },
		"write of a register": func() error { return ga.client.RegionWrite(1, 7*8, word[:]) },
		"read of the ROM":     func() error { return ga.client.RegionRead(6, 0, word[:]) },
		"read of the configuration": func() error {
			return ga.client.RegionRead(7, 4, word[:])
		},
	} {
		check(t, access())
		if n := testing.AllocsPerRun(100, func() { check(t, access()) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}

	for _, length := range []int{60, 20, 1514} {
		load := newLoad(ga, da, gb, db, length)
		load()
		before := member.Stats().TxFrames
		if n := testing.AllocsPerRun(50, func() { load() }); n != 0 {
			t.Errorf("frames of %d bytes: %v allocations for %d", length, n, loadLen)
		}
		if got := member.Stats().TxFrames - before; got != 51*loadLen { // it runs once more than it counts
			t.Errorf("%d frames of %d bytes arrived, want %d", got, length, 51*loadLen)
		}
	}
}

// loadLen is how many frames a load has: one less than there are descriptors, so that the transmitter
// suspends behind the last.
const loadLen = 15

// newLoad returns a function by which the guest ga sends a ring full of frames of n bytes to gb and
// waits until they have left. Both rings are then as before.
func newLoad(ga *guest, da *tt.Driver, gb *guest, db *tt.Driver, n int) func() {
	frame := tt.Frame(tt.Broadcast, macA, n)
	copy(frame, macB[:])
	da.RewindTx()
	for range 16 {
		da.Queue(frame, tt.FS|tt.LS|tt.IC)
	}
	da.Store(da.TxDesc(15), 0)
	own := bytesOf(tt.OWN, 4)
	word := make([]byte, 4)
	return func() {
		for i := range 16 {
			gb.WriteMem(db.RxDesc(i), own)
		}
		for i := range loadLen {
			ga.WriteMem(da.TxDesc(i), own)
		}
		check(ga.tb, ga.client.RegionWrite(0, 4*8, bytesInto(word, da.TxDesc(0))))
		check(ga.tb, ga.client.RegionWrite(0, 1*8, word))
		ga.settle()
	}
}

func bytesInto(p []byte, v uint32) []byte {
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
	return p
}
