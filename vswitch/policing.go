package vswitch

import (
	"encoding/binary"
	"time"
)

// policing is what an Ingress needs to police a batch.
type policing struct {
	now    int64  // ns since the switch was made; only if something needs it
	packet packet // of the frame at hand, if parsed
	parsed bool

	// The frame at hand as those get it who see its VLAN as a tag, and as those
	// do who do not; nil if that was not needed yet.
	tagged, untagged *Frame

	forms []*form // made in this batch are the first used
	used  int

	denied []denial // of the frame at hand

	run run // that the frame at hand may continue
}

// run is what was found out about a frame that holds for those that follow with
// the same header: they come in runs. It is kept if no test looks further than
// the header, which has no tag behind it, and the frame went to one port as it
// came.
type run struct {
	list  *ownList // of that port; nil if there is no run
	front uint64   // of the header the first 8 bytes
	back  uint64   // and the last 8
}

// continuedBy reports whether f is sound, and goes where the run goes.
func (r *run) continuedBy(f *Frame) bool {
	if r.list == nil {
		return false
	}
	if _, ok := f.check(); !ok {
		return false
	}
	return r.front == binary.BigEndian.Uint64(f.Head) && r.back == binary.BigEndian.Uint64(f.Head[HeaderLen-8:])
}

// begin begins a run with f, which went to q, unless it got there in another
// form.
func (in *Ingress) begin(q *policy, f *Frame) {
	if isTag(binary.BigEndian.Uint16(f.Head[HeaderLen-2:])) {
		return // of a port without VLAN: whether it may get to a trunk is up to the tag
	}
	if l := in.list(q.m); l.frames[len(l.frames)-1] == f {
		in.policing.run = run{l, binary.BigEndian.Uint64(f.Head), binary.BigEndian.Uint64(f.Head[HeaderLen-8:])}
	}
}

// denial is a frame that a port was not given, and is observed not to get.
type denial struct {
	q      *policy
	f      *Frame
	reason DropReason
}

// observeDenied shows denials to their ports' observers, after the frame was
// seen to come in.
func (x *policing) observeDenied() {
	now := time.Now()
	for _, d := range x.denied {
		if taps := d.q.m.taps.Load(); taps != nil {
			observe(*taps, Out, d.f, d.reason, now)
		}
	}
	clear(x.denied)
	x.denied = x.denied[:0]
}

// form is a frame with a tag put in, taken out or changed: a head of its own,
// and the rest where it was.
type form struct {
	Frame
	head  [HeadLen + tagLen]byte
	parts [][]byte
}

const tagLen = 4

// reset forgets the frames, which are only lent.
func (x *policing) reset() {
	for _, f := range x.forms[:x.used] {
		clear(f.parts)
		f.Frame, f.parts = Frame{}, f.parts[:0]
	}
	x.used = 0
	clear(x.denied) // there are some if observing panicked
	x.denied = x.denied[:0]
	x.tagged, x.untagged = nil, nil
	x.run = run{}
}

// form returns memory for one more form of a frame.
func (x *policing) form() *form {
	if x.used == len(x.forms) {
		x.forms = append(x.forms, new(form))
	}
	x.used++
	return x.forms[x.used-1]
}

// police is sort for a switch with policies.
func (in *Ingress) police(t *table, frames []Frame) {
	if in.policing == nil {
		in.policing = new(policing)
	}
	x := in.policing
	p := t.police.ports[in.from.slot]
	if p.storm.limited() || p.width.limited() {
		x.now = int64(time.Since(in.sw.start))
	}
	taps := in.from.taps.Load()
	var now time.Time
	if taps != nil {
		now = time.Now()
	}
	epoch := in.sw.epoch.Load()
	var rx tally // of what continues runs
	for i := range frames {
		f := &frames[i]
		reason, ok := DropReason(0), true
		if x.run.continuedBy(f) {
			rx.add(f)
			l := x.run.list
			l.frames = append(l.frames, f)
		} else {
			x.run.list = nil // it is not valid beyond a look at another
			if reason, ok = in.admit(t.police, p, f, epoch); !ok {
				in.drop(reason)
			}
		}
		switch {
		case taps == nil:
		case ok:
			observe(*taps, In, f, notDropped, now)
		default:
			observe(*taps, In, f, reason, now)
		}
		if len(x.denied) > 0 {
			x.observeDenied()
		}
	}
	in.rx.join(rx)
}

