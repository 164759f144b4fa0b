// Package config turns the operator's text into validated plain structs. Every error names
// the file, the line, and what to write instead; nothing is opened or created here.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"polder/vswitch"
)

// DefaultSwitch names the switch of a daemon without a file, and of a run without --switch.
const DefaultSwitch = "default"

// Config is a daemon's configuration: switches, and the virtual machines whose adapters
// are on them.
type Config struct {
	Defaults Defaults `yaml:"defaults,omitempty"`
	MACPool  *MACPool `yaml:"mac_pool,omitempty"`  // nil: MAC addresses are made from the adapters' names
	PollCPUs []int    `yaml:"poll_cpus,omitempty"` // processors for poll mode; none: workers sleep when there is nothing to do
	Switches []Switch `yaml:"switches,omitempty"`
	VMs      []VM     `yaml:"vms,omitempty"`
}

// Defaults are what holds where nothing else is said.
type Defaults struct {
	Adapter Policy `yaml:"adapter,omitempty"`
}

// Switch is a virtual network.
type Switch struct {
	Name       string        `yaml:"name"`
	Type       string        `yaml:"type,omitempty"`        // TypePrivate, TypeInternal or TypeExternal; "": private
	AgeingTime time.Duration `yaml:"ageing_time,omitempty"` // 0: 300 s
	MaxMACs    int           `yaml:"max_macs,omitempty"`    // 0: 8192
	MTU        int           `yaml:"mtu,omitempty"`         // bytes, which synthetic adapters tell their guests; 0: DefaultMTU
	PXE        *PXE          `yaml:"pxe,omitempty"`         // nil: none on this switch

	Uplink            *Uplink     `yaml:"uplink,omitempty"`              // of an external switch
	AllowManagementOS *bool       `yaml:"allow_management_os,omitempty"` // of an external switch: the host uses it, too; nil: yes
	Management        *Management `yaml:"management,omitempty"`          // the host's own adapter
}

// PXE is a boot service on a switch.
type PXE struct {
	Address      netip.Prefix  `yaml:"address"`
	Pool         Pool          `yaml:"pool"`
	Lease        time.Duration `yaml:"lease,omitempty"` // 0: one hour
	Router       netip.Addr    `yaml:"router"`
	DNS          []netip.Addr  `yaml:"dns,omitempty"`
	Root         string        `yaml:"root,omitempty"` // directory of boot files; "" for none
	Boot         []Boot        `yaml:"boot,omitempty"` // the first that matches is taken
	Reservations []Reservation `yaml:"reservations,omitempty"`
}

// Boot is one rule: which clients, and what they are given.
type Boot struct {
	Match  Match    `yaml:"match,omitempty"`
	File   string   `yaml:"file,omitempty"`
	Script string   `yaml:"script,omitempty"` // an iPXE script, a template
	Kernel string   `yaml:"kernel,omitempty"`
	Initrd []string `yaml:"initrd,omitempty"`
	Append string   `yaml:"append,omitempty"` // the kernel's command line
}

// Match names clients; what is empty matches all.
type Match struct {
	MAC         string `yaml:"mac,omitempty"`          // with * for any characters
	UUID        string `yaml:"uuid,omitempty"`         // SMBIOS UUID
	Arch        []int  `yaml:"arch,omitempty"`         // option 93, RFC 4578 section 2.1
	UserClass   string `yaml:"user_class,omitempty"`   // option 77
	VendorClass string `yaml:"vendor_class,omitempty"` // option 60, how it begins
}

// Reservation keeps an address for one client.
type Reservation struct {
	MAC      MAC        `yaml:"mac,omitempty"`
	UUID     string     `yaml:"uuid,omitempty"`
	Address  netip.Addr `yaml:"address"`
	Hostname string     `yaml:"hostname,omitempty"`
}

// VM is a virtual machine: a name for its adapters and its QEMU options.
type VM struct {
	Name     string    `yaml:"name"`
	Memory   Bytes     `yaml:"memory,omitempty"` // of the guest; 0: 512 MiB
	Adapters []Adapter `yaml:"adapters,omitempty"`
}

