package build

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"polder/cmd/internal/config"
	"polder/vswitch"
)

// macPool gives adapters MAC addresses of a range, each the same one whenever it is asked, over
// restarts of the daemon too.
type macPool struct {
	file  string // where they are kept
	rng   config.MACPool
	given map[string]config.MAC // by the adapter's name
}

// poolFile is the pool's file in the directory of state.
const poolFile = "mac-pool.json"

// openPool reads what was given before.
func openPool(dir string, rng config.MACPool) (*macPool, error) {
	p := &macPool{file: filepath.Join(dir, poolFile), rng: rng, given: map[string]config.MAC{}}
	text, err := os.ReadFile(p.file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &p.given)
	}
	if err != nil {
		return nil, fmt.Errorf("mac_pool: cannot read %s: %w: mend it, or remove it and have addresses given anew", p.file, err)
	}
	return p, nil
}

// give returns the adapter's address: the one that it had before, one that nobody had, or the one of an adapter
// that is no more. used are those of the adapters that there are. With keep, the adapter gets the same one when it
// comes again.
func (p *macPool) give(adapter string, used map[vswitch.MAC]bool, keep bool) (vswitch.MAC, error) {
	if m, ok := p.given[adapter]; ok && p.holds(m) && !used[vswitch.MAC(m)] {
		return vswitch.MAC(m), nil
	}
	owner := map[vswitch.MAC]string{}
	for name, m := range p.given {
		owner[vswitch.MAC(m)] = name
	}
	var found, left vswitch.MAC // left by an adapter that is no more
	for at, last := number(p.rng.First), number(p.rng.Last); at <= last && found == (vswitch.MAC{}); at++ {
		m := address(at)
		_, owned := owner[m]
		switch {
		case used[m] || config.CheckMAC(m) != nil:
		case !owned:
			found = m
		case left == (vswitch.MAC{}):
			left = m
		}
	}
	found = cmp.Or(found, left)
	if found == (vswitch.MAC{}) {
		return found, fmt.Errorf("mac_pool: no address from %v to %v is left: widen the range, or remove adapters", p.rng.First, p.rng.Last)
	}
	if !keep {
		return found, nil
	}
	before := maps.Clone(p.given)
	delete(p.given, owner[found])
	p.given[adapter] = config.MAC(found)
	if err := p.save(); err != nil {
		p.given = before
		return vswitch.MAC{}, err
	}
	return found, nil
}

// holds tells whether the address is of the range.
func (p *macPool) holds(m config.MAC) bool {
	n := number(vswitch.MAC(m))
	return number(p.rng.First) <= n && n <= number(p.rng.Last)
}

// save replaces the file as a whole.
func (p *macPool) save() error {
	text, err := json.MarshalIndent(p.given, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(p.file, append(text, '\n')); err != nil {
		return fmt.Errorf("mac_pool: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole, on the disk before it returns.
func writeFile(file string, text []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func number(m vswitch.MAC) (n uint64) {
	for _, b := range m {
		n = n<<8 | uint64(b)
	}
	return n
}

func address(n uint64) (m vswitch.MAC) {
	for i := range m {
		m[i] = byte(n >> (40 - 8*i))
	}
	return m
}
