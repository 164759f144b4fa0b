package device_test

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device/eventfd"
	"polder/device/guestmem"
	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// cut is where a hypervisor cuts its guest's memory off: within the transmit buffers, so that rings and
// receive buffers stay.
const cut = 0x21000

// TestMemoryGoesAway has a guest's memory cut off while others talk to it: its attachment ends at its next access,
// and its neighbour goes on with a third.
func TestMemoryGoesAway(t *testing.T) {
	long := tt.Frame(macB, macA, 1514)
	tests := []struct {
		name string
		bad  func(g, neighbour *guest, d, dn *tt.Driver)
	}{
		{"under the neighbour, which copies from it", func(g, _ *guest, d, _ *tt.Driver) {
			i := d.Queue(long, tt.FS|tt.LS)
			buf := uint32(ramBase + cut - 256) // the first 256 bytes stay
			g.WriteMem(buf, long[:256])
			d.Store(d.TxDesc(i)+8, buf)
			check(t, g.file.Truncate(cut))
			check(t, g.client.RegionWrite(0, 1*8, make([]byte, 4)))
		}},
		{"under its own adapter, which reads the frame's head", func(g, _ *guest, d, _ *tt.Driver) {
			i := d.Queue(long, tt.FS|tt.LS)
			d.Store(d.TxDesc(i)+8, ramBase+cut)
			check(t, g.file.Truncate(cut))
			check(t, g.client.RegionWrite(0, 1*8, make([]byte, 4)))
		}},
		{"under the neighbour, which copies to it", func(g, n *guest, _, dn *tt.Driver) {
			check(t, g.file.Truncate(0x10000)) // rings only
			dn.Send(tt.Frame(macA, macB, 1514))
			n.settle()
		}},
		{"under a register access", func(g, _ *guest, _, _ *tt.Driver) {
			g.WriteCSR(6, 0)
			check(t, g.file.Truncate(0))
			check(t, g.client.RegionWrite(0, 6*8, bytesOf(tt.SR, 4)))
		}},
		{"under the timer", func(g, _ *guest, _, _ *tt.Driver) {
			check(t, g.file.Truncate(0))
			check(t, g.client.RegionWrite(0, 0, bytesOf(1<<17, 4))) // automatic polling
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			sw := newSwitch(t)
			a, b := newAdapter(t, macA), newAdapter(t, macB)
			join(t, sw, a, "a")
			join(t, sw, b, "b")
			g, n := attach(t, a), attach(t, b)
			n.plug(sw)
			d, dn := g.driver(macA, tt.Options{}), n.driver(macB, tt.Options{})

			test.bad(g, n, d, dn)
			for a.Stats().Faults == 0 {
				check(t, t.Context().Err())
			}
			if err := g.client.RegionRead(0, 5*8, make([]byte, 4)); err == nil {
				t.Error("an access to the adapter was answered")
			}
			if err := g.wait(); !errors.Is(err, guestmem.ErrFault) {
				t.Errorf("the attachment ended with %v, want %v", err, guestmem.ErrFault)
			}
			if s := a.Stats(); s.Faults != 1 || s.Attached {
				t.Errorf("stats %+v, want one fault and nobody attached", s)
			}

			for dn.HW.Transmitted() != nil {
			}
			for range 20 {
				in := tt.Frame(macB, tt.Other, 1514)
				n.Inject(in)
				dn.WantRx(in, tt.RxFT)
				out := tt.Frame(tt.Broadcast, macB, 1514)
				dn.Queue(out, tt.FS|tt.LS)
				dn.Kick()
				if got := n.Transmitted(); string(got) != string(out) {
					t.Fatalf("the neighbour sent % x", got)
				}
			}
			if s := b.Stats(); s.Faults != 0 || !s.Attached {
				t.Errorf("the neighbour's stats: %+v", s)
			}
			again := attach(t, a) // the adapter takes the next guest
			again.driver(macA, tt.Options{})
		})
	}
}

// TestHangingUpAtAFault has memory cut off and unmapped at the same time, while several senders run into it.
func TestHangingUpAtAFault(t *testing.T) {
	a := newAdapter(t, macA)
	sw := newSwitch(t)
	join(t, sw, a, "a")
	frame := whole(tt.Frame(macA, macB, 1514))
	var over atomic.Bool
	var senders sync.WaitGroup
	for range 2 {
		senders.Go(func() {
			for !over.Load() {
				a.Deliver([]*vswitch.Frame{&frame})
			}
		})
	}
	for i := range 40 {
		g := attach(t, a)
		d := tt.NewDriver(t, g, tt.Options{CSR6: tt.MII | tt.FD | tt.PR})
		d.Reset()
		d.Start()
		check(t, g.file.Truncate(0))
		if i%2 == 0 {
			check(t, g.client.UnmapDMA(ramBase, ramSize))
		}
		g.gone()
	}
	over.Store(true)
	senders.Wait()
}

