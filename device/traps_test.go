package device_test

// Ten things about how QEMU attaches a device that are easy to get wrong. Those that are here are the
// adapter's affair; the others are tested where the messages are read.

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// gate is a port at which senders wait until it opens.
type gate struct{ reached, open chan struct{} }

func (g gate) Deliver(frames []*vswitch.Frame) int {
	g.reached <- struct{}{}
	<-g.open
	return len(frames)
}

// A guest's processor stands still until its access is answered, and after five seconds QEMU gives the
// device up: what an access starts is done after the answer.
func TestTrap01NothingIsWaitedForBeforeTheAnswer(t *testing.T) {
	sw := newSwitch(t)
	a := newAdapter(t, macA)
	join(t, sw, a, "a")
	g := attach(t, a)
	d := g.driver(macA, tt.Options{})
	g.WriteCSR(7, 0) // or the client would soon ask for something again, to unmask
	slow := gate{make(chan struct{}, 16), make(chan struct{})}
	t.Cleanup(func() { close(slow.open) })
	if _, err := sw.Join("slow", slow, vswitch.PortOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, write := range []func() error{
		func() error { return g.client.RegionWrite(0, 1*8, make([]byte, 4)) },
		func() error { return g.client.RegionPost(1, 1*8, make([]byte, 4)) },
	} {
		d.Queue(tt.Frame(tt.Broadcast, macA, 60), tt.FS|tt.LS)
		check(t, write()) // waits for the answer
		<-slow.reached    // and only now does the frame
		slow.open <- struct{}{}
		g.settle()
	}
}

// QEMU does not connect again; what attaches next is another machine, and finds a new adapter.
func TestTrap03TheNextClientFindsANewAdapter(t *testing.T) {
	a := newAdapter(t, macA)
	join(t, newSwitch(t), a, "a")
	state := func(g *guest) (regs [16]uint32, config [64]byte) {
		for n := range regs {
			regs[n] = g.ReadCSR(n)
		}
		check(t, g.client.RegionRead(vfiouser.RegionConfig, 0, config[:]))
		return regs, config
	}
	first := attach(t, a)
	regs, config := state(first)
	d := first.driver(macA, tt.Options{})
	first.WriteCSR(11, 1<<16|100) // the timer, over and over
	first.WriteConfig(0x3c, 1, 11)
	d.Queue(tt.Frame(tt.Broadcast, macA, 60), tt.FS|tt.LS)
	d.Kick()
	if err := first.gone(); err != nil {
		t.Fatal(err)
	}
	if a.Pin() {
		t.Error("the pin is high with nobody attached")
	}
	again := attach(t, a)
	if r, c := state(again); r != regs || c != config {
		t.Errorf("registers %x\nwant      %x\nconfiguration % x\nwant          % x", r, regs, c, config)
	}
}

// A memory BAR's writes are posted, an I/O BAR's are answered; both are the same registers, in order.
func TestTrap07BothWindowsAreTheSameRegisters(t *testing.T) {
	g := attach(t, newAdapter(t, macA))
	for i := range uint32(100) {
		check(t, g.client.RegionPost(1, 3*8, bytesOf(i*4, 4)))
		if v := g.read(0, 3*8, 4); v != i*4 {
			t.Fatalf("CSR3 = %#x in the I/O window, want %#x", v, i*4)
		}
		check(t, g.client.RegionWrite(0, 4*8, bytesOf(i*4, 4)))
		if v := g.read(1, 4*8, 4); v != i*4 {
			t.Fatalf("CSR4 = %#x in the memory window, want %#x", v, i*4)
		}
	}
}

// line is an adapter whose methods are called directly, in a bubble where time stands still, with the eventfd
// that it interrupts by.
type line struct {
	t     *testing.T
	tulip *device.Tulip
	fd    int
}

func newLine(t *testing.T) *line {
	l := &line{t: t, tulip: newAdapter(t, macA)}
	check(t, l.tulip.Attach("test"))
	t.Cleanup(func() { l.tulip.Detach(nil) })
	l.listen()
	return l
}

// set calls SetIRQs for INTx.
func (l *line) set(action vfiouser.IRQAction, data vfiouser.IRQData, rest ...func(*vfiouser.IRQSet)) error {
	s := vfiouser.IRQSet{Count: 1, Action: action, Data: data}
	for _, f := range rest {
		f(&s)
	}
	return l.tulip.SetIRQs(s)
}

func newEventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// listen gives the adapter a new eventfd.
func (l *line) listen() {
	l.t.Helper()
	l.fd = newEventFD(l.t)
	check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQEventFD, files(l.t, l.fd)))
}

