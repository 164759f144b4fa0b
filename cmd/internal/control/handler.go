package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
)

// World is what a control server speaks for. An error that is an *api.Problem says which status
// it is answered with; any other is a conflict with what there is. An error changes nothing.
type World interface {
	Status() api.Status

	// Config returns the running configuration.
	Config() *config.Config
	// Apply makes c the running configuration, and returns the differences. With dry it only
	// returns them.
	Apply(c *config.Config, dry bool) ([]api.Change, error)

	// AddSwitch makes a switch. What an external one does to the host's network is rolled back after the time keep, unless
	// it is committed again; with 0 it stays.
	AddSwitch(c config.Switch, keep time.Duration) error
	RemoveSwitch(name string) error

	// External tells what an external switch's hold on the host's network is, and changes it.
	External(name string) (api.External, error)
	ChangeExternal(name string, r api.ExternalRequest) (api.External, error)

	// AddAdapter makes an adapter. One that is temporary is not in the configuration.
	AddAdapter(r api.AdapterRequest, temporary bool) (api.Adapter, error)
	ChangeAdapter(name string, c api.AdapterChange) error
	RemoveAdapter(name string) error

	AddMAC(sw string, r api.MACRequest) error
	// FlushFDB forgets the learned addresses that match what is given, and the static one that mac names.
	FlushFDB(sw, port, mac string, vlan int) (int, error)

	Leases() []api.Lease
	Boots() []api.BootEvent

	// Subscribe returns the events from now on until stop is called. A subscriber that does not
	// keep up misses events.
	Subscribe() (events <-chan api.Event, stop func())

	// Capture writes frames to w as pcapng until ctx is done or w fails.
	Capture(ctx context.Context, w io.Writer, o api.CaptureOptions) error
}

// Handler answers the control protocol for w.
func Handler(w World) http.Handler {
	h := &handler{w}
	mux := http.NewServeMux()
	for _, r := range []struct {
		method, path string
		serve        func(rw http.ResponseWriter, r *http.Request) (any, error)
	}{
		{"GET", api.PathStatus, h.status},
		{"GET", api.PathConfig, h.config},
		{"PUT", api.PathConfig, h.apply},
		{"GET", api.PathSwitches, h.switches},
		{"POST", api.PathSwitches, h.addSwitch},
		{"GET", api.PathSwitch, h.getSwitch},
		{"DELETE", api.PathSwitch, h.removeSwitch},
		{"GET", api.PathFDB, h.fdb},
		{"POST", api.PathFDB, h.addMAC},
		{"DELETE", api.PathFDB, h.flushFDB},
		{"GET", api.PathExternal, h.external},
		{"POST", api.PathExternal, h.changeExternal},
		{"GET", api.PathAdapters, h.adapters},
		{"POST", api.PathAdapters, h.addAdapter},
		{"GET", api.PathAdapter, h.getAdapter},
		{"PATCH", api.PathAdapter, h.changeAdapter},
		{"DELETE", api.PathAdapter, h.removeAdapter},
		{"POST", api.PathTemporary, h.temporary},
		{"GET", api.PathLeases, func(http.ResponseWriter, *http.Request) (any, error) { return list(w.Leases()), nil }},
		{"GET", api.PathBoots, func(http.ResponseWriter, *http.Request) (any, error) { return list(w.Boots()), nil }},
		{"GET", api.PathEvents, h.events},
		{"GET", api.PathCapture, h.capture},
		{"GET", api.PathDescription, h.description},
		{"GET", api.PathHealth, h.health},
	} {
		mux.HandleFunc(r.method+" "+r.path, func(rw http.ResponseWriter, req *http.Request) {
			body, err := r.serve(rw, req)
			switch {
			case errors.Is(err, errAnswered):
			case err != nil:
				refuse(rw, err)
			case body == nil:
				rw.WriteHeader(http.StatusNoContent)
			case req.Method == http.MethodPost:
				reply(rw, http.StatusCreated, "application/json", body)
			default:
				reply(rw, http.StatusOK, "application/json", body)
			}
		})
	}
	mux.Handle("GET "+api.PathMetrics, Metrics(w))
	return problems(mux)
}

