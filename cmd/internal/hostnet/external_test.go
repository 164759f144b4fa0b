package hostnet

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// furnish gives the host's eth0 some of everything that a take-over moves.
func furnish(h, router *machine) {
	h.run(fmt.Sprintf("ip link add eth1 type veth peer name p1 netns %d; ip link set eth1 up", router.pid))
	router.run("ip link set p1 up; ip addr add 10.9.0.1/24 dev p1; ip addr add fe80::9/64 dev p1 nodad")
	h.run(`
ip addr add 10.9.0.2/24 dev eth1
ip addr add 10.0.0.2/24 broadcast + dev eth0
ip addr add 10.0.0.3/24 dev eth0 label eth0:1
ip addr add 10.0.1.2/24 dev eth0 metric 77
ip addr add 10.0.2.2/24 dev eth0 noprefixroute
ip addr add 192.168.5.7/24 dev eth0 valid_lft 3600 preferred_lft 1800
ip addr add 172.16.0.1 peer 172.16.0.2/32 dev eth0 scope link
ip addr add 2001:db8::2/64 dev eth0 nodad
ip addr add 2001:db8:1::2/64 dev eth0 nodad valid_lft 7200 preferred_lft 3600
ip addr add 2001:db8:2::2/64 dev eth0 nodad preferred_lft 0
ip route add default via 10.0.0.1
ip route add 10.50.0.0/16 via 10.0.0.1 metric 50 mtu lock 1400 advmss 1300 initcwnd 20
ip route add 10.51.0.0/16 via 10.0.0.1 src 10.0.0.3 table 100 proto static
ip route add 10.52.0.0/16 via 10.77.0.1 dev eth0 onlink
ip route add 10.53.0.0/16 nexthop via 10.0.0.1 dev eth0 weight 3 nexthop via 10.9.0.1 dev eth1
ip route add 10.54.0.0/16 via inet6 2001:db8::1 dev eth0
ip route add 10.55.0.0/16 dev eth0 scope link tos 0x10
ip route add 10.56.0.0/16 dev eth1 src 10.0.0.2
ip -6 route add default via 2001:db8::1 dev eth0 pref high
ip -6 route add 2001:db8:50::/48 via fe80::1 dev eth0 metric 5 table 200
ip -6 route add 2001:db8:51::/48 nexthop via 2001:db8::1 dev eth0 nexthop via fe80::9 dev eth1
ip -6 route add 2001:db8:52::/48 dev eth0 expires 5000
ip rule add priority 100 iif eth0 lookup 100
ip rule add priority 101 oif eth0 from 10.0.0.0/24 fwmark 0x10/0xff lookup 100
ip -6 rule add priority 102 iif eth0 lookup 200
ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
ip neigh add proxy 10.0.0.99 dev eth0
ip -6 neigh add 2001:db8::77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
ip -6 neigh add proxy 2001:db8::99 dev eth0
sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth0.arp_ignore=1 net.ipv6.conf.eth0.accept_ra=2 net.ipv4.neigh.eth0.gc_stale_time=61`)
	h.waitFor("ip -6 addr show dev eth1 scope link -tentative; ip -6 route show table local dev eth1", "local fe80")
	h.waitFor("ip -6 route show table local dev eth0 | wc -l", "5") // four addresses, and multicast
}

