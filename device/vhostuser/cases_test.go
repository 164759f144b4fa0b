package vhostuser_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/device/vhostuser"
	vt "polder/device/vhostuser/vhostusertest"
)

// The tests in this file are what hostile and broken front ends do, numbered. Where it says malformed, the
// connection ends with one line in the log and nothing leaks.

// malformed is a message that ends a connection whose ring 0 runs in 1 MiB of memory at 0x100000.
type malformed struct {
	name    string
	request uint32
	payload []byte
	fds     []int
	text    string // in the error, which begins with the name of the request
}

func wantMalformed(t *testing.T, rows []malformed) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			before := openFDs(t)
			func() {
				dev := newFake()
				s, _, v := running(t, dev)
				defer v.Close()
				// A reply would be an acknowledgement.
				s.must(s.Request(row.request, vt.FlagNeedReply, row.payload, row.fds...))
				s.wantMalformed(row.text)
				if calls := dev.asked(); len(calls) == 0 || !strings.HasPrefix(calls[len(calls)-1], "detach: vhost-user protocol error") {
					t.Errorf("the device was asked %q, want to be detached", calls)
				}
				s.Close()
			}()
			if after := openFDs(t) - 1; after != before { // the guest's memory is closed with the test
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

// A header and a payload come byte by byte, and two messages at once.
func TestCase01Framing(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	for _, b := range vt.Message(vt.SetStatus, vt.FlagVersion|vt.FlagNeedReply, vt.Payload(uint64(0))) {
		s.must(s.Send([]byte{b}))
	}
	if _, b, err := s.Reply(); err != nil || b[0] != 1 { // STATUS was not negotiated yet
		t.Fatalf("got % x, %v, want a refusal", b, err)
	}
	get := vt.Message(vt.GetFeatures, vt.FlagVersion, nil)
	s.must(s.Send(slices.Concat(get, get, get[:5])))
	s.must(s.Send(get[5:]))
	for range 3 {
		if h, _, err := s.Reply(); err != nil || h.Request != vt.GetFeatures {
			t.Fatalf("got %+v, %v", h, err)
		}
	}
	dev.want(t, attachLine())
}

func TestCase02Sizes(t *testing.T) {
	wantMalformed(t, []malformed{
		{"too big", 77, make([]byte, 4097), nil, "request 77: payload of 4097 bytes, of at most 4096"},
		{"nothing", vt.SetFeatures, nil, nil, "SET_FEATURES: payload of 0 bytes, want 8"},
		{"too short", vt.SetVringNum, make([]byte, 7), nil, "SET_VRING_NUM: payload of 7 bytes, want 8"},
		{"too long", vt.SetVringAddr, make([]byte, 41), nil, "SET_VRING_ADDR: payload of 41 bytes, want 40"},
		{"where there is none", vt.GetFeatures, make([]byte, 8), nil, "GET_FEATURES: payload of 8 bytes, want 0"},
		{"table without a count", vt.SetMemTable, make([]byte, 7), nil, "SET_MEM_TABLE: payload of 7 bytes"},
		{"table shorter than its count", vt.SetMemTable, append(vt.Payload(uint64(2)), make([]byte, 63)...), nil, "SET_MEM_TABLE: 63 bytes for 2 regions"},
		{"table with room for too many", vt.SetMemTable, append(vt.Payload(uint64(0)), make([]byte, 9*32)...), nil, "SET_MEM_TABLE: 288 bytes for 0 regions"},
		{"log", vt.SetLogBase, make([]byte, 8), nil, "SET_LOG_BASE: payload of 8 bytes, want 16"},
	})
}

func TestCase03Flags(t *testing.T) {
	for flags, text := range map[uint32]string{
		0:                             "GET_FEATURES: version 0, want 1",
		2:                             "GET_FEATURES: version 2, want 1",
		vt.FlagVersion | vt.FlagReply: "GET_FEATURES: a reply, but nothing was asked",
		vt.FlagVersion | 0x10:         "GET_FEATURES: flags 0x11 are not those of a request",
		vt.FlagVersion | 0x80000000:   "GET_FEATURES: flags 0x80000001",
	} {
		s := connected(t, newFake())
		s.must(s.Send(vt.Message(vt.GetFeatures, flags, nil)))
		s.wantMalformed(text)
	}
	// Who asks for a reply to what has one gets one.
	s, _, _ := running(t, newFake())
	s.play([]message{
		{"features", vt.GetFeatures, true, nil, nil, vt.Payload(all)},
		{"base", vt.GetVringBase, true, ring(0, 0), nil, vt.Payload(uint32(0), uint32(7))},
		{"log", vt.SetLogBase, true, vt.Payload(uint64(4096), uint64(0)), []int{memory(t, 0, 4096).FD()}, vt.Payload(uint64(0))},
		{"features", vt.GetFeatures, true, nil, nil, vt.Payload(all)},
	})
}

func TestCase04UnknownRequests(t *testing.T) {
	dev := newFake()
	s := connected(t, dev)
	bell := eventFD(t)
	before := openFDs(t)
	for _, request := range []uint32{0, 23, 25, 28, 33, 35, 41, 0x10003, 1<<32 - 1} {
		if err := s.Set(request, make([]byte, 300), bell, bell); !errors.Is(err, vt.ErrRefused) {
			t.Errorf("request %d: %v, want it refused", request, err)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	dev.want(t)
	s.must(s.Request(23, 0, nil)) // who knows whether a reply is waited for?
	s.wantMalformed("request 23: unknown")
}

func TestCase05Descriptors(t *testing.T) {
	bell := eventFD(t)
	m := memory(t, 0x400000, 1<<20)
	many := func(n int) []int { return slices.Repeat([]int{bell}, n) }
	region := append(vt.Payload(uint64(0)), m.Region()...)
	wantMalformed(t, []malformed{
		{"kick without", vt.SetVringKick, vt.Payload(uint64(0)), nil, "SET_VRING_KICK: 0x0 with 0 descriptors"},
		{"kick with none and one", vt.SetVringKick, vt.Payload(uint64(vt.NoFD)), many(1), "SET_VRING_KICK: 0x100 with 1 descriptors"},
		{"kick with two", vt.SetVringKick, vt.Payload(uint64(0)), many(2), "SET_VRING_KICK: 2 descriptors, want at most 1"},
		{"call with eight", vt.SetVringCall, vt.Payload(uint64(0)), many(8), "SET_VRING_CALL: 8 descriptors"},
		{"nine", vt.SetVringErr, vt.Payload(uint64(0)), many(9), "SET_VRING_ERR: more than 8 descriptors"},
		{"253", vt.SetMemTable, vt.Payload(uint64(0)), many(253), "SET_MEM_TABLE: more than 8 descriptors"},
		{"where none belongs", vt.GetFeatures, nil, many(1), "GET_FEATURES: 1 descriptors, want at most 0"},
		{"base", vt.GetVringBase, ring(0, 0), many(1), "GET_VRING_BASE: 1 descriptors"},
		{"table with too few", vt.SetMemTable, append(vt.Payload(uint64(1)), m.Region()...), nil, "SET_MEM_TABLE: 0 descriptors for 1 regions"},
		{"table with too many", vt.SetMemTable, append(vt.Payload(uint64(1)), m.Region()...), []int{m.FD(), bell}, "SET_MEM_TABLE: 2 descriptors for 1 regions"},
		{"region without", vt.AddMemReg, region, nil, "ADD_MEM_REG: no descriptor"},
		{"channel without", vt.SetBackendReqFD, nil, nil, "SET_BACKEND_REQ_FD: no descriptor"},
		{"log without", vt.SetLogBase, vt.Payload(uint64(4096), uint64(0)), nil, "SET_LOG_BASE: no descriptor"},
	})
	t.Run("with a later byte", func(t *testing.T) {
		s := connected(t, newFake())
		msg := vt.Message(vt.SetVringKick, vt.FlagVersion, vt.Payload(uint64(0)))
		s.must(s.Send(msg[:12]))
		s.must(s.Send(msg[12:], bell))
		s.wantMalformed("SET_VRING_KICK: 0x0 with 0 descriptors")
	})
	t.Run("with a later byte of the header", func(t *testing.T) { // which may be read apart, or not
		before := openFDs(t)
		s := connect(t, newFake())
		msg := vt.Message(vt.SetVringKick, vt.FlagVersion, vt.Payload(uint64(0)))
		s.must(s.Send(msg[:5]))
		s.must(s.Send(msg[5:], bell))
		s.must(s.CloseWrite())
		if err := <-s.done; err != nil && !strings.Contains(err.Error(), "SET_VRING_KICK: 0x0 with 0 descriptors") {
			t.Errorf("ended with %v", err)
		}
		s.Close()
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
	t.Run("of glued messages", func(t *testing.T) { // the kernel keeps apart what came with descriptors
		dev := newFake()
		s := connected(t, dev)
		for index := range uint64(4) {
			s.must(s.Request(vt.SetVringKick, 0, vt.Payload(index), bell))
		}
		s.barrier()
		dev.want(t)
	})
	t.Run("what needs none", func(t *testing.T) {
		s := connected(t, newFake())
		before := openFDs(t)
		s.must(s.Set(vt.SetLogFD, nil, bell)) // closed, as we do not use it
		s.must(s.AddMemReg(m))
		s.must(s.Set(vt.RemMemReg, region, bell)) // allowed by the specification, and closed
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

func TestCase06StrangeDescriptors(t *testing.T) {
	open := func(name string, flags int) int {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sockets[0])
	defer unix.Close(sockets[1])
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	var rows []malformed
	for name, fd := range map[string]int{
		"directory": open("/", unix.O_RDONLY|unix.O_DIRECTORY),
		"file":      open(file, unix.O_RDWR),
		"path":      open(file, unix.O_PATH),
		"device":    open(os.DevNull, unix.O_RDWR),
		"socket":    sockets[0],
		"pipe":      pipe[1],
	} {
		for _, request := range []uint32{vt.SetVringKick, vt.SetVringCall, vt.SetVringErr} {
			if name == "socket" && request == vt.SetVringCall {
				continue // User Mode Linux has no other
			}
			rows = append(rows, malformed{fmt.Sprintf("%s %d", name, request), request, vt.Payload(uint64(0)), []int{fd},
				map[uint32]string{vt.SetVringKick: "SET_VRING_KICK", vt.SetVringCall: "SET_VRING_CALL", vt.SetVringErr: "SET_VRING_ERR"}[request] + ": ring 0: a file of mode"})
		}
	}
	wantMalformed(t, rows)

	// One descriptor may be all doorbells, and even the memory: what it is good for, the device finds out.
	dev := newFake()
	s, m, v := running(t, dev)
	bell := eventFD(t)
	s.must(s.Set(vt.SetVringCall, vt.Payload(uint64(0)), bell))
	s.must(s.Set(vt.SetVringErr, vt.Payload(uint64(0)), bell))
	s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), bell))
	s.must(s.Set(vt.SetMemTable, slices.Concat(vt.Payload(uint64(1)), m.Region()), sockets[0]))
	s.must(s.StopVring(v))
}

func TestCase07SilentFrontEnds(t *testing.T) {
	dev := newFake()
	path := socketPath(t)
	srv, log := listen(t, path, dev)
	srv.SetGrace(time.Hour)
	run(t, srv)
	before := openFDs(t)
	for range 1000 {
		c, err := vt.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	half, err := vt.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(half.Send(vt.Message(vt.GetFeatures, vt.FlagVersion, nil)[:7]), half.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := half.Reply(); err != io.EOF {
		t.Errorf("half a message was answered with %v", err)
	}
	half.Close()
	c := dial(t, path)
	if err := c.Connect(0); err != nil {
		t.Fatal(err)
	}
	if calls := dev.asked(); len(calls) != 1 {
		t.Errorf("the device was asked %q, want to be attached once", calls)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one, of half a message:\n%s", n, log)
	}
	for i := 0; openFDs(t)-2 > before; i++ { // both ends of c; of the others, somebody may still be looking at the last
		if i == 1000 {
			t.Fatalf("%d descriptors open, %d before", openFDs(t)-2, before)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A front end that asks without reading the answers stops its own connection only, and that can still be closed.
func TestCase08FrontEndThatDoesNotRead(t *testing.T) {
	c, conn, err := vt.Pair()
	if err != nil {
		t.Fatal(err)
	}
	dev := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done, full := make(chan error), make(chan struct{})
	go func() { done <- vhostuser.ServeConn(ctx, conn, dev, slog.New(slog.DiscardHandler), "port7") }()
	go func() { // until the back end, and then we, have filled the buffers
		defer close(full)
		ask := slices.Repeat(vt.Message(vt.GetFeatures, vt.FlagVersion, nil), 1000)
		for c.Send(ask) == nil {
		}
	}()
	<-time.After(10 * time.Millisecond) // not needed for the outcome
	cancel()
	<-done
	<-full
	c.Close()
	<-dev.gone
}

func TestCase09EOFAnywhere(t *testing.T) {
	m := memory(t, 0, 1<<20)
	table := vt.Message(vt.SetMemTable, vt.FlagVersion, append(vt.Payload(uint64(1)), m.Region()...))
	for n := 1; n < len(table); n++ {
		before := openFDs(t)
		s := connect(t, newFake())
		s.must(s.Send(table[:n], m.FD()))
		s.must(s.CloseWrite())
		if n < 12 {
			s.wantMalformed("")
		} else {
			s.wantMalformed("SET_MEM_TABLE: unexpected EOF in a payload of 40 bytes")
		}
		s.Close()
		if after := openFDs(t); after != before {
			t.Errorf("after %d bytes: %d descriptors open, %d before", n, after, before)
		}
	}
	// While rings run, all of them are the device's to stop.
	dev := newFake()
	s, _, _ := running(t, dev)
	s.Close()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	dev.want(t, "detach: EOF")
}

// Only the owner may connect, and the log says who did.
func TestCase10WrongUser(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dev := newFake()
	path := serve(t, dev)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode(); mode != fs.ModeSocket|0o600 {
		t.Errorf("mode is %v, want %v", mode, fs.ModeSocket|0o600)
	}
	if os.Getuid() == 0 { // who can be another
		if _, err := dialAs(65534, path); !errors.Is(err, unix.EACCES) {
			t.Errorf("another user connects: %v, want %v", err, unix.EACCES)
		}
	}
	if err := dial(t, path).Connect(0); err != nil {
		t.Fatal(err)
	}
	dev.want(t, attachLine())
}

// dialAs connects to path as another user.
func dialAs(user int, path string) (*vt.Client, error) {
	var c *vt.Client
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, err = unix.SetfsuidRetUid(user); err != nil {
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return
		}
		var conn net.Conn
		if conn, err = net.FileConn(f); err == nil {
			c = vt.NewClient(conn.(*net.UnixConn))
		}
	}()
	<-done
	return c, err
}

func TestCase11Features(t *testing.T) {
	wantMalformed(t, []malformed{
		{"not offered", vt.SetFeatures, vt.Payload(uint64(1)), nil, "SET_FEATURES: 0x1 has bits 0x1 that were not offered"},
		{"protocol", vt.SetProtocolFeatures, vt.Payload(uint64(1 << 12)), nil, "SET_PROTOCOL_FEATURES: 0x1000 has bits 0x1000"},
		{"status", vt.SetStatus, vt.Payload(uint64(0x100)), nil, "SET_STATUS: status 0x100"},
	})
	t.Run("log not offered", func(t *testing.T) {
		dev := newFake()
		dev.protocol &^= vhostuser.ProtocolLogSHMFD
		s := connected(t, dev)
		s.must(s.Request(vt.SetFeatures, 0, vt.Payload(uint64(vt.FeatureLogAll))))
		s.wantMalformed("SET_FEATURES: 0x4000000 has bits")
	})
	t.Run("nothing negotiated", func(t *testing.T) { // a front end that knows no protocol features, and is no owner
		dev := newFake()
		s := connect(t, dev)
		m := memory(t, 0, 1<<20)
		s.must(s.SetFeatures(vt.FeatureVersion1))
		s.must(s.SetMemTable(m))
		s.must(s.StartVring(vring(t, m, 0, 8)))
		for _, request := range []uint32{vt.GetQueueNum, vt.NetSetMTU, vt.SendRARP, vt.ResetDevice, vt.SetBackendReqFD,
			vt.GetMaxMemSlots, vt.AddMemReg, vt.RemMemReg, vt.GetStatus, vt.SetStatus, vt.SetLogBase} {
			if err := s.Set(request, nil); !errors.Is(err, vt.ErrRefused) {
				t.Errorf("request %d: %v, want it refused", request, err)
			}
		}
		dev.want(t, attachLine(), "features 0x100000000", "memory [0x0+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]",
			"start 0: num 8 base 0x0 desc 0x0 avail 0x80 used 0xc0 enabled true log {false 0} files [kick]", "call 0 [call]")
	})
	t.Run("changed while a ring runs", func(t *testing.T) {
		dev := newFake()
		s, _, v := running(t, dev)
		s.must(s.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol))
		dev.want(t, "stop 0", "features 0x100000000")
		s.must(s.StartVring(v))
		s.must(s.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol)) // the same again
		if calls := dev.asked(); len(calls) != 2 {
			t.Errorf("the device was asked %q, want the ring to run on", calls)
		}
	})
}

func TestCase12RingConfiguration(t *testing.T) {
	wantMalformed(t, []malformed{
		{"size 0", vt.SetVringNum, ring(0, 0), nil, "SET_VRING_NUM: ring 0: size 0 is not between 1 and 32768"},
		{"size 32769", vt.SetVringNum, ring(0, 32769), nil, "SET_VRING_NUM: ring 0: size 32769"},
		{"size 65536", vt.SetVringNum, ring(0, 65536), nil, "SET_VRING_NUM: ring 0: size 65536"},
		{"size 65536+256", vt.SetVringNum, ring(0, 65536+256), nil, "SET_VRING_NUM: ring 0: size 65792"},
		{"address flags", vt.SetVringAddr, append(vt.Payload(uint32(0), uint32(2)), make([]byte, 32)...), nil, "SET_VRING_ADDR: ring 0: flags 0x2"},
		{"log that wraps around", vt.SetVringAddr, append(vt.Payload(uint32(0), uint32(1)), slices.Repeat([]byte{0xff}, 32)...), nil, "SET_VRING_ADDR: ring 0: log at 0xffffffffffffffff wraps around"},
		{"enable 2", vt.SetVringEnable, ring(0, 2), nil, "SET_VRING_ENABLE: ring 0: 2 is neither on nor off"},
	})

	t.Run("any order", func(t *testing.T) {
		m := memory(t, 0, 1<<20)
		v := vring(t, m, 0, 8)
		steps := []func(s *session) error{
			func(s *session) error { return s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD) },
			func(s *session) error { return s.Set(vt.SetVringNum, ring(0, 8)) },
			func(s *session) error { return s.Set(vt.SetVringAddr, v.Addr(0, 0)) },
			func(s *session) error { return s.SetMemTable(m) },
		}
		for first := range steps {
			dev := newFake()
			s := connected(t, dev)
			for i := range steps {
				for _, call := range dev.asked() {
					if strings.HasPrefix(call, "start") {
						t.Errorf("from step %d: started before the last one", first)
					}
				}
				s.must(steps[(first+i)%len(steps)](s))
			}
			if calls := dev.asked(); len(calls) == 0 || !strings.HasPrefix(calls[len(calls)-1], "start 0") {
				t.Errorf("from step %d: the last step made the device do %q, want the ring started", first, calls)
			}
		}
	})

	t.Run("of a ring that runs", func(t *testing.T) {
		for name, step := range map[string]func(s *session, v *vt.Vring) error{
			"size":    func(s *session, v *vt.Vring) error { return s.Set(vt.SetVringNum, ring(0, 128)) },
			"base":    func(s *session, v *vt.Vring) error { return s.Set(vt.SetVringBase, ring(0, 3)) },
			"address": func(s *session, v *vt.Vring) error { v.Used += 64; return s.Set(vt.SetVringAddr, v.Addr(0, 0)) },
		} {
			dev := newFake()
			s, _, v := running(t, dev)
			s.must(step(s, v))
			s.must(s.Set(vt.SetVringAddr, v.Addr(0, 0)))
			dev.want(t, "stop 0")
			s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD))
			if calls := dev.asked(); len(calls) != 1 || !strings.HasPrefix(calls[0], "start 0") {
				t.Errorf("%s: a new kick made the device do %q, want the ring started", name, calls)
			}
		}
	})

	for _, row := range []struct {
		name      string
		features  uint64
		num, base uint32
		text      string // "" if the ring starts
	}{
		{"split of no power of two", 0, 3, 0, "ring 0: size 3 is not a power of two"},
		{"packed of no power of two", vt.FeaturePacked, 3, 0x80008000, ""},
		{"split with a base of 17 bits", 0, 8, 0x10000, "ring 0: base 0x10000 has more than 16 bits"},
		{"largest", 0, 32768, 0xffff, ""},
		{"largest packed", vt.FeaturePacked, 32768, 0xffffffff, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := connected(t, newFake())
			m := memory(t, 0, 1<<20)
			v := vring(t, m, 0, int(row.num))
			v.Base = row.base
			s.must(s.SetFeatures(row.features))
			s.must(s.SetMemTable(m))
			err := s.StartVring(v)
			if row.text == "" {
				s.must(err)
				return
			}
			if err != io.EOF {
				t.Errorf("got %v, want the socket closed", err)
			}
			s.wantMalformed("SET_VRING_KICK: " + row.text)
		})
	}
}

func TestCase13RingIndexes(t *testing.T) {
	var rows []malformed
	for _, index := range []uint32{4, 255, 0x100, 0x10000, 0x7fffffff, 1<<32 - 1} {
		text := fmt.Sprintf(": ring %d of 4", index)
		for request, name := range map[uint32]string{vt.SetVringNum: "SET_VRING_NUM", vt.SetVringBase: "SET_VRING_BASE",
			vt.GetVringBase: "GET_VRING_BASE", vt.SetVringEnable: "SET_VRING_ENABLE"} {
			rows = append(rows, malformed{fmt.Sprint(name, index), request, vt.Payload(index, uint32(1)), nil, name + text})
		}
		rows = append(rows, malformed{fmt.Sprint("SET_VRING_ADDR", index), vt.SetVringAddr, append(vt.Payload(index), make([]byte, 36)...), nil, "SET_VRING_ADDR" + text})
	}
	for index, text := range map[uint64]string{
		4: "ring 4 of 4", 255 | vt.NoFD: "ring 255 of 4", 0x200 | vt.NoFD: "ring 512 of 4", 1<<32 | vt.NoFD: "ring 4294967296 of 4",
		1<<64 - 1: fmt.Sprintf("ring %d of 4", uint64(1<<64-1)&^vt.NoFD),
	} {
		rows = append(rows, malformed{fmt.Sprint("SET_VRING_KICK", index), vt.SetVringKick, vt.Payload(index), nil, "SET_VRING_KICK: " + text},
			malformed{fmt.Sprint("SET_VRING_CALL", index), vt.SetVringCall, vt.Payload(index), nil, "SET_VRING_CALL: " + text},
			malformed{fmt.Sprint("SET_VRING_ERR", index), vt.SetVringErr, vt.Payload(index), nil, "SET_VRING_ERR: " + text})
	}
	wantMalformed(t, rows)
}

// QEMU enables rings before it says anything else of them.
func TestCase14EnableFirst(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	s.must(s.EnableVring(0, true))
	s.must(s.EnableVring(1, false))
	m := memory(t, 0, 1<<20)
	s.must(s.SetFeatures(vt.FeatureProtocol))
	s.must(s.SetMemTable(m))
	for i := range 2 {
		v := vring(t, m, i, 8)
		s.must(s.StartVring(v))
		s.must(s.EnableVring(i, true))
	}
	want := []string{"start 0: num 8 base 0x0 desc 0x0 avail 0x80 used 0xc0 enabled true log {false 0} files [kick]", "call 0 [call]",
		"start 1: num 8 base 0x0 desc 0x4000 avail 0x4080 used 0x40c0 enabled false log {false 0} files [kick]", "call 1 [call]", "enable 1 true"}
	if got := dev.asked(); len(got) < 3 || !slices.Equal(got[3:], want) {
		t.Errorf("the device was asked\n%s", strings.Join(got, "\n"))
	}
}

func TestCase15GetVringBase(t *testing.T) {
	dev := newFake()
	s := connected(t, dev)
	base := func(want uint32) message {
		return message{"get base", vt.GetVringBase, false, ring(0, 99), nil, vt.Payload(uint32(0), want)}
	}
	// Of a ring that never ran it is what was set.
	s.play([]message{base(0), {"base", vt.SetVringBase, true, ring(0, 41), nil, nil}, base(41), base(41)})
	dev.want(t)

	m := memory(t, 0, 1<<20)
	v := vring(t, m, 0, 8)
	v.Base = 41
	s.must(s.SetMemTable(m))
	s.must(s.StartVring(v))
	s.play([]message{base(48), base(48)})
	// It goes on where it stopped, if no other base is set.
	s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD))
	s.play([]message{base(55)})
	dev.want(t, "memory [0x0+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]",
		"start 0: num 8 base 0x29 desc 0x0 avail 0x80 used 0xc0 enabled false log {false 0} files [kick]", "call 0 [call]", "stop 0",
		"start 0: num 8 base 0x30 desc 0x0 avail 0x80 used 0xc0 enabled false log {false 0} files [kick call]", "stop 0")

	// A kick that waits for the rest is forgotten.
	s.play([]message{
		{"table", vt.SetMemTable, true, vt.Payload(uint64(0)), nil, nil},
		{"kick", vt.SetVringKick, true, vt.Payload(uint64(0)), []int{v.KickFD}, nil},
		base(55),
	})
	s.must(s.SetMemTable(m))
	dev.want(t, "memory []", "memory [0x0+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]")
}

func TestCase16Doorbells(t *testing.T) {
	dev := newFake()
	s, _, v := running(t, dev)
	before := openFDs(t)
	for range 20 {
		s.must(s.Set(vt.SetVringCall, vt.Payload(uint64(0)), v.CallFD))
		s.must(s.Set(vt.SetVringErr, vt.Payload(uint64(0)), v.CallFD))
		s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD))
	}
	if after := openFDs(t) - 2; after != before { // the err, held and handed out
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	dev.asked()
	s.play([]message{
		{"no call", vt.SetVringCall, true, vt.Payload(uint64(vt.NoFD)), nil, nil},
		{"no kick", vt.SetVringKick, true, vt.Payload(uint64(vt.NoFD)), nil, nil}, // to be polled
		{"no err", vt.SetVringErr, true, vt.Payload(uint64(vt.NoFD)), nil, nil},
		{"call", vt.SetVringCall, true, vt.Payload(uint64(0)), []int{v.CallFD}, nil},
		{"kick", vt.SetVringKick, true, vt.Payload(uint64(0)), []int{v.KickFD}, nil},
	})
	for i, call := range dev.asked() {
		want := []string{"call 0 []", "stop 0", "files [err]", "call 0 [call]", "stop 0", "files [kick call]"}[i]
		if !strings.HasSuffix(call, want) {
			t.Errorf("call %d of the device is %q, want it to end with %q", i, call, want)
		}
	}
}

