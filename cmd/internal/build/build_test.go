package build

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/device/vfiouser/vfiousertest"
	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
	"polder/pxe"
	"polder/vswitch"
)

var quiet = slog.New(slog.DiscardHandler)

// parse reads a configuration that is known to be good.
func parse(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	c, err := config.Parse(filepath.Join(dir, "f.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// holdings is what a process has that a World must give back.
type holdings struct{ goroutines, fds int }

func held(t *testing.T) holdings {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holdings{runtime.NumGoroutine(), len(fds)}
}

// wantNoMore waits until no more is held than before: a goroutine that has been waited for is
// counted until it is off its processor.
func wantNoMore(t *testing.T, before holdings) {
	t.Helper()
	var now holdings
	for range 1000 {
		now = held(t)
		if now.goroutines <= before.goroutines && now.fds <= before.fds {
			return
		}
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%+v, and before it was %+v\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
}

// settled returns what is held once the runtime's own first needs, such as its poller's, are met.
func settled(t *testing.T) holdings {
	t.Helper()
	w, err := New(config.Default(), Options{Dir: t.TempDir(), Version: "test", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	time.Sleep(10 * time.Millisecond)
	return held(t)
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("in the directory of sockets: %q, want %q", got, want)
	}
}

const lab = `
switches:
  - name: lab
    pxe:
      root: .
      boot: [{script: menu.ipxe}]
      reservations: [{mac: "00:15:5d:00:00:07", address: 10.21.140.7}]
  - name: quiet
vms:
  - name: web
    adapters: [{switch: lab}, {switch: quiet}]
  - name: db
    adapters: [{switch: lab}]
`

func TestUpAndDown(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "menu.ipxe"), []byte("#!ipxe\nshell\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := parse(t, root, lab)
	before := settled(t)
	dir := filepath.Join(t.TempDir(), "sockets")
	for range 5 {
		w, err := New(c, Options{Dir: dir, Version: "test", Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		wantFiles(t, dir, "db.sock", "web-1.sock", "web.sock")
		if n := w.Adapters(); n != 3 {
			t.Errorf("%d adapters", n)
		}
		w.Close()
		w.Close()
		wantFiles(t, dir)
		wantNoMore(t, before)
	}
}

// Whatever fails, and however late, nothing stays of what was made before.
func TestFailureLeavesNothing(t *testing.T) {
	const two = "\nvms:\n  - {name: a, adapters: [{switch: lab}]}\n  - {name: z, adapters: [{switch: lab%s}]}\n"
	root := t.TempDir()
	for _, c := range []struct{ name, text, want string }{
		{"no root", "switches: [{name: first, pxe: {}}, {name: lab, pxe: {root: none}}]", `switch "lab": pxe: root: open ` + root + "/none: no such file or directory"},
		{"no script", "switches: [{name: first, pxe: {}}, {name: lab, pxe: {root: ., boot: [{script: none}]}}]", `switch "lab": pxe: script in the root: openat none: no such file or directory`},
		{"a pool too large", "switches: [{name: lab, pxe: {root: ., address: 10.0.0.1/8, pool: 10.0.0.2-10.9.0.1}}]", `switch "lab": pxe: pxe: pool`},
		{"a bad UUID", "switches: [{name: lab, pxe: {root: ., reservations: [{uuid: x, address: 10.21.140.9}]}}]", `switch "lab": pxe: reservation: `},
		{"a bad UUID in a rule", "switches: [{name: lab, pxe: {root: ., boot: [{file: x, match: {uuid: x}}]}}]", `switch "lab": pxe: boot rule: `},
		{"no ROM", "switches: [{name: lab, pxe: {}}]" + fmt.Sprintf(two, ", rom: none.rom"), `adapter "z": boot ROM: open ` + root + "/none.rom: no such file or directory"},
		{"no processor", "poll_cpus: [1023]\nswitches: [{name: lab, pxe: {}}]" + fmt.Sprintf(two, ""), "poll mode: processor 1023 is none that this process may run on, which are "},
		{"the service's MAC address", "switches: [{name: lab, pxe: {}}]" + fmt.Sprintf(two, `, mac: "`+config.DeriveMAC("pxe.lab").String()+`"`), `adapter "z": the boot service has the MAC address`},
		{"a socket in the way", "switches: [{name: lab, pxe: {}}]" + fmt.Sprintf(two, ""), `adapter "z": `},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			before := settled(t)
			if err := os.WriteFile(filepath.Join(dir, "z.sock"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			w, err := New(parse(t, root, c.text), Options{Dir: dir, Log: quiet})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s…", err, c.want)
			}
			if w != nil && err == nil {
				w.Close()
			}
			wantFiles(t, dir, "z.sock")
			wantNoMore(t, before)
		})
	}
}

func TestAddAdapterRefuses(t *testing.T) {
	w, err := New(parse(t, t.TempDir(), "switches: [{name: lab, pxe: {}}, {name: other}]"), Options{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.AddAdapter(api.AdapterRequest{Switch: "lab", Name: "web", MAC: "00:15:5d:00:00:01"}, false); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		request api.AdapterRequest
		want    string
	}{
		{api.AdapterRequest{Switch: "lab"}, `adapter: "" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{api.AdapterRequest{Switch: "lab", Name: "../web"}, `adapter: "../web" cannot be a name: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first`},
		{api.AdapterRequest{Switch: "lab", Name: "control"}, `adapter: "control" is a name that Polder uses itself: take another`},
		{api.AdapterRequest{Switch: "lab", Name: "pxe"}, `adapter: "pxe" is a name that Polder uses itself: take another`},
		{api.AdapterRequest{Switch: "none", Name: "db"}, `there is no switch "none"`},
		{api.AdapterRequest{Switch: "other", Name: "web"}, `there is an adapter "web" already: take another name`},
		{api.AdapterRequest{Switch: "lab", Name: "db", MAC: "zz"}, `adapter "db": vswitch: "zz" is not an Ethernet address like 00:15:5d:01:02:03`},
		{api.AdapterRequest{Switch: "lab", Name: "db", MAC: "00:15:5d:00:00:01"}, `adapter "web" has the MAC address 00:15:5d:00:00:01 already: take another for "db"`},
	} {
		_, err := w.AddAdapter(c.request, false)
		if err == nil || err.Error() != c.want {
			t.Errorf("%+v: got %v\nwant %s", c.request, err, c.want)
		}
	}
	if _, err := w.AddAdapter(api.AdapterRequest{Switch: "lab", Name: "db", ROM: []byte("no ROM")}, false); err == nil || !strings.HasPrefix(err.Error(), `adapter "db": boot ROM: `) {
		t.Errorf("a ROM that is none: %v", err)
	}
	if err := w.RemoveAdapter("db"); err == nil || err.Error() != `there is no adapter "db"` {
		t.Errorf("removing one that is not there: %v", err)
	}
	if n := w.Adapters(); n != 1 {
		t.Errorf("%d adapters", n)
	}
	// The same address on another switch is another adapter's affair.
	if _, err := w.AddAdapter(api.AdapterRequest{Switch: "other", Name: "db", MAC: "00:15:5d:00:00:01"}, false); err != nil {
		t.Error(err)
	}
}

// Adapters come and go, with a hypervisor attached and without, and leave nothing.
func TestAddAndRemove(t *testing.T) {
	dir := t.TempDir()
	w, err := New(config.Default(), Options{Dir: dir, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cycle := func(i int) {
		a, err := w.AddAdapter(api.AdapterRequest{Switch: config.DefaultSwitch, Name: "web"}, false)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			hypervisor, err := vfiousertest.Dial(a.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer hypervisor.Close()
			if err := hypervisor.Handshake(); err != nil {
				t.Fatal(err)
			}
			if st := w.Status().Switches[0].Ports[1]; st.Name != "web" || !st.Attached {
				t.Fatalf("%+v", st)
			}
		}
		if err := w.RemoveAdapter("web"); err != nil {
			t.Fatal(err)
		}
	}
	cycle(0)
	time.Sleep(10 * time.Millisecond)
	before := held(t)
	for i := range 200 {
		cycle(i)
	}
	wantNoMore(t, before)
	wantFiles(t, dir)
	if st := w.Status(); len(st.Switches) != 1 || len(st.Switches[0].Ports) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	w, err := New(parse(t, dir, "switches: [{name: b}, {name: a, pxe: {}}]\nvms:\n  - {name: web, adapters: [{switch: a, mac: \"00:15:5d:00:00:01\"}, {switch: a, kind: synthetic, mac: \"00:15:5d:00:00:02\"}]}\n"), Options{Dir: dir, Version: "v1", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	st := w.Status()
	if st.Version != "v1" || st.PID != os.Getpid() || st.Goroutines < 1 || st.Uptime <= 0 {
		t.Errorf("%+v", st)
	}
	if len(st.Switches) != 2 || st.Switches[0].Name != "a" || st.Switches[1].Name != "b" || st.Switches[0].Type != "private" {
		t.Fatalf("%+v", st.Switches)
	}
	ports := st.Switches[0].Ports
	if len(ports) != 3 || ports[0].Name != "pxe" || ports[0].Kind != "pxe" || ports[0].MAC != config.DeriveMAC("pxe.a").String() || !ports[0].Attached {
		t.Fatalf("%+v", ports)
	}
	if p := ports[1]; p.Name != "web" || p.Kind != "legacy" || p.MAC != "00:15:5d:00:00:01" || p.Socket != SocketPath(dir, "web") || p.Attached {
		t.Errorf("%+v", p)
	}
	if p := ports[2]; p.Name != "web-1" || p.Kind != "synthetic" || p.MAC != "00:15:5d:00:00:02" || p.Socket != SocketPath(dir, "web-1") || p.Attached {
		t.Errorf("%+v", p)
	}
}

// A synthetic adapter comes and goes, with a front end attached, and nothing is left of it.
func TestSynthetic(t *testing.T) {
	dir := t.TempDir()
	w, err := New(parse(t, dir, "switches: [{name: a}]"), Options{Dir: dir, Version: "v1", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cycle := func() {
		a, err := w.AddAdapter(api.AdapterRequest{Switch: "a", Name: "web", Kind: "synthetic", Queues: 2}, false)
		if err != nil {
			t.Fatal(err)
		}
		c, err := vhostusertest.Dial(a.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Connect(vhostuser.ProtocolAll); err != nil {
			t.Fatal(err)
		}
		if n, err := c.GetU64(vhostusertest.GetQueueNum); err != nil || n != 2 {
			t.Fatalf("%d queue pairs, %v; want 2", n, err)
		}
		if st := w.Status().Switches[0].Ports[0]; !st.Attached {
			t.Fatalf("%+v", st)
		}
		if err := w.RemoveAdapter("web"); err != nil {
			t.Fatal(err)
		}
	}
	cycle()
	before := held(t)
	for range 20 {
		cycle()
	}
	wantNoMore(t, before)
	for _, r := range []api.AdapterRequest{
		{Switch: "a", Name: "x", Kind: "virtio"},
		{Switch: "a", Name: "x", Client: true},
		{Switch: "a", Name: "x", Kind: "synthetic", Queues: 129},
	} {
		if _, err := w.AddAdapter(r, false); err == nil {
			t.Errorf("%+v: no error", r)
		}
	}
}

// A hypervisor that listens is found, wherever the operator says.
func TestClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w, err := New(parse(t, filepath.Dir(path), "switches: [{name: a}]\nvms: [{name: web, adapters: [{switch: a, kind: synthetic, socket: {path: web, mode: client}}]}]"), Options{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := vhostusertest.NewClient(conn.(*net.UnixConn))
		if err := c.Connect(vhostuser.ProtocolAll); err != nil {
			t.Fatal(err)
		}
		if p := w.Status().Switches[0].Ports[0]; !p.Attached || p.Socket != path {
			t.Errorf("%+v", p)
		}
		c.Close()
	}
}

// In poll mode, a worker waits for synthetic adapters to come, and ends with the World.
func TestPollMode(t *testing.T) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !allowed.IsSet(cpu) {
		cpu++
	}
	c := parse(t, t.TempDir(), fmt.Sprintf("poll_cpus: [%d]\nswitches: [{name: a}]\nvms: [{name: web, adapters: [{switch: a, kind: synthetic}]}]", cpu))
	before := settled(t)
	w, err := New(c, Options{Dir: t.TempDir(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	wantNoMore(t, before)
}

// Events reach all who listen, a slow one misses some, and Close ends all.
func TestEvents(t *testing.T) {
	var h hub
	fast, stopFast := h.subscribe()
	slow, stopSlow := h.subscribe()
	defer stopSlow()
	for i := range backlog + 10 {
		h.publish(api.Event{Boot: &api.BootEvent{Bytes: int64(i)}})
		if e := <-fast; e.Boot.Bytes != int64(i) {
			t.Fatalf("got %d, want %d", e.Boot.Bytes, i)
		}
	}
	stopFast()
	h.publish(api.Event{})
	if len(fast) != 0 {
		t.Error("an event after stop")
	}
	<-slow
	<-slow
	h.publish(api.Event{Kind: "last"})
	h.close()
	n, missed, last := 2, "", ""
	for e := range slow {
		n++
		if e.Kind == api.EventMissed {
			missed = e.Detail
		}
		last = e.Kind
	}
	if n != backlog+2 || missed != "11 events" || last != "last" {
		t.Errorf("the slow one has %d events, want %d; it was told of %q, and last of %q", n, backlog+2, missed, last)
	}
	h.publish(api.Event{}) // nobody is there
	late, stop := h.subscribe()
	if _, ok := <-late; ok {
		t.Error("an event after close")
	}
	stop()
}

func TestBootEvent(t *testing.T) {
	now := time.Now()
	mac := vswitch.MAC{0, 0x15, 0x5d, 0, 0, 1}
	e := bootEvent("lab", pxe.Event{
		Time: now, Elapsed: time.Second, Kind: pxe.EventDone, Client: pxe.Client{MAC: mac, Addr: netip.MustParseAddr("10.0.0.2")},
		Proto: "tftp", File: "linux", Size: 7, Bytes: 6, Took: 5, Detail: "x",
	})
	want := api.BootEvent{
		Time: now, Switch: "lab", MAC: mac.String(), IP: "10.0.0.2", Kind: "done", Elapsed: time.Second,
		Name: "linux", Protocol: "tftp", Size: 7, Bytes: 6, Took: 5, Detail: "x",
	}
	if e.Kind != api.EventBoot || e.Switch != "lab" || *e.Boot != want {
		t.Errorf("got  %+v\nwant %+v", *e.Boot, want)
	}
	if e := bootEvent("lab", pxe.Event{Kind: pxe.EventDiscover, Client: pxe.Client{MAC: mac, Arch: pxe.ArchEFIX64}}); e.Boot.Detail != "UEFI x64" || e.Boot.IP != "" {
		t.Errorf("%+v", e)
	}
}
