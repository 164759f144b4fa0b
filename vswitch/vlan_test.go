package vswitch_test

import (
	"slices"
	"strings"
	"testing"

	"polder/vswitch"
)

func TestVLANSet(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // as printed; "!" if it is none
		len  int
	}{
		{"", "", 0},
		{"1", "1", 1},
		{"1-4094", "1-4094", 4094},
		{"1-100,200", "1-100,200", 101},
		{"200,1-100", "1-100,200", 101},
		{" 1 - 2 , 3", "1-3", 3},
		{"5,5,4-6", "4-6", 3},
		{"63,64,65,127-129", "63-65,127-129", 6},
		{"0", "!", 0},
		{"4095", "!", 0},
		{"1-4095", "!", 0},
		{"2-1", "!", 0},
		{"1,", "!", 0},
		{"-", "!", 0},
		{"1-2-3", "!", 0},
		{"x", "!", 0},
		{"65537", "!", 0},
	} {
		s, err := vswitch.ParseVLANSet(test.text)
		got := s.String()
		if err != nil {
			got = "!"
			if s != (vswitch.VLANSet{}) || !strings.Contains(err.Error(), `"`) {
				t.Errorf("%q gives %v and %v", test.text, s, err)
			}
		}
		if got != test.want || s.Len() != test.len {
			t.Errorf("%q is %q with %d VLANs, want %q with %d", test.text, got, s.Len(), test.want, test.len)
		}
		var all []uint16
		for id := range s.All {
			all = append(all, id)
		}
		var has []uint16
		for id := range uint16(4096) {
			if s.Has(id) {
				has = append(has, id)
			}
		}
		if !slices.Equal(all, has) {
			t.Errorf("%q: All has %d, Has says %d", test.text, all, has)
		}
	}
	var s vswitch.VLANSet
	s.Add(4095, 4095)
	if s.String() != "4095" || s.Has(0) {
		t.Errorf("4095 is %q", s)
	}
	for range s.All {
		break // may stop
	}
}

// TestNames: what operators type and read are words.
func TestNames(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{vswitch.VLANNone.String(), "none"},
		{vswitch.VLANPromiscuous.String(), "promiscuous"},
		{vswitch.VLANMode(9).String(), "VLANMode(9)"},
		{vswitch.BPDUDefault.String(), "default"},
		{vswitch.BPDUAllow.String(), "allow"},
		{vswitch.BPDUPolicy(9).String(), "BPDUPolicy(9)"},
		{vswitch.MirrorDestination.String(), "destination"},
		{vswitch.Mirror(9).String(), "Mirror(9)"},
		{vswitch.Meter.String(), "meter"},
		{vswitch.Action(9).String(), "Action(9)"},
		{vswitch.In.String(), "in"},
		{vswitch.Out.String(), "out"},
		{vswitch.EventLoop.String(), "loop"},
		{vswitch.EventKind(9).String(), "EventKind(9)"},
	} {
		if test.got != test.want {
			t.Errorf("%q, want %q", test.got, test.want)
		}
	}
	reasons := vswitch.DropReasons()
	if len(reasons) != len(vswitch.DropCounts{}) || reasons[0] != vswitch.DropRunt || !slices.IsSorted(reasons) {
		t.Errorf("the reasons are %v", reasons)
	}
}