func TestCase17Resets(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	for _, request := range []uint32{vt.ResetOwner, vt.SetOwner, vt.ResetOwner, vt.SetOwner, vt.SetOwner} {
		s.must(s.Set(request, nil))
	}
	s.must(s.Set(vt.SetProtocolFeatures, vt.Payload(protoQ)))
	s.must(s.Set(vt.ResetDevice, nil))
	dev.want(t, attachLine(), "reset")

	s.Close()
	<-dev.gone
	dev.asked()
	s, _, v := running(t, dev)
	log := memory(t, 0, 4096)
	s.must(s.Set(vt.SetLogBase, vt.Payload(uint64(4096), uint64(0)), log.FD()))
	s.must(s.SetFeatures(acked | vt.FeatureLogAll))
	s.must(s.Set(vt.SetStatus, vt.Payload(uint64(0xf))))
	dev.want(t, "log 0x0+0x1000 file 0x1000")
	before := openFDs(t)
	s.must(s.Set(vt.ResetDevice, nil))
	if after := openFDs(t) + 4; after != before { // the log; the kick, held and handed out; the call, handed out
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	if status, err := s.GetU64(vt.GetStatus); err != nil || status != 0 {
		t.Errorf("status %#x, %v after a reset", status, err)
	}
	s.must(s.Set(vt.ResetDevice, nil))
	dev.want(t, "stop 0", "reset", "reset")

	// Nothing is known of the ring any more but its call, and it is disabled. The memory is there.
	s.must(s.SetFeatures(acked))
	s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD))
	s.must(s.StopVring(v)) // the kick is forgotten
	dev.want(t, guestF)
	s.must(s.StartVring(v))
	if calls := dev.asked(); len(calls) != 2 || !strings.HasSuffix(calls[0], "enabled false log {false 0} files [kick call]") {
		t.Errorf("the device was asked %q, want the ring started", calls)
	}

	s.must(s.EnableVring(0, true))
	s.must(s.Set(vt.ResetOwner, nil))
	s.must(s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD))
	if calls := dev.asked(); len(calls) != 3 || calls[1] != "stop 0" || !strings.Contains(calls[2], "base 0x7") || !strings.Contains(calls[2], "enabled false") {
		t.Errorf("the device was asked %q, want the ring stopped and started, disabled", calls)
	}
}

