package build

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/vswitch"
)

// network is a switch and what serves it.
type network struct {
	config config.Switch
	sw     *vswitch.Switch
	pxe    *bootService // nil: none
	host   host
}

// maxMoves is how often an address may change ports in ten seconds: guests migrate more seldom, and a loop moves it with each frame.
const maxMoves = 64

// AddSwitch implements control.World.
func (w *World) AddSwitch(c config.Switch, keep time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addSwitch(c, keep)
}

// addSwitch makes a switch. keep is openHost's.
func (w *World) addSwitch(c config.Switch, keep time.Duration) (err error) {
	if _, ok := w.switches[c.Name]; ok {
		return fmt.Errorf("there is a switch %q already: take another name", c.Name)
	}
	if err := checkPrivileges(&c); err != nil {
		return fmt.Errorf("switch %q: %w", c.Name, err)
	}
	n := &network{config: c}
	n.sw = vswitch.New(vswitch.Config{
		Name: c.Name, AgeingTime: c.AgeingTime, MaxMACs: c.MaxMACs, MaxMoves: maxMoves,
		Events: func(e vswitch.Event) { w.events.publish(switchEvent(c.Name, e)) },
	})
	defer func() {
		if err != nil {
			w.closeNetwork(n)
			err = fmt.Errorf("switch %q: %w", c.Name, err)
		}
	}()
	if c.PXE != nil {
		if n.pxe, err = w.addPXE(n.sw, c.Name, c.PXE); err != nil {
			return err
		}
	}
	if err := w.openHost(n, keep); err != nil {
		return err
	}
	w.switches[c.Name] = n
	w.config.Switches = append(w.config.Switches, c)
	w.tell(api.EventAdded, c.Name, "", c.Type)
	return nil
}

// RemoveSwitch implements control.World. Adapters that are on the switch stay, on none.
func (w *World) RemoveSwitch(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removeSwitch(name)
}

func (w *World) removeSwitch(name string) error {
	n, ok := w.switches[name]
	if !ok {
		return api.Problemf(http.StatusNotFound, "there is no switch %q", name)
	}
	if err := w.closeExternal(n); err != nil {
		return fmt.Errorf("switch %q: %w", name, err)
	}
	for _, a := range w.adapters {
		if a.Switch == name {
			if err := w.move(a, ""); err != nil {
				return err
			}
		}
	}
	w.closeNetwork(n)
	delete(w.switches, name)
	w.config.Switches = slices.DeleteFunc(w.config.Switches, func(s config.Switch) bool { return s.Name == name })
	w.tell(api.EventRemoved, name, "", "")
	return nil
}

// closeNetwork takes a switch down, after its adapters.
func (w *World) closeNetwork(n *network) {
	w.closeHost(n)
	if n.pxe != nil {
		n.pxe.close()
	}
	n.sw.Close()
}

// setPXE puts another boot service on the switch in place of the one that is there. Its leases are
// forgotten; a client gets its address again if it is free.
func (w *World) setPXE(n *network, c *config.PXE) error {
	old := n.config.PXE
	if n.pxe != nil {
		n.pxe.close()
		n.pxe = nil
	}
	make := func(c *config.PXE) (err error) {
		if c != nil {
			n.pxe, err = w.addPXE(n.sw, n.config.Name, c)
		}
		return err
	}
	if err := make(c); err != nil {
		if back := make(old); back != nil {
			w.Log.Error("the switch has no boot service now", "switch", n.config.Name, "err", back)
		}
		return fmt.Errorf("switch %q: %w", n.config.Name, err)
	}
	n.config.PXE = c
	w.noteSwitch(n.config)
	w.tell(api.EventChanged, n.config.Name, pxePort, "")
	return nil
}

// noteSwitch puts a switch into the running configuration in place of the one of its name.
func (w *World) noteSwitch(c config.Switch) {
	for i := range w.config.Switches {
		if w.config.Switches[i].Name == c.Name {
			w.config.Switches[i] = c
		}
	}
}
