package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"polder/vswitch"
)

const lab = `
switches:
  - name: lab
    type: private
    pxe:
      address: 10.9.0.1/24
      pool: 10.9.0.100-10.9.0.200
      root: boot
      lease: 2h
      boot:
        - match: {mac: "00:15:5d:*", arch: [0]}
          kernel: linux
          initrd: [initrd.gz]
          append: console=ttyS0
      reservations:
        - {mac: "00:15:5d:00:00:07", address: 10.9.0.7, hostname: seven}
vms:
  - name: web01
    memory: 1G
    adapters:
      - {switch: lab, mac: "00:15:5d:00:00:01"}
      - {switch: lab}
`

func TestParse(t *testing.T) {
	c, err := Parse("/etc/polder/polder.yaml", []byte(lab))
	if err != nil {
		t.Fatal(err)
	}
	p := c.Switches[0].PXE
	if p.Root != "/etc/polder/boot" {
		t.Errorf("root %q does not start at the file's directory", p.Root)
	}
	if s := c.Switches[0]; s.MTU != 1500 || s.AgeingTime != 300*time.Second { // as the operator's verbs say them: no difference
		t.Errorf("the MTU is %d, the ageing time %v", s.MTU, s.AgeingTime)
	}
	if p.Lease != 2*time.Hour || p.Pool.Last != netip.MustParseAddr("10.9.0.200") {
		t.Errorf("lease %v, pool %v", p.Lease, p.Pool)
	}
	if vm := c.VMs[0]; vm.Memory != 1<<30 || vm.Adapters[1].Kind != "legacy" {
		t.Errorf("vm %+v", vm)
	}
	if m := vswitch.MAC(c.VMs[0].Adapters[1].MAC); m != DeriveMAC("web01-1") || CheckMAC(m) != nil {
		t.Errorf("the second adapter's MAC address is %v", m)
	}
}

