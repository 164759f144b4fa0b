package device_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
	"polder/device/virtq/virtqtest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

// The tests in this file are what hostile and broken front ends and guests do to a synthetic adapter, by the numbers that
// the tests of vhostuser and virtq have for the same things. Whatever it is, two other guests on the switch go on, and
// what ends the attachment is told in one line of the log that names the port and the value.

var (
	macX = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x1a}
	macY = vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 0x1b}
)

// attack is a guest that is about to misbehave, with two others on its switch.
type attack struct {
	*virtioGuest
	adapter *device.VirtioNet
	member  *vswitch.Member
	sw      *vswitch.Switch
	log     *lockedBuffer

	x, y  *virtioGuest // the others
	count uint32       // of frames between them
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newAttack starts three guests.
func newAttack(t *testing.T, c device.VirtioNetConfig, o virtioOptions) *attack {
	t.Helper()
	a := &attack{sw: newSwitch(t), log: new(lockedBuffer)}
	o.log = slog.New(slog.NewTextHandler(a.log, nil))
	a.adapter = newVirtioNet(t, c)
	a.member = joinVirtioNet(t, a.sw, a.adapter, "guest")
	for name, g := range map[string]**virtioGuest{"x": &a.x, "y": &a.y} {
		v := newVirtioNet(t, device.VirtioNetConfig{})
		joinVirtioNet(t, a.sw, v, name)
		*g = attachVirtio(t, v, virtioOptions{features: fMergeable})
	}
	a.virtioGuest = attachVirtio(t, a.adapter, o)
	return a
}

// othersGoOn has the others send each other frames, to one and to all, of which all arrive.
func (a *attack) othersGoOn() {
	a.tb.Helper()
	for _, way := range []struct {
		from, to *virtioGuest
		src, dst vswitch.MAC
	}{{a.x, a.y, macX, tt.Broadcast}, {a.y, a.x, macY, macX}, {a.x, a.y, macX, macY}, {a.y, a.x, macY, tt.Broadcast}} {
		way.to.receive(0) // what came from elsewhere
		var sent [][]byte
		for range 8 {
			a.count++
			sent = append(sent, binary.BigEndian.AppendUint32(tt.Frame(way.dst, way.src, 60+int(a.count)%1000), a.count))
		}
		way.from.send(sent...)
		for _, p := range way.to.receive(0) {
			if [6]byte(p.frame[6:]) == way.src {
				if len(sent) == 0 || !bytes.Equal(p.frame, sent[0]) {
					a.tb.Fatalf("got %x, want one of %x", p.frame, sent)
				}
				sent = sent[1:]
			}
		}
		if len(sent) > 0 {
			a.tb.Fatalf("%d frames were lost between the others", len(sent))
		}
	}
}

// ends expects that the attachment ends for a cause whose text contains each of texts, told in one line.
func (a *attack) ends(texts ...string) {
	a.tb.Helper()
	a.wait()
	var warnings []string
	for line := range strings.Lines(a.log.String()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			warnings = append(warnings, line)
		}
	}
	if len(warnings) != 1 {
		a.tb.Fatalf("want one line in the log, got %q", warnings)
	}
	for _, text := range append(texts, "port=guest") {
		if !strings.Contains(warnings[0], text) {
			a.tb.Errorf("the log says %swant %q in it", warnings[0], text)
		}
	}
	a.othersGoOn()
	if s := a.adapter.Stats(); s.Attached {
		a.tb.Errorf("%+v after the end", s)
	}
	if s := a.adapter.Stats(); s.Attachments > 1 {
		return
	}
	again := attachVirtio(a.tb, a.adapter, virtioOptions{}) // the port takes the next guest
	again.send(tt.Frame(tt.Broadcast, macA, 60))
	a.y.receive(0)
}

// goesOn expects that nobody was disturbed, the attacker included.
func (a *attack) goesOn() {
	a.tb.Helper()
	a.othersGoOn()
	frame := tt.Frame(tt.Broadcast, macA, 99)
	a.y.receive(0)
	a.send(frame)
	if got := a.y.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
		a.tb.Errorf("got %x from the guest, want %x; log: %s", got, frame, a.log)
	}
	if s := a.adapter.Stats(); s.Faults != 0 || !s.Attached {
		a.tb.Errorf("%+v", s)
	}
}

// region is a SET_MEM_TABLE of one region.
func region(gpa, size, uva, offset uint64) []byte {
	return vhostusertest.Payload(uint32(1), uint32(0), gpa, size, uva, offset)
}

