package build

import (
	"sync"

	"polder/cmd/internal/api"
	"polder/pxe"
)

// hub passes boot events to whoever listens. Publishing never waits.
type hub struct {
	mu     sync.Mutex
	subs   map[chan api.BootEvent]bool
	closed bool
}

// backlog is how many events a subscriber may be behind before it misses some: a boot with
// its progress is some hundred.
const backlog = 256

func (h *hub) subscribe() (<-chan api.BootEvent, func()) {
	ch := make(chan api.BootEvent, backlog)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(ch)
		return ch, func() {}
	}
	if h.subs == nil {
		h.subs = map[chan api.BootEvent]bool{}
	}
	h.subs[ch] = true
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, ch)
	}
}

func (h *hub) publish(e api.BootEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs {
		select {
		case ch <- e:
		default: // the subscriber is behind
		}
	}
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

// bootEvent turns the boot service's event into the control protocol's.
func bootEvent(sw string, e pxe.Event) api.BootEvent {
	b := api.BootEvent{
		Time: e.Time, Switch: sw, MAC: e.Client.MAC.String(), Kind: string(e.Kind), Elapsed: e.Elapsed,
		Name: e.File, Protocol: e.Proto, Size: e.Size, Bytes: e.Bytes, Took: e.Took, Detail: e.Detail,
	}
	if e.Client.Addr.IsValid() {
		b.IP = e.Client.Addr.String()
	}
	if e.Kind == pxe.EventDiscover {
		b.Detail = e.Client.Platform()
	}
	return b
}
