package guest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// AddPrograms writes the initramfs to: that of the cache with these programs in its /bin. A kernel takes archives
// one behind the other.
func AddPrograms(cache Cache, to, base string, programs ...string) error {
	initramfs, err := os.ReadFile(cache.Path(base))
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "polder-initramfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := os.Mkdir(filepath.Join(tree, "bin"), 0o755); err != nil {
		return err
	}
	var names bytes.Buffer
	for _, program := range programs {
		name := filepath.Join("bin", filepath.Base(program))
		content, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(filepath.Join(tree, name), content, 0o755)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(&names, name)
	}
	cpio := exec.Command(cache.Path("bin/busybox"), "cpio", "-o", "-H", "newc", "-R", "0:0")
	cpio.Dir, cpio.Stdin = tree, &names
	archive, err := cpio.Output()
	if err != nil {
		return fmt.Errorf("cpio: %w", err)
	}
	added := bytes.NewBuffer(initramfs)
	packed := gzip.NewWriter(added)
	if _, err := packed.Write(archive); err != nil {
		return err
	}
	if err := packed.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, added.Bytes(), 0o644)
}
