package main

import (
	"encoding/json"
	"fmt"

	"polder/testdata/guest"
)

// TCP between a Linux guest and the host's side of its adapter, where iperf3 runs behind a TAP device.

var tcpComparisons = []comparison{
	{name: "tulip-tcp-rx", unit: "Mbit/s", higher: true, ours: tcpOurs("rx"), peer: tcpPeer("rx")},
	{name: "tulip-tcp-tx", unit: "Mbit/s", higher: true, ours: tcpOurs("tx"), peer: tcpPeer("tx")},
}

// tcpSeconds is how long one measurement sends.
const tcpSeconds = 8

// tcpGuest is the QEMU arguments of a guest that measures one direction as it sees it: rx or tx.
func tcpGuest(direction string) []string {
	return append(guest.Linux(cache, "quiet", "net0=10.9.0.2/24", fmt.Sprintf("run=%s:10.9.0.1:%d", direction, tcpSeconds)),
		"-no-reboot")
}

// tcpMeasure starts a guest in the namespace, at 10.9.0.2 with the host's side at 10.9.0.1, and returns the rate at
// the receiver in Mbit/s.
func tcpMeasure(n *namespace, direction string, c guest.Config) (float64, error) {
	stop, err := n.background("iperf3", "--server", "--bind", "10.9.0.1")
	if err != nil {
		return 0, err
	}
	defer stop() // by the time the guest is up, the server listens
	var g *guest.Guest
	if err := n.do(func() (err error) {
		g, err = guest.Start(cache, c)
		return err
	}); err != nil {
		return 0, err
	}
	defer g.Close()
	match, err := g.Expect(bootLimit, `^IPERF `+direction+` (\{.*\})\r?\n`)
	if err != nil {
		return 0, err
	}
	var result struct {
		Error string
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(match[1]), &result); err != nil {
		return 0, fmt.Errorf("iperf3: %w: %s", err, match[1])
	}
	if result.Error != "" {
		return 0, fmt.Errorf("iperf3: %s", result.Error)
	}
	return result.End.Received.Rate / 1e6, nil
}

// tcpPeer measures QEMU's own tulip on a TAP device.
func tcpPeer(direction string) func() (float64, error) {
	return func() (float64, error) {
		n, err := tapNamespace()
		if err != nil {
			return 0, err
		}
		defer n.close()
		return tcpMeasure(n, direction, guest.Config{Name: "builtin tulip", Args: append(tcpGuest(direction),
			"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "tulip,netdev=n0")})
	}
}

// tcpOurs measures Polder's adapter on a switch with a TAP device.
func tcpOurs(direction string) func() (float64, error) {
	return func() (float64, error) {
		n, err := newNamespace()
		if err != nil {
			return 0, err
		}
		defer n.close()
		l, err := newLab(n, "10.9.0.1/24")
		if err != nil {
			return 0, err
		}
		defer l.close()
		device, err := l.adapter()
		if err != nil {
			return 0, err
		}
		return tcpMeasure(n, direction, guest.Config{Name: "polder", Args: append(tcpGuest(direction), "-device", device)})
	}
}
