package hostnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String writes the object as ip(8) takes it.
func (o *object) String() string {
	switch o.Kind {
	case address:
		return o.addressText()
	case route:
		return o.routeText()
	case rule:
		return o.ruleText()
	default:
		return o.neighbourText()
	}
}

// command is the ip(8) command that does verb to the object.
func (o *object) command(verb string) string {
	noun := map[kind]string{address: "address", route: "route", rule: "rule", neighbour: "neighbour"}[o.Kind]
	family := ""
	if o.family() == unix.AF_INET6 {
		family = "-6 "
	}
	if verb == "delete" {
		o = o.identity()
	}
	return fmt.Sprintf("ip %s%s %s %s", family, noun, verb, o)
}

// identity is the object without what a command that deletes it need not say.
func (o *object) identity() *object {
	m := *o
	m.Valid, m.Preferred = 0, 0
	if m.Kind == address {
		m.Valid, m.Preferred = forever, forever
	}
	m.Attrs = slices.DeleteFunc(slices.Clone(o.Attrs), func(a attribute) bool {
		switch o.Kind {
		case address:
			return a.Type != unix.IFA_LOCAL && a.Type != unix.IFA_ADDRESS
		case route:
			return a.Type == unix.RTA_METRICS || a.Type == unix.RTA_PREF
		}
		return false
	})
	return &m
}

// words collects the parts of a command.
type words []string

func (w *words) add(s ...string) { *w = append(*w, s...) }

func (w words) String() string { return strings.Join(w, " ") }

func (o *object) addressText() string {
	var w words
	local, peer := o.attr(unix.IFA_LOCAL), o.attr(unix.IFA_ADDRESS)
	plen := strconv.Itoa(int(o.Head[1]))
	if local != nil && peer != nil && string(local) != string(peer) {
		w.add(ipText(local), "peer", ipText(peer)+"/"+plen)
	} else if local != nil {
		w.add(ipText(local) + "/" + plen)
	} else {
		w.add(ipText(peer) + "/" + plen)
	}
	if b := o.attr(unix.IFA_BROADCAST); b != nil {
		w.add("broadcast", ipText(b))
	}
	if l := o.attr(unix.IFA_LABEL); l != nil && cString(l) != o.Dev {
		w.add("label", cString(l))
	}
	if s := o.Head[3]; s != 0 {
		w.add("scope", scopeText(s))
	}
	w.add("dev", o.Dev)
	if m := o.attr(ifaRtPriority); len(m) == 4 {
		w.add("metric", fmt.Sprint(u32(m)))
	}
	f := o.flags()
	for _, x := range []struct {
		bit  uint32
		name string
	}{{unix.IFA_F_HOMEADDRESS, "home"}, {unix.IFA_F_MANAGETEMPADDR, "mngtmpaddr"}, {unix.IFA_F_NODAD, "nodad"},
		{unix.IFA_F_NOPREFIXROUTE, "noprefixroute"}, {unix.IFA_F_MCAUTOJOIN, "autojoin"}} {
		if f&x.bit != 0 {
			w.add(x.name)
		}
	}
	if min(o.Valid, o.Preferred) != forever {
		w.add("valid_lft", lifetimeText(o.Valid), "preferred_lft", lifetimeText(o.Preferred))
	}
	return w.String()
}

func lifetimeText(s uint32) string {
	if s == forever {
		return "forever"
	}
	return fmt.Sprint(s)
}

