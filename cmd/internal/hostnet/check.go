package hostnet

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Refusal says why a NIC is not taken over, and what to do about each reason.
type Refusal struct {
	NIC     string
	Reasons []string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%s is not taken over: %s", r.NIC, strings.Join(r.Reasons, "; "))
}

// host is where to look for what netlink does not tell.
type host struct {
	run string // /run: who manages the network
	sys string // /sys: what sort of device
}

// check refuses what is not safely taken over, and notes what the operator should know.
func (h host) check(p *Plan) error {
	nic := p.External.NIC
	r := &Refusal{NIC: nic}
	refuse := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	l, err := linkByName(nic)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("there is no network adapter %s", nic)
	}
	if d := p.External.Driver; d != Bridge && d != Packet {
		return fmt.Errorf("driver %q is not one of: %s, %s", d, Bridge, Packet)
	}
	links, err := again(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	h.checkKind(l, links, refuse)
	h.checkManager(l, refuse)
	if err := checkQueueing(l, refuse); err != nil {
		return err
	}
	if p.Device != "" {
		switch {
		case len(p.Device) > maxName:
			refuse("%s is too long for a device's name: at most %d letters", p.Device, maxName)
		case p.before.find(p.Device) != nil:
			refuse("there is a device %s already: remove it with `ip link delete %s`, or give the host's adapter another name", p.Device, p.Device)
		}
	}
	all, err := readObjects()
	if err != nil {
		return err
	}
	for _, o := range p.before.Objects {
		checkObject(&o, nic, p.Device, all, refuse)
	}
	if v := p.before.find(nic); v != nil {
		if !v.Up && len(p.before.of(address)) > 0 {
			refuse("it is down, and has addresses: bring it up with `ip link set %s up`, or remove them", nic)
		}
		if v.Silent {
			refuse("the nftables table netdev %s is there: another switch has taken it, or remove it with `%s`", silencer(nic), silenceCommand(nic, false))
		}
		if v.Settings[mcForwarding] == "1" {
			refuse("a multicast router runs on it: stop it first")
		}
	}
	if len(r.Reasons) > 0 {
		return r
	}
	p.note(l)
	return nil
}

// checkKind refuses devices whose frames are not a network card's own.
func (h host) checkKind(l netlink.Link, links []netlink.Link, refuse func(string, ...any)) {
	a := l.Attrs()
	switch kind := kindOf(l); {
	case a.EncapType != "ether":
		refuse("it is no Ethernet (%s)", a.EncapType)
	case kind != "" && kind != "veth":
		refuse("it is %s: name the network adapter itself, or join a bridge that it is in", kindText(kind))
	}
	uevent, _ := os.ReadFile(filepath.Join(h.sys, "class/net", a.Name, "uevent"))
	_, err := os.Stat(filepath.Join(h.sys, "class/net", a.Name, "phy80211"))
	if err == nil || slices.Contains(strings.Split(string(uevent), "\n"), "DEVTYPE=wlan") {
		refuse("it is a Wi-Fi adapter, whose access point takes frames of one MAC address only: make an internal switch with nat instead")
	}
	if a.MasterIndex != 0 {
		master := fmt.Sprintf("device %d", a.MasterIndex)
		for _, m := range links {
			if m.Attrs().Index == a.MasterIndex {
				master = m.Attrs().Name
				if m.Type() == "bridge" {
					refuse("it is a port of the bridge %s: join that bridge", master)
					master = ""
				}
			}
		}
		if master != "" {
			refuse("it belongs to %s", master)
		}
	}
	if a.Xdp != nil && a.Xdp.Attached {
		refuse("an XDP program takes its frames: remove it with `ip link set %s xdp off`", a.Name)
	}
	for _, c := range links {
		below := c.Attrs().ParentIndex
		if v, ok := c.(*netlink.Vxlan); ok {
			below = v.VtepDevIndex
		}
		if below == a.Index && c.Type() != "veth" && c.Attrs().NetNsID < 0 {
			refuse("%s (%s) is on it: remove it, or put it on a bridge and join that", c.Attrs().Name, c.Type())
		}
	}
}

