package main

import (
	"fmt"
	"os"
	"path/filepath"

	"polder/testdata/guest"
)

// The adapter's own boot ROM against the one that QEMU's users have: Debian's iPXE ROM on QEMU's own rtl8139,
// with dnsmasq on a TAP device. Both load pxelinux.0, and that Debian's installer.

var romComparisons = []comparison{
	{name: "rom-tftp-ipxe", unit: "MB/s", higher: true, ours: romRate(romOurs), peer: romRate(romIPXE)},
	{name: "rom-start-ipxe", unit: "s", ours: romStart(romOurs), peer: romStart(romIPXE)},
}

// romLoaded are what pxelinux loads.
var romLoaded = []string{"linux", "initrd.gz"}

const romConfig = `serial 0 115200
default install
label install
  kernel linux
  initrd initrd.gz
  append console=ttyS0 panic=-1 rdinit=/bin/false
`

// romBooter starts a guest that boots pxelinux.0 from its adapter's ROM.
type romBooter func() (g *guest.Guest, stop func(), err error)

// romRate measures how fast pxelinux loads the kernel and the initrd, in MB/s, by its own console.
func romRate(boot romBooter) func() (float64, error) {
	return func() (float64, error) {
		g, stop, err := boot()
		if err != nil {
			return 0, err
		}
		defer stop()
		size := int64(0)
		for _, name := range romLoaded {
			info, err := os.Stat(cache.Path("installer/" + name))
			if err != nil {
				return 0, err
			}
			size += info.Size()
		}
		_, begin, err := g.ExpectAt(bootLimit, `Loading linux`)
		if err != nil {
			return 0, err
		}
		_, end, err := g.ExpectAt(bootLimit, `Linux version`)
		return float64(size) / 1e6 / end.Sub(begin).Seconds(), err
	}
}

// romStart measures the time from the BIOS's call of the ROM to the boot program's first line, in seconds.
func romStart(boot romBooter) func() (float64, error) {
	return func() (float64, error) {
		g, stop, err := boot()
		if err != nil {
			return 0, err
		}
		defer stop()
		_, begin, err := g.ExpectAt(bootLimit, `Booting from ROM`)
		if err != nil {
			return 0, err
		}
		_, end, err := g.ExpectAt(bootLimit, `PXELINUX`)
		return end.Sub(begin).Seconds(), err
	}
}

// romRoot makes a directory as pxelinux needs it.
func romRoot() (dir string, err error) {
	if dir, err = os.MkdirTemp(scratch, "root-"); err != nil {
		return "", err
	}
	// A TFTP server that gives up root's rights must still be able to read them.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"boot/pxelinux.0", "boot/ldlinux.c32", "installer/linux", "installer/initrd.gz"} {
		content, err := os.ReadFile(cache.Path(name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), content, 0o644); err != nil {
			return "", err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "pxelinux.cfg"), 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "pxelinux.cfg", "default"), []byte(romConfig), 0o644)
}

// romOurs boots with polder run: its adapter, its ROM, its service.
func romOurs() (*guest.Guest, func(), error) {
	program, err := polder()
	if err != nil {
		return nil, nil, err
	}
	root, err := romRoot()
	if err != nil {
		return nil, nil, err
	}
	g, err := guest.Start(cache, guest.Config{
		Name: "polder", MemoryMiB: 512, OwnMemory: true,
		Launcher: []string{program, "run", "--runtime-dir", filepath.Join(scratch, "run"), "--root", root, "--"},
		Args:     []string{"-boot", "n", "-no-reboot"},
	})
	if err != nil {
		return nil, nil, err
	}
	return g, func() { g.Close(); os.RemoveAll(root) }, nil
}

// romIPXE boots with QEMU's rtl8139, the ROM that comes with it, and dnsmasq on a TAP device.
func romIPXE() (*guest.Guest, func(), error) {
	root, err := romRoot()
	if err != nil {
		return nil, nil, err
	}
	n, err := tapNamespace()
	if err != nil {
		return nil, nil, err
	}
	stop, err := n.background("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0",
		"--interface=tap0", "--bind-interfaces", "--pid-file=", "--log-facility=/dev/null",
		"--dhcp-range=10.9.0.100,10.9.0.200", "--dhcp-leasefile="+filepath.Join(root, "leases"),
		"--dhcp-boot=pxelinux.0", "--enable-tftp", "--tftp-root="+root)
	if err != nil {
		n.close()
		return nil, nil, err
	}
	var g *guest.Guest
	err = n.do(func() (err error) {
		g, err = guest.Start(cache, guest.Config{Name: "rtl8139", MemoryMiB: 512, Args: []string{
			"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "rtl8139,netdev=n0",
			"-boot", "n", "-no-reboot"}})
		return err
	})
	if err != nil {
		stop()
		n.close()
		return nil, nil, fmt.Errorf("rtl8139: %w", err)
	}
	return g, func() { g.Close(); stop(); n.close(); os.RemoveAll(root) }, nil
}