func files(t *testing.T, fd int) func(*vfiouser.IRQSet) {
	return func(s *vfiouser.IRQSet) { s.Files = append(s.Files, passed(t, fd)) }
}

// passed returns fd as a message brings it: another descriptor of the same file.
func passed(t *testing.T, fd int) *os.File {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	check(t, err)
	return os.NewFile(uintptr(dup), "passed")
}

func bools(b byte) func(*vfiouser.IRQSet) {
	return func(s *vfiouser.IRQSet) { s.Bools = []byte{b} }
}

func count0(s *vfiouser.IRQSet) { s.Count = 0 }

func (l *line) unmask() { l.t.Helper(); check(l.t, l.set(vfiouser.IRQUnmask, vfiouser.IRQNone)) }

func (l *line) write(n int, v uint32) {
	l.t.Helper()
	check(l.t, l.tulip.WriteRegion(0, uint64(8*n), bytesOf(v, 4)))
}

// raise makes the chip drive the line high, with an event that needs no memory; lower acknowledges it.
func (l *line) raise() {
	l.t.Helper()
	l.write(7, tt.TPS|tt.AIS)
	l.write(6, tt.ST)
	l.write(6, 0)
}

func (l *line) lower() { l.t.Helper(); l.write(5, tt.TPS) }

// want wants n interrupts told since the last want.
func (l *line) want(n uint64, when string) {
	l.t.Helper()
	synctest.Wait()
	if got := signals(l.t, l.fd); got != n {
		l.t.Errorf("%s: told %d times, want %d", when, got, n)
	}
}

