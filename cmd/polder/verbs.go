package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
)

// applyCmd makes a file the running configuration.
type applyCmd struct {
	output
	File   string `short:"f" help:"Configuration file." required:"" type:"path" placeholder:"FILE"`
	DryRun bool   `help:"Only show what would change."`
}

// Run implements the command.
func (c *applyCmd) Run(env *environment) error {
	text, err := os.ReadFile(c.File)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if _, err := config.Parse(c.File, text); err != nil {
		return err
	}
	q := url.Values{"file": {c.File}}
	if c.DryRun {
		q.Set("dry_run", "true")
	}
	var changes []api.Change
	if err := env.tell(http.MethodPut, control.Path(api.PathConfig, q), text, &changes); err != nil {
		return err
	}
	return c.print(env.stdout, changes, func(w io.Writer) {
		signs := map[string]string{api.ChangeAdd: "+", api.ChangeRemove: "-", api.ChangeSet: "~", api.ChangeReplace: "±"}
		for _, ch := range changes {
			fmt.Fprintf(w, "%s %s\t%s\t%s\n", signs[ch.Action], ch.Kind, ch.Name, ch.Detail)
		}
		if len(changes) == 0 {
			fmt.Fprintln(w, "nothing changes")
		}
	})
}

// configCmd prints the running configuration.
type configCmd struct{}

// Help implements kong's HelpProvider.
func (configCmd) Help() string {
	return `What operators change is gone when the daemon ends, unless it is in the file that it starts with. Keep it: polder config > FILE`
}

// Run implements the command.
func (configCmd) Run(env *environment) error {
	var text []byte
	if err := env.ask(api.PathConfig, &text); err != nil {
		return err
	}
	_, err := env.stdout.Write(text)
	return err
}

// switchCmds are the verbs for switches.
type switchCmds struct {
	Add    switchAddCmd    `cmd:"" help:"Add a switch to the running daemon."`
	Remove switchRemoveCmd `cmd:"" help:"Remove a switch. Adapters on it stay, disconnected."`
	Show   showCmd         `cmd:"" help:"Show switches and what is on them."`
}

// switchAddCmd adds a switch.
type switchAddCmd struct {
	Name         string         `arg:"" help:"Name of the switch."`
	Type         string         `help:"private (guests only), internal (and the host) or external (and a network adapter of the host)." enum:"private,internal,external" default:"private" placeholder:"TYPE"`
	NIC          string         `help:"Of an external switch: the host's network adapter." name:"nic" placeholder:"NAME"`
	Bridge       string         `help:"Of an external switch: a kernel bridge that is there already, in place of --nic." placeholder:"NAME"`
	Driver       string         `help:"Of an external switch: bridge (the host stays online when Polder ends) or packet." enum:"bridge,packet" default:"bridge" placeholder:"DRIVER"`
	ManagementOS bool           `help:"Of an external switch: the host uses it, too." name:"allow-management-os" default:"true" negatable:""`
	Address      []netip.Prefix `help:"Of an internal switch: the host's address on it; may be repeated." placeholder:"ADDR/BITS"`
	NAT          bool           `help:"Of an internal switch: guests reach the outside with the host's address." name:"nat"`
	PXE          bool           `help:"Put a boot service on the switch." name:"pxe"`
	PXEAddress   netip.Prefix   `help:"The boot service's address." name:"pxe-address" placeholder:"ADDR/BITS"`
	Root         string         `help:"Directory of the boot service's files." type:"path" placeholder:"DIR"`
	AgeingTime   time.Duration  `help:"How long a learned address is kept." default:"300s" placeholder:"TIME"`
	MTU          int            `help:"Most bytes of a frame behind its Ethernet header (default: 1500)." name:"mtu" placeholder:"BYTES"`

	ConfirmTimeout time.Duration `help:"Of an external switch: put the host's network back unless polder external commit is given within this time." placeholder:"TIME"`
}

// Run implements the command.
func (c *switchAddCmd) Run(env *environment) error {
	if c.ConfirmTimeout != 0 && c.Type != config.TypeExternal {
		return usageError{errors.New("switch add: --confirm-timeout is for --type external: others do not touch the host's network adapters")}
	}
	s := config.Switch{Name: c.Name, Type: c.Type, AgeingTime: c.AgeingTime, MTU: c.MTU}
	if c.NIC != "" || c.Bridge != "" {
		s.Uplink = &config.Uplink{NIC: c.NIC, Bridge: c.Bridge, Driver: c.Driver}
	}
	if c.Type == config.TypeExternal && !c.ManagementOS {
		s.AllowManagementOS = &c.ManagementOS
	}
	if len(c.Address) > 0 || c.NAT {
		s.Management = &config.Management{Address: c.Address, NAT: c.NAT}
	}
	if c.PXE || c.Root != "" || c.PXEAddress.IsValid() {
		s.PXE = &config.PXE{Address: c.PXEAddress, Root: c.Root}
		s.PXE.Complete(".")
	}
	text, err := s.Marshal()
	if err != nil {
		return err
	}
	q := url.Values{}
	if c.ConfirmTimeout > 0 {
		q.Set("confirm_timeout", c.ConfirmTimeout.String())
	}
	return env.tell(http.MethodPost, control.Path(api.PathSwitches, q), text, nil)
}