func TestCase18DirtyLog(t *testing.T) {
	log := memory(t, 0, 4096)
	fd := []int{log.FD()}
	// The memory ends at 0x200000, so that 0x40 bytes of log cover it.
	wantMalformed(t, []malformed{
		{"empty", vt.SetLogBase, vt.Payload(uint64(0), uint64(0)), fd, "SET_LOG_BASE: offset 0x0 and size 0x0"},
		{"wraps around", vt.SetLogBase, vt.Payload(uint64(0x1000), uint64(1<<64-0xfff)), fd, "SET_LOG_BASE: offset 0xfffffffffffff001 and size 0x1000"},
		{"both huge", vt.SetLogBase, vt.Payload(uint64(1<<63), uint64(1<<63+1)), fd, "SET_LOG_BASE: offset 0x8000000000000001"},
		{"shorter than the memory", vt.SetLogBase, vt.Payload(uint64(0x3f), uint64(0)), fd, "SET_LOG_BASE: size 0x3f does not cover the memory up to 0x1fffff"},
	})
	dev := newFake()
	s, m, v := running(t, dev)
	// The feature first, then where: nothing is logged until both are known.
	s.must(s.SetFeatures(acked | vt.FeatureLogAll))
	s.must(s.Set(vt.SetVringAddr, v.Addr(1, 0xfffffffffff00000)))
	before := openFDs(t)
	for range 3 {
		s.must(s.Set(vt.SetLogBase, vt.Payload(uint64(0x40), uint64(0x123)), fd...))
	}
	if after := openFDs(t) - 1; after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	s.must(s.SetFeatures(acked))
	s.must(s.SetFeatures(acked | vt.FeatureLogAll))
	dev.want(t, "ring log 0 {true 18446744073708503040}",
		"log 0x123+0x40 file 0x1000", "log 0x123+0x40 file 0x1000", "log 0x123+0x40 file 0x1000", "log off", "log 0x123+0x40 file 0x1000")
	// A ring that starts again is logged as before.
	s.must(s.SetMemTable(m))
	if calls := dev.asked(); len(calls) != 3 || !strings.Contains(calls[2], "log {true 18446744073708503040}") {
		t.Errorf("the device was asked %q, want the ring started with its log", calls)
	}
}

