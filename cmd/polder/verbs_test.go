package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/control/controltest"
)

// office is a configuration with some of everything that needs no privilege.
const office = `
switches:
  - name: lab
    pxe: {address: 10.9.0.1/24}
  - name: lan
vms:
  - name: web
    adapters:
      - {switch: lab, mac: "00:15:5d:00:00:01", vlan: {access: 5}, acl: [{action: deny, protocol: tcp, local_port: 22}], bandwidth: 100M}
      - {switch: lan, kind: synthetic, mac: "00:15:5d:00:00:02"}
  - name: fw
    adapters:
      - {switch: none, kind: synthetic, mac: "00:15:5d:00:00:03", vlan: {trunk: "1-9", native: 2}}
`

// watched is a world that counts who has subscribed.
type watched struct {
	*build.World
	subscribers atomic.Int32
}

// Subscribe implements control.World.
func (w *watched) Subscribe() (<-chan api.Event, func()) {
	events, stop := w.World.Subscribe()
	w.subscribers.Add(1)
	return events, stop
}

// inProcess runs a configuration in this process until the test ends, and holds all that is said to it against the
// description of the control protocol. It returns the directory of sockets.
func inProcess(t *testing.T, text string) (string, *watched) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	c, err := config.Parse(filepath.Join(dir, "polder.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	world, err := build.New(c, build.Options{Dir: dir, StateDir: t.TempDir(), Version: "test", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(world.Close)
	w := &watched{World: world}
	ln, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: controltest.New(t, control.Handler(w))}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Close(); done.Wait() })
	return dir, w
}

// leaves returns the commands that do something, with the words that call them.
func leaves(node *kong.Node, words []string) map[string]*kong.Node {
	all := map[string]*kong.Node{}
	for _, c := range node.Children {
		if c.Hidden {
			continue
		}
		path := append(slices.Clone(words), c.Name)
		if len(c.Children) == 0 {
			all[strings.Join(path, " ")] = c
		}
		for k, v := range leaves(c, path) {
			all[k] = v
		}
	}
	return all
}

func model() *kong.Node {
	return newParser(new(cli), io.Discard, io.Discard, func(int) {}).Model.Node
}

// Each command explains itself, with each of its arguments and flags.
func TestHelp(t *testing.T) {
	all := leaves(model(), nil)
	if len(all) < 35 {
		t.Errorf("only %d commands", len(all))
	}
	for name, node := range all {
		status, stdout, stderr := polder(t.TempDir(), append(strings.Fields(name), "--help")...)
		if status != 0 || stderr != "" {
			t.Errorf("%s --help: status %d, %s", name, status, stderr)
		}
		words := []string{node.Help}
		for _, p := range node.Positional {
			words = append(words, "<"+p.Name+">", p.Help)
		}
		for _, f := range node.Flags {
			flag := "--" + f.Name
			if f.Tag.Negatable != "" {
				flag = "--[no-]" + f.Name
			}
			words = append(words, flag, f.Help)
		}
		text := strings.Join(strings.Fields(stdout), " ") // its lines are broken somewhere
		for _, w := range words {
			if w == "" || !strings.Contains(text, strings.Join(strings.Fields(w), " ")) {
				t.Errorf("%s --help does not say %q", name, w)
			}
		}
	}
}

