package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	"polder/vswitch"
)

// HostStats counts the frames that a Tap or a Packet loses; the switch counts the rest. The first three are of frames
// from the switch, and are among what it calls receiver-full.
type HostStats struct {
	Down    uint64 // the device was not up
	Full    uint64 // the kernel had no room: the socket's buffer, the device's queue, memory
	Refused uint64 // the kernel would not have the frame, as when it exceeds the MTU

	Missed uint64 // frames to the switch that the kernel dropped because they were not read in time
	Broken uint64 // frames to the switch that cannot be expressed by a virtio_net_hdr, or are too long
}

// hostHeader is the length in bytes of the struct virtio_net_hdr before each frame, in both directions. It is without
// num_buffers, which means nothing here.
const hostHeader = legacyHeader

// hostSlot is the room that a frame may need, in bytes.
const hostSlot = hostHeader + vswitch.MaxFrameLen

const (
	// hostBatch bounds the frames of one Pull.
	hostBatch = 32

	// hostArena is what a queue reads into before it forwards, in bytes: a batch of ordinary frames, or a few of the
	// longest. More would leave the processor's cache before it is copied to its receiver.
	hostArena = 256 << 10

	// hostParts is how many pieces a frame may have, the header's among them, and go to the kernel as it lies: what
	// Linux's driver makes of its longest (17 fragments, and what lies in front of them), and a few more.
	hostParts = 24
)

// hostPort is what a TAP device and a packet socket have in common: a port of the switch that is one or several file
// descriptors, through each of which frames go in both directions, with a struct virtio_net_hdr before each.
type hostPort struct {
	kind     string // what the device is, for errors
	name     string // of the device
	log      *slog.Logger
	spinners *vfiouser.Spinners
	accepts  vswitch.OffloadSet
	queues   []*hostQueue

	gate   sync.RWMutex // held for reading while the descriptors are written to
	closed bool         // guarded by gate

	fell   func()      // what to do when a frame finds the device down; nil: nothing
	fallen atomic.Bool // it was found down, and nothing tells when it is gone for good: see there

	down, full, refused, broken atomic.Uint64
}

// hostQueue is one of the descriptors, and a source of frames for its worker, which alone uses what follows fd.
type hostQueue struct {
	port *hostPort
	file *os.File
	raw  syscall.RawConn
	fd   int // of file

	// receive reads one frame into p. No error and no frame: there was one, which is lost.
	receive func(fd int, p []byte) (header, frame []byte, err unix.Errno)

	// failed returns the error that ends the queue for one of receive's; nil: none does.
	failed func(err unix.Errno) error

	refill func(fd uintptr)      // fill, for raw
	await  func(fd uintptr) bool // the same

	in     *vswitch.Ingress
	err    error // what ended the queue
	timed  bool  // Wait is limited
	budget int
	count  int // frames that were read and are not forwarded yet
	frames [hostBatch]vswitch.Frame
	arena  []byte

	mu   sync.Mutex // guards copy
	copy []byte     // a frame in one piece; made when first needed
}

var _ Queue = (*hostQueue)(nil)

// newHostQueue takes fd over, which does not block.
func newHostQueue(p *hostPort, fd int) (*hostQueue, error) {
	file := os.NewFile(uintptr(fd), p.name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	q := &hostQueue{port: p, file: file, raw: raw, fd: fd, budget: hostBatch, arena: make([]byte, hostArena)}
	q.refill = func(fd uintptr) { q.fill(int(fd)) }
	q.await = func(fd uintptr) bool { return q.fill(int(fd)) }
	return q, nil
}

// Accepts implements vswitch.OffloadPort.
func (p *hostPort) Accepts() vswitch.OffloadSet { return p.accepts }

// Stats returns the port's counters.
func (p *hostPort) Stats() HostStats {
	return HostStats{
		Down: p.down.Load(), Full: p.full.Load(), Refused: p.refused.Load(),
		Broken: p.broken.Load(),
	}
}

// Run sends to the switch, as m, what the host has for it, until ctx is done or the port is closed; then it returns
// nil. It returns an error when the device has gone: then the port is of no more use, and its owner makes it leave the
// switch. When Run has returned, nothing uses m any more. It may be called again, but not twice at once.
func (p *hostPort) Run(ctx context.Context, m *vswitch.Member) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers sync.WaitGroup
	for _, q := range p.queues {
		q.in, q.err = m.NewIngress(), nil
		q.file.SetReadDeadline(time.Time{})
		stop := context.AfterFunc(ctx, func() { q.file.SetReadDeadline(time.Unix(1, 0)) })
		workers.Go(func() {
			defer cancel() // one that has gone takes the others with it
			defer stop()
			work(ctx, q, hostBatch, p.spinners)
		})
	}
	workers.Wait()
	p.gate.RLock()
	defer p.gate.RUnlock()
	if p.closed {
		return nil
	}
	for _, q := range p.queues {
		if q.err != nil {
			return fmt.Errorf("%s %q: %w", p.kind, p.name, q.err)
		}
	}
	return nil
}

// Close closes the descriptors and ends Run. Deliver takes no more frames.
func (p *hostPort) Close() error {
	p.gate.Lock()
	defer p.gate.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for _, q := range p.queues {
		errs = append(errs, q.file.Close())
	}
	return errors.Join(errs...)
}