// strangeFiles is every kind of file that is no memory and no doorbell, and of memory that cannot be used. They
// are closed with the test.
func strangeFiles(t *testing.T) map[string]int {
	t.Helper()
	fds := map[string]int{}
	keep := func(name string, fd int, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds[name] = fd
	}
	open := func(name, path string, flags int) {
		t.Helper()
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		keep(name, fd, err)
	}
	path := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(path, make([]byte, 1<<16), 0o600))
	open("a directory", "/", unix.O_RDONLY|unix.O_DIRECTORY)
	open("a path", path, unix.O_PATH)
	open("a device", "/dev/zero", unix.O_RDWR)
	var pipe [2]int
	check(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	keep("a pipe to read", pipe[0], nil)
	keep("a pipe to write", pipe[1], nil)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	keep("a socket", pair[0], err)
	unix.Close(pair[1])
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	keep("an eventfd", event, err)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	keep("a poller", poll, err)

	mem, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	keep("memory", mem, err)
	check(t, unix.Ftruncate(mem, 1<<16))
	link := fmt.Sprintf("/proc/self/fd/%d", mem)
	open("memory to read", link, unix.O_RDONLY)
	open("memory to write", link, unix.O_WRONLY)
	open("a path of memory", link, unix.O_PATH)
	short, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	keep("memory without a byte", short, err)
	sealed, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	keep("memory that is sealed", sealed, err)
	check(t, unix.Ftruncate(sealed, 1<<16))
	_, err = unix.FcntlInt(uintptr(sealed), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	check(t, err)
	return fds
}

func TestCase06MemoryThatIsNone(t *testing.T) {
	for name, fd := range strangeFiles(t) {
		if name == "memory" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
			check(t, a.client.Request(vhostusertest.SetMemTable, vhostusertest.FlagNeedReply, region(vramBase, 1<<16, a.mem.UVA, 0), fd))
			a.ends("SET_MEM_TABLE", "region 0x40000000+0x10000")
		})
		t.Run("log in "+name, func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
			check(t, a.client.Request(vhostusertest.SetFeatures, 0,
				vhostusertest.Payload(fVersion1|uint64(vhostusertest.FeatureProtocol|vhostusertest.FeatureLogAll))))
			check(t, a.client.Request(vhostusertest.SetVringEnable, 0, vhostusertest.Payload(uint32(0), uint32(1))))
			check(t, a.client.Request(vhostusertest.SetLogBase, 0, vhostusertest.Payload(uint64(1<<16), uint64(0)), fd))
			a.ends("SET_LOG_BASE", "+0x10000")
		})
	}
}

func TestCase06DoorbellsThatAreNone(t *testing.T) {
	for name, fd := range strangeFiles(t) {
		for _, request := range []uint32{vhostusertest.SetVringKick, vhostusertest.SetVringCall} {
			if name == "an eventfd" || name == "a socket" && request == vhostusertest.SetVringCall {
				continue // User Mode Linux has no other
			}
			for index := range uint64(2) {
				t.Run(fmt.Sprintf("%s %d for ring %d", name, request, index), func(t *testing.T) {
					a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
					check(t, a.client.Request(request, vhostusertest.FlagNeedReply, vhostusertest.Payload(index), fd))
					what := map[uint32]string{vhostusertest.SetVringKick: "SET_VRING_KICK", vhostusertest.SetVringCall: "SET_VRING_CALL"}[request]
					a.ends(what, fmt.Sprintf("ring %d", index))
				})
			}
		}
	}
}

// One eventfd for everything disturbs nobody.
func TestCase06OneForAll(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
	fd := a.tx[0].vring.KickFD
	for _, request := range []uint32{vhostusertest.SetVringErr, vhostusertest.SetVringCall, vhostusertest.SetVringKick} {
		for index := range uint64(2) {
			check(t, a.client.Set(request, vhostusertest.Payload(index), fd))
		}
	}
	a.othersGoOn()
	check(t, a.client.Set(vhostusertest.SetBackendReqFD, nil, fd))
	a.othersGoOn()
	if s := a.adapter.Stats(); s.Faults != 0 || !s.Attached {
		t.Errorf("%+v", s)
	}
}

// A front end that asks and does not read the answers stops its own connection. Frames come and go.
func TestCase08FrontEndThatDoesNotRead(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
	ask := slices.Repeat(vhostusertest.Message(vhostusertest.GetFeatures, vhostusertest.FlagVersion, nil), 1000)
	var asking sync.WaitGroup
	asking.Go(func() {
		for a.client.Send(ask) == nil {
		}
	})
	for range 20 {
		a.goesOn()
	}
	if len(a.receive(0)) == 0 {
		t.Error("nothing arrived at the guest")
	}
	a.gone()
	asking.Wait()
	a.othersGoOn()
}

// The front end leaves at any moment: while its rings are worked on, while its memory changes, in the middle of a message.
func TestCase09EOFAtWork(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable})
	a.gone()
	a.othersGoOn()
	var over atomic.Bool
	var sending sync.WaitGroup
	frame := whole(tt.Frame(tt.Broadcast, macX, 1514))
	sending.Go(func() {
		for !over.Load() {
			a.adapter.Deliver([]*vswitch.Frame{&frame, &frame})
		}
	})
	table := vhostusertest.Message(vhostusertest.SetMemTable, vhostusertest.FlagVersion, append(vhostusertest.Payload(uint64(1)), a.mem.Region()...))
	for i := range 24 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			g := attachVirtio(t, a.adapter, virtioOptions{Options: layouts[i%len(layouts)], features: fMergeable})
			for token := range g.o.Num {
				g.queue(0, token, packet{frame: tt.Frame(tt.Broadcast, macA, 1514)})
			}
			g.tx[0].Publish()
			check(t, g.tx[0].vring.Kick())
			if i%3 > 0 {
				check(t, g.client.Send(table[:len(table)-i%3+1], g.mem.FD())) // whole, or but for its last byte
			}
			err := g.gone()
			if i%3 < 2 && err != nil || i%3 == 2 && !errors.Is(err, vhostuser.ErrProtocol) {
				t.Errorf("ended with %v", err)
			}
		})
	}
	over.Store(true)
	sending.Wait()
	a.othersGoOn()
	if s := a.adapter.Stats(); s.Faults != 0 || s.Attached {
		t.Errorf("%+v", s)
	}
}

