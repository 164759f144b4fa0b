// Command polder gives QEMU's guests a network adapter that needs no driver installation,
// boots them from the network, and switches their frames.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"polder/cmd/internal/config"
)

// Exit statuses. polder run returns QEMU's own when QEMU was started.
const (
	exitFailure = 1
	exitUsage   = 2
)

// cli is the command line.
type cli struct {
	LogLevel   *slog.Level `help:"Least severe messages to log: debug, info, warn or error (default: info; of run, which shows the boot itself, warn)." placeholder:"LEVEL"`
	LogFormat  string      `help:"Form of the log: text or json." enum:"text,json" default:"text" placeholder:"FORMAT"`
	RuntimeDir string      `help:"Directory of sockets." default:"${runtime_dir}" type:"path" placeholder:"DIR"`

	Run   runCmd   `cmd:"" help:"Run QEMU with an adapter on a virtual switch that boots it from the network."`
	Serve serveCmd `cmd:"" help:"Run switches for many guests, as a daemon."`

	Show     showCmd      `cmd:"" help:"Show the switches and what is on them." group:"Daemon"`
	Apply    applyCmd     `cmd:"" help:"Make a file the daemon's configuration." group:"Daemon"`
	Config   configCmd    `cmd:"" help:"Print the daemon's running configuration, as a file." group:"Daemon"`
	Switch   switchCmds   `cmd:"" help:"Add, remove and show switches." group:"Daemon"`
	Adapter  adapterCmds  `cmd:"" help:"Add, change, connect and remove adapters." group:"Daemon"`
	VLAN     vlanCmds     `cmd:"" name:"vlan" help:"Put adapters into VLANs." group:"Daemon"`
	FDB      fdbCmds      `cmd:"" name:"fdb" help:"Show and change the addresses that a switch knows." group:"Daemon"`
	External externalCmds `cmd:"" help:"Plan, commit and take back what an external switch does to the host's network." group:"Daemon"`
	Leases   leasesCmd    `cmd:"" help:"Show the addresses that the boot services have given." group:"Daemon"`
	Boots    bootsCmd     `cmd:"" help:"Show how far each client's boot has come." group:"Daemon"`
	Drops    dropsCmd     `cmd:"" help:"Show how many frames were dropped, and why." group:"Daemon"`
	Monitor  monitorCmd   `cmd:"" help:"Show what happens, as it happens." group:"Daemon"`
	Capture  captureCmd   `cmd:"" help:"Capture frames as pcapng." group:"Daemon"`

	QemuArgs   qemuArgsCmd   `cmd:"" name:"qemu-args" help:"Print QEMU's options for a configured VM." group:"Other"`
	LibvirtXML libvirtXMLCmd `cmd:"" name:"libvirt-xml" help:"Print libvirt's XML for a configured VM." group:"Other"`
	Rom        romCmd        `cmd:"" help:"Show what is in a boot ROM." group:"Other"`
	Completion completionCmd `cmd:"" help:"Print a script that completes polder's command lines in a shell." group:"Other"`
	Man        manCmd        `cmd:"" help:"Print the manual page." group:"Other"`
	Version    versionCmd    `cmd:"" help:"Print the version." group:"Other"`

	Complete completeCmd `cmd:"" hidden:""`
}

// usageError is a mistake in what the operator typed.
type usageError struct{ error }

