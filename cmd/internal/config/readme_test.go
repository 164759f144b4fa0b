package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The files in README are good ones, and the one that is to have every key has every key.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 4 {
		t.Fatalf("only %d files in README.md", len(blocks))
	}
	longest := ""
	for _, b := range blocks {
		if _, err := Parse("README.md", []byte(b[1])); err != nil {
			t.Errorf("%v in\n%s", err, b[1])
		}
		if len(b[1]) > len(longest) {
			longest = b[1]
		}
	}
	for _, key := range allKeys(reflect.TypeFor[Config]()) {
		if !regexp.MustCompile(`\b` + key + `:`).MatchString(longest) {
			t.Errorf("the configuration in README.md has no %s", key)
		}
	}
}

// allKeys returns the keys of a struct and of what is in it.
func allKeys(t reflect.Type) (keys []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || !strings.HasPrefix(t.PkgPath(), "polder/cmd/") {
		return nil
	}
	for key, field := range fieldsOf(t) {
		keys = append(append(keys, key), allKeys(field)...)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
