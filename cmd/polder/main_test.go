package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain lets the test binary be polder, for tests that need it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("POLDER_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// fakeQEMU is a program that says it can attach an adapter. Otherwise it writes its
// arguments, one a line, to the file $ARGS and then does what $THEN says.
const fakeQEMU = `#!/bin/sh
if [ "$*" = "-device vfio-user-pci,help" ]; then echo "vfio-user-pci options:"; exit; fi
[ -z "$ARGS" ] || { printf '%s\n' "$@" >"$ARGS.new"; mv "$ARGS.new" "$ARGS"; }
eval "$THEN"
`

// oldQEMU is one without the device, which says so with status 0.
const oldQEMU = `#!/bin/sh
if [ "$1" = --version ]; then echo "QEMU emulator version 7.2.22"; exit; fi
echo "qemu: -device vfio-user-pci,help: Device 'vfio-user-pci' not found: no socket" >&2
`

// script writes a program and returns its path.
func script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// write makes a file of text in a directory of its own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// polder runs a command line in this process. The runtime directory is dir.
func polder(dir string, args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = run(append([]string{"--runtime-dir", dir}, args...), &out, &err)
	return status, out.String(), err.String()
}

// wantEmpty fails if anything is left in the runtime directory.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left behind", e.Name())
	}
}

