package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// manCmd prints the manual page. It is made of what --help is made of.
type manCmd struct{}

// Run implements the command.
func (manCmd) Run(env *environment, app *kong.Kong) error {
	w := &roff{w: env.stdout}
	w.line(`.TH POLDER 1 "" "polder %s" "User Commands"`, version())
	w.line(".SH NAME")
	w.line(`polder \- virtual networks for QEMU, as Hyper\-V has them`)
	w.line(".SH SYNOPSIS")
	w.line(".B polder\n[\\fIoptions\\fR] \\fIcommand\\fR ...")
	w.line(".SH DESCRIPTION")
	w.text(app.Model.Help)
	w.line(".SH OPTIONS")
	w.flags(app.Model.Node.Flags)
	w.line(".SH COMMANDS")
	w.commands(app.Model.Node, "polder")
	w.line(".SH FILES")
	for _, f := range [][2]string{
		{"/etc/polder/polder.yaml", "The configuration of the service."},
		{"/run/polder", "Sockets: control.sock, and one for each adapter."},
		{"/var/lib/polder", "What outlives the daemon."},
	} {
		w.line(".TP\n.I %s", escape(f[0]))
		w.text(f[1])
	}
	w.line(".SH EXIT STATUS")
	w.text("0 if all went well, 1 if it did not, 2 if the command line is wrong. polder run ends with QEMU's status.")
	return w.err
}

// roff writes a manual page.
type roff struct {
	w   io.Writer
	err error
}

func (r *roff) line(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format+"\n", args...)
	}
}

// text writes paragraphs.
func (r *roff) text(text string) {
	for i, p := range strings.Split(text, "\n\n") {
		if i > 0 {
			r.line(".PP")
		}
		r.line("%s", escape(p))
	}
}

func (r *roff) commands(node *kong.Node, path string) {
	for _, c := range node.Children {
		if c.Hidden {
			continue
		}
		name := path + " " + c.Name
		if len(c.Children) > 0 {
			r.commands(c, name)
			continue
		}
		r.line(".SS \"%s\"", escape(name))
		r.line(".B %s", escape(name))
		for _, p := range c.Positional {
			r.line("%s", escape(p.Summary()))
		}
		r.line(".PP")
		r.text(c.Help)
		if c.Detail != "" {
			r.line(".PP")
			r.text(c.Detail)
		}
		for _, p := range c.Positional {
			if p.Help != "" {
				r.line(".TP\n.I %s", escape(p.Name))
				r.text(p.Help)
			}
		}
		r.flags(c.Flags)
	}
}

func (r *roff) flags(flags []*kong.Flag) {
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		name := "--" + f.Name
		if f.Short != 0 {
			name = "-" + string(f.Short) + ", " + name
		}
		if !f.IsBool() {
			name += "=" + f.FormatPlaceHolder()
		}
		r.line(".TP\n.B %s", escape(name))
		r.text(f.Help)
	}
}

// escape keeps roff from taking text for its own requests.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
