package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"polder/testdata/guest"
	"polder/testdata/tapport"
)

// Guests that boot with iPXE: how long until the first file is asked for, and how fast a large one comes.

var bootComparisons = []comparison{
	{name: "discover-dnsmasq", unit: "s", ours: discover(bootOurs), peer: discover(bootDnsmasq)},
	{name: "discover-slirp", unit: "s", ours: discover(bootOurs), peer: discover(bootSlirp)},
	{name: "tftp-guest-dnsmasq", unit: "s", ours: fetch(bootOurs), peer: fetch(bootDnsmasq)},
	{name: "tftp-guest-slirp", unit: "s", ours: fetch(bootOurs), peer: fetch(bootSlirp)},
}

// bootFile is the iPXE script that every side serves. It loads the large file between two lines on the console.
const bootFile = "bench.ipxe"

const bootScript = `#!ipxe
echo BENCH-BEGIN
imgfetch initrd.gz && echo BENCH-END || echo BENCH-FAIL
`

// bootLimit is far above what a boot takes without hardware virtualisation.
const bootLimit = 3 * time.Minute

// booter starts a guest that boots bootFile with iPXE. Its waited function waits for the first file request and
// returns the time from the first DISCOVER to it.
type booter func() (g *guest.Guest, waited func() (time.Duration, error), stop func(), err error)

// discover measures the time from iPXE's first DISCOVER to its first TFTP request, in seconds.
func discover(boot booter) func() (float64, error) {
	return func() (float64, error) {
		_, waited, stop, err := boot()
		if err != nil {
			return 0, err
		}
		defer stop()
		d, err := waited()
		return d.Seconds(), err
	}
}

// fetch measures how long iPXE takes to load Debian's initrd, some 40 MB, in seconds, by its own console.
func fetch(boot booter) func() (float64, error) {
	return func() (float64, error) {
		g, _, stop, err := boot()
		if err != nil {
			return 0, err
		}
		defer stop()
		_, begin, err := g.ExpectAt(bootLimit, `BENCH-BEGIN`)
		if err != nil {
			return 0, err
		}
		_, end, err := g.ExpectAt(bootLimit, `BENCH-END`)
		return end.Sub(begin).Seconds(), err
	}
}

// bootRoot makes a directory with the script and the large file.
func bootRoot() (dir string, err error) {
	if dir, err = os.MkdirTemp(scratch, "root-"); err != nil {
		return "", err
	}
	// A TFTP server that gives up root's rights must still be able to read them.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, bootFile), []byte(bootScript), 0o644); err != nil {
		return "", err
	}
	content, err := os.ReadFile(cache.Path("installer/initrd.gz"))
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "initrd.gz"), content, 0o644)
}

// ipxe is the QEMU arguments that start iPXE, which finds the adapter with its own driver.
func ipxe() []string { return []string{"-no-reboot", "-kernel", cache.Path("boot/ipxe.lkrn")} }

// polder builds the program under test, once.
var polder = sync.OnceValues(func() (string, error) {
	program := filepath.Join(scratch, "polder")
	if out, err := exec.Command("go", "build", "-o", program, "polder/cmd/polder").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return program, nil
})

// bootOurs boots with polder serve.
func bootOurs() (*guest.Guest, func() (time.Duration, error), func(), error) {
	program, err := polder()
	if err != nil {
		return nil, nil, nil, err
	}
	root, err := bootRoot()
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := guest.Serve(program, fmt.Sprintf(`
switches:
  - name: default
    pxe: {root: %q, boot: [{file: %s}]}
vms:
  - {name: a, memory: 256M, adapters: [{}]}
`, root, bootFile))
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var begin, end time.Time
	ready, followed := make(chan struct{}), make(chan error, 1)
	go func() {
		followed <- d.Events(ctx, ready, func(e guest.Event) bool {
			switch {
			case e.Kind == "discover" && begin.IsZero():
				begin = e.Time
			case e.Kind == "request":
				end = e.Time
			}
			return end.IsZero()
		})
	}()
	<-ready
	c, err := d.Machine("a", ipxe()...)
	var g *guest.Guest
	if err == nil {
		g, err = guest.Start(cache, c)
	}
	if err != nil {
		cancel()
		d.Close()
		return nil, nil, nil, err
	}
	waited := func() (time.Duration, error) {
		select {
		case err := <-followed:
			return end.Sub(begin), err
		case <-time.After(bootLimit):
			return 0, fmt.Errorf("no file request from iPXE within %v", bootLimit)
		}
	}
	return g, waited, func() { g.Close(); cancel(); d.Close(); os.RemoveAll(root) }, nil
}

