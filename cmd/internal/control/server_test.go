package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"polder/cmd/internal/api"
)

// fakeWorld has adapters by name, and tells of each that comes and goes.
type fakeWorld struct {
	World    // what the tests do not ask for
	mu       sync.Mutex
	adapters map[string]bool
	subs     map[chan api.Event]bool
	removed  chan string
}

func newFakeWorld() *fakeWorld {
	return &fakeWorld{adapters: map[string]bool{}, subs: map[chan api.Event]bool{}, removed: make(chan string, 100)}
}

func (w *fakeWorld) Status() api.Status { return api.Status{Version: "test", PID: os.Getpid()} }

func (w *fakeWorld) AddAdapter(r api.AdapterRequest, _ bool) (api.Adapter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.adapters[r.Name] {
		return api.Adapter{}, fmt.Errorf("there is an adapter %q already", r.Name)
	}
	w.adapters[r.Name] = true
	return api.Adapter{Name: r.Name, Switch: r.Switch, Socket: "/run/" + r.Name}, nil
}

func (w *fakeWorld) RemoveAdapter(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.adapters, name)
	w.removed <- name
	return nil
}

func (w *fakeWorld) Subscribe() (<-chan api.Event, func()) {
	ch := make(chan api.Event, 10)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.subs[ch] = true
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.subs, ch)
	}
}

func (w *fakeWorld) publish(e api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.subs {
		ch <- e
	}
}

func (w *fakeWorld) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.adapters)
}

// serve starts a server on a socket of its own, for the length of the test.
func serve(t *testing.T, w World) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	s, err := Listen(path, NoGroup, w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return path
}

func TestStatus(t *testing.T) {
	st, err := Dial(serve(t, newFakeWorld())).Status(t.Context())
	if err != nil || st.Version != "test" || st.PID != os.Getpid() {
		t.Errorf("got %+v, %v", st, err)
	}
}

// An adapter lives as long as the connection that asked for it, however that ends.
func TestAdapterLivesWithItsConnection(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(stop context.CancelFunc, s *Stream)
	}{
		{"the stream is closed", func(_ context.CancelFunc, s *Stream) { s.Close() }},
		{"the client's context ends", func(stop context.CancelFunc, _ *Stream) { stop() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newFakeWorld()
			client := Dial(serve(t, w))
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			a, stream, err := client.Attach(ctx, api.AdapterRequest{Switch: "lab", Name: "a"})
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if a.Name != "a" || a.Socket != "/run/a" || w.count() != 1 {
				t.Errorf("got %+v, with %d adapters", a, w.count())
			}
			_, _, err = client.Attach(ctx, api.AdapterRequest{Switch: "lab", Name: "a"})
			if err == nil || err.Error() != `there is an adapter "a" already` {
				t.Errorf("a second one of the name: %v", err)
			}
			c.end(stop, stream)
			if name := <-w.removed; name != "a" || w.count() != 0 {
				t.Errorf("%q was removed, %d are left", name, w.count())
			}
		})
	}
}

// A body of unknown length is read to its end too, so that the end of the connection is seen.
func TestChunkedRequestEndsWithItsConnection(t *testing.T) {
	w := newFakeWorld()
	conn := dial(t, serve(t, w))
	body := `{"switch":"lab","name":"a"}`
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", api.PathTemporary, len(body), body)
	if line := firstLine(t, conn); line != "HTTP/1.1 200 OK" {
		t.Fatal(line)
	}
	conn.Close()
	if name := <-w.removed; name != "a" {
		t.Errorf("%q was removed", name)
	}
}