// DefaultMTU is Ethernet's. Legacy adapters know no other.
const DefaultMTU = 1500

// NoSwitch in place of a switch's name leaves an adapter disconnected.
const NoSwitch = "none"

// DefaultMemory is that of a guest whose file says nothing of it.
const DefaultMemory Bytes = 512 << 20

// NoROM in place of a file leaves an adapter without a boot ROM.
const NoROM = "none"

// Adapter is one of a VM's network adapters.
type Adapter struct {
	Name      string `yaml:"name,omitempty"`   // of its port and socket; "": AdapterName
	Switch    string `yaml:"switch,omitempty"` // a name, NoSwitch, or "" for DefaultSwitch
	Kind      string `yaml:"kind,omitempty"`   // KindLegacy or KindSynthetic; "": legacy
	MAC       MAC    `yaml:"mac,omitempty"`    // zero: made from the VM's name and the adapter's place
	BootIndex *int   `yaml:"bootindex,omitempty"`
	ROM       string `yaml:"rom,omitempty"` // file of a boot ROM, NoROM, or "" for the adapter's own

	Socket Socket `yaml:"socket,omitempty"`

	// Of a synthetic adapter. What is not offered here is not offered to any guest, wherever it runs.
	Queues  int   `yaml:"queues,omitempty"`  // pairs of a receive and a transmit queue; 0: one
	Packed  *bool `yaml:"packed,omitempty"`  // packed rings are offered, besides split ones; nil: yes
	Offload *bool `yaml:"offload,omitempty"` // checksums and segmentation are offered; nil: yes

	Policy `yaml:",inline"`
}

// Socket is where an adapter and its hypervisor meet.
type Socket struct {
	Path string `yaml:"path,omitempty"` // "": in the directory of sockets, named after the adapter
	Mode string `yaml:"mode,omitempty"` // ModeServer or ModeClient, which is Polder's part; "": server
}

// Modes of a socket.
const (
	ModeServer = "server" // Polder listens, and the hypervisor connects
	ModeClient = "client" // the hypervisor listens, and Polder connects whenever it does
)

// Kinds of adapters.
const (
	KindLegacy    = "legacy"    // a DEC 21140, over vfio-user
	KindSynthetic = "synthetic" // virtio, over vhost-user
)

// MaxQueues is the most pairs of queues that a synthetic adapter can have.
const MaxQueues = 128

// MAC is a MAC address that can be read from text.
type MAC vswitch.MAC

// String returns the address as it is written.
func (m MAC) String() string { return vswitch.MAC(m).String() }

// MarshalText writes the address, for JSON and YAML.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := vswitch.ParseMAC(string(text))
	*m = MAC(mac)
	return err
}

// UnmarshalYAML reads an address as operators write it.
func (m *MAC) UnmarshalYAML(text []byte) error {
	mac, err := vswitch.ParseMAC(scalar(text))
	*m = MAC(mac)
	if err != nil {
		return badValue(text, "no MAC address: write it like 00:15:5d:01:02:03")
	}
	return nil
}

// Pool is the range of addresses that clients are leased, both ends included.
type Pool struct{ First, Last netip.Addr }

// MarshalText writes what UnmarshalYAML reads, for JSON and YAML.
func (p Pool) MarshalText() ([]byte, error) {
	return []byte(p.First.String() + "-" + p.Last.String()), nil
}

// UnmarshalYAML reads "10.0.0.10-10.0.0.20".
func (p *Pool) UnmarshalYAML(text []byte) error {
	first, last, ok := strings.Cut(scalar(text), "-")
	var err1, err2 error
	p.First, err1 = netip.ParseAddr(strings.TrimSpace(first))
	p.Last, err2 = netip.ParseAddr(strings.TrimSpace(last))
	if !ok || err1 != nil || err2 != nil {
		return badValue(text, "no range of addresses: write it like 10.21.140.100-10.21.140.200")
	}
	return nil
}

