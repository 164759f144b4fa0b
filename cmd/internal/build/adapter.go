package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device"
	"polder/device/vfiouser"
	"polder/device/vhostuser"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// adapter is a guest's adapter, the socket where a hypervisor attaches, and its port while it
// is connected to a switch.
type adapter struct {
	api.Adapter
	request   api.AdapterRequest // as it was made and changed since, with all that was left open filled in
	temporary bool

	card   card
	server server
	done   sync.WaitGroup // the server

	member  *vswitch.Member // nil: disconnected
	network *network        // the one that it is on; nil: none
	unplug  func()          // ends what the card does on its port
}

// card is what the kinds of adapters have in common.
type card interface {
	vswitch.Port

	// plug tells the card its place on the switch, and has it send what its guest sends, until the
	// function that it returns is called. That one waits until no more frames are sent.
	plug(m *vswitch.Member) (unplug func())

	// link shows the guest whether its cable is plugged in, if it can be shown.
	link(up bool)

	// listen makes the socket where a hypervisor attaches, or gets ready to connect to the hypervisor's.
	listen(path string, log *slog.Logger, name string) (server, error)

	// status tells whether a hypervisor is attached, and what the card itself has dropped, by reason.
	status() (attached bool, drops map[string]uint64)

	Close() error
}

// server serves hypervisors until it is closed.
type server interface {
	Serve(ctx context.Context) error
	Close() error
}

// newCard makes the card that r asks for, for a network with an MTU.
func newCard(r api.AdapterRequest, mtu int, spinners *vfiouser.Spinners, workers *device.Workers, log *slog.Logger) (card, error) {
	switch r.Kind {
	case "", config.KindLegacy:
		if r.Client {
			return nil, fmt.Errorf("mode %s of the socket is for adapters of kind %s", config.ModeClient, config.KindSynthetic)
		}
		if err := config.CheckLegacyMTU(r.Switch, mtu); err != nil {
			return nil, err
		}
		mac, err := config.ParseMAC(r.MAC)
		if err != nil {
			return nil, err
		}
		rom, err := chooseROM(r)
		if err != nil {
			return nil, err
		}
		t, err := device.NewTulip(device.TulipConfig{Name: r.Name, MAC: mac, ROM: rom, Log: log})
		return &legacy{Tulip: t, spinners: spinners}, err
	case config.KindSynthetic:
		v, err := device.NewVirtioNet(device.VirtioNetConfig{
			Name: r.Name, Pairs: r.Queues, NoPacked: r.NoPacked, NoOffload: r.NoOffload, MTU: mtu, Workers: workers, Log: log,
		})
		return synthetic{v, r.Client}, err
	}
	return nil, fmt.Errorf("kind %q is not one of: %s, %s", r.Kind, config.KindLegacy, config.KindSynthetic)
}

// chooseROM returns the boot ROM that r asks for; nil for none.
func chooseROM(r api.AdapterRequest) ([]byte, error) {
	switch {
	case r.NoROM:
		return nil, nil
	case len(r.ROM) == 0:
		return bootrom.Image, nil
	}
	if _, err := bootrom.Parse(r.ROM); err != nil {
		return nil, fmt.Errorf("boot ROM: %w", err)
	}
	return r.ROM, nil
}

// legacy is the card that needs no driver installation.
type legacy struct {
	*device.Tulip
	spinners *vfiouser.Spinners
}

func (l *legacy) plug(m *vswitch.Member) func() {
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { l.Run(ctx, m.NewIngress()) })
	return func() {
		stop()
		run.Wait()
	}
}

func (l *legacy) link(up bool) { l.SetLink(up) }

func (l *legacy) listen(path string, log *slog.Logger, name string) (server, error) {
	s, err := vfiouser.Listen(path, l.Tulip, log, name)
	if err != nil {
		return nil, err
	}
	s.Spin(l.spinners)
	return s, nil
}