// Doorbells that are full, or made to block, hold nobody up.
func TestCase16Doorbells(t *testing.T) {
	full := binary.NativeEndian.AppendUint64(nil, 1<<64-2)
	t.Run("saturated", func(t *testing.T) {
		a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
		for _, fd := range []int{a.rx[0].vring.CallFD, a.tx[0].vring.CallFD, a.tx[0].vring.KickFD} {
			var count [8]byte
			for {
				unix.Read(fd, count[:]) // makes room
				_, err := unix.Write(fd, full)
				if err == unix.EAGAIN {
					continue // a call has come in between
				}
				check(t, err)
				break
			}
		}
		for range 10 {
			a.goesOn()
		}
		if len(a.receive(0)) == 0 {
			t.Error("nothing arrived at the guest")
		}
	})
	t.Run("blocking", func(t *testing.T) {
		a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
		call := a.rx[0].vring.CallFD
		check(t, unix.SetNonblock(call, false))
		_, err := unix.Write(call, binary.NativeEndian.AppendUint64(nil, 1<<63))
		check(t, err)
		_, err = unix.Write(call, binary.NativeEndian.AppendUint64(nil, 1<<63-3))
		check(t, err)
		for range 3 { // the second signal blocks
			a.othersGoOn()
		}
		a.ends("ring 0: call", "eventfd was made to block")
	})
	t.Run("none", func(t *testing.T) {
		a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
		for index := range uint64(2) {
			check(t, a.client.Set(vhostusertest.SetVringCall, vhostusertest.Payload(index|vhostusertest.NoFD)))
			check(t, a.client.Set(vhostusertest.SetVringKick, vhostusertest.Payload(index|vhostusertest.NoFD)))
		}
		a.goesOn()
	})
}

// Resets in the middle of everything, after which the guest starts anew.
func TestCase17Resets(t *testing.T) {
	for name, request := range map[string]uint32{"device": vhostusertest.ResetDevice, "owner": vhostusertest.ResetOwner} {
		t.Run(name, func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable})
			for range 10 {
				for token := range 100 {
					a.queue(0, token, packet{frame: tt.Frame(tt.Broadcast, macA, 200)})
				}
				a.tx[0].Publish()
				check(t, a.tx[0].vring.Kick())
				check(t, a.client.Set(request, nil))
				check(t, a.client.Set(request, nil))
				a.othersGoOn()
				check(t, a.client.SetFeatures(uint64(fVersion1)|vhostusertest.FeatureProtocol|fMergeable))
				// The driver begins with new rings.
				a.rx[0].vring.Close()
				a.tx[0].vring.Close()
				clear(a.mem.Bytes)
				ram := virtqtest.NewSharedRAM(vramBase, a.mem.Bytes)
				a.rx[0], a.tx[0] = a.newRing(ram, 0, a.o.buffer), a.newRing(ram, 1, 2048)
				for token := range a.o.Num {
					a.rx[0].give(token, a.o.buffer)
				}
				a.rx[0].Publish()
				for _, r := range []*virtioRing{a.rx[0], a.tx[0]} {
					check(t, a.client.StartVring(r.vring))
					check(t, a.client.EnableVring(r.vring.Index, true))
				}
				a.goesOn()
			}
		})
	}
}

// A log of written pages that goes away ends the attachment that writes to it.
func TestCase18LogThatGoesAway(t *testing.T) {
	for _, sends := range []bool{false, true} {
		t.Run(fmt.Sprintf("sends=%v", sends), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable})
			log, err := vhostusertest.NewMemory(0, 1<<16)
			check(t, err)
			defer log.Close()
			_, err = a.client.Get(vhostusertest.SetLogBase, vhostusertest.Payload(uint64(1<<16), uint64(0)), log.FD())
			check(t, err)
			check(t, a.client.SetFeatures(uint64(fVersion1)|vhostusertest.FeatureProtocol|vhostusertest.FeatureLogAll|fMergeable))
			a.goesOn()
			check(t, log.File().Truncate(0))
			if sends {
				a.queue(0, 0, packet{frame: tt.Frame(tt.Broadcast, macA, 60)})
				a.tx[0].Publish()
				check(t, a.tx[0].vring.Kick())
			} else {
				a.x.send(tt.Frame(tt.Broadcast, macX, 60))
			}
			a.ends("memory fault", fmt.Sprintf("ring %d", map[bool]int{false: 0, true: 1}[sends]))
		})
	}
}

