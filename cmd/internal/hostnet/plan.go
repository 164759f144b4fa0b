package hostnet

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// External says how a switch is bound to the host's network.
type External struct {
	Switch     string // the switch's name: it is what the journal is found by
	NIC        string // the device to take over
	Driver     Driver
	Bridge     string // a bridge that is there already, to join in place of NIC
	Management string // the name of the host's own adapter; "": DeviceName(Switch)
	Exclusive  bool   // the host itself does not use the NIC any more
}

// Driver is what carries frames between the NIC and the switch.
type Driver string

const (
	// Bridge makes a kernel bridge of the NIC and the switch's TAP. The bridge is the host's own
	// adapter, so the host stays on the network whatever becomes of Polder.
	Bridge Driver = "bridge"

	// Packet gives the NIC to the switch alone, which reads and writes its frames by a packet
	// socket. The host's own adapter is a TAP on the switch: the host is on the network as
	// long as the switch runs.
	Packet Driver = "packet"
)

// maxName is the longest name of a device.
const maxName = unix.IFNAMSIZ - 1

// DeviceName names the host's own adapter on a switch, "vEth-LAN": a switch's name that is too long for a device's is cut, and told
// apart by a hash.
func DeviceName(switchName string) string {
	const prefix = "vEth-"
	if name := prefix + switchName; len(name) <= maxName {
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(switchName))
	return fmt.Sprintf("%s%s%04x", prefix, switchName[:maxName-len(prefix)-4], uint16(h.Sum32()))
}

// Plan is a take-over that has been thought through, and has touched nothing.
type Plan struct {
	External External
	Device   string   // the host's own adapter after it: a bridge or a TAP; "" for none
	MTU      int      // of the network
	Notes    []string // what the operator should know, and may have to do

	devices       []string // whose state is before and after
	before, after state
	stepper
}

// PlanExternal looks at the host and tells what a take-over would do. It is an error, a *Refusal, if the
// NIC is one that is not safely taken over, or has something on it that is not understood.
func PlanExternal(e External) (*Plan, error) {
	return planExternal(e, host{run: "/run", sys: "/sys"})
}

func planExternal(e External, h host) (*Plan, error) {
	if e.Bridge != "" {
		return planJoin(e)
	}
	p := &Plan{External: e, Device: e.Management}
	if p.Device == "" {
		p.Device = DeviceName(e.Switch)
	}
	if e.Driver == Packet && e.Exclusive {
		p.Device = ""
	}
	p.devices = []string{e.NIC}
	if p.Device != "" {
		p.devices = append(p.devices, p.Device)
	}
	var err error
	if p.before, err = readSettled(p.devices...); err != nil {
		return nil, err
	}
	if err := h.check(p); err != nil {
		return nil, err
	}
	nic := p.before.find(e.NIC)
	p.MTU = nic.MTU
	p.after = p.target()
	return p, nil
}

// readSettled waits, for some seconds, until the kernel has checked all addresses for another owner: a link has just come
// up when the machine starts.
func readSettled(devices ...string) (s state, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(patience / 60) {
		s, err = read(devices...)
		if err != nil || time.Now().After(end) || !slices.ContainsFunc(s.Objects, func(o object) bool {
			return o.Kind == address && o.family() == unix.AF_INET6 && o.flags()&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == unix.IFA_F_TENTATIVE
		}) {
			return s, err
		}
	}
}

// planJoin plans to use a bridge that is there: there is nothing to take over.
func planJoin(e External) (*Plan, error) {
	l, err := readLink(e.Bridge)
	switch {
	case err != nil:
		return nil, err
	case l == nil:
		return nil, fmt.Errorf("there is no bridge %s", e.Bridge)
	case l.Kind != "bridge":
		return nil, fmt.Errorf("%s is no kernel bridge (it is %s): to join another sort of switch, give its own tool the switch's TAP", e.Bridge, kindText(l.Kind))
	}
	p := &Plan{External: e, Device: e.Bridge, MTU: l.MTU}
	if !l.Up {
		p.Notes = append(p.Notes, fmt.Sprintf("%s is down: bring it up with `ip link set %s up`", e.Bridge, e.Bridge))
	}
	return p, nil
}

