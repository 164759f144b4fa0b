package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/vswitch"
)

const before = `
switches:
  - {name: lan}
  - {name: lab, pxe: {}}
vms:
  - name: web
    adapters:
      - {switch: lan}
      - {switch: lab, kind: synthetic}
  - {name: db, adapters: [{switch: lan}]}
`

// text writes changes as lines.
func text(changes []api.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %s %s (%s)\n", c.Action, c.Kind, c.Name, c.Detail)
	}
	return b.String()
}

// A new configuration is reached by as little as possible, and a dry run only tells it.
func TestApply(t *testing.T) {
	for _, c := range []struct{ name, edit, with, want string }{
		{"nothing", "", "", ""},
		{"a switch more", "vms:", "  - {name: more}\nvms:", "add switch more (private)\n"},
		{"a VM more", "vms:", "vms:\n  - {name: new, adapters: [{switch: lab}]}", "add adapter new (on switch lab)\n"},
		{"a VM less", "  - {name: db, adapters: [{switch: lan}]}\n", "", "remove adapter db ()\n"},
		{"an adapter moves", "{switch: lan}\n", "{switch: lab}\n", "set adapter web (switch)\n"},
		{"an adapter is disconnected", "{switch: lan}\n", "{switch: none}\n", "set adapter web (switch)\n"},
		{"a policy", "{switch: lan}\n", "{switch: lan, vlan: {access: 5}, dhcp_guard: true}\n", "set adapter web (vlan, dhcp_guard)\n"},
		{"another card", "{switch: lan}\n", "{switch: lan, kind: synthetic}\n", "replace adapter web (kind)\n"},
		{"queues", "kind: synthetic", "kind: synthetic, queues: 2", "replace adapter web-1 (queues)\n"},
		{"no boot service", ", pxe: {}", "", "remove pxe lab ()\n"},
		{"a boot service more", "{name: lan}", "{name: lan, pxe: {}}", "add pxe lan ()\n"},
		{"another pool", "pxe: {}", "pxe: {lease: 2h}", "set pxe lab (lease)\n"},
		{"another ageing time", "{name: lan}", "{name: lan, ageing_time: 60s}", "replace switch lan (ageing_time)\n"},
		{"defaults", "switches:", "defaults: {adapter: {router_guard: true}}\nswitches:", "set defaults  (for adapters to come)\nset adapter web (router_guard)\nset adapter web-1 (router_guard)\nset adapter db (router_guard)\n"},
		{"memory", "- name: web", "- name: web\n    memory: 1G", "set vm web (memory, when it is started again)\n"},
		{"all", before, "switches: [{name: other}]\n", "remove adapter web ()\nremove adapter web-1 ()\nremove adapter db ()\nremove switch lan ()\nremove switch lab ()\nadd switch other (private)\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := New(parse(t, dir, before), Options{Dir: dir, Log: quiet})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if _, err := w.AddAdapter(api.AdapterRequest{Name: "guest", Switch: "lan"}, true); err != nil {
				t.Fatal(err)
			}
			next := parse(t, dir, strings.Replace(before, c.edit, c.with, 1))
			for _, dry := range []bool{true, false} {
				changes, err := w.Apply(next, dry)
				if err != nil || text(changes) != c.want {
					t.Errorf("dry %v: got %v\n%swant\n%s", dry, err, text(changes), c.want)
				}
			}
			if again, err := w.Apply(next, false); err != nil || len(again) != 0 {
				t.Errorf("applied again: %v, %v", text(again), err)
			}
			if got, want := w.Config(), next; !same(t, got, want) {
				t.Errorf("it runs\n%swant\n%s", marshal(t, got), marshal(t, want))
			}
			if !strings.Contains(fmt.Sprint(w.Status()), " guest ") && !strings.Contains(fmt.Sprint(w.Status()), "{guest ") {
				t.Error("the temporary adapter is gone")
			}
		})
	}
}

// same compares configurations, in which the order of switches and VMs means nothing.
func same(t *testing.T, a, b *config.Config) bool {
	lines := func(c *config.Config) map[string]bool {
		set := map[string]bool{}
		for _, s := range c.Switches {
			set[marshal(t, &config.Config{Switches: []config.Switch{s}})] = true
		}
		for _, v := range c.VMs {
			set[marshal(t, &config.Config{VMs: []config.VM{v}})] = true
		}
		set[marshal(t, &config.Config{Defaults: c.Defaults, MACPool: c.MACPool})] = true
		return set
	}
	return fmt.Sprint(lines(a)) == fmt.Sprint(lines(b))
}