// Memory that is not what the front end says.
func TestCase21MemoryThatLies(t *testing.T) {
	small, err := vhostusertest.NewMemory(0, 1<<16)
	check(t, err)
	defer small.Close()
	for _, test := range []struct {
		name                 string
		gpa, size, uva, offs uint64
		text                 string
	}{
		{"file shorter than the region", vramBase, 1<<16 + 1, 0, 0, "the file has only 0x10000 bytes"},
		{"file much shorter", vramBase, 1 << 45, 0, 0, "the file has only 0x10000 bytes"},
		{"offset behind the end", vramBase, 4096, 0, 1 << 16, "offset 0x10000"},
		{"offset and size behind the end", vramBase, 1 << 16, 0, 4096, "offset 0x1000"},
		{"offset far away", vramBase, 4096, 0, 1<<63 - 4096, "offset 0x7ffffffffffff000"},
		{"offset within a page", vramBase, 4096, 0, 100, "offset 0x64 is not on a page"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{})
			check(t, a.client.Request(vhostusertest.SetMemTable, vhostusertest.FlagNeedReply, region(test.gpa, test.size, test.uva, test.offs), small.FD()))
			a.ends("SET_MEM_TABLE", fmt.Sprintf("region %#x+%#x", test.gpa, test.size), test.text)
		})
	}
}

// A front end truncates the file of its guest's memory, and the guest runs on: its attachment ends at the next access,
// whoever makes it, and at no other port a frame is lost.
func TestCase21MemoryThatGoesAway(t *testing.T) {
	all := []struct {
		name string
		cut  func(g *virtioGuest) int64 // to which length
		act  func(a *attack)
		text string
	}{
		{"rings, when the guest sends", func(*virtioGuest) int64 { return 0 }, func(a *attack) {
			check(a.tb, a.tx[0].vring.Kick())
		}, "ring 1"},
		{"rings, when it is sent to", func(*virtioGuest) int64 { return 0 }, func(a *attack) {
			a.x.send(tt.Frame(tt.Broadcast, macX, 60))
		}, "ring "}, // 0, or 1 if its worker is about to sleep
		{"buffers, when the guest sends", func(g *virtioGuest) int64 { return int64(g.tx[0].buffers[4]-vramBase) &^ 4095 }, func(a *attack) {
			a.tx[0].one[0] = virtqtest.Buffer{Addr: a.tx[0].buffers[100], Len: 100}
			a.tx[0].Add(a.tx[0].one[:], 0, false)
			a.tx[0].Publish()
			check(a.tb, a.tx[0].vring.Kick())
		}, "ring 1"},
		{"buffers, when it is sent to", func(g *virtioGuest) int64 { return int64(g.rx[0].buffers[4]-vramBase) &^ 4095 }, func(a *attack) {
			for range 6 {
				a.x.send(tt.Frame(tt.Broadcast, macX, 1514))
			}
		}, "ring "}, // likewise: ring 1 lies behind those buffers
	}
	for _, test := range all {
		for _, o := range layouts {
			t.Run(test.name+"/"+o.String(), func(t *testing.T) {
				a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o, features: fMergeable})
				check(t, a.mem.File().Truncate(test.cut(a.virtioGuest)))
				test.act(a)
				a.ends("guest memory fault", test.text)
				if s := a.adapter.Stats(); s.Faults != 1 {
					t.Errorf("%+v, want one fault", s)
				}
			})
		}
	}
}

// The memory of a sender goes away while others copy from it, a legacy adapter among them: it ends the sender.
func TestCase21SenderThatGoesAway(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o, features: fCsum | fHostTSO4})
			old := newAdapter(t, macB)
			join(t, a.sw, old, "old")
			g := attach(t, old)
			legacy := g.driver(macB, tt.Options{})
			extra, err := vhostusertest.NewMemory(2*vramBase, 4096)
			check(t, err)
			defer extra.Close()
			check(t, a.client.SetMemTable(a.mem, extra))
			r := a.tx[0]
			frame := tcpFrame(tt.Broadcast, macA, 1400) // to be cut for all of them
			n := copy(r.ram.Bytes(r.buffers[0], 2048), append(tsoHeader[:], frame[:200]...))
			r.Add([]virtqtest.Buffer{{Addr: r.buffers[0], Len: uint32(n)}, {Addr: extra.GPA, Len: uint32(len(frame) - 200)}}, 0, false)
			check(t, extra.File().Truncate(0))
			r.Publish()
			check(t, r.vring.Kick())
			a.ends("ring 1", "guest memory fault")
			last := tt.Frame(macB, macX, 100)
			a.x.send(last)
			var got []byte
			for in, _ := legacy.Receive(); in != nil; in, _ = legacy.Receive() { // behind what the others have sent
				got = in
				g.ReadCSR(5) // has what waits delivered
			}
			if !bytes.Equal(got, last) {
				t.Errorf("the legacy adapter got %x last, want %x", got, last)
			}
		})
	}
}

