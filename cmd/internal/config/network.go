package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"polder/vswitch"
)

// Types of switches.
const (
	TypePrivate  = "private"  // guests only
	TypeInternal = "internal" // guests, and the host through a management adapter
	TypeExternal = "external" // bound to a network adapter of the host
)

// Uplink binds an external switch to the outside.
type Uplink struct {
	NIC    string `yaml:"nic,omitempty"`    // the host's network adapter
	Driver string `yaml:"driver,omitempty"` // DriverBridge or DriverPacket; "": bridge
	Bridge string `yaml:"bridge,omitempty"` // a kernel bridge that is there already, in place of nic
}

// How an external switch is bound to the host's network adapter.
const (
	DriverBridge = "bridge" // through a kernel bridge: the host stays online when Polder ends
	DriverPacket = "packet" // Polder's own switch takes the adapter
)

// Management is the host's own adapter on an internal or external switch.
type Management struct {
	Name    string         `yaml:"name,omitempty"`    // the interface's name; "": vEth- and the switch's name, cut if it is too long
	Address []netip.Prefix `yaml:"address,omitempty"` // of an internal switch's; an external one's are the NIC's
	MAC     MAC            `yaml:"mac,omitempty"`     // zero: made from the switch's name; an external one's is the NIC's
	NAT     bool           `yaml:"nat,omitempty"`     // guests reach the outside with the host's address
}

// MACPool is the range of MAC addresses that adapters without one are given, both ends included.
type MACPool struct{ First, Last vswitch.MAC }

// UnmarshalYAML reads "00:15:5d:4d:00:00-00:15:5d:4d:00:ff".
func (p *MACPool) UnmarshalYAML(text []byte) error {
	const what = "no range of MAC addresses: write it like 00:15:5d:4d:00:00-00:15:5d:4d:00:ff"
	s := scalar(text)
	if len(s) != 35 || s[17] != '-' {
		return badValue(text, what)
	}
	var err1, err2 error
	p.First, err1 = vswitch.ParseMAC(s[:17])
	p.Last, err2 = vswitch.ParseMAC(s[18:])
	if err1 != nil || err2 != nil {
		return badValue(text, what)
	}
	return nil
}

// MarshalText writes what UnmarshalYAML reads, for JSON and YAML.
func (p MACPool) MarshalText() ([]byte, error) {
	return []byte(p.First.String() + "-" + p.Last.String()), nil
}

// maxInterfaceName is the longest name of a Linux network interface, in bytes: IFNAMSIZ less the final zero.
const maxInterfaceName = 15

var interfaceRE = regexp.MustCompile(`^[^\s/:%]{1,15}$`)

// checkInterface says whether name can name a network interface.
func checkInterface(name string) error {
	if !interfaceRE.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("%q cannot name a network interface: up to %d characters, no blank, '/', ':' or '%%'", name, maxInterfaceName)
	}
	return nil
}

// completeNetwork fills in what the type of the switch leaves open.
func (s *Switch) completeNetwork() {
	s.Type = cmp.Or(s.Type, TypePrivate)
	switch s.Type {
	case TypeInternal:
		if s.Management == nil {
			s.Management = &Management{}
		}
	case TypeExternal:
		if s.Uplink != nil {
			s.Uplink.Driver = cmp.Or(s.Uplink.Driver, DriverBridge)
		}
		if s.Management == nil && s.HostUses() {
			s.Management = &Management{}
		}
	}
	if m := s.Management; m != nil && m.MAC == (MAC{}) && s.Type == TypeInternal {
		m.MAC = MAC(DeriveMAC("management." + s.Name))
	}
}

// HostUses tells whether the host is on the external switch, too.
func (s *Switch) HostUses() bool { return s.AllowManagementOS == nil || *s.AllowManagementOS }

func (s *Switch) checkNetwork(k *checker, path string) {
	if !slices.Contains([]string{TypePrivate, TypeInternal, TypeExternal}, s.Type) {
		k.failf(path+".type", "switch %q: type %q is not one of: private, internal, external", s.Name, s.Type)
		return
	}
	if s.Type != TypeExternal && s.Uplink != nil {
		k.failf(path+".uplink", "switch %q: uplink is for switches of type external", s.Name)
	}
	if s.Type != TypeExternal && s.AllowManagementOS != nil {
		k.failf(path+".allow_management_os", "switch %q: allow_management_os is for switches of type external", s.Name)
	}
	if s.Type == TypePrivate && s.Management != nil {
		k.failf(path+".management", "switch %q: the host is not on a private switch: take type internal", s.Name)
		return
	}
	if s.Type == TypeExternal {
		s.checkUplink(k, path+".uplink")
	}
	if m := s.Management; m != nil {
		m.check(k, path+".management", s)
	}
}

func (s *Switch) checkUplink(k *checker, path string) {
	u := s.Uplink
	if u == nil || (u.NIC == "") == (u.Bridge == "") {
		k.failf(path, "switch %q: an external switch needs an uplink with exactly one of nic (a network adapter of the host) and bridge (a bridge that is there already)", s.Name)
		return
	}
	if u.Driver != DriverBridge && u.Driver != DriverPacket {
		k.failf(path+".driver", "switch %q: uplink: driver %q is not one of: bridge, packet", s.Name, u.Driver)
	}
	for _, key := range []struct{ key, name string }{{"nic", u.NIC}, {"bridge", u.Bridge}} {
		if key.name == "" {
			continue
		}
		if err := checkInterface(key.name); err != nil {
			k.failf(path+"."+key.key, "switch %q: uplink: %v", s.Name, err)
		}
	}
	if u.Bridge != "" && u.Driver == DriverPacket {
		k.failf(path+".driver", "switch %q: uplink: driver packet takes a nic, not a bridge", s.Name)
	}
	if u.Bridge != "" && s.AllowManagementOS != nil && !*s.AllowManagementOS {
		k.failf(path, "switch %q: allow_management_os: whether the host uses a bridge that is there already is the bridge's affair: leave it out", s.Name)
	}
}

func (m *Management) check(k *checker, path string, s *Switch) {
	if m.Name != "" {
		if err := checkInterface(m.Name); err != nil {
			k.failf(path+".name", "switch %q: management: %v", s.Name, err)
		}
	}
	if s.Type == TypeExternal {
		if len(m.Address) > 0 || m.NAT || m.MAC != (MAC{}) {
			k.failf(path, "switch %q: management: on an external switch the host keeps the addresses of the network adapter: leave out address, mac and nat", s.Name)
		}
		if !s.HostUses() {
			k.failf(path, "switch %q: management goes with allow_management_os: true", s.Name)
		}
		return
	}
	if err := CheckMAC(vswitch.MAC(m.MAC)); err != nil {
		k.failf(path+".mac", "switch %q: management: %v", s.Name, err)
	}
	for _, a := range m.Address {
		if a.Addr().Is4() && a.Bits() <= 30 && !isHost(a, a.Addr()) {
			k.failf(path+".address", "switch %q: management: address %v stands for the whole network: take another in it", s.Name, a)
		}
	}
	if m.NAT && !slices.ContainsFunc(m.Address, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		k.failf(path+".nat", "switch %q: management: nat needs an IPv4 address, like 192.168.77.1/24", s.Name)
	}
}
