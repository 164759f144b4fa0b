package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"polder/testdata/vgen"
)

// What connects two guests that do nothing but send and receive: DPDK's virtio-user driver plays both on one
// processor, and what is measured has another one. Before each measurement the generator has verified every byte of
// some ten thousand frames in both directions, on the very rings that are measured then.

var vhostComparisons = []windowed{
	{name: "vhost-64-ovs", load: load{mode: "uni", size: 64}, ours: adaptive, peer: openVSwitch},
	{name: "vhost-64-bidi-ovs", load: load{mode: "bidi", size: 64}, ours: adaptive, peer: openVSwitch},
	{name: "vhost-64-testpmd", load: load{mode: "uni", size: 64}, ours: adaptive, peer: testpmd},
	{name: "vhost-64-linux-ovs", load: load{mode: "uni", size: 64, driver: likeLinux}, ours: adaptive, peer: openVSwitch},
	{name: "vhost-1023mac-ovs", load: load{mode: "uni", size: 64, macs: 1023}, ours: adaptive, peer: openVSwitch},
	{name: "vhost-1500-ovs", load: load{mode: "uni", size: 1500}, ours: adaptive, peer: openVSwitch},
	{name: "vhost-1500-bidi-ovs", load: load{mode: "bidi", size: 1500}, ours: adaptive, peer: openVSwitch},
	// Rings as Linux's driver has them. With IN_ORDER the generator is the limit, with either kind of ring.
	{name: "vhost-packed-split", load: load{mode: "uni", size: 64, driver: likeLinux}, ours: with(packed, adaptive), peer: adaptive},
	{name: "vhost-packed-split-inorder", load: load{mode: "uni", size: 64}, ours: with(packed, adaptive), peer: adaptive},
	{name: "vhost-adaptive-poll", load: load{mode: "uni", size: 64}, ours: adaptive, peer: poll},
	{name: "vhost-64-bridge", load: load{mode: "uni", size: 64}, ours: adaptive, peer: linuxBridge},
	{name: "vhost-rtt-ovs", load: load{mode: "rtt", size: 64}, ours: poll, peer: openVSwitch},
	{name: "vhost-rtt-bridge", load: load{mode: "rtt", size: 64}, ours: adaptive, peer: linuxBridge},
}

// Properties of the virtio-user device.
const (
	likeLinux = "in_order=0" // Linux's driver does not take that feature
	packed    = "packed_vq=1"
)

// load is what the generator does.
type load struct {
	mode   string // of the generator: "uni", "bidi" or "rtt"; "tcp" between Linux guests
	size   int    // bytes of a frame
	macs   int    // pairs of addresses; 0: one
	driver string // properties of both virtio-user devices
}

// measured is one measurement's result: rates in Mpps, round trips in µs, or rates of TCP in Gbit/s.
type measured struct {
	windows []float64 // of 20 ms each, or of 100 ms for TCP
	p99     float64   // of round trips
}

// side measures one of the two sides under a load.
type side func(load) (measured, error)

// with is a side whose guests have a driver with further properties.
func with(driver string, s side) side {
	return func(l load) (measured, error) {
		l.driver = strings.Trim(l.driver+","+driver, ",")
		return s(l)
	}
}

// measureLimit is far above what the generator takes to find its way, verify and measure.
const measureLimit = time.Minute

// generate runs the generator between two ports, in a network namespace unless n is nil. meanwhile, unless nil, is
// called once it has started.
func (l load) generate(n *namespace, ports [2]string, meanwhile func(*pinned) error) (m measured, err error) {
	c, err := twoCores()
	if err != nil {
		return m, err
	}
	var output, problems strings.Builder
	cmd := vgen.Config{
		Ports: ports, Mode: l.mode, Size: l.size, MACs: l.macs, Seconds: 1, HugePages: true,
	}.Command(cache)
	cmd.Stdout, cmd.Stderr = &output, &problems
	p, err := startPinned(c.generator, n, cmd)
	if err != nil {
		return m, err
	}
	defer p.stop()
	if meanwhile != nil {
		if err := meanwhile(p); err != nil {
			p.stop()
			return m, fmt.Errorf("%w\n%s", err, problems.String())
		}
	}
	if err := p.wait(measureLimit); err != nil {
		p.stop()
		return m, fmt.Errorf("generator: %w\n%s", err, problems.String())
	}
	result, err := vgen.ParseResult([]byte(output.String()))
	if err != nil {
		return m, err
	}
	if len(result.Windows) == 0 {
		return m, errors.New("generator: no window of the measurement is complete")
	}
	scale := 1e-6 // frames per second: Mpps
	if l.mode == "rtt" {
		scale = 1e-3 // nanoseconds: µs
	}
	for _, w := range result.Windows {
		m.windows = append(m.windows, w*scale)
	}
	m.p99 = result.P99 * scale
	return m, nil
}

