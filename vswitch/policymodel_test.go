package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"polder/vswitch"
)

// policyModel is a switch with policies as it could be written if time did not
// matter: no table is made, every question is asked of every port.
type policyModel struct {
	ports   []*policyPort
	learned map[uint16]map[vswitch.MAC]*policyPort // by domain
}

type policyPort struct {
	*station
	o     vswitch.PortOptions
	shut  bool
	want  [][]byte
	drops vswitch.DropCounts
}

// domain returns the VLAN by whose table frames of a VLAN are switched.
func (w *policyModel) domain(vlan uint16) uint16 {
	for _, p := range w.ports {
		v := p.o.VLAN
		switch v.Mode {
		case vswitch.VLANIsolated, vswitch.VLANCommunity:
			if v.Secondary == vlan {
				return v.ID
			}
		case vswitch.VLANPromiscuous:
			if v.Allowed.Has(vlan) {
				return v.ID
			}
		}
	}
	return vlan
}

// untagged returns the VLAN of untagged frames from p.
func (p *policyPort) untagged() uint16 {
	v := p.o.VLAN
	return [...]uint16{0, v.ID, v.Native, v.Secondary, v.Secondary, v.ID}[v.Mode]
}

// gets reports whether frames of a VLAN may go to p.
func (p *policyPort) gets(vlan uint16) bool {
	v := p.o.VLAN
	switch v.Mode {
	case vswitch.VLANTrunk:
		return vlan == v.Native || v.Allowed.Has(vlan)
	case vswitch.VLANIsolated:
		return vlan == v.ID
	case vswitch.VLANCommunity:
		return vlan == v.ID || vlan == v.Secondary
	case vswitch.VLANPromiscuous:
		return vlan == v.ID || v.Allowed.Has(vlan)
	}
	return vlan == v.ID
}

func (p *policyPort) private() bool { return p.o.VLAN.Mode >= vswitch.VLANIsolated }

func (p *policyPort) down() bool { return p.o.LinkDown || p.shut }

func (p *policyPort) closed() bool { return len(p.o.MACs) > 0 && !p.o.Spoofing }

// owner returns whose configured address mac is in a domain.
func (w *policyModel) owner(domain uint16, mac vswitch.MAC) *policyPort {
	for _, p := range w.ports {
		if slices.Contains(p.o.MACs, mac) && w.in(p, domain) {
			return p
		}
	}
	return nil
}

// in reports whether p gets frames of some VLAN of a domain.
func (w *policyModel) in(p *policyPort, domain uint16) bool {
	return slices.ContainsFunc(modelVLANs, func(vlan uint16) bool { return p.gets(vlan) && w.domain(vlan) == domain })
}

// modelVLANs are those in which the ports of the test are.
var modelVLANs = []uint16{0, 10, 20, 100, 101, 102, 103}

func denies(rules []vswitch.Rule, d vswitch.Direction, f []byte) bool {
	kind := binary.BigEndian.Uint16(f[12:])
	for kind == 0x8100 || kind == 0x88a8 {
		f = slices.Concat(f[:12], f[16:])
		kind = binary.BigEndian.Uint16(f[12:])
	}
	for _, r := range rules {
		if r.Direction == d &&
			(r.SourceMAC == vswitch.MAC{} || r.SourceMAC == vswitch.MAC(f[6:12])) &&
			(r.DestinationMAC == vswitch.MAC{} || r.DestinationMAC == vswitch.MAC(f[:6])) &&
			(r.EtherType == 0 || r.EtherType == kind) {
			switch r.Action {
			case vswitch.Allow:
				return false
			case vswitch.Deny:
				return true
			}
		}
	}
	return false
}

