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

	// attachGrace is how long a front end waits for another that is still attached. The EOF of a
	// hypervisor that was killed is on its way when the next one starts.
	attachGrace = 2 * time.Second
)

// Server offers one device on one socket, to one front end at a time.
type Server struct {
	dev  Backend
	log  *slog.Logger
	ln   *net.UnixListener
	path string
	made os.FileInfo // the socket file, to remove no other

	grace time.Duration // attachGrace, but for tests

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
		dev:   dev,
		log:   log.With("port", name),
		ln:    ln.(*net.UnixListener),
		path:  path,
		grace: attachGrace,
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

// Serve serves front ends, one after the other, until ctx is done or the server is closed. Then it
// closes the connection, waits until the device is detached, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer s.Close()

	busy := make(chan struct{}, 1) // full while a front end is being served
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
			newConn(uc, s.dev, s.log).run(s.ctx, patience) // logs its outcome
		})
	}
}

// claim fills busy, waiting a moment for that. It reports whether it did.
func (s *Server) claim(busy chan<- struct{}) bool {
	select {
	case busy <- struct{}{}:
		return true
	default:
	}
	timeout := time.NewTimer(s.grace)
	defer timeout.Stop()
	select {
	case busy <- struct{}{}:
		return true
	case <-s.ctx.Done():
	case <-timeout.C:
		s.log.Warn("vhost-user: a second front end was turned away, as one is attached")
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

// Close removes the socket and ends the connection, if there is one; Serve then returns. It
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
