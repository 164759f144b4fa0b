package device_test

import (
	"context"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/device"
	"polder/vswitch"
)

func openTap(tb testing.TB, c device.TapConfig) *device.Tap {
	tb.Helper()
	c.Log = discard
	p, err := device.OpenTap(c)
	check(tb, err)
	tb.Cleanup(func() { check(tb, p.Close()) })
	return p
}

// TestTapNames has devices named as asked, or by the kernel, and gone when they are closed.
func TestTapNames(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	for _, test := range []struct{ name, want string }{
		{"", "tap0"}, {"", "tap1"}, {"vEth-lab", "vEth-lab"}, {"lab%d", "lab0"}, {"exactly15bytes.", "exactly15bytes."},
	} {
		for _, queues := range []int{1, 3} {
			c := device.TapConfig{Name: test.name, Queues: queues, Log: discard}
			p, err := device.OpenTap(c)
			check(t, err)
			if queues == 1 && p.Name() != test.want {
				t.Errorf("name %q: got %q, want %q", test.name, p.Name(), test.want)
			}
			if _, ok := n.link(p.Name()).(*netlink.Tuntap); !ok {
				t.Errorf("%s is not a TAP device", p.Name())
			}
			check(t, p.Close())
			if _, err := n.host.LinkByName(p.Name()); err == nil {
				t.Errorf("%s is there after Close", p.Name())
			}
			if test.name == "" && queues == 3 && test.want == "tap0" {
				openTap(t, device.TapConfig{}) // takes the name
			}
		}
	}
}

// persistent makes a TAP device that stays when nobody has it open, with other headers than ours.
func persistent(tb testing.TB, name string, flags uint16) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	check(tb, err)
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	check(tb, err)
	request.SetUint16(flags | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	check(tb, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	check(tb, unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12))
	check(tb, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// TestTapPersistent opens a device that somebody has made before, and leaves it behind.
func TestTapPersistent(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	persistent(t, "lab0", unix.IFF_TAP)
	b, o := hostPacket{payload: 100}.frame()
	for range 2 {
		p, err := device.OpenTap(device.TapConfig{Name: "lab0", Log: discard})
		check(t, err)
		n.up("lab0") // it has no carrier before
		w := newWire(t, "lab0", true)
		if n := p.Deliver([]*vswitch.Frame{lend(b, o)}); n != 1 {
			t.Fatalf("not delivered: %+v", p.Stats())
		}
		if _, got := w.receive(); string(got) != string(b) {
			t.Errorf("another frame arrived: %x", got)
		}
		check(t, p.Close())
	}
	n.link("lab0")
}

// TestTapErrors has the reason in the error when there can be no device.
func TestTapErrors(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := newNetwork(t)
	persistent(t, "single", unix.IFF_TAP)
	persistent(t, "several", unix.IFF_TAP|unix.IFF_MULTI_QUEUE)
	persistent(t, "layer3", unix.IFF_TUN)
	n.veth("nic0", "far0")
	openTap(t, device.TapConfig{Name: "busy"})
	for _, test := range []struct {
		config device.TapConfig
		want   string
	}{
		{device.TapConfig{Name: "sixteen.letters!"}, "longer than 15 bytes"},
		{device.TapConfig{Name: "a/b"}, "TUNSETIFF"},
		{device.TapConfig{Name: "single", Queues: 2}, "another number of queues"},
		{device.TapConfig{Name: "several"}, "another number of queues"},
		{device.TapConfig{Name: "layer3"}, "another kind"},
		{device.TapConfig{Name: "nic0"}, "another kind"},
		{device.TapConfig{Name: "busy"}, "busy"},
		{device.TapConfig{Name: "new", Queues: 257}, "from 1 to 256"},
	} {
		test.config.Log = discard
		p, err := device.OpenTap(test.config)
		if err == nil {
			p.Close()
			t.Errorf("%+v: no error", test.config)
		} else if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.config.Name) {
			t.Errorf("%+v: %v, want %q", test.config, err, test.want)
		}
	}
	if _, err := n.host.LinkByName("new"); err == nil {
		t.Error("a device was made all the same")
	}
}

// TestRunAgain runs a port twice, and after it was closed.
func TestRunAgain(t *testing.T) {
	eachHostKind(t, func(t *testing.T, k hostKind) {
		_, p := k.opened(t, 2, false)
		w := newWire(t, k.wire, false)
		sw, s := newSwitch(t), sink{make(chan vswitch.Frame, 100)}
		_, err := sw.Join("sink", s, vswitch.PortOptions{})
		check(t, err)
		b, _ := hostPacket{payload: 100}.frame()
		for range 3 {
			_, leave := run(t, sw, "host", p)
			w.send(b)
			s.next(t)
			check(t, leave())
		}
		check(t, p.Close())
		m, err := sw.Join("host", p, vswitch.PortOptions{})
		check(t, err)
		check(t, p.Run(context.Background(), m))
	})
}
