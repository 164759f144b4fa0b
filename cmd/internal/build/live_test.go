package build

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
	"polder/device/virtq/virtqtest"
	"polder/vswitch"
)

// Of the guests below: how many entries their rings have, and bytes their buffers.
const (
	ringSize   = 128
	bufferSize = 2048
)

// guest is a virtual machine with a synthetic adapter.
type guest struct {
	t      *testing.T
	mac    vswitch.MAC
	client *vhostusertest.Client
	rx, tx *ring
}

// ring is one of its rings, with a buffer for each entry.
type ring struct {
	*virtqtest.Driver
	vring   *vhostusertest.Vring
	ram     *virtqtest.RAM
	buffers []uint64
}

// newGuest attaches a guest to an adapter's socket until the test ends.
func newGuest(t *testing.T, a api.Adapter) *guest {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	g := &guest{t: t}
	var err error
	g.mac, err = vswitch.ParseMAC(a.MAC)
	check(err)
	g.client, err = vhostusertest.Dial(a.Socket)
	check(err)
	mem, err := vhostusertest.NewMemory(1<<30, 1<<20)
	check(err)
	t.Cleanup(func() { g.client.Close(); mem.Close() })
	check(g.client.Connect(vhostuser.ProtocolAll))
	check(g.client.SetFeatures(vhostusertest.FeatureVersion1 | vhostusertest.FeatureProtocol))
	check(g.client.SetMemTable(mem))
	ram := virtqtest.NewSharedRAM(mem.GPA, mem.Bytes)
	for i, r := range []**ring{&g.rx, &g.tx} {
		d := virtqtest.NewDriver(ram, virtqtest.Options{Num: ringSize})
		v, _, err := vhostusertest.NewVring(mem, i, ringSize, 0) // for its doorbells
		check(err)
		t.Cleanup(v.Close)
		c := d.Config()
		v.Desc, v.Avail, v.Used, v.Base = c.Desc, c.Driver, c.Device, c.Base
		*r = &ring{Driver: d, vring: v, ram: ram}
		for range ringSize {
			(*r).buffers = append((*r).buffers, ram.Alloc(bufferSize, 64))
		}
	}
	for token := range ringSize {
		g.rx.add(token, bufferSize, true)
	}
	g.rx.Publish()
	for _, r := range []*ring{g.rx, g.tx} {
		check(g.client.StartVring(r.vring))
		check(g.client.EnableVring(r.vring.Index, true))
	}
	_, err = g.client.GetU64(vhostusertest.GetFeatures) // which is answered when all before it is done
	check(err)
	return g
}

func (r *ring) add(token, n int, write bool) {
	r.Add([]virtqtest.Buffer{{Addr: r.buffers[token], Len: uint32(n), Write: write}}, token, false)
}

// headerLen is that of a virtio_net_hdr, bytes.
const headerLen = 12

// send sends count frames with the numbers from first on.
func (g *guest) send(dst vswitch.MAC, first uint32, count int) {
	for token := range count {
		b := g.tx.ram.Bytes(g.tx.buffers[token], headerLen+60)
		clear(b)
		f := b[headerLen:]
		copy(f, dst[:])
		copy(f[6:], g.mac[:])
		binary.BigEndian.PutUint16(f[12:], 0x88b5) // for experiments, IEEE 802
		binary.BigEndian.PutUint32(f[14:], first+uint32(token))
		g.tx.add(token, len(b), false)
	}
	if g.tx.Publish() {
		if err := g.tx.vring.Kick(); err != nil {
			g.t.Error(err)
		}
	}
	for sent := 0; sent < count; {
		if _, ok := g.tx.Reap(); ok {
			sent++
		} else {
			time.Sleep(10 * time.Microsecond)
		}
	}
}

// receive returns the numbers of the frames that are there.
func (g *guest) receive() (numbers []uint32) {
	for {
		u, ok := g.rx.Reap()
		if !ok {
			break
		}
		numbers = append(numbers, binary.BigEndian.Uint32(g.rx.ram.Bytes(g.rx.buffers[u.Token], bufferSize)[headerLen+14:]))
		g.rx.add(u.Token, bufferSize, true)
	}
	if numbers != nil {
		g.rx.Publish()
	}
	return numbers
}

