package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/qemu"
	"polder/cmd/internal/timeline"
)

// runCmd runs QEMU with an adapter, without a daemon or a configuration.
type runCmd struct {
	Legacy    bool         `help:"Give the guest a legacy adapter, a DEC 21140 (the default)." default:"true"`
	Synthetic bool         `help:"Give the guest a synthetic adapter instead: virtio, which is faster and needs a guest that knows it."`
	Queues    int          `help:"Queue pairs of the synthetic adapter, best one for each of the guest's processors." default:"1" placeholder:"N"`
	Root      string       `help:"Directory of boot files, served over TFTP and HTTP." placeholder:"DIR"`
	Switch    string       `complete:"switch" help:"Virtual switch. Guests that are given the same name share it: the first makes it, unless a daemon has it." placeholder:"NAME"`
	Name      string       `help:"Name of the guest's adapter (default: guest-PID). The MAC address is made from it." placeholder:"NAME"`
	MAC       string       `help:"The adapter's MAC address." name:"mac" placeholder:"MAC"`
	Address   netip.Prefix `help:"Address of the boot service, with the network's prefix length; the pool is above it." default:"${address}" placeholder:"ADDR/BITS"`
	Boot      string       `help:"Boot file in the root to name to the guest's firmware." placeholder:"FILE" xor:"what"`
	Kernel    string       `help:"Kernel in the root to boot: firmware gets it through iPXE." placeholder:"FILE" xor:"what"`
	Initrd    []string     `help:"Initial RAM disk in the root, with --kernel; may be repeated." sep:"none" placeholder:"FILE"`
	Append    string       `help:"The kernel's command line, with --kernel." placeholder:"TEXT"`
	ROM       string       `help:"Boot ROM of the adapter: a file, or none. Default: the adapter's own PXE ROM." name:"rom" placeholder:"FILE"`
	BootIndex int          `help:"Place of the adapter in the firmware's boot order, as QEMU's bootindex." name:"bootindex" default:"-1" placeholder:"N"`

	Command []string `arg:"" optional:"" passthrough:"partial" name:"qemu" help:"-- and QEMU's command line: the program and its arguments."`
}

// Help implements kong's HelpProvider.
func (*runCmd) Help() string {
	return `Example: polder run --root /srv/tftp -- qemu-system-x86_64 -m 1G -nographic

Polder adds to QEMU's arguments what is missing: memory that the adapter can reach, and the adapter. The boot's steps are shown on standard error. The exit status is QEMU's.`
}

// Run implements the command.
func (c *runCmd) Run(env *environment) error {
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return usageError{errors.New("run: give QEMU's command line after --, as in: polder run -- qemu-system-x86_64 -m 1G")}
	}
	if err := c.check(); err != nil {
		return usageError{fmt.Errorf("run: %w", err)}
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("guest-%d", os.Getpid())
	}
	request := api.AdapterRequest{Name: c.Name, MAC: c.MAC, Kind: config.KindLegacy}
	if c.Synthetic {
		request.Kind, request.Queues = config.KindSynthetic, c.Queues
	} else if err := build.ReadROM(c.ROM, &request); err != nil {
		return err
	}
	program, err := qemu.Probe(env.ctx, command[0])
	if err != nil {
		return err
	}
	screen := timeline.New(env.stderr, isTerminal(env.stderr))
	defer screen.Close()
	env.log = env.newLog(screen)
	show := screen.Event
	if env.json {
		show = func(e api.BootEvent) { logBoot(env.log, e) }
	}
	n, err := c.network(env, show, request)
	if err != nil {
		return err
	}
	defer n.close()
	adapter := qemu.Adapter{ID: "polder0", Socket: n.adapter.Socket, BootIndex: c.BootIndex}
	if c.Synthetic {
		adapter.Synthetic = &qemu.Synthetic{MAC: n.adapter.MAC, Queues: c.Queues, MTU: n.adapter.MTU, ROM: c.ROM}
	}
	args, err := qemu.Complete(command[1:], []qemu.Adapter{adapter})
	if err != nil {
		return usageError{fmt.Errorf("run: %w", err)}
	}
	env.log.Debug("starting QEMU", "program", program, "args", args)
	status := runQEMU(env, program, args)
	n.leave(env)
	return status
}

