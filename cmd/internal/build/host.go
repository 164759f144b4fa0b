package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/cmd/internal/hostnet"
	"polder/cmd/internal/privilege"
	"polder/device"
	"polder/vswitch"
)

// hostPort is a port whose other side is the host: its own adapter, or a network adapter of it.
type hostPort struct {
	kind   string // api.KindManagement or api.KindUplink
	mac    string // of the host's own adapter
	dev    hostDevice
	member *vswitch.Member
	ending atomic.Bool // its device may go
	ended  atomic.Bool // it has gone
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// hostDevice is a TAP device, or a packet socket on a network adapter.
type hostDevice interface {
	vswitch.Port
	Run(ctx context.Context, m *vswitch.Member) error
	Stats() device.HostStats
	Close() error
}

// host is a switch's part of the host's network.
type host struct {
	ports    []*hostPort
	internal *hostnet.Net      // of an internal switch
	takeover *hostnet.Takeover // of an external switch; nil: rolled back
	until    time.Time         // when it is rolled back; zero: it is not
	notes    []string
}

// joinHost puts a device of the host on the switch. The device is closed with the port, and now if it cannot join.
func (w *World) joinHost(n *network, name, kind string, dev hostDevice) error {
	m, err := n.sw.Join(name, dev, vswitch.PortOptions{Uplink: kind == api.KindUplink})
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	p := &hostPort{kind: kind, dev: dev, member: m}
	if i, err := net.InterfaceByName(name); err == nil && kind == api.KindManagement {
		p.mac = i.HardwareAddr.String()
	}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	p.done.Go(func() {
		err := dev.Run(ctx, m)
		p.ended.Store(true)
		if err != nil && !p.ending.Load() {
			w.Log.Error("the port has ended", "switch", n.config.Name, "port", name, "err", err)
			w.tell(api.EventDetached, n.config.Name, name, err.Error())
		}
	})
	n.host.ports = append(n.host.ports, p)
	return nil
}

func (p *hostPort) close() {
	p.stop()
	p.done.Wait()
	p.member.Leave()
	p.dev.Close()
}

// closePorts takes the host's ports off the switch.
func (h *host) closePorts() {
	for _, p := range h.ports {
		p.close()
	}
	h.ports = nil
}

// status tells of the port.
func (p *hostPort) status() api.Port {
	s := portStatus(p.member)
	s.Kind, s.MAC, s.Attached = p.kind, p.mac, !p.ended.Load()
	st := p.dev.Stats()
	for reason, n := range map[string]uint64{"host-down": st.Down, "host-full": st.Full, "host-refused": st.Refused, "host-missed": st.Missed, "host-broken": st.Broken} {
		if n > 0 {
			s.Drops[reason] += n
		}
	}
	return s
}

// hostDir is where the journals of changes to the host's network are.
func (w *World) hostDir() (string, error) {
	if w.StateDir == "" {
		return "", errors.New("there is no directory of state for the journal: give --state-dir")
	}
	return filepath.Join(w.StateDir, hostnetDir), w.holdState(0)
}

const hostnetDir = "hostnet" // in the directory of state

// ofHost tells whether the switch has a part in the host's network.
func ofHost(s config.Switch) bool { return s.Type != config.TypePrivate }

// checkPrivileges says what the daemon lacks to change the host's network as the switch has it, before anything is touched.
func checkPrivileges(s *config.Switch) error {
	needs := []int{privilege.Admin}
	if s.Type == config.TypeExternal && s.Uplink.Bridge == "" && s.Uplink.Driver == string(hostnet.Packet) {
		needs = privilege.Network
	}
	switch {
	case !ofHost(*s) || privilege.Have(needs...):
		return nil
	case os.Geteuid() != 0:
		return api.Problemf(http.StatusConflict, "a switch of type %s takes the privilege to change the host's network: run the daemon as root", s.Type)
	}
	return api.Problemf(http.StatusConflict, "a switch of type %s takes the privilege to change the host's network, which the daemon gave up, as it had no such switch when it started: start it again with the switch in its configuration file, or with --keep-privileges", s.Type)
}

// openHost gives the host its part in an internal or external switch. keep is how long an external one waits to be
// committed again; 0: it does not.
func (w *World) openHost(n *network, keep time.Duration) error {
	switch n.config.Type {
	case config.TypeInternal:
		return w.openInternal(n)
	case config.TypeExternal:
		return w.openExternal(n, keep)
	}
	return nil
}

// closeHost takes it away again, and puts the host's network back as it was.
func (w *World) closeHost(n *network) {
	log := w.Log.With("switch", n.config.Name)
	if n.host.internal != nil {
		if err := n.host.internal.Close(); err != nil {
			log.Error("cannot take address translation away", "err", err)
		}
		n.host.internal = nil
	}
	if err := w.closeExternal(n); err != nil {
		log.Error("cannot put the host's network back: polder does it when it starts again", "err", err)
	}
	n.host.closePorts()
}

func (w *World) openInternal(n *network) error {
	dir, err := w.hostDir()
	if err != nil {
		return err
	}
	c := n.config.Management
	name := c.Name
	if name == "" {
		name = hostnet.DeviceName(n.config.Name)
	}
	if _, err := net.InterfaceByName(name); err == nil { // a TAP device that persists could be opened, and would keep the addresses
		return fmt.Errorf("there is a device %[1]s already: remove it with `ip link delete %[1]s`, or give the host's adapter another name", name)
	}
	tap, err := w.openTap(name)
	if err != nil {
		return err
	}
	n.host.internal, err = hostnet.OpenInternal(hostnet.Internal{
		Switch: n.config.Name, Device: tap.Name(), MAC: net.HardwareAddr(c.MAC[:]), MTU: n.config.MTU, Addresses: c.Address, NAT: c.NAT,
	}, dir, w.Log)
	if err != nil {
		return errors.Join(err, tap.Close())
	}
	return w.joinHost(n, tap.Name(), api.KindManagement, tap)
}

func (w *World) openTap(name string) (*device.Tap, error) {
	return device.OpenTap(device.TapConfig{Name: name, Spinners: w.spinners, Log: w.Log})
}

// ExternalOf tells the host's network what an external switch wants of it.
func ExternalOf(s *config.Switch) hostnet.External {
	e := hostnet.External{Switch: s.Name, NIC: s.Uplink.NIC, Bridge: s.Uplink.Bridge, Driver: hostnet.Driver(s.Uplink.Driver), Exclusive: !s.HostUses()}
	if s.Management != nil {
		e.Management = s.Management.Name
	}
	return e
}

// recoverHost puts back what a daemon that did not end well has left of the host's network, but for what the
// switches of the configuration want again.
func (w *World) recoverHost(wanted []config.Switch) error {
	if w.StateDir == "" {
		return nil
	}
	if !slices.ContainsFunc(wanted, ofHost) {
		if _, err := os.Stat(filepath.Join(w.StateDir, hostnetDir)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if w.state == nil {
			defer w.releaseState()
		}
	}
	dir, err := w.hostDir()
	if errors.Is(err, errStateHeld) && !slices.ContainsFunc(wanted, ofHost) {
		return nil // the other daemon's: it has not ended
	}
	if err != nil {
		return err
	}
	kept, err := hostnet.Recover(dir, w.Log)
	for _, t := range kept {
		again := false
		for i := range wanted {
			s := &wanted[i]
			again = again || s.Type == config.TypeExternal && s.Name == t.Switch() && ExternalOf(s) == t.External()
		}
		if !again {
			w.Log.Info("rolling back a take-over that no switch wants any more", "switch", t.Switch())
			err = errors.Join(err, t.Rollback())
		}
	}
	if err != nil {
		return fmt.Errorf("the host's network: %w", err)
	}
	return nil
}

func (w *World) openExternal(n *network, keep time.Duration) (err error) {
	dir, err := w.hostDir()
	if err != nil {
		return err
	}
	want := ExternalOf(&n.config)
	t, err := hostnet.Resume(dir, want.Switch, w.Log)
	if err != nil {
		return err
	}
	if t != nil && (!t.Confirmed() || t.External() != want) { // left by a rollback that has failed
		if err := t.Rollback(); err != nil {
			return err
		}
		t = nil
	}
	resumed := t != nil
	if !resumed {
		plan, err := hostnet.PlanExternal(want)
		if err != nil {
			return err
		}
		if t, err = plan.Begin(dir, w.Log); err != nil {
			return err
		}
		n.host.notes = plan.Notes
	}
	n.host.takeover = t
	defer func() {
		if err != nil {
			n.host.closePorts()
			err = errors.Join(err, t.Rollback())
			n.host.takeover = nil
		}
	}()
	if want.Bridge == "" && want.Driver == hostnet.Packet {
		err = w.openPacket(n, t)
	} else {
		err = w.openBridge(n, t)
	}
	if err != nil || resumed {
		return err
	}
	if err := t.Commit(context.Background(), keep, func() { w.expired(n, t) }); err != nil {
		return err
	}
	n.host.until = time.Time{}
	if keep > 0 {
		n.host.until = time.Now().Add(keep)
	}
	return nil
}

// openBridge puts the switch into the kernel bridge.
func (w *World) openBridge(n *network, t *hostnet.Takeover) error {
	tap, err := w.openTap("")
	if err != nil {
		return err
	}
	if err := hostnet.Attach(tap.Name(), t.Device(), t.MTU()); err != nil {
		return errors.Join(err, tap.Close())
	}
	return w.joinHost(n, tap.Name(), api.KindUplink, tap)
}

// openPacket gives the switch the network adapter, and the host its own on the switch.
func (w *World) openPacket(n *network, t *hostnet.Takeover) error {
	if name := t.Device(); name != "" {
		tap, err := w.openTap(name)
		if err != nil {
			return err
		}
		if err := w.joinHost(n, name, api.KindManagement, tap); err != nil {
			return err
		}
	}
	p, err := device.OpenPacket(device.PacketConfig{Interface: n.config.Uplink.NIC, Spinners: w.spinners, Log: w.Log})
	if err != nil {
		return err
	}
	return w.joinHost(n, n.config.Uplink.NIC, api.KindUplink, p)
}

// expired is after a take-over that nobody has confirmed was rolled back.
func (w *World) expired(n *network, t *hostnet.Takeover) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n.host.takeover == t {
		n.host.takeover, n.host.until = nil, time.Time{}
		n.host.closePorts()
		w.tell(api.EventChanged, n.config.Name, "", "the host's network was rolled back: nobody has confirmed it")
	}
}

// closeExternal rolls back. If it fails, the switch keeps its ports, and it can be tried again.
func (w *World) closeExternal(n *network) error {
	t := n.host.takeover
	if t == nil {
		return nil
	}
	end := func(yes bool) {
		for _, p := range n.host.ports {
			p.ending.Store(yes)
		}
	}
	end(true)
	if err := t.Rollback(); err != nil { // the host is on the network by itself again before its port on the switch ends
		end(false)
		return err
	}
	n.host.takeover, n.host.until = nil, time.Time{}
	n.host.closePorts()
	return nil
}

// externalSwitch finds an external switch.
func (w *World) externalSwitch(name string) (*network, error) {
	n, ok := w.switches[name]
	switch {
	case !ok:
		return nil, api.Problemf(http.StatusNotFound, "there is no switch %q", name)
	case n.config.Type != config.TypeExternal:
		return nil, api.Problemf(http.StatusConflict, "switch %q is %s: only an external switch does anything to the host's network adapters", name, n.config.Type)
	}
	return n, nil
}

// External implements control.World.
func (w *World) External(name string) (api.External, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.externalSwitch(name)
	if err != nil {
		return api.External{}, err
	}
	return n.external(), nil
}

func (n *network) external() api.External {
	u := n.config.Uplink
	e := api.External{Switch: n.config.Name, State: api.ExternalRolledBack, NIC: u.NIC, Driver: u.Driver}
	if u.Bridge != "" {
		e.NIC = u.Bridge
	}
	if t := n.host.takeover; t != nil {
		e.State, e.Until, e.Device, e.MTU, e.Notes = api.ExternalCommitted, n.host.until, t.Device(), t.MTU(), n.host.notes
		if !e.Until.IsZero() {
			e.State = api.ExternalUnconfirmed
		}
	}
	return e
}

// ChangeExternal implements control.World.
func (w *World) ChangeExternal(name string, r api.ExternalRequest) (api.External, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.externalSwitch(name)
	if err != nil {
		return api.External{}, err
	}
	switch {
	case r.Timeout < 0 || r.Timeout > time.Hour:
		err = api.Problemf(http.StatusUnprocessableEntity, "a timeout of %v: from 0 to 1h", r.Timeout)
	case r.Action == api.ExternalRollback:
		err = w.closeExternal(n)
	case r.Action != api.ExternalCommit:
		err = api.Problemf(http.StatusUnprocessableEntity, "action %q is not one of: %s, %s", r.Action, api.ExternalCommit, api.ExternalRollback)
	case n.host.takeover == nil:
		err = w.openExternal(n, r.Timeout)
	default:
		if err = n.host.takeover.Confirm(); err == nil {
			n.host.until = time.Time{}
		}
	}
	if err != nil {
		return api.External{}, fmt.Errorf("switch %q: %w", name, err)
	}
	w.tell(api.EventChanged, name, "", "the host's network")
	return n.external(), nil
}