// errAnswered is of a request that its method has answered itself.
var errAnswered = errors.New("answered")

type handler struct{ w World }

func (h *handler) status(http.ResponseWriter, *http.Request) (any, error) { return h.w.Status(), nil }

func (h *handler) config(rw http.ResponseWriter, _ *http.Request) (any, error) {
	text, err := h.w.Config().Marshal()
	if err != nil {
		return nil, api.Problemf(http.StatusInternalServerError, "cannot write the configuration: %v", err)
	}
	return nil, write(rw, "application/yaml", text)
}

func (h *handler) apply(rw http.ResponseWriter, r *http.Request) (any, error) {
	text, err := readBody(rw, r)
	if err != nil {
		return nil, err
	}
	dry, err := flag(r, "dry_run")
	if err != nil {
		return nil, err
	}
	file := r.FormValue("file")
	if file == "" {
		file = "configuration"
	}
	c, err := config.Parse(file, text)
	if err != nil {
		return nil, api.Problemf(http.StatusUnprocessableEntity, "%v", err)
	}
	changes, err := h.w.Apply(c, dry)
	return list(changes), err
}

func (h *handler) switches(http.ResponseWriter, *http.Request) (any, error) {
	return list(h.w.Status().Switches), nil
}

func (h *handler) getSwitch(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("switch")
	for _, s := range h.w.Status().Switches {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, noSwitch(name)
}

func noSwitch(name string) error {
	return api.Problemf(http.StatusNotFound, "there is no switch %q", name)
}

func (h *handler) addSwitch(rw http.ResponseWriter, r *http.Request) (any, error) {
	text, err := readBody(rw, r)
	if err != nil {
		return nil, err
	}
	s, err := config.ParseSwitch("request", text)
	if err != nil {
		return nil, api.Problemf(http.StatusUnprocessableEntity, "%v", err)
	}
	keep, err := duration(r, "confirm_timeout")
	if err != nil {
		return nil, err
	}
	if err := h.w.AddSwitch(*s, keep); err != nil {
		return nil, err
	}
	r.SetPathValue("switch", s.Name)
	return h.getSwitch(rw, r)
}

func (h *handler) removeSwitch(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, h.w.RemoveSwitch(r.PathValue("switch"))
}

func (h *handler) fdb(rw http.ResponseWriter, r *http.Request) (any, error) {
	s, err := h.getSwitch(rw, r)
	if err != nil {
		return nil, err
	}
	return list(s.(api.Switch).FDB), nil
}

func (h *handler) addMAC(rw http.ResponseWriter, r *http.Request) (any, error) {
	var req api.MACRequest
	if err := readJSON(rw, r, &req); err != nil {
		return nil, err
	}
	return req, h.w.AddMAC(r.PathValue("switch"), req)
}

func (h *handler) flushFDB(_ http.ResponseWriter, r *http.Request) (any, error) {
	vlan, err := number(r, "vlan", 0, 4094)
	if err != nil {
		return nil, err
	}
	n, err := h.w.FlushFDB(r.PathValue("switch"), r.FormValue("port"), r.FormValue("mac"), vlan)
	return api.Flushed{Count: n}, err
}

func (h *handler) external(_ http.ResponseWriter, r *http.Request) (any, error) {
	return h.w.External(r.PathValue("switch"))
}

func (h *handler) changeExternal(rw http.ResponseWriter, r *http.Request) (any, error) {
	var req api.ExternalRequest
	if err := readJSON(rw, r, &req); err != nil {
		return nil, err
	}
	return h.w.ChangeExternal(r.PathValue("switch"), req)
}

func (h *handler) adapters(http.ResponseWriter, *http.Request) (any, error) {
	return list(adapters(h.w.Status())), nil
}

// adapters returns the ports that guests' adapters are.
func adapters(s api.Status) []api.Port {
	ports := s.Adapters
	for _, sw := range s.Switches {
		for _, p := range sw.Ports {
			if p.Kind == config.KindLegacy || p.Kind == config.KindSynthetic {
				ports = append(ports, p)
			}
		}
	}
	return ports
}

func (h *handler) getAdapter(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("adapter")
	for _, p := range adapters(h.w.Status()) {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, api.Problemf(http.StatusNotFound, "there is no adapter %q", name)
}

func (h *handler) addAdapter(rw http.ResponseWriter, r *http.Request) (any, error) {
	var req api.AdapterRequest
	if err := readJSON(rw, r, &req); err != nil {
		return nil, err
	}
	return h.w.AddAdapter(req, false)
}

func (h *handler) changeAdapter(rw http.ResponseWriter, r *http.Request) (any, error) {
	var req api.AdapterChange
	if err := readJSON(rw, r, &req); err != nil {
		return nil, err
	}
	if err := h.w.ChangeAdapter(r.PathValue("adapter"), req); err != nil {
		return nil, err
	}
	return h.getAdapter(rw, r)
}

func (h *handler) removeAdapter(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, h.w.RemoveAdapter(r.PathValue("adapter"))
}

// temporary makes an adapter and keeps it for as long as the client stays.
func (h *handler) temporary(rw http.ResponseWriter, r *http.Request) (any, error) {
	var req api.AdapterRequest
	if err := readJSON(rw, r, &req); err != nil {
		return nil, err
	}
	a, err := h.w.AddAdapter(req, true)
	if err != nil {
		return nil, err
	}
	defer h.w.RemoveAdapter(a.Name)
	return nil, h.stream(rw, r, &api.Event{Time: time.Now(), Kind: api.EventAdapter, Switch: a.Switch, Port: a.Name, Adapter: &a})
}

func (h *handler) events(rw http.ResponseWriter, r *http.Request) (any, error) {
	if err := noBody(r); err != nil {
		return nil, err
	}
	return nil, h.stream(rw, r, nil)
}

// stream writes server-sent events until the client goes.
func (h *handler) stream(rw http.ResponseWriter, r *http.Request, first *api.Event) error {
	events, stop := h.w.Subscribe()
	defer stop()
	rw.Header().Set("Content-Type", "text/event-stream")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(http.StatusOK)
	flush := endless(rw)
	send := func(e *api.Event) error {
		text, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(rw, "event: %s\ndata: %s\n\n", e.Kind, text)
		return err
	}
	if first != nil && send(first) != nil {
		return errAnswered
	}
	for flush.Flush() == nil {
		select {
		case e, ok := <-events:
			if !ok || send(&e) != nil {
				return errAnswered
			}
		case <-r.Context().Done():
			return errAnswered
		}
	}
	return errAnswered
}

func (h *handler) capture(rw http.ResponseWriter, r *http.Request) (any, error) {
	if err := noBody(r); err != nil {
		return nil, err
	}
	snaplen, err := number(r, "snaplen", 0, 1<<18)
	if err != nil {
		return nil, err
	}
	drops, err := flag(r, "drops")
	if err != nil {
		return nil, err
	}
	out := &flusher{rw: rw, flush: endless(rw)}
	rw.Header().Set("Content-Type", "application/x-pcapng")
	o := api.CaptureOptions{Switch: r.FormValue("switch"), Ports: r.Form["port"], Snaplen: snaplen, DropsOnly: drops}
	if err := h.w.Capture(r.Context(), out, o); err != nil && !out.begun {
		rw.Header().Del("Content-Type")
		return nil, err
	}
	return nil, errAnswered
}

// flusher sends what is written at once.
type flusher struct {
	rw    http.ResponseWriter
	flush *http.ResponseController
	begun bool
}

// Write implements io.Writer.
func (f *flusher) Write(p []byte) (int, error) {
	f.begun = true
	n, err := f.rw.Write(p)
	return n, errors.Join(err, f.flush.Flush())
}

func (h *handler) description(rw http.ResponseWriter, _ *http.Request) (any, error) {
	return nil, write(rw, "application/yaml", api.Description)
}

func (h *handler) health(rw http.ResponseWriter, _ *http.Request) (any, error) {
	h.w.Status() // takes the locks that the daemon's work takes
	return nil, write(rw, "text/plain; charset=utf-8", []byte("ok\n"))
}
