package vfiouser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	vt "polder/device/vfiouser/vfiousertest"
)

// A fake is a device with two BARs, a ROM and INTx that remembers what was asked of it.
type fake struct {
	mu    sync.Mutex
	calls []string      // one line each
	irq   *os.File      // the eventfd of INTx, or nil
	bars  [2][128]byte  // BARs 0 and 1
	conf  [256]byte     // configuration space
	err   error         // see fail
	gone  chan error    // gets the cause of each Detach
	stall chan struct{} // if not nil, Detach waits until it is closed
}

func newFake() *fake { return &fake{gone: make(chan error, 100)} }

func (d *fake) record(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

// asked returns the calls so far and forgets them.
func (d *fake) asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *fake) Info() vfiouser.Info {
	info := vfiouser.Info{IRQs: [vfiouser.NumIRQs]uint32{1}}
	const rw = vfiouser.RegionReadable | vfiouser.RegionWritable
	info.Regions[0] = vfiouser.RegionInfo{Size: 128, Flags: rw}
	info.Regions[1] = vfiouser.RegionInfo{Size: 128, Flags: rw}
	info.Regions[vfiouser.RegionROM] = vfiouser.RegionInfo{Size: 4096, Flags: vfiouser.RegionReadable}
	info.Regions[vfiouser.RegionConfig] = vfiouser.RegionInfo{Size: 256, Flags: rw}
	return info
}

func (d *fake) Attach(peer string) error {
	d.record("attach %s", peer)
	return d.failure()
}

func (d *fake) Detach(cause error) {
	d.record("detach: %v", cause)
	d.setIRQ(nil)
	d.gone <- cause
	if d.stall != nil {
		<-d.stall
	}
}

// fail makes Attach, ReadRegion, WriteRegion, MapDMA and SetIRQs return err.
func (d *fake) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *fake) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// kick raises INTx.
func (d *fake) kick() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.irq.Write(binary.NativeEndian.AppendUint64(nil, 1))
	return err
}

func (d *fake) setIRQ(f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.irq != nil {
		d.irq.Close()
	}
	d.irq = f
}

// region returns what a region holds from off on.
func (d *fake) region(region int, off uint64) []byte {
	switch region {
	case 0, 1:
		return d.bars[region][off:]
	case vfiouser.RegionConfig:
		return d.conf[off:]
	}
	return make([]byte, 4096-off)
}

func (d *fake) ReadRegion(region int, off uint64, p []byte) error {
	copy(p, d.region(region, off))
	return d.failure()
}

func (d *fake) WriteRegion(region int, off uint64, p []byte) error {
	copy(d.region(region, off), p)
	return d.failure()
}

func (d *fake) MapDMA(r vfiouser.DMARegion) error {
	size := int64(-1)
	if r.File != nil {
		if info, err := r.File.Stat(); err == nil {
			size = info.Size()
		}
		r.File.Close()
	}
	d.record("map %#x+%#x offset %#x read %t write %t file %d", r.IOVA, r.Size, r.Offset, r.Read, r.Write, size)
	return d.failure()
}

func (d *fake) UnmapDMA(iova, size uint64) error {
	d.record("unmap %#x+%#x", iova, size)
	return nil
}

func (d *fake) SetIRQs(set vfiouser.IRQSet) error {
	d.record("irqs %d, %d+%d, action %#x, data %d %v, files %d",
		set.Index, set.Start, set.Count, set.Action, set.Data, set.Bools, len(set.Files))
	if set.Action == vfiouser.IRQTrigger {
		d.setIRQ(nil)
	}
	for _, f := range set.Files {
		d.setIRQ(f)
	}
	return d.failure()
}

func (d *fake) Reset() error {
	d.record("reset")
	return nil
}

// session is a client and the server it is connected to.
type session struct {
	*vt.Client
	t    testing.TB
	dev  *fake
	conn *net.UnixConn // until start
	log  bytes.Buffer  // written by the server until end returns
	done chan error
}

