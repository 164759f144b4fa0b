package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/cmd/internal/api"
)

// isolated runs the test once more in a network namespace of its own, as root of a user namespace if need be. It is
// false in the process that has only started that.
func isolated(t *testing.T) bool {
	t.Helper()
	const here = "POLDER_TEST_NAMESPACE"
	if os.Getenv(here) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), here+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// shell runs a line of a shell and returns what it prints.
func shell(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// Internal and external switches come and go by the operator's verbs, and leave the host's network as it was.
func TestHostVerbs(t *testing.T) {
	if !isolated(t) {
		return
	}
	shell(t, "ip link set lo up; ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add 192.0.2.7/24 dev eth0; ip route add default via 192.0.2.1")
	state := func() string {
		text := shell(t, "ip -o link; ip -o addr; ip route; ip rule")
		return regexp.MustCompile(`(?m)^\d+: |@if\d+|valid_lft.*$|if_index.*$|tentative `).ReplaceAllString(text, "")
	}
	before := state()
	dir, _ := inProcess(t, "switches: [{name: lab}]\nvms: [{name: web, adapters: [{switch: lab}]}]\n")
	must := func(line string) string {
		t.Helper()
		status, stdout, stderr := polder(dir, strings.Fields(line)...)
		if status != 0 || stderr != "" {
			t.Fatalf("polder %s: status %d, %s%s", line, status, stdout, stderr)
		}
		return stdout
	}
	external := func(line string) (e api.External) {
		t.Helper()
		dec := json.NewDecoder(strings.NewReader(must(line + " -o json")))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("polder %s: %v", line, err)
		}
		return e
	}
	fails := func(line, want string) {
		t.Helper()
		status, stdout, stderr := polder(dir, strings.Fields(line)...)
		if status != 1 || stdout != "" || !strings.HasPrefix(stderr, "polder: "+want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("polder %s: status %d, %s%s\nwant one line, %s…", line, status, stdout, stderr, want)
		}
	}

	must("switch add host --type internal --address 192.168.77.1/24 --nat")
	if show := must("show host"); !regexp.MustCompile(`host +internal +vEth-host +management +attached`).MatchString(show) {
		t.Errorf("an internal switch:\n%s", show)
	}
	if text := shell(t, "ip -o addr show dev vEth-host"); !strings.Contains(text, "192.168.77.1/24") {
		t.Errorf("the host's adapter: %s", text)
	}
	fails("switch add second --type internal --address 192.168.77.1/24", `switch "second": `)
	must("adapter connect web host")
	must("switch remove host")
	if now := state(); now != before {
		t.Errorf("after an internal switch\n%swant\n%s", now, before)
	}

	shell(t, "ip tuntap add dev vEth-host mode tap") // somebody's, who would find addresses on it
	fails("switch add host --type internal --address 192.168.77.1/24", `switch "host": there is a device vEth-host already: `)
	shell(t, "ip tuntap del dev vEth-host mode tap")
	if now := state(); now != before {
		t.Errorf("after what failed\n%swant\n%s", now, before)
	}

	plan := must("external plan lan --nic eth0")
	if !strings.Contains(plan, "192.0.2.7/24") || !strings.Contains(plan, "default") {
		t.Errorf("a plan that does not say what moves:\n%s", plan)
	}
	if now := state(); now != before {
		t.Errorf("planned, and\n%sis no longer\n%s", now, before)
	}
	fails("external plan lan --nic nonesuch", "")
	fails("switch add lan --type external --nic nonesuch", `switch "lan": `)
	for _, driver := range []string{"bridge", "packet"} {
		must("switch add lan --type external --nic eth0 --driver " + driver + " --confirm-timeout 1h")
		e := external("external show lan")
		if e.State != api.ExternalUnconfirmed || e.Until.IsZero() || e.NIC != "eth0" || e.Driver != driver || e.Device == "" || e.MTU != 1500 {
			t.Errorf("%s: %+v", driver, e)
		}
		if text := shell(t, "ip -o addr show dev "+e.Device); !strings.Contains(text, "192.0.2.7/24") {
			t.Errorf("%s: the host's adapter: %s", driver, text)
		}
		if text := must("external show lan"); !strings.Contains(text, "unless you keep it: polder external commit lan") {
			t.Errorf("%s: %s", driver, text)
		}
		if show := must("show lan"); !regexp.MustCompile(`(?m) uplink +attached `).MatchString(show) {
			t.Errorf("%s:\n%s", driver, show)
		}
		if e := external("external commit lan"); e.State != api.ExternalCommitted || !e.Until.IsZero() {
			t.Errorf("%s, kept: %+v", driver, e)
		}
		if e := external("external rollback lan"); e.State != api.ExternalRolledBack {
			t.Errorf("%s, taken back: %+v", driver, e)
		}
		if now := state(); now != before {
			t.Errorf("%s, taken back:\n%swant\n%s", driver, now, before)
		}
		if e := external("external commit lan --confirm-timeout 1h"); e.State != api.ExternalUnconfirmed {
			t.Errorf("%s, done again: %+v", driver, e)
		}
		must("switch remove lan")
		if now := state(); now != before {
			t.Errorf("%s, removed:\n%swant\n%s", driver, now, before)
		}
	}

	must("switch add lan --type external --nic eth0 --driver packet")
	shell(t, "ip link delete eth0")
	for gone := regexp.MustCompile(`(?m) uplink +off `); !gone.MatchString(must("show lan")); {
		time.Sleep(20 * time.Millisecond)
	}
	must("switch remove lan")
}