// switchRemoveCmd removes a switch.
type switchRemoveCmd struct {
	Name string `arg:"" complete:"switch" help:"Name of the switch."`
}

// Run implements the command.
func (c *switchRemoveCmd) Run(env *environment) error {
	return env.tell(http.MethodDelete, control.Path(api.PathSwitch, nil, c.Name), nil, nil)
}

// adapterCmds are the verbs for adapters.
type adapterCmds struct {
	Add        adapterAddCmd        `cmd:"" help:"Add an adapter to the running daemon."`
	Set        adapterSetCmd        `cmd:"" help:"Change what the switch does with an adapter's frames."`
	Remove     adapterRemoveCmd     `cmd:"" help:"Remove an adapter. A hypervisor that is attached loses it."`
	Connect    adapterConnectCmd    `cmd:"" help:"Connect an adapter to a switch, as one plugs a cable in."`
	Disconnect adapterDisconnectCmd `cmd:"" help:"Take an adapter off its switch. The guest keeps it."`
	Show       adapterShowCmd       `cmd:"" help:"Show adapters."`
}

// policyFlags are an adapter's policy on the command line.
type policyFlags struct {
	MACSpoofing onOff  `help:"Whether the guest may send from other MAC addresses than its own." name:"mac-spoofing" enum:",on,off" default:"" placeholder:"on|off"`
	DHCPGuard   onOff  `help:"Whether the guest is kept from being a DHCP server." name:"dhcp-guard" enum:",on,off" default:"" placeholder:"on|off"`
	RouterGuard onOff  `help:"Whether the guest is kept from being an IPv6 router." enum:",on,off" default:"" placeholder:"on|off"`
	BPDU        string `help:"What becomes of spanning tree's frames from the guest: drop, shutdown or allow." name:"bpdu" enum:",drop,shutdown,allow" default:"" placeholder:"WHAT"`
	StormLimit  *int   `help:"Most broadcast, multicast and unknown frames a second from the guest; 0: no limit." placeholder:"N"`
	Bandwidth   string `help:"Most bits a second from the guest, like 100M; 0: no limit." placeholder:"RATE"`
	Mirror      string `help:"source: a copy of the adapter's frames goes to each destination; destination: it is given these copies; or none." enum:",none,source,destination" default:"" placeholder:"PART"`
	Link        string `help:"up or down." enum:",up,down" default:"" placeholder:"STATE"`
	ACL         string `help:"File with a list of rules, as under acl in a configuration." name:"acl" type:"existingfile" placeholder:"FILE"`
}

// policy returns what the flags say.
func (f *policyFlags) policy() (p config.Policy, err error) {
	p = config.Policy{
		MACSpoofing: f.MACSpoofing.bool(), DHCPGuard: f.DHCPGuard.bool(), RouterGuard: f.RouterGuard.bool(),
		BPDU: f.BPDU, StormLimit: f.StormLimit, Mirror: f.Mirror, Link: f.Link,
	}
	if f.Bandwidth != "" {
		rate, err := config.ParseRate(f.Bandwidth)
		if err != nil {
			return p, usageError{fmt.Errorf("--bandwidth: %q is %w", f.Bandwidth, err)}
		}
		p.Bandwidth = &rate
	}
	if f.ACL != "" {
		text, err := os.ReadFile(f.ACL)
		if err != nil {
			return p, err
		}
		if p.ACL, err = config.ParseACL(f.ACL, text); err != nil {
			return p, err
		}
	}
	return p, nil
}