// admit puts a frame from p on the lists of the ports that are to get it, or
// says why nobody does.
func (in *Ingress) admit(all *police, p *policy, f *Frame, epoch uint32) (DropReason, bool) {
	if reason, ok := f.check(); !ok {
		return reason, false
	}
	in.rx.add(f)
	if p.isDown() {
		return DropLinkDown, false
	}
	v, ok := p.classify(f.Head)
	if !ok {
		return DropVLANIngress, false
	}
	d := all.domains[v.vlan]

	dst, src := addresses(f.Head)
	if src&groupBit != 0 || src == 0 {
		return DropBadSource, false
	}
	owner := d.static.lookup(src)
	if owner != p.m.slot {
		if reason, ok := in.stranger(all, p, d, src, owner, epoch); !ok {
			return reason, false
		}
	}

	bpdu := false
	if p.bpdu != BPDUDefault && isBPDU(dst) {
		if p.bpdu != BPDUAllow {
			if p.bpdu == BPDUShutdown && p.m.state.shut.CompareAndSwap(false, true) {
				in.sw.post(queued{kind: EventBPDUShutdown, port: p.m, mac: src, vlan: d.vlan})
			}
			return DropBPDU, false
		}
		bpdu = true
	} else if dst&reservedMask == reservedBase {
		return DropReserved, false
	}

	x := in.policing
	x.parsed, x.tagged, x.untagged = false, nil, nil
	if p.dhcp && guardsDHCP(x.parse(f)) {
		return DropDHCPGuard, false
	}
	if p.router && guardsRouter(x.parse(f)) {
		return DropRouterGuard, false
	}
	if len(p.in) > 0 && !admit(p.in, f, x.parse(f)) {
		return DropACL, false
	}

	// The destination is looked up before the source is learned, since the
	// storm limit wants to know. For a frame to itself that makes a difference.
	var to *policy
	if dst&groupBit == 0 {
		if to = all.lookup(d, dst, v.vlan); dst == src {
			to = p
		}
	}
	if to == nil && p.storm.limited() && !p.m.state.storm.take(&p.storm, x.now, f.pieces()) {
		in.sw.post(queued{kind: EventStorm, port: p.m, mac: src, vlan: d.vlan})
		return DropStorm, false
	}
	if p.width.limited() && !p.m.state.width.take(&p.width, x.now, f.Len) {
		return DropBandwidth, false
	}

	if owner == 0 && d.fdb.learn(src, p.m.slot, epoch) {
		in.moves++
	}

	switch v.form {
	case formTagged:
		x.tagged = f
	case formUntagged:
		x.untagged = f
	}
	mirrored := p.mirror == MirrorSource
	reason, ok := DropReason(0), true
	switch {
	case to == p:
		reason, ok = DropHairpin, false
	case to == nil:
		closed, reached := false, false
		for _, q := range d.flood {
			switch {
			case q == p || !q.carries.Has(v.vlan) || p.apart(q) || v.hops(q) || q.isDown(),
				bpdu && q.bpdu != BPDUAllow:
			case q.closed && dst&groupBit == 0:
				closed = true
			default:
				reached = true
				if in.send(q, f, v) && q.mirror == MirrorSource {
					mirrored = true
				}
			}
		}
		switch {
		case reached:
		case closed:
			reason, ok = DropUnknownUnicast, false
		default:
			reason, ok = DropNoPort, false
		}
	case !to.carries.Has(v.vlan) || p.apart(to):
		reason, ok = DropPrivateVLAN, false
	case v.hops(to):
		reason, ok = DropVLANEgress, false
	case to.isDown():
		in.dropAt(to, f, DropLinkDown)
	default:
		if in.send(to, f, v) {
			if to.mirror == MirrorSource {
				mirrored = true
			}
			if p.headersDo && to.headersDo && v.form == formUntagged {
				in.begin(to, f)
			}
		}
	}
	if mirrored {
		for _, q := range all.mirrors {
			if q != p && !q.isDown() && !in.has(q, f) {
				in.put(q, f)
			}
		}
	}
	return reason, ok
}