// TestBadDescriptors has guests give their chip descriptors that lead nowhere.
func TestBadDescriptors(t *testing.T) {
	const nowhere, rom = 0x8000_0000, 0xc0000
	frame := uint32(tt.FS | tt.LS | 100)
	for _, test := range []struct {
		name          string
		at            uint32 // of the descriptor; 0: in RAM
		control, addr uint32 // of it
		link          func(at uint32) uint32
		events        uint32
	}{
		{"a descriptor that is not there", nowhere, 0, 0, nil, tt.FBE},
		{"a descriptor at the end of the address space", 0xfffffff0, 0, 0, nil, tt.FBE},
		{"a descriptor in memory that is not shared", rom, 0, 0, nil, tt.FBE},
		{"a buffer that is not there", 0, frame, nowhere, nil, tt.FBE},
		{"a buffer that ends outside", 0, frame, ramBase + ramSize - 50, nil, tt.FBE},
		{"a buffer in memory that is not shared", 0, frame, rom, nil, tt.FBE},
		{"an empty descriptor that follows itself", 0, tt.CH, 0, func(at uint32) uint32 { return at }, tt.TU},
		{"a frame that goes on in its own descriptor", 0, tt.FS | tt.CH | 100, ramBase, func(at uint32) uint32 { return at }, tt.TJT},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := plugged(t, 0)
			check(t, g.client.MapDMA(rom, 0x10000, nil, 0))
			d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
			d.Stop()
			at := test.at
			if at == 0 {
				at = d.TxDesc(0)
				link := uint32(0)
				if test.link != nil {
					link = test.link(at)
				}
				d.PutDesc(at, tt.OWN, test.control, test.addr, link)
			}
			g.WriteCSR(5, ^uint32(0))
			g.WriteCSR(4, at)
			g.WriteCSR(6, d.CSR6|tt.ST)
			d.WantNoTx().WantInterrupt(test.events)
			d = g.driver(vswitch.MAC(tt.Station), tt.Options{})
			out := tt.Frame(tt.Broadcast, tt.Station, 60)
			d.Send(out).WantTx(out)
		})
	}
}

// TestBadMemory has a hypervisor share memory that cannot be used: it is told nothing, and the adapter
// works with the rest.
func TestBadMemory(t *testing.T) {
	g := plugged(t, 0)
	short, err := vfiousertest.Memfd(4096)
	check(t, err)
	defer short.Close()
	for range 3 {
		check(t, g.client.MapDMA(1<<30, 1<<20, short, 0)) // shorter than it says
		check(t, g.client.UnmapDMA(1<<30, 1<<20))
		check(t, g.client.MapDMA(ramBase+4096, 4096, short, 0)) // there is RAM
	}
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	out := tt.Frame(tt.Broadcast, tt.Station, 60)
	d.Send(out).WantTx(out)
}

// TestBlockedInterrupt has a hypervisor make the eventfd of its interrupt blocking and full: a sender to it
// comes back, and the attachment ends.
func TestBlockedInterrupt(t *testing.T) {
	a := newAdapter(t, macA)
	sw := newSwitch(t)
	join(t, sw, a, "a")
	g := attach(t, a)
	g.plug(sw)
	g.driver(macA, tt.Options{})
	irq, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	check(t, err)
	defer unix.Close(irq)
	set := vfiousertest.Payload(uint32(20), uint32(vfiouser.IRQTrigger)|uint32(vfiouser.IRQEventFD), uint32(0), uint32(0), uint32(1))
	_, err = g.client.Call(vfiousertest.SetIRQs, set, irq)
	check(t, err)
	check(t, unix.SetNonblock(irq, false))
	_, err = unix.Write(irq, binary.NativeEndian.AppendUint64(nil, 1<<64-2))
	check(t, err)

	g.Inject(tt.Frame(macA, tt.Other, 60))
	if s := a.Stats(); s.Faults != 1 {
		t.Errorf("stats %+v, want one fault", s)
	}
	if err := g.client.RegionRead(0, 5*8, make([]byte, 4)); err == nil {
		t.Error("an access to the adapter was answered")
	}
	if err := g.wait(); !errors.Is(err, eventfd.ErrStuck) {
		t.Errorf("the attachment ended with %v, want %v", err, eventfd.ErrStuck)
	}
}
