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
	Format int // journalFormat
	Place  place

	External  External
	Device    string   // the host's own adapter, "" for none
	Devices   []string // all whose state is in Before and After
	Before    state
	After     state
	Confirmed bool // kept: a crash does not put back
}

const (
	journalFormat  = 1
	takeoverSuffix = ".takeover"
)

// journalPath is the file of a switch's take-over.
func journalPath(dir, switchName string) string { return filepath.Join(dir, switchName+takeoverSuffix) }

// place is where a journal is valid.
type place struct {
	Boot      string // another one began with nothing taken over
	Namespace string // of the network
}

func here() (p place, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		p.Boot = strings.TrimSpace(string(boot))
		p.Namespace, err = os.Readlink("/proc/self/ns/net")
	}
	if err != nil {
		return p, fmt.Errorf("journal: %w", err)
	}
	return p, nil
}

// write puts the journal on the disk.
func (j *journal) write(dir string) error { return store(journalPath(dir, j.External.Switch), j) }

// remove takes the journal away: nothing is taken over any more.
func (j *journal) remove(dir string) error { return forget(journalPath(dir, j.External.Switch)) }

// store writes a file, whole or not at all, and returns when it is on the disk.
func store(path string, v any) error {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
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
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path + ".new") // which a full disk has no room for
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// forget removes a file; that there is none is no error.
func forget(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
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
		return nil, fmt.Errorf("journal %s: %w: put the network back by hand, or restart the machine, and remove the file", journalPath(dir, switchName), err)
	}
	if j.Format != journalFormat || j.External.Switch != switchName {
		return nil, fmt.Errorf("journal %s: format %d of switch %q is not this program's: put the network back with the Polder that wrote it", journalPath(dir, switchName), j.Format, j.External.Switch)
	}
	place, err := here()
	if err != nil || j.Place != place {
		return nil, err
	}
	return j, nil
}

// journals lists the switches that have a journal of a sort, which its file's suffix tells.
func journals(dir, suffix string) ([]string, error) {
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
