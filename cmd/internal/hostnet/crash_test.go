package hostnet

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// What the crashing process is told.
const (
	crashDir  = "HOSTNET_DIR"
	crashLeaf = "HOSTNET_LEAF"   // "commit" or "rollback"
	crashAt   = "HOSTNET_AT"     // the step before which it ends
	crashKind = "HOSTNET_DRIVER" // the driver
)

// crash is a process that takes eth0 over, and puts it back if the leaf is rollback, and is killed
// before a step of the leaf. It ends by itself if there are fewer steps.
func crash() {
	at, _ := strconv.Atoi(os.Getenv(crashAt))
	dir, leaf := os.Getenv(crashDir), os.Getenv(crashLeaf)
	armed, n := leaf == "commit", 0
	around := func(_ string, run func() error) error {
		if armed {
			if n == at {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			n++
		}
		return run()
	}
	err := func() error {
		if leaf == "recover" {
			armed = true
			_, err := recoverAll(dir, slog.Default(), stepper{around})
			return err
		}
		p, err := planExternal(External{Switch: "LAN", NIC: "eth0", Driver: Driver(os.Getenv(crashKind))}, host{run: dir, sys: dir})
		if err != nil {
			return err
		}
		p.around = around
		t, err := p.Begin(dir, slog.Default())
		if err != nil {
			return err
		}
		if err := t.Commit(context.Background(), 0); err != nil || leaf == "commit" {
			return err
		}
		armed = true
		return t.Rollback()
	}()
	if err != nil {
		slog.Error("crash", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// crashes runs the crashing process, and tells whether it was killed; else it came to its end.
func crashes(t *testing.T, dir, leaf string, driver Driver, at int) bool {
	t.Helper()
	cmd := inRole(roleCrash)
	cmd.Env = append(cmd.Env, crashDir+"="+dir, crashLeaf+"="+leaf, crashKind+"="+string(driver), crashAt+"="+strconv.Itoa(at))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s, step %d: %v\n%s", leaf, at, err, out)
	}
	return false
}

// A process that is killed before any step leaves a host that, after the next start, is exactly as it was before the
// take-over, or exactly as after it.
func TestKilledAtEachStep(t *testing.T) {
	h, _ := newHost(t)
	h.run(`ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0; ip addr add 10.0.1.2/24 dev eth0 valid_lft 3600 preferred_lft 3600
ip addr add 2001:db8::2/64 dev eth0 nodad
ip route add default via 10.0.0.1
ip route add 10.50.0.0/16 via 10.0.1.1 table 100
ip -6 route add default via 2001:db8::1 dev eth0
ip rule add priority 100 iif eth0 lookup 100
ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
sysctl -qw net.ipv4.conf.eth0.rp_filter=1`)
	log, _ := testLog(t)
	before := h.snapshot()
	dir := t.TempDir()
	if crashes(t, dir, "commit", Bridge, 1000) {
		t.Fatal("more than 1000 steps")
	}
	after := h.snapshot()
	back := func() {
		to, err := Resume(dir, "LAN", log)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Rollback(); err != nil {
			t.Fatal(err)
		}
		same(t, "rollback", before, h.snapshot())
	}
	back()
	for _, leaf := range []string{"commit", "rollback"} {
		for at := 0; ; at++ {
			killed := crashes(t, dir, leaf, Bridge, at)
			kept, err := Recover(dir, log)
			if err != nil {
				t.Fatalf("%s, step %d: %v", leaf, at, err)
			}
			if len(kept) > 0 {
				same(t, leaf+", step "+strconv.Itoa(at), after, h.snapshot())
				back()
			} else {
				same(t, leaf+", step "+strconv.Itoa(at), before, h.snapshot())
			}
			if !killed {
				t.Logf("%s: %d steps", leaf, at)
				break
			}
		}
	}
}
