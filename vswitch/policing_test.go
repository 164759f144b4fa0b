package vswitch_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"polder/vswitch"
	"polder/vswitch/porttest"
)

// TestPolicies sends frames, one step after another, over a switch with ports
// a, b, c and so on, whose options each row gives.
func TestPolicies(t *testing.T) {
	type o = vswitch.PortOptions
	type step struct {
		from     int // index of the port
		dst, src vswitch.MAC
		want     string // ports that get it
		drop     string // reasons, at any port, with the port's letter
	}
	own := func(n ...int) (macs []vswitch.MAC) {
		for _, n := range n {
			macs = append(macs, mac(n))
		}
		return macs
	}
	stp := vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0}
	providerSTP := vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 8}
	pvst := vswitch.MAC{0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd}
	lldp := vswitch.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}
	group := vswitch.MAC{0x33, 0x33, 0, 0, 0, 1}
	for _, test := range []struct {
		name  string
		ports []o
		steps []step
		fdb   string // static entries have a *
	}{
		{"a closed port sends from its addresses only",
			[]o{{MACs: own(1, 2)}, {}},
			[]step{
				{0, broadcast, mac(1), "b", ""},
				{0, broadcast, mac(2), "b", ""},
				{0, broadcast, mac(3), "", "a mac-spoofing"},
			}, "1@a* 2@a*"},
		{"a port that may spoof learns",
			[]o{{MACs: own(1), Spoofing: true}, {}, {}},
			[]step{
				{0, broadcast, mac(1), "bc", ""},
				{0, broadcast, mac(3), "bc", ""},
				{1, mac(3), mac(9), "a", ""},
				{1, mac(1), mac(9), "a", ""},
			}, "1@a* 3@a 9@b"},
		{"configured addresses need not be heard",
			[]o{{MACs: own(1)}, {}, {}},
			[]step{{1, mac(1), mac(9), "a", ""}}, "1@a* 9@b"},
		{"closed ports get no unknown unicast",
			[]o{{MACs: own(1)}, {MACs: own(2)}, {}},
			[]step{
				{0, mac(7), mac(1), "c", ""},
				{0, broadcast, mac(1), "bc", ""},
				{0, group, mac(1), "bc", ""},
			}, "1@a* 2@b*"},
		{"nobody is open to unknown unicast",
			[]o{{MACs: own(1)}, {MACs: own(2)}},
			[]step{{0, mac(7), mac(1), "", "a unknown-unicast"}}, "1@a* 2@b*"},
		{"the address of another port",
			[]o{{MACs: own(1)}, {}, {Uplink: true}, {MACs: own(4)}},
			[]step{
				{1, broadcast, mac(1), "", "b src-mac-conflict"},
				{2, broadcast, mac(1), "", "c own-mac-from-uplink"},
				{3, broadcast, mac(1), "", "d src-mac-conflict"},
				{2, broadcast, mac(9), "abd", ""},
			}, "1@a* 4@d* 9@c"},
		{"bad sources come first",
			[]o{{MACs: own(1)}, {}},
			[]step{{0, broadcast, group, "", "a bad-source"}, {0, stp, zero, "", "a bad-source"}}, "1@a*"},
		{"to oneself, known or not",
			[]o{{Uplink: true}, {}},
			[]step{{0, mac(1), mac(1), "", "a hairpin"}, {0, mac(1), mac(1), "", "a hairpin"}}, "1@a"},
		{"alone", []o{{Uplink: true}}, []step{{0, broadcast, mac(1), "", "a no-port"}, {0, mac(2), mac(1), "", "a no-port"}}, "1@a"},

		{"BPDUs by default",
			[]o{{Uplink: true}, {}},
			[]step{
				{0, stp, mac(1), "", "a reserved-multicast"},
				{0, providerSTP, mac(1), "", "a reserved-multicast"},
				{0, pvst, mac(1), "b", ""},
			}, "1@a"},
		{"BPDUs dropped",
			[]o{{BPDU: vswitch.BPDUDrop}, {}},
			[]step{
				{0, stp, mac(1), "", "a bpdu"},
				{0, providerSTP, mac(1), "", "a bpdu"},
				{0, pvst, mac(1), "", "a bpdu"},
				{0, lldp, mac(1), "", "a reserved-multicast"},
				{0, broadcast, mac(1), "b", ""},
			}, "1@a"},
		{"BPDUs that take the link down",
			[]o{{BPDU: vswitch.BPDUShutdown}, {}, {}},
			[]step{
				{0, broadcast, mac(1), "bc", ""},
				{0, stp, mac(1), "", "a bpdu"},
				{0, stp, mac(1), "", "a link-down"},
				{1, broadcast, mac(2), "c", ""},
				{1, mac(1), mac(2), "", "a link-down"},
			}, "1@a 2@b"},
		{"BPDUs allowed between those who allow them",
			[]o{{BPDU: vswitch.BPDUAllow}, {}, {BPDU: vswitch.BPDUAllow}},
			[]step{
				{0, stp, mac(1), "c", ""},
				{0, lldp, mac(1), "", "a reserved-multicast"},
				{1, stp, mac(2), "", "b reserved-multicast"},
			}, "1@a"},

		{"a link that is down",
			[]o{{LinkDown: true, MACs: own(1)}, {}, {}},
			[]step{
				{0, broadcast, mac(1), "", "a link-down"},
				{1, broadcast, mac(2), "c", ""},
				{1, mac(1), mac(2), "", "a link-down"},
				{1, mac(3), mac(2), "c", ""},
			}, "1@a* 2@b"},

		{"MTU",
			[]o{{}, {MTU: 68}},
			[]step{{0, broadcast, mac(1), "b", ""}}, "1@a"},

		{"mirroring of what a source sends and gets",
			[]o{{Mirror: vswitch.MirrorSource}, {}, {Mirror: vswitch.MirrorDestination, MACs: own(3)}, {}},
			[]step{
				{1, broadcast, mac(2), "acd", ""}, // the destination gets it anyway, once
				{0, mac(2), mac(1), "bc", ""},
				{1, mac(1), mac(2), "ac", ""},
				{3, mac(2), mac(4), "b", ""}, // none of a's
				{3, mac(1), mac(4), "ac", ""},
				{2, mac(1), mac(3), "a", ""}, // no copy of its own
				{2, mac(2), mac(3), "b", ""},
				{0, mac(3), mac(1), "c", ""},
				{0, mac(1), mac(1), "c", "a hairpin"},
			}, "1@a 2@b 3@c* 4@d"},
		{"mirroring of one source to another is one copy",
			[]o{{Mirror: vswitch.MirrorSource}, {Mirror: vswitch.MirrorSource}, {Mirror: vswitch.MirrorDestination}, {Mirror: vswitch.MirrorDestination}},
			[]step{
				{0, mac(2), mac(1), "bcd", ""},
				{1, mac(1), mac(2), "acd", ""},
			}, "1@a 2@b"},
		{"mirroring knows no VLAN, and no copy of what is dropped",
			[]o{{Mirror: vswitch.MirrorSource, MACs: own(1)}, {Mirror: vswitch.MirrorDestination, VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 5}}},
			[]step{
				{0, broadcast, mac(1), "b", "a no-port"},
				{0, broadcast, mac(2), "", "a mac-spoofing"},
			}, "1@a*"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSwitch(t, vswitch.Config{MaxMACs: 64})
			var ports []*station
			for i, o := range test.ports {
				ports = append(ports, joinSmall(t, s, string(rune('a'+i)), o))
			}
			drops := func() (all []vswitch.DropCounts) {
				for _, p := range ports {
					all = append(all, p.Stats().Drops)
				}
				return all
			}
			for i, step := range test.steps {
				before := drops()
				f := frame(step.dst, step.src, i)
				ports[step.from].Forward([]vswitch.Frame{f})
				var got string
				for j, p := range ports {
					for _, b := range p.Take() {
						got += string(rune('a' + j))
						if !bytes.Equal(b, f.Head) {
							t.Errorf("step %d: %x arrived, want %x", i, b, f.Head)
						}
					}
				}
				var lost []string
				for j, d := range drops() {
					for r := range d {
						for range d[r] - before[j][r] {
							lost = append(lost, fmt.Sprintf("%c %v", 'a'+j, vswitch.DropReason(r)))
						}
					}
				}
				if got != step.want || strings.Join(lost, ", ") != step.drop {
					t.Errorf("step %d: went to %q, want %q; dropped %q, want %q", i, got, step.want, lost, step.drop)
				}
			}
			if got := addresses(s); got != test.fdb {
				t.Errorf("the switch knows %q, want %q", got, test.fdb)
			}
		})
	}
}

