package e2e

import (
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// TestInstaller boots Debian's installer from the network, from power-on to its userland: iPXE's own driver finds
// the adapter, and so does the installer's kernel, whose driver also tells the chip.
func TestInstaller(t *testing.T) {
	t.Parallel()
	g := start(t, guest.Config{
		Name: "installer", MemoryMiB: 1024, OwnMemory: true,
		Launcher: []string{polder, "run", "--legacy", "--runtime-dir", t.TempDir(),
			"--root", bootFiles(t, "installer/linux", "installer/initrd.gz"),
			"--kernel", "linux", "--initrd", "initrd.gz",
			"--append", guest.LinuxCommandLine("DEBIAN_FRONTEND=text", "locale=C", "keymap=us", "netcfg/enable=false"), "--"},
		Args: []string{"-no-reboot", "-kernel", cache.Path("boot/ipxe.lkrn")},
	})
	expect(t, g, bootLimit,
		`iPXE initialising devices`,
		`net0: [0-9a-f:]+ using ds21140 on`,
		`(?s)initrd\.gz\.\..* ok`,
		`Linux version`,
		`Media MII .* described by a 21140 MII PHY`,
		`Starting system log daemon`)
	for _, step := range []string{"asks for an address", "has the address 10.21.140.", "has linux: ", "has initrd.gz: "} {
		if !strings.Contains(g.Stderr(), step) {
			t.Errorf("the timeline does not show %q:\n%s", step, g.Stderr())
		}
	}
}

// TestLinux boots a Linux guest from the network, whose kernel and userland use the adapter in their turn.
func TestLinux(t *testing.T) {
	t.Parallel()
	g := start(t, guest.Config{
		Name: "linux", OwnMemory: true,
		Launcher: []string{polder, "run", "--legacy", "--runtime-dir", t.TempDir(),
			"--root", bootFiles(t, "guest/vmlinuz", "guest/initramfs.gz"),
			"--kernel", "vmlinuz", "--initrd", "initramfs.gz",
			"--append", guest.LinuxCommandLine("net0=dhcp", "run=ping:10.21.140.1,tftp:10.21.140.1:vmlinuz"), "--"},
		Args: []string{"-no-reboot", "-kernel", cache.Path("boot/ipxe.lkrn")},
	})
	expect(t, g, bootLimit,
		`Digital DS21140 Tulip rev 32 at Port 0x[0-9a-f]+`,
		`^NIC eth0 00:15:5d:[0-9a-f:]{8} tulip`,
		`^LINK eth0 1`,
		`^UDHCPC ip=10\.21\.140\.\d+/24 server=10\.21\.140\.1 `,
		`^PING 10\.21\.140\.1 ok`,
		`^TFTP vmlinuz ok`,
		`^T_END`)
	if err := g.Wait(time.Minute); err != nil {
		t.Errorf("polder run: %v, want QEMU's status 0", err)
	}
}

// TestIPXEWithoutFiles boots iPXE with nothing to boot: it gets the generated script, which shows its identity.
func TestIPXEWithoutFiles(t *testing.T) {
	t.Parallel()
	g := start(t, guest.Config{
		Name: "ipxe", OwnMemory: true,
		Launcher: []string{polder, "run", "--legacy", "--runtime-dir", t.TempDir(), "--mac", "00:15:5d:01:02:03", "--"},
		Args:     []string{"-no-reboot", "-kernel", cache.Path("boot/ipxe.lkrn")},
	})
	expect(t, g, bootLimit, `00:15:5d:01:02:03 using ds21140 on`, `^MAC address 00:15:5d:01:02:03`, `^Chip ds21140`)
}
