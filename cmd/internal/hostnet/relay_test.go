package hostnet

import (
	"encoding/binary"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// startRelay makes a switch with two ports: a TAP, and a NIC by a packet socket. Each frame goes with the
// header that says which of its checksums is still to be made.
func startRelay(fatalf func(string, ...any), tap, nic string) (stop func()) {
	a, b := openTAP(fatalf, tap), openPacket(fatalf, nic)
	done := make(chan struct{}, 2)
	pump := func(from, to *os.File) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 1<<17)
		for {
			n, err := from.Read(buf)
			if errors.Is(err, unix.ENETDOWN) {
				continue // and up again
			}
			if err != nil {
				return
			}
			to.Write(buf[:n]) // a frame that does not fit is lost, as on a wire
		}
	}
	go pump(a, b)
	go pump(b, a)
	return func() { a.Close(); b.Close(); <-done; <-done }
}

func openTAP(fatalf func(string, ...any), name string) *os.File {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		fatalf("open /dev/net/tun: %v", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		fatalf("%s: %v", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		fatalf("TAP %s: %v", name, err)
	}
	return os.NewFile(uintptr(fd), name)
}

func openPacket(fatalf func(string, ...any), nic string) *os.File {
	i, err := net.InterfaceByName(nic)
	if err != nil {
		fatalf("%s: %v", nic, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		fatalf("packet socket: %v", err)
	}
	for _, o := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1); err != nil {
			fatalf("packet socket: option %d: %v", o, err)
		}
	}
	all := unix.PacketMreq{Ifindex: int32(i.Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all); err != nil {
		fatalf("packet socket: %v", err)
	}
	proto := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index}); err != nil {
		fatalf("packet socket: %v", err)
	}
	return os.NewFile(uintptr(fd), nic)
}
