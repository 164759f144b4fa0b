package device_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/guestmem"
	"polder/device/vhostuser/vhostusertest"
	"polder/device/virtq/virtqtest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

// layouts are rings as drivers have them.
var layouts = []virtqtest.Options{
	{Num: 128},
	{Num: 128, EventIdx: true, Indirect: true},
	{Num: 128, Packed: true},
	{Num: 128, Packed: true, EventIdx: true, Indirect: true, InOrder: true},
}

// virtioPair returns two adapters on a switch, with a guest each.
func virtioPair(t *testing.T, o virtioOptions) (a, b *virtioGuest) {
	sw := newSwitch(t)
	va, vb := newVirtioNet(t, device.VirtioNetConfig{Pairs: 2}), newVirtioNet(t, device.VirtioNetConfig{Pairs: 2})
	joinVirtioNet(t, sw, va, "a")
	joinVirtioNet(t, sw, vb, "b")
	return attachVirtio(t, va, o), attachVirtio(t, vb, o)
}

func TestVirtioNetPort(t *testing.T) {
	for _, o := range []virtioOptions{
		{Options: layouts[0]},
		{Options: layouts[1], features: fMergeable},
		{Options: layouts[2], features: fMergeable, buffer: 256},
		{Options: layouts[3], features: fMergeable, buffer: 1536},
	} {
		t.Run(fmt.Sprintf("%v,features=%#x", o.Options, o.features), func(t *testing.T) {
			porttest.TestPort(t, func(t *testing.T) porttest.Harness {
				v := newVirtioNet(t, device.VirtioNetConfig{})
				joinVirtioNet(t, newSwitch(t), v, "guest")
				g := attachVirtio(t, v, o)
				return porttest.Harness{
					Port: v,
					Take: func() (frames [][]byte) {
						for _, p := range g.receive(0) {
							frames = append(frames, p.frame)
						}
						return frames
					},
					Close: func() { g.gone() },
				}
			})
		})
	}
}

// TestVirtioNetPair sends frames of many lengths, cut in many ways, from one guest to another.
func TestVirtioNetPair(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a, b := virtioPair(t, virtioOptions{Options: o, features: fMergeable, buffer: 700})
			for _, n := range []int{14, 60, 64, 127, 128, 129, 700, 1514} {
				for _, cuts := range [][]int{{}, {12}, {10}, {12, 14}, {1, 1, 20, 300}, {140}} {
					frame := tt.Frame(tt.Broadcast, macA, n)
					a.queue(0, 0, packet{frame: frame}, cuts...)
					a.flush(0, 1)
					got := b.receive(0)
					if len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
						t.Fatalf("%d bytes cut at %v: got %x", n, cuts, got)
					}
					want := [12]byte{10: byte((12 + n + 699) / 700)}
					if got[0].header != want {
						t.Fatalf("header % x, want % x", got[0].header, want)
					}
				}
			}
		})
	}
}

