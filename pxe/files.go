package pxe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"
	"unicode/utf8"
)

// errEscape is returned for a name that points above the root.
var errEscape = errors.New("the name leaves the root")

// library finds the files that guests ask for: those of Config.Files, and behind them the generated ones.
type library struct {
	root   fs.FS // nil: none
	rules  []BootRule
	texts  map[string]*template.Template // scripts by name
	loader []byte                        // Config.DefaultNBP
}

// file is an open file. Close it.
type file struct {
	io.Reader
	name  string // as found
	size  int64  // bytes; -1: not known
	mod   time.Time
	close func() error
}

func (f *file) Close() error { return f.close() }

// newLibrary parses the scripts of the rules.
func newLibrary(cfg *Config) (*library, error) {
	l := &library{root: cfg.Files, rules: cfg.Boot, loader: cfg.DefaultNBP, texts: make(map[string]*template.Template)}
	add := func(name, text string) error {
		t, err := template.New(name).Option("missingkey=error").Parse(text)
		if err != nil {
			return err
		}
		// A template can refer to what Client does not have; find out now, not when a guest asks.
		if err := t.Execute(io.Discard, Client{}); err != nil {
			return err
		}
		l.texts[name] = t
		return nil
	}
	if err := add(DefaultScript, defaultScript); err != nil {
		return nil, err
	}
	for i, r := range cfg.Boot {
		set := 0
		for _, s := range []string{r.File, r.Script, r.Kernel} {
			if s != "" {
				set++
			}
		}
		if set != 1 {
			return nil, fmt.Errorf("pxe: boot rule %d: want one of file, script and kernel, have %d", i, set)
		}
		text := r.Script
		if r.Kernel != "" {
			text = kernelScript(r)
		}
		if text == "" {
			continue
		}
		if err := add(ruleScript(i), text); err != nil {
			return nil, fmt.Errorf("pxe: boot rule %d: %w", i, err)
		}
	}
	return l, nil
}

// kernelScript is the iPXE script that boots a rule's kernel, a template since the command line is one.
// A kernel on UEFI finds its initial RAM disks by the names in "initrd="; on a BIOS iPXE places them
// in memory, and Linux would misread the argument as an address.
func kernelScript(r BootRule) string {
	var b strings.Builder
	b.WriteString("#!ipxe\nkernel " + scriptURI(r.Kernel))
	for _, name := range r.Initrd {
		fmt.Fprintf(&b, "{{if .EFI}} initrd=%s{{end}}", literal(path.Base(scriptURI(name))))
	}
	b.WriteString(" " + r.Cmdline + "\n")
	for _, name := range r.Initrd {
		b.WriteString("initrd " + scriptURI(name) + "\n")
	}
	b.WriteString("boot\n")
	return b.String()
}

// scriptURI makes a name of Config.Files a URI in an iPXE script, relative to the script itself and so
// fetched the same way. A URL stays as it is.
func scriptURI(name string) string {
	if !isURL(name) {
		name = escapePath(strings.TrimLeft(name, "/"))
	}
	return literal(name)
}

// literal keeps a template from reading "{{" in a file's name.
func literal(s string) string {
	return strings.ReplaceAll(s, "{{", "{{`{{`}}")
}

// defaultScript is what iPXE runs when nothing is configured: it shows what the service knows of the
// guest and what iPXE itself does, and says what to do next.
const defaultScript = `#!ipxe
echo
echo Polder network boot: this guest has reached the boot service, and there is nothing to boot yet.
echo
echo   MAC address  {{.MAC}}
echo   Address      {{if .Addr.IsValid}}{{.Addr}}{{else}}unknown{{end}}
echo   Server       {{.Server}}
echo   UUID         {{if .UUID.IsZero}}none{{else}}{{.UUID}}{{end}}
echo   Platform     {{.Platform}}
{{- if .Hostname}}
echo   Host name    {{.Hostname}}
{{- end}}
echo   Chip         ${net0/chip}
echo
echo To boot something, give the service a directory of boot files (--root DIR) with a boot.ipxe,
echo a pxelinux.0 or a grub image in it, or a boot rule with a kernel. Leaving network boot.
echo
exit
`

