package control_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/control/controltest"
)

var quiet = slog.New(slog.DiscardHandler)

const lab = `
mac_pool: 00:15:5d:4d:00:00-00:15:5d:4d:00:ff
switches:
  - name: lab
    pxe: {address: 10.9.0.1/24}
  - name: lan
vms:
  - name: web
    adapters:
      - {switch: lab, vlan: {access: 5}, acl: [{action: deny, protocol: tcp, local_port: 22}], bandwidth: 100M}
      - {switch: lan, kind: synthetic, queues: 2, mirror: source}
      - {switch: none}
`

// newWorld builds a configuration until the test ends.
func newWorld(t *testing.T, text string) *build.World {
	t.Helper()
	dir := t.TempDir()
	c, err := config.Parse(filepath.Join(dir, "f.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	w, err := build.New(c, build.Options{Dir: dir, StateDir: dir, Version: "test", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// validated serves a world on a socket until the test ends, and holds all that is said against the description.
func validated(t *testing.T, w control.World) (*controltest.Validator, string) {
	t.Helper()
	v := controltest.New(t, control.Handler(w))
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: v}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Close(); done.Wait() })
	return v, path
}

// httpClient is any client of a unix socket.
func httpClient(path string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// The handler answers exactly what the description lists: each operation is used, and a path or a method that is not
// listed is refused.
func TestRoutesAreTheDescriptions(t *testing.T) {
	v, path := validated(t, newWorld(t, lab))
	client := httpClient(path)
	listed := map[string]bool{}
	paths := map[string]bool{}
	for _, op := range v.Operations() {
		listed[op] = true
		_, p, _ := strings.Cut(op, " ")
		paths[p] = true
	}
	for _, p := range []string{
		api.PathStatus, api.PathConfig, api.PathSwitches, api.PathSwitch, api.PathFDB, api.PathExternal, api.PathAdapters, api.PathAdapter,
		api.PathTemporary, api.PathLeases, api.PathBoots, api.PathEvents, api.PathCapture, api.PathDescription, api.PathMetrics, api.PathHealth,
	} {
		if !paths[p] {
			t.Errorf("%s is not described", p)
		}
		delete(paths, p)
		// With a method that nothing takes, the handler says which it takes.
		req, err := http.NewRequest("FROB", "http://polder"+strings.NewReplacer("{switch}", "lab", "{adapter}", "web").Replace(p), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		allow := strings.Split(resp.Header.Get("Allow"), ", ")
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("FROB %s: %s", p, resp.Status)
		}
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			if slices.Contains(allow, m) != listed[m+" "+p] {
				t.Errorf("%s %s: the handler takes %v; in the description: %v", m, p, allow, listed[m+" "+p])
			}
		}
	}
	for p := range paths {
		t.Errorf("%s is described, and there is no such path", p)
	}
}

