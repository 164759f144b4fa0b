// Command bench compares Polder with what people use in its place, on this machine and in the same run, and prints
// one line for each comparison:
//
//	ratio NAME VALUE ours=… peer=… rounds=N
//
// VALUE is the median of the rounds' ratios, above 1 where Polder is better, for times as for rates; ours and peer
// are medians. In a round the two sides run one after the other, and which is first changes from round to round, so
// that what else the machine does falls on both.
//
//	bench [-rounds N] [NAME...|all]
//
// Peers on a TAP device need root for a private network namespace; no traffic leaves it.
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

// comparison is one benchmark.
type comparison struct {
	name   string
	unit   string // of what ours and peer return
	higher bool   // more is better

	// ours and peer make one measurement each.
	ours, peer func() (float64, error)
}

var comparisons = slices.Concat(bootComparisons, romComparisons, wireComparisons, tcpComparisons)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	rounds := flag.Int("rounds", 5, "measurements of each side")
	flag.Parse()
	chosen, err := choose(flag.Args())
	if err != nil {
		return err
	}
	if cache, err = guest.Find("bin/qemu-system-x86_64", "bin/dnsmasq", "bin/ip", "boot/ipxe.lkrn", "boot/pxelinux.0",
		"boot/ldlinux.c32", "installer/linux", "installer/initrd.gz",
		"guest/initramfs.gz"); err != nil {
		return err
	}
	if scratch, err = os.MkdirTemp("", "polder-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for _, c := range chosen {
		if err := c.compare(*rounds); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// choose returns the comparisons of these names; none, or "all", is all of them.
func choose(names []string) ([]comparison, error) {
	if len(names) == 0 || slices.Equal(names, []string{"all"}) {
		return comparisons, nil
	}
	var chosen []comparison
	for _, name := range names {
		i := slices.IndexFunc(comparisons, func(c comparison) bool { return c.name == name })
		if i < 0 {
			var all []string
			for _, c := range comparisons {
				all = append(all, c.name)
			}
			return nil, fmt.Errorf("there is no benchmark %q: choose from all, %s", name, strings.Join(all, ", "))
		}
		chosen = append(chosen, comparisons[i])
	}
	return chosen, nil
}

// compare measures both sides in turn and prints the result.
func (c comparison) compare(rounds int) error {
	var ours, peer, ratios []float64
	for round := range rounds {
		var a, b float64
		sides := []func() error{
			func() (err error) { a, err = c.ours(); return err },
			func() (err error) { b, err = c.peer(); return err },
		}
		if round%2 == 1 {
			slices.Reverse(sides)
		}
		for _, side := range sides {
			if err := side(); err != nil {
				return err
			}
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

// median returns the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