// adapterAddCmd adds an adapter.
type adapterAddCmd struct {
	output
	Name      string `arg:"" help:"Name of the adapter, its port and its socket."`
	Switch    string `complete:"switch" help:"Switch that it is on; empty: none." default:"${default_switch}" placeholder:"NAME"`
	VM        string `help:"VM that it belongs to (default: the adapter's name)." name:"vm" placeholder:"NAME"`
	Legacy    bool   `help:"A legacy adapter, a DEC 21140 (the default)." xor:"kind"`
	Synthetic bool   `help:"A synthetic adapter, virtio." xor:"kind"`
	MAC       string `help:"MAC address (default: from the pool, or made from the name)." name:"mac" placeholder:"MAC"`
	ROM       string `help:"Boot ROM of a legacy adapter: a file, or none." name:"rom" placeholder:"FILE"`
	Queues    int    `help:"Queue pairs of a synthetic adapter." placeholder:"N"`
	Socket    string `help:"Path of the adapter's socket (default: in the directory of sockets)." type:"path" placeholder:"PATH"`
	Client    bool   `help:"Of a synthetic adapter: the hypervisor listens on the socket, and Polder connects."`
	policyFlags
}

// Run implements the command.
func (c *adapterAddCmd) Run(env *environment) error {
	p, err := c.policy()
	if err != nil {
		return err
	}
	r := api.AdapterRequest{Name: c.Name, Switch: c.Switch, VM: c.VM, MAC: c.MAC, Kind: config.KindLegacy, Queues: c.Queues, Socket: c.Socket, Client: c.Client, Policy: p}
	switch {
	case c.Synthetic:
		r.Kind = config.KindSynthetic
		if c.ROM != "" {
			return usageError{fmt.Errorf("adapter add: --rom is for legacy adapters: QEMU gives a synthetic one its ROM")}
		}
	case c.Queues != 0:
		return usageError{fmt.Errorf("adapter add: --queues is for synthetic adapters")}
	default:
		if err := build.ReadROM(c.ROM, &r); err != nil {
			return err
		}
	}
	var a api.Adapter
	if err := env.tell(http.MethodPost, api.PathAdapters, r, &a); err != nil {
		return err
	}
	return c.print(env.stdout, a, func(w io.Writer) {
		row(w, "ADAPTER", "SWITCH", "KIND", "MAC", "SOCKET")
		row(w, a.Name, a.Switch, a.Kind, a.MAC, a.Socket)
	})
}

// adapterSetCmd changes an adapter's policy.
type adapterSetCmd struct {
	Name string `arg:"" complete:"adapter" help:"Name of the adapter."`
	policyFlags
	NoACL bool `help:"Take all rules away." name:"no-acl" xor:"acl"`
}

// Run implements the command.
func (c *adapterSetCmd) Run(env *environment) error {
	p, err := c.policy()
	if err != nil {
		return err
	}
	change := api.AdapterChange{NoACL: c.NoACL, Policy: p}
	if text, _ := json.Marshal(change); string(text) == "{}" {
		return usageError{fmt.Errorf("adapter set: say what to change: --help names the flags")}
	}
	return changeAdapter(env, c.Name, change)
}

func changeAdapter(env *environment, name string, c api.AdapterChange) error {
	return env.tell(http.MethodPatch, control.Path(api.PathAdapter, nil, name), c, nil)
}

// adapterRemoveCmd removes an adapter.
type adapterRemoveCmd struct {
	Name string `arg:"" complete:"adapter" help:"Name of the adapter."`
}

// Run implements the command.
func (c *adapterRemoveCmd) Run(env *environment) error {
	return env.tell(http.MethodDelete, control.Path(api.PathAdapter, nil, c.Name), nil, nil)
}

// adapterConnectCmd connects an adapter.
type adapterConnectCmd struct {
	Name   string `arg:"" complete:"adapter" help:"Name of the adapter."`
	Switch string `arg:"" complete:"switch" help:"Name of the switch."`
}

// Run implements the command.
func (c *adapterConnectCmd) Run(env *environment) error {
	return changeAdapter(env, c.Name, api.AdapterChange{Switch: &c.Switch})
}

// adapterDisconnectCmd disconnects an adapter.
type adapterDisconnectCmd struct {
	Name string `arg:"" complete:"adapter" help:"Name of the adapter."`
}

// Run implements the command.
func (c *adapterDisconnectCmd) Run(env *environment) error {
	return changeAdapter(env, c.Name, api.AdapterChange{Switch: new(string)})
}

// adapterShowCmd shows adapters.
type adapterShowCmd struct {
	output
	Name string `arg:"" optional:"" complete:"adapter" help:"Only this adapter, with its policy."`
}