// Bytes is an amount of memory.
type Bytes uint64

// MarshalText writes what UnmarshalYAML reads, for JSON and YAML.
func (b Bytes) MarshalText() ([]byte, error) {
	units := " KMGT"
	i := 0
	for ; i < len(units)-1 && b != 0 && b%1024 == 0; i++ {
		b /= 1024
	}
	return []byte(strings.TrimRight(strconv.FormatUint(uint64(b), 10)+units[i:i+1], " ")), nil
}

// UnmarshalYAML reads "512M", "2G", or a number of bytes.
func (b *Bytes) UnmarshalYAML(text []byte) error {
	s := scalar(text)
	digits, shift := s, 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			digits, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 44)
	if err != nil || n<<shift>>shift != n {
		return badValue(text, "no amount of memory: write it like 512M or 2G")
	}
	*b = Bytes(n << shift)
	return nil
}

// valueError is a value that its type cannot be read from.
type valueError struct{ value, what string }

func (e valueError) Error() string { return fmt.Sprintf("%q is %s", e.value, e.what) }

func badValue(text []byte, what string) error { return valueError{scalar(text), what} }

// readers are how the decoder reads values of the types that are not this package's.
var readers = []yaml.DecodeOption{
	yaml.CustomUnmarshaler(reader(netip.ParsePrefix, "no address with the length of its network's prefix: write it like 10.21.140.1/24")),
	yaml.CustomUnmarshaler(reader(netip.ParseAddr, "no IP address: write it like 10.21.140.1")),
	yaml.CustomUnmarshaler(reader(time.ParseDuration, "no length of time: write it like 90s or 2h")),
}

func reader[T any](parse func(string) (T, error), what string) func(*T, []byte) error {
	return func(v *T, text []byte) (err error) {
		if *v, err = parse(scalar(text)); err != nil {
			return badValue(text, what)
		}
		return nil
	}
}

func scalar(text []byte) string { return strings.Trim(strings.TrimSpace(string(text)), `"'`) }

// writers are how values of the types that are not this package's are written.
var writers = []yaml.EncodeOption{
	yaml.CustomMarshaler(func(p netip.Prefix) ([]byte, error) { return []byte(strconv.Quote(p.String())), nil }),
	yaml.CustomMarshaler(func(a netip.Addr) ([]byte, error) {
		if !a.IsValid() {
			return []byte("null"), nil
		}
		return []byte(strconv.Quote(a.String())), nil
	}),
	yaml.CustomMarshaler(func(d time.Duration) ([]byte, error) { return []byte(d.String()), nil }),
}

// Marshal returns the text of a file that Parse reads as c.
func (c *Config) Marshal() ([]byte, error) { return yaml.MarshalWithOptions(c, writers...) }

// Default is the configuration of a daemon without a file: one private switch with a boot
// service on it.
func Default() *Config {
	c := &Config{Switches: []Switch{{Name: DefaultSwitch, PXE: &PXE{}}}}
	c.complete(".")
	return c
}

// Parse reads a configuration. file names it in errors, and relative paths in it start at
// its directory.
func Parse(file string, text []byte) (*Config, error) {
	c := &Config{}
	dec := yaml.NewDecoder(bytes.NewReader(text), append(slices.Clip(readers), yaml.Strict())...)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) { // a file of comments is no error
		return nil, decodeError(file, text, reflect.TypeFor[Config](), err)
	}
	c.complete(filepath.Dir(file))
	return c, c.check(file, text)
}

// Marshal returns the text that ParseSwitch reads as s.
func (s *Switch) Marshal() ([]byte, error) { return yaml.MarshalWithOptions(s, writers...) }

