package build

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
)

// step is one change, and how it is made.
type step struct {
	api.Change
	do func() error

	// yield is of a change that may fail only because another one, which follows, has not been made yet: two adapters
	// may exchange their MAC addresses. It makes room for the others, before this one is tried once more after them.
	yield func()
}

func (s *step) failed(err error) error {
	return fmt.Errorf("%s %s %q: %w", s.Action, s.Kind, s.Name, err)
}

// Apply implements control.World. If a change fails, those before it are taken back, and the error
// says which it was.
func (w *World) Apply(c *config.Config, dry bool) ([]api.Change, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.snapshot()
	steps := w.diff(c)
	changes := []api.Change{}
	for _, s := range steps {
		changes = append(changes, s.Change)
	}
	if dry {
		return changes, nil
	}
	for i := range c.Switches {
		if err := checkPrivileges(&c.Switches[i]); err != nil {
			return nil, fmt.Errorf("switch %q: %w: nothing is changed", c.Switches[i].Name, err)
		}
	}
	if err := perform(steps, func(err error) bool { return false }); err != nil {
		whole := true
		perform(w.diff(old), func(err error) bool {
			w.Log.Error("cannot take a change back", "err", err)
			whole = false
			return true
		})
		if !whole {
			return nil, fmt.Errorf("%w: not everything could be taken back: polder config shows what there is now", err)
		}
		w.arrange(old)
		return nil, fmt.Errorf("%w: nothing is changed", err)
	}
	w.arrange(c)
	return changes, nil
}

// perform takes the steps in order. skip is told of one that fails, and says whether the others follow
// nevertheless.
func perform(steps []step, skip func(error) bool) error {
	var later []step
	for _, s := range steps {
		err := s.do()
		if err == nil {
			continue
		}
		if s.yield != nil {
			s.yield()
			s.yield = nil
			later = append(later, s)
			continue
		}
		if err = s.failed(err); !skip(err) {
			return err
		}
	}
	if len(later) == 0 {
		return nil
	}
	return perform(later, skip)
}

// arrange puts the running configuration into the order of c, which is that of a guest's adapters.
func (w *World) arrange(c *config.Config) {
	var switches []config.Switch
	for _, s := range c.Switches {
		switches = append(switches, w.switches[s.Name].config)
	}
	var vms []config.VM
	for _, v := range c.VMs {
		vm := config.VM{Name: v.Name, Memory: v.Memory}
		for _, a := range v.Adapters {
			vm.Adapters = append(vm.Adapters, *w.configured(a.Name))
		}
		vms = append(vms, vm)
	}
	w.config.Switches, w.config.VMs = switches, vms
}

// diff returns what it takes to get from the running configuration to c, in order: what goes,
// goes first. Temporary adapters are nobody's configuration, and stay.
func (w *World) diff(c *config.Config) (steps []step) {
	add := func(action, kind, name, detail string, do func() error) *step {
		steps = append(steps, step{Change: api.Change{Action: action, Kind: kind, Name: name, Detail: detail}, do: do})
		return &steps[len(steps)-1]
	}
	wanted := map[string]bool{}
	for _, vm := range c.VMs {
		for _, a := range vm.Adapters {
			wanted[a.Name] = true
		}
	}
	for _, vm := range w.config.VMs {
		for _, a := range vm.Adapters {
			if !wanted[a.Name] {
				add(api.ChangeRemove, "adapter", a.Name, "", func() error { return w.removeAdapter(a.Name) })
			}
		}
	}
	kept := map[string]*config.Switch{}
	for i := range c.Switches {
		kept[c.Switches[i].Name] = &c.Switches[i]
	}
	for _, s := range w.config.Switches {
		if kept[s.Name] == nil {
			add(api.ChangeRemove, "switch", s.Name, "", func() error { return w.removeSwitch(s.Name) })
		}
	}
	if !reflect.DeepEqual(c.Defaults, w.config.Defaults) || !reflect.DeepEqual(c.MACPool, w.config.MACPool) {
		add(api.ChangeSet, "defaults", "", "for adapters to come", func() error {
			w.config.Defaults = c.Defaults
			return w.setPool(c.MACPool)
		})
	}
	if !slices.Equal(c.PollCPUs, w.config.PollCPUs) {
		add(api.ChangeSet, "poll_cpus", "", "when the daemon is started again", func() error {
			w.config.PollCPUs = c.PollCPUs
			return nil
		})
	}
	for _, s := range c.Switches {
		w.diffSwitch(s, add)
	}
	for _, vm := range c.VMs {
		if i := slices.IndexFunc(w.config.VMs, func(v config.VM) bool { return v.Name == vm.Name }); i >= 0 && w.config.VMs[i].Memory != vm.Memory {
			add(api.ChangeSet, "vm", vm.Name, "memory, when it is started again", func() error { w.vm(vm.Name, vm.Memory); return nil })
		}
		for _, a := range vm.Adapters {
			w.diffAdapter(vm.Name, a, add)
		}
	}
	return steps
}

