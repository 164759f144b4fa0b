package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLinux proves the harness itself on what QEMU has built in: a tulip adapter and its user-mode network.
func TestLinux(t *testing.T) {
	cache, err := Find("bin/qemu-system-x86_64", "guest/vmlinuz", "guest/initramfs.gz")
	if err != nil {
		t.Fatal(err)
	}
	g, err := Start(cache, Config{Args: append(Linux(cache, "net0=dhcp", "run=hold"),
		"-no-reboot", "-netdev", "user,id=n0", "-device", "tulip,netdev=n0")})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()

	for _, pattern := range []string{
		`^T_INIT`, `^NIC eth0 52:54:00:12:34:56 tulip`, `^UDHCPC ip=10\.0\.2\.15/24`, `^T_HOLD`,
	} {
		if _, err := g.Expect(time.Minute, pattern); err != nil {
			t.Fatal(err)
		}
	}
	output, err := g.Run(30*time.Second, "echo a; step_ping 10.0.2.2 2")
	if err != nil || !strings.HasPrefix(output, "a\nPING 10.0.2.2 ok") {
		t.Errorf("Run printed %q, error %v", output, err)
	}
	if _, err := g.Run(10*time.Second, "exit 3"); err == nil || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("Run of a failing command: error %v, want its status", err)
	}
	if _, err := g.Expect(50*time.Millisecond, "never"); err == nil || !strings.Contains(err.Error(), "T_HOLD") {
		t.Errorf("Expect of what does not come: error %v, want the last lines", err)
	}
	if _, err := g.QMP("query-nonsense", nil); err == nil {
		t.Error("QMP: an unknown command succeeded")
	}
	if err := g.Send("end\n"); err != nil {
		t.Error(err)
	}
	if err := g.Wait(time.Minute); err != nil {
		t.Error(err)
	}
}

// TestUML proves it on User Mode Linux without an adapter, in a userland that has another program.
func TestUML(t *testing.T) {
	cache, err := Find("bin/linux.uml", "bin/busybox", "guest/uml-initramfs.gz")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, initramfs := filepath.Join(dir, "hello"), filepath.Join(dir, "initramfs.gz")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho hello from $(uname -r)\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := AddPrograms(cache, initramfs, "guest/uml-initramfs.gz", program); err != nil {
		t.Fatal(err)
	}
	g, err := StartUML(cache, UMLConfig{Name: "uml", Initramfs: initramfs, Words: []string{"run=hold"}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for _, pattern := range []string{`^T_INIT`, `^T_HOLD`} {
		if _, err := g.Expect(time.Minute, pattern); err != nil {
			t.Fatal(err)
		}
	}
	if output, err := g.Run(30*time.Second, "hello"); err != nil || !strings.HasPrefix(output, "hello from ") {
		t.Errorf("Run printed %q, error %v", output, err)
	}
	if err := g.Send("end\n"); err != nil {
		t.Error(err)
	}
	if err := g.Wait(time.Minute); err != nil {
		t.Error(err)
	}
}
