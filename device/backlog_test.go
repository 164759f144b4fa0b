package device_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/guestmem"
	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// board is an adapter whose methods are called directly, in a bubble where time stands still: nothing
// frees or fills descriptors but the test. It is the tuliptest.Hardware of a promiscuous driver.
type board struct {
	t     testing.TB
	tulip *device.Tulip
	file  *os.File
	ram   []byte
	d     *tt.Driver
	sent  uint32 // number of the next frame
	got   uint32 // number of the frame to arrive next
}

var _ tt.Hardware = (*board)(nil)

// ring is how many descriptors the driver of a board has, and promiscuous what they say of its frames.
const (
	ring        = 16
	promiscuous = tt.RxFT | tt.RxFF
)

func newBoard(t testing.TB) *board {
	b := &board{t: t, tulip: newAdapter(t, macA)}
	b.plug()
	t.Cleanup(b.unplug)
	return b
}

// plug attaches a guest with new memory, whose driver runs.
func (b *board) plug() {
	b.t.Helper()
	var err error
	b.file, err = vfiousertest.Memfd(ramSize)
	check(b.t, err)
	b.ram, err = unix.Mmap(int(b.file.Fd()), 0, ramSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(b.t, err)
	check(b.t, b.tulip.Attach("test"))
	dup, err := unix.Dup(int(b.file.Fd()))
	check(b.t, err)
	check(b.t, b.tulip.MapDMA(vfiouser.DMARegion{
		IOVA: ramBase, Size: ramSize, File: os.NewFile(uintptr(dup), "ram"), Read: true, Write: true,
	}))
	b.start()
}

// start has a driver bring the adapter up; what was sent before is no longer expected.
func (b *board) start() {
	b.t.Helper()
	b.d = tt.NewDriver(b.t, b, tt.Options{RxCount: ring, RxBuf1: 2000, CSR6: tt.MII | tt.FD | tt.PR})
	b.d.Reset()
	b.d.Start()
	b.WriteCSR(5, ^uint32(0))
	b.got = b.sent
}

func (b *board) unplug() {
	b.tulip.Detach(nil)
	check(b.t, unix.Munmap(b.ram))
	check(b.t, b.file.Close())
}

func (b *board) ReadCSR(n int) uint32 { return b.read(0, uint64(8*n), 4) }
func (b *board) ReadConfig(off, size int) uint32 {
	return b.read(vfiouser.RegionConfig, uint64(off), size)
}

func (b *board) read(region int, off uint64, size int) uint32 {
	b.t.Helper()
	var p [4]byte
	check(b.t, b.tulip.ReadRegion(region, off, p[:size]))
	return binary.LittleEndian.Uint32(p[:])
}

func (b *board) WriteCSR(n int, v uint32) {
	b.t.Helper()
	check(b.t, b.tulip.WriteRegion(0, uint64(8*n), bytesOf(v, 4)))
}

func (b *board) WriteConfig(off, size int, v uint32) {
	b.t.Helper()
	check(b.t, b.tulip.WriteRegion(vfiouser.RegionConfig, uint64(off), bytesOf(v, size)))
}

func (b *board) ReadMem(addr uint32, p []byte)  { copy(p, b.ram[addr-ramBase:][:len(p)]) }
func (b *board) WriteMem(addr uint32, p []byte) { copy(b.ram[addr-ramBase:][:len(p)], p) }
func (b *board) MemBase() uint32                { return ramBase }
func (b *board) Interrupt() bool                { return b.tulip.Pin() }
func (b *board) Transmitted() []byte            { return nil }
func (b *board) Inject(frame []byte)            { f := whole(frame); b.tulip.Deliver([]*vswitch.Frame{&f}) }

// frame returns frame number i, whose length depends on it.
func frame(i uint32) []byte {
	p := tt.Frame(macA, macB, 60+int(i%23)*60)
	binary.BigEndian.PutUint32(p[14:], i)
	return p
}

// deliver sends n frames in one Deliver, and wants the first of them taken.
func (b *board) deliver(n, want int) {
	b.t.Helper()
	list := make([]*vswitch.Frame, n)
	for i := range list {
		p := frame(b.sent + uint32(i))
		list[i] = &vswitch.Frame{Head: p[:40], Body: [][]byte{p[40:50], nil, p[50:]}, Len: len(p)}
	}
	if got := b.tulip.Deliver(list); got != want {
		b.t.Fatalf("of %d frames %d were taken, want %d", n, got, want)
	}
	b.sent += uint32(want)
}

// want takes the next n frames out of the guest's memory, where they are already.
func (b *board) want(n int) {
	b.t.Helper()
	for range n {
		b.d.WantRx(frame(b.got), promiscuous)
		b.got++
	}
}

// waiting wants n frames in the backlog, and the timer set if there are any.
func (b *board) waiting(n int) {
	b.t.Helper()
	if got, timer := b.tulip.Waiting(); got != n || timer != (n > 0) {
		b.t.Fatalf("%d frames wait, timer %v, want %d", got, timer, n)
	}
}

// onBoard runs a test in a bubble.
func onBoard(t *testing.T, test func(b *board)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newBoard(t)) })
}

