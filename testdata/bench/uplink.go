package main

import (
	"time"

	"polder/testdata/guest"
	"polder/testdata/tapport"
)

// TCP between a Linux guest and a machine behind the host's network adapter: a namespace at the other end of a pair of
// virtual Ethernet devices, of which the near one is in a Linux bridge. What is compared is how the guest gets into
// the bridge: through Polder's external switch, or by QEMU's own virtio-net on a TAP device.

var uplinkComparisons = []windowed{
	{name: "uplink-tcp-tap", load: load{mode: "tcp"}, ours: uplink(uplinkPolder), peer: uplink(uplinkTAP)},
}

// uplink measures a guest that start starts in a namespace with the bridge br0.
func uplink(start func(n *namespace) (g *guest.Guest, stop func(), err error)) side {
	return func(load) (m measured, err error) {
		host, err := newNamespace()
		if err != nil {
			return m, err
		}
		defer host.close()
		far, err := newNamespace()
		if err != nil {
			return m, err
		}
		defer far.close()
		for _, step := range []struct {
			in        *namespace
			arguments string
		}{
			{host, "link add br0 type bridge"},
			{host, "link add near0 type veth peer name far0 netns " + far.path},
			{host, "link set near0 master br0"},
			{host, "link set near0 up"},
			{host, "link set br0 up"},
			{far, "addr add 10.9.0.1/24 dev far0"},
			{far, "link set far0 up"},
		} {
			if err := step.in.ip(step.arguments); err != nil {
				return m, err
			}
		}
		stopServer, err := far.background("iperf3", "--server", "--bind", "10.9.0.1")
		if err != nil {
			return m, err
		}
		defer stopServer()
		g, stop, err := start(host)
		if err != nil {
			return m, err
		}
		defer stop()
		if err := ahead(g.Pid()); err != nil {
			return m, err
		}
		if _, err := g.Expect(bootLimit, `^T_HOLD`); err != nil {
			return m, err
		}
		if _, err := g.Run(time.Minute, "ping -c 1 -w 20 10.9.0.1"); err != nil {
			return m, err
		}
		for _, direction := range []string{"", "-R"} {
			text, err := g.Run(time.Minute, "iperf3 -c 10.9.0.1 -O 1 -t 3 -i 0.1 -J "+direction)
			if err != nil {
				return m, err
			}
			windows, err := tcpWindows(text)
			if err != nil {
				return m, err
			}
			m.windows = append(m.windows, windows...)
		}
		return m, nil
	}
}

// uplinkGuest is the QEMU arguments of the guest, without its adapter.
func uplinkGuest() []string {
	return append(guest.Linux(cache, "quiet", "net0=10.9.0.2/24", "run=hold"), "-no-reboot")
}

// uplinkPolder starts a guest behind an external switch that joins the bridge.
func uplinkPolder(host *namespace) (g *guest.Guest, stop func(), err error) {
	program, err := polder()
	if err != nil {
		return nil, nil, err
	}
	err = host.do(func() error {
		d, err := guest.Serve(program, `
switches:
  - name: lan
    type: external
    uplink: {bridge: br0}
vms:
  - {name: a, memory: 256M, adapters: [{kind: synthetic, switch: lan}]}
`)
		if err != nil {
			return err
		}
		c, err := d.Machine("a", uplinkGuest()...)
		if err == nil {
			err = ahead(d.Pid())
		}
		if err == nil {
			g, err = guest.Start(cache, c)
		}
		if err != nil {
			d.Close()
			return err
		}
		stop = func() { g.Close(); d.Close() }
		return nil
	})
	return g, stop, err
}

// uplinkTAP starts a guest on a TAP device in the bridge.
func uplinkTAP(host *namespace) (g *guest.Guest, stop func(), err error) {
	if err := host.do(func() error { return tapport.Make("tap0") }); err != nil {
		return nil, nil, err
	}
	for _, step := range []string{"link set tap0 master br0", "link set tap0 up"} {
		if err := host.ip(step); err != nil {
			return nil, nil, err
		}
	}
	err = host.do(func() (err error) {
		g, err = guest.Start(cache, guest.Config{Name: "virtio-net on TAP", Args: append(uplinkGuest(),
			"-netdev", "tap,id=n0,script=no,downscript=no,ifname=tap0", "-device", "virtio-net-pci,netdev=n0")})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return g, g.Close, nil
}
