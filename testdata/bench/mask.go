package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// featureMask stands between a vhost-user front end and its back end on their socket and keeps virtio features from
// the front end. What it passes on is unchanged otherwise, file descriptors included; the rings never come here.
type featureMask struct {
	listener *net.UnixListener
	backEnd  string
	features uint64
	work     sync.WaitGroup

	mu     sync.Mutex // guards the below
	closed bool
	conns  []*net.UnixConn
}

// maskFeatures serves front ends on the socket listen, and connects to backEnd for each. Close it when it is no
// longer needed.
func maskFeatures(listen, backEnd string, features uint64) (*featureMask, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: listen})
	if err != nil {
		return nil, err
	}
	m := &featureMask{listener: listener, backEnd: backEnd, features: features}
	m.work.Go(m.serve)
	return m, nil
}

// close ends all connections.
func (m *featureMask) close() {
	m.mu.Lock()
	m.closed = true
	for _, c := range m.conns {
		c.Close()
	}
	m.mu.Unlock()
	m.listener.Close()
	m.work.Wait()
}

func (m *featureMask) serve() {
	for {
		front, err := m.listener.AcceptUnix()
		if err != nil {
			return
		}
		back, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: m.backEnd})
		if err != nil {
			front.Close()
			continue
		}
		m.mu.Lock()
		if m.closed {
			front.Close()
			back.Close()
		}
		m.conns = append(m.conns, front, back)
		m.mu.Unlock()
		for _, way := range [][2]*net.UnixConn{{front, back}, {back, front}} {
			m.work.Go(func() {
				for m.pass(way[0], way[1]) == nil {
				}
				front.Close()
				back.Close()
			})
		}
	}
}

// A message is a header of the request, flags and the size of the body, 32 bits each in the byte order of the
// machine, and the body (vhost-user, "Message Specification").
const (
	messageHeader = 12
	messageBody   = 4096 // more than any has

	flagReply = 1 << 2

	getFeatures = 1 // the reply is 64 bits
)

// pass passes one message on.
func (m *featureMask) pass(from, to *net.UnixConn) error {
	message := make([]byte, messageHeader, messageHeader+messageBody)
	ancillary := make([]byte, unix.CmsgSpace(8*4)) // a memory table has 8 regions
	n, oobn, _, _, err := from.ReadMsgUnix(message, ancillary)
	if err != nil {
		return err
	}
	defer closeRights(ancillary[:oobn])
	if n == 0 {
		return io.EOF
	}
	if _, err := io.ReadFull(from, message[n:]); err != nil {
		return err
	}
	request := binary.NativeEndian.Uint32(message)
	flags, size := binary.NativeEndian.Uint32(message[4:]), binary.NativeEndian.Uint32(message[8:])
	if size > messageBody {
		return fmt.Errorf("message %d with %d bytes", request, size)
	}
	message = message[:messageHeader+size]
	body := message[messageHeader:]
	if _, err := io.ReadFull(from, body); err != nil {
		return err
	}
	if request == getFeatures && flags&flagReply != 0 && size == 8 {
		binary.NativeEndian.PutUint64(body, binary.NativeEndian.Uint64(body)&^m.features)
	}
	// A message and its descriptors go in one piece: the socket has room, since nobody sends without an answer.
	if n, _, err = to.WriteMsgUnix(message, ancillary[:oobn], nil); err == nil && n < len(message) {
		err = errors.New("message cut short")
	}
	return err
}

// closeRights closes the descriptors that came with a message: the receiver has its own by now.
func closeRights(ancillary []byte) {
	messages, err := unix.ParseSocketControlMessage(ancillary)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
