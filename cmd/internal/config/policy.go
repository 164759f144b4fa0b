package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"polder/vswitch"
)

// Policy is what a switch does with the frames of one adapter. What an adapter leaves open is
// taken from Config's defaults, and what these leave open is as Hyper-V has it but for
// mac_spoofing: a port learns addresses unless it is told not to.
type Policy struct {
	VLAN        *VLAN     `yaml:"vlan,omitempty" json:"vlan,omitempty"`
	MACSpoofing *bool     `yaml:"mac_spoofing,omitempty" json:"mac_spoofing,omitempty"` // nil: yes. false: the adapter's own address is the only one, and never learned elsewhere
	DHCPGuard   *bool     `yaml:"dhcp_guard,omitempty" json:"dhcp_guard,omitempty"`     // nil: no. true: the guest cannot be a DHCP server
	RouterGuard *bool     `yaml:"router_guard,omitempty" json:"router_guard,omitempty"` // nil: no. true: the guest cannot be an IPv6 router
	BPDU        string    `yaml:"bpdu,omitempty" json:"bpdu,omitempty"`                 // BPDUDrop, BPDUShutdown or BPDUAllow; "": those to reserved addresses are dropped, as any bridge does
	StormLimit  *int      `yaml:"storm_limit,omitempty" json:"storm_limit,omitempty"`   // broadcast, multicast and unknown frames a second; nil or 0: no limit
	Bandwidth   *Rate     `yaml:"bandwidth,omitempty" json:"bandwidth,omitempty"`       // of what the guest sends; nil or 0: no limit
	ACL         []ACLRule `yaml:"acl,omitempty" json:"acl,omitempty"`                   // the first that matches decides; what none matches is allowed
	Mirror      string    `yaml:"mirror,omitempty" json:"mirror,omitempty"`             // MirrorSource or MirrorDestination; "" or MirrorNone: neither
	Link        string    `yaml:"link,omitempty" json:"link,omitempty"`                 // LinkUp or LinkDown; "": up
}

// What becomes of spanning tree's frames from a guest.
const (
	BPDUDrop     = "drop"
	BPDUShutdown = "shutdown" // the link goes down until it is set up again
	BPDUAllow    = "allow"
)

// Parts in mirroring: each destination of a switch is given a copy of what its sources send and are sent.
const (
	MirrorNone        = "none"
	MirrorSource      = "source"
	MirrorDestination = "destination"
)

// States of an adapter's link.
const (
	LinkUp   = "up"
	LinkDown = "down"
)

// VLAN is an adapter's place among the virtual LANs of its switch, in exactly one of the modes
// that Hyper-V has: access, trunk, or one of the three of a private VLAN.
type VLAN struct {
	Access      int    `yaml:"access,omitempty" json:"access,omitempty"`           // the adapter's one VLAN; its frames carry no tag
	Trunk       *VLANs `yaml:"trunk,omitempty" json:"trunk,omitempty"`             // VLANs whose tagged frames pass
	Native      int    `yaml:"native,omitempty" json:"native,omitempty"`           // of a trunk: the VLAN of frames without a tag; 0: that of adapters without VLAN
	Primary     int    `yaml:"primary,omitempty" json:"primary,omitempty"`         // of a private VLAN
	Isolated    int    `yaml:"isolated,omitempty" json:"isolated,omitempty"`       // secondary: reaches promiscuous adapters only
	Community   int    `yaml:"community,omitempty" json:"community,omitempty"`     // secondary: reaches its community and promiscuous adapters
	Promiscuous *VLANs `yaml:"promiscuous,omitempty" json:"promiscuous,omitempty"` // secondaries that it reaches, and that reach it
}

// VLANs is a set of VLAN identifiers.
type VLANs vswitch.VLANSet

// UnmarshalYAML reads "1-100,200" or a number.
func (v *VLANs) UnmarshalYAML(text []byte) error {
	if v.UnmarshalText([]byte(scalar(text))) != nil {
		return badValue(text, fmt.Sprintf("no set of VLANs: write it like 1-100,200, from 1 to %d", vswitch.MaxVLAN))
	}
	return nil
}

// MarshalText writes what UnmarshalText reads, for JSON and YAML.
func (v VLANs) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads "1-100,200".
func (v *VLANs) UnmarshalText(text []byte) error {
	set, err := vswitch.ParseVLANSet(string(text))
	*v = VLANs(set)
	if err == nil && set.Len() == 0 {
		err = errors.New("an empty set of VLANs")
	}
	return err
}

// String writes the set as it is read.
func (v VLANs) String() string { return vswitch.VLANSet(v).String() }

// Contains tells whether the VLAN is in the set.
func (v *VLANs) Contains(id int) bool { return (*vswitch.VLANSet)(v).Has(uint16(id)) }

// Rate is a number of bits a second.
type Rate uint64

// UnmarshalYAML reads "100M", "2.5G", or a number of bits a second; the units are powers of 1000.
func (r *Rate) UnmarshalYAML(text []byte) error {
	v, err := ParseRate(scalar(text))
	if err != nil {
		return badValue(text, err.Error())
	}
	*r = v
	return nil
}

