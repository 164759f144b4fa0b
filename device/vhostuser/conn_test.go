package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device/vhostuser"
	vt "polder/device/vhostuser/vhostusertest"
)

// offered is what a fake offers: VERSION_1, MRG_RXBUF, packed rings.
const offered = vt.FeatureVersion1 | 1<<15 | vt.FeaturePacked

// A fake is a device with two queue pairs that remembers what was asked of it.
type fake struct {
	protocol uint64
	gone     chan error // gets the cause of each Detach

	mu     sync.Mutex
	calls  []string // one line each
	err    error    // see fail
	hangUp func(error)
	rings  map[int]vhostuser.VringConfig // that run
}

func newFake() *fake {
	return &fake{protocol: vhostuser.ProtocolAll, gone: make(chan error, 1000), rings: map[int]vhostuser.VringConfig{}}
}

func (d *fake) record(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
	return d.err
}

// asked returns the calls so far and forgets them.
func (d *fake) asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

// want expects calls, and forgets them.
func (d *fake) want(t testing.TB, calls ...string) {
	t.Helper()
	if got := d.asked(); !slices.Equal(got, calls) {
		t.Errorf("the device was asked\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(calls, "\n\t"))
	}
}

// fail makes every method return err.
func (d *fake) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *fake) Features() uint64         { return offered }
func (d *fake) ProtocolFeatures() uint64 { return d.protocol }
func (d *fake) QueuePairs() int          { return 2 }

func (d *fake) Attach(peer string, hangUp func(error)) error {
	d.mu.Lock()
	d.hangUp = hangUp
	d.mu.Unlock()
	return d.record("attach %s", peer)
}

func (d *fake) Detach(cause error) {
	d.record("detach: %v", cause)
	for i, v := range d.rings {
		closeFiles(v.Kick, v.Call, v.Err)
		delete(d.rings, i)
	}
	d.gone <- cause
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil {
			panic(err) // somebody else closed it
		}
	}
}

// describe tells which of some files are there.
func describe(files ...*os.File) string {
	var s []string
	for _, f := range files {
		if f != nil {
			s = append(s, f.Name())
		}
	}
	return strings.Join(s, " ")
}

func (d *fake) SetFeatures(f uint64) error {
	return d.record("features %#x", f)
}

func (d *fake) SetMemory(regions []vhostuser.MemRegion) error {
	if len(d.rings) > 0 {
		panic("memory changes under a ring that runs")
	}
	var s []string
	for _, r := range regions {
		size := int64(-1)
		if info, err := r.File.Stat(); err == nil {
			size = info.Size()
		}
		s = append(s, fmt.Sprintf("%#x+%#x uva %#x offset %#x file %#x", r.GPA, r.Size, r.UVA, r.Offset, size))
	}
	return d.record("memory [%s]", strings.Join(s, ", "))
}

func (d *fake) StartVring(v vhostuser.VringConfig) error {
	if _, ok := d.rings[v.Index]; ok {
		panic("a ring was started twice")
	}
	d.rings[v.Index] = v
	return d.record("start %d: num %d base %#x desc %#x avail %#x used %#x enabled %t log %v files [%s]",
		v.Index, v.Num, v.Base, v.Desc, v.Avail, v.Used, v.Enabled, v.UsedLog, describe(v.Kick, v.Call, v.Err))
}

// StopVring says that the ring has come 7 entries far.
func (d *fake) StopVring(i int) (uint32, error) {
	v, ok := d.rings[i]
	if !ok {
		panic("a ring was stopped that does not run")
	}
	closeFiles(v.Kick, v.Call, v.Err)
	delete(d.rings, i)
	return v.Base + 7, d.record("stop %d", i)
}

func (d *fake) SetVringEnable(i int, on bool) error { return d.record("enable %d %t", i, on) }

