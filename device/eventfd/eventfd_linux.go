package eventfd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// one is what Signal adds: the number 1 in the byte order of the machine.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// FD is one eventfd.
type FD struct {
	file *os.File
	conn syscall.RawConn // of file

	mu    sync.Mutex            // held by Signal
	write func(fd uintptr) bool // one attempt to write; made once, since a closure per call would allocate
	err   error                 // result of the last write

	rescue  *time.Timer   // runs during a Signal; makes room in the counter
	rescued chan struct{} // gets an element when rescue has done so
	late    int           // how often a Signal took long for no reason that could be seen
}

// New returns an eventfd whose counter is 0.
func New() (*FD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return wrap(fd)
}

// FromFile makes an FD of a descriptor that somebody else passed. It takes file over, and closes it
// if it fails. A descriptor that is not an eventfd is refused with EINVAL, as writing to
// it could block, or do anything.
//
// The descriptor is made non-blocking. That is a property of the eventfd itself: the
// other side sees it too, and could undo it.
func FromFile(file *os.File) (*FD, error) { return adopt(file, true) }

// SignalOnly is FromFile for a descriptor on which nobody here is to Wait. The network poller does not watch it, which
// would wake a thread of this process for each signal of either side: 2 to 4 µs for whoever signals.
func SignalOnly(file *os.File) (*FD, error) { return adopt(file, false) }

// adopt is FromFile or SignalOnly.
func adopt(file *os.File, watch bool) (*FD, error) {
	defer file.Close()
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := conn.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	kind, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err == nil && kind != "anon_inode:[eventfd]" {
		err = fmt.Errorf("descriptor of %q is not an eventfd: %w", kind, unix.EINVAL)
	}
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, watch))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f, err := wrap(fd)
	if err == nil && !watch {
		if err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, err
}

// wrap makes an FD of an eventfd, which it takes over. The poller watches it if it is non-blocking now.
func wrap(fd int) (*FD, error) {
	f := &FD{file: os.NewFile(uintptr(fd), "eventfd")}
	conn, err := f.file.SyscallConn()
	if err != nil {
		f.file.Close()
		return nil, err
	}
	f.conn = conn
	f.write = func(fd uintptr) bool {
		_, f.err = unix.Write(int(fd), one)
		return true
	}
	f.rescued = make(chan struct{}, 1)
	f.rescue = time.AfterFunc(stuckTime, func() {
		f.Drain()
		f.rescued <- struct{}{}
	})
	f.rescue.Stop()
	return f, nil
}

// stuckTime is how long Signal can be made to wait. A write to a non-blocking eventfd takes microseconds.
const stuckTime = 100 * time.Millisecond

// maxLate is how often a Signal of an FD may take that long though the eventfd does not block: the process was stopped, or had no
// processor. Or the other side has made it not block again, and that has to end some time.
const maxLate = 16

// ErrStuck reports that whoever shares the eventfd made Signal wait.
var ErrStuck = errors.New("eventfd was made to block")

// Signal adds 1 to the counter, which wakes whoever waits for it. It does not wait: a counter that
// is at its limit is a doorbell that rings already. Signal does not allocate.
//
// Whoever shares the eventfd can make it blocking and fill the counter. Then Signal returns
// ErrStuck after a tenth of a second; it should not be called again.
func (f *FD) Signal() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		f.rescue.Reset(stuckTime)
		err := f.conn.Write(f.write)
		if f.rescue.Stop() {
			if err != nil {
				return err
			}
			break
		}
		<-f.rescued
		if f.late++; f.late > maxLate || f.blocks() {
			return ErrStuck
		}
		// Once more: what was added may be what was drained.
	}
	if f.err != nil && f.err != unix.EAGAIN {
		return os.NewSyscallError("write", f.err)
	}
	return nil
}

// blocks reports whether the eventfd is blocking.
func (f *FD) blocks() bool {
	flags := 0
	var err error
	cerr := f.conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return cerr != nil || err != nil || flags&unix.O_NONBLOCK == 0
}

// Wait returns when the counter is not 0, and sets it to 0. It returns early with the error of ctx
// when that is done, or with os.ErrClosed when f is closed.
func (f *FD) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		f.file.SetReadDeadline(time.Unix(1, 0)) // fails only if f is closed: then Read has returned
	})
	var count [8]byte
	_, err := f.file.Read(count[:])
	if !stop() {
		<-interrupted
		f.file.SetReadDeadline(time.Time{}) // as above
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// Drain sets the counter to 0 without waiting.
func (f *FD) Drain() error {
	var err error
	var count [8]byte
	if rerr := f.conn.Read(func(fd uintptr) bool {
		_, err = unix.Read(int(fd), count[:])
		return true
	}); rerr != nil {
		return rerr
	}
	if err != nil && err != unix.EAGAIN {
		return os.NewSyscallError("read", err)
	}
	return nil
}

// File returns the descriptor, to pass it to another process. It stays f's: it is closed with f.
func (f *FD) File() *os.File { return f.file }

// Close closes the descriptor. A Wait under way returns, and every later call fails with os.ErrClosed.
func (f *FD) Close() error { return f.file.Close() }
