package main

import (
	"fmt"
	"os"
	"slices"
)

// windowed is a comparison of measurements that come in short windows. On a virtual machine the host moves its
// processors, at times apart and at times next to each other, which makes a factor of two between windows of one
// measurement; so does other load. VALUE is the ratio of the windows of all rounds at their 90th percentile: what
// either side does while the machine lets it.
type windowed struct {
	name       string
	load       load
	ours, peer side
}

func (c windowed) label() string { return c.name }

// defaultRounds are enough for some windows of every round to be undisturbed.
func (c windowed) defaultRounds() int { return 10 }

func (c windowed) compare(rounds int) error {
	release, err := reserveHugePages()
	if err != nil {
		return err
	}
	defer release()
	unit, q := "Mpps", 0.9
	switch c.load.mode {
	case "rtt":
		unit, q = "us", 0.1 // less is better
	case "tcp":
		unit = "Gbit/s"
	}
	pair, err := twoCores()
	if err != nil {
		return err
	}
	var ours, peer []float64 // windows
	var oursP99, peerP99, hops []float64
	for round := range rounds {
		ns, err := hop(pair)
		if err != nil {
			return err
		}
		var a, b measured
		err = alternate(round,
			func() (err error) { a, err = c.ours(c.load); return err },
			func() (err error) { b, err = c.peer(c.load); return err })
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d: ours %.4g %s, peer %.4g %s, hop %.0f ns\n",
			c.name, round+1, rounds, quantile(a.windows, q), unit, quantile(b.windows, q), unit, ns)
		hops = append(hops, ns)
		ours, peer = append(ours, a.windows...), append(peer, b.windows...)
		oursP99, peerP99 = append(oursP99, a.p99), append(peerP99, b.p99)
	}
	value := quantile(ours, q) / quantile(peer, q)
	if c.load.mode == "rtt" {
		value = 1 / value
	}
	fmt.Printf("ratio %s %.2f ours=%.4g%s peer=%.4g%s rounds=%d", c.name, value, quantile(ours, q), unit, quantile(peer, q), unit, rounds)
	fmt.Printf(" median-ours=%.4g%s median-peer=%.4g%s", median(ours), unit, median(peer), unit)
	if c.load.mode == "rtt" {
		fmt.Printf(" p99-ours=%.4g%s p99-peer=%.4g%s", median(oursP99), unit, median(peerP99), unit)
	}
	fmt.Printf(" hops=%.0f-%.0fns\n", slices.Min(hops), slices.Max(hops))
	return nil
}

// quantile returns the value that a part q of the others is below, or the largest.
func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
