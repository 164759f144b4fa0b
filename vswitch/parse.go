package vswitch

import (
	"encoding/binary"
	"net/netip"
)

// packet is what guards and rules want to know of a frame. Unlike
// parseHeaders, which looks for what can be offloaded and gives up on anything
// else, parsing gets as far as it can, and says how far.
type packet struct {
	depth     depth
	etherType uint16 // behind tags and LLC/SNAP; 0 is other LLC

	source, destination netip.Addr // invalid if it is not IP

	protocol      uint8 // of what an IP packet carries, behind the extension headers
	laterFragment bool  // not the first one: there is no header of the protocol

	hasPorts                    bool
	sourcePort, destinationPort uint16
	icmpType                    uint8
}

// depth is how much is known of a packet; each value includes those before it.
// Of what is not IP all is known.
type depth uint8

const (
	knowsEtherType depth = 1 + iota
	knowsAddresses
	knowsProtocol
	knowsPorts // or the ICMP type, or that there is neither
)

// Protocols that only this file looks at.
const (
	protoICMP     = 1
	protoDCCP     = 33
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoSCTP     = 132
	protoMobility = 135
	protoUDPLite  = 136
	protoHIP      = 139
	protoShim6    = 140
)

// typeOldQinQ is an EtherType for service tags from before IEEE 802.1ad, which
// some equipment still takes for one.
const typeOldQinQ = 0x9100

// maxTags is how many tags and LLC/SNAP headers are looked through.
const maxTags = 8

// isTag reports whether an EtherType introduces a VLAN tag.
func isTag(t uint16) bool { return t == typeVLAN || t == typeQinQ || t == typeOldQinQ }

// parse finds out about a frame from the first HeadLen bytes of its Head, all
// that senders are sure to provide.
//
// Stations look for IP behind stacked tags, also those of priority only, and
// behind LLC/SNAP with whatever length, in any order; where a guard does not,
// there is a way round it (CERT/CC VU#855201).
func (p *packet) parse(head []byte) {
	*p = packet{}
	head = head[:min(len(head), HeadLen)]
	at := HeaderLen - 2
	for range maxTags + 1 {
		if len(head) < at+2 {
			return
		}
		t := binary.BigEndian.Uint16(head[at:])
		at += 2
		switch {
		case isTag(t):
			at += 2
			continue
		case t < 0x600: // a length: IEEE 802.3-2018, 3.2.6
			if len(head) < at+2 {
				return
			}
			if head[at] != 0xaa || head[at+1] != 0xaa {
				p.depth = knowsPorts
				return
			}
			// Control and organisation code: RFC 1042. The code may be any, as
			// long as nobody knows who looks at it.
			at += 6
			continue
		}
		p.etherType = t
		p.depth = knowsEtherType
		switch t {
		case typeIPv4:
			p.parseIPv4(head[at:])
		case typeIPv6:
			p.parseIPv6(head[at:])
		default:
			p.depth = knowsPorts
		}
		return
	}
}

// parseIPv4 continues at an IPv4 header (RFC 791, 3.1).
func (p *packet) parseIPv4(b []byte) {
	if len(b) < ipv4HeaderLen || b[0]>>4 != 4 {
		return
	}
	p.depth = knowsProtocol
	p.source = netip.AddrFrom4([4]byte(b[12:]))
	p.destination = netip.AddrFrom4([4]byte(b[16:]))
	p.protocol = b[9]
	if offset := binary.BigEndian.Uint16(b[6:]) & 0x1fff; offset != 0 {
		p.laterFragment = true
		if offset > 1 || p.protocol != protoTCP {
			p.depth = knowsPorts
		} // otherwise it may rewrite the first one's TCP header (RFC 1858, 4)
		return
	}
	n := int(b[0]&0xf) * 4
	end := min(int(binary.BigEndian.Uint16(b[2:])), len(b))
	if n < ipv4HeaderLen || n > end {
		return
	}
	p.parseL4(b[n:end])
}

// parseIPv6 continues at an IPv6 header (RFC 8200, 3 and 4). It goes through
// the extension headers that RFC 7045, 4 lists, but for ESP, behind which
// nothing can be seen.
func (p *packet) parseIPv6(b []byte) {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 {
		return
	}
	p.depth = knowsAddresses
	p.source = netip.AddrFrom16([16]byte(b[8:]))
	p.destination = netip.AddrFrom16([16]byte(b[24:]))
	next := b[6]
	if n := int(binary.BigEndian.Uint16(b[4:])); n != 0 { // zero is a jumbogram: RFC 2675
		b = b[:min(len(b), ipv6HeaderLen+n)]
	}
	b = b[ipv6HeaderLen:]
	for {
		n := 0
		switch next {
		default:
			p.depth = knowsProtocol
			p.protocol = next
			p.parseL4(b)
			return
		case protoHopByHop, protoRouting, protoDestination, protoMobility, protoHIP, protoShim6, 253, 254:
			if len(b) < 2 {
				return
			}
			n = 8 + 8*int(b[1])
		case protoAH:
			if len(b) < 2 {
				return
			}
			n = 8 + 4*int(b[1]) // RFC 4302, 2.2
		case protoFragment:
			if len(b) < 8 {
				return
			}
			if binary.BigEndian.Uint16(b[2:])>>3 != 0 {
				p.protocol = b[0]
				p.laterFragment = true
				p.depth = knowsPorts
				return
			}
			n = 8
		}
		if n > len(b) {
			return
		}
		next, b = b[0], b[n:]
	}
}

// parseL4 continues behind the IP headers.
func (p *packet) parseL4(b []byte) {
	switch p.protocol {
	case protoTCP, protoUDP, protoUDPLite, protoDCCP, protoSCTP:
		if len(b) < 4 {
			return
		}
		p.hasPorts = true
		p.sourcePort = binary.BigEndian.Uint16(b)
		p.destinationPort = binary.BigEndian.Uint16(b[2:])
	case protoICMP, protoICMPv6:
		if len(b) < 1 {
			return
		}
		p.icmpType = b[0]
	}
	p.depth = knowsPorts
}
