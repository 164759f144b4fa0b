package build

import (
	"context"
	"io"
	"net/http"

	"polder/cmd/internal/api"
	"polder/vswitch"
	"polder/vswitch/capture"
)

// Capture implements control.World.
func (w *World) Capture(ctx context.Context, out io.Writer, o api.CaptureOptions) error {
	sw, members, err := w.observed(o)
	if err != nil {
		return err
	}
	obs, err := sw.Observe(vswitch.ObserverConfig{Members: members, DropsOnly: o.DropsOnly, SnapLen: o.Snaplen})
	if err != nil {
		return err
	}
	defer obs.Close()
	return capture.Stream(ctx, out, obs)
}

// observed finds the switch and the ports that o names.
func (w *World) observed(o api.CaptureOptions) (*vswitch.Switch, []*vswitch.Member, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Switch == "" {
		var err error
		if o.Switch, err = w.switchOf(o.Ports); err != nil {
			return nil, nil, err
		}
	}
	n, _, err := w.port(o.Switch, "")
	if err != nil {
		return nil, nil, err
	}
	var members []*vswitch.Member
	for _, name := range o.Ports {
		_, m, err := w.port(o.Switch, name)
		if err != nil {
			return nil, nil, err
		}
		members = append(members, m)
	}
	return n.sw, members, nil
}

// switchOf returns the one switch that has the ports, or the only one if there are none.
func (w *World) switchOf(ports []string) (string, error) {
	var found []string
	for name := range w.switches {
		has := true
		for _, p := range ports {
			if _, _, err := w.port(name, p); err != nil {
				has = false
			}
		}
		if has {
			found = append(found, name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && len(ports) > 0:
		return "", api.Problemf(http.StatusNotFound, "no switch has the ports %q: polder show names them", ports)
	}
	return "", api.Problemf(http.StatusUnprocessableEntity, "a capture is of one switch: say which, with --switch or ?switch=")
}
