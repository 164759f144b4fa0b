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
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// Handler answers the control protocol for w.
func Handler(w World) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathStatus, func(rw http.ResponseWriter, _ *http.Request) {
		reply(rw, http.StatusOK, w.Status())
	})
	mux.HandleFunc("GET "+api.PathEvents, func(rw http.ResponseWriter, r *http.Request) {
		stream(rw, r, w, nil)
	})
	mux.HandleFunc("POST "+api.PathAdapters, func(rw http.ResponseWriter, r *http.Request) {
		attach(rw, r, w)
	})
	return mux
}

// attach makes an adapter and keeps it for as long as the client stays.
func attach(rw http.ResponseWriter, r *http.Request, w World) {
	var req api.AdapterRequest
	dec := json.NewDecoder(http.MaxBytesReader(rw, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
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
	http *http.Server
	done chan struct{}
}

// Listen serves w on a unix socket at path, which only its owner may open. A socket that a
// dead daemon left behind is replaced; a live one is an error.
func Listen(path string, w World, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if Alive(path) {
		return nil, fmt.Errorf("%s: another polder answers there: stop it, or choose another --runtime-dir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177)
	ln, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{
		http: &http.Server{
			Handler:           Handler(w),
			ReadHeaderTimeout: 5 * time.Second,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // ends by Close
	}()
	return s, nil
}

// Close ends all connections and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
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
	}}}
}

// Status asks what the daemon is and has.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	body, err := c.do(ctx, http.MethodGet, api.PathStatus, nil)
	if err != nil {
		return s, err
	}
	defer body.Close()
	return s, json.NewDecoder(body).Decode(&s)
}

// Attach asks for an adapter. It lives until the stream is closed.
func (c *Client) Attach(ctx context.Context, req api.AdapterRequest) (api.Adapter, *Stream, error) {
	body, err := c.do(ctx, http.MethodPost, api.PathAdapters, req)
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

func (c *Client) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://polder"+path, bytes.NewReader(text))
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
