package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	vt "polder/device/vhostuser/vhostusertest"
)

// sink is a device that owns what it is given and checks what a connection promises.
type sink struct {
	t        *testing.T
	attached bool
	mem      []MemRegion
	rings    [4]*VringConfig // that run
	logging  bool
}

func (d *sink) want(ok bool, what string) {
	if !ok {
		d.t.Error(what)
	}
}

func (d *sink) closeAll(files ...*os.File) {
	for _, f := range files {
		d.want(f == nil || f.Close() == nil, "a descriptor was closed already")
	}
}

func (d *sink) stopped() bool { return d.rings == [4]*VringConfig{} }

func (d *sink) Features() uint64         { return 1<<32 | featurePacked }
func (d *sink) ProtocolFeatures() uint64 { return ProtocolAll }
func (d *sink) QueuePairs() int          { return 2 }

func (d *sink) Attach(string, func(error)) error {
	d.want(!d.attached, "attached twice")
	d.attached = true
	return nil
}

func (d *sink) Detach(cause error) {
	d.want(d.attached && cause != nil, "detached without having been attached, or without cause")
	for i := range d.rings {
		if d.rings[i] != nil {
			d.StopVring(i)
		}
	}
}

func (d *sink) SetFeatures(f uint64) error {
	d.want(d.stopped() && f&^d.Features() == 0, "features while a ring runs, or not offered")
	return nil
}

func (d *sink) SetMemory(regions []MemRegion) error {
	d.want(d.attached && d.stopped() && len(regions) <= maxSlots, "memory while a ring runs, or too much")
	for i, r := range regions {
		_, ok := last(r.GPA, r.Size)
		_, uok := last(r.UVA, r.Size)
		d.want(ok && uok, "impossible memory")
		for _, o := range regions[:i] {
			d.want(!overlap(r.GPA, r.Size, o.GPA, o.Size) && !overlap(r.UVA, r.Size, o.UVA, o.Size), "memory overlaps")
		}
		_, err := r.File.Stat()
		d.want(err == nil, "memory without a file")
	}
	d.mem = regions
	return nil
}

// inMemory reports whether n bytes lie in one region.
func (d *sink) inMemory(gpa, n uint64) bool {
	for _, r := range d.mem {
		if gpa >= r.GPA && gpa-r.GPA < r.Size && n <= r.Size-(gpa-r.GPA) {
			return true
		}
	}
	return false
}

func (d *sink) StartVring(v VringConfig) error {
	d.want(d.rings[v.Index] == nil && v.Num > 0 && v.Num <= maxRing, "started twice, or of impossible size")
	d.want(d.inMemory(v.Desc, 16*uint64(v.Num)) && d.inMemory(v.Avail, 4) && d.inMemory(v.Used, 4), "a ring outside of memory")
	d.rings[v.Index] = &v
	return nil
}

func (d *sink) StopVring(i int) (uint32, error) {
	v := d.rings[i]
	d.want(v != nil, "stopped twice")
	d.closeAll(v.Kick, v.Call, v.Err)
	d.rings[i] = nil
	return v.Base, nil
}

func (d *sink) SetVringEnable(i int, on bool) error {
	d.want(d.rings[i] != nil && d.rings[i].Enabled != on, "enabled for nothing")
	d.rings[i].Enabled = on
	return nil
}

func (d *sink) SetVringCall(i int, call *os.File) error {
	d.want(d.rings[i] != nil, "call of a ring that does not run")
	d.closeAll(d.rings[i].Call)
	d.rings[i].Call = call
	return nil
}

func (d *sink) SetVringLog(i int, used UsedLog) error {
	d.want(d.rings[i] != nil && d.rings[i].UsedLog != used, "log for nothing")
	d.rings[i].UsedLog = used
	return nil
}

func (d *sink) SetLog(l *Log) error {
	if l == nil {
		d.want(d.logging, "log stopped twice")
	} else {
		_, ok := last(l.Offset, l.Size)
		d.want(ok && l.File != nil, "impossible log")
	}
	d.logging = l != nil
	return nil
}

func (d *sink) SetMTU(uint16) error    { return nil }
func (d *sink) SendRARP([6]byte) error { return nil }

