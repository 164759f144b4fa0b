package vswitch

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"
)

// FDBEntry is one address the switch knows.
type FDBEntry struct {
	VLAN   uint16 // of a private VLAN, the primary
	MAC    MAC
	Port   string        // name of the member the address is behind
	Age    time.Duration // since the last frame from it, in whole seconds; zero if Static
	Static bool          // configured, by PortOptions.MACs or AddStatic
}

// FDB returns the addresses the switch knows, by VLAN and address in ascending
// order.
func (s *Switch) FDB() []FDBEntry {
	// Whoever holds mu knows that slots stay with the members of table.
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.table.Load()
	var entries []FDBEntry
	add := func(vlan uint16, f *fdb, configured staticTable) {
		configured.each(func(k macKey, n slot) {
			entries = append(entries, FDBEntry{VLAN: vlan, MAC: k.mac(), Port: t.member(n).name, Static: true})
		})
		f.each(func(k macKey, n slot, seen uint32) {
			// What is learned and then configured counts as configured.
			if m := t.member(n); m != nil && configured.lookup(k) == 0 {
				// epoch is read last, so it is no less than seen.
				age := time.Duration(s.epoch.Load()-seen) * tick
				entries = append(entries, FDBEntry{VLAN: vlan, MAC: k.mac(), Port: m.name, Age: age})
			}
		})
	}
	if t.police == nil {
		add(0, s.fdb, nil)
	} else {
		for d := range t.police.all {
			add(d.vlan, d.fdb, d.static)
		}
	}
	slices.SortFunc(entries, func(a, b FDBEntry) int {
		return cmp.Or(cmp.Compare(a.VLAN, b.VLAN), bytes.Compare(a.MAC[:], b.MAC[:]))
	})
	return entries
}

// Flush forgets the addresses learned behind m, or, if m is nil, behind all
// ports, in all VLANs. It returns how many they were. They are learned again as
// they send.
func (s *Switch) Flush(m *Member) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush(m, s.fdbs())
}

// FlushVLAN is Flush for one VLAN, which of a private VLAN is the primary.
func (s *Switch) FlushVLAN(m *Member, vlan uint16) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fdbOf(vlan)
	if f == nil {
		return 0
	}
	return s.flush(m, []*fdb{f})
}

func (s *Switch) flush(m *Member, fdbs []*fdb) int {
	n := slot(0)
	if m != nil {
		if m.left {
			return 0 // Leave has done it, and the slot may be another's
		}
		n = m.slot
	}
	flushed := 0
	for _, f := range fdbs {
		flushed += f.flush(n)
	}
	return flushed
}

// AddStatic says that mac, in vlan, is behind m, until m leaves or Delete takes
// it back: like one of the port's MACs, the address does not age, and a frame
// from it at another port is dropped. It does not close the port.
func (s *Switch) AddStatic(m *Member, vlan uint16, mac MAC) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(err error) error {
		return fmt.Errorf("vswitch: address %v cannot be put behind port %q of switch %q: %w", mac, m.name, s.name, err)
	}
	switch {
	case s.closed || m.left:
		return fail(ErrClosed)
	case mac == MAC{} || mac.IsMulticast():
		return fail(fmt.Errorf("%w: it is not the address of a station", ErrOptions))
	}
	t := s.table.Load()
	before, e := s.statics, static{m, vlan, mac.key()}
	if slices.Contains(before, e) {
		return nil
	}
	s.statics = append(slices.Clone(before), e)
	if err := s.publish(t.same()); err != nil {
		s.statics = before
		return fail(err)
	}
	s.claim(m)
	return nil
}

// Delete forgets mac in vlan, learned or put there by AddStatic, and reports
// whether it was known. What PortOptions configures stays.
func (s *Switch) Delete(vlan uint16, mac MAC) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := mac.key()
	before := len(s.statics)
	s.statics = slices.DeleteFunc(s.statics, func(e static) bool { return e.vlan == vlan && e.mac == k })
	f := s.fdbOf(vlan)
	known := f != nil && f.forget(k)
	if len(s.statics) == before {
		return known
	}
	if err := s.publish(s.table.Load().same()); err != nil {
		panic(err) // with one address less there is no new conflict
	}
	return true
}

