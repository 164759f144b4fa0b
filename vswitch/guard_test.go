package vswitch_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"polder/vswitch"
)

// layer is a part of a frame that puts itself before what it carries.
type layer func(payload []byte) []byte

// wire builds a frame of layers, filled up to 60 bytes.
func wire(layers ...layer) vswitch.Frame {
	var b []byte
	for _, l := range slices.Backward(layers) {
		b = l(b)
	}
	b = append(b, make([]byte, max(0, 60-len(b)))...)
	n := min(len(b), vswitch.HeadLen)
	return vswitch.Frame{Head: b[:n:n], Body: [][]byte{b[n:]}, Len: len(b)}
}

func before(header ...byte) layer {
	return func(b []byte) []byte { return append(slices.Clip(header), b...) }
}

// ether begins a frame to everybody; the type is what the next layer begins with.
func ether(src vswitch.MAC) layer {
	return before(slices.Concat(broadcast[:], src[:])...)
}

func be(v ...uint16) (b []byte) {
	for _, v := range v {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func tag(vlan uint16) layer  { return before(be(0x8100, vlan)...) }
func stag(vlan uint16) layer { return before(be(0x88a8, vlan)...) }

// snap is a length instead of a type, and LLC/SNAP.
func snap(length uint16) layer {
	return before(append(be(length), 0xaa, 0xaa, 3, 0, 0, 0)...)
}

func ip4(proto byte, options ...byte) layer { return ip4Fragment(proto, 0, options...) }

func ip4Fragment(proto byte, offset uint16, options ...byte) layer {
	return func(b []byte) []byte {
		n := 20 + len(options)
		h := append(be(0x0800), 0x40|byte(n/4), 0)
		h = append(h, be(uint16(n+len(b)), 7, offset)...)
		h = append(h, 64, proto, 0, 0, 10, 0, 0, 1, 192, 168, 0, 2)
		return slices.Concat(h, options, b)
	}
}

var from6, to6 = netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1")

func ip6(next byte) layer {
	return func(b []byte) []byte {
		h := append(be(0x86dd, 0x6000, 0, uint16(len(b))), next, 255)
		return slices.Concat(h, from6.AsSlice(), to6.AsSlice(), b)
	}
}

// ext is an extension header of 8*(n+1) bytes.
func ext(next byte, n int) layer {
	return before(append([]byte{next, byte(n)}, make([]byte, 6+8*n)...)...)
}

func fragment(next byte, offset uint16) layer {
	return before(append([]byte{next, 0}, append(be(offset), 0, 0, 0, 9)...)...)
}

func ah(next byte) layer { return before(append([]byte{next, 4}, make([]byte, 22)...)...) }

func udp(src, dst uint16) layer {
	return func(b []byte) []byte { return append(be(src, dst, uint16(8+len(b)), 0), b...) }
}

func icmp(kind byte) layer { return before(kind, 0, 0, 0, 0, 0, 0, 0) }

func data(n int) layer { return before(make([]byte, n)...) }

const (
	more       = 0x2000 // IPv4: more fragments
	more6      = 1      // IPv6: more fragments
	nhHopByHop = 0
	nhRouting  = 43
	nhFragment = 44
	nhAuth     = 51
	nhESP      = 50
	nhOptions  = 60
	nhNone     = 59
	udpProto   = 17
	tcpProto   = 6
	icmpProto  = 1
	icmp6Proto = 58
)

// TestGuards has what rogue servers and routers send, hidden in every way, and
// what ordinary hosts send.
func TestGuards(t *testing.T) {
	e := ether(mac(1))
	many := func(n int, l layer, rest ...layer) []layer {
		return append(append([]layer{e}, slices.Repeat([]layer{l}, n)...), rest...)
	}
	for _, test := range []struct {
		name   string
		layers []layer
		drops  string // d: DHCP guard, r: router guard, dr: both, since it may be either
	}{
		{"DHCP offer", []layer{e, ip4(udpProto), udp(67, 68), data(240)}, "d"},
		{"DHCP offer from another port", []layer{e, ip4(udpProto), udp(1067, 68), data(240)}, "d"},
		{"DHCP relay", []layer{e, ip4(udpProto), udp(67, 67), data(240)}, "d"},
		{"DHCP offer behind IP options", []layer{e, ip4(udpProto, make([]byte, 40)...), udp(67, 68)}, "d"},
		{"DHCP offer in a first fragment", []layer{e, ip4Fragment(udpProto, more), udp(67, 68)}, "d"},
		{"the later fragment of it", []layer{e, ip4Fragment(udpProto, 1), udp(67, 68)}, ""},
		{"first fragment without ports", []layer{e, ip4Fragment(udpProto, more)}, "d"},
		{"DHCP offer with priority", []layer{e, tag(0), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in a VLAN", []layer{e, tag(5), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in QinQ", []layer{e, stag(5), tag(6), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer behind eight tags", many(8, tag(0), ip4(udpProto), udp(67, 68)), "d"},
		{"anything behind nine tags", many(9, tag(0), ip4(udpProto), udp(1, 2)), "dr"},
		{"DHCP offer in LLC/SNAP", []layer{e, snap(300), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in LLC/SNAP in a VLAN", []layer{e, tag(0), snap(300), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in a VLAN in LLC/SNAP", []layer{e, snap(300), tag(0), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in LLC/SNAP with length zero", []layer{e, snap(0), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCP offer in LLC/SNAP with an undefined length", []layer{e, snap(1535), ip4(udpProto), udp(67, 68)}, "d"},
		{"DHCPv6 advertise", []layer{e, ip6(udpProto), udp(547, 546), data(60)}, "d"},
		{"DHCPv6 advertise from another port", []layer{e, ip6(udpProto), udp(1547, 546)}, "d"},
		{"DHCPv6 relay", []layer{e, ip6(udpProto), udp(547, 547)}, "d"},
		{"DHCPv6 advertise behind hop-by-hop", []layer{e, ip6(nhHopByHop), ext(udpProto, 0), udp(547, 546)}, "d"},
		{"DHCPv6 advertise in a fragment", []layer{e, ip6(nhFragment), fragment(udpProto, more6), udp(547, 546)}, "d"},
		{"IPv4 of version 6", []layer{e, before(append(be(0x0800), 0x65)...), data(60)}, "dr"},
		{"IPv4 with a header of 16 bytes", []layer{e, before(append(be(0x0800), 0x44, 0, 0, 60, 0, 0, 0, 0, 64, 17)...), data(60)}, "d"},
		{"IPv4 UDP that ends before its ports", []layer{e, before(append(be(0x0800), 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17)...), data(60)}, "d"},

		{"RA", []layer{e, ip6(icmp6Proto), icmp(134), data(8)}, "r"},
		{"redirect", []layer{e, ip6(icmp6Proto), icmp(137), data(32)}, "r"},
		{"RA behind hop-by-hop", []layer{e, ip6(nhHopByHop), ext(icmp6Proto, 0), icmp(134)}, "r"},
		{"RA behind destination options", []layer{e, ip6(nhOptions), ext(icmp6Proto, 2), icmp(134)}, "r"},
		{"RA behind three extension headers", []layer{e, ip6(nhHopByHop), ext(nhOptions, 0), ext(nhRouting, 1), ext(icmp6Proto, 0), icmp(134)}, "r"},
		{"RA behind authentication", []layer{e, ip6(nhAuth), ah(icmp6Proto), icmp(134)}, "r"},
		{"RA behind an experimental header", []layer{e, ip6(253), ext(icmp6Proto, 0), icmp(134)}, "r"},
		{"RA in an atomic fragment", []layer{e, ip6(nhFragment), fragment(icmp6Proto, 0), icmp(134)}, "r"},
		{"RA in a first fragment", []layer{e, ip6(nhFragment), fragment(icmp6Proto, more6), icmp(134)}, "r"},
		{"RA behind options in a first fragment", []layer{e, ip6(nhFragment), fragment(nhOptions, more6), ext(icmp6Proto, 3), icmp(134)}, "r"},
		{"RA behind fragments of fragments", []layer{e, ip6(nhFragment), fragment(nhFragment, more6), fragment(icmp6Proto, 0), icmp(134)}, "r"},
		{"first fragment that ends in the header chain", []layer{e, ip6(nhFragment), fragment(nhOptions, more6), before(58, 5), data(6)}, "dr"},
		{"first fragment without ICMPv6", []layer{e, ip6(nhFragment), fragment(icmp6Proto, more6)}, "r"},
		{"the later fragment of it", []layer{e, ip6(nhFragment), fragment(icmp6Proto, 8), icmp(134)}, ""},
		{"header chain longer than Head", []layer{e, ip6(nhOptions), ext(icmp6Proto, 20), icmp(134)}, "dr"},
		{"RA in a VLAN", []layer{e, tag(5), ip6(icmp6Proto), icmp(134)}, "r"},
		{"RA with priority twice", []layer{e, tag(0), tag(0), ip6(icmp6Proto), icmp(134)}, "r"},
		{"RA in QinQ", []layer{e, stag(0), tag(0), ip6(icmp6Proto), icmp(134)}, "r"},
		{"RA in an old service tag", []layer{e, before(be(0x9100, 0)...), ip6(icmp6Proto), icmp(134)}, "r"},
		{"RA in LLC/SNAP", []layer{e, snap(100), ip6(icmp6Proto), icmp(134)}, "r"},
		{"RA in LLC/SNAP in a VLAN", []layer{e, tag(0), snap(100), ip6(icmp6Proto), icmp(134)}, "r"},
		{"IPv4 redirect", []layer{e, ip4(icmpProto), icmp(5), data(28)}, "r"},
		{"IPv4 router advertisement", []layer{e, ip4(icmpProto), icmp(9), data(28)}, "r"},
		{"IPv6 of version 4", []layer{e, before(append(be(0x86dd), 0x45)...), data(60)}, "dr"},
		{"IPv6 cut short", []layer{e, before(append(be(0x86dd), 0x60)...)}, "dr"},

		{"DHCP discover", []layer{e, ip4(udpProto), udp(68, 67), data(240)}, ""},
		{"DHCPv6 solicit", []layer{e, ip6(udpProto), udp(546, 547), data(60)}, ""},
		{"ARP", []layer{e, before(be(0x0806, 1, 0x0800)...), data(24)}, ""},
		{"LLC", []layer{e, before(append(be(38), 0x42, 0x42, 3)...), data(35)}, ""},
		{"LLC/SNAP of others", []layer{e, before(append(be(38), 0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0)...), data(30)}, ""},
		{"TCP from port 67", []layer{e, ip4(tcpProto), udp(67, 68)}, ""},
		{"ping", []layer{e, ip4(icmpProto), icmp(8)}, ""},
		{"RS", []layer{e, ip6(icmp6Proto), icmp(133)}, ""},
		{"NA", []layer{e, ip6(icmp6Proto), icmp(136)}, ""},
		{"MLD behind hop-by-hop", []layer{e, ip6(nhHopByHop), ext(icmp6Proto, 0), icmp(143)}, ""},
		{"ESP", []layer{e, ip6(nhESP), data(40)}, ""},
		{"no next header", []layer{e, ip6(nhNone), icmp(134)}, ""},
		{"UDP in a fragment", []layer{e, ip6(nhFragment), fragment(udpProto, more6), udp(1000, 2000), data(100)}, ""},
		{"UDP behind long options", []layer{e, ip6(nhOptions), ext(udpProto, 7), udp(1000, 2000), data(100)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := wire(test.layers...)
			for _, on := range []struct{ dhcp, router bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
				s := newSwitch(t, vswitch.Config{MaxMACs: 16})
				a := joinSmall(t, s, "a", vswitch.PortOptions{DHCPGuard: on.dhcp, RouterGuard: on.router, BPDU: vswitch.BPDUDrop})
				b := joinSmall(t, s, "b", vswitch.PortOptions{})
				a.Forward([]vswitch.Frame{f})
				var want string
				switch {
				case on.dhcp && strings.Contains(test.drops, "d"):
					want = "dhcp-guard"
				case on.router && strings.Contains(test.drops, "r"):
					want = "router-guard"
				}
				if got := droppedAs(a); got != want {
					t.Errorf("with guards %+v dropped as %q, want %q:\n%x", on, got, want, f.Head)
				}
				if n := len(b.Take()); n != 0 == (want != "") {
					t.Errorf("with guards %+v %d frames arrived", on, n)
				}
				if want != "" && len(s.FDB()) != 0 {
					t.Errorf("a dropped frame taught %v", s.FDB())
				}
			}
		})
	}
}

// droppedAs returns the reasons of drops at a port.
func droppedAs(s *station) string {
	var reasons []string
	for r, n := range s.Stats().Drops {
		for range n {
			reasons = append(reasons, vswitch.DropReason(r).String())
		}
	}
	return strings.Join(reasons, " ")
}

// TestACL sends frames through lists of rules, written one a letter.
func TestACL(t *testing.T) {
	prefix := netip.MustParsePrefix
	rules := map[byte]vswitch.Rule{
		'a': {Action: vswitch.Allow},
		'd': {Action: vswitch.Deny},
		'm': {Action: vswitch.Meter},
		's': {Action: vswitch.Deny, SourceMAC: mac(1)},
		'D': {Action: vswitch.Deny, DestinationMAC: mac(9)},
		'p': {Action: vswitch.Deny, EtherType: 0x0806},
		'4': {Action: vswitch.Deny, Source: prefix("10.0.0.0/8")},
		'5': {Action: vswitch.Deny, Destination: prefix("10.0.0.0/8")},
		'6': {Action: vswitch.Deny, Source: prefix("fe80::/10")},
		'0': {Action: vswitch.Deny, Source: prefix("0.0.0.0/0")},
		'u': {Action: vswitch.Deny, Protocol: udpProto},
		'U': {Action: vswitch.Allow, Protocol: udpProto},
		'n': {Action: vswitch.Deny, DestinationPorts: vswitch.PortRange{First: 53}},
		'N': {Action: vswitch.Allow, DestinationPorts: vswitch.PortRange{First: 53}},
		'r': {Action: vswitch.Deny, SourcePorts: vswitch.PortRange{First: 1000, Last: 1999}},
		'P': {Action: vswitch.Meter, SourcePorts: vswitch.PortRange{First: 1000, Last: 1999}},
	}
	e := ether(mac(1))
	dns := wire(e, ip4(udpProto), udp(1500, 53))
	dns6 := wire(e, ip6(udpProto), udp(1500, 53))
	arp := wire(e, before(be(0x0806)...))
	first := wire(e, ip4Fragment(udpProto, more), udp(1500, 53))
	later := wire(e, ip4Fragment(udpProto, 1), udp(1500, 53))
	overlap := wire(e, ip4Fragment(tcpProto, 1), data(20))
	hidden := wire(e, ip6(nhOptions), ext(udpProto, 20), udp(1500, 53))
	llc := wire(e, before(append(be(38), 0x42, 0x42, 3)...))
	for _, test := range []struct {
		name    string
		rules   string
		frame   vswitch.Frame
		drop    bool
		matched string // of the rules
	}{
		{"no rules", "", dns, false, ""},
		{"allow", "ad", dns, false, "a"},
		{"deny", "da", dns, true, "d"},
		{"meter goes on", "mmd", dns, true, "mmd"},
		{"meter alone", "m", dns, false, "m"},
		{"first match", "pUd", dns, false, "U"},
		{"source MAC", "s", dns, true, "s"},
		{"destination MAC", "D", dns, false, ""},
		{"EtherType", "p", arp, true, "p"},
		{"another EtherType", "p", dns, false, ""},
		{"EtherType and LLC", "p", llc, false, ""},
		{"source prefix", "4", dns, true, "4"},
		{"destination prefix", "5", dns, false, ""},
		{"IPv4 prefix and IPv6", "0", dns6, false, ""},
		{"IPv4 prefix and ARP", "0", arp, false, ""},
		{"IPv6 prefix", "6", dns6, true, "6"},
		{"IPv6 prefix and IPv4", "6", dns, false, ""},
		{"protocol", "u", dns, true, "u"},
		{"protocol of IPv6", "u", dns6, true, "u"},
		{"protocol and ARP", "u", arp, false, ""},
		{"port", "n", dns, true, "n"},
		{"port of IPv6", "n", dns6, true, "n"},
		{"port range", "r", dns, true, "r"},
		{"port and a first fragment", "n", first, true, "n"},
		{"port and a later fragment", "n", later, false, ""},
		{"protocol and a later fragment", "u", later, true, "u"},
		{"port and a fragment that overlaps TCP's header", "n", overlap, true, "n"},
		{"allow and a fragment that overlaps TCP's header", "Nd", overlap, true, "d"},
		{"a hidden protocol may be the one denied", "u", hidden, true, "u"},
		{"a hidden protocol is not the one allowed", "Ud", hidden, true, "d"},
		{"a hidden port is not the one metered", "P", hidden, false, ""},
		{"a hidden port behind an IPv4 prefix", "4n", hidden, true, "n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, direction := range []vswitch.Direction{vswitch.In, vswitch.Out} {
				s := newSwitch(t, vswitch.Config{MaxMACs: 16})
				var acl []vswitch.Rule
				for _, letter := range []byte(test.rules) {
					r := rules[letter]
					r.Direction = direction
					acl = append(acl, r)
				}
				var in, out vswitch.PortOptions
				in.Uplink = true // in case there are no rules
				reason, at := vswitch.DropACL, 0
				if direction == vswitch.In {
					in.ACL = acl
				} else {
					out.ACL = acl
					reason, at = vswitch.DropACLOut, 1
				}
				ports := []*station{joinSmall(t, s, "a", in), joinSmall(t, s, "b", out)}
				ports[0].Forward([]vswitch.Frame{test.frame})
				ports[1].Forward([]vswitch.Frame{frame(broadcast, mac(5), 1)}) // the wrong way
				want := vswitch.DropCounts{}
				if test.drop {
					want[reason] = 1
				}
				if got := ports[at].Stats().Drops; got != want {
					t.Errorf("%v: dropped %v", direction, got)
				}
				if got := len(ports[1].Take()); got != 0 == test.drop {
					t.Errorf("%v: %d frames arrived", direction, got)
				}
				var matched string
				for i, c := range ports[at].RuleCounts() {
					if c == (vswitch.RuleCount{Frames: 1, Bytes: uint64(test.frame.Len)}) {
						matched += test.rules[i : i+1]
					} else if c != (vswitch.RuleCount{}) {
						t.Errorf("%v: rule %d counts %+v", direction, i, c)
					}
				}
				if matched != test.matched {
					t.Errorf("%v: rules %q match, want %q", direction, matched, test.matched)
				}
			}
		})
	}
}

// TestRuleCounts: a rule keeps its count when the list changes around it.
func TestRuleCounts(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	meter := vswitch.Rule{Action: vswitch.Meter}
	udp := vswitch.Rule{Action: vswitch.Meter, Protocol: udpProto}
	a := join(t, s, "a", vswitch.PortOptions{ACL: []vswitch.Rule{meter, meter}})
	join(t, s, "b", vswitch.PortOptions{})
	send := func() { a.Forward([]vswitch.Frame{frame(broadcast, mac(1), 1)}) }
	send()
	for _, test := range []struct {
		acl  []vswitch.Rule
		want string
	}{
		{[]vswitch.Rule{udp, meter}, "[{0 0} {2 120}]"},
		{[]vswitch.Rule{meter, udp, meter}, "[{3 180} {0 0} {1 60}]"},
		{[]vswitch.Rule{}, "[]"},
		{[]vswitch.Rule{meter}, "[{1 60}]"},
	} {
		if err := a.SetOptions(vswitch.PortOptions{ACL: test.acl}); err != nil {
			t.Fatal(err)
		}
		send()
		if got := fmt.Sprint(a.RuleCounts()); got != test.want {
			t.Errorf("with %v the counts are %s, want %s", test.acl, got, test.want)
		}
	}
}
