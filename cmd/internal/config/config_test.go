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

// Each bad file gets one sentence that begins with the position.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, edit, with, want string }{
		{"unknown key", "lease: 2h", "leese: 2h", `f.yaml:9:7: unknown key "leese": did you mean "lease"?`},
		{"unknown key, nothing near", "lease: 2h", "frobnicate: 2h", `f.yaml:9:7: unknown key "frobnicate"`},
		{"bad pool", "10.9.0.100-10.9.0.200", "10.9.0.100", `"10.9.0.100" is no range of addresses`},
		{"pool elsewhere", "10.9.0.100-10.9.0.200", "10.8.0.100-10.8.0.200", `f.yaml:7:13: switch "lab": pxe: pool 10.8.0.100-10.8.0.200 is not a range inside 10.9.0.0/24`},
		{"no MAC", "00:15:5d:00:00:01", "00:15:5d", "00:15:5d"},
		{"swapped MAC", "00:15:5d:00:00:01", "02:00:00:00:00:01", "Linux's tulip driver swaps the bytes"},
		{"group MAC", "00:15:5d:00:00:01", "01:15:5d:00:00:01", "is a multicast address"},
		{"type", "type: private", "type: external", `f.yaml:4:11: switch "lab": type "external" is not one of: private`},
		{"no such switch", "- {switch: lab}", "- {switch: lob}", `f.yaml:22:9: vm "web01": there is no switch "lob"`},
		{"name", "name: web01", "name: web/01", `"web/01" cannot be a name`},
		{"memory", "memory: 1G", "memory: much", `"much" is no amount of memory`},
		{"two boots", "kernel: linux", "kernel: linux\n          file: pxelinux.0", "exactly one of file, script and kernel"},
		{"reservation elsewhere", "address: 10.9.0.7", "address: 10.8.0.7", "reservation of 10.8.0.7"},
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
	c, err := Parse("f.yaml", nil)
	if err != nil || len(c.Switches) != 0 {
		t.Errorf("got %+v, %v", c, err)
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
