// Package unixsock listens on a socket in the file system, where hypervisors connect to a device, and has their
// connections served.
//
// The socket is only its owner's, and it is made so: there is no moment at which others may connect. One that was left by a
// process that died is replaced, anything else is not. A device has room for few connections at a
// time, as a rule for one; who comes too much waits a moment, since a hypervisor that was
// killed leaves later than the next one comes, and is turned away then.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path that fits into a sockaddr_un.
const maxPath = 107

// Listener listens on a socket.
type Listener struct {
	ln   *net.UnixListener
	path string
	made os.FileInfo // the socket file, to remove no other

	ctx   context.Context // done when the listener is closed
	close context.CancelFunc
	once  sync.Once // of Close
	err   error     // what Close returns
}

// Listen makes a socket at path, with mode 0600. A socket left there by a process that died is replaced; anything else
// that exists is an error that is [fs.ErrExist]. Others can connect from then on, and wait for Serve.
func Listen(path string) (*Listener, error) {
	if err := vacate(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		// The file gets the mode of the descriptor.
		if cerr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err // names the path
	}
	l := &Listener{ln: ln.(*net.UnixListener), path: path}
	l.ln.SetUnlinkOnClose(false) // see remove
	l.ctx, l.close = context.WithCancel(context.Background())
	if l.made, err = os.Lstat(path); err != nil {
		ln.Close()
		return nil, err
	}
	return l, nil
}

// CheckPath finds why nothing could have a socket at path.
func CheckPath(path string) error {
	switch {
	case len(path) > maxPath:
		return fmt.Errorf("socket path %q has %d bytes, of which a unix socket can have %d", path, len(path), maxPath)
	case path == "" || path[0] == '@':
		return fmt.Errorf("socket path %q does not name a file", path)
	}
	return nil
}

// vacate removes a socket at path on which nobody listens. An error says why a socket cannot be made there.
func vacate(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is not a socket: %w", path, fs.ErrExist)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another server listens on %s: %w", path, fs.ErrExist)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// Service is what becomes of connections.
type Service struct {
	// Conn serves a connection, which it takes over, until ctx is done, at the latest. It is called in a goroutine of its
	// own for each connection.
	Conn func(ctx context.Context, conn *net.UnixConn)

	Room  int           // how many are served at a time
	Grace time.Duration // how long one more waits for room

	Name string // of the protocol; lines of the log begin with it
	Log  *slog.Logger
}

// Serve accepts connections until ctx is done or l is closed. Then it waits until none is served any more, and
// returns nil. It may be called once.
func (l *Listener) Serve(ctx context.Context, s Service) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()

	busy := make(chan struct{}, s.Room) // an element for each connection that is being served
	for {
		conn, err := l.ln.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			s.Log.Warn(s.Name+": cannot accept a connection for now", "err", err)
			l.pause(time.Second)
			continue
		case err != nil:
			return err
		}
		if !l.claim(busy, s) {
			conn.Close()
			continue
		}
		serving.Go(func() {
			defer func() { <-busy }()
			s.Conn(l.ctx, conn)
		})
	}
}

// claim adds to busy, waiting a moment for room. It reports whether it did.
func (l *Listener) claim(busy chan<- struct{}, s Service) bool {
	select {
	case busy <- struct{}{}:
		return true
	default:
	}
	timeout := time.NewTimer(s.Grace)
	defer timeout.Stop()
	select {
	case busy <- struct{}{}:
		return true
	case <-l.ctx.Done():
	case <-timeout.C:
		s.Log.Warn(s.Name+": a connection was turned away, as others are being served", "others", s.Room)
	}
	return false
}

// pause waits for d, or until l is closed.
func (l *Listener) pause(d time.Duration) {
	select {
	case <-l.ctx.Done():
	case <-time.After(d):
	}
}

// Close removes the socket and ends the context of the connections; Serve then returns. It
// does not wait for that, so who serves a connection may call it.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.close()
		l.err = errors.Join(l.remove(), l.ln.Close())
	})
	return l.err
}

// remove removes the socket file, unless it has been replaced by another one.
func (l *Listener) remove() error {
	info, err := os.Lstat(l.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, l.made) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(l.path)
}