// What was on its way to a guest whose memory goes away is not delivered to the next one.
func TestCase21NothingIsLeft(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{Pairs: 2}, virtioOptions{pairs: 2, features: fMergeable})
	first := byte(0) // a flow of the first pair
	for len(a.receive(0)) == 0 {
		first++
		a.adapter.Deliver([]*vswitch.Frame{flow(first)})
	}
	extra, err := vhostusertest.NewMemory(2*vramBase, 4096) // for buffers; the rings stay
	check(t, err)
	defer extra.Close()
	check(t, a.client.SetMemTable(a.mem, extra))
	check(t, a.client.StopVring(a.rx[0].vring))
	r := a.newRing(a.rx[0].ram, 0, 64)
	r.Add([]virtqtest.Buffer{{Addr: extra.GPA, Len: 2048, Write: true}}, 0, false)
	r.Publish()
	check(t, a.client.StartVring(r.vring))
	check(t, extra.File().Truncate(0))
	for a.adapter.Stats().Faults == 0 {
		a.adapter.Deliver([]*vswitch.Frame{flow(first)})
	}
	a.wait()
	next := attachVirtio(t, a.adapter, virtioOptions{pairs: 2, features: fMergeable})
	for port := range byte(8) {
		want := flow(100 + port)
		if n := a.adapter.Deliver([]*vswitch.Frame{want}); n != 1 {
			t.Errorf("Deliver of one frame returned %d", n)
		}
		if got := append(next.receive(0), next.receive(1)...); len(got) != 1 || !bytes.Equal(got[0].frame, want.Head) {
			t.Errorf("the next guest got %x, want %x", got, want.Head)
		}
	}
}

// Memory comes and goes: no address, mapping or descriptor is left behind.
func TestCase22HotPlug(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable})
	var dimms []*vhostusertest.Memory
	for i := range uint64(16) {
		m, err := vhostusertest.NewMemory(2*vramBase+i<<20, 1<<16)
		check(t, err)
		defer m.Close()
		dimms = append(dimms, m)
	}
	a.goesOn()
	maps, fds := mappings(t), descriptors(t)
	for range 32 { // 512 in all
		for _, m := range dimms {
			check(t, a.client.AddMemReg(m))
		}
		frame := tt.Frame(tt.Broadcast, macA, 500)
		r := a.tx[0]
		copy(dimms[7].Bytes[12:], frame)
		r.Add([]virtqtest.Buffer{{Addr: dimms[7].GPA, Len: 12 + 500}}, 0, false)
		a.y.receive(0)
		a.flush(0, 1)
		if got := a.y.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
			t.Fatalf("got %x from memory that was added, want %x", got, frame)
		}
		for _, m := range dimms {
			check(t, a.client.RemMemReg(m))
		}
	}
	a.goesOn()
	if n := descriptors(t); n != fds {
		t.Errorf("%d descriptors open, %d before", n, fds)
	}
	// A mapping outlives its region for a moment.
	eventually(t, func() bool { return mappings(t) <= maps }, "mappings of memory that was taken away")
	// What points there now points nowhere.
	a.tx[0].Add([]virtqtest.Buffer{{Addr: dimms[7].GPA, Len: 100}}, 0, false)
	a.tx[0].Publish()
	check(t, a.tx[0].vring.Kick())
	a.ends("ring 1", "no memory to read at 0x80700000")
}

// What is wrong with a ring is told with the ring.
func TestCase25To28MalformedRings(t *testing.T) {
	for _, m := range virtqtest.Malformations() {
		t.Run(fmt.Sprintf("%v/%s", m.Options, m.Name), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: m.Options, features: fMergeable})
			r := a.tx[0]
			if m.Receive {
				r = a.newRing(a.rx[0].ram, 0, 64)
				check(t, a.client.StopVring(a.rx[0].vring))
				check(t, a.client.StartVring(r.vring))
			}
			m.Make(r.Driver)
			if m.Receive {
				a.x.send(tt.Frame(tt.Broadcast, macX, 60))
			} else {
				check(t, r.vring.Kick())
			}
			a.ends("malformed ring", m.Want, fmt.Sprintf("ring %d", r.vring.Index))
			if s := a.adapter.Stats(); s.Faults != 1 {
				t.Errorf("%+v, want one fault", s)
			}
		})
	}
}

// A buffer to write where one to read is expected has no frame in it.
func TestCase28BufferToWrite(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o})
			a.tx[0].Add([]virtqtest.Buffer{{Addr: a.tx[0].buffers[0], Len: 100, Write: true}}, 0, false)
			a.flush(0, 1)
			if drops := a.member.Stats().Drops; drops[vswitch.DropRunt] != 1 || drops.Total() != 1 {
				t.Errorf("drops %v, want one frame without a byte", drops)
			}
			a.goesOn()
		})
	}
}

// Buffers that end before, with or just after the header, and headers in pieces.
func TestCase29ShortBuffers(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o})
			frame := tt.Frame(tt.Broadcast, macA, 60)
			r := a.tx[0]
			copy(r.ram.Bytes(r.buffers[0], 2048), append(make([]byte, 12), frame...))
			for n := 1; n < 12+14; n++ {
				r.Add([]virtqtest.Buffer{{Addr: r.buffers[0], Len: uint32(n)}}, 0, false)
				a.flush(0, 1)
				if got := a.member.Stats().Drops[vswitch.DropRunt]; got != uint64(n) {
					t.Fatalf("a buffer of %d bytes: %d frames too short, want %d", n, got, n)
				}
			}
			for _, bytewise := range []int{11, 12, 13, 26, 72} {
				a.y.receive(0)
				a.queue(0, 0, packet{frame: frame}, slices.Repeat([]int{1}, bytewise)...)
				a.flush(0, 1)
				if got := a.y.receive(0); len(got) != 1 || !bytes.Equal(got[0].frame, frame) {
					t.Errorf("%d buffers of a byte: got %x", bytewise, got)
				}
			}
			a.goesOn()
		})
	}
}