// tcpFrame returns a TCP segment over IPv4 with n bytes of payload and no checksums but IPv4's.
func tcpFrame(dst, src vswitch.MAC, n int) []byte {
	f := append(append(dst[:], src[:]...), 0x08, 0)
	f = append(f, 0x45, 0, byte((40+n)>>8), byte(40+n), 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
	f = append(f, 0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0)
	for i := range n {
		f = append(f, byte(i))
	}
	return f
}

// tsoHeader asks for segments of 500 bytes, and lies about what the switch finds out itself.
var tsoHeader = [12]byte{1, 1, 0xff, 0xff, 500 & 0xff, 500 >> 8, 34, 0, 16, 0, 0xff, 0xff}

// TestVirtioNetOffload passes a frame to be cut on to a guest that takes it, with a header made anew, and in
// pieces to others.
func TestVirtioNetOffload(t *testing.T) {
	const takes = fMergeable | fGuestCsum | fGuestTSO4
	sw := newSwitch(t)
	guests := map[string]*virtioGuest{}
	for name, features := range map[string]uint64{"sender": fMergeable | fCsum | fHostTSO4, "taker": takes, "plain": fMergeable} {
		v := newVirtioNet(t, device.VirtioNetConfig{})
		joinVirtioNet(t, sw, v, name)
		guests[name] = attachVirtio(t, v, virtioOptions{features: features})
	}
	guests["sender"].queue(0, 0, packet{tsoHeader, tcpFrame(tt.Broadcast, macA, 1400)})
	guests["sender"].flush(0, 1)

	got := guests["taker"].receive(0)
	want := [12]byte{1, 1, 54, 0, 500 & 0xff, 500 >> 8, 34, 0, 16, 0, 1, 0}
	if len(got) != 1 || got[0].header != want || len(got[0].frame) != 54+1400 {
		t.Errorf("a guest that takes it got %x, want one frame with header % x", got, want)
	}
	pieces := guests["plain"].receive(0)
	if len(pieces) != 3 {
		t.Fatalf("a guest that does not got %d frames, want 3", len(pieces))
	}
	for i, p := range pieces {
		if p.header != [12]byte{10: 1} || len(p.frame) != 54+[]int{500, 500, 400}[i] {
			t.Errorf("piece %d: %d bytes, header % x", i, len(p.frame), p.header)
		}
	}
}

// TestVirtioNetQueues spreads flows over the enabled receive rings, keeps each in one, and has one that is full not
// disturb the others.
func TestVirtioNetQueues(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{Pairs: 2})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	g := attachVirtio(t, v, virtioOptions{pairs: 2})
	flow := func(port byte) []*vswitch.Frame {
		p := tcpFrame(macA, macB, 20)
		p[35] = port
		f := whole(p)
		return []*vswitch.Frame{&f}
	}
	used := map[int]int{}
	byFlow := map[byte]int{}
	for range 2 {
		for port := range byte(32) {
			if n := v.Deliver(flow(port)); n != 1 {
				t.Fatalf("Deliver returned %d", n)
			}
			for pair := range 2 {
				if got := len(g.receive(pair)); got == 1 {
					used[pair]++
					if before, ok := byFlow[port]; ok && before != pair {
						t.Errorf("flow %d went to pair %d, and before to %d", port, pair, before)
					}
					byFlow[port] = pair
				}
			}
		}
	}
	if used[0]+used[1] != 64 || min(used[0], used[1]) < 8 {
		t.Errorf("frames by pair: %v, want 64 about evenly", used)
	}
	for n := 0; v.Deliver(flow(0)) == 1; n++ {
		if n > g.o.Num {
			t.Fatal("a ring has more frames than buffers")
		}
	}
	for port, pair := range byFlow {
		want := 1
		if pair == byFlow[0] {
			want = 0
		}
		if got := v.Deliver(flow(port)); got != want {
			t.Errorf("flow %d of pair %d: Deliver returned %d, want %d, with the ring of pair %d full", port, pair, got, want, byFlow[0])
		}
	}
	if v.Stats().NoBuffer == 0 {
		t.Error("no frame was counted as one without a buffer")
	}
	check(t, g.client.EnableVring(2, false))
	g.receive(0)
	g.receive(1)
	for port := range byte(16) {
		if v.Deliver(flow(port)) != 1 {
			t.Fatalf("flow %d was lost with one ring enabled", port)
		}
	}
	if n := len(g.receive(0)); n != 16 {
		t.Errorf("%d frames in the ring that is enabled, want 16", n)
	}
}