func TestParseSynthetic(t *testing.T) {
	c, err := Parse("f.yaml", []byte(strings.Replace(lab, "- {switch: lab}", "- {switch: lab, kind: synthetic, queues: 2, packed: false, socket: {path: web.sock, mode: client}}", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if a := c.VMs[0].Adapters[1]; a.Kind != KindSynthetic || a.Queues != 2 || a.Packed == nil || *a.Packed || a.Offload != nil || a.Socket != (Socket{"web.sock", ModeClient}) {
		t.Errorf("%+v", a)
	}
}

func TestParseNetwork(t *testing.T) {
	c, err := Parse("f.yaml", []byte(`
defaults: {adapter: {mac_spoofing: false, bandwidth: 100M, acl: [{action: meter}]}}
mac_pool: 00:15:5d:4d:00:00-00:15:5d:4d:00:ff
switches:
  - {name: lan, type: external, uplink: {nic: eno1}}
  - {name: own, type: external, uplink: {nic: eno2, driver: packet}, allow_management_os: false}
  - {name: host, type: internal, management: {address: [192.168.77.1/24, "fd00::1/64"], nat: true}}
vms:
  - name: fw
    adapters:
      - {switch: lan, vlan: {trunk: "200,1-100,101", native: 10}, mac_spoofing: true, dhcp_guard: true}
      - {switch: host, vlan: {primary: 10, promiscuous: 200}, acl: [{action: deny, remote: 10.1.2.3, protocol: tcp, remote_port: 22}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	lan, own, host := c.Switches[0], c.Switches[1], c.Switches[2]
	if lan.Uplink.Driver != DriverBridge || lan.Management == nil || !lan.HostUses() {
		t.Errorf("external: %+v, %+v", lan.Uplink, lan.Management)
	}
	if own.Management != nil || own.HostUses() {
		t.Errorf("the host is on a switch that it is kept from: %+v", own.Management)
	}
	if m := host.Management; m.MAC != MAC(DeriveMAC("management.host")) || len(m.Address) != 2 || !m.NAT {
		t.Errorf("management: %+v", m)
	}
	first, second := c.VMs[0].Adapters[0], c.VMs[0].Adapters[1]
	if v := first.VLAN; v.Trunk.String() != "1-101,200" || v.Native != 10 {
		t.Errorf("trunk: %v, native %d", v.Trunk, v.Native)
	}
	if !*first.MACSpoofing || !*first.DHCPGuard || *first.Bandwidth != 100e6 || len(first.ACL) != 1 {
		t.Errorf("the first adapter's policy: %+v", first.Policy)
	}
	if first.MAC != (MAC{}) {
		t.Errorf("an adapter has the address %v before the pool gives it one", vswitch.MAC(first.MAC))
	}
	if *second.MACSpoofing || second.DHCPGuard != nil || len(second.ACL) != 1 || second.ACL[0].Action != ACLDeny {
		t.Errorf("the second adapter's policy: %+v", second.Policy)
	}
	if p, ok := second.ACL[0].RemotePrefix(); !ok || p != netip.MustParsePrefix("10.1.2.3/32") {
		t.Errorf("remote: %v, %v", p, ok)
	}
}

// What is written is read as the same.
func TestMarshal(t *testing.T) {
	text := strings.Replace(lab, "- {switch: lab}", `- {switch: lab, kind: synthetic, queues: 2, packed: false, vlan: {trunk: "1-9", native: 3}, bandwidth: 2.5G, storm_limit: 100,
         acl: [{action: deny, remote: "10.0.0.0/8", protocol: tcp, remote_port: 22}], bootindex: 0, mac_spoofing: false, link: down}
  - {name: "007", adapters: [{switch: host}]}`, 1)
	text = strings.Replace(text, "vms:", `  - {name: host, type: internal, ageing_time: 90s, management: {address: [192.168.77.1/24, "fd00::1/64"], mac: "00:15:5d:00:00:0a"}}
  - {name: lan, type: external, uplink: {nic: eno1}, allow_management_os: false}
vms:`, 1)
	want, err := Parse("/etc/polder.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("/etc/polder.yaml", out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v\n%s", got, want, out)
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{"0": 0, "64000": 64000, "100M": 100e6, "2.5G": 2500e6, "1k": 1000} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "M", "-1", "NaN", "1e99", "fast"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
	for r, want := range map[Rate]string{0: "0", 64000: "64K", 100e6: "100M", 2500e6: "2500M", 1001: "1001", 1e12: "1T"} {
		if r.String() != want {
			t.Errorf("%d: got %v, want %s", uint64(r), r, want)
		}
		if back, err := ParseRate(r.String()); err != nil || back != r {
			t.Errorf("%v reads as %v, %v", r, back, err)
		}
	}
}

// Each bad file gets one sentence that begins with the position.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, edit, with, want string }{
		{"unknown key", "lease: 2h", "leese: 2h", `f.yaml:9:7: unknown key "leese": did you mean "lease"?`},
		{"unknown key, nothing near", "lease: 2h", "frobnicate: 2h", `f.yaml:9:7: unknown key "frobnicate": here can be address, boot, dns, lease, pool, reservations, root, router`},
		{"unknown key at the top", "switches:", "switchs: []\nswitches:", `f.yaml:2:1: unknown key "switchs": did you mean "switches"?`},
		{"a key of another place", "- {switch: lab}", "- {switch: lab, memroy: 1G}", `f.yaml:22:23: unknown key "memroy": here can be acl, bandwidth, bootindex, `},
		{"unknown key in a rule", "- {switch: lab}", "- {switch: lab, acl: [{action: deny, port: 22}]}", `f.yaml:22:44: unknown key "port": here can be action, direction, local_port, protocol, remote, remote_port`},
		{"bad pool", "10.9.0.100-10.9.0.200", "10.9.0.100", `f.yaml:7:13: "10.9.0.100" is no range of addresses: write it like 10.21.140.100-10.21.140.200`},
		{"address without prefix", "10.9.0.1/24", "10.9.0.1", `f.yaml:6:16: "10.9.0.1" is no address with the length of its network's prefix: write it like 10.21.140.1/24`},
		{"no address", "address: 10.9.0.7", "address: seven.lab", `"seven.lab" is no IP address: write it like 10.21.140.1`},
		{"no length of time", "lease: 2h", "lease: two hours", `f.yaml:9:14: "two hours" is no length of time: write it like 90s or 2h`},
		{"a time without unit", "lease: 2h", "lease: 3600", `f.yaml:9:14: "3600" is no length of time`},
		{"pool elsewhere", "10.9.0.100-10.9.0.200", "10.8.0.100-10.8.0.200", `f.yaml:7:13: switch "lab": pxe: pool 10.8.0.100-10.8.0.200 is not a range of clients' addresses in 10.9.0.0/24`},
		{"pool with the broadcast address", "10.9.0.100-10.9.0.200", "10.9.0.100-10.9.0.255", "is not a range of clients' addresses in 10.9.0.0/24"},
		{"no pool above the address", "address: 10.9.0.1/24\n      pool: 10.9.0.100-10.9.0.200", "address: 10.9.0.254/24", `f.yaml:6:14: switch "lab": pxe: pool 10.9.0.255-10.9.0.255 is not a range`},
		{"pool backwards", "10.9.0.100-10.9.0.200", "10.9.0.200-10.9.0.100", "is not a range of clients' addresses in 10.9.0.0/24"},
		{"the network's address", "address: 10.9.0.1/24", "address: 10.9.0.0/24", `f.yaml:6:16: switch "lab": pxe: address 10.9.0.0/24 stands for the whole network: take another in it, like 10.9.0.1/24`},
		{"the broadcast address", "address: 10.9.0.1/24", "address: 10.9.0.255/24", "stands for the whole network"},
		{"no room for a pool", "address: 10.9.0.1/24", "address: 10.9.0.1/31", "an IPv4 address with a prefix of at most 30 bits, like 10.21.140.1/24"},
		{"IPv6", "address: 10.9.0.1/24", `address: "fe80::1/64"`, "an IPv4 address with a prefix"},
		{"a second switch", "vms:", "  - name: lab\nvms:", `f.yaml:17:11: a second switch "lab"`},
		{"a switch named none", "name: lab", "name: none", `"none" stands for no switch: take another name`},
		{"a second VM", "vms:", "vms:\n  - {name: web01}", `f.yaml:19:11: a second VM "web01"`},
		{"the same adapter twice", "vms:", "vms:\n  - {name: web01-1, adapters: [{switch: lab}]}", `a second adapter "web01-1"`},
		{"the same MAC address", "- {switch: lab}", `- {switch: lab, mac: "00:15:5d:00:00:01"}`, "web01-1 has the MAC address of web01"},
		{"a name of Polder's", "name: web01", "name: control", `"control" is a name that Polder uses itself: take another`},
		{"bootindex", "- {switch: lab}", "- {switch: lab, bootindex: -1}", `f.yaml:22:34: vm "web01": bootindex -1: from 0`},
		{"kind", "- {switch: lab}", "- {switch: lab, kind: virtio}", `f.yaml:22:29: vm "web01": kind "virtio" is not one of: legacy, synthetic`},
		{"queues", "- {switch: lab}", "- {switch: lab, kind: synthetic, queues: 129}", `vm "web01": queues 129: from 1 to 128`},
		{"queues of a legacy adapter", "- {switch: lab}", "- {switch: lab, queues: 2}", `f.yaml:22:31: vm "web01": queues is for adapters of kind synthetic`},
		{"offload of a legacy adapter", "- {switch: lab}", "- {switch: lab, offload: false}", "offload is for adapters of kind synthetic"},
		{"the same key twice", "lease: 2h", "lease: 2h\n      lease: 3h", `f.yaml:10:7: mapping key "lease" already defined`},
		{"no MAC", "\"00:15:5d:00:00:01\"", "00:15:5d", `f.yaml:21:28: "00:15:5d" is no MAC address: write it like 00:15:5d:01:02:03`},
		{"swapped MAC", "00:15:5d:00:00:01", "02:00:00:00:00:01", "Linux's tulip driver swaps the bytes"},
		{"group MAC", "00:15:5d:00:00:01", "01:15:5d:00:00:01", "is a multicast address"},
		{"type", "type: private", "type: public", `f.yaml:4:11: switch "lab": type "public" is not one of: private, internal, external`},
		{"no uplink", "type: private", "type: external", `f.yaml:3:9: switch "lab": an external switch needs an uplink with exactly one of nic`},
		{"uplink of a private switch", "type: private", "uplink: {nic: eno1}", `f.yaml:4:13: switch "lab": uplink is for switches of type external`},
		{"driver", "type: private", "type: external\n    uplink: {nic: eno1, driver: dpdk}", `f.yaml:5:33: switch "lab": uplink: driver "dpdk" is not one of: bridge, packet`},
		{"packet with a bridge", "type: private", "type: external\n    uplink: {bridge: br0, driver: packet}", `driver packet takes a nic, not a bridge`},
		{"an interface's name", "type: private", "type: external\n    uplink: {nic: a-name-of-16-byte}", `f.yaml:5:19: switch "lab": uplink: "a-name-of-16-byte" cannot name a network interface`},
		{"host on a private switch", "type: private", "management: {address: [10.9.0.2/24]}", `the host is not on a private switch: take type internal`},
		{"address of an external switch", "type: private", "type: external\n    uplink: {nic: eno1}\n    management: {address: [10.9.0.2/24]}", `leave out address, mac and nat`},
		{"NAT without address", "type: private", "type: internal\n    management: {nat: true}", `f.yaml:5:23: switch "lab": management: nat needs an IPv4 address`},
		{"host's network address", "type: private", "type: internal\n    management: {address: [10.9.0.0/24]}", `address 10.9.0.0/24 stands for the whole network`},
		{"two VLAN modes", "- {switch: lab}", "- {switch: lab, vlan: {access: 1, trunk: 1-9}}", `f.yaml:22:29: vm "web01": vlan: give exactly one of access, trunk, isolated, community and promiscuous`},
		{"VLAN", "- {switch: lab}", "- {switch: lab, vlan: {access: 4095}}", `vm "web01": vlan: access 4095: from 1 to 4094`},
		{"VLANs", "- {switch: lab}", "- {switch: lab, vlan: {trunk: 9-1}}", `f.yaml:22:37: "9-1" is no set of VLANs: write it like 1-100,200`},
		{"native without trunk", "- {switch: lab}", "- {switch: lab, vlan: {access: 3, native: 4}}", `native goes with trunk`},
		{"isolated without primary", "- {switch: lab}", "- {switch: lab, vlan: {isolated: 3}}", `isolated, community and promiscuous need a primary`},
		{"secondary is primary", "- {switch: lab}", "- {switch: lab, vlan: {primary: 3, promiscuous: 1-9}}", `primary 3 is a secondary, too`},
		{"bpdu", "- {switch: lab}", "- {switch: lab, bpdu: dorp}", `vm "web01": bpdu "dorp" is not one of: drop, shutdown, allow`},
		{"rate", "- {switch: lab}", "- {switch: lab, bandwidth: fast}", `"fast" is no number of bits a second: write it like 100M or 2.5G`},
		{"storm limit", "- {switch: lab}", "- {switch: lab, storm_limit: -1}", `storm_limit -1: frames a second, from 0 (no limit)`},
		{"acl action", "- {switch: lab}", "- {switch: lab, acl: [{action: reject}]}", `vm "web01": acl: rule 1: action "reject" is not one of: allow, deny, meter`},
		{"acl remote", "- {switch: lab}", "- {switch: lab, acl: [{action: deny, remote: lab.example}]}", `remote "lab.example" is no MAC address, IP address or prefix`},
		{"acl port", "- {switch: lab}", "- {switch: lab, acl: [{action: deny, remote_port: 22}]}", `local_port and remote_port need protocol tcp or udp`},
		{"acl ports", "- {switch: lab}", "- {switch: lab, acl: [{action: deny, protocol: tcp, local_port: 9-1}]}", `"9-1" is no port or range of ports: write it like 22 or 1024-2047`},
		{"acl families", "- {switch: lab}", "- {switch: lab, acl: [{action: deny, remote: 10.0.0.0/8, protocol: ipv6}]}", `no frame of ipv6 has an address in 10.0.0.0/8`},
		{"defaults", "switches:", "defaults: {adapter: {link: sideways}}\nswitches:", `f.yaml:2:28: defaults: link "sideways" is not one of: up, down`},
		{"pool of MACs", "switches:", "mac_pool: 00:15:5d:4d:00:00\nswitches:", `"00:15:5d:4d:00:00" is no range of MAC addresses`},
		{"pool of MACs backwards", "switches:", "mac_pool: 00:15:5d:4d:00:09-00:15:5d:4d:00:00\nswitches:", `there is no range of addresses for adapters`},
		{"unknown key of a policy", "- {switch: lab}", "- {switch: lab, dhcp_gaurd: true}", `unknown key "dhcp_gaurd": did you mean "dhcp_guard"?`},
		{"no such switch", "- {switch: lab}", "- {switch: lob}", `f.yaml:22:9: vm "web01": there is no switch "lob"`},
		{"name", "name: web01", "name: web/01", `"web/01" cannot be a name`},
		{"memory", "memory: 1G", "memory: much", `f.yaml:19:13: "much" is no amount of memory: write it like 512M or 2G`},
		{"two boots", "kernel: linux", "kernel: linux\n          file: pxelinux.0", "exactly one of file, script and kernel"},
		{"reservation elsewhere", "address: 10.9.0.7", "address: 10.8.0.7", "reservation of 10.8.0.7"},
		{"mtu", "type: private", "mtu: 500", `f.yaml:4:10: switch "lab": mtu 500: from 576 to 65535`},
		{"mtu of a legacy adapter", "type: private", "mtu: 9000", `f.yaml:21:9: vm "web01": switch "lab" has an MTU of 9000, and a legacy adapter's is 1500: take a synthetic adapter or another switch`},
		{"a processor twice", "switches:", "poll_cpus: [1, 2, 1]\nswitches:", `f.yaml:2:19: poll_cpus: processor 1 is listed twice: one worker fills it`},
		{"no processor", "switches:", "poll_cpus: [-1]\nswitches:", `f.yaml:2:13: poll_cpus: there is no processor -1`},
		{"mode of a socket", "- {switch: lab}", "- {switch: lab, socket: {mode: serve}}", `f.yaml:22:38: vm "web01": socket: mode "serve" is not one of: server, client`},
		{"a legacy adapter's client", "- {switch: lab}", "- {switch: lab, socket: {mode: client}}", `f.yaml:22:38: vm "web01": socket: mode client is for adapters of kind synthetic: for a legacy one QEMU does not listen`},
		{"no YAML", "vms:", "vms: [", "f.yaml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(lab, c.edit) {
				t.Fatalf("nothing to edit: %q", c.edit)
			}
			_, err := Parse("f.yaml", []byte(strings.Replace(lab, c.edit, c.with, 1)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %q in it", err, c.want)
			}
		})
	}
}

func TestEmptyFileIsNoSwitch(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing yet\n", "switches:\n"} {
		c, err := Parse("f.yaml", []byte(text))
		if err != nil || len(c.Switches) != 0 {
			t.Errorf("%q: got %+v, %v", text, c, err)
		}
	}
}

func TestPoolAbove(t *testing.T) {
	for _, c := range []struct{ prefix, first, last string }{
		{"10.21.140.1/24", "10.21.140.2", "10.21.140.254"},
		{"192.168.0.100/25", "192.168.0.101", "192.168.0.126"},
		{"10.0.0.1/8", "10.0.0.2", "10.0.3.233"},
		{"10.0.0.1/30", "10.0.0.2", "10.0.0.2"},
	} {
		p := PoolAbove(netip.MustParsePrefix(c.prefix))
		if p.First.String() != c.first || p.Last.String() != c.last {
			t.Errorf("%s: %v-%v, want %s-%s", c.prefix, p.First, p.Last, c.first, c.last)
		}
	}
}

// A switch and a list of rules by themselves are judged as in a file.
func TestParsePieces(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"name: lab\nageing: 3s\n", `request:2:1: unknown key "ageing": here can be ageing_time, `},
		{`{"name":"lab","pxe":{"adress":"10.0.0.1/24"}}`, `request:1:22: unknown key "adress": did you mean "address"?`},
		{"name: lab\nmtu: many\n", "request:2:6: "},
		{"- name: lab\n", "request:1:1: "},
	} {
		if _, err := ParseSwitch("request", []byte(c.text)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: got %v\nwant %s…", c.text, err, c.want)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"- {action: deny}\n- {acton: deny}\n", `rules:2:4: unknown key "acton": did you mean "action"?`},
		{"- {action: forbid}\n", `policy: acl: rule 1: action "forbid" is not one of: allow, deny, meter`},
	} {
		if _, err := ParseACL("rules", []byte(c.text)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: got %v\nwant %s…", c.text, err, c.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"name", "name", 0}, {"nmae", "name", 1}, {"typo", "type", 1}, {"kitten", "sitting", 3},
		{"dhcp_gaurd", "dhcp_guard", 1}, {"ab", "ba", 1}, {"abc", "ca", 3}, {"mtu", "mut", 1},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("from %q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