func (d *sink) Reset() error {
	d.want(d.stopped(), "reset while a ring runs")
	d.logging = false
	return nil
}

func openFDs(t testing.TB) int {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

// FuzzConn plays a program of a front end: a sequence of pieces that are each sent at once, as u8 descriptors, u16 number of
// bytes, and the bytes. Of the descriptors, bits 0 to 3 are the number, of which 15 stands for as many as the kernel allows, and
// bits 4 to 7 what the first one is: the next ones are the next kinds. With hello, the front end has a session,
// memory and a ring that runs before.
func FuzzConn(f *testing.F) {
	piece := func(fds uint8, request, flags uint32, payload ...any) []byte {
		b := vt.Message(request, vt.FlagVersion|flags, vt.Payload(payload...))
		return append(vt.Payload(fds, uint16(len(b))), b...)
	}
	const gpa, uva = uint64(1 << 20), uint64(1<<20 + 0x7f00_0000_0000)
	var whole []byte
	for _, p := range [][]byte{
		piece(0, vt.SetOwner, vt.FlagNeedReply),
		piece(0, vt.GetFeatures, 0),
		piece(0, vt.GetProtocolFeatures, 0),
		piece(0, vt.SetProtocolFeatures, vt.FlagNeedReply, uint64(ProtocolAll)),
		piece(0, vt.SetFeatures, vt.FlagNeedReply, uint64(1<<32|featureProtocol)),
		piece(0, vt.SetFeatures, 0, uint64(1<<32|featureLogAll|featurePacked)),
		piece(1, vt.SetMemTable, 0, uint32(1), uint32(0), gpa, uint64(1<<20), uva, uint64(0)),
		piece(1, vt.AddMemReg, vt.FlagNeedReply, uint64(0), uint64(1<<32), uint64(1<<20), uint64(1<<32), uint64(0)),
		piece(1, vt.RemMemReg, 0, uint64(0), uint64(1<<32), uint64(1<<20), uint64(1<<32), uint64(0)),
		piece(0, vt.GetMaxMemSlots, 0),
		piece(1, vt.SetLogBase, 0, uint64(4096), uint64(0)),
		piece(1, vt.SetLogFD, 0),
		piece(0, vt.SetVringNum, 0, uint32(1), uint32(8)),
		piece(0, vt.SetVringBase, 0, uint32(1), uint32(8)),
		piece(0, vt.SetVringAddr, 0, uint32(1), uint32(1), uva, uva+0x200, uva+0x100, gpa),
		piece(1, vt.SetVringKick, 0, uint64(1)),
		piece(1, vt.SetVringCall, 0, uint64(1)),
		piece(1, vt.SetVringErr, 0, uint64(1)),
		piece(0, vt.SetVringEnable, 0, uint32(1), uint32(1)),
		piece(0, vt.SetVringEnable, 0, uint32(0), uint32(0)),
		piece(0, vt.SetVringKick, 0, uint64(1|vt.NoFD)),
		piece(0, vt.SetStatus, 0, uint64(0xf)),
		piece(0, vt.GetStatus, 0),
		piece(0, vt.SendRARP, 0, uint64(1)),
		piece(0, vt.NetSetMTU, 0, uint64(1500)),
		piece(0, vt.GetQueueNum, 0),
		piece(1, vt.SetBackendReqFD, 0),
		piece(0, vt.GetVringBase, 0, uint32(1), uint32(0)),
		piece(0, vt.ResetOwner, 0),
		piece(0, vt.ResetDevice, 0),
		piece(9, vt.GetInflightFD, vt.FlagNeedReply, uint64(0)),
	} {
		f.Add(true, p)
		f.Add(false, p)
		whole = append(whole, p...)
	}
	f.Add(true, whole)
	f.Add(false, whole)
	for kind := range uint8(7) { // the same with every kind of descriptor
		for i := 0; i < len(whole); {
			if whole[i] != 0 {
				whole[i] = whole[i]&15 | kind<<4
			}
			i += 3 + int(binary.LittleEndian.Uint16(whole[i+1:]))
		}
		f.Add(true, bytes.Clone(whole))
	}

	f.Fuzz(func(t *testing.T, hello bool, program []byte) {
		mem, err := vt.NewMemory(gpa, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		ring, _, err := vt.NewVring(mem, 0, 256, gpa)
		if err != nil {
			t.Fatal(err)
		}
		defer ring.Close()
		kinds := strange(t, mem)
		before := openFDs(t)
		client, uc, err := vt.Pair()
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(uc, &sink{t: t}, newCustody(0), slog.New(slog.DiscardHandler))
		served, sent := make(chan error), make(chan struct{})
		go func() { served <- c.run(context.Background(), patience) }()
		if hello {
			if err := errors.Join(client.Connect(ProtocolAll), client.SetFeatures(1<<32|featureProtocol), client.SetMemTable(mem),
				client.StartVring(ring)); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			defer close(sent)
			play(client, program, kinds)
			client.CloseWrite() // fails only if the back end has hung up
		}()
		for {
			h, _, err := client.Reply()
			if err == io.EOF {
				break
			}
			if err != nil || h.Flags != flagVersion|flagReply {
				t.Errorf("reply %+v, %v", h, err)
				break
			}
		}
		cause := <-served
		<-sent
		if cause != io.EOF && !errors.Is(cause, ErrProtocol) {
			t.Errorf("ended with %v", cause)
		}
		client.Close()
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

// play sends the pieces of a program, until the back end hangs up.
func play(client *vt.Client, program []byte, kinds []int) {
	for len(program) >= 3 {
		number, kind, n := int(program[0]&15), int(program[0]>>4), int(binary.LittleEndian.Uint16(program[1:]))
		program = program[3:]
		n = min(n, len(program))
		if n == 0 {
			continue
		}
		if number == 15 {
			number = 253
		}
		var fds []int
		for i := range number {
			fds = append(fds, kinds[(kind+i)%len(kinds)])
		}
		if client.Send(program[:n], fds...) != nil {
			return
		}
		program = program[n:]
	}
}

// strange returns descriptors of all kinds: an eventfd, memory, the two ends of a pipe, a socket, a directory, and a file
// that can only be named. They are closed with the test.
func strange(t *testing.T, mem *vt.Memory) []int {
	var kinds []int
	keep := func(fd int, err error) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fd)
	}
	keep(unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK))
	keep(unix.FcntlInt(uintptr(mem.FD()), unix.F_DUPFD_CLOEXEC, 0))
	var pipe [2]int
	err := unix.Pipe2(pipe[:], unix.O_CLOEXEC)
	keep(pipe[0], err)
	keep(pipe[1], err)
	keep(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	keep(unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	keep(unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0))
	t.Cleanup(func() {
		for _, fd := range kinds {
			unix.Close(fd)
		}
	})
	return kinds
}

func TestHeaderRoundTrip(t *testing.T) {
	want := header{req: 0x01020304, flags: 0x05060708, size: 0x090a0b0c}
	b := want.append(nil)
	if string(b) != "\x04\x03\x02\x01\x08\x07\x06\x05\x0c\x0b\x0a\x09" {
		t.Errorf("encoded as % x", b)
	}
	if got := decodeHeader(b); got != want {
		t.Errorf("decoded as %+v, want %+v", got, want)
	}
}

// A front end that connects and then says nothing, or only the half of it, does not occupy the port.
func TestFirstMessageTimesOut(t *testing.T) {
	for _, said := range []int{0, 1, headerSize, headerSize + 2} {
		client, uc, err := vt.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.Send(vt.Message(vt.SetFeatures, vt.FlagVersion, make([]byte, 8))[:said]); err != nil {
			t.Fatal(err)
		}
		c := newConn(uc, &sink{t: t}, newCustody(0), slog.New(slog.DiscardHandler))
		if err := c.run(t.Context(), 1); !errors.Is(err, ErrProtocol) {
			t.Errorf("after %d bytes: %v, want %v", said, err, ErrProtocol)
		}
	}
}

// Whatever a descriptor is, the connection closes it once.
func TestReplaceClosesOnce(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	p := fd
	replace(&p, -1)
	replace(&p, -1)
	if after := openFDs(t); after != before-1 || p != -1 {
		t.Errorf("%d descriptors open, %d before; left with %d", after, before, p)
	}
}