// send is Forward of one frame.
func (w *policyModel) send(p *policyPort, f []byte) {
	drop := func(r vswitch.DropReason) { p.drops[r]++ }
	if p.down() {
		drop(vswitch.DropLinkDown)
		return
	}

	// The frame without the tag of its VLAN.
	vlan, plain, priority := p.untagged(), f, byte(0)
	isTagged := func(b []byte) bool { return b[12] == 0x81 && b[13] == 0 || b[12] == 0x88 && b[13] == 0xa8 }
	if p.o.VLAN.Mode != vswitch.VLANNone && isTagged(f) {
		id := binary.BigEndian.Uint16(f[14:]) & 0xfff
		plain, priority = slices.Concat(f[:12], f[16:]), f[14]&0xf0
		trunk := p.o.VLAN.Mode == vswitch.VLANTrunk
		switch {
		case f[12] != 0x81, id != 0 && !(trunk && p.o.VLAN.Allowed.Has(id)), id == 0 && !trunk && isTagged(plain):
			drop(vswitch.DropVLANIngress)
			return
		case id != 0:
			vlan = id
		}
	}
	inner := isTagged(plain)
	if p.o.VLAN.Mode == vswitch.VLANNone && inner {
		rest := slices.Concat(f[:12], f[16:])
		inner = f[12] != 0x81 || binary.BigEndian.Uint16(f[14:])&0xfff != 0 || isTagged(rest)
	}
	domain := w.domain(vlan)

	dst, src := vswitch.MAC(f[:6]), vswitch.MAC(f[6:12])
	owner := w.owner(domain, src)
	switch {
	case src.IsMulticast() || src == zero:
		drop(vswitch.DropBadSource)
		return
	case owner != nil && owner != p && p.o.Uplink:
		drop(vswitch.DropOwnMAC)
		return
	case owner != nil && owner != p:
		drop(vswitch.DropMACConflict)
		return
	case owner == nil && p.closed():
		drop(vswitch.DropSpoofing)
		return
	}
	bpdu := dst == vswitch.MAC{1, 0x80, 0xc2, 0, 0, 0} || dst == vswitch.MAC{1, 0x80, 0xc2, 0, 0, 8} || dst == vswitch.MAC{1, 0, 0xc, 0xcc, 0xcc, 0xcd}
	switch {
	case bpdu && p.o.BPDU == vswitch.BPDUShutdown:
		p.shut = true
		fallthrough
	case bpdu && p.o.BPDU == vswitch.BPDUDrop:
		drop(vswitch.DropBPDU)
		return
	case bpdu && p.o.BPDU == vswitch.BPDUAllow:
	case bytes.HasPrefix(dst[:], []byte{1, 0x80, 0xc2, 0, 0}) && dst[5] < 16:
		drop(vswitch.DropReserved)
		return
	}
	if denies(p.o.ACL, vswitch.In, f) {
		drop(vswitch.DropACL)
		return
	}

	if w.learned[domain] == nil {
		w.learned[domain] = map[vswitch.MAC]*policyPort{}
	}
	if owner == nil {
		w.learned[domain][src] = p
	}
	to := w.owner(domain, dst)
	if to == nil {
		to = w.learned[domain][dst]
	}
	privateDomain := slices.ContainsFunc(w.ports, func(q *policyPort) bool { return q.private() && q.o.VLAN.ID == domain })
	if to != nil && to != p && !to.gets(vlan) && !(privateDomain && w.domain(to.untagged()) == domain) {
		to = nil
	}

	// Which ports it goes to.
	apart := func(q *policyPort) bool {
		v := q.o.VLAN
		host := v.Mode == vswitch.VLANIsolated || v.Mode == vswitch.VLANCommunity
		return p.o.VLAN.Mode == vswitch.VLANPromiscuous && host && !p.o.VLAN.Allowed.Has(v.Secondary)
	}
	seesTag := func(q *policyPort) bool { return q.o.VLAN.Mode == vswitch.VLANTrunk && q.o.VLAN.Native != vlan }
	hops := func(q *policyPort) bool { return inner && q.o.VLAN.Mode == vswitch.VLANTrunk && !seesTag(q) }
	var reached []*policyPort
	got := map[*policyPort]bool{}
	mirrored := p.o.Mirror == vswitch.MirrorSource
	switch {
	case to == p:
		drop(vswitch.DropHairpin)
	case to != nil && (!to.gets(vlan) || apart(to)):
		drop(vswitch.DropPrivateVLAN)
	case to != nil && hops(to):
		drop(vswitch.DropVLANEgress)
	case to != nil && to.down():
		to.drops[vswitch.DropLinkDown]++
	case to != nil:
		reached = append(reached, to)
	default:
		closed := false
		for _, q := range w.ports {
			switch {
			case q == p || !q.gets(vlan) || apart(q) || hops(q) || q.down(), bpdu && p.o.BPDU == vswitch.BPDUAllow && q.o.BPDU != vswitch.BPDUAllow:
			case q.closed() && !dst.IsMulticast():
				closed = true
			default:
				reached = append(reached, q)
			}
		}
		if len(reached) == 0 {
			if closed {
				drop(vswitch.DropUnknownUnicast)
			} else {
				drop(vswitch.DropNoPort)
			}
		}
	}
	for _, q := range reached {
		b := plain
		switch {
		case q.o.VLAN.Mode == vswitch.VLANNone:
			b = f
		case seesTag(q):
			b = slices.Concat(f[:12], []byte{0x81, 0, priority | byte(vlan>>8), byte(vlan)}, plain[12:])
		}
		tags := 0
		for rest := b; isTagged(rest) && tags < 2; rest = slices.Concat(rest[:12], rest[16:]) {
			tags++
		}
		switch {
		case denies(q.o.ACL, vswitch.Out, b):
			q.drops[vswitch.DropACLOut]++
		case q.o.MTU != 0 && len(b)-14-4*tags > q.o.MTU:
			q.drops[vswitch.DropMTU]++
		default:
			q.want = append(q.want, b)
			got[q] = true
			mirrored = mirrored || q.o.Mirror == vswitch.MirrorSource
		}
	}
	for _, q := range w.ports {
		if mirrored && q.o.Mirror == vswitch.MirrorDestination && q != p && !q.down() && !got[q] {
			q.want = append(q.want, f)
		}
	}
}

