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

// Do asks method of path, with body as JSON, or as it is if it is a []byte, which is YAML, and reads the answer into
// v, as JSON or as it is if v is a *[]byte. Without body or v there is none.
func (c *Client) Do(ctx context.Context, method, path string, body, v any) error {
	var text []byte
	contentType := ""
	switch b := body.(type) {
	case nil:
	case []byte:
		text, contentType = b, "application/yaml"
	default:
		var err error
		if text, err = json.Marshal(b); err != nil {
			return err
		}
		contentType = "application/json"
	}
	out, err := c.open(ctx, method, path, contentType, text)
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
		part := url.PathEscape(n)
		if strings.Trim(n, ".") == "" { // not a name, and not a way to another path either
			part = strings.ReplaceAll(n, ".", "%2E")
		}
		pattern = pattern[:i] + part + pattern[j+1:]
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
	body, err := c.open(ctx, http.MethodPost, api.PathTemporary, "application/json", text)
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
	body, err := c.Open(ctx, api.PathEvents)
	if err != nil {
		return nil, err
	}
	return newStream(body), nil
}

// Open asks for what is at path and returns the answer, which the caller closes: for answers that have no end. An
// answer that is no success is an error, an *api.Problem if it is one.
func (c *Client) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	return c.open(ctx, http.MethodGet, path, "", nil)
}

func (c *Client) open(ctx context.Context, method, path, contentType string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://polder"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
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
