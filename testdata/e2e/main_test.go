package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/testdata/guest"
)

// Set by TestMain.
var (
	cache  guest.Cache
	polder string // the program under test

	// What the guests boot, with the programs segments and inject.
	initramfs, umlInitramfs string
)

// bootLimit is far above what a boot takes without hardware virtualisation on a busy machine.
const bootLimit = 3 * time.Minute

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if cache, err = guest.Find("bin/qemu-system-x86_64", "boot/ipxe.lkrn", "installer/initrd.gz", "guest/initramfs.gz",
		"bin/linux.uml", "guest/uml-initramfs.gz", "bin/vgen", "bin/dpdk-testpmd", "bin/tshark"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "polder-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	polder = filepath.Join(dir, "polder")
	segments, inject := filepath.Join(dir, "segments"), filepath.Join(dir, "inject")
	initramfs, umlInitramfs = filepath.Join(dir, "initramfs.gz"), filepath.Join(dir, "uml-initramfs.gz")
	for _, step := range []func() error{
		func() error { return build(polder, "polder/cmd/polder", "CGO_ENABLED=0") },
		func() error { return build(segments, "polder/testdata/segments", "CGO_ENABLED=0") },
		func() error { return build(inject, "polder/testdata/inject", "CGO_ENABLED=0") },
		func() error { return guest.AddPrograms(cache, initramfs, "guest/initramfs.gz", segments, inject) },
		func() error { return guest.AddPrograms(cache, umlInitramfs, "guest/uml-initramfs.gz", segments) },
	} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
	}
	return m.Run()
}

// build builds a program with these additions to the environment.
func build(to, pkg string, environment ...string) error {
	cmd := exec.Command("go", "build", "-o", to, pkg)
	cmd.Env = append(os.Environ(), environment...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// linux returns the QEMU arguments that boot the Linux guest with the program segments.
func linux(words ...string) []string {
	return append(guest.Linux(cache, words...), "-initrd", initramfs) // the last one counts
}

// start starts a guest that ends with the test.
func start(t *testing.T, c guest.Config) *guest.Guest {
	t.Helper()
	g, err := guest.Start(cache, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		if t.Failed() {
			t.Logf("%s: last lines of standard error:\n%s", c.Name, lastLines(g.Stderr()))
		}
	})
	return g
}

// lastLines shortens a log to what is worth reading.
func lastLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// expect waits for patterns on the console, in this order, and returns the last one's submatches.
func expect(t *testing.T, g *guest.Guest, limit time.Duration, patterns ...string) []string {
	t.Helper()
	var match []string
	for _, pattern := range patterns {
		var err error
		if match, err = g.Expect(limit, pattern); err != nil {
			t.Fatal(err)
		}
	}
	return match
}

// command has a Linux guest run a shell command and returns what it printed.
func command(t *testing.T, g *guest.Guest, line string) string {
	t.Helper()
	out, err := g.Run(bootLimit, line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bootFiles returns a new directory with these files of the cache, as hard links where that is possible: a boot
// service follows no link out of its root.
func bootFiles(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range files {
		from, to := cache.Path(file), filepath.Join(dir, filepath.Base(file))
		if os.Link(from, to) == nil {
			continue
		}
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// daemon is a polder serve that ends with its test.
type daemon struct{ *guest.Daemon }

func serve(t *testing.T, config string) daemon {
	t.Helper()
	return serveWith(t, polder, config)
}

// serveWith starts a daemon that is another program.
func serveWith(t *testing.T, program, config string) daemon {
	t.Helper()
	d, err := guest.Serve(program, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		if t.Failed() {
			t.Logf("last lines of the daemon's log:\n%s", lastLines(d.Log()))
		}
	})
	return daemon{d}
}

func (d daemon) status(t *testing.T) guest.Status {
	t.Helper()
	s, err := d.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waitAttached waits until the port is attached, or is not.
func (d daemon) waitAttached(t *testing.T, port string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s := d.status(t)
		switch attached, exists := s.Attached(port); {
		case !exists:
			t.Fatalf("the daemon has no port %q: %+v", port, s)
		case attached == want:
			return
		case time.Now().After(deadline):
			t.Fatalf("port %q: attached is %v, want %v", port, attached, want)
		}
	}
}

// machine returns a machine for a VM of the daemon's configuration.
func (d daemon) machine(t *testing.T, vm string, args ...string) guest.Config {
	t.Helper()
	c, err := d.Machine(vm, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// resources is what a daemon must not lose: its goroutines, its descriptors by kind, and its mappings of guests'
// memory.
type resources struct {
	Goroutines, Sockets, Descriptors, Mappings int
}

func (d daemon) resources(t *testing.T) resources {
	t.Helper()
	r := resources{Goroutines: d.status(t).Goroutines}
	proc := fmt.Sprintf("/proc/%d", d.Pid())
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(proc + "/fd/" + fd.Name()); err != nil {
			continue // closed meanwhile
		} else if strings.HasPrefix(to, "socket:") {
			r.Sockets++
		} else {
			r.Descriptors++
		}
	}
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	r.Mappings = strings.Count(string(maps), "memfd:")
	return r
}

// noMore waits until the daemon uses no more than it did before.
func (d daemon) noMore(t *testing.T, before resources) {
	t.Helper()
	var now resources
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		now = d.resources(t)
		if now.Goroutines <= before.Goroutines && now.Sockets <= before.Sockets &&
			now.Descriptors <= before.Descriptors && now.Mappings <= before.Mappings {
			return
		}
	}
	t.Errorf("the daemon holds %+v, and held %+v before", now, before)
}
