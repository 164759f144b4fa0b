// Command bench compares Polder with what people use in its place, on this machine and in the same run, and prints
// one line for each comparison:
//
//	ratio NAME VALUE ours=… peer=… rounds=N
//
// VALUE is the median of the rounds' ratios, above 1 where Polder is better, for times as for rates; ours and peer
// are medians. In a round the two sides run one after the other, and which is first changes from round to round, so
// that what else the machine does falls on both.
//
// The comparisons whose names begin with vhost, uml or tcg are of many short windows in each round, and VALUE, ours and peer
// are of the windows of all rounds at their better 90th percentile. Their medians follow, and how far the two processors
// were apart from round to round: see hop.
//
//	bench [-rounds N] [NAME...|all]
//
// idle-16 has no peer. It prints the share of a processor that Polder takes while 16 guests are attached and do nothing:
//
//	idle idle-16 VALUE% rounds=N
//
// Peers on a TAP device need root for a private network namespace; no traffic leaves it. The comparisons whose names
// begin with vhost, uml or tcg need root to put their processes before all others, and reserve 2 GiB of huge pages while they
// run: their peers want them.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"polder/testdata/guest"
)

// Set by run.
var (
	cache   guest.Cache
	scratch string // a directory that is removed at the end
)

// comparison is of one figure in each round.
type comparison struct {
	name   string
	unit   string // of what ours and peer return
	higher bool   // more is better

	// ours and peer make one measurement each.
	ours, peer func() (float64, error)
}

// benchmark is a comparison of one kind or the other.
type benchmark interface {
	label() string
	defaultRounds() int

	// compare measures both sides in so many rounds and prints the result.
	compare(rounds int) error
}

var benchmarks = slices.Concat(all(bootComparisons), all(romComparisons), all(wireComparisons), all(tcpComparisons),
	all(vhostComparisons), all(umlComparisons), all(tcgComparisons), all(uplinkComparisons), all(idleMeasurements))

func all[B benchmark](of []B) (list []benchmark) {
	for _, b := range of {
		list = append(list, b)
	}
	return list
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	rounds := flag.Int("rounds", 0, "measurements of each side; 0 for as many as the comparison needs: 5, or 10 for one of short windows")
	flag.Parse()
	chosen, err := choose(flag.Args())
	if err != nil {
		return err
	}
	if cache, err = guest.Find("bin/qemu-system-x86_64", "bin/dnsmasq", "bin/ip", "boot/ipxe.lkrn", "boot/pxelinux.0",
		"boot/ldlinux.c32", "installer/linux", "installer/initrd.gz",
		"guest/initramfs.gz", "bin/vgen", "bin/dpdk-testpmd", "bin/linux.uml", "guest/uml-initramfs.gz"); err != nil {
		return err
	}
	if scratch, err = os.MkdirTemp("", "polder-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for _, b := range chosen {
		n := *rounds
		if n <= 0 {
			n = b.defaultRounds()
		}
		if err := b.compare(n); err != nil {
			return fmt.Errorf("%s: %w", b.label(), err)
		}
	}
	return nil
}

// choose returns the benchmarks of these names; none, or "all", is all of them.
func choose(names []string) ([]benchmark, error) {
	if len(names) == 0 || slices.Equal(names, []string{"all"}) {
		return benchmarks, nil
	}
	var chosen []benchmark
	for _, name := range names {
		i := slices.IndexFunc(benchmarks, func(b benchmark) bool { return b.label() == name })
		if i < 0 {
			var labels []string
			for _, b := range benchmarks {
				labels = append(labels, b.label())
			}
			return nil, fmt.Errorf("there is no benchmark %q: choose from all, %s", name, strings.Join(labels, ", "))
		}
		chosen = append(chosen, benchmarks[i])
	}
	return chosen, nil
}

func (c comparison) label() string { return c.name }

func (c comparison) defaultRounds() int { return 5 }

func (c comparison) compare(rounds int) error {
	var ours, peer, ratios []float64
	for round := range rounds {
		var a, b float64
		err := alternate(round,
			func() (err error) { a, err = c.ours(); return err },
			func() (err error) { b, err = c.peer(); return err })
		if err != nil {
			return err
		}
		ratio := b / a
		if c.higher {
			ratio = a / b
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d: ours %.4g %s, peer %.4g %s, ratio %.2f\n",
			c.name, round+1, rounds, a, c.unit, b, c.unit, ratio)
		ours, peer, ratios = append(ours, a), append(peer, b), append(ratios, ratio)
	}
	fmt.Printf("ratio %s %.2f ours=%.4g%s peer=%.4g%s rounds=%d\n",
		c.name, median(ratios), median(ours), c.unit, median(peer), c.unit, rounds)
	return nil
}

// alternate measures both sides, the other one first in every other round.
func alternate(round int, sides ...func() error) error {
	if round%2 == 1 {
		slices.Reverse(sides)
	}
	for _, side := range sides {
		if err := side(); err != nil {
			return err
		}
	}
	return nil
}

// median returns the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
