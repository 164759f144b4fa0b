package vfiouser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser/vfiousertest"
)

// sink is a device that owns what it is given and checks what the server promises.
type sink struct {
	t        *testing.T
	info     Info
	attached bool
}

func newSink(t *testing.T) *sink {
	d := &sink{t: t}
	d.info.IRQs = [NumIRQs]uint32{1, 0, 3}
	d.info.Regions[0] = RegionInfo{Size: 128, Flags: RegionReadable | RegionWritable}
	d.info.Regions[1] = RegionInfo{Size: 1 << 21, Flags: RegionReadable | RegionWritable}
	d.info.Regions[RegionROM] = RegionInfo{Size: 4096, Flags: RegionReadable}
	d.info.Regions[RegionConfig] = RegionInfo{Size: 256, Flags: RegionReadable | RegionWritable}
	return d
}

func (d *sink) want(ok bool, what string) {
	if !ok {
		d.t.Error(what)
	}
}

func (d *sink) closeAll(files []*os.File) {
	for _, f := range files {
		d.want(f.Close() == nil, "a descriptor was closed already")
	}
}

func (d *sink) Info() Info { return d.info }

func (d *sink) Attach(string) error {
	d.want(!d.attached, "attached twice")
	d.attached = true
	return nil
}

func (d *sink) Detach(cause error) {
	d.want(d.attached && cause != nil, "detached without having been attached, or without cause")
	d.attached = false
}

func (d *sink) access(region int, off uint64, p []byte, flag uint32) error {
	d.want(d.attached && region >= 0 && region < NumRegions, "access to no region")
	r := d.info.Regions[region]
	d.want(r.Flags&flag != 0 && off <= r.Size && uint64(len(p)) <= r.Size-off && len(p) <= maxData, "access outside its region")
	return nil
}

func (d *sink) ReadRegion(region int, off uint64, p []byte) error {
	return d.access(region, off, p, RegionReadable)
}

func (d *sink) WriteRegion(region int, off uint64, p []byte) error {
	return d.access(region, off, p, RegionWritable)
}

func (d *sink) MapDMA(r DMARegion) error {
	d.want(d.attached && !wraps(r.IOVA, r.Size) && !wraps(r.Offset, r.Size), "impossible memory")
	if r.File != nil {
		d.closeAll([]*os.File{r.File})
	}
	return nil
}

func (d *sink) UnmapDMA(iova, size uint64) error {
	d.want(d.attached && (!wraps(iova, size) || iova == 0 && size == 0), "impossible memory")
	return nil
}

func (d *sink) SetIRQs(s IRQSet) error {
	d.want(d.attached && s.Index < NumIRQs && uint64(s.Start)+uint64(s.Count) <= uint64(d.info.IRQs[s.Index]), "impossible interrupt")
	d.want(s.Data == IRQBool == (len(s.Bools) > 0) || s.Count == 0, "bools without being told")
	d.want(len(s.Files) == 0 || s.Data == IRQEventFD && len(s.Files) == int(s.Count), "eventfds without being told")
	d.closeAll(s.Files)
	return nil
}

func (d *sink) Reset() error { return nil }

func openFDs(t testing.TB) int {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(dir)
}