// static is an address put behind a port by AddStatic.
type static struct {
	m    *Member
	vlan uint16
	mac  macKey
}

// vlanFDB is the forwarding database of a VLAN but 0.
type vlanFDB struct {
	*fdb
	size  int
	ports map[slot]bool // who may own entries
}

// transitMACs is the room for addresses in a VLAN that trunks carry and no port
// is in: there may be thousands of such VLANs.
const transitMACs = 256

// fdbs returns the forwarding databases of all VLANs. s.mu is held.
func (s *Switch) fdbs() []*fdb {
	all := []*fdb{s.fdb}
	for _, v := range s.vlans {
		all = append(all, v.fdb)
	}
	return all
}

// fdbOf returns the forwarding database of a VLAN, or nil. s.mu is held.
func (s *Switch) fdbOf(vlan uint16) *fdb {
	if vlan == 0 {
		return s.fdb
	}
	if v := s.vlans[vlan]; v != nil {
		return v.fdb
	}
	return nil
}

// limit returns how many addresses a port may own with that MaxMACs.
func (s *Switch) limit(maxMACs int) int {
	if maxMACs <= 0 {
		return s.fdb.size() / 2
	}
	return maxMACs
}

// expel forgets what is behind a member that has left. s.mu is held.
func (s *Switch) expel(m *Member) {
	s.fdb.flush(m.slot)
	for _, v := range s.vlans {
		v.flush(m.slot)
		delete(v.ports, m.slot)
	}
}

// claim forgets what was learned of the addresses that are configured to be
// behind m. s.mu is held.
func (s *Switch) claim(m *Member) {
	p := s.table.Load().police
	if p == nil {
		return
	}
	for d := range p.all {
		d.static.each(func(k macKey, n slot) {
			if n == m.slot {
				d.fdb.forget(k)
			}
		})
	}
}

// known returns how many addresses are behind m. s.mu is held.
func (s *Switch) known(m *Member) int {
	n := s.fdb.owned(m.slot)
	for _, v := range s.vlans {
		if v.ports[m.slot] {
			n += v.owned(m.slot)
		}
	}
	if p := s.table.Load().police; p != nil {
		n += p.ports[m.slot].statics
	}
	return n
}

// setMaxMACs changes how many addresses m may own in each VLAN. s.mu is held.
func (s *Switch) setMaxMACs(m *Member, limit int) {
	s.fdb.setLimit(m.slot, limit)
	for _, v := range s.vlans {
		if v.ports[m.slot] {
			v.setLimit(m.slot, limit)
		}
	}
}

// forget removes k and reports whether it was there.
func (f *fdb) forget(k macKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, way, at := f.find(k)
	if at == 0 {
		return false
	}
	f.put(b, way, 0)
	return true
}

// setLimit changes how many entries slot n may own. What it owns beyond stays
// until it ages or gives way.
func (f *fdb) setLimit(n slot, limit int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shares[n].limit = limit
}

// staticTable holds configured addresses: a hash table with linear probing, at
// most half full, of words of address << 16 | slot. It is never changed once
// published, and nil if there are none.
type staticTable []uint64

func newStaticTable(n int) staticTable {
	if n == 0 {
		return nil
	}
	size := 4
	for size < 2*n {
		size *= 2
	}
	return make(staticTable, size)
}

// at returns the index at which k is, or would be put.
func (t staticTable) at(k macKey) int {
	const golden = 0x9e3779b97f4a7c15
	mask := len(t) - 1
	i := int(uint64(k)*golden>>32) & mask
	for t[i] != 0 && macKey(t[i]>>16) != k {
		i = (i + 1) & mask
	}
	return i
}

// lookup returns the slot that k is behind, or 0.
func (t staticTable) lookup(k macKey) slot {
	if t == nil {
		return 0
	}
	return slot(t[t.at(k)])
}

// each calls yield for every address.
func (t staticTable) each(yield func(k macKey, n slot)) {
	for _, w := range t {
		if w != 0 {
			yield(macKey(w>>16), slot(w))
		}
	}
}