// TestVirtioNetQueueFull fills one ring: what the other takes is counted, and seen, as taken.
func TestVirtioNetQueueFull(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{Pairs: 2})
	sw := newSwitch(t)
	m := joinVirtioNet(t, sw, v, "guest")
	sender, err := sw.Join("sender", porttest.NewRecorder(1), vswitch.PortOptions{})
	check(t, err)
	in := sender.NewIngress()
	g := attachVirtio(t, v, virtioOptions{pairs: 2})
	flow := func(port, n int) vswitch.Frame {
		p := tcpFrame(vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, macB, n)
		p[35] = byte(port)
		return whole(p)
	}
	first, second := 0, 1 // flows of different rings
	in.Forward([]vswitch.Frame{flow(first, 20)})
	pair := 0
	if len(g.receive(0)) == 0 {
		pair = 1
	}
	for ; ; second++ {
		in.Forward([]vswitch.Frame{flow(second, 20)})
		g.receive(pair)
		if len(g.receive(1-pair)) == 1 {
			break
		}
	}
	for range g.o.Num {
		in.Forward([]vswitch.Frame{flow(first, 20)})
	}
	before := m.Stats()
	o, err := sw.Observe(vswitch.ObserverConfig{Members: []*vswitch.Member{m}})
	check(t, err)
	batch := []vswitch.Frame{flow(first, 1000), flow(second, 100), flow(first, 1000), flow(second, 200)}
	in.Forward(batch)
	after := m.Stats()
	if frames, bytes := after.TxFrames-before.TxFrames, after.TxBytes-before.TxBytes; frames != 2 || int(bytes) != batch[1].Len+batch[3].Len {
		t.Errorf("%d frames of %d bytes in all were counted", frames, bytes)
	}
	if n := after.Drops[vswitch.DropReceiverFull] - before.Drops[vswitch.DropReceiverFull]; n != 2 {
		t.Errorf("%d frames were counted as lost, want 2", n)
	}
	packets, err := o.Read(t.Context())
	check(t, err)
	for i, p := range packets {
		if p.Len != batch[i].Len || p.Dropped != (i%2 == 0) || batch[i].Lost {
			t.Errorf("frame %d was seen with %d bytes, dropped %t", i, p.Len, p.Dropped)
		}
	}
	if len(packets) != 4 {
		t.Errorf("%d frames were seen", len(packets))
	}
}

// TestVirtioNetTinyBuffers has a driver offer buffers in pieces of 16 bytes: a batch fills as many as are worth a sender's
// time, and the next one goes on.
func TestVirtioNetTinyBuffers(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{})
	g := attachVirtio(t, v, virtioOptions{Options: virtqtest.Options{Indirect: true}, features: fMergeable})
	frame := whole(tcpFrame(macA, macB, 1460))
	small := whole(tt.Frame(macA, macB, 60))
	r := g.rx[0]
	for range g.o.Num {
		if v.Deliver([]*vswitch.Frame{&small}) != 1 {
			t.Fatal("no room for a small frame")
		}
	}
	give := func() {
		for {
			u, ok := r.Reap()
			if !ok {
				break
			}
			var table []virtqtest.Buffer
			for i := range 50 {
				table = append(table, virtqtest.Buffer{Addr: r.buffers[u.Token] + uint64(16*i), Len: 16, Write: true})
			}
			r.Add(table, u.Token, true)
		}
		r.Publish()
	}
	batch := make([]*vswitch.Frame, 64)
	for i := range batch {
		batch[i] = &frame
	}
	const each = (12 + 14 + 20 + 20 + 1460 + 15) / 16
	want := (4096 + each - 1) / each
	for range 3 {
		give()
		if n := v.Deliver(batch); n != want {
			t.Errorf("%d frames were taken, want %d", n, want)
		}
	}
}

// TestVirtioNetDisabled takes and drops what a disabled transmit ring sends.
func TestVirtioNetDisabled(t *testing.T) {
	a, b := virtioPair(t, virtioOptions{})
	check(t, a.client.EnableVring(1, false))
	a.send(tt.Frame(tt.Broadcast, macA, 60))
	check(t, a.client.EnableVring(1, true))
	a.send(tt.Frame(tt.Broadcast, macA, 61))
	if got := b.receive(0); len(got) != 1 || len(got[0].frame) != 61 {
		t.Errorf("got %x, want one frame of 61 bytes", got)
	}
}

