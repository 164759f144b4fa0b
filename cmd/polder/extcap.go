package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"polder/cmd/internal/api"
	"polder/cmd/internal/control"
)

// extcapCLI is the command line by which Wireshark asks a program what it can capture, and has it capture (extcap(4)).
type extcapCLI struct {
	Interfaces bool   `name:"extcap-interfaces"`
	Version    string `name:"extcap-version"`
	Interface  string `name:"extcap-interface"`
	DLTs       bool   `name:"extcap-dlts"`
	Config     bool   `name:"extcap-config"`
	Filter     string `name:"extcap-capture-filter"`
	Reload     string `name:"extcap-reload-option"`
	Cleanup    bool   `name:"extcap-cleanup-postkill"`
	Capture    bool   `name:"capture"`
	FIFO       string `name:"fifo"`
	Drops      bool   `name:"drops"`
}

// isExtcap tells whether it is Wireshark that asks.
func isExtcap(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if strings.HasPrefix(a, "--extcap-") {
			return true
		}
	}
	return false
}

// extcap answers Wireshark.
func extcap(args []string, env *environment) error {
	var c extcapCLI
	parser, err := kong.New(&c, kong.NoDefaultHelp())
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return usageError{err}
	}
	if !control.Alive(env.control()) {
		env.dir = systemDir
	}
	switch {
	case c.Interfaces:
		return extcapInterfaces(env)
	case c.DLTs:
		_, err = fmt.Fprintln(env.stdout, "dlt {number=1}{name=EN10MB}{display=Ethernet}")
	case c.Config:
		_, err = fmt.Fprintln(env.stdout, "arg {number=0}{call=--drops}{display=Only frames that the switch drops}{tooltip=Each packet's comment says why}{type=boolflag}{default=false}")
	case c.Capture:
		return c.capture(env)
	case c.Filter != "": // asks whether it is one: what is printed says why not
		_, err = fmt.Fprintln(env.stdout, noFilter)
	}
	return err
}

// noFilter is what becomes of a capture filter: it would have to be compiled where the frames are.
const noFilter = "there are no capture filters here: leave it empty, and filter what is shown"

// extcapInterfaces names each switch and each port. Without a daemon there are none, which is no error: Wireshark asks
// at each start.
func extcapInterfaces(env *environment) error {
	var s api.Status
	if control.Alive(env.control()) {
		if err := env.ask(api.PathStatus, &s); err != nil {
			return err
		}
	}
	fmt.Fprintf(env.stdout, "extcap {version=%s}\n", version())
	for _, sw := range s.Switches {
		fmt.Fprintf(env.stdout, "interface {value=polder:%s}{display=Polder: all of switch %s}\n", sw.Name, sw.Name)
		for _, p := range sw.Ports {
			fmt.Fprintf(env.stdout, "interface {value=polder:%s:%s}{display=Polder: port %s of switch %s}\n", sw.Name, p.Name, p.Name, sw.Name)
		}
	}
	return nil
}

// capture writes to Wireshark's FIFO until it is closed.
func (c *extcapCLI) capture(env *environment) error {
	name, ok := strings.CutPrefix(c.Interface, "polder:")
	if !ok || c.FIFO == "" {
		return usageError{fmt.Errorf("extcap: %q is none of --extcap-interfaces, or there is no --fifo", c.Interface)}
	}
	if c.Filter != "" {
		return usageError{errors.New(noFilter)}
	}
	sw, port, isPort := strings.Cut(name, ":")
	q := url.Values{"switch": {sw}}
	if isPort {
		q.Set("port", port)
	}
	if c.Drops {
		q.Set("drops", "true")
	}
	client, err := env.client()
	if err != nil {
		return err
	}
	body, err := client.Open(env.ctx, control.Path(api.PathCapture, q))
	if err != nil {
		return err
	}
	defer body.Close()
	fifo, err := os.OpenFile(c.FIFO, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer fifo.Close()
	_, err = io.Copy(fifo, body)
	if env.ctx.Err() != nil || errors.Is(err, syscall.EPIPE) {
		return nil // stopped
	}
	return err
}
