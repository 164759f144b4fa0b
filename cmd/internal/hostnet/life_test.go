package hostnet

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// When any step fails, Begin or Commit says so and everything is as before.
func TestFailureAtEachStep(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	log, _ := testLog(t)
	dir := t.TempDir()
	failure := errors.New("as the test wants it")
	for at := 0; ; at++ {
		p := plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge})
		n := 0
		p.around = func(_ string, run func() error) error {
			n++
			if n == at+1 {
				return failure
			}
			return run()
		}
		to, err := p.Begin(dir, log)
		if err == nil {
			err = to.Commit(context.Background(), time.Hour, nil)
		}
		if err == nil { // there are no more steps
			to.around = nil
			rollback(t, to)
			break
		}
		if !errors.Is(err, failure) {
			t.Fatalf("step %d: %v", at, err)
		}
		same(t, err.Error(), before, h.snapshot())
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("step %d: the state directory holds %v", at, left)
		}
	}
}

// A rollback needs no room on the disk, and one that fails can only be tried again: nobody keeps what it has left.
func TestRollbackFails(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	log, lines := testLog(t)
	dir := t.TempDir()
	failure := errors.New("as the test wants it")
	full := func(text string, run func() error) error {
		if text == "write the journal" {
			return failure
		}
		return run()
	}
	to, err := plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}).Begin(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, to)
	to.around = full
	rollback(t, to)
	same(t, "rollback with a full disk", before, h.snapshot())
	if !strings.Contains(lines.String(), "rolling back without a journal") {
		t.Errorf("log: %s", lines)
	}

	if to, err = plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}).Begin(dir, log); err != nil {
		t.Fatal(err)
	}
	commit(t, to)
	to.around = func(text string, run func() error) error {
		if text == "ip link delete vEth-LAN" {
			return failure
		}
		return run()
	}
	if err := to.Rollback(); !errors.Is(err, failure) {
		t.Fatalf("Rollback: %v", err)
	}
	if err := to.Confirm(); err == nil || !strings.Contains(err.Error(), "roll it back again") {
		t.Errorf("Confirm of what a rollback has left: %v", err)
	}
	again, err := Resume(dir, "LAN", log)
	if err != nil || again.Confirmed() {
		t.Errorf("Resume: confirmed %v, %v", again.Confirmed(), err)
	}
	to.around = nil
	rollback(t, to)
	same(t, "rollback again", before, h.snapshot())
}

// What cannot be confirmed is not kept: a commit that need not wait fails, and one that waits is still rolled back in time.
func TestConfirmFails(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	log, _ := testLog(t)
	dir := t.TempDir()
	failure := errors.New("as the test wants it")
	full := func(text string, run func() error) error {
		if text == "write the journal" {
			return failure
		}
		return run()
	}
	for _, keep := range []time.Duration{0, time.Hour} {
		to, err := plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}).Begin(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		to.around = full
		expired := make(chan bool)
		err = to.Commit(context.Background(), keep, func() { close(expired) })
		if keep > 0 && err == nil {
			err = to.Confirm()
			if !to.timer.Reset(0) {
				t.Fatal("nothing rolls it back")
			}
			<-expired
		}
		if !errors.Is(err, failure) || to.Confirmed() {
			t.Errorf("keep %v: %v, confirmed %v", keep, err, to.Confirmed())
		}
		same(t, "keep "+keep.String(), before, h.snapshot())
	}
}

// A take-over after which a gateway does not answer any more is rolled back.
func TestGatewayLost(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	inhabit(h)
	before := h.snapshot()
	p := plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge})
	p.around = func(text string, run func() error) error {
		if strings.HasSuffix(text, "master vEth-LAN") {
			router.run("ip addr del 10.0.0.1/24 dev p0")
		}
		return run()
	}
	log, _ := testLog(t)
	to, err := p.Begin(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Commit(context.Background(), 0, nil); err == nil || !strings.Contains(err.Error(), "gateway 10.0.0.1 does not answer on vEth-LAN any more") {
		t.Errorf("Commit: %v", err)
	}
	same(t, "after the failure", before, h.snapshot())
	if err := to.Confirm(); err == nil {
		t.Error("what has been rolled back can be confirmed")
	}
}