// TestVirtioNetTulip connects a synthetic adapter's guest with a legacy adapter's.
func TestVirtioNetTulip(t *testing.T) {
	sw := newSwitch(t)
	v, old := newVirtioNet(t, device.VirtioNetConfig{}), newAdapter(t, macB)
	joinVirtioNet(t, sw, v, "new")
	join(t, sw, old, "old")
	a, b := attachVirtio(t, v, virtioOptions{features: fMergeable | fCsum | fHostTSO4}), attach(t, old)
	d := b.driver(macB, tt.Options{})
	for _, n := range []int{60, 300, 1514} {
		frame := tt.Frame(tt.Broadcast, macA, n)
		copy(frame, macB[:])
		a.send(frame)
		if got, _ := d.Receive(); !bytes.Equal(got, frame) {
			t.Errorf("to the legacy adapter: %x, want %x", got, frame)
		}
		frame = tt.Frame(tt.Broadcast, macB, n)
		copy(frame, macA[:])
		d.Send(frame)
		if got := a.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
			t.Errorf("from the legacy adapter: %x, want %x", got, frame)
		}
	}
	a.queue(0, 0, packet{tsoHeader, tcpFrame(macB, macA, 1400)})
	a.flush(0, 1)
	for i, n := range []int{500, 500, 400} {
		if got, _ := d.Receive(); len(got) != 54+n {
			t.Errorf("piece %d has %d bytes, want %d", i, len(got), 54+n)
		}
	}
}

// TestVirtioNetAllocations has nothing allocated for a frame from a guest through the switch to another guest: as it is, or
// finished for it, with a synthetic or a legacy adapter.
func TestVirtioNetAllocations(t *testing.T) {
	sumHeader := tsoHeader
	sumHeader[1] = 0
	for _, o := range layouts {
		for _, load := range []struct {
			name   string
			header [12]byte
			frame  []byte
			pieces int
		}{
			{"frames", [12]byte{}, tt.Frame(tt.Broadcast, macA, 1514), 1},
			{"checksums", sumHeader, tcpFrame(tt.Broadcast, macA, 1400), 1},
			{"segments", tsoHeader, tcpFrame(tt.Broadcast, macA, 1400), 3},
		} {
			t.Run(load.name+"/"+o.String(), func(t *testing.T) {
				sw := newSwitch(t)
				v, to, old := newVirtioNet(t, device.VirtioNetConfig{}), newVirtioNet(t, device.VirtioNetConfig{}), newAdapter(t, macB)
				joinVirtioNet(t, sw, v, "sender")
				receivers := []*vswitch.Member{joinVirtioNet(t, sw, to, "receiver"), join(t, sw, old, "old")}
				g := attachVirtio(t, v, virtioOptions{Options: o, features: fCsum | fHostTSO4})
				rx := attachVirtio(t, to, virtioOptions{Options: o}).rx[0]
				legacy := attach(t, old)
				d := legacy.driver(macB, tt.Options{})
				own := bytesOf(tt.OWN, 4)
				r := g.tx[0]
				n := copy(r.ram.Bytes(r.buffers[0], 2048), append(load.header[:], load.frame...))
				r.one[0] = virtqtest.Buffer{Addr: r.buffers[0], Len: uint32(n)}
				frames := loadLen / load.pieces
				sent, received := 0, 0
				run := func() {
					for i := range 16 {
						legacy.WriteMem(d.RxDesc(i), own)
					}
					for range frames {
						r.Add(r.one[:], 0, false)
					}
					r.Publish() // and no kick
					for n := 0; n < frames; {
						n += v.Pull(0)
					}
					for range frames {
						if _, ok := r.Reap(); ok {
							sent++
						}
					}
					for u, ok := rx.Reap(); ok; u, ok = rx.Reap() {
						rx.give(u.Token, 2048)
						received++
					}
					rx.Publish()
				}
				run()
				if n := testing.AllocsPerRun(50, run); n != 0 {
					t.Errorf("%v allocations for %d frames", n, frames)
				}
				if sent != 52*frames || received != 52*frames*load.pieces {
					t.Errorf("%d buffers came back and %d frames arrived, want %d and %d", sent, received, 52*frames, 52*frames*load.pieces)
				}
				for _, m := range receivers {
					if s := m.Stats(); s.TxFrames != uint64(received) || s.Drops.Total() != 0 {
						t.Errorf("%s: %d frames and %d drops, want %d and none", m.Name(), s.TxFrames, s.Drops.Total(), received)
					}
				}
			})
		}
	}
}

