package device

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"polder/device/eventfd"
)

// call is how a ring interrupts its guest. Its zero value interrupts nobody.
type call struct {
	event *eventfd.FD
	conn  *os.File // one end of a socket pair, which User Mode Linux has in place of an eventfd
	fd    int      // of conn
}

// one is what goes over a socket: the number that would be added to an eventfd.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// newCall takes f over, which may be nil.
func newCall(f *os.File) (c call, err error) {
	if f == nil {
		return c, nil
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return c, err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return call{conn: f, fd: int(f.Fd())}, nil
	}
	c.event, err = eventfd.SignalOnly(f)
	return c, err
}

// signal interrupts the guest. It does not wait.
func (c *call) signal() error {
	switch {
	case c.event != nil:
		return c.event.Signal()
	case c.conn != nil:
		err := unix.Send(c.fd, one, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN || err == unix.EINTR || err == unix.EPIPE {
			return nil // full: it rings already; or closed: nobody listens, and the connection will tell
		}
		return os.NewSyscallError("send", err)
	}
	return nil
}

// close releases the descriptor.
func (c *call) close() {
	if c.event != nil {
		c.event.Close()
	}
	if c.conn != nil {
		c.conn.Close()
	}
	*c = call{}
}
