package e2e

import (
	"strings"
	"testing"

	"polder/testdata/guest"
)

// umlSwitch is a switch with a boot service, three machines for User Mode Linux, one with packed rings, one with split
// ones and one without offloads as well, and one with a legacy adapter.
const umlSwitch = `
switches:
  - name: default
    pxe: {}
vms:
  - {name: old, memory: 256M, adapters: [{mac: "00:15:5d:00:00:0a"}]}
  - {name: a, adapters: [{kind: synthetic, mac: "00:15:5d:00:00:0b"}]}
  - {name: b, adapters: [{kind: synthetic, packed: false, mac: "00:15:5d:00:00:0c"}]}
  - {name: plain, adapters: [{kind: synthetic, packed: false, offload: false, mac: "00:15:5d:00:00:0d"}]}
`

// TestUML connects Linux guests that have the kernel's own virtio_net at the speed of the machine: with each other,
// with and without offloads, and with one that has a legacy adapter. Every frame that any of them receives is judged.
func TestUML(t *testing.T) {
	t.Parallel()
	d := serve(t, umlSwitch)
	guests := map[string]*guest.Guest{
		"old": start(t, d.machine(t, "old", append(linux("net0=dhcp", "run=hold"), "-no-reboot")...)),
	}
	for vm, has := range map[string]struct{ mac, packed string }{
		"a": {"00:15:5d:00:00:0b", "1"}, "b": {"00:15:5d:00:00:0c", "0"}, "plain": {"00:15:5d:00:00:0d", "0"},
	} {
		g, err := guest.StartUML(cache, guest.UMLConfig{
			Name: vm, Initramfs: umlInitramfs, Adapters: []string{d.Socket(vm)}, Words: []string{"net0=down", "run=hold"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		expect(t, g, bootLimit, `^NIC eth0 .* virtio_net`, `^T_HOLD`)
		// vhost-user has no way to tell it, and QEMU is not there to.
		command(t, g, "ip link set eth0 address "+has.mac+"; configure eth0 dhcp")
		if packed := command(t, g, "cut -c 35 /sys/class/net/eth0/device/features"); packed != has.packed {
			t.Errorf("%s: VIRTIO_F_RING_PACKED is %s, want %s", vm, packed, has.packed)
		}
		guests[vm] = g
	}
	expect(t, guests["old"], bootLimit, `^T_HOLD`)
	address := map[string]string{}
	for vm, g := range guests {
		ip := command(t, g, "ip -4 -o addr show dev eth0 | awk '{ print $4 }'")
		if !strings.HasPrefix(ip, "10.21.140.") {
			t.Fatalf("%s: address %q, want one of the boot service's", vm, ip)
		}
		address[vm] = strings.TrimSuffix(ip, "/24")
		command(t, g, "step_serve")
	}
	for _, c := range []struct {
		a, b  string
		whole bool // both are offered offloads
	}{
		{"a", "b", true},
		{"a", "plain", false},
		{"a", "old", false},
		{"plain", "old", false},
	} {
		t.Run(c.a+" and "+c.b, func(t *testing.T) {
			if out := command(t, guests[c.a], "step_ping "+address[c.b]); !strings.Contains(out, " ok ") {
				t.Fatal(out)
			}
			exchange(t, guests[c.a], guests[c.b], address[c.b], c.whole)
		})
	}
}