// checkManager refuses what a daemon configures: it would put its configuration back.
func (h host) checkManager(l netlink.Link, refuse func(string, ...any)) {
	a := l.Attrs()
	index := fmt.Sprint(a.Index)
	const instead = "have it make a bridge with this adapter in it, and join that bridge"
	if text, err := os.ReadFile(filepath.Join(h.run, "systemd/netif/links", index)); err == nil {
		for line := range strings.Lines(string(text)) {
			if s, ok := strings.CutPrefix(strings.TrimSpace(line), "ADMIN_STATE="); ok && s != "unmanaged" {
				refuse("systemd-networkd manages it (%s): %s, or set Unmanaged=yes for it", s, instead)
			}
		}
	}
	if text, err := os.ReadFile(filepath.Join(h.run, "NetworkManager/devices", index)); err == nil && strings.Contains(string(text), "managed=true") {
		refuse("NetworkManager manages it: %s, or tell it `nmcli device set %s managed no`", instead, a.Name)
	}
}

// checkQueueing refuses queueing disciplines that were configured: those the kernel chose itself have
// the handle 0.
func checkQueueing(l netlink.Link, refuse func(string, ...any)) error {
	qdiscs, err := again(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	if err != nil {
		return fmt.Errorf("queueing disciplines: %w", err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Handle != 0 {
			refuse("a queueing discipline (%s) is set up on it: remove it with `tc qdisc delete dev %s %s`", q.Type(), l.Attrs().Name, parentText(q))
		}
	}
	return nil
}

func parentText(q netlink.Qdisc) string {
	switch p := q.Attrs().Parent; {
	case q.Type() == "ingress" || q.Type() == "clsact":
		return q.Type()
	case p == netlink.HANDLE_ROOT:
		return "root"
	default:
		return "parent " + netlink.HandleStr(p)
	}
}

// checkObject refuses what would not come back as it was.
func checkObject(o *object, nic, device string, all []object, refuse func(string, ...any)) {
	if u := o.unknown(); u != "" {
		refuse("%s `%s` has an unknown %s", o.Kind, o, u)
		return
	}
	switch o.Kind {
	case address:
		if label := cString(o.attr(unix.IFA_LABEL)); len(label)-len(nic)+len(device) > maxName {
			refuse("the label %s of the address %s is too long with %s: give the host's adapter a shorter name", label, o, device)
		}
		if o.family() != unix.AF_INET6 {
			return
		}
		switch f := o.flags(); {
		case f&unix.IFA_F_TEMPORARY != 0:
			refuse("%s is a temporary address, which only the kernel can make: set net.ipv6.conf.%s.use_tempaddr=0 and delete it", ipText(o.attr(unix.IFA_ADDRESS)), nic)
		case f&unix.IFA_F_DADFAILED != 0:
			refuse("%s is another machine's, too: delete it", ipText(o.attr(unix.IFA_ADDRESS)))
		case f&unix.IFA_F_TENTATIVE != 0:
			refuse("%s is being checked for another owner: try again in some seconds", ipText(o.attr(unix.IFA_ADDRESS)))
		}
	case route:
		if len(o.Hops) > 0 && o.derived() {
			return
		}
		for _, x := range all {
			if x.Kind == route && !x.names(nic) && x.key() != o.key() && sameDestination(o, &x) && !isLinkWide(o) {
				refuse("the routes `%s` and `%s` differ in nothing but their order: give one a metric", o, &x)
			}
		}
	case rule:
		for _, x := range all {
			if x.Kind == rule && !x.names(nic) && x.family() == o.family() && x.metric() == o.metric() {
				refuse("the rules `%s` and `%s` differ in nothing but their order: give one another priority", o, &x)
			}
		}
	}
}

// sameDestination tells whether only their order decides between two routes.
func sameDestination(a, b *object) bool {
	return a.family() == b.family() && a.table() == b.table() && a.metric() == b.metric() &&
		a.Head[1] == b.Head[1] && a.Head[3] == b.Head[3] && bytes.Equal(a.attr(unix.RTA_DST), b.attr(unix.RTA_DST))
}

// isLinkWide tells whether a route is to what each link has its own of: multicast, link-local and local addresses.
func isLinkWide(o *object) bool {
	dst := o.attr(unix.RTA_DST)
	return o.derived() && (o.table() == unix.RT_TABLE_LOCAL || o.family() == unix.AF_INET6 && len(dst) == 16 && dst[0] == 0xfe && dst[1]&0xc0 == 0x80)
}

// note tells the operator what Polder cannot do for him.
func (p *Plan) note(l netlink.Link) {
	nic := p.External.NIC
	notef := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	where := p.Device
	switch {
	case p.External.Exclusive:
		for _, o := range p.before.of(route) {
			if o.Head[1] == 0 && o.routeType() == unix.RTN_UNICAST {
				notef("the host loses its default route through %s", nic)
				break
			}
		}
	default:
		for _, o := range p.before.of(address) {
			if o.Valid != forever && !madeByRouter(&o) {
				notef("%s is leased for another %d s: have the DHCP client renew it on %s", ipText(o.attr(unix.IFA_ADDRESS)), o.Valid, where)
			}
		}
	}
	if groups := listenedTo(nic); len(groups) > 0 && !p.External.Exclusive {
		notef("programs listen on %s to the multicast groups %s: restart them, to have them listen on %s", nic, strings.Join(groups, ", "), where)
	}
	if l.Attrs().OperState == netlink.OperDown || l.Attrs().OperState == netlink.OperLowerLayerDown {
		notef("%s has no link", nic)
	}
	if p.External.Driver == Packet && !p.External.Exclusive {
		notef("the host is off the network while Polder is not running: the driver bridge has it stay")
	}
	if v, err := os.ReadFile(filepath.Join(sysNet, "bridge/bridge-nf-call-iptables")); err == nil && strings.TrimSpace(string(v)) == "1" && p.External.Driver == Bridge {
		notef("packet filters for routed packets see bridged ones, too, and may drop guests' frames: set net.bridge.bridge-nf-call-iptables=0 (and ip6tables) if they do")
	}
	for _, rule := range filtersNaming(nic) {
		notef("%s names %s, and no longer matches what now comes through %s", rule, nic, where)
	}
}

// listenedTo lists the multicast groups that somebody but the kernel itself has joined on the device.
func listenedTo(device string) []string {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil
	}
	addrs, err := i.MulticastAddrs()
	if err != nil {
		return nil
	}
	var groups []string
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.(*net.IPAddr).IP)
		if ip = ip.Unmap(); ok && !slices.ContainsFunc(kernelGroups, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			groups = append(groups, ip.String())
		}
	}
	return groups
}