// target is the state after the take-over.
func (p *Plan) target() state {
	s := p.before.clone()
	nic := s.find(p.External.NIC)
	settings := readSettings(nic.Name)
	nic.Up = true
	if _, ok := settings[disableIPv6]; ok {
		nic.Settings[disableIPv6] = "1"
	}
	if p.Device != "" {
		d := link{Name: p.Device, Kind: "bridge", MAC: nic.MAC, MTU: nic.MTU, Up: true, Settings: settings}
		if p.External.Driver == Packet {
			d.Kind = "tap"
		}
		if _, ok := settings[disableIPv6]; ok && p.External.Exclusive {
			d.Settings[disableIPv6] = "1"
		}
		if d.Kind == "bridge" {
			nic.Master = p.Device
		}
		s.Links = append(s.Links, d)
	}
	nic = s.find(p.External.NIC)
	nic.Silent = p.External.Driver == Packet
	if p.External.Exclusive {
		s.Objects = nil
		return s
	}
	for i := range s.Objects {
		s.Objects[i] = s.Objects[i].moved(p.External.NIC, p.Device)
	}
	return s
}

// String lists what would be done, as commands of ip(8), nft(8) and sysctl(8) that do the same.
func (p *Plan) String() string {
	var b strings.Builder
	switch {
	case p.External.Bridge != "":
		fmt.Fprintf(&b, "# The switch joins %s. Nothing of the host's network changes.\n", p.External.Bridge)
	case p.Device == "" || p.External.Exclusive:
		fmt.Fprintf(&b, "# %s is the switch's alone: the host gives up %s on it.\n", p.External.NIC, p.inventory())
	default:
		fmt.Fprintf(&b, "# %s, a %s, takes over from %s: its MAC address, %s.\n", p.Device, map[Driver]string{Bridge: "bridge", Packet: "TAP on the switch"}[p.External.Driver], p.External.NIC, p.inventory())
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "# Note: %s.\n", n)
	}
	for _, s := range difference(p.before, p.after, p.devices, true) {
		fmt.Fprintln(&b, s.text)
	}
	return b.String()
}

// inventory counts what moves.
func (p *Plan) inventory() string {
	var parts []string
	for _, c := range []struct {
		k         kind
		one, many string
	}{{address, "address", "addresses"}, {route, "route", "routes"}, {rule, "rule", "rules"}, {neighbour, "static neighbour", "static neighbours"}} {
		n := 0
		for _, o := range p.before.of(c.k) {
			if !o.derived() {
				n++
			}
		}
		switch {
		case n == 1:
			parts = append(parts, "1 "+c.one)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", n, c.many))
		}
	}
	if parts == nil {
		return "no addresses"
	}
	return strings.Join(parts, ", ")
}

// gateways are the next hops that the state's routes name, with their devices.
func (s *state) gateways() []gateway {
	var out []gateway
	seen := map[gateway]bool{}
	add := func(attrs []attribute, dev string) {
		for _, a := range attrs {
			ip := a.Data
			switch {
			case a.Type == unix.RTA_VIA && len(ip) > 2:
				ip = ip[2:]
			case a.Type != unix.RTA_GATEWAY:
				continue
			}
			if addr, ok := netip.AddrFromSlice(ip); ok && !seen[gateway{addr, dev}] {
				seen[gateway{addr, dev}] = true
				out = append(out, gateway{addr, dev})
			}
		}
	}
	for _, o := range s.of(route) {
		add(o.Attrs, o.Dev)
		for _, h := range o.Hops {
			add(h.Attrs, h.Dev)
		}
	}
	return out
}

// gateway is a router on a device's link.
type gateway struct {
	addr netip.Addr
	dev  string
}
