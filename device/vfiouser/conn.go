package vfiouser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// handshakeTime is how long a client may take to send VERSION, which QEMU does at once: a port
// must not stay occupied by something that only connected.
const handshakeTime = 5 * time.Second

// conn is one connection.
//
// It reads and writes a blocking descriptor directly, so that one thread waits in the kernel for each
// client, instead of going through the network poller. Measured on 2 CPUs (AMD EPYC, Go 1.26, Linux 6.18) as
// the round trip of a REGION_READ to a client in another process, median and 99th percentile, one run:
//
//	                            idle                 both CPUs busy with goroutines
//	net.UnixConn.ReadMsgUnix    13.6 µs   88 µs      14.1 µs   30.0 ms
//	RawConn.Read and recvmsg    13.9 µs   79 µs      14.2 µs   44.9 ms
//	blocking recvmsg            11.5 µs   62 µs      11.6 µs   0.08 ms
//	the same, locked thread     11.6 µs   76 µs      11.8 µs   0.06 ms
//
// The poller's goroutine queues behind busy ones each time it wakes; a short
// blocking call keeps its turn.
type conn struct {
	fd       int // blocking
	dev      Device
	worker   Worker    // dev, if it is one; else nil
	spinners *Spinners // nil: never spin
	quick    bool      // the last message came within spinTime of the answer to the one before
	info     Info
	log      *slog.Logger

	attached bool

	// The message under way.
	h   header
	in  []byte // its header, then its payload; reused
	out []byte // its reply, room for a header first; reused
	fds []int  // its descriptors that nobody has taken yet

	receiver receiver
}

// ServeConn serves one connected client until it leaves, ctx is done, or an error, which it
// logs and returns; nil if the client left. It takes conn over. name says in the log which port it is.
//
// It is for a client that did not come through a Server, such as one end of a socket pair.
func ServeConn(ctx context.Context, conn *net.UnixConn, dev Device, log *slog.Logger, name string) error {
	c, err := newConn(conn, dev, nil, log.With("port", name))
	if err != nil {
		return err
	}
	if err := c.run(ctx); err != io.EOF {
		return err
	}
	return nil
}

// newConn takes uc over.
func newConn(uc *net.UnixConn, dev Device, spinners *Spinners, log *slog.Logger) (*conn, error) {
	defer uc.Close()
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var opErr error
	err = raw.Control(func(old uintptr) {
		if fd, opErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); opErr == nil {
			opErr = unix.SetNonblock(fd, false)
		}
	})
	if err == nil {
		err = opErr
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	worker, _ := dev.(Worker)
	return &conn{fd: fd, dev: dev, worker: worker, spinners: spinners, info: dev.Info(), log: log}, nil
}

// run serves the connection to its end and returns the cause of that, which is never nil.
func (c *conn) run(ctx context.Context) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Shutdown(c.fd, unix.SHUT_RDWR) // fails only if the client has gone
		close(interrupted)
	})
	cause := c.serve(handshakeTime)
	if !stop() {
		<-interrupted
		cause = net.ErrClosed
	}
	unix.Close(c.fd) // before Detach, which may take a moment: the guest must not wait for answers
	switch {
	case cause == io.EOF && !c.attached: // a probe whether somebody listens
		c.log.Debug("vfio-user: a client came and went")
	case cause == io.EOF:
		c.log.Debug("vfio-user: client left")
	case cause == net.ErrClosed:
		c.log.Debug("vfio-user: closed")
	default:
		c.log.Warn("vfio-user: connection given up", "err", cause)
	}
	if c.attached {
		c.dev.Detach(cause)
	}
	return cause
}

// serve answers messages until something ends the connection, for instance that the client does not speak
// within patience.
func (c *conn) serve(patience time.Duration) error {
	if err := c.setTimeout(patience); err != nil {
		return err
	}
	for {
		err := c.receive()
		if err == nil {
			err = c.answer()
		}
		for _, fd := range c.fds {
			unix.Close(fd)
		}
		c.fds = c.fds[:0]
		if err != nil {
			return err
		}
	}
}

