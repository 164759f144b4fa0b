package hostnet

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// talk is a process that keeps a connection to os.Args[1], as a terminal's: each line of its input goes there, and
// what comes back is its output. Without a line it says something every 10 ms of its own, by UDP to the same
// port, and in the end counts the longest run of probes that had no answer.
func talk() {
	c, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	u, err := net.Dial("udp", os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	answered := make(chan int, 1<<16)
	go func() {
		b := make([]byte, 64)
		for {
			n, err := u.Read(b)
			var i int
			if _, serr := fmt.Sscanf(string(b[:max(n, 0)]), "probe %d", &i); err == nil && serr == nil {
				answered <- i
			}
		}
	}()
	done := make(chan struct{})
	sent := make(chan int)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				fmt.Fprintf(u, "probe %d", i)
			case <-done:
				sent <- i
				return
			}
		}
	}()
	back := bufio.NewReader(c)
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			break
		}
		fmt.Fprint(c, line)
		answer, err := back.ReadString('\n')
		if err != nil || answer != line {
			fmt.Println(err, answer)
			os.Exit(1)
		}
		fmt.Print(answer)
	}
	close(done)
	n := <-sent
	time.Sleep(100 * time.Millisecond) // for the last answers
	got := map[int]bool{}
	for len(answered) > 0 {
		got[<-answered] = true
	}
	run, longest, lost := 0, 0, 0
	for i := range n {
		run++
		if got[i] {
			run = 0
		} else {
			lost++
		}
		longest = max(longest, run)
	}
	fmt.Printf("%d %d %d\n", n, lost, longest)
}

// talker is the test's side of such a process.
type talker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	n   int
}

// answer serves the talker at the address: what comes goes back.
func answer(t *testing.T, at string) {
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { l.Close(); u.Close() })
}

func newTalker(t *testing.T, from *machine, to string) *talker {
	answer(t, to)
	w := &talker{t: t, cmd: from.command(roleEnv + "=" + roleTalk + " exec " + executable + " " + to)}
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

// say sends a line over the connection, and waits for it to come back.
func (w *talker) say(what string) {
	w.t.Helper()
	w.n++
	line := fmt.Sprintf("%d %s\n", w.n, what)
	io.WriteString(w.in, line)
	if back, err := w.out.ReadString('\n'); err != nil || back != line {
		w.t.Fatalf("%s: the connection is broken: %q, %v", what, back, err)
	}
}

// end tells how many probes were sent, how many of them were lost, and how many in a row.
func (w *talker) end() (sent, lost, longest int) {
	w.in.Close()
	line, _ := w.out.ReadString('\n')
	if _, err := fmt.Sscan(line, &sent, &lost, &longest); err != nil {
		w.t.Fatalf("%q: %v", line, err)
	}
	if err := w.cmd.Wait(); err != nil {
		w.t.Fatal(err)
	}
	return sent, lost, longest
}

// A connection like a terminal's lives through the take-over and its end, and what is lost meanwhile is less than a
// second's: of probes every 10 ms, not 100 in a row.
func TestConnectionSurvivesBridge(t *testing.T)     { connectionSurvives(t, Bridge, "10.0.0.2:7") }
func TestConnectionSurvivesPacket(t *testing.T)     { connectionSurvives(t, Packet, "10.0.0.2:7") }
func TestConnectionSurvivesBridgeIPv6(t *testing.T) { connectionSurvives(t, Bridge, "[2001:db8::2]:7") }
func TestConnectionSurvivesPacketIPv6(t *testing.T) { connectionSurvives(t, Packet, "[2001:db8::2]:7") }

func connectionSurvives(t *testing.T, driver Driver, at string) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	inhabit(h)
	w := newTalker(t, router, at)
	w.say("before")
	to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: driver}, t.TempDir())
	w.say("begun")
	commit(t, to)
	for range 50 {
		w.say("committed")
	}
	rollback(t, to)
	for range 50 {
		w.say("rolled back")
	}
	sent, lost, longest := w.end()
	t.Logf("%d probes, every 10 ms: %d lost, %d in a row", sent, lost, longest)
	if longest >= 100 {
		t.Errorf("%d probes lost in a row", longest)
	}
}

// advertise is a router on p0 that advertises 2001:db8:aa::/64, asked and unasked.
func advertise() {
	i, err := net.InterfaceByName("p0")
	check(err)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	check(err)
	for _, o := range []int{unix.IPV6_MULTICAST_HOPS, unix.IPV6_UNICAST_HOPS} {
		check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o, 255))
	}
	check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index))
	all := &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(i.Index)}
	const solicitation, advertisement, lifetime = 133, 134, 1800
	// RFC 4861 section 4.2, and a prefix that is on the link and for addresses, section 4.6.2.
	ra := []byte{advertisement, 0, 0, 0, 64, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
		0x20, 0x01, 0x0d, 0xb8, 0, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	go func() {
		b := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil && n > 0 && b[0] == solicitation {
				unix.Sendto(fd, ra, 0, all)
			}
		}
	}()
	check(unix.Sendto(fd, ra, 0, all))
	untilClosed()
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// What a router advertises goes on: the addresses and the default route move, and the kernel takes the next
// advertisement where they are then.
func TestRouterAdvertisements(t *testing.T) {
	if !isolated(t) {
		return
	}
	h, router := newHost(t)
	router.run("ip addr add 2001:db8:aa::1/64 dev p0 nodad")
	cmd := router.command(roleEnv + "=" + roleRA + " exec " + executable)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	h.waitFor("ip -6 route show default dev eth0", "proto ra")
	h.waitFor("ip -6 addr show dev eth0 -tentative", "2001:db8:aa:")
	before := h.snapshot()
	to, _ := takeOver(t, External{Switch: "LAN", NIC: "eth0", Driver: Bridge}, t.TempDir())
	commit(t, to)
	router.reaches("2001:db8:aa::ff:fe00:2")
	routes := h.run("ip -6 route show default")
	if strings.Count(routes, "default") != 1 || !strings.Contains(routes, "dev vEth-LAN proto ra metric 1024") {
		t.Errorf("the default route is not the kernel's own:\n%s", routes)
	}
	rollback(t, to)
	same(t, "rollback", before, h.snapshot())

	// Addresses that only the kernel can make again are a reason to refuse.
	h.run("sysctl -qw net.ipv6.conf.eth0.use_tempaddr=2 net.ipv6.conf.eth0.disable_ipv6=1; sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0")
	h.waitFor("ip -6 addr show dev eth0 temporary -tentative", "2001:db8:aa:")
	_, err = planExternal(External{Switch: "LAN", NIC: "eth0", Driver: Bridge}, nowhere(t))
	if err == nil || !strings.Contains(err.Error(), "is a temporary address, which only the kernel can make: set net.ipv6.conf.eth0.use_tempaddr=0") {
		t.Errorf("a temporary address: %v", err)
	}
}
