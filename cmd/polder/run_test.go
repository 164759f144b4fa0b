package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"polder/cmd/internal/control"
)

// asPolder makes the test binary polder. The race detector would sleep for a second at the end
// of each.
var asPolder = append(os.Environ(), "POLDER_TEST_MAIN=1", "GORACE=atexit_sleep_ms=0")

// process is polder as a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout text
	stderr text
	ended  chan struct{}
}

// text is what a process has written so far.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (w *text) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// String returns all of it.
func (w *text) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// start runs polder with a runtime directory; env is for the fake QEMU.
func start(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], append([]string{"--runtime-dir", dir}, args...)...), ended: make(chan struct{})}
	p.cmd.Env = append(slices.Clip(asPolder), env...)
	p.cmd.Stdin = strings.NewReader("from standard input\n")
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// wait waits for the end and returns the exit status.
func (p *process) wait() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// until waits for something to become true while the process runs.
func (p *process) until(what string, ok func() bool) {
	p.t.Helper()
	for !ok() {
		select {
		case <-p.ended:
			p.t.Fatalf("polder ended with status %d before %s: %s", p.cmd.ProcessState.ExitCode(), what, p.stderr.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *process) untilFile(path string) {
	p.t.Helper()
	p.until("there was "+path, func() bool { _, err := os.Stat(path); return err == nil })
}

// QEMU's exit status is polder's, as a shell would report it.
func TestExitStatus(t *testing.T) {
	qemu := script(t, "qemu", fakeQEMU)
	for _, c := range []struct {
		then string
		want int
	}{
		{"exit 0", 0},
		{"exit 1", 1},
		{"exit 3", 3},
		{"kill -KILL $$", 128 + int(syscall.SIGKILL)},
		{"kill -SEGV $$", 128 + int(syscall.SIGSEGV)},
		{"kill -TERM $$", 128 + int(syscall.SIGTERM)},
	} {
		t.Run(c.then, func(t *testing.T) {
			dir := t.TempDir()
			p := start(t, dir, []string{"THEN=" + c.then}, "run", "--", qemu)
			if got := p.wait(); got != c.want || p.stderr.String() != "" {
				t.Errorf("status %d, want %d; on standard error: %s", got, c.want, p.stderr.String())
			}
			wantEmpty(t, dir)
		})
	}
}

// QEMU gets its own arguments, then what was missing, and the terminal.
func TestWhatQEMUGets(t *testing.T) {
	dir, qemu, file := t.TempDir(), script(t, "qemu", fakeQEMU), filepath.Join(t.TempDir(), "args")
	p := start(t, dir, []string{"ARGS=" + file, "THEN=cat; echo to standard error >&2; ls -d " + dir + "/run-*/web.sock"},
		"run", "--name", "web", "--bootindex", "0", "--", qemu, "-m", "1G", "-append", "two words", "--", "-x")
	if status := p.wait(); status != 0 {
		t.Fatalf("status %d: %s", status, p.stderr.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimPrefix(p.stdout.String(), "from standard input\n")
	want := []string{
		"-m", "1G", "-append", "two words", "--", "-x",
		"-object", "memory-backend-memfd,id=polder-memory,size=1073741824,share=on", "-machine", "memory-backend=polder-memory",
		"-nic", "none",
		"-device", `{"driver":"vfio-user-pci","id":"polder0","socket":{"type":"unix","path":"` + strings.TrimSpace(socket) + `"},"bootindex":0}`,
	}
	if got := strings.Split(strings.TrimSpace(string(text)), "\n"); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := p.stderr.String(); got != "to standard error\n" {
		t.Errorf("on standard error: %q", got)
	}
	wantEmpty(t, dir)
}

// When polder is told to stop, QEMU is asked to, its status is polder's, and all is cleaned up.
func TestStop(t *testing.T) {
	qemu := script(t, "qemu", fakeQEMU)
	const loop = `; while :; do sleep 0.01; done`
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		then   string
		want   int
	}{
		{"ends well", syscall.SIGTERM, `trap "exit 0" TERM` + loop, 0},
		{"ends with a status", syscall.SIGTERM, `trap "exit 7" TERM` + loop, 7},
		{"dies of it", syscall.SIGTERM, `:` + loop, 128 + int(syscall.SIGTERM)},
		{"Ctrl-C", syscall.SIGINT, `trap "exit 5" TERM` + loop, 5},
		{"the terminal closes", syscall.SIGHUP, `trap "exit 6" TERM` + loop, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, ready := t.TempDir(), filepath.Join(t.TempDir(), "ready")
			then := strings.Replace(c.then, loop, "; : >"+ready+loop, 1)
			p := start(t, dir, []string{"THEN=" + then}, "run", "--switch", "lab", "--", qemu)
			p.untilFile(ready)
			if err := p.cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			if got := p.wait(); got != c.want {
				t.Errorf("status %d, want %d: %s", got, c.want, p.stderr.String())
			}
			wantEmpty(t, dir)
		})
	}
}

// A hang-up that polder was started to ignore, as nohup does, does not end it.
func TestIgnoredSignal(t *testing.T) {
	dir, qemu, ready := t.TempDir(), script(t, "qemu", fakeQEMU), filepath.Join(t.TempDir(), "ready")
	p := &process{t: t, ended: make(chan struct{})}
	p.cmd = exec.Command("sh", "-c", `trap "" HUP; exec "$0" "$@"`, os.Args[0], "--runtime-dir", dir, "run", "--", qemu)
	p.cmd.Env = append(slices.Clip(asPolder), "THEN=: >"+ready+"; while [ -e "+ready+" ]; do sleep 0.01; done; exit 4")
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	p.untilFile(ready)
	_ = p.cmd.Process.Signal(syscall.SIGHUP)
	os.Remove(ready)
	if got := p.wait(); got != 4 {
		t.Errorf("status %d: %s", got, p.stderr.String())
	}
	wantEmpty(t, dir)
}

// A standard error that nobody reads any more does not end polder before its cleanup.
func TestClosedPipe(t *testing.T) {
	dir, qemu, ready := t.TempDir(), script(t, "qemu", fakeQEMU), filepath.Join(t.TempDir(), "ready")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "--runtime-dir", dir, "--log-level", "debug", "run", "--", qemu)
	cmd.Env = append(slices.Clip(asPolder), "THEN=: >"+ready+"; exit 9")
	cmd.Stderr = w
	r.Close()
	err = cmd.Run() // logs that it starts QEMU
	w.Close()
	if got := cmd.ProcessState.ExitCode(); got != 9 {
		t.Errorf("status %d: %v", got, err)
	}
	if _, err := os.Stat(ready); err != nil {
		t.Errorf("QEMU was not started: %v", err)
	}
	wantEmpty(t, dir)
}

// Runs that name one switch share it, whoever of them makes it; it stays until the last ends.
func TestSharedSwitch(t *testing.T) {
	dir, qemu, work := t.TempDir(), script(t, "qemu", fakeQEMU), t.TempDir()
	// Each fake QEMU runs until its file is there.
	guest := func(name string) *process {
		return start(t, dir, []string{"ARGS=" + filepath.Join(work, name), "THEN=while [ ! -e " + filepath.Join(work, name+".end") + " ]; do sleep 0.01; done; exit 3"},
			"run", "--switch", "lab", "--name", name, "--", qemu)
	}
	end := func(name string) {
		if err := os.WriteFile(filepath.Join(work, name+".end"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"a", "b", "c"}
	procs := map[string]*process{}
	for _, name := range names { // at the same time
		procs[name] = guest(name)
	}
	for _, name := range names {
		procs[name].untilFile(filepath.Join(work, name))
	}
	client := control.Dial(shared(dir, "lab"))
	status, err := client.Status(t.Context())
	if err != nil || len(status.Switches) != 1 || status.Switches[0].Name != "lab" {
		t.Fatalf("%+v, %v", status, err)
	}
	var ports []string
	for _, p := range status.Switches[0].Ports {
		ports = append(ports, p.Name)
	}
	if !slices.Equal(ports, []string{"a", "b", "c", "pxe"}) {
		t.Errorf("on the switch: %q", ports)
	}

	// A name that is taken, and flags that are the maker's.
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--name", "a"}, 1, `there is an adapter "a" already: take another name`},
		{[]string{"--root", work}, 2, "which has its own boot files: leave out --root, or take another --switch"},
		{[]string{"--address", "10.7.0.1/24"}, 2, "which has its own address: leave out --address, or take another --switch"},
	} {
		got, _, stderr := polder(dir, append(append([]string{"run", "--switch", "lab"}, c.args...), "--", qemu)...)
		if got != c.status || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: status %d, %s", c.args, got, stderr)
		}
	}

	// The maker's guest ends first: its process stays for the others.
	first := slices.IndexFunc(names, func(n string) bool { return procs[n].cmd.Process.Pid == status.PID })
	if first < 0 {
		t.Fatalf("process %d has the switch", status.PID)
	}
	maker := names[first]
	others := slices.Delete(slices.Clone(names), first, first+1)
	end(maker)
	procs[maker].until("its adapter was gone", func() bool {
		status, err := client.Status(t.Context())
		return err == nil && len(status.Switches[0].Ports) == 3
	})
	end(others[0])
	if got := procs[others[0]].wait(); got != 3 {
		t.Errorf("status %d: %s", got, procs[others[0]].stderr.String())
	}
	select {
	case <-procs[maker].ended:
		t.Error("the switch went away with a guest on it")
	default:
	}
	end(others[1])
	for _, name := range []string{others[1], maker} {
		if got := procs[name].wait(); got != 3 {
			t.Errorf("%s: status %d: %s", name, got, procs[name].stderr.String())
		}
	}
	wantEmpty(t, dir)
}

// A guest whose switch goes away is told so; its QEMU is left alone.
func TestSwitchGoesAway(t *testing.T) {
	dir, qemu, work := t.TempDir(), script(t, "qemu", fakeQEMU), t.TempDir()
	daemon := start(t, dir, nil, "serve")
	daemon.until("it answered", func() bool { return control.Alive(filepath.Join(dir, "control.sock")) })
	args, stop := filepath.Join(work, "args"), filepath.Join(work, "stop")
	p := start(t, dir, []string{"ARGS=" + args, "THEN=while [ ! -e " + stop + " ]; do sleep 0.01; done"},
		"run", "--switch", "default", "--name", "web", "--", qemu)
	p.untilFile(args)
	_ = daemon.cmd.Process.Signal(syscall.SIGTERM)
	if got := daemon.wait(); got != 0 {
		t.Errorf("serve: status %d: %s", got, daemon.stderr.String())
	}
	wantEmpty(t, dir)
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := p.wait(); got != 0 || !strings.Contains(p.stderr.String(), "the process that has the switch has ended: the guest's adapter is gone") {
		t.Errorf("status %d: %s", got, p.stderr.String())
	}
}

// serve logs in the form that is asked for, leaves the second of two alone, and removes what it made.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	config := write(t, "f.yaml", "switches:\n  - {name: lab, pxe: {}}\nvms:\n  - {name: web, adapters: [{switch: lab}]}\n")
	cmd := exec.Command(os.Args[0], "--runtime-dir", dir, "--log-format", "json", "serve", "--keep-privileges", "-c", config)
	cmd.Env = asPolder
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	var messages []string
	next := func() bool {
		if !lines.Scan() {
			return false
		}
		var m struct{ Level, Msg string }
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil || m.Level != "INFO" {
			t.Errorf("%v: %s", err, lines.Text())
		}
		messages = append(messages, m.Msg)
		return m.Msg != "serving"
	}
	for next() {
	}
	for _, name := range []string{"control.sock", "web.sock"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if status, _, text := polder(dir, "serve"); status != 1 || !strings.Contains(text, "another polder answers there: stop it") {
		t.Errorf("a second one: status %d, %s", status, text)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	for next() {
	}
	_, _ = io.Copy(io.Discard, stderr)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if want := []string{"switch ready", "serving", "stopping"}; !slices.Equal(messages, want) {
		t.Errorf("logged %q, want %q", messages, want)
	}
	wantEmpty(t, dir)
}

// Of daemons that start at the same time in one directory, one serves.
func TestServeTwiceAtOnce(t *testing.T) {
	dir := t.TempDir()
	var procs []*process
	for range 4 {
		procs = append(procs, start(t, dir, nil, "serve"))
	}
	ended := make(chan *process)
	for _, p := range procs {
		go func() { <-p.ended; ended <- p }()
	}
	for range len(procs) - 1 {
		if p := <-ended; p.wait() != 1 || !strings.Contains(p.stderr.String(), "another polder answers there") {
			t.Errorf("status %d: %s", p.wait(), p.stderr.String())
		}
	}
	if !control.Alive(filepath.Join(dir, "control.sock")) {
		t.Error("none serves")
	}
	for _, p := range procs {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	if p := <-ended; p.wait() != 0 {
		t.Errorf("status %d: %s", p.wait(), p.stderr.String())
	}
	wantEmpty(t, dir)
}

// At SIGHUP the daemon reads its file again. A wrong one changes nothing, and the log says where it is wrong.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := write(t, "polder.yaml", "switches: [{name: lan}]\nvms: [{name: web, adapters: [{switch: lan}]}]\n")
	p := start(t, dir, nil, "serve", "-c", file, "--state-dir", t.TempDir())
	p.until("it served", func() bool { return strings.Contains(p.stderr.String(), "msg=serving") })
	for _, c := range []struct{ text, log, show string }{
		{"switches: [{name: lan}, {nmae: lab}]\n", `level=ERROR msg="reload: the configuration stays as it was" err="` + file + `:1:26: unknown key \"nmae\": did you mean \"name\"?"`, "lan private web"},
		{"switches: [{name: lab, pxe: {root: /nonesuch}}]\n", `root: open /nonesuch: no such file or directory: nothing is changed"`, "lan private web"},
		{"switches: [{name: lan}, {name: lab}]\nvms: [{name: web, adapters: [{switch: lab}]}]\n", "msg=reloaded file=" + file + " changes=2", "lab private web lan private -"},
		{"switches: [{name: lan}, {name: lab}]\nvms: [{name: web, adapters: [{switch: lab}]}]\n", "msg=reloaded file=" + file + " changes=0", "lab private web lan private -"},
		{"", "msg=reloaded file=" + file + " changes=3", ""},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.until(c.log, func() bool { return strings.Contains(p.stderr.String(), c.log) })
		_, table, _ := polder(dir, "show")
		var got []string
		for _, line := range strings.Split(strings.TrimSpace(table), "\n")[1:] {
			got = append(got, strings.Fields(line)[:3]...)
		}
		if strings.Join(got, " ") != c.show {
			t.Errorf("%s: shows %q, want %q", c.log, got, c.show)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(); status != 0 {
		t.Errorf("status %d: %s", status, p.stderr.String())
	}
	wantEmpty(t, dir)
}