// What each command says in each form, one after the other on the same daemon.
func TestVerbs(t *testing.T) {
	dir, _ := inProcess(t, office)
	acl := write(t, "acl.yaml", "- {action: meter, remote: 10.0.0.0/8}\n- {action: deny, protocol: arp}\n")
	more := write(t, "more.yaml", strings.Replace(office, "vms:", "  - name: more\nvms:", 1))
	for _, c := range []struct {
		args string
		as   any    // what -o json and -o yaml are read into; nil: there are no forms
		want string // the table; nothing for a command that only does something
	}{
		{"show", &api.Status{}, `
SWITCH  TYPE     PORT   KIND       STATE           VLAN                MAC                RX   TX   DROPS
lab     private  pxe    pxe        attached        -                   MAC                0 B  0 B  0
                 web    legacy     off             5                   00:15:5d:00:00:01  0 B  0 B  0
lan     private  web-1  synthetic  off             -                   00:15:5d:00:00:02  0 B  0 B  0
-       -        fw     synthetic  off, unplugged  trunk 1-9 native 2  00:15:5d:00:00:03  0 B  0 B  0
`},
		{"show lan", &api.Status{}, `
SWITCH  TYPE     PORT   KIND       STATE  VLAN  MAC                RX   TX   DROPS
lan     private  web-1  synthetic  off    -     00:15:5d:00:00:02  0 B  0 B  0
`},
		{"switch show lan", &api.Status{}, "\nSWITCH  TYPE     PORT   KIND       STATE  VLAN  MAC                RX   TX   DROPS\nlan     private  web-1  synthetic  off    -     00:15:5d:00:00:02  0 B  0 B  0\n"},
		{"apply --dry-run -f " + more, &[]api.Change{}, "\n+ switch  more  private\n"},
		{"apply -f " + more, nil, "\n+ switch  more  private\n"},
		{"apply -f " + more, &[]api.Change{}, "\nnothing changes\n"},
		{"switch remove more", nil, ""},
		{"switch add tor --ageing-time 60s --mtu 9000 --pxe-address 10.8.0.1/24", nil, ""},
		{"adapter add db --switch tor --synthetic --queues 2 --mac 00:15:5d:00:00:04 --dhcp-guard on --acl " + acl, &api.Adapter{}, `
ADAPTER  SWITCH  KIND       MAC                SOCKET
db       tor     synthetic  00:15:5d:00:00:04  DIR/db.sock
`},
		{"adapter set db --mac-spoofing off --router-guard on --bpdu shutdown --storm-limit 100 --bandwidth 2.5G --mirror source", nil, ""},
		{"vlan set access db 7", nil, ""},
		{"adapter show db", &api.Port{}, `
adapter           db
vm                db
switch            tor
kind              synthetic
state             off
mac               00:15:5d:00:00:04
socket            DIR/db.sock
received from it  0 frames, 0 B
sent to it        0 frames, 0 B
vlan              {access: 7}
mac_spoofing      false
dhcp_guard        true
router_guard      true
bpdu              shutdown
storm_limit       100
bandwidth         2500M
mirror            source
acl 1             {action: meter, remote: 10.0.0.0/8}: 0 frames
acl 2             {action: deny, protocol: arp}: 0 frames
`},
		{"adapter set db --link down --no-acl", nil, ""},
		{"vlan set isolated db 7 8", nil, ""},
		{"vlan set community db 7 8", nil, ""},
		{"vlan set promiscuous db 7 8-9", nil, ""},
		{"vlan set trunk db 1-5,9", nil, ""},
		{"show tor", &api.Status{}, `
SWITCH  TYPE     PORT  KIND       STATE           VLAN         MAC                RX   TX   DROPS
tor     private  db    synthetic  off, link down  trunk 1-5,9  00:15:5d:00:00:04  0 B  0 B  0
                 pxe   pxe        attached        -            PXE                0 B  0 B  0
`},
		{"vlan set trunk db 1-5 --native 7", nil, ""},
		{"adapter show", &[]api.Port{}, `
ADAPTER  VM   SWITCH  KIND       STATE           VLAN                MAC                SOCKET
fw       fw   -       synthetic  off, unplugged  trunk 1-9 native 2  00:15:5d:00:00:03  DIR/fw.sock
web      web  lab     legacy     off             5                   00:15:5d:00:00:01  DIR/web.sock
web-1    web  lan     synthetic  off             -                   00:15:5d:00:00:02  DIR/web-1.sock
db       db   tor     synthetic  off, link down  trunk 1-5 native 7  00:15:5d:00:00:04  DIR/db.sock
`},
		{"vlan set none db", nil, ""},
		{"adapter set db --link up", nil, ""},
		{"adapter disconnect db", nil, ""},
		{"adapter connect db lan", nil, ""},
		{"fdb add lan 00:15:5d:00:00:09 db", nil, ""},
		{"fdb add lan 00:15:5d:00:00:0a db", nil, ""},
		{"fdb show lan", &[]api.MAC{}, `
MAC                VLAN  PORT  AGE
00:15:5d:00:00:04  -     db    static
00:15:5d:00:00:09  -     db    static
00:15:5d:00:00:0a  -     db    static
`},
		{"fdb del lan 00:15:5d:00:00:09", nil, "\n1 address forgotten\n"},
		{"fdb flush lan", &api.Flushed{}, "\n0 addresses forgotten\n"},
		{"fdb flush lan --port db --vlan 7", &api.Flushed{}, "\n0 addresses forgotten\n"},
		{"leases", &[]api.Lease{}, "\nSWITCH  ADDRESS  MAC  HOSTNAME  UUID  EXPIRES  RESERVED\n"},
		{"boots", &[]api.BootEvent{}, "\nSWITCH  MAC  ADDRESS  STEP  FILE  SENT  AFTER  AGO  DETAIL\n"},
		{"drops", &[]dropped{}, "\nSWITCH  PORT  REASON  FRAMES\n"},
		{"drops db", &[]dropped{}, "\nSWITCH  PORT  REASON  FRAMES\n"},
		{"adapter remove db", nil, ""},
		{"switch remove tor", nil, ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := strings.Fields(c.args)
			for _, form := range []string{"json", "yaml"} {
				if c.as == nil || strings.HasPrefix(c.args, "adapter add ") { // which can be done once
					continue
				}
				status, stdout, stderr := polder(dir, append(slices.Clone(args), "-o", form)...)
				if status != 0 || stderr != "" {
					t.Fatalf("-o %s: status %d, %s", form, status, stderr)
				}
				text := []byte(stdout)
				if form == "yaml" {
					var err error
					if text, err = yaml.YAMLToJSON(text); err != nil {
						t.Fatalf("%v in\n%s", err, stdout)
					}
				}
				dec := json.NewDecoder(bytes.NewReader(text))
				dec.DisallowUnknownFields()
				if err := dec.Decode(c.as); err != nil {
					t.Errorf("-o %s: %v in\n%s", form, err, stdout)
				}
				if strings.Contains(stdout, "null") {
					t.Errorf("-o %s: an empty list is no list:\n%s", form, stdout)
				}
			}
			status, stdout, stderr := polder(dir, args...)
			if status != 0 || stderr != "" {
				t.Fatalf("status %d, %s", status, stderr)
			}
			stdout = strings.ReplaceAll(stdout, dir, "DIR")
			stdout = strings.ReplaceAll(stdout, config.DeriveMAC("pxe.lab").String(), "MAC              ")
			stdout = strings.ReplaceAll(stdout, config.DeriveMAC("pxe.tor").String(), "PXE              ")
			if got := regexp.MustCompile(`(?m) +$`).ReplaceAllString(stdout, ""); got != strings.TrimPrefix(c.want, "\n") {
				t.Errorf("got\n%swant%s", got, c.want)
			}
		})
	}
}