// A sender's memory that goes away in the middle of a frame ends the sender. The receiver has a frame that is
// nobody's, and goes on.
func TestVirtioNetSenderTruncated(t *testing.T) {
	sw := newSwitch(t)
	va, vb := newVirtioNet(t, device.VirtioNetConfig{}), newVirtioNet(t, device.VirtioNetConfig{})
	joinVirtioNet(t, sw, va, "a")
	joinVirtioNet(t, sw, vb, "b")
	a, b := attachVirtio(t, va, virtioOptions{}), attachVirtio(t, vb, virtioOptions{features: fMergeable})
	extra, err := vhostusertest.NewMemory(2*vramBase, 8192)
	check(t, err)
	defer extra.Close()
	check(t, a.client.SetMemTable(a.mem, extra))
	frame := tt.Frame(tt.Broadcast, macA, 200)
	r := a.tx[0]
	copy(r.ram.Bytes(r.buffers[0], 2048)[12:], frame)
	r.Add([]virtqtest.Buffer{{Addr: r.buffers[0], Len: 12 + 200}, {Addr: extra.GPA, Len: 500}}, 0, false)
	check(t, extra.File().Truncate(0))
	if r.Publish() {
		check(t, r.vring.Kick())
	}
	if err := a.wait(); !errors.Is(err, guestmem.ErrFault) {
		t.Errorf("the sender's attachment ended with %v, want ErrFault", err)
	}
	for _, p := range b.receive(0) {
		if !bytes.Equal(p.frame[:14], make([]byte, 14)) {
			t.Errorf("a frame arrived: %x", p.frame)
		}
	}
	f := whole(frame)
	if n := vb.Deliver([]*vswitch.Frame{&f}); n != 1 {
		t.Errorf("Deliver returned %d after that", n)
	}
	if got := b.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
		t.Errorf("got %x after that, want %x", got, frame)
	}
}

// TestVirtioNetMemoryChanges changes the memory map while frames go both ways.
func TestVirtioNetMemoryChanges(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a, b := virtioPair(t, virtioOptions{Options: o, features: fMergeable})
			extra, err := vhostusertest.NewMemory(2*vramBase, 1<<20)
			check(t, err)
			defer extra.Close()
			var done atomic.Bool
			var changing sync.WaitGroup
			changing.Go(func() {
				for !done.Load() {
					if err := errors.Join(a.client.SetMemTable(a.mem, extra), a.client.SetMemTable(a.mem)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			for n := 60; n < 260; n++ {
				frame := tt.Frame(tt.Broadcast, macA, n)
				a.send(frame)
				if got := b.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
					t.Errorf("got %x, want %x", got, frame)
				}
				b.send(frame)
				// A frame that comes while the ring is stopped is lost. What arrives is right.
				for _, p := range a.receive(0) {
					if !bytes.Equal(p.frame, frame) {
						t.Errorf("got %x, want %x", p.frame, frame)
					}
				}
			}
			done.Store(true)
			changing.Wait()
		})
	}
}

// TestVirtioNetRestart has rings go on where they stopped, also at another adapter.
func TestVirtioNetRestart(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a, b := virtioPair(t, virtioOptions{Options: o, features: fMergeable})
			for n := 60; n < 360; n++ {
				frame := tt.Frame(tt.Broadcast, macA, n)
				a.send(frame)
				if got := b.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
					t.Fatalf("frame of %d bytes: got %x", n, got)
				}
				if n%10 != 0 {
					continue
				}
				for _, r := range []*virtioRing{a.tx[0], b.rx[0]} {
					g := a
					if r == b.rx[0] {
						g = b
					}
					check(t, g.client.StopVring(r.vring))
					check(t, g.client.StartVring(r.vring))
					_, err := g.client.GetU64(vhostusertest.GetFeatures)
					check(t, err)
				}
			}
		})
	}
}

