package vhostuser_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/device/vhostuser"
	vt "polder/device/vhostuser/vhostusertest"
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
func listen(t testing.TB, path string, dev vhostuser.Backend) (*vhostuser.Server, *logBuffer) {
	t.Helper()
	log := new(logBuffer)
	s, err := vhostuser.Listen(path, dev, slog.New(slog.NewTextHandler(log, nil)), "port7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, log
}

// run runs a server or client until the test ends. The channel gets the result of Serve.
func run(t testing.TB, s interface{ Serve(context.Context) error }) <-chan error {
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
func serve(t testing.TB, dev vhostuser.Backend) string {
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

// frontEnd listens at path as QEMU does with server=on, until the test ends.
func frontEnd(t testing.TB, path string) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// accept waits for a back end, and speaks with it until the test ends.
func accept(t testing.TB, ln *net.UnixListener) *vt.Client {
	t.Helper()
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c := vt.NewClient(conn)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestPathsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 108-len(dir)-1))
	if len(long) != 108 {
		t.Fatalf("the path has %d bytes", len(long))
	}
	log := slog.New(slog.DiscardHandler)
	for path, want := range map[string]string{
		long:        "has 108 bytes, of which a unix socket can have 107",
		"":          "does not name a file",
		"@abstract": "does not name a file",
	} {
		_, err := vhostuser.Listen(path, newFake(), log, "port7")
		_, cerr := vhostuser.NewClient(path, newFake(), log, "port7")
		for _, err := range []error{err, cerr} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q", path, err, want)
			}
		}
	}
	if _, err := vhostuser.Listen(filepath.Join(dir, "none", "x"), newFake(), log, "port7"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory that does not exist: %v", err)
	}
	s, _ := listen(t, long[:107], newFake())
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsTheConnection(t *testing.T) {
	for name, end := range map[string]func(*vhostuser.Server, context.CancelFunc){
		"Close":   func(s *vhostuser.Server, _ context.CancelFunc) { s.Close() },
		"context": func(_ *vhostuser.Server, cancel context.CancelFunc) { cancel() },
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
			if _, err := c.GetU64(vt.GetFeatures); err != nil {
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
				t.Errorf("the front end reads %v, want EOF", err)
			}
		})
	}
}

func TestThirdFrontEndIsTurnedAway(t *testing.T) {
	path := socketPath(t)
	s, log := listen(t, path, newFake())
	s.SetGrace(time.Millisecond)
	run(t, s)
	first, second := dial(t, path), dial(t, path)
	for _, c := range []*vt.Client{first, second} {
		if _, err := c.GetU64(vt.GetFeatures); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := dial(t, path).Reply(); err != io.EOF {
		t.Errorf("the third front end reads %v, want EOF", err)
	}
	if !strings.Contains(log.String(), "turned away") || !strings.Contains(log.String(), "port=port7") {
		t.Errorf("logged\n%s", log)
	}
	for _, c := range []*vt.Client{first, second} {
		if _, err := c.GetU64(vt.GetFeatures); err != nil {
			t.Errorf("a front end that was there: %v", err)
		}
	}
}

func TestThirdFrontEndWaitsForAnotherToLeave(t *testing.T) {
	path := socketPath(t)
	s, _ := listen(t, path, newFake())
	s.SetGrace(time.Hour)
	done := run(t, s)
	first, second := dial(t, path), dial(t, path)
	for _, c := range []*vt.Client{first, second} {
		if _, err := c.GetU64(vt.GetFeatures); err != nil {
			t.Fatal(err)
		}
	}
	third := dial(t, path)
	if err := third.Request(vt.GetFeatures, 0, nil); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if h, _, err := third.Reply(); err != nil || h.Request != vt.GetFeatures {
		t.Errorf("the third front end got %+v, %v, want to be served", h, err)
	}
	fourth := dial(t, path)
	s.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, _, err := fourth.Reply(); err != io.EOF {
		t.Errorf("the fourth front end reads %v, want EOF", err)
	}
}

// Front ends that come and go leave nothing behind.
func TestManyFrontEnds(t *testing.T) {
	dev := newFake()
	path := serve(t, dev)
	m := memory(t, 0, 1<<20)
	v := vring(t, m, 0, 256)
	before := openFDs(t)
	for range 50 {
		c, err := vt.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{c.Connect(vhostuser.ProtocolAll), c.SetFeatures(vt.FeatureProtocol | vt.FeatureLogAll),
			c.SetMemTable(m), c.Set(vt.SetLogBase, vt.Payload(uint64(4096), uint64(0)), m.FD()),
			c.Set(vt.SetBackendReqFD, nil, v.CallFD), c.Set(vt.SetVringErr, vt.Payload(uint64(0)), v.CallFD), c.StartVring(v)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if cause := <-dev.gone; cause != io.EOF {
			t.Errorf("detached because of %v", cause)
		}
	}
	// The last connection may still be closing what it held.
	for range 100 {
		if openFDs(t) <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d descriptors open, %d before", openFDs(t), before)
}

// A front end that listens is found, whenever it comes, and again when it was gone.
func TestClientReconnects(t *testing.T) {
	dev := newFake()
	path := socketPath(t)
	log := new(logBuffer)
	client, err := vhostuser.NewClient(path, dev, slog.New(slog.NewTextHandler(log, nil)), "port7")
	if err != nil {
		t.Fatal(err)
	}
	client.SetRedial(time.Millisecond)
	done := run(t, client)
	for strings.Count(log.String(), "waiting for the front end") == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		ln := frontEnd(t, path)
		for range 2 {
			c := accept(t, ln)
			if err := c.Connect(0); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if cause := <-dev.gone; cause != io.EOF {
				t.Errorf("detached because of %v", cause)
			}
		}
		ln.Close()
	}
	ln := frontEnd(t, path)
	c := accept(t, ln)
	if _, err := c.GetU64(vt.GetFeatures); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if cause := <-dev.gone; cause != net.ErrClosed {
		t.Errorf("detached because of %v, want %v", cause, net.ErrClosed)
	}
	if _, _, err := c.Reply(); err != io.EOF {
		t.Errorf("the front end reads %v, want EOF", err)
	}
	if strings.Contains(log.String(), "WARN") || !strings.Contains(log.String(), "port=port7") {
		t.Errorf("logged\n%s", log)
	}
	if err := client.Serve(t.Context()); err != nil {
		t.Errorf("Serve after Close = %v", err)
	}
}

// Nobody ever listens: the client gives up when it is told to.
func TestClientAlone(t *testing.T) {
	client, err := vhostuser.NewClient(socketPath(t), newFake(), slog.New(slog.DiscardHandler), "port7")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := client.Serve(ctx); err != nil {
		t.Errorf("Serve = %v", err)
	}
}