// Each mistake gets one sentence and the right status, and leaves nothing behind.
func TestBadInput(t *testing.T) {
	qemu, old := script(t, "qemu", fakeQEMU), script(t, "old-qemu", oldQEMU)
	asleep := script(t, "plain", "#!/bin/sh\nexit 3\n")
	notExecutable := write(t, "data", "data")
	root := t.TempDir()
	noRoot := filepath.Join(root, "none")
	missing := filepath.Join(root, "none.yaml")
	noROM := write(t, "no.rom", "this is no ROM")
	bad := write(t, "bad.yaml", "switches:\n  - name: lab\n    typo: 1\n")
	twoErrors := write(t, "two.yaml", "switches:\n  - {name: a, type: public}\n  - {name: a}\n")
	noPXERoot := write(t, "root.yaml", "switches:\n  - name: a\n    pxe: {root: nowhere}\n")
	noScript := write(t, "script.yaml", "switches:\n  - name: a\n    pxe: {boot: [{script: menu.ipxe}]}\n")
	vms := write(t, "vms.yaml", "switches:\n  - name: a\nvms:\n  - {name: web, adapters: [{switch: a}]}\n  - {name: db}\n")
	noVMs := write(t, "novms.yaml", "switches:\n  - name: a\n")
	noVMROM := write(t, "rom.yaml", "switches:\n  - name: a\nvms:\n  - {name: web, adapters: [{switch: a}, {switch: a, rom: none.rom}]}\n")

	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string // of standard error, after "polder: "
	}{
		{"nothing", nil, 2, `expected one of "run", "serve", "show", "apply", "config", ...`},
		{"no such command", []string{"frobnicate"}, 2, "unexpected argument frobnicate"},
		{"log level", []string{"--log-level", "loud", "version"}, 2, `--log-level: slog: level string "loud": unknown name`},
		{"log format", []string{"--log-format", "xml", "version"}, 2, `--log-format must be one of "text","json" but got "xml"`},

		{"run: no QEMU", []string{"run"}, 2, "run: give QEMU's command line after --, as in: polder run -- qemu-system-x86_64 -m 1G"},
		{"run: nothing after --", []string{"run", "--"}, 2, "run: give QEMU's command line after --, as in: polder run -- qemu-system-x86_64 -m 1G"},
		{"run: unknown flag", []string{"run", "--frob", "--", qemu}, 2, `unknown flag --frob, did you mean "--rom"?`},
		{"run: no adapter", []string{"run", "--legacy=false", "--", qemu}, 2, "run: --legacy=false leaves the guest without an adapter: leave it out, or give --synthetic"},
		{"run: queues of a legacy adapter", []string{"run", "--queues", "2", "--", qemu}, 2, "run: --queues goes with --synthetic"},
		{"run: too many queues", []string{"run", "--synthetic", "--queues", "129", "--", qemu}, 2, "run: --queues 129: from 1 to 128"},
		{"run: initrd alone", []string{"run", "--initrd", "x", "--", qemu}, 2, "run: --initrd and --append go with --kernel"},
		{"run: kernel without root", []string{"run", "--kernel", "x", "--", qemu}, 2, "run: --boot and --kernel name files in the --root directory, which is not given"},
		{"run: kernel and boot", []string{"run", "--root", root, "--kernel", "x", "--boot", "y", "--", qemu}, 2, "--boot and --kernel can't be used together"},
		{"run: bootindex", []string{"run", "--bootindex=-2", "--", qemu}, 2, "run: --bootindex -2: from 0"},
		{"run: switch", []string{"run", "--switch", "../x", "--", qemu}, 2, `run: --switch: "../x" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{"run: name", []string{"run", "--name", "a b", "--", qemu}, 2, `run: --name: "a b" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{"run: name of the service", []string{"run", "--name", "pxe", "--", qemu}, 2, `run: --name: "pxe" is a name that Polder uses itself: take another`},
		{"run: MAC", []string{"run", "--mac", "zz", "--", qemu}, 2, `run: --mac: vswitch: "zz" is not an Ethernet address like 00:15:5d:01:02:03`},
		{"run: multicast MAC", []string{"run", "--mac", "01:15:5d:01:02:03", "--", qemu}, 2, "run: --mac: 01:15:5d:01:02:03 is a multicast address: an adapter's own has an even first byte"},
		{"run: address", []string{"run", "--address", "10.0.0.1", "--", qemu}, 2, `--address: netip.ParsePrefix("10.0.0.1"): no '/'`},
		{"run: no pool", []string{"run", "--address", "10.0.0.1/31", "--", qemu}, 2, `run: switch "default": pxe: address 10.0.0.1/31: an IPv4 address with a prefix of at most 30 bits, like 10.21.140.1/24`},
		{"run: QEMU's memory", []string{"run", "--", qemu, "-m", "lots"}, 2, "run: -m lots: cannot read the memory size: write it like 512M or 2G"},
		{"run: private memory", []string{"run", "--", qemu, "-object", "memory-backend-ram,id=m,size=1G", "-machine", "memory-backend=m"}, 2, `run: guest memory "m" is private (memory-backend-ram): add share=on to it, so that the adapter can reach it`},

		{"run: no such QEMU", []string{"run", "--", "qemu-system-nonesuch"}, 1, "qemu-system-nonesuch: no such program: install QEMU 10.1 or newer, or give its path"},
		{"run: no such path", []string{"run", "--", "/nonesuch/qemu"}, 1, "/nonesuch/qemu: no such program: install QEMU 10.1 or newer, or give its path"},
		{"run: not executable", []string{"run", "--", notExecutable}, 1, fmt.Sprintf("cannot run QEMU: exec: %q: permission denied", notExecutable)},
		{"run: a directory", []string{"run", "--", root}, 1, fmt.Sprintf("cannot run QEMU: exec: %q: is a directory", root)},
		{"run: old QEMU", []string{"run", "--", old}, 1, old + " has no vfio-user-pci: QEMU 10.1 or newer is needed, and this is QEMU emulator version 7.2.22"},
		{"run: no QEMU at all", []string{"run", "--", asleep}, 1, asleep + " has no vfio-user-pci: QEMU 10.1 or newer is needed, and this does not look like QEMU"},
		{"run: no root", []string{"run", "--root", noRoot, "--", qemu}, 1, `switch "default": pxe: root: open ` + noRoot + ": no such file or directory"},
		{"run: no ROM", []string{"run", "--rom", missing, "--", qemu}, 1, "boot ROM: open " + missing + ": no such file or directory"},

		{"serve: argument", []string{"serve", "now"}, 2, "unexpected argument now"},
		{"serve: no file", []string{"serve", "-c", missing}, 1, "configuration: open " + missing + ": no such file or directory"},
		{"serve: a directory", []string{"serve", "-c", root}, 1, "configuration: read " + root + ": is a directory"},
		{"serve: bad file", []string{"serve", "-c", bad}, 1, bad + `:3:5: unknown key "typo": did you mean "type"?`},
		{"serve: two mistakes", []string{"serve", "-c", twoErrors}, 1, twoErrors + `:2:21: switch "a": type "public" is not one of: private, internal, external` + "\n" + twoErrors + `:3:12: a second switch "a"`},
		{"serve: no root", []string{"serve", "-c", noPXERoot}, 1, `switch "a": pxe: root: open ` + filepath.Dir(noPXERoot) + "/nowhere: no such file or directory"},
		{"serve: no script", []string{"serve", "-c", noScript}, 1, `switch "a": pxe: script menu.ipxe: there is no root to read it from`},
		{"serve: no ROM", []string{"serve", "-c", noVMROM}, 1, `adapter "web-1": boot ROM: open ` + filepath.Dir(noVMROM) + "/none.rom: no such file or directory"},

		{"serve: processors", []string{"serve", "--poll-cpus", "0,x"}, 2, `--poll-cpus: expected a valid 64 bit int but got "x"`},
		{"serve: a processor twice", []string{"serve", "--poll-cpus", "0,0"}, 1, "poll mode: processor 0 is listed twice: one worker fills it"},
		{"serve: no processor", []string{"serve", "--poll-cpus=-1"}, 1, "poll mode: processor -1 is none that this process may run on, which are "},

		{"qemu-args: no file and no daemon", []string{"qemu-args", "web"}, 1, "DIR/control.sock: no daemon answers there: start one with polder serve, or name its --runtime-dir"},
		{"qemu-args: no VM", []string{"qemu-args", "-c", vms}, 2, `expected "<vm>"`},
		{"qemu-args: no such VM", []string{"qemu-args", "-c", vms, "wob"}, 1, vms + `: there is no VM "wob": it has web, db`},
		{"qemu-args: no VMs", []string{"qemu-args", "-c", noVMs, "web"}, 1, noVMs + `: there are no VMs in it: add "web" under vms`},

		{"rom info: no file", []string{"rom", "info", missing}, 1, "boot ROM: open " + missing + ": no such file or directory"},
		{"rom info: no ROM", []string{"rom", "info", noROM}, 1, noROM + ": "},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			status, stdout, stderr := polder(dir, c.args...)
			stderr = strings.ReplaceAll(stderr, dir, "DIR")
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			switch want := "polder: " + c.want; {
			case strings.HasSuffix(want, " "): // the rest is another package's
				if !strings.HasPrefix(stderr, want) || strings.Count(stderr, "\n") != 1 {
					t.Errorf("got  %swant one line that begins %s", stderr, want)
				}
			case stderr != want+"\n":
				t.Errorf("got  %swant %s\n", stderr, want)
			}
			if stdout != "" {
				t.Errorf("on standard output: %s", stdout)
			}
			wantEmpty(t, dir)
		})
	}
}

