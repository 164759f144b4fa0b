package vfiouser_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	vt "polder/device/vfiouser/vfiousertest"
)

// The tests in this file are each named after a way in which a vfio-user server is known to bring QEMU to a
// halt, or a guest to grief.

// QEMU's virtual CPU holds the lock that serving a DMA_READ needs while it waits for our reply.
func TestTrap01NothingIsSentButReplies(t *testing.T) {
	s := connect(t, newFake())
	if err := s.Handshake(); err != nil { // fails if what comes is not the reply to what was sent
		t.Fatal(err)
	}
	for _, err := range []error{
		s.MapDMA(0, 1<<20, nil, 0), // as from a QEMU without shared memory
		s.SetINTx(),
		s.RegionWrite(0, 0x30, []byte{2, 0x20, 0, 0}),
		s.RegionPost(1, 0x08, []byte{1, 0, 0, 0}),
		s.Reset(),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	s.CloseWrite()
	s.wantClosed() // and not a word before
}

// QEMU waits five seconds for a reply, and after a late one for every access, until the socket is closed.
func TestTrap02ADoubtClosesTheSocketAtOnce(t *testing.T) {
	dev := newFake()
	dev.stall = make(chan struct{})
	s := attached(t, dev)
	if err := s.Send(message(vt.RegionRead, 0, nil)); err != nil {
		t.Fatal(err)
	}
	<-dev.gone // in Detach, which takes its time
	if h, _, err := s.Reply(); err != io.EOF {
		t.Errorf("got %+v, %v, want the socket closed while the device detaches", h, err)
	}
	close(dev.stall)
}

// QEMU never connects again: who comes next is another QEMU, or the device plugged anew.
func TestTrap03TheNextClientFindsTheDeviceDetached(t *testing.T) {
	dev := newFake()
	path := serve(t, dev)
	for n := range 5 {
		c, err := vt.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 { // killed with a reply unread
			if _, err := c.Command(vt.RegionRead, 0, vt.Payload(uint64(0), uint32(0), uint32(4))); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
	for range 5 {
		if cause := <-dev.gone; cause != io.EOF {
			t.Errorf("detached because of %v, want %v", cause, io.EOF)
		}
	}
	for i, call := range dev.asked() {
		if want := []string{"attach", "detach"}[i%2]; !strings.HasPrefix(call, want) {
			t.Errorf("call %d is %q, want %s", i, call, want)
		}
	}
}

// QEMU allocates the size of its request for the reply, and gives up on a longer one.
func TestTrap04RepliesAreNoLargerThanTheirRequests(t *testing.T) {
	const qemuVersion = 214
	if n := len(versionMessage); n != qemuVersion {
		t.Fatalf("the VERSION message of the test has %d bytes, QEMU's has %d", n, qemuVersion)
	}
	s := connect(t, newFake())
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	ram := memfd(t, 1<<20)
	for _, err := range []error{
		s.MapDMA(0, 1<<20, ram, 0),
		s.UnmapDMA(0, 1<<20),
		s.SetINTx(),
		s.Reset(),
		s.RegionWrite(0, 0, []byte{1}),
		s.RegionRead(vfiouser.RegionROM, 0, make([]byte, 4096)), // the exception
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for command := range uint16(20) {
		if command == vt.Version {
			continue
		}
		for _, size := range []int{0, 8, 16, 20, 24, 32} {
			s := attached(t, newFake())
			payload := make([]byte, size)
			copy(payload, []byte{byte(size)})
			if _, err := s.Call(command, payload); err != nil && err != io.EOF && !errors.As(err, new(unix.Errno)) {
				t.Errorf("command %d with %d bytes: %v", command, size, err)
			}
			if s.ReplySize != 0 {
				t.Errorf("command %d with %d bytes: reply of %d", command, size, s.ReplySize)
			}
			s.Close()
		}
	}
	if s.ReplySize != 0 {
		t.Errorf("a reply of %d bytes is longer than its request", s.ReplySize)
	}

	for _, text := range []string{"", "\x00", "{}\x00", strings.Repeat(" ", 63) + "\x00", strings.Repeat(" ", 62) + "\x00"} {
		s := connect(t, newFake())
		reply, err := s.Call(vt.Version, append(vt.Payload(uint32(0)), text...))
		if err != nil || s.ReplySize != 0 {
			t.Errorf("VERSION with %d bytes of text: reply %q, %v", len(text), reply, err)
		}
	}
}

// The kernel glues messages together. If all are there before the server reads the first, each must
// still get its own descriptor.
func TestTrap05FDsBelongToTheMessageOfTheirFirstByte(t *testing.T) {
	dev := newFake()
	s := prepare(t, dev)
	dmaMap := func(id uint16, iova uint64) []byte {
		payload := vt.Payload(uint32(32), uint32(3), uint64(0), iova, uint64(0x1000))
		return append(vt.Header{ID: id, Command: vt.DMAMap, Size: 48}.Append(nil), payload...)
	}
	a, b := memfd(t, 0x1000), memfd(t, 0x2000)
	for _, err := range []error{
		s.Send(versionMessage),
		s.Send(dmaMap(1, 0x1000)),
		s.Send(dmaMap(2, 0x2000), fd(t, a)),
		s.Send(dmaMap(3, 0x3000), fd(t, b)),
		s.Send(slices.Concat(dmaMap(4, 0x4000), dmaMap(5, 0x5000)), fd(t, a)),
		s.Send(dmaMap(6, 0x6000)[:1], fd(t, b)),
		s.Send(dmaMap(6, 0x6000)[1:20], fd(t, a)), // not the first byte
		s.Send(dmaMap(6, 0x6000)[20:], fd(t, a)),  // nor this
		s.Send(dmaMap(7, 0x7000)),
		s.CloseWrite(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := openFDs(t)
	s.start(t.Context())
	<-dev.gone
	var want []string
	for i, size := range []int{-1, 0x1000, 0x2000, 0x1000, -1, 0x2000, -1} {
		want = append(want, fmt.Sprintf("map %#x+0x1000 offset 0x0 read true write true file %d", (i+1)*0x1000, size))
	}
	got := dev.asked()
	if got = got[1 : len(got)-1]; !slices.Equal(got, want) { // without attach and detach
		t.Errorf("the device was asked\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	for range 8 {
		if h, _, err := s.Reply(); err != nil || h.Flags != vt.FlagReply {
			t.Errorf("got %+v, %v", h, err)
		}
	}
	<-s.done
	if after := openFDs(t) + 1; after != before { // the server's end was open before, too
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

// A QEMU that is offered write_multiple sends every message through another thread, which doubles
// the time of a register access. Users can make it send the message all the same.
func TestTrap06WriteMultipleIsServedButNotOffered(t *testing.T) {
	s := connect(t, newFake())
	reply, err := s.Call(vt.Version, versionMessage[16:])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(reply, []byte("write_multiple")) {
		t.Errorf("offered in %q", reply)
	}
	payload := vt.Payload(uint64(3),
		uint64(0x00), uint32(0), uint32(8), uint64(0x1122334455667788),
		uint64(0x10), uint32(1), uint32(4), uint64(0xffffffff01020304),
		uint64(0x7f), uint32(1), uint32(1), uint64(0xffffffffffffffaa))
	if _, err := s.Command(vt.RegionWriteMulti, vt.FlagNoReply, payload); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		region int
		off    uint64
		want   []byte
	}{
		{0, 0x00, []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}},
		{1, 0x10, []byte{4, 3, 2, 1, 0}},
		{1, 0x7f, []byte{0xaa}},
	} {
		got := make([]byte, len(test.want))
		if err := s.RegionRead(test.region, test.off, got); err != nil || !bytes.Equal(got, test.want) {
			t.Errorf("BAR %d at %#x holds %x, %v, want %x", test.region, test.off, got, err, test.want)
		}
	}
	if done, err := s.Call(vt.RegionWriteMulti, payload); err != nil || binary.LittleEndian.Uint64(done) != 3 {
		t.Errorf("not posted: got %x, %v, want 3 writes done", done, err)
	}
}

// A reply to a posted write has no request waiting for it: QEMU would take it for the start of a broken stream.
func TestTrap07PostedWritesAreNotAnswered(t *testing.T) {
	dev := newFake()
	s := attached(t, dev)
	for _, err := range []error{
		s.RegionPost(1, 0x08, []byte{1, 2, 3, 4}),
		s.RegionPost(1, 0x7e, []byte{1, 2, 3, 4}), // refused, silently
		s.RegionPost(5, 0x00, []byte{1}),          // there is no BAR 5
		s.RegionPost(vfiouser.RegionROM, 0, []byte{1}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []uint16{vt.RegionWriteMulti, vt.DeviceReset, 99} {
		payload := make([]byte, 0, 8)
		if command == vt.RegionWriteMulti {
			payload = payload[:8]
		}
		if _, err := s.Command(command, vt.FlagNoReply, payload); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4)
	if err := s.RegionRead(1, 0x08, got); err != nil || !bytes.Equal(got, []byte{1, 2, 3, 4}) { // fails if any other reply comes first
		t.Errorf("read after posted writes: %x, %v", got, err)
	}
	if err := s.RegionWrite(0, 0x08, got); err != nil { // fails if no reply comes
		t.Errorf("a write that is not posted: %v", err)
	}
}

// QEMU lowers INTx at any access to a BAR and says UNMASK; the device must have the chance to raise it again.
func TestTrap08UnmaskFollowsAnAccessToABAR(t *testing.T) {
	dev := newFake()
	s := attached(t, dev)
	for round := range 2 {
		if err := s.Reset(); err != nil { // gives the device another eventfd each time
			t.Fatal(err)
		}
		dev.want(t,
			"irqs 0, 0+0, action 0x20, data 1 [], files 0",
			"reset",
			"irqs 0, 0+1, action 0x20, data 4 [], files 1")
		for _, access := range []func() error{
			func() error { return s.RegionRead(0, 0x28, make([]byte, 4)) },
			func() error { return s.RegionWrite(0, 0x28, make([]byte, 4)) },
			func() error { return s.RegionPost(1, 0x28, make([]byte, 4)) },
		} {
			if err := dev.kick(); err != nil {
				t.Fatal(err)
			}
			if err := s.WaitIRQ(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.RegionRead(vfiouser.RegionConfig, 4, make([]byte, 2)); err != nil {
				t.Fatal(err)
			}
			dev.want(t) // configuration space is not a BAR
			if err := access(); err != nil {
				t.Fatal(err)
			}
			dev.want(t, "irqs 0, 0+1, action 0x10, data 1 [], files 0")
			if s.IRQPending() {
				t.Errorf("round %d: still pending", round)
			}
		}
	}
}

// QEMU truncates replies to a DMA_READ of more than about 200 KiB, and then hangs. Nothing here depends
// on such messages; and what a client may ask of us is bounded by what we told it.
func TestTrap09TransfersAreBounded(t *testing.T) {
	s := connect(t, newFake())
	reply, err := s.Call(vt.Version, versionMessage[16:])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(reply, []byte(`"max_data_xfer_size":1048576`)) {
		t.Errorf("VERSION reply %q states another limit", reply)
	}
	write := vt.Payload(uint64(0), uint32(0), uint32(1<<20))
	if _, err := s.Call(vt.RegionWrite, append(write, make([]byte, 1<<20)...)); err != unix.EINVAL {
		t.Errorf("write of as much: %v, want only that it is too long for the BAR", err)
	}
	if err := s.Send(vt.Header{Command: vt.RegionWrite, Size: 16 + 16 + 1<<20 + 1}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	s.wantClosed()
}

// QEMU would migrate a guest without a message to us, and lose the device's state.
func TestTrap10MigrationIsNotClaimed(t *testing.T) {
	s := connect(t, newFake())
	reply, err := s.Call(vt.Version, versionMessage[16:])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(reply, []byte("migration")) {
		t.Errorf("claimed in %q", reply)
	}
	for feature := range uint32(4) {
		for _, get := range []uint32{1 << 16, 1 << 18} { // get, probe
			if _, err := s.Call(vt.DeviceFeature, vt.Payload(uint32(16), get|feature, uint64(0))); err != unix.ENOTTY {
				t.Errorf("DEVICE_FEATURE %d: %v, want %v", feature, err, unix.ENOTTY)
			}
		}
	}
	for _, command := range []uint16{17, 18} { // MIG_DATA_READ, MIG_DATA_WRITE
		if _, err := s.Call(command, make([]byte, 16)); err != unix.ENOSYS {
			t.Errorf("command %d: %v, want %v", command, err, unix.ENOSYS)
		}
	}
}