func (o *object) routeText() string {
	var w words
	if t := o.routeType(); t != unix.RTN_UNICAST {
		w.add(typeText(t))
	}
	w.add(prefixText(o.attr(unix.RTA_DST), o.Head[1]))
	if s := o.attr(unix.RTA_SRC); s != nil {
		w.add("from", prefixText(s, o.Head[2]))
	}
	if o.Head[3] != 0 {
		w.add("tos", fmt.Sprintf("%#x", o.Head[3]))
	}
	w.add(viaText(o.Attrs)...)
	if o.Dev != "" {
		w.add("dev", o.Dev)
	}
	if t := o.table(); t != unix.RT_TABLE_MAIN {
		w.add("table", tableText(t))
	}
	if p := o.protocol(); p != unix.RTPROT_BOOT {
		w.add("proto", protocolText(p))
	}
	if s := o.scope(); s != unix.RT_SCOPE_UNIVERSE {
		w.add("scope", scopeText(s))
	}
	if s := o.attr(unix.RTA_PREFSRC); s != nil {
		w.add("src", ipText(s))
	}
	if m := o.metric(); m != 0 {
		w.add("metric", fmt.Sprint(m))
	}
	if m := o.attr(unix.RTA_METRICS); m != nil {
		w.add(metricsText(m)...)
	}
	if f := o.attr(unix.RTA_FLOW); len(f) == 4 {
		w.add("realm", fmt.Sprint(u32(f)))
	}
	if u32(o.Head[8:])&unix.RTNH_F_ONLINK != 0 {
		w.add("onlink")
	}
	if p := o.attr(unix.RTA_PREF); len(p) == 1 && p[0] != 0 {
		w.add("pref", map[byte]string{1: "high", 3: "low"}[p[0]])
	}
	if o.Valid != 0 {
		w.add("expires", fmt.Sprint(o.Valid))
	}
	for _, h := range o.Hops {
		w.add("nexthop")
		w.add(viaText(h.Attrs)...)
		w.add("dev", h.Dev, "weight", fmt.Sprint(int(h.Weight)+1))
		if h.Flags&unix.RTNH_F_ONLINK != 0 {
			w.add("onlink")
		}
	}
	return w.String()
}

// viaText writes a gateway, of the route's own family or another.
func viaText(attrs []attribute) []string {
	for _, a := range attrs {
		switch {
		case a.Type == unix.RTA_GATEWAY:
			return []string{"via", ipText(a.Data)}
		case a.Type == unix.RTA_VIA && len(a.Data) > 2:
			family := "inet"
			if binary.NativeEndian.Uint16(a.Data) == unix.AF_INET6 {
				family = "inet6"
			}
			return []string{"via", family, ipText(a.Data[2:])}
		}
	}
	return nil
}

// metricsText writes RTA_METRICS: attributes of u32, RTAX_*, of which the first is a set of locks.
func metricsText(b []byte) []string {
	names := []string{2: "mtu", 3: "window", 4: "rtt", 5: "rttvar", 6: "ssthresh", 7: "cwnd", 8: "advmss", 9: "reordering", 10: "hoplimit",
		11: "initcwnd", 12: "features", 13: "rto_min", 14: "initrwnd", 15: "quickack", 17: "fastopen_no_cookie"}
	attrs, _ := parseAttrs(b)
	var locks uint32
	var w words
	for _, a := range attrs {
		switch {
		case a.Type == unix.RTAX_LOCK && len(a.Data) == 4:
			locks = u32(a.Data)
		case a.Type == unix.RTAX_CC_ALGO:
			w.add("congctl", cString(a.Data))
		case int(a.Type) < len(names) && names[a.Type] != "" && len(a.Data) == 4:
			w.add(names[a.Type])
			if locks&(1<<a.Type) != 0 {
				w.add("lock")
			}
			w.add(fmt.Sprint(u32(a.Data)))
		}
	}
	return w
}