// kernelGroups are those that every host is in: all hosts, and each address's own (RFC 4291 section 2.7.1).
var kernelGroups = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.1/32"), netip.MustParsePrefix("224.0.0.106/32"), netip.MustParsePrefix("ff01::1/128"),
	netip.MustParsePrefix("ff02::1/128"), netip.MustParsePrefix("ff02::6a/128"), netip.MustParsePrefix("ff02::1:ff00:0/104"),
}

// filtersNaming lists the chains of nftables (iptables' included) in which a rule names the device.
func filtersNaming(device string) []string {
	c, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil
	}
	var found []string
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			continue
		}
		names := func(e expr.Any) bool {
			cmp, ok := e.(*expr.Cmp)
			return ok && cString(cmp.Data) == device
		}
		if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return slices.ContainsFunc(r.Exprs, names) }) {
			found = append(found, fmt.Sprintf("a rule of nftables in table %s %s, chain %s,", familyText(chain.Table.Family), chain.Table.Name, chain.Name))
		}
	}
	return found
}

func familyText(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyBridge:
		return "bridge"
	}
	return hex.EncodeToString([]byte{byte(f)})
}

// kindText is for messages.
func kindText(kind string) string {
	if kind == "" {
		return "a network adapter"
	}
	return "a device of kind " + kind
}
