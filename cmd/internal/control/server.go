// Package control is the daemon's control protocol: JSON over HTTP on a unix socket that only
// its owner, and a group if one is given, may open. It answers what there is, changes it, gives out adapters
// that live as long as the connection that asked for them, and streams what happens.
package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxBody bounds a request's body, in bytes: a boot ROM of 256 KiB in base64, and room for the rest.
const maxBody = 512 << 10

// requestTime bounds how long a client may take to send a request, and a server to answer one.
const requestTime = 5 * time.Second

// answerTime bounds how long a client waits for an answer to begin: the host's network may have to settle.
const answerTime = 30 * time.Second

// maxPath is the longest path, in bytes, that an address of a unix socket has room for.
const maxPath = 107

// Server serves a world on a socket.
type Server struct {
	http  *http.Server
	path  string
	made  os.FileInfo    // the socket file, to remove no other
	done  chan struct{}  // closed when no more connections are accepted
	conns sync.WaitGroup // and their handlers
	once  sync.Once      // of Close: later, another's socket may be at path
	err   error          // what Close returns
}

// NoGroup is of a socket that only its owner may open: root's group needs no permission.
const NoGroup = 0

// Listen serves w on a unix socket at path, which only its owner may open, and the members of
// the group with the number gid if it is not NoGroup. A socket that a dead daemon left behind is replaced; a
// live one, and anything that is no socket, is an error. Of two that may start at the same
// time, see Lock.
func Listen(path string, gid int, w World, log *slog.Logger) (*Server, error) {
	if err := vacate(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		// The file gets the mode of the descriptor: there is no moment at which others may connect.
		return errors.Join(conn.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // see Close
	s := &Server{path: path, done: make(chan struct{})}
	if s.made, err = os.Lstat(path); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if gid != NoGroup {
		if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
			ln.Close()
			os.Remove(path)
			return nil, fmt.Errorf("control socket: cannot give it to group %d: %w", gid, err)
		}
	}
	s.http = &http.Server{
		Handler:           logChanges(Handler(w), log),
		ConnContext:       withPeer,
		ReadHeaderTimeout: requestTime,
		IdleTimeout:       answerTime,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // before Serve returns
				s.conns.Add(1)
			case http.StateClosed: // after its handler
				s.conns.Done()
			}
		},
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // ends by Close
	}()
	return s, nil
}

// vacate removes a socket at path on which nobody listens. An error says why none can be made there.
func vacate(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%s: the path has %d bytes and a socket's can have %d: choose a shorter --runtime-dir", path, len(path), maxPath)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way and is no socket: remove it, or choose another --runtime-dir", path)
	case Alive(path):
		return fmt.Errorf("%s: another polder answers there: stop it, or choose another --runtime-dir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Close ends all connections, waits until the adapters that lived by them are gone, and
// removes the socket.
func (s *Server) Close() error {
	s.once.Do(func() {
		if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.made) {
			s.err = os.Remove(s.path)
		}
		s.err = errors.Join(s.err, s.http.Close())
		<-s.done
		s.conns.Wait()
	})
	return s.err
}

// Lock takes the directory of sockets for the caller alone, so that of several that start or
// end at the same time each sees what the others have done. It waits until ctx is done.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Alive tells whether somebody answers at the socket.
func Alive(path string) bool { return Reach(path) == nil }

// Reach says why nobody answers at the socket; nil if somebody does.
func Reach(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// peerKey is of the peer's credentials in a connection's context.
type peerKey struct{}

// withPeer notes who has connected.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *syscall.Ucred
	if err := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || peer == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// logChanges tells who has changed what.
func logChanges(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if peer, ok := r.Context().Value(peerKey{}).(*syscall.Ucred); ok && r.Method != http.MethodGet {
			log.Info("asked by an operator", "method", r.Method, "path", r.URL.Path, "uid", peer.Uid, "pid", peer.Pid)
		}
		next.ServeHTTP(rw, r)
	})
}
