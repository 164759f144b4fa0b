package build

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
)

// newWorld builds a configuration until the test ends.
func newWorld(t *testing.T, text string) *World {
	t.Helper()
	dir := t.TempDir()
	w, err := New(parse(t, dir, text), Options{Dir: dir, StateDir: filepath.Join(dir, "state"), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// Changes that each other has to make room for are made all the same.
func TestApplyExchanges(t *testing.T) {
	const a, b = `"00:15:5d:00:00:0a"`, `"00:15:5d:00:00:0b"`
	vms := func(x, y string) string {
		return "switches: [{name: lan}, {name: lab}]\nvms:\n  - {name: x, adapters: [{" + x + "}]}\n  - {name: y, adapters: [{" + y + "}]}\n"
	}
	for _, c := range []struct{ name, before, after, want string }{
		{
			"MAC addresses",
			vms("switch: lan, mac: "+a, "switch: lan, mac: "+b), vms("switch: lan, mac: "+b, "switch: lan, mac: "+a),
			"replace adapter x (mac)\nreplace adapter y (mac)\n",
		},
		{
			"switches, with the same MAC address",
			vms("switch: lan, mac: "+a, "switch: lab, mac: "+a), vms("switch: lab, mac: "+a, "switch: lan, mac: "+a),
			"set adapter x (switch)\nset adapter y (switch)\n",
		},
		{
			"a MAC address that becomes free",
			vms("switch: lan", "switch: lan, mac: "+a), "switches: [{name: lan}, {name: lab}]\nvms:\n  - {name: w, adapters: [{switch: lan, mac: " + a + "}]}\n  - {name: x, adapters: [{switch: lan}]}\n  - {name: y, adapters: [{switch: lab, mac: " + a + "}]}\n",
			"add adapter w (on switch lan)\nset adapter y (switch)\n",
		},
		{
			"the part of a VLAN",
			vms("switch: lan, vlan: {access: 5}", "switch: lan, vlan: {access: 5}"), vms("switch: lan, vlan: {primary: 5, isolated: 6}", "switch: lan, vlan: {primary: 5, promiscuous: 6}"),
			"set adapter x (vlan)\nset adapter y (vlan)\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.before)
			next := parse(t, w.Dir, c.after)
			if changes, err := w.Apply(next, false); err != nil || text(changes) != c.want {
				t.Errorf("got %v\n%swant\n%s", err, text(changes), c.want)
			}
			if got := w.Config(); !same(t, got, next) {
				t.Errorf("it runs\n%swant\n%s", marshal(t, got), marshal(t, next))
			}
			for _, p := range w.Status().Adapters {
				t.Errorf("%s is on no switch", p.Name)
			}
		})
	}
}

// What two adapters want and cannot both have is refused, and the first change is taken back.
func TestApplyConflict(t *testing.T) {
	w := newWorld(t, "switches: [{name: lan}]\nvms: [{name: x, adapters: [{switch: lan}]}, {name: y, adapters: [{switch: lan}]}]\n")
	was := w.Config()
	next := parse(t, w.Dir, "switches: [{name: lan}]\nvms: [{name: x, adapters: [{switch: lan, vlan: {primary: 5, isolated: 6}}]}, {name: y, adapters: [{switch: lan, vlan: {access: 5}}]}]\n")
	if _, err := w.Apply(next, false); err == nil || !strings.HasPrefix(err.Error(), `set adapter "y": adapter "y": vswitch: `) || !strings.HasSuffix(err.Error(), ": nothing is changed") {
		t.Errorf("got %v", err)
	}
	if got := w.Config(); !same(t, got, was) || len(w.Status().Adapters) > 0 {
		t.Errorf("it runs\n%swant\n%s", marshal(t, got), marshal(t, was))
	}
}

// A policy that suits only the new switch goes with the adapter there.
func TestConnectWithPolicy(t *testing.T) {
	w := newWorld(t, `
switches: [{name: lan}, {name: lab}]
vms:
  - {name: x, adapters: [{switch: lan}]}
  - {name: y, adapters: [{switch: lan, vlan: {access: 5}}]}
  - {name: z, adapters: [{switch: lab, vlan: {access: 6}}]}
`)
	lan, lab := "lan", "lab"
	five := config.Policy{VLAN: &config.VLAN{Primary: 5, Isolated: 7}}
	six := config.Policy{VLAN: &config.VLAN{Primary: 6, Isolated: 7}}
	where := func() string {
		for _, p := range append(w.Status().Adapters, append(w.Status().Switches[0].Ports, w.Status().Switches[1].Ports...)...) {
			if p.Name == "x" {
				v := 0
				if p.Policy.VLAN != nil {
					v = p.Policy.VLAN.Primary
				}
				return fmt.Sprintf("%s %d, as %s", p.Switch, v, w.configured("x").Switch)
			}
		}
		return ""
	}
	for _, c := range []struct {
		change api.AdapterChange
		ok     bool
		want   string
	}{
		{api.AdapterChange{Policy: five}, false, "lan 0, as lan"},
		{api.AdapterChange{Policy: six, Switch: &lab}, false, "lan 0, as lan"},
		{api.AdapterChange{Policy: five, Switch: &lab}, true, "lab 5, as lab"},
		{api.AdapterChange{Switch: &lan}, false, "lab 5, as lab"},
		{api.AdapterChange{Policy: six, Switch: &lan}, true, "lan 6, as lan"},
	} {
		err := w.ChangeAdapter("x", c.change)
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.change, err)
		}
		if got := where(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.change, got, c.want)
		}
	}
}

