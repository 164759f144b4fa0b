// Package guest runs machines for the end-to-end tests and the benchmarks: it starts QEMU or User Mode Linux on the
// tools that testdata/setup put into the cache, follows the machine's console and, of QEMU, controls it through QMP.
//
// A [Guest] is one such process. Its console is its standard input and output: everything printed there is
// kept, and [Guest.Expect] waits for patterns in it, in order. A Linux guest from testdata/initramfs that has
// reached its "hold" step also takes shell commands: [Guest.Run]. Whoever starts a Guest must Close it.
package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says what machine to start.
type Config struct {
	// Name stands in errors. Default "guest".
	Name string

	// Launcher is a command in front of QEMU's, for instance polder run with its flags and "--". It must pass its
	// standard input and output on, and end when QEMU ends. Empty: QEMU itself.
	Launcher []string

	// Machine is QEMU's machine type, default "pc". The console is on the serial port: graphics=off is added.
	Machine string

	// MemoryMiB is the guest's memory, default 256.
	MemoryMiB int

	// OwnMemory says that Args or the Launcher provide the memory back-end. Otherwise it is a shared memfd.
	OwnMemory bool

	// Args are further QEMU arguments: adapters, kernel, boot order. A machine has no device by default.
	Args []string
}

// Guest is a running machine.
type Guest struct {
	name    string
	cmd     *exec.Cmd
	input   io.WriteCloser
	serial  *console
	errors  *console // standard error of the process and its launcher
	dir     string   // holds the QMP socket
	exited  chan struct{}
	exitErr error // valid once exited is closed

	qmpMu  sync.Mutex // guards the connection below; held for one command and its answer
	qmp    net.Conn
	qmpIn  *json.Decoder
	events []string // names of QMP events, in order of arrival

	commands int // number of the last Run
}

// Linux returns the QEMU arguments that boot the cache's Linux guest directly, with these words on its kernel
// command line: see testdata/initramfs/init for what it understands.
func Linux(cache Cache, words ...string) []string {
	return []string{
		"-kernel", cache.Path("guest/vmlinuz"), "-initrd", cache.Path("guest/initramfs.gz"),
		"-append", LinuxCommandLine(words...),
	}
}

// LinuxCommandLine returns a kernel command line with the console on the serial port and these words.
func LinuxCommandLine(words ...string) string {
	return strings.Join(append([]string{"console=ttyS0", "net.ifnames=0", "panic=-1"}, words...), " ")
}

// Start starts a machine. The guest has not run an instruction of its own yet, or very few.
func Start(cache Cache, c Config) (*Guest, error) {
	if c.Name == "" {
		c.Name = "guest"
	}
	if c.Machine == "" {
		c.Machine = "pc"
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 256
	}
	dir, err := os.MkdirTemp("", "polder-guest-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	args := append([]string{}, c.Launcher...)
	args = append(args, cache.Path("bin/qemu-system-x86_64"),
		"-machine", c.Machine+",graphics=off", "-m", strconv.Itoa(c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:"+filepath.Join(dir, "qmp")+",server=on,wait=off")
	if !c.OwnMemory {
		args = append(args, "-machine", "memory-backend=ram",
			"-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", c.MemoryMiB))
	}
	return run(c.Name, dir, append(args, c.Args...))
}

// run starts a machine, which is the process of this command line. The directory becomes the guest's.
func run(name, dir string, args []string) (_ *Guest, err error) {
	g := &Guest{name: name, dir: dir, serial: newConsole(), errors: newConsole(), exited: make(chan struct{})}
	g.cmd = exec.Command(args[0], args[1:]...)
	g.cmd.Stdout, g.cmd.Stderr = g.serial, g.errors
	g.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true,            // so that Kill reaches the machine behind a launcher
		Pdeathsig: syscall.SIGKILL, // should the test be killed before its cleanup
	}
	if g.input, err = g.cmd.StdinPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		g.exitErr = g.cmd.Wait()
		close(g.exited)
		g.serial.end()
		g.errors.end()
	}()
	return g, nil
}

// Close kills the machine if it still runs and releases what it held.
func (g *Guest) Close() {
	g.Kill()
	g.qmpMu.Lock()
	defer g.qmpMu.Unlock()
	if g.qmp != nil {
		g.qmp.Close()
	}
	os.RemoveAll(g.dir)
}

// Kill ends the machine and its launcher at once, as kill -9 does, and waits for their end.
func (g *Guest) Kill() {
	syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
	<-g.exited
}

// Pid is the process id of the machine or its launcher, and the number of its session.
func (g *Guest) Pid() int { return g.cmd.Process.Pid }

// Wait waits for the machine to power off and returns the process's exit status as os/exec does.
func (g *Guest) Wait(limit time.Duration) error {
	select {
	case <-g.exited:
		return g.exitErr
	case <-time.After(limit):
		return fmt.Errorf("%s: still running after %v\n%s", g.name, limit, g.tail())
	}
}

// Expect waits until the console shows pattern after the last match, and returns the match and its submatches. It
// fails when limit has passed or the machine has ended; the error shows the console's last lines. A line may still
// be growing: a pattern that takes the rest of one must end with the newline.
func (g *Guest) Expect(limit time.Duration, pattern string) ([]string, error) {
	match, _, err := g.ExpectAt(limit, pattern)
	return match, err
}

