package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"polder/device"
	"polder/device/vfiouser"
	"polder/pxe"
	"polder/vswitch"
)

// lab is a switch in this process with a TAP device of a namespace on it, for what the polder program cannot do yet:
// give a network of its own to programs of the host.
type lab struct {
	log      *slog.Logger
	sw       *vswitch.Switch
	spinners *vfiouser.Spinners
	ctx      context.Context
	cancel   context.CancelFunc
	work     sync.WaitGroup
	undo     []func() // in the order of making
}

// newLab makes a switch whose first port is the TAP device tap0 of the namespace, with this address.
func newLab(n *namespace, address string) (*lab, error) {
	l := &lab{
		log:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		sw:       vswitch.New(vswitch.Config{Name: "bench"}),
		spinners: vfiouser.NewSpinners(runtime.NumCPU() - 1), // as polder has them
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.undo = append(l.undo, l.sw.Close)
	if err := l.tap(n, address); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) tap(n *namespace, address string) error {
	var port *device.Tap
	if err := n.do(func() (err error) {
		port, err = device.OpenTap(device.TapConfig{Name: "tap0", Spinners: l.spinners, Log: l.log})
		return err
	}); err != nil {
		return err
	}
	l.undo = append(l.undo, func() { port.Close() })
	member, err := l.join("tap0", port)
	if err != nil {
		return err
	}
	if err := n.ip("addr add " + address + " dev tap0"); err != nil {
		return err
	}
	if err := n.ip("link set tap0 up"); err != nil {
		return err
	}
	l.work.Go(func() {
		if err := port.Run(l.ctx, member); err != nil {
			l.log.Error("the TAP port has ended", "err", err)
		}
	})
	return nil
}

func (l *lab) join(name string, port vswitch.Port) (*vswitch.Member, error) {
	member, err := l.sw.Join(name, port, vswitch.PortOptions{})
	if err == nil {
		l.undo = append(l.undo, func() { member.Leave() })
	}
	return member, err
}

// bootService puts a boot service on the switch, with its own address and a directory to serve.
func (l *lab) bootService(address, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	l.undo = append(l.undo, func() { root.Close() })
	prefix := netip.MustParsePrefix(address)
	server, err := pxe.New(pxe.Config{
		Address: prefix, PoolFirst: prefix.Addr().Next().Next(), PoolLast: prefix.Addr().Next().Next(),
		MAC: vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 1}, Files: root.FS(), Log: l.log,
	})
	if err != nil {
		return err
	}
	member, err := l.join("pxe", server)
	if err != nil {
		return err
	}
	l.undo = append(l.undo, func() { server.Close() })
	return server.Start(member.NewIngress())
}

// adapter puts a legacy adapter on the switch and returns the value of QEMU's option -device for it.
func (l *lab) adapter() (string, error) {
	tulip, err := device.NewTulip(device.TulipConfig{Name: "guest", MAC: vswitch.MAC{0x00, 0x15, 0x5d, 0, 0, 2}, Log: l.log})
	if err != nil {
		return "", err
	}
	l.undo = append(l.undo, func() { tulip.Close() })
	member, err := l.join("guest", tulip)
	if err != nil {
		return "", err
	}
	socket := filepath.Join(scratch, "guest.sock")
	server, err := vfiouser.Listen(socket, tulip, l.log, "guest")
	if err != nil {
		return "", err
	}
	l.undo = append(l.undo, func() { server.Close() })
	server.Spin(l.spinners)
	in := member.NewIngress()
	l.work.Go(func() { tulip.Run(l.ctx, in) })
	l.work.Go(func() {
		if err := server.Serve(l.ctx); err != nil {
			l.log.Error("the adapter has ended", "err", err)
		}
	})
	text, err := json.Marshal(map[string]any{
		"driver": "vfio-user-pci", "socket": map[string]string{"type": "unix", "path": socket},
	})
	return string(text), err
}

// close ends the lab: the senders first, then what they sent to, in the reverse order of making.
func (l *lab) close() {
	l.cancel()
	l.work.Wait()
	for _, undo := range slices.Backward(l.undo) {
		undo()
	}
}