// An adapter of the API is judged as one of a file is.
func TestAddAdapterChecks(t *testing.T) {
	w := newWorld(t, "switches: [{name: lab}, {name: jumbo, mtu: 9000}]")
	for _, c := range []struct {
		r    api.AdapterRequest
		want string
	}{
		{api.AdapterRequest{Queues: 2}, `vm "x": queues is for adapters of kind synthetic`},
		{api.AdapterRequest{NoPacked: true}, `vm "x": packed is for adapters of kind synthetic`},
		{api.AdapterRequest{NoOffload: true}, `vm "x": offload is for adapters of kind synthetic`},
		{api.AdapterRequest{Client: true}, `vm "x": socket: mode client is for adapters of kind synthetic: for a legacy one QEMU does not listen`},
		{api.AdapterRequest{Kind: "virtio"}, `vm "x": kind "virtio" is not one of: legacy, synthetic`},
		{api.AdapterRequest{Kind: "synthetic", Queues: 129}, `vm "x": queues 129: from 1 to 128`},
		{api.AdapterRequest{Kind: "synthetic", ROM: []byte{1}}, `adapter "x": rom is for legacy adapters: QEMU gives a synthetic one its ROM`},
		{api.AdapterRequest{VM: "pxe"}, `vm: "pxe" is a name that Polder uses itself: take another`},
		{api.AdapterRequest{Socket: "x.sock"}, `adapter "x": socket x.sock: give a path that begins with /`},
		{api.AdapterRequest{Policy: config.Policy{Link: "sideways"}}, `adapter "x": link "sideways" is not one of: up, down`},
	} {
		c.r.Name, c.r.Switch = "x", "lab"
		_, err := w.AddAdapter(c.r, false)
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != http.StatusUnprocessableEntity || p.Detail != c.want {
			t.Errorf("%+v: got %v\nwant %s", c.r, err, c.want)
		}
	}
	if _, err := w.AddAdapter(api.AdapterRequest{Name: "x", Switch: "jumbo"}, false); err == nil || !strings.Contains(err.Error(), "a legacy adapter's is 1500: take a synthetic adapter or another switch") {
		t.Errorf("a legacy adapter on a switch with large frames: %v", err)
	}
	if n := w.Adapters(); n != 0 {
		t.Errorf("%d adapters", n)
	}
}

