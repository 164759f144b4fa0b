package hostnet

import (
	"context"
	"errors"
	"fmt"
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
	dir, leaf, driver := os.Getenv(crashDir), os.Getenv(crashLeaf), Driver(os.Getenv(crashKind))
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
		p, err := planExternal(External{Switch: "LAN", NIC: "eth0", Driver: driver}, host{run: dir, sys: dir})
		if err != nil {
			return err
		}
		p.around = around
		t, err := p.Begin(dir, slog.Default())
		if err != nil {
			return err
		}
		if driver == Packet {
			startRelay(func(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }, t.Device(), "eth0")
		}
		if err := t.Commit(context.Background(), 0, nil); err != nil || leaf == "commit" {
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
func TestKilledInBridgeCommit(t *testing.T)   { killAtEachStep(t, Bridge, "commit") }
func TestKilledInBridgeRollback(t *testing.T) { killAtEachStep(t, Bridge, "rollback") }
func TestKilledInPacketCommit(t *testing.T)   { killAtEachStep(t, Packet, "commit") }
func TestKilledInPacketRollback(t *testing.T) { killAtEachStep(t, Packet, "rollback") }

func killAtEachStep(t *testing.T, driver Driver, leaf string) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	log, _ := testLog(t)
	before := h.snapshot()
	dir := t.TempDir()
	if crashes(t, dir, "commit", driver, 1000) {
		t.Fatal("more than 1000 steps")
	}
	dead := func() { // the TAP of a process that is gone
		if driver == Packet {
			h.waitFor("ip route show default", "linkdown")
		}
	}
	dead()
	after := h.snapshot()
	back := func() {
		t.Helper()
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
	for at := 0; ; at++ {
		killed := crashes(t, dir, leaf, driver, at)
		kept, err := Recover(dir, log)
		if err != nil {
			t.Fatalf("%s, step %d: %v", leaf, at, err)
		}
		if len(kept) > 0 {
			dead()
			same(t, leaf+", step "+strconv.Itoa(at), after, h.snapshot())
			back()
		} else {
			same(t, leaf+", step "+strconv.Itoa(at), before, h.snapshot())
		}
		if !killed {
			t.Logf("%s by %s: killed before each of %d steps", leaf, driver, at)
			break
		}
	}
}

// A recovery that is killed is ended by the next.
func TestKilledInRecovery(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	log, _ := testLog(t)
	before := h.snapshot()
	dir := t.TempDir()
	for at := 0; ; at++ {
		if !crashes(t, dir, "commit", Bridge, 20) { // with addresses on both devices
			t.Fatal("fewer than 20 steps")
		}
		killed := crashes(t, dir, "recover", Bridge, at)
		if _, err := Recover(dir, log); err != nil {
			t.Fatalf("step %d: %v", at, err)
		}
		same(t, "recovery, step "+strconv.Itoa(at), before, h.snapshot())
		if !killed {
			t.Logf("killed before each of %d steps", at)
			break
		}
	}
}