// addresses renders what a switch knows, like "1@a 2@b*" with a * for a
// configured address and the VLAN before a slash, if it is not 0.
func addresses(s *vswitch.Switch) string {
	var entries []string
	for _, e := range s.FDB() {
		n := fmt.Sprint(int(e.MAC[3])<<16 | int(e.MAC[4])<<8 | int(e.MAC[5]))
		if e.VLAN != 0 {
			n = fmt.Sprintf("%d/%s", e.VLAN, n)
		}
		n += "@" + e.Port
		if e.Static {
			n += "*"
		}
		entries = append(entries, n)
	}
	return strings.Join(entries, " ")
}

// TestOptions has options that are refused, alone or beside those of others.
func TestOptions(t *testing.T) {
	type o = vswitch.PortOptions
	set := func(text string) vswitch.VLANSet { return vlans(t, text) }
	var reserved vswitch.VLANSet
	reserved.Add(4095, 4095)
	for _, test := range []struct {
		name   string
		others []o
		o      o
		want   error
	}{
		{"ordinary", nil, o{}, nil},
		{"no such VLAN mode", nil, o{VLAN: vswitch.VLAN{Mode: 6}}, vswitch.ErrOptions},
		{"access without VLAN", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess}}, vswitch.ErrOptions},
		{"access to VLAN 4095", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 4095}}, vswitch.ErrOptions},
		{"no VLAN but an ID", nil, o{VLAN: vswitch.VLAN{ID: 1}}, vswitch.ErrOptions},
		{"access with a native VLAN", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 1, Native: 1}}, vswitch.ErrOptions},
		{"access with a secondary VLAN", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 1, Secondary: 2}}, vswitch.ErrOptions},
		{"access with allowed VLANs", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 1, Allowed: set("1")}}, vswitch.ErrOptions},
		{"trunk with native VLAN 4095", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANTrunk, Native: 4095}}, vswitch.ErrOptions},
		{"trunk of VLAN 4095", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANTrunk, Allowed: reserved}}, vswitch.ErrOptions},
		{"trunk of nothing", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANTrunk}}, nil},
		{"isolated without secondary", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANIsolated, ID: 1}}, vswitch.ErrOptions},
		{"isolated in its primary", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANIsolated, ID: 1, Secondary: 1}}, vswitch.ErrOptions},
		{"promiscuous with its primary", nil, o{VLAN: vswitch.VLAN{Mode: vswitch.VLANPromiscuous, ID: 1, Allowed: set("1-2")}}, vswitch.ErrOptions},
		{"zero as an address", nil, o{MACs: []vswitch.MAC{{}}}, vswitch.ErrOptions},
		{"a group as an address", nil, o{MACs: []vswitch.MAC{{1}}}, vswitch.ErrOptions},
		{"an address twice", nil, o{MACs: []vswitch.MAC{mac(1), mac(1)}}, vswitch.ErrOptions},
		{"an address of another port", []o{{MACs: []vswitch.MAC{mac(1)}}}, o{MACs: []vswitch.MAC{mac(1)}}, vswitch.ErrMACTaken},
		{"an address of another port in another VLAN", []o{{MACs: []vswitch.MAC{mac(1)}, VLAN: vswitch.VLAN{Mode: vswitch.VLANAccess, ID: 1}}}, o{MACs: []vswitch.MAC{mac(1)}}, nil},
		{"less than no addresses", nil, o{MaxMACs: -1}, vswitch.ErrOptions},
		{"no such BPDU policy", nil, o{BPDU: 4}, vswitch.ErrOptions},
		{"no such part in mirroring", nil, o{Mirror: 3}, vswitch.ErrOptions},
		{"an MTU of 67", nil, o{MTU: 67}, vswitch.ErrOptions},
		{"an MTU less than none", nil, o{MTU: -1}, vswitch.ErrOptions},
		{"more than a Tbit/s", nil, o{Bandwidth: 1e12 + 1}, vswitch.ErrOptions},
		{"no such action", nil, o{ACL: []vswitch.Rule{{Action: 3}}}, vswitch.ErrOptions},
		{"no such direction", nil, o{ACL: []vswitch.Rule{{Direction: 2}}}, vswitch.ErrOptions},
		{"ports backwards", nil, o{ACL: []vswitch.Rule{{SourcePorts: vswitch.PortRange{First: 5, Last: 4}}}}, vswitch.ErrOptions},
		{"isolated in an ordinary VLAN", []o{inVLAN(t, "access 1")}, inVLAN(t, "isolated 2 1"), vswitch.ErrVLANRole},
		{"isolated with an ordinary VLAN as primary", []o{inVLAN(t, "access 1")}, inVLAN(t, "isolated 1 2"), vswitch.ErrVLANRole},
		{"access to a primary VLAN", []o{inVLAN(t, "promiscuous 1 2")}, inVLAN(t, "access 1"), vswitch.ErrVLANRole},
		{"access to a secondary VLAN", []o{inVLAN(t, "promiscuous 1 2")}, inVLAN(t, "access 2"), vswitch.ErrVLANRole},
		{"isolated in a community", []o{inVLAN(t, "community 1 2")}, inVLAN(t, "isolated 1 2"), vswitch.ErrVLANRole},
		{"secondary to two VLANs", []o{inVLAN(t, "community 1 2")}, inVLAN(t, "community 3 2"), vswitch.ErrVLANRole},
		{"promiscuous to a community elsewhere", []o{inVLAN(t, "community 1 2")}, inVLAN(t, "promiscuous 3 2"), vswitch.ErrVLANRole},
		{"primary of a primary", []o{inVLAN(t, "community 1 2")}, inVLAN(t, "community 2 3"), vswitch.ErrVLANRole},
		{"a private VLAN", []o{inVLAN(t, "promiscuous 1 2-4"), inVLAN(t, "isolated 1 2"), inVLAN(t, "community 1 3"), inVLAN(t, "promiscuous 1 2-3")}, inVLAN(t, "isolated 1 2"), nil},
		{"a trunk of a private VLAN", []o{inVLAN(t, "isolated 1 2")}, inVLAN(t, "trunk 1-4094 native 2"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSwitch(t, vswitch.Config{MaxMACs: 16})
			for i, o := range test.others {
				joinSmall(t, s, fmt.Sprint("other", i), o)
			}
			m, err := s.Join("port", porttest.NewRecorder(1), test.o)
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), `port "port"`) {
				t.Errorf("joining gives %v, want %v", err, test.want)
			}
			if err == nil {
				if err := m.Leave(); err != nil {
					t.Error(err)
				}
			}
			later := joinSmall(t, s, "port", vswitch.PortOptions{MaxMACs: 3})
			if err := later.SetOptions(test.o); !errors.Is(err, test.want) {
				t.Errorf("setting the options gives %v, want %v", err, test.want)
			}
			if got := later.Options(); test.want != nil && (got.MaxMACs != 3 || got.VLAN != vswitch.VLAN{} || got.MACs != nil) {
				t.Errorf("after an error the options are %+v", got)
			}
		})
	}
	t.Run("after leaving", func(t *testing.T) {
		s := newSwitch(t, vswitch.Config{})
		a := join(t, s, "a", o{})
		if err := a.Leave(); err != nil {
			t.Fatal(err)
		}
		if err := a.SetOptions(o{}); !errors.Is(err, vswitch.ErrClosed) {
			t.Errorf("options after leaving: %v", err)
		}
		if err := s.AddStatic(a.Member, 0, mac(1)); !errors.Is(err, vswitch.ErrClosed) {
			t.Errorf("an address after leaving: %v", err)
		}
	})
}