// stranger judges a source that is not one of p's own.
func (in *Ingress) stranger(all *police, p *policy, d *domain, src macKey, owner slot, epoch uint32) (DropReason, bool) {
	if owner != 0 {
		e := queued{kind: EventMACConflict, port: p.m, other: all.ports[owner].m, mac: src, vlan: d.vlan}
		reason := DropMACConflict
		if p.uplink {
			e.kind, reason = EventOwnMAC, DropOwnMAC
		}
		in.sw.post(e)
		return reason, false
	}
	if p.closed {
		return DropSpoofing, false
	}
	if limit := in.sw.maxMoves; limit > 0 {
		if n := d.fdb.lookup(src); n != 0 && n != p.m.slot {
			may, once := in.sw.flaps.move(src, d.vlan, epoch, limit)
			if q := all.port(n); once && q != nil {
				in.sw.post(queued{kind: EventLoop, port: p.m, other: q.m, mac: src, vlan: d.vlan})
			}
			if !may {
				return DropMACFlapping, false
			}
		}
	}
	return 0, true
}

// apart reports whether a promiscuous port p does not reach q, though q gets
// frames of the primary VLAN.
func (p *policy) apart(q *policy) bool {
	return p.mode == VLANPromiscuous && (q.mode == VLANIsolated || q.mode == VLANCommunity) && !p.carries.Has(q.vlan)
}

// isDown reports whether the port's link is down.
func (p *policy) isDown() bool { return p.down || p.m.state.shut.Load() }

// port returns the policy of slot n, or nil. The forwarding database may be
// newer than the table.
func (p *police) port(n slot) *policy {
	if int(n) < len(p.ports) {
		return p.ports[n]
	}
	return nil
}

// lookup returns who k is behind, or nil if that is not known to be anybody in
// the VLAN: a port may have left it since. A port of a private VLAN that is kept
// apart is known.
func (p *police) lookup(d *domain, k macKey, vlan uint16) *policy {
	n := d.static.lookup(k)
	if n == 0 {
		n = d.fdb.lookup(k)
	}
	q := p.port(n)
	if q == nil || q.carries.Has(vlan) || d.private && p.domains[q.vlan] == d {
		return q
	}
	return nil
}

// parse returns what there is to know of the frame at hand.
func (x *policing) parse(f *Frame) *packet {
	if !x.parsed {
		x.packet.parse(f.Head)
		x.parsed = true
	}
	return &x.packet
}

// send puts a frame on the list of one port that is in its VLAN, in the form
// the port gets it in, and reports whether it passes the port's tests.
func (in *Ingress) send(q *policy, f *Frame, v tagging) bool {
	x := in.policing
	g := f
	switch {
	case q.mode == VLANNone:
	case q.mode == VLANTrunk && v.vlan != q.vlan:
		if x.tagged == nil && !x.tag(f, v) {
			in.dropAt(q, f, DropMTU)
			return false
		}
		g = x.tagged
	default:
		if x.untagged == nil {
			x.untag(f)
		}
		g = x.untagged
	}
	if len(q.out) > 0 && !admit(q.out, g, x.parse(f)) {
		in.dropAt(q, g, DropACLOut)
		return false
	}
	if q.mtu != 0 && g.payloadLen() > q.mtu {
		in.dropAt(q, g, DropMTU)
		return false
	}
	in.put(q, g)
	return true
}

// put puts a frame on the list of a port.
func (in *Ingress) put(q *policy, f *Frame) {
	l := in.list(q.m)
	l.frames = append(l.frames, f)
}

// has reports whether the frame at hand, f, is on the list of q, in whatever
// form. If it is, it is the last.
func (in *Ingress) has(q *policy, f *Frame) bool {
	n := in.where[q.m.slot]
	if n == 0 {
		return false
	}
	l := in.own[n-1].frames
	last := l[len(l)-1]
	return last == f || last == in.policing.tagged || last == in.policing.untagged
}

// dropAt counts a drop at the port the frame was meant for.
func (in *Ingress) dropAt(q *policy, f *Frame, reason DropReason) {
	for i, r := range egressReasons {
		if r == reason {
			q.m.state.egress[i].Add(1)
		}
	}
	if q.m.taps.Load() != nil {
		in.policing.denied = append(in.policing.denied, denial{q, f, reason})
	}
}

// tagging is which VLAN a frame belongs to and how it says so.
type tagging struct {
	vlan  uint16
	form  tagForm
	inner bool // without the VLAN's tag there is another
}

// hops reports whether a frame would leave q, a trunk, without the tag of its
// VLAN but with one of its sender's making: behind the trunk it would be in that
// VLAN.
func (v tagging) hops(q *policy) bool {
	return v.inner && q.mode == VLANTrunk && q.vlan == v.vlan
}

type tagForm uint8

