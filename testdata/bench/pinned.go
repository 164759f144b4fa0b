package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a measurement of one processor takes: processes that keep to theirs and that nothing else is scheduled
// before, and the huge pages that some of them want.

// The processors of such a measurement.
type cores struct {
	generator int // sends and receives
	backEnd   int // what is measured
}

// twoCores returns two processors that this process may use: of different cores, if there are such.
func twoCores() (cores, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return cores{}, fmt.Errorf("processors: %w", err)
	}
	var allowed []int
	for cpu := range 64 * len(set) {
		if set.IsSet(cpu) {
			allowed = append(allowed, cpu)
		}
	}
	if len(allowed) < 2 {
		return cores{}, errors.New("this benchmark needs two processors: one for the generator, one for what it measures")
	}
	first, second := allowed[0], allowed[1]
	for _, cpu := range allowed[1:] {
		if coreOf(cpu) != coreOf(first) {
			second = cpu
			break
		}
	}
	return cores{generator: first, backEnd: second}, nil
}

// coreOf returns the processors that share a core with this one, itself among them; "" if the kernel does not say.
func coreOf(cpu int) string {
	text, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu))
	if err != nil {
		return ""
	}
	return string(text)
}

// pinned is a process that may use one processor only. Whoever starts one must stop it.
type pinned struct {
	name   string
	cmd    *exec.Cmd
	output bytes.Buffer // complete once ended is closed
	ended  chan struct{}
	err    error // of its end; valid once ended is closed
}

// startPinned starts a command on a processor, in a network namespace unless n is nil. What it prints is kept,
// besides what the command already has a place for.
func startPinned(core int, n *namespace, cmd *exec.Cmd) (*pinned, error) {
	p := &pinned{name: cmd.Args[0], cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true,            // the scheduler weighs sessions against each other, and processes within theirs
		Pdeathsig: syscall.SIGKILL, // should the benchmark be killed
	}
	start := func() error { return onCore(core, cmd.Start) }
	var err error
	if n != nil {
		err = n.do(start)
	} else {
		err = start()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := ahead(cmd.Process.Pid); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return p, nil
}

// onCore calls f, whose children may use this processor only.
func onCore(core int, f func() error) error {
	// A child has the processors of the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(core)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &before)
	return f()
}

// ahead puts the session of a process ahead of all others. A kernel that does not weigh them has no such file.
func ahead(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-20"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("priority: %w (this benchmark needs root: sudo make bench)", err)
	}
	return nil
}

// stop ends the process at once.
func (p *pinned) stop() {
	p.cmd.Process.Kill()
	<-p.ended
}

// printed returns the last lines of what the process has printed. It must have ended.
func (p *pinned) printed() string {
	lines := strings.SplitAfter(p.output.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// wait waits for the process to end by itself.
func (p *pinned) wait(limit time.Duration) error {
	select {
	case <-p.ended:
		return p.err
	case <-time.After(limit):
		return fmt.Errorf("still running after %v", limit)
	}
}

// waitSockets waits until the process listens on these Unix sockets.
func (p *pinned) waitSockets(paths ...string) error {
	return p.until(func() bool {
		for _, path := range paths {
			if info, err := os.Stat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
				return false
			}
		}
		return true
	})
}

// until waits until the process has made a condition true.
func (p *pinned) until(condition func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %v\n%s", p.name, p.err, p.printed())
		default:
		}
		if time.Now().After(deadline) {
			p.stop()
			return fmt.Errorf("%s is not ready\n%s", p.name, p.printed())
		}
	}
	return nil
}

// hugePages is how many huge pages a measurement reserves: what Open vSwitch takes for the buffers of two ports, and
// 64 for the generator.
const hugePages = 1024

// reserveHugePages makes the kernel have so many free huge pages of 2 MiB. release gives them back; so does the
// benchmark's end by a signal.
func reserveHugePages() (release func(), err error) {
	const dir = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	read := func(name string) (int, error) {
		text, err := os.ReadFile(dir + name)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(text)))
	}
	write := func(n int) error { return os.WriteFile(dir+"nr_hugepages", []byte(strconv.Itoa(n)), 0) }
	before, err := read("nr_hugepages")
	if err != nil {
		return nil, fmt.Errorf("huge pages: %w", err)
	}
	free, err := read("free_hugepages")
	if err != nil {
		return nil, fmt.Errorf("huge pages: %w", err)
	}
	if free >= hugePages {
		return func() {}, nil
	}
	if err := write(before + hugePages - free); err != nil {
		return nil, fmt.Errorf("huge pages: %w (this benchmark needs root: sudo make bench)", err)
	}
	restore := sync.OnceFunc(func() {
		if err := write(before); err != nil {
			fmt.Fprintln(os.Stderr, "bench: huge pages:", err)
		}
	})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-signals; ok {
			restore()
			os.RemoveAll(scratch)
			os.Exit(1)
		}
	}()
	release = func() {
		signal.Stop(signals)
		close(signals)
		restore()
	}
	if free, err = read("free_hugepages"); err == nil && free < hugePages {
		err = fmt.Errorf("the kernel has found %d of 2 MiB, and this benchmark takes %d: free some memory", free, hugePages)
	}
	if err != nil {
		release()
		return nil, fmt.Errorf("huge pages: %w", err)
	}
	return release, nil
}
