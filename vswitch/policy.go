package vswitch

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// police is what the data path needs where frames are not simply switched: the
// options of the ports, compiled. Like the table it is part of, it is never
// changed once published, and what it points to is changed by atomics only.
type police struct {
	ports   []*policy // index slot
	domains []*domain // index VLAN; nil where no port is in it
	mirrors []*policy // those that get copies
	fdbs    []*fdb    // all but that of VLAN 0
}

// policy is the options of one port.
type policy struct {
	m       *Member
	down    bool
	mode    VLANMode
	vlan    uint16  // of untagged frames from the port
	carries VLANSet // of frames that go to the port
	tags    VLANSet // of tagged frames from the port
	closed  bool    // sends from configured addresses only
	uplink  bool
	bpdu    BPDUPolicy
	dhcp    bool // guarded
	router  bool // guarded
	in, out []*rule
	storm   rate
	width   rate
	mirror  Mirror
	mtu     int // 0: no limit

	headersDo bool // no test of frames that come or go looks further than the Ethernet header

	statics int // configured addresses behind the port, in all VLANs
}

// domain is a set of VLANs that share a forwarding database: one VLAN, or a
// private VLAN's primary and secondary VLANs.
type domain struct {
	vlan    uint16 // the primary, if it is private
	private bool
	fdb     *fdb
	static  staticTable
	flood   []*policy // who may get frames of one of the VLANs, in the order they joined
}

// portState is what policing remembers of a port. It outlives a change of
// options.
type portState struct {
	shut   atomic.Bool // by BPDUShutdown
	storm  meter
	width  meter
	events lastEvents
	egress [len(egressReasons)]atomic.Uint64 // drops counted by other ports' senders
}

// egressReasons are why a frame that others sent to a port is dropped, but for
// DropReceiverFull.
var egressReasons = [...]DropReason{DropACLOut, DropMTU, DropLinkDown}

// setOptions takes over checked options. s.mu is held.
func (m *Member) setOptions(o PortOptions) {
	m.opts = o.clone()
	m.rules = compileRules(o.ACL, m.rules)
}

// SetOptions changes the options of the port, all at once, while frames pass: a
// batch that is on its way still goes by the old. Counters stay, those of rules
// in both lists too. Addresses learned behind the port are forgotten if its
// VLAN changed, it was closed or its link went down.
//
// It fails, and changes nothing, if the options do not make sense, by
// themselves or together with those of other ports: see ErrOptions, ErrMACTaken
// and ErrVLANRole. What is not an option here, the port's name, is for life.
func (m *Member) SetOptions(o PortOptions) error {
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	return m.change(o)
}

// change is SetOptions with sw.mu held.
func (m *Member) change(o PortOptions) error {
	s := m.sw
	fail := func(err error) error {
		return fmt.Errorf("vswitch: options of port %q of switch %q: %w", m.name, s.name, err)
	}
	if s.closed || m.left {
		return fail(ErrClosed)
	}
	if err := o.check(); err != nil {
		return fail(err)
	}
	opts, rules := m.opts, m.rules
	m.setOptions(o)
	if err := s.publish(s.table.Load().same()); err != nil {
		m.opts, m.rules = opts, rules
		return fail(err)
	}
	if opts.LinkDown && !o.LinkDown {
		m.state.shut.Store(false)
	}
	s.setMaxMACs(m, s.limit(o.MaxMACs))
	if opts.VLAN != o.VLAN || o.closed() || o.LinkDown {
		s.flush(m, s.fdbs())
	}
	s.claim(m)
	return nil
}

// Options returns the options of the port as last set.
func (m *Member) Options() PortOptions {
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	return m.opts.clone()
}

// SetLink takes the port's link down or up by changing the LinkDown option. A
// link that BPDUShutdown has taken down comes up too.
func (m *Member) SetLink(up bool) error {
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	if up {
		m.state.shut.Store(false)
	}
	o := m.opts
	o.LinkDown = !up
	return m.change(o)
}

// Link reports whether the port's link is up.
func (m *Member) Link() bool {
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	return !m.opts.LinkDown && !m.state.shut.Load()
}

// RuleCounts returns what each rule of the ACL option has matched.
func (m *Member) RuleCounts() []RuleCount {
	m.sw.mu.Lock()
	defer m.sw.mu.Unlock()
	counts := make([]RuleCount, len(m.rules))
	for i, r := range m.rules {
		counts[i] = RuleCount{Frames: r.frames.Load(), Bytes: r.bytes.Load()}
	}
	return counts
}

// closed reports whether the port may send from its MACs only.
func (o *PortOptions) closed() bool { return len(o.MACs) > 0 && !o.Spoofing }

