package build

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// errStateHeld is what holdState's error is when another daemon has the directory.
var errStateHeld = errors.New("another polder uses it: stop that one, or choose another --state-dir")

// stateHandover is how long a daemon that starts waits for one that ends, and has the host's network to put back.
const stateHandover = 10 * time.Second

// holdState takes the directory of state for this World alone, until it is closed or the process ends, and makes it if it is not
// there. Of two that share it, each would put back what the other has done to the host's network, and give the other's
// addresses away.
func (w *World) holdState(patience time.Duration) error {
	if w.state != nil {
		return nil
	}
	if err := os.MkdirAll(w.StateDir, 0o700); err != nil {
		return fmt.Errorf("directory of state: %w: choose another --state-dir", err)
	}
	f, err := os.Open(w.StateDir)
	if err == nil {
		err = lockState(f, time.Now().Add(patience))
		if err != nil {
			f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("directory of state %s: %w", w.StateDir, err)
	}
	w.state = f
	return nil
}

// lockState locks the directory, if nobody but its user can have written what is in it.
func lockState(f *os.File, end time.Time) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && owner != uint32(os.Geteuid()) {
		return fmt.Errorf("it belongs to user %d, who could change what is put back: choose another --state-dir", owner)
	}
	for ; ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return fmt.Errorf("cannot lock it: %w", err)
		case time.Now().After(end):
			return errStateHeld
		}
	}
}

// releaseState lets another daemon have the directory.
func (w *World) releaseState() {
	if w.state != nil {
		w.state.Close()
		w.state = nil
	}
}