func (d *fake) SetVringCall(i int, call *os.File) error {
	v := d.rings[i]
	closeFiles(v.Call)
	v.Call = call
	d.rings[i] = v
	return d.record("call %d [%s]", i, describe(call))
}

func (d *fake) SetVringLog(i int, used vhostuser.UsedLog) error {
	return d.record("ring log %d %v", i, used)
}

func (d *fake) SetLog(l *vhostuser.Log) error {
	if l == nil {
		return d.record("log off")
	}
	info, err := l.File.Stat()
	if err != nil {
		return err
	}
	return d.record("log %#x+%#x file %#x", l.Offset, l.Size, info.Size())
}

func (d *fake) SetMTU(mtu uint16) error    { return d.record("mtu %d", mtu) }
func (d *fake) SendRARP(mac [6]byte) error { return d.record("rarp % x", mac) }
func (d *fake) Reset() error               { return d.record("reset") }

// session is a front end and the back end it is connected to.
type session struct {
	*vt.Client
	t    testing.TB
	dev  *fake
	log  bytes.Buffer // written by the back end until done
	done chan error
}

// connect serves dev to a front end, until the test ends.
func connect(t testing.TB, dev *fake) *session {
	t.Helper()
	c, conn, err := vt.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{Client: c, t: t, dev: dev, done: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	go func() {
		s.done <- vhostuser.ServeConn(context.Background(), conn, dev, log, "port7")
		close(s.done)
	}()
	t.Cleanup(func() {
		s.Close()
		<-s.done
	})
	return s
}

// connected is connect with a session begun, all features acknowledged but packed rings, and that forgotten.
func connected(t testing.TB, dev *fake) *session {
	t.Helper()
	s := connect(t, dev)
	s.must(s.Connect(vhostuser.ProtocolAll))
	s.must(s.SetFeatures(s.Features &^ (vt.FeaturePacked | vt.FeatureLogAll)))
	dev.asked()
	return s
}

// must ends the test if the front end met an error.
func (s *session) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v\nlog: %s", err, &s.log)
	}
}

