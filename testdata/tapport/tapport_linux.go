// Package tapport joins the host's network stack to a switch through a TAP device, for tests and benchmarks: what a
// program in the TAP's network namespace sends is forwarded, and what the switch delivers it receives.
//
// It has no more than that needs: no offloads, no several queues. Making a TAP device takes CAP_NET_ADMIN in the
// network namespace.
package tapport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/vswitch"
)

const (
	// maxFrame is the largest frame that a TAP device with the usual MTU of 1500 carries, in bytes: the Ethernet
	// header, a VLAN tag and the MTU.
	maxFrame = 14 + 4 + 1500

	// minFrame is the smallest Ethernet frame without FCS, in bytes. A NIC pads to it; the kernel's stack does not.
	minFrame = 60

	// headLen is how much of a frame goes into its Head, in bytes.
	headLen = 128

	// batch is how many frames are read before they are forwarded.
	batch = 32
)

// Port is a switch port that is a TAP device. It implements [vswitch.Port].
type Port struct {
	file *os.File
	raw  syscall.RawConn

	mu  sync.Mutex // guards out
	out [maxFrame]byte

	// Used by Run alone.
	in     [batch][maxFrame]byte
	bodies [batch][1][]byte
	frames [batch]vswitch.Frame
}

var _ vswitch.Port = (*Port)(nil)

// Open makes a TAP device in the calling thread's network namespace, or opens a persistent one. The device is
// there until Close.
func Open(name string) (*Port, error) {
	fd, err := openTAP(name)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return &Port{file: file, raw: raw}, nil
}

// Make makes a TAP device in the calling thread's network namespace for another program to open. It is there until
// it is deleted or its namespace ends.
func Make(name string) error {
	fd, err := openTAP(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("tap %s: TUNSETPERSIST: %w", name, err)
	}
	return nil
}

func openTAP(name string) (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("tap %s: /dev/net/tun: %w", name, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("tap %s: TUNSETIFF: %w", name, err)
	}
	return fd, nil
}

// Deliver implements [vswitch.Port]. The kernel takes frames as long as the device is up.
func (p *Port) Deliver(frames []*vswitch.Frame) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range frames {
		if f.Len > maxFrame {
			break
		}
		if _, err := p.file.Write(f.AppendTo(p.out[:0])); err != nil {
			break
		}
		n++
	}
	return n
}

// spinTime is how long Run looks out for frames before it sleeps, as the connection of an adapter does.
const spinTime = 100 * time.Microsecond

// Run forwards what the TAP device sends until ctx is done or the port is closed.
func (p *Port) Run(ctx context.Context, in *vswitch.Ingress) error {
	defer context.AfterFunc(ctx, func() { p.file.SetReadDeadline(time.Unix(1, 0)) })()
	quick := false // the last frames came within spinTime of those before
	for {
		var n int
		var failure error
		idle := time.Now()
		err := p.raw.Read(func(fd uintptr) bool {
			n, failure = p.read(int(fd))
			for quick && n == 0 && failure == nil && time.Since(idle) < spinTime {
				runtime.Gosched()
				n, failure = p.read(int(fd))
			}
			return n > 0 || failure != nil
		})
		quick = time.Since(idle) < spinTime
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("tap %s: %w", p.file.Name(), err)
		case failure != nil:
			return fmt.Errorf("tap %s: read: %w", p.file.Name(), failure)
		}
		in.Forward(p.frames[:n])
	}
}

// read fills frames with what the device has, without waiting.
func (p *Port) read(fd int) (n int, err error) {
	for n < batch {
		size, err := unix.Read(fd, p.in[n][:])
		switch {
		case err == unix.EAGAIN:
			return n, nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		}
		frame := p.in[n][:size]
		if size < minFrame {
			frame = p.in[n][:minFrame]
			clear(frame[size:])
		}
		head := min(len(frame), headLen)
		p.bodies[n][0] = frame[head:]
		p.frames[n] = vswitch.Frame{Head: frame[:head], Body: p.bodies[n][:], Len: len(frame)}
		n++
	}
	return n, nil
}

// Close removes the device, unless it is persistent, and ends Run.
func (p *Port) Close() error { return p.file.Close() }
