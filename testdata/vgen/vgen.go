// Package vgen runs the generator of frames in src: a program on DPDK's drivers that sends between two ports,
// verifies every byte that comes out at the other one, and measures rates and round trips. testdata/setup builds it.
package vgen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"

	"polder/testdata/guest"
)

// Config is one run of the generator, which keeps the first processor that it may use busy. Zero values of numbers are
// the generator's own defaults.
type Config struct {
	// Ports are the two devices to send between, as DPDK's option --vdev has them. See VirtioUser.
	Ports [2]string

	// Mode is "verify", which only verifies, or what is measured after that: "uni", "bidi" or "rtt".
	Mode string

	Size    int     // of frames, in bytes without their check sequence; 0, for "verify" alone: all sizes
	Seconds float64 // of the measurement
	Frames  int     // to verify in each direction and queue
	MACs    int     // pairs of addresses that talk
	Queues  int     // pairs of queues of each port
	Room    int     // bytes of a receive buffer
	Scatter bool    // frames to verify are sent in pieces

	// HugePages has the generator's memory in huge pages, of which 64 of 2 MiB must be free. Otherwise it is in
	// ordinary ones.
	HugePages bool
}

// Result is what one run has found.
type Result struct {
	Verified int // frames that arrived unchanged and in order: all

	Sent, Received int // frames of the measurement

	// Windows are the measurement's pieces of 20 ms: frames per second at the receiver, or the median round trip
	// in nanoseconds.
	Windows []float64

	P50, P99 float64 // of all round trips, in nanoseconds
}

// VirtioUser returns a port for Config.Ports whose back end is at the other end of a Unix socket: port 0 or 1, and
// further properties of the device, like "packed_vq=1".
func VirtioUser(port int, socket string, properties ...string) string {
	device := fmt.Sprintf("net_virtio_user%d,mac=02:00:00:00:0%x:00,path=%s", port, 0xa+port, socket)
	for _, property := range properties {
		device += "," + property
	}
	return device
}

// Memory returns DPDK's options for memory that a back end in another process can map: in huge pages, or not.
func Memory(hugePages bool) []string {
	if hugePages {
		return []string{"--in-memory", "--single-file-segments", "-m", "128"}
	}
	return []string{"--no-huge", "--no-shconf", "-m", "256"}
}

// Command returns the run as a command that is not started. Its standard output is for ParseResult; what goes wrong
// is on its standard error.
func (c Config) Command(cache guest.Cache) *exec.Cmd {
	args := []string{"--no-pci", "--no-telemetry", "--log-level", "error"}
	args = append(args, Memory(c.HugePages)...)
	for _, port := range c.Ports {
		args = append(args, "--vdev", port)
	}
	args = append(args, "--", "--mode", c.Mode)
	for _, option := range []struct {
		name  string
		value int
	}{
		{"--size", c.Size}, {"--frames", c.Frames}, {"--macs", c.MACs}, {"--queues", c.Queues}, {"--room", c.Room},
	} {
		if option.value != 0 {
			args = append(args, option.name, strconv.Itoa(option.value))
		}
	}
	if c.Seconds != 0 {
		args = append(args, "--seconds", strconv.FormatFloat(c.Seconds, 'f', -1, 64))
	}
	if c.Scatter {
		args = append(args, "--scatter")
	}
	return exec.Command(cache.Path("bin/vgen"), args...)
}

// ParseResult reads the standard output of a run that has ended with status 0.
func ParseResult(output []byte) (Result, error) {
	var r Result
	// Drivers print there as well.
	begin := bytes.LastIndexByte(output, '{')
	if begin < 0 {
		return r, fmt.Errorf("the generator has printed no result: %q", output)
	}
	if err := json.Unmarshal(output[begin:], &r); err != nil {
		return r, fmt.Errorf("the generator's result: %w: %q", err, output)
	}
	return r, nil
}
