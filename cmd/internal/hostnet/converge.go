package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A step is one change of the host's network: one message or one write.
type step struct {
	text string // as a command that does the same
	run  func() error
}

// stepper carries out steps. It is where tests look in.
type stepper struct {
	around func(text string, run func() error) error // nil: run
}

func (p stepper) do(s step) error {
	run := s.run
	if p.around != nil {
		run = func() error { return p.around(s.text, s.run) }
	}
	if err := run(); err != nil {
		return fmt.Errorf("%s: %w", s.text, err)
	}
	return nil
}

// rounds is how often the host is looked at and changed until it is as wanted: the first time does all that can be foreseen,
// another puts right what the kernel made or removed besides.
const rounds = 4

// converge changes the host until the devices are as wanted, from whatever state they are in:
// the same code takes over, puts back, and ends what a crash has left half-way.
func (p stepper) converge(want state, devices ...string) error {
	want = want.aged(now())
	for round := 0; ; round++ {
		is, err := read(devices...)
		if err != nil {
			return err
		}
		steps := difference(is, want, devices, round == 0)
		if len(steps) == 0 && round > 0 {
			return p.await(want, devices)
		}
		if round == rounds {
			return fmt.Errorf("the host's network is not as wanted: still to do: %s", steps[0].text)
		}
		for _, s := range steps {
			if err := p.do(s); err != nil {
				return err
			}
		}
	}
}