// look is what has the adapter look whether the frames that wait can go on.
var look = []struct {
	name string
	look func(b *board) error
}{
	{"a register is read", func(b *board) error { return b.tulip.ReadRegion(0, 5*8, make([]byte, 4)) }},
	{"a register is written", func(b *board) error { return b.tulip.WriteRegion(1, 2*8, make([]byte, 4)) }},
	{"another frame comes", func(b *board) error { b.deliver(1, 1); return nil }},
	{"a millisecond passes", func(*board) error { time.Sleep(device.DrainDelay); synctest.Wait(); return nil }},
}

// TestBacklog has frames wait for descriptors, and go on when the guest has freed some.
func TestBacklog(t *testing.T) {
	for _, test := range look {
		t.Run(test.name, func(t *testing.T) {
			onBoard(t, func(b *board) {
				for range ring + 10 {
					b.deliver(1, 1)
				}
				b.waiting(10)
				for range 3 { // nothing is free yet
					time.Sleep(device.DrainDelay)
					synctest.Wait()
					b.waiting(10)
				}
				b.d.WantInterrupt(tt.RI)
				b.want(ring)
				b.d.WantNoRx()
				b.waiting(10)
				check(t, test.look(b))
				b.waiting(0)
				b.want(int(b.sent - b.got))
				b.d.WantNoRx()
				b.d.WantInterrupt(tt.RI)
				if s := b.tulip.Stats(); s.Queued != 10 || s.NoBuffer != 0 || s.Stopped != 0 {
					t.Errorf("stats %+v, want 10 frames queued", s)
				}
				if v := b.ReadCSR(8); v != 0 {
					t.Errorf("CSR8 = %d although nothing was missed", v)
				}
			})
		})
	}
}

// A driver that looks for frames in CSR5 sees that there are new ones at once; one that
// acknowledges does not acknowledge those it cannot know of.
func TestBacklogAndCSR5(t *testing.T) {
	onBoard(t, func(b *board) {
		b.deliver(ring+2*ring, ring+2*ring)
		b.WriteCSR(5, tt.RI)
		b.want(ring)
		if v := b.ReadCSR(5); v&tt.RI == 0 {
			t.Errorf("CSR5 = %#x, and frames have come", v)
		}
		b.want(ring)
		b.WriteCSR(5, tt.RI)
		if v := b.ReadCSR(5); v&tt.RI == 0 || !b.Interrupt() {
			t.Errorf("CSR5 = %#x, pin %v, and frames have come behind those acknowledged", v, b.Interrupt())
		}
		b.want(ring)
	})
}

