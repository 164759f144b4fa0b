package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/hostnet"
)

// externalCmds are the verbs for what external switches do to the host's network.
type externalCmds struct {
	Plan     externalPlanCmd     `cmd:"" help:"Show what would be done to the host's network, and touch nothing."`
	Commit   externalCommitCmd   `cmd:"" help:"Do it, or keep what waits for a confirmation."`
	Rollback externalRollbackCmd `cmd:"" help:"Put the host's network back as it was. The switch stays, without its uplink."`
	Show     externalShowCmd     `cmd:"" help:"Show a switch's hold on the host's network."`
}

// externalPlanCmd shows a plan. It needs no daemon, and no privilege.
type externalPlanCmd struct {
	Name         string `arg:"" complete:"switch" help:"Name of the switch."`
	Config       string `short:"c" help:"Configuration file that has the switch." type:"path" placeholder:"FILE" xor:"what"`
	NIC          string `help:"The host's network adapter, if there is no file." name:"nic" placeholder:"NAME" xor:"what"`
	Bridge       string `help:"A kernel bridge that is there already, in place of --nic." placeholder:"NAME" xor:"what"`
	Driver       string `help:"bridge or packet." enum:"bridge,packet" default:"bridge" placeholder:"DRIVER"`
	ManagementOS bool   `help:"The host uses the switch, too." name:"allow-management-os" default:"true" negatable:""`
}

// Run implements the command.
func (c *externalPlanCmd) Run(env *environment) error {
	s, err := c.find(env)
	if err != nil {
		return err
	}
	p, err := hostnet.PlanExternal(build.ExternalOf(s))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(env.stdout, p)
	return err
}

// find returns the switch as the file, the flags or the daemon have it.
func (c *externalPlanCmd) find(env *environment) (*config.Switch, error) {
	var cfg *config.Config
	var err error
	switch {
	case c.NIC != "" || c.Bridge != "":
		s := &config.Switch{Name: c.Name, Type: config.TypeExternal, Uplink: &config.Uplink{NIC: c.NIC, Bridge: c.Bridge, Driver: c.Driver}}
		if !c.ManagementOS {
			s.AllowManagementOS = &c.ManagementOS
		}
		text, err := s.Marshal()
		if err != nil {
			return nil, err
		}
		return config.ParseSwitch("command line", text)
	case c.Config != "":
		cfg, err = loadConfig(c.Config)
	default:
		cfg, err = (&vmFlags{}).config(env)
	}
	if err != nil {
		return nil, err
	}
	for i := range cfg.Switches {
		if s := &cfg.Switches[i]; s.Name == c.Name {
			if s.Type != config.TypeExternal {
				return nil, fmt.Errorf("switch %q is %s: only an external switch does anything to the host's network adapters", s.Name, s.Type)
			}
			return s, nil
		}
	}
	return nil, fmt.Errorf("there is no switch %q: to plan one, give --nic or --config", c.Name)
}

// externalCommitCmd commits.
type externalCommitCmd struct {
	output
	Name           string        `arg:"" complete:"switch" help:"Name of the switch."`
	ConfirmTimeout time.Duration `help:"Roll back unless the command is given again within this time; 0: keep it." default:"0s" placeholder:"TIME"`
}

// Run implements the command.
func (c *externalCommitCmd) Run(env *environment) error {
	return changeExternal(env, c.output, c.Name, api.ExternalRequest{Action: api.ExternalCommit, Timeout: c.ConfirmTimeout})
}

// externalRollbackCmd rolls back.
type externalRollbackCmd struct {
	output
	Name string `arg:"" complete:"switch" help:"Name of the switch."`
}

// Run implements the command.
func (c *externalRollbackCmd) Run(env *environment) error {
	return changeExternal(env, c.output, c.Name, api.ExternalRequest{Action: api.ExternalRollback})
}

// externalShowCmd shows a switch's hold on the host's network.
type externalShowCmd struct {
	output
	Name string `arg:"" complete:"switch" help:"Name of the switch."`
}

// Run implements the command.
func (c *externalShowCmd) Run(env *environment) error {
	var e api.External
	if err := env.ask(control.Path(api.PathExternal, nil, c.Name), &e); err != nil {
		return err
	}
	return printExternal(env, c.output, &e)
}

func changeExternal(env *environment, o output, name string, r api.ExternalRequest) error {
	var e api.External
	if err := env.tell(http.MethodPost, control.Path(api.PathExternal, nil, name), r, &e); err != nil {
		return err
	}
	return printExternal(env, o, &e)
}

func printExternal(env *environment, o output, e *api.External) error {
	return o.print(env.stdout, e, func(w io.Writer) {
		row(w, "SWITCH", "STATE", "NIC", "DRIVER", "HOST", "MTU")
		row(w, e.Switch, e.State, e.NIC, e.Driver, e.Device, e.MTU)
		if e.State == api.ExternalUnconfirmed {
			fmt.Fprintf(w, "It is rolled back %s unless you keep it: polder external commit %s\n", e.Until.Local().Format("at 15:04:05"), e.Switch)
		}
		for _, n := range e.Notes {
			fmt.Fprintln(w, n)
		}
	})
}
