package device_test

import (
	"errors"
	"strings"
	"testing"

	"polder/device"
	"polder/device/vhostuser/vhostusertest"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// TestVirtioNetMTU offers the network's MTU, and starts no guest that was told more.
func TestVirtioNetMTU(t *testing.T) {
	const feature, protocol = 1 << 3, 1 << 4 // VIRTIO_NET_F_MTU, VHOST_USER_PROTOCOL_F_NET_MTU
	v := newVirtioNet(t, device.VirtioNetConfig{})
	if v.Features()&feature != 0 || v.ProtocolFeatures()&protocol != 0 {
		t.Error("an adapter without an MTU offers one")
	}
	v = newVirtioNet(t, device.VirtioNetConfig{MTU: 9000})
	joinVirtioNet(t, newSwitch(t), v, "guest")
	g := attachVirtio(t, v, virtioOptions{features: feature})
	for mtu, want := range map[uint64]error{1500: nil, 9000: nil, 9001: vhostusertest.ErrRefused, 1<<16 + 1500: vhostusertest.ErrRefused} {
		if err := g.client.Set(vhostusertest.NetSetMTU, vhostusertest.Payload(mtu)); !errors.Is(err, want) {
			t.Errorf("MTU %d: %v, want %v", mtu, err, want)
		}
	}
	for _, mtu := range []int{-1, 67, 65536} {
		if _, err := device.NewVirtioNet(device.VirtioNetConfig{MTU: mtu, Log: discard}); err == nil || !strings.Contains(err.Error(), "from 68 to 65535") {
			t.Errorf("MTU %d: %v", mtu, err)
		}
	}
}

// TestTulipMTU keeps frames from a legacy guest that no Ethernet of its time had.
func TestTulipMTU(t *testing.T) {
	g := plugged(t, 0)
	d := g.driver(vswitch.MAC(tt.Station), tt.Options{})
	for _, n := range []int{1514, 1518, 1519, 9014} {
		before := g.tulip.Stats().Oversize
		g.Inject(tt.Frame(tt.Station, tt.Other, n))
		got, _ := d.Receive()
		if fits, oversize := n <= 1518, g.tulip.Stats().Oversize-before; (got != nil) != fits || (oversize == 0) != fits {
			t.Errorf("%d bytes: the guest has %d, and %d frames count as too long", n, len(got), oversize)
		}
	}
}