// setTimeout limits how long a read waits for the client; 0 is for ever.
func (c *conn) setTimeout(d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// receive reads one message into c.h, c.in and c.fds. It returns io.EOF if the client has left
// between two messages.
//
// The kernel glues messages together, but hands out descriptors with the byte they were sent with. Reading exactly
// a header first is what makes them belong to the right message. Descriptors sent with any
// later byte are not asked for, and the kernel closes them.
func (c *conn) receive() error {
	c.in = slices.Grow(c.in[:0], headerSize)[:headerSize]
	n, control, truncated, err := c.next(c.in)
	if err := readError(n, err); err != nil {
		return err
	}
	if len(control) > 0 {
		if err := c.collect(control); err != nil {
			return err
		}
	}
	if err := c.readFull(c.in[n:]); err != nil {
		return fmt.Errorf("%w: %w in a header", ErrProtocol, err)
	}
	c.h = decodeHeader(c.in)
	if err := c.h.check(); err != nil {
		return err
	}
	if truncated {
		return c.h.malformed("more than %d descriptors", maxFDs)
	}
	size := int(c.h.size)
	c.in = slices.Grow(c.in, size-headerSize)[:size]
	if err := c.readFull(c.in[headerSize:]); err != nil {
		return c.h.malformed("%v in a payload of %d bytes", err, size-headerSize)
	}
	return nil
}

// readFull fills p, and drops descriptors sent with it.
func (c *conn) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(c.fd, p)
		if err == unix.EINTR {
			continue
		}
		if err := readError(n, err); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// readError tells what the outcome of a read means.
func readError(n int, err error) error {
	switch {
	case err == nil && n == 0, err == unix.ECONNRESET: // reset: it left without reading all replies
		return io.EOF
	case err == unix.EAGAIN:
		return fmt.Errorf("%w: no VERSION in time", ErrProtocol)
	}
	return os.NewSyscallError("recvmsg", err)
}

// collect appends the descriptors in a control message to c.fds.
func (c *conn) collect(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return err
		}
		c.fds = append(c.fds, fds...)
	}
	return nil
}

// takeFiles hands out the descriptors of the message under way. They are no longer the connection's.
func (c *conn) takeFiles(name string) []*os.File {
	var files []*os.File
	for _, fd := range c.fds {
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	c.fds = c.fds[:0]
	return files
}

// reserve returns n bytes for the payload of the reply.
func (c *conn) reserve(n int) []byte {
	c.out = slices.Grow(c.out[:0], headerSize+n)[:headerSize+n]
	return c.out[headerSize:]
}

// answer acts on the message under way and replies, unless it is posted.
func (c *conn) answer() error {
	n, err := c.dispatch(c.in[headerSize:])
	h := header{id: c.h.id, cmd: c.h.cmd, flags: flagReply}
	if err != nil {
		var errno syscall.Errno
		switch {
		case errors.Is(err, ErrProtocol): // says of which message
			return err
		case !errors.As(err, &errno):
			return fmt.Errorf("%v message %d: %w", c.h.cmd, c.h.id, err)
		}
		c.log.Debug("vfio-user: request refused", "command", c.h.cmd, "id", c.h.id, "err", err)
		n, h.flags, h.errno = 0, flagReply|flagError, uint32(errno)
	}
	if c.h.flags&flagNoReply != 0 {
		return nil
	}
	h.size = uint32(headerSize + n)
	c.out = slices.Grow(c.out[:0], int(h.size))[:h.size]
	h.encode(c.out)
	return c.write(c.out)
}

// write sends p, in one piece unless the client is slow to read.
func (c *conn) write(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(c.fd, p)
		switch err {
		case nil:
			p = p[n:]
		case unix.EINTR:
		case unix.EPIPE, unix.ECONNRESET:
			return io.EOF
		default:
			return os.NewSyscallError("write", err)
		}
	}
	return nil
}