func TestStreamCarriesEvents(t *testing.T) {
	w := newFakeWorld()
	_, stream, err := Dial(serve(t, w)).Attach(t.Context(), api.AdapterRequest{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for _, kind := range []string{"discover", "ack"} {
		w.publish(api.Event{Kind: api.EventBoot, Boot: &api.BootEvent{Kind: kind, MAC: "00:15:5d:00:00:01"}})
		if m, err := stream.Next(); err != nil || m.Boot == nil || m.Boot.Kind != kind {
			t.Errorf("got %+v, %v; want %s", m, err, kind)
		}
	}
}

// Close returns when the adapters that lived by connections are gone, and ends the clients'
// streams.
func TestCloseTakesAdaptersAway(t *testing.T) {
	w := newFakeWorld()
	path := filepath.Join(t.TempDir(), "c.sock")
	s, err := Listen(path, NoGroup, w, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := Dial(path)
	var streams []*Stream
	for i := range 5 {
		_, stream, err := client.Attach(t.Context(), api.AdapterRequest{Name: fmt.Sprint("a", i)})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n := w.count(); n != 0 {
		t.Errorf("%d adapters after Close", n)
	}
	for _, stream := range streams {
		if m, err := stream.Next(); err == nil {
			t.Errorf("the stream goes on with %+v", m)
		}
		stream.Close()
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// No bad request has an effect, and the server answers the next one.
func TestBadRequests(t *testing.T) {
	w := newFakeWorld()
	path := serve(t, w)
	post := func(body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", api.PathTemporary, len(body), body)
	}
	for _, c := range []struct{ name, request, status, body string }{
		{"no HTTP", "\x00\x01\x02\x03\r\n\r\n", "HTTP/1.1 400 Bad Request", ""},
		{"a header without end", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 64<<10), "HTTP/1.1 431 Request Header Fields Too Large", ""},
		{"no such path", "GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found", "there is nothing at /v1/nothing: /v1/openapi.yaml describes what there is"},
		{"wrong method", "DELETE " + api.PathStatus + " HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "/v1/status does not take DELETE: it takes GET, HEAD"},
		{"no JSON", post("name=a"), "HTTP/1.1 400 Bad Request", "cannot read the request: invalid character"},
		{"nothing", post(""), "HTTP/1.1 400 Bad Request", "cannot read the request: EOF"},
		{"wrong type", post(`{"name":7}`), "HTTP/1.1 400 Bad Request", "cannot read the request: json: cannot unmarshal number"},
		{"unknown key", post(`{"name":"a","colour":"red"}`), "HTTP/1.1 400 Bad Request", `unknown field \"colour\"`},
		{"two objects", post(`{"name":"a"}{"name":"b"}`), "HTTP/1.1 400 Bad Request", "something follows its JSON object"},
		{"more than is read", post(`{"name":"` + strings.Repeat("a", maxBody) + `"}`), "HTTP/1.1 413 Request Entity Too Large", "the request's body is longer than 524288 bytes"},
		{"events with a body", "GET " + api.PathEvents + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 400 Bad Request", "a GET has no body"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, path)
			go io.WriteString(conn, c.request) // the server may close before all of it is sent
			r := bufio.NewReader(conn)
			if line, err := r.ReadString('\n'); err != nil || strings.TrimSpace(line) != c.status {
				t.Fatalf("got %q, %v; want %s", line, err, c.status)
			}
			if c.body == "" {
				return
			}
			for { // the body's one line comes after the empty one
				line, err := r.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "{") {
					if !strings.Contains(line, c.body) {
						t.Errorf("got %s, want %q in it", line, c.body)
					}
					return
				}
			}
		})
	}
	if w.count() != 0 || len(w.removed) != 0 {
		t.Error("a bad request made an adapter")
	}
	if _, err := Dial(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// A client that does not finish its request does not keep others waiting, and Close does not
// wait for it.
func TestSlowRequests(t *testing.T) {
	w := newFakeWorld()
	path := serve(t, w)
	for _, part := range []string{
		"",
		"POST " + api.PathTemporary + " HT",
		"POST " + api.PathTemporary + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"name\":",
	} {
		io.WriteString(dial(t, path), part)
	}
	if _, err := Dial(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketIsItsOwners(t *testing.T) {
	info, err := os.Stat(serve(t, newFakeWorld()))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

// What is at the path already, and what becomes of it.
func TestOccupiedPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.sock")
	log := slog.New(slog.DiscardHandler)

	t.Run("a file stays", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Listen(path, NoGroup, newFakeWorld(), log)
		if want := path + " is in the way and is no socket: remove it, or choose another --runtime-dir"; err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
			t.Errorf("the file is %q, %v", text, err)
		}
		os.Remove(path)
	})
	t.Run("a dead daemon's socket is replaced", func(t *testing.T) {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
		s, err := Listen(path, NoGroup, newFakeWorld(), log)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if !Alive(path) {
			t.Error("nobody answers")
		}
	})
	t.Run("a live one's is not", func(t *testing.T) {
		s, err := Listen(path, NoGroup, newFakeWorld(), log)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = Listen(path, NoGroup, newFakeWorld(), log)
		if want := path + ": another polder answers there: stop it, or choose another --runtime-dir"; err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
		if !Alive(path) {
			t.Error("the first does not answer any more")
		}
	})
	t.Run("another's that took its place stays", func(t *testing.T) {
		s, err := Listen(path, NoGroup, newFakeWorld(), log)
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if !Alive(path) {
			t.Error("the other's socket is gone")
		}
	})
	t.Run("no directory", func(t *testing.T) {
		_, err := Listen(filepath.Join(dir, "none", "c.sock"), NoGroup, newFakeWorld(), log)
		if !errors.Is(err, syscall.ENOENT) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("too long", func(t *testing.T) {
		long := filepath.Join(dir, strings.Repeat("x", maxPath))
		_, err := Listen(long, NoGroup, newFakeWorld(), log)
		if want := fmt.Sprintf("%s: the path has %d bytes and a socket's can have 107: choose a shorter --runtime-dir", long, len(long)); err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	})
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Lock(gone, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("a second one: %v", err)
	}
	got := make(chan error)
	go func() {
		unlock, err := Lock(context.Background(), dir)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("after the first: %v", err)
	}
}

// A server that is silent does not keep a client for ever, nor does one that is no polder.
func TestOtherServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	answers := make(chan string, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			answer := <-answers
			conn.Read(make([]byte, 4096))
			io.WriteString(conn, answer)
			conn.Close()
		}
	}()
	for _, c := range []struct{ name, answer, want string }{
		{"closes", "", "EOF"},
		{"no HTTP", "SSH-2.0-x\r\n", "malformed HTTP"},
		{"an error without text", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "500 Internal Server Error"},
		{"no adapter", "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\ndata: {}\r\n\n", "the daemon answered without an adapter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers <- c.answer
			_, _, err := Dial(path).Attach(t.Context(), api.AdapterRequest{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer stop()
		if _, err := Dial(path).Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		answers <- ""
	})
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func firstLine(t *testing.T, r io.Reader) string {
	t.Helper()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
