package device_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"polder/device"
	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
	"polder/device/virtq/virtqtest"
	"polder/vswitch"
)

// Features that a synthetic adapter's guest acknowledges in tests (virtio 5.1.3 and 6).
const (
	fCsum      = 1 << 0
	fGuestCsum = 1 << 1
	fGuestTSO4 = 1 << 7
	fHostTSO4  = 1 << 11
	fMergeable = 1 << 15
	fVersion1  = 1 << 32
)

// Where a synthetic adapter's guest has its memory.
const (
	vramBase = 1 << 30
	vramSize = 8 << 20
)

// newVirtioNet returns a synthetic adapter that is not connected to a switch.
func newVirtioNet(tb testing.TB, c device.VirtioNetConfig) *device.VirtioNet {
	tb.Helper()
	c.Name, c.Log = "guest", discard
	if c.Workers == nil {
		c.Workers = adaptive(tb)
	}
	v, err := device.NewVirtioNet(c)
	check(tb, err)
	tb.Cleanup(func() { check(tb, v.Close()) })
	return v
}

// joinVirtioNet puts an adapter on a switch until the test ends.
func joinVirtioNet(tb testing.TB, sw *vswitch.Switch, v *device.VirtioNet, name string) *vswitch.Member {
	tb.Helper()
	m, err := sw.Join(name, v, vswitch.PortOptions{})
	check(tb, err)
	v.Connect(m)
	tb.Cleanup(func() { check(tb, m.Leave()) })
	return m
}

// virtioOptions are what a guest's driver makes of its adapter.
type virtioOptions struct {
	virtqtest.Options              // of each ring; Num 0 stands for 128
	features          uint64       // besides those of the rings and VERSION_1
	buffer            int          // bytes of each buffer to receive into; 0: 2048
	pairs             int          // 0: 1
	log               *slog.Logger // of its connection; nil: nobody reads it
}

// virtioGuest is a virtual machine with a synthetic adapter: a front end, memory, and drivers of the rings.
type virtioGuest struct {
	tb     testing.TB
	o      virtioOptions
	client *vhostusertest.Client
	mem    *vhostusertest.Memory
	rx, tx []*virtioRing

	gone func() error // hangs up, and returns why the attachment ended
	wait func() error // returns why the attachment ended
}

// virtioRing is a ring of a guest with its buffers, which have the ring's number of entries.
type virtioRing struct {
	*virtqtest.Driver
	vring   *vhostusertest.Vring
	ram     *virtqtest.RAM
	buffers []uint64
	one     [1]virtqtest.Buffer
}

// attachVirtio starts a guest at an adapter; it is off when the test ends.
func attachVirtio(tb testing.TB, v *device.VirtioNet, o virtioOptions) *virtioGuest {
	tb.Helper()
	if o.Num == 0 {
		o.Num = 128
	}
	if o.buffer == 0 {
		o.buffer = 2048
	}
	o.pairs = max(o.pairs, 1)
	if o.log == nil {
		o.log = discard
	}
	g := &virtioGuest{tb: tb, o: o}
	client, conn, err := vhostusertest.Pair()
	check(tb, err)
	g.client = client
	ended := make(chan error, 1)
	go func() { ended <- vhostuser.ServeConn(context.Background(), conn, v, o.log, "guest") }()
	g.wait = sync.OnceValue(func() error { return <-ended })
	g.gone = sync.OnceValue(func() error {
		client.Close()
		return g.wait()
	})
	tb.Cleanup(func() { g.gone() })

	g.mem, err = vhostusertest.NewMemory(vramBase, vramSize)
	check(tb, err)
	tb.Cleanup(func() {
		g.gone()
		g.mem.Close()
	})
	check(tb, client.Connect(vhostuser.ProtocolAll))
	features := uint64(fVersion1) | vhostusertest.FeatureProtocol | o.features
	for _, f := range []struct {
		on  bool
		bit uint64
	}{{o.Packed, 1 << 34}, {o.InOrder, 1 << 35}, {o.EventIdx, 1 << 29}, {o.Indirect, 1 << 28}} {
		if f.on {
			features |= f.bit
		}
	}
	check(tb, client.SetFeatures(features))
	check(tb, client.SetMemTable(g.mem))
	ram := virtqtest.NewSharedRAM(vramBase, g.mem.Bytes)
	for pair := range o.pairs {
		g.rx = append(g.rx, g.newRing(ram, 2*pair, o.buffer))
		g.tx = append(g.tx, g.newRing(ram, 2*pair+1, 2048))
		for token := range o.Num {
			g.rx[pair].give(token, o.buffer)
		}
		g.rx[pair].Publish()
	}
	for pair := range o.pairs {
		for _, r := range []*virtioRing{g.rx[pair], g.tx[pair]} {
			check(tb, client.StartVring(r.vring))
			check(tb, client.EnableVring(r.vring.Index, true))
		}
	}
	_, err = client.GetU64(vhostusertest.GetFeatures) // which is answered when all before it is done
	check(tb, err)
	return g
}

