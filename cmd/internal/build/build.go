// Package build makes what a configuration says: switches, their boot services, and the
// adapters on them, in order, with a teardown that is the exact reverse. What fails half-way
// is taken down again, so an error leaves nothing behind. The operator's changes go through
// the same verbs as the configuration's.
package build

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	sysconf "github.com/tklauser/go-sysconf"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device"
	"polder/device/vfiouser"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// Options are what a World needs to know of its process.
type Options struct {
	Dir      string // of the adapters' sockets; made if it is not there
	Group    int    // number of the group that may open the adapters' sockets, besides their owner; 0: none
	StateDir string // of what outlives the process; "": nothing does
	Version  string
	Log      *slog.Logger
}

// World is the running configuration. Its methods may be called from any goroutine.
type World struct {
	Options
	started time.Time
	events  hub

	mu       sync.Mutex // guards what follows; held while something is added, changed or removed
	config   config.Config
	switches map[string]*network
	adapters map[string]*adapter
	pool     *macPool // nil: addresses are made from names
	state    *os.File // the directory of state, locked; nil: not needed yet

	spinners *vfiouser.Spinners // of all adapters' connections
	workers  *device.Workers    // of all synthetic adapters
}

// New builds the configuration. Close the World when it is no longer needed.
func New(c *config.Config, o Options) (_ *World, err error) {
	w := &World{
		Options: o, started: time.Now(),
		switches: map[string]*network{}, adapters: map[string]*adapter{},
		spinners: vfiouser.NewSpinners(spareProcessors()),
	}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if len(c.PollCPUs) > 0 {
		if w.workers, err = device.NewPollers(c.PollCPUs); err != nil {
			return nil, fmt.Errorf("poll mode: %w", err)
		}
		w.config.PollCPUs = c.PollCPUs
	} else if w.workers, err = device.NewWorkers(spareProcessors(), w.spinners); err != nil {
		return nil, fmt.Errorf("workers: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of sockets: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock() // before Close
	if o.StateDir != "" && (c.MACPool != nil || slices.ContainsFunc(c.Switches, ofHost)) {
		if err := w.holdState(stateHandover); err != nil {
			return nil, err
		}
	}
	if err := w.setPool(c.MACPool); err != nil {
		return nil, err
	}
	w.config.Defaults = c.Defaults
	if err := w.recoverHost(c.Switches); err != nil {
		return nil, err
	}
	for _, s := range c.Switches {
		if err := w.addSwitch(s, 0); err != nil {
			return nil, err
		}
	}
	for _, vm := range c.VMs {
		if err := w.addVM(vm); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// setPool changes the range of addresses that adapters are given from now on.
func (w *World) setPool(rng *config.MACPool) error {
	w.config.MACPool, w.pool = rng, nil
	if rng == nil {
		return nil
	}
	if w.StateDir == "" {
		return fmt.Errorf("mac_pool: there is no directory of state to keep the addresses in: give --state-dir")
	}
	if err := w.holdState(0); err != nil {
		return err
	}
	p, err := openPool(w.StateDir, *rng)
	w.pool = p
	return err
}

// addVM notes a VM and adds its adapters.
func (w *World) addVM(vm config.VM) error {
	w.vm(vm.Name, vm.Memory)
	for _, a := range vm.Adapters {
		if err := w.addConfigured(vm.Name, a); err != nil {
			return err
		}
	}
	return nil
}

// addConfigured adds an adapter of the configuration.
func (w *World) addConfigured(vm string, a config.Adapter) error {
	r := api.AdapterRequest{
		Switch: a.Switch, Name: a.Name, VM: vm, Kind: a.Kind, Policy: a.Policy,
		Queues: a.Queues, NoPacked: a.Packed != nil && !*a.Packed, NoOffload: a.Offload != nil && !*a.Offload,
		Socket: a.Socket.Path, Client: a.Socket.Mode == config.ModeClient,
	}
	if a.Switch == config.NoSwitch {
		r.Switch = ""
	}
	if a.MAC != (config.MAC{}) {
		r.MAC = a.MAC.String()
	}
	if a.Kind == config.KindLegacy {
		if err := ReadROM(a.ROM, &r); err != nil {
			return fmt.Errorf("adapter %q: %w", r.Name, err)
		}
	}
	made, err := w.addAdapter(r, false)
	if err != nil {
		return err
	}
	mac, err := config.ParseMAC(made.MAC)
	a.MAC = config.MAC(mac)
	v := w.vm(vm, 0)
	v.Adapters = append(v.Adapters, a)
	return err
}

// vm returns the running configuration's VM, and makes it if there is none.
func (w *World) vm(name string, memory config.Bytes) *config.VM {
	i := slices.IndexFunc(w.config.VMs, func(v config.VM) bool { return v.Name == name })
	if i < 0 {
		i = len(w.config.VMs)
		w.config.VMs = append(w.config.VMs, config.VM{Name: name, Memory: config.DefaultMemory})
	}
	v := &w.config.VMs[i]
	v.Memory = cmp.Or(memory, v.Memory)
	return v
}

// configured returns the running configuration's adapter; nil if it is not there, as a temporary
// one's is not.
func (w *World) configured(name string) *config.Adapter {
	for i := range w.config.VMs {
		for j := range w.config.VMs[i].Adapters {
			if a := &w.config.VMs[i].Adapters[j]; a.Name == name {
				return a
			}
		}
	}
	return nil
}

// forget takes an adapter, and a VM that has no other, out of the running configuration.
func (w *World) forget(name string) {
	for i := range w.config.VMs {
		vm := &w.config.VMs[i]
		n := len(vm.Adapters)
		vm.Adapters = slices.DeleteFunc(vm.Adapters, func(a config.Adapter) bool { return a.Name == name })
		if n > 0 && len(vm.Adapters) == 0 {
			w.config.VMs = slices.Delete(w.config.VMs, i, i+1)
			return
		}
	}
}

// Config implements control.World.
func (w *World) Config() *config.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snapshot()
}

// snapshot returns the running configuration with lists of its own.
func (w *World) snapshot() *config.Config {
	c := w.config
	c.Switches = slices.Clone(c.Switches)
	c.VMs = slices.Clone(c.VMs)
	for i := range c.VMs {
		c.VMs[i].Adapters = slices.Clone(c.VMs[i].Adapters)
	}
	return &c
}

// spareProcessors is how many processors may be kept busy looking out for frames: all that this process may run on, if the
// machine has others for the guests, or else one fewer; 0 if it cannot tell.
func spareProcessors() int {
	ours, err := sysconf.Sysconf(sysconf.SC_NPROCESSORS_ONLN) // by sched_getaffinity
	all, allErr := sysconf.Sysconf(sysconf.SC_NPROCESSORS_CONF)
	if err != nil || allErr != nil {
		return 0
	}
	return int(min(ours, all-1))
}

// SocketPath is where an adapter's hypervisor attaches, unless the operator says otherwise.
func SocketPath(dir, adapter string) string { return filepath.Join(dir, adapter+".sock") }

// AddAdapter implements control.World: it makes an adapter, puts it on a switch and listens for its hypervisor.
func (w *World) AddAdapter(r api.AdapterRequest, temporary bool) (api.Adapter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Policy.Inherit(w.config.Defaults.Adapter)
	r.Kind, r.VM = cmp.Or(r.Kind, config.KindLegacy), cmp.Or(r.VM, r.Name)
	c := configOf(&r)
	if err := c.Check(r.VM); err != nil {
		return api.Adapter{}, api.Problemf(http.StatusUnprocessableEntity, "%v", err)
	}
	if len(r.ROM) > 0 && r.Kind != config.KindLegacy {
		return api.Adapter{}, api.Problemf(http.StatusUnprocessableEntity, "adapter %q: rom is for legacy adapters: QEMU gives a synthetic one its ROM", r.Name)
	}
	a, err := w.addAdapter(r, temporary)
	if err != nil || temporary {
		return a, err
	}
	mac, err := config.ParseMAC(a.MAC)
	c.MAC = config.MAC(mac)
	vm := w.vm(r.VM, 0)
	vm.Adapters = append(vm.Adapters, c)
	return a, err
}

// configOf returns what a configuration says to have the adapter that r asks for, but for its MAC address and for
// a boot ROM, which is a file there.
func configOf(r *api.AdapterRequest) config.Adapter {
	c := config.Adapter{
		Name: r.Name, Switch: cmp.Or(r.Switch, config.NoSwitch), Kind: r.Kind, Queues: r.Queues, Policy: r.Policy,
		Socket: config.Socket{Path: r.Socket, Mode: config.ModeServer},
	}
	no := false
	if r.NoPacked {
		c.Packed = &no
	}
	if r.NoOffload {
		c.Offload = &no
	}
	if r.NoROM {
		c.ROM = config.NoROM
	}
	if r.Client {
		c.Socket.Mode = config.ModeClient
	}
	return c
}

func (w *World) addAdapter(r api.AdapterRequest, temporary bool) (_ api.Adapter, err error) {
	none := api.Adapter{}
	if err := config.CheckAdapterName(r.Name); err != nil {
		return none, fmt.Errorf("adapter: %w", err)
	}
	n, ok := w.switches[r.Switch]
	if !ok && r.Switch != "" {
		return none, api.Problemf(http.StatusNotFound, "there is no switch %q", r.Switch)
	}
	if _, ok := w.adapters[r.Name]; ok {
		return none, fmt.Errorf("there is an adapter %q already: take another name", r.Name)
	}
	mac, err := w.chooseMAC(r, temporary)
	if err != nil {
		return none, err
	}
	r.Kind, r.MAC = cmp.Or(r.Kind, config.KindLegacy), mac.String()
	a := &adapter{request: r, temporary: temporary, Adapter: api.Adapter{
		Name: r.Name, Switch: r.Switch, Kind: r.Kind, MAC: r.MAC, MTU: config.DefaultMTU, Socket: cmp.Or(r.Socket, SocketPath(w.Dir, r.Name)),
	}}
	if err := w.checkMAC(a, r.Switch); err != nil {
		return none, err
	}
	if n != nil {
		a.MTU = n.config.MTU
	}
	if err := a.start(n, w); err != nil {
		return none, fmt.Errorf("adapter %q: %w", r.Name, err)
	}
	w.adapters[r.Name] = a
	w.tell(api.EventAdded, a.Switch, a.Name, "")
	return a.Adapter, nil
}

// chooseMAC returns the address that r asks for, or one that it can have.
func (w *World) chooseMAC(r api.AdapterRequest, temporary bool) (vswitch.MAC, error) {
	switch {
	case r.MAC != "":
		mac, err := config.ParseMAC(r.MAC)
		if err != nil {
			err = api.Problemf(http.StatusUnprocessableEntity, "adapter %q: %v", r.Name, err)
		}
		return mac, err
	case w.pool != nil:
		used := map[vswitch.MAC]bool{}
		for _, a := range w.adapters {
			if mac, err := vswitch.ParseMAC(a.MAC); err == nil {
				used[mac] = true
			}
		}
		return w.pool.give(r.Name, used, !temporary)
	}
	return config.DeriveMAC(r.Name), nil
}

// checkMAC says whether the adapter can be on the switch with its address.
func (w *World) checkMAC(a *adapter, sw string) error {
	if sw == "" {
		return nil
	}
	if n := w.switches[sw]; n.pxe != nil && n.pxe.mac.String() == a.MAC {
		return fmt.Errorf("adapter %q: the boot service has the MAC address %v: take another", a.Name, a.MAC)
	}
	for _, other := range w.adapters {
		if other != a && other.MAC == a.MAC && other.Switch == sw {
			return fmt.Errorf("adapter %q has the MAC address %v already: take another for %q", other.Name, a.MAC, a.Name)
		}
	}
	return nil
}

// ChangeAdapter implements control.World.
func (w *World) ChangeAdapter(name string, c api.AdapterChange) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.adapters[name]
	if !ok {
		return noAdapter(name)
	}
	policy := c.Policy
	policy.Inherit(a.request.Policy)
	if c.NoVLAN {
		policy.VLAN = nil
	}
	if c.NoACL {
		policy.ACL = nil
	}
	if err := policy.Check(); err != nil {
		return api.Problemf(http.StatusUnprocessableEntity, "adapter %q: %v", name, err)
	}
	to := a.Switch
	if c.Switch != nil {
		to = *c.Switch
	}
	if err := w.change(a, policy, to); err != nil {
		return err
	}
	if c.Link == config.LinkUp && a.member != nil {
		if err := a.member.SetLink(true); err != nil { // which BPDUs may have shut down
			return fmt.Errorf("adapter %q: %w", name, err)
		}
	}
	w.tell(api.EventChanged, a.Switch, a.Name, "")
	return nil
}

// change gives the adapter another policy and connects it to another switch, or to none, all at once: the policy
// may suit only one of them. If it cannot be done, the adapter stays as it was.
func (w *World) change(a *adapter, p config.Policy, to string) error {
	from, old := a.Switch, a.request.Policy
	if to != from && to != "" {
		n, ok := w.switches[to]
		if !ok {
			return api.Problemf(http.StatusNotFound, "there is no switch %q", to)
		}
		if err := w.checkMAC(a, to); err != nil {
			return err
		}
		if a.Kind == config.KindLegacy {
			if err := config.CheckLegacyMTU(to, n.config.MTU); err != nil {
				return err
			}
		}
	}
	if to != from {
		a.disconnect()
	}
	err := a.set(p)
	if err == nil && to != from && to != "" {
		if err = a.connect(w.switches[to]); err != nil {
			back := a.set(old)
			if from != "" {
				back = errors.Join(back, a.connect(w.switches[from]))
			}
			if back != nil {
				w.Log.Error("the adapter is on no switch now", "port", a.Name, "err", back)
			}
		}
	}
	if c := w.configured(a.Name); c != nil {
		c.Policy, c.Switch = a.request.Policy, cmp.Or(a.Switch, config.NoSwitch)
	}
	if err != nil {
		return fmt.Errorf("adapter %q: %w", a.Name, err)
	}
	return nil
}

// move connects the adapter to another switch, or to none.
func (w *World) move(a *adapter, to string) error { return w.change(a, a.request.Policy, to) }

func noAdapter(name string) error {
	return api.Problemf(http.StatusNotFound, "there is no adapter %q", name)
}

// RemoveAdapter implements control.World: it takes an adapter away. A hypervisor that is attached loses it.
func (w *World) RemoveAdapter(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removeAdapter(name)
}

func (w *World) removeAdapter(name string) error {
	a, ok := w.adapters[name]
	if !ok {
		return noAdapter(name)
	}
	sw := a.Switch
	a.close()
	delete(w.adapters, name)
	w.forget(name)
	w.tell(api.EventRemoved, sw, name, "")
	return nil
}

// ReadROM puts the operator's choice of a boot ROM into r: a file, config.NoROM, or "" for the
// adapter's own.
func ReadROM(file string, r *api.AdapterRequest) error {
	switch file {
	case "":
		return nil
	case config.NoROM:
		r.NoROM = true
		return nil
	}
	rom, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("boot ROM: %w", err)
	}
	if _, err := bootrom.Parse(rom); err != nil {
		return fmt.Errorf("boot ROM %s: %w", file, err)
	}
	r.ROM = rom
	return nil
}

// Adapters tells how many adapters there are.
func (w *World) Adapters() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.adapters)
}

// Close takes everything down.
func (w *World) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.adapters {
		a.close()
	}
	clear(w.adapters)
	for _, n := range w.switches {
		w.closeNetwork(n)
	}
	clear(w.switches)
	if w.workers != nil {
		w.workers.Close()
	}
	w.releaseState()
	w.events.close()
}
