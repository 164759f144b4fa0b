package qemu

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Probe finds program as a shell would and checks that it can attach an adapter. It returns
// the program's path. It takes as long as QEMU needs to print a help text.
func Probe(ctx context.Context, program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s: no such program: install QEMU 10.1 or newer, or give its path", program)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-device", "vfio-user-pci,help").CombinedOutput()
	if err == nil && strings.Contains(string(out), "socket") {
		return path, nil
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return "", fmt.Errorf("%s has no vfio-user-pci: QEMU 10.1 or newer is needed%s", path, version(ctx, path))
}

// version returns ", and this is …" as far as the program tells it.
func version(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil || !strings.Contains(line, "version") {
		return ", and this does not look like QEMU"
	}
	return ", and this is " + line
}
