package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// syntheticSwitch is a switch with a boot service, a machine with a legacy adapter and two with synthetic ones.
const syntheticSwitch = `
switches:
  - name: default
    pxe: {}
vms:
  - {name: old, memory: 256M, adapters: [{mac: "00:15:5d:00:00:0a"}]}
  - {name: a, memory: 256M, adapters: [{kind: synthetic, queues: %[1]d, mac: "00:15:5d:00:00:0b"}]}
  - {name: b, memory: 256M, adapters: [{kind: synthetic, queues: %[1]d, mac: "00:15:5d:00:00:0c"}]}
`

// TestSynthetic connects Linux guests whose driver is virtio_net with each other and with one that has a legacy
// adapter. They are given addresses by the boot service.
func TestSynthetic(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		queues int
		global string // properties of the device
	}{
		{"split", 1, ""},
		{"packed, without event index", 1, "packed=on,event_idx=off"},
		{"split, two queue pairs", 2, ""},
		{"packed, two queue pairs, in order", 2, "packed=on,in_order=on"},
		{"without offloads and event index", 1, "event_idx=off,mrg_rxbuf=off,csum=off,guest_csum=off,gso=off,indirect_desc=off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := serve(t, fmt.Sprintf(syntheticSwitch, c.queues))
			guests, address := map[string]*guest.Guest{}, map[string]string{}
			for _, vm := range []string{"old", "a", "b"} {
				args := append(linux("net0=dhcp", "run=hold"), "-no-reboot", "-smp", fmt.Sprint(c.queues))
				for property := range strings.SplitSeq(c.global, ",") {
					if property != "" {
						args = append(args, "-global", "virtio-net-pci."+property)
					}
				}
				guests[vm] = start(t, d.machine(t, vm, args...))
			}
			for vm, driver := range map[string]string{"old": "tulip", "a": "virtio_net", "b": "virtio_net"} {
				expect(t, guests[vm], bootLimit, `^NIC eth0 00:15:5d:00:00:0[abc] `+driver)
				address[vm] = expect(t, guests[vm], bootLimit, `^UDHCPC ip=(10\.21\.140\.\d+)/24 `)[1]
				expect(t, guests[vm], bootLimit, `^T_HOLD`)
				command(t, guests[vm], "step_serve")
			}
			if c.queues > 1 {
				for _, vm := range []string{"a", "b"} {
					command(t, guests[vm], fmt.Sprintf("ethtool -L eth0 combined %d", c.queues))
				}
			}
			for _, pair := range [][2]string{{"a", "b"}, {"a", "old"}} {
				from, to := guests[pair[0]], address[pair[1]]
				if out := command(t, from, "step_ping "+to); !strings.Contains(out, " ok ") {
					t.Fatalf("%s cannot ping %s: %s", pair[0], pair[1], out)
				}
				for _, direction := range []string{"tx", "rx"} {
					out := command(t, from, fmt.Sprintf("step_%s %s 2 -P %d", direction, to, c.queues))
					if rate := iperfRate(t, out); rate <= 0 {
						t.Errorf("iperf3 %s %v moved nothing: %s", direction, pair, out)
					} else {
						t.Logf("iperf3 %s %v: %.0f Mbit/s", direction, pair, rate/1e6)
					}
				}
				exchange(t, from, guests[pair[1]], to, pair[1] != "old" && !strings.Contains(c.global, "gso=off"))
			}
		})
	}
}

// TestSyntheticPXE boots from the network with nothing but the ROM that QEMU gives a virtio device.
func TestSyntheticPXE(t *testing.T) {
	t.Parallel()
	g := start(t, guest.Config{
		Name: "ipxe", OwnMemory: true,
		Launcher: []string{polder, "run", "--synthetic", "--runtime-dir", t.TempDir(), "--bootindex", "0",
			"--root", bootFiles(t, "guest/vmlinuz", "guest/initramfs.gz"),
			"--kernel", "vmlinuz", "--initrd", "initramfs.gz",
			"--append", guest.LinuxCommandLine("net0=dhcp", "run=ping:10.21.140.1,tftp:10.21.140.1:vmlinuz"), "--"},
		Args: []string{"-no-reboot"},
	})
	expect(t, g, bootLimit,
		`iPXE`,
		`^NIC eth0 00:15:5d:[0-9a-f:]{8} virtio_net`,
		`^UDHCPC ip=10\.21\.140\.\d+/24 server=10\.21\.140\.1 `,
		`^PING 10\.21\.140\.1 ok`,
		`^TFTP vmlinuz ok`,
		`^T_END`)
	if err := g.Wait(time.Minute); err != nil {
		t.Errorf("polder run: %v, want QEMU's status 0", err)
	}
}