// Each operation does what the description says, with a real world; what is refused is refused with a problem.
func TestOperations(t *testing.T) {
	w := newWorld(t, lab)
	v, path := validated(t, w)
	client := httpClient(path)
	text, err := w.Config().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const (
		asJSON = "application/json"
		asYAML = "application/yaml"
	)
	for _, c := range []struct {
		method, path, contentType, body string
		status                          int
		want                            string // in the answer
	}{
		{"GET", "/v1/status", "", "", 200, `"version":"test"`},
		{"GET", "/v1/config", "", "", 200, "access: 5"},
		{"PUT", "/v1/config?dry_run=true", asYAML, "switches: [{name: lan}]", 200, `{"action":"remove","kind":"adapter","name":"web"}`},
		{"PUT", "/v1/config", asYAML, string(text), 200, "[]\n"},
		{"PUT", "/v1/config?file=/etc/f.yaml", asYAML, "switchs: []", 422, `/etc/f.yaml:1:1: unknown key \"switchs\": did you mean \"switches\"?`},
		{"PUT", "/v1/config?dry_run=maybe", asYAML, "switches: []", 400, `"field":"dry_run"`},
		{"PUT", "/v1/config", asYAML, "switches: [{name: lab, pxe: {root: /nonesuch}}, {name: lan}]", 409, "nothing is changed"},
		{"GET", "/v1/switches", "", "", 200, `"name":"lab"`},
		{"POST", "/v1/switches", asJSON, `{"name":"new","ageing_time":"10s"}`, 201, `"fdb":[]`},
		{"POST", "/v1/switches", asYAML, "name: newer\nmtu: 9000\n", 201, `"name":"newer"`},
		{"POST", "/v1/switches", asJSON, `{"name":"new"}`, 409, `there is a switch \"new\" already: take another name`},
		{"POST", "/v1/switches", asJSON, `{"name":"x","type":"external"}`, 422, "an external switch needs an uplink"},
		{"POST", "/v1/switches", asJSON, `{"name":"../x"}`, 422, "cannot be a name"},
		{"POST", "/v1/switches", asJSON, `{"name":"x","colour":"red"}`, 422, `request:1:13: unknown key \"colour\"`},
		{"POST", "/v1/switches", asJSON, `{"name":`, 422, "request:1:"},
		{"POST", "/v1/switches?confirm_timeout=2h", asJSON, `{"name":"x"}`, 400, `"field":"confirm_timeout"`},
		{"GET", "/v1/switches/new", "", "", 200, `"ports":[]`},
		{"GET", "/v1/switches/none", "", "", 404, `there is no switch \"none\"`},
		{"DELETE", "/v1/switches/new", "", "", 204, ""},
		{"DELETE", "/v1/switches/new", "", "", 404, `there is no switch \"new\"`},
		{"POST", "/v1/switches/lan/fdb", asJSON, `{"mac":"00:15:5d:00:00:09","port":"web-1"}`, 201, "00:15:5d:00:00:09"},
		{"GET", "/v1/switches/lan/fdb", "", "", 200, `"static":true`},
		{"POST", "/v1/switches/lan/fdb", asJSON, `{"mac":"00:15:5d:00:00:09","port":"nobody"}`, 404, "polder show lan names its ports"},
		{"POST", "/v1/switches/lan/fdb", asJSON, `{"mac":"nine","port":"web-1"}`, 422, "write it like 00:15:5d:01:02:03"},
		{"POST", "/v1/switches/lan/fdb", asJSON, `{"mac":"00:15:5d:00:00:08","vlan":4095,"port":"web-1"}`, 422, "vlan 4095: from 0 to 4094"},
		{"DELETE", "/v1/switches/lan/fdb?mac=00:15:5d:00:00:09", "", "", 200, `{"count":1}`},
		{"DELETE", "/v1/switches/lan/fdb?mac=00:15:5d:00:00:09", "", "", 404, "does not know 00:15:5d:00:00:09"},
		{"DELETE", "/v1/switches/lan/fdb?vlan=x", "", "", 400, "from 0 to 4094"},
		{"DELETE", "/v1/switches/lan/fdb?port=web-1&vlan=7", "", "", 200, `{"count":0}`},
		{"GET", "/v1/switches/lan/external", "", "", 409, "only an external switch"},
		{"POST", "/v1/switches/lan/external", asJSON, `{"action":"commit"}`, 409, "only an external switch"},
		{"POST", "/v1/switches/lan/external", asJSON, `{"action":"commit","timeout_ns":"1s"}`, 400, `"field":"timeout_ns"`},
		{"GET", "/v1/adapters", "", "", 200, `"name":"web-2"`},
		{"POST", "/v1/adapters", asJSON, `{"name":"db","switch":"lan","kind":"synthetic","vlan":{"trunk":"1-5","native":6},"acl":[{"action":"meter","remote":"10.0.0.0/8"}],"dhcp_guard":true}`, 201, `"kind":"synthetic"`},
		{"POST", "/v1/adapters", asJSON, `{"name":"db","switch":"lan"}`, 409, "take another name"},
		{"POST", "/v1/adapters", asJSON, `{"name":"d2","switch":"none"}`, 404, `there is no switch \"none\"`},
		{"POST", "/v1/adapters", asJSON, `{"name":"d2","vlan":{"access":5000}}`, 422, "access 5000: from 1 to 4094"},
		{"POST", "/v1/adapters", asJSON, `{"name":"d2","bandwidth":"fast"}`, 400, "write it like 100M"},
		{"POST", "/v1/adapters", asJSON, `{"name":"d2","rom":"AAAA"}`, 409, "boot ROM"},
		{"GET", "/v1/adapters/db", "", "", 200, `"acl":[0]`},
		{"GET", "/v1/adapters/none", "", "", 404, `there is no adapter \"none\"`},
		{"PATCH", "/v1/adapters/db", asJSON, `{"switch":"","no_vlan":true}`, 200, `"link":"down"`},
		{"PATCH", "/v1/adapters/db", asJSON, `{"switch":"lan","no_acl":true,"storm_limit":5,"bpdu":"shutdown"}`, 200, `"link":"up"`},
		{"PATCH", "/v1/adapters/db", asJSON, `{"link":"down"}`, 200, `"link":"down"`},
		{"PATCH", "/v1/adapters/db", asJSON, `{"link":"sideways"}`, 422, "is not one of: up, down"},
		{"PATCH", "/v1/adapters/db", asJSON, `{"name":"other"}`, 400, `unknown field \"name\"`},
		{"PATCH", "/v1/adapters/none", asJSON, `{"link":"up"}`, 404, "there is no adapter"},
		{"DELETE", "/v1/adapters/db", "", "", 204, ""},
		{"DELETE", "/v1/adapters/db", "", "", 404, "there is no adapter"},
		{"POST", "/v1/temporary-adapters", asJSON, `{"name":"web","switch":"lan"}`, 409, "take another name"},
		{"GET", "/v1/leases", "", "", 200, "[]\n"},
		{"GET", "/v1/boots", "", "", 200, "[]\n"},
		{"GET", "/v1/capture?snaplen=-1", "", "", 400, `"field":"snaplen"`},
		{"GET", "/v1/capture?port=nobody", "", "", 404, "polder show names them"},
		{"GET", "/v1/capture", "", "", 422, "a capture is of one switch"},
		{"GET", "/v1/openapi.yaml", "", "", 200, "openapi: 3.0.3"},
		{"GET", "/metrics", "", "", 200, "polder_port_rx_frames_total"},
		{"GET", "/healthz", "", "", 200, "ok\n"},

		{"GET", "/", "", "", 404, "/v1/openapi.yaml describes what there is"},
		{"GET", "/v1/nothing", "", "", 404, "there is nothing at /v1/nothing"},
		{"POST", "/v1/status", asJSON, "{}", 405, "it takes GET, HEAD"},
		{"GET", "/v1/switches/%2E%2E", "", "", 404, `there is no switch \"..\"`},
		{"DELETE", "/v1/switches/..%2Fadapters%2Fweb", "", "", 404, `there is no switch \"../adapters/web\"`},
		{"DELETE", "/v1/adapters/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd", "", "", 404, `there is no adapter \"../../etc/passwd\"`},
		{"GET", "/v1/adapters/%00", "", "", 404, `there is no adapter`},
		{"GET", "/v1/adapters/" + strings.Repeat("x", 8000), "", "", 404, "there is no adapter"},
	} {
		req, err := http.NewRequest(c.method, "http://polder"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.contentType != "" {
			req.Header.Set("Content-Type", c.contentType)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !strings.Contains(string(answer), c.want) {
			t.Errorf("%s %.60s %s: %s, %v\n%.400s\nwant %d with %s", c.method, c.path, c.body, resp.Status, err, answer, c.status, c.want)
		}
	}

	// The streams.
	polder := control.Dial(path)
	events, err := polder.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	a, stream, err := polder.Attach(t.Context(), api.AdapterRequest{Name: "guest", Switch: "lan"})
	if err != nil || a.Name != "guest" {
		t.Fatal(a, err)
	}
	if e, err := events.Next(); err != nil || e.Kind != api.EventAdded || e.Port != "guest" {
		t.Errorf("got %+v, %v", e, err)
	}
	stream.Close()
	if e, err := events.Next(); err != nil || e.Kind != api.EventRemoved {
		t.Errorf("got %+v, %v", e, err)
	}
	packets, err := polder.Open(t.Context(), "/v1/capture?switch=lan&port=web-1&snaplen=64&drops=true")
	if err != nil {
		t.Fatal(err)
	}
	var magic [4]byte
	if _, err := io.ReadFull(packets, magic[:]); err != nil || magic != [4]byte{0x0a, 0x0d, 0x0d, 0x0a} {
		t.Errorf("a capture begins with % x, %v", magic, err)
	}
	packets.Close()

	events.Close()
	want := []string{"changeExternal", "external"} // which need a network of their own
	for deadline := time.Now().Add(10 * time.Second); !slices.Equal(v.Unseen(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("operations that did not succeed here: %q, want %q", v.Unseen(), want)
		}
	}
}

// Names that are none lead to no other path.
func TestClientPaths(t *testing.T) {
	_, path := validated(t, newWorld(t, lab))
	polder := control.Dial(path)
	for _, name := range []string{".", "..", "../adapters/web", "a/b", "a b", "a%2fb", "?x=1", "#", "\x00", "é", strings.Repeat("x", 4000)} {
		var p api.Port
		err := polder.Get(t.Context(), control.Path(api.PathAdapter, nil, name), &p)
		if want := fmt.Sprintf("there is no adapter %q", name); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
}

// Clients that are slow, that send too much or nothing sensible, or that do not read what they asked for, a thousand at a
// time, do not keep others from being served, and nothing is left of them.
func TestHostileClients(t *testing.T) {
	w := newWorld(t, lab)
	path := filepath.Join(t.TempDir(), "c.sock")
	before := runtime.NumGoroutine()
	s, err := control.Listen(path, control.NoGroup, w, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	var held []net.Conn
	say := func(text string) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		conn.SetWriteDeadline(time.Now().Add(time.Second)) // the daemon may have closed it
		_, _ = io.WriteString(conn, text)
	}
	for range 100 {
		say("")                                                                                                // says nothing
		say("GET /v1/status HTTP/1.1\r\nHost: x\r\nX: ")                                                       // does not finish
		say("POST /v1/adapters HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n{")                 // promises a lot
		say("POST /v1/adapters HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n") // promises more
		say("GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")                                                      // does not read
		say("GET /v1/capture?switch=lan HTTP/1.1\r\nHost: x\r\n\r\n")                                          // does not read either
		say(strings.Repeat("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 100))                                 // asks again and again
		say("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")                                                    // speaks TLS
		say("PUT /v1/config HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n\x00\xff\xfe")                    // speaks nothing
		say("GET http://[::1%25lo]:99999/ HTTP/1.1\r\nHost: \x01\r\n\r\n")                                     // knows no addresses
	}

	// More than an events client that does not read has room for.
	name := "flood"
	for range 300 {
		if _, err := w.AddAdapter(api.AdapterRequest{Name: name, Switch: "lan"}, true); err != nil {
			t.Fatal(err)
		}
		if err := w.RemoveAdapter(name); err != nil {
			t.Fatal(err)
		}
	}

	var clients sync.WaitGroup
	for i := range 1000 {
		clients.Go(func() {
			polder := control.Dial(path)
			var err error
			switch i % 4 {
			case 0:
				_, err = polder.Status(t.Context())
			case 1:
				err = polder.Get(t.Context(), control.Path(api.PathAdapter, nil, "web"), &api.Port{})
			case 2:
				err = polder.Do(t.Context(), "PATCH", control.Path(api.PathAdapter, nil, "web"), api.AdapterChange{NoACL: true}, nil)
			default:
				var text []byte
				err = polder.Get(t.Context(), api.PathMetrics, &text)
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	clients.Wait()
	if n := w.Adapters(); n != 3 {
		t.Errorf("%d adapters, want the 3 that there were", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range held {
		c.Close()
	}
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d goroutines, and before it were %d", runtime.NumGoroutine(), before)
}

// A client that asks and goes on asking on one connection is served on it.
func TestOneConnection(t *testing.T) {
	_, path := validated(t, newWorld(t, lab))
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for i := range 100 {
		request := "GET /v1/switches/lan HTTP/1.1\r\nHost: polder\r\n\r\n"
		if i%2 == 1 {
			request = "GET /v1/nothing HTTP/1.1\r\nHost: polder\r\n\r\n"
		}
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || !json.Valid(text) {
			t.Fatalf("answer %d: %s, %v", i, text, err)
		}
	}
}

// What the description says of a switch's and a file's keys holds for the configuration that runs.
func TestConfigIsAFile(t *testing.T) {
	w := newWorld(t, lab)
	_, path := validated(t, w)
	polder := control.Dial(path)
	var text []byte
	if err := polder.Get(t.Context(), api.PathConfig, &text); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Marshal(); err != nil || !bytes.Equal(again, text) {
		t.Errorf("%v\n%s\nreads as\n%s", err, text, again)
	}
}