// ParseACL reads a list of rules, as an adapter has it under acl.
func ParseACL(name string, text []byte) (rules []ACLRule, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text), append(slices.Clip(readers), yaml.Strict())...)
	if err := dec.Decode(&rules); err != nil && !errors.Is(err, io.EOF) {
		return nil, decodeError(name, text, reflect.TypeFor[[]ACLRule](), err)
	}
	p := Policy{ACL: rules}
	return rules, p.Check()
}

// ParseSwitch reads one switch, with the keys that it has in a configuration. name stands for
// the file in errors.
func ParseSwitch(name string, text []byte) (*Switch, error) {
	c := &Config{Switches: make([]Switch, 1)}
	s := &c.Switches[0]
	dec := yaml.NewDecoder(bytes.NewReader(text), append(slices.Clip(readers), yaml.Strict())...)
	if err := dec.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, decodeError(name, text, reflect.TypeFor[Switch](), err)
	}
	c.complete(".")
	return s, c.check("", nil)
}

// decodeError puts the position before the message, as compilers do, and proposes the key
// that was meant. of is what the text was to be.
func decodeError(file string, text []byte, of reflect.Type, err error) error {
	var ve valueError
	if errors.As(err, &ve) {
		// The decoder does not say where. A value that cannot be read is hardly one of another key, too.
		for _, t := range lexer.Tokenize(string(text)) {
			if t.Value == ve.value {
				return fmt.Errorf("%s:%d:%d: %w", file, t.Position.Line, t.Position.Column, err)
			}
		}
	}
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	pos, msg := ye.GetToken().Position, ye.GetMessage()
	if m := unknownField.FindStringSubmatch(msg); m != nil {
		msg = fmt.Sprintf("unknown key %q", m[1])
		keys := keysOf(typeAt(text, of, pos))
		if k := nearest(m[1], keys); k != "" {
			msg += fmt.Sprintf(": did you mean %q?", k)
		} else {
			msg += ": here can be " + strings.Join(keys, ", ")
		}
	}
	return fmt.Errorf("%s:%d:%d: %s", file, pos.Line, pos.Column, msg)
}

var unknownField = regexp.MustCompile(`unknown field "([^"]*)"`)

// typeAt returns the struct whose key is at pos in a text that is a t; t's own if it is not found.
func typeAt(text []byte, t reflect.Type, pos *token.Position) reflect.Type {
	f, err := parser.ParseBytes(text, 0)
	if err != nil || len(f.Docs) == 0 {
		return t
	}
	var find func(n ast.Node, t reflect.Type) reflect.Type
	find = func(n ast.Node, t reflect.Type) reflect.Type {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch n := n.(type) {
		case *ast.SequenceNode:
			for _, v := range n.Values {
				if t.Kind() == reflect.Slice {
					if found := find(v, t.Elem()); found != nil {
						return found
					}
				}
			}
		case *ast.MappingNode:
			if t.Kind() != reflect.Struct {
				return nil
			}
			for _, v := range n.Values {
				if p := v.Key.GetToken().Position; p.Line == pos.Line && p.Column == pos.Column {
					return t
				}
				if field, ok := fieldsOf(t)[v.Key.GetToken().Value]; ok {
					if found := find(v.Value, field); found != nil {
						return found
					}
				}
			}
		}
		return nil
	}
	if found := find(f.Docs[0].Body, t); found != nil {
		return found
	}
	for t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t
}

// fieldsOf returns the types of a struct's fields by their keys.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		switch {
		case name != "":
			fields[name] = t.Field(i).Type
		case t.Field(i).Anonymous:
			maps.Copy(fields, fieldsOf(t.Field(i).Type))
		}
	}
	return fields
}

// keysOf returns the keys of a struct.
func keysOf(t reflect.Type) []string { return slices.Sorted(maps.Keys(fieldsOf(t))) }

// nearest returns the word at an edit distance of at most a third of s's length, or 1.
func nearest(s string, words []string) string {
	best, at := "", max(len(s)/3, 1)
	for _, w := range words {
		if d := distance(s, w); d <= at && (best == "" || d < at) {
			best, at = w, d
		}
	}
	return best
}

