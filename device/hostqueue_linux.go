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

// maxHostQueues is how many queues a TAP device can have, and sockets that share an interface.
const maxHostQueues = 256

// checkHostQueues returns the number of queues that a configuration asks for.
func checkHostQueues(n int) (int, error) {
	if n < 0 || n > maxHostQueues {
		return 0, fmt.Errorf("%d queues: from 1 to %d", n, maxHostQueues)
	}
	return max(n, 1), nil
}

// hostHeader is the length in bytes of the struct virtio_net_hdr before each frame, in both directions. It is without
// num_buffers, which means nothing here, and in the byte order of the machine.
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

	running sync.Mutex   // held by Run, and while the descriptors are closed
	gate    sync.RWMutex // held for reading while the descriptors are written to
	closed  bool         // guarded by gate
	stop    func()       // ends Run; nil before the first; guarded by gate

	fell   func()      // what to do when a frame finds the device down; nil: nothing
	fallen atomic.Bool // it was found down, and nothing tells when it is gone for good: see Packet.fall

	down, full, refused, broken atomic.Uint64
}

// hostQueue is one of the descriptors, and a source of frames for its worker.
//
// The worker waits in poll rather than in Go's network poller: like the connection of a legacy adapter, it then has its
// turn as soon as the kernel wakes it, also when goroutines keep all processors busy.
type hostQueue struct {
	port *hostPort
	fd   int
	wake int // an eventfd that makes Wait return

	// receive reads one frame into p. EAGAIN: there is none. No error and no frame: there was one, which is lost.
	receive func(fd int, p []byte) (header, frame []byte, err unix.Errno)

	// failed says what another error of receive means. It ends the queue.
	failed func(err unix.Errno) error

	// Of the worker.
	in     *vswitch.Ingress
	err    error // what ended it
	frames [hostBatch]vswitch.Frame
	arena  []byte // what frames are in

	mu   sync.Mutex // guards copy
	copy []byte     // a frame in one piece; made when first needed
}

var _ Queue = (*hostQueue)(nil)

// newHostQueue takes fd over, which does not block.
func newHostQueue(p *hostPort, fd int) (*hostQueue, error) {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &hostQueue{port: p, fd: fd, wake: wake, arena: make([]byte, hostArena)}, nil
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
	p.running.Lock()
	defer p.running.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.gate.Lock()
	closed := p.closed
	p.stop = cancel
	p.gate.Unlock()
	if closed {
		return nil
	}
	defer context.AfterFunc(ctx, p.wakeAll)()
	var workers sync.WaitGroup
	for _, q := range p.queues {
		q.in, q.err = m.NewIngress(), nil
		workers.Go(func() {
			defer cancel() // one that has gone takes the others with it
			work(ctx, q, hostBatch, p.spinners)
		})
	}
	workers.Wait()
	for _, q := range p.queues {
		if q.err != nil {
			return fmt.Errorf("%s %q: %w", p.kind, p.name, q.err)
		}
	}
	return nil
}

// wakeAll wakes the workers that wait.
func (p *hostPort) wakeAll() {
	for _, q := range p.queues {
		unix.Write(q.wake, one) // it fails when the counter is full, and then it is not needed
	}
}

// Close ends Run, waits for its end, and closes the descriptors. Deliver takes no more frames.
func (p *hostPort) Close() error {
	p.gate.Lock()
	closed := p.closed
	p.closed = true
	if p.stop != nil {
		p.stop()
	}
	p.gate.Unlock()
	p.running.Lock()
	defer p.running.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, q := range p.queues {
		errs = append(errs, os.NewSyscallError("close", unix.Close(q.fd)), os.NewSyscallError("close", unix.Close(q.wake)))
	}
	return errors.Join(errs...)
}

// Pull implements Queue.
func (q *hostQueue) Pull(budget int) int {
	n := q.read(min(budget, hostBatch))
	if n > 0 {
		q.in.Forward(q.frames[:n])
	}
	return n
}

// Arm implements Queue: there is nothing to ask for.
func (q *hostQueue) Arm() bool { return false }

// unreported is how often a device is looked at of whose end there is no report.
const unreported = 250 * time.Millisecond

// Wait implements Queue. When ctx is done, Run wakes it.
func (q *hostQueue) Wait(context.Context) error {
	if q.err != nil {
		return q.err
	}
	limit := -1
	if q.port.fallen.Load() {
		limit = int(unreported / time.Millisecond)
	}
	fds := [...]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}, {Fd: int32(q.wake), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds[:], limit); err != nil && err != unix.EINTR {
		q.err = os.NewSyscallError("poll", err)
		return q.err
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		unix.Read(q.wake, count[:]) // by which it is 0 again
	}
	return nil
}

// read reads frames until there are no more, or it was budget of them, or there is no room for the longest. It returns
// how many there are.
func (q *hostQueue) read(budget int) (n int) {
	at := 0
	for tries := 0; tries < budget && at+hostSlot <= len(q.arena); tries++ {
		header, frame, errno := q.receive(q.fd, q.arena[at:at+hostSlot])
		switch {
		case errno == unix.EAGAIN:
			return n
		case errno != 0:
			q.err = q.failed(errno)
			return n
		case frame == nil:
			q.port.broken.Add(1)
			continue
		}
		q.frames[n] = vswitch.Frame{Head: frame, Len: len(frame), Offload: hostOffload(header)}
		n++
		const line = 64 // of the cache
		at += (hostHeader + len(frame) + line) &^ (line - 1)
	}
	return n
}

// makeHostHeader returns a header of what the switch has made of the sender's.
func makeHostHeader(o *vswitch.Offload) (h [hostHeader]byte) {
	if o.NeedsChecksum {
		h[0] = hdrNeedsChecksum
		h[1] = byte(o.GSO)
		if o.ECN {
			h[1] |= hdrECN
		}
		binary.NativeEndian.PutUint16(h[2:], o.HeadersLen)
		binary.NativeEndian.PutUint16(h[4:], o.GSOSize)
		binary.NativeEndian.PutUint16(h[6:], o.ChecksumStart)
		binary.NativeEndian.PutUint16(h[8:], o.ChecksumOffset)
	}
	return h
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
		GSOSize:        binary.NativeEndian.Uint16(h[4:]),
		ChecksumStart:  binary.NativeEndian.Uint16(h[6:]),
		ChecksumOffset: binary.NativeEndian.Uint16(h[8:]),
	}
}

// Deliver implements vswitch.Port. It writes to the kernel without waiting: a frame for which there is no room, and those
// behind it, are lost, and one that the kernel refuses is lost alone. With several queues, each takes the flows that fall
// to it.
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
			lose(frames[i:])
			if p.fell != nil {
				p.fell()
			}
			return n
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			p.full.Add(uint64(len(frames) - i))
			lose(frames[i:])
			return n
		default: // the fault of this one
			p.refused.Add(1)
			f.Lost = true
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
	header := makeHostHeader(&f.Offload)
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
	header := makeHostHeader(&f.Offload)
	b := f.AppendTo(append(q.copy[:0], header[:]...))
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno
}