// ordinary reports whether nothing about the port needs policing.
func (o *PortOptions) ordinary() bool {
	return !o.LinkDown && o.VLAN == VLAN{} && len(o.MACs) == 0 && !o.Uplink && o.BPDU == BPDUDefault &&
		!o.DHCPGuard && !o.RouterGuard && len(o.ACL) == 0 && o.StormLimit == 0 && o.Bandwidth == 0 &&
		o.Mirror == MirrorNone && o.MTU == 0
}

// same returns t, to be published with other policies.
func (t *table) same() *table { return &table{bySlot: t.bySlot, members: t.members} }

// publish makes t the table that senders use from now on, with the policies of
// its members, or fails and changes nothing. s.mu is held.
func (s *Switch) publish(t *table) error {
	if s.maxMoves > 0 || len(s.observers) > 0 || len(s.statics) > 0 ||
		slices.ContainsFunc(t.members, func(m *Member) bool { return !m.opts.ordinary() }) {
		p, err := compile(t, s.statics)
		if err != nil {
			return err
		}
		t.police = p
	}
	s.provide(t)
	s.table.Store(t)
	return nil
}

// compile makes a police of the options of the members of t, without the
// forwarding databases.
func compile(t *table, statics []static) (*police, error) {
	p := &police{ports: make([]*policy, len(t.bySlot))}
	roles := vlanRoles{}
	for _, m := range t.members {
		if err := roles.add(m); err != nil {
			return nil, err
		}
	}
	p.domain(roles, 0)
	for _, m := range t.members {
		q := m.compile()
		p.ports[m.slot] = q
		if q.mirror == MirrorDestination {
			p.mirrors = append(p.mirrors, q)
		}
		p.domain(roles, q.vlan)
		for vlan := range q.carries.All {
			d := p.domain(roles, vlan)
			if n := len(d.flood); n == 0 || d.flood[n-1] != q {
				d.flood = append(d.flood, q)
			}
		}
	}
	return p, p.configure(t, statics)
}

func (m *Member) compile() *policy {
	o := &m.opts
	q := &policy{
		m: m, down: o.LinkDown, mode: o.VLAN.Mode, closed: o.closed(), uplink: o.Uplink, bpdu: o.BPDU,
		dhcp: o.DHCPGuard, router: o.RouterGuard, mirror: o.Mirror, mtu: o.MTU,
		storm: stormRate(o.StormLimit), width: bandwidth(o.Bandwidth),
	}
	for _, r := range m.rules {
		if r.Direction == In {
			q.in = append(q.in, r)
		} else {
			q.out = append(q.out, r)
		}
	}
	q.headersDo = !q.dhcp && !q.router && len(m.rules) == 0 && !q.width.limited() && q.mtu == 0 && q.mirror != MirrorSource
	v := &o.VLAN
	switch v.Mode {
	case VLANAccess, VLANPromiscuous:
		q.vlan = v.ID
		q.carries = v.Allowed
	case VLANTrunk:
		q.vlan = v.Native
		q.carries = v.Allowed
		q.tags = v.Allowed
	case VLANIsolated:
		q.vlan = v.Secondary
		q.carries.Add(v.ID, v.ID)
		return q
	case VLANCommunity:
		q.vlan = v.Secondary
		q.carries.Add(v.ID, v.ID)
	}
	q.carries.Add(q.vlan, q.vlan)
	return q
}

// domain returns the domain of a VLAN, made if need be.
func (p *police) domain(roles vlanRoles, vlan uint16) *domain {
	for int(vlan) >= len(p.domains) {
		p.domains = append(p.domains, nil)
	}
	if p.domains[vlan] == nil {
		switch r := roles[vlan]; r.kind {
		case rolePrimary:
			p.domains[vlan] = &domain{vlan: vlan, private: true}
		case roleNone, roleOrdinary:
			p.domains[vlan] = &domain{vlan: vlan}
		default:
			d := p.domain(roles, r.primary)
			p.domains[vlan] = d
		}
	}
	return p.domains[vlan]
}

// all calls yield for each domain once.
func (p *police) all(yield func(d *domain) bool) {
	for vlan, d := range p.domains {
		if d != nil && int(d.vlan) == vlan && !yield(d) {
			return
		}
	}
}

