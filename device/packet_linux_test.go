package device_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"polder/device"
	"polder/vswitch"
)

// TestPacketPromiscuous has the interface receive what is for others while the port is open, and no longer.
func TestPacketPromiscuous(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	n.veth("nic0", "far0")
	for _, queues := range []int{1, 3} {
		p, err := device.OpenPacket(device.PacketConfig{Interface: "nic0", Queues: queues, Log: discard})
		check(t, err)
		if got := n.link("nic0").Attrs().Promisc; got != 1 {
			t.Errorf("%d queues: promiscuity %d", queues, got)
		}
		check(t, p.Close())
		if got := n.link("nic0").Attrs().Promisc; got != 0 {
			t.Errorf("%d queues: promiscuity %d after Close", queues, got)
		}
	}
}

// TestPacketOwn has nothing come in that goes out: what the switch delivers, nor what the host sends on the interface.
func TestPacketOwn(t *testing.T) {
	if !asRoot(t) {
		return
	}
	_, p := hostKinds[1].opened(t, 2, false)
	near, far := newWire(t, "nic0", false), newWire(t, "far0", false)
	sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 100)}
	_, err := sw.Join("sink", s, vswitch.PortOptions{})
	check(t, err)
	run(t, sw, "nic0", p)
	out, _ := hostPacket{payload: 100}.frame()
	if n := p.Deliver([]*vswitch.Frame{lend(out, vswitch.Offload{})}); n != 1 {
		t.Fatalf("not delivered: %+v", p.Stats())
	}
	near.send(out)
	in, _ := hostPacket{payload: 200}.frame()
	far.send(in)
	if f := s.next(t); !bytes.Equal(f.Head, in) {
		t.Errorf("first came %x", f.Head)
	}
}

// TestPacketMissed counts what comes while nobody reads.
func TestPacketMissed(t *testing.T) {
	if !asRoot(t) {
		return
	}
	_, p := hostKinds[1].opened(t, 1, false)
	w := newWire(t, "far0", true)
	b, o := hostPacket{payload: 60000, size: 1448}.frame()
	for range 200 {
		w.send(header(o), b)
	}
	first := p.Stats()
	if first.Missed == 0 {
		t.Error("nothing is missed")
	}
	if again := p.Stats(); again != first {
		t.Errorf("%+v, then %+v", first, again)
	}
	check(t, p.Close())
	if closed := p.Stats(); closed != first {
		t.Errorf("%+v, when closed %+v", first, closed)
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// TestPacketLog has one line when the interface goes down, however many frames and sockets find out, and one when it is
// up again.
func TestPacketLog(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	n.veth("nic0", "far0")
	var log lines
	p, err := device.OpenPacket(device.PacketConfig{Interface: "nic0", Queues: 3, Log: slog.New(slog.NewTextHandler(&log, nil))})
	check(t, err)
	t.Cleanup(func() { check(t, p.Close()) })
	run(t, newSwitch(t), "nic0", p)
	b, _ := hostPacket{payload: 100}.frame()
	list := []*vswitch.Frame{lend(b, vswitch.Offload{})}
	wait := func(what string, want int) {
		t.Helper()
		for begin := time.Now(); log.count(what) < want; time.Sleep(time.Millisecond) {
			if time.Since(begin) > patience {
				t.Fatalf("%q is not in the log", what)
			}
		}
		if got := log.count(what); got != want {
			t.Errorf("%q is in the log %d times, want %d", what, got, want)
		}
	}
	for round := range 3 {
		n.down("nic0")
		for range 10 {
			p.Deliver(list)
		}
		wait(`msg="the interface is down" interface=nic0`, round+1)
		n.up("nic0", "far0")
		wait(`msg="the interface is up again" interface=nic0`, round+1)
	}
	if got := log.count("\n"); got != 6 {
		t.Errorf("%d lines in the log", got)
	}
}

// TestPacketErrors has the reason in the error when there can be no port.
func TestPacketErrors(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	n.veth("nic0", "far0")
	n.up("lo")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "layer3"
	check(t, n.host.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN}))
	for _, test := range []struct {
		config device.PacketConfig
		want   string
	}{
		{device.PacketConfig{Interface: "nic1"}, "no such device"},
		{device.PacketConfig{Interface: ""}, "no such device"},
		{device.PacketConfig{Interface: "sixteen.letters!"}, "longer than 15 bytes"},
		{device.PacketConfig{Interface: "lo"}, "not an Ethernet interface"},
		{device.PacketConfig{Interface: "layer3"}, "not an Ethernet interface"},
		{device.PacketConfig{Interface: "nic0", Queues: 257}, "from 1 to 256"},
	} {
		test.config.Log = discard
		p, err := device.OpenPacket(test.config)
		if err == nil {
			p.Close()
			t.Errorf("%+v: no error", test.config)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.config, err, test.want)
		}
	}
	if got := n.link("nic0").Attrs().Promisc; got != 0 {
		t.Errorf("promiscuity %d after failures", got)
	}
}