// signals takes the count of an eventfd.
func signals(t *testing.T, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err == unix.EAGAIN {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(b[:])
}

// QEMU lowers its line at any access to a BAR and asks for another interrupt, if there is one. The first such
// access is the handler's look at CSR5, with which nothing is settled yet: the second
// interrupt is put off, and spared if the acknowledgement comes meanwhile.
func TestTrap08INTx(t *testing.T) {
	tests := []struct {
		name string
		run  func(l *line)
	}{
		{"a rise is told once", func(l *line) {
			l.raise()
			l.want(1, "at once")
			l.raise()
			time.Sleep(time.Hour)
			l.want(0, "until unmasked")
		}},
		{"the handler's look costs no second interrupt", func(l *line) {
			for range 3 {
				l.raise()
				l.want(1, "risen")
				l.unmask()
				time.Sleep(device.RekickDelay - 1)
				l.want(0, "before the delay is over")
				l.lower()
				time.Sleep(time.Hour)
				l.want(0, "acknowledged in time")
				l.unmask()
			}
		}},
		{"a line that stays high is told again", func(l *line) {
			l.raise()
			l.want(1, "risen")
			for range 3 {
				l.unmask()
				l.want(0, "unmasked")
				time.Sleep(device.RekickDelay)
				l.want(1, "after the delay")
			}
			time.Sleep(time.Hour)
			l.want(0, "masked again")
		}},
		{"a new rise in the delay is told at once", func(l *line) {
			l.raise()
			l.unmask()
			l.lower()
			l.want(1, "first")
			l.raise()
			l.want(1, "second")
			time.Sleep(time.Hour)
			l.want(0, "the delay of the first")
		}},
		{"unmasking twice is one interrupt", func(l *line) {
			l.raise()
			l.want(1, "risen")
			l.unmask()
			time.Sleep(device.RekickDelay / 2)
			l.unmask()
			time.Sleep(device.RekickDelay / 2)
			l.want(1, "after the delay of the first")
			time.Sleep(time.Hour)
			l.want(0, "later")
		}},
		{"a fall and a rise while masked are told when unmasked", func(l *line) {
			l.raise()
			l.want(1, "risen")
			l.lower()
			l.raise()
			l.want(0, "masked")
			l.unmask()
			time.Sleep(device.RekickDelay)
			l.want(1, "unmasked")
		}},
		{"a mask holds the line back, also in the delay", func(l *line) {
			check(l.t, l.set(vfiouser.IRQMask, vfiouser.IRQNone))
			l.raise()
			time.Sleep(time.Hour)
			l.want(0, "masked before")
			l.unmask()
			check(l.t, l.set(vfiouser.IRQMask, vfiouser.IRQBool, bools(1)))
			time.Sleep(time.Hour)
			l.want(0, "masked in the delay")
			check(l.t, l.set(vfiouser.IRQUnmask, vfiouser.IRQBool, bools(0)))
			time.Sleep(time.Hour)
			l.want(0, "a bool of 0 leaves it alone")
			check(l.t, l.set(vfiouser.IRQUnmask, vfiouser.IRQBool, bools(1)))
			time.Sleep(time.Hour)
			l.want(1, "a bool of 1 does not")
		}},
		{"a new eventfd is told of a line that is high", func(l *line) {
			l.raise()
			l.want(1, "the old one")
			l.listen()
			l.want(1, "the new one")
		}},
		{"reset of the machine", func(l *line) {
			old := l.fd
			l.raise()
			l.want(1, "risen")
			l.unmask()
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQNone, count0))
			time.Sleep(time.Hour)
			l.want(0, "torn down in the delay")
			l.raise()
			l.unmask()
			time.Sleep(time.Hour)
			l.want(0, "nobody listens")
			check(l.t, l.tulip.Reset())
			if l.tulip.Pin() {
				l.t.Error("the pin is high after a reset")
			}
			l.listen()
			l.want(0, "nothing has happened since")
			l.raise()
			l.want(1, "risen")
			if n := signals(l.t, old); n != 0 {
				l.t.Errorf("the old eventfd was told %d times", n)
			}
		}},
		{"taking the eventfd away", func(l *line) {
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQEventFD))
			l.raise()
			l.want(0, "gone")
		}},
		{"a test by the client", func(l *line) {
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQBool, bools(0)))
			l.want(0, "a bool of 0")
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQBool, bools(1)))
			l.want(1, "a bool of 1")
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQNone))
			l.want(0, "masked by the one before")
			l.unmask()
			check(l.t, l.set(vfiouser.IRQTrigger, vfiouser.IRQNone))
			l.want(1, "unmasked")
		}},
		{"detaching in the delay", func(l *line) {
			l.raise()
			l.want(1, "risen")
			l.unmask()
			l.tulip.Detach(nil)
			time.Sleep(time.Hour)
			l.want(0, "detached")
			check(l.t, l.tulip.Attach("another"))
			l.listen()
			l.want(0, "another guest")
		}},
		{"closing in the delay, with the timer running", func(l *line) {
			l.raise()
			l.want(1, "risen")
			l.write(7, tt.GTE|tt.TPS|tt.AIS)
			l.write(11, 1<<16|1)
			l.unmask()
			l.tulip.Detach(nil)
			check(l.t, l.tulip.Close())
			time.Sleep(time.Hour)
			l.want(0, "closed")
		}},
		{"the chip's timer", func(l *line) {
			l.write(7, tt.GTE|tt.AIS)
			l.write(11, 10) // times 204.8 µs
			time.Sleep(2047 * time.Microsecond)
			l.want(0, "before it expires")
			time.Sleep(time.Microsecond)
			l.want(1, "when it expires")
			l.write(5, tt.GTE)
			l.unmask()
			l.write(11, 1<<16|10)
			for range 5 {
				time.Sleep(2048 * time.Microsecond)
				l.want(1, "over and over")
				l.write(5, tt.GTE)
				l.unmask()
			}
			l.write(11, 0)
			time.Sleep(time.Hour)
			l.want(0, "stopped")
		}},
		{"things that are not eventfds, or not possible", func(l *line) {
			f, err := vfiousertest.Memfd(1)
			check(l.t, err)
			fd := int(f.Fd())
			for name, err := range map[string]error{
				"trigger": l.set(vfiouser.IRQTrigger, vfiouser.IRQEventFD, files(l.t, fd)),
				"unmask":  l.set(vfiouser.IRQUnmask, vfiouser.IRQEventFD, files(l.t, fd)),
				"mask":    l.set(vfiouser.IRQMask, vfiouser.IRQEventFD, files(l.t, newEventFD(l.t))),
			} {
				if err == nil {
					l.t.Errorf("%s was accepted", name)
				}
			}
			check(l.t, f.Close())
			l.raise()
			l.want(1, "the one before still stands")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.run(newLine(t)) })
		})
	}
}