// handlers says for each command how many bytes of payload it has, -1 if that varies, and what serves it: a
// function that returns how many bytes of payload it put into the reply.
var handlers = [...]struct {
	size  int
	serve func(c *conn, body []byte) (int, error)
}{
	cmdVersion:          {-1, (*conn).version},
	cmdDMAMap:           {dmaMapSize, (*conn).dmaMap},
	cmdDMAUnmap:         {dmaUnmapSize, (*conn).dmaUnmap},
	cmdGetInfo:          {infoSize, (*conn).getInfo},
	cmdGetRegionInfo:    {regionInfoSize, (*conn).getRegionInfo},
	cmdGetIRQInfo:       {irqInfoSize, (*conn).getIRQInfo},
	cmdSetIRQs:          {-1, (*conn).setIRQs},
	cmdRegionRead:       {regionAccessSize, (*conn).regionRead},
	cmdRegionWrite:      {-1, (*conn).regionWrite},
	cmdDeviceReset:      {0, (*conn).deviceReset},
	cmdRegionWriteMulti: {-1, (*conn).regionWriteMulti},
	cmdDeviceFeature:    {-1, (*conn).deviceFeature},
}

// dispatch acts on the message under way. It returns how many bytes of payload the reply has. An error that
// is an errno is the reply; any other ends the connection.
func (c *conn) dispatch(body []byte) (int, error) {
	switch cmd := c.h.cmd; {
	case c.attached == (cmd == cmdVersion):
		return 0, c.h.malformed("VERSION is the first message, and only that")
	case len(c.fds) > 0 && cmd != cmdDMAMap && cmd != cmdSetIRQs:
		return 0, c.h.malformed("%d descriptors, want none", len(c.fds))
	case int(cmd) >= len(handlers) || handlers[cmd].serve == nil:
		return 0, unix.ENOSYS
	}
	h := &handlers[c.h.cmd]
	if h.size >= 0 && len(body) != h.size {
		return 0, c.h.malformed("payload of %d bytes, want %d", len(body), h.size)
	}
	return h.serve(c, body)
}

// version serves VERSION: u16 major, u16 minor, then JSON text that ends with NUL. No capability of a client
// matters to us, so the text is not read.
func (c *conn) version(body []byte) (int, error) {
	if len(body) < versionSize {
		return 0, c.h.malformed("payload of %d bytes, want at least %d", len(body), versionSize)
	}
	if major := binary.LittleEndian.Uint16(body); major != 0 {
		return 0, c.h.malformed("major version %d, want 0", major)
	}
	if len(body) > versionSize && body[len(body)-1] != 0 {
		return 0, c.h.malformed("capabilities end with %#x, want NUL", body[len(body)-1])
	}
	if err := c.setTimeout(0); err != nil {
		return 0, err
	}
	peer := c.peer()
	if err := c.dev.Attach(peer); err != nil {
		return 0, fmt.Errorf("attach %s: %v", peer, err) // not %w: no errno lets the client go on
	}
	c.attached = true
	c.log.Debug("vfio-user: client attached", "peer", peer)

	reply := capabilities
	if versionSize+len(reply) > len(body) {
		reply = "" // a client that said so little has room for no more
	}
	p := c.reserve(versionSize + len(reply))
	binary.LittleEndian.PutUint32(p, 0) // version 0.0
	copy(p[versionSize:], reply)
	return len(p), nil
}

// peer tells who the client is.
func (c *conn) peer() string {
	cred, err := unix.GetsockoptUcred(c.fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
}

// deviceReset serves DEVICE_RESET. Neither it nor its reply has a payload.
func (c *conn) deviceReset([]byte) (int, error) { return 0, c.dev.Reset() }

// deviceFeature serves DEVICE_FEATURE: there is none, migration included.
func (c *conn) deviceFeature([]byte) (int, error) { return 0, unix.ENOTTY }
