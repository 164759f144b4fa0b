package vswitch

import (
	"errors"
	"testing"
)

// TestSlots has members take and free slots of a table.
func TestSlots(t *testing.T) {
	empty := &table{}
	if n := empty.freeSlot(); n != 1 {
		t.Errorf("the first slot is %d, want 1: 0 is nobody", n)
	}
	m1, m2, m3 := &Member{slot: 1}, &Member{slot: 2}, &Member{slot: 3}
	three := empty.with(m1).with(m2).with(m3)
	two := three.without(m2)
	if n := three.freeSlot(); n != 4 {
		t.Errorf("the slot after 3 is %d", n)
	}
	if n := two.freeSlot(); n != 2 {
		t.Errorf("slot 2 is free, but the next to be taken is %d", n)
	}
	for _, test := range []struct {
		name  string
		table *table
		n     slot
		want  *Member
	}{
		{"a member", two, 3, m3},
		{"nobody", two, 0, nil},
		{"a slot that was left", two, 2, nil},
		{"a slot younger than the table", two, 4, nil},
		{"a slot of an empty table", empty, 1, nil},
		{"an older table", three, 2, m2},
	} {
		if got := test.table.member(test.n); got != test.want {
			t.Errorf("%s: slot %d is held by %p, want %p", test.name, test.n, got, test.want)
		}
	}
	if !empty.only(m1) || !empty.with(m1).only(m1) || empty.with(m2).only(m1) || two.only(m1) {
		t.Error("only is wrong about who is alone")
	}
}

// TestNoSlot joins a port to a switch that has all it can have.
func TestNoSlot(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	full := &table{bySlot: make([]*Member, maxSlot+1)}
	for n := 1; n <= maxSlot; n++ {
		full.bySlot[n] = &Member{slot: slot(n)}
	}
	s.table.Store(full)
	if _, err := s.Join("one too many", nil, PortOptions{}); !errors.Is(err, ErrNoSlot) {
		t.Errorf("port 65536 joins: %v, want ErrNoSlot", err)
	}
	s.table.Store(full.without(full.bySlot[40000]))
	if m, err := s.Join("the last", nil, PortOptions{}); err != nil || m.slot != 40000 {
		t.Errorf("port 65535 does not join at the slot that is free: %v", err)
	}
}