// With KVM the line is in the kernel, which tells by an eventfd of its own that the guest's handler is through.
func TestTrap08KVM(t *testing.T) {
	g := attach(t, newAdapter(t, macA))
	trigger, unmask := newEventFD(t), newEventFD(t)
	pass := func(flags uint32, fd int) {
		t.Helper()
		_, err := g.client.Call(vfiousertest.SetIRQs, vfiousertest.Payload(uint32(20), flags, uint32(0), uint32(0), uint32(1)), fd)
		check(t, err)
	}
	none := newEventFD(t)
	check(t, g.client.ClearINTx())
	before := descriptors(t)
	pass(0x24, trigger)
	pass(0x14, none)
	pass(0x14, unmask) // in place of the one before
	g.WriteCSR(7, tt.TPS|tt.AIS)
	g.WriteCSR(6, tt.ST)
	g.WriteCSR(6, 0)
	wait(t, trigger)
	for range 5 { // the handler is through, but the line still high
		_, err := unix.Write(unmask, binary.NativeEndian.AppendUint64(nil, 1))
		check(t, err)
		wait(t, trigger)
	}
	g.WriteCSR(5, tt.TPS)
	check(t, g.client.ClearINTx()) // takes the unmasking eventfd away as well
	eventually(t, func() bool { return descriptors(t) == before }, "the adapter keeps an eventfd")
	pass(0x24, trigger)
	g.WriteCSR(6, tt.ST)
	g.WriteCSR(6, 0)
	wait(t, trigger)
}