// TestSetOptions changes a port's options and looks what becomes of what was
// learned.
func TestSetOptions(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	hear := func(port *station, src int, want string) {
		t.Helper()
		port.Forward([]vswitch.Frame{frame(broadcast, mac(src), src)})
		if got := addresses(s); got != want {
			t.Errorf("the switch knows %q, want %q", got, want)
		}
	}
	set := func(port *station, o vswitch.PortOptions, want string) {
		t.Helper()
		if err := port.SetOptions(o); err != nil {
			t.Fatal(err)
		}
		if got := addresses(s); got != want {
			t.Errorf("with %+v the switch knows %q, want %q", o, got, want)
		}
		if got := port.Options(); !slices.Equal(got.MACs, o.MACs) || got.VLAN != o.VLAN {
			t.Errorf("the options are %+v, want %+v", got, o)
		}
	}
	hear(a, 1, "1@a")
	hear(b, 2, "1@a 2@b")
	set(a, vswitch.PortOptions{DHCPGuard: true}, "1@a 2@b")
	set(a, vswitch.PortOptions{MACs: []vswitch.MAC{mac(2)}}, "2@a*")
	hear(b, 2, "2@a*")
	set(a, vswitch.PortOptions{MACs: []vswitch.MAC{mac(2)}, Spoofing: true}, "2@a*")
	hear(a, 3, "2@a* 3@a")
	if n := a.Stats().MACs; n != 2 {
		t.Errorf("%d addresses behind a, want 2", n)
	}
	set(a, inVLAN(t, "access 5"), "")
	hear(a, 1, "5/1@a")
	hear(b, 1, "1@b 5/1@a")
	set(b, inVLAN(t, "access 5"), "5/1@a")
	hear(b, 1, "5/1@b")
	hear(a, 4, "5/1@b 5/4@a")
	if got, want := s.Stats(), (vswitch.Stats{Ports: 2, MACs: 2, MACMoves: 1}); got != want {
		t.Errorf("switch %+v, want %+v", got, want)
	}
	if err := b.SetLink(false); err != nil {
		t.Fatal(err)
	}
	if got := addresses(s); got != "5/4@a" || b.Link() {
		t.Errorf("after b's link went down the switch knows %q", got)
	}
	if err := b.SetLink(true); err != nil || !b.Link() {
		t.Errorf("b's link does not come up: %v", err)
	}
	hear(b, 6, "5/4@a 5/6@b")
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	if got := addresses(s); got != "5/6@b" {
		t.Errorf("after a left the switch knows %q", got)
	}
	set(b, vswitch.PortOptions{}, "")
	c := join(t, s, "c", vswitch.PortOptions{}) // where a was
	hear(c, 4, "4@c")
}

