package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
)

// client returns a client of the daemon, or says that there is none. A user who runs none and names none means that of
// the system.
func (e *environment) client() (*control.Client, error) {
	err := control.Reach(e.control())
	if err != nil && e.dir == runtimeDir() && e.dir != systemDir {
		if _, serr := os.Stat(systemDir); serr == nil {
			e.dir = systemDir
			err = control.Reach(e.control())
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: you may not ask this daemon: ask as its owner or as a member of its --group", e.control())
	case err != nil:
		return nil, fmt.Errorf("%s: no daemon answers there: start one with polder serve, or name its --runtime-dir", e.control())
	}
	return control.Dial(e.control()), nil
}

// ask gets what is at path into v.
func (e *environment) ask(path string, v any) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	return c.Get(e.ctx, path, v)
}

// tell asks method of path.
func (e *environment) tell(method, path string, body, v any) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	return c.Do(e.ctx, method, path, body, v)
}

// showCmd shows everything on one screen.
type showCmd struct {
	output
	Switch string `arg:"" optional:"" complete:"switch" help:"Only this switch."`
}

// Run implements the command.
func (c *showCmd) Run(env *environment) error {
	var s api.Status
	if err := env.ask(api.PathStatus, &s); err != nil {
		return err
	}
	if c.Switch != "" {
		i := slices.IndexFunc(s.Switches, func(sw api.Switch) bool { return sw.Name == c.Switch })
		if i < 0 {
			return fmt.Errorf("there is no switch %q: polder show names them", c.Switch)
		}
		s.Switches, s.Adapters = s.Switches[i:i+1], []api.Port{}
	}
	return c.print(env.stdout, s, func(w io.Writer) {
		row(w, "SWITCH", "TYPE", "PORT", "KIND", "STATE", "VLAN", "MAC", "RX", "TX", "DROPS")
		for _, sw := range s.Switches {
			for i, p := range sw.Ports {
				name, typ := sw.Name, sw.Type
				if i > 0 {
					name, typ = " ", " "
				}
				showPort(w, name, typ, &p)
			}
			if len(sw.Ports) == 0 {
				row(w, sw.Name, sw.Type, "", "", "", "", "", "", "", "")
			}
		}
		for _, p := range s.Adapters {
			showPort(w, "", "", &p)
		}
	})
}

func showPort(w io.Writer, sw, typ string, p *api.Port) {
	row(w, sw, typ, p.Name, p.Kind, state(p), vlanOf(p), p.MAC, amount(p.RxBytes), amount(p.TxBytes), total(p.Drops))
}

// state is how a port is: whether a hypervisor is attached, and what else an operator would wonder about.
func state(p *api.Port) string {
	s := "off"
	if p.Attached {
		s = "attached"
	}
	switch {
	case p.Switch == "":
		s += ", unplugged"
	case p.Link == config.LinkDown:
		s += ", link down"
	}
	return s
}

func vlanOf(p *api.Port) string {
	if p.Policy == nil || p.Policy.VLAN == nil {
		return ""
	}
	v := p.Policy.VLAN
	switch {
	case v.Trunk != nil && v.Native != 0:
		return fmt.Sprintf("trunk %v native %d", v.Trunk, v.Native)
	case v.Trunk != nil:
		return fmt.Sprintf("trunk %v", v.Trunk)
	case v.Isolated != 0:
		return fmt.Sprintf("isolated %d/%d", v.Primary, v.Isolated)
	case v.Community != 0:
		return fmt.Sprintf("community %d/%d", v.Primary, v.Community)
	case v.Promiscuous != nil:
		return fmt.Sprintf("promiscuous %d/%v", v.Primary, v.Promiscuous)
	}
	return fmt.Sprint(v.Access)
}

func total(drops map[string]uint64) (n uint64) {
	for _, c := range drops {
		n += c
	}
	return n
}

// leasesCmd shows leases.
type leasesCmd struct{ output }

// Run implements the command.
func (c *leasesCmd) Run(env *environment) error {
	var list []api.Lease
	if err := env.ask(api.PathLeases, &list); err != nil {
		return err
	}
	return c.print(env.stdout, list, func(w io.Writer) {
		row(w, "SWITCH", "ADDRESS", "MAC", "HOSTNAME", "UUID", "EXPIRES", "RESERVED")
		for _, l := range list {
			expires := "never"
			if !l.Expires.IsZero() {
				expires = "in " + age(time.Until(l.Expires))
			}
			reserved := ""
			if l.Reserved {
				reserved = "yes"
			}
			row(w, l.Switch, l.Address, l.MAC, l.Hostname, l.UUID, expires, reserved)
		}
	})
}

// bootsCmd shows the last step of each client's boot.
type bootsCmd struct{ output }

// Run implements the command.
func (c *bootsCmd) Run(env *environment) error {
	var list []api.BootEvent
	if err := env.ask(api.PathBoots, &list); err != nil {
		return err
	}
	return c.print(env.stdout, list, func(w io.Writer) {
		row(w, "SWITCH", "MAC", "ADDRESS", "STEP", "FILE", "SENT", "AFTER", "AGO", "DETAIL")
		for _, b := range list {
			row(w, b.Switch, b.MAC, b.IP, b.Kind, b.Name, amount(uint64(b.Bytes)), fmt.Sprintf("%.1fs", b.Elapsed.Seconds()), age(time.Since(b.Time)), b.Detail)
		}
	})
}

// dropsCmd shows why frames were dropped.
type dropsCmd struct {
	output
	Port  string `arg:"" optional:"" complete:"port" help:"Only this port."`
	Watch bool   `help:"Go on, and show what was dropped in each second."`
}

