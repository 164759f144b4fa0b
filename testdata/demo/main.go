// Command demo network-boots Debian's installer on a machine without any medium: the legacy adapter's own
// boot ROM loads pxelinux, and that the kernel and the installer. It shows the guest's console on
// standard output, and the boot's steps between its lines. It succeeds only when the installer's userland
// has come up on the guest.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"polder/testdata/guest"
)

// userland is what the installer's init prints when it has started its first daemons.
const userland = "Starting system log daemon"

// limit is far above what the boot takes without hardware virtualisation, some 40 s.
const limit = 8 * time.Minute

func main() {
	if err := demo(); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
	fmt.Println("\ndemo: the installer's userland is up: the guest was booted from the network through its legacy adapter")
}

func demo() error {
	cache, err := guest.Find("bin/qemu-system-x86_64", "boot/pxelinux.0", "boot/ldlinux.c32", "installer/linux", "installer/initrd.gz")
	if err != nil {
		return err
	}
	files, err := os.MkdirTemp("", "polder-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(files)
	if err := fill(files, cache); err != nil {
		return err
	}
	root, err := guest.Root()
	if err != nil {
		return err
	}
	cmd := exec.Command(root+"/bin/polder", "run",
		"--root", files, "--", cache.Path("bin/qemu-system-x86_64"),
		"-machine", "graphics=off", "-m", "1G", "-display", "none", "-serial", "stdio", "-no-reboot")
	fmt.Println("demo:", cmd)
	seen := &watcher{out: os.Stdout, want: []byte(userland), found: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = seen, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-seen.found:
		time.Sleep(time.Second) // its next lines are worth seeing
		err = nil
	case err := <-ended:
		return fmt.Errorf("polder run ended before the installer came up: %v", err)
	case <-time.After(limit):
		err = fmt.Errorf("no %q from the guest within %v", userland, limit)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
	return err
}

// fill makes a directory as an operator would for pxelinux. The files are copied: a service does not follow
// links that lead out of its root.
func fill(dir string, cache guest.Cache) error {
	for _, name := range []string{"boot/pxelinux.0", "boot/ldlinux.c32", "installer/linux", "installer/initrd.gz"} {
		data, err := os.ReadFile(cache.Path(name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), data, 0o644); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "pxelinux.cfg"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "pxelinux.cfg", "default"), []byte(menu), 0o644)
}

// menu is pxelinux's configuration: the installer, on the serial console.
const menu = `serial 0 115200
default install
label install
  kernel linux
  initrd initrd.gz
  append console=ttyS0 DEBIAN_FRONTEND=text
`

// watcher passes a console on and closes found when want has come by.
type watcher struct {
	out   io.Writer
	want  []byte
	tail  []byte
	found chan struct{}
	done  bool
}

// Write implements io.Writer.
func (w *watcher) Write(p []byte) (int, error) {
	w.tail = append(w.tail, p...)
	if !w.done && bytes.Contains(w.tail, w.want) {
		w.done = true
		close(w.found)
	}
	if keep := len(w.want) - 1; len(w.tail) > keep {
		w.tail = append(w.tail[:0], w.tail[len(w.tail)-keep:]...)
	}
	return w.out.Write(p)
}
