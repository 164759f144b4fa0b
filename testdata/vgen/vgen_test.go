package vgen

import (
	"reflect"
	"slices"
	"testing"

	"polder/testdata/guest"
)

func TestCommand(t *testing.T) {
	cache := guest.Cache("/c")
	ports := [2]string{VirtioUser(0, "/a.sock", "packed_vq=1", "in_order=0"), VirtioUser(1, "/b.sock")}
	for _, test := range []struct {
		name   string
		config Config
		want   []string
	}{
		{"defaults", Config{Ports: ports, Mode: "verify"}, []string{
			"/c/bin/vgen", "--no-pci", "--no-telemetry", "--log-level", "error",
			"--no-huge", "--no-shconf", "-m", "256",
			"--vdev", "net_virtio_user0,mac=02:00:00:00:0a:00,path=/a.sock,packed_vq=1,in_order=0",
			"--vdev", "net_virtio_user1,mac=02:00:00:00:0b:00,path=/b.sock",
			"--", "--mode", "verify"}},
		{"everything", Config{Ports: [2]string{"x", "y"}, Mode: "uni", Size: 64, Seconds: 1.5, Frames: 10, MACs: 3, Queues: 2,
			Room: 512, Scatter: true, HugePages: true}, []string{
			"/c/bin/vgen", "--no-pci", "--no-telemetry", "--log-level", "error",
			"--in-memory", "--single-file-segments", "-m", "128",
			"--vdev", "x", "--vdev", "y", "--", "--mode", "uni", "--size", "64", "--frames", "10", "--macs", "3",
			"--queues", "2", "--room", "512", "--seconds", "1.5", "--scatter"}},
	} {
		if got := test.config.Command(cache).Args; !slices.Equal(got, test.want) {
			t.Errorf("%s:\n%q, want\n%q", test.name, got, test.want)
		}
	}
}

func TestParseResult(t *testing.T) {
	for _, test := range []struct {
		name, output string
		want         Result
		ok           bool
	}{
		{"verified", `{"verified": 40}` + "\n", Result{Verified: 40}, true},
		{"after a driver's words", "Port 0: ready\n" + `{"verified": 2, "sent": 5, "received": 4, "windows": [1, 2.5]}`,
			Result{Verified: 2, Sent: 5, Received: 4, Windows: []float64{1, 2.5}}, true},
		{"round trips", `{"verified": 2, "sent": 2, "received": 2, "windows": [900], "p50": 901, "p99": 1500}`,
			Result{Verified: 2, Sent: 2, Received: 2, Windows: []float64{900}, P50: 901, P99: 1500}, true},
		{"nothing", "", Result{}, false},
		{"cut off", `{"verified": 40`, Result{}, false},
	} {
		got, err := ParseResult([]byte(test.output))
		if (err == nil) != test.ok || test.ok && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, error %v, want %+v, success %v", test.name, got, err, test.want, test.ok)
		}
	}
}
