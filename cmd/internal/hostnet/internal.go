package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Internal says what the host's own adapter on an internal switch is like.
type Internal struct {
	Switch    string           // the switch's name
	Device    string           // the TAP, which whoever opens it has made
	MAC       net.HardwareAddr // nil: the one it has
	MTU       int              // 0: the one it has
	Addresses []netip.Prefix   // with the host's own address in each
	NAT       bool             // guests reach the outside by IPv4, with the host's address
}

// Net is an internal switch's part of the host's network.
type Net struct {
	config Internal
	dir    string
	nat    bool
}

// OpenInternal gives the host's own adapter its addresses and brings it up. dir is for the journal of
// address translation. What is on the adapter goes with it; Close ends the rest.
func OpenInternal(c Internal, dir string, log *slog.Logger) (*Net, error) {
	l, err := linkByName(c.Device)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, fmt.Errorf("there is no device %s", c.Device)
	}
	if err := checkOverlap(c); err != nil {
		return nil, err
	}
	steps := guestSettings(c.Device)
	if c.MAC != nil {
		steps = append(steps, setMAC(c.Device, c.MAC.String()))
	}
	if c.MTU != 0 {
		steps = append(steps, setMTU(c.Device, c.MTU))
	}
	for _, p := range c.Addresses {
		steps = append(steps, addAddress(l, p))
	}
	for _, s := range append(steps, setUp(c.Device)) {
		if err := (stepper{}).do(s); err != nil {
			return nil, err
		}
	}
	n := &Net{config: c, dir: dir}
	if c.NAT {
		if err := openNAT(c, dir, log); err != nil {
			return nil, errors.Join(err, closeNAT(c.Switch, dir))
		}
		n.nat = true
	}
	return n, nil
}

// Close ends address translation: its rules are removed, and settings are as they were.
func (n *Net) Close() error {
	if !n.nat {
		return nil
	}
	return closeNAT(n.config.Switch, n.dir)
}

// guestSettings has the host believe nothing that guests say of routes, for they are the only ones on the other side,
// and answer for the addresses of this adapter alone, not for those of its others.
func guestSettings(device string) []step {
	var steps []step
	for _, s := range []struct{ setting, value string }{
		{acceptRA, "0"}, {"ipv6/conf/*/accept_redirects", "0"}, {"ipv4/conf/*/accept_redirects", "0"}, {"ipv4/conf/*/arp_ignore", "1"},
	} {
		if _, err := os.Stat(settingPath(s.setting, device)); err == nil {
			steps = append(steps, set(s.setting, device, s.value))
		}
	}
	return steps
}

func addAddress(l netlink.Link, p netip.Prefix) step {
	return step{fmt.Sprintf("ip address add %v dev %s", p, l.Attrs().Name), func() error {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // the addresses of a network of our own
		}
		return netlink.AddrReplace(l, a)
	}}
}

// checkOverlap refuses an address whose network is one that the host reaches elsewhere.
func checkOverlap(c Internal) error {
	all, err := readObjects()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Kind != route || o.Head[1] == 0 || o.names(c.Device) {
			continue
		}
		dst, ok := netip.AddrFromSlice(o.attr(unix.RTA_DST))
		if !ok || dst.IsMulticast() || dst.Is6() && dst.IsLinkLocalUnicast() {
			continue // each link has its own
		}
		there := netip.PrefixFrom(dst, int(o.Head[1]))
		for _, p := range c.Addresses {
			if p.Masked().Overlaps(there) {
				return fmt.Errorf("the network of %v is in use: there is the route `%s`: take another", p, &o)
			}
		}
	}
	return nil
}

// Attach makes a TAP a port of a bridge and brings it up. The host's own protocols stay away
// from it. It leaves the bridge when it is closed.
func Attach(tap, bridge string, mtu int) error {
	steps := []step{setMTU(tap, mtu), setMaster(tap, bridge), setUp(tap)}
	if _, err := os.Stat(settingPath(disableIPv6, tap)); err == nil {
		steps = append([]step{set(disableIPv6, tap, "1")}, steps...)
	}
	for _, s := range steps {
		if err := (stepper{}).do(s); err != nil {
			return err
		}
	}
	return nil
}
