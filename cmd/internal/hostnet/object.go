package hostnet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// An object is an address, a route, a rule or a neighbour, as the kernel tells it: header and
// attributes are kept as they came, so that what is told back is what was told, whichever
// attributes this program knows by name. Only what names a device is taken out and kept by the
// device's name; that is what a take-over changes.
type object struct {
	Kind  kind
	Head  []byte      `json:",omitempty"` // ifaddrmsg, rtmsg, fib_rule_hdr or ndmsg, without the device's index
	Dev   string      `json:",omitempty"` // the device it is on; of a rule: iif
	Out   string      `json:",omitempty"` // of a rule: oif
	Attrs []attribute `json:",omitempty"` // in the kernel's order
	Hops  []hop       `json:",omitempty"` // of a multipath route

	Valid     uint32 `json:",omitempty"` // seconds it has left when read; forever for most
	Preferred uint32 `json:",omitempty"` // of an address

	Advertised bool `json:",omitempty"` // a route that the kernel has made after a router's advertisement
}

// kind is what sort of object one is; it is what rtnetlink's messages about it are told apart by.
type kind string

const (
	address   kind = "address"
	route     kind = "route"
	rule      kind = "rule"
	neighbour kind = "neighbour"
)

// forever is a lifetime without end.
const forever = 0xffffffff

type attribute struct {
	Type uint16
	Data []byte
}

// hop is one path of a multipath route: struct rtnexthop and what follows it.
type hop struct {
	Flags, Weight uint8
	Dev           string
	Attrs         []attribute
}

// format says how a kind of object is laid out on the wire.
type format struct {
	add, del, get uint16         // message types
	head          int            // bytes of the header
	attrs         map[uint16]use // what may be among the attributes
}

// use is what becomes of an attribute.
type use uint8

const (
	kept    use = iota + 1 // told back as it came
	dropped                // what the kernel counts or derives
	device                 // names a device, or has lifetimes: read into the object's fields
)

// Attributes that x/sys/unix does not name, <linux/if_addr.h> and <linux/neighbour.h>.
const (
	ifaRtPriority = 9
	ifaProto      = 11
	ndaProtocol   = 12
	ndaFlagsExt   = 15
)

// Attributes of routes, <linux/rtnetlink.h>, of rules, <linux/fib_rules.h>, and of neighbours,
// <linux/neighbour.h>. What is not listed is not understood, and refused: a route through a
// next-hop object (RTA_NH_ID), for one, cannot be moved without its object.
var formats = map[kind]format{
	address: {unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_GETADDR, unix.SizeofIfAddrmsg, map[uint16]use{
		unix.IFA_ADDRESS: kept, unix.IFA_LOCAL: kept, unix.IFA_LABEL: kept, unix.IFA_BROADCAST: kept,
		unix.IFA_FLAGS: kept, ifaRtPriority: kept, ifaProto: kept, unix.IFA_CACHEINFO: device,
	}},
	route: {unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_GETROUTE, unix.SizeofRtMsg, map[uint16]use{
		unix.RTA_DST: kept, unix.RTA_SRC: kept, unix.RTA_GATEWAY: kept, unix.RTA_PRIORITY: kept, unix.RTA_PREFSRC: kept,
		unix.RTA_METRICS: kept, unix.RTA_FLOW: kept, unix.RTA_TABLE: kept, unix.RTA_VIA: kept, unix.RTA_PREF: kept,
		unix.RTA_OIF: device, unix.RTA_MULTIPATH: device, unix.RTA_CACHEINFO: device,
	}},
	rule: {unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_GETRULE, unix.SizeofRtMsg, map[uint16]use{
		unix.FRA_DST: kept, unix.FRA_SRC: kept, unix.FRA_GOTO: kept, unix.FRA_PRIORITY: kept, unix.FRA_FWMARK: kept,
		unix.FRA_FWMASK: kept, unix.FRA_FLOW: kept, unix.FRA_TUN_ID: kept, unix.FRA_SUPPRESS_IFGROUP: kept,
		unix.FRA_SUPPRESS_PREFIXLEN: kept, unix.FRA_TABLE: kept, unix.FRA_L3MDEV: kept, unix.FRA_UID_RANGE: kept,
		unix.FRA_PROTOCOL: kept, unix.FRA_IP_PROTO: kept, unix.FRA_SPORT_RANGE: kept, unix.FRA_DPORT_RANGE: kept,
		unix.FRA_IIFNAME: device, unix.FRA_OIFNAME: device,
	}},
	neighbour: {unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, unix.RTM_GETNEIGH, unix.SizeofNdMsg, map[uint16]use{
		unix.NDA_DST: kept, unix.NDA_LLADDR: kept, ndaProtocol: kept, ndaFlagsExt: kept,
		unix.NDA_CACHEINFO: dropped, unix.NDA_PROBES: dropped,
	}},
}

