// Package build makes what a configuration says: switches, their boot services, and the
// adapters on them, in order, with a teardown that is the exact reverse. What fails half-way
// is taken down again, so an error leaves nothing behind.
package build

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	sysconf "github.com/tklauser/go-sysconf"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device"
	"polder/device/vfiouser"
	"polder/pxe"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// World is the running configuration. Its methods may be called from any goroutine.
type World struct {
	version string
	dir     string // of the adapters' sockets
	log     *slog.Logger
	started time.Time
	events  hub

	mu       sync.Mutex // guards the maps; held while an adapter is added or removed
	switches map[string]*network
	adapters map[string]*adapter

	spinners *vfiouser.Spinners // of all adapters' connections
	workers  *device.Workers    // of all synthetic adapters
}

// network is a switch and what serves it.
type network struct {
	config config.Switch
	sw     *vswitch.Switch
	pxe    *bootService // nil: none
}

// bootService is a PXE service on its port.
type bootService struct {
	server *pxe.Server
	member *vswitch.Member
	mac    vswitch.MAC
	root   *os.Root // nil: none
}

// pxePort is the boot service's name on its switch. config.CheckAdapterName keeps it from
// guests' adapters.
const pxePort = "pxe"

// New builds the configuration. dir is where the adapters' sockets go; it is made if it is
// not there. Close the World when it is no longer needed.
func New(c *config.Config, dir, version string, log *slog.Logger) (_ *World, err error) {
	w := &World{
		version: version, dir: dir, log: log, started: time.Now(),
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
	} else if w.workers, err = device.NewWorkers(spareProcessors(), w.spinners); err != nil {
		return nil, fmt.Errorf("workers: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of sockets: %w", err)
	}
	for _, s := range c.Switches {
		if err := w.addSwitch(s); err != nil {
			return nil, fmt.Errorf("switch %q: %w", s.Name, err)
		}
	}
	for _, vm := range c.VMs {
		for i, a := range vm.Adapters {
			r := api.AdapterRequest{
				Switch: a.Switch, Name: config.AdapterName(vm.Name, i), Kind: a.Kind, MAC: vswitch.MAC(a.MAC).String(),
				Queues: a.Queues, NoPacked: a.Packed != nil && !*a.Packed, NoOffload: a.Offload != nil && !*a.Offload,
				Socket: a.Socket.Path, Client: a.Socket.Mode == config.ModeClient,
			}
			if a.Kind == config.KindLegacy {
				if err := ReadROM(a.ROM, &r); err != nil {
					return nil, fmt.Errorf("adapter %q: %w", r.Name, err)
				}
			}
			if _, err := w.AddAdapter(r); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
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

func (w *World) addSwitch(c config.Switch) error {
	n := &network{config: c, sw: vswitch.New(vswitch.Config{Name: c.Name, AgeingTime: c.AgeingTime, MaxMACs: c.MaxMACs})}
	if c.PXE != nil {
		b, err := w.addPXE(n.sw, c.Name, c.PXE)
		if err != nil {
			n.sw.Close()
			return err
		}
		n.pxe = b
	}
	w.switches[c.Name] = n
	return nil
}

// addPXE puts a boot service on the switch.
func (w *World) addPXE(sw *vswitch.Switch, name string, c *config.PXE) (_ *bootService, err error) {
	b := &bootService{mac: config.DeriveMAC("pxe." + name)}
	pc := pxe.Config{
		Address: c.Address, PoolFirst: c.Pool.First, PoolLast: c.Pool.Last, MAC: b.mac,
		Lease: c.Lease, Router: c.Router, DNS: c.DNS,
		Log:        w.log.With("switch", name, "port", pxePort),
		DefaultNBP: bootrom.NBP,
		Events:     func(e pxe.Event) { w.events.publish(bootEvent(name, e)) },
	}
	if c.Root != "" {
		if b.root, err = os.OpenRoot(c.Root); err != nil {
			return nil, fmt.Errorf("pxe: root: %w", err)
		}
		pc.Files = b.root.FS()
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for _, r := range c.Reservations {
		uuid, err := parseUUID(r.UUID)
		if err != nil {
			return nil, fmt.Errorf("pxe: reservation: %w", err)
		}
		pc.Reservations = append(pc.Reservations, pxe.Reservation{MAC: vswitch.MAC(r.MAC), UUID: uuid, Addr: r.Address, Name: r.Hostname})
	}
	for _, r := range c.Boot {
		rule, err := bootRule(r, pc.Files)
		if err != nil {
			return nil, err
		}
		pc.Boot = append(pc.Boot, rule)
	}
	if b.server, err = pxe.New(pc); err != nil {
		return nil, fmt.Errorf("pxe: %w", err)
	}
	if b.member, err = sw.Join(pxePort, b.server, vswitch.PortOptions{}); err != nil {
		return nil, err
	}
	return b, b.server.Start(b.member.NewIngress())
}

// bootRule turns the operator's rule into the service's. A script is read now, so that a
// missing one is an error now.
func bootRule(r config.Boot, files fs.FS) (pxe.BootRule, error) {
	rule := pxe.BootRule{
		Match: pxe.Match{MAC: r.Match.MAC, Arch: r.Match.Arch, UserClass: r.Match.UserClass, VendorClass: r.Match.VendorClass},
		File:  r.File, Kernel: r.Kernel, Initrd: r.Initrd, Cmdline: r.Append,
	}
	var err error
	if rule.Match.UUID, err = parseUUID(r.Match.UUID); err != nil {
		return rule, fmt.Errorf("pxe: boot rule: %w", err)
	}
	if r.Script != "" {
		if files == nil {
			return rule, fmt.Errorf("pxe: script %s: there is no root to read it from", r.Script)
		}
		text, err := fs.ReadFile(files, r.Script)
		if err != nil {
			return rule, fmt.Errorf("pxe: script in the root: %w", err)
		}
		rule.Script = string(text)
	}
	return rule, nil
}

// parseUUID reads a UUID; "" is the zero one, which matches all.
func parseUUID(s string) (pxe.UUID, error) {
	if s == "" {
		return pxe.UUID{}, nil
	}
	return pxe.ParseUUID(s)
}

func (b *bootService) close() {
	if b.server != nil {
		b.server.Close()
	}
	if b.member != nil {
		b.member.Leave()
	}
	if b.root != nil {
		b.root.Close()
	}
}

// AddAdapter puts an adapter on a switch and listens for its hypervisor.
func (w *World) AddAdapter(r api.AdapterRequest) (_ api.Adapter, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	none := api.Adapter{}
	if err := config.CheckAdapterName(r.Name); err != nil {
		return none, fmt.Errorf("adapter: %w", err)
	}
	n, ok := w.switches[r.Switch]
	if !ok {
		return none, fmt.Errorf("there is no switch %q", r.Switch)
	}
	if _, ok := w.adapters[r.Name]; ok {
		return none, fmt.Errorf("there is an adapter %q already: take another name", r.Name)
	}
	mac := config.DeriveMAC(r.Name)
	if r.MAC != "" {
		if mac, err = config.ParseMAC(r.MAC); err != nil {
			return none, fmt.Errorf("adapter %q: %w", r.Name, err)
		}
	}
	if n.pxe != nil && mac == n.pxe.mac {
		return none, fmt.Errorf("adapter %q: the boot service has the MAC address %v: take another", r.Name, mac)
	}
	for _, other := range w.adapters {
		if other.MAC == mac.String() && other.Switch == r.Switch {
			return none, fmt.Errorf("adapter %q has the MAC address %v already: take another for %q", other.Name, mac, r.Name)
		}
	}
	a := &adapter{Adapter: api.Adapter{
		Name: r.Name, Switch: r.Switch, Kind: cmp.Or(r.Kind, config.KindLegacy), MAC: mac.String(), MTU: n.config.MTU, Socket: cmp.Or(r.Socket, SocketPath(w.dir, r.Name)),
	}}
	if err := a.start(n.sw, r, w.spinners, w.workers, w.log); err != nil {
		return none, fmt.Errorf("adapter %q: %w", r.Name, err)
	}
	w.adapters[r.Name] = a
	return a.Adapter, nil
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

// RemoveAdapter takes an adapter away; a hypervisor that is attached loses it.
func (w *World) RemoveAdapter(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.adapters[name]
	if !ok {
		return fmt.Errorf("there is no adapter %q", name)
	}
	a.close()
	delete(w.adapters, name)
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
		if n.pxe != nil {
			n.pxe.close()
		}
		n.sw.Close()
	}
	clear(w.switches)
	if w.workers != nil {
		w.workers.Close()
	}
	w.events.close()
}

// Subscribe implements control.World.
func (w *World) Subscribe() (<-chan api.BootEvent, func()) { return w.events.subscribe() }
