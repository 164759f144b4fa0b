package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/qemu"
	"polder/vswitch"
)

// serveCmd is the daemon.
type serveCmd struct {
	Config   string `short:"c" help:"Configuration file. Without one: a private switch named default with a boot service on it." placeholder:"FILE"`
	PollCPUs []int  `name:"poll-cpus" help:"Processors that do nothing but look out for the frames of synthetic adapters, as in 2,3: lowest latency, at full load even when all guests are idle. It goes before the file's poll_cpus." placeholder:"N,..."`
}

// Run implements the command.
func (c *serveCmd) Run(env *environment) error {
	cfg, err := loadConfig(c.Config)
	if err != nil {
		return err
	}
	if len(c.PollCPUs) > 0 {
		cfg.PollCPUs = c.PollCPUs
	}
	if err := env.makeDir(); err != nil {
		return err
	}
	unlock, err := control.Lock(env.ctx, env.dir) // one of two that start at once serves
	if err != nil {
		return err
	}
	defer unlock()
	if control.Alive(env.control()) {
		return fmt.Errorf("%s: another polder answers there: stop it, or choose another --runtime-dir", env.control())
	}
	w, err := build.New(cfg, env.dir, version(), env.log)
	if err != nil {
		return err
	}
	defer w.Close()
	events, stop := w.Subscribe()
	defer stop()
	s, err := control.Listen(env.control(), w, env.log)
	if err != nil {
		return err
	}
	defer s.Close()
	unlock()
	for _, sw := range w.Status().Switches {
		env.log.Info("switch ready", "switch", sw.Name, "type", sw.Type, "ports", len(sw.Ports))
	}
	env.log.Info("serving", "control", env.control())
	for {
		select {
		case e := <-events:
			logBoot(env.log, e)
		case <-env.ctx.Done():
			env.log.Info("stopping")
			return nil
		}
	}
}

// logBoot logs a step of a guest's boot.
func logBoot(log *slog.Logger, e api.BootEvent) {
	if e.Kind == "progress" {
		return
	}
	log.Info("boot", "switch", e.Switch, "mac", e.MAC, "step", e.Kind, "ip", e.IP, "file", e.Name, "bytes", e.Bytes,
		"elapsed_s", e.Elapsed.Seconds(), "detail", e.Detail)
}

// loadConfig reads the operator's file, or makes the configuration of none.
func loadConfig(file string) (*config.Config, error) {
	if file == "" {
		return config.Default(), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return config.Parse(file, text)
}

// shellSpecial is what a shell does not take as it is.
const shellSpecial = " \t\n'\"\\$`&|;<>(){}[]*?!#~"

// qemuArgsCmd prints a VM's QEMU options.
type qemuArgsCmd struct {
	Config string `short:"c" help:"Configuration file." required:"" placeholder:"FILE"`
	Quote  bool   `help:"Quote for pasting into a shell; without it the output suits $(polder qemu-args ...)."`
	VM     string `arg:"" help:"Name of the VM."`
}

// Run implements the command.
func (c *qemuArgsCmd) Run(env *environment) error {
	cfg, err := loadConfig(c.Config)
	if err != nil {
		return err
	}
	var names []string
	for _, vm := range cfg.VMs {
		if vm.Name != c.VM {
			names = append(names, vm.Name)
			continue
		}
		args := qemu.MemoryArgs(uint64(vm.Memory))
		mtu := map[string]int{}
		for _, s := range cfg.Switches {
			mtu[s.Name] = s.MTU
		}
		for i, a := range vm.Adapters {
			name := config.AdapterName(vm.Name, i)
			qa := qemu.Adapter{ID: name, Socket: cmp.Or(a.Socket.Path, build.SocketPath(env.dir, name)), BootIndex: -1}
			if a.BootIndex != nil {
				qa.BootIndex = *a.BootIndex
			}
			if a.Kind == config.KindSynthetic {
				qa.Synthetic = &qemu.Synthetic{MAC: vswitch.MAC(a.MAC).String(), Queues: max(a.Queues, 1), MTU: mtu[a.Switch], Listen: a.Socket.Mode == config.ModeClient, ROM: a.ROM}
			}
			args = append(args, qa.DeviceArgs()...)
		}
		if len(vm.Adapters) > 0 {
			args = append(args, "-nic", "none")
		}
		for i, a := range args {
			switch {
			case c.Quote && strings.ContainsAny(a, shellSpecial):
				args[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
			case strings.HasPrefix(a, "{"):
				args[i] = strings.ReplaceAll(a, " ", `\u0020`) // only in a path, where JSON takes it
			}
		}
		fmt.Fprintln(env.stdout, strings.Join(args, " "))
		return nil
	}
	if len(names) == 0 {
		return fmt.Errorf("%s: there are no VMs in it: add %q under vms", c.Config, c.VM)
	}
	return fmt.Errorf("%s: there is no VM %q: it has %s", c.Config, c.VM, strings.Join(names, ", "))
}