const (
	formUntagged tagForm = iota
	formTagged           // its first tag has the VLAN
	formPriority         // its first tag has VLAN 0: only the priority counts (IEEE 802.1Q-2018, table 9-2)
)

// classify says which VLAN a frame from the port belongs to, or false if the
// port may not send it.
func (p *policy) classify(head []byte) (tagging, bool) {
	v := tagging{vlan: p.vlan}
	outer := binary.BigEndian.Uint16(head[12:])
	if !isTag(outer) {
		return v, true
	}
	whole := outer == typeVLAN && len(head) >= HeaderLen+tagLen
	var vlan uint16
	inner := true
	if whole {
		vlan = binary.BigEndian.Uint16(head[14:]) & 0xfff
		inner = isTag(binary.BigEndian.Uint16(head[16:]))
	}
	switch {
	case p.mode == VLANNone:
		v.inner = vlan != 0 || inner
		return v, true
	case !whole:
		return v, false
	case vlan == 0:
		v.form = formPriority
		v.inner = inner
		return v, p.mode == VLANTrunk || !inner
	}
	v.vlan = vlan
	v.form = formTagged
	v.inner = inner
	return v, p.tags.Has(vlan)
}

// tag makes the form of f with a tag, unless it gets too long, or its headers do
// for an Offload.
func (x *policing) tag(f *Frame, v tagging) bool {
	if v.form == formPriority {
		g := x.form()
		n := copy(g.head[:], f.Head[:min(len(f.Head), HeadLen)])
		tci := binary.BigEndian.Uint16(g.head[14:])
		binary.BigEndian.PutUint16(g.head[14:], tci|v.vlan)
		g.take(f, n, n, 0)
		x.tagged = &g.Frame
		return true
	}
	if f.Len+tagLen > MaxFrameLen {
		return false
	}
	g := x.form()
	n := min(len(f.Head), HeadLen)
	copy(g.head[:], f.Head[:12])
	binary.BigEndian.PutUint16(g.head[12:], typeVLAN)
	binary.BigEndian.PutUint16(g.head[14:], v.vlan)
	copy(g.head[16:], f.Head[12:n])
	g.take(f, n, n+tagLen, tagLen)
	if g.Offload.NeedsChecksum {
		if _, ok := parseHeaders(g.Head, g.Len); !ok {
			return false
		}
	}
	x.tagged = &g.Frame
	return true
}

// untag makes the form of f without its first tag.
func (x *policing) untag(f *Frame) {
	g := x.form()
	n := min(len(f.Head), HeadLen)
	copy(g.head[:], f.Head[:12])
	copy(g.head[12:], f.Head[16:n])
	g.take(f, n, n-tagLen, -tagLen)
	x.untagged = &g.Frame
}

// take makes g a frame of the first n bytes of its head, and what follows the
// first used bytes of f, from which it differs in length by longer.
func (g *form) take(f *Frame, used, n, longer int) {
	g.Frame = *f
	g.Head = g.head[:n]
	g.Len += longer
	if used < len(f.Head) {
		g.parts = append(append(g.parts, f.Head[used:]), f.Body...)
		g.Body = g.parts
	}
	if g.Offload.NeedsChecksum {
		g.Offload.ChecksumStart += uint16(longer)
		if g.Offload.GSO != GSONone {
			g.Offload.HeadersLen += uint16(longer)
		}
	}
}

// pieces returns how many frames f is for a receiver that gets it cut.
func (f *Frame) pieces() int {
	o := &f.Offload
	if o.GSO == GSONone {
		return 1
	}
	size := int(o.GSOSize)
	return max(1, (f.Len-int(o.HeadersLen)+size-1)/size)
}

// payloadLen returns how many bytes are behind the Ethernet header and up to two
// VLAN tags of f, or of the longest piece that it is to be cut into.
func (f *Frame) payloadLen() int {
	n := f.Len
	if o := &f.Offload; o.GSO != GSONone {
		n = min(n, int(o.HeadersLen)+int(o.GSOSize))
	}
	at := HeaderLen
	for range 2 {
		if len(f.Head) < at+tagLen || !isTag(binary.BigEndian.Uint16(f.Head[at-2:])) {
			break
		}
		at += tagLen
	}
	return n - at
}

// isBPDU reports whether a frame to k is one of a spanning tree protocol: see
// BPDUPolicy.
func isBPDU(k macKey) bool {
	return k == 0x0180c2000000 || k == 0x0180c2000008 || k == 0x01000ccccccd
}