// Flags that are the kernel's to set, not part of what was configured. An address's stable-privacy
// mark says how the kernel made it, and no message can set it; the others come and go with time.
const (
	routeFlags     = unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE // those that are configuration
	addressDerived = unix.IFA_F_STABLE_PRIVACY | unix.IFA_F_TENTATIVE | unix.IFA_F_OPTIMISTIC | unix.IFA_F_DEPRECATED
	ruleDetached   = 0x08 | 0x10 // FIB_RULE_IIF_DETACHED, FIB_RULE_OIF_DETACHED
	ruleUnresolved = 0x04        // FIB_RULE_UNRESOLVED
)

// parse reads the body of one message. names gives devices' names by index. Attributes that
// are not understood are kept; unknown tells of them.
func parse(k kind, body []byte, names map[uint32]string) (object, error) {
	f := formats[k]
	if len(body) < f.head {
		return object{}, fmt.Errorf("%s: a message of %d bytes is too short", k, len(body))
	}
	o := object{Kind: k, Head: slices.Clone(body[:f.head])}
	if k == address {
		o.Valid, o.Preferred = forever, forever
	}
	if k == address || k == neighbour { // both have the index in bytes 4 to 7
		o.Dev = names[binary.NativeEndian.Uint32(o.Head[4:])]
		clear(o.Head[4:8])
	}
	switch k {
	case route:
		setU32(o.Head[8:], u32(o.Head[8:])&routeFlags)
	case rule:
		setU32(o.Head[8:], u32(o.Head[8:])&^(ruleDetached|ruleUnresolved))
	}
	attrs, err := parseAttrs(body[f.head:])
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", k, err)
	}
	for _, a := range attrs {
		switch f.attrs[a.Type] {
		case dropped:
		case device:
			if err := o.take(a, names); err != nil {
				return object{}, err
			}
		default:
			o.Attrs = append(o.Attrs, a)
		}
	}
	return o, nil
}

// take reads an attribute that names devices, or lifetimes.
func (o *object) take(a attribute, names map[uint32]string) error {
	switch {
	case o.Kind == address && len(a.Data) >= unix.SizeofIfaCacheinfo:
		o.Preferred, o.Valid = u32(a.Data), u32(a.Data[4:])
	case o.Kind == route && a.Type == unix.RTA_OIF && len(a.Data) == 4:
		o.Dev = names[u32(a.Data)]
	case o.Kind == route && a.Type == unix.RTA_CACHEINFO && len(a.Data) >= 12:
		if e := int32(u32(a.Data[8:])); e > 0 {
			o.Valid = uint32(e)/userHZ + 1
		}
	case o.Kind == route && a.Type == unix.RTA_MULTIPATH:
		return o.takeHops(a.Data, names)
	case o.Kind == rule && a.Type == unix.FRA_IIFNAME:
		o.Dev = cString(a.Data)
	case o.Kind == rule && a.Type == unix.FRA_OIFNAME:
		o.Out = cString(a.Data)
	default:
		return fmt.Errorf("%s: attribute %d of %d bytes", o.Kind, a.Type, len(a.Data))
	}
	return nil
}

// userHZ is the unit of route lifetimes in RTA_CACHEINFO: the same on every Linux that Go runs on.
const userHZ = 100

// takeHops reads the list of struct rtnexthop: u16 length, u8 flags, u8 weight, s32 index.
func (o *object) takeHops(b []byte, names map[uint32]string) error {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		attrs, err := parseAttrs(b[unix.SizeofRtNexthop:n])
		if err != nil {
			return err
		}
		o.Hops = append(o.Hops, hop{Flags: b[2] & routeFlags, Weight: b[3], Dev: names[u32(b[4:])], Attrs: attrs})
		b = b[min(align4(n), len(b)):]
	}
	if len(b) > 0 || len(o.Hops) == 0 {
		return fmt.Errorf("route: a malformed list of next hops")
	}
	return nil
}

