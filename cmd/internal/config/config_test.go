package config

import (
	"net/netip"
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
	if c.Switches[0].MTU != 1500 {
		t.Errorf("the MTU is %d", c.Switches[0].MTU)
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

// Each bad file gets one sentence that begins with the position.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, edit, with, want string }{
		{"unknown key", "lease: 2h", "leese: 2h", `f.yaml:9:7: unknown key "leese": did you mean "lease"?`},
		{"unknown key, nothing near", "lease: 2h", "frobnicate: 2h", `f.yaml:9:7: unknown key "frobnicate"`},
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
		{"type", "type: private", "type: external", `f.yaml:4:11: switch "lab": type "external" is not one of: private`},
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