// Run implements the command.
func (c *adapterShowCmd) Run(env *environment) error {
	if c.Name == "" {
		var list []api.Port
		if err := env.ask(api.PathAdapters, &list); err != nil {
			return err
		}
		return c.print(env.stdout, list, func(w io.Writer) {
			row(w, "ADAPTER", "VM", "SWITCH", "KIND", "STATE", "VLAN", "MAC", "SOCKET")
			for _, p := range list {
				row(w, p.Name, p.VM, p.Switch, p.Kind, state(&p), vlanOf(&p), p.MAC, p.Socket)
			}
		})
	}
	var p api.Port
	if err := env.ask(control.Path(api.PathAdapter, nil, c.Name), &p); err != nil {
		return err
	}
	return c.print(env.stdout, p, func(w io.Writer) {
		for _, line := range [][2]string{
			{"adapter", p.Name}, {"vm", p.VM}, {"switch", p.Switch}, {"kind", p.Kind}, {"state", state(&p)}, {"mac", p.MAC}, {"socket", p.Socket},
			{"received from it", fmt.Sprintf("%d frames, %s", p.RxFrames, amount(p.RxBytes))},
			{"sent to it", fmt.Sprintf("%d frames, %s", p.TxFrames, amount(p.TxBytes))},
		} {
			row(w, line[0], line[1])
		}
		for _, reason := range slices.Sorted(maps.Keys(p.Drops)) {
			row(w, "dropped: "+reason, fmt.Sprintf("%d frames", p.Drops[reason]))
		}
		if p.Policy != nil {
			policyRows(w, p.Policy, p.ACL)
		}
	})
}

// policyRows writes what of a policy is not as by default.
func policyRows(w io.Writer, p *config.Policy, matched []uint64) {
	rest := *p
	rest.ACL = nil
	text, err := yaml.Marshal(rest)
	if err != nil {
		return
	}
	var keys yaml.MapSlice
	if yaml.Unmarshal(text, &keys) == nil {
		for _, k := range keys {
			v, _ := yaml.MarshalWithOptions(k.Value, yaml.Flow(true))
			row(w, fmt.Sprint(k.Key), string(trimNewline(v)))
		}
	}
	for i, r := range p.ACL {
		v, _ := yaml.MarshalWithOptions(r, yaml.Flow(true))
		n := uint64(0)
		if i < len(matched) {
			n = matched[i]
		}
		row(w, fmt.Sprintf("acl %d", i+1), fmt.Sprintf("%s: %d frames", trimNewline(v), n))
	}
}

func trimNewline(text []byte) []byte {
	for len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	return text
}

// vlanCmds are the verbs for VLANs.
type vlanCmds struct {
	Set vlanSetCmds `cmd:"" help:"Put an adapter into a VLAN."`
}

// vlanSetCmds are the modes.
type vlanSetCmds struct {
	Access      vlanAccessCmd      `cmd:"" help:"One VLAN; the guest sees no tags."`
	Trunk       vlanTrunkCmd       `cmd:"" help:"Several VLANs, whose tags the guest sees."`
	Isolated    vlanIsolatedCmd    `cmd:"" help:"A private VLAN: reaches promiscuous adapters only."`
	Community   vlanCommunityCmd   `cmd:"" help:"A private VLAN: reaches its community and promiscuous adapters."`
	Promiscuous vlanPromiscuousCmd `cmd:"" help:"A private VLAN: reaches all."`
	None        vlanNoneCmd        `cmd:"" help:"No VLAN."`
}

// vlanAdapter names the adapter of a VLAN verb.
type vlanAdapter struct {
	Name string `arg:"" complete:"adapter" help:"Name of the adapter."`
}

func (a *vlanAdapter) set(env *environment, v *config.VLAN) error {
	return changeAdapter(env, a.Name, api.AdapterChange{Policy: config.Policy{VLAN: v}})
}

type vlanAccessCmd struct {
	vlanAdapter
	ID int `arg:"" help:"The VLAN."`
}

// Run implements the command.
func (c *vlanAccessCmd) Run(env *environment) error {
	return c.set(env, &config.VLAN{Access: c.ID})
}

type vlanTrunkCmd struct {
	vlanAdapter
	Allowed config.VLANs `arg:"" help:"The VLANs, like 1-100,200."`
	Native  int          `help:"VLAN of frames without a tag; 0: none." placeholder:"ID"`
}

// Run implements the command.
func (c *vlanTrunkCmd) Run(env *environment) error {
	return c.set(env, &config.VLAN{Trunk: &c.Allowed, Native: c.Native})
}

type vlanIsolatedCmd struct {
	vlanAdapter
	Primary   int `arg:"" help:"The primary VLAN."`
	Secondary int `arg:"" help:"The secondary VLAN."`
}

// Run implements the command.
func (c *vlanIsolatedCmd) Run(env *environment) error {
	return c.set(env, &config.VLAN{Primary: c.Primary, Isolated: c.Secondary})
}

type vlanCommunityCmd struct {
	vlanAdapter
	Primary   int `arg:"" help:"The primary VLAN."`
	Secondary int `arg:"" help:"The secondary VLAN."`
}

