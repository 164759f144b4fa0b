package vswitch

// slot numbers a member for the forwarding database, which has 16 bits for it.
// Zero is nobody.
type slot uint16

const maxSlot = 1<<16 - 1

// table is who is on the switch. It is never changed once published: Join and
// Leave publish a new one, and a sender works a whole batch with the one it
// loaded.
type table struct {
	bySlot  []*Member // index slot; nil where the slot is free, as at 0
	members []*Member // all of them, in the order they joined
	police  *police   // nil if every port is an ordinary one and nobody watches
}

// member returns who holds slot n, or nil. The forwarding database may be
// newer than the table, so n may be a slot the table has never heard of.
func (t *table) member(n slot) *Member {
	if int(n) < len(t.bySlot) {
		return t.bySlot[n]
	}
	return nil
}

// freeSlot returns the lowest slot that nobody holds, or 0 if all are taken.
func (t *table) freeSlot() slot {
	for n := 1; n < len(t.bySlot); n++ {
		if t.bySlot[n] == nil {
			return slot(n)
		}
	}
	if n := max(len(t.bySlot), 1); n <= maxSlot {
		return slot(n)
	}
	return 0
}

// with returns t and m, which is at a free slot.
func (t *table) with(m *Member) *table {
	u := &table{
		bySlot:  make([]*Member, max(len(t.bySlot), int(m.slot)+1)),
		members: make([]*Member, 0, len(t.members)+1),
	}
	copy(u.bySlot, t.bySlot)
	u.bySlot[m.slot] = m
	u.members = append(append(u.members, t.members...), m)
	return u
}

// without returns t less m.
func (t *table) without(m *Member) *table {
	u := &table{
		bySlot:  make([]*Member, len(t.bySlot)),
		members: make([]*Member, 0, len(t.members)),
	}
	copy(u.bySlot, t.bySlot)
	u.bySlot[m.slot] = nil
	for _, other := range t.members {
		if other != m {
			u.members = append(u.members, other)
		}
	}
	return u
}

// only reports whether m is the only member, or there is none.
func (t *table) only(m *Member) bool {
	return len(t.members) == 0 || len(t.members) == 1 && t.members[0] == m
}
