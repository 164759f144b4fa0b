// Package control is the daemon's control protocol: JSON over HTTP on a unix socket that only
// its owner may open. It answers what there is, gives out adapters that live as long as the
// connection that asked for them, and streams what happens.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"polder/cmd/internal/api"
)

// World is what a control server speaks for.
type World interface {
	Status() api.Status
	AddAdapter(api.AdapterRequest) (api.Adapter, error)
	RemoveAdapter(name string) error
	// Subscribe returns the boot events from now on until stop is called. A subscriber
	// that does not keep up misses events.
	Subscribe() (events <-chan api.BootEvent, stop func())
}

// maxBody bounds a request's body, in bytes: a boot ROM of 256 KiB in base64, and room for the rest.
const maxBody = 512 << 10

// requestTime bounds how long a client may take to send a request, and a server to answer one.
const requestTime = 5 * time.Second

// maxPath is the longest path, in bytes, that an address of a unix socket has room for.
const maxPath = 107

// Handler answers the control protocol for w.
func Handler(w World) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathStatus, func(rw http.ResponseWriter, _ *http.Request) {
		reply(rw, http.StatusOK, w.Status())
	})
	mux.HandleFunc("GET "+api.PathEvents, func(rw http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 { // unread, it would hide the end of the connection
			reply(rw, http.StatusBadRequest, api.Error{Message: "a GET has no body"})
			return
		}
		stream(rw, r, w, nil)
	})
	mux.HandleFunc("POST "+api.PathAdapters, func(rw http.ResponseWriter, r *http.Request) {
		attach(rw, r, w)
	})
	return mux
}

// attach makes an adapter and keeps it for as long as the client stays.
func attach(rw http.ResponseWriter, r *http.Request, w World) {
	req, err := readRequest(rw, r)
	if err != nil {
		reply(rw, http.StatusBadRequest, api.Error{Message: fmt.Sprintf("cannot read the request: %v", err)})
		return
	}
	a, err := w.AddAdapter(req)
	if err != nil {
		reply(rw, http.StatusConflict, api.Error{Message: err.Error()})
		return
	}
	defer w.RemoveAdapter(a.Name)
	stream(rw, r, w, &a)
}

// readRequest reads the whole body: only then does net/http watch for the end of the connection.
func readRequest(rw http.ResponseWriter, r *http.Request) (req api.AdapterRequest, err error) {
	limit := http.NewResponseController(rw)
	if err := limit.SetReadDeadline(time.Now().Add(requestTime)); err != nil {
		return req, err
	}
	dec := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return req, errors.New("something follows its JSON object")
	}
	return req, limit.SetReadDeadline(time.Time{}) // the stream that follows has no end
}

// stream writes messages, one line of JSON each, until the client goes.
func stream(rw http.ResponseWriter, r *http.Request, w World, first *api.Adapter) {
	events, stop := w.Subscribe()
	defer stop()
	rw.Header().Set("Content-Type", "application/x-ndjson")
	rw.WriteHeader(http.StatusOK)
	out, flush := json.NewEncoder(rw), http.NewResponseController(rw)
	if first != nil && out.Encode(api.Message{Adapter: first}) != nil {
		return
	}
	for flush.Flush() == nil {
		select {
		case e, ok := <-events:
			if !ok || out.Encode(api.Message{Boot: &e}) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func reply(rw http.ResponseWriter, status int, body any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body) // the client's connection is its own affair
}

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

// Listen serves w on a unix socket at path, which only its owner may open. A socket that a
// dead daemon left behind is replaced; a live one, and anything that is no socket, is an
// error. Of two that may start at the same time, see Lock.
func Listen(path string, w World, log *slog.Logger) (*Server, error) {
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
	s.http = &http.Server{
		Handler:           Handler(w),
		ReadHeaderTimeout: requestTime,
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
func Alive(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Client asks a daemon.
type Client struct {
	http *http.Client
}

// Dial returns a client of the daemon at the socket. It connects at the first request.
func Dial(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives:     true, // a client asks once or twice
		ResponseHeaderTimeout: 2 * requestTime,
	}}}
}

// Status asks what the daemon is and has.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	body, err := c.do(ctx, http.MethodGet, api.PathStatus, http.NoBody)
	if err != nil {
		return s, err
	}
	defer body.Close()
	return s, json.NewDecoder(body).Decode(&s)
}

// Attach asks for an adapter. It lives until the stream is closed.
func (c *Client) Attach(ctx context.Context, req api.AdapterRequest) (api.Adapter, *Stream, error) {
	text, err := json.Marshal(req)
	if err != nil {
		return api.Adapter{}, nil, err
	}
	body, err := c.do(ctx, http.MethodPost, api.PathAdapters, bytes.NewReader(text))
	if err != nil {
		return api.Adapter{}, nil, err
	}
	s := &Stream{body: body, dec: json.NewDecoder(body)}
	m, err := s.Next()
	if err == nil && m.Adapter == nil {
		err = errors.New("the daemon answered without an adapter")
	}
	if err != nil {
		s.Close()
		return api.Adapter{}, nil, err
	}
	return *m.Adapter, s, nil
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://polder"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e api.Error
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&e) != nil || e.Message == "" {
		return nil, errors.New(resp.Status)
	}
	return nil, errors.New(e.Message)
}

// Stream is a sequence of messages from the daemon.
type Stream struct {
	body io.ReadCloser
	dec  *json.Decoder
}

// Next waits for the next message; io.EOF or another error ends the stream.
func (s *Stream) Next() (api.Message, error) {
	var m api.Message
	err := s.dec.Decode(&m)
	return m, err
}

// Close ends the stream, and with it the adapter it was asked for with.
func (s *Stream) Close() error { return s.body.Close() }
