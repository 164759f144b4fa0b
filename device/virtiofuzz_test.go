package device_test

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device"
	"polder/device/vhostuser"
	vt "polder/device/vhostuser/vhostusertest"
	"polder/device/virtq/virtqtest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
	"polder/vswitch/porttest"
)

// wholeness is a port that looks at the frames that a hostile guest has sent.
type wholeness struct {
	t      *testing.T
	frames int
}

func (*wholeness) Accepts() vswitch.OffloadSet { return 0xff }

func (w *wholeness) Deliver(frames []*vswitch.Frame) int {
	for _, f := range frames {
		b := f.AppendTo(nil)
		o := f.Offload
		if len(b) != f.Len || f.Len < vswitch.HeaderLen || f.Len > vswitch.MaxFrameLen || len(f.Head) < min(f.Len, vswitch.HeadLen) {
			w.t.Errorf("frame of %d bytes, %d in Head, that says %d", len(b), len(f.Head), f.Len)
		}
		if o.NeedsChecksum && int(o.ChecksumStart)+int(o.ChecksumOffset)+2 > f.Len || int(o.HeadersLen) > f.Len {
			w.t.Errorf("Offload %+v of %d bytes", o, f.Len)
		}
		w.frames++
	}
	return len(frames)
}

// target is an adapter under fuzz, with others on its switch, one of which is full.
type target struct {
	*device.VirtioNet
	workers *device.Workers
	others  wholeness
	done    chan error
	client  *vt.Client
}

func newTarget(t *testing.T, pairs int) *target {
	sw := vswitch.New(vswitch.Config{MaxMACs: 16})
	workers, err := device.NewWorkers(1, nil)
	check(t, err)
	v, err := device.NewVirtioNet(device.VirtioNetConfig{Name: "guest", Pairs: pairs, Workers: workers, Log: discard})
	check(t, err)
	m, err := sw.Join("guest", v, vswitch.PortOptions{})
	check(t, err)
	v.Connect(m)
	g := &target{VirtioNet: v, workers: workers, others: wholeness{t: t}, done: make(chan error, 1)}
	_, err = sw.Join("others", &g.others, vswitch.PortOptions{})
	check(t, err)
	_, err = sw.Join("full", porttest.NewRecorder(2), vswitch.PortOptions{})
	check(t, err)
	client, conn, err := vt.Pair()
	check(t, err)
	g.client = client
	go func() { g.done <- vhostuser.ServeConn(t.Context(), conn, v, discard, "guest") }()
	return g
}

// toGuest sends frames of all kinds to the guest.
func (g *target) toGuest() {
	tso := whole(tcpFrame(macA, macB, 1400))
	tso.Offload = vswitch.Offload{NeedsChecksum: true, GSO: vswitch.GSOTCPv4, GSOSize: 500, ChecksumStart: 34, ChecksumOffset: 16, HeadersLen: 54}
	short, long := whole(tt.Frame(tt.Broadcast, macB, 60)), whole(tt.Frame(macA, macB, 1514))
	for range 2 {
		if n := g.Deliver([]*vswitch.Frame{&short, &long, &tso, &short}); n < 0 || n > 4 {
			g.others.t.Errorf("Deliver of 4 frames returned %d", n)
		}
	}
}

// end hangs up. Nothing is left of the attachment.
func (g *target) end(t *testing.T) {
	g.client.Close()
	<-g.done
	if g.Stats().Attached || g.Accepts() != 0 {
		t.Errorf("%+v, accepts %b after the end", g.Stats(), g.Accepts())
	}
	g.toGuest() // which meets nobody
	check(t, g.Close())
	check(t, g.workers.Close())
}

// passables are what a front end passes where an eventfd or memory belongs.
type passables struct {
	fds   []int
	bytes []byte // of the memory
}

// fileMemory is which of the files is memory that can be used; the next is an eventfd.
const (
	fileMemory = iota
	fileEvent
	numFiles = 10
)