func (o *object) ruleText() string {
	var w words
	w.add("priority", fmt.Sprint(o.metric()))
	const invert = 0x02 // FIB_RULE_INVERT
	if u32(o.Head[8:])&invert != 0 {
		w.add("not")
	}
	w.add("from", cmp.Or(prefixTextAll(o.attr(unix.FRA_SRC), o.Head[2]), "all"))
	if d := o.attr(unix.FRA_DST); d != nil {
		w.add("to", prefixText(d, o.Head[1]))
	}
	if o.Head[3] != 0 {
		w.add("tos", fmt.Sprintf("%#x", o.Head[3]))
	}
	if m := o.attr(unix.FRA_FWMARK); len(m) == 4 {
		mark := fmt.Sprintf("%#x", u32(m))
		if k := o.attr(unix.FRA_FWMASK); len(k) == 4 && u32(k) != forever {
			mark += fmt.Sprintf("/%#x", u32(k))
		}
		w.add("fwmark", mark)
	}
	if o.Dev != "" {
		w.add("iif", o.Dev)
	}
	if o.Out != "" {
		w.add("oif", o.Out)
	}
	if u := o.attr(unix.FRA_UID_RANGE); len(u) == 8 {
		w.add("uidrange", fmt.Sprintf("%d-%d", u32(u), u32(u[4:])))
	}
	if p := o.attr(unix.FRA_IP_PROTO); len(p) == 1 {
		w.add("ipproto", fmt.Sprint(p[0]))
	}
	w.add(portsText("sport", o.attr(unix.FRA_SPORT_RANGE))...)
	w.add(portsText("dport", o.attr(unix.FRA_DPORT_RANGE))...)
	switch o.Head[7] {
	case unix.FR_ACT_TO_TBL:
		w.add("lookup", tableText(o.table()))
	case unix.FR_ACT_GOTO:
		if g := o.attr(unix.FRA_GOTO); len(g) == 4 {
			w.add("goto", fmt.Sprint(u32(g)))
		}
	default:
		w.add(map[uint8]string{unix.FR_ACT_NOP: "nop", unix.FR_ACT_BLACKHOLE: "blackhole",
			unix.FR_ACT_UNREACHABLE: "unreachable", unix.FR_ACT_PROHIBIT: "prohibit"}[o.Head[7]])
	}
	if s := o.attr(unix.FRA_SUPPRESS_PREFIXLEN); len(s) == 4 && u32(s) != forever {
		w.add("suppress_prefixlength", fmt.Sprint(u32(s)))
	}
	if p := o.attr(unix.FRA_PROTOCOL); len(p) == 1 && p[0] != unix.RTPROT_UNSPEC {
		w.add("protocol", protocolText(p[0]))
	}
	return w.String()
}

// portsText writes struct fib_rule_port_range.
func portsText(name string, b []byte) []string {
	if len(b) != 4 {
		return nil
	}
	return []string{name, fmt.Sprintf("%d-%d", binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:]))}
}

func (o *object) neighbourText() string {
	var w words
	flags := o.Head[10]
	if flags&unix.NTF_PROXY != 0 {
		w.add("proxy", ipText(o.attr(unix.NDA_DST)), "dev", o.Dev)
	} else {
		w.add(ipText(o.attr(unix.NDA_DST)))
		if a := o.attr(unix.NDA_LLADDR); a != nil {
			w.add("lladdr", net.HardwareAddr(a).String())
		}
		w.add("dev", o.Dev, "nud", "permanent")
	}
	if flags&unix.NTF_ROUTER != 0 {
		w.add("router")
	}
	return w.String()
}

func ipText(b []byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return fmt.Sprintf("%x", b)
	}
	return a.String()
}

func prefixText(b []byte, bits uint8) string { return cmp.Or(prefixTextAll(b, bits), "default") }

// prefixTextAll writes a prefix; "" for the one of all addresses.
func prefixTextAll(b []byte, bits uint8) string {
	if bits == 0 {
		return ""
	}
	a, ok := netip.AddrFromSlice(b)
	if ok && a.BitLen() == int(bits) {
		return a.String()
	}
	return ipText(b) + "/" + strconv.Itoa(int(bits))
}

func scopeText(s uint8) string {
	switch s {
	case unix.RT_SCOPE_UNIVERSE:
		return "global"
	case unix.RT_SCOPE_SITE:
		return "site"
	case unix.RT_SCOPE_LINK:
		return "link"
	case unix.RT_SCOPE_HOST:
		return "host"
	case unix.RT_SCOPE_NOWHERE:
		return "nowhere"
	}
	return strconv.Itoa(int(s))
}

func tableText(t uint32) string {
	switch t {
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return strconv.FormatUint(uint64(t), 10)
}

func protocolText(p uint8) string {
	switch p {
	case unix.RTPROT_KERNEL:
		return "kernel"
	case unix.RTPROT_BOOT:
		return "boot"
	case unix.RTPROT_STATIC:
		return "static"
	case unix.RTPROT_RA:
		return "ra"
	case unix.RTPROT_DHCP:
		return "dhcp"
	}
	return strconv.Itoa(int(p))
}

func typeText(t uint8) string {
	names := []string{"none", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat"}
	if int(t) < len(names) {
		return names[t]
	}
	return strconv.Itoa(int(t))
}