// unknown names an attribute that is not understood, or "".
func (o *object) unknown() string {
	for _, a := range o.Attrs {
		if formats[o.Kind].attrs[a.Type] == 0 {
			return fmt.Sprintf("attribute %d (%s)", a.Type, hex.EncodeToString(a.Data))
		}
	}
	for _, h := range o.Hops {
		for _, a := range h.Attrs {
			if a.Type != unix.RTA_GATEWAY && a.Type != unix.RTA_VIA && a.Type != unix.RTA_FLOW {
				return fmt.Sprintf("attribute %d of a next hop (%s)", a.Type, hex.EncodeToString(a.Data))
			}
		}
	}
	return ""
}

// names tells whether the object names the device.
func (o *object) names(dev string) bool {
	return o.Dev == dev || o.Out == dev || slices.ContainsFunc(o.Hops, func(h hop) bool { return h.Dev == dev })
}

// moved returns the object with another device in place of one. The labels of IPv4 addresses
// begin with the device's name, and go with it.
func (o *object) moved(from, to string) object {
	m := *o
	if m.Dev == from {
		m.Dev = to
	}
	if m.Out == from {
		m.Out = to
	}
	m.Hops = slices.Clone(o.Hops)
	for i := range m.Hops {
		if m.Hops[i].Dev == from {
			m.Hops[i].Dev = to
		}
	}
	m.Attrs = slices.Clone(o.Attrs)
	for i, a := range m.Attrs {
		if o.Kind == address && a.Type == unix.IFA_LABEL {
			label := cString(a.Data)
			if rest, ok := bytes.CutPrefix([]byte(label), []byte(from)); ok && (len(rest) == 0 || rest[0] == ':') {
				m.Attrs[i].Data = append([]byte(to+string(rest)), 0)
			}
		}
	}
	return m
}

// key identifies what is configured: two objects with one key are the same, whatever their lifetimes.
func (o *object) key() string {
	var b []byte
	b = fmt.Appendf(b, "%s %s %s ", o.Kind, o.Dev, o.Out)
	head := slices.Clone(o.Head)
	if o.Kind == address {
		head[2] = 0 // the low byte of the flags, which are whole in IFA_FLAGS
	}
	b = append(b, head...)
	attrs := slices.Clone(o.Attrs)
	slices.SortStableFunc(attrs, func(x, y attribute) int { return int(x.Type) - int(y.Type) })
	for _, a := range attrs {
		data := a.Data
		if o.Kind == address && a.Type == unix.IFA_FLAGS {
			data = appendU32(nil, u32(data)&^addressDerived)
		}
		b = appendAttr(b, a.Type, data)
	}
	for _, h := range o.Hops {
		b = fmt.Appendf(b, " %s %d %d ", h.Dev, h.Flags, h.Weight)
		for _, a := range h.Attrs {
			b = appendAttr(b, a.Type, a.Data)
		}
	}
	return string(b)
}

// encode makes the message's body. index gives devices' indexes by name. What is added lives for the time it has left;
// to delete, the parts that identify it are enough.
func (o *object) encode(index func(string) (uint32, error), add bool) (_ []byte, err error) {
	var idx, out uint32
	if o.Dev != "" && o.Kind != rule {
		if idx, err = index(o.Dev); err != nil {
			return nil, err
		}
	}
	b := slices.Clone(o.Head)
	if o.Kind == address || o.Kind == neighbour {
		setU32(b[4:], idx)
	}
	for _, a := range o.Attrs {
		if o.Kind == address && a.Type == unix.IFA_FLAGS {
			a.Data = appendU32(nil, u32(a.Data)&o.settableFlags())
		}
		if o.Kind == route && !add && a.Type == unix.RTA_METRICS {
			continue
		}
		b = appendAttr(b, a.Type, a.Data)
	}
	switch {
	case o.Kind == address && add && min(o.Valid, o.Preferred) != forever:
		b = appendAttr(b, unix.IFA_CACHEINFO, append(appendU32(appendU32(nil, o.Preferred), o.Valid), make([]byte, 8)...))
	case o.Kind == route:
		if o.Dev != "" {
			b = appendAttr(b, unix.RTA_OIF, appendU32(nil, idx))
		}
		if add && o.Valid != 0 {
			b = appendAttr(b, unix.RTA_EXPIRES, appendU32(nil, o.Valid))
		}
		if len(o.Hops) > 0 {
			var list []byte
			for _, h := range o.Hops {
				if out, err = index(h.Dev); err != nil {
					return nil, err
				}
				one := appendU32([]byte{0, 0, h.Flags, h.Weight}, out)
				for _, a := range h.Attrs {
					one = appendAttr(one, a.Type, a.Data)
				}
				binary.NativeEndian.PutUint16(one, uint16(len(one)))
				list = append(list, one...)
			}
			b = appendAttr(b, unix.RTA_MULTIPATH, list)
		}
	case o.Kind == rule:
		if o.Dev != "" {
			b = appendAttr(b, unix.FRA_IIFNAME, append([]byte(o.Dev), 0))
		}
		if o.Out != "" {
			b = appendAttr(b, unix.FRA_OIFNAME, append([]byte(o.Out), 0))
		}
	}
	return b, nil
}