// MarshalText writes what ParseRate reads, for JSON and YAML.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRate(string(text))
	return err
}

// ParseRate reads "100M".
func ParseRate(text string) (Rate, error) {
	digits, unit := text, 1.0
	if text != "" {
		if i := strings.IndexByte("KMGT", text[len(text)-1]&^0x20); i >= 0 {
			digits, unit = text[:len(text)-1], math.Pow(1000, float64(i+1))
		}
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !(n >= 0) || n*unit > 1e12 {
		return 0, fmt.Errorf("no number of bits a second: write it like 100M or 2.5G")
	}
	return Rate(math.Round(n * unit)), nil
}

// String writes what ParseRate reads, with the largest unit that loses nothing.
func (r Rate) String() string {
	units := " KMGT"
	i := 0
	for ; i < len(units)-1 && r != 0 && r%1000 == 0; i++ {
		r /= 1000
	}
	return strings.TrimRight(strconv.FormatUint(uint64(r), 10)+units[i:i+1], " ")
}

// ACLRule allows, denies or counts frames between an adapter and a remote end.
type ACLRule struct {
	Action    string `yaml:"action" json:"action"`                           // ACLAllow, ACLDeny or ACLMeter
	Direction string `yaml:"direction,omitempty" json:"direction,omitempty"` // ACLIn (to the guest), ACLOut (from it) or ACLBoth; "": both
	Remote    string `yaml:"remote,omitempty" json:"remote,omitempty"`       // MAC address, IP address or IP prefix of the other end; "": any
	Protocol  string `yaml:"protocol,omitempty" json:"protocol,omitempty"`   // ip, ipv6, arp, tcp, udp, icmp, icmpv6, or the number of an IP protocol; "": any

	// Of TCP and UDP.
	LocalPort  *Ports `yaml:"local_port,omitempty" json:"local_port,omitempty"`   // the guest's; nil: any
	RemotePort *Ports `yaml:"remote_port,omitempty" json:"remote_port,omitempty"` // the other end's; nil: any
}

// Ports is a range of TCP or UDP ports.
type Ports vswitch.PortRange

// UnmarshalYAML reads "22" or "1024-2047".
func (p *Ports) UnmarshalYAML(text []byte) error {
	if p.UnmarshalText([]byte(scalar(text))) != nil {
		return badValue(text, "no port or range of ports: write it like 22 or 1024-2047, from 1 to 65535")
	}
	return nil
}

// UnmarshalText reads "22" or "1024-2047".
func (p *Ports) UnmarshalText(text []byte) error {
	first, last, isRange := strings.Cut(string(text), "-")
	a, err := strconv.ParseUint(first, 10, 16)
	b := a
	if err == nil && isRange {
		b, err = strconv.ParseUint(last, 10, 16)
	}
	if err == nil && (a == 0 || b < a) {
		err = fmt.Errorf("%q is no range of ports", text)
	}
	*p = Ports{First: uint16(a), Last: uint16(b)}
	return err
}

// MarshalText writes what UnmarshalText reads, for JSON and YAML.
func (p Ports) MarshalText() ([]byte, error) {
	if p.First == p.Last {
		return strconv.AppendUint(nil, uint64(p.First), 10), nil
	}
	return fmt.Appendf(nil, "%d-%d", p.First, p.Last), nil
}

// What an ACLRule does, and in which direction.
const (
	ACLAllow = "allow"
	ACLDeny  = "deny"
	ACLMeter = "meter" // counts, and leaves the decision to the rules that follow
	ACLIn    = "in"
	ACLOut   = "out"
	ACLBoth  = "both"
)

// aclProtocols are the names that ACLRule's Protocol takes besides numbers.
var aclProtocols = []string{"ip", "ipv6", "arp", "tcp", "udp", "icmp", "icmpv6"}

// RemoteMAC returns the MAC address that r's Remote is, if it is one.
func (r *ACLRule) RemoteMAC() (vswitch.MAC, bool) {
	m, err := vswitch.ParseMAC(r.Remote)
	return m, err == nil
}

// RemotePrefix returns the IP prefix that r's Remote is, if it is one. An address is the prefix
// of all its bits.
func (r *ACLRule) RemotePrefix() (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(r.Remote); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(r.Remote)
	return p.Masked(), err == nil
}

// Inherit fills in from d what p leaves open.
func (p *Policy) Inherit(d Policy) {
	p.VLAN = cmp.Or(p.VLAN, d.VLAN)
	p.MACSpoofing = cmp.Or(p.MACSpoofing, d.MACSpoofing)
	p.DHCPGuard = cmp.Or(p.DHCPGuard, d.DHCPGuard)
	p.RouterGuard = cmp.Or(p.RouterGuard, d.RouterGuard)
	p.BPDU = cmp.Or(p.BPDU, d.BPDU)
	p.StormLimit = cmp.Or(p.StormLimit, d.StormLimit)
	p.Bandwidth = cmp.Or(p.Bandwidth, d.Bandwidth)
	if p.ACL == nil {
		p.ACL = d.ACL
	}
	p.Mirror = cmp.Or(p.Mirror, d.Mirror)
	p.Link = cmp.Or(p.Link, d.Link)
}

// Check finds what is wrong in a policy that did not come from a file.
func (p *Policy) Check() error {
	k := &checker{}
	p.check(k, "", "policy")
	return k.err()
}

// check finds what is wrong. who begins the messages.
func (p *Policy) check(k *checker, path, who string) {
	one := func(key, value string, of ...string) {
		if value != "" && !slices.Contains(of, value) {
			k.failf(path+"."+key, "%s: %s %q is not one of: %s", who, key, value, strings.Join(of, ", "))
		}
	}
	one("bpdu", p.BPDU, BPDUDrop, BPDUShutdown, BPDUAllow)
	one("mirror", p.Mirror, MirrorNone, MirrorSource, MirrorDestination)
	one("link", p.Link, LinkUp, LinkDown)
	if p.StormLimit != nil && (*p.StormLimit < 0 || *p.StormLimit > math.MaxInt32) {
		k.failf(path+".storm_limit", "%s: storm_limit %d: frames a second, from 0 (no limit) to %d", who, *p.StormLimit, math.MaxInt32)
	}
	if p.VLAN != nil {
		p.VLAN.check(k, path+".vlan", who)
	}
	for i := range p.ACL {
		p.ACL[i].check(k, fmt.Sprintf("%s.acl[%d]", path, i), fmt.Sprintf("%s: acl: rule %d", who, i+1))
	}
}

func (v *VLAN) check(k *checker, path, who string) {
	modes := 0
	for _, given := range []bool{v.Access != 0, v.Trunk != nil, v.Isolated != 0, v.Community != 0, v.Promiscuous != nil} {
		if given {
			modes++
		}
	}
	if modes != 1 {
		k.failf(path, "%s: vlan: give exactly one of access, trunk, isolated, community and promiscuous", who)
		return
	}
	for _, id := range []struct {
		key   string
		value int
	}{{"access", v.Access}, {"native", v.Native}, {"primary", v.Primary}, {"isolated", v.Isolated}, {"community", v.Community}} {
		if id.value < 0 || id.value > vswitch.MaxVLAN {
			k.failf(path+"."+id.key, "%s: vlan: %s %d: from 1 to %d", who, id.key, id.value, vswitch.MaxVLAN)
		}
	}
	private := v.Isolated != 0 || v.Community != 0 || v.Promiscuous != nil
	switch {
	case v.Native != 0 && v.Trunk == nil:
		k.failf(path+".native", "%s: vlan: native goes with trunk", who)
	case private && v.Primary == 0:
		k.failf(path, "%s: vlan: isolated, community and promiscuous need a primary", who)
	case !private && v.Primary != 0:
		k.failf(path+".primary", "%s: vlan: primary goes with isolated, community or promiscuous", who)
	case private && (v.Primary == v.Isolated || v.Primary == v.Community || v.Promiscuous != nil && v.Promiscuous.Contains(v.Primary)):
		k.failf(path+".primary", "%s: vlan: primary %d is a secondary, too: take another", who, v.Primary)
	}
}

func (r *ACLRule) check(k *checker, path, who string) {
	if !slices.Contains([]string{ACLAllow, ACLDeny, ACLMeter}, r.Action) {
		k.failf(path+".action", "%s: action %q is not one of: allow, deny, meter", who, r.Action)
	}
	if !slices.Contains([]string{"", ACLIn, ACLOut, ACLBoth}, r.Direction) {
		k.failf(path+".direction", "%s: direction %q is not one of: in, out, both", who, r.Direction)
	}
	_, isMAC := r.RemoteMAC()
	prefix, isIP := r.RemotePrefix()
	if r.Remote != "" && !isMAC && !isIP {
		k.failf(path+".remote", "%s: remote %q is no MAC address, IP address or prefix: write it like 10.0.0.0/8", who, r.Remote)
	}
	n, err := strconv.Atoi(r.Protocol)
	if r.Protocol != "" && !slices.Contains(aclProtocols, r.Protocol) && (err != nil || n < 0 || n > 255) {
		k.failf(path+".protocol", "%s: protocol %q is not one of: %s, or a number to 255", who, r.Protocol, strings.Join(aclProtocols, ", "))
	}
	if isIP && (r.Protocol == "arp" || prefix.Addr().Is4() && (r.Protocol == "ipv6" || r.Protocol == "icmpv6") || prefix.Addr().Is6() && (r.Protocol == "ip" || r.Protocol == "icmp")) {
		k.failf(path+".protocol", "%s: no frame of %s has an address in %s", who, r.Protocol, r.Remote)
	}
	if (r.LocalPort != nil || r.RemotePort != nil) && r.Protocol != "tcp" && r.Protocol != "udp" {
		k.failf(path, "%s: local_port and remote_port need protocol tcp or udp", who)
	}
}
