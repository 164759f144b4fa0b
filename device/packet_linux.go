package device

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/device/vfiouser"
	"polder/vswitch"
)

// PacketConfig says which interface to take.
type PacketConfig struct {
	// Interface is the name of an Ethernet interface in the calling thread's network namespace.
	Interface string

	// Queues is how many sockets share the frames from the interface, by flows, each with a goroutine of its own, 1 to
	// 256; 0 stands for 1.
	Queues int

	// NoOffload has the switch finish checksums and segments before it delivers. What comes from the interface may be
	// several segments in one (GRO) all the same.
	NoOffload bool

	Spinners *vfiouser.Spinners // how many workers may look out for frames before they sleep; nil: none
	Log      *slog.Logger
}

// Packet is an Ethernet interface on a port of the switch, by packet sockets: what the interface receives, from
// whomever to whomever, goes to the switch, and what the switch delivers goes to the wire. It implements
// vswitch.OffloadPort.
//
// The host's own stack is still on the interface. What it sends there does not come to the switch, nor what the switch
// sends to it: an interface with a Packet has no addresses of the host. LRO is to be off, since nobody can undo it.
//
// While the interface is down, frames to it are lost, and counted as such. It is logged when that is found, and when it
// is up again.
//
// The sockets are plain ones. A memory-mapped ring would copy no less, since a frame is copied into it and out of it
// again, and TPACKET_V3 hands over what came only when a block of it is full or a timer of milliseconds has run out, for
// which every acknowledgement of a guest would wait. Nor do they bypass the queueing discipline: without one, a frame that finds the
// interface's ring full is lost, and a guest's bursts are longer than that.
type Packet struct {
	hostPort
	sockets []*packetSocket
}

var _ vswitch.OffloadPort = (*Packet)(nil)

// packetSocket is what a socket is read with.
type packetSocket struct {
	port    *Packet
	message unix.Msghdr
	part    unix.Iovec
	control [64]byte // room for a struct tpacket_auxdata with its header
	header  [hostHeader]byte
	missed  uint64 // guarded by port.gate held for writing
}

// The kernel's buffers for each socket, in bytes as it counts them, which is some more than there is in the frames.
const (
	packetReceiveBuffer = 8 << 20 // a hundred of the longest frames
	packetSendBuffer    = 4 << 20 // between here and the wire
)

// OpenPacket takes an interface. It takes CAP_NET_RAW in the interface's network namespace. The interface is
// promiscuous until Close or the process's end.
func OpenPacket(c PacketConfig) (*Packet, error) {
	queues, err := checkHostQueues(c.Queues)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", c.Interface, err)
	}
	p := &Packet{hostPort: hostPort{kind: "interface", name: c.Interface, log: c.Log, spinners: c.Spinners}}
	if !c.NoOffload {
		// Without USO: there is no telling whether the kernel can (Linux 6.2).
		p.accepts = vswitch.OffloadChecksum | vswitch.OffloadTSO4 | vswitch.OffloadTSO6 | vswitch.OffloadECN
	}
	p.fell = func() { p.fall(p.queues[0].fd) }
	if err := p.open(queues); err != nil {
		p.Close()
		return nil, fmt.Errorf("interface %q: %w", c.Interface, err)
	}
	return p, nil
}

func (p *Packet) open(queues int) error {
	var group int
	for i := range queues {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if err := packetSetup(fd, p.name, i == 0); err != nil {
			unix.Close(fd)
			return err
		}
		if queues > 1 {
			if group, err = packetJoin(fd, group); err != nil {
				unix.Close(fd)
				return err
			}
		}
		q, err := newHostQueue(&p.hostPort, fd)
		if err != nil {
			return err
		}
		s := &packetSocket{port: p}
		q.receive, q.failed = s.receive, packetFailed
		p.queues, p.sockets = append(p.queues, q), append(p.sockets, s)
	}
	if queues > 1 { // each has had all the frames until it joined the group
		for i, s := range p.sockets {
			for errno := unix.Errno(0); errno == 0; {
				_, _, errno = s.receive(p.queues[i].fd, p.queues[i].arena)
			}
		}
	}
	return nil
}

// packetSetup makes fd a socket for all that the interface receives, and nothing that goes out on it.
func packetSetup(fd int, name string, promiscuous bool) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("the name is longer than %d bytes: %w", unix.IFNAMSIZ-1, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return fmt.Errorf("SIOCGIFINDEX: %w", err)
	}
	index := int(request.Uint32())
	for _, o := range []struct {
		name  string
		value int
	}{
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR},
		{"PACKET_AUXDATA", unix.PACKET_AUXDATA},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.value, 1); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	for _, b := range []struct{ force, usual, size int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, packetReceiveBuffer},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, packetSendBuffer},
	} {
		// The kernel doubles what it is asked for, and without CAP_NET_ADMIN gives as much as it pleases.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, b.size/2) != nil {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.usual, b.size/2); err != nil {
				return fmt.Errorf("SO_RCVBUF, SO_SNDBUF: %w", err)
			}
		}
	}
	if promiscuous {
		m := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			return fmt.Errorf("PACKET_MR_PROMISC: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	if a, ok := address.(*unix.SockaddrLinklayer); !ok || a.Hatype != unix.ARPHRD_ETHER {
		return errors.New("it is not an Ethernet interface")
	}
	return nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// packetJoin has fd share the interface's frames with the sockets of a group, and returns its number; 0 begins one.
func packetJoin(fd, group int) (int, error) {
	flags := unix.PACKET_FANOUT_HASH | unix.PACKET_FANOUT_FLAG_IGNORE_OUTGOING // which is no longer up to each socket
	if group == 0 {
		flags |= unix.PACKET_FANOUT_FLAG_UNIQUEID
	}
	how := group | flags<<16
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, how); err != nil {
		return 0, fmt.Errorf("PACKET_FANOUT: %w", err)
	}
	how, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return 0, fmt.Errorf("PACKET_FANOUT: %w", err)
	}
	return how & 0xffff, nil
}

