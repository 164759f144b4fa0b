package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"polder/testdata/guest"
)

// The three types of switches, with a network namespace as the host, whose network adapter is the end of a cable, and
// one more as the local network at the other end.

// localNetwork is a host with the address 192.0.2.2 on its adapter u0, and behind that a machine with 192.0.2.1, which
// has a DHCP server.
func localNetwork(t *testing.T) (here, lan *host) {
	t.Helper()
	here, lan = newHost(t), newHost(t)
	here.connect("u0", lan, "u0")
	here.run("ip address add 192.0.2.2/24 dev u0; ip route add default via 192.0.2.1")
	lan.run("ip address add 192.0.2.1/24 dev u0")
	lan.background("dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --port=0 --log-facility=- " +
		"--pid-file= --leasefile-ro --interface=u0 --bind-interfaces --no-ping --dhcp-authoritative " +
		"--dhcp-range=192.0.2.100,192.0.2.100,1h")
	soon(t, "the local network", func() bool {
		return here.pings("192.0.2.1") && here.run("ip -o address show tentative") == ""
	})
	return here, lan
}

// boot starts Linux guests of the daemon with these words on their command lines, and waits for the end of their boot.
func (d daemon) boot(t *testing.T, words map[string]string) map[string]*guest.Guest {
	t.Helper()
	guests := map[string]*guest.Guest{}
	for vm, w := range words {
		// Without IPv6, which announces itself by multicast at its own times.
		guests[vm] = start(t, d.machine(t, vm, append(linux(w, "ipv6.disable=1", "run=hold"), "-no-reboot")...))
	}
	for _, g := range guests {
		expect(t, g, bootLimit, `^T_HOLD`)
	}
	return guests
}

// network is everything of the host's network that a daemon may have changed.
func (h *host) network() string {
	return h.run(`ip -o link; ip -o address; ip route show table all; ip -6 route show table all; ip rule; nft list ruleset
for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding; do echo $f $(cat $f); done`)
}

// endsWell ends the daemon, after which everything is as it was before.
func (d daemon) endsWell(t *testing.T, h *host, before string) {
	t.Helper()
	left, err := d.Stop()
	if err != nil {
		t.Errorf("%v\n%s", err, d.Log())
	}
	if len(left) > 0 {
		t.Errorf("the daemon leaves %v", left)
	}
	if after := h.network(); after != before {
		t.Errorf("the host's network was:\n%s\nafter the daemon it is:\n%s", before, after)
	}
}

// TestPrivateAndInternal: guests on a private switch reach each other and nothing else; one on an internal switch reaches
// the host's address there and, with address translation, what the host reaches.
func TestPrivateAndInternal(t *testing.T) {
	t.Parallel()
	here, _ := localNetwork(t)
	before := here.network()
	d := here.serve(`
switches:
  - {name: closed}
  - {name: inside, type: internal, management: {address: [192.168.77.1/24], nat: true}}
vms:
  - {name: p1, memory: 256M, adapters: [{switch: closed, kind: synthetic, mac: "00:15:5d:00:00:0a"}]}
  - {name: p2, memory: 256M, adapters: [{switch: closed, mac: "00:15:5d:00:00:0b"}]}
  - {name: i, memory: 256M, adapters: [{switch: inside, kind: synthetic, mac: "00:15:5d:00:00:0c"}]}
`)
	guests := d.boot(t, map[string]string{"p1": "net0=192.168.77.11/24", "p2": "net0=192.168.77.12/24", "i": "net0=192.168.77.13/24"})
	command(t, guests["p1"], "ip address add 192.0.2.11/24 dev eth0") // as if it were on the local network
	command(t, guests["i"], "ip route add default via 192.168.77.1")
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"p1", "192.168.77.12", true},
		{"p1", "192.168.77.13", false}, // a guest of the internal switch
		{"p1", "192.168.77.1", false},  // the host
		{"p1", "192.0.2.2", false},     // the host
		{"p1", "192.0.2.1", false},     // the local network
		{"i", "192.168.77.1", true},
		{"i", "192.0.2.2", true},
		{"i", "192.0.2.1", true}, // which knows no way to 192.168.77.0/24
		{"i", "192.168.77.12", false},
	} {
		if got := reaches(t, guests[c.from], c.to); got != c.want {
			t.Errorf("%s reaches %s: %v, want %v", c.from, c.to, got, c.want)
		}
	}
	for address, want := range map[string]bool{"192.168.77.13": true, "192.168.77.11": false} {
		if got := here.pings(address); got != want {
			t.Errorf("the host reaches %s: %v, want %v", address, got, want)
		}
	}
	here.background("iperf3 -s -B 192.168.77.1")
	for _, direction := range []string{"tx", "rx"} {
		if out := command(t, guests["i"], fmt.Sprintf("sleep 1; step_%s 192.168.77.1 1", direction)); iperfRate(t, out) <= 0 {
			t.Errorf("iperf3 %s moved nothing: %s", direction, out)
		}
	}
	d.endsWell(t, here, before)
}

