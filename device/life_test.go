package device_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	"polder/device/vfiouser/vfiousertest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// descriptors returns how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(names)
}

// mappings returns how many mappings of guests' memory this process has.
func mappings(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	check(t, err)
	return strings.Count(string(maps), "memfd:guest")
}

// eventually waits for ok, which becomes true unless there is a leak, and then says so.
func eventually(t *testing.T, ok func() bool, leak string) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error(leak)
}

// TestAttachments has a hundred guests come, work and go, some without a word: nothing is left of them.
func TestAttachments(t *testing.T) {
	sw := newSwitch(t)
	a := newAdapter(t, macA)
	join(t, sw, a, "a")
	path := filepath.Join(t.TempDir(), "s")
	server, err := vfiouser.Listen(path, a, discard, "a")
	check(t, err)
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { check(t, server.Serve(ctx)) })
	defer serving.Wait()
	defer stop()

	life := func(i int) {
		client, err := vfiousertest.Dial(path)
		check(t, err)
		defer client.Close()
		g := &guest{tb: t, tulip: a, client: client, bar: i % 2}
		unmap := g.share()
		defer unmap()
		d := g.driver(macA, tt.Options{})
		kernel := newEventFD(t)
		defer unix.Close(kernel)
		if i%3 == 0 {
			_, err := client.Call(vfiousertest.SetIRQs, vfiousertest.Payload(uint32(20), uint32(0x14), uint32(0), uint32(0), uint32(1)), kernel)
			check(t, err)
		}
		g.WriteCSR(11, 1<<16|5)
		frame := tt.Frame(tt.Broadcast, macA, 1514)
		d.Send(frame)
		d.Queue(frame, tt.FS|tt.LS)
		switch i % 4 {
		case 0:
			check(t, client.UnmapDMA(ramBase, ramSize))
		case 1:
			check(t, client.RegionPost(1, 1*8, make([]byte, 4))) // in the middle of something
		case 2:
			check(t, client.ClearINTx())
		}
	}
	idle := func() bool { return !a.Stats().Attached }
	life(0)
	eventually(t, idle, "still attached")
	goroutines, fds, maps := runtime.NumGoroutine(), descriptors(t), mappings(t)
	for i := range 100 {
		life(i)
	}
	eventually(t, idle, "still attached")
	eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines },
		fmt.Sprintf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines))
	eventually(t, func() bool { return descriptors(t) <= fds }, fmt.Sprintf("%d descriptors, %d before", descriptors(t), fds))
	eventually(t, func() bool { return mappings(t) <= maps }, fmt.Sprintf("%d mappings, %d before", mappings(t), maps))
	if n := a.Stats().Attachments; n != 101 {
		t.Errorf("%d attachments, want 101", n)
	}
}

// pair is two guests on one switch.
func pair(tb testing.TB) (ga, gb *guest, ma, mb *vswitch.Member) {
	tb.Helper()
	sw := newSwitch(tb)
	a, b := newAdapter(tb, macA), newAdapter(tb, macB)
	ma, mb = join(tb, sw, a, "a"), join(tb, sw, b, "b")
	return attach(tb, a), attach(tb, b), ma, mb
}

// TestTwoGuests has two adapters send to each other as fast as they can.
func TestTwoGuests(t *testing.T) {
	ga, gb, ma, mb := pair(t)
	const rounds = 200
	da, db := ga.driver(macA, tt.Options{}), gb.driver(macB, tt.Options{})
	before := ma.Stats().RxFrames + mb.Stats().RxFrames
	var talking sync.WaitGroup
	var got [2]int
	talk := func(i int, g *guest, d *tt.Driver, to, from vswitch.MAC) {
		frame := tt.Frame(to, from, 1514)
		answer := tt.Frame(from, to, 1514)
		for range rounds {
			for range loadLen {
				d.Queue(frame, tt.FS|tt.LS|tt.IC)
			}
			d.Kick()
			for {
				p, _ := d.Receive()
				if p == nil {
					break
				}
				if string(p) != string(answer) {
					t.Errorf("received % x", p[:64])
				}
				got[i]++
			}
			g.WriteCSR(5, g.ReadCSR(5))
		}
	}
	talking.Go(func() { talk(0, ga, da, macB, macA) })
	talking.Go(func() { talk(1, gb, db, macA, macB) })
	talking.Wait()
	for {
		pa, _ := da.Receive()
		pb, _ := db.Receive()
		if pa != nil {
			got[0]++
		}
		if pb != nil {
			got[1]++
		}
		if pa == nil && pb == nil {
			break
		}
	}
	sa, sb := ma.Stats(), mb.Stats()
	sent := sa.RxFrames + sb.RxFrames - before
	if sent != 2*rounds*loadLen {
		t.Errorf("%d frames left, want %d", sent, 2*rounds*loadLen)
	}
	arrived := uint64(got[0] + got[1])
	lost := ga.tulip.Stats().NoBuffer + gb.tulip.Stats().NoBuffer
	if arrived+lost != sent || lost != sa.Drops[vswitch.DropReceiverFull]+sb.Drops[vswitch.DropReceiverFull] {
		t.Errorf("%d frames sent, %d arrived, %d found no descriptor; the switch says %+v and %+v", sent, arrived, lost, sa, sb)
	}
}

// TestUnmappingUnderTraffic takes a guest's memory away and gives it back while another sends to it, and
// while its own transmitter runs by itself, on another goroutine than the one that unmaps.
func TestUnmappingUnderTraffic(t *testing.T) {
	ga, gb, _, mb := pair(t)
	da := ga.driver(macA, tt.Options{})
	var over atomic.Bool
	var sending sync.WaitGroup
	sending.Go(func() {
		frame := tt.Frame(macB, macA, 1514)
		for !over.Load() {
			da.Send(frame)
		}
	})
	frame := tt.Frame(macA, macB, 1514)
	for range 60 {
		db := gb.driver(macB, tt.Options{})
		for range loadLen {
			db.Queue(frame, tt.FS|tt.LS)
		}
		check(t, gb.client.RegionWrite(0, 0, bytesOf(0x01a08000|1<<17, 4))) // polls by itself, and wakes Run
		for tries := 0; tries < 50 && db.Load(db.TxDesc(1)) == tt.OWN; tries++ {
			runtime.Gosched()
		}
		check(t, gb.client.UnmapDMA(ramBase, ramSize))
		check(t, gb.client.MapDMA(ramBase, ramSize, gb.file, 0))
	}
	over.Store(true)
	sending.Wait()
	if mb.Stats().TxFrames == 0 {
		t.Error("nothing arrived")
	}
	if a, b := ga.tulip.Stats(), gb.tulip.Stats(); a.Faults+b.Faults > 0 {
		t.Errorf("faults: %+v, %+v", a, b)
	}
}

// TestWithoutRun has an adapter that nothing sends for: its attachment does not try over and over.
func TestWithoutRun(t *testing.T) {
	a := newAdapter(t, macA)
	g := attach(t, a)
	d := tt.NewDriver(t, g, tt.Options{})
	d.Reset()
	d.Start()
	frame := tt.Frame(tt.Broadcast, macA, 100)
	d.Queue(frame, tt.FS|tt.LS)
	d.Kick()
	if a.Pull(1) != 0 || a.Arm() {
		t.Error("there is something to send, and nowhere to send it")
	}
	sw := newSwitch(t)
	g.plug(sw)
	join(t, sw, a, "a") // sends what has been waiting
	for g.Transmitted() == nil {
		check(t, t.Context().Err())
	}
}