func (l *legacy) status() (bool, map[string]uint64) {
	s := l.Stats()
	return s.Attached, map[string]uint64{"filtered": s.Filtered, "oversize": s.Oversize, "no-buffer": s.NoBuffer, "stopped": s.Stopped}
}

// synthetic is the card that is fast. Its rings have workers of their own.
type synthetic struct {
	*device.VirtioNet
	client bool // the hypervisor listens
}

func (s synthetic) plug(m *vswitch.Member) func() {
	s.Connect(m)
	return func() { s.Connect(nil) }
}

// link does nothing: the state that virtio shows is the hypervisor's. The switch passes nothing
// to a port whose link is down.
func (s synthetic) link(bool) {}

func (s synthetic) listen(path string, log *slog.Logger, name string) (server, error) {
	if s.client {
		c, err := vhostuser.NewClient(path, s.VirtioNet, log, name)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	srv, err := vhostuser.Listen(path, s.VirtioNet, log, name)
	if err != nil {
		return nil, err
	}
	return srv, nil
}

func (s synthetic) status() (bool, map[string]uint64) {
	st := s.Stats()
	return st.Attached, map[string]uint64{"no-buffer": st.NoBuffer, "stopped": st.Stopped}
}

// start makes the adapter's parts in the order in which frames need them. n is nil for one that is
// not connected.
func (a *adapter) start(n *network, w *World) (err error) {
	if a.card, err = newCard(a.request, a.MTU, w.spinners, w.workers, w.Log); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if n == nil {
		a.card.link(false)
	} else if err := a.connect(n); err != nil {
		return err
	}
	if a.server, err = a.card.listen(a.Socket, w.Log, a.Name); err != nil {
		return err
	}
	if w.Group != 0 && !a.request.Client {
		if err := errors.Join(os.Chown(a.Socket, -1, w.Group), os.Chmod(a.Socket, 0o660)); err != nil {
			return fmt.Errorf("cannot give the socket to group %d: %w", w.Group, err)
		}
	}
	a.done.Go(func() {
		if err := a.server.Serve(context.Background()); err != nil {
			w.Log.Error("no hypervisor can attach any more", "port", a.Name, "err", err)
		}
	})
	return nil
}

// options are what a switch is told of the adapter's port.
func (a *adapter) options(sw *config.Switch) (vswitch.PortOptions, error) {
	mac, err := vswitch.ParseMAC(a.MAC)
	o := portOptions(&a.request.Policy, mac)
	if a.MTU < sw.MTU { // on another switch than it was made for
		o.MTU = a.MTU
	}
	return o, err
}

// connect plugs the adapter into a switch.
func (a *adapter) connect(n *network) error {
	o, err := a.options(&n.config)
	if err != nil {
		return err
	}
	m, err := n.sw.Join(a.Name, a.card, o)
	if err != nil {
		return err
	}
	a.member, a.network = m, n
	a.Switch, a.request.Switch = n.config.Name, n.config.Name
	a.unplug = a.card.plug(m)
	a.card.link(!o.LinkDown)
	return nil
}

// disconnect takes the adapter off its switch. A hypervisor stays attached.
func (a *adapter) disconnect() {
	if a.member == nil {
		return
	}
	a.card.link(false)
	a.unplug()
	a.member.Leave()
	a.member, a.network = nil, nil
	a.Switch, a.request.Switch = "", ""
}

// set gives the adapter another policy.
func (a *adapter) set(p config.Policy) error {
	old := a.request.Policy
	a.request.Policy = p
	if a.member == nil {
		return nil // the next switch judges it
	}
	o, err := a.options(&a.network.config)
	if err == nil {
		err = a.member.SetOptions(o)
	}
	if err != nil {
		a.request.Policy = old
		return err
	}
	a.card.link(!o.LinkDown)
	return nil
}

// close undoes start, as far as it came: no hypervisor, then no frames, and last its memory.
func (a *adapter) close() {
	if a.server != nil {
		a.server.Close()
	}
	a.done.Wait()
	a.disconnect()
	a.card.Close()
}
