package vhostuser

import (
	"context"
	"log/slog"
	"net"
	"time"

	"polder/device/internal/unixsock"
)

// attachGrace is how long a front end waits for another that still has the device, or is one too many. The
// EOF of a hypervisor that was killed is on its way when the next one starts.
const attachGrace = 2 * time.Second

// maxFrontEnds is how many front ends a Server has at a time: the source of a migration, and its destination.
const maxFrontEnds = 2

// Server offers one device on one socket. A second front end may connect while the first is there: it is answered, but
// gets the device only when the first has stopped its rings, or left. So a guest migrates
// from one hypervisor to another on the same socket.
type Server struct {
	dev     Backend
	log     *slog.Logger
	ln      *unixsock.Listener
	custody *custody
}

// Listen makes a unix socket at path, with mode 0600, for front ends of dev. A socket left there by a
// server that died is replaced; anything else that exists is an error that is [io/fs.ErrExist].
//
// Front ends can connect from then on and are answered as soon as Serve runs. name says in the log which port
// the server is of.
func Listen(path string, dev Backend, log *slog.Logger, name string) (*Server, error) {
	ln, err := unixsock.Listen(path)
	if err != nil {
		return nil, err
	}
	return &Server{dev: dev, log: log.With("port", name), ln: ln, custody: newCustody(attachGrace)}, nil
}

// Serve serves front ends until ctx is done or the server is closed. Then it
// closes the connections, waits until the device is detached, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	return s.ln.Serve(ctx, unixsock.Service{
		Conn: func(ctx context.Context, uc *net.UnixConn) {
			newConn(uc, s.dev, s.custody, s.log).run(ctx, patience) // logs its outcome
		},
		Room:  maxFrontEnds,
		Grace: s.custody.grace,
		Name:  "vhost-user",
		Log:   s.log,
	})
}

// Close removes the socket and ends the connections; Serve then returns. It
// does not wait for that, so a Backend may call it.
func (s *Server) Close() error { return s.ln.Close() }
