package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// newGuest is a machine on an internal switch: its wire ends in a TAP of the host's, which it returns with the way to end it.
func newGuest(t *testing.T, h *machine, tap, address string) (*machine, func()) {
	t.Helper()
	g := newPeer(t)
	wire := "w" + tap
	h.run(fmt.Sprintf("ip link add %s type veth peer name g0 netns %d; ip link set %s up; sysctl -qw net.ipv6.conf.%s.disable_ipv6=1", wire, g.pid, wire, wire))
	if err := silence(wire, true); err != nil { // the wire is no part of the host
		t.Fatal(err)
	}
	stop := startRelay(t.Fatalf, tap, wire)
	g.run("ip link set g0 up; ip addr add " + address + " dev g0")
	return g, func() { stop(); h.run("ip link del " + wire) }
}

func openInternal(t *testing.T, c Internal, dir string) *Net {
	t.Helper()
	log, _ := testLog(t)
	n, err := OpenInternal(c, dir, log)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The host and a guest on an internal switch reach each other, and when the TAP is closed nothing is left.
func TestInternal(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	g, stop := newGuest(t, h, "vEth-Lab", "192.168.77.2/24")
	g.run("ip -6 addr add fd00:77::2/64 dev g0 nodad")
	c := Internal{
		Switch: "Lab", Device: "vEth-Lab", MAC: net.HardwareAddr{0, 0x15, 0x5d, 1, 2, 3}, MTU: 9000,
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.77.1/24"), netip.MustParsePrefix("fd00:77::1/64")},
	}
	n := openInternal(t, c, t.TempDir())
	link := h.run("ip link show vEth-Lab; ip addr show dev vEth-Lab; sysctl net.ipv6.conf.vEth-Lab.accept_ra net.ipv4.conf.vEth-Lab.arp_ignore")
	for _, want := range []string{"00:15:5d:01:02:03", "mtu 9000", "inet 192.168.77.1/24", "inet6 fd00:77::1/64", "accept_ra = 0", "arp_ignore = 1"} {
		if !strings.Contains(link, want) {
			t.Errorf("%s is not there:\n%s", want, link)
		}
	}
	h.reaches("192.168.77.2", "fd00:77::2")
	g.reaches("192.168.77.1", "fd00:77::1")
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	stop()
	same(t, "in the end", before, h.snapshot())
}

// The network of an internal switch is one that the host has nowhere else.
func TestInternalRefused(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	tap := openTAP(t.Fatalf, "vEth-Lab")
	defer tap.Close()
	log, _ := testLog(t)
	before := h.snapshot()
	for address, want := range map[string]string{
		"10.0.0.9/24":       "there is the route `10.0.0.0/24 dev eth0",
		"10.0.0.9/30":       "is in use",
		"10.50.3.1/24":      "10.50.0.0/16 via 10.0.1.1",
		"2001:db8::9/64":    "is in use",
		"127.0.0.9/24":      "is in use",
		"10.0.0.0/8":        "is in use",
		"2001:db8:0:0::/32": "is in use",
	} {
		_, err := OpenInternal(Internal{Switch: "Lab", Device: "vEth-Lab", Addresses: []netip.Prefix{netip.MustParsePrefix(address)}}, t.TempDir(), log)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", address, err, want)
		}
	}
	if _, err := OpenInternal(Internal{Switch: "Lab", Device: "vEth-No"}, t.TempDir(), log); err == nil || !strings.Contains(err.Error(), "there is no device vEth-No") {
		t.Errorf("no device: %v", err)
	}
	same(t, "refused", before, h.snapshot())
}

// With nat a guest reaches what the host reaches, with the host's address; nobody outside reaches a guest, and guests of
// two switches do not reach each other. In the end nothing is left, whether by Close or after a crash.
func TestNAT(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	inhabit(h)
	router.run("ip addr add 198.51.100.7/32 dev lo")
	before := h.snapshot()
	dir := t.TempDir()

	g, stop := newGuest(t, h, "vEth-Lab", "192.168.77.2/24")
	g.run("ip route add default via 192.168.77.1")
	c := Internal{Switch: "Lab", Device: "vEth-Lab", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.77.1/24"), netip.MustParsePrefix("fd00:77::1/64")}, NAT: true}
	n := openInternal(t, c, dir)
	g.reaches("192.168.77.1")
	g.reaches("198.51.100.7", "10.0.0.1")
	router.run("ip route add 192.168.77.0/24 via 10.0.0.2")
	router.unreached("192.168.77.2")
	if h.run("cat /proc/sys/net/ipv4/ip_forward") != "0\n" {
		t.Error("the host forwards between all its networks")
	}

	// A second switch with the same uplink.
	g2, stop2 := newGuest(t, h, "vEth-Lab2", "192.168.78.2/24")
	g2.run("ip route add default via 192.168.78.1")
	c2 := Internal{Switch: "Lab2", Device: "vEth-Lab2", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.78.1/24")}, NAT: true}
	n2 := openInternal(t, c2, dir)
	g2.reaches("198.51.100.7")
	g2.unreached("192.168.77.2")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	g2.reaches("198.51.100.7")
	if err := n2.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
	stop2()
	same(t, "closed", before, h.snapshot())
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the state directory holds %v", left)
	}

	// A process that dies leaves its rules and its journal. The next one puts both away.
	tap := openTAP(t.Fatalf, "vEth-Lab")
	openInternal(t, c, dir)
	tap.Close()
	if found, err := findTable(natTable("Lab")); !found || err != nil {
		t.Fatalf("no table: %v", err)
	}
	log, _ := testLog(t)
	if _, err := Recover(dir, log); err != nil {
		t.Fatal(err)
	}
	if found, err := findTable(natTable("Lab")); found || err != nil {
		t.Errorf("the table is still there: %v", err)
	}
	same(t, "recovered", before, h.snapshot())

	// A table that is somebody else's is not taken for ours.
	tap = openTAP(t.Fatalf, "vEth-Lab")
	defer tap.Close()
	if err := addNATTable(Internal{Switch: "Lab", Device: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternal(c, dir, log); err == nil || !strings.Contains(err.Error(), "there is an nftables table ip polder-Lab already") {
		t.Errorf("a table that is there: %v", err)
	}
	if found, err := findTable(natTable("Lab")); !found || err != nil {
		t.Errorf("it has been removed: %v", err)
	}
}