// The directory of sockets is one where a socket can be, and stay ours.
func TestBadRuntimeDir(t *testing.T) {
	qemu := script(t, "qemu", fakeQEMU)
	base := t.TempDir()
	file := write(t, "file", "")
	open := filepath.Join(base, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(base, strings.Repeat("x", 108))
	for _, c := range []struct {
		name, dir string
		args      []string
		want      string
	}{
		{"a file", file, []string{"serve"}, "directory of sockets: mkdir " + file + ": not a directory: choose another --runtime-dir"},
		{"open to all", open, []string{"serve"}, "directory of sockets: everybody can write to " + open + " and replace them: chmod o-w it, or choose another --runtime-dir"},
		{"too long for serve", long, []string{"serve"}, fmt.Sprintf("%s/control.sock: the path has %d bytes and a socket's can have 107: choose a shorter --runtime-dir", long, len(long)+13)},
		{"too long for a run", long, []string{"run", "--name", "a", "--", qemu}, `adapter "a": socket path "` + long},
		{"too long for a switch", long[:100], []string{"run", "--name", "a", "--switch", "s", "--", qemu}, `adapter "a": socket path "` + long[:100]},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, _, stderr := polder(c.dir, c.args...)
			if status != 1 || !strings.HasPrefix(stderr, "polder: "+c.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("status %d, %s\nwant 1, polder: %s", status, stderr, c.want)
			}
			if c.dir != file {
				wantEmpty(t, c.dir)
			}
		})
	}
}