// configure enters the addresses that options and AddStatic put behind ports.
func (p *police) configure(t *table, statics []static) error {
	for d := range p.all {
		n := 0
		for _, q := range d.flood {
			n += len(q.m.opts.MACs)
		}
		for _, e := range statics {
			if p.in(e, d) {
				n++
			}
		}
		d.static = newStaticTable(n)
		enter := func(k macKey, m *Member) error {
			i := d.static.at(k)
			if owner := slot(d.static[i]); owner != 0 && owner != m.slot {
				return fmt.Errorf("%w: %v is behind %q", ErrMACTaken, k.mac(), t.member(owner).name)
			}
			if d.static[i] == 0 {
				p.ports[m.slot].statics++
			}
			d.static[i] = uint64(k)<<16 | uint64(m.slot)
			return nil
		}
		for _, q := range d.flood {
			for _, mac := range q.m.opts.MACs {
				if err := enter(mac.key(), q.m); err != nil {
					return err
				}
			}
		}
		for _, e := range statics {
			if p.in(e, d) {
				if err := enter(e.mac, e.m); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// in reports whether e is in domain d. An address in a VLAN that its port has
// left waits for the port's return.
//
// The VLAN may be any of the domain's. So when a private VLAN comes apart, as
// when the last port leaves that knows what belongs together, no address comes
// in that was not judged before.
func (p *police) in(e static, d *domain) bool {
	return int(e.vlan) < len(p.domains) && p.domains[e.vlan] == d && slices.Contains(d.flood, p.ports[e.m.slot])
}

// statics returns how many addresses are configured.
func (p *police) statics() int {
	n := 0
	if p != nil {
		for _, q := range p.ports {
			if q != nil {
				n += q.statics
			}
		}
	}
	return n
}

// provide gives each VLAN of t a forwarding database, keeping those there are,
// and admits the ports. s.mu is held.
func (s *Switch) provide(t *table) {
	if t.police == nil {
		clear(s.vlans)
		return
	}
	inUse := map[uint16]bool{0: true}
	for d := range t.police.all {
		inUse[d.vlan] = true
		if d.vlan == 0 {
			d.fdb = s.fdb
			continue
		}
		size := min(transitMACs, s.fdb.size())
		for _, q := range d.flood {
			if q.mode != VLANTrunk || q.vlan == d.vlan {
				size = s.fdb.size()
			}
		}
		v := s.vlans[d.vlan]
		if v == nil || v.size < size {
			v = &vlanFDB{fdb: newFDB(size), size: size, ports: map[slot]bool{}}
			s.vlans[d.vlan] = v
		}
		for _, q := range d.flood {
			if !v.ports[q.m.slot] {
				v.ports[q.m.slot] = true
				v.admit(q.m.slot, s.limit(q.m.opts.MaxMACs))
			}
		}
		d.fdb = v.fdb
		t.police.fdbs = append(t.police.fdbs, v.fdb)
	}
	for vlan := range s.vlans {
		if !inUse[vlan] {
			delete(s.vlans, vlan)
		}
	}
}

// vlanRoles is what private VLANs make of VLANs.
type vlanRoles map[uint16]vlanRole

type vlanRole struct {
	kind    roleKind
	primary uint16 // of a secondary VLAN
	port    string // the first that said so
}

type roleKind uint8

const (
	roleNone roleKind = iota
	roleOrdinary
	rolePrimary
	roleIsolated
	roleCommunity
	roleSecondary // one or the other: only promiscuous ports have mentioned it
)

var roleNames = [...]string{
	roleOrdinary:  "an ordinary VLAN",
	rolePrimary:   "a primary VLAN",
	roleIsolated:  "the secondary VLAN of isolated ports",
	roleCommunity: "the secondary VLAN of community ports",
	roleSecondary: "a secondary VLAN",
}

// add notes the roles that m's options give to VLANs. What a trunk carries has
// none by that.
func (r vlanRoles) add(m *Member) error {
	v := &m.opts.VLAN
	var err error
	set := func(vlan uint16, kind roleKind, primary uint16) {
		old, known := r[vlan]
		same := old.primary == primary
		switch {
		case err != nil:
		case !known, same && old.kind == roleSecondary && (kind == roleIsolated || kind == roleCommunity):
			r[vlan] = vlanRole{kind, primary, m.name}
		case same && kind == roleSecondary && (old.kind == roleIsolated || old.kind == roleCommunity):
		case !same && old.primary != 0 && primary != 0:
			err = fmt.Errorf("%w: VLAN %d is secondary to VLAN %d at %q", ErrVLANRole, vlan, old.primary, old.port)
		case !same || old.kind != kind:
			err = fmt.Errorf("%w: VLAN %d is %s at %q", ErrVLANRole, vlan, roleNames[old.kind], old.port)
		}
	}
	switch v.Mode {
	case VLANAccess:
		set(v.ID, roleOrdinary, 0)
	case VLANIsolated:
		set(v.ID, rolePrimary, 0)
		set(v.Secondary, roleIsolated, v.ID)
	case VLANCommunity:
		set(v.ID, rolePrimary, 0)
		set(v.Secondary, roleCommunity, v.ID)
	case VLANPromiscuous:
		set(v.ID, rolePrimary, 0)
		for vlan := range v.Allowed.All {
			set(vlan, roleSecondary, v.ID)
		}
	}
	return err
}
