package main

import (
	"cmp"
	"fmt"
	"strings"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/qemu"
)

// vmFlags name a VM of a file or of the daemon.
type vmFlags struct {
	Config string `short:"c" help:"Configuration file; without one the daemon is asked." type:"path" placeholder:"FILE"`
	VM     string `arg:"" complete:"vm" help:"Name of the VM."`
}

// find returns the VM, and its adapters as QEMU needs to know them.
func (f *vmFlags) find(env *environment) (*config.VM, []qemu.Adapter, error) {
	cfg, err := f.config(env)
	if err != nil {
		return nil, nil, err
	}
	mtu := map[string]int{}
	for _, s := range cfg.Switches {
		mtu[s.Name] = s.MTU
	}
	var names []string
	for i := range cfg.VMs {
		vm := &cfg.VMs[i]
		if vm.Name != f.VM {
			names = append(names, vm.Name)
			continue
		}
		var list []qemu.Adapter
		for _, a := range vm.Adapters {
			qa := qemu.Adapter{ID: a.Name, Socket: cmp.Or(a.Socket.Path, build.SocketPath(env.dir, a.Name)), BootIndex: -1}
			if a.BootIndex != nil {
				qa.BootIndex = *a.BootIndex
			}
			if a.Kind == config.KindSynthetic {
				if a.MAC == (config.MAC{}) {
					return nil, nil, fmt.Errorf("adapter %q has a MAC address of the pool, which the daemon knows: leave out --config", a.Name)
				}
				qa.Synthetic = &qemu.Synthetic{MAC: a.MAC.String(), Queues: max(a.Queues, 1), MTU: mtu[a.Switch], Listen: a.Socket.Mode == config.ModeClient, ROM: a.ROM}
			}
			list = append(list, qa)
		}
		return vm, list, nil
	}
	where := f.Config
	if where == "" {
		where = "the running configuration"
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("%s: there are no VMs in it: add %q under vms", where, f.VM)
	}
	return nil, nil, fmt.Errorf("%s: there is no VM %q: it has %s", where, f.VM, strings.Join(names, ", "))
}

// config returns the file's configuration, or the running one.
func (f *vmFlags) config(env *environment) (*config.Config, error) {
	if f.Config != "" {
		return loadConfig(f.Config)
	}
	var text []byte
	if err := env.tell("GET", api.PathConfig, nil, &text); err != nil {
		return nil, err
	}
	return config.Parse("running configuration", text)
}

// shellSpecial is what a shell does not take as it is.
const shellSpecial = " \t\n'\"\\$`&|;<>(){}[]*?!#~"

// qemuArgsCmd prints a VM's QEMU options.
type qemuArgsCmd struct {
	vmFlags
	Quote bool `help:"Quote for pasting into a shell; without it the output suits $(polder qemu-args ...)."`
}

// Run implements the command.
func (c *qemuArgsCmd) Run(env *environment) error {
	vm, adapters, err := c.find(env)
	if err != nil {
		return err
	}
	args := qemu.MemoryArgs(uint64(vm.Memory))
	for _, a := range adapters {
		args = append(args, a.DeviceArgs()...)
	}
	if len(adapters) > 0 {
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

// libvirtXMLCmd prints a VM's XML.
type libvirtXMLCmd struct {
	vmFlags
	Type string `help:"Hypervisor: kvm, or qemu for emulation." enum:"kvm,qemu" default:"kvm" placeholder:"TYPE"`
}

// Help implements kong's HelpProvider.
func (*libvirtXMLCmd) Help() string {
	return `The XML is a whole domain with the shared memory, the synthetic adapters as interfaces, and the legacy ones as arguments of QEMU's, which libvirt has no element for. Merge it with the guest's disks and processors, or define it and edit it there.`
}

// Run implements the command.
func (c *libvirtXMLCmd) Run(env *environment) error {
	vm, adapters, err := c.find(env)
	if err != nil {
		return err
	}
	text, err := (&qemu.Domain{Name: vm.Name, Type: c.Type, Memory: uint64(vm.Memory), Adapters: adapters}).XML()
	if err != nil {
		return err
	}
	_, err = env.stdout.Write(text)
	return err
}
