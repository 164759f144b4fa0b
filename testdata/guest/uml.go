package guest

import (
	"fmt"
	"os"
	"strconv"
)

// UMLConfig says what User Mode Linux to start.
type UMLConfig struct {
	// Name stands in errors.
	Name string

	// Launcher is a command in front of Linux's, as in Config.
	Launcher []string

	// MemoryMiB is the guest's memory, default 128.
	MemoryMiB int

	// Adapters are the sockets of vhost-user back ends for its network adapters, in their order. The back ends
	// listen.
	Adapters []string

	// Initramfs is what it boots; empty: the cache's guest/uml-initramfs.gz.
	Initramfs string

	// Words go on the kernel command line: see testdata/initramfs/init for what it understands.
	Words []string
}

// StartUML starts Debian's Linux as a process: the kernel's drivers at the speed of the machine, without hardware
// virtualisation. It has one processor. The guest has no QMP.
func StartUML(cache Cache, c UMLConfig) (*Guest, error) {
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 128
	}
	if c.Initramfs == "" {
		c.Initramfs = cache.Path("guest/uml-initramfs.gz")
	}
	dir, err := os.MkdirTemp("", "polder-uml-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	args := append([]string{}, c.Launcher...)
	args = append(args, cache.Path("bin/linux.uml"),
		"mem="+strconv.Itoa(c.MemoryMiB)+"M", "initrd="+c.Initramfs, "rdinit=/init",
		"uml_dir="+dir, "umid=guest", "con=null", "con0=fd:0,fd:1", "ssl=null", "panic=-1", "quiet")
	for _, socket := range c.Adapters {
		args = append(args, fmt.Sprintf("virtio_uml.device=%s:1", socket)) // 1 is a network adapter
	}
	return run(c.Name, dir, append(args, c.Words...))
}