// The timer runs from when a frame began to wait, however often others come meanwhile; the chip's own timer
// is not forgotten over it.
func TestBacklogTimer(t *testing.T) {
	onBoard(t, func(b *board) {
		b.WriteCSR(7, tt.GTE|tt.AIS)
		b.WriteCSR(11, 20) // times 81.92 µs
		b.deliver(ring+1, ring+1)
		for range 9 {
			time.Sleep(device.DrainDelay / 10)
			b.deliver(1, 1)
		}
		b.want(ring)
		time.Sleep(device.DrainDelay/10 - 1)
		synctest.Wait()
		b.waiting(10)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n, _ := b.tulip.Waiting(); n != 0 {
			t.Errorf("%d frames wait after the delay", n)
		}
		b.want(10)
		time.Sleep(638399 * time.Nanosecond)
		synctest.Wait()
		if b.Interrupt() {
			t.Error("the chip's timer has expired early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !b.Interrupt() {
			t.Error("the chip's timer has not expired")
		}
	})
}

// TestBacklogOrder has frames come and be received in all mixtures: they arrive in order, and all of them.
func TestBacklogOrder(t *testing.T) {
	onBoard(t, func(b *board) {
		random := rand.New(rand.NewPCG(1, 1))
		for range 3000 {
			switch random.IntN(4) {
			case 0, 1:
				n, _ := b.tulip.Waiting()
				n = min(1+random.IntN(2*ring), device.BacklogFrames-n)
				b.deliver(n, n)
			case 2:
				b.receive(random.IntN(ring + 1))
			case 3:
				check(t, look[random.IntN(len(look))].look(b))
			}
			for n, _ := b.tulip.Waiting(); n > device.BacklogFrames-2; n, _ = b.tulip.Waiting() {
				b.receive(ring)
				b.ReadCSR(5)
			}
		}
		for b.got < b.sent {
			b.receive(ring)
			b.ReadCSR(5)
		}
		b.d.WantNoRx()
		s := b.tulip.Stats()
		if s.NoBuffer+s.Stopped+s.Filtered != 0 || s.Queued == 0 || s.Queued == uint64(b.sent) {
			t.Errorf("stats %+v of %d frames: want some queued, some not, none lost", s, b.sent)
		}
	})
}

// receive takes up to n frames out of the guest's memory, and wants them to be the next.
func (b *board) receive(n int) {
	b.t.Helper()
	for range n {
		p, _ := b.d.Receive()
		if p == nil {
			return
		}
		if string(p) != string(frame(b.got)) {
			b.t.Fatalf("instead of frame %d: % x", b.got, p[:40])
		}
		b.got++
	}
}

// TestBacklogOverflow has one frame too many: only then does the guest learn that it is too slow.
func TestBacklogOverflow(t *testing.T) {
	onBoard(t, func(b *board) {
		b.deliver(ring+device.BacklogFrames-2, ring+device.BacklogFrames-2)
		b.d.WantState(3, 1)
		if v := b.ReadCSR(5); v&(tt.RI|tt.RU) != tt.RI || b.ReadCSR(8) != 0 {
			t.Errorf("CSR5 = %#x before the backlog is full", v)
		}
		b.deliver(5, 2)
		b.waiting(device.BacklogFrames)
		b.d.WantState(4, 1).WantInterrupt(tt.RI | tt.RU)
		b.deliver(1, 0)
		b.d.WantQuiet() // RU is an edge
		if v := b.ReadCSR(8); v != 2 {
			t.Errorf("CSR8 = %d, want one for each Deliver", v)
		}
		if s := b.tulip.Stats(); s.Queued != device.BacklogFrames || s.NoBuffer != 4 {
			t.Errorf("stats %+v, want %d frames queued and 4 lost", s, device.BacklogFrames)
		}
		for b.got < b.sent {
			b.want(ring)
			b.ReadCSR(5) // no poll demand needed
		}
		b.d.WantNoRx().WantState(3, 1)
		b.waiting(0)
		b.deliver(1, 1)
		b.want(1)
	})
}

// TestBacklogLongFrame has frames of the longest length, which wait, and longer, which are dropped.
func TestBacklogLongFrame(t *testing.T) {
	onBoard(t, func(b *board) {
		longest, longer := tt.Frame(macA, macB, device.MaxTulipFrame), tt.Frame(macA, macB, device.MaxTulipFrame+1)
		deliver := func(p []byte, want int) {
			t.Helper()
			if got := b.tulip.Deliver([]*vswitch.Frame{{Head: p[:60], Body: [][]byte{p[60:]}, Len: len(p)}}); got != want {
				t.Fatalf("Deliver of %d bytes returned %d, want %d", len(p), got, want)
			}
		}
		deliver(longer, 1)
		b.deliver(ring, ring)
		deliver(longer, 1)
		deliver(longest, 1)
		deliver(longer, 1)
		b.waiting(1)
		if s := b.tulip.Stats(); s.Queued != 1 || s.NoBuffer != 0 || s.Oversize != 3 {
			t.Errorf("stats %+v, want one frame queued and three dropped", s)
		}
		b.want(ring)
		b.ReadCSR(5)
		b.d.WantRx(longest, promiscuous|tt.RxTL|tt.RxES).WantNoRx()
		if v := b.ReadCSR(8); v != 0 { // the chip has not seen the others
			t.Errorf("CSR8 = %d, want 0", v)
		}
	})
}

// TestBacklogCleared ends what the frames that wait were meant for: no driver that comes later sees them.
func TestBacklogCleared(t *testing.T) {
	for _, test := range []struct {
		name    string
		end     func(b *board)
		stopped uint64 // how many count as lost to a driver that does not receive
	}{
		{"the driver stops", func(b *board) { b.WriteCSR(6, b.d.CSR6) }, 5},
		{"software reset", func(b *board) { b.WriteCSR(0, tt.SWR) }, 5},
		{"a descriptor that is not there", func(b *board) {
			b.WriteCSR(6, b.d.CSR6)
			b.WriteCSR(3, 0x8000_0000)
			b.WriteCSR(6, b.d.CSR6|tt.SR)
		}, 5},
		{"bus mastering goes off", func(b *board) {
			b.WriteConfig(4, 2, 0x143)
			time.Sleep(device.DrainDelay)
			synctest.Wait()
		}, 5},
		{"reset of the machine", func(b *board) { check(b.t, b.tulip.Reset()) }, 0},
		{"another guest", func(b *board) { b.unplug(); b.waiting(0); b.plug() }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			onBoard(t, func(b *board) {
				b.deliver(ring+5, ring+5)
				b.waiting(5)
				test.end(b)
				b.waiting(0)
				b.start()
				time.Sleep(time.Second)
				synctest.Wait()
				b.ReadCSR(5)
				b.d.WantNoRx().WantQuiet()
				b.deliver(1, 1)
				b.want(1)
				if s := b.tulip.Stats(); s.Stopped != test.stopped || s.Queued != 5 || s.NoBuffer != 0 {
					t.Errorf("stats %+v, want %d frames stopped", s, test.stopped)
				}
			})
		})
	}
}

