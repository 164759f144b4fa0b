package device

import (
	"fmt"
	"log/slog"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	"polder/vswitch"
)

// TapConfig says which TAP device to make.
type TapConfig struct {
	// Name is the device's. Empty, or with %d in it, it leaves a number for the kernel to choose.
	Name string

	// Queues is how many queues the device has, each with a goroutine of its own, 1 to 256; 0 stands for 1. The kernel
	// sends a flow on the queue on which it last received of it, which is the one to which its hash falls here.
	Queues int

	// NoOffload has the kernel finish checksums and segments before it sends, and the switch before it delivers.
	NoOffload bool

	Spinners *vfiouser.Spinners // how many workers may look out for frames before they sleep; nil: none
	Log      *slog.Logger
}

// Tap is a TAP device on a port of the switch: an Ethernet interface of the host, or of whatever network namespace
// it is moved to, whose other end is the switch. It implements vswitch.OffloadPort.
//
// It is no more than its device's other end: the interface's addresses, MTU, bridge and whether it is up are its owner's
// affair. While it is down, frames to it are lost, and counted as such.
type Tap struct{ hostPort }

var _ vswitch.OffloadPort = (*Tap)(nil)

// OpenTap makes a TAP device in the calling thread's network namespace, or opens one that exists and that nobody uses.
// A device that it makes is there until Close or the process's end. It takes CAP_NET_ADMIN in the namespace, or a device that was
// made for the process's user.
func OpenTap(c TapConfig) (*Tap, error) {
	queues, err := checkHostQueues(c.Queues)
	if err != nil {
		return nil, fmt.Errorf("TAP device %q: %w", c.Name, err)
	}
	t := &Tap{hostPort{kind: "TAP device", name: c.Name, log: c.Log, spinners: c.Spinners}}
	for range queues {
		if err := t.open(queues > 1, c.NoOffload); err != nil {
			t.Close()
			return nil, fmt.Errorf("TAP device %q: %w", c.Name, err)
		}
	}
	return t, nil
}

// Name returns the name that the device got. It may have been renamed since.
func (t *Tap) Name() string { return t.name }

// open adds a queue. The first makes the device and learns its name.
func (t *Tap) open(several, noOffload bool) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	if err := t.attach(fd, several); err != nil {
		unix.Close(fd)
		return err
	}
	if t.accepts, err = tapOffloads(fd, noOffload); err != nil {
		unix.Close(fd)
		return err
	}
	q, err := newHostQueue(&t.hostPort, fd)
	if err != nil {
		return err
	}
	q.receive = tapReceive
	q.failed = func(errno unix.Errno) error {
		if errno == unix.EBADFD || errno == unix.EFAULT { // also what a read finds that is under way
			return fmt.Errorf("somebody has deleted it: %w", errno)
		}
		return fmt.Errorf("read: %w", errno)
	}
	t.queues = append(t.queues, q)
	return nil
}

// attach gives fd its device.
func (t *Tap) attach(fd int, several bool) error {
	request, err := unix.NewIfreq(t.name)
	if err != nil {
		return fmt.Errorf("the name is longer than %d bytes: %w", unix.IFNAMSIZ-1, err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if several {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err {
	case nil:
	case unix.EINVAL:
		return fmt.Errorf("TUNSETIFF: %w: is there one of another kind, or made for another number of queues?", err)
	default:
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	t.name = request.Name()
	// It stays with a device that persists, and its last user may have chosen another.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, hostHeader); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	return nil
}

// tapOffloads tells the kernel what it may leave undone, and returns what we may. That is the same, as far as the
// kernel knows of it: USO since Linux 6.2.
func tapOffloads(fd int, none bool) (vswitch.OffloadSet, error) {
	const (
		accepts = vswitch.OffloadChecksum | vswitch.OffloadTSO4 | vswitch.OffloadTSO6 | vswitch.OffloadECN
		flags   = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	)
	set := func(flags int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) }
	if none {
		if err := set(0); err != nil {
			return 0, fmt.Errorf("TUNSETOFFLOAD: %w", err)
		}
		return 0, nil
	}
	if err := set(flags | unix.TUN_F_USO4 | unix.TUN_F_USO6); err == nil {
		return accepts | vswitch.OffloadUSO, nil
	}
	if err := set(flags); err != nil {
		return 0, fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	return accepts, nil
}

// tapReceive reads a frame. The kernel puts VLAN tags where they belong.
func tapReceive(fd int, p []byte) (header, frame []byte, errno unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 || n < hostHeader {
		return nil, nil, errno
	}
	return p[:hostHeader], p[hostHeader:n], 0
}