func plan(t *testing.T, e External) *Plan {
	t.Helper()
	p, err := planExternal(e, nowhere(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// inhabit gives the host's eth0 what a server has, at least.
func inhabit(h *machine) {
	h.run(`ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0; ip addr add 10.0.1.2/24 dev eth0 valid_lft 3600 preferred_lft 3600
ip addr add 2001:db8::2/64 dev eth0 nodad
ip route add default via 10.0.0.1
ip route add 10.50.0.0/16 via 10.0.1.1 table 100
ip -6 route add default via 2001:db8::1 dev eth0
ip rule add priority 100 iif eth0 lookup 100
ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
sysctl -qw net.ipv4.conf.eth0.rp_filter=1`)
	h.waitFor("ip -6 route show table local dev eth0", "2001:db8::2")
}

// takeOver plans and begins, and for the driver packet makes the switch, which stops when the test ends or says so.
func takeOver(t *testing.T, e External, dir string) (_ *Takeover, stop func()) {
	t.Helper()
	log, _ := testLog(t)
	to, err := plan(t, e).Begin(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	stop = func() {}
	if e.Driver == Packet && !e.Exclusive {
		stop = sync.OnceFunc(startRelay(t.Fatalf, to.Device(), e.NIC))
		t.Cleanup(stop)
	}
	return to, stop
}

func commit(t *testing.T, to *Takeover) {
	t.Helper()
	if err := to.Commit(context.Background(), 0, nil); err != nil {
		t.Fatal(err)
	}
}

func rollback(t *testing.T, to *Takeover) {
	t.Helper()
	if err := to.Rollback(); err != nil {
		t.Fatal(err)
	}
}

// Everything that can be on a NIC moves, works in its new place, and comes back exactly.
func TestBridgeAndBack(t *testing.T) { takeOverAndBack(t, Bridge) }
func TestPacketAndBack(t *testing.T) { takeOverAndBack(t, Packet) }

func takeOverAndBack(t *testing.T, driver Driver) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	furnish(h, router)
	nic, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mdns, err := net.ListenMulticastUDP("udp4", nic, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353})
	if err != nil {
		t.Fatal(err)
	}
	filterNaming(t, "eth0")
	before := h.snapshot()
	e := External{Switch: "LAN", NIC: "eth0", Driver: driver}
	p := plan(t, e)
	t.Logf("plan:\n%s", p)
	same(t, "a plan", before, h.snapshot())
	for _, want := range []string{
		"10 addresses, 12 routes, 3 rules, 4 static neighbours", "192.168.5.7 is leased for another", "programs listen on eth0 to the multicast groups 224.0.0.251:",
		"a rule of nftables in table ip theirs, chain input, names eth0", "ip route append default via 10.0.0.1 dev vEth-LAN\n",
	} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("the plan does not say %q", want)
		}
	}

	dir := t.TempDir()
	to, stop := takeOver(t, e, dir)
	commit(t, to)
	defer mdns.Close()
	h.reaches("10.0.0.1", "2001:db8::1", "10.0.1.1 10.0.1.2")
	router.reaches("10.0.0.2", "10.0.0.3", "2001:db8::2")
	if out := h.run("ip addr show dev eth0; ip route show table all dev eth0; ip -6 route show table all dev eth0; ip neigh show dev eth0 nud permanent"); strings.Contains(out, "inet") || strings.Contains(out, "10.") || strings.Contains(out, "::") {
		t.Errorf("left on the NIC:\n%s", out)
	}
	rollback(t, to)
	stop()
	same(t, "rollback", before, h.snapshot())
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the state directory holds %v", left)
	}
}

// filterNaming makes a packet filter, of somebody else's, that names the device.
func filterNaming(t *testing.T, device string) {
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyIPv4})
	input := c.AddChain(&nftables.Chain{Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	name := make([]byte, 16)
	copy(name, device)
	c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}, &expr.Verdict{Kind: expr.VerdictAccept},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// The commands that the plan prints do, in a shell, what Commit does.
func TestPlanIsWhatIsDone(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	furnish(h, router)
	e := External{Switch: "LAN", NIC: "eth0", Driver: Bridge}
	script := plan(t, e).String()
	to, _ := takeOver(t, e, t.TempDir())
	commit(t, to)
	h.reaches("10.0.0.1")
	after := h.snapshot()
	rollback(t, to)
	h.run(script)
	h.waitFor("ip -6 route show table local dev vEth-LAN", "local fe80")
	h.reaches("10.0.0.1")
	same(t, "the plan's commands", after, h.snapshot())
}