func TestCase19Inflight(t *testing.T) {
	s := connected(t, newFake())
	bell := eventFD(t)
	before := openFDs(t)
	for range 20 {
		for _, request := range []uint32{vt.GetInflightFD, vt.SetInflightFD} {
			err := s.Set(request, vt.Payload(uint64(1)<<62, uint64(0), uint16(0xffff), uint16(0xffff)), bell)
			if !errors.Is(err, vt.ErrRefused) {
				t.Fatalf("request %d: %v, want it refused", request, err)
			}
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestCase20MemorySlots(t *testing.T) {
	m := memory(t, 0x400000, 1<<20)
	region := func(gpa, size, uva, offset uint64) []byte { return vt.Payload(uint64(0), gpa, size, uva, offset) }
	const uva = 0x7f0000000000
	wantMalformed(t, []malformed{
		{"empty", vt.AddMemReg, region(0x400000, 0, 0, 0), []int{m.FD()}, "ADD_MEM_REG: guest address 0x400000 and size 0x0: empty"},
		{"wraps around", vt.AddMemReg, region(0x400000, 1<<63, 1<<63+1, 0), []int{m.FD()}, "ADD_MEM_REG: user address 0x8000000000000001"},
		{"overlaps", vt.AddMemReg, region(0xff000, 0x1001, 0x10000, 0), []int{m.FD()}, "ADD_MEM_REG: guest addresses 0xff000+0x1001 overlap 0x100000+0x100000"},
		{"twice", vt.AddMemReg, region(0x100000, 1<<20, uva+0x100000, 0), []int{m.FD()}, "ADD_MEM_REG: guest addresses"},
		{"overlaps for the user", vt.AddMemReg, region(0x400000, 0x1000, uva+0x1fffff, 0), []int{m.FD()}, "ADD_MEM_REG: user addresses"},
		{"remove what is not there", vt.RemMemReg, region(0x400000, 1<<20, uva+0x400000, 0), nil, "REM_MEM_REG: no region has guest address 0x400000"},
		{"remove the half", vt.RemMemReg, region(0x100000, 1<<19, uva+0x100000, 0), nil, "REM_MEM_REG: no region"},
		{"remove under another user address", vt.RemMemReg, region(0x100000, 1<<20, uva, 0), nil, "REM_MEM_REG: no region"},
		{"remove what a ring is in", vt.RemMemReg, region(0x100000, 1<<20, uva+0x100000, 5), nil, "REM_MEM_REG: ring 0: descriptors at 0x7f0000100000+0x1000 is not in one region"},
	})
	dev := newFake()
	s := connected(t, dev)
	var last *vt.Memory
	for i := range uint64(509) {
		last = &vt.Memory{GPA: i << 20, UVA: i << 20, Bytes: m.Bytes[:4096]}
		s.must(s.Set(vt.AddMemReg, append(vt.Payload(uint64(0)), last.Region()...), m.FD()))
	}
	s.must(s.RemMemReg(last))
	s.must(s.Set(vt.AddMemReg, append(vt.Payload(uint64(0)), last.Region()...), m.FD()))
	s.must(s.Request(vt.AddMemReg, 0, region(1<<40, 4096, 1<<40, 0), m.FD()))
	s.wantMalformed("ADD_MEM_REG: one more than 509 regions")
}

func TestCase21MemoryTables(t *testing.T) {
	m := memory(t, 0x400000, 1<<20)
	table := func(n uint32, regions ...uint64) []byte { return vt.Payload(n, uint32(0), regions) }
	fds := func(n int) []int { return slices.Repeat([]int{m.FD()}, n) }
	const top = 1<<64 - 0x1000
	wantMalformed(t, []malformed{
		{"nine", vt.SetMemTable, table(9, make([]uint64, 36)...), fds(8), "SET_MEM_TABLE: 9 regions, of at most 8"},
		{"2^32-1", vt.SetMemTable, table(1<<32-1, 0, 4096, 0, 0), fds(1), "SET_MEM_TABLE: 4294967295 regions"},
		{"2^27, whose bytes are 2^32", vt.SetMemTable, table(1<<27, 0, 4096, 0, 0), fds(1), "SET_MEM_TABLE: 134217728 regions"},
		{"size 0", vt.SetMemTable, table(1, 0, 0, 0, 0), fds(1), "SET_MEM_TABLE: guest address 0x0 and size 0x0: empty"},
		{"guest address wraps around", vt.SetMemTable, table(1, top, 0x1001, 0, 0), fds(1), "SET_MEM_TABLE: guest address 0xfffffffffffff000"},
		{"user address wraps around", vt.SetMemTable, table(1, 0, 0x1001, top, 0), fds(1), "SET_MEM_TABLE: user address 0xfffffffffffff000"},
		{"offset wraps around", vt.SetMemTable, table(1, 0, 0x1001, 0, top), fds(1), "SET_MEM_TABLE: offset 0xfffffffffffff000"},
		{"overlap of guest addresses", vt.SetMemTable, table(2, 0, 0x2000, 0, 0, 0x1000, 0x1000, 0x10000, 0), fds(2), "SET_MEM_TABLE: guest addresses 0x1000+0x1000 overlap 0x0+0x2000"},
		{"overlap of user addresses", vt.SetMemTable, table(2, 0, 0x2000, 0, 0, 0x10000, 0x1000, 0x1fff, 0), fds(2), "SET_MEM_TABLE: user addresses 0x1fff+0x1000 overlap 0x0+0x2000"},
		{"without the ring that runs", vt.SetMemTable, table(1, 0, 0x1000, 0, 0), fds(1), "SET_MEM_TABLE: ring 0: descriptors at 0x7f0000100000+0x1000 is not in one region"},
	})
	t.Run("replaced while a ring runs", func(t *testing.T) {
		dev := newFake()
		s, m, _ := running(t, dev)
		s.play([]message{{"table", vt.SetMemTable, true, slices.Concat(vt.Payload(uint64(2)),
			vt.Payload(uint64(1<<32), uint64(0x80000), m.UVA, uint64(0)), vt.Payload(uint64(2<<32), uint64(0x80000), m.UVA+0x80000, uint64(0x80000))),
			[]int{m.FD(), m.FD()}, nil}})
		dev.want(t, "stop 0",
			"memory [0x100000000+0x80000 uva 0x7f0000100000 offset 0x0 file 0x100000, 0x200000000+0x80000 uva 0x7f0000180000 offset 0x80000 file 0x100000]",
			"start 0: num 256 base 0x7 desc 0x100000000 avail 0x100001000 used 0x100001240 enabled true log {false 0} files [kick call]")
	})
	t.Run("the highest addresses", func(t *testing.T) {
		s := connected(t, newFake())
		s.must(s.Set(vt.SetMemTable, table(1, top, 0x1000, top, top), m.FD()))
	})
}

// Memory comes and goes under a ring that runs, and leaves no descriptor behind.
func TestCase22HotPlug(t *testing.T) {
	dev := newFake()
	s, m, v := running(t, dev)
	dimm := memory(t, 1<<32, 1<<20)
	before := openFDs(t)
	for range 50 {
		s.must(s.AddMemReg(dimm))
		s.must(s.RemMemReg(dimm))
		s.must(s.SetMemTable(m, dimm))
		s.must(s.SetMemTable(m))
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	s.must(s.StopVring(v))
	if v.Base != 201*7 {
		t.Errorf("the ring stopped at %d, want %d", v.Base, 201*7)
	}
}

func TestCase23RingAddresses(t *testing.T) {
	const uva = 0x7f0000100000 // of the memory, 1 MiB
	addr := func(desc, used, avail uint64) []byte {
		return vt.Payload(uint32(0), uint32(0), desc, used, avail, uint64(0))
	}
	for name, row := range map[string]struct {
		payload []byte
		text    string // "" if the ring starts
	}{
		"descriptors unaligned":     {addr(uva+8, uva+0x2000, uva+0x1000), "descriptors at 0x7f0000100008, want a multiple of 16"},
		"available ring unaligned":  {addr(uva, uva+0x2000, uva+0x1001), "available ring at 0x7f0000101001, want a multiple of 2"},
		"used ring unaligned":       {addr(uva, uva+0x2002, uva+0x1000), "used ring at 0x7f0000102002, want a multiple of 4"},
		"just before the memory":    {addr(uva-16, uva+0x2000, uva+0x1000), "descriptors at 0x7f00000ffff0+0x1000 is not in one region"},
		"descriptors over the end":  {addr(uva+1<<20-16*255, uva+0x2000, uva+0x1000), "descriptors at"},
		"descriptors up to the end": {addr(uva+1<<20-16*256, uva+0x2000, uva+0x1000), ""},
		"available ring over it":    {addr(uva, uva+0x2000, uva+1<<20-516), "available ring at"},
		"available ring up to it":   {addr(uva, uva+0x2000, uva+1<<20-518), ""},
		"used ring over it":         {addr(uva, uva+1<<20-2052, uva+0x1000), "used ring at"},
		"used ring up to it":        {addr(uva, uva+1<<20-2056, uva+0x1000), ""},
		"in a gap":                  {addr(0x1000, uva+0x2000, uva+0x1000), "descriptors at 0x1000+0x1000 is not in one region"},
		"at the top":                {addr(1<<64-16, uva+0x2000, uva+0x1000), "descriptors at 0xfffffffffffffff0"},
		"guest addresses":           {addr(0x100000, 0x102000, 0x101000), "descriptors at 0x100000"},
		"all in one place":          {addr(uva, uva, uva), ""}, // for the queue to judge
	} {
		t.Run(name, func(t *testing.T) {
			s, _, v := running(t, newFake())
			s.must(s.Set(vt.SetVringAddr, row.payload))
			err := s.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD)
			if row.text == "" {
				s.must(err)
				return
			}
			if err != io.EOF {
				t.Errorf("got %v, want the socket closed", err)
			}
			s.wantMalformed("SET_VRING_KICK: ring 0: " + row.text)
		})
	}
	t.Run("across two regions", func(t *testing.T) {
		dev := newFake()
		s := connected(t, dev)
		m := memory(t, 0, 1<<20)
		v := vring(t, m, 0, 256)
		s.must(s.Set(vt.SetMemTable, slices.Concat(vt.Payload(uint64(2)),
			vt.Payload(m.GPA, uint64(0x800), m.UVA, uint64(0)), vt.Payload(m.GPA+0x800, uint64(0x8000), m.UVA+0x800, uint64(0x800))), m.FD(), m.FD()))
		if err := s.StartVring(v); err != io.EOF {
			t.Errorf("got %v, want the socket closed", err)
		}
		s.wantMalformed("SET_VRING_KICK: ring 0: descriptors")
	})
}

func TestCase24IOTLB(t *testing.T) {
	s := connected(t, newFake())
	if err := s.Set(vt.IOTLBMsg, make([]byte, 32)); !errors.Is(err, vt.ErrRefused) {
		t.Errorf("IOTLB: %v, want it refused", err)
	}
	if err := s.Set(vt.GetConfig, make([]byte, 12+8)); !errors.Is(err, vt.ErrRefused) {
		t.Errorf("configuration: %v, want it refused", err)
	}
	s.must(s.Request(vt.SetFeatures, 0, vt.Payload(uint64(1<<33)))) // VIRTIO_F_ACCESS_PLATFORM
	s.wantMalformed("SET_FEATURES: 0x200000000 has bits 0x200000000 that were not offered")
}