// virtioUser is two virtio-user devices whose back ends are at the other end of these sockets.
func (l load) virtioUser(sockets [2]string, properties ...string) (ports [2]string) {
	if l.driver != "" {
		properties = append(properties, l.driver)
	}
	for i, socket := range sockets {
		ports[i] = vgen.VirtioUser(i, socket, properties...)
	}
	return ports
}

// place makes a directory for one measurement.
func place() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp(scratch, "vhost-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// polderConfig is how polder serve is run with two synthetic adapters.
type polderConfig struct {
	adapter string // further keys of both adapters
	poll    bool   // its processor never rests
}

// Polder in the mode that it has by default, and in the one of its peers.
var adaptive, poll = polderSide(polderConfig{}), polderSide(polderConfig{poll: true})

func polderSide(config polderConfig) side {
	return func(l load) (measured, error) {
		return withPolder(config, func(sockets [2]string) (measured, error) {
			return l.generate(nil, l.virtioUser(sockets), nil)
		})
	}
}

// withPolder measures with the sockets of polder serve's two synthetic adapters.
func withPolder(config polderConfig, measure func(sockets [2]string) (measured, error)) (m measured, err error) {
	program, err := polder()
	if err != nil {
		return m, err
	}
	dir, remove, err := place()
	if err != nil {
		return m, err
	}
	defer remove()
	file := filepath.Join(dir, "polder.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
switches:
  - name: bench
vms:
  - {name: a, adapters: [{kind: synthetic, switch: bench%[1]s}]}
  - {name: b, adapters: [{kind: synthetic, switch: bench%[1]s}]}
`, config.adapter), 0o644); err != nil {
		return m, err
	}
	c, err := twoCores()
	if err != nil {
		return m, err
	}
	cmd := exec.Command(program, "serve", "--runtime-dir", dir, "-c", file)
	if config.poll {
		cmd.Args = append(cmd.Args, "--poll-cpus", strconv.Itoa(c.backEnd))
	}
	p, err := startPinned(c.backEnd, nil, cmd)
	if err != nil {
		return m, err
	}
	defer p.stop()
	sockets := [2]string{filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")}
	if err := p.waitSockets(sockets[:]...); err != nil {
		return m, err
	}
	m, err = measure(sockets)
	if err != nil {
		p.stop()
		err = fmt.Errorf("%w\n%s", err, p.printed())
	}
	return m, err
}

// testpmd measures DPDK's testpmd, which passes frames on between two vhost ports without looking at them.
func testpmd(l load) (m measured, err error) {
	dir, remove, err := place()
	if err != nil {
		return m, err
	}
	defer remove()
	c, err := twoCores()
	if err != nil {
		return m, err
	}
	sockets := [2]string{filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")}
	p, err := startPinned(c.backEnd, nil, exec.Command(cache.Path("bin/dpdk-testpmd"),
		"--lcores", fmt.Sprintf("0@%d,1@%[1]d", c.backEnd), // the first one never forwards
		"--no-pci", "--no-telemetry", "--in-memory", "-m", "256",
		"--vdev", "net_vhost0,iface="+sockets[0], "--vdev", "net_vhost1,iface="+sockets[1],
		"--", "--nb-cores=1", "--forward-mode=io", "--auto-start", "--stats-period", "60"))
	if err != nil {
		return m, err
	}
	defer p.stop()
	if err := p.waitSockets(sockets[:]...); err != nil {
		return m, err
	}
	m, err = l.generate(nil, l.virtioUser(sockets), nil)
	if err != nil {
		p.stop()
		err = fmt.Errorf("%w\n%s", err, p.printed())
	}
	return m, err
}

// openVSwitch measures the learning bridge of Open vSwitch's data path on DPDK, as its package has it set.
func openVSwitch(l load) (measured, error) {
	return withOpenVSwitch("dpdkvhostuserclient", func(sockets [2]string) (measured, error) {
		return l.generate(nil, l.virtioUser(sockets, "server=1"), nil)
	})
}

// withOpenVSwitch measures with the sockets of two ports of that bridge. Those of type dpdkvhostuserclient connect to
// them, and those of type dpdkvhostuser listen there.
func withOpenVSwitch(portType string, measure func(sockets [2]string) (measured, error)) (m measured, err error) {
	dir, remove, err := place()
	if err != nil {
		return m, err
	}
	defer remove()
	c, err := twoCores()
	if err != nil {
		return m, err
	}
	n, err := newNamespace() // for the bridge's own device
	if err != nil {
		return m, err
	}
	defer n.close()
	environment := append(os.Environ(), "OVS_RUNDIR="+dir, "OVS_LOGDIR="+dir, "OVS_DBDIR="+dir,
		"OVS_SYSCONFDIR="+dir, "OVS_PKGDATADIR="+cache.Path("dpdk/usr/share/openvswitch"))
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(cache.Path("bin/"+name), args...)
		cmd.Env = environment
		return cmd
	}
	database, remote := filepath.Join(dir, "conf.db"), filepath.Join(dir, "db.sock")
	schema := cache.Path("dpdk/usr/share/openvswitch/vswitch.ovsschema")
	if out, err := command("ovsdb-tool", "create", database, schema).CombinedOutput(); err != nil {
		return m, fmt.Errorf("ovsdb-tool: %w: %s", err, out)
	}
	db, err := startPinned(c.backEnd, nil, command("ovsdb-server", database, "--remote=punix:"+remote))
	if err != nil {
		return m, err
	}
	defer db.stop()
	if err := db.waitSockets(remote); err != nil {
		return m, err
	}
	sockets := [2]string{filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")}
	mask := fmt.Sprintf("%#x", 1<<c.backEnd)
	if out, err := command("ovs-vsctl", "--db=unix:"+remote, "--no-wait", "init",
		"--", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
		"other_config:dpdk-lcore-mask="+mask, "other_config:pmd-cpu-mask="+mask, "other_config:dpdk-alloc-mem=512",
		`other_config:dpdk-extra="-d librte_mempool_ring.so --no-pci --no-telemetry --in-memory"`,
		"--", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev",
		// A port that listens does so at its own name in OVS_RUNDIR.
		"--", "add-port", "br0", "a.sock", "--", "set", "Interface", "a.sock", "type="+portType,
		"options:vhost-server-path="+sockets[0],
		"--", "add-port", "br0", "b.sock", "--", "set", "Interface", "b.sock", "type="+portType,
		"options:vhost-server-path="+sockets[1]).CombinedOutput(); err != nil {
		return m, fmt.Errorf("ovs-vsctl: %w: %s", err, out)
	}
	p, err := startPinned(c.backEnd, n, command("ovs-vswitchd-dpdk", "unix:"+remote))
	if err != nil {
		return m, err
	}
	defer p.stop()
	if portType == "dpdkvhostuser" {
		if err := p.waitSockets(sockets[:]...); err != nil {
			return m, err
		}
	}
	m, err = measure(sockets)
	if err != nil {
		p.stop()
		err = fmt.Errorf("%w\n%s", err, p.printed())
	}
	return m, err
}

// linuxBridge measures the kernel's bridge with two TAP devices, which the generator reads and writes.
func linuxBridge(l load) (m measured, err error) {
	n, err := newNamespace()
	if err != nil {
		return m, err
	}
	defer n.close()
	// Without IPv6, whose announcements would be taken for the generator's frames.
	err = n.do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) })
	if err != nil && !os.IsNotExist(err) {
		return m, err
	}
	for _, command := range []string{"link add br0 type bridge", "link set br0 up"} {
		if err := n.ip(command); err != nil {
			return m, err
		}
	}
	return l.generate(n, [2]string{"net_tap0,iface=tap0", "net_tap1,iface=tap1"}, func(p *pinned) error {
		for _, tap := range []string{"tap0", "tap1"} {
			if err := p.until(func() bool { return n.ip("link set "+tap+" master br0") == nil }); err != nil {
				return err
			}
			if err := n.ip("link set " + tap + " up"); err != nil {
				return err
			}
		}
		return nil
	})
}