// settableFlags are the flags of an address that a message can set; the others the kernel derives
// from its lifetimes, its place among others and its history.
func (o *object) settableFlags() uint32 {
	const both = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN
	if o.family() == unix.AF_INET {
		return both
	}
	return both | unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR
}

func (o *object) family() uint8 { return o.Head[0] }

// flags are an address's.
func (o *object) flags() uint32 {
	if d := o.attr(unix.IFA_FLAGS); len(d) == 4 {
		return u32(d)
	}
	return uint32(o.Head[2])
}

// attr returns an attribute's value, nil if the object has none of that type.
func (o *object) attr(t uint16) []byte {
	for _, a := range o.Attrs {
		if a.Type == t {
			return a.Data
		}
	}
	return nil
}

// withAttr returns the object with an attribute set.
func (o *object) withAttr(t uint16, data []byte) object {
	m := *o
	m.Attrs = slices.DeleteFunc(slices.Clone(o.Attrs), func(a attribute) bool { return a.Type == t })
	m.Attrs = append(m.Attrs, attribute{t, data})
	return m
}

// Fields of struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
func (o *object) protocol() uint8  { return o.Head[5] }
func (o *object) scope() uint8     { return o.Head[6] } // of a route
func (o *object) routeType() uint8 { return o.Head[7] }

// table is a route's or a rule's.
func (o *object) table() uint32 {
	if d := o.attr(unix.RTA_TABLE); len(d) == 4 { // FRA_TABLE has the same number
		return u32(d)
	}
	return uint32(o.Head[4])
}

// metric is a route's, or a rule's priority.
func (o *object) metric() uint32 {
	if d := o.attr(unix.RTA_PRIORITY); len(d) == 4 { // FRA_PRIORITY has the same number
		return u32(d)
	}
	return 0
}

// derived tells whether the kernel makes the route from an address by itself: those of the table
// local, and the connected one.
func (o *object) derived() bool {
	return o.Kind == route && o.protocol() == unix.RTPROT_KERNEL && len(o.Hops) == 0 && o.attr(unix.RTA_GATEWAY) == nil
}

// own tells whether the route is one that only the kernel can make: an IPv6 address's in the table local.
func (o *object) own() bool {
	return o.derived() && o.family() == unix.AF_INET6 && o.table() == unix.RT_TABLE_LOCAL
}

// parseAttrs splits a run of attributes.
func parseAttrs(b []byte) ([]attribute, error) {
	var attrs []attribute
	for len(b) >= syscall.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < syscall.SizeofRtAttr || n > len(b) {
			return nil, fmt.Errorf("an attribute of %d bytes in %d", n, len(b))
		}
		t := binary.NativeEndian.Uint16(b[2:]) &^ unix.NLA_F_NESTED
		attrs = append(attrs, attribute{t, slices.Clone(b[syscall.SizeofRtAttr:n])})
		b = b[min(align4(n), len(b)):]
	}
	return attrs, nil
}

// appendAttr adds an attribute, and pads to four bytes.
func appendAttr(b []byte, t uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(syscall.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, t)
	b = append(b, data...)
	return append(b, make([]byte, align4(len(data))-len(data))...)
}

func align4(n int) int                    { return (n + 3) &^ 3 }
func u32(b []byte) uint32                 { return binary.NativeEndian.Uint32(b) }
func setU32(b []byte, v uint32)           { binary.NativeEndian.PutUint32(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }
func cString(b []byte) string             { s, _, _ := bytes.Cut(b, []byte{0}); return string(s) }
