package ipstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

const (
	ipv6Len     = 40
	protoICMPv6 = 58

	icmpv6RouterSolicitation  = 133
	icmpv6RouterAdvertisement = 134

	rsLen = 8  // RFC 4861, section 4.1, without options
	raLen = 16 // RFC 4861, section 4.2, without options
)

// linkLocal is the stack's link-local address by the modified EUI-64 of its MAC (RFC 4291, appendix A).
func linkLocal(m [6]byte) [16]byte {
	return [16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
}

// inputIPv6 answers a Router Solicitation with an advertisement that says: no router, no prefix, no
// DHCPv6. Boot firmware with IPv6 built in solicits before it opens its first file, and without an
// answer waits out its retries, 13 to 16 s for iPXE.
//
// The answer goes to the solicitor alone (RFC 4861, section 6.2.6, allows it), so no other guest
// hears of it.
func (s *Stack) inputIPv6(frame []byte) {
	p := frame[etherLen:]
	if len(p) < ipv6Len+rsLen || p[0]>>4 != 6 {
		return
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if length < rsLen || length > len(p)-ipv6Len {
		return
	}
	m := p[ipv6Len : ipv6Len+length]
	// RFC 4861, section 6.1.1: hop limit 255, code 0, a valid checksum.
	if p[6] != protoICMPv6 || p[7] != 255 || m[0] != icmpv6RouterSolicitation || m[1] != 0 {
		return
	}
	src, dst := [16]byte(p[8:24]), [16]byte(p[24:40])
	if src[0] == 0xff || checksum.Combine(checksum.Checksum(m, 0), pseudoHeader6(src, dst, length)) != 0xffff {
		return
	}
	if src == ([16]byte{}) {
		src = [16]byte{0: 0xff, 1: 0x02, 15: 1} // the unspecified address cannot be answered: all nodes
	}

	var out [etherLen + ipv6Len + raLen]byte
	copy(out[0:], frame[6:12])
	copy(out[6:], s.cfg.MAC[:])
	binary.BigEndian.PutUint16(out[12:], typeIPv6)
	ip := out[etherLen:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], raLen)
	ip[6], ip[7] = protoICMPv6, 255
	own := linkLocal(s.cfg.MAC)
	copy(ip[8:], own[:])
	copy(ip[24:], src[:])
	ra := ip[ipv6Len:]
	ra[0] = icmpv6RouterAdvertisement // hop limit, flags, router lifetime and timers all 0: unspecified, none
	binary.BigEndian.PutUint16(ra[2:], ^checksum.Combine(checksum.Checksum(ra, 0), pseudoHeader6(own, src, raLen)))
	s.transmit([][]byte{out[:]})
}

// pseudoHeader6 is the partial sum of RFC 8200's pseudo header (section 8.1) for ICMPv6.
func pseudoHeader6(src, dst [16]byte, length int) uint16 {
	var b [40]byte
	copy(b[0:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint32(b[32:], uint32(length))
	b[39] = protoICMPv6
	return checksum.Checksum(b[:], 0)
}
