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
	pipe  *os.File // the writing end of one, which User Mode Linux has in place of an eventfd
	fd    int      // of pipe
}

// one is what is written to a pipe. It never changes and never goes away.
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
	if info.Mode()&os.ModeNamedPipe != 0 {
		return call{pipe: f, fd: int(f.Fd())}, nil
	}
	c.event, err = eventfd.FromFile(f)
	return c, err
}

// signal interrupts the guest. It does not wait.
func (c *call) signal() error {
	switch {
	case c.event != nil:
		return c.event.Signal()
	case c.pipe != nil:
		// A write could be made to block by whoever else has the pipe. This cannot.
		_, err := unix.Vmsplice(c.fd, []unix.Iovec{{Base: &one[0], Len: uint64(len(one))}}, unix.SPLICE_F_NONBLOCK)
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil // full: it rings already
		}
		return os.NewSyscallError("vmsplice", err)
	}
	return nil
}

// close releases the descriptor.
func (c *call) close() {
	if c.event != nil {
		c.event.Close()
	}
	if c.pipe != nil {
		c.pipe.Close()
	}
	*c = call{}
}