func TestStatic(t *testing.T) {
	s := newSwitch(t, vswitch.Config{})
	a := join(t, s, "a", vswitch.PortOptions{})
	b := join(t, s, "b", vswitch.PortOptions{})
	add := func(p *station, vlan uint16, addr vswitch.MAC, want error) {
		t.Helper()
		if err := s.AddStatic(p.Member, vlan, addr); !errors.Is(err, want) {
			t.Errorf("adding %v gives %v, want %v", addr, err, want)
		}
	}
	check := func(want string) {
		t.Helper()
		if got := addresses(s); got != want {
			t.Errorf("the switch knows %q, want %q", got, want)
		}
	}
	b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(broadcast, mac(2), 0)})
	add(a, 0, mac(1), nil)
	check("1@a* 2@b")
	add(b, 0, mac(1), vswitch.ErrMACTaken)
	add(a, 0, mac(1), nil) // it is there
	add(a, 0, broadcast, vswitch.ErrOptions)
	add(a, 0, zero, vswitch.ErrOptions)
	add(a, 7, mac(3), nil) // for when the port is in VLAN 7
	check("1@a* 2@b")
	a.Take()
	b.Forward([]vswitch.Frame{frame(mac(1), mac(2), 5), frame(mac(2), mac(1), 6)})
	if got := a.numbers(); !slices.Equal(got, []int{5}) {
		t.Errorf("a got %d", got)
	}
	if got := droppedAs(b); got != "src-mac-conflict" {
		t.Errorf("b's frames were dropped as %q", got)
	}
	if n := s.Flush(nil); n != 1 {
		t.Errorf("%d addresses flushed, want the learned one", n)
	}
	check("1@a*")
	if err := a.SetOptions(inVLAN(t, "access 7")); err != nil {
		t.Fatal(err)
	}
	check("7/3@a*")
	a.Forward([]vswitch.Frame{frame(broadcast, mac(4), 0), frame(broadcast, mac(5), 0)})
	check("7/3@a* 7/4@a 7/5@a")
	for _, test := range []struct {
		vlan uint16
		addr int
		want bool
	}{{7, 3, true}, {7, 3, false}, {7, 4, true}, {0, 5, false}, {8, 5, false}, {0, 1, true}} {
		if got := s.Delete(test.vlan, mac(test.addr)); got != test.want {
			t.Errorf("deleting %v in VLAN %d: %v", mac(test.addr), test.vlan, got)
		}
	}
	check("7/5@a")
	if n := s.FlushVLAN(a.Member, 8) + s.FlushVLAN(b.Member, 7); n != 0 {
		t.Errorf("%d addresses flushed where there are none", n)
	}
	if n := s.FlushVLAN(nil, 7); n != 1 {
		t.Errorf("%d addresses flushed, want 1", n)
	}
	add(a, 7, mac(9), nil)
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	check("")
	add(b, 0, mac(1), nil)
	s.Close()
	add(b, 0, mac(2), vswitch.ErrClosed)
}