// distance is Levenshtein's, where two letters that have changed places count as one change.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := last[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, row[j]+1, last[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// DefaultAddress is that of a boot service that the operator gave none.
var DefaultAddress = netip.MustParsePrefix("10.21.140.1/24")

func (c *Config) complete(dir string) {
	for i := range c.Switches {
		s := &c.Switches[i]
		s.completeNetwork()
		s.AgeingTime, s.MTU = cmp.Or(s.AgeingTime, vswitch.DefaultAgeingTime), cmp.Or(s.MTU, DefaultMTU)
		if s.PXE != nil {
			s.PXE.Complete(dir)
		}
	}
	for i := range c.VMs {
		vm := &c.VMs[i]
		vm.Memory = cmp.Or(vm.Memory, DefaultMemory)
		for j := range vm.Adapters {
			a := &vm.Adapters[j]
			a.Name = cmp.Or(a.Name, AdapterName(vm.Name, j))
			a.Switch = cmp.Or(a.Switch, DefaultSwitch)
			a.Kind = cmp.Or(a.Kind, KindLegacy)
			if a.ROM != "" && a.ROM != NoROM && !filepath.IsAbs(a.ROM) {
				a.ROM = filepath.Join(dir, a.ROM)
			}
			a.Socket.Mode = cmp.Or(a.Socket.Mode, ModeServer)
			if a.Socket.Path != "" && !filepath.IsAbs(a.Socket.Path) {
				a.Socket.Path = filepath.Join(dir, a.Socket.Path)
			}
			a.Policy.Inherit(c.Defaults.Adapter)
			if a.MAC == (MAC{}) && c.MACPool == nil {
				a.MAC = MAC(DeriveMAC(a.Name))
			}
		}
	}
}

// Complete fills in what p leaves open. dir is where a relative root starts.
func (p *PXE) Complete(dir string) {
	if !p.Address.IsValid() {
		p.Address = DefaultAddress
	}
	p.Lease = cmp.Or(p.Lease, time.Hour)
	if !p.Pool.First.IsValid() && p.Address.Addr().Is4() {
		p.Pool = PoolAbove(p.Address)
	}
	if p.Root != "" && !filepath.IsAbs(p.Root) {
		p.Root = filepath.Join(dir, p.Root)
	}
}

// PoolAbove returns the addresses of the prefix above its own address, all but the broadcast
// address, and at most 1000 of them.
func PoolAbove(p netip.Prefix) Pool {
	end := broadcast(p).Prev()
	pool := Pool{First: p.Addr().Next(), Last: p.Addr().Next()}
	for n := 1; n < 1000 && pool.Last.Less(end); n++ {
		pool.Last = pool.Last.Next()
	}
	return pool
}

// broadcast returns the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	last := p.Masked().Addr().As4()
	for b := p.Bits(); b < 32; b++ {
		last[b/8] |= 1 << (7 - b%8)
	}
	return netip.AddrFrom4(last)
}

// isHost tells whether a is an address that a machine in the prefix can have.
func isHost(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Masked().Addr() && a != broadcast(p)
}

// AdapterName is the name of a VM's adapter, its port and its socket: "web01", "web01-1", ….
func AdapterName(vm string, index int) string {
	if index == 0 {
		return vm
	}
	return fmt.Sprintf("%s-%d", vm, index)
}

// DeriveMAC makes a MAC address from a name, the same one each time. 00:15:5D is the prefix
// that Hyper-V gives its adapters.
func DeriveMAC(name string) vswitch.MAC {
	h := fnv.New32a()
	h.Write([]byte(name))
	s := h.Sum32()
	return vswitch.MAC{0x00, 0x15, 0x5d, byte(s >> 16), byte(s >> 8), byte(s)}
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName says whether name can name a switch or a VM: it becomes part of a socket's path.
func CheckName(name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%q cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first", name)
	}
	return nil
}

