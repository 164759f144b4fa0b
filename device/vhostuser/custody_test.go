package vhostuser_test

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/device/vhostuser"
	vt "polder/device/vhostuser/vhostusertest"
)

// pair returns two front ends of one device, each with memory and a ring of its own. The first has started its ring, the
// second has said all but the kick.
func pair(t *testing.T, dev *fake, grace time.Duration) (clients [2]*vt.Client, rings [2]*vt.Vring, log *logBuffer) {
	t.Helper()
	path := socketPath(t)
	s, log := listen(t, path, dev)
	s.SetGrace(grace)
	run(t, s)
	for i := range clients {
		c, m := dial(t, path), memory(t, 0, (1+i)<<20)
		v := vring(t, m, 0, 8)
		steps := []error{
			c.Connect(vhostuser.ProtocolAll), c.EnableVring(0, true), c.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol), c.SetMemTable(m),
			c.Set(vt.SetVringNum, ring(0, 8)), c.Set(vt.SetVringBase, ring(0, uint32(100*i))), c.Set(vt.SetVringAddr, v.Addr(0, 0)),
		}
		if err := errors.Join(steps...); err != nil {
			t.Fatal(err)
		}
		clients[i], rings[i] = c, v
	}
	if err := kick(clients[0], rings[0]); err != nil {
		t.Fatal(err)
	}
	dev.want(t, attachLine(), "features 0x100000000", memoryLine(1), startLine(0))
	return clients, rings, log
}

func kick(c *vt.Client, v *vt.Vring) error {
	return c.Set(vt.SetVringKick, vt.Payload(uint64(0)), v.KickFD)
}

func memoryLine(mib int) string {
	return strings.ReplaceAll("memory [0x0+0xN00000 uva 0x7f0000000000 offset 0x0 file 0xN00000]", "N", string(rune('0'+mib)))
}

func startLine(base uint32) string {
	return "start 0: num 8 base " + map[uint32]string{0: "0x0", 7: "0x7", 100: "0x64"}[base] +
		" desc 0x0 avail 0x80 used 0xc0 enabled true log {false 0} files [kick]"
}

// A guest migrates on one socket, and back because the migration failed: a front end has the device from the start of its rings on,
// and then the device is told all that it has said.
func TestMigrationOnOneSocket(t *testing.T) {
	dev := newFake()
	clients, rings, _ := pair(t, dev, time.Hour)
	source, target := clients[0], clients[1]

	// What the second says before it starts a ring does not matter to the device.
	for _, err := range []error{
		target.Set(vt.ResetDevice, nil), target.EnableVring(0, true), target.Set(vt.SendRARP, vt.Payload(uint64(1))),
		target.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol), target.Set(vt.SetVringNum, ring(0, 8)),
		target.Set(vt.SetVringBase, ring(0, 100)), target.Set(vt.SetVringAddr, rings[1].Addr(0, 0)), target.StopVring(rings[1]),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dev.want(t)

	log := memory(t, 0, 4096)
	for _, err := range []error{
		source.Set(vt.SetLogBase, vt.Payload(uint64(4096), uint64(0)), log.FD()),
		source.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol | vt.FeatureLogAll),
		source.StopVring(rings[0]),
		kick(target, rings[1]),
		target.Set(vt.SendRARP, vt.Payload(uint64(1))),
		source.Set(vt.SendRARP, vt.Payload(uint64(2))), // not any more
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dev.want(t, "log 0x0+0x1000 file 0x1000", "stop 0",
		"detach: another front end has taken the device over", attachLine(), "features 0x100000000", memoryLine(2), startLine(100),
		"rarp 01 00 00 00 00 00")

	// The second leaves, and the first goes on: nobody has to tell the device again.
	target.Close()
	for cause := error(nil); cause != io.EOF; {
		cause = <-dev.gone
	}
	for _, err := range []error{kick(source, rings[0]), source.SetFeatures(vt.FeatureVersion1 | vt.FeatureProtocol)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dev.want(t, "detach: EOF", attachLine(), "features 0x100000000", memoryLine(1), "log 0x0+0x1000 file 0x1000", startLine(7), "log off")
}

// Case 7: a second hypervisor that was started by mistake loses its connection, and does not disturb.
func TestCase07SecondFrontEndOnABusyPort(t *testing.T) {
	dev := newFake()
	clients, rings, log := pair(t, dev, time.Millisecond)
	if err := kick(clients[1], rings[1]); err != io.EOF {
		t.Errorf("the second front end reads %v, want EOF", err)
	}
	for !strings.Contains(log.String(), "rings of another front end run") {
		time.Sleep(time.Millisecond) // written after the end of the connection
	}
	if err := clients[0].StopVring(rings[0]); err != nil || rings[0].Base != 7 {
		t.Errorf("the first front end: base %d, %v", rings[0].Base, err)
	}
	dev.want(t, "stop 0")
}

// The second waits for the rings of the first to stop, or for its end.
func TestFrontEndsWaitForEachOther(t *testing.T) {
	for name, end := range map[string]func(*vt.Client, *vt.Vring) error{
		"stop": (*vt.Client).StopVring,
		"EOF":  func(c *vt.Client, _ *vt.Vring) error { return c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			dev := newFake()
			clients, rings, _ := pair(t, dev, time.Hour)
			if err := clients[1].Request(vt.SetVringKick, vt.FlagNeedReply, vt.Payload(uint64(0)), rings[1].KickFD); err != nil {
				t.Fatal(err)
			}
			if err := end(clients[0], rings[0]); err != nil {
				t.Fatal(err)
			}
			if _, b, err := clients[1].Reply(); err != nil || b[0] != 0 {
				t.Fatalf("got % x, %v, want the ring started", b, err)
			}
			if calls := dev.asked(); calls[len(calls)-1] != startLine(100) {
				t.Errorf("the device was asked %q", calls)
			}
		})
	}
}

