package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"polder/device/vhostuser"
	"polder/device/vhostuser/vhostusertest"
	"polder/testdata/guest"
)

// idle measures what a daemon costs whose guests do nothing. It has no peer, and prints
//
//	idle NAME VALUE% rounds=N
//
// where VALUE is the median share of one processor.
type idle struct {
	name   string
	guests int
	time   time.Duration // of one measurement
}

var idleMeasurements = []idle{{name: "idle-16", guests: 16, time: 5 * time.Second}}

func (i idle) label() string { return i.name }

func (i idle) defaultRounds() int { return 3 }

func (i idle) compare(rounds int) error {
	var shares []float64
	for round := range rounds {
		share, err := i.measure()
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d: %.3f %%\n", i.name, round+1, rounds, share)
		shares = append(shares, share)
	}
	fmt.Printf("idle %s %.3f%% rounds=%d\n", i.name, median(shares), rounds)
	return nil
}

// measure returns the daemon's share of a processor, in percent.
func (i idle) measure() (share float64, err error) {
	program, err := polder()
	if err != nil {
		return 0, err
	}
	config := "switches: [{name: bench}]\nvms:\n"
	for n := range i.guests {
		config += fmt.Sprintf("  - {name: vm%d, adapters: [{kind: synthetic, switch: bench}]}\n", n)
	}
	d, err := guest.Serve(program, config)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	for n := range i.guests {
		machine, err := d.Machine(fmt.Sprintf("vm%d", n))
		if err != nil {
			return 0, err
		}
		leave, err := attachIdle(socketOf(machine.Args))
		if err != nil {
			return 0, err
		}
		defer leave()
	}
	time.Sleep(time.Second) // for what is left to do
	before, err := processorTime(d.Pid())
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	time.Sleep(i.time)
	after, err := processorTime(d.Pid())
	return 100 * float64(after-before) / float64(time.Since(begin)), err
}

// socketOf finds the path of an adapter's socket in QEMU's arguments.
func socketOf(args []string) string {
	for _, arg := range args {
		if _, path, ok := strings.Cut(arg, ",path="); ok {
			path, _, _ = strings.Cut(path, ",")
			return path
		}
	}
	return ""
}

// attachIdle is a hypervisor whose guest's rings run and have nothing in them, until it leaves.
func attachIdle(socket string) (leave func(), err error) {
	c, err := vhostusertest.Dial(socket)
	if err != nil {
		return nil, err
	}
	undo := []func(){func() { c.Close() }}
	leave = func() {
		for _, f := range undo {
			f()
		}
	}
	m, err := vhostusertest.NewMemory(0, 1<<20)
	if err != nil {
		leave()
		return nil, err
	}
	undo = append(undo, func() { m.Close() })
	err = errors.Join(c.Connect(vhostuser.ProtocolAll), c.SetFeatures(vhostusertest.FeatureProtocol|vhostusertest.FeatureVersion1), c.SetMemTable(m))
	at := uint64(0)
	for index := 0; index < 2 && err == nil; index++ {
		var v *vhostusertest.Vring
		if v, at, err = vhostusertest.NewVring(m, index, 256, at); err == nil {
			undo = append(undo, v.Close)
			err = errors.Join(c.StartVring(v), c.EnableVring(index, true))
		}
	}
	if err != nil {
		leave()
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return leave, nil
}

// processorTime returns how long the threads of a process have run. Those that have ended are left out: a Go
// program keeps its own.
func processorTime(pid int) (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	if len(threads) == 0 {
		return 0, fmt.Errorf("process %d: its threads' times are not in /proc", pid)
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
