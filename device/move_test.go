package device_test

import (
	"testing"

	"polder/device"
	tt "polder/tulip/tuliptest"
	"polder/vswitch"
)

// A synthetic adapter moves between switches while its guest sends: its frames go where it is, and
// nowhere when it is nowhere.
func TestVirtioNetBetweenSwitches(t *testing.T) {
	v := newVirtioNet(t, device.VirtioNetConfig{})
	first, second := newSwitch(t), newSwitch(t)
	join := func(sw *vswitch.Switch) *vswitch.Member {
		m, err := sw.Join("guest", v, vswitch.PortOptions{})
		check(t, err)
		v.Connect(m)
		return m
	}
	m := join(first)
	g := attachVirtio(t, v, virtioOptions{})
	knows := func(sw *vswitch.Switch) bool {
		for _, e := range sw.FDB() {
			if e.MAC == macA {
				return true
			}
		}
		return false
	}
	frame := tt.Frame(tt.Broadcast, macA, 60)
	g.send(frame)
	if !knows(first) {
		t.Fatal("the first switch has seen no frame")
	}

	v.Connect(nil)
	check(t, m.Leave())
	g.send(frame)
	if n := v.Stats().Stopped; n != 1 {
		t.Errorf("%d frames stopped while the adapter was on no switch, want 1", n)
	}
	check(t, v.SendRARP(macA)) // to nobody

	n := join(second)
	g.send(frame)
	if knows(first) || !knows(second) {
		t.Errorf("the first switch knows the guest: %v, the second: %v", knows(first), knows(second))
	}
	v.Connect(nil)
	check(t, n.Leave())
}
