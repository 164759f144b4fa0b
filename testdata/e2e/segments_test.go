package e2e

import (
	"fmt"
	"strings"
	"testing"

	"polder/testdata/guest"
)

// exchanged is what a guest sends in exchange in one direction by one protocol, in MiB: little enough for every frame to wait, in the
// memory of the receiver, until the program segments has judged it.
const exchanged = 4

// exchange has two guests that serve iperf3 send TCP over IPv4 and IPv6 to each other, while in each of them the
// program segments judges every frame that comes in. The second guest's IPv4 address is to. whole says whether the two exchange frames that stand
// for several, with checksums left to the receiver, or ordinary ones alone.
func exchange(t *testing.T, a, b *guest.Guest, to string, whole bool) {
	t.Helper()
	const report = "/tmp/segments"
	for _, g := range []*guest.Guest{a, b} {
		// In IPv6 it ends as in IPv4, and is there for good from the first time on.
		command(t, g, `ip -6 addr add fd00::$(ip -4 -o addr show dev eth0 | sed 's/.*inet [0-9]*\.[0-9]*\.[0-9]*\.//; s|/.*||')/64 dev eth0 2>/dev/null; true`)
		// GRO would put together what the adapter delivered in pieces.
		command(t, g, "ethtool -K eth0 gro off && (segments eth0 >"+report+" & until grep -qs READY "+report+"; do sleep 0.1; done)")
	}
	to6 := "fd00::" + to[strings.LastIndex(to, ".")+1:]
	command(t, a, "until ping -c 1 -W 1 "+to6+"; do sleep 0.1; done") // both make sure first that the address is theirs
	for _, to := range []string{to, to6} {
		for _, direction := range []string{"", "-R"} {
			// A server does not listen for a moment after each client.
			out := command(t, a, fmt.Sprintf("for i in $(seq 50); do iperf3 -c %s -n %dM -J %s >/tmp/iperf && break; sleep 0.2; done; cat /tmp/iperf",
				to, exchanged, direction))
			if rate := iperfRate(t, out); rate <= 0 {
				t.Errorf("iperf3 -c %s %s moved nothing: %s", to, direction, out)
			} else {
				t.Logf("iperf3 -c %s %s: %.0f Mbit/s", to, direction, rate/1e6)
			}
		}
	}
	for i, g := range []*guest.Guest{a, b} {
		out := command(t, g, "killall segments; until grep -q SEGMENTS "+report+"; do sleep 0.1; done; ethtool -K eth0 gro on; cat "+report)
		var frames, tcp, udp, partial, gso4, gso6, bad, lost int
		_, last, _ := strings.Cut(out, "SEGMENTS")
		if _, err := fmt.Sscanf(last, " frames=%d tcp=%d udp=%d partial=%d gso4=%d gso6=%d bad=%d lost=%d",
			&frames, &tcp, &udp, &partial, &gso4, &gso6, &bad, &lost); err != nil {
			t.Fatalf("guest %d: %v: %s", i, err, out)
		}
		if bad > 0 || lost > 0 || tcp < 2*exchanged<<20/65535 || (partial > 0) != whole || (gso4 > 0) != whole || (gso6 > 0) != whole {
			t.Errorf("guest %d, where frames that stand for several are to be seen: %v: %s", i, whole, out)
		}
		// The kernel has judged too, wherever the device did not vouch for a frame.
		errors := command(t, g, `awk '/^(Tcp|Udp|Icmp):/ { for (i = 2; i <= NF; i++) if (!($1 in seen)) name[$1, i] = $i; `+
			`else if (name[$1, i] == "InCsumErrors") print $i; seen[$1] }' /proc/net/snmp`)
		if errors != "0\n0\n0" {
			t.Errorf("guest %d: InCsumErrors of ICMP, TCP and UDP are %q, want zeros", i, errors)
		}
	}
}
