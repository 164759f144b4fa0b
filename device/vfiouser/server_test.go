package vfiouser_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/device/vfiouser"
	vt "polder/device/vfiouser/vfiousertest"
)

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// socketPath returns a path for a socket.
func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "nic.sock") }

// listen makes a server at path, closed with the test.
func listen(t testing.TB, path string, dev vfiouser.Device) (*vfiouser.Server, *logBuffer) {
	t.Helper()
	log := new(logBuffer)
	s, err := vfiouser.Listen(path, dev, slog.New(slog.NewTextHandler(log, nil)), "port7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, log
}

// run runs s until the test ends. The channel gets the result of Serve.
func run(t testing.TB, s *vfiouser.Server) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		done <- s.Serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-finished
	})
	return done
}

// serve runs a server of dev until the test ends, and returns its path.
func serve(t testing.TB, dev vfiouser.Device) string {
	t.Helper()
	path := socketPath(t)
	s, _ := listen(t, path, dev)
	run(t, s)
	return path
}

// dial connects to a server, until the test ends.
func dial(t testing.TB, path string) *vt.Client {
	t.Helper()
	c, err := vt.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCloseEndsTheConnection(t *testing.T) {
	for name, end := range map[string]func(*vfiouser.Server, context.CancelFunc){
		"Close":   func(s *vfiouser.Server, _ context.CancelFunc) { s.Close() },
		"context": func(_ *vfiouser.Server, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dev := newFake()
			path := socketPath(t)
			s, _ := listen(t, path, dev)
			done := make(chan error)
			go func() { done <- s.Serve(ctx) }()
			c := dial(t, path)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			end(s, cancel)
			if err := <-done; err != nil {
				t.Errorf("Serve = %v", err)
			}
			select {
			case cause := <-dev.gone:
				if cause != net.ErrClosed {
					t.Errorf("detached because of %v, want %v", cause, net.ErrClosed)
				}
			default:
				t.Error("Serve returned before the device was detached")
			}
			if _, _, err := c.Reply(); err != io.EOF {
				t.Errorf("the client reads %v, want EOF", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

func TestSecondClientIsTurnedAway(t *testing.T) {
	path := socketPath(t)
	s, log := listen(t, path, newFake())
	s.SetGrace(time.Millisecond)
	run(t, s)
	first := dial(t, path)
	if err := first.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dial(t, path).Reply(); err != io.EOF {
		t.Errorf("the second client reads %v, want EOF", err)
	}
	if !strings.Contains(log.String(), "turned away") || !strings.Contains(log.String(), "port=port7") {
		t.Errorf("logged\n%s", log)
	}
	if err := first.RegionRead(0, 0, make([]byte, 4)); err != nil {
		t.Errorf("the first client: %v", err)
	}
}

func TestSecondClientWaitsForTheFirstToLeave(t *testing.T) {
	path := socketPath(t)
	s, _ := listen(t, path, newFake())
	s.SetGrace(time.Hour)
	run(t, s)
	first := dial(t, path)
	if err := first.Handshake(); err != nil {
		t.Fatal(err)
	}
	second := dial(t, path)
	if _, err := second.Command(vt.Version, 0, versionMessage[16:]); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if h, _, err := second.Reply(); err != nil || h.Command != vt.Version {
		t.Errorf("the second client got %+v, %v, want to be attached", h, err)
	}
}

func TestCloseWhileASecondClientWaits(t *testing.T) {
	path := socketPath(t)
	s, _ := listen(t, path, newFake())
	s.SetGrace(time.Hour)
	done := run(t, s)
	if err := dial(t, path).Handshake(); err != nil {
		t.Fatal(err)
	}
	second := dial(t, path)
	s.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, _, err := second.Reply(); err != io.EOF {
		t.Errorf("the second client reads %v, want EOF", err)
	}
}

// A probe whether somebody listens is neither attached nor worth a warning.
func TestClientThatSaysNothing(t *testing.T) {
	dev := newFake()
	path := socketPath(t)
	s, log := listen(t, path, dev)
	s.SetGrace(time.Hour)
	run(t, s)
	probe, err := vt.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	probe.Close()
	if err := dial(t, path).Handshake(); err != nil {
		t.Fatal(err)
	}
	if calls := dev.asked(); len(calls) != 1 {
		t.Errorf("the device was asked %q, want to be attached once", calls)
	}
	if strings.Contains(log.String(), "WARN") {
		t.Errorf("logged\n%s", log)
	}
}

// Clients that come and go leave nothing behind.
func TestManyClients(t *testing.T) {
	dev := newFake()
	path := serve(t, dev)
	ram := memfd(t, 1<<20)
	before := openFDs(t)
	for range 50 {
		c, err := vt.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{c.Handshake(), c.MapDMA(0, 1<<20, ram, 0), c.SetINTx(), c.Reset()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if cause := <-dev.gone; cause != io.EOF {
			t.Errorf("detached because of %v", cause)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