// CheckAdapterName says whether name can name an adapter, or a VM: it becomes the name of its
// port and of its socket.
func CheckAdapterName(name string) error {
	if name == "pxe" || name == "control" {
		return fmt.Errorf("%q is a name that Polder uses itself: take another", name)
	}
	return CheckName(name)
}

// checker collects what is wrong, with positions.
type checker struct {
	file string
	text []byte
	errs []error
}

// failf adds an error at the YAML path.
func (k *checker) failf(path, format string, args ...any) {
	if k.file == "" { // the command line, where there are no positions
		k.errs = append(k.errs, fmt.Errorf(format, args...))
		return
	}
	where := k.file
	if f, err := parser.ParseBytes(k.text, 0); err == nil {
		for ; path != ""; path = path[:max(strings.LastIndexByte(path, '.'), 0)] { // what is not written: where it would be
			p, err := yaml.PathString(path)
			if err != nil {
				continue
			}
			if n, err := p.FilterFile(f); err == nil && n.GetToken() != nil {
				pos := n.GetToken().Position
				where = fmt.Sprintf("%s:%d:%d", k.file, pos.Line, pos.Column)
				break
			}
		}
	}
	k.errs = append(k.errs, fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...)))
}

// err returns all that is wrong, or nil.
func (k *checker) err() error { return errors.Join(k.errs...) }

func (c *Config) check(file string, text []byte) error {
	k := &checker{file: file, text: text}
	for i, cpu := range c.PollCPUs {
		if path := fmt.Sprintf("$.poll_cpus[%d]", i); cpu < 0 {
			k.failf(path, "poll_cpus: there is no processor %d", cpu)
		} else if slices.Contains(c.PollCPUs[:i], cpu) {
			k.failf(path, "poll_cpus: processor %d is listed twice: one worker fills it", cpu)
		}
	}
	c.Defaults.Adapter.check(k, "$.defaults.adapter", "defaults")
	if p := c.MACPool; p != nil && (bytes.Compare(p.First[:], p.Last[:]) > 0 || p.First[0] != p.Last[0] || CheckMAC(p.First) != nil || CheckMAC(p.Last) != nil) {
		k.failf("$.mac_pool", "mac_pool: from %v to %v there is no range of addresses for adapters: write it like 00:15:5d:4d:00:00-00:15:5d:4d:00:ff", p.First, p.Last)
	}
	seen := map[string]bool{}
	for i, s := range c.Switches {
		path := fmt.Sprintf("$.switches[%d]", i)
		if err := CheckName(s.Name); err != nil {
			k.failf(path, "switch: name: %v", err)
		}
		if s.Name == NoSwitch {
			k.failf(path+".name", "switch: %q stands for no switch: take another name", s.Name)
		}
		if seen[s.Name] {
			k.failf(path+".name", "a second switch %q", s.Name)
		}
		seen[s.Name] = true
		s.checkNetwork(k, path)
		if s.AgeingTime < 0 || s.AgeingTime > 0 && s.AgeingTime < time.Second {
			k.failf(path+".ageing_time", "switch %q: ageing_time %v: at least 1s", s.Name, s.AgeingTime)
		}
		if s.MaxMACs < 0 || s.MaxMACs > 1<<20 {
			k.failf(path+".max_macs", "switch %q: max_macs %d: from 1 to 1048576", s.Name, s.MaxMACs)
		}
		if s.MTU < 576 || s.MTU > 65535 {
			k.failf(path+".mtu", "switch %q: mtu %d: from 576 to 65535", s.Name, s.MTU)
		}
		if s.PXE != nil {
			s.PXE.check(k, path+".pxe", s.Name)
		}
	}
	mtu := map[string]int{}
	for _, s := range c.Switches {
		mtu[s.Name] = s.MTU
	}
	type place struct {
		sw  string
		mac MAC
	}
	vms, names, macs := map[string]bool{}, map[string]bool{}, map[place]string{}
	for i, vm := range c.VMs {
		path := fmt.Sprintf("$.vms[%d]", i)
		if err := CheckAdapterName(vm.Name); err != nil {
			k.failf(path, "vm: name: %v", err)
		}
		if vms[vm.Name] {
			k.failf(path+".name", "a second VM %q", vm.Name)
			continue
		}
		vms[vm.Name] = true
		for j, a := range vm.Adapters {
			path := fmt.Sprintf("%s.adapters[%d]", path, j)
			name := a.Name
			if err := CheckAdapterName(name); err != nil && name != AdapterName(vm.Name, j) {
				k.failf(path+".name", "vm %q: adapter: name: %v", vm.Name, err)
			}
			if names[name] {
				k.failf(path, "a second adapter %q", name)
			}
			names[name] = true
			if !seen[a.Switch] && a.Switch != NoSwitch {
				k.failf(path, "vm %q: there is no switch %q", vm.Name, a.Switch)
			}
			if a.BootIndex != nil && *a.BootIndex < 0 {
				k.failf(path+".bootindex", "vm %q: bootindex %d: from 0", vm.Name, *a.BootIndex)
			}
			a.check(k, path, vm.Name)
			if a.Kind == KindLegacy {
				if err := CheckLegacyMTU(a.Switch, mtu[a.Switch]); err != nil {
					k.failf(path, "vm %q: %v", vm.Name, err)
				}
			}
			a.Policy.check(k, path, fmt.Sprintf("vm %q", vm.Name))
			if a.MAC == (MAC{}) {
				continue // one of the pool
			}
			if err := CheckMAC(vswitch.MAC(a.MAC)); err != nil {
				k.failf(path+".mac", "vm %q: %v", vm.Name, err)
			}
			if a.Switch == NoSwitch {
				continue
			}
			at := place{a.Switch, a.MAC}
			if other, ok := macs[at]; ok {
				k.failf(path, "%s has the MAC address of %s, on the same switch", name, other)
			}
			macs[at] = name
		}
	}
	return k.err()
}

