package pxe

import (
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	portHTTP = 80

	maxHTTPConns      = 64
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 60 * time.Second
	httpWriteTimeout  = 30 * time.Second // for a piece of a file, not for all of it
	maxHTTPHeader     = 16 << 10
)

// newHTTP returns the server of the same files over HTTP, for UEFI HTTP boot and for iPXE. A request
// is looked up as it stands: "//path" is not redirected to "/path", since EDK2 does not follow.
func (s *Server) newHTTP() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(s.handleHTTP),
		ReadHeaderTimeout: httpHeaderTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    maxHTTPHeader,
		ErrorLog:          log.New(warnWriter{s}, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.wg.Add(1)
			case http.StateClosed:
				s.wg.Done()
			}
		},
	}
}

// warnWriter makes log lines of net/http rate-limited warnings.
type warnWriter struct{ s *Server }

func (w warnWriter) Write(p []byte) (int, error) {
	w.s.warn("HTTP", "err", printable(strings.TrimSpace(string(p)), 200))
	return len(p), nil
}

// limitedListener closes connections beyond maxHTTPConns at once: guests must not be able to make the
// host keep any number of them.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

func (l limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: c, slots: l.slots}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}

func (s *Server) handleHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this server is read-only", http.StatusMethodNotAllowed)
		return
	}
	d := &download{
		ResponseWriter: w, s: s, control: http.NewResponseController(w),
		began: time.Now(), client: s.clientOfHTTP(r), name: printable(r.URL.Path, 255), size: -1,
		id: s.nextTransfer.Add(1),
	}
	f, err := s.files.open(r.URL.Path, d.client)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "file not found", http.StatusNotFound)
		d.event(EventNotFound, "")
		return
	case errors.Is(err, errEscape), errors.Is(err, fs.ErrPermission):
		http.Error(w, "access denied", http.StatusForbidden)
		d.event(EventError, err.Error())
		return
	default:
		http.Error(w, "the file cannot be read", http.StatusInternalServerError)
		d.event(EventError, err.Error())
		return
	}
	defer f.Close()
	d.size = f.size
	if r.Method == http.MethodHead {
		d.event(EventProbe, "")
	} else {
		d.event(EventRequest, "")
	}
	d.serve(r, f)
}

// clientOfHTTP returns what is known of the guest that sent a request: all it says of itself is its
// address.
func (s *Server) clientOfHTTP(r *http.Request) Client {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return Client{Arch: ArchUnknown, Server: s.cfg.Address.Addr()}
	}
	if c, ok := s.guests.holder(at.Addr()); ok {
		return c
	}
	return Client{Arch: ArchUnknown, Addr: at.Addr(), Server: s.cfg.Address.Addr()}
}

// download is one response. It counts what is written.
type download struct {
	http.ResponseWriter
	s        *Server
	control  *http.ResponseController
	id       uint64
	client   Client
	name     string
	size     int64
	began    time.Time
	written  int64
	err      error
	lastTick int64
}

func (d *download) serve(r *http.Request, f *file) {
	h := d.Header()
	h.Set("Content-Type", "application/octet-stream")
	if strings.EqualFold(path.Ext(f.name), ".ipxe") {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	if content, ok := f.Reader.(io.ReadSeeker); ok {
		http.ServeContent(d, r, "", f.mod, content)
	} else {
		if f.size >= 0 {
			h.Set("Content-Length", strconv.FormatInt(f.size, 10))
		}
		if r.Method != http.MethodHead {
			_, err := io.Copy(d, f)
			if d.err == nil {
				d.err = err
			}
		}
	}
	switch {
	case r.Method == http.MethodHead:
	case d.err != nil:
		d.event(EventAborted, d.err.Error())
	default:
		d.event(EventDone, "")
	}
}

// Write implements [io.Writer].
func (d *download) Write(p []byte) (int, error) {
	d.err = d.control.SetWriteDeadline(time.Now().Add(httpWriteTimeout))
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.ResponseWriter.Write(p)
	d.written += int64(n)
	d.err = err
	if now := d.s.ticks.Load(); now-d.lastTick >= progressTicks {
		d.lastTick = now
		d.event(EventProgress, "")
	}
	return n, err
}

func (d *download) event(k EventKind, detail string) {
	now := time.Now()
	d.s.emit(Event{
		Kind: k, Client: d.client, Detail: detail,
		Proto: "http", Transfer: d.id, File: d.name, Size: d.size, Bytes: d.written, Took: now.Sub(d.began),
	}, now)
}