// bootDnsmasq boots with QEMU's own tulip on a TAP device and dnsmasq behind it, with IPv4 alone, as libvirt's
// networks and most set-ups by hand have it.
func bootDnsmasq() (*guest.Guest, func() (time.Duration, error), func(), error) {
	root, err := bootRoot()
	if err != nil {
		return nil, nil, nil, err
	}
	n, err := tapNamespace()
	if err != nil {
		return nil, nil, nil, err
	}
	stop, err := n.background("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0",
		"--interface=tap0", "--bind-interfaces", "--pid-file=", "--log-facility=/dev/null",
		"--dhcp-range=10.9.0.100,10.9.0.200", "--dhcp-leasefile="+filepath.Join(root, "leases"),
		"--dhcp-boot="+bootFile, "--enable-tftp", "--tftp-root="+root)
	if err != nil {
		n.close()
		return nil, nil, nil, err
	}
	var g *guest.Guest
	var waited func() (time.Duration, error)
	err = n.do(func() (err error) {
		g, waited, err = bootBuiltin(root, "tap,ifname=tap0,script=no,downscript=no")
		return err
	})
	if err != nil {
		stop()
		n.close()
		return nil, nil, nil, err
	}
	return g, waited, func() { g.Close(); stop(); n.close(); os.RemoveAll(root) }, nil
}

// tapNamespace makes a namespace with a TAP device tap0 for QEMU, which has the address 10.9.0.1/24.
func tapNamespace() (*namespace, error) {
	n, err := newNamespace()
	if err != nil {
		return nil, err
	}
	err = n.do(func() error { return tapport.Make("tap0") })
	if err == nil {
		err = n.ip("addr add 10.9.0.1/24 dev tap0")
	}
	if err == nil {
		err = n.ip("link set tap0 up")
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// bootSlirp boots with QEMU's own tulip and QEMU's user-mode network, which serves DHCP and TFTP.
func bootSlirp() (*guest.Guest, func() (time.Duration, error), func(), error) {
	root, err := bootRoot()
	if err != nil {
		return nil, nil, nil, err
	}
	g, waited, err := bootBuiltin(root, fmt.Sprintf("user,tftp=%s,bootfile=%s", root, bootFile))
	if err != nil {
		return nil, nil, nil, err
	}
	return g, waited, func() { g.Close(); os.RemoveAll(root) }, nil
}

// bootBuiltin starts iPXE on QEMU's own tulip on this back-end, whose frames are captured to a file in dir.
func bootBuiltin(dir, netdev string) (*guest.Guest, func() (time.Duration, error), error) {
	capture := filepath.Join(dir, "capture")
	g, err := guest.Start(cache, guest.Config{Name: "builtin tulip", Args: append(ipxe(),
		"-netdev", netdev+",id=n0", "-device", "tulip,netdev=n0",
		"-object", "filter-dump,id=capture,netdev=n0,maxlen=400,file="+capture)})
	if err != nil {
		return nil, nil, err
	}
	waited := func() (time.Duration, error) {
		for deadline := time.Now().Add(bootLimit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			frames, err := os.ReadFile(capture)
			if err != nil && !os.IsNotExist(err) {
				return 0, err
			}
			if d, ok := discoverToRequest(frames); ok {
				return d, nil
			}
		}
		return 0, fmt.Errorf("no file request from iPXE within %v:\n%s", bootLimit, g.Serial())
	}
	return g, waited, nil
}

// discoverToRequest finds the time from the first DHCP message to the first TFTP request in a capture in the pcap
// format with microseconds in this machine's byte order, as QEMU's filter-dump writes it.
func discoverToRequest(capture []byte) (time.Duration, bool) {
	const fileHeader, recordHeader = 24, 16
	const ethernet, ipv4, udp = 14, 20, 8
	if len(capture) < fileHeader {
		return 0, false
	}
	var begin time.Duration
	for rest := capture[fileHeader:]; len(rest) >= recordHeader; {
		at := time.Duration(binary.NativeEndian.Uint32(rest))*time.Second +
			time.Duration(binary.NativeEndian.Uint32(rest[4:]))*time.Microsecond
		size := int(binary.NativeEndian.Uint32(rest[8:]))
		if len(rest) < recordHeader+size {
			break
		}
		frame := rest[recordHeader : recordHeader+size]
		rest = rest[recordHeader+size:]
		if len(frame) < ethernet+ipv4+udp || binary.BigEndian.Uint16(frame[12:]) != 0x0800 ||
			frame[ethernet] != 0x45 || frame[ethernet+9] != 17 {
			continue // not UDP over IPv4 without options
		}
		switch port := binary.BigEndian.Uint16(frame[ethernet+ipv4+2:]); {
		case port == 67 && begin == 0:
			begin = at
		case port == 69 && begin != 0:
			return at - begin, true
		}
	}
	return 0, false
}
