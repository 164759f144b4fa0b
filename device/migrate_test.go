package device_test

import (
	"testing"

	"polder/device"
	"polder/device/vhostuser/vhostusertest"
	tt "polder/tulip/tuliptest"
)

// TestVirtioNetMoves has a guest leave one port for another, as in a migration between two hosts whose switches are joined. The
// announcement after it moves its address, so frames do not go astray until the guest sends by itself.
func TestVirtioNetMoves(t *testing.T) {
	sw := newSwitch(t)
	ports := map[string]*virtioGuest{}
	for _, name := range []string{"source", "target", "other"} {
		v := newVirtioNet(t, device.VirtioNetConfig{})
		joinVirtioNet(t, sw, v, name)
		ports[name] = attachVirtio(t, v, virtioOptions{})
	}
	get := func(name string) int { return len(ports[name].receive(0)) }
	toGuest := tt.Frame(macA, macB, 100)
	ports["source"].send(tt.Frame(tt.Broadcast, macA, 100))
	if get("target") != 1 || get("other") != 1 {
		t.Fatal("a broadcast did not arrive")
	}
	ports["other"].send(toGuest)
	if got, astray := get("source"), get("target"); got != 1 || astray != 0 {
		t.Fatalf("before: %d frames at the source, %d at the target", got, astray)
	}
	target := ports["target"].client
	check(t, target.Set(vhostusertest.SendRARP, vhostusertest.Payload(uint64(0x0a0000_5d1500)))) // macA, lowest byte first
	if announced := ports["other"].receive(0); len(announced) != 1 {
		t.Errorf("%d announcements, want one", len(announced))
	}
	get("source") // the announcement
	ports["other"].send(toGuest)
	if got, astray := get("target"), get("source"); got != 1 || astray != 0 {
		t.Errorf("after: %d frames at the target, %d at the source", got, astray)
	}
}
