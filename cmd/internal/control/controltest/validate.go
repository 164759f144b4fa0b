// Package controltest holds what a daemon and its clients say against the description of the control protocol, for
// tests of both.
package controltest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"polder/cmd/internal/api"
)

// Validator passes requests on to a handler. A request that succeeds and is none that is described, and an answer
// that is not described, fail the test.
type Validator struct {
	tb     testing.TB
	doc    *openapi3.T
	router routers.Router
	next   http.Handler

	mu   sync.Mutex
	seen map[string]bool // operations that succeeded
}

// New returns a Validator of what is said to next.
func New(tb testing.TB, next http.Handler) *Validator {
	tb.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.Description)
	if err == nil {
		err = doc.Validate(context.Background())
	}
	if err != nil {
		tb.Fatalf("the description of the control protocol: %v", err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		tb.Fatalf("the description of the control protocol: %v", err)
	}
	return &Validator{tb: tb, doc: doc, router: router, next: next, seen: map[string]bool{}}
}

// Operations returns the described operations by name, as method and path.
func (v *Validator) Operations() map[string]string {
	all := map[string]string{}
	for path, item := range v.doc.Paths.Map() {
		for method, op := range item.Operations() {
			all[op.OperationID] = method + " " + path
		}
	}
	return all
}

// Unseen returns the names of the operations that have not succeeded so far.
func (v *Validator) Unseen() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.Operations()
	maps.DeleteFunc(all, func(id, _ string) bool { return v.seen[id] })
	return slices.Sorted(maps.Keys(all))
}

// ServeHTTP implements http.Handler.
func (v *Validator) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		v.tb.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	described := r.Clone(r.Context())
	described.URL.Host, described.URL.Scheme, described.Host = "polder", "http", "polder"
	described.Body = io.NopCloser(bytes.NewReader(text))
	r.Body = io.NopCloser(bytes.NewReader(text))

	a := &answer{ResponseWriter: rw, status: http.StatusOK}
	defer a.send()
	v.next.ServeHTTP(a, r)
	if a.streams {
		a.body.Reset() // it has no end, and is looked at by those who read it
	}
	if err := v.validate(described, a); err != nil {
		v.tb.Errorf("%s %s %s: %d %s: %v", r.Method, r.URL, text, a.status, a.body.Bytes(), err)
	}
}

// validate says what of a request and its answer is not described.
func (v *Validator) validate(r *http.Request, a *answer) error {
	route, params, err := v.router.FindRoute(r)
	if err != nil {
		if a.status < 300 {
			return err
		}
		schema := &openapi3.SchemaRef{Value: v.doc.Components.Schemas["Problem"].Value}
		body, err := openapi3filter.JSONBodyDecoder(bytes.NewReader(a.body.Bytes()), a.Header(), schema, nil)
		if err != nil {
			return fmt.Errorf("no problem: %w", err)
		}
		return schema.Value.VisitJSON(body)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true},
	}
	if a.status < 300 {
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			return fmt.Errorf("it succeeds, and the request is none that is described: %w", err)
		}
		v.mu.Lock()
		v.seen[route.Operation.OperationID] = true
		v.mu.Unlock()
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.status, Header: a.Header(), Options: in.Options}
	if a.streams {
		o := *in.Options
		o.ExcludeResponseBody = true
		out.Options = &o
	}
	return openapi3filter.ValidateResponse(r.Context(), out.SetBodyBytes(a.body.Bytes()))
}

// answer keeps an answer back until it is validated, unless it is a stream.
type answer struct {
	http.ResponseWriter
	status  int
	begun   bool
	streams bool
	body    bytes.Buffer
}

// Unwrap gives http.ResponseController the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if a.begun {
		return
	}
	a.status, a.begun = status, true
	switch a.Header().Get("Content-Type") {
	case "text/event-stream", "application/x-pcapng":
		a.streams = true
		a.ResponseWriter.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.streams {
		return a.ResponseWriter.Write(p)
	}
	return a.body.Write(p)
}

// send sends what was kept back.
func (a *answer) send() {
	if a.streams {
		return
	}
	a.ResponseWriter.WriteHeader(a.status)
	_, _ = a.ResponseWriter.Write(a.body.Bytes())
}
