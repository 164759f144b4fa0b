package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"polder/cmd/internal/api"
)

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
		ResponseHeaderTimeout: answerTime,
	}}}
}

// Get asks for what is at path and reads the answer into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.Do(ctx, http.MethodGet, path, nil, v)
}

// Do asks method of path, with body as JSON, or as it is if it is a []byte, and reads the answer into v, as JSON
// or as it is if v is a *[]byte. Without body or v there is none.
func (c *Client) Do(ctx context.Context, method, path string, body, v any) error {
	in := io.Reader(http.NoBody)
	switch b := body.(type) {
	case nil:
	case []byte:
		in = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		in = bytes.NewReader(text)
	}
	out, err := c.Open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer out.Close()
	switch v := v.(type) {
	case nil:
		return nil
	case *[]byte:
		*v, err = io.ReadAll(out)
		return err
	}
	return json.NewDecoder(out).Decode(v)
}

// Path returns a path of the protocol with its names filled in, in order, and a query.
func Path(pattern string, query url.Values, names ...string) string {
	for _, n := range names {
		i, j := strings.IndexByte(pattern, '{'), strings.IndexByte(pattern, '}')
		pattern = pattern[:i] + url.PathEscape(n) + pattern[j+1:]
	}
	if len(query) > 0 {
		pattern += "?" + query.Encode()
	}
	return pattern
}

// Status asks what the daemon is and has.
func (c *Client) Status(ctx context.Context) (s api.Status, err error) {
	err = c.Get(ctx, api.PathStatus, &s)
	return s, err
}

// Attach asks for a temporary adapter. It lives until the stream is closed.
func (c *Client) Attach(ctx context.Context, req api.AdapterRequest) (api.Adapter, *Stream, error) {
	text, err := json.Marshal(req)
	if err != nil {
		return api.Adapter{}, nil, err
	}
	body, err := c.Open(ctx, http.MethodPost, api.PathTemporary, bytes.NewReader(text))
	if err != nil {
		return api.Adapter{}, nil, err
	}
	s := newStream(body)
	e, err := s.Next()
	if err == nil && e.Adapter == nil {
		err = errors.New("the daemon answered without an adapter")
	}
	if err != nil {
		s.Close()
		return api.Adapter{}, nil, err
	}
	return *e.Adapter, s, nil
}

// Events asks for what happens from now on.
func (c *Client) Events(ctx context.Context) (*Stream, error) {
	body, err := c.Open(ctx, http.MethodGet, api.PathEvents, http.NoBody)
	if err != nil {
		return nil, err
	}
	return newStream(body), nil
}

// Open asks method of path and returns the answer, which the caller closes. An answer that is
// no success is an error, an *api.Problem if it is one.
func (c *Client) Open(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://polder"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var p api.Problem
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&p) != nil || p.Detail == "" {
		return nil, errors.New(resp.Status)
	}
	return nil, &p
}

// Stream is a sequence of events from the daemon.
type Stream struct {
	body  io.ReadCloser
	lines *bufio.Scanner
}

func newStream(body io.ReadCloser) *Stream {
	s := &Stream{body: body, lines: bufio.NewScanner(body)}
	s.lines.Buffer(nil, maxBody)
	return s
}

// Next waits for the next event; io.EOF or another error ends the stream.
func (s *Stream) Next() (e api.Event, err error) {
	for s.lines.Scan() {
		if data, ok := bytes.CutPrefix(s.lines.Bytes(), []byte("data: ")); ok {
			err = json.Unmarshal(data, &e)
			return e, err
		}
	}
	if err := s.lines.Err(); err != nil {
		return e, err
	}
	return e, fmt.Errorf("the daemon ended the stream: %w", io.EOF)
}

// Close ends the stream, and with it the adapter it was asked for with.
func (s *Stream) Close() error { return s.body.Close() }