// A front end that waits for another does not hold up the end of the server.
func TestCloseWhileAFrontEndWaits(t *testing.T) {
	dev := newFake()
	path := socketPath(t)
	s, _ := listen(t, path, dev)
	s.SetGrace(time.Hour)
	done := run(t, s)
	m := memory(t, 0, 1<<20)
	for range 2 {
		c, v := dial(t, path), vring(t, m, 0, 8)
		if err := errors.Join(c.Connect(0), c.SetFeatures(vt.FeatureVersion1), c.SetMemTable(m), c.Set(vt.SetVringNum, ring(0, 8)),
			c.Set(vt.SetVringAddr, v.Addr(0, 0)), c.Request(vt.SetVringKick, 0, vt.Payload(uint64(0)), v.KickFD)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(10 * time.Millisecond) // not needed for the outcome
	s.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

// A device that does not take the front end that is left ends its connection.
func TestDeviceRefusesTheNext(t *testing.T) {
	dev := newFake()
	clients, _, _ := pair(t, dev, time.Hour)
	dev.fail(errors.New("no"))
	clients[0].Close()
	if _, _, err := clients[1].Reply(); err != io.EOF {
		t.Errorf("the second front end reads %v, want EOF", err)
	}
	if calls := dev.asked(); len(calls) != 2 || calls[0] != "detach: EOF" || calls[1] != attachLine() {
		t.Errorf("the device was asked %q", calls)
	}
}

// Front ends that come, start rings and go at the same time do not get into each other's way, and none is forgotten.
func TestFrontEndsAtOnce(t *testing.T) {
	dev := newFake()
	path := socketPath(t)
	s, _ := listen(t, path, dev)
	s.SetGrace(5 * time.Millisecond)
	run(t, s)
	m := memory(t, 0, 1<<20)
	var all sync.WaitGroup
	for range 3 {
		v := vring(t, m, 0, 8)
		all.Go(func() {
			for i := range 50 {
				c, err := vt.Dial(path)
				if err != nil {
					t.Error(err)
					return
				}
				// It may be turned away, and lose its connection at the start of the ring.
				if c.Connect(vhostuser.ProtocolAll) == nil && c.SetFeatures(vt.FeatureVersion1) == nil && c.SetMemTable(m) == nil &&
					c.StartVring(v) == nil && i%2 == 0 {
					if err := c.StopVring(v); err != nil {
						t.Errorf("a front end whose ring runs: %v", err)
					}
				}
				c.Close()
			}
		})
	}
	all.Wait()
	for v, err := vring(t, m, 0, 8), error(io.EOF); err != nil; { // the others' EOFs are on their way
		c := dial(t, path)
		err = errors.Join(c.Connect(0), c.SetFeatures(vt.FeatureVersion1), c.SetMemTable(m), c.StartVring(v))
	}
	attached, started := 0, 0
	for _, call := range dev.asked() {
		switch {
		case strings.HasPrefix(call, "attach"):
			attached++
		case strings.HasPrefix(call, "detach"):
			attached--
		case strings.HasPrefix(call, "start"):
			started++
		}
		if attached < 0 || attached > 1 {
			t.Fatal("two front ends had the device")
		}
	}
	if attached != 1 || started < 2 {
		t.Errorf("%d front ends have the device, and %d rings were started", attached, started)
	}
}