// open returns the file a guest asks for. The error is fs.ErrNotExist or errEscape in the sense of
// errors.Is, or something is wrong with the file. c is the guest for whom a script is generated.
func (l *library) open(asked string, c Client) (*file, error) {
	name, err := cleanName(asked)
	if err != nil {
		return nil, err
	}
	if l.root != nil {
		f, err := l.openRoot(name)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return l.generate(name, c)
}

// exists reports whether Config.Files has a regular file of this name.
func (l *library) exists(name string) bool {
	_, _, err := l.stat(name)
	return err == nil
}

// generate makes a script for a client, or returns the built-in loader.
func (l *library) generate(name string, c Client) (*file, error) {
	var data []byte
	if t := l.texts[strings.ToLower(name)]; t != nil {
		var b bytes.Buffer
		if err := t.Execute(&b, c); err != nil {
			return nil, err
		}
		data = b.Bytes()
	} else if strings.EqualFold(name, DefaultLoader) && l.loader != nil {
		data = l.loader
	} else {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return &file{Reader: bytes.NewReader(data), name: name, size: int64(len(data)), close: func() error { return nil }}, nil
}

func (l *library) openRoot(name string) (*file, error) {
	name, info, err := l.stat(name)
	if err != nil {
		return nil, err
	}
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	return &file{Reader: f, name: name, size: info.Size(), mod: info.ModTime(), close: f.Close}, nil
}

// stat finds a regular file: the name itself, or the first that differs in case alone. Windows' boot
// manager asks for names in whatever case it likes.
func (l *library) stat(name string) (string, fs.FileInfo, error) {
	if l.root == nil || !fs.ValidPath(name) {
		return "", nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	info, err := fs.Stat(l.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		if name, err = l.fold(name); err == nil {
			info, err = fs.Stat(l.root, name)
		}
	}
	switch {
	case err != nil:
		return "", nil, err
	case !info.Mode().IsRegular():
		// Opening a FIFO would wait for its writer.
		return "", nil, fmt.Errorf("%s is no regular file: %w", name, fs.ErrNotExist)
	}
	return name, info, nil
}

// fold resolves a name element by element without regard to case.
func (l *library) fold(name string) (string, error) {
	at := "."
next:
	for _, want := range strings.Split(name, "/") {
		exact := path.Join(at, want)
		if _, err := fs.Stat(l.root, exact); err == nil {
			at = exact
			continue
		}
		entries, err := fs.ReadDir(l.root, at)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		for _, e := range entries {
			if strings.EqualFold(e.Name(), want) {
				at = path.Join(at, e.Name())
				continue next
			}
		}
		return "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return at, nil
}

// cleanName makes what a guest asks for a name as fs.FS takes it: slashes for backslashes, none at the
// start, and nothing after the 0xff that some ROMs append.
func cleanName(asked string) (string, error) {
	name := strings.TrimRightFunc(asked, func(r rune) bool { return r == utf8.RuneError })
	name = strings.ReplaceAll(name, `\`, "/")
	var parts []string
	for _, part := range strings.Split(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", errEscape
		default:
			parts = append(parts, part)
		}
	}
	name = strings.Join(parts, "/")
	if name == "" || !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%s: %w", strconv.Quote(asked), fs.ErrNotExist)
	}
	return name, nil
}

// printable makes text from the network safe for logs, terminals and scripts: printable ASCII without
// the characters that are special in iPXE's scripts, at most limit bytes.
func printable(s string, limit int) string {
	s = s[:min(len(s), limit)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("${}\\&|", r) {
			return '?'
		}
		return r
	}, s)
}
