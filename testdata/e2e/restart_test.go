package e2e

import (
	"fmt"
	"testing"
	"time"

	"polder/testdata/guest"
)

// TestSyntheticRestart kills the daemon under guests, whatever their rings. Their hypervisors come back to the next one by
// themselves, and the guests go on as they were.
func TestSyntheticRestart(t *testing.T) {
	t.Parallel()
	d := serve(t, fmt.Sprintf(syntheticSwitch, 1))
	a := start(t, d.machine(t, "a", append(guest.Linux(cache, "net0=10.21.140.11/24", "run=hold"), "-no-reboot")...))
	b := start(t, d.machine(t, "b", append(guest.Linux(cache, "net0=10.21.140.12/24", "run=hold"),
		"-no-reboot", "-global", "virtio-net-pci.packed=on")...))
	for _, g := range []*guest.Guest{a, b} {
		expect(t, g, bootLimit, `^T_HOLD`)
	}
	command(t, b, "step_serve; iperf3 -s -p 5202 -D")
	command(t, a, "iperf3 -c 10.21.140.12 -p 5202 -t 600 >/dev/null 2>&1 &") // so that rings are at work when the daemon ends
	for round := range 3 {
		if err := d.Restart(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: a reaches b after %v", round, reach(t, a, "10.21.140.12"))
		reach(t, a, "10.21.140.1")
		for _, vm := range []string{"a", "b"} {
			if s := d.status(t); !attached(s, vm) {
				t.Errorf("round %d: nothing is attached to %s", round, vm)
			}
		}
	}
	command(t, a, "killall iperf3")
	for _, direction := range []string{"tx", "rx"} {
		if out := command(t, a, "step_"+direction+" 10.21.140.12 1"); iperfRate(t, out) <= 0 {
			t.Errorf("iperf3 %s moved nothing: %s", direction, out)
		}
	}
}

// reach has a guest ping, with these arguments, until there is an answer. It returns how long that took.
func reach(t *testing.T, g *guest.Guest, arguments string) time.Duration {
	t.Helper()
	begin := time.Now()
	command(t, g, "until ping -c 40 -i 0.05 "+arguments+" | grep -q 'bytes from'; do sleep 0.05; done")
	return time.Since(begin).Round(time.Millisecond)
}

// attached reports whether a hypervisor is attached to a port.
func attached(s guest.Status, port string) bool {
	is, _ := s.Attached(port)
	return is
}

// clientSwitch is a switch with jumbo frames, a machine whose QEMU listens for the daemon, and one whose QEMU connects
// to it.
const clientSwitch = `
switches:
  - {name: default, mtu: 9000}
vms:
  - {name: a, memory: 256M, adapters: [{kind: synthetic, mac: "00:15:5d:00:00:0b", socket: {path: a, mode: client}}]}
  - {name: b, memory: 256M, adapters: [{kind: synthetic, mac: "00:15:5d:00:00:0c"}]}
`

// TestSyntheticClient restarts daemons and hypervisors that find each other again, whoever of them listens. It also has
// guests that are told of a large MTU.
func TestSyntheticClient(t *testing.T) {
	t.Parallel()
	d := serve(t, clientSwitch)
	machine := func(vm, ip string) guest.Config {
		return d.machine(t, vm, append(guest.Linux(cache, "net0="+ip+"/24", "run=hold"), "-no-reboot")...)
	}
	a, b := start(t, machine("a", "10.21.140.11")), start(t, machine("b", "10.21.140.12"))
	for _, g := range []*guest.Guest{a, b} {
		expect(t, g, bootLimit, `^T_HOLD`)
		if mtu := command(t, g, "cat /sys/class/net/eth0/mtu"); mtu != "9000" {
			t.Errorf("the guest's MTU is %s, want 9000", mtu)
		}
	}
	talk := func(what string) {
		t.Helper()
		t.Logf("%s: a reaches b after %v", what, reach(t, a, "-s 8900 10.21.140.12"))
	}
	talk("at first")
	command(t, b, "step_serve")
	for range 2 {
		if err := d.Restart(); err != nil {
			t.Fatal(err)
		}
		talk("new daemon")
		if out := command(t, a, "step_tx 10.21.140.12 1"); iperfRate(t, out) <= 0 {
			t.Errorf("iperf3 moved nothing: %s", out)
		}
	}
	a.Kill()
	d.waitAttached(t, "a", false)
	a = start(t, machine("a", "10.21.140.11"))
	expect(t, a, bootLimit, `^T_HOLD`)
	talk("new hypervisor")
}