// dropped is how many frames a port's reason has cost.
type dropped struct {
	Switch string `json:"switch"`
	Port   string `json:"port"`
	Reason string `json:"reason"`
	Frames uint64 `json:"frames"`
}

// Run implements the command.
func (c *dropsCmd) Run(env *environment) error {
	list, err := c.read(env)
	if err != nil {
		return err
	}
	if !c.Watch {
		return c.show(env, list, "FRAMES")
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-env.ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := c.read(env)
		if err != nil {
			return err
		}
		news := droppedSince(list, now)
		list = now
		if len(news) > 0 {
			if err := c.show(env, news, "FRAMES/S"); err != nil {
				return err
			}
		}
	}
}

// droppedSince returns what now counts more than old does. A port that counts less was made anew.
func droppedSince(old, now []dropped) (news []dropped) {
	for _, d := range now {
		for _, o := range old {
			if o.Switch == d.Switch && o.Port == d.Port && o.Reason == d.Reason && o.Frames <= d.Frames {
				d.Frames -= o.Frames
			}
		}
		if d.Frames > 0 {
			news = append(news, d)
		}
	}
	return news
}

func (c *dropsCmd) read(env *environment) (list []dropped, err error) {
	var s api.Status
	if err := env.ask(api.PathStatus, &s); err != nil {
		return nil, err
	}
	found := false
	ports := s.Adapters
	for _, sw := range s.Switches {
		ports = append(ports, sw.Ports...)
	}
	for _, p := range ports {
		if c.Port != "" && c.Port != p.Name {
			continue
		}
		found = true
		for _, reason := range slices.Sorted(maps.Keys(p.Drops)) {
			list = append(list, dropped{p.Switch, p.Name, reason, p.Drops[reason]})
		}
	}
	if !found && c.Port != "" {
		return nil, fmt.Errorf("there is no port %q: polder show names them", c.Port)
	}
	return list, nil
}

func (c *dropsCmd) show(env *environment, list []dropped, heading string) error {
	if list == nil {
		list = []dropped{}
	}
	return c.print(env.stdout, list, func(w io.Writer) {
		row(w, "SWITCH", "PORT", "REASON", heading)
		for _, d := range list {
			row(w, d.Switch, d.Port, d.Reason, d.Frames)
		}
	})
}

// monitorCmd shows events.
type monitorCmd struct {
	Output string `short:"o" help:"Form of the output: table, or json with one event a line." enum:"table,json" default:"table" placeholder:"FORM"`
}

// Run implements the command.
func (c *monitorCmd) Run(env *environment) error {
	client, err := env.client()
	if err != nil {
		return err
	}
	s, err := client.Events(env.ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		e, err := s.Next()
		switch {
		case env.ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if c.Output == "json" {
			err = printJSONLine(env.stdout, e)
		} else {
			_, err = fmt.Fprintln(env.stdout, eventLine(&e))
		}
		if err != nil {
			return err
		}
	}
}

// eventLine is an event on one line.
func eventLine(e *api.Event) string {
	words := []string{e.Time.Local().Format("15:04:05.000"), e.Kind}
	for _, w := range []struct{ name, value string }{{"switch", e.Switch}, {"port", e.Port}} {
		if w.value != "" {
			words = append(words, w.name, w.value)
		}
	}
	if b := e.Boot; b != nil {
		words = append(words, "mac", b.MAC, b.Kind)
		for _, w := range []string{b.IP, b.Name, b.Detail} {
			if w != "" {
				words = append(words, w)
			}
		}
	}
	if e.Detail != "" {
		words = append(words, e.Detail)
	}
	return strings.Join(words, " ")
}

// captureCmd captures frames.
type captureCmd struct {
	Ports   []string `arg:"" optional:"" name:"port" complete:"port" help:"Ports whose frames are captured; none: all."`
	Switch  string   `complete:"switch" help:"Only ports of this switch." placeholder:"NAME"`
	Drops   bool     `help:"Only frames that the switch drops. Each packet's comment says why."`
	Snaplen int      `help:"Most bytes of each frame; 0: all." default:"0" placeholder:"N"`
	Write   string   `short:"w" help:"File to write to, in place of standard output." placeholder:"FILE"`
}

// Help implements kong's HelpProvider.
func (*captureCmd) Help() string {
	return `Example: polder capture web01 | wireshark -k -i -

Each port is an interface of the capture, each packet has its direction, and that of a dropped frame a comment with the reason. The capture ends with Ctrl-C.`
}

// Run implements the command.
func (c *captureCmd) Run(env *environment) (err error) {
	if c.Snaplen < 0 {
		return usageError{fmt.Errorf("capture: --snaplen %d: from 0", c.Snaplen)}
	}
	out := env.stdout
	if c.Write == "" && isTerminal(out) {
		return usageError{errors.New("capture: a capture is no text: give --write FILE, or a pipe as in: polder capture | wireshark -k -i -")}
	}
	client, err := env.client()
	if err != nil {
		return err
	}
	q := url.Values{"port": c.Ports}
	if c.Switch != "" {
		q.Set("switch", c.Switch)
	}
	if c.Drops {
		q.Set("drops", "true")
	}
	if c.Snaplen > 0 {
		q.Set("snaplen", fmt.Sprint(c.Snaplen))
	}
	body, err := client.Open(env.ctx, control.Path(api.PathCapture, q))
	if err != nil {
		return err
	}
	defer body.Close()
	if c.Write != "" {
		f, err := os.Create(c.Write)
		if err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, f.Close()) }()
		out = f
	}
	_, err = io.Copy(out, body)
	if env.ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, syscall.EPIPE) {
		return nil // the operator, or Wireshark, has seen enough
	}
	return err
}