// TestStaticPrivate puts addresses behind ports of a private VLAN, which comes
// apart when the port leaves that keeps it together.
func TestStaticPrivate(t *testing.T) {
	s := newSwitch(t, vswitch.Config{MaxMACs: 64})
	a := joinSmall(t, s, "a", inVLAN(t, "trunk 20"))
	b := joinSmall(t, s, "b", inVLAN(t, "trunk 20"))
	c := joinSmall(t, s, "c", inVLAN(t, "promiscuous 10 20"))
	if err := s.AddStatic(a.Member, 20, mac(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.AddStatic(b.Member, 20, mac(1)); !errors.Is(err, vswitch.ErrMACTaken) {
		t.Errorf("the address of another port was added: %v", err)
	}
	if got := addresses(s); got != "10/1@a*" {
		t.Errorf("the switch knows %q", got)
	}
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
	if got := addresses(s); got != "20/1@a*" {
		t.Errorf("without the promiscuous port the switch knows %q", got)
	}
	if err := s.AddStatic(a.Member, 7, mac(2)); err != nil {
		t.Fatal(err)
	}
	if !s.Delete(7, mac(2)) || s.Delete(7, mac(2)) {
		t.Error("an address that waits for its port was not deleted, or twice")
	}
}

// TestStormLimit sends bursts and waits. Each second is worth as many frames.
func TestStormLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := vswitch.New(vswitch.Config{MaxMACs: 16})
		defer s.Close()
		a := join(t, s, "a", vswitch.PortOptions{StormLimit: 20})
		b := join(t, s, "b", vswitch.PortOptions{})
		b.Forward([]vswitch.Frame{frame(broadcast, mac(2), 0)})
		send := func(dst vswitch.MAC, n, want int) {
			t.Helper()
			before := a.Stats().Drops
			for i := range n {
				a.Forward([]vswitch.Frame{frame(dst, mac(1), i)})
			}
			if got := len(b.numbers()); got != want {
				t.Errorf("%d of %d frames to %v arrived, want %d", got, n, dst, want)
			}
			if got := int(a.Stats().Drops[vswitch.DropStorm] - before[vswitch.DropStorm]); got != n-want {
				t.Errorf("%d frames dropped for the storm limit, want %d", got, n-want)
			}
		}
		send(broadcast, 30, 20)
		send(mac(2), 30, 30) // known: no storm
		send(mac(7), 3, 0)   // unknown
		time.Sleep(time.Second / 2)
		send(mac(7), 30, 10)
		time.Sleep(time.Hour)
		send(vswitch.MAC{1}, 30, 20)
		if err := a.SetOptions(vswitch.PortOptions{StormLimit: 1000}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second / 10)
		send(broadcast, 200, 100)
	})
}

