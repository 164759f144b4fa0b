// Command demo network-boots Debian's installer through a legacy adapter and shows it: the guest's
// console on standard output, the boot's steps between its lines. It succeeds only when the
// installer's userland has come up on the guest.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	cache, err := guest.Find("bin/qemu-system-x86_64", "boot/ipxe.lkrn", "installer/linux", "installer/initrd.gz")
	if err != nil {
		return err
	}
	root, err := guest.Root()
	if err != nil {
		return err
	}
	cmd := exec.Command(root+"/bin/polder", "run",
		"--root", cache.Path("installer"), "--kernel", "linux", "--initrd", "initrd.gz",
		"--append", "console=ttyS0 DEBIAN_FRONTEND=text",
		"--", cache.Path("bin/qemu-system-x86_64"),
		"-machine", "graphics=off", "-m", "1G", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", cache.Path("boot/ipxe.lkrn"))
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