// TestBacklogFault cuts the memory off that the frames wait for: whatever runs into it ends the attachment, and
// nothing else.
func TestBacklogFault(t *testing.T) {
	for _, test := range look {
		t.Run(test.name, func(t *testing.T) {
			onBoard(t, func(b *board) {
				b.deliver(ring+5, ring+5)
				b.want(ring)
				check(t, b.file.Truncate(0x10000)) // rings only
				if test.name == "another frame comes" {
					b.Inject(frame(0))
				} else {
					check(t, test.look(b))
				}
				if s := b.tulip.Stats(); s.Faults != 1 {
					t.Errorf("stats %+v, want one fault", s)
				}
				if err := b.tulip.ReadRegion(0, 5*8, make([]byte, 4)); !errors.Is(err, guestmem.ErrFault) {
					t.Errorf("the next access: %v, want %v", err, guestmem.ErrFault)
				}
				time.Sleep(time.Second)
				b.unplug()
				b.waiting(0)
				b.plug()
				b.d.WantNoRx()
				b.deliver(1, 1)
				b.want(1)
			})
		})
	}
}

// TestBacklogFilter has the address filter change while frames wait: it judges them when they arrive.
func TestBacklogFilter(t *testing.T) {
	onBoard(t, func(b *board) {
		b.deliver(ring+5, ring+5)
		b.WriteCSR(6, b.d.CSR6&^tt.PR|tt.SR|tt.ST) // and no set-up frame has been sent
		b.want(ring)
		b.ReadCSR(5)
		b.waiting(0)
		b.d.WantNoRx()
		if s := b.tulip.Stats(); s.Filtered != 5 || s.Queued != 5 {
			t.Errorf("stats %+v, want 5 frames filtered", s)
		}
	})
}

