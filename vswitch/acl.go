package vswitch

import (
	"slices"
	"sync/atomic"
)

// rule is a Rule and what it has counted.
type rule struct {
	Rule
	needs         depth // how much of a packet must be known to tell whether it matches
	frames, bytes atomic.Uint64
}

// compileRules returns rules for list, with those of old that it still has.
func compileRules(list []Rule, old []*rule) []*rule {
	old = slices.Clone(old)
	rules := make([]*rule, len(list))
	for i, r := range list {
		if j := slices.IndexFunc(old, func(o *rule) bool { return o != nil && o.Rule == r }); j >= 0 {
			rules[i], old[j] = old[j], nil
			continue
		}
		rules[i] = &rule{Rule: r, needs: r.needs()}
	}
	return rules
}

// needs returns how much of a packet must be known to tell whether r matches.
func (r *Rule) needs() depth {
	switch {
	case r.SourcePorts != PortRange{} || r.DestinationPorts != PortRange{}:
		return knowsPorts
	case r.Protocol != 0:
		return knowsProtocol
	case r.Source.IsValid() || r.Destination.IsValid():
		return knowsAddresses
	case r.EtherType != 0:
		return knowsEtherType
	}
	return 0
}

// admit reports whether rules let f pass, which is the frame of p.
func admit(rules []*rule, f *Frame, p *packet) bool {
	for _, r := range rules {
		if !r.match(f, p) {
			continue
		}
		r.frames.Add(1)
		r.bytes.Add(uint64(f.Len))
		switch r.Action {
		case Allow:
			return true
		case Deny:
			return false
		}
	}
	return true
}

// match reports whether f matches every field of r. What is not known of p
// does not speak against a match, but in the end only Deny takes it for one.
func (r *rule) match(f *Frame, p *packet) bool {
	if r.SourceMAC != (MAC{}) && r.SourceMAC != MAC(f.Head[6:12]) ||
		r.DestinationMAC != (MAC{}) && r.DestinationMAC != MAC(f.Head[:6]) {
		return false
	}
	if r.EtherType != 0 && p.depth >= knowsEtherType && r.EtherType != p.etherType {
		return false
	}
	if p.depth >= knowsAddresses &&
		(r.Source.IsValid() && !r.Source.Contains(p.source) ||
			r.Destination.IsValid() && !r.Destination.Contains(p.destination)) {
		return false
	}
	if r.Protocol != 0 && p.depth >= knowsProtocol && r.Protocol != p.protocol {
		return false
	}
	if r.needs == knowsPorts && p.depth >= knowsPorts &&
		!(p.hasPorts && r.SourcePorts.has(p.sourcePort) && r.DestinationPorts.has(p.destinationPort)) {
		return false
	}
	return p.depth >= r.needs || r.Action == Deny
}

// has reports whether port is in the range.
func (r PortRange) has(port uint16) bool {
	return r == PortRange{} || port >= r.First && port <= max(r.First, r.Last)
}
