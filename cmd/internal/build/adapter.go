package build

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device"
	"polder/device/vfiouser"
	"polder/device/vhostuser"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// adapter is a guest's adapter on its port, and the socket where a hypervisor attaches.
type adapter struct {
	api.Adapter
	card   card
	member *vswitch.Member
	server server
	stop   context.CancelFunc // of the worker
	done   sync.WaitGroup     // the worker and the server
}

// card is what the kinds of adapters have in common.
type card interface {
	vswitch.Port

	// connect tells the card its place on the switch, before a hypervisor can attach.
	connect(m *vswitch.Member)

	// run does what the card does without being asked, until ctx is done.
	run(ctx context.Context)

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
	in       *vswitch.Ingress
}

func (l *legacy) connect(m *vswitch.Member) { l.in = m.NewIngress() }

func (l *legacy) run(ctx context.Context) { l.Run(ctx, l.in) }

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

func (s synthetic) connect(m *vswitch.Member) { s.Connect(m) }

func (s synthetic) run(context.Context) {}

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

// start makes the adapter's parts in the order in which frames need them.
func (a *adapter) start(sw *vswitch.Switch, r api.AdapterRequest, spinners *vfiouser.Spinners, workers *device.Workers, log *slog.Logger) (err error) {
	r.MAC = a.MAC
	c, err := newCard(r, a.MTU, spinners, workers, log)
	if err != nil {
		return err
	}
	a.card = c
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if a.member, err = sw.Join(a.Name, c, vswitch.PortOptions{}); err != nil {
		return err
	}
	c.connect(a.member)
	if a.server, err = c.listen(a.Socket, log, a.Name); err != nil {
		return err
	}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(context.Background())
	a.done.Go(func() { c.run(ctx) })
	a.done.Go(func() {
		if err := a.server.Serve(ctx); err != nil {
			log.Error("no hypervisor can attach any more", "port", a.Name, "err", err)
		}
	})
	return nil
}

// close undoes start, as far as it came: no more frames from the guest, then none to it, then
// no hypervisor, and last its memory.
func (a *adapter) close() {
	if a.server != nil {
		a.server.Close()
	}
	if a.stop != nil {
		a.stop()
	}
	a.done.Wait()
	if a.member != nil {
		a.member.Leave()
	}
	a.card.Close()
}
