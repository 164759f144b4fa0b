package unixsock_test

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

	"golang.org/x/sys/unix"

	"polder/device/internal/unixsock"
)

func socketPath(t *testing.T) string { return filepath.Join(t.TempDir(), "s") }

// listen listens at path until the test ends.
func listen(t *testing.T, path string) *unixsock.Listener {
	t.Helper()
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects to path until the test ends.
func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := socketPath(t)
	listen(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode(); mode != fs.ModeSocket|0o600 {
		t.Errorf("mode is %v, want %v", mode, fs.ModeSocket|0o600)
	}
}

func TestListenReplacesAStaleSocketOnly(t *testing.T) {
	stale := socketPath(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	listen(t, stale)

	live := socketPath(t)
	listen(t, live)
	regular := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(regular, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(regular, link); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"live socket": live, "regular file": regular, "symbolic link": link} {
		if _, err := unixsock.Listen(path); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error that names it", name, err)
		}
	}
	if b, err := os.ReadFile(link); err != nil || string(b) != "precious" {
		t.Errorf("a file that was refused holds %q, %v", b, err)
	}
	dial(t, live)
}

func TestListenRefusesPaths(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 108-len(dir)-1))
	if len(long) != 108 {
		t.Fatalf("the path has %d bytes", len(long))
	}
	for path, want := range map[string]string{
		long:                             "has 108 bytes, of which a unix socket can have 107",
		"":                               "does not name a file",
		"@abstract":                      "does not name a file",
		filepath.Join(dir, "none", "x"):  "no such file",
		filepath.Join("/proc/self", "x"): "/proc/self/x",
	} {
		if _, err := unixsock.Listen(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen(%q) = %v, want %q", path, err, want)
		}
	}
	if err := listen(t, long[:107]).Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseRemovesTheSocket(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := l.Serve(t.Context(), unixsock.Service{}); err != nil {
		t.Errorf("Serve after Close = %v", err)
	}

	l = listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another server was removed: %v", err)
	}
}

// service echoes what comes.
func service(room int, grace time.Duration, log io.Writer) unixsock.Service {
	return unixsock.Service{
		Conn: func(ctx context.Context, conn *net.UnixConn) {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			io.Copy(conn, conn)
		},
		Room: room, Grace: grace, Name: "echo", Log: slog.New(slog.NewTextHandler(log, nil)),
	}
}

// echoes reports whether conn is being served.
func echoes(conn net.Conn) bool {
	if _, err := conn.Write([]byte{42}); err != nil {
		return false
	}
	var b [1]byte
	_, err := io.ReadFull(conn, b[:])
	return err == nil && b[0] == 42
}

func TestRoom(t *testing.T) {
	for room := 1; room <= 2; room++ {
		path := socketPath(t)
		l := listen(t, path)
		var log bytes.Buffer // read when nobody writes any more
		done := make(chan error)
		go func() { done <- l.Serve(context.Background(), service(room, time.Millisecond, &log)) }()
		var served []net.Conn
		for range room {
			served = append(served, dial(t, path))
		}
		for i, conn := range served {
			if !echoes(conn) {
				t.Errorf("room for %d: connection %d is not served", room, i)
			}
		}
		if echoes(dial(t, path)) {
			t.Errorf("room for %d: one more is served", room)
		}
		if !echoes(served[0]) {
			t.Errorf("room for %d: the first is not served any more", room)
		}
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if n := strings.Count(log.String(), "echo: a connection was turned away"); n != 1 {
			t.Errorf("room for %d: want one line in the log:\n%s", room, &log)
		}
	}
}

func TestOneMoreWaitsForRoom(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := l.Serve(t.Context(), service(1, time.Hour, io.Discard)); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	first, second := dial(t, path), dial(t, path)
	if !echoes(first) {
		t.Error("the first is not served")
	}
	first.Close()
	if !echoes(second) {
		t.Error("the second is not served when the first has left")
	}
	third := dial(t, path)
	l.Close() // while somebody waits
	serving.Wait()
	if echoes(second) || echoes(third) {
		t.Error("somebody is served after the end")
	}
}