// Guests that take nothing, or hardly anything, hold nobody up.
func TestCase30SmallOrNoBuffers(t *testing.T) {
	for _, o := range layouts {
		for _, test := range []struct {
			name     string
			features uint64
			buffer   int
			length   int // of frames
			arrive   int // of 256
		}{
			{"a byte each", fMergeable, 1, 60, 1}, // 72 of 128
			{"a byte each, and none is enough", fMergeable, 1, 200, 0},
			{"never any again", fMergeable, 2048, 60, 128},
			{"one for each, too small", 0, 100, 1514, 0},
			{"one for each, too small by a byte", 0, 100, 89, 0},
			{"one for each, just enough", 0, 100, 88, 128},
		} {
			t.Run(test.name+"/"+o.String(), func(t *testing.T) {
				a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o, features: test.features, buffer: test.buffer})
				frame := tt.Frame(tt.Broadcast, macX, test.length)
				arrived := 0
				for range 8 {
					batch := slices.Repeat([][]byte{frame}, 32)
					a.y.receive(0)
					a.x.send(batch...)
					arrived += len(a.y.receive(0))
				}
				if arrived != 256 {
					t.Errorf("%d of 256 frames arrived at somebody else", arrived)
				}
				var got []byte
				for {
					u, ok := a.rx[0].Reap()
					if !ok {
						break
					}
					got = append(got, a.rx[0].ram.Bytes(a.rx[0].buffers[u.Token], int(u.Written))...)
				}
				if len(got) != test.arrive*(12+test.length) || test.arrive > 0 && !bytes.Equal(got[12:12+test.length], frame) {
					t.Errorf("%d bytes in the buffers, want %d frames", len(got), test.arrive)
				}
				if s := a.adapter.Stats(); s.NoBuffer != uint64(256-test.arrive) || s.Faults != 0 {
					t.Errorf("%+v, want %d frames without a buffer", s, 256-test.arrive)
				}
				a.othersGoOn()
			})
		}
	}
}

// judge is a port that looks whether the Offload of each frame goes with the frame itself.
type judge struct {
	with, without atomic.Uint32 // frames, by whether they have an Offload
	wrong         atomic.Pointer[string]
}

func (*judge) Accepts() vswitch.OffloadSet { return 0xff }

func (j *judge) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		if [6]byte(f.Head[6:]) != macA {
			continue
		}
		o := f.Offload
		if !o.NeedsChecksum {
			j.without.Add(1)
			continue
		}
		j.with.Add(1)
		ip := f.Head[14:]
		if f.Head[12] != 8 || ip[0] != 0x45 || ip[9] != 6 || o.ChecksumStart != 34 || o.ChecksumOffset != 16 ||
			o.GSO != vswitch.GSONone && (o.GSO != vswitch.GSOTCPv4 || o.GSOSize == 0 || o.HeadersLen != 54) || int(binary.BigEndian.Uint16(ip[2:])) > f.Len-14 {
			text := fmt.Sprintf("%+v with % x", o, f.Head)
			j.wrong.Store(&text)
		}
	}
	return len(frames)
}

// The guest changes the header and the frame while they are read: what arrives is what was judged.
func TestCase31RewrittenFrames(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable | fCsum | fHostTSO4})
	j := new(judge)
	_, err := a.sw.Join("judge", j, vswitch.PortOptions{})
	check(t, err)
	a.queue(0, 0, packet{tsoHeader, tcpFrame(tt.Broadcast, macA, 1400)})
	a.flush(0, 1)
	buffer := a.tx[0].ram.Bytes(a.tx[0].buffers[0], 2048)
	var over atomic.Bool
	var rewriting sync.WaitGroup
	rewriting.Go(func() {
		for i := 0; !over.Load(); i++ {
			for _, at := range []int{0, 1, 4, 6, 8, 12 + 12, 12 + 14, 12 + 14 + 2, 12 + 14 + 9} { // what an Offload depends on
				was := buffer[at]
				buffer[at] = byte(i)
				for range i % 64 { // long enough to be seen
					over.Load()
				}
				buffer[at] = was
			}
		}
	})
	r := a.tx[0]
	r.one[0] = virtqtest.Buffer{Addr: r.buffers[0], Len: 12 + 54 + 1400}
	for range 300 {
		for token := range 64 {
			r.Add(r.one[:], token, false)
		}
		a.flush(0, 64)
	}
	over.Store(true)
	rewriting.Wait()
	if wrong := j.wrong.Load(); wrong != nil {
		t.Error(*wrong)
	}
	if j.with.Load() == 0 {
		t.Error("no frame arrived whole")
	}
	a.goesOn()
}

// Kicks without end wake the port's own worker and nobody else.
func TestCase32KickStorm(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o})
			var over atomic.Bool
			var kicking sync.WaitGroup
			kicking.Go(func() {
				for !over.Load() {
					a.tx[0].vring.Kick() // or the counter is full
				}
			})
			for range 20 {
				a.goesOn()
			}
			over.Store(true)
			kicking.Wait()
		})
	}
}