func marshal(t *testing.T, c *config.Config) string {
	t.Helper()
	text, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// If one change cannot be made, those before it are taken back.
func TestApplyFails(t *testing.T) {
	dir := t.TempDir()
	w, err := New(parse(t, dir, before), Options{Dir: dir, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	was := marshal(t, w.Config())
	next := parse(t, dir, strings.Replace(strings.Replace(before, "{name: lan}", "{name: lan, pxe: {root: nowhere}}", 1), "  - {name: db, adapters: [{switch: lan}]}\n", "", 1))
	if _, err := w.Apply(next, false); err == nil || !strings.Contains(err.Error(), `add pxe "lan": switch "lan": pxe: root: open `) || !strings.HasSuffix(err.Error(), ": nothing is changed") {
		t.Errorf("got %v", err)
	}
	if got := w.Config(); !same(t, got, parse(t, dir, was)) {
		t.Errorf("it runs\n%swant\n%s", marshal(t, got), was)
	}
	wantFiles(t, dir, "db.sock", "web-1.sock", "web.sock")
}

// The operator's verbs change the running configuration as a file would.
func TestChangeAdapter(t *testing.T) {
	dir := t.TempDir()
	w, err := New(parse(t, dir, before), Options{Dir: dir, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	off, lab, none, lost := false, "lab", "", "lost"
	five := &config.VLAN{Access: 5}
	for _, c := range []struct {
		name    string
		change  api.AdapterChange
		want    string // in the running configuration
		wantErr string
	}{
		{"web", api.AdapterChange{Policy: config.Policy{VLAN: five}}, "vlan:\n      access: 5", ""},
		{"web", api.AdapterChange{Policy: config.Policy{MACSpoofing: &off}}, "mac_spoofing: false", ""},
		{"web", api.AdapterChange{Switch: &lab}, "switch: lab\n    kind: legacy", ""},
		{"web", api.AdapterChange{Switch: &none, NoVLAN: true}, "switch: none", ""},
		{"web", api.AdapterChange{Switch: &lost, Policy: config.Policy{VLAN: five}}, "switch: none", `there is no switch "lost"`},
		{"web", api.AdapterChange{Policy: config.Policy{Link: "sideways"}}, "", `adapter "web": policy: link "sideways" is not one of: up, down`},
		{"nobody", api.AdapterChange{}, "", `there is no adapter "nobody"`},
	} {
		err := w.ChangeAdapter(c.name, c.change)
		if fmt.Sprint(err) != c.wantErr && (err != nil || c.wantErr != "") {
			t.Errorf("%+v: got %v, want %q", c.change, err, c.wantErr)
		}
		if got := marshal(t, w.Config()); !strings.Contains(got, c.want) {
			t.Errorf("%+v: it runs\n%swant %q in it", c.change, got, c.want)
		}
	}
	if got := marshal(t, w.Config()); strings.Contains(got, "vlan") {
		t.Errorf("the VLAN is still there:\n%s", got)
	}
	if err := w.RemoveSwitch("lan"); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.Status().Adapters {
		if p.Name == "db" {
			return
		}
	}
	t.Errorf("the adapter of a removed switch is not among the disconnected: %+v", w.Status())
}

// Each key of a policy reaches the switch.
func TestPortOptions(t *testing.T) {
	mac := vswitch.MAC{0, 0x15, 0x5d, 0, 0, 1}
	c := parse(t, "/", `
switches: [{name: lan}]
vms:
  - name: a
    adapters:
      - switch: lan
        mac_spoofing: false
        dhcp_guard: true
        router_guard: true
        bpdu: shutdown
        storm_limit: 100
        bandwidth: 100M
        mirror: source
        link: down
        vlan: {trunk: "1-3", native: 4}
        acl:
          - {action: deny, direction: in, remote: 10.0.0.0/8, protocol: tcp, local_port: 22, remote_port: 1024-65535}
          - {action: allow, direction: out, remote: "00:15:5d:00:00:09"}
          - {action: meter, protocol: arp}
          - {action: deny, protocol: icmpv6}
`)
	o := portOptions(&c.VMs[0].Adapters[0].Policy, mac)
	var trunk vswitch.VLANSet
	trunk.Add(1, 3)
	if o.VLAN != (vswitch.VLAN{Mode: vswitch.VLANTrunk, Native: 4, Allowed: trunk}) {
		t.Errorf("VLAN %+v", o.VLAN)
	}
	if len(o.MACs) != 1 || o.MACs[0] != mac || o.Spoofing || !o.DHCPGuard || !o.RouterGuard || o.BPDU != vswitch.BPDUShutdown ||
		o.StormLimit != 100 || o.Bandwidth != 100e6 || o.Mirror != vswitch.MirrorSource || !o.LinkDown {
		t.Errorf("%+v", o)
	}
	want := []string{
		"{deny out 00:00:00:00:00:00 00:00:00:00:00:00 0 10.0.0.0/8 invalid Prefix 6 {1024 65535} {22 22}}",
		"{allow in 00:00:00:00:00:00 00:15:5d:00:00:09 0 invalid Prefix invalid Prefix 0 {0 0} {0 0}}",
		"{meter out 00:00:00:00:00:00 00:00:00:00:00:00 2054 invalid Prefix invalid Prefix 0 {0 0} {0 0}}",
		"{meter in 00:00:00:00:00:00 00:00:00:00:00:00 2054 invalid Prefix invalid Prefix 0 {0 0} {0 0}}",
		"{deny out 00:00:00:00:00:00 00:00:00:00:00:00 34525 invalid Prefix invalid Prefix 58 {0 0} {0 0}}",
		"{deny in 00:00:00:00:00:00 00:00:00:00:00:00 34525 invalid Prefix invalid Prefix 58 {0 0} {0 0}}",
	}
	for i, r := range o.ACL {
		if i >= len(want) || fmt.Sprint(r) != want[i] {
			t.Errorf("rule %d: %v", i+1, r)
		}
	}
	if len(o.ACL) != len(want) {
		t.Errorf("%d rules, want %d", len(o.ACL), len(want))
	}
	for text, want := range map[string]vswitch.VLAN{
		"access: 7":                    {Mode: vswitch.VLANAccess, ID: 7},
		"primary: 7, isolated: 8":      {Mode: vswitch.VLANIsolated, ID: 7, Secondary: 8},
		"primary: 7, community: 8":     {Mode: vswitch.VLANCommunity, ID: 7, Secondary: 8},
		"primary: 9, promiscuous: 1-3": {Mode: vswitch.VLANPromiscuous, ID: 9, Allowed: trunk},
	} {
		c := parse(t, "/", "switches: [{name: lan}]\nvms: [{name: a, adapters: [{switch: lan, vlan: {"+text+"}}]}]\n")
		if got := portOptions(&c.VMs[0].Adapters[0].Policy, mac).VLAN; got != want {
			t.Errorf("%s: got %+v", text, got)
		}
	}
}

// The pool gives each adapter the same address, over restarts too, and none twice.
func TestMACPool(t *testing.T) {
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	text := `
mac_pool: 00:15:5d:4d:00:fe-00:15:5d:4d:01:01
switches: [{name: lan}]
vms: [{name: a, adapters: [{switch: lan}, {switch: lan, mac: "00:15:5d:4d:00:fe"}]}, {name: b, adapters: [{switch: lan}]}]
`
	macs := func(c *config.Config) (list []string) {
		w, err := New(c, Options{Dir: dir, StateDir: state, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for _, vm := range w.Config().VMs {
			for _, a := range vm.Adapters {
				list = append(list, a.Name+" "+a.MAC.String())
			}
		}
		return list
	}
	first := macs(parse(t, dir, strings.Replace(text, `, {switch: lan, mac: "00:15:5d:4d:00:fe"}`, "", 1)))
	if fmt.Sprint(first) != "[a 00:15:5d:4d:00:fe b 00:15:5d:4d:00:ff]" {
		t.Errorf("at first: %v", first)
	}
	again := macs(parse(t, dir, "mac_pool: 00:15:5d:4d:00:fe-00:15:5d:4d:01:01\nswitches: [{name: lan}]\nvms: [{name: c, adapters: [{switch: lan}]}, {name: b, adapters: [{switch: lan}]}]\n"))
	if fmt.Sprint(again) != "[c 00:15:5d:4d:01:00 b 00:15:5d:4d:00:ff]" {
		t.Errorf("after a restart, with another VM first: %v", again)
	}

	w, err := New(parse(t, dir, "mac_pool: 00:15:5d:4d:00:fe-00:15:5d:4d:01:01\nswitches: [{name: lan}]\n"), Options{Dir: dir, StateDir: state, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for i := range 5 {
		if last != nil {
			t.Fatal(last)
		}
		_, last = w.AddAdapter(api.AdapterRequest{Name: fmt.Sprint("g", i), Switch: "lan"}, false)
	}
	if last == nil || !strings.Contains(last.Error(), "mac_pool: no address from 00:15:5d:4d:00:fe to 00:15:5d:4d:01:01 is left: widen the range") {
		t.Errorf("an empty pool: %v", last)
	}
	// An adapter that is no more leaves its address to one that comes; one that is temporary only borrows it.
	if err := w.RemoveAdapter("g1"); err != nil {
		t.Fatal(err)
	}
	g1 := w.pool.given["g1"].String()
	guest, err := w.AddAdapter(api.AdapterRequest{Name: "guest", Switch: "lan"}, true)
	if err != nil || guest.MAC != g1 {
		t.Errorf("a temporary adapter: %+v, %v; want the address %s of one that is no more", guest, err, g1)
	}
	if err := w.RemoveAdapter("guest"); err != nil {
		t.Fatal(err)
	}
	if back, err := w.AddAdapter(api.AdapterRequest{Name: "g1", Switch: "lan"}, false); err != nil || back.MAC != g1 {
		t.Errorf("it comes again: %+v, %v; want the address %s", back, err, g1)
	}

	w.Close()
	if err := os.WriteFile(filepath.Join(state, poolFile), []byte("no JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(parse(t, dir, text), Options{Dir: t.TempDir(), StateDir: state, Log: quiet}); err == nil || !strings.Contains(err.Error(), "mend it, or remove it") {
		t.Errorf("a spoilt file: %v", err)
	}
	if _, err := New(parse(t, dir, text), Options{Dir: t.TempDir(), Log: quiet}); err == nil || !strings.Contains(err.Error(), "give --state-dir") {
		t.Errorf("no directory of state: %v", err)
	}
}