func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := vswitch.New(vswitch.Config{MaxMACs: 16})
		defer s.Close()
		a := join(t, s, "a", vswitch.PortOptions{Bandwidth: 100e6})
		c := join(t, s, "c", vswitch.PortOptions{Bandwidth: 8000})
		join(t, s, "b", vswitch.PortOptions{})
		send := func(p *station, length, n, want int) {
			t.Helper()
			before := p.Stats().Drops[vswitch.DropBandwidth]
			for i := range n {
				f := frame(broadcast, mac(int(p.Member.Name()[0])), i)
				f.Body = [][]byte{make([]byte, length-f.Len)}
				f.Len = length
				p.Forward([]vswitch.Frame{f})
			}
			if got := n - int(p.Stats().Drops[vswitch.DropBandwidth]-before); got != want {
				t.Errorf("%d of %d frames of %d bytes passed, want %d", got, n, length, want)
			}
		}
		send(a, 1250, 1100, 1000) // a tenth of a second
		time.Sleep(time.Second / 100)
		send(a, 1250, 200, 100)
		time.Sleep(time.Hour)
		send(a, 60000, 30, 20)
		send(c, 60000, 3, 2) // 128 KiB, though that takes two minutes
		time.Sleep(time.Minute)
		send(c, 60000, 3, 1)
	})
}