// TestExternal: a guest on an external switch has its address from the local network's DHCP server, and reaches what is
// there and the host; what it exchanges with the host is never on the wire.
func TestExternal(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"bridge", "packet"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			here, lan := localNetwork(t)
			before := here.network()
			d := here.serve(fmt.Sprintf(`
switches:
  - {name: lan, type: external, uplink: {nic: u0, driver: %s}}
vms:
  - {name: web01, memory: 256M, adapters: [{switch: lan, kind: synthetic, mac: "00:15:5d:00:00:0a"}]}
`, driver))
			file := filepath.Join(t.TempDir(), "wire.pcapng")
			stop := lan.background("dumpcap -q -i u0 -s 128 -w " + file)
			soon(t, "dumpcap", func() bool { return fileSize(file) > 0 })

			g := start(t, d.machine(t, "web01", append(linux("net0=dhcp", "ipv6.disable=1", "run=hold"), "-no-reboot")...))
			expect(t, g, bootLimit, `^UDHCPC ip=192\.0\.2\.100/24 server=192\.0\.2\.1 `, `^T_HOLD`)
			everywhere := func(when string) {
				t.Helper()
				for _, address := range []string{"192.0.2.1", "192.0.2.2"} {
					if !reaches(t, g, address) {
						t.Errorf("%s the guest does not reach %s", when, address)
					}
				}
				for _, h := range []*host{here, lan} {
					if !h.pings("192.0.2.100") {
						t.Errorf("%s the guest is not reached from %s", when, h.run("ip -4 -o address"))
					}
				}
				if !here.pings("192.0.2.1") {
					t.Errorf("%s the host does not reach the local network", when)
				}
			}
			everywhere("at first")
			here.background("iperf3 -s -B 192.0.2.2")
			lan.background("iperf3 -s -B 192.0.2.1")
			command(t, g, "sleep 1")
			for _, address := range []string{"192.0.2.1", "192.0.2.2"} {
				for _, direction := range []string{"tx", "rx"} {
					if out := command(t, g, fmt.Sprintf("step_%s %s 1", direction, address)); iperfRate(t, out) <= 0 {
						t.Errorf("iperf3 %s moved nothing: %s", direction, out)
					}
				}
			}
			stop()
			if on := packets(t, file, "ip.addr == 192.0.2.100 && ip.addr == 192.0.2.1 && icmp", "ip.src"); len(on) == 0 {
				t.Error("there is nothing of the guest's on the wire: the capture proves nothing")
			}
			if on := packets(t, file, "(ip.addr == 192.0.2.100 && ip.addr == 192.0.2.2) || arp.opcode == 2 && arp.src.proto_ipv4 == 192.0.2.2 && arp.dst.proto_ipv4 == 192.0.2.100",
				"eth.src", "eth.dst", "ip.proto"); len(on) != 0 {
				t.Errorf("%d frames between guest and host were on the wire: %v", len(on), on[:min(len(on), 5)])
			}

			d.Kill()
			if online := here.pings("192.0.2.1"); online != (driver == "bridge") {
				t.Errorf("the daemon is killed: the host is on its network: %v", online)
			}
			if err := d.Restart(); err != nil {
				t.Fatal(err)
			}
			d.waitAttached(t, "web01", true)
			command(t, g, "until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done")
			everywhere("after a restart of the daemon")

			d.endsWell(t, here, before)
			if !here.pings("192.0.2.1") {
				t.Error("after the daemon the host does not reach the local network")
			}
		})
	}
}