// What is in the way of a socket stays, and nothing is put beside it.
func TestOccupiedSockets(t *testing.T) {
	dir := t.TempDir()
	config := write(t, "f.yaml", "switches:\n  - name: a\nvms:\n  - {name: web, adapters: [{switch: a}]}\n")
	for _, c := range []struct{ name, want string }{
		{"control.sock", "%s: another polder answers there: stop it, or choose another --runtime-dir"},
		{"web.sock", `adapter "web": another server listens on %s: file already exists`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			status, _, stderr := polder(dir, "serve", "-c", config)
			if want := "polder: " + fmt.Sprintf(c.want, path) + "\n"; status != 1 || stderr != want {
				t.Errorf("status %d, %s\nwant 1, %s", status, stderr, want)
			}
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatalf("the socket was taken away: %v", err)
			}
			conn.Close()
			ln.Close()
			wantEmpty(t, dir)
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"serve", "--help"}, {"qemu-args", "--help"}, {"rom", "info", "--help"}, {"version"}, {"rom", "info"}} {
		status, stdout, stderr := polder(t.TempDir(), args...)
		if status != 0 || stdout == "" || stderr != "" {
			t.Errorf("%v: status %d, %d bytes, and on standard error %q", args, status, len(stdout), stderr)
		}
	}
}

// A shell makes of the output the arguments that it is made of, both ways.
func TestQEMUArgs(t *testing.T) {
	config := write(t, "f.yaml", `
switches:
  - name: lab
vms:
  - name: web
    memory: 1G
    adapters:
      - {switch: lab, bootindex: 1}
      - {switch: lab}
  - name: bare
`)
	memory := []string{"-object", "memory-backend-memfd,id=polder-memory,size=1073741824,share=on", "-machine", "memory-backend=polder-memory"}
	for _, name := range []string{"plain", "with space", "it's", "glob*[a-z]?", `quote"back\slash`} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			for _, flag := range []string{"--quote=false", "--quote"} {
				status, stdout, stderr := polder(dir, "qemu-args", "-c", config, flag, "web")
				if status != 0 || stderr != "" || strings.Count(stdout, "\n") != 1 {
					t.Fatalf("status %d, %q, %s", status, stdout, stderr)
				}
				cmd := exec.Command("sh", "-c", `printf '%s\n' $(cat)`)
				cmd.Stdin = strings.NewReader(stdout)
				if flag == "--quote" {
					cmd = exec.Command("sh", "-c", `printf '%s\n' `+stdout)
				}
				out, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
				if len(got) != 10 || !slices.Equal(got[:4], memory) || got[4] != "-device" || got[6] != "-device" || !slices.Equal(got[8:], []string{"-nic", "none"}) {
					t.Fatalf("%s: %q", flag, got)
				}
				for i, want := range []struct{ id, index string }{{"web", "1"}, {"web-1", "<nil>"}} {
					var d map[string]any
					if err := json.Unmarshal([]byte(got[5+2*i]), &d); err != nil {
						t.Fatalf("%s: %v in %s", flag, err, got[5+2*i])
					}
					path := d["socket"].(map[string]any)["path"]
					if d["driver"] != "vfio-user-pci" || d["id"] != want.id || fmt.Sprint(d["bootindex"]) != want.index || path != filepath.Join(dir, want.id+".sock") {
						t.Errorf("%s: %v", flag, d)
					}
				}
			}
		})
	}
	status, stdout, _ := polder(t.TempDir(), "qemu-args", "-c", config, "bare")
	if want := strings.ReplaceAll(strings.Join(memory, " "), "1073741824", "536870912") + "\n"; status != 0 || stdout != want {
		t.Errorf("a VM without adapters: status %d, %q, want %q", status, stdout, want)
	}
}
