package vfiouser

import (
	"context"
	"log/slog"
	"net"
	"time"

	"polder/device/internal/unixsock"
)

// attachGrace is how long a client waits for another that is still attached. The EOF of a
// hypervisor that was killed is on its way when the next one starts.
const attachGrace = 2 * time.Second

// Server offers one device on one socket, to one client at a time.
type Server struct {
	dev Device
	log *slog.Logger
	ln  *unixsock.Listener

	grace    time.Duration // attachGrace, but for tests
	spinners *Spinners     // nil: connections never spin
}

// Listen makes a unix socket at path, with mode 0600, for clients of dev. A socket left there by a
// server that died is replaced; anything else that exists is an error that is [io/fs.ErrExist].
//
// Clients can connect from then on and are answered as soon as Serve runs. name says in the log which port
// the server is of.
func Listen(path string, dev Device, log *slog.Logger, name string) (*Server, error) {
	ln, err := unixsock.Listen(path)
	if err != nil {
		return nil, err
	}
	return &Server{dev: dev, log: log.With("port", name), ln: ln, grace: attachGrace}, nil
}

// Spin lets the server's connections look out for messages, as far as sp permits, instead of
// sleeping at once. It must be called before Serve.
func (s *Server) Spin(sp *Spinners) { s.spinners = sp }

// Serve serves clients, one after the other, until ctx is done or the server is closed. Then it
// closes the connection, waits until the device is detached, and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	return s.ln.Serve(ctx, unixsock.Service{Conn: s.serve, Room: 1, Grace: s.grace, Name: "vfio-user", Log: s.log})
}

// serve serves one client.
func (s *Server) serve(ctx context.Context, uc *net.UnixConn) {
	c, err := newConn(uc, s.dev, s.spinners, s.log)
	if err != nil {
		s.log.Warn("vfio-user: cannot serve a client", "err", err)
		return
	}
	c.run(ctx) // logs its outcome
}

// Close removes the socket and ends the connection, if there is one; Serve then returns. It
// does not wait for that, so a Device may call it.
func (s *Server) Close() error { return s.ln.Close() }