// receive reads a frame and puts the VLAN tag back that the kernel has taken off.
func (s *packetSocket) receive(fd int, p []byte) (header, frame []byte, errno unix.Errno) {
	s.part.Base = unsafe.SliceData(p)
	s.part.SetLen(len(p))
	s.message = unix.Msghdr{Iov: &s.part, Control: &s.control[0]}
	s.message.SetIovlen(1)
	s.message.SetControllen(len(s.control))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.message)), 0)
	switch {
	case errno == unix.EINVAL: // no header can tell of it, and it is gone
		return nil, nil, 0
	case errno == unix.ENETDOWN:
		s.port.fall(fd)
		return nil, nil, unix.EAGAIN
	case errno == unix.EAGAIN && s.port.fallen.Load():
		return nil, nil, s.port.look(fd)
	case errno != 0:
		return nil, nil, errno
	}
	if n < hostHeader || s.message.Flags&unix.MSG_TRUNC != 0 {
		return nil, nil, 0
	}
	header, frame = p[:hostHeader], p[hostHeader:n]
	if tag := packetTag(s.control[:s.message.Controllen]); tag != 0 && len(frame) >= 12 {
		copy(s.header[:], header)
		if header = s.header[:]; header[0]&hdrNeedsChecksum != 0 {
			start := binary.NativeEndian.Uint16(header[6:])
			binary.NativeEndian.PutUint16(header[6:], start+4)
		}
		frame = p[hostHeader-4 : n]
		copy(frame, frame[4:4+12])
		binary.BigEndian.PutUint32(frame[12:], tag)
	}
	return header, frame, 0
}

// packetTag returns the VLAN tag of a frame, its type and what follows that, from the control messages that came with it;
// 0: it has none. They hold a struct tpacket_auxdata.
func packetTag(control []byte) uint32 {
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Level != unix.SOL_PACKET || h.Type != unix.PACKET_AUXDATA || len(data) < 20 {
		return 0
	}
	status := binary.NativeEndian.Uint32(data)
	if status&unix.TP_STATUS_VLAN_VALID == 0 {
		return 0
	}
	kind := uint32(unix.ETH_P_8021Q)
	if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		kind = uint32(binary.NativeEndian.Uint16(data[18:]))
	}
	return kind<<16 | uint32(binary.NativeEndian.Uint16(data[16:]))
}

// packetState tells of a socket's interface whether it is up, and whether it is no more.
func packetState(fd int) (up, gone bool) {
	address, err := unix.Getsockname(fd)
	a, ok := address.(*unix.SockaddrLinklayer)
	if err != nil || !ok || a.Ifindex <= 0 {
		return false, true
	}
	request, err := unix.NewIfreq("")
	if err == nil {
		request.SetUint32(uint32(a.Ifindex))
		err = unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request)
	}
	return err == nil && request.Uint16()&unix.IFF_UP != 0, false
}

// fall is called when a socket has told that the interface is down, to whichever goroutine. It has told once since that
// happened, which may be long ago, and will not when the interface comes up, nor when it is deleted after that. So the
// workers, which fall wakes, look from now on.
func (p *Packet) fall(fd int) {
	if p.fallen.Load() {
		return
	}
	if up, _ := packetState(fd); !up && p.fallen.CompareAndSwap(false, true) {
		p.log.Warn("the interface is down", "interface", p.name)
		p.wakeAll()
	}
}

// look is called when there is nothing to receive from an interface that was found down. It returns EAGAIN, or ENODEV
// when there never will be.
func (p *Packet) look(fd int) unix.Errno {
	up, gone := packetState(fd)
	switch {
	case gone:
		return unix.ENODEV
	case up && p.fallen.CompareAndSwap(true, false):
		p.log.Info("the interface is up again", "interface", p.name)
	}
	return unix.EAGAIN
}

// packetFailed judges an error of receive.
func packetFailed(errno unix.Errno) error {
	if errno == unix.ENODEV {
		return fmt.Errorf("it was removed: %w", errno)
	}
	return fmt.Errorf("recvmsg: %w", errno)
}

// Stats returns the port's counters.
func (p *Packet) Stats() HostStats {
	s := p.hostPort.Stats()
	p.gate.Lock() // also against others who count
	defer p.gate.Unlock()
	for i, socket := range p.sockets {
		if !p.closed {
			// Reading it sets it back.
			if st, err := unix.GetsockoptTpacketStats(p.queues[i].fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				socket.missed += uint64(st.Drops)
			}
		}
		s.Missed += socket.missed
	}
	return s
}