// Check finds what is wrong in an adapter that did not come from a file, and in the name of its VM.
func (a *Adapter) Check(vm string) error {
	k := &checker{}
	if err := CheckAdapterName(a.Name); err != nil {
		return fmt.Errorf("adapter: %w", err)
	}
	if err := CheckAdapterName(vm); err != nil {
		return fmt.Errorf("vm: %w", err)
	}
	if a.Socket.Path != "" && !filepath.IsAbs(a.Socket.Path) {
		k.failf("", "adapter %q: socket %s: give a path that begins with /", a.Name, a.Socket.Path)
	}
	a.check(k, "", vm)
	a.Policy.check(k, "", fmt.Sprintf("adapter %q", a.Name))
	return k.err()
}

// check finds what does not suit the adapter's kind.
func (a *Adapter) check(k *checker, path, vm string) {
	switch m := a.Socket.Mode; {
	case m != ModeServer && m != ModeClient:
		k.failf(path+".socket.mode", "vm %q: socket: mode %q is not one of: server, client", vm, m)
	case m == ModeClient && a.Kind == KindLegacy:
		k.failf(path+".socket.mode", "vm %q: socket: mode client is for adapters of kind synthetic: for a legacy one QEMU does not listen", vm)
	}
	switch a.Kind {
	case KindLegacy:
		for _, key := range []struct {
			name  string
			given bool
		}{{"queues", a.Queues != 0}, {"packed", a.Packed != nil}, {"offload", a.Offload != nil}} {
			if key.given {
				k.failf(path+"."+key.name, "vm %q: %s is for adapters of kind synthetic", vm, key.name)
			}
		}
	case KindSynthetic:
		if a.Queues < 0 || a.Queues > MaxQueues {
			k.failf(path+".queues", "vm %q: queues %d: from 1 to %d", vm, a.Queues, MaxQueues)
		}
	default:
		k.failf(path+".kind", "vm %q: kind %q is not one of: legacy, synthetic", vm, a.Kind)
	}
}

