package guest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Cache is the directory that testdata/setup fills.
type Cache string

// Find returns the cache: $POLDER_CACHE, or .cache in the project's root, which is the directory with go.mod at
// or above the working directory. It fails, with the remedy, unless every one of files is there.
func Find(files ...string) (Cache, error) {
	dir := os.Getenv("POLDER_CACHE")
	if dir == "" {
		root, err := Root()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, ".cache")
	}
	cache := Cache(dir)
	for _, file := range files {
		if _, err := os.Stat(cache.Path(file)); err != nil {
			return "", fmt.Errorf("%s is missing: run testdata/setup (or make test, which does)", cache.Path(file))
		}
	}
	return cache, nil
}

// Path returns the path of a file in the cache, given relative to it.
func (c Cache) Path(file string) string { return filepath.Join(string(c), file) }

// Root returns the project's root directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod at or above the working directory: run this inside the project")
		}
	}
}