// memory makes guest memory that lives as long as the test.
func memory(t testing.TB, gpa uint64, size int) *vt.Memory {
	t.Helper()
	m, err := vt.NewMemory(gpa, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// vring lays a ring out at the start of m, or behind that.
func vring(t testing.TB, m *vt.Memory, index, num int) *vt.Vring {
	t.Helper()
	v, _, err := vt.NewVring(m, index, num, m.GPA+uint64(index)*0x4000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// running is connected with 1 MiB of memory and ring 0 running in it, enabled.
func running(t testing.TB, dev *fake) (*session, *vt.Memory, *vt.Vring) {
	t.Helper()
	s := connected(t, dev)
	m := memory(t, 0x100000, 1<<20)
	v := vring(t, m, 0, 256)
	s.must(s.EnableVring(0, true))
	s.must(s.SetMemTable(m))
	s.must(s.StartVring(v))
	dev.asked()
	return s, m, v
}

// wantClosed expects that the back end closes the socket because of a message that is malformed, or for another
// reason that contains text, without another word but one line in the log.
func (s *session) wantClosed(text string) {
	s.t.Helper()
	if h, b, err := s.Reply(); err != io.EOF {
		s.t.Errorf("got %+v % x, %v, want the socket closed", h, b, err)
	}
	cause := <-s.done
	if cause == nil || !strings.Contains(cause.Error(), text) {
		s.t.Errorf("ended with %v, want %q", cause, text)
	}
	warnings := 0
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "level=WARN") {
			warnings++
			if !strings.Contains(line, "port=port7") {
				s.t.Errorf("no port in %q", line)
			}
		}
	}
	if warnings != 1 {
		s.t.Errorf("want one warning in the log:\n%s", &s.log)
	}
}

// wantMalformed is wantClosed for a malformed message.
func (s *session) wantMalformed(text string) {
	s.t.Helper()
	s.wantClosed("vhost-user protocol error: " + text)
}

func openFDs(t testing.TB) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

// eventFD returns an eventfd that lives as long as the test.
func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// message is one step of a sequence.
type message struct {
	name    string
	request uint32
	ack     bool // NEED_REPLY
	payload []byte
	fds     []int
	reply   []byte // nil: none, or 0 if ack
}

// play sends a sequence message by message and expects its replies.
func (s *session) play(sequence []message) {
	s.t.Helper()
	for _, m := range sequence {
		flags := uint32(0)
		want := m.reply
		if m.ack {
			flags = vt.FlagNeedReply
			if want == nil {
				want = vt.Payload(uint64(0))
			}
		}
		if err := s.Request(m.request, flags, m.payload, m.fds...); err != nil {
			s.t.Fatalf("%s: %v", m.name, err)
		}
		if want == nil {
			continue
		}
		h, b, err := s.Reply()
		if err != nil || h.Request != m.request || h.Flags != vt.FlagVersion|vt.FlagReply || !bytes.Equal(b, want) {
			s.t.Fatalf("%s: got %+v % x, %v, want % x\nlog: %s", m.name, h, b, err, want, &s.log)
		}
	}
}

// barrier waits until all messages so far were acted on.
func (s *session) barrier() {
	s.t.Helper()
	_, err := s.GetU64(vt.GetFeatures)
	s.must(err)
}

func ring(index int, num uint32) []byte { return vt.Payload(uint32(index), num) }

const (
	all     = uint64(offered | vt.FeatureProtocol | vt.FeatureLogAll)
	acked   = uint64(vt.FeatureVersion1 | 1<<15 | vt.FeatureProtocol)
	protoQ  = uint64(vhostuser.ProtocolAll) // QEMU 11.1 acknowledges all of it
	guestF  = "features 0x100008000"
	peerFmt = "attach process %d of user %d"
)

func attachLine() string { return fmt.Sprintf(peerFmt, os.Getpid(), os.Getuid()) }

// What QEMU 11.1 sends from the connection to the end of a migration.
func TestSequenceQEMU(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	m := memory(t, 0, 1<<20)
	v0, v1 := vring(t, m, 0, 256), vring(t, m, 1, 256)
	bell := eventFD(t)
	fds := []int{bell}

	s.play([]message{
		{"features", vt.GetFeatures, false, nil, nil, vt.Payload(all)},
		{"protocol features", vt.GetProtocolFeatures, false, nil, nil, vt.Payload(protoQ)},
		{"protocol features", vt.SetProtocolFeatures, false, vt.Payload(protoQ), nil, nil},
		{"queues", vt.GetQueueNum, false, nil, nil, vt.Payload(uint64(2))},
		{"slots", vt.GetMaxMemSlots, false, nil, nil, vt.Payload(uint64(509))},
		{"channel", vt.SetBackendReqFD, true, nil, fds, nil},
		{"owner", vt.SetOwner, false, nil, nil, nil},
		{"features", vt.GetFeatures, false, nil, nil, vt.Payload(all)},
		{"call 0", vt.SetVringCall, true, vt.Payload(uint64(0)), fds, nil},
		{"err 0", vt.SetVringErr, true, vt.Payload(uint64(0)), fds, nil},
		{"call 1", vt.SetVringCall, true, vt.Payload(uint64(1)), fds, nil},
		{"err 1", vt.SetVringErr, true, vt.Payload(uint64(1)), fds, nil},
	})
	dev.want(t, attachLine())

	reset := []message{
		{"reset", vt.ResetDevice, true, nil, nil, nil},
		{"enable 0", vt.SetVringEnable, true, ring(0, 1), nil, nil},
		{"enable 1", vt.SetVringEnable, true, ring(1, 1), nil, nil},
	}
	s.play(append(reset, reset...))
	dev.want(t, "reset", "reset")

	driverOK := func(base uint32, memory ...message) []message {
		seq := []message{
			{"features", vt.SetFeatures, false, vt.Payload(acked), nil, nil},
			{"status", vt.GetStatus, false, nil, nil, vt.Payload(uint64(0))},
			{"status", vt.SetStatus, false, vt.Payload(uint64(8)), nil, nil},
		}
		seq = append(seq, memory...)
		for i, v := range []*vt.Vring{v0, v1} {
			seq = append(seq,
				message{"num", vt.SetVringNum, false, ring(i, 256), nil, nil},
				message{"base", vt.SetVringBase, false, ring(i, base), nil, nil},
				message{"addr", vt.SetVringAddr, false, v.Addr(0, 0), nil, nil},
				message{"kick", vt.SetVringKick, true, vt.Payload(uint64(i)), []int{v.KickFD}, nil},
				message{"call", vt.SetVringCall, true, vt.Payload(uint64(i)), []int{v.CallFD}, nil})
		}
		return append(seq,
			message{"status", vt.GetStatus, false, nil, nil, vt.Payload(uint64(8))},
			message{"status", vt.SetStatus, false, vt.Payload(uint64(0xf)), nil, nil})
	}
	s.play(driverOK(0, message{"memory", vt.AddMemReg, true, append(vt.Payload(uint64(0)), m.Region()...), []int{m.FD()}, nil}))
	s.barrier()
	started := func(base int) []string {
		return []string{
			fmt.Sprintf("start 0: num 256 base %#x desc 0x0 avail 0x1000 used 0x1240 enabled true log {false 0} files [kick call err]", base), "call 0 [call]",
			fmt.Sprintf("start 1: num 256 base %#x desc 0x4000 avail 0x5000 used 0x5240 enabled true log {false 0} files [kick call err]", base), "call 1 [call]",
		}
	}
	dev.want(t, append([]string{guestF, "memory [0x0+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]"}, started(0)...)...)

	stop := []message{
		{"base 0", vt.GetVringBase, false, ring(0, 0), nil, vt.Payload(uint32(0), uint32(7))},
		{"base 1", vt.GetVringBase, false, ring(1, 0), nil, vt.Payload(uint32(1), uint32(7))},
		{"status", vt.SetStatus, false, vt.Payload(uint64(0)), nil, nil},
	}
	s.play(append(stop, reset...))
	dev.want(t, "stop 0", "stop 1", "reset")

	// The driver comes back. QEMU does not pass again the memory that has not changed.
	s.play(driverOK(0))
	s.barrier()
	dev.want(t, append([]string{guestF}, started(0)...)...)

	// Migration: the log begins and ends while the rings run, then they stop for good.
	logFile := memory(t, 0, 4096)
	s.play([]message{
		{"log", vt.SetLogBase, false, vt.Payload(uint64(4096), uint64(0)), []int{logFile.FD()}, vt.Payload(uint64(0))},
		{"features", vt.SetFeatures, false, vt.Payload(acked | vt.FeatureLogAll), nil, nil},
		{"addr 0", vt.SetVringAddr, false, v0.Addr(1, v0.Used), nil, nil},
		{"addr 1", vt.SetVringAddr, false, v1.Addr(1, v1.Used), nil, nil},
	})
	s.barrier()
	dev.want(t, "log 0x0+0x1000 file 0x1000", "ring log 0 {true 4672}", "ring log 1 {true 21056}")
	s.play([]message{
		{"features", vt.SetFeatures, false, vt.Payload(acked), nil, nil},
		{"addr 0", vt.SetVringAddr, false, v0.Addr(0, v0.Used), nil, nil},
		{"addr 1", vt.SetVringAddr, false, v1.Addr(0, v1.Used), nil, nil},
	})
	s.play(stop)
	dev.want(t, "log off", "ring log 0 {false 0}", "ring log 1 {false 0}", "stop 0", "stop 1")
	s.play([]message{
		{"announce", vt.SendRARP, true, []byte{0, 0x15, 0x5d, 1, 2, 3, 0, 0}, nil, nil},
		{"MTU", vt.NetSetMTU, true, vt.Payload(uint64(9000)), nil, nil},
	})
	dev.want(t, "rarp 00 15 5d 01 02 03", "mtu 9000")
	s.Close()
	if err := <-s.done; err != nil {
		t.Errorf("ended with %v", err)
	}
	dev.want(t, "detach: EOF")
}

// QEMU's second queue pair negotiates again, and is disabled while the guest does not use it.
func TestSequenceQEMUMultiqueue(t *testing.T) {
	dev := newFake()
	s, m, _ := running(t, dev)
	s.play([]message{
		{"protocol features", vt.GetProtocolFeatures, false, nil, nil, vt.Payload(protoQ)},
		{"protocol features", vt.SetProtocolFeatures, false, vt.Payload(protoQ), nil, nil},
		{"features", vt.GetFeatures, false, nil, nil, vt.Payload(all)},
		{"enable 2", vt.SetVringEnable, true, ring(2, 0), nil, nil},
	})
	v := vring(t, m, 2, 128)
	s.must(s.StartVring(v))
	s.must(s.EnableVring(2, true))
	s.must(s.EnableVring(2, true))
	dev.want(t,
		"start 2: num 128 base 0x0 desc 0x108000 avail 0x108800 used 0x108940 enabled false log {false 0} files [kick]", "call 2 [call]",
		"enable 2 true")
}

// What User Mode Linux sends, down to the acknowledgement it wants of SET_PROTOCOL_FEATURES, a memory table with
// room for two regions, a socket as call, and a second SET_FEATURES that gives protocol features up.
func TestSequenceUML(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	m := memory(t, 0x60000, 1<<20)
	v0, v1 := vring(t, m, 0, 256), vring(t, m, 1, 256)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	const protocol = uint64(vhostuser.ProtocolReplyAck | vhostuser.ProtocolBackendReq)
	s.play([]message{
		{"owner", vt.SetOwner, false, nil, nil, nil},
		{"features", vt.GetFeatures, false, nil, nil, vt.Payload(all)},
		{"protocol features", vt.GetProtocolFeatures, false, nil, nil, vt.Payload(protoQ)},
		{"protocol features", vt.SetProtocolFeatures, true, vt.Payload(protocol), nil, nil},
		{"channel", vt.SetBackendReqFD, true, nil, []int{pair[1]}, nil},
		{"features", vt.SetFeatures, true, vt.Payload(acked), nil, nil},
		{"features", vt.SetFeatures, true, vt.Payload(acked &^ vt.FeatureProtocol), nil, nil},
	})
	setUp := []message{
		{"memory", vt.SetMemTable, true, slices.Concat(vt.Payload(uint32(1), uint32(0)), m.Region(), make([]byte, 32)), []int{m.FD()}, nil},
	}
	for i, v := range []*vt.Vring{v0, v1} {
		setUp = append(setUp,
			message{"call", vt.SetVringCall, true, vt.Payload(uint64(i)), []int{pair[1]}, nil},
			message{"num", vt.SetVringNum, true, ring(i, 256), nil, nil},
			message{"base", vt.SetVringBase, true, ring(i, 0), nil, nil},
			message{"addr", vt.SetVringAddr, true, v.Addr(0, 1<<64-1), nil, nil})
	}
	setUp = append(setUp,
		message{"kick 0", vt.SetVringKick, true, vt.Payload(uint64(0)), []int{v0.KickFD}, nil},
		message{"kick 1", vt.SetVringKick, true, vt.Payload(uint64(1)), []int{v1.KickFD}, nil})
	s.play(setUp)
	dev.want(t, attachLine(), guestF,
		"memory [0x60000+0x100000 uva 0x7f0000060000 offset 0x0 file 0x100000]",
		"start 0: num 256 base 0x0 desc 0x60000 avail 0x61000 used 0x61240 enabled true log {false 0} files [kick call]",
		"start 1: num 256 base 0x0 desc 0x64000 avail 0x65000 used 0x65240 enabled true log {false 0} files [kick call]")

	// The driver is bound again: the rings were never stopped, and begin at 0.
	s.play(setUp)
	dev.want(t, "stop 0", "stop 1",
		"memory [0x60000+0x100000 uva 0x7f0000060000 offset 0x0 file 0x100000]",
		"start 0: num 256 base 0x7 desc 0x60000 avail 0x61000 used 0x61240 enabled true log {false 0} files [kick call]",
		"start 1: num 256 base 0x7 desc 0x64000 avail 0x65000 used 0x65240 enabled true log {false 0} files [kick call]",
		"call 0 [call]", "stop 0", "call 1 [call]", "stop 1",
		"start 0: num 256 base 0x0 desc 0x60000 avail 0x61000 used 0x61240 enabled true log {false 0} files [kick call]",
		"start 1: num 256 base 0x0 desc 0x64000 avail 0x65000 used 0x65240 enabled true log {false 0} files [kick call]")
}

// With the bit for protocol features kept, User Mode Linux enables its rings.
func TestSequenceUMLEnables(t *testing.T) {
	dev := newFake()
	s := connected(t, dev)
	m := memory(t, 0, 1<<20)
	v := vring(t, m, 0, 256)
	s.must(s.SetMemTable(m))
	s.must(s.StartVring(v))
	s.must(s.EnableVring(0, true))
	dev.asked()
	s.must(s.SetFeatures(acked &^ vt.FeatureProtocol)) // enabled as before
	s.must(s.EnableVring(0, false))                    // without the feature this means nothing
	dev.want(t)
	s.must(s.SetFeatures(acked))
	dev.want(t, "enable 0 false")
}

// What DPDK's virtio-user sends: receive rings before transmit rings, guest addresses that are user addresses, and, when
// its memory grows, a new table between disabling and enabling.
func TestSequenceDPDK(t *testing.T) {
	dev := newFake()
	s := connect(t, dev)
	m, more := memory(t, 0, 1<<20), memory(t, 1<<30, 1<<20)
	for _, m := range []*vt.Memory{m, more} {
		m.GPA = m.UVA
	}
	v0, v1 := vring(t, m, 0, 256), vring(t, m, 1, 256)
	const protocol = uint64(vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolStatus)
	s.play([]message{
		{"owner", vt.SetOwner, false, nil, nil, nil},
		{"features", vt.GetFeatures, false, nil, nil, vt.Payload(all)},
		{"protocol features", vt.GetProtocolFeatures, false, nil, nil, vt.Payload(protoQ)},
		{"protocol features", vt.SetProtocolFeatures, false, vt.Payload(protocol), nil, nil},
		{"queues", vt.GetQueueNum, false, nil, nil, vt.Payload(uint64(2))},
		{"call 0", vt.SetVringCall, false, vt.Payload(uint64(0)), []int{v0.CallFD}, nil},
		{"call 1", vt.SetVringCall, false, vt.Payload(uint64(1)), []int{v1.CallFD}, nil},
		{"features", vt.SetFeatures, false, vt.Payload(acked | vt.FeaturePacked), nil, nil},
		{"memory", vt.SetMemTable, true, slices.Concat(vt.Payload(uint32(1), uint32(0)), m.Region()), []int{m.FD()}, nil},
	})
	for i, v := range []*vt.Vring{v0, v1} {
		s.play([]message{
			{"num", vt.SetVringNum, false, ring(i, 200), nil, nil},
			{"base", vt.SetVringBase, false, ring(i, 1<<15), nil, nil},
			{"addr", vt.SetVringAddr, false, v.Addr(0, 0), nil, nil},
			{"kick", vt.SetVringKick, false, vt.Payload(uint64(i)), []int{v.KickFD}, nil},
		})
	}
	s.play([]message{
		{"enable 0", vt.SetVringEnable, false, ring(0, 1), nil, nil},
		{"enable 1", vt.SetVringEnable, false, ring(1, 1), nil, nil},
		{"status", vt.SetStatus, true, vt.Payload(uint64(0xf)), nil, nil},
	})
	dev.want(t, attachLine(), "features 0x500008000",
		"memory [0x7f0000000000+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000]",
		"start 0: num 200 base 0x8000 desc 0x7f0000000000 avail 0x7f0000001000 used 0x7f0000001240 enabled false log {false 0} files [kick call]",
		"start 1: num 200 base 0x8000 desc 0x7f0000004000 avail 0x7f0000005000 used 0x7f0000005240 enabled false log {false 0} files [kick call]",
		"enable 0 true", "enable 1 true")

	s.play([]message{
		{"disable 0", vt.SetVringEnable, false, ring(0, 0), nil, nil},
		{"disable 1", vt.SetVringEnable, false, ring(1, 0), nil, nil},
		{"memory", vt.SetMemTable, true, slices.Concat(vt.Payload(uint32(2), uint32(0)), m.Region(), more.Region()), []int{m.FD(), more.FD()}, nil},
		{"enable 0", vt.SetVringEnable, false, ring(0, 1), nil, nil},
		{"base 0", vt.GetVringBase, false, ring(0, 0), nil, vt.Payload(uint32(0), uint32(0x8000+14))},
		{"owner", vt.ResetOwner, false, nil, nil, nil},
	})
	s.barrier()
	dev.want(t, "enable 0 false", "enable 1 false", "stop 0", "stop 1",
		"memory [0x7f0000000000+0x100000 uva 0x7f0000000000 offset 0x0 file 0x100000, 0x7f0040000000+0x100000 uva 0x7f0040000000 offset 0x0 file 0x100000]",
		"start 0: num 200 base 0x8007 desc 0x7f0000000000 avail 0x7f0000001000 used 0x7f0000001240 enabled false log {false 0} files [kick call]",
		"start 1: num 200 base 0x8007 desc 0x7f0000004000 avail 0x7f0000005000 used 0x7f0000005240 enabled false log {false 0} files [kick call]",
		"enable 0 true", "stop 0", "stop 1")
}

// A device decides by itself that it cannot go on.
func TestHangUp(t *testing.T) {
	dev := newFake()
	s, _, _ := running(t, dev)
	broken := errors.New("ring 0: descriptor 300 of 256")
	for range 2 {
		dev.hangUp(broken)
	}
	s.wantClosed(broken.Error())
	dev.want(t, "detach: ring 0: descriptor 300 of 256")
	dev.hangUp(broken)
}

// An error of the device ends the connection with a text that names the message.
func TestDeviceErrors(t *testing.T) {
	failure := errors.New("no room")
	for name, step := range map[string]struct {
		do   func(s *session, m *vt.Memory, v *vt.Vring) error
		text string
	}{
		"SetFeatures": {func(s *session, _ *vt.Memory, _ *vt.Vring) error {
			return s.Request(vt.SetFeatures, 0, vt.Payload(uint64(0)))
		}, "SET_FEATURES: no room"},
		"SetMemory": {func(s *session, m *vt.Memory, _ *vt.Vring) error {
			return s.Request(vt.SetMemTable, 0, vt.Payload(uint64(0)))
		}, "SET_MEM_TABLE: no room"},
		"StopVring": {func(s *session, _ *vt.Memory, _ *vt.Vring) error { return s.Request(vt.GetVringBase, 0, ring(0, 0)) }, "GET_VRING_BASE: no room"},
		"StartVring": {func(s *session, _ *vt.Memory, v *vt.Vring) error {
			return s.Request(vt.SetVringKick, 0, vt.Payload(uint64(0)), v.KickFD)
		}, "SET_VRING_KICK: no room"},
		"SetVringCall": {func(s *session, _ *vt.Memory, v *vt.Vring) error {
			return s.Request(vt.SetVringCall, 0, vt.Payload(uint64(0)), v.CallFD)
		}, "SET_VRING_CALL: no room"},
		"SetVringEnable": {func(s *session, _ *vt.Memory, _ *vt.Vring) error { return s.Request(vt.SetVringEnable, 0, ring(0, 0)) }, "SET_VRING_ENABLE: no room"},
		"SetVringLog":    {func(s *session, _ *vt.Memory, v *vt.Vring) error { return s.Request(vt.SetVringAddr, 0, v.Addr(1, 0)) }, "SET_VRING_ADDR: no room"},
		"Reset":          {func(s *session, _ *vt.Memory, _ *vt.Vring) error { return s.Request(vt.ResetDevice, 0, nil) }, "RESET_DEVICE: no room"},
		"SendRARP":       {func(s *session, _ *vt.Memory, _ *vt.Vring) error { return s.Request(vt.SendRARP, 0, make([]byte, 8)) }, "SEND_RARP: no room"},
		"SetMTU": {func(s *session, _ *vt.Memory, _ *vt.Vring) error {
			return s.Request(vt.NetSetMTU, 0, vt.Payload(uint64(9000)))
		}, "NET_SET_MTU: no room"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := newFake()
			s, m, v := running(t, dev)
			dev.fail(failure)
			s.must(step.do(s, m, v))
			s.wantClosed(step.text)
		})
	}
	t.Run("Attach", func(t *testing.T) {
		dev := newFake()
		dev.fail(failure)
		s := connect(t, dev)
		s.must(s.Request(vt.GetFeatures, 0, nil))
		s.wantClosed("no room")
		dev.want(t, attachLine()) // and no detach
	})
}

// A request that the front end can be told of does not end the connection.
func TestRefusals(t *testing.T) {
	dev := newFake()
	s := connected(t, dev)
	dev.fail(errors.New("too big"))
	if err := s.Set(vt.NetSetMTU, vt.Payload(uint64(9000))); !errors.Is(err, vt.ErrRefused) {
		t.Errorf("MTU that the device refuses: %v", err)
	}
	dev.fail(nil)
	if err := s.Set(vt.NetSetMTU, vt.Payload(uint64(0x10000))); !errors.Is(err, vt.ErrRefused) {
		t.Errorf("MTU of 17 bits: %v", err)
	}
	dev.want(t, "mtu 9000")
	s.barrier()
}

// Closing the server's context ends a connection.
func TestContextEndsTheConnection(t *testing.T) {
	c, conn, err := vt.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dev := newFake()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { done <- vhostuser.ServeConn(ctx, conn, dev, slog.New(slog.DiscardHandler), "port7") }()
	if _, err := c.GetU64(vt.GetFeatures); err != nil {
		t.Fatal(err)
	}
	cancel(errors.New("shut down"))
	if err := <-done; err != net.ErrClosed {
		t.Errorf("ended with %v, want %v", err, net.ErrClosed)
	}
	if cause := <-dev.gone; cause != net.ErrClosed {
		t.Errorf("detached because of %v, want %v", cause, net.ErrClosed)
	}
}

// The doorbells that the device gets are those of the front end.
func TestDoorbells(t *testing.T) {
	dev := newFake()
	s, _, v := running(t, dev)
	if v.Called() {
		t.Error("called for nothing")
	}
	if _, err := dev.rings[0].Call.Write(binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		t.Fatal(err)
	}
	if err := v.WaitCall(t.Context()); err != nil {
		t.Error(err)
	}
	if err := v.Kick(); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.rings[0].Kick.Read(make([]byte, 8)); err != nil {
		t.Error(err)
	}
	s.must(s.StopVring(v))
	if v.Base != 7 {
		t.Errorf("stopped at %d, want 7", v.Base)
	}
}
