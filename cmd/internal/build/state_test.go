package build

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Two daemons do not share a directory of state; one that needs nothing of it does not mind.
func TestStateIsHeld(t *testing.T) {
	const pool = "mac_pool: 00:15:5d:4d:00:00-00:15:5d:4d:00:ff\nswitches: [{name: lan}]\n"
	first := newWorld(t, pool)
	if err := os.Mkdir(filepath.Join(first.StateDir, hostnetDir), 0o700); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := Options{Dir: dir, StateDir: first.StateDir, Log: quiet}
	private := "switches: [{name: lan}]\n"
	other, err := New(parse(t, dir, private), o)
	if err != nil {
		t.Fatalf("a daemon with private switches only: %v", err)
	}
	defer other.Close()
	if err := other.setPool(parse(t, dir, pool).MACPool); !errors.Is(err, errStateHeld) || !strings.Contains(err.Error(), "choose another --state-dir") {
		t.Errorf("a pool in another daemon's directory: %v", err)
	}
	first.Close()
	if third, err := New(parse(t, dir, private), o); err != nil {
		t.Errorf("the directory is free: %v", err)
	} else {
		defer third.Close()
	}
	if err := other.setPool(parse(t, dir, pool).MACPool); err != nil {
		t.Errorf("the directory is free, though another daemon has looked into it: %v", err)
	}
	if os.Geteuid() == 0 {
		foreign := t.TempDir()
		if err := os.Chown(foreign, 65534, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := New(parse(t, dir, pool), Options{Dir: dir, StateDir: foreign, Log: quiet}); err == nil || !strings.Contains(err.Error(), "it belongs to user 65534") {
			t.Errorf("a directory of another user's: %v", err)
		}
	}
}

// Without the privilege to change the host's network, nothing is begun that would fail half-way.
func TestNoPrivileges(t *testing.T) {
	w := newWorld(t, "switches: [{name: lan}]\nvms: [{name: a, adapters: [{switch: lan}]}]\n")
	events, stop := w.Subscribe()
	defer stop()
	applied := make(chan error)
	const text = "switches: [{name: lab, type: internal, management: {address: [10.8.0.1/24]}}]\n"
	c := parse(t, w.Dir, text)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			applied <- err
			applied <- err
			return
		}
		_, err := w.Apply(c, false)
		applied <- err
		applied <- w.AddSwitch(c.Switches[0], 0)
	}()
	for _, what := range []string{"Apply", "AddSwitch"} {
		if err := <-applied; err == nil || !strings.Contains(err.Error(), `switch "lab": a switch of type internal takes the privilege to change the host's network`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	select {
	case e := <-events:
		t.Errorf("something has changed: %+v", e)
	default:
	}
}