// exitError is the exit status of the program that was run.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if isExtcap(args) {
		sigs, stop := signals(false)
		defer stop()
		err := extcap(args, &environment{ctx: sigs, stdout: stdout, stderr: stderr, dir: runtimeDir()})
		if err == nil {
			return 0
		}
		fmt.Fprintf(stderr, "polder: %v\n", err)
		return exitFailure
	}
	var c cli
	exited := -1
	parser := newParser(&c, stdout, stderr, func(status int) { exited = status })
	ctx, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		fmt.Fprintf(stderr, "polder: %v\n", err)
		return exitUsage
	}
	if c.LogLevel == nil {
		level := slog.LevelInfo
		if strings.HasPrefix(ctx.Command(), "run") {
			level = slog.LevelWarn
		}
		c.LogLevel = &level
	}
	sigs, stop := signals(strings.HasPrefix(ctx.Command(), "serve") && c.Serve.reloads())
	defer stop()
	env := &environment{
		ctx: sigs, stdout: stdout, stderr: stderr, dir: c.RuntimeDir,
		newLog: c.logger, log: c.logger(stderr), json: c.LogFormat == "json",
	}
	err = ctx.Run(env, parser)
	var usage usageError
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case sigs.Err() != nil && errors.Is(err, context.Canceled):
		err = errors.New("stopped by a signal before it was ready")
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "polder: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "polder: %v\n", err)
	return exitFailure
}

// newParser returns the parser of command lines into c. exit is called when it has answered --help.
func newParser(c *cli, stdout, stderr io.Writer, exit func(status int)) *kong.Kong {
	parser, err := kong.New(c,
		kong.Name("polder"),
		kong.Description("Hyper-V's virtual networks for QEMU: a network adapter that needs no driver installation, network boot, and a learning switch, in one process."),
		kong.Vars{"runtime_dir": runtimeDir(), "state_dir": stateDir(), "default_switch": config.DefaultSwitch, "address": config.DefaultAddress.String()},
		kong.Writers(stdout, stderr),
		kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		panic(err) // the struct above is wrong
	}
	return parser
}

// signals returns a context that is done when polder is told to stop. A signal that it was
// started to ignore, as by nohup, stays ignored. Writing to a pipe that nobody reads any more
// is an error and not the end: there is QEMU to wait for, and sockets to remove. SIGHUP is left to
// a command that reloads.
func signals(reloads bool) (context.Context, context.CancelFunc) {
	heeded := []os.Signal{syscall.SIGTERM}
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(s) && !(reloads && s == syscall.SIGHUP) {
			heeded = append(heeded, s)
		}
	}
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), heeded...)
	return ctx, func() { stop(); signal.Stop(broken) }
}

// environment is what the commands share.
type environment struct {
	ctx            context.Context // done when polder is told to stop
	stdout, stderr io.Writer
	newLog         func(io.Writer) *slog.Logger
	log            *slog.Logger // newLog's to stderr
	json           bool         // the form of the log
	dir            string       // of sockets
}

// makeDir makes the directory of sockets, in which nobody else may replace one.
func (e *environment) makeDir() error {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return fmt.Errorf("directory of sockets: %w: choose another --runtime-dir", err)
	}
	info, err := os.Stat(e.dir)
	if err != nil {
		return fmt.Errorf("directory of sockets: %w", err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && owner != uint32(os.Geteuid()) {
		return fmt.Errorf("directory of sockets: %s belongs to user %d, who could replace them: choose another --runtime-dir", e.dir, owner)
	}
	if info.Mode()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("directory of sockets: everybody can write to %s and replace them: chmod o-w it, or choose another --runtime-dir", e.dir)
	}
	return nil
}

// control is where the daemon listens.
func (e *environment) control() string { return filepath.Join(e.dir, "control.sock") }

func (c *cli) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: *c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// systemDir is where the service of the system has its sockets.
const systemDir = "/run/polder"

// runtimeDir is where sockets go by default: root's in /run, a user's where the session has
// its own.
func runtimeDir() string {
	if os.Geteuid() == 0 {
		return systemDir
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "polder")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("polder-%d", os.Geteuid()))
}

// stateDir is where what outlives the daemon is kept by default.
func stateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/polder"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "polder")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "polder")
}

type versionCmd struct{}

func (versionCmd) Run(env *environment) error {
	fmt.Fprintln(env.stdout, "polder", version())
	return nil
}

// version is the module's, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "devel"
}