// A driver kicks only when it is asked to, once, and at any moment of the worker's falling asleep: no frame stays.
func TestCase32MissedKick(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o})
			frame := tt.Frame(macX, macA, 60)
			var pause atomic.Uint32
			for i := range 600 {
				for range i % 61 * 50 { // so that it is another moment each time
					pause.Add(1)
				}
				a.queue(0, 0, packet{frame: frame})
				a.flush(0, 1) // fails if it has not left
			}
		})
	}
}

// A header that cannot be believed, or asks for what was not negotiated, costs its frame, and only that.
func TestCase34Headers(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable | fCsum | fHostTSO4})
	wire := porttest.NewRecorder(64)
	_, err := a.sw.Join("wire", wire, vswitch.PortOptions{})
	check(t, err)
	change := func(at int, b ...byte) (h [12]byte) {
		h = tsoHeader
		copy(h[at:], b)
		return h
	}
	drops := uint64(0)
	for _, test := range []struct {
		name   string
		header [12]byte
		pieces int // 0: dropped
	}{
		{"as it should be, but for what nobody reads", tsoHeader, 3},
		{"segmentation without a checksum", change(0, 0), 0},
		{"UFO, not offered", change(1, 3), 0},
		{"TSO6, not negotiated", change(1, 4), 0},
		{"USO, not negotiated", change(1, 5), 0},
		{"no such segmentation", change(1, 0x7f), 0},
		{"ECN, of nothing", change(1, 0x80), 1}, // the frame has no CWR, which is what counts
		{"ECN", change(1, 0x81), 3},
		{"pieces of no bytes", change(4, 0, 0), 0},
		{"pieces of one byte", change(4, 1, 0), 0},
		{"pieces larger than the frame", change(4, 0xff, 0xff), 1},
		{"a checksum from behind the end", change(6, 0xff, 0xff), 0},
		{"a checksum from the end", change(6, 54+1400-256*5, 5), 0},
		{"a checksum from the middle of a header", change(6, 35, 0), 0},
		{"a checksum from the start", change(6, 0, 0), 0},
		{"a checksum to the wrong place", change(8, 17, 0), 0},
		{"a checksum to behind the end", change(8, 0xff, 0xff), 0},
		{"header length 0", change(2, 0, 0), 3},
		{"header length of all", change(2, 0xff, 0xff), 3},
		{"unknown flags", change(0, 0xff), 3},
		{"unknown flags, and no checksum", change(0, 0xfe, 0), 1},
		{"nothing asked, but numbers", change(0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), 1},
	} {
		frame := tcpFrame(tt.Broadcast, macA, 1400)
		a.queue(0, 0, packet{test.header, frame})
		a.flush(0, 1)
		arrived := wire.Take()
		if len(arrived) != test.pieces {
			t.Errorf("%s: %d frames arrived, want %d", test.name, len(arrived), test.pieces)
		}
		if len(arrived) == 1 && bytes.Equal(arrived[0], frame) != (test.header[0]&1 == 0) {
			t.Errorf("%s: its checksum was filled in, or was not, with flags %#x", test.name, test.header[0])
		}
		if test.pieces == 0 {
			drops++
		}
		if got := a.member.Stats().Drops[vswitch.DropBadOffload]; got != drops {
			t.Errorf("%s: %d drops, want %d", test.name, got, drops)
			drops = got
		}
		for _, p := range a.y.receive(0) {
			if p.header != [12]byte{10: 1} {
				t.Errorf("%s: somebody got the header % x", test.name, p.header)
			}
		}
	}
	a.goesOn()
}

// Frames of every length, with tags in tags, or with a length in the place of a type.
func TestCase35Frames(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{Options: o})
			r := a.tx[0]
			at := r.ram.Alloc(1<<17, 64)
			frame := func(n int, types ...byte) []byte {
				f := tt.Frame(tt.Broadcast, macA, max(n, 14))[:n]
				copy(f[min(n, 12):], types)
				return f
			}
			for _, test := range []struct {
				frame []byte
				drop  vswitch.DropReason
				lost  bool
			}{
				{frame(0), vswitch.DropRunt, true},
				{frame(13), vswitch.DropRunt, true},
				{frame(14), 0, false},
				{frame(59), 0, false},
				{frame(60), 0, false},
				{frame(1514), 0, false},
				{frame(1518), 0, false},
				{frame(9014), 0, false},
				{frame(65535), 0, false},
				{frame(vswitch.MaxFrameLen), 0, false},
				{frame(vswitch.MaxFrameLen + 1), vswitch.DropOversize, true},
				{frame(1<<16<<1 - 12), vswitch.DropOversize, true},
				{frame(64, bytes.Repeat([]byte{0x81, 0, 0, 7}, 12)...), 0, false},
				{frame(64, bytes.Repeat([]byte{0x88, 0xa8, 0xff, 0xff}, 13)...), 0, false},
				{frame(16, 0x81, 0, 0, 7), 0, false}, // ends in its tag
				{frame(60, 0, 0), 0, false},
				{frame(60, 0, 46, 0x42, 0x42, 3), 0, false},
				{frame(60, 0x05, 0xdc), 0, false}, // longer than it is
				{frame(60, 0x05, 0xff), 0, false}, // neither length nor type
				{frame(60, 0xff, 0xff), 0, false},
			} {
				copy(r.ram.Bytes(at+12, len(test.frame)), test.frame)
				before := a.member.Stats().Drops
				a.y.receive(0)
				r.Add([]virtqtest.Buffer{{Addr: at, Len: uint32(12 + len(test.frame))}}, 0, false)
				a.flush(0, 1)
				after := a.member.Stats().Drops
				got := a.y.receive(0)
				switch {
				case !test.lost && (len(got) != 1 || !bytes.Equal(got[0].frame, test.frame) || after != before):
					t.Errorf("%d bytes, % x: %d frames arrived, drops %v", len(test.frame), test.frame[:14], len(got), after)
				case test.lost && (len(got) != 0 || after[test.drop] != before[test.drop]+1):
					t.Errorf("%d bytes: %d frames arrived, drops %v, want one more %v", len(test.frame), len(got), after, test.drop)
				}
			}
			a.goesOn()
		})
	}
}

