package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestProbe(t *testing.T) {
	const help, none = `echo "vfio-user-pci options:"`, `echo "Device 'vfio-user-pci' not found" >&2`
	const ask = `[ "$*" = "-device vfio-user-pci,help" ]`
	dir := filepath.Join(t.TempDir(), "socket") // a word of the help text, in the program's path
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ name, body, want string }{
		{"has it", ask + " && " + help, ""},
		{"has it, and fails afterwards", ask + " && " + help + "; exit 1", ""},
		{"has it not", ask + ` && { echo "$0: ` + `no" >&2; exit 1; }; echo "QEMU emulator version 9.2.0"; echo more`, "%s has no vfio-user-pci: QEMU 10.1 or newer is needed, and this is QEMU emulator version 9.2.0"},
		{"has it not, and says so with status 0", ask + " && " + none + `|| echo "QEMU emulator version 7.2.22"`, "%s has no vfio-user-pci: QEMU 10.1 or newer is needed, and this is QEMU emulator version 7.2.22"},
		{"is something else", "exit 0", "%s has no vfio-user-pci: QEMU 10.1 or newer is needed, and this does not look like QEMU"},
		{"dies", "kill -ABRT $$", "%s has no vfio-user-pci: QEMU 10.1 or newer is needed, and this does not look like QEMU"},
		{"reads its input", "cat; " + help, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(dir, fmt.Sprint("qemu", i))
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.body+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			path, err := Probe(t.Context(), program)
			switch {
			case c.want == "":
				if err != nil || path != program {
					t.Errorf("got %q, %v", path, err)
				}
			case err == nil || err.Error() != fmt.Sprintf(c.want, program):
				t.Errorf("got %v\nwant "+c.want, err, program)
			}
		})
	}
}

// What polder is told while QEMU prints is not mistaken for QEMU's answer.
func TestProbeIsStopped(t *testing.T) {
	program := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Probe(ctx, program); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
