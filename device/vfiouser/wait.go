package vfiouser

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Worker is a Device with work of its own that its client's messages give rise to.
type Worker interface {
	Device

	// Work does a bounded piece of what there is to do, and reports whether there is more. It is called by the
	// connection's goroutine, when the last message is answered and no other has come yet: the
	// client does not wait for it, and no thread has to be woken to do it.
	Work() (more bool)
}

// spinTime is how long a connection looks out for its next message before it sleeps. A driver
// accesses registers in runs, with a few microseconds between one answer and the next access, of
// which QEMU takes most; waking a sleeping thread takes longer than that.
const spinTime = 100 * time.Microsecond

// Spinners limits how many goroutines may look out for messages, or for other work, at the same time instead of
// sleeping. Its zero value lets none.
type Spinners struct {
	limit int32
	now   atomic.Int32
}

// NewSpinners lets up to limit goroutines spin. A machine needs a processor for each, and one
// for the guest that they wait for.
func NewSpinners(limit int) *Spinners { return &Spinners{limit: int32(limit)} }

// Start reports whether one more may spin; then it must call Stop. A nil s lets none.
func (s *Spinners) Start() bool {
	if s == nil || s.limit <= 0 {
		return false
	}
	if s.now.Add(1) > s.limit {
		s.now.Add(-1)
		return false
	}
	return true
}

// Stop ends what Start permitted.
func (s *Spinners) Stop() { s.now.Add(-1) }

// next waits for the next message and reads up to len(p) bytes of it, as receiver.recvmsg does. Before
// it sleeps it lets the device do its work, and, if the client was quick the last time, it looks out for a while.
func (c *conn) next(p []byte) (n int, control []byte, truncated bool, err error) {
	for more := c.worker != nil; ; {
		n, control, truncated, err = c.receiver.recvmsg(c.fd, p, unix.MSG_DONTWAIT)
		if err != unix.EAGAIN {
			return n, control, truncated, err
		}
		if !more {
			break
		}
		more = c.worker.Work()
	}
	idle := time.Now()
	runtime.Gosched() // what the device has woken runs here and now, not when another thread finds it
	if c.quick && c.spinners.Start() {
		for err == unix.EAGAIN && time.Since(idle) < spinTime {
			runtime.Gosched()
			n, control, truncated, err = c.receiver.recvmsg(c.fd, p, unix.MSG_DONTWAIT)
		}
		c.spinners.Stop()
	}
	if err == unix.EAGAIN {
		n, control, truncated, err = c.receiver.recvmsg(c.fd, p, 0)
	}
	c.quick = time.Since(idle) < spinTime
	return n, control, truncated, err
}