// Pull implements Queue.
func (q *hostQueue) Pull(budget int) int {
	if q.count == 0 {
		q.budget = min(budget, hostBatch)
		if err := q.raw.Control(q.refill); err != nil {
			q.err = err
		}
	}
	n := q.count
	if n > 0 {
		q.count = 0
		q.in.Forward(q.frames[:n])
	}
	return n
}

// Arm implements Queue: Wait looks for frames before it sleeps.
func (q *hostQueue) Arm() bool { return false }

// Wait implements Queue. It reads what it was woken for. When ctx is done, Run wakes it.
func (q *hostQueue) Wait(ctx context.Context) error {
	if q.err != nil {
		return q.err
	}
	if fallen := q.port.fallen.Load(); fallen || q.timed {
		var limit time.Time
		if fallen {
			limit = time.Now().Add(unreported)
		}
		q.file.SetReadDeadline(limit)
		q.timed = fallen
		if ctx.Err() != nil { // and may have set its own before
			return nil
		}
	}
	err := q.raw.Read(q.await)
	if q.err != nil {
		return q.err
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	// The descriptor is closed, or it has an error and nothing else, of which the poller tells no more. A read knows
	// which.
	if err := q.raw.Control(q.refill); err != nil {
		q.err = err
	}
	if q.err == nil && q.count == 0 {
		select {
		case <-ctx.Done():
		case <-time.After(unpolled):
		}
	}
	return q.err
}

const (
	// unpolled is how often a descriptor is looked at that the poller will not wait for.
	unpolled = 10 * time.Millisecond

	// unreported is how often a device is looked at of whose end there is no report.
	unreported = 250 * time.Millisecond
)

// fill reads frames until there are no more, or it was budget of them, or there is no room for the longest. It reports
// false when there are none and it is to be waited for more.
func (q *hostQueue) fill(fd int) bool {
	at := 0
	for tries := 0; tries < q.budget && at+hostSlot <= len(q.arena); tries++ {
		header, frame, errno := q.receive(fd, q.arena[at:at+hostSlot])
		switch errno {
		case 0:
		case unix.EAGAIN:
			return q.count > 0
		default:
			if err := q.failed(errno); err != nil {
				q.err = err
				return true
			}
			continue
		}
		if frame == nil {
			q.port.broken.Add(1)
			continue
		}
		q.frames[q.count] = vswitch.Frame{Head: frame, Len: len(frame), Offload: hostOffload(header)}
		q.count++
		const line = 64 // of the cache
		at += (hostHeader + len(frame) + line) &^ (line - 1)
	}
	return true
}

// hostOffload reads a header. Its GSO kind is the kernel's, and its other fields are as they come: the switch compares
// them with the frame.
func hostOffload(h []byte) vswitch.Offload {
	if h[0]&hdrNeedsChecksum == 0 && h[1] == 0 {
		return vswitch.Offload{}
	}
	return vswitch.Offload{
		NeedsChecksum:  h[0]&hdrNeedsChecksum != 0,
		GSO:            vswitch.GSOKind(h[1] &^ hdrECN),
		GSOSize:        binary.LittleEndian.Uint16(h[4:]),
		ChecksumStart:  binary.LittleEndian.Uint16(h[6:]),
		ChecksumOffset: binary.LittleEndian.Uint16(h[8:]),
	}
}

// Deliver implements vswitch.Port. It writes to the kernel without waiting: a frame for which there is no room, and those
// behind it, are lost. With several queues, each takes the flows that fall to it.
func (p *hostPort) Deliver(frames []*vswitch.Frame) (n int) {
	p.gate.RLock()
	defer p.gate.RUnlock() // also if a sender's memory vanishes
	if p.closed {
		return 0
	}
	for i, f := range frames {
		q := p.queues[0]
		if len(p.queues) > 1 {
			q = p.queues[flowHash(f.Head)%uint32(len(p.queues))]
		}
		errno := q.send(f)
		switch errno {
		case unix.EFAULT:
			errno = q.sendCopy(f)
		case unix.ENETDOWN: // or it was, and the socket tells only now
			errno = q.send(f)
		}
		switch errno {
		case 0:
			n++
		case unix.EIO, unix.ENETDOWN, unix.ENXIO, unix.EBADFD:
			p.down.Add(uint64(len(frames) - i))
			if p.fell != nil {
				p.fell()
			}
			return n
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			p.full.Add(uint64(len(frames) - i))
			return n
		default: // the fault of this one
			p.refused.Add(1)
		}
	}
	return n
}

// send writes a frame from where it lies. EFAULT means that a part of it is not there any more.
func (q *hostQueue) send(f *vswitch.Frame) unix.Errno {
	var parts [hostParts]unix.Iovec
	if 2+len(f.Body) > len(parts) {
		return q.sendCopy(f)
	}
	header := makeHeader(&f.Offload, 0)
	parts[0].Base = &header[0]
	parts[0].SetLen(hostHeader)
	parts[1].Base = unsafe.SliceData(f.Head)
	parts[1].SetLen(len(f.Head))
	for i, b := range f.Body {
		parts[2+i].Base = unsafe.SliceData(b)
		parts[2+i].SetLen(len(b))
	}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&parts)), uintptr(2+len(f.Body)))
	return errno
}

// sendCopy writes a frame after it has collected it. If a part of it is gone, that shows here, as a fault which the sender
// recovers from.
func (q *hostQueue) sendCopy(f *vswitch.Frame) unix.Errno {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.copy == nil {
		q.copy = make([]byte, hostSlot)
	}
	header := makeHeader(&f.Offload, 0)
	b := f.AppendTo(append(q.copy[:0], header[:hostHeader]...))
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno
}