func (g *virtioGuest) newRing(ram *virtqtest.RAM, index, buffer int) *virtioRing {
	d := virtqtest.NewDriver(ram, g.o.Options)
	vring, _, err := vhostusertest.NewVring(g.mem, index, g.o.Num, 0) // for its doorbells
	check(g.tb, err)
	g.tb.Cleanup(vring.Close)
	c := d.Config()
	vring.Desc, vring.Avail, vring.Used, vring.Base = c.Desc, c.Driver, c.Device, c.Base
	r := &virtioRing{Driver: d, vring: vring, ram: ram}
	for range g.o.Num {
		r.buffers = append(r.buffers, ram.Alloc(buffer, 64))
	}
	return r
}

// give makes a buffer available to receive into.
func (r *virtioRing) give(token, n int) {
	r.one[0] = virtqtest.Buffer{Addr: r.buffers[token], Len: uint32(n), Write: true}
	r.Add(r.one[:], token, false)
}

// packet is what a guest receives or sends.
type packet struct {
	header [12]byte
	frame  []byte
}

// receive returns what has arrived at a pair, and gives the buffers back.
func (g *virtioGuest) receive(pair int) (packets []packet) {
	r := g.rx[pair]
	for {
		var all []byte
		for buffers := 1; buffers > 0; buffers-- {
			u, ok := r.Reap()
			if !ok {
				if all != nil {
					g.tb.Fatalf("%d buffers of a frame are missing", buffers)
				}
				return packets
			}
			part := r.ram.Bytes(r.buffers[u.Token], g.o.buffer)[:u.Written]
			if all == nil {
				buffers = int(binary.LittleEndian.Uint16(part[10:]))
			}
			all = append(all, part...)
			r.give(u.Token, g.o.buffer)
		}
		r.Publish()
		packets = append(packets, packet{[12]byte(all), slices.Clone(all[12:])})
	}
}

// queue makes a packet available to send, in one buffer or cut into several, and says nothing yet.
func (g *virtioGuest) queue(pair, token int, p packet, cuts ...int) {
	r := g.tx[pair]
	all := append(p.header[:], p.frame...)
	copy(r.ram.Bytes(r.buffers[token], 2048), all)
	var bufs []virtqtest.Buffer
	at := uint64(0)
	for _, n := range append(cuts, len(all)) {
		n = min(n, len(all)-int(at))
		if n > 0 {
			bufs = append(bufs, virtqtest.Buffer{Addr: r.buffers[token] + at, Len: uint32(n)})
		}
		at += uint64(n)
	}
	if !r.Add(bufs, token, g.o.Indirect) {
		g.tb.Fatal("no room in the transmit ring")
	}
}

// flush sends what is queued and waits until it has left.
func (g *virtioGuest) flush(pair, n int) {
	g.tb.Helper()
	r := g.tx[pair]
	if r.Publish() {
		check(g.tb, r.vring.Kick())
	}
	for deadline := time.Now().Add(10 * time.Second); n > 0; {
		if _, ok := r.Reap(); ok {
			n--
		} else if time.Now().After(deadline) {
			g.tb.Fatalf("%d frames have not left", n)
		} else {
			time.Sleep(10 * time.Microsecond)
		}
	}
}

// send sends frames with empty headers.
func (g *virtioGuest) send(frames ...[]byte) {
	g.tb.Helper()
	for i, f := range frames {
		g.queue(0, i, packet{frame: f})
	}
	g.flush(0, len(frames))
}