// CheckLegacyMTU says whether a legacy adapter can be on a switch with this MTU.
func CheckLegacyMTU(name string, mtu int) error {
	if mtu > DefaultMTU {
		return fmt.Errorf("switch %q has an MTU of %d, and a legacy adapter's is %d: take a synthetic adapter or another switch", name, mtu, DefaultMTU)
	}
	return nil
}

// ParseMAC reads the MAC address of an adapter.
func ParseMAC(text string) (vswitch.MAC, error) {
	m, err := vswitch.ParseMAC(text)
	if err != nil {
		return m, err
	}
	return m, CheckMAC(m)
}

// CheckMAC says whether an adapter can have the address. Linux's driver of the legacy adapter takes a MAC that
// begins with 02:00, A0:00 or C0:00 for one stored in the wrong byte order and swaps it.
func CheckMAC(m vswitch.MAC) error {
	switch {
	case m == vswitch.MAC{}:
		return errors.New("the MAC address is zero")
	case m[0]&1 != 0:
		return fmt.Errorf("%v is a multicast address: an adapter's own has an even first byte", m)
	case m[1] == 0 && slices.Contains([]byte{0x02, 0xa0, 0xc0}, m[0]):
		return fmt.Errorf("%v: Linux's tulip driver swaps the bytes of addresses that begin with %02x:00; take another prefix, such as 00:15:5d", m, m[0])
	}
	return nil
}

func (p *PXE) check(k *checker, path, name string) {
	if !p.Address.Addr().Is4() || p.Address.Bits() > 30 {
		k.failf(path+".address", "switch %q: pxe: address %v: an IPv4 address with a prefix of at most 30 bits, like %v", name, p.Address, DefaultAddress)
		return
	}
	if !isHost(p.Address, p.Address.Addr()) {
		k.failf(path+".address", "switch %q: pxe: address %v stands for the whole network: take another in it, like %v", name, p.Address, netip.PrefixFrom(p.Address.Masked().Addr().Next(), p.Address.Bits()))
		return
	}
	if !isHost(p.Address, p.Pool.First) || !isHost(p.Address, p.Pool.Last) || p.Pool.Last.Less(p.Pool.First) {
		k.failf(path+".pool", "switch %q: pxe: pool %v-%v is not a range of clients' addresses in %v", name, p.Pool.First, p.Pool.Last, p.Address.Masked())
	}
	if p.Lease < time.Minute {
		k.failf(path+".lease", "switch %q: pxe: lease %v: at least 1m", name, p.Lease)
	}
	for i, r := range p.Reservations {
		at := fmt.Sprintf("%s.reservations[%d]", path, i)
		if !isHost(p.Address, r.Address) || r.Address == p.Address.Addr() {
			k.failf(at, "switch %q: pxe: reservation of %v, which is not a client's address in %v", name, r.Address, p.Address.Masked())
		}
		if r.MAC == (MAC{}) && r.UUID == "" {
			k.failf(at, "switch %q: pxe: a reservation needs a mac or a uuid", name)
		}
	}
	for i, b := range p.Boot {
		at := fmt.Sprintf("%s.boot[%d]", path, i)
		kinds := 0
		for _, s := range []string{b.File, b.Script, b.Kernel} {
			if s != "" {
				kinds++
			}
		}
		if kinds != 1 {
			k.failf(at, "switch %q: pxe: a boot rule gives exactly one of file, script and kernel", name)
		}
		if b.Kernel == "" && (len(b.Initrd) > 0 || b.Append != "") {
			k.failf(at, "switch %q: pxe: initrd and append go with kernel", name)
		}
	}
}

// ForRun is the configuration of a single guest: one private switch with a boot service.
func ForRun(name string, p *PXE) (*Config, error) {
	p.Complete(".")
	k := &checker{}
	p.check(k, "", name)
	return &Config{Switches: []Switch{{Name: name, Type: TypePrivate, AgeingTime: vswitch.DefaultAgeingTime, MTU: DefaultMTU, PXE: p}}}, k.err()
}
