package hostnet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each of these has a NIC refused, with the reason and what to do, and nothing is touched.
func TestRefusals(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	index := strings.TrimSpace(h.run("ip -o link show eth0 | cut -d: -f1"))
	tests := []struct {
		name     string
		make     string // a shell's commands
		undo     string
		external External
		files    map[string]string // beneath /run and /sys
		want     string
	}{
		{"no such device", "", "", External{NIC: "eth9"}, nil, "there is no network adapter eth9"},
		{"no such driver", "", "", External{NIC: "eth0", Driver: "xdp"}, nil, `driver "xdp" is not one of: bridge, packet`},
		{"loopback", "", "", External{NIC: "lo"}, nil, "it is no Ethernet (loopback)"},
		{"a bridge", "ip link add br0 type bridge", "ip link del br0", External{NIC: "br0"}, nil, "it is a device of kind bridge: name the network adapter itself"},
		{"a macvlan", "ip link add mv0 link eth0 type macvlan", "ip link del mv0", External{NIC: "mv0"}, nil, "it is a device of kind macvlan"},
		{"a macvlan on it", "ip link add mv0 link eth0 type macvlan", "ip link del mv0", External{}, nil, "mv0 (macvlan) is on it: remove it"},
		{"a VXLAN on it", "ip link add vx0 type vxlan id 1 dev eth0 dstport 4789", "ip link del vx0", External{}, nil, "vx0 (vxlan) is on it"},
		{"a port of a bridge", "ip link add br0 type bridge; ip link set eth0 master br0", "ip link del br0", External{}, nil, "it is a port of the bridge br0: join that bridge"},
		{"a root queueing discipline", "tc qdisc add dev eth0 root handle 1: tbf rate 1gbit burst 100k latency 1ms", "tc qdisc del dev eth0 root", External{}, nil, "a queueing discipline (tbf) is set up on it: remove it with `tc qdisc delete dev eth0 root`"},
		{"an ingress queueing discipline", "tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact", External{}, nil, "(clsact) is set up on it: remove it with `tc qdisc delete dev eth0 clsact`"},
		{"Wi-Fi, by its type", "", "", External{}, map[string]string{"sys/class/net/eth0/uevent": "DEVTYPE=wlan\nINTERFACE=eth0\n"}, "it is a Wi-Fi adapter"},
		{"Wi-Fi, by its radio", "", "", External{}, map[string]string{"sys/class/net/eth0/phy80211/name": "phy0\n"}, "make an internal switch with nat instead"},
		{"down, with addresses", "ip link add o0 type veth peer name o1; ip addr add 10.7.0.1/24 dev o0", "ip link del o0", External{NIC: "o0"}, nil, "it is down, and has addresses: bring it up"},
		{"networkd", "", "", External{}, map[string]string{"run/systemd/netif/links/" + index: "# private\nADMIN_STATE=configured\n"}, "systemd-networkd manages it (configured)"},
		{"NetworkManager", "", "", External{}, map[string]string{"run/NetworkManager/devices/" + index: "[device]\nmanaged=true\n"}, "NetworkManager manages it"},
		{"a name that is taken", "ip link add vEth-LAN type bridge", "ip link del vEth-LAN", External{}, nil, "there is a device vEth-LAN already"},
		{"a name that is too long", "", "", External{Management: "a-name-too-long0"}, nil, "a-name-too-long0 is too long for a device's name"},
		{"a label that grows too long", "ip addr add 10.0.0.8/24 dev eth0 label eth0:backup01", "ip addr del 10.0.0.8/24 dev eth0", External{}, nil, "the label eth0:backup01"},
		{"an address that failed its check", "ip -6 addr add 2001:db8::1/64 dev eth0; sleep 0.3; ip -6 addr show dev eth0 dadfailed | grep -q inet6 || { sleep 2; }", "ip -6 addr del 2001:db8::1/64 dev eth0", External{}, nil, "2001:db8::1 is another machine's, too"},
		{"an address being checked", "sysctl -qw net.ipv6.conf.eth0.dad_transmits=100; ip -6 addr add 2001:db8::55/64 dev eth0", "ip -6 addr del 2001:db8::55/64 dev eth0; sysctl -qw net.ipv6.conf.eth0.dad_transmits=1", External{}, nil, "2001:db8::55 is being checked for another owner"},
		{"a next-hop object", "ip nexthop add id 7 via 10.0.0.1 dev eth0; ip route add 10.70.0.0/16 nhid 7", "ip nexthop del id 7", External{}, nil, "has an unknown attribute 30"},
		{"an encapsulating route", "ip -6 route add 2001:db8:70::/48 encap seg6 mode encap segs 2001:db8::1 dev eth0", "ip -6 route del 2001:db8:70::/48", External{}, nil, "has an unknown attribute 2"},
		{"routes that their order tells apart", "ip link add o0 type veth peer name o1; ip link set o0 up; ip route append default dev o0", "ip link del o0", External{}, nil, "differ in nothing but their order: give one a metric"},
		{"rules that their order tells apart", "ip rule add priority 100 fwmark 5 lookup 100", "ip rule del priority 100 fwmark 5", External{}, nil, "differ in nothing but their order: give one another priority"},
	}
	before := h.snapshot()
	for _, test := range tests {
		root := t.TempDir()
		for file, text := range test.files {
			os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o700)
			os.WriteFile(filepath.Join(root, file), []byte(text), 0o600)
		}
		h.run(test.make + "\n:")
		e := test.external
		e.Switch = "LAN"
		if e.NIC == "" {
			e.NIC = "eth0"
		}
		if e.Driver == "" {
			e.Driver = Bridge
		}
		made := h.snapshot()
		_, err := planExternal(e, host{run: filepath.Join(root, "run"), sys: filepath.Join(root, "sys")})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, not %q", test.name, err, test.want)
		}
		var r *Refusal
		if errors.As(err, &r) && (r.NIC != e.NIC || len(r.Reasons) == 0) {
			t.Errorf("%s: %+v", test.name, r)
		}
		same(t, test.name, made, h.snapshot())
		h.run(test.undo + "\n:")
	}
	same(t, "in the end", before, h.snapshot())
}

// A NIC that the driver packet has taken is silent, and not taken a second time.
func TestRefuseTaken(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: Packet}, t.TempDir())
	commit(t, to)
	_, err := planExternal(External{Switch: "LAN2", NIC: "eth0", Driver: Packet}, nowhere(t))
	if err == nil || !strings.Contains(err.Error(), "another switch has taken it") {
		t.Errorf("a second switch: %v", err)
	}
	rollback(t, to)
}

func TestDeviceName(t *testing.T) {
	for name, want := range map[string]string{
		"LAN":                      "vEth-LAN",
		"ten-chars0":               "vEth-ten-chars0",
		"a-name-that-is-too-long":  "vEth-a-name48a7",
		"a-name-that-is-too-long2": "vEth-a-name428f",
	} {
		if got := DeviceName(name); got != want || len(got) > maxName {
			t.Errorf("DeviceName(%q) is %q, not %q", name, got, want)
		}
	}
}