// TestEvents provokes each kind of event, and more often than it is reported.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var events []string
		var s *vswitch.Switch
		s = vswitch.New(vswitch.Config{MaxMoves: 3, Events: func(e vswitch.Event) {
			mu.Lock()
			defer mu.Unlock()
			if d := time.Since(e.Time); d < 0 || d > time.Second {
				t.Errorf("%v happened %v ago", e.Kind, d)
			}
			events = append(events, fmt.Sprintf("%v %s/%s %d/%v", e.Kind, e.Port, e.Other, e.VLAN, e.MAC))
			s.FDB() // may be called
		}})
		defer s.Close()
		want := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(events, want) {
				t.Errorf("events\n\t%s\nwant\n\t%s", strings.Join(events, "\n\t"), strings.Join(want, "\n\t"))
			}
			events = nil
		}
		in := inVLAN(t, "access 5")
		in.MACs = []vswitch.MAC{mac(1)}
		join(t, s, "a", in)
		in.MACs = nil
		b := join(t, s, "b", in)
		in.BPDU, in.StormLimit = vswitch.BPDUShutdown, 2
		c := join(t, s, "c", in)
		in = inVLAN(t, "trunk 5")
		in.Uplink = true
		up := join(t, s, "up", in)

		for range 3 {
			b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0), frame(broadcast, mac(1), 0)})
		}
		want("mac-conflict b/a 5/00:15:5d:00:00:01")
		up.Forward([]vswitch.Frame{tagged(frame(broadcast, mac(1), 0), "5")})
		want("own-mac-from-uplink up/a 5/00:15:5d:00:00:01")
		time.Sleep(time.Second)
		synctest.Wait()
		b.Forward([]vswitch.Frame{frame(broadcast, mac(1), 0)})
		want("mac-conflict b/a 5/00:15:5d:00:00:01")

		for range 3 {
			c.Forward([]vswitch.Frame{frame(broadcast, mac(3), 0)})
		}
		want("storm c/ 5/00:15:5d:00:00:03")
		c.Forward([]vswitch.Frame{frame(vswitch.MAC{1, 0x80, 0xc2}, mac(3), 0)})
		want("bpdu-shutdown c/ 5/00:15:5d:00:00:03")
		if c.Link() {
			t.Error("the link is up after a BPDU")
		}
		if err := c.SetLink(true); err != nil || !c.Link() {
			t.Errorf("the link does not come up: %v", err)
		}

		move := func(p *station, tags, drop string) {
			t.Helper()
			before := p.Stats().Drops
			p.Forward([]vswitch.Frame{tagged(frame(broadcast, mac(9), 0), tags)})
			after := p.Stats().Drops
			for r := range after {
				if n := after[r] - before[r]; n != 0 != (vswitch.DropReason(r).String() == drop) {
					t.Errorf("a moving address: %d frames dropped as %v", n, vswitch.DropReason(r))
				}
			}
		}
		move(b, "-", "")
		move(up, "5", "")
		move(b, "-", "")
		move(up, "5", "")
		move(b, "-", "mac-flapping")
		move(b, "-", "mac-flapping")
		move(up, "5", "") // where it is held
		want("loop b/up 5/00:15:5d:00:00:09")
		time.Sleep(9 * time.Second)
		synctest.Wait()
		move(b, "-", "mac-flapping")
		time.Sleep(time.Second)
		synctest.Wait()
		move(b, "-", "")
		want()
		for range 20 { // three in ten seconds are not too many
			time.Sleep(4 * time.Second)
			synctest.Wait()
			move(up, "5", "")
			move(b, "-", "")
			time.Sleep(7 * time.Second)
			synctest.Wait()
		}
		want()
	})
}