// Without a confirmation everything is rolled back when the time is over.
func TestNotConfirmed(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	dir := t.TempDir()
	to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}, dir)
	if err := to.Commit(context.Background(), time.Millisecond, nil); err != nil {
		t.Fatal(err)
	}
	for {
		if left, _ := os.ReadDir(dir); len(left) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	same(t, "in the end", before, h.snapshot())

	to, _ = takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}, dir)
	if err := to.Commit(context.Background(), time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	if err := to.Confirm(); err != nil {
		t.Fatal(err)
	}
	kept, err := Recover(dir, to.log)
	if err != nil || len(kept) != 1 || kept[0].External().Switch != "LAN" || kept[0].Device() != "vEth-LAN" || kept[0].MTU() != 1500 {
		t.Fatalf("Recover: %v, %v", kept, err)
	}
	rollback(t, kept[0])
	rollback(t, kept[0]) // again is no error
	same(t, "rollback", before, h.snapshot())
}

// What has come to the host's own adapter since the take-over goes with it, and what has gone from there stays away.
func TestChangesMeanwhile(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}, t.TempDir())
	commit(t, to)
	h.run(`ip addr add 10.0.3.2/24 dev vEth-LAN valid_lft 1000 preferred_lft 1000
ip addr change 10.0.1.2/24 dev vEth-LAN valid_lft 9000 preferred_lft 9000
ip addr del 10.0.0.3/24 dev vEth-LAN
ip route add 10.60.0.0/16 via 10.0.3.1
ip route del 10.50.0.0/16 table 100
ip neigh del 10.0.0.77 dev vEth-LAN`)
	rollback(t, to)
	got := h.run("ip -o addr show dev eth0; ip route show; ip route show table 100 2>&1 || true; ip neigh show dev eth0 nud permanent")
	for _, want := range []string{"10.0.3.2/24", "10.60.0.0/16 via 10.0.3.1", "10.0.0.2/24", "default via 10.0.0.1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not there:\n%s", want, got)
		}
	}
	for _, gone := range []string{"10.0.0.3/24", "10.50.0.0/16", "10.0.0.77"} {
		if strings.Contains(got, gone) {
			t.Errorf("%s is back:\n%s", gone, got)
		}
	}
	if lft := h.run("ip -o addr show dev eth0 to 10.0.1.2"); !strings.Contains(lft, "valid_lft 89") && !strings.Contains(lft, "valid_lft 9000") {
		t.Errorf("not the lease it has been given meanwhile:\n%s", lft)
	}
}

// A host that does not use the NIC has nothing on it, nor on the bridge.
func TestExclusive(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	furnish(h, router)
	before := h.snapshot()
	for _, driver := range []Driver{Bridge, Packet} {
		to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: driver, Exclusive: true}, t.TempDir())
		commit(t, to)
		if got := h.run("ip addr show dev eth0; ip -4 route show table all dev eth0; ip -6 route show table all dev eth0; ip addr show type bridge; ip rule; ip -6 rule"); strings.Contains(got, "inet") || strings.Contains(got, "10.") || strings.Contains(got, "eth0 lookup") {
			t.Errorf("%s: the host still has\n%s", driver, got)
		}
		if driver == Packet && to.Device() != "" {
			t.Errorf("a device %s for a host that has none", to.Device())
		}
		rollback(t, to)
		same(t, string(driver), before, h.snapshot())
	}
}

// A NIC that nobody has used, and that is down, is up for the switch, and down again afterwards.
func TestUnusedNIC(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	h.run("ip link set eth0 down")
	before := h.snapshot()
	for _, e := range []External{{Driver: Bridge}, {Driver: Packet}, {Driver: Bridge, Exclusive: true}, {Driver: Packet, Exclusive: true}} {
		e.Switch, e.NIC = "LAN", "eth0"
		to, stop := takeOver(t, e, t.TempDir())
		commit(t, to)
		if out := h.run("ip link show eth0"); !strings.Contains(out, "LOWER_UP") {
			t.Errorf("%+v: the NIC is down:\n%s", e, out)
		}
		rollback(t, to)
		stop()
		same(t, string(e.Driver), before, h.snapshot())
	}
}

