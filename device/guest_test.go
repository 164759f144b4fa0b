package device_test

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
	"polder/tulip/tuliptest"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

var (
	macA = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x0a}
	macB = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x0b}
)

var discard = slog.New(slog.DiscardHandler)

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// newSwitch returns a switch that ends with the test.
func newSwitch(tb testing.TB) *vswitch.Switch {
	sw := vswitch.New(vswitch.Config{})
	tb.Cleanup(sw.Close)
	return sw
}

// newAdapter returns an adapter that nothing sends for.
func newAdapter(tb testing.TB, mac vswitch.MAC) *device.Tulip {
	tb.Helper()
	t, err := device.NewTulip(device.TulipConfig{Name: "guest", MAC: mac, ROM: []byte{0x55, 0xaa, 1}, Log: discard})
	check(tb, err)
	tb.Cleanup(func() { check(tb, t.Close()) })
	return t
}

// join puts an adapter on a switch and lets it send, until the test ends.
func join(tb testing.TB, sw *vswitch.Switch, t *device.Tulip, name string) *vswitch.Member {
	tb.Helper()
	m, err := sw.Join(name, t, vswitch.PortOptions{})
	check(tb, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { t.Run(ctx, m.NewIngress()) })
	for !t.Running() {
		runtime.Gosched()
	}
	tb.Cleanup(func() {
		stop()
		running.Wait()
		check(tb, m.Leave())
	})
	return m
}

// Where a guest's memory is.
const (
	ramBase = 1 << 20
	ramSize = 512 << 10
)

// guest is a virtual machine as its adapter knows it: a hypervisor on a socket, and
// memory. It is the tuliptest.Hardware of a driver inside, with the wire as another port of the switch.
type guest struct {
	tb     testing.TB
	tulip  *device.Tulip
	client *vfiousertest.Client
	file   *os.File
	ram    []byte // file, as the guest maps it
	bar    int    // by which the driver reaches the registers: 0 is I/O, 1 memory

	gone func() error // hangs up, and returns why the attachment ended
	wait func() error // returns why the attachment ended

	wire   *porttest.Recorder
	cable  *vswitch.Ingress
	frames [][]byte
}

var _ tuliptest.Hardware = (*guest)(nil)

// attach starts a guest at an adapter; it is off when the test ends.
func attach(tb testing.TB, t *device.Tulip) *guest {
	tb.Helper()
	client, conn, err := vfiousertest.Pair()
	check(tb, err)
	g := &guest{tb: tb, tulip: t, client: client}
	ended := make(chan error, 1)
	go func() { ended <- vfiouser.ServeConn(context.Background(), conn, t, discard, "guest") }()
	g.wait = sync.OnceValue(func() error { return <-ended })
	g.gone = sync.OnceValue(func() error {
		check(tb, client.Close())
		return g.wait()
	})
	tb.Cleanup(g.share())
	tb.Cleanup(func() { g.gone() })
	return g
}

// share gives the adapter memory and an interrupt. It returns how the guest lets go of the memory.
func (g *guest) share() (unmap func()) {
	g.tb.Helper()
	var err error
	g.file, err = vfiousertest.Memfd(ramSize)
	check(g.tb, err)
	g.ram, err = unix.Mmap(int(g.file.Fd()), 0, ramSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(g.tb, err)
	check(g.tb, g.client.Handshake())
	check(g.tb, g.client.MapDMA(ramBase, ramSize, g.file, 0))
	check(g.tb, g.client.SetINTx())
	return func() {
		check(g.tb, unix.Munmap(g.ram))
		g.file.Close()
	}
}

// plug puts the wire of g on its switch.
func (g *guest) plug(sw *vswitch.Switch) {
	g.tb.Helper()
	g.wire = porttest.NewRecorder(256)
	m, err := sw.Join("wire", g.wire, vswitch.PortOptions{})
	check(g.tb, err)
	g.cable = m.NewIngress()
}

func (g *guest) ReadCSR(n int) uint32 {
	g.tb.Helper()
	return g.read(g.bar, uint64(8*n), 4)
}

func (g *guest) WriteCSR(n int, v uint32) {
	g.tb.Helper()
	check(g.tb, g.client.RegionWrite(g.bar, uint64(8*n), bytesOf(v, 4)))
	g.settle()
}

func (g *guest) ReadConfig(off, size int) uint32 {
	g.tb.Helper()
	return g.read(vfiouser.RegionConfig, uint64(off), size)
}

func (g *guest) WriteConfig(off, size int, v uint32) {
	g.tb.Helper()
	check(g.tb, g.client.RegionWrite(vfiouser.RegionConfig, uint64(off), bytesOf(v, size)))
	g.settle()
}

// read reads size bytes of a region as a little-endian number.
func (g *guest) read(region int, off uint64, size int) (v uint32) {
	g.tb.Helper()
	p := make([]byte, size)
	check(g.tb, g.client.RegionRead(region, off, p))
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	return v
}

func bytesOf(v uint32, size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
	return p
}

// settle waits until what the last access started is done: it was answered before.
func (g *guest) settle() {
	for g.tulip.Busy() {
		runtime.Gosched()
	}
}

func (g *guest) ReadMem(addr uint32, p []byte)  { copy(p, g.ram[addr-ramBase:][:len(p)]) }
func (g *guest) WriteMem(addr uint32, p []byte) { copy(g.ram[addr-ramBase:][:len(p)], p) }
func (g *guest) MemBase() uint32                { return ramBase }

// Interrupt returns the level of the pin, and if it is high wants the hypervisor told of it.
func (g *guest) Interrupt() bool {
	g.tb.Helper()
	if !g.tulip.Pin() {
		return false
	}
	if err := g.client.WaitIRQ(g.tb.Context()); err != nil {
		g.tb.Fatalf("the pin is high, and the hypervisor not told: %v", err)
	}
	return true
}

func (g *guest) Transmitted() []byte {
	g.frames = append(g.frames, g.wire.Take()...)
	if len(g.frames) == 0 {
		return nil
	}
	f := g.frames[0]
	g.frames = g.frames[1:]
	return f
}

func (g *guest) Inject(frame []byte) { g.cable.Forward([]vswitch.Frame{whole(frame)}) }

// whole is a frame that is its sender's own.
func whole(p []byte) vswitch.Frame { return vswitch.Frame{Head: p, Len: len(p)} }

// driver returns a driver of g whose receiver and transmitter run, with an address filter for mac.
func (g *guest) driver(mac vswitch.MAC, o tuliptest.Options) *tuliptest.Driver {
	g.tb.Helper()
	d := tuliptest.NewDriver(g.tb, g, o)
	d.Reset()
	d.Start()
	d.LoadSetupFrame(0, mac, tuliptest.Broadcast)
	g.WriteCSR(5, ^uint32(0))
	return d
}
