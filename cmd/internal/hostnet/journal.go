package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// journal is what has to be known after a crash: what the host was like, and whether the
// take-over was kept. It is on the disk before the first change.
type journal struct {
	Format    int    // journalFormat
	Boot      string // of which boot; another one began with nothing taken over
	Namespace string // of which network namespace

	External  External
	Device    string   // the host's own adapter, "" for none
	Devices   []string // all whose state is in Before and After
	Before    state
	After     state
	Confirmed bool // kept: a crash does not put back
}

const (
	journalFormat = 1
	suffix        = ".takeover"
)

// journalPath is the file of a switch's take-over.
func journalPath(dir, switchName string) string { return filepath.Join(dir, switchName+suffix) }

// here tells where the journal is valid: this boot, this network namespace.
func here() (boot, namespace string, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	namespace, err = os.Readlink("/proc/self/ns/net")
	return strings.TrimSpace(string(b)), namespace, err
}

// write puts the journal on the disk, whole or not at all.
func (j *journal) write(dir string) (err error) {
	text, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return err
	}
	path := journalPath(dir, j.External.Switch)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// remove takes the journal away: nothing is taken over any more.
func (j *journal) remove(dir string) error {
	err := os.Remove(journalPath(dir, j.External.Switch))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// syncDir makes the directory's entries last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readJournal reads a switch's journal. One that is not of this boot and this network namespace is nil: it
// tells of a network that is gone.
func readJournal(dir, switchName string) (*journal, error) {
	text, err := os.ReadFile(journalPath(dir, switchName))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{}
	if err := json.Unmarshal(text, j); err != nil {
		return nil, fmt.Errorf("journal %s: %w", journalPath(dir, switchName), err)
	}
	if j.Format != journalFormat || j.External.Switch != switchName {
		return nil, fmt.Errorf("journal %s: format %d of switch %q is not this program's: put the network back with the Polder that wrote it", journalPath(dir, switchName), j.Format, j.External.Switch)
	}
	boot, ns, err := here()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if j.Boot != boot || j.Namespace != ns {
		return nil, nil
	}
	return j, nil
}

// journals lists the switches that have one.
func journals(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journals: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}
