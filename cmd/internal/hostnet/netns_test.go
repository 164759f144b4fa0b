package hostnet

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Each test has a network namespace of its own: the test binary runs itself again in it for that one test, and, if it is
// not root's, in a user namespace in which it is. Other machines are processes in further namespaces, which do nothing
// but be there.
const (
	roleEnv   = "HOSTNET_ROLE"
	roleTest  = "test"
	rolePeer  = "peer"
	roleCrash = "crash"
	roleReach = "reach"
	roleTalk  = "talk"
	roleRA    = "router"
)

func TestMain(m *testing.M) {
	roles := map[string]func(){rolePeer: untilClosed, roleCrash: crash, roleReach: reach, roleTalk: talk, roleRA: advertise}
	if f := roles[os.Getenv(roleEnv)]; f != nil {
		f()
		os.Exit(0)
	}
	flag.Parse()
	flag.Set("test.parallel", "8") // they wait for the kernel most of the time
	os.Exit(m.Run())
}

// isolated runs the test in a namespace of its own. It is false in the process that has only started that.
func isolated(t *testing.T) bool {
	if os.Getenv(roleEnv) == roleTest {
		return true
	}
	t.Parallel()
	cmd := inRole(roleTest, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.SysProcAttr = namespaced()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// untilClosed is a process that is there until its input ends.
func untilClosed() {
	var b [1]byte
	os.Stdin.Read(b[:])
}

// executable is this binary, for other namespaces.
var executable, _ = os.Executable()

// inRole is this binary in another role.
func inRole(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd
}

// namespaced starts a process in a network namespace of its own.
func namespaced() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return a
}

// machine is a network namespace: the test's own, or a peer's.
type machine struct {
	t   *testing.T
	pid int // 0: the test's own
}

func newPeer(t *testing.T) *machine {
	cmd := inRole(rolePeer)
	cmd.SysProcAttr = namespaced()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	m := &machine{t, cmd.Process.Pid}
	m.run("ip link set lo up")
	return m
}

// command is a shell's in the machine's namespace.
func (m *machine) command(line string) *exec.Cmd {
	if m.pid == 0 {
		return exec.Command("sh", "-ec", line)
	}
	return exec.Command("nsenter", "-t", strconv.Itoa(m.pid), "-n", "sh", "-ec", line)
}

func (m *machine) run(line string) string {
	m.t.Helper()
	out, err := m.command(line).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// reach is a process that asks a closed port, from an address if one is given: the refusal says that
// the other end is reached.
func reach() {
	d := net.Dialer{}
	if len(os.Args) > 2 {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(os.Args[2])}
	}
	c, err := d.Dial("udp", net.JoinHostPort(os.Args[1], "9"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for range 20 {
		c.Write([]byte("?"))
		c.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// unreached tells that the address does not answer, not even after a second.
func (m *machine) unreached(address string) {
	m.t.Helper()
	if m.command("timeout 1 env "+roleEnv+"="+roleReach+" "+executable+" "+address).Run() == nil {
		m.t.Errorf("%s is reached", address)
	}
}

// reaches tells that each of the addresses answers.
func (m *machine) reaches(addresses ...string) {
	m.t.Helper()
	for _, a := range addresses {
		m.run(roleEnv + "=" + roleReach + " " + executable + " " + a)
	}
}

// pipe is a cable between the test's own eth0 and a peer's.
const wire = `ip link add eth0 address 02:00:00:00:00:02 type veth peer name p0 address 02:00:00:00:00:01 netns %d
ip link set eth0 up`

// newHost is the test's own machine with a NIC, eth0, and a router at its other end. The router
// has 10.0.0.1, 2001:db8::1 and some more; the host has nothing yet.
func newHost(t *testing.T) (host, router *machine) {
	host, router = &machine{t: t}, newPeer(t)
	host.run("ip link set lo up")
	host.run(fmt.Sprintf(wire, router.pid))
	router.run(`sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1
ip link set p0 up
ip addr add 10.0.0.1/24 dev p0
ip addr add 10.0.1.1/24 dev p0
ip addr add 10.77.0.1/32 dev p0
ip addr add fe80::1/64 dev p0 nodad
ip addr add 2001:db8::1/64 dev p0 nodad`)
	host.waitFor("ip -6 addr show dev eth0 scope link -tentative", "fe80")
	return host, router
}

// waitFor runs a command until its output has the text in it.
func (m *machine) waitFor(line, text string) {
	m.t.Helper()
	for range 400 {
		if strings.Contains(m.run(line), text) {
			return
		}
		syscall.Nanosleep(&syscall.Timespec{Nsec: 20e6}, nil)
	}
	m.t.Fatalf("%s: no %q in\n%s", line, text, m.run(line))
}

// snapshot is all of the host's network as the system's own tools tell it.
func (m *machine) snapshot() string {
	m.t.Helper()
	out := m.run(`ip -d -o -4 -batch - <<end
link show
address show
route show table all
rule show
neighbour show nud permanent
neighbour show proxy
end
ip -d -o -6 -batch - <<end
address show
route show table all
rule show
neighbour show nud permanent
neighbour show proxy
end
bridge fdb | sort
cd /proc/sys/net; grep -s '' ipv?/conf/eth0/* ipv?/neigh/eth0/* || true`)
	for _, v := range volatile {
		out = v.re.ReplaceAllString(out, v.with)
	}
	return anyOrder(out)
}

// volatile is what changes by itself.
var volatile = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`((valid|preferred)_lft|expires) \d+sec`), "$1 Nsec"},
	{regexp.MustCompile(`(?m)^\d+: `), ""},
	{regexp.MustCompile(`timer +\d+\.\d+`), "timer N"},
}

// anyOrder sorts the lines whose order says no more than which device was first: routes that each link has its own of.
func anyOrder(text string) string {
	lines := strings.Split(text, "\n")
	free := regexp.MustCompile(`^unicast fe80::/64 |^multicast ff00::/8 `)
	for i := 0; i < len(lines); i++ {
		j := i
		for j < len(lines) && free.MatchString(lines[j]) && lines[j][0] == lines[i][0] {
			j++
		}
		if j > i {
			slices.Sort(lines[i:j])
			i = j - 1
		}
	}
	return strings.Join(lines, "\n")
}

// same compares two snapshots.
func same(t *testing.T, what, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "want"), filepath.Join(dir, "got")
	os.WriteFile(a, []byte(want), 0o600)
	os.WriteFile(b, []byte(got), 0o600)
	diff, _ := exec.Command("diff", "-U1", a, b).CombinedOutput()
	t.Fatalf("%s: not as it was:\n%s", what, diff)
}

// testLog is what the code under test logs.
func testLog(t *testing.T) (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", b.String())
		}
	})
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

// nowhere has no manager of the network and no Wi-Fi.
func nowhere(t *testing.T) host { return host{run: t.TempDir(), sys: t.TempDir()} }
