package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"polder/testdata/vgen"
)

// dpdkSwitch is a switch that two front ends have for themselves.
const dpdkSwitch = `
switches:
  - name: default
vms:
  - {name: a, adapters: [{kind: synthetic, queues: 2}]}
  - {name: b, adapters: [{kind: synthetic, queues: 2}]}
`

// TestDPDK has DPDK's virtio-user driver as the guests, one kind after the other with the same daemon. Every byte of
// some ten thousand frames of all sizes is verified in both directions.
func TestDPDK(t *testing.T) {
	t.Parallel()
	d := serve(t, dpdkSwitch)
	before := d.resources(t)
	for _, ring := range []string{"packed_vq=0", "packed_vq=1"} {
		for _, features := range []string{"in_order=1,mrg_rxbuf=1", "in_order=0,mrg_rxbuf=1", "in_order=1,mrg_rxbuf=0", "in_order=0,mrg_rxbuf=0"} {
			for _, queues := range []int{1, 2} {
				properties := fmt.Sprintf("%s,%s,queues=%d", ring, features, queues)
				t.Run(properties, func(t *testing.T) {
					verify(t, d, properties, vgen.Config{Queues: queues})
				})
			}
		}
		t.Run(ring+", frames in several pieces", func(t *testing.T) {
			verify(t, d, ring, vgen.Config{Scatter: true})
		})
		t.Run(ring+", without merging, frames in several pieces", func(t *testing.T) {
			verify(t, d, ring+",in_order=0,mrg_rxbuf=0", vgen.Config{Scatter: true})
		})
		t.Run(ring+", frames into several buffers", func(t *testing.T) {
			verify(t, d, ring, vgen.Config{Room: 300})
		})
		t.Run(ring+", many addresses", func(t *testing.T) {
			verify(t, d, ring, vgen.Config{MACs: 1000})
		})
	}
	d.noMore(t, before)
}

// verify runs the generator on the daemon's adapters a and b.
func verify(t *testing.T, d daemon, properties string, c vgen.Config) {
	c.Mode, c.Frames = "verify", 10000
	for i, vm := range []string{"a", "b"} {
		c.Ports[i] = vgen.VirtioUser(i, d.Socket(vm), properties)
	}
	cmd := c.Command(cache)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("generator: %v\n%s", err, problems.String())
	}
	result, err := vgen.ParseResult(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * c.Frames * max(c.Queues, 1); result.Verified != want {
		t.Errorf("the generator verified %d frames, want %d", result.Verified, want)
	}
}

// TestTestpmd has Debian's testpmd as both guests. It sends a burst from each of its two ports, and whatever comes in
// at one goes out at the other: as long as no frame is lost they go round for ever.
func TestTestpmd(t *testing.T) {
	t.Parallel()
	d := serve(t, dpdkSwitch)
	before := d.resources(t)
	for _, properties := range []string{"in_order=1", "in_order=0,mrg_rxbuf=0", "packed_vq=1"} {
		t.Run(properties, func(t *testing.T) {
			args := append(vgen.Memory(false), "--no-pci", "--no-telemetry")
			for i, vm := range []string{"a", "b"} {
				args = append(args, "--vdev", vgen.VirtioUser(i, d.Socket(vm), properties))
			}
			args = append(args, "--", "--nb-cores=1", "--forward-mode=io", "--tx-first", "--auto-start",
				"--stats-period=1", "--total-num-mbufs=8192")
			cmd := exec.Command(cache.Path("bin/dpdk-testpmd"), args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			var out output
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			limit := time.After(time.Minute)
			for {
				a, b := out.received()
				if a >= 10000 && b >= 10000 {
					break
				}
				select {
				case <-time.After(100 * time.Millisecond):
					continue
				case err := <-ended:
					t.Fatalf("testpmd has ended: %v\n%s", err, lastLines(out.String()))
				case <-limit:
					cmd.Process.Kill()
					<-ended
					t.Fatalf("testpmd has received %d and %d frames, want thousands:\n%s", a, b, lastLines(out.String()))
				}
			}
			cmd.Process.Signal(syscall.SIGINT)
			if err := <-ended; err != nil {
				t.Errorf("testpmd: %v\n%s", err, lastLines(out.String()))
			}
		})
	}
	d.noMore(t, before)
}

// output is what a program prints, to be read while it does.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

var portStatistics = regexp.MustCompile(`NIC statistics for port ([01]) [ #]*\n *RX-packets: *(\d+)`)

// received is how many frames testpmd's two ports have received, as its statistics had it last.
func (o *output) received() (a, b int) {
	for _, match := range portStatistics.FindAllStringSubmatch(o.String(), -1) {
		n, _ := strconv.Atoi(match[2])
		if match[1] == "0" {
			a = n
		} else {
			b = n
		}
	}
	return a, b
}
