// Command segments runs in a test guest and judges every frame that one of its interfaces receives. It prints READY
// once it listens, and when it is told to end (SIGTERM), a line for each of the first bad frames and one line with
// what it saw:
//
//	BAD reason: the frame's first bytes
//	SEGMENTS frames=N tcp=N udp=N partial=N gso4=N gso6=N bad=N lost=N
//
// It parses with gVisor's headers, and takes what the guest's driver made of the device's header from a packet
// socket: partial frames are those whose checksum is left to the guest, gso4 and gso6 those of TCP over IPv4 and IPv6
// that stand for several. lost are frames that came faster than they were read.
//
//	segments INTERFACE
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer is for frames that wait to be read, in bytes as the kernel counts them: several times their own.
	receiveBuffer = 48 << 20

	// maxFrame is the largest frame that stands for several, with the largest packet of IP in it, in bytes.
	maxFrame = 14 + 4 + 65535

	// patience is how long an idle interface may keep the program from noticing that it is to end.
	patience = 100 * time.Millisecond

	// shown is how many bad frames are shown.
	shown = 5
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "segments:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: segments INTERFACE")
	}
	fd, err := listen(args[0])
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	fmt.Println("READY")

	var t tally
	buffer := make([]byte, deviceHeaderLen+maxFrame)
	for ended := false; ; {
		n, err := unix.Read(fd, buffer)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && ended:
			statistics, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err != nil {
				return fmt.Errorf("PACKET_STATISTICS: %w", err)
			}
			fmt.Printf("SEGMENTS frames=%d tcp=%d udp=%d partial=%d gso4=%d gso6=%d bad=%d lost=%d\n",
				t.frames, t.tcp, t.udp, t.partial, t.gso4, t.gso6, t.bad, statistics.Drops)
			return nil
		case err == unix.EAGAIN:
		case err != nil:
			return fmt.Errorf("read: %w", err)
		default:
			if err := t.judge(buffer[:n]); err != nil && t.bad <= shown {
				fmt.Printf("BAD %v: % x\n", err, buffer[:min(n, 80)])
			}
		}
		if !ended {
			select {
			case <-end:
				ended = true // what is waiting is judged yet
			default:
			}
		}
	}
}

// listen opens a packet socket on what the interface receives, each frame behind the device's header.
func listen(name string) (fd int, err error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(patience))
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error {
			const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index})
		},
	} {
		if err := set(); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("packet socket on %s: %w", name, err)
		}
	}
	return fd, nil
}