// TestVirtioNetLeaks attaches many guests, one after the other, and looks for what they left.
func TestVirtioNetLeaks(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{Pairs: 2})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	round := func(t *testing.T) { // the guest's own are gone when its test ends
		g := attachVirtio(t, v, virtioOptions{pairs: 2})
		g.send(tt.Frame(tt.Broadcast, macA, 60))
	}
	t.Run("first", round)
	held := func() (goroutines, files, maps int) {
		fds, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		text, err := os.ReadFile("/proc/self/maps")
		check(t, err)
		return runtime.NumGoroutine(), len(fds), strings.Count(string(text), "memfd:guest")
	}
	g0, f0, m0 := held()
	for i := range 20 {
		t.Run(fmt.Sprint(i), round)
	}
	g1, f1, m1 := held()
	for deadline := time.Now().Add(5 * time.Second); (g1 > g0 || f1 > f0 || m1 > m0) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		g1, f1, m1 = held()
	}
	if g1 > g0 || f1 > f0 || m1 > m0 {
		t.Errorf("%d goroutines, %d files, %d mappings; before, there were %d, %d and %d", g1, f1, m1, g0, f0, m0)
	}
}

// TestVirtioNetLog has every page that is written in the log of a migration.
func TestVirtioNetLog(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	g := attachVirtio(t, v, virtioOptions{features: fMergeable})
	log, err := vhostusertest.NewMemory(0, 64<<10)
	check(t, err)
	defer log.Close()
	_, err = g.client.Get(vhostusertest.SetLogBase, vhostusertest.Payload(uint64(len(log.Bytes)), uint64(0)), log.FD())
	check(t, err)
	check(t, g.client.SetFeatures(fVersion1|fMergeable|vhostusertest.FeatureProtocol|vhostusertest.FeatureLogAll))
	_, err = g.client.GetU64(vhostusertest.GetFeatures)
	check(t, err)
	f := whole(tt.Frame(tt.Broadcast, macA, 1000))
	if n := v.Deliver([]*vswitch.Frame{&f}); n != 1 {
		t.Fatalf("Deliver returned %d", n)
	}
	r := g.rx[0]
	u, _ := r.Reap()
	for what, gpa := range map[string]uint64{"used ring": r.vring.Used, "buffer": r.buffers[u.Token]} {
		if page := gpa / 4096; log.Bytes[page/8]&(1<<(page%8)) == 0 {
			t.Errorf("the page of the %s is not in the log", what)
		}
	}
	if page := r.vring.Desc/4096 + 1000; log.Bytes[page/8] != 0 {
		t.Error("a page that nobody wrote is in the log")
	}
}

// TestVirtioNetRARP announces a guest's address after its migration.
func TestVirtioNetRARP(t *testing.T) {
	sw := newSwitch(t)
	v := newVirtioNet(t, device.VirtioNetConfig{})
	joinVirtioNet(t, sw, v, "guest")
	g := attachVirtio(t, v, virtioOptions{})
	check(t, g.client.Set(vhostusertest.SendRARP, vhostusertest.Payload(uint64(0x0a0000_5d1500))))
	_, err := g.client.GetU64(vhostusertest.GetFeatures)
	check(t, err)
	for _, e := range sw.FDB() {
		if e.MAC == macA && e.Port == "guest" {
			return
		}
	}
	t.Errorf("the switch knows %v, want %v behind the port", sw.FDB(), macA)
}

func TestVirtioNetBadConfig(t *testing.T) {
	for _, pairs := range []int{-1, device.MaxPairs + 1} {
		if _, err := device.NewVirtioNet(device.VirtioNetConfig{Pairs: pairs, Log: discard}); err == nil {
			t.Errorf("%d pairs: no error", pairs)
		}
	}
}