// FuzzConn plays a program of a client: a sequence of pieces that are each sent at once, as
// u8 number of descriptors, u16 number of bytes, and the bytes. If hello, VERSION goes first.
func FuzzConn(f *testing.F) {
	version := append(vfiousertest.Payload(uint32(0)), vfiousertest.Capabilities+"\x00"...)
	piece := func(fds uint8, command uint16, flags uint32, payload []byte) []byte {
		h := vfiousertest.Header{ID: 7, Command: command, Size: uint32(16 + len(payload)), Flags: flags}
		b := append(h.Append(nil), payload...)
		return append(vfiousertest.Payload(fds, uint16(len(b))), b...)
	}
	for _, program := range [][]byte{
		piece(0, vfiousertest.DMAMap, 0, vfiousertest.Payload(uint32(32), uint32(1), uint64(0), uint64(0), uint64(4096))),
		piece(1, vfiousertest.DMAMap, 0, vfiousertest.Payload(uint32(32), uint32(3), uint64(0), uint64(0), uint64(4096))),
		piece(0, vfiousertest.DMAUnmap, 0, vfiousertest.Payload(uint32(24), uint32(0), uint64(0), uint64(4096))),
		piece(0, vfiousertest.DMAUnmap, 0, vfiousertest.Payload(uint32(24), uint32(2), uint64(0), uint64(0))),
		piece(0, vfiousertest.GetInfo, 0, vfiousertest.Payload(uint32(16), uint32(0), uint64(0))),
		piece(0, vfiousertest.GetRegionInfo, 0, vfiousertest.Payload(uint32(32), uint32(0), uint64(7), uint64(0), uint64(0))),
		piece(0, vfiousertest.GetIRQInfo, 0, vfiousertest.Payload(uint32(16), uint32(0), uint64(2))),
		piece(1, vfiousertest.SetIRQs, 0, vfiousertest.Payload(uint32(20), uint32(0x24), uint32(0), uint32(0), uint32(1))),
		piece(2, vfiousertest.SetIRQs, 0, vfiousertest.Payload(uint32(20), uint32(0x24), uint32(2), uint32(1), uint32(2))),
		piece(0, vfiousertest.SetIRQs, 0, vfiousertest.Payload(uint32(20), uint32(0x22), uint32(2), uint32(0), uint32(3), uint8(1), uint16(0))),
		piece(0, vfiousertest.RegionRead, 0, vfiousertest.Payload(uint64(0), uint32(0), uint32(4))),
		piece(0, vfiousertest.RegionRead, 0, vfiousertest.Payload(uint64(0), uint32(1), uint32(1<<20))),
		piece(0, vfiousertest.RegionWrite, 0, vfiousertest.Payload(uint64(0), uint32(0), uint32(4), uint32(0))),
		piece(0, vfiousertest.RegionWrite, 0x10, vfiousertest.Payload(uint64(8), uint32(1), uint32(8), uint64(1))),
		piece(0, vfiousertest.RegionWriteMulti, 0x10, vfiousertest.Payload(uint64(1), uint64(0), uint32(1), uint32(8), uint64(1))),
		piece(0, vfiousertest.DeviceReset, 0, nil),
		piece(0, vfiousertest.DeviceFeature, 0, vfiousertest.Payload(uint64(8))),
		piece(9, vfiousertest.DMARead, 0, nil),
	} {
		f.Add(true, program)
		f.Add(true, append(program, program...))
		f.Add(false, program)
	}
	f.Add(false, append(piece(0, vfiousertest.Version, 0, version), piece(0, vfiousertest.DeviceReset, 0, nil)...))

	f.Fuzz(func(t *testing.T, hello bool, program []byte) {
		before := openFDs(t)
		client, conn, err := vfiousertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		c, err := newConn(conn, newSink(t), NewSpinners(1), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		served, sent := make(chan error), make(chan struct{})
		go func() { served <- c.run(context.Background()) }()
		go func() {
			defer close(sent)
			if hello {
				h := vfiousertest.Header{Command: vfiousertest.Version, Size: uint32(16 + len(version))}
				if client.Send(append(h.Append(nil), version...)) != nil {
					return
				}
			}
			raw, _ := null.SyscallConn()
			raw.Control(func(fd uintptr) { play(client, program, int(fd)) })
			client.CloseWrite()
		}()
		for {
			h, _, err := client.Reply()
			if err == io.EOF {
				break
			}
			if err != nil || h.Flags&^uint32(flagError) != flagReply || h.Flags&flagError == 0 != (h.Errno == 0) {
				t.Errorf("reply %+v, %v", h, err)
				break
			}
		}
		cause := <-served
		<-sent
		if cause != io.EOF && !errors.Is(cause, ErrProtocol) {
			t.Errorf("ended with %v", cause)
		}
		if cap(c.in) > 2*maxMessage || cap(c.out) > 2*maxMessage {
			t.Errorf("buffers of %d and %d bytes for messages of at most %d", cap(c.in), cap(c.out), maxMessage)
		}
		client.Close()
		null.Close()
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

// play sends the pieces of a program, until the server hangs up.
func play(client *vfiousertest.Client, program []byte, fd int) {
	for len(program) >= 3 {
		fds, n := int(program[0]), int(binary.LittleEndian.Uint16(program[1:]))
		program = program[3:]
		n = min(n, len(program))
		if n == 0 {
			continue
		}
		dups := make([]int, min(fds, 253)) // the kernel's limit
		for i := range dups {
			dups[i] = fd
		}
		if client.Send(program[:n], dups...) != nil {
			return
		}
		program = program[n:]
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	want := header{id: 0x0102, cmd: 0x0304, size: 0x05060708, flags: 0x090a0b0c, errno: 0x0d0e0f10}
	b := make([]byte, headerSize)
	want.encode(b)
	if !bytes.Equal(b, []byte{2, 1, 4, 3, 8, 7, 6, 5, 0xc, 0xb, 0xa, 9, 0x10, 0xf, 0xe, 0xd}) {
		t.Errorf("encoded as % x", b)
	}
	if got := decodeHeader(b); got != want {
		t.Errorf("decoded as %+v, want %+v", got, want)
	}
}

// A client that connects and then says nothing, or only the half of it, does not occupy the port.
func TestHandshakeTimesOut(t *testing.T) {
	for _, said := range []int{0, 1, headerSize, headerSize + 2} {
		client, uc, err := vfiousertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := newConn(uc, newSink(t), NewSpinners(1), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c.fd)
		h := vfiousertest.Header{Command: vfiousertest.Version, Size: headerSize + versionSize}
		if err := client.Send(append(h.Append(nil), 0, 0)[:said]); err != nil {
			t.Fatal(err)
		}
		if err := c.serve(time.Millisecond); !errors.Is(err, ErrProtocol) {
			t.Errorf("after %d bytes: %v, want %v", said, err, ErrProtocol)
		}
	}
}