// Whatever operators do, the running configuration is one that can be read, and that runs the same again.
func TestConfigCanBeReadBack(t *testing.T) {
	w := newWorld(t, "mac_pool: 00:15:5d:4d:00:00-00:15:5d:4d:00:05\ndefaults: {adapter: {dhcp_guard: true}}\nswitches: [{name: s0, pxe: {}}]\n")
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	yes, no := true, false
	policies := []config.Policy{
		{}, {MACSpoofing: &no}, {RouterGuard: &yes, BPDU: "shutdown"}, {VLAN: &config.VLAN{Access: 5}}, {VLAN: &config.VLAN{Primary: 5, Isolated: 6}},
		{VLAN: &config.VLAN{Access: 6}}, {Link: "down"}, {Mirror: "source"}, {ACL: []config.ACLRule{{Action: "deny", Protocol: "arp"}}},
	}
	done := map[string]int{}
	for i := range 2000 {
		sw, name := pick("s0", "s1", "s2", "", "lost"), pick("a", "b", "c", "d-1")
		policy := policies[rnd.IntN(len(policies))]
		var err error
		what := pick("add", "temporary", "remove", "change", "change", "switch", "unswitch", "apply")
		switch what {
		case "add", "temporary":
			_, err = w.AddAdapter(api.AdapterRequest{
				Name: name, Switch: sw, VM: pick("", "", "a", "vm", "pxe"), Kind: pick("", "legacy", "synthetic", "other"), Queues: rnd.IntN(3),
				NoOffload: rnd.IntN(4) == 0, NoROM: rnd.IntN(4) == 0, MAC: pick("", "", "00:15:5d:00:00:01", "00:15:5d:4d:00:02"), Policy: policy,
			}, what == "temporary")
		case "remove":
			err = w.RemoveAdapter(name)
		case "change":
			c := api.AdapterChange{Policy: policy, NoVLAN: rnd.IntN(3) == 0, NoACL: rnd.IntN(3) == 0}
			if rnd.IntN(2) == 0 {
				c.Switch = &sw
			}
			err = w.ChangeAdapter(name, c)
		case "switch":
			s, perr := config.ParseSwitch("t", []byte("{name: "+pick("s0", "s1", "s2")+pick("", ", pxe: {}", ", mtu: 9000", ", ageing_time: 7s")+"}"))
			if perr != nil {
				t.Fatal(perr)
			}
			err = w.AddSwitch(*s, 0)
		case "unswitch":
			err = w.RemoveSwitch(sw)
		case "apply":
			changes, aerr := w.Apply(parse(t, "/", marshal(t, w.Config())), false)
			if len(changes) > 0 || aerr != nil {
				t.Fatalf("step %d: what runs, applied: %v\n%s", i, aerr, text(changes))
			}
		}
		if err == nil {
			done[what]++
		}
		was := marshal(t, w.Config())
		c, err := config.Parse("running", []byte(was))
		if err != nil {
			t.Fatalf("step %d, %s: %v in\n%s", i, what, err, was)
		}
		if now := marshal(t, c); now != was {
			t.Fatalf("step %d, %s: it reads as\n%sand was\n%s", i, what, now, was)
		}
	}
	for _, what := range []string{"add", "temporary", "remove", "change", "switch", "unswitch"} {
		if done[what] < 20 {
			t.Errorf("%s was done only %d times", what, done[what])
		}
	}
}

// A hypervisor stays attached, whatever happens to the adapter's place on switches.
func TestAttachedMoves(t *testing.T) {
	w := newWorld(t, "switches: [{name: lan}, {name: lab}]\nvms: [{name: web, adapters: [{switch: lan, kind: synthetic}]}]\n")
	hypervisor, err := vhostusertest.Dial(SocketPath(w.Dir, "web"))
	if err != nil {
		t.Fatal(err)
	}
	defer hypervisor.Close()
	if err := hypervisor.Connect(vhostuser.ProtocolAll); err != nil {
		t.Fatal(err)
	}
	lan, lab, none := "lan", "lab", ""
	for range 20 {
		for _, to := range []*string{&lab, &none, &lan, &none, &lab} {
			if err := w.ChangeAdapter("web", api.AdapterChange{Switch: to}); err != nil {
				t.Fatal(err)
			}
			ports := w.Status().Adapters
			for _, sw := range w.Status().Switches {
				ports = append(ports, sw.Ports...)
			}
			if len(ports) != 1 || !ports[0].Attached || ports[0].Switch != *to {
				t.Fatalf("%+v, want it attached, on %q", ports, *to)
			}
		}
		if err := w.RemoveSwitch("lab"); err != nil {
			t.Fatal(err)
		}
		if err := w.AddSwitch(config.Switch{Name: "lab", Type: config.TypePrivate, MTU: config.DefaultMTU}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := hypervisor.GetU64(vhostusertest.GetFeatures); err != nil {
		t.Errorf("the hypervisor has lost it: %v", err)
	}
}
