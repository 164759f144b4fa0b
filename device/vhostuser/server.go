package vhostuser

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

const (
	// maxPath is the longest path that fits into a sockaddr_un.
	maxPath = 107

	// attachGrace is how long a front end waits for another that still has the device, or is one too many. The
	// EOF of a hypervisor that was killed is on its way when the next one starts.
	attachGrace = 2 * time.Second
)

// maxFrontEnds is how many front ends a Server has at a time: the source of a migration, and its destination.
const maxFrontEnds = 2

// Server offers one device on one socket. A second front end may connect while the first is there: it is answered, but
// gets the device only when the first has stopped its rings, or left. So a guest migrates
// from one hypervisor to another on the same socket.
type Server struct {
	dev  Backend
	log  *slog.Logger
	ln   *net.UnixListener
	path string
	made os.FileInfo // the socket file, to remove no other

	custody *custody

	ctx   context.Context // done when the server is closed
	close context.CancelFunc
	once  sync.Once // of Close
	err   error     // what Close returns
}

// Listen makes a unix socket at path, with mode 0600, for front ends of dev. A socket left there by a
// server that died is replaced; anything else that exists is an error that is [fs.ErrExist].
//
// Front ends can connect from then on and are answered as soon as Serve runs. name says in the log which port
// the server is of.
func Listen(path string, dev Backend, log *slog.Logger, name string) (*Server, error) {
	if err := vacate(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		// The file gets the mode of the descriptor: no moment at which others may connect.
		if cerr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err // names the path
	}
	s := &Server{
		dev:     dev,
		log:     log.With("port", name),
		ln:      ln.(*net.UnixListener),
		path:    path,
		custody: newCustody(attachGrace),
	}
	s.ln.SetUnlinkOnClose(false) // see remove
	s.ctx, s.close = context.WithCancel(context.Background())
	if s.made, err = os.Lstat(path); err != nil {
		ln.Close()
		return nil, err
	}
	return s, nil
}

// vacate removes a socket at path on which nobody listens. An error says why a socket cannot be made there.
func vacate(path string) error {
	if err := checkPath(path); err != nil {
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

// Serve serves front ends until ctx is done or the server is closed. Then it
// closes the connections, waits until the device is detached, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer s.Close()

	busy := make(chan struct{}, maxFrontEnds) // an element for each front end that is being served
	for {
		uc, err := s.ln.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			s.log.Warn("vhost-user: cannot accept a front end for now", "err", err)
			s.pause(time.Second)
			continue
		case err != nil:
			return err
		}
		if !s.claim(busy) {
			uc.Close()
			continue
		}
		serving.Go(func() {
			defer func() { <-busy }()
			newConn(uc, s.dev, s.custody, s.log).run(s.ctx, patience) // logs its outcome
		})
	}
}

// claim adds to busy, waiting a moment for room. It reports whether it did.
func (s *Server) claim(busy chan<- struct{}) bool {
	select {
	case busy <- struct{}{}:
		return true
	default:
	}
	timeout := time.NewTimer(s.custody.grace)
	defer timeout.Stop()
	select {
	case busy <- struct{}{}:
		return true
	case <-s.ctx.Done():
	case <-timeout.C:
		s.log.Warn("vhost-user: a front end was turned away, as there are others", "others", maxFrontEnds)
	}
	return false
}

// pause waits for d, or until the server is closed.
func (s *Server) pause(d time.Duration) {
	select {
	case <-s.ctx.Done():
	case <-time.After(d):
	}
}

// Close removes the socket and ends the connections; Serve then returns. It
// does not wait for that, so a Backend may call it.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.close()
		s.err = errors.Join(s.remove(), s.ln.Close())
	})
	return s.err
}

// remove removes the socket file, unless it has been replaced by another one.
func (s *Server) remove() error {
	info, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, s.made) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(s.path)
}
