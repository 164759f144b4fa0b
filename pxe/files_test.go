package pxe

import (
	"errors"
	"io"

	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

func testLibrary(t *testing.T, cfg Config) *library {
	t.Helper()
	l, err := newLibrary(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *library) text(t *testing.T, name string, c Client) string {
	t.Helper()
	f, err := l.open(name, c)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || int64(len(b)) != f.size {
		t.Fatalf("%d bytes, size %d, %v", len(b), f.size, err)
	}
	return string(b)
}

func TestScripts(t *testing.T) {
	bios := Client{MAC: guestMAC, Arch: ArchBIOS, Addr: guestAddr, Server: testServer, Hostname: "node-a"}
	efi := bios
	efi.Arch = ArchEFIX64
	l := testLibrary(t, Config{Boot: []BootRule{
		{Kernel: "/debian installer/linux", Initrd: []string{"initrd.gz", "http://example.org/more.cpio"}, Cmdline: "console=ttyS0 BOOTIF={{.MAC}} --- quiet"},
		{Script: "#!ipxe\nchain http://{{.Server}}/{{.UUID}}/{{.Platform}}\n"},
		{Kernel: "{{odd}}/linux"},
	}})
	for _, c := range []struct {
		name, file string
		c          Client
		want       string
	}{
		{"kernel on a BIOS", "rule-0.ipxe", bios, "#!ipxe\nkernel debian%20installer/linux console=ttyS0 BOOTIF=00:15:5d:00:00:02 --- quiet\n" +
			"initrd initrd.gz\ninitrd http://example.org/more.cpio\nboot\n"},
		{"kernel on UEFI", "RULE-0.IPXE", efi, "#!ipxe\nkernel debian%20installer/linux initrd=initrd.gz initrd=more.cpio console=ttyS0 BOOTIF=00:15:5d:00:00:02 --- quiet\n" +
			"initrd initrd.gz\ninitrd http://example.org/more.cpio\nboot\n"},
		{"script", "rule-1.ipxe", bios, "#!ipxe\nchain http://10.21.140.1/00000000-0000-0000-0000-000000000000/BIOS\n"},
		{"a name that looks like a template", "rule-2.ipxe", bios, "#!ipxe\nkernel %7B%7Bodd%7D%7D/linux \nboot\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := l.text(t, c.file, c.c); got != c.want {
				t.Errorf("got %q\nwant %q", got, c.want)
			}
		})
	}
	identity := l.text(t, "default.ipxe", efi)
	for _, want := range []string{"#!ipxe\n", "00:15:5d:00:00:02", "10.21.140.77", "10.21.140.1", "UEFI x64", "node-a", "none"} {
		if !strings.Contains(identity, want) {
			t.Errorf("the default script does not show %q:\n%s", want, identity)
		}
	}
}

func TestRulesRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		rule BootRule
	}{
		{"nothing to boot", BootRule{Cmdline: "x"}},
		{"two things to boot", BootRule{File: "a", Kernel: "b"}},
		{"no template", BootRule{Script: "{{"}},
		{"no such field", BootRule{Script: "{{.Password}}"}},
		{"no such field in a command line", BootRule{Kernel: "linux", Cmdline: "{{.Password}}"}},
	} {
		if _, err := newLibrary(&Config{Boot: []BootRule{c.rule}}); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
	}
}

// TestRootHidesGenerated proves the order of the two kinds of files.
func TestRootHidesGenerated(t *testing.T) {
	l := testLibrary(t, Config{Files: fstest.MapFS{"Default.ipxe": {Data: []byte("mine")}}, DefaultNBP: []byte("nbp")})
	if got := l.text(t, "default.ipxe", Client{}); got != "mine" {
		t.Errorf("got %q", got)
	}
	if got := l.text(t, "polder.0", Client{}); got != "nbp" {
		t.Errorf("got %q", got)
	}
}

// TestRootCannotBeLeft tries a real directory with everything that leads out of it.
func TestRootCannotBeLeft(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "root")
	secret := filepath.Join(outside, "secret")
	for _, err := range []error{
		os.Mkdir(dir, 0o700),
		os.WriteFile(secret, []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(dir, "file"), []byte("inside"), 0o600),
		os.Symlink("file", filepath.Join(dir, "link")),
		os.Symlink("../secret", filepath.Join(dir, "up")),
		os.Symlink(secret, filepath.Join(dir, "absolute")),
		os.Symlink("..", filepath.Join(dir, "parent")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l := testLibrary(t, Config{Files: root.FS()})
	for _, name := range []string{"file", "link", "FILE", "LiNk"} {
		if got := l.text(t, name, Client{}); got != "inside" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{
		"up", "UP", "absolute", "parent/secret", "PARENT/secret", "../secret", "./../secret", `..\secret`, "file/../../secret", secret, "fifo", ".", "", "//", "file/",
		"file\x00", "parent", "a/\xff/b",
	} {
		f, err := l.open(name, Client{})
		if err == nil && name != "file/" {
			t.Errorf("%q was opened", name)
		}
		if err == nil {
			f.Close()
		}
		if strings.Contains(name, "..") && !errors.Is(err, errEscape) {
			t.Errorf("%q: %v, want errEscape", name, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"iPXE":              "iPXE",
		"a\nkernel evil":    "a?kernel evil",
		"a && shell || b":   "a ?? shell ?? b",
		"${net0/mac}":       "??net0/mac?",
		"\x1b[2J\\\x00":     "?[2J??",
		"caf\u00e9":         "caf?",
		"01234567890123456": "0123456789012345",
	} {
		if got := printable(in, 16); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}
