package build

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"polder/cmd/internal/api"
	"polder/pxe"
	"polder/vswitch"
)

// hub passes events to whoever listens. Publishing never waits.
type hub struct {
	mu     sync.Mutex
	subs   map[chan api.Event]*subscription
	boots  []api.BootEvent // the last of each client, the latest at the end
	closed bool
}

// subscription is what a subscriber has not been told.
type subscription struct{ missed int }

// backlog is how many events a subscriber may be behind before it misses some: a boot with
// its progress is some hundred.
const backlog = 256

// maxBoots is how many clients' last boot events are kept.
const maxBoots = 1024

func (h *hub) subscribe() (<-chan api.Event, func()) {
	ch := make(chan api.Event, backlog)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(ch)
		return ch, func() {}
	}
	if h.subs == nil {
		h.subs = map[chan api.Event]*subscription{}
	}
	h.subs[ch] = &subscription{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, ch)
	}
}

func (h *hub) publish(e api.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Boot != nil {
		h.remember(*e.Boot)
	}
	for ch, s := range h.subs {
		if s.missed > 0 && len(ch) < backlog-1 {
			ch <- api.Event{Time: e.Time, Kind: api.EventMissed, Detail: fmt.Sprintf("%d events", s.missed)}
			s.missed = 0
		}
		select {
		case ch <- e:
		default: // the subscriber is behind
			s.missed++
		}
	}
}

// remember keeps e as its client's last.
func (h *hub) remember(e api.BootEvent) {
	if i := slices.IndexFunc(h.boots, func(b api.BootEvent) bool { return b.MAC == e.MAC && b.Switch == e.Switch }); i >= 0 {
		h.boots = slices.Delete(h.boots, i, i+1)
	}
	if len(h.boots) == maxBoots {
		h.boots = slices.Delete(h.boots, 0, 1)
	}
	h.boots = append(h.boots, e)
}

// close ends every subscription: the channels are closed.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs {
		close(ch)
	}
	h.subs, h.closed = nil, true
}

// tell publishes an event of now.
func (w *World) tell(kind, sw, port, detail string) {
	w.events.publish(api.Event{Time: time.Now(), Kind: kind, Switch: sw, Port: port, Detail: detail})
}

// Subscribe implements control.World.
func (w *World) Subscribe() (<-chan api.Event, func()) { return w.events.subscribe() }

// Boots implements control.World.
func (w *World) Boots() []api.BootEvent {
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	return slices.Clone(w.events.boots)
}

// bootEvent turns the boot service's event into the control protocol's.
func bootEvent(sw string, e pxe.Event) api.Event {
	b := &api.BootEvent{
		Time: e.Time, Switch: sw, MAC: e.Client.MAC.String(), Kind: string(e.Kind), Elapsed: e.Elapsed,
		Name: e.File, Protocol: e.Proto, Size: e.Size, Bytes: e.Bytes, Took: e.Took, Detail: e.Detail,
	}
	if e.Client.Addr.IsValid() {
		b.IP = e.Client.Addr.String()
	}
	if e.Kind == pxe.EventDiscover {
		b.Detail = e.Client.Platform()
	}
	return api.Event{Time: e.Time, Kind: api.EventBoot, Switch: sw, Boot: b}
}

// switchEvent turns the switch's event into the control protocol's.
func switchEvent(sw string, e vswitch.Event) api.Event {
	detail := ""
	if e.MAC != (vswitch.MAC{}) {
		detail = "mac " + e.MAC.String()
	}
	if e.VLAN != 0 {
		detail += fmt.Sprintf(" vlan %d", e.VLAN)
	}
	if e.Other != "" {
		detail += " other port " + e.Other
	}
	return api.Event{Time: e.Time, Kind: e.Kind.String(), Switch: sw, Port: e.Port, Detail: strings.TrimSpace(detail)}
}