func newPassables(t *testing.T) *passables {
	f := &passables{}
	mem, err := vt.NewMemory(0, 1<<16)
	check(t, err)
	t.Cleanup(func() { mem.Close() })
	f.bytes = mem.Bytes
	short, err := vt.NewMemory(0, 4096)
	check(t, err)
	t.Cleanup(func() { short.Close() })
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(t, err)
	full, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	check(t, err)
	_, err = unix.Write(full, binary.NativeEndian.AppendUint64(nil, 1<<64-2))
	check(t, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	var pipe [2]int
	check(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	dir, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	own := []int{event, full, pair[0], pair[1], pipe[0], pipe[1], dir}
	t.Cleanup(func() {
		for _, fd := range own {
			unix.Close(fd)
		}
	})
	f.fds = []int{fileMemory: mem.FD(), fileEvent: event, 2: full, 3: short.FD(), 4: pair[0], 5: pair[1], 6: pipe[0], 7: pipe[1], 8: dir, 9: int(os.Stdin.Fd())}
	return f
}

// FuzzVirtioNetMessages plays a program of a front end to a whole adapter: messages with real descriptors, the memory really
// mapped, and the rings served. A step is the request, the flags of its header, the number of descriptors, for
// each which file it is, u16 number of bytes, and the payload. With hello, the rings run before.
func FuzzVirtioNetMessages(f *testing.F) {
	step := func(request uint8, flags uint8, fds []byte, payload ...any) []byte {
		b := vt.Payload(payload...)
		return slices.Concat([]byte{request, flags, byte(len(fds))}, fds, binary.LittleEndian.AppendUint16(nil, uint16(len(b))), b)
	}
	const uva = 1 << 40
	var all []byte
	for _, s := range [][]byte{
		step(vt.SetOwner, 0, nil),
		step(vt.SetProtocolFeatures, vt.FlagNeedReply, nil, uint64(vhostuser.ProtocolAll)),
		step(vt.SetFeatures, vt.FlagNeedReply, nil, uint64(fVersion1|fMergeable|vt.FeatureProtocol)),
		step(vt.SetFeatures, 0, nil, uint64(fVersion1|vt.FeaturePacked|vt.FeatureLogAll)),
		step(vt.SetMemTable, vt.FlagNeedReply, []byte{fileMemory}, uint32(1), uint32(0), uint64(0), uint64(1<<16), uint64(uva), uint64(0)),
		step(vt.SetMemTable, 0, []byte{3, fileMemory}, uint32(2), uint32(0), uint64(0), uint64(4096), uint64(uva), uint64(0),
			uint64(4096), uint64(1<<16-4096), uint64(uva+4096), uint64(4096)),
		step(vt.SetMemTable, 0, []byte{8}, uint32(1), uint32(0), uint64(0), uint64(1<<16), uint64(uva), uint64(0)),
		step(vt.AddMemReg, vt.FlagNeedReply, []byte{3}, uint64(0), uint64(1<<32), uint64(4096), uint64(1<<32), uint64(0)),
		step(vt.RemMemReg, 0, nil, uint64(0), uint64(1<<32), uint64(4096), uint64(1<<32), uint64(0)),
		step(vt.SetLogBase, 0, []byte{fileMemory}, uint64(4096), uint64(0)),
		step(vt.SetLogBase, 0, []byte{6}, uint64(4096), uint64(4096)),
		step(vt.SetVringNum, 0, nil, uint32(1), uint32(8)),
		step(vt.SetVringBase, 0, nil, uint32(1), uint32(0)),
		step(vt.SetVringAddr, 0, nil, uint32(1), uint32(0), uint64(uva+0x1000), uint64(uva+0x1200), uint64(uva+0x1100), uint64(0)),
		step(vt.SetVringAddr, 0, nil, uint32(0), uint32(1), uint64(uva), uint64(uva+0x200), uint64(uva+0x100), uint64(0)),
		step(vt.SetVringKick, vt.FlagNeedReply, []byte{fileEvent}, uint64(1)),
		step(vt.SetVringKick, 0, []byte{7}, uint64(0)),
		step(vt.SetVringCall, 0, []byte{4}, uint64(1)),
		step(vt.SetVringCall, 0, []byte{2}, uint64(0)),
		step(vt.SetVringErr, 0, []byte{fileEvent}, uint64(1)),
		step(vt.SetVringEnable, 0, nil, uint32(1), uint32(1)),
		step(vt.SetVringEnable, 0, nil, uint32(0), uint32(0)),
		step(vt.SetVringKick, 0, nil, uint64(1|vt.NoFD)),
		step(vt.SendRARP, 0, nil, uint64(0x0a0000_5d1500)),
		step(vt.NetSetMTU, vt.FlagNeedReply, nil, uint64(1500)),
		step(vt.SetBackendReqFD, 0, []byte{5}),
		step(vt.GetVringBase, 0, nil, uint32(1), uint32(0)),
		step(vt.ResetOwner, 0, nil),
		step(vt.ResetDevice, 0, nil),
		step(vt.GetInflightFD, vt.FlagNeedReply, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, uint64(0)),
	} {
		f.Add(true, s)
		f.Add(false, s)
		all = append(all, s...)
	}
	f.Add(true, all)
	f.Add(false, all)
	f.Fuzz(func(t *testing.T, hello bool, program []byte) {
		files := newPassables(t)
		before := descriptors(t)
		g := newTarget(t, 2)
		replies := make(chan struct{})
		if hello {
			check(t, g.client.Connect(vhostuser.ProtocolAll))
			check(t, g.client.SetFeatures(fVersion1|fMergeable|vt.FeatureProtocol))
			check(t, g.client.Set(vt.SetMemTable, region(0, 1<<16, uva, 0), files.fds[fileMemory]))
			for i := range uint32(2) {
				at := uint64(uva + 0x1000*uint64(i))
				check(t, g.client.Set(vt.SetVringNum, vt.Payload(i, uint32(8))))
				check(t, g.client.Set(vt.SetVringAddr, vt.Payload(i, uint32(0), at, at+0x200, at+0x100, uint64(0))))
				check(t, g.client.Set(vt.SetVringKick, vt.Payload(uint64(i)), files.fds[fileEvent]))
				check(t, g.client.EnableVring(int(i), true))
				for d := range uint64(8) { // one buffer in each descriptor
					virtqtest.PutDesc(files.bytes[0x1000*uint64(i)+16*d:], false, 0x4000+0x1000*d, 0x800, virtqtest.Write*uint16(1-i), 0)
					files.bytes[0x1000*uint64(i)+0x100+4+2*d] = byte(d)
				}
				files.bytes[0x1000*i+0x102] = 8
			}
		}
		go func() { // reads until the back end hangs up
			defer close(replies)
			for {
				if _, _, err := g.client.Reply(); err != nil {
					return
				}
			}
		}()
		for sent := 0; len(program) >= 5 && sent < 64; sent++ {
			request, flags, n := uint32(program[0]), uint32(program[1]), int(program[2])
			program = program[3:]
			var fds []int
			for ; n > 0 && len(program) > 2 && len(fds) < 32; n-- {
				fds, program = append(fds, files.fds[int(program[0])%numFiles]), program[1:]
			}
			size := min(int(binary.LittleEndian.Uint16(program)), len(program)-2)
			if g.client.Request(request, flags&vt.FlagNeedReply, program[2:2+size], fds...) != nil {
				break
			}
			program = program[2+size:]
			if sent%4 == 3 {
				g.toGuest()
			}
		}
		g.client.CloseWrite()
		<-replies
		g.end(t)
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

// Where FuzzVirtioNetRings has its rings: eight entries each, the first to receive into.
const (
	imageRing  = 0x200 // of one after the other
	imageAvail = 0x80
	imageUsed  = 0x100
	imageSize  = 1 << 16
)

// FuzzVirtioNetRings lets an adapter loose on arbitrary guest memory, rings and buffers and tables and all. Whatever is
// there, frames that arrive are frames, the work is bounded, and it goes on or ends for what is wrong with a ring.
func FuzzVirtioNetRings(f *testing.F) {
	good := func(packed bool, chain uint16) []byte {
		image := make([]byte, 0x2000)
		for ring := range uint64(2) {
			part := image[imageRing*ring:]
			for i := range uint64(8) {
				flags, last := uint16(virtqtest.Write)*uint16(1-ring), uint16(i+1)%8
				if i%2 == 0 {
					flags |= chain
				}
				if packed {
					flags, last = flags|1<<7, uint16(i)
				} else {
					part[imageAvail+4+2*i] = byte(i)
				}
				virtqtest.PutDesc(part[16*i:], packed, 0x800+0x100*(8*ring+i), 0x100, flags, last)
			}
			if !packed {
				part[imageAvail+2] = 8
			}
		}
		for i := range 8 {
			copy(image[0x800+0x100*(8+i):], slices.Concat(tsoHeader[:], tcpFrame(tt.Broadcast, macA, 180)))
		}
		return image
	}
	indirect := func(packed bool) []byte { // all tables, of which each has two buffers
		image := good(packed, virtqtest.Indirect)
		for i := range uint64(16) {
			at := 0x1800 + 0x40*i
			ring := i / 8
			virtqtest.PutDesc(image[imageRing*ring+16*(i%8):], packed, at, 32, virtqtest.Indirect|1<<7, uint16(i%8))
			virtqtest.PutDesc(image[at:], packed, 0x800+0x100*i, 12, virtqtest.Next|virtqtest.Write*uint16(1-ring), 1)
			virtqtest.PutDesc(image[at+16:], packed, 0x80c+0x100*i, 0xf0, virtqtest.Write*uint16(1-ring), 0)
		}
		return image
	}
	for how := range uint8(32) {
		packed := how&1 != 0
		f.Add(how, uint16(0), good(packed, 0))
		f.Add(how, uint16(0), good(packed, virtqtest.Next))
		f.Add(how|4, uint16(0), indirect(packed))
	}
	f.Add(uint8(0), uint16(7), []byte{})
	f.Fuzz(func(t *testing.T, how uint8, base uint16, image []byte) {
		g := newTarget(t, 1)
		mem, err := vt.NewMemory(0, imageSize)
		check(t, err)
		defer mem.Close()
		copy(mem.Bytes, image)
		check(t, g.client.Connect(vhostuser.ProtocolAll))
		features := uint64(fVersion1 | vt.FeatureProtocol | fCsum | fHostTSO4 | fGuestCsum | fGuestTSO4)
		start := uint32(base)
		for bit, feature := range []uint64{vt.FeaturePacked, 1 << 29, 1 << 28, 1 << 35, fMergeable} {
			if how&(1<<bit) != 0 {
				features |= feature
			}
		}
		if how&1 != 0 {
			start = (start&7 | 1<<15) * 0x10001
		}
		check(t, g.client.SetFeatures(features))
		check(t, g.client.SetMemTable(mem))
		running := true
		for i := range uint32(2) {
			at := mem.UVA + imageRing*uint64(i)
			check(t, g.client.Set(vt.SetVringNum, vt.Payload(i, uint32(8))))
			check(t, g.client.Set(vt.SetVringBase, vt.Payload(i, start)))
			check(t, g.client.Set(vt.SetVringAddr, vt.Payload(i, uint32(0), at, at+imageUsed, at+imageAvail, uint64(0))))
			check(t, g.client.EnableVring(int(i), true))
			// A worker may find fault at once.
			running = running && g.client.Set(vt.SetVringKick, vt.Payload(uint64(i|vt.NoFD))) == nil
		}
		for range 3 {
			pulled := 0
			for n := g.Pull(0); n > 0; n = g.Pull(0) {
				if pulled += n; pulled > 32 {
					t.Fatalf("%d buffers in rings of 8", pulled)
				}
			}
			g.toGuest()
		}
		if running {
			for i := range 2 {
				g.client.Get(vt.GetVringBase, vt.Payload(uint32(i), uint32(0))) // fails if it has ended meanwhile
			}
		}
		g.end(t)
	})
}