// prepare connects a client to a server that does not read yet.
func prepare(t testing.TB, dev *fake) *session {
	t.Helper()
	c, conn, err := vt.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{Client: c, t: t, dev: dev, conn: conn, done: make(chan error, 1)}
	return s
}

func (s *session) start(ctx context.Context) {
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	go func() {
		s.done <- vfiouser.ServeConn(ctx, s.conn, s.dev, log, "port7")
		close(s.done)
	}()
	s.t.Cleanup(func() {
		s.Close()
		<-s.done
	})
}

// connect serves dev to a client, until the test ends.
func connect(t testing.TB, dev *fake) *session {
	t.Helper()
	s := prepare(t, dev)
	s.start(t.Context())
	return s
}

// attached is connect with the handshake done and forgotten.
func attached(t testing.TB, dev *fake) *session {
	t.Helper()
	s := connect(t, dev)
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	dev.asked()
	return s
}

// wantClosed expects that the server closes the socket without another word, and returns what it logged.
func (s *session) wantClosed() (log string, err error) {
	s.t.Helper()
	if h, _, err := s.Reply(); err != io.EOF {
		s.t.Errorf("got %+v, %v, want the socket closed", h, err)
	}
	err = <-s.done
	return s.log.String(), err
}

func (d *fake) want(t *testing.T, calls ...string) {
	t.Helper()
	if got := d.asked(); !slices.Equal(got, calls) {
		t.Errorf("the device was asked\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(calls, "\n\t"))
	}
}

func memfd(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := vt.Memfd(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// fd returns the number of f's descriptor, open until the test ends.
func fd(t testing.TB, f *os.File) int {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := conn.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// openFDs counts the descriptors of this process.
func openFDs(t testing.TB) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

// message returns the bytes of a command with the number 9.
func message(command uint16, flags uint32, payload []byte) []byte {
	return append(vt.Header{ID: 9, Command: command, Size: uint32(16 + len(payload)), Flags: flags}.Append(nil), payload...)
}

var versionMessage = message(vt.Version, 0, append(vt.Payload(uint32(0)), vt.Capabilities+"\x00"...))

// TestSession compares a session with a golden one, byte for byte.
func TestSession(t *testing.T) {
	text, err := os.ReadFile("testdata/session.txt")
	if err != nil {
		t.Fatal(err)
	}
	s := connect(t, newFake())
	ram := memfd(t, 1<<20)
	for n, line := range strings.Split(string(text), "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		b, fds := parseGolden(t, rest)
		switch kind {
		case ">":
			if fds > 0 {
				err = s.Send(b, fd(t, ram))
			} else {
				err = s.Send(b)
			}
			if err != nil {
				t.Fatal(err)
			}
		case "<":
			h, payload, err := s.Reply()
			if got := append(h.Append(nil), payload...); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("line %d: got %v\n\t%x, want\n\t%x", n+1, err, got, b)
			}
		}
	}
	peer := fmt.Sprintf("process %d of user %d", os.Getpid(), os.Getuid())
	s.dev.want(t,
		"attach "+peer,
		"map 0x100000+0x20000000 offset 0x0 read true write true file 1048576",
		"map 0xe0000+0x20000 offset 0x0 read true write false file -1",
		"irqs 0, 0+1, action 0x20, data 4 [], files 1",
		"irqs 0, 0+1, action 0x10, data 1 [], files 0",
		"irqs 0, 0+0, action 0x20, data 1 [], files 0",
		"reset",
		"unmap 0x100000+0x20000000",
		"unmap 0x0+0x0",
	)
	s.CloseWrite()
	log, err := s.wantClosed()
	if err != nil {
		t.Errorf("serving ended with %v", err)
	}
	if log != "" { // what an orderly session means is the device's to say
		t.Errorf("logged\n%s", log)
	}
	if cause := <-s.dev.gone; cause != io.EOF {
		t.Errorf("detached because of %v, want %v", cause, io.EOF)
	}
}

// parseGolden reads bytes as they are written in golden files.
func parseGolden(t *testing.T, text string) (b []byte, fds int) {
	t.Helper()
	for text = strings.TrimSpace(text); text != "" && text[0] != '#'; text = strings.TrimSpace(text) {
		if quoted, err := strconv.QuotedPrefix(text); err == nil {
			plain, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatal(err)
			}
			b, text = append(b, plain...), text[len(quoted):]
			continue
		}
		word, rest, _ := strings.Cut(text, " ")
		text = rest
		if word == "+fd" {
			fds++
			continue
		}
		for ; len(word) > 1; word = word[2:] {
			v, err := strconv.ParseUint(word[:2], 16, 8)
			if err != nil {
				return nil, 0 // a comment
			}
			b = append(b, byte(v))
		}
	}
	return b, fds
}

// Each of these closes the connection, with one line that names the port, the message and the value, and without a
// descriptor left open.
func TestMalformedMessages(t *testing.T) {
	u16, u32, u64 := func(v uint16) any { return v }, func(v uint32) any { return v }, func(v uint64) any { return v }
	read := vt.Payload(u64(0), u32(0), u32(4))
	for _, test := range []struct {
		name    string
		first   bool // in place of VERSION, not after it
		fds     bool // sent along with the message
		message []byte
		log     string
	}{
		{"size below that of a header", false, true, vt.Header{ID: 9, Command: vt.RegionRead, Size: 15}.Append(nil), "REGION_READ message 9: size 15"},
		{"size 0", false, false, vt.Header{ID: 9, Command: vt.RegionRead}.Append(nil), "REGION_READ message 9: size 0"},
		{"oversized", false, true, vt.Header{ID: 9, Command: vt.RegionWrite, Size: 1<<20 + 33}.Append(nil), "REGION_WRITE message 9: size 1048609"},
		{"largest size", false, false, vt.Header{ID: 9, Command: 0xffff, Size: math.MaxUint32}.Append(nil), "command 65535 message 9: size 4294967295"},
		{"a reply", false, true, message(vt.RegionRead, vt.FlagReply, read), "REGION_READ message 9: a reply"},
		{"an error", false, false, message(vt.RegionRead, vt.FlagError, read), "flags 0x20"},
		{"an unknown type", false, false, message(vt.RegionRead, 2, read), "flags 0x2"},
		{"unknown flags", false, false, message(vt.RegionRead, 0x40, read), "flags 0x40"},
		{"not VERSION first", true, true, message(vt.RegionRead, 0, read), "VERSION is the first"},
		{"VERSION twice", false, false, versionMessage, "VERSION is the first"},
		{"VERSION without a version", true, false, message(vt.Version, 0, []byte{0, 0}), "payload of 2 bytes"},
		{"VERSION of another protocol", true, false, message(vt.Version, 0, vt.Payload(u16(1), u16(0))), "major version 1"},
		{"VERSION without NUL", true, false, message(vt.Version, 0, append(vt.Payload(u32(0)), '{', '}')), "end with 0x7d"},
		{"DMA_MAP short", false, true, message(vt.DMAMap, 0, make([]byte, 31)), "payload of 31 bytes, want 32"},
		{"DMA_MAP long", false, false, message(vt.DMAMap, 0, make([]byte, 33)), "payload of 33 bytes, want 32"},
		{"DMA_MAP with three descriptors", false, true, message(vt.DMAMap, 0, vt.Payload(u32(32), u32(3), u64(0), u64(0), u64(4096))), "3 descriptors"},
		{"DMA_UNMAP short", false, false, message(vt.DMAUnmap, 0, nil), "payload of 0 bytes, want 24"},
		{"GET_INFO long", false, false, message(vt.GetInfo, 0, make([]byte, 17)), "payload of 17 bytes, want 16"},
		{"GET_REGION_INFO short", false, false, message(vt.GetRegionInfo, 0, make([]byte, 16)), "payload of 16 bytes, want 32"},
		{"GET_IRQ_INFO short", false, false, message(vt.GetIRQInfo, 0, make([]byte, 15)), "payload of 15 bytes, want 16"},
		{"VERSION with descriptors", true, true, versionMessage, "VERSION message 9: 3 descriptors"},
		{"SET_IRQS short", false, true, message(vt.SetIRQs, 0, make([]byte, 19)), "payload of 19 bytes, want at least 20"},
		{"REGION_READ with data", false, false, message(vt.RegionRead, 0, append(read, 1, 2, 3, 4)), "payload of 20 bytes, want 16"},
		{"REGION_WRITE short", false, false, message(vt.RegionWrite, 0, make([]byte, 15)), "payload of 15 bytes, want at least 16"},
		{"REGION_WRITE with too little data", false, false, message(vt.RegionWrite, 0, append(read, 1, 2, 3)), "count 4, but 3 bytes"},
		{"REGION_WRITE with too much data", false, false, message(vt.RegionWrite, 0, append(read, 1, 2, 3, 4, 5)), "count 4, but 5 bytes"},
		{"REGION_WRITE, posted, with the greatest count", false, false, message(vt.RegionWrite, vt.FlagNoReply, vt.Payload(u64(0), u32(0), u32(math.MaxUint32))), "count 4294967295, but 0 bytes"},
		{"DEVICE_RESET with a payload", false, false, message(vt.DeviceReset, 0, []byte{1}), "payload of 1 bytes, want 0"},
		{"REGION_WRITE_MULTI short", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, make([]byte, 7)), "payload of 7 bytes, want at least 8"},
		{"REGION_WRITE_MULTI with a write missing", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, vt.Payload(u64(1))), "1 writes in 0 bytes"},
		{"REGION_WRITE_MULTI with a write too many", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, append(vt.Payload(u64(0)), make([]byte, 24)...)), "0 writes in 24 bytes"},
		{"REGION_WRITE_MULTI with a number that overflows", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, append(vt.Payload(uint64(1<<61+1)), make([]byte, 24)...)), "2305843009213693953 writes"},
		{"REGION_WRITE_MULTI of 201 writes", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, append(vt.Payload(u64(201)), make([]byte, 201*24)...)), "201 writes"},
		{"REGION_WRITE_MULTI of 9 bytes", false, false, message(vt.RegionWriteMulti, vt.FlagNoReply, vt.Payload(u64(1), u64(0), u32(1), u32(9), u64(0))), "count 9"},
		{"unknown command with descriptors", false, true, message(77, 0, nil), "command 77 message 9: 3 descriptors, want none"},
		{"descriptors nobody asked for", false, true, message(vt.RegionRead, 0, read), "REGION_READ message 9: 3 descriptors, want none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ram := memfd(t, 4096)
			var fds []int
			if test.fds {
				fds = slices.Repeat([]int{fd(t, ram)}, 3)
			}
			before := openFDs(t)
			s := connect(t, newFake())
			if !test.first {
				if err := s.Handshake(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Send(test.message, fds...); err != nil {
				t.Fatal(err)
			}
			log, err := s.wantClosed()
			if !errors.Is(err, vfiouser.ErrProtocol) {
				t.Errorf("ended with %v, want %v", err, vfiouser.ErrProtocol)
			}
			if strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, test.log) || !strings.Contains(log, "port=port7") {
				t.Errorf("logged\n%swant one warning with port7 and %q", log, test.log)
			}
			select {
			case cause := <-s.dev.gone:
				if test.first || !errors.Is(cause, vfiouser.ErrProtocol) {
					t.Errorf("detached because of %v", cause)
				}
			default:
				if !test.first {
					t.Error("not detached")
				}
			}
			s.Close()
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func TestTooManyDescriptors(t *testing.T) {
	ram := memfd(t, 4096)
	for n, ok := range map[int]bool{8: true, 9: false, 253: false} {
		before := openFDs(t)
		s := attached(t, newFake())
		fds := slices.Repeat([]int{fd(t, ram)}, n)
		// Eight eventfds for one interrupt are refused, but are not too many.
		if err := s.Send(message(vt.SetIRQs, 0, vt.Payload(uint32(20), uint32(0x24), uint32(0), uint32(0), uint32(1))), fds...); err != nil {
			t.Fatal(err)
		}
		h, _, err := s.Reply()
		if ok && (err != nil || syscall.Errno(h.Errno) != unix.EINVAL) {
			t.Errorf("%d descriptors: got %+v, %v, want EINVAL", n, h, err)
		}
		if !ok && err != io.EOF {
			t.Errorf("%d descriptors: got %+v, %v, want the socket closed", n, h, err)
		}
		s.Close()
		if err := <-s.done; !ok && (err == nil || !strings.Contains(err.Error(), "SET_IRQS message 9: more than 8 descriptors")) {
			t.Errorf("%d descriptors: ended with %v", n, err)
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors: %d open, %d before", n, after, before)
		}
	}
}

// Each of these is refused with an errno, does not reach the device, and the connection goes on.
func TestRefusedRequests(t *testing.T) {
	dmaMap := func(flags uint32, offset, iova, size uint64) []byte {
		return vt.Payload(uint32(32), flags, offset, iova, size)
	}
	dmaUnmap := func(flags uint32, iova, size uint64) []byte { return vt.Payload(uint32(24), flags, iova, size) }
	regionInfo := func(argsz, index uint32) []byte {
		return vt.Payload(argsz, uint32(0), index, uint32(0), uint64(0), uint64(0))
	}
	irqInfo := func(argsz, index uint32) []byte { return vt.Payload(argsz, uint32(0), index, uint32(0)) }
	setIRQs := func(flags, index, start, count uint32, bools ...byte) []byte {
		return append(vt.Payload(uint32(20), flags, index, start, count), bools...)
	}
	access := func(region uint32, off uint64, count uint32) []byte { return vt.Payload(off, region, count) }
	write := func(region uint32, off uint64, count uint32) []byte {
		return append(access(region, off, count), make([]byte, count)...)
	}
	for _, test := range []struct {
		name    string
		command uint16
		payload []byte
		fds     int
		want    syscall.Errno
	}{
		{"DMA_MAP of nothing", vt.DMAMap, dmaMap(3, 0, 0x1000, 0), 1, unix.EINVAL},
		{"DMA_MAP that wraps around", vt.DMAMap, dmaMap(3, 0, math.MaxUint64-0xfff, 0x2000), 1, unix.EINVAL},
		{"DMA_MAP of the greatest size", vt.DMAMap, dmaMap(3, 0, 0x1000, math.MaxUint64), 1, unix.EINVAL},
		{"DMA_MAP with an offset that wraps around", vt.DMAMap, dmaMap(3, math.MaxUint64, 0, 0x1000), 1, unix.EINVAL},
		{"DMA_MAP with unknown flags", vt.DMAMap, dmaMap(7, 0, 0, 0x1000), 1, unix.EINVAL},
		{"DMA_UNMAP of nothing", vt.DMAUnmap, dmaUnmap(0, 0, 0), 0, unix.EINVAL},
		{"DMA_UNMAP that wraps around", vt.DMAUnmap, dmaUnmap(0, 0x1000, math.MaxUint64), 0, unix.EINVAL},
		{"DMA_UNMAP of everything in a range", vt.DMAUnmap, dmaUnmap(2, 0, 0x1000), 0, unix.EINVAL},
		{"DMA_UNMAP with a dirty bitmap", vt.DMAUnmap, dmaUnmap(1, 0, 0x1000), 0, unix.EINVAL},
		{"GET_INFO with little room", vt.GetInfo, vt.Payload(uint32(15), uint32(0), uint32(0), uint32(0)), 0, unix.EINVAL},
		{"GET_REGION_INFO with little room", vt.GetRegionInfo, regionInfo(31, 0), 0, unix.EINVAL},
		{"GET_REGION_INFO of no region", vt.GetRegionInfo, regionInfo(32, 9), 0, unix.EINVAL},
		{"GET_IRQ_INFO with little room", vt.GetIRQInfo, irqInfo(15, 0), 0, unix.EINVAL},
		{"GET_IRQ_INFO of no index", vt.GetIRQInfo, irqInfo(16, 5), 0, unix.EINVAL},
		{"GET_IRQ_INFO of the error interrupt", vt.GetIRQInfo, irqInfo(16, 3), 0, unix.EINVAL},
		{"SET_IRQS of no index", vt.SetIRQs, setIRQs(0x21, 5, 0, 0), 0, unix.EINVAL},
		{"SET_IRQS of more interrupts than there are", vt.SetIRQs, setIRQs(0x24, 0, 0, 2), 2, unix.EINVAL},
		{"SET_IRQS of a range that wraps around", vt.SetIRQs, setIRQs(0x24, 0, math.MaxUint32, 2), 2, unix.EINVAL},
		{"SET_IRQS of an index without interrupts", vt.SetIRQs, setIRQs(0x24, 1, 0, 1), 1, unix.EINVAL},
		{"SET_IRQS without action", vt.SetIRQs, setIRQs(0x01, 0, 0, 1), 0, unix.EINVAL},
		{"SET_IRQS with two actions", vt.SetIRQs, setIRQs(0x31, 0, 0, 1), 0, unix.EINVAL},
		{"SET_IRQS without kind of data", vt.SetIRQs, setIRQs(0x20, 0, 0, 1), 0, unix.EINVAL},
		{"SET_IRQS with two kinds of data", vt.SetIRQs, setIRQs(0x25, 0, 0, 1), 1, unix.EINVAL},
		{"SET_IRQS with unknown flags", vt.SetIRQs, setIRQs(0x61, 0, 0, 1), 0, unix.EINVAL},
		{"SET_IRQS masks none", vt.SetIRQs, setIRQs(0x09, 0, 0, 0), 0, unix.EINVAL},
		{"SET_IRQS with descriptors not announced", vt.SetIRQs, setIRQs(0x21, 0, 0, 1), 1, unix.EINVAL},
		{"SET_IRQS with too many descriptors", vt.SetIRQs, setIRQs(0x24, 0, 0, 1), 2, unix.EINVAL},
		{"SET_IRQS with bools missing", vt.SetIRQs, setIRQs(0x22, 0, 0, 1), 0, unix.EINVAL},
		{"SET_IRQS with bools too many", vt.SetIRQs, setIRQs(0x22, 0, 0, 1, 1, 1), 0, unix.EINVAL},
		{"SET_IRQS with bools not announced", vt.SetIRQs, setIRQs(0x21, 0, 0, 1, 1), 0, unix.EINVAL},
		{"REGION_READ of no region", vt.RegionRead, access(9, 0, 4), 0, unix.EINVAL},
		{"REGION_READ of the greatest region", vt.RegionRead, access(math.MaxUint32, 0, 4), 0, unix.EINVAL},
		{"REGION_READ of an absent region", vt.RegionRead, access(2, 0, 4), 0, unix.EINVAL},
		{"REGION_READ over the end", vt.RegionRead, access(0, 125, 4), 0, unix.EINVAL},
		{"REGION_READ behind the end", vt.RegionRead, access(0, 129, 0), 0, unix.EINVAL},
		{"REGION_READ that wraps around", vt.RegionRead, access(0, math.MaxUint64, 4), 0, unix.EINVAL},
		{"REGION_READ of the greatest count", vt.RegionRead, access(0, 0, math.MaxUint32), 0, unix.EINVAL},
		{"REGION_WRITE to the ROM", vt.RegionWrite, write(vfiouser.RegionROM, 0, 4), 0, unix.EINVAL},
		{"REGION_WRITE over the end", vt.RegionWrite, write(1, 125, 4), 0, unix.EINVAL},
		{"REGION_WRITE of the most there can be", vt.RegionWrite, write(1, 0, 1<<20), 0, unix.EINVAL},
		{"REGION_WRITE_MULTI to an absent region", vt.RegionWriteMulti, append(vt.Payload(uint64(1)), write(2, 0, 8)...), 0, unix.EINVAL},
		{"DMA_READ, which is not for clients", vt.DMARead, vt.Payload(uint64(0), uint64(8)), 0, unix.ENOSYS},
		{"DMA_WRITE, which is not for clients", vt.DMAWrite, vt.Payload(uint64(0), uint64(0)), 0, unix.ENOSYS},
		{"command 0", 0, nil, 0, unix.ENOSYS},
		{"command 14", 14, nil, 0, unix.ENOSYS},
		{"command 18", 18, make([]byte, 100), 0, unix.ENOSYS},
		{"command 65535", math.MaxUint16, nil, 0, unix.ENOSYS},
	} {
		t.Run(test.name, func(t *testing.T) {
			dev := newFake()
			s := attached(t, dev)
			ram := memfd(t, 4096)
			before := openFDs(t)
			_, err := s.Call(test.command, test.payload, slices.Repeat([]int{fd(t, ram)}, test.fds)...)
			if err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if err := s.RegionRead(0, 0, make([]byte, 4)); err != nil {
				t.Errorf("a read after it: %v", err)
			}
			dev.want(t)
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func TestSetIRQs(t *testing.T) {
	for _, test := range []struct {
		name    string
		flags   uint32
		count   uint32
		bools   []byte
		fds     int
		arrives string
	}{
		{"eventfd for INTx", 0x24, 1, nil, 1, "irqs 0, 0+1, action 0x20, data 4 [], files 1"},
		{"eventfd taken away", 0x24, 1, nil, 0, "irqs 0, 0+1, action 0x20, data 4 [], files 0"},
		{"all taken away", 0x21, 0, nil, 0, "irqs 0, 0+0, action 0x20, data 1 [], files 0"},
		{"trigger, as a test of the wiring", 0x21, 1, nil, 0, "irqs 0, 0+1, action 0x20, data 1 [], files 0"},
		{"trigger by bool", 0x22, 1, []byte{1}, 0, "irqs 0, 0+1, action 0x20, data 2 [1], files 0"},
		{"mask", 0x09, 1, nil, 0, "irqs 0, 0+1, action 0x8, data 1 [], files 0"},
		{"unmask", 0x11, 1, nil, 0, "irqs 0, 0+1, action 0x10, data 1 [], files 0"},
		{"unmask by bool", 0x12, 1, []byte{0}, 0, "irqs 0, 0+1, action 0x10, data 2 [0], files 0"},
		{"eventfd to unmask, as KVM does", 0x14, 1, nil, 1, "irqs 0, 0+1, action 0x10, data 4 [], files 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := attached(t, newFake())
			payload := append(vt.Payload(uint32(20+len(test.bools)), test.flags, uint32(0), uint32(0), test.count), test.bools...)
			_, err := s.Call(vt.SetIRQs, payload, slices.Repeat([]int{fd(t, memfd(t, 1))}, test.fds)...)
			if err != nil {
				t.Error(err)
			}
			s.dev.want(t, test.arrives)
		})
	}
}

// An errno of the device is the answer; any other error ends the connection, as a fault in guest memory must.
func TestErrorsOfTheDevice(t *testing.T) {
	read := vt.Payload(uint64(0), uint32(0), uint32(4))
	for _, test := range []struct {
		name    string
		command uint16
		payload []byte
	}{
		{"REGION_READ", vt.RegionRead, read},
		{"REGION_WRITE", vt.RegionWrite, append(read, 0, 0, 0, 0)},
		{"REGION_WRITE_MULTI", vt.RegionWriteMulti, append(vt.Payload(uint64(1)), append(read, make([]byte, 8)...)...)},
		{"DMA_MAP", vt.DMAMap, vt.Payload(uint32(32), uint32(1), uint64(0), uint64(0), uint64(4096))},
		{"SET_IRQS", vt.SetIRQs, vt.Payload(uint32(20), uint32(0x11), uint32(0), uint32(0), uint32(1))},
	} {
		t.Run(test.name, func(t *testing.T) {
			dev := newFake()
			s := attached(t, dev)
			dev.fail(fmt.Errorf("wrapped: %w", unix.ENOSPC))
			if _, err := s.Call(test.command, test.payload); err != unix.ENOSPC {
				t.Errorf("got %v, want %v", err, unix.ENOSPC)
			}
			fault := errors.New("memory fault")
			dev.fail(fault)
			if _, err := s.Call(test.command, test.payload); err != io.EOF {
				t.Errorf("got %v, want the socket closed", err)
			}
			if cause := <-dev.gone; !errors.Is(cause, fault) {
				t.Errorf("detached because of %v, want %v", cause, fault)
			}
			if err := <-s.done; !errors.Is(err, fault) || !strings.Contains(err.Error(), test.name+" message ") {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestAttachRefused(t *testing.T) {
	dev := newFake()
	dev.fail(unix.EBUSY)
	s := connect(t, dev)
	if err := s.Handshake(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the socket closed", err)
	}
	if err := <-s.done; err == nil {
		t.Error("serving ended without error")
	}
	if len(dev.gone) != 0 {
		t.Error("detached without having been attached")
	}
}

func TestEOFDuringMessage(t *testing.T) {
	whole := message(vt.RegionWrite, 0, append(vt.Payload(uint64(0), uint32(0), uint32(4)), 1, 2, 3, 4))
	ram := memfd(t, 4096)
	for n := 1; n < len(whole); n++ {
		before := openFDs(t)
		s := attached(t, newFake())
		if err := s.Send(whole[:n], fd(t, ram)); err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		if _, err := s.wantClosed(); !errors.Is(err, vfiouser.ErrProtocol) || !strings.Contains(err.Error(), "unexpected EOF") {
			t.Errorf("after %d bytes: ended with %v", n, err)
		}
		s.Close()
		if after := openFDs(t); after != before {
			t.Errorf("after %d bytes: %d descriptors open, %d before", n, after, before)
		}
	}
}

// A client that sends but never reads holds up nobody but itself, and can be got rid of.
func TestClientThatDoesNotRead(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dev := newFake()
	s := prepare(t, dev)
	s.start(ctx)
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	// The send fills the socket in both directions, then waits until the server closes it.
	sent := make(chan error)
	go func() {
		rom := message(vt.RegionRead, 0, vt.Payload(uint64(0), uint32(vfiouser.RegionROM), uint32(4096)))
		var err error
		for err == nil {
			err = s.Send(rom)
		}
		sent <- err
	}()
	cancel()
	if err := <-sent; !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("sending ended with %v", err)
	}
	if cause := <-dev.gone; cause != net.ErrClosed {
		t.Errorf("detached because of %v, want %v", cause, net.ErrClosed)
	}
}

func TestRegisterAccessDoesNotAllocate(t *testing.T) {
	s := attached(t, newFake())
	p := make([]byte, 4)
	if n := testing.AllocsPerRun(1000, func() {
		if s.RegionRead(0, 0x28, p) != nil || s.RegionWrite(0, 0x28, p) != nil || s.RegionPost(1, 0x28, p) != nil {
			t.Fatal("access failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkRegionRead(b *testing.B) {
	s := attached(b, newFake())
	var p [4]byte
	b.ReportAllocs()
	for b.Loop() {
		if err := s.RegionRead(0, 0x28, p[:]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRegionPost(b *testing.B) {
	s := attached(b, newFake())
	var p [4]byte
	b.ReportAllocs()
	for b.Loop() {
		if err := s.RegionPost(1, 0x28, p[:]); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.RegionRead(1, 0x28, p[:]); err != nil { // all of them have been served
		b.Fatal(err)
	}
}
