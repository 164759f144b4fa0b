package device_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// asRoot reports whether the test may make network devices. If not, it runs the test again in a user namespace, whose
// root may, and reports false: the caller is done.
func asRoot(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as root of a user namespace: %v\n%s\nThis test makes network devices: run it as root, or where users may make namespaces and open /dev/net/tun.", err, out)
	}
	return false
}

// patience is how long a test waits for what takes no time, before it fails.
const patience = 10 * time.Second

// network is a network namespace of a test's own.
type network struct {
	tb   testing.TB
	fd   int // of the namespace
	host *netlink.Handle
}

// newNetwork makes a namespace, and puts the test's goroutine into it, until the test ends.
func newNetwork(tb testing.TB) *network {
	tb.Helper()
	runtime.LockOSThread()
	tb.Cleanup(runtime.UnlockOSThread)
	const self = "/proc/thread-self/ns/net"
	before, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(tb, err)
	tb.Cleanup(func() { unix.Close(before) })
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("network namespace: %v (it takes root)", err)
	}
	tb.Cleanup(func() { check(tb, unix.Setns(before, unix.CLONE_NEWNET)) })
	n := &network{tb: tb}
	n.fd, err = unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(tb, err)
	tb.Cleanup(func() { unix.Close(n.fd) })
	n.host, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	check(tb, err)
	tb.Cleanup(n.host.Close)
	os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0) // an address is there at once
	return n
}

// enter puts the test's goroutine into the namespace.
func (n *network) enter() { check(n.tb, unix.Setns(n.fd, unix.CLONE_NEWNET)) }

func (n *network) link(name string) netlink.Link {
	n.tb.Helper()
	link, err := n.host.LinkByName(name)
	check(n.tb, err)
	return link
}

// up brings interfaces up, and waits until they have a carrier and send. What is sent before is lost.
func (n *network) up(names ...string) {
	n.tb.Helper()
	for _, name := range names {
		check(n.tb, n.host.LinkSetUp(n.link(name)))
	}
	for _, name := range names {
		for begin := time.Now(); ; time.Sleep(time.Millisecond) {
			state := n.link(name).Attrs().OperState
			if state == netlink.OperUp || state == netlink.OperUnknown { // as a TAP device's is
				break
			}
			if time.Since(begin) > patience {
				n.tb.Fatalf("%s does not come up: it is %v", name, state)
			}
		}
	}
}

func (n *network) down(name string) {
	n.tb.Helper()
	check(n.tb, n.host.LinkSetDown(n.link(name)))
}

func (n *network) mtu(name string, mtu int) {
	n.tb.Helper()
	check(n.tb, n.host.LinkSetMTU(n.link(name), mtu))
}

func (n *network) delete(name string) {
	n.tb.Helper()
	check(n.tb, n.host.LinkDel(n.link(name)))
}

// address gives an interface an address like 10.9.0.1/24.
func (n *network) address(name, address string) {
	n.tb.Helper()
	a, err := netlink.ParseAddr(address)
	check(n.tb, err)
	a.Flags = unix.IFA_F_NODAD
	check(n.tb, n.host.AddrAdd(n.link(name), a))
}

// veth makes a pair of interfaces that are up.
func (n *network) veth(a, b string) {
	n.tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	check(n.tb, n.host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b}))
	n.up(a, b)
}

// wire is an interface as a test sees it from the other side, or from the host's: it sends and receives frames, with or
// without headers.
type wire struct {
	tb     testing.TB
	fd     int
	header bool
	ring   []byte // nil: none
	next   int
}

// Size of a wire's ring: more frames than a test sends before it looks.
const (
	wireFrames = 2048
	wireFrame  = 2048 // bytes
)

// newWire opens an interface in the goroutine's namespace. With header, frames have a struct virtio_net_hdr before them
// in both directions; without, up to wireFrames frames of ordinary length wait.
func newWire(tb testing.TB, name string, header bool) *wire {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	check(tb, err)
	tb.Cleanup(func() { unix.Close(fd) })
	w := &wire{tb: tb, fd: fd, header: header}
	request, err := unix.NewIfreq(name)
	check(tb, err)
	check(tb, unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request))
	check(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	if header {
		check(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	} else {
		const version = 1 // TPACKET_V2
		check(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, version))
		const block = 1 << 16
		r := unix.TpacketReq{Block_size: block, Block_nr: wireFrames * wireFrame / block, Frame_size: wireFrame, Frame_nr: wireFrames}
		check(tb, unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &r))
		w.ring, err = unix.Mmap(fd, 0, wireFrames*wireFrame, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		check(tb, err)
		tb.Cleanup(func() { check(tb, unix.Munmap(w.ring)) })
	}
	limit := unix.NsecToTimeval(int64(patience))
	check(tb, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL})
	check(tb, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(request.Uint32())}))
	return w
}

// take returns the frames in the ring, of those that porttest makes. A VLAN tag of theirs is not in them.
func (w *wire) take() (frames [][]byte) {
	for {
		h := w.ring[w.next*wireFrame:]
		status := (*atomic.Uint32)(unsafe.Pointer(&h[0]))
		if status.Load()&unix.TP_STATUS_USER == 0 {
			return frames
		}
		mac, n := binary.NativeEndian.Uint16(h[12:]), binary.NativeEndian.Uint32(h[8:])
		f := slices.Clone(h[mac:][:n])
		if len(f) > 14 && f[12] == 0x88 && f[13] == 0xb5 {
			frames = append(frames, f)
		}
		status.Store(unix.TP_STATUS_KERNEL)
		w.next = (w.next + 1) % wireFrames
	}
}

// receive waits for a frame with its header, from the address of the test's senders.
func (w *wire) receive() (header, frame []byte) {
	w.tb.Helper()
	p := make([]byte, 1<<17)
	for {
		n, err := unix.Read(w.fd, p)
		check(w.tb, err)
		if n >= 10+14 && p[10+6] == 2 && p[10+7] == 0 && p[10+8] == 0 {
			return p[:10], p[10:n]
		}
	}
}

// send sends a frame; a header first, if the wire has them.
func (w *wire) send(parts ...[]byte) {
	w.tb.Helper()
	b := slices.Concat(parts...)
	n, err := unix.Write(w.fd, b)
	check(w.tb, err)
	if n != len(b) {
		w.tb.Fatalf("%d of %d bytes sent", n, len(b))
	}
}