type adder func(action, kind, name, detail string, do func() error) *step

func (w *World) diffSwitch(s config.Switch, add adder) {
	n, ok := w.switches[s.Name]
	if !ok {
		add(api.ChangeAdd, "switch", s.Name, s.Type, func() error { return w.addSwitch(s, 0) })
		return
	}
	old, now := n.config, s
	old.PXE, now.PXE = nil, nil
	if !reflect.DeepEqual(old, now) {
		add(api.ChangeReplace, "switch", s.Name, different(old, now), func() error { return w.replaceSwitch(s) })
		return
	}
	if !reflect.DeepEqual(n.config.PXE, s.PXE) {
		action := api.ChangeSet
		switch {
		case s.PXE == nil:
			action = api.ChangeRemove
		case n.config.PXE == nil:
			action = api.ChangeAdd
		}
		detail := ""
		if action == api.ChangeSet {
			detail = different(*n.config.PXE, *s.PXE)
		}
		add(action, "pxe", s.Name, detail, func() error { return w.setPXE(n, s.PXE) })
	}
}

// replaceSwitch makes a switch anew; its adapters come back to it.
func (w *World) replaceSwitch(s config.Switch) error {
	old := w.switches[s.Name].config
	var moved []*adapter
	for _, a := range w.adapters {
		if a.Switch == s.Name {
			moved = append(moved, a)
		}
	}
	slices.SortFunc(moved, func(a, b *adapter) int { return cmp.Compare(a.Name, b.Name) })
	if err := w.removeSwitch(s.Name); err != nil {
		return err
	}
	err := w.addSwitch(s, 0)
	if err != nil {
		if back := w.addSwitch(old, 0); back != nil {
			w.Log.Error("the switch is gone, and its adapters are on none", "switch", s.Name, "err", back)
			return err
		}
	}
	for _, a := range moved {
		if back := w.move(a, s.Name); back != nil && err == nil {
			err = back
		}
	}
	return err
}

func (w *World) diffAdapter(vm string, a config.Adapter, add adder) {
	old := w.configured(a.Name)
	if old == nil {
		add(api.ChangeAdd, "adapter", a.Name, "on switch "+a.Switch, func() error { return w.addConfigured(vm, a) }).yield = func() {}
		return
	}
	if a.MAC == (config.MAC{}) {
		a.MAC = old.MAC // of the pool
	}
	oldCard, newCard := *old, a
	for _, c := range []*config.Adapter{&oldCard, &newCard} { // what the card itself does not know
		c.Switch, c.Policy, c.BootIndex = "", config.Policy{}, nil
	}
	if !reflect.DeepEqual(oldCard, newCard) || w.adapters[a.Name].request.VM != vm {
		add(api.ChangeReplace, "adapter", a.Name, different(*old, a), func() error {
			if w.adapters[a.Name] != nil {
				if err := w.removeAdapter(a.Name); err != nil {
					return err
				}
			}
			return w.addConfigured(vm, a)
		}).yield = func() {}
		return
	}
	if !reflect.DeepEqual(*old, a) {
		add(api.ChangeSet, "adapter", a.Name, different(*old, a), func() error {
			to := a.Switch
			if to == config.NoSwitch {
				to = ""
			}
			if err := w.change(w.adapters[a.Name], a.Policy, to); err != nil {
				return err
			}
			w.configured(a.Name).BootIndex = a.BootIndex
			w.tell(api.EventChanged, to, a.Name, "")
			return nil
		}).yield = func() { _ = w.move(w.adapters[a.Name], "") }
	}
}

// different names the keys in which two structs of a configuration differ.
func different[T any](old, now T) string {
	return strings.Join(differentKeys(reflect.ValueOf(old), reflect.ValueOf(now)), ", ")
}

func differentKeys(old, now reflect.Value) (keys []string) {
	for i := range old.NumField() {
		if reflect.DeepEqual(old.Field(i).Interface(), now.Field(i).Interface()) {
			continue
		}
		f := old.Type().Field(i)
		if f.Anonymous {
			keys = append(keys, differentKeys(old.Field(i), now.Field(i))...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		keys = append(keys, name)
	}
	return keys
}
