package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// rounds is how often each fault is repeated.
const rounds = 20

// oneGuest is a switch with a boot service that has these files, and one adapter.
func oneGuest(root string) string {
	return fmt.Sprintf(`
switches:
  - name: default
    pxe: {root: %q}
vms:
  - {name: a, memory: 256M, adapters: [{}]}
`, root)
}

// warmUp attaches a guest once, lets it use the network and go, so that everything that the daemon makes once and
// keeps is made. It returns what the daemon holds with no guest.
func warmUp(t *testing.T, d daemon) resources {
	t.Helper()
	g := start(t, d.machine(t, "a", append(guest.Linux(cache, "net0=dhcp", "run=ping:10.21.140.1"), "-no-reboot")...))
	expect(t, g, bootLimit, `^PING 10\.21\.140\.1 ok`)
	g.Close()
	d.waitAttached(t, "a", false)
	time.Sleep(time.Second) // what was delayed on purpose is over
	return d.resources(t)
}

// TestKilledQEMU kills QEMU at every stage of a boot: while it sets the adapter up, in the firmware, in the kernel,
// in its driver. The next one finds the same socket and an adapter as new.
func TestKilledQEMU(t *testing.T) {
	t.Parallel()
	d := serve(t, oneGuest(bootFiles(t)))
	before := warmUp(t, d)
	args := append(guest.Linux(cache, "net0=dhcp", "run=ping:10.21.140.1,hold"), "-no-reboot")
	for round := range rounds {
		g := start(t, d.machine(t, "a", args...))
		d.waitAttached(t, "a", true)
		time.Sleep(time.Duration(round) * 250 * time.Millisecond)
		g.Kill()
		d.waitAttached(t, "a", false)
	}
	d.noMore(t, before)
	g := start(t, d.machine(t, "a", args...))
	expect(t, g, bootLimit, `^UDHCPC ip=`, `^PING 10\.21\.140\.1 ok`)
}

// TestHotPlug takes the adapter out of a running guest and puts it back.
func TestHotPlug(t *testing.T) {
	t.Parallel()
	d := serve(t, oneGuest(bootFiles(t)))
	before := warmUp(t, d)
	config := d.machine(t, "a", append(guest.Linux(cache, "net0=dhcp", "run=hold"), "-no-reboot")...)
	var device map[string]any
	for i, arg := range config.Args {
		if arg == "-device" {
			if err := json.Unmarshal([]byte(config.Args[i+1]), &device); err != nil {
				t.Fatalf("polder qemu-args: -device %s: %v", config.Args[i+1], err)
			}
		}
	}
	g := start(t, config)
	expect(t, g, bootLimit, `^T_HOLD`)
	for round := range rounds {
		if _, err := g.QMP("device_del", map[string]any{"id": device["id"]}); err != nil {
			t.Fatal(err)
		}
		if err := g.WaitEvent(time.Minute, "DEVICE_DELETED"); err != nil {
			t.Fatal(err)
		}
		d.waitAttached(t, "a", false)
		if round == rounds-1 {
			d.noMore(t, before)
		}
		if _, err := g.QMP("device_add", device); err != nil {
			t.Fatal(err)
		}
		command(t, g, "until [ -e /sys/class/net/eth0/operstate ]; do sleep 0.1; done")
	}
	if out := command(t, g, "configure eth0 dhcp; step_ping 10.21.140.1"); !strings.Contains(out, " ok ") {
		t.Errorf("after %d rounds the guest cannot ping: %s", rounds, out)
	}
}

// TestResetDuringTransfer resets the guest while it loads a file. After all the resets a transfer comes to its end.
func TestResetDuringTransfer(t *testing.T) {
	t.Parallel()
	root := bootFiles(t, "installer/initrd.gz")
	script := "#!ipxe\nimgfetch initrd.gz && echo LOADED || echo LOST\n"
	if err := os.WriteFile(filepath.Join(root, "boot.ipxe"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	d := serve(t, oneGuest(root))
	before := warmUp(t, d)
	g := start(t, d.machine(t, "a", "-kernel", cache.Path("boot/ipxe.lkrn")))
	for range rounds {
		expect(t, g, bootLimit, `iPXE initialising devices`, `initrd\.gz\.\.[ .]*\d+%`)
		if _, err := g.QMP("system_reset", nil); err != nil {
			t.Fatal(err)
		}
	}
	if match := expect(t, g, bootLimit, `iPXE initialising devices`, `LOADED|LOST`); match[0] != "LOADED" {
		t.Errorf("after %d resets the guest could not load the file:\n%s", rounds, lastLines(g.Serial()))
	}
	g.Close()
	d.waitAttached(t, "a", false)
	d.noMore(t, before)
}

// TestKilledDaemon kills the daemon under a running guest. A guest's access to a device whose back-end holds the
// socket open but is silent takes QEMU 5 s; with the back-end gone it must fail at once. The commands below make
// thousands of accesses, and would take hours.
func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	d := serve(t, oneGuest(bootFiles(t)))
	g := start(t, d.machine(t, "a", append(guest.Linux(cache, "net0=dhcp", "run=ping:10.21.140.1,hold"), "-no-reboot")...))
	expect(t, g, bootLimit, `^PING 10\.21\.140\.1 ok`, `^T_HOLD`)
	d.Kill()
	if _, err := g.QMP("query-status", nil); err != nil {
		t.Error(err)
	}
	command(t, g, "ip link set eth0 down; ip link set eth0 up; ip link set eth0 down")
	command(t, g, "rmmod tulip; modprobe tulip; true")
	if err := g.Send("end\n"); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(time.Minute); err != nil {
		t.Errorf("QEMU: %v, want the guest to power off", err)
	}
}