// Run implements the command.
func (c *vlanCommunityCmd) Run(env *environment) error {
	return c.set(env, &config.VLAN{Primary: c.Primary, Community: c.Secondary})
}

type vlanPromiscuousCmd struct {
	vlanAdapter
	Primary     int          `arg:"" help:"The primary VLAN."`
	Secondaries config.VLANs `arg:"" help:"The secondary VLANs, like 201-210."`
}

// Run implements the command.
func (c *vlanPromiscuousCmd) Run(env *environment) error {
	return c.set(env, &config.VLAN{Primary: c.Primary, Promiscuous: &c.Secondaries})
}

type vlanNoneCmd struct{ vlanAdapter }

// Run implements the command.
func (c *vlanNoneCmd) Run(env *environment) error {
	return changeAdapter(env, c.Name, api.AdapterChange{NoVLAN: true})
}

// fdbCmds are the verbs for forwarding databases.
type fdbCmds struct {
	Show  fdbShowCmd  `cmd:"" help:"Show the addresses that a switch knows."`
	Flush fdbFlushCmd `cmd:"" help:"Forget learned addresses."`
	Add   fdbAddCmd   `cmd:"" help:"Add a static address."`
	Del   fdbDelCmd   `cmd:"" help:"Remove an address."`
}

// fdbShowCmd shows addresses.
type fdbShowCmd struct {
	output
	Switch string `arg:"" complete:"switch" help:"Name of the switch."`
}

// Run implements the command.
func (c *fdbShowCmd) Run(env *environment) error {
	var list []api.MAC
	if err := env.ask(control.Path(api.PathFDB, nil, c.Switch), &list); err != nil {
		return err
	}
	return c.print(env.stdout, list, func(w io.Writer) {
		row(w, "MAC", "VLAN", "PORT", "AGE")
		for _, m := range list {
			vlan, last := "", age(m.Age)
			if m.VLAN != 0 {
				vlan = strconv.Itoa(m.VLAN)
			}
			if m.Static {
				last = "static"
			}
			row(w, m.MAC, vlan, m.Port, last)
		}
	})
}

// fdbFlushCmd forgets addresses.
type fdbFlushCmd struct {
	output
	Switch string `arg:"" complete:"switch" help:"Name of the switch."`
	Port   string `complete:"port" help:"Only those behind this port." placeholder:"NAME"`
	VLAN   int    `help:"Only those of this VLAN." name:"vlan" placeholder:"ID"`
}

// Run implements the command.
func (c *fdbFlushCmd) Run(env *environment) error {
	return flush(env, c.output, c.Switch, c.Port, "", c.VLAN)
}

func flush(env *environment, o output, sw, port, mac string, vlan int) error {
	q := url.Values{}
	for key, v := range map[string]string{"port": port, "mac": mac} {
		if v != "" {
			q.Set(key, v)
		}
	}
	if vlan != 0 {
		q.Set("vlan", strconv.Itoa(vlan))
	}
	var f api.Flushed
	if err := env.tell(http.MethodDelete, control.Path(api.PathFDB, q, sw), nil, &f); err != nil {
		return err
	}
	return o.print(env.stdout, f, func(w io.Writer) {
		if f.Count == 1 {
			fmt.Fprintln(w, "1 address forgotten")
		} else {
			fmt.Fprintf(w, "%d addresses forgotten\n", f.Count)
		}
	})
}

// fdbAddCmd adds a static address.
type fdbAddCmd struct {
	Switch string `arg:"" complete:"switch" help:"Name of the switch."`
	MAC    string `arg:"" name:"mac" help:"The address."`
	Port   string `arg:"" complete:"port" help:"The port that it is behind."`
	VLAN   int    `help:"VLAN." name:"vlan" placeholder:"ID"`
}

// Run implements the command.
func (c *fdbAddCmd) Run(env *environment) error {
	return env.tell(http.MethodPost, control.Path(api.PathFDB, nil, c.Switch), api.MACRequest{MAC: c.MAC, VLAN: c.VLAN, Port: c.Port}, nil)
}

// fdbDelCmd removes an address.
type fdbDelCmd struct {
	output
	Switch string `arg:"" complete:"switch" help:"Name of the switch."`
	MAC    string `arg:"" name:"mac" help:"The address."`
	VLAN   int    `help:"VLAN." name:"vlan" placeholder:"ID"`
}

// Run implements the command.
func (c *fdbDelCmd) Run(env *environment) error {
	return flush(env, c.output, c.Switch, "", c.MAC, c.VLAN)
}

func printJSONLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