// check finds what is wrong with the flags, as far as the flags tell.
func (c *runCmd) check() error {
	switch {
	case !c.Legacy && !c.Synthetic:
		return errors.New("--legacy=false leaves the guest without an adapter: leave it out, or give --synthetic")
	case c.Queues < 1 || c.Queues > config.MaxQueues:
		return fmt.Errorf("--queues %d: from 1 to %d", c.Queues, config.MaxQueues)
	case c.Queues > 1 && !c.Synthetic:
		return errors.New("--queues goes with --synthetic")
	case c.Kernel == "" && (len(c.Initrd) > 0 || c.Append != ""):
		return errors.New("--initrd and --append go with --kernel")
	case c.Root == "" && (c.Boot != "" || c.Kernel != ""):
		return errors.New("--boot and --kernel name files in the --root directory, which is not given")
	case c.BootIndex < -1:
		return fmt.Errorf("--bootindex %d: from 0", c.BootIndex)
	}
	if c.Switch != "" {
		if err := config.CheckName(c.Switch); err != nil {
			return fmt.Errorf("--switch: %w", err)
		}
	}
	if c.Name != "" {
		if err := config.CheckAdapterName(c.Name); err != nil {
			return fmt.Errorf("--name: %w", err)
		}
	}
	if c.MAC != "" {
		if _, err := config.ParseMAC(c.MAC); err != nil {
			return fmt.Errorf("--mac: %w", err)
		}
	}
	return nil
}

// quitTime is how long QEMU may take to end when it is asked to: it writes its disks' caches.
const quitTime = 30 * time.Second

// runQEMU runs QEMU on the terminal until it ends. When polder is told to stop, QEMU is asked
// to end; the terminal's Ctrl-C reaches QEMU by itself too.
func runQEMU(env *environment, program string, args []string) error {
	cmd := exec.CommandContext(env.ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, env.stdout, env.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = quitTime
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
	case cmd.Process == nil: // not started
		return err
	case errors.Is(err, context.Canceled):
		return nil // it ended well, as it was asked to
	default:
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitError(128 + int(ws.Signal())) // as a shell reports it
	}
	return exitError(exit.ExitCode())
}

// guestNetwork is the adapter of a run, and what it takes to have it.
type guestNetwork struct {
	adapter api.Adapter
	world   *build.World    // nil: a daemon's, or another run's
	shared  *control.Server // nil: others cannot join
	undo    []func()        // in the order of making
}

func (n *guestNetwork) close() {
	for i := len(n.undo) - 1; i >= 0; i-- {
		n.undo[i]()
	}
}

// network finds the switch that the guest shares with others, or makes one.
func (c *runCmd) network(env *environment, show func(api.BootEvent), request api.AdapterRequest) (*guestNetwork, error) {
	if err := env.makeDir(); err != nil {
		return nil, err
	}
	if c.Switch == "" {
		request.Switch = config.DefaultSwitch
		return c.own(env, show, request)
	}
	request.Switch = c.Switch
	unlock, err := control.Lock(env.ctx, env.dir) // one of two that start at once makes the switch
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, socket := range []string{env.control(), shared(env.dir, c.Switch)} {
		if !control.Alive(socket) {
			continue
		}
		client := control.Dial(socket)
		status, err := client.Status(env.ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: no polder answers there: %w", socket, err)
		}
		for _, s := range status.Switches {
			if s.Name == c.Switch {
				return c.join(env, show, request, client, status.PID)
			}
		}
	}
	return c.own(env, show, request)
}

// shared is where a run that made a named switch lets others join it. No name of an adapter
// has a colon, so that none has a socket of the same path.
func shared(dir, name string) string { return filepath.Join(dir, "switch:"+name+".sock") }

