package vswitch

// guardsDHCP reports whether a port with DHCPGuard may not send p: what comes
// from the ports of a DHCP server or relay, or is for the port of a client,
// which a server need not send from its own port to reach (RFC 2131, 4.1; RFC
// 8415, 7.2; RFC 7610). Later fragments pass: without the first, which does
// not, they are nothing.
func guardsDHCP(p *packet) bool {
	if p.depth < knowsEtherType {
		return true
	}
	switch p.etherType {
	default:
		return false
	case typeIPv4, typeIPv6:
	}
	switch {
	case p.depth < knowsProtocol:
		return true
	case p.protocol != protoUDP || p.laterFragment:
		return false
	case p.depth < knowsPorts:
		return true
	case p.etherType == typeIPv4:
		return p.sourcePort == 67 || p.destinationPort == 68
	}
	return p.sourcePort == 547 || p.destinationPort == 546
}

// guardsRouter reports whether a port with RouterGuard may not send p: Router
// Advertisements and Redirects. They are dropped in a first fragment as well,
// though receivers should ignore them there (RFC 6980, 5), and so is a first
// fragment which does not tell (RFC 7113, 3).
func guardsRouter(p *packet) bool {
	if p.depth < knowsEtherType {
		return true
	}
	icmp := uint8(protoICMP)
	switch p.etherType {
	default:
		return false
	case typeIPv4:
	case typeIPv6:
		icmp = protoICMPv6
	}
	switch {
	case p.depth < knowsProtocol:
		return true
	case p.protocol != icmp || p.laterFragment:
		return false
	case p.depth < knowsPorts:
		return true
	case p.etherType == typeIPv4:
		return p.icmpType == 5 || p.icmpType == 9 // Redirect (RFC 792), Router Advertisement (RFC 1256)
	}
	return p.icmpType == 134 || p.icmpType == 137 // Router Advertisement, Redirect (RFC 4861, 4.2 and 4.5)
}
