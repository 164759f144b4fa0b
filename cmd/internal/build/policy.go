package build

import (
	"strconv"

	"polder/cmd/internal/config"
	"polder/vswitch"
)

// portOptions returns what the switch is told of an adapter's port.
func portOptions(p *config.Policy, mac vswitch.MAC) vswitch.PortOptions {
	o := vswitch.PortOptions{
		LinkDown:    p.Link == config.LinkDown,
		DHCPGuard:   value(p.DHCPGuard),
		RouterGuard: value(p.RouterGuard),
		StormLimit:  uint32(value(p.StormLimit)),
		Bandwidth:   uint64(value(p.Bandwidth)),
	}
	if p.MACSpoofing != nil && !*p.MACSpoofing {
		o.MACs = []vswitch.MAC{mac}
	}
	if p.VLAN != nil {
		o.VLAN = vlan(p.VLAN)
	}
	switch p.BPDU {
	case config.BPDUAllow:
		o.BPDU = vswitch.BPDUAllow
	case config.BPDUShutdown:
		o.BPDU = vswitch.BPDUShutdown
	case config.BPDUDrop:
		o.BPDU = vswitch.BPDUDrop
	}
	switch p.Mirror {
	case config.MirrorSource:
		o.Mirror = vswitch.MirrorSource
	case config.MirrorDestination:
		o.Mirror = vswitch.MirrorDestination
	}
	for i := range p.ACL {
		o.ACL = append(o.ACL, rules(&p.ACL[i])...)
	}
	return o
}

// value returns what p points to, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func vlan(v *config.VLAN) vswitch.VLAN {
	switch {
	case v.Trunk != nil:
		return vswitch.VLAN{Mode: vswitch.VLANTrunk, Native: uint16(v.Native), Allowed: vswitch.VLANSet(*v.Trunk)}
	case v.Isolated != 0:
		return vswitch.VLAN{Mode: vswitch.VLANIsolated, ID: uint16(v.Primary), Secondary: uint16(v.Isolated)}
	case v.Community != 0:
		return vswitch.VLAN{Mode: vswitch.VLANCommunity, ID: uint16(v.Primary), Secondary: uint16(v.Community)}
	case v.Promiscuous != nil:
		return vswitch.VLAN{Mode: vswitch.VLANPromiscuous, ID: uint16(v.Primary), Allowed: vswitch.VLANSet(*v.Promiscuous)}
	}
	return vswitch.VLAN{Mode: vswitch.VLANAccess, ID: uint16(v.Access)}
}

// protocols are those that an ACL names: the EtherType, and the number in the IP header or 0.
var protocols = map[string]struct {
	etherType uint16
	number    uint8
}{
	"ip": {0x0800, 0}, "ipv6": {0x86dd, 0}, "arp": {0x0806, 0},
	"tcp": {0, 6}, "udp": {0, 17}, "icmp": {0x0800, 1}, "icmpv6": {0x86dd, 58},
}

// rulesOf is how many of the switch's rules one of the operator's is.
func rulesOf(r *config.ACLRule) int {
	if r.Direction == config.ACLIn || r.Direction == config.ACLOut {
		return 1
	}
	return 2
}

// rules turns the operator's rule, which knows a guest and a remote end, into the switch's, which
// know a source and a destination.
func rules(r *config.ACLRule) (list []vswitch.Rule) {
	base := vswitch.Rule{}
	switch r.Action {
	case config.ACLDeny:
		base.Action = vswitch.Deny
	case config.ACLMeter:
		base.Action = vswitch.Meter
	}
	if p, ok := protocols[r.Protocol]; ok {
		base.EtherType, base.Protocol = p.etherType, p.number
	} else if n, err := strconv.ParseUint(r.Protocol, 10, 8); err == nil {
		base.Protocol = uint8(n)
	}
	mac, _ := r.RemoteMAC()
	prefix, _ := r.RemotePrefix()
	local, remote := vswitch.PortRange(value(r.LocalPort)), vswitch.PortRange(value(r.RemotePort))
	if r.Direction != config.ACLOut { // from the switch to the guest
		in := base
		in.Direction = vswitch.Out
		in.SourceMAC, in.Source, in.SourcePorts, in.DestinationPorts = mac, prefix, remote, local
		list = append(list, in)
	}
	if r.Direction != config.ACLIn {
		out := base
		out.Direction = vswitch.In
		out.DestinationMAC, out.Destination, out.DestinationPorts, out.SourcePorts = mac, prefix, remote, local
		list = append(list, out)
	}
	return list
}