// changed forgets what a switch forgets after p's options changed from old.
func (w *policyModel) changed(p *policyPort, old vswitch.PortOptions) {
	if old.VLAN != p.o.VLAN || p.closed() || p.o.LinkDown {
		w.forget(p)
	}
	if old.LinkDown && !p.o.LinkDown {
		p.shut = false
	}
	w.tidy()
	for domain, learned := range w.learned {
		for mac := range learned {
			if slices.Contains(p.o.MACs, mac) && w.in(p, domain) {
				delete(learned, mac)
			}
		}
	}
}

func (w *policyModel) forget(p *policyPort) {
	for _, learned := range w.learned {
		for mac, q := range learned {
			if q == p {
				delete(learned, mac)
			}
		}
	}
}

// tidy forgets the tables of VLANs that nobody is in, or that have become
// secondary.
func (w *policyModel) tidy() {
	for domain := range w.learned {
		if domain != 0 && (w.domain(domain) != domain || !slices.ContainsFunc(w.ports, func(p *policyPort) bool { return w.in(p, domain) })) {
			delete(w.learned, domain)
		}
	}
}

// TestPolicyModel sends random frames over a switch whose ports come and go and
// change their options, and compares with the model.
func TestPolicyModel(t *testing.T) {
	const frames, addrs, maxPorts = 100_000, 24, 10
	random := rand.New(rand.NewPCG(802, 1))
	s := newSwitch(t, vswitch.Config{MaxMACs: 256})
	w := &policyModel{learned: map[uint16]map[vswitch.MAC]*policyPort{}}
	one := func(n int) bool { return random.IntN(n) == 0 }
	pickMAC := func() vswitch.MAC { return mac(random.IntN(addrs)) }
	pickDst := func() vswitch.MAC {
		switch random.IntN(12) {
		case 0:
			return broadcast
		case 1:
			return [...]vswitch.MAC{{1, 0x80, 0xc2}, {1, 0x80, 0xc2, 0, 0, 8}, {1, 0, 0xc, 0xcc, 0xcc, 0xcd}, {1, 0x80, 0xc2, 0, 0, 0xe}, {0x33, 0x33, 1}, zero}[random.IntN(6)]
		}
		return pickMAC()
	}
	places := strings.Split("none;none;access 10;access 20;trunk 10,20;trunk 10,20,100-103 native 20;trunk 20,102 native 10;"+
		"isolated 100 101;community 100 102;community 100 103;promiscuous 100 101-103;promiscuous 100 102", ";")
	options := func(p int) vswitch.PortOptions {
		o := inVLAN(t, places[random.IntN(len(places))])
		if one(3) {
			o.MACs = []vswitch.MAC{mac(p), mac(p + maxPorts)}[:1+random.IntN(2)] // another port has others
		}
		o.Spoofing, o.Uplink, o.LinkDown = one(2), one(5), one(20)
		if one(5) {
			o.BPDU = vswitch.BPDUPolicy(random.IntN(4))
		}
		if one(4) {
			o.Mirror = vswitch.Mirror(random.IntN(3))
		}
		if one(4) {
			o.MTU = 68 + random.IntN(100)
		}
		for one(2) {
			r := vswitch.Rule{Action: vswitch.Action(random.IntN(3)), Direction: vswitch.Direction(random.IntN(2))}
			switch random.IntN(3) {
			case 0:
				r.SourceMAC = pickMAC()
			case 1:
				r.DestinationMAC = pickDst()
			default:
				r.EtherType, r.SourceMAC = 0x88b5+uint16(random.IntN(2)), pickMAC()
			}
			o.ACL = append(o.ACL, r)
		}
		o.DHCPGuard, o.RouterGuard = one(4), one(4) // nothing to find
		return o
	}
	tagSets := []string{"-", "-", "-", "0", "10", "20", "0xe014", "100", "101", "102", "103", "10.20", "20.10", "0.20", "s10", "4095"}

	names := map[*policyPort]int{}
	for n := 0; n < frames; {
		switch change := random.IntN(100); {
		case len(w.ports) < 2 || change == 0 && len(w.ports) < maxPorts:
			number := 0
			for slices.ContainsFunc(w.ports, func(p *policyPort) bool { return names[p] == number }) {
				number++
			}
			p := &policyPort{o: options(number)}
			names[p] = number
			p.station = join(t, s, fmt.Sprint("port", number), p.o)
			w.ports = append(w.ports, p)
			w.changed(p, vswitch.PortOptions{})
		case change == 1:
			i := random.IntN(len(w.ports))
			p := w.ports[i]
			if err := p.Leave(); err != nil {
				t.Fatal(err)
			}
			w.ports = slices.Delete(w.ports, i, i+1)
			w.forget(p)
			w.tidy()
			continue
		case change == 2:
			p := w.ports[random.IntN(len(w.ports))]
			old := p.o
			p.o = options(names[p])
			if err := p.SetOptions(p.o); err != nil {
				t.Fatal(err)
			}
			w.changed(p, old)
		case change == 3:
			p := w.ports[random.IntN(len(w.ports))]
			old := p.o
			p.o.LinkDown, p.shut = false, false
			if err := p.SetLink(true); err != nil {
				t.Fatal(err)
			}
			w.changed(p, old)
		}
		p := w.ports[random.IntN(len(w.ports))]
		var batch []vswitch.Frame
		dst, from, tags, kind := pickDst(), pickMAC(), "-", byte(0)
		for range 1 + random.IntN(20) {
			src := pickMAC()
			if one(100) {
				src = [...]vswitch.MAC{zero, broadcast}[random.IntN(2)]
			}
			if !one(3) { // frames come in runs
				dst, tags, kind = pickDst(), tagSets[random.IntN(len(tagSets))], byte(random.IntN(2))
				from = src
			}
			f := frame(dst, from, n)
			f.Head[13] += kind
			f.Head = append(f.Head, make([]byte, random.IntN(80))...)
			f.Len = len(f.Head)
			f = tagged(f, tags)
			w.send(p, f.Head)
			head := min(len(f.Head), vswitch.HeadLen)
			f.Head, f.Body = f.Head[:head:head], [][]byte{f.Head[head:]}
			batch = append(batch, f)
			n++
		}
		p.Forward(batch)
		for _, q := range w.ports {
			got := q.Take()
			if !slices.EqualFunc(got, q.want, bytes.Equal) {
				t.Fatalf("before frame %d from port %d %+v, port %d %+v got\n%x, want\n%x", n, names[p], p.o, names[q], q.o, got, q.want)
			}
			q.want = nil
			if got := q.Stats().Drops; got != q.drops {
				t.Fatalf("before frame %d from port %d, port %d dropped %v, want %v", n, names[p], names[q], got, q.drops)
			}
		}
	}

	known := map[string]int{}
	for domain, learned := range w.learned {
		for mac, p := range learned {
			known[fmt.Sprint(domain, mac, p.Member.Name())]++
		}
	}
	for _, e := range s.FDB() {
		if !e.Static {
			known[fmt.Sprint(e.VLAN, e.MAC, e.Port)]--
		}
	}
	for entry, n := range known {
		if n != 0 {
			t.Errorf("forwarding database: %s is %+d times more in the model", entry, n)
		}
	}
}