// TestLivePorts has adapters come and go, be connected, disconnected and changed a thousand times while two guests
// talk: each of their frames arrives, once and in order, and nothing is left of the adapters.
func TestLivePorts(t *testing.T) {
	w := newWorld(t, "switches: [{name: lan}, {name: lab}]")
	var guests [2]*guest
	for i := range guests {
		a, err := w.AddAdapter(api.AdapterRequest{Name: fmt.Sprint("guest", i), Switch: "lan", Kind: config.KindSynthetic}, false)
		if err != nil {
			t.Fatal(err)
		}
		guests[i] = newGuest(t, a)
	}

	var stop atomic.Bool
	var talk sync.WaitGroup
	var sent uint32 // by each
	talk.Go(func() {
		for round := 0; !stop.Load(); round++ {
			count := 1 + round%(ringSize/4) // there is always room
			for i, g := range guests {
				dst := guests[1-i].mac
				if round%8 == 0 {
					dst = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
				}
				g.send(dst, sent, count)
			}
			for i, g := range guests {
				next := sent
				for deadline := time.Now().Add(30 * time.Second); next != sent+uint32(count); {
					numbers := g.receive()
					for _, n := range numbers {
						if n != next {
							t.Errorf("guest %d got frame %d, want %d", i, n, next)
							return
						}
						next++
					}
					if numbers == nil && time.Now().After(deadline) {
						t.Errorf("guest %d got %d frames of %d", i, next-sent, count)
						return
					}
					time.Sleep(10 * time.Microsecond)
				}
			}
			sent += uint32(count)
		}
	})
	defer func() {
		stop.Store(true)
		talk.Wait()
	}()

	off, lan, lab, none := false, "lan", "lab", ""
	cycle := func(i int) {
		r := api.AdapterRequest{Name: fmt.Sprint("port", i%3), Switch: []string{"lan", "lab", ""}[i%3], Kind: config.KindLegacy}
		if i%2 == 0 {
			r.Kind = config.KindSynthetic
		}
		a, err := w.AddAdapter(r, i%5 == 0)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			hypervisor, err := vhostusertest.Dial(a.Socket)
			if err != nil {
				t.Fatal(err)
			}
			if err := hypervisor.Connect(vhostuser.ProtocolAll); err != nil {
				t.Fatal(err)
			}
			defer hypervisor.Close()
		}
		for _, c := range []api.AdapterChange{
			{Switch: &lan}, {Policy: config.Policy{MACSpoofing: &off}}, {Switch: &none}, {Policy: config.Policy{VLAN: &config.VLAN{Access: 7}}}, {Switch: &lab}, {Switch: &lan},
		}[:i%7] {
			if err := w.ChangeAdapter(a.Name, c); err != nil {
				t.Fatal(err)
			}
		}
		w.Status()
		if err := w.RemoveAdapter(a.Name); err != nil {
			t.Fatal(err)
		}
	}
	const cycles = 1000
	for i := range cycles / 2 {
		cycle(i)
	}
	before, memory := held(t), heap()
	for i := range cycles / 2 {
		cycle(i)
	}
	if grown := heap() - memory; grown > cycles/2*256 {
		t.Errorf("the heap has grown by %d bytes in %d cycles", grown, cycles/2)
	}
	wantNoMore(t, before)
	stop.Store(true)
	talk.Wait()

	ports := w.Status().Switches[1].Ports
	if w.Status().Switches[0].Name == "lan" {
		ports = w.Status().Switches[0].Ports
	}
	if len(ports) != 2 || sent == 0 {
		t.Fatalf("%d ports on the switch, %d frames sent", len(ports), sent)
	}
	for _, p := range ports {
		if p.RxFrames != uint64(sent) || p.TxFrames != uint64(sent) || len(p.Drops) > 0 {
			t.Errorf("%s: %d frames in, %d out, drops %v; want %d each, and none", p.Name, p.RxFrames, p.TxFrames, p.Drops, sent)
		}
	}
	t.Logf("%d frames each way", sent)
}

// heap returns how many bytes of Go's memory are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