// TestBacklogBudget frees more descriptors at once than one access may have to wait for. What is left goes on later, and
// no frame that comes meanwhile overtakes it.
func TestBacklogBudget(t *testing.T) {
	for _, test := range look[:3] {
		t.Run(test.name, func(t *testing.T) {
			onBoard(t, func(b *board) {
				const descs, size = 192, 2000
				b.deliver(ring+128, ring+128)
				b.waiting(128)
				for i := range uint32(descs) { // all with one buffer: it is the order of lengths that is looked at
					control := uint32(size)
					if i == descs-1 {
						control |= tt.ER
					}
					b.d.PutDesc(b.d.RxDesc(0)+16*i, tt.OWN, control, b.d.RxBuf(0), 0)
				}
				filled := func() (n int) {
					for i := range uint32(descs) {
						status := b.d.Load(b.d.RxDesc(0) + 16*i)
						if status&tt.OWN != 0 {
							break
						}
						if got, want := int(status>>16&0x3fff), len(frame(ring+i))+4; got != want {
							t.Fatalf("descriptor %d has a frame of %d bytes, want %d", i, got, want)
						}
						n++
					}
					return n
				}
				check(t, test.look(b))
				if got := filled(); got != device.DrainBudget {
					t.Errorf("%d frames have come, want %d", got, device.DrainBudget)
				}
				time.Sleep(device.DrainDelay) // and the rest needs no access
				synctest.Wait()
				time.Sleep(device.DrainDelay)
				synctest.Wait()
				b.waiting(0)
				if got, want := filled(), int(b.sent)-ring; got != want {
					t.Errorf("%d frames have come in the end, want %d", got, want)
				}
			})
		})
	}
}

// TestBacklogTruncated has a frame that waits find a descriptor for its beginning, and none for its end.
func TestBacklogTruncated(t *testing.T) {
	onBoard(t, func(b *board) {
		b.deliver(ring, ring)
		b.sent = 22 // 1380 bytes
		b.deliver(2, 2)
		b.d.PutDesc(b.d.RxDesc(0), tt.OWN, 100, b.d.RxBuf(0), 0)
		b.ReadCSR(5)
		b.waiting(1)
		if v := b.d.Load(b.d.RxDesc(0)); v&(tt.OWN|tt.RxDE) != tt.RxDE {
			t.Errorf("RDES0 = %#x, want DE", v)
		}
		if s := b.tulip.Stats(); s.Queued != 2 || s.NoBuffer != 1 {
			t.Errorf("stats %+v, want 2 frames queued and one lost", s)
		}
	})
}

// TestBacklogAllocations counts allocations of frames that wait, and of those that no longer can.
func TestBacklogAllocations(t *testing.T) {
	b := newBoard(t)
	p := frame(22)
	list := []*vswitch.Frame{{Head: p[:100], Body: [][]byte{p[100:]}, Len: len(p)}}
	for b.tulip.Stats().Queued == 0 {
		b.tulip.Deliver(list)
	}
	own := bytesOf(tt.OWN, 4)
	i := 0
	if n := testing.AllocsPerRun(200, func() {
		b.tulip.Deliver(list)
		b.WriteMem(b.d.RxDesc(i%ring), own)
		i++
	}); n != 0 {
		t.Errorf("%v allocations for a frame that waits", n)
	}
	if s := b.tulip.Stats(); s.Queued < 200 || s.NoBuffer > 0 {
		t.Errorf("stats %+v: not all frames have waited", s)
	}
	if n := testing.AllocsPerRun(2*device.BacklogFrames, func() { b.tulip.Deliver(list) }); n != 0 {
		t.Errorf("%v allocations for a frame that finds the backlog full", n)
	}
	if s := b.tulip.Stats(); s.NoBuffer == 0 {
		t.Errorf("stats %+v: the backlog was not full", s)
	}
}
