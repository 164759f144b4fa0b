package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"
)

// probeTime is how long QEMU may take to print a help text.
const probeTime = 20 * time.Second

// Probe finds program as a shell would and checks that it can attach an adapter. It returns
// the program's path. It takes as long as QEMU needs to print a help text.
func Probe(ctx context.Context, program string) (string, error) {
	path, err := exec.LookPath(program)
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s: no such program: install QEMU 10.1 or newer, or give its path", program)
	case err != nil:
		return "", fmt.Errorf("cannot run QEMU: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	// QEMUs without the device say so and still end with status 0, some of them.
	out, err := output(limited, path, "-device", "vfio-user-pci,help")
	var exit *exec.ExitError
	switch {
	case strings.Contains(out, "vfio-user-pci options"):
		return path, nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case limited.Err() != nil:
		return "", fmt.Errorf("%s has not printed a help text in %v: does it ask for something?", path, probeTime)
	case err != nil && !errors.As(err, &exit):
		return "", fmt.Errorf("cannot run QEMU: %w", err)
	}
	return "", fmt.Errorf("%s has no vfio-user-pci: QEMU 10.1 or newer is needed%s", path, version(limited, path))
}

// output runs a program that has nothing to read and returns what it prints.
func output(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // for what the program has started
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// version returns ", and this is …" as far as the program tells it.
func version(ctx context.Context, path string) string {
	out, err := output(ctx, path, "--version")
	line, _, _ := strings.Cut(out, "\n")
	if err != nil || !strings.Contains(line, "version") {
		return ", and this does not look like QEMU"
	}
	return ", and this is " + line
}
