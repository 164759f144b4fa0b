package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/testdata/guest"
)

// host is a machine without a processor of its own: a network namespace. It is there for as long as a process in it
// is, so that nothing remains of it, whatever happens to the test.
type host struct {
	t      *testing.T
	prefix []string // of command lines, to have them run in the namespace
}

// newHost makes a machine whose one device is lo.
func newHost(t *testing.T) *host {
	t.Helper()
	cmd := exec.Command("cat") // ends with its input
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	h := &host{t: t, prefix: []string{"nsenter", "--net"}}
	if os.Geteuid() != 0 { // root of a user namespace is as good
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		h.prefix = append(h.prefix, "--user", "--preserve-credentials")
	}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("a network namespace: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	h.prefix = append(h.prefix, "--target", strconv.Itoa(cmd.Process.Pid))
	h.run("ip link set lo up")
	return h
}

// command is a shell's command line on the machine.
func (h *host) command(line string) *exec.Cmd {
	args := append(append([]string{}, h.prefix...), "sh", "-ec", line)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+cache.Path("bin")+":/usr/sbin:/sbin:"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // what it has started may live on a little
	return cmd
}

// run runs a shell's command line and returns what it printed.
func (h *host) run(line string) string {
	h.t.Helper()
	out, err := h.command(line).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// pings tells whether the machine reaches an address.
func (h *host) pings(address string) bool {
	return h.command("busybox ping -c 2 -W 2 "+address).Run() == nil
}

// background starts a command that goes on, and ends with the test or with stop, which returns what it printed.
func (h *host) background(line string) (stop func() string) {
	h.t.Helper()
	cmd := h.command("exec " + line)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := false
	stop = func() string {
		if !ended {
			ended = true
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		}
		return out.String()
	}
	h.t.Cleanup(func() {
		if stop(); h.t.Failed() {
			h.t.Logf("%s: %s", line, lastLines(out.String()))
		}
	})
	return stop
}

// connect joins two machines by a cable. Its end on each is a network adapter of that name.
func (h *host) connect(name string, other *host, otherName string) {
	h.t.Helper()
	h.run(fmt.Sprintf("ip link add %s type veth peer name %s netns %s", name, otherName, other.prefix[len(other.prefix)-1]))
	h.run("ip link set " + name + " up")
	other.run("ip link set " + otherName + " up")
}

// serve starts a daemon on the machine.
func (h *host) serve(config string) daemon {
	h.t.Helper()
	program := filepath.Join(h.t.TempDir(), "polder")
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", strings.Join(h.prefix, " "), polder)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return serveWith(h.t, program, config)
}

// polder runs a command of the daemon's program and returns what it printed.
func (d daemon) polder(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(polder, append([]string{"--runtime-dir", d.Dir()}, args...)...)
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("polder %s: %v\n%s", strings.Join(args, " "), err, errors.String())
	}
	return string(out)
}

// soon waits until something holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}

// reaches tells whether a Linux guest reaches an address.
func reaches(t *testing.T, g *guest.Guest, address string) bool {
	t.Helper()
	return strings.Contains(command(t, g, "step_ping "+address+" 2"), " ok ")
}

// tool runs a program of the cache and returns what it printed on its standard output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, cache.Path("bin/"+name), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // no settings of the user's
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errors.String())
	}
	return string(out)
}

// packets returns fields of the packets of a capture that a display filter of Wireshark's selects.
func packets(t *testing.T, file, filter string, fields ...string) [][]string {
	t.Helper()
	args := []string{"-r", file, "-n", "-Y", filter, "-T", "fields", "-E", "separator=|"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var list [][]string
	for line := range strings.Lines(tool(t, "tshark", args...)) {
		list = append(list, strings.Split(strings.TrimSuffix(line, "\n"), "|"))
	}
	return list
}
