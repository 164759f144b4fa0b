package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is a private network namespace. Nothing of it has a name in the system: it is there for as long as its
// thread or a process in it is, so an interrupted benchmark leaves nothing behind.
type namespace struct {
	calls chan func()
	path  string // of the namespace, for tools
}

// newNamespace makes a namespace with its loopback device up.
func newNamespace() (*namespace, error) {
	n := &namespace{calls: make(chan func())}
	made := make(chan error)
	go func() {
		// The thread is never unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- fmt.Errorf("network namespace: %w (this benchmark needs root: sudo make bench)", err)
			return
		}
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- nil
		for call := range n.calls {
			call()
		}
	}()
	if err := <-made; err != nil {
		return nil, err
	}
	return n, n.ip("link set lo up")
}

// do calls f on the namespace's thread: devices that f opens and processes that it starts are in the namespace.
func (n *namespace) do(f func() error) error {
	result := make(chan error)
	n.calls <- func() { result <- f() }
	return <-result
}

// close ends the namespace once the last process in it has ended.
func (n *namespace) close() { close(n.calls) }

// ip runs the ip tool in the namespace.
func (n *namespace) ip(arguments string) error {
	cmd := exec.Command(cache.Path("bin/ip"), strings.Fields(arguments)...)
	var out []byte
	err := n.do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", arguments, err, out)
	}
	return nil
}

// background starts a program of the cache in the namespace. stop ends it; its output is shown if it fails by itself.
func (n *namespace) background(program string, arguments ...string) (stop func(), err error) {
	cmd := exec.Command(cache.Path("bin/"+program), arguments...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should the benchmark be killed
	if err := n.do(cmd.Start); err != nil {
		return nil, err
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		err := cmd.Wait()
		select {
		case <-stopped:
		default:
			fmt.Fprintf(os.Stderr, "bench: %s ended: %v\n%s", program, err, out.String())
		}
		close(ended)
	}()
	return func() {
		close(stopped)
		cmd.Process.Kill()
		<-ended
	}, nil
}
