package e2e

import (
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What Polder writes for other programs is judged by these programs.

// TestLibvirtXML has libvirt's schema judge each kind of adapter.
func TestLibvirtXML(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, domain := filepath.Join(dir, "polder.yaml"), filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(config, []byte(`
switches:
  - {name: lan}
  - {name: big, mtu: 9000}
vms:
  - name: web01
    memory: 1G
    adapters:
      - {switch: lan, name: old, bootindex: 0}
      - {switch: lan, name: new, kind: synthetic, queues: 2, bootindex: 1, mac: "00:15:5d:00:00:0b"}
      - {switch: big, name: listening, kind: synthetic, rom: none, socket: {mode: client}, mac: "00:15:5d:00:00:0c"}
  - {name: legacy, adapters: [{switch: lan}]}
  - {name: synthetic, adapters: [{switch: lan, kind: synthetic, mac: "00:15:5d:00:00:0d"}]}
  - {name: none}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	for vm, want := range map[string][]string{
		"web01": {"driver&#34;:&#34;vfio-user-pci", `queues="2"`, `order="2"`, `mode="client"`, `<reconnect enabled="yes"`,
			`mode="server"`, `<mtu size="9000"`, `<rom enabled="no"`},
		"legacy":    {"/run/none/legacy.sock"},
		"synthetic": {`"/run/none/synthetic.sock"`},
		"none":      {`<access mode="shared"`},
	} {
		out, err := exec.Command(polder, "--runtime-dir", "/run/none", "libvirt-xml", "-c", config, "--type", "qemu", vm).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s is missing:\n%s", w, out)
			}
		}
		if err := os.WriteFile(domain, out, 0o644); err != nil {
			t.Fatal(err)
		}
		if verdict := tool(t, "virt-xml-validate", domain, "domain"); !strings.Contains(verdict, "validates") && verdict != "" {
			t.Errorf("virt-xml-validate: %s", verdict)
		}
	}
}

// TestPackage builds the Debian package and unpacks it beside what a system has: the program runs, the manual page is
// without faults, and systemd accepts the unit without a word.
func TestPackage(t *testing.T) {
	t.Parallel()
	out, root := t.TempDir(), t.TempDir()
	if err := os.Link(polder, filepath.Join(out, "polder")); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		text, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, text)
		}
		return string(text)
	}
	deb := strings.TrimSpace(run("../../cmd/polder/service/deb", out))
	if !regexp.MustCompile(`/polder_[0-9.]+_amd64\.deb$`).MatchString(deb) {
		t.Errorf("the package is %s", deb)
	}

	control := run("dpkg-deb", "--field", deb)
	for _, want := range []string{"Package: polder\n", "Architecture: amd64\n", "Description: "} {
		if !strings.Contains(control, want) {
			t.Errorf("%q is missing:\n%s", want, control)
		}
	}
	contents := run("dpkg-deb", "--contents", deb)
	for _, want := range []string{
		`(?m)^-rwxr-xr-x root/root .* \./usr/bin/polder$`,
		`(?m)^-rw-r--r-- root/root .* \./usr/lib/systemd/system/polder\.service$`,
		`(?m)^-rw-r--r-- root/root .* \./etc/polder/polder\.yaml$`,
		`(?m)^-rw-r--r-- root/root .* \./usr/share/man/man1/polder\.1\.gz$`,
		`(?m)^-rw-r--r-- root/root .* \./usr/share/bash-completion/completions/polder$`,
		`(?m)^lrwxrwxrwx root/root .* \./usr/lib/x86_64-linux-gnu/wireshark/extcap/polder -> /usr/bin/polder$`,
	} {
		if !regexp.MustCompile(want).MatchString(contents) {
			t.Errorf("%s is missing:\n%s", want, contents)
		}
	}
	for line := range strings.Lines(contents) {
		if mode, rest, _ := strings.Cut(line, " "); mode[0] != 'l' && (mode[5] == 'w' || mode[8] == 'w') || !strings.HasPrefix(rest, "root/root ") {
			t.Errorf("not root's alone: %s", line)
		}
	}

	// What the unit refers to of other packages: systemd's units, and kill.
	run("cp", "-r", cache.Path("field/lib"), cache.Path("field/bin"), root)
	run("touch", filepath.Join(root, "bin/kill"))
	run("chmod", "+x", filepath.Join(root, "bin/kill"))
	run("dpkg-deb", "-x", deb, root)
	if version := run(filepath.Join(root, "usr/bin/polder"), "version"); !strings.HasPrefix(version, "polder ") {
		t.Errorf("polder version: %s", version)
	}
	if err := exec.Command(filepath.Join(root, "usr/bin/polder"), "qemu-args", "-c", filepath.Join(root, "etc/polder/polder.yaml"), "none").Run(); err == nil {
		t.Error("the package's configuration has a VM")
	}
	verify := exec.Command(cache.Path("bin/systemd-analyze"), "verify", "--man=no", "--root="+root, "polder.service")
	if verdict, err := verify.CombinedOutput(); err != nil || len(verdict) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, verdict)
	}

	page, err := os.Open(filepath.Join(root, "usr/share/man/man1/polder.1.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	text, err := gzip.NewReader(page)
	if err != nil {
		t.Fatal(err)
	}
	troff := exec.Command(cache.Path("bin/troff"), "-man", "-ww", "-Tutf8", "-z")
	troff.Stdin = text
	if warnings, err := troff.CombinedOutput(); err != nil || len(warnings) > 0 {
		t.Errorf("troff: %v\n%s", err, warnings)
	}
}

// TestMetrics has Prometheus' own tool check the metrics.
func TestMetrics(t *testing.T) {
	t.Parallel()
	d := serve(t, threeGuests)
	metrics, err := d.Get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	check := exec.Command(cache.Path("bin/promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(metrics)
	if verdict, err := check.CombinedOutput(); err != nil || len(verdict) > 0 {
		t.Errorf("promtool check metrics: %v\n%s%s", err, verdict, metrics)
	}
	if !strings.Contains(metrics, `port="a"`) {
		t.Errorf("port a is not in the metrics:\n%s", metrics)
	}
}

// chatter is a daemon on a machine whose adapter on the switch lan sends, time and again, a broadcast and a frame that
// no switch passes on.
func chatter(t *testing.T) daemon {
	h := newHost(t)
	d := h.serve(`
switches:
  - {name: lan, type: internal, management: {name: host0, address: [10.9.0.1/24], mac: "02:15:5d:00:00:01"}}
vms:
  - {name: web01, adapters: [{name: web01, switch: lan, mac: "00:15:5d:00:00:0a"}]}
`)
	h.run("ip neighbour add 10.9.0.8 lladdr 01:80:c2:00:00:0e dev host0") // where LLDP goes
	h.background("sh -c 'while :; do busybox arping -f -c 1 -w 1 -I host0 10.9.0.7; busybox ping -c 1 -W 1 10.9.0.8; done'")
	return d
}

// TestCapture has Wireshark's terminal program read a capture: each port is an interface, each packet has a direction, and what is
// dropped a comment that says why.
func TestCapture(t *testing.T) {
	t.Parallel()
	d := chatter(t)
	file := filepath.Join(t.TempDir(), "lan.pcapng")
	capture := exec.Command(polder, "--runtime-dir", d.Dir(), "capture", "--switch", "lan", "-w", file)
	if err := capture.Start(); err != nil {
		t.Fatal(err)
	}
	soon(t, "a drop", func() bool {
		return strings.Contains(d.polder(t, "drops", "host0", "-o", "json"), "reserved-multicast") && fileSize(file) > 4000
	})
	capture.Process.Signal(syscall.SIGINT)
	if err := capture.Wait(); err != nil {
		t.Errorf("polder capture: %v", err)
	}
	fields := []string{"frame.interface_name", "frame.packet_flags_direction", "frame.comment", "eth.dst"}
	for _, c := range []struct{ filter, want string }{
		{"arp && frame.packet_flags_direction == 1", "host0|0x00000001||ff:ff:ff:ff:ff:ff"},
		{"eth.dst == 01:80:c2:00:00:0e", "host0|0x00000001|drop=reserved-multicast|01:80:c2:00:00:0e"},
		{`frame.comment contains "reserved"`, "host0|0x00000001|drop=reserved-multicast|01:80:c2:00:00:0e"},
		{"arp && frame.packet_flags_direction == 2", "web01|0x00000002|drop=receiver-full|ff:ff:ff:ff:ff:ff"}, // there is no guest
	} {
		got := packets(t, file, c.filter, fields...)
		if len(got) == 0 {
			t.Errorf("%s: no packet", c.filter)
		}
		for _, p := range got {
			if p := strings.Join(p, "|"); p != c.want {
				t.Errorf("%s: %s, want %s", c.filter, p, c.want)
			}
		}
	}
}

// fileSize is a file's size in bytes; 0 if there is none.
func fileSize(file string) int64 {
	if i, err := os.Stat(file); err == nil {
		return i.Size()
	}
	return 0
}

// TestCapturePipe watches a switch live, as in the manual.
func TestCapturePipe(t *testing.T) {
	t.Parallel()
	d := chatter(t)
	capture := exec.Command(polder, "--runtime-dir", d.Dir(), "capture", "host0", "--drops")
	pipe, err := capture.StdoutPipe()
	if err == nil {
		err = capture.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		capture.Process.Kill()
		capture.Wait()
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tshark := exec.CommandContext(ctx, cache.Path("bin/tshark"), "-i", "-", "-n", "-l", "-c", "3", "-T", "fields", "-e", "frame.comment")
	tshark.Stdin = pipe
	out, err := tshark.Output()
	if want := strings.Repeat("drop=reserved-multicast\n", 3); err != nil || string(out) != want {
		t.Errorf("tshark: %v: %q, want %q", err, out, want)
	}
	pipe.Close()
	soon(t, "the end of polder capture, after tshark's", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", capture.Process.Pid))
		return err != nil || strings.Contains(string(line), ") Z ")
	})
}

// TestExtcap has Wireshark's terminal program find the ports by itself, and capture at one of them.
func TestExtcap(t *testing.T) {
	t.Parallel()
	d := chatter(t)
	dir, run, home := t.TempDir(), t.TempDir(), t.TempDir()
	for link, to := range map[string]string{filepath.Join(dir, "polder"): polder, filepath.Join(run, "polder"): d.Dir()} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	tshark := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// It takes root for a program with privileges that one should not be able to lead astray: no directory from the
		// environment then.
		cmd := exec.CommandContext(ctx, "unshare", append([]string{"--map-user=1000", "--map-group=1000", cache.Path("bin/tshark")}, args...)...)
		cmd.Env = append(os.Environ(), "WIRESHARK_EXTCAP_DIR="+dir, "XDG_RUNTIME_DIR="+run, "HOME="+home)
		var errors strings.Builder
		cmd.Stderr = &errors
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("tshark %s: %v\n%s", strings.Join(args, " "), err, errors.String())
		}
		return string(out)
	}
	list := tshark("-D")
	for _, want := range []string{"polder:lan (Polder: all of switch lan)", "polder:lan:web01 (Polder: port web01 of switch lan)", "polder:lan:host0 "} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in the list:\n%s", want, list)
		}
	}
	got := strings.Fields(tshark("-i", "polder:lan:host0", "-n", "-c", "5", "-T", "fields", "-e", "eth.src"))
	if want := slices.Repeat([]string{"02:15:5d:00:00:01"}, 5); !slices.Equal(got, want) {
		t.Errorf("captured from %v, want %v", got, want)
	}
}
