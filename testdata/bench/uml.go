package main

import (
	"encoding/json"
	"fmt"
	"time"

	"polder/testdata/guest"
)

// TCP between two Linux guests that have the kernel's own virtio_net. As User Mode Linux they run at the speed of the
// machine, both on one processor, and what connects them has another one.

var umlComparisons = []windowed{
	{name: "uml-tcp-ovs", load: load{mode: "tcp"}, ours: umlPolder(withoutTSO), peer: umlOpenVSwitch},
	{name: "uml-tcp-tso-ovs", load: load{mode: "tcp"}, ours: umlPolder(""), peer: umlOpenVSwitch},
}

// withoutTSO has a guest cut its segments itself.
const withoutTSO = "ethtool -K eth0 tso off"

// umlPolder measures Polder, after a command in both guests unless it is "".
func umlPolder(command string) side {
	return func(load) (measured, error) {
		return withPolder(polderConfig{}, func(sockets [2]string) (measured, error) { return umlTCP(sockets, command) })
	}
}

// Features that Open vSwitch offers to User Mode Linux in vain (virtio 1.3, 5.1.3 and 6): it takes the control queue
// for a ring of the back end's, and for new packed rings it gives a wrap counter of 0, which is none of theirs.
const (
	controlQueue = 1<<17 | 1<<18 | 1<<20 | 1<<21 | 1<<22 | 1<<23 // VIRTIO_NET_F_CTRL_VQ and what needs it
	ringPacked   = 1 << 34
)

// umlOpenVSwitch measures Open vSwitch, which passes no segments of TSO on as its package has it set. User Mode Linux
// connects, so its ports must listen.
func umlOpenVSwitch(load) (measured, error) {
	return withOpenVSwitch("dpdkvhostuser", func(sockets [2]string) (m measured, err error) {
		dir, remove, err := place()
		if err != nil {
			return m, err
		}
		defer remove()
		var masked [2]string
		for i, socket := range sockets {
			masked[i] = fmt.Sprintf("%s/%d.sock", dir, i)
			mask, err := maskFeatures(masked[i], socket, controlQueue|ringPacked)
			if err != nil {
				return m, err
			}
			defer mask.close()
		}
		return umlTCP(masked, "")
	})
}

// umlTCP measures TCP between two guests whose back ends listen on these sockets, after a command in both guests
// unless it is "".
func umlTCP(sockets [2]string, command string) (m measured, err error) {
	c, err := twoCores()
	if err != nil {
		return m, err
	}
	var guests [2]*guest.Guest
	for i, socket := range sockets {
		if err := onCore(c.generator, func() (err error) {
			guests[i], err = guest.StartUML(cache, guest.UMLConfig{
				Name: fmt.Sprintf("guest %d", i), MemoryMiB: 256, Adapters: []string{socket}, Words: tcpWords(i),
			})
			return err
		}); err != nil {
			return m, err
		}
		defer guests[i].Close()
	}
	return tcpBetween(guests, command)
}

// tcpWords are on the kernel command line of one guest of a pair: guest i is 10.9.0.i+1.
func tcpWords(i int) []string {
	return []string{"quiet", fmt.Sprintf("net0=10.9.0.%d/24", i+1), "run=hold"}
}

// tcpBetween measures TCP in both directions between two guests that start with tcpWords, after a command in both
// unless it is "".
func tcpBetween(guests [2]*guest.Guest, command string) (m measured, err error) {
	for _, g := range guests {
		if err := ahead(g.Pid()); err != nil {
			return m, err
		}
	}
	for _, g := range guests {
		if _, err := g.Expect(bootLimit, `^T_HOLD`); err != nil {
			return m, err
		}
		if command == "" {
			continue
		}
		if _, err := g.Run(time.Minute, command); err != nil {
			return m, err
		}
	}
	if _, err := guests[0].Run(time.Minute, "step_serve"); err != nil {
		return m, err
	}
	if _, err := guests[1].Run(time.Minute, "ping -c 1 -w 20 10.9.0.1"); err != nil {
		return m, err
	}
	for _, direction := range []string{"", "-R"} {
		text, err := guests[1].Run(time.Minute, "iperf3 -c 10.9.0.1 -O 1 -t 3 -i 0.1 -J "+direction)
		if err != nil {
			return m, err
		}
		windows, err := tcpWindows(text)
		if err != nil {
			return m, err
		}
		m.windows = append(m.windows, windows...)
	}
	return m, nil
}

// tcpWindows returns the rates of iperf3's intervals in Gbit/s, without those in which TCP finds its window.
func tcpWindows(text string) (windows []float64, err error) {
	var result struct {
		Error     string
		Intervals []struct {
			Sum struct {
				Rate    float64 `json:"bits_per_second"`
				Omitted bool
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		return nil, fmt.Errorf("iperf3: %w: %s", err, text)
	}
	if result.Error != "" {
		return nil, fmt.Errorf("iperf3: %s", result.Error)
	}
	for _, interval := range result.Intervals {
		if !interval.Sum.Omitted {
			windows = append(windows, interval.Sum.Rate/1e9)
		}
	}
	if len(windows) == 0 {
		return nil, fmt.Errorf("iperf3 shows no interval: %s", text)
	}
	return windows, nil
}