// TestVirtioNetSocket calls a guest by a socket, as User Mode Linux has it, though it is blocking and becomes full.
func TestVirtioNetSocket(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	g := attachVirtio(t, v, virtioOptions{})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	rung := func() {
		t.Helper()
		var bell [8]byte
		if n, err := unix.Read(pair[0], bell[:]); n != 8 || bell != [8]byte{1} {
			t.Fatalf("%d bytes % x, %v", n, bell, err)
		}
	}
	check(t, g.client.Set(vhostusertest.SetVringCall, vhostusertest.Payload(uint64(0)), pair[1]))
	rung() // at once, in case the one before was signalled in vain
	f := whole(tt.Frame(tt.Broadcast, macA, 60))
	one := []*vswitch.Frame{&f}
	for range 10000 { // more than the socket has room for
		if n := v.Deliver(one); n != 1 {
			t.Fatalf("Deliver returned %d", n)
		}
		g.receive(0)
	}
	rung()
}

// TestVirtioNetStubbornKick stops a ring whose front end has made the kick's eventfd blocking.
func TestVirtioNetStubbornKick(t *testing.T) {
	a, b := virtioPair(t, virtioOptions{})
	r := a.tx[0]
	check(t, unix.SetNonblock(r.vring.KickFD, false))
	a.send(tt.Frame(tt.Broadcast, macA, 60)) // wakes the worker, which now waits in the system call
	b.receive(0)
	if err := a.gone(); err != io.EOF && err != nil {
		t.Errorf("the attachment ended with %v", err)
	}
}

// TestVirtioNetFeatures has the configuration, and nothing else, decide what is offered, and the guest's driver, as long
// as it is there, what the switch may leave undone.
func TestVirtioNetFeatures(t *testing.T) {
	const offloads = fCsum | fGuestCsum | fGuestTSO4 | fHostTSO4
	for _, c := range []struct {
		config  device.VirtioNetConfig
		offered uint64
		not     uint64
	}{
		{device.VirtioNetConfig{}, fVersion1 | fMergeable | offloads | vhostusertest.FeaturePacked, 1 << 22},
		{device.VirtioNetConfig{NoPacked: true}, fVersion1 | fMergeable | offloads, vhostusertest.FeaturePacked | 1<<22},
		{device.VirtioNetConfig{NoOffload: true}, fVersion1 | fMergeable | vhostusertest.FeaturePacked, offloads | 1<<22},
		{device.VirtioNetConfig{Pairs: 2}, fVersion1 | fMergeable | 1<<22, 0},
	} {
		v := newVirtioNet(t, c.config)
		if f := v.Features(); f&c.offered != c.offered || f&c.not != 0 {
			t.Errorf("%+v: features %#x, want %#x and not %#x", c.config, f, c.offered, c.not)
		}
	}
	v := newVirtioNet(t, device.VirtioNetConfig{})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	for _, c := range []struct {
		features uint64
		want     vswitch.OffloadSet
	}{
		{fMergeable, 0},
		{fGuestCsum, vswitch.OffloadChecksum},
		{fGuestTSO4, 0},
		{fGuestCsum | fGuestTSO4, vswitch.OffloadChecksum | vswitch.OffloadTSO4},
		{fGuestCsum | 1<<8 | 1<<9, vswitch.OffloadChecksum | vswitch.OffloadTSO6 | vswitch.OffloadECN},
		{fGuestCsum | 1<<54, vswitch.OffloadChecksum},
		{fGuestCsum | 1<<54 | 1<<55, vswitch.OffloadChecksum | vswitch.OffloadUSO},
	} {
		g := attachVirtio(t, v, virtioOptions{features: c.features})
		if got := v.Accepts(); got != c.want {
			t.Errorf("features %#x: accepts %b, want %b", c.features, got, c.want)
		}
		g.gone()
		if got := v.Accepts(); got != 0 {
			t.Errorf("detached: accepts %b", got)
		}
	}
}