// ExpectAt is Expect, and also returns when the last byte of the match came in.
func (g *Guest) ExpectAt(limit time.Duration, pattern string) ([]string, time.Time, error) {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return nil, time.Time{}, err
	}
	match, at, err := g.serial.expect(re, time.Now().Add(limit))
	if err != nil {
		return nil, at, fmt.Errorf("%s: %q: %w\n%s", g.name, pattern, err, g.tail())
	}
	return match, at, nil
}

// Serial returns everything that the console has shown so far.
func (g *Guest) Serial() string { return g.serial.String() }

// Stderr returns everything that the process and its launcher have printed on standard error so far.
func (g *Guest) Stderr() string { return g.errors.String() }

// Send types text on the console; end it with a newline.
func (g *Guest) Send(text string) error {
	_, err := io.WriteString(g.input, text)
	return err
}

// Run has a Linux guest in its "hold" step run a shell command, and returns what it printed, without the space
// around it. A status other than 0 is an error.
func (g *Guest) Run(limit time.Duration, command string) (string, error) {
	g.commands++
	if err := g.Send(fmt.Sprintf("%d %s\n", g.commands, command)); err != nil {
		return "", fmt.Errorf("%s: %q: %w", g.name, command, err)
	}
	match, err := g.Expect(limit, fmt.Sprintf(`(?s)(.*?)^T_DONE %d (\d+)\r?\n`, g.commands))
	if err != nil {
		return "", fmt.Errorf("%s: %q: %w", g.name, command, err)
	}
	output := strings.TrimSpace(strings.ReplaceAll(match[1], "\r", ""))
	if match[2] != "0" {
		return output, fmt.Errorf("%s: %q: status %s: %s", g.name, command, match[2], output)
	}
	return output, nil
}

// tail returns the last lines of the console and of standard error, for an error message.
func (g *Guest) tail() string {
	return "last lines of the console:\n" + lastLines(g.serial.String(), 25) +
		"\nlast lines of standard error:\n" + lastLines(g.errors.String(), 10)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// QMP runs a QMP command with these arguments (nil for none) and returns its result.
func (g *Guest) QMP(command string, arguments any) (json.RawMessage, error) {
	g.qmpMu.Lock()
	defer g.qmpMu.Unlock()
	if err := g.connectQMP(); err != nil {
		return nil, fmt.Errorf("%s: qmp: %w", g.name, err)
	}
	result, err := g.execute(command, arguments)
	if err != nil {
		return nil, fmt.Errorf("%s: qmp %s: %w", g.name, command, err)
	}
	return result, nil
}

// ErrNoEvent is the error of WaitEvent when the event did not come in time.
var ErrNoEvent = errors.New("event did not come")

// WaitEvent waits for a QMP event of this name that no earlier WaitEvent returned for.
func (g *Guest) WaitEvent(limit time.Duration, name string) error {
	g.qmpMu.Lock()
	defer g.qmpMu.Unlock()
	if err := g.connectQMP(); err != nil {
		return fmt.Errorf("%s: qmp: %w", g.name, err)
	}
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		for i, event := range g.events {
			if event == name {
				g.events = append(g.events[:i], g.events[i+1:]...)
				return nil
			}
		}
		// A command's answer comes after the events before it, so asking also collects them.
		if _, err := g.execute("query-status", nil); err != nil {
			return fmt.Errorf("%s: qmp: %w", g.name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s: %w: %s within %v\n%s", g.name, ErrNoEvent, name, limit, g.tail())
}

// connectQMP connects and negotiates once. The caller holds qmpMu.
func (g *Guest) connectQMP() error {
	if g.qmp != nil {
		return nil
	}
	var conn net.Conn
	for deadline := time.Now().Add(10 * time.Second); ; {
		var err error
		if conn, err = net.Dial("unix", filepath.Join(g.dir, "qmp")); err == nil {
			break
		}
		select {
		case <-g.exited:
			return fmt.Errorf("QEMU has ended\n%s", g.tail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	g.qmp, g.qmpIn = conn, json.NewDecoder(conn)
	var greeting struct{ QMP json.RawMessage }
	if err := g.qmpIn.Decode(&greeting); err != nil {
		return err
	}
	_, err := g.execute("qmp_capabilities", nil)
	return err
}

// qmpLimit is how long QEMU may take to answer a QMP command. It answers once its big lock is free.
const qmpLimit = 20 * time.Second

// execute sends one command and reads up to its answer, noting events. The caller holds qmpMu.
func (g *Guest) execute(command string, arguments any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	g.qmp.SetDeadline(time.Now().Add(qmpLimit))
	if err := json.NewEncoder(g.qmp).Encode(request); err != nil {
		return nil, err
	}
	for {
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Class, Desc string }
			Event  string
		}
		if err := g.qmpIn.Decode(&answer); err != nil {
			return nil, err
		}
		switch {
		case answer.Event != "":
			g.events = append(g.events, answer.Event)
		case answer.Error != nil:
			return nil, errors.New(answer.Error.Desc)
		default:
			return answer.Return, nil
		}
	}
}