// wait waits until an eventfd is signalled.
func wait(t *testing.T, fd int) {
	t.Helper()
	for signals(t, fd) == 0 {
		check(t, t.Context().Err())
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// The firmware write-protects parts of the RAM that it copies itself to: the hypervisor takes all of it away and
// gives it back in other pieces, over and over, while the adapter uses it.
func TestTrapRemappedRAM(t *testing.T) {
	g := plugged(t, 0)
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	type piece struct{ at, size uint64 }
	whole := []piece{{0, ramSize}}
	layouts := [][]piece{
		{{0, 0x18000}, {0x18000, 0x8000}, {0x20000, ramSize - 0x20000}},
		{{0, 0x1000}, {0x1000, ramSize - 0x1000}},
		{{0, 0x10000}, {0x10000, 0x10000}, {0x20000, 0x1000}, {0x21000, ramSize - 0x21000}},
		whole,
	}
	now := whole
	for i := range 40 {
		for _, p := range now {
			check(t, g.client.UnmapDMA(ramBase+p.at, p.size))
		}
		now = layouts[i%len(layouts)]
		for _, p := range now {
			check(t, g.client.MapDMA(ramBase+p.at, p.size, g.file, p.at))
		}
		out := tt.Frame(tt.Broadcast, tt.Station, 1514)
		d.Send(out).WantTx(out)
		in := tt.Frame(tt.Station, tt.Other, 1514)
		g.Inject(in)
		d.WantRx(in, tt.RxFT)
	}
}

// While the RAM is away a running adapter that needs it sees a master abort, and lives again after a reset.
func TestTrapUnmappedRAM(t *testing.T) {
	g := plugged(t, 0)
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	check(t, g.client.UnmapDMA(ramBase, ramSize))
	g.Inject(tt.Frame(tt.Station, tt.Other, 60))
	d.WantInterrupt(tt.FBE)
	check(t, g.client.MapDMA(ramBase, ramSize, g.file, 0))
	d = g.driver(vswitch.MAC(tt.Station), tt.Options{})
	in := tt.Frame(tt.Station, tt.Other, 60)
	g.Inject(in)
	d.WantRx(in, tt.RxFT)
	if s := g.tulip.Stats(); s.Faults != 0 {
		t.Errorf("%d faults", s.Faults)
	}
}

// Nothing tells a device that bus mastering went off but the write to its COMMAND register; memory stays mapped.
func TestTrapBusMaster(t *testing.T) {
	g := plugged(t, 0)
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	out, in := tt.Frame(tt.Broadcast, tt.Station, 100), tt.Frame(tt.Station, tt.Other, 100)
	g.WriteConfig(4, 2, 0x143)
	before := bytes.Clone(g.ram)
	g.Inject(in)
	g.Inject(in)
	if !bytes.Equal(g.ram, before) {
		t.Error("the adapter wrote to memory without being the bus's master")
	}
	d.Send(out).WantNoTx()
	g.WriteConfig(4, 2, 0x147) // and what was queued goes out
	d.WantTx(out)
	g.Inject(in)
	d.WantRx(in, tt.RxFT).WantNoRx()
}

// The reset of a machine clears the COMMAND register and resets the device, which may be busy.
func TestResetWhileTransmitting(t *testing.T) {
	g := plugged(t, 0)
	frame := tt.Frame(tt.Broadcast, tt.Station, 1000)
	for range 100 {
		d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
		for range 15 {
			d.Queue(frame, tt.FS|tt.LS|tt.IC)
		}
		check(t, g.client.RegionWrite(0, 1*8, make([]byte, 4)))
		check(t, g.client.RegionWrite(vfiouser.RegionConfig, 4, []byte{0, 0}))
		check(t, g.client.Reset())
		if v := g.ReadCSR(5); v != 0xfc000000 {
			t.Fatalf("CSR5 = %#x after a reset", v)
		}
		if g.Interrupt() || g.client.IRQPending() {
			t.Fatal("an interrupt after a reset")
		}
		for g.Transmitted() != nil {
		}
		d = g.driver(vswitch.MAC(tt.Station), tt.Options{})
		d.Send(frame).WantTx(frame).WantNoTx().WantInterrupt(tt.TI)
	}
}

// CSR0<TAP> has the chip look for frames by itself: no access tells of them.
func TestAutomaticPolling(t *testing.T) {
	g := plugged(t, 0)
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	g.WriteCSR(0, 0x01a08000|1<<17) // each 200 µs
	for range 20 {
		frame := tt.Frame(tt.Broadcast, tt.Station, 300)
		d.Queue(frame, tt.FS|tt.LS)
		for g.Transmitted() == nil {
			check(t, t.Context().Err())
		}
	}
}

// TestAccesses has registers read in other ways than drivers' usual one.
func TestAccesses(t *testing.T) {
	g := attach(t, newAdapter(t, macA))
	g.WriteCSR(3, 0x12345678)
	g.WriteCSR(15, 0)
	config := make([]byte, 256)
	copy(config, []byte{0x11, 0x10, 0x09, 0x00})
	for _, test := range []struct {
		name   string
		region int
		off    uint64
		want   []byte
	}{
		{"one byte", 0, 0x1a, []byte{0x34}},
		{"two bytes", 0, 0x18, []byte{0x78, 0x56}},
		{"eight bytes", 1, 0x18, []byte{0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0}},
		{"eight bytes of a mirror", 1, 0xf98, []byte{0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0}},
		{"the last eight bytes", 1, 0xff8, []byte{0, 0, 0xf0, 0x8f, 0, 0, 0, 0}},
		{"the last eight bytes of the I/O window", 0, 0x78, []byte{0, 0, 0xf0, 0x8f, 0, 0, 0, 0}},
		{"the last four bytes", 1, 0xffc, make([]byte, 4)},
		{"the last byte", 1, 0xfff, make([]byte, 1)},
		{"misaligned", 1, 0x19, make([]byte, 4)},
		{"three bytes", 1, 0x18, make([]byte, 3)},
		{"five bytes", 1, 0x18, []byte{0x78, 0x56, 0x34, 0x12, 0}},
		{"nothing", 1, 0x1000, nil},
		{"identification", 7, 0, []byte{0x11, 0x10, 0x09, 0x00, 0, 0, 0x80, 0x02}},
		{"odd part of configuration", 7, 1, []byte{0x10, 0x09, 0x00}},
		{"end of configuration", 7, 0xfc, make([]byte, 4)},
		{"interrupt pin", 7, 0x3d, []byte{1}},
		{"ROM", 6, 0, []byte{0x55, 0xaa, 1, 0xff}},
		{"end of the ROM", 6, 2047, []byte{0xff}},
	} {
		got := make([]byte, len(test.want))
		if err := g.client.RegionRead(test.region, test.off, got); err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("%s: % x, %v, want % x", test.name, got, err, test.want)
		}
	}
	if err := g.client.RegionRead(7, 0, config); err != nil {
		t.Errorf("256 bytes of configuration: %v", err)
	}
	all := make([]byte, 4096)
	if err := g.client.RegionRead(1, 0, all); err != nil || !bytes.Equal(all[:128], all[4096-128:]) {
		t.Errorf("the whole window: %v, or its ends differ", err)
	}
	for _, test := range []struct {
		name       string
		region     int
		off, count int
	}{
		{"past a window", 0, 0x7c, 8},
		{"past the memory window", 1, 0xffd, 4},
		{"past configuration", 7, 0xfe, 4},
		{"past the ROM", 6, 2046, 4},
		{"a window that does not exist", 2, 0, 4},
	} {
		if err := g.client.RegionRead(test.region, uint64(test.off), make([]byte, test.count)); err != unix.EINVAL {
			t.Errorf("%s: %v, want EINVAL", test.name, err)
		}
	}
	if err := g.client.RegionWrite(6, 0, make([]byte, 4)); err != unix.EINVAL {
		t.Errorf("write to the ROM: %v, want EINVAL", err)
	}
	check(t, g.client.RegionWrite(1, 0x18, bytes.Repeat([]byte{0x44}, 8)))
	check(t, g.client.RegionWrite(1, 0xfff, []byte{1}))
	check(t, g.client.RegionWrite(1, 0x20, bytes.Repeat([]byte{0x24}, 24)))
	for n, want := range map[int]uint32{3: 0x44444444, 4: 0x24242424, 15: 0x8ff00000} {
		if v := g.ReadCSR(n); v != want {
			t.Errorf("CSR%d = %#x, want %#x", n, v, want)
		}
	}
}

// TestROM has the window of the ROM agree with what the guest finds when it sizes it.
func TestROM(t *testing.T) {
	for _, test := range []struct{ size, window int }{{1, 2048}, {2048, 2048}, {2049, 4096}, {76288, 128 << 10}, {256 << 10, 256 << 10}} {
		rom := bytes.Repeat([]byte{0x55}, test.size)
		a, err := device.NewTulip(device.TulipConfig{Name: "rom", MAC: macA, ROM: rom, Log: discard})
		check(t, err)
		if got := a.Info().Regions[vfiouser.RegionROM].Size; got != uint64(test.window) {
			t.Errorf("ROM of %d bytes has a window of %d, want %d", test.size, got, test.window)
		}
		p := make([]byte, 4)
		check(t, a.WriteRegion(vfiouser.RegionConfig, 0x30, []byte{0xff, 0xff, 0xff, 0xff}))
		check(t, a.ReadRegion(vfiouser.RegionConfig, 0x30, p))
		if got := -(binary.LittleEndian.Uint32(p) &^ 1); got != uint32(test.window) {
			t.Errorf("ROM of %d bytes: its register shows %d, want %d", test.size, got, test.window)
		}
		check(t, a.Close())
	}
	if _, err := device.NewTulip(device.TulipConfig{MAC: macA, ROM: make([]byte, 256<<10+1), Log: discard}); err == nil {
		t.Error("a ROM larger than the chip decodes was accepted")
	}
	none, err := device.NewTulip(device.TulipConfig{MAC: macA, Log: discard})
	check(t, err)
	if r := none.Info().Regions[vfiouser.RegionROM]; r != (vfiouser.RegionInfo{}) {
		t.Errorf("no ROM, but a window %+v", r)
	}
	check(t, none.Close())
}