// The running configuration is a file that a daemon can start with.
func TestConfigVerb(t *testing.T) {
	dir, w := inProcess(t, office)
	if status, _, stderr := polder(dir, "adapter", "add", "db", "--switch", "lan", "--storm-limit", "9"); status != 0 {
		t.Fatal(stderr)
	}
	status, stdout, stderr := polder(dir, "config")
	if status != 0 || stderr != "" || !strings.Contains(stdout, "storm_limit: 9") {
		t.Fatalf("status %d, %s\n%s", status, stderr, stdout)
	}
	file := write(t, "kept.yaml", stdout)
	if status, stdout, stderr := polder(dir, "apply", "-f", file); status != 0 || stdout != "nothing changes\n" {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	if n := w.Adapters(); n != 4 {
		t.Errorf("%d adapters", n)
	}
	if status, stdout, stderr := polder(dir, "qemu-args", "fw"); status != 0 || !strings.Contains(stdout, filepath.Join(dir, "fw.sock")) {
		t.Errorf("qemu-args of the daemon's: status %d, %s%s", status, stdout, stderr)
	}
}

// Each mistake gets one line that says what to do, and the right status.
func TestVerbErrors(t *testing.T) {
	dir, w := inProcess(t, office)
	bad := write(t, "bad.yaml", "switches:\n  - {name: lab, mtu: 9000}\nvms:\n  - {name: web, adapters: [{switch: lab}]}\n")
	noRoot := write(t, "noroot.yaml", strings.Replace(office, "- name: lan", "- {name: lan, pxe: {root: /nonesuch}}", 1))
	badACL := write(t, "acl.yaml", "- {action: deny, port: 22}\n")
	before := marshal(t, w)
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"show lob", 1, `there is no switch "lob": polder show names them`},
		{"apply", 2, "missing flags: --file=FILE"},
		{"apply -f /nonesuch", 1, "configuration: open /nonesuch: no such file or directory"},
		{"apply -f " + bad, 1, bad + `:4:28: vm "web": switch "lab" has an MTU of 9000, and a legacy adapter's is 1500: take a synthetic adapter or another switch`},
		{"apply -f " + noRoot, 1, `add pxe "lan": switch "lan": pxe: root: open /nonesuch: no such file or directory: nothing is changed`},
		{"switch", 2, `expected one of "add", "remove", "show"`},
		{"switch add", 2, `expected "<name>"`},
		{"switch add lan", 1, `there is a switch "lan" already: take another name`},
		{"switch add ../x", 1, `switch: name: "../x" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{"switch add x --type public", 2, `--type must be one of "private","internal","external" but got "public"`},
		{"switch add x --type external", 1, `switch "x": an external switch needs an uplink with exactly one of nic (a network adapter of the host) and bridge (a bridge that is there already)`},
		{"switch add x --nic eth0", 1, `switch "x": uplink is for switches of type external`},
		{"switch add x --address 10.0.0.1/24", 1, `switch "x": the host is not on a private switch: take type internal`},
		{"switch add x --type internal --nat", 1, `switch "x": management: nat needs an IPv4 address, like 192.168.77.1/24`},
		{"switch add x --ageing-time 10ms", 1, `switch "x": ageing_time 10ms: at least 1s`},
		{"switch add x --confirm-timeout 9s", 2, `switch add: --confirm-timeout is for --type external: others do not touch the host's network adapters`},
		{"switch remove x", 1, `there is no switch "x"`},
		{"switch remove ..", 1, `there is no switch ".."`},
		{"adapter add web --switch lan", 1, `there is an adapter "web" already: take another name`},
		{"adapter add a/b", 1, `adapter: "a/b" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{"adapter add x --switch lob", 1, `there is no switch "lob"`},
		{"adapter add x --switch lan --mac 00:15:5d:00:00:02", 1, `adapter "web-1" has the MAC address 00:15:5d:00:00:02 already: take another for "x"`},
		{"adapter add x --switch lan --mac 1", 1, `adapter "x": vswitch: "1" is not an Ethernet address like 00:15:5d:01:02:03`},
		{"adapter add x --legacy --synthetic", 2, "--legacy and --synthetic can't be used together"},
		{"adapter add x --queues 2", 2, "adapter add: --queues is for synthetic adapters"},
		{"adapter add x --synthetic --rom none", 2, "adapter add: --rom is for legacy adapters: QEMU gives a synthetic one its ROM"},
		{"adapter add x --rom /nonesuch", 1, "boot ROM: open /nonesuch: no such file or directory"},
		{"adapter add x --client", 1, `vm "x": socket: mode client is for adapters of kind synthetic: for a legacy one QEMU does not listen`},
		{"adapter set web", 2, "adapter set: say what to change: --help names the flags"},
		{"adapter set lob --link up", 1, `there is no adapter "lob"`},
		{"adapter set web --link sideways", 2, `--link must be one of "","up","down" but got "sideways"`},
		{"adapter set web --bandwidth fast", 2, `--bandwidth: "fast" is no number of bits a second: write it like 100M or 2.5G`},
		{"adapter set web --storm-limit=-1", 1, `adapter "web": policy: storm_limit -1: frames a second, from 0 (no limit) to 2147483647`},
		{"adapter set web --acl " + badACL, 1, badACL + `:1:18: unknown key "port": here can be action, direction, local_port, protocol, remote, remote_port`},
		{"adapter remove lob", 1, `there is no adapter "lob"`},
		{"adapter connect web", 2, `expected "<switch>"`},
		{"adapter connect web lob", 1, `there is no switch "lob"`},
		{"adapter disconnect lob", 1, `there is no adapter "lob"`},
		{"adapter show lob", 1, `there is no adapter "lob"`},
		{"vlan set access web 4095", 1, `adapter "web": policy: vlan: access 4095: from 1 to 4094`},
		{"vlan set access web many", 2, `<id>: expected a valid 64 bit int but got "many"`},
		{"vlan set trunk web 9-1", 2, `<allowed>: `},
		{"vlan set trunk web 1-9 --native 5000", 1, `adapter "web": policy: vlan: native 5000: from 1 to 4094`},
		{"vlan set isolated web 5 5", 1, `adapter "web": policy: vlan: primary 5 is a secondary, too: take another`},
		{"vlan set none lob", 1, `there is no adapter "lob"`},
		{"fdb show lob", 1, `there is no switch "lob"`},
		{"fdb flush lan --port lob", 1, `there is no port "lob" on switch "lan": polder show lan names its ports`},
		{"fdb flush lan --vlan 5000", 1, "vlan=5000: from 0 to 4094"},
		{"fdb add lan nine web-1", 1, `mac: "nine" is no MAC address: write it like 00:15:5d:01:02:03`},
		{"fdb del lan 00:15:5d:00:00:09", 1, `switch "lan" does not know 00:15:5d:00:00:09 in VLAN 0`},
		{"external show lan", 1, `switch "lan" is private: only an external switch does anything to the host's network adapters`},
		{"external show lob", 1, `there is no switch "lob"`},
		{"external commit lan", 1, `switch "lan" is private: only an external switch does anything to the host's network adapters`},
		{"external rollback lan", 1, `switch "lan" is private: only an external switch does anything to the host's network adapters`},
		{"external plan lan", 1, `switch "lan" is private: only an external switch does anything to the host's network adapters`},
		{"external plan lob", 1, `there is no switch "lob": to plan one, give --nic or --config`},
		{"drops lob", 1, `there is no port "lob": polder show names them`},
		{"capture lob", 1, `no switch has the ports ["lob"]: polder show names them`},
		{"capture", 1, "a capture is of one switch: say which, with --switch or ?switch="},
		{"capture --snaplen=-1 web", 2, "capture: --snaplen -1: from 0"},
		{"monitor -o yaml", 2, `--output must be one of "table","json" but got "yaml"`},
		{"leases -o xml", 2, `--output must be one of "table","json","yaml" but got "xml"`},
		{"completion csh", 2, `<shell> must be one of "bash","zsh","fish" but got "csh"`},
		{"qemu-args lob", 1, `the running configuration: there is no VM "lob": it has web, fw`},
		{"libvirt-xml lob", 1, `the running configuration: there is no VM "lob": it has web, fw`},
	} {
		t.Run(c.args, func(t *testing.T) {
			status, stdout, stderr := polder(dir, strings.Fields(c.args)...)
			got, ok := strings.CutPrefix(stderr, "polder: ")
			if prefix, isPrefix := strings.CutSuffix(c.want, ": "); isPrefix {
				ok = ok && strings.HasPrefix(got, prefix) && strings.Count(got, "\n") == 1
			} else {
				ok = ok && got == c.want+"\n"
			}
			if status != c.status || !ok || stdout != "" {
				t.Errorf("status %d, %s%s\nwant %d, polder: %s", status, stdout, stderr, c.status, c.want)
			}
		})
	}
	if now := marshal(t, w); now != before {
		t.Errorf("mistakes have changed the configuration:\n%s", now)
	}
}

func marshal(t *testing.T, w *watched) string {
	t.Helper()
	text, err := w.Config().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Without a daemon each verb that needs one says so.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	for name, node := range leaves(model(), nil) {
		words := strings.Fields(name)
		switch words[0] {
		case "run", "serve", "rom", "completion", "man", "version":
			continue
		}
		for _, p := range node.Positional {
			word := map[string]string{"id": "7", "primary": "7", "secondary": "8", "allowed": "1-9", "secondaries": "8-9", "mac": "00:15:5d:00:00:09"}[p.Name]
			if word == "" {
				word = "web"
			}
			words = append(words, word)
		}
		switch name {
		case "apply":
			words = append(words, "-f", write(t, "f.yaml", "switches: []\n"))
		case "adapter set":
			words = append(words, "--link", "up")
		}
		status, stdout, stderr := polder(dir, words...)
		if want := fmt.Sprintf("polder: %s/control.sock: no daemon answers there: start one with polder serve, or name its --runtime-dir\n", dir); status != 1 || stdout != "" || stderr != want {
			t.Errorf("%s: status %d, %s%s", name, status, stdout, stderr)
		}
	}
}

// A monitor and a capture show what happens until they are stopped, which is no failure.
func TestStreams(t *testing.T) {
	dir, w := inProcess(t, office)
	pcap := filepath.Join(t.TempDir(), "c.pcapng")
	monitor, lines := start(t, dir, nil, "monitor"), start(t, dir, nil, "monitor", "-o", "json")
	capture := start(t, dir, nil, "capture", "web-1", "-w", pcap)
	capture.until("the capture began", func() bool { i, err := os.Stat(pcap); return err == nil && i.Size() > 0 })
	monitor.until("both listened", func() bool { return w.subscribers.Load() == 2 })
	if _, err := w.AddAdapter(api.AdapterRequest{Name: "guest", Switch: "lan"}, true); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveAdapter("guest"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{monitor, lines} {
		p.until("both events were shown", func() bool { return strings.Count(p.stdout.String(), "\n") == 2 })
	}
	for _, p := range []*process{capture, monitor, lines} {
		if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if status := p.wait(); status != 0 || p.stderr.String() != "" {
			t.Errorf("%v: status %d, %s", p.cmd.Args, status, p.stderr.String())
		}
	}
	if got := regexp.MustCompile(`(?m)^[0-9:.]+ `).ReplaceAllString(monitor.stdout.String(), ""); got != "added switch lan port guest\nremoved switch lan port guest\n" {
		t.Errorf("monitor: %q", monitor.stdout.String())
	}
	dec := json.NewDecoder(strings.NewReader(lines.stdout.String()))
	dec.DisallowUnknownFields()
	for _, want := range []string{api.EventAdded, api.EventRemoved} {
		var e api.Event
		if err := dec.Decode(&e); err != nil || e.Kind != want || e.Port != "guest" {
			t.Errorf("monitor -o json: %+v, %v", e, err)
		}
	}
	if text, err := os.ReadFile(pcap); err != nil || !bytes.HasPrefix(text, []byte{0x0a, 0x0d, 0x0d, 0x0a}) || !bytes.Contains(text, []byte("web-1")) {
		t.Errorf("capture: % x, %v", text, err)
	}
}

// drops --watch tells of what is dropped from now on.
func TestDropsWatch(t *testing.T) {
	old := []dropped{{"lan", "a", "runt", 5}, {"lan", "b", "runt", 1}, {"lan", "c", "runt", 9}}
	now := []dropped{{"lan", "a", "runt", 8}, {"lan", "a", "storm", 2}, {"lan", "b", "runt", 1}, {"lan", "c", "runt", 4}}
	want := []dropped{{"lan", "a", "runt", 3}, {"lan", "a", "storm", 2}, {"lan", "c", "runt", 4}} // c was made anew
	if got := droppedSince(old, now); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The manual page has every command and flag, and nothing that roff takes for a request of its own.
func TestMan(t *testing.T) {
	status, stdout, stderr := polder(t.TempDir(), "man")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d, %s", status, stderr)
	}
	requests := []string{".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I"}
	for i, line := range strings.Split(stdout, "\n") {
		word, _, _ := strings.Cut(line, " ")
		if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !slices.Contains(requests, word) {
			t.Errorf("line %d: %q", i+1, line)
		}
		if rest := strings.NewReplacer(`\-`, "", `\e`, "", `\&`, "", `\fI`, "", `\fR`, "", `\fB`, "").Replace(line); strings.Contains(rest, `\`) {
			t.Errorf("line %d: an escape that is none: %q", i+1, line)
		}
	}
	plain := strings.NewReplacer(`\-`, "-", `\&`, "").Replace(stdout)
	for name, node := range leaves(model(), nil) {
		_, section, ok := strings.Cut(plain, fmt.Sprintf(".SS \"polder %s\"\n", name))
		if !ok {
			t.Errorf("no section for %s", name)
			continue
		}
		section, _, _ = strings.Cut(section, "\n.S")
		words := []string{node.Help}
		for _, f := range node.Flags {
			words = append(words, "--"+f.Name, f.Help)
		}
		for _, p := range node.Positional {
			words = append(words, p.Help)
		}
		for _, w := range words {
			if !strings.Contains(section, w) {
				t.Errorf("%s: not a word of %q", name, w)
			}
		}
	}
}

// The words that can follow, as far as they are known.
func TestComplete(t *testing.T) {
	dir, _ := inProcess(t, office)
	for _, c := range []struct {
		line string // the last word is the one to complete
		want string
	}{
		{"ad", "adapter"},
		{"adapter ", "add connect disconnect remove set show"},
		{"adapter se", "set"},
		{"adapter set ", "fw web web-1"},
		{"adapter set web", "web web-1"},
		{"adapter set web --m", "--mac-spoofing --mirror"},
		{"adapter set web --mirror ", "destination none source"},
		{"adapter set web --mirror s", "source"},
		{"adapter set web --mirror=s", "--mirror=source"},
		{"adapter set web --link up --dhcp-guard o", "off on"},
		{"adapter connect web ", "lab lan"},
		{"adapter connect web lab ", ""},
		{"adapter add x --switch ", "lab lan"},
		{"adapter add --switch lab ", ""},
		{"vlan set ", "access community isolated none promiscuous trunk"},
		{"vlan set access ", "fw web web-1"},
		{"fdb flush lab --port ", "fw pxe web web-1"},
		{"capture ", "fw pxe web web-1"},
		{"capture web ", "fw pxe web web-1"},
		{"switch remove l", "lab lan"},
		{"switch add x --type ", "external internal private"},
		{"show -o ", "json table yaml"},
		{"qemu-args ", "fw web"},
		{"completion ", "bash fish zsh"},
		{"--log-format ", "json text"},
		{"run -- qemu-system-x86_64 -", ""},
		{"frobnicate ", ""},
		{"comp", "completion"}, // and not the one that is asked
	} {
		status, stdout, stderr := polder(dir, append([]string{"complete", "--"}, strings.Split(c.line, " ")...)...)
		if got := strings.Join(strings.Fields(stdout), " "); status != 0 || stderr != "" || got != c.want {
			t.Errorf("%q: status %d, %q %s, want %q", c.line, status, got, stderr, c.want)
		}
	}
}

// Bash asks through the script.
func TestBashCompletion(t *testing.T) {
	dir, _ := inProcess(t, office)
	bin := t.TempDir()
	program := fmt.Sprintf("#!/bin/sh\nexec %s --runtime-dir %s \"$@\"\n", os.Args[0], dir)
	if err := os.WriteFile(filepath.Join(bin, "polder"), []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	_, script, _ := polder(dir, "completion", "bash")
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "my file.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ words, want string }{
		{`polder adapter connect web ""`, "lab\nlan\n"},
		{`polder vlan set ac`, "access\n"},
		{`polder apply -f my`, "my file.yaml\n"},
	} {
		cmd := exec.Command("bash", "--norc", "-c", script+`
COMP_WORDS=(`+c.words+`)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_polder
printf '%s\n' "${COMPREPLY[@]}"
complete -p polder`)
		cmd.Dir = files
		cmd.Env = append(slices.Clip(asPolder), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if want := c.want + "complete -F _polder polder\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v\n%swant\n%s", c.words, err, out, want)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		if _, script, _ := polder(dir, "completion", shell); !strings.Contains(script, "polder complete -- ") {
			t.Errorf("%s: %s", shell, script)
		}
	}
}

// README's commands and flags are those that there are.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?m)(?:^    |`|\\$\\()polder ([^`|#)\n>…]*)").FindAllStringSubmatch(string(text), -1)
	if len(lines) < 40 {
		t.Errorf("only %d command lines", len(lines))
	}
	for _, m := range lines {
		words, _, _ := strings.Cut(m[1]+" ", " -- ")
		node := model()
		flags := slices.Clone(node.Flags)
		for i, w := range strings.Fields(words) {
			name, _, _ := strings.Cut(w, "=")
			switch child := childOf(node, w); {
			case strings.HasPrefix(w, "-"):
				if flagOf(flags, name) == nil && name != "--help" {
					t.Errorf("polder %s: there is no %s", words, name)
				}
			case child != nil:
				node = child
				flags = append(flags, node.Flags...)
			case len(node.Children) > 0:
				t.Errorf("polder %s: there is no command %s", words, w)
			case len(node.Positional) == 0 && i > 0 && !strings.HasPrefix(strings.Fields(words)[i-1], "-"):
				t.Errorf("polder %s: %s takes no %s", words, node.Name, w)
			}
		}
	}
}