// join asks whoever has the switch for an adapter on it.
func (c *runCmd) join(env *environment, show func(api.BootEvent), request api.AdapterRequest, client *control.Client, pid int) (*guestNetwork, error) {
	switch {
	case c.Root != "":
		return nil, usageError{fmt.Errorf("run: switch %q is served by process %d, which has its own boot files: leave out --root, or take another --switch", c.Switch, pid)}
	case c.Address != config.DefaultAddress:
		return nil, usageError{fmt.Errorf("run: switch %q is served by process %d, which has its own address: leave out --address, or take another --switch", c.Switch, pid)}
	}
	ctx, end := context.WithCancel(context.Background())
	asked := context.AfterFunc(env.ctx, end) // later, QEMU ends before its adapter does
	a, stream, err := client.Attach(ctx, request)
	asked()
	if err != nil {
		end()
		return nil, fmt.Errorf("switch %q of process %d: %w", c.Switch, pid, err)
	}
	n := &guestNetwork{adapter: a}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			e, err := stream.Next()
			if err != nil {
				if ctx.Err() == nil {
					env.log.Error("the process that has the switch has ended: the guest's adapter is gone", "switch", c.Switch, "pid", pid)
				}
				return
			}
			if e.Boot != nil && e.Boot.MAC == a.MAC && e.Boot.Switch == a.Switch {
				show(*e.Boot)
			}
		}
	})
	n.undo = append(n.undo, func() { end(); stream.Close(); done.Wait() })
	return n, nil
}

// own makes a switch for this run; one that was given a name lets others join.
func (c *runCmd) own(env *environment, show func(api.BootEvent), request api.AdapterRequest) (*guestNetwork, error) {
	p := &config.PXE{Address: c.Address, Root: c.Root}
	switch {
	case c.Boot != "":
		p.Boot = []config.Boot{{File: c.Boot}}
	case c.Kernel != "":
		p.Boot = []config.Boot{{Match: config.Match{UserClass: "iPXE"}, Kernel: c.Kernel, Initrd: c.Initrd, Append: c.Append}}
	}
	cfg, err := config.ForRun(request.Switch, p)
	if err != nil {
		return nil, usageError{fmt.Errorf("run: %w", err)}
	}
	dir, err := os.MkdirTemp(env.dir, "run-")
	if err != nil {
		return nil, fmt.Errorf("directory of sockets: %w: choose another --runtime-dir", err)
	}
	n := &guestNetwork{undo: []func(){func() { os.RemoveAll(dir) }}}
	if n.world, err = build.New(cfg, build.Options{Dir: dir, Version: version(), Log: env.log}); err != nil {
		n.close()
		return nil, err
	}
	n.undo = append(n.undo, n.world.Close)
	events, stop := n.world.Subscribe()
	var done sync.WaitGroup
	done.Go(func() {
		for e := range events {
			if e.Boot != nil {
				show(*e.Boot)
			}
		}
	})
	n.undo[len(n.undo)-1] = func() { n.world.Close(); done.Wait(); stop() }
	if n.adapter, err = n.world.AddAdapter(request, true); err != nil {
		n.close()
		return nil, err
	}
	if c.Switch != "" {
		s, err := control.Listen(shared(env.dir, c.Switch), control.NoGroup, n.world, env.log)
		if err != nil {
			n.close()
			return nil, err
		}
		n.shared = s
		n.undo = append(n.undo, func() { s.Close() })
	}
	return n, nil
}

// leave takes the guest off a switch of its own, and keeps the switch that other guests have
// joined until the last of them has gone.
func (n *guestNetwork) leave(env *environment) {
	if n.shared == nil {
		return
	}
	_ = n.world.RemoveAdapter(n.adapter.Name)
	for told := false; env.ctx.Err() == nil && !n.unshare(env); {
		if !told {
			env.log.Info("QEMU has ended; the switch stays for the other guests on it, until the last ends or polder is stopped", "guests", n.world.Adapters())
			told = true
		}
		select {
		case <-env.ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unshare lets nobody join any more if nobody is on the switch, and reports whether that is so.
func (n *guestNetwork) unshare(env *environment) bool {
	unlock, err := control.Lock(env.ctx, env.dir) // nobody is about to join
	if err != nil {
		return false
	}
	defer unlock()
	if n.world.Adapters() > 0 {
		return false
	}
	n.shared.Close()
	return true
}

// isTerminal tells whether w is a terminal, on which a line can be drawn again.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || strings.HasPrefix(os.Getenv("TERM"), "dumb") {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
