package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// threeGuests is a switch with three adapters on it, and no boot service that could send anything by itself.
const threeGuests = `
switches:
  - name: default
vms:
  - {name: a, memory: 256M, adapters: [{mac: "00:15:5d:00:00:0a"}]}
  - {name: b, memory: 256M, adapters: [{mac: "00:15:5d:00:00:0b"}]}
  - {name: c, memory: 256M, adapters: [{mac: "00:15:5d:00:00:0c"}]}
`

// TestTwoGuests connects two Linux guests through a switch. A third one, which listens to everything, must see none
// of their frames once the switch has learned where they are.
func TestTwoGuests(t *testing.T) {
	t.Parallel()
	d := serve(t, threeGuests)
	address := map[string]string{"a": "10.0.0.10", "b": "10.0.0.11", "c": "10.0.0.12"}
	guests := map[string]*guest.Guest{}
	for vm, ip := range address {
		// Without IPv6, which announces itself by multicast at its own times.
		args := append(guest.Linux(cache, "ipv6.disable=1", "net0="+ip+"/24", "run=hold"), "-no-reboot")
		guests[vm] = start(t, d.machine(t, vm, args...))
	}
	for vm, g := range guests {
		expect(t, g, bootLimit, `Digital DS21140 Tulip rev 32`, fmt.Sprintf(`^NIC eth0 00:15:5d:00:00:0%s tulip`, vm), `^T_HOLD`)
	}
	a, b, c := guests["a"], guests["b"], guests["c"]

	// Addresses by hand: from here on there is no reason for a broadcast.
	command(t, a, "arp -s 10.0.0.11 00:15:5d:00:00:0b")
	command(t, b, "arp -s 10.0.0.10 00:15:5d:00:00:0a; step_serve")
	command(t, c, "ip link set eth0 promisc on")
	if out := command(t, a, "step_ping 10.0.0.11"); !strings.Contains(out, " ok ") {
		t.Fatalf("a cannot ping b: %s", out)
	}

	before := received(t, c)
	for _, direction := range []string{"tx", "rx"} {
		out := command(t, a, fmt.Sprintf("step_%s 10.0.0.11 3", direction))
		if rate := iperfRate(t, out); rate <= 0 {
			t.Errorf("iperf3 %s moved nothing: %s", direction, out)
		} else {
			t.Logf("iperf3 %s: %.0f Mbit/s", direction, rate/1e6)
		}
	}
	if after := received(t, c); after != before {
		t.Errorf("c received %d frames while a and b talked, want 0", after-before)
	}
	if n := received(t, b); n < 1000 {
		t.Errorf("b received %d frames in all, want thousands: the counter proves nothing", n)
	}
}

// received is how many frames the guest's eth0 has received.
func received(t *testing.T, g *guest.Guest) int {
	t.Helper()
	n, err := strconv.Atoi(command(t, g, "cat /sys/class/net/eth0/statistics/rx_packets"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// iperfRate returns the rate in bit/s at the receiver, from a line "IPERF DIRECTION JSON".
func iperfRate(t *testing.T, line string) float64 {
	t.Helper()
	_, text, _ := strings.Cut(line, "{")
	var result struct {
		Error string
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte("{"+text), &result); err != nil || result.Error != "" {
		t.Fatalf("iperf3: %v %s\n%s", err, result.Error, line)
	}
	return result.End.Received.Rate
}

// TestSharedSwitch joins two runs by the name of a switch.
func TestSharedSwitch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(name, ip string) *guest.Guest {
		return start(t, guest.Config{
			Name: name, OwnMemory: true,
			Launcher: []string{polder, "run", "--legacy", "--runtime-dir", dir, "--switch", "lan", "--name", name, "--"},
			Args:     append(guest.Linux(cache, "net0="+ip+"/24", "run=hold"), "-no-reboot"),
		})
	}
	first := run("first", "10.21.140.2")
	expect(t, first, bootLimit, `^T_HOLD`)
	second := run("second", "10.21.140.3")
	expect(t, second, bootLimit, `^T_HOLD`)
	for _, ip := range []string{"10.21.140.2", "10.21.140.1"} {
		if out := command(t, second, "step_ping "+ip); !strings.Contains(out, " ok ") {
			t.Errorf("second guest: %s", out)
		}
	}
	second.Send("end\n")
	if err := second.Wait(time.Minute); err != nil {
		t.Errorf("second polder run: %v, want status 0", err)
	}
}
