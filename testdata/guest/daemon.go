package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Daemon is a running polder serve. Whoever starts one must Close it.
type Daemon struct {
	program string
	dir     string // of its configuration and sockets
	cmd     *exec.Cmd
	ended   chan struct{}
	control http.Client
	log     bytes.Buffer // complete once ended is closed
}

// Serve starts program (a polder binary) as a daemon with the text of a configuration, and waits until it answers.
func Serve(program, config string) (*Daemon, error) {
	// Not in a test's own directory: the path of a socket is limited to 107 bytes.
	dir, err := os.MkdirTemp("", "polder-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{program: program, dir: dir}
	d.control.Transport = &http.Transport{
		DisableKeepAlives: true, // an idle connection would look like a leak of the daemon's
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "control.sock"))
		},
	}
	if err = os.WriteFile(d.config(), []byte(config), 0o644); err == nil {
		err = d.start()
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("polder serve: %w", err)
	}
	if err := d.answers(); err != nil {
		d.Close()
		return nil, fmt.Errorf("polder serve does not answer: %w\n%s", err, d.Log())
	}
	return d, nil
}

// start starts the process.
func (d *Daemon) start() error {
	d.cmd = exec.Command(d.program, "serve", "--runtime-dir", d.dir, "--state-dir", filepath.Join(d.dir, "state"), "-c", d.config())
	d.cmd.Stderr = &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return nil
}

// answers waits until the daemon does.
func (d *Daemon) answers() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := d.Status()
		if err == nil {
			return nil
		}
		select {
		case <-d.ended:
			return err
		default:
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Restart kills the daemon if it still runs, and starts another in its place.
func (d *Daemon) Restart() error {
	d.Kill()
	if err := d.start(); err != nil {
		return fmt.Errorf("polder serve: %w", err)
	}
	return d.answers()
}

func (d *Daemon) config() string { return filepath.Join(d.dir, "polder.yaml") }

// Kill ends the daemon at once, as kill -9 does, and waits for its end.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	<-d.ended
}

// Stop asks the daemon to end, and waits until it has. What it leaves behind in its directory, besides what it was
// given, is returned.
func (d *Daemon) Stop() (left []string, err error) {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	select {
	case <-d.ended:
	case <-time.After(time.Minute):
		return nil, errors.New("polder serve does not end when it is asked to")
	}
	if !d.cmd.ProcessState.Success() {
		return nil, fmt.Errorf("polder serve: %v", d.cmd.ProcessState)
	}
	err = filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && path != d.config() {
			left = append(left, path)
		}
		return err
	})
	return left, err
}

// Dir is the directory of the daemon's sockets.
func (d *Daemon) Dir() string { return d.dir }

// Close kills the daemon if it still runs and removes its directory.
func (d *Daemon) Close() {
	d.Kill()
	os.RemoveAll(d.dir)
}

// Pid is the daemon's process id, and the number of its session.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Log returns what the daemon printed. It waits for the daemon's end: Kill it first.
func (d *Daemon) Log() string {
	<-d.ended
	return d.log.String()
}

// Machine returns the configuration of a machine that is the daemon's VM of this name, whose configured memory must
// be MemoryMiB, with further QEMU arguments.
func (d *Daemon) Machine(vm string, args ...string) (Config, error) {
	out, err := exec.Command(d.program, "qemu-args", "--runtime-dir", d.dir, "-c", d.config(), vm).Output()
	if err != nil {
		return Config{}, fmt.Errorf("polder qemu-args: %w", err)
	}
	return Config{Name: vm, OwnMemory: true, Args: append(strings.Fields(string(out)), args...)}, nil
}

// Socket returns the path of the socket where a hypervisor attaches to the port.
func (d *Daemon) Socket(port string) string { return filepath.Join(d.dir, port+".sock") }

// Status is a part of what polder's control socket tells.
type Status struct {
	Goroutines int
	Switches   []struct {
		Name  string
		Ports []struct {
			Name     string
			Attached bool // a hypervisor is
		}
	}
}

// Attached reports whether the port exists, and whether a hypervisor is attached to it.
func (s Status) Attached(port string) (attached, exists bool) {
	for _, sw := range s.Switches {
		for _, p := range sw.Ports {
			if p.Name == port {
				return p.Attached, true
			}
		}
	}
	return false, false
}

// Status asks the daemon for its status.
func (d *Daemon) Status() (Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var s Status
	response, err := d.get(ctx, "/v1/status")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}

// Get returns what the control socket answers to a path.
func (d *Daemon) Get(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	response, err := d.get(ctx, path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func (d *Daemon) get(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://polder"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := d.control.Do(request)
	if err == nil && response.StatusCode != http.StatusOK {
		response.Body.Close()
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return response, err
}

// Event is one step of a guest's boot.
type Event struct {
	Time time.Time
	Kind string // "discover", "ack", "request", …
	Name string // of a file
}

// Events calls f for each event from now on, until f returns false, ctx is done or the daemon ends. It closes
// ready, if that is not nil, when no later event can be missed.
func (d *Daemon) Events(ctx context.Context, ready chan<- struct{}, f func(Event) bool) error {
	response, err := d.get(ctx, "/v1/events")
	if ready != nil {
		close(ready)
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for lines := json.NewDecoder(response.Body); ; {
		var message struct{ Boot *Event }
		if err := lines.Decode(&message); err != nil {
			return err
		}
		if message.Boot != nil && !f(*message.Boot) {
			return nil
		}
	}
}
