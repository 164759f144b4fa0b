package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"polder/cmd/internal/api"
)

// completionCmd prints a shell's completion script. The script asks polder itself what can follow, so it
// knows the running daemon's switches and adapters, too.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help implements kong's HelpProvider.
func (completionCmd) Help() string {
	return `Examples: polder completion bash > /etc/bash_completion.d/polder
polder completion zsh > /usr/share/zsh/vendor-completions/_polder
polder completion fish > /etc/fish/completions/polder.fish`
}

var completionScripts = map[string]string{
	"bash": `_polder() {
	local IFS=$'\n'
	COMPREPLY=($(polder complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
	if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
		COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
	fi
}
complete -F _polder polder
`,
	"zsh": `#compdef polder
_polder() {
	local -a candidates
	candidates=("${(@f)$(polder complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	if [[ -n "$candidates" ]]; then
		compadd -a candidates
	else
		_files
	fi
}
compdef _polder polder
`,
	"fish": `complete -c polder -a '(polder complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
`,
}

// Run implements the command.
func (c completionCmd) Run(env *environment) error {
	_, err := fmt.Fprint(env.stdout, completionScripts[c.Shell])
	return err
}

// completeCmd prints what can stand in place of the last word of a command line.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

// Run implements the command.
func (c *completeCmd) Run(env *environment, app *kong.Kong) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		words = []string{""}
	}
	for _, w := range complete(app.Model.Node, words, env.names) {
		fmt.Fprintln(env.stdout, w)
	}
	return nil
}

// complete returns what can stand in place of the last of words. names returns the names of a kind that the daemon knows.
func complete(node *kong.Node, words []string, names func(kind string) []string) (candidates []string) {
	last := words[len(words)-1]
	flags := slices.Clone(node.Flags)
	at := 0 // positional arguments so far
	var pending *kong.Flag
	for _, w := range words[:len(words)-1] {
		switch {
		case pending != nil:
			pending = nil
		case w == "--":
			return nil // the rest is another program's
		case strings.HasPrefix(w, "-") && w != "-":
			if f := flagOf(flags, w); f != nil && !f.IsBool() && !strings.Contains(w, "=") {
				pending = f
			}
		default:
			if child := childOf(node, w); child != nil {
				node = child
				flags = append(flags, node.Flags...)
			} else if len(node.Children) > 0 {
				return nil // no such command
			} else {
				at++
			}
		}
	}
	switch {
	case pending != nil:
		candidates = valuesOf(pending.Value, names)
	case strings.HasPrefix(last, "--") && strings.Contains(last, "="):
		name, _, _ := strings.Cut(last, "=")
		if f := flagOf(flags, name); f != nil {
			for _, v := range valuesOf(f.Value, names) {
				candidates = append(candidates, name+"="+v)
			}
		}
	case strings.HasPrefix(last, "-"):
		for _, f := range flags {
			if !f.Hidden {
				candidates = append(candidates, "--"+f.Name)
			}
		}
	default:
		for _, child := range node.Children {
			if !child.Hidden {
				candidates = append(candidates, child.Name)
			}
		}
		if n := len(node.Positional); n > 0 && len(node.Children) == 0 {
			if arg := node.Positional[min(at, n-1)]; at < n || arg.IsSlice() {
				candidates = valuesOf(arg, names)
			}
		}
	}
	candidates = slices.DeleteFunc(candidates, func(c string) bool { return !strings.HasPrefix(c, last) })
	slices.Sort(candidates)
	return slices.Compact(candidates)
}

func childOf(node *kong.Node, name string) *kong.Node {
	for _, c := range node.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func flagOf(flags []*kong.Flag, word string) *kong.Flag {
	for _, f := range flags {
		if word == "--"+f.Name || f.Short != 0 && word == "-"+string(f.Short) {
			return f
		}
	}
	return nil
}

// valuesOf returns the values that an argument can have, as far as they are known. Its tag "complete" says of what
// kind it is a name.
func valuesOf(v *kong.Value, names func(string) []string) (list []string) {
	if v.Enum != "" {
		for _, e := range v.EnumSlice() {
			if e != "" {
				list = append(list, e)
			}
		}
		return list
	}
	return names(v.Tag.Get("complete"))
}

// names returns the names of the daemon's switches, adapters, ports or VMs; none if there is no daemon.
func (e *environment) names(kind string) (list []string) {
	if !slices.Contains([]string{"switch", "adapter", "port", "vm"}, kind) {
		return nil
	}
	var s api.Status
	if e.ask(api.PathStatus, &s) != nil {
		return nil
	}
	for _, sw := range s.Switches {
		if kind == "switch" {
			list = append(list, sw.Name)
		}
		for _, p := range sw.Ports {
			switch {
			case kind == "port" || kind == "adapter" && p.VM != "":
				list = append(list, p.Name)
			case kind == "vm" && p.VM != "":
				list = append(list, p.VM)
			}
		}
	}
	for _, p := range s.Adapters {
		switch kind {
		case "adapter", "port":
			list = append(list, p.Name)
		case "vm":
			list = append(list, p.VM)
		}
	}
	return list
}
