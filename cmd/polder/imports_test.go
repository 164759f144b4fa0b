package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// module is every package's path before its own name.
const module = "polder/"

// graph says what each package of ours may import of ours, and why no more. A package that
// is not listed fails the test: decide its place first.
var graph = map[string]struct {
	may []string
	why string
}{
	"tulip":                            {nil, "the chip is a pure model: it knows no protocol, no switch, no host"},
	"tulip/bootrom":                    {nil, "an image, and what is in it"},
	"tulip/tuliptest":                  {[]string{"tulip"}, "a guest for tests of the chip"},
	"vswitch":                          {nil, "the switch does not know what a port is"},
	"vswitch/capture":                  {[]string{"vswitch"}, "packets to bytes; it does not know who reads them"},
	"vswitch/porttest":                 {[]string{"vswitch"}, "what any port must do"},
	"device/eventfd":                   {nil, "one file descriptor"},
	"device/guestmem":                  {nil, "memory, whoever uses it"},
	"device/internal/unixsock":         {nil, "a socket in the file system, whatever is spoken on it"},
	"device/vfiouser":                  {[]string{"device/internal/unixsock"}, "the wire protocol hands out plain structs and knows no NIC"},
	"device/vfiouser/vfiousertest":     {[]string{"device/vfiouser"}, "the client's half, for tests"},
	"device/virtq":                     {nil, "rings in memory; it knows no network header and no device"},
	"device/virtq/virtqtest":           {[]string{"device/virtq"}, "the driver's half, for tests"},
	"device/vhostuser":                 {[]string{"device/internal/unixsock"}, "the wire protocol hands out plain structs and looks into no ring"},
	"device/vhostuser/vhostusertest":   {nil, "the front end's half, for tests; it shares no code with the back end"},
	"device":                           {[]string{"device/eventfd", "device/guestmem", "device/vfiouser", "device/vhostuser", "device/virtq", "tulip", "vswitch"}, "it joins protocols, models and a port"},
	"pxe":                              {[]string{"pxe/internal/ipstack", "vswitch"}, "a port like any other; it cannot tell a guest's adapter from the host's"},
	"pxe/internal/ipstack":             {nil, "frames in, connections out; it does not know who switches them"},
	"cmd/internal/api":                 {[]string{"cmd/internal/config"}, "plain structs for both ends; a policy has the keys that the file has"},
	"cmd/internal/config":              {[]string{"vswitch"}, "text to structs; it opens and creates nothing"},
	"cmd/internal/hostnet":             {nil, "the host's network; it opens no port and knows no switch"},
	"cmd/internal/privilege":           {nil, "capabilities, whoever drops them"},
	"cmd/internal/qemu":                {nil, "argument lists"},
	"cmd/internal/timeline":            {[]string{"cmd/internal/api"}, "events to text"},
	"cmd/internal/control":             {[]string{"cmd/internal/api", "cmd/internal/config"}, "it speaks for a World it does not know"},
	"cmd/internal/control/controltest": {[]string{"cmd/internal/api"}, "what both ends say, for tests"},
	"cmd/internal/build":               {[]string{"cmd/internal/api", "cmd/internal/config", "cmd/internal/hostnet", "cmd/internal/privilege", "device", "device/vfiouser", "device/vhostuser", "pxe", "tulip/bootrom", "vswitch", "vswitch/capture"}, "the one place where all parts meet"},
	"cmd/polder":                       {[]string{"cmd/internal/api", "cmd/internal/build", "cmd/internal/config", "cmd/internal/control", "cmd/internal/hostnet", "cmd/internal/privilege", "cmd/internal/qemu", "cmd/internal/timeline", "tulip/bootrom"}, "commands are thin"},
}

// forbidden imports from elsewhere, and those that may nevertheless.
var forbidden = []struct {
	path string
	who  func(pkg string) bool // may not
	why  string
}{
	{"unsafe", in("tulip", "vswitch", "pxe", "cmd/polder"), "only the packages at the memory boundary need it"},
	{"sync", in("tulip"), "the chip's owner locks"},
	{"time", in("tulip"), "time is an argument"},
	{"os", in("tulip", "vswitch", "vswitch/porttest", "pxe/internal/ipstack"), "nobody but cmd and device touches the host"},
	{"net", in("tulip", "vswitch"), "frames are bytes"},
	{"log", in("tulip", "vswitch"), "counters, not lines"},
	{"log/slog", in("tulip", "vswitch"), "counters, not lines"},
	{"encoding/json", func(p string) bool {
		return !strings.HasPrefix(p, "cmd/") && p != "device/vfiouser"
	}, "nobody but cmd speaks JSON, and vfio-user's handshake is made of it"},
	{"gvisor.dev/gvisor/pkg/tcpip", func(p string) bool { return p != "pxe/internal/ipstack" }, "netstack's types stay in one package"},
	{"golang.org/x/sys/unix", func(p string) bool {
		return !slices.Contains([]string{"device", "device/eventfd", "device/guestmem", "device/internal/unixsock", "device/vfiouser", "device/vfiouser/vfiousertest", "device/vhostuser", "device/vhostuser/vhostusertest", "cmd/internal/hostnet", "cmd/internal/privilege"}, p)
	}, "system calls stay at the boundary"},
}

func in(pkgs ...string) func(string) bool {
	return func(p string) bool { return slices.Contains(pkgs, p) }
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		rule, ok := graph[pkg]
		if !ok {
			t.Errorf("package %s has no place in the import graph: add it to the table, with its reason", pkg)
			continue
		}
		seen[pkg] = true
		for _, imp := range fields[1:] {
			if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(rule.may, ours) {
				t.Errorf("%s imports %s: %s", pkg, ours, rule.why)
			}
			for _, f := range forbidden {
				if (imp == f.path || strings.HasPrefix(imp, f.path+"/") && strings.Contains(f.path, ".")) && f.who(pkg) {
					t.Errorf("%s imports %s: %s", pkg, imp, f.why)
				}
			}
		}
	}
	for pkg := range graph {
		if !seen[pkg] {
			t.Errorf("the import graph names %s, which is not there", pkg)
		}
	}
}

// The leaves compile for any system: nothing in them is Linux's.
func TestLeavesCompileAnywhere(t *testing.T) {
	for _, goos := range []string{"windows", "plan9"} {
		cmd := exec.Command("go", "vet", module+"tulip", module+"vswitch")
		cmd.Env = append(cmd.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GOOS=%s: %v\n%s", goos, err, out)
		}
	}
}
