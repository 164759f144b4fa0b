package vhostuser

import (
	"context"
	"log/slog"
	"net"
	"time"

	"polder/device/internal/unixsock"
)

// redial is how long a Client waits before it tries to connect again.
const redial = 200 * time.Millisecond

// Client offers one device to the front end that listens on a socket, as QEMU does with server=on and DPDK
// with server=1.
type Client struct {
	dev  Backend
	log  *slog.Logger
	path string
	wait time.Duration // redial, but for tests

	ctx   context.Context // done when the client is closed
	close context.CancelFunc
}

// NewClient returns a Client of dev for the socket at path, which need not exist. name says in the log
// which port the client is of.
func NewClient(path string, dev Backend, log *slog.Logger, name string) (*Client, error) {
	if err := unixsock.CheckPath(path); err != nil {
		return nil, err
	}
	c := &Client{dev: dev, log: log.With("port", name), path: path, wait: redial}
	c.ctx, c.close = context.WithCancel(context.Background())
	return c, nil
}

// Serve connects to the front end and serves it, and does so again whenever the connection has ended, until ctx is
// done or the client is closed. Then it closes the connection, waits until the device is detached,
// and returns nil.
//
// While nobody listens it tries a few times a second, and says so in the log once.
func (c *Client) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	defer c.close()

	told := false
	for c.ctx.Err() == nil {
		var dialer net.Dialer
		uc, err := dialer.DialContext(c.ctx, "unix", c.path)
		switch {
		case err == nil:
			told = false
			// No haste: a front end that starts has put us into its backlog.
			newConn(uc.(*net.UnixConn), c.dev, newCustody(0), c.log).run(c.ctx, 0) // logs its outcome
		case c.ctx.Err() == nil && !told:
			told = true
			c.log.Info("vhost-user: waiting for the front end to listen", "err", err)
		}
		select {
		case <-c.ctx.Done():
		case <-time.After(c.wait):
		}
	}
	return nil
}

// Close ends the connection, if there is one; Serve then returns. It does not wait for that, so a Backend
// may call it.
func (c *Client) Close() error {
	c.close()
	return nil
}
