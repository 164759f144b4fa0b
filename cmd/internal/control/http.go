package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"polder/cmd/internal/api"
)

// readBody reads the whole body: only then does net/http watch for the end of the connection.
func readBody(rw http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := http.NewResponseController(rw)
	if err := limit.SetReadDeadline(time.Now().Add(requestTime)); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, api.Problemf(http.StatusRequestEntityTooLarge, "the request's body is longer than %d bytes", tooLong.Limit)
	case err != nil:
		return nil, api.Problemf(http.StatusBadRequest, "cannot read the request: %v", err)
	}
	return text, limit.SetReadDeadline(time.Time{}) // a stream may follow, which has no end
}

// readJSON reads a body that is one JSON object with known keys.
func readJSON(rw http.ResponseWriter, r *http.Request, v any) error {
	text, err := readBody(rw, r)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		p := api.Problemf(http.StatusBadRequest, "cannot read the request: %v", err)
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			p.Field = typ.Field
		}
		return p
	}
	if _, err := dec.Token(); err != io.EOF {
		return api.Problemf(http.StatusBadRequest, "cannot read the request: something follows its JSON object")
	}
	return nil
}

// noBody refuses a body: unread, it would hide the end of the connection.
func noBody(r *http.Request) error {
	if r.ContentLength != 0 {
		return api.Problemf(http.StatusBadRequest, "a %s has no body", r.Method)
	}
	return nil
}

// endless lets an answer go on for as long as its client stays, and returns what sends the parts at once.
func endless(rw http.ResponseWriter) *http.ResponseController {
	c := http.NewResponseController(rw)
	_ = c.SetWriteDeadline(time.Time{})
	return c
}

// flag returns a parameter that is true or false.
func flag(r *http.Request, name string) (bool, error) {
	text := r.FormValue(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		p := api.Problemf(http.StatusBadRequest, "%s=%s: true or false", name, text)
		p.Field = name
		return false, p
	}
	return v, nil
}

// number returns a parameter that is a number; 0 if it is not there.
func number(r *http.Request, name string, low, high int) (int, error) {
	text := r.FormValue(name)
	if text == "" {
		return 0, nil
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < low || v > high {
		p := api.Problemf(http.StatusBadRequest, "%s=%s: from %d to %d", name, text, low, high)
		p.Field = name
		return 0, p
	}
	return v, nil
}

// duration returns a parameter that is a length of time of up to an hour; 0 if it is not there.
func duration(r *http.Request, name string) (time.Duration, error) {
	text := r.FormValue(name)
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > time.Hour {
		p := api.Problemf(http.StatusBadRequest, "%s=%s: from 0s to 1h", name, text)
		p.Field = name
		return 0, p
	}
	return d, nil
}

// list makes an empty list of none: JSON knows the difference.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func reply(rw http.ResponseWriter, status int, contentType string, body any) {
	rw.Header().Set("Content-Type", contentType)
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body) // the client's connection is its own affair
}

// write answers with text that is no JSON.
func write(rw http.ResponseWriter, contentType string, text []byte) error {
	rw.Header().Set("Content-Type", contentType)
	_, _ = rw.Write(text)
	return errAnswered
}

// refuse answers with a problem.
func refuse(rw http.ResponseWriter, err error) {
	var p *api.Problem
	if !errors.As(err, &p) {
		p = api.Problemf(http.StatusConflict, "%v", err)
	} else if full := err.Error(); full != p.Detail { // what was said around it
		q := *p
		q.Detail, p = full, &q
	}
	reply(rw, p.Status, "application/problem+json", p)
}

// problems makes problems of what the router itself refuses. It bounds how long a client that does not read its answer
// is waited for; endless lifts that.
func problems(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(2 * answerTime)) // not of a test's recorder
		next.ServeHTTP(&routed{ResponseWriter: rw, path: r.URL.Path, method: r.Method}, r)
	})
}

// routed turns the router's own plain answers, 404 and 405, into problems.
type routed struct {
	http.ResponseWriter
	path, method string
	replaced     bool
}

// Unwrap gives http.ResponseController the connection.
func (w *routed) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *routed) WriteHeader(status int) {
	if w.Header().Get("Content-Type") == "text/plain; charset=utf-8" {
		text := ""
		switch status {
		case http.StatusNotFound:
			text = fmt.Sprintf("there is nothing at %s: %s describes what there is", w.path, api.PathDescription)
		case http.StatusMethodNotAllowed:
			text = fmt.Sprintf("%s does not take %s: it takes %s", w.path, w.method, w.Header().Get("Allow"))
		}
		if text != "" {
			w.replaced = true
			refuse(w.ResponseWriter, api.Problemf(status, "%s", text))
			return
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *routed) Write(p []byte) (int, error) {
	if w.replaced {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}