// What one frame can become is limited, and what many become stops nobody for good.
func TestCase36Amplification(t *testing.T) {
	a := newAttack(t, device.VirtioNetConfig{}, virtioOptions{features: fMergeable | fCsum | fHostTSO4})
	wire := porttest.NewRecorder(1200)
	m, err := a.sw.Join("wire", wire, vswitch.PortOptions{})
	check(t, err)
	r := a.tx[0]
	at := r.ram.Alloc(1<<16, 64)
	const payload = 65535 - 40
	for _, test := range []struct{ size, pieces int }{
		{1, 0}, {2, 0}, {32, 0}, {63, 0}, {64, 1024}, {65, 1008}, {500, 131},
	} {
		h := tsoHeader
		binary.LittleEndian.PutUint16(h[4:], uint16(test.size))
		all := append(h[:], tcpFrame(tt.Broadcast, macA, payload)...)
		copy(r.ram.Bytes(at, len(all)), all)
		r.one[0] = virtqtest.Buffer{Addr: at, Len: uint32(len(all))}
		r.Add(r.one[:], 0, false)
		a.flush(0, 1)
		if got := len(wire.Take()); got != test.pieces {
			t.Errorf("64 KiB in pieces of %d make %d frames, want %d", test.size, got, test.pieces)
		}
	}
	binary.LittleEndian.PutUint16(r.ram.Bytes(at+4, 2), 64)
	before := m.Stats()
	for token := range 100 {
		r.Add(r.one[:], token, false)
	}
	a.flush(0, 100)
	after := m.Stats()
	if got := after.TxFrames + after.Drops[vswitch.DropReceiverFull] - before.TxFrames - before.Drops[vswitch.DropReceiverFull]; got != 100*1024 {
		t.Errorf("100 frames became %d, want %d", got, 100*1024)
	}
	a.goesOn()
}

// Receivers that are full, of all kinds, cost a sender and others nothing: what goes elsewhere arrives, in order, and the
// sender's buffers come back, though the full ones never take anything.
func TestFullReceivers(t *testing.T) {
	for _, o := range layouts {
		t.Run(o.String(), func(t *testing.T) {
			a := newAttack(t, device.VirtioNetConfig{Pairs: 2}, virtioOptions{Options: o, pairs: 2})
			old := newAdapter(t, macB)
			join(t, a.sw, old, "old")
			legacy := attach(t, old).driver(macB, tt.Options{})
			a.send(tt.Frame(tt.Broadcast, macA, 60)) // the switch learns who is where
			a.x.send(tt.Frame(tt.Broadcast, macX, 60))
			a.y.send(tt.Frame(tt.Broadcast, macY, 60))
			legacy.Send(tt.Frame(tt.Broadcast, macB, 60))
			for n := 0; a.adapter.Stats().NoBuffer == 0 || a.adapter.Stats().NoBuffer < uint64(2*n); n++ { // both rings
				a.adapter.Deliver([]*vswitch.Frame{flow(1), flow(2), flow(3), flow(4)})
				if n > 1000 {
					t.Fatal("the rings do not get full")
				}
			}
			lost := a.adapter.Stats().NoBuffer
			const rounds = 40
			for range rounds {
				var sent, want [][]byte
				a.y.receive(0)
				for i := range 30 {
					a.count++
					dst := []vswitch.MAC{tt.Broadcast, macY, macB, macA}[i%4]
					f := binary.BigEndian.AppendUint32(tt.Frame(dst, macX, 100), a.count)
					sent = append(sent, f)
					if i%4 < 2 {
						want = append(want, f)
					}
				}
				a.x.send(sent...)
				got := a.y.receive(0)
				if !slices.EqualFunc(got, want, func(p packet, f []byte) bool { return bytes.Equal(p.frame, f) }) {
					t.Fatalf("%d frames arrived, want %d in order", len(got), len(want))
				}
			}
			if got := a.adapter.Stats().NoBuffer - lost; got == 0 {
				t.Error("the full rings were not full")
			}
			if _, status := legacy.Receive(); status == 0 {
				t.Error("nothing arrived at the legacy adapter")
			}
		})
	}
}

// flow returns a frame of a TCP flow of its own.
func flow(port byte) *vswitch.Frame {
	p := tcpFrame(macA, macB, 20)
	p[35] = port
	f := whole(p)
	return &f
}