// A bridge that is there is joined, and nothing changes.
func TestExistingBridge(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	h.run("ip link add br0 type bridge; ip link set br0 addrgenmode none; ip link set br0 up; ip link set eth0 master br0; ip addr add 10.0.0.2/24 dev br0")
	router.reaches("10.0.0.2")
	before := h.snapshot()
	p := plan(t, External{Switch: "LAN", Bridge: "br0"})
	if !strings.Contains(p.String(), "joins br0") {
		t.Errorf("plan:\n%s", p)
	}
	log, _ := testLog(t)
	to, err := p.Begin(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, to)
	if err := to.Confirm(); err != nil {
		t.Error(err)
	}
	if to.Device() != "br0" {
		t.Errorf("Device is %q", to.Device())
	}
	tap := openTAP(t.Fatalf, "port0")
	if err := Attach("port0", to.Device(), to.MTU()); err != nil {
		t.Fatal(err)
	}
	if out := h.run("ip -d link show port0; ip addr show dev port0"); !strings.Contains(out, "master br0") || !strings.Contains(out, "state UP") && !strings.Contains(out, "LOWER_UP") || strings.Contains(out, "inet6") {
		t.Errorf("the port:\n%s", out)
	}
	router.reaches("10.0.0.2")
	tap.Close()
	rollback(t, to)
	same(t, "in the end", before, h.snapshot())
	if _, err := planExternal(External{Switch: "LAN", Bridge: "eth0"}, nowhere(t)); err == nil || !strings.Contains(err.Error(), "is no kernel bridge") {
		t.Errorf("a bridge that is none: %v", err)
	}
	if _, err := planExternal(External{Switch: "LAN", Bridge: "br1"}, nowhere(t)); err == nil || !strings.Contains(err.Error(), "there is no bridge br1") {
		t.Errorf("a bridge that is not there: %v", err)
	}
}

// Journals that say nothing about this network are put away; those that cannot be read are left to their owner.
func TestJournals(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	before := h.snapshot()
	log, logged := testLog(t)
	dir := t.TempDir()
	e := External{Switch: "LAN", NIC: "eth0", Driver: Bridge}
	path := journalPath(dir, "LAN")

	old := &journal{Format: journalFormat, Place: place{Boot: "another"}, External: e, Device: "vEth-LAN", Devices: []string{"eth0", "vEth-LAN"}}
	if err := old.write(dir); err != nil {
		t.Fatal(err)
	}
	if kept, err := Recover(dir, log); err != nil || len(kept) != 0 {
		t.Errorf("another boot's: %v, %v", kept, err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("another boot's journal is still there")
	}
	same(t, "another boot's", before, h.snapshot())

	for _, bad := range []string{"", "{", "[]", `{"Format": 99}`} {
		os.WriteFile(path, []byte(bad), 0o600)
		if _, err := Recover(dir, log); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("journal %q: %v", bad, err)
		}
		if _, err := plan(t, e).Begin(dir, log); err == nil || !strings.Contains(err.Error(), "has a take-over") {
			t.Errorf("begun over the journal %q: %v", bad, err)
		}
	}
	os.Remove(path)

	// The bridge is deleted behind our back: the NIC has its addresses back after the next start.
	to, _ := takeOver(t, e, dir)
	commit(t, to)
	h.run("ip link delete vEth-LAN")
	if kept, err := Recover(dir, log); err != nil || len(kept) != 0 {
		t.Errorf("a bridge that is gone: %v, %v", kept, err)
	}
	same(t, "a bridge that is gone", before, h.snapshot())

	// The NIC is unplugged: nothing is left of the take-over.
	to, _ = takeOver(t, e, dir)
	commit(t, to)
	h.run("ip link delete eth0")
	if kept, err := Recover(dir, log); err != nil || len(kept) != 0 {
		t.Errorf("a NIC that is gone: %v, %v", kept, err)
	}
	if out := h.run("ip link"); strings.Contains(out, "vEth-LAN") {
		t.Errorf("left:\n%s", out)
	}
	if !strings.Contains(logged.String(), "the network adapter is gone") {
		t.Error("that the NIC is gone is not logged")
	}
}

// A plan that is no longer true is not carried out.
func TestPlanTooOld(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, _ := newHost(t)
	inhabit(h)
	p := plan(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge})
	h.run("ip addr add 10.0.0.9/24 dev eth0")
	before := h.snapshot()
	log, _ := testLog(t)
	dir := t.TempDir()
	if _, err := p.Begin(dir, log); err == nil || !strings.Contains(err.Error(), "has changed since the plan") {
		t.Errorf("Begin: %v", err)
	}
	same(t, "refused", before, h.snapshot())
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the state directory holds %v", left)
	}
}