// await waits for what only the kernel can do: it takes up IPv6 addresses in its own time, and then their routes in the
// table local are there; and it hears from the routers that it has asked. A router that stays silent
// is no error: the stopgap serves as long as the router's word holds.
func (p stepper) await(want state, devices []string) error {
	begin := time.Now()
	for ; ; time.Sleep(patience / 300) {
		is, err := read(devices...)
		if err != nil {
			return err
		}
		missing := func(which func(*object) bool) []object {
			return slices.DeleteFunc(want.of(route), func(o object) bool { return !which(&o) || is.has(&o) })
		}
		own, advertised := missing((*object).own), missing(func(o *object) bool { return o.Advertised })
		if len(own) > 0 && time.Since(begin) > patience {
			return fmt.Errorf("the kernel has not made the route %s", &own[0])
		}
		if len(own) > 0 || len(advertised) > 0 && time.Since(begin) < patience/2 {
			continue
		}
		for _, o := range want.of(route) {
			if gap := stopgap(o); o.Advertised && is.has(&o) && is.has(&gap) {
				if err := p.do(change(gap, "delete")); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// difference lists the steps from one state of the devices to another, in the order that keeps
// the host on the network: what is new is made before what is old goes. foreseen leaves out what the
// kernel does by itself when an address comes or goes.
func difference(is, want state, devices []string, foreseen bool) []step {
	var steps []step
	add := func(s ...step) { steps = append(steps, s...) }

	// Devices that are new have no part in anything yet.
	for _, l := range want.Links {
		if is.find(l.Name) == nil {
			add(makeLink(l)...)
		}
	}
	// The NIC's frames go to its new place, or come back from it.
	for _, w := range want.Links {
		l := is.find(w.Name)
		if l == nil {
			continue
		}
		if w.Kind == "tap" && l.MAC != w.MAC { // a manager of devices has thought of another
			add(setMAC(w.Name, w.MAC))
		}
		if l.Master != w.Master {
			add(setMaster(w.Name, w.Master))
		}
		if w.Up && !l.Up {
			add(bringUp(*l, w)...)
		}
		if l.Silent && !w.Silent {
			add(setSilent(w.Name, false))
		}
		if w.Settings[disableIPv6] == "0" && l.Settings[disableIPv6] == "1" {
			// Addresses come with the state; none is made up meanwhile.
			add(set(addrGenMode, w.Name, genNone), set(disableIPv6, w.Name, "0"))
		}
	}
	add(addressesIn(is, want)...)
	for _, w := range want.Links {
		if l := is.find(w.Name); w.Silent && (l == nil || !l.Silent) {
			add(setSilent(w.Name, true))
		}
	}
	add(addressesOut(is, want, devices)...)
	add(routesOut(is, want, foreseen)...)
	add(routesIn(is, want, foreseen)...)
	add(others(is, want, foreseen)...)
	// The kernel makes no link-local address if it is there already.
	for _, w := range want.Links {
		mode, ok := w.Settings[addrGenMode]
		if l := is.find(w.Name); ok && w.Settings[disableIPv6] == "0" &&
			(l == nil && mode != genNone || l != nil && (l.Settings[addrGenMode] != mode || l.Settings[disableIPv6] == "1" && mode != genNone)) {
			add(set(addrGenMode, w.Name, mode))
		}
	}
	for _, l := range is.Links {
		switch w := want.find(l.Name); {
		case w == nil:
			add(removeLink(l))
		case l.Up && !w.Up:
			add(setDown(l.Name))
		}
	}
	return steps
}

// addressesIn adds what is missing. The kernel tells of IPv4 addresses in the order in which they came, and of IPv6 addresses in
// the reverse; a link-local address comes last, since it asks for routers, whose answer finds the others in their place.
func addressesIn(is, want state) []step {
	var steps, v6 []step
	missing := slices.DeleteFunc(want.of(address), func(o object) bool { return is.has(&o) })
	for _, o := range missing {
		if o.family() == unix.AF_INET {
			steps = append(steps, change(o, "replace"))
		}
	}
	slices.Reverse(missing)
	slices.SortStableFunc(missing, func(a, b object) int { return int(a.Head[3]) - int(b.Head[3]) })
	for _, o := range missing {
		if o.family() == unix.AF_INET {
			continue
		}
		// The address was the host's all along: to look for another owner would take it away for a second. The mark that
		// it was not looked for goes again.
		if o.flags()&unix.IFA_F_NODAD == 0 {
			v6 = append(v6, change(o.withAttr(unix.IFA_FLAGS, appendU32(nil, o.flags()|unix.IFA_F_NODAD)), "replace"))
		}
		v6 = append(v6, change(o, "replace"))
	}
	return append(steps, v6...)
}

// addressesOut removes what is not wanted, the last first: an IPv4 address takes those of its subnet
// that came after it along. Where IPv6 is to be off, that is one step.
func addressesOut(is, want state, devices []string) []step {
	var steps []step
	off := map[string]bool{}
	for _, name := range devices {
		l, w := is.find(name), want.find(name)
		if l != nil && l.Settings[disableIPv6] == "0" && (w == nil || w.Settings[disableIPv6] == "1") {
			off[name] = true
			if w != nil && w.Up && !l.Up {
				continue // done by bringUp
			}
			steps = append(steps, set(disableIPv6, name, "1"))
		}
	}
	wanted := map[string]bool{}
	for _, o := range want.of(address) {
		wanted[addressID(&o)] = true
	}
	old := is.of(address)
	slices.Reverse(old)
	for _, o := range old {
		if !wanted[addressID(&o)] && !(off[o.Dev] && o.family() == unix.AF_INET6) && !madeByRouter(&o) {
			steps = append(steps, change(o, "delete"))
		}
	}
	return steps
}

// addressID is what the kernel tells a device's addresses apart by.
func addressID(o *object) string {
	return fmt.Sprintf("%s %d %d %x %x", o.Dev, o.family(), o.Head[1], o.attr(unix.IFA_LOCAL), o.attr(unix.IFA_ADDRESS))
}

// madeByRouter tells whether the kernel has made an address after a router's advertisement: a temporary one, or one
// that says so.
func madeByRouter(o *object) bool {
	const kernelRA = 2 // IFAPROT_KERNEL_RA
	p := o.attr(ifaProto)
	return len(p) == 1 && p[0] == kernelRA || o.family() == unix.AF_INET6 && o.flags()&unix.IFA_F_TEMPORARY != 0
}

func routesOut(is, want state, foreseen bool) []step {
	var steps []step
	for _, o := range is.of(route) {
		if want.has(&o) || o.Advertised || o.own() {
			continue
		}
		// A device that goes, or that loses its addresses, loses its routes.
		if foreseen && len(o.Hops) == 0 && (o.derived() || want.find(o.Dev) == nil || !hasAddress(want, o.Dev, o.family())) {
			continue
		}
		steps = append(steps, change(o, "delete"))
	}
	return steps
}

// hasAddress tells whether the device has an address of the family.
func hasAddress(s state, dev string, family uint8) bool {
	return slices.ContainsFunc(s.Objects, func(o object) bool { return o.Kind == address && o.Dev == dev && o.family() == family })
}

// routesIn adds what is missing: those to the link before those through gateways on it.
func routesIn(is, want state, foreseen bool) []step {
	var missing []object
	for _, o := range want.of(route) {
		if foreseen && o.derived() || o.own() || is.has(&o) {
			continue
		}
		if o.Advertised {
			o = stopgap(o)
			if is.has(&o) {
				continue
			}
		}
		missing = append(missing, o)
	}
	distance := func(o object) int {
		if o.attr(unix.RTA_GATEWAY) != nil || o.attr(unix.RTA_VIA) != nil || len(o.Hops) > 0 {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(missing, func(a, b object) int { return distance(a) - distance(b) })
	var steps []step
	for _, o := range missing {
		steps = append(steps, change(o, "append"))
	}
	return steps
}

// stopgap is a route that a router has advertised, with a metric one higher: it serves until
// the router's next advertisement, for which the kernel asks when the link-local address comes. In the very place of the
// kernel's own route it would make the kernel refuse that advertisement, with all else it says.
func stopgap(o object) object {
	return o.withAttr(unix.RTA_PRIORITY, appendU32(nil, o.metric()+1))
}

// others changes rules and neighbours. A device that loses its last address of a family loses its neighbours.
func others(is, want state, foreseen bool) []step {
	var steps []step
	for _, k := range []kind{rule, neighbour} {
		for _, o := range want.of(k) {
			if !is.has(&o) {
				steps = append(steps, change(o, "add"))
			}
		}
		for _, o := range is.of(k) {
			gone := k == neighbour && (want.find(o.Dev) == nil || foreseen && !hasAddress(want, o.Dev, o.family()))
			if !want.has(&o) && !gone {
				steps = append(steps, change(o, "delete"))
			}
		}
	}
	return steps
}

// change is a step that adds or deletes an object. That it is there already, or gone, is no error.
func change(o object, verb string) step {
	word := verb
	if verb == "append" && o.family() == unix.AF_INET6 {
		word = "add" // append would make one multipath route of two
	}
	return step{o.command(word), func() error {
		f, remove := formats[o.Kind], verb == "delete"
		body, err := o.encode(indexOf, !remove)
		if err != nil {
			return err
		}
		t, flags := f.add, unix.NLM_F_ACK|unix.NLM_F_CREATE
		switch {
		case remove:
			t, flags = f.del, unix.NLM_F_ACK
		case word == "append":
			flags |= unix.NLM_F_APPEND
		case verb == "replace" || o.Kind == neighbour:
			flags |= unix.NLM_F_REPLACE
		case o.Kind == rule:
			flags |= unix.NLM_F_EXCL
		}
		req := nl.NewNetlinkRequest(int(t), flags)
		req.AddRawData(body)
		_, err = req.Execute(unix.NETLINK_ROUTE, 0)
		switch {
		case !remove && errors.Is(err, unix.EEXIST):
			return nil
		case remove && (errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)):
			return nil
		}
		return err
	}}
}

// indexOf is a device's index.
func indexOf(name string) (uint32, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return uint32(l.Attrs().Index), nil
}

// set is a step that writes a setting of a device.
func set(setting, device, value string) step {
	name := strings.ReplaceAll(strings.Replace(setting, "*", device, 1), "/", ".")
	return step{fmt.Sprintf("sysctl -w net.%s=%s", name, value), func() error {
		return os.WriteFile(settingPath(setting, device), []byte(value), 0)
	}}
}

// makeLink are the steps that make a bridge or a persistent TAP, with its settings, up. Nothing is on it,
// and it takes no part in IPv6 autoconfiguration yet.
func makeLink(l link) []step {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.Name
	var steps []step
	if l.Kind == "tap" {
		steps = []step{{fmt.Sprintf("ip tuntap add dev %s mode tap vnet_hdr", l.Name), func() error {
			return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR})
		}}, setMAC(l.Name, l.MAC)}
	} else {
		steps = []step{{fmt.Sprintf("ip link add %s address %s type bridge mcast_snooping 0", l.Name, l.MAC), func() (err error) {
			if attrs.HardwareAddr, err = net.ParseMAC(l.MAC); err != nil {
				return err
			}
			snooping := false // our own switch is behind it, which floods as Hyper-V's does
			return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
		}}}
	}
	steps = append(steps, setMTU(l.Name, l.MTU))
	fresh := freshSettings(l.MTU)
	var changed []string
	for k, v := range l.Settings {
		if f, ok := fresh[k]; (!ok || f != v) && k != addrGenMode && k != disableIPv6 {
			changed = append(changed, k)
		}
	}
	slices.Sort(changed)
	for _, k := range changed {
		steps = append(steps, set(k, l.Name, l.Settings[k]))
	}
	if v, ok := l.Settings[disableIPv6]; ok && v != fresh[disableIPv6] {
		steps = append(steps, set(disableIPv6, l.Name, v))
	}
	if l.Settings[disableIPv6] == "0" {
		steps = append(steps, set(addrGenMode, l.Name, genNone))
	}
	return append(steps, setUp(l.Name))
}

// freshSettings are those that a new device has. Those of its neighbours are in the directory default of the first network
// namespace only; elsewhere the loopback device's are the ones that nobody changes.
func freshSettings(mtu int) map[string]string {
	fresh := readSettings("lo")
	maps.DeleteFunc(fresh, func(k, _ string) bool { return !strings.Contains(k, "/neigh/") })
	maps.Copy(fresh, readSettings("default"))
	fresh["ipv6/conf/*/mtu"] = fmt.Sprint(mtu)
	return fresh
}

// bringUp has a device up, and IPv6 off before if it shall be, so that the kernel makes no addresses.
func bringUp(is, want link) []step {
	steps := []step{setUp(is.Name)}
	if is.Settings[disableIPv6] == "0" && want.Settings[disableIPv6] == "1" {
		steps = append([]step{set(disableIPv6, is.Name, "1")}, steps...)
	}
	return steps
}

// withLink runs f on the device of that name.
func withLink(name string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(l)
}

func setMAC(name, mac string) step {
	return step{fmt.Sprintf("ip link set %s address %s", name, mac), func() error {
		a, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		return withLink(name, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, a) })
	}}
}

func setMTU(name string, mtu int) step {
	return step{fmt.Sprintf("ip link set %s mtu %d", name, mtu), func() error {
		return withLink(name, func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) })
	}}
}

func setUp(name string) step {
	return step{fmt.Sprintf("ip link set %s up", name), func() error { return withLink(name, netlink.LinkSetUp) }}
}

func setDown(name string) step {
	return step{fmt.Sprintf("ip link set %s down", name), func() error { return withLink(name, netlink.LinkSetDown) }}
}

func setMaster(name, master string) step {
	if master == "" {
		return step{fmt.Sprintf("ip link set %s nomaster", name), func() error { return withLink(name, netlink.LinkSetNoMaster) }}
	}
	return step{fmt.Sprintf("ip link set %s master %s", name, master), func() error {
		return withLink(name, func(l netlink.Link) error {
			return withLink(master, func(m netlink.Link) error { return netlink.LinkSetMaster(l, m) })
		})
	}}
}

func setSilent(name string, on bool) step {
	return step{silenceCommand(name, on), func() error { return silence(name, on) }}
}

func removeLink(l link) step {
	return step{fmt.Sprintf("ip link delete %s", l.Name), func() error { return withLink(l.Name, netlink.LinkDel) }}
}
