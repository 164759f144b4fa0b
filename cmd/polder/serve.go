package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"polder/cmd/internal/api"
	"polder/cmd/internal/build"
	"polder/cmd/internal/config"
	"polder/cmd/internal/control"
	"polder/cmd/internal/privilege"
)

// serveCmd is the daemon.
type serveCmd struct {
	Config         string `short:"c" help:"Configuration file; read again at SIGHUP. Without one: a private switch named default with a boot service on it." type:"path" placeholder:"FILE"`
	StateDir       string `help:"Directory of what outlives the daemon: MAC addresses of the pool, and the journal of changes to the host's network." default:"${state_dir}" type:"path" placeholder:"DIR"`
	Group          string `help:"Group whose members may open the control socket, besides its owner." placeholder:"NAME"`
	KeepPrivileges bool   `help:"Keep all of root's privileges. Otherwise those that the configuration does not need are given up once it runs: without an internal or external switch in it, none can be added later."`
	Metrics        string `help:"TCP address where Prometheus finds the metrics, which the control socket has in any case." placeholder:"ADDR:PORT"`
	PollCPUs       []int  `name:"poll-cpus" help:"Processors that do nothing but look out for the frames of synthetic adapters, as in 2,3: lowest latency, at full load even when all guests are idle. It goes before the file's poll_cpus." placeholder:"N,..."`
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
	gid, err := groupID(c.Group)
	if err != nil {
		return err
	}
	if err := env.makeDir(); err != nil {
		return err
	}
	if gid != control.NoGroup { // its members may pass, and see no more than the sockets' names
		if err := errors.Join(os.Chown(env.dir, -1, gid), os.Chmod(env.dir, 0o750)); err != nil {
			return fmt.Errorf("directory of sockets: cannot give it to group %s: %w", c.Group, err)
		}
	}
	reload := make(chan os.Signal, 1)
	if c.reloads() {
		signal.Notify(reload, syscall.SIGHUP)
		defer signal.Stop(reload)
	}
	unlock, err := control.Lock(env.ctx, env.dir) // one of two that start at once serves
	if err != nil {
		return err
	}
	defer unlock()
	if control.Alive(env.control()) {
		return fmt.Errorf("%s: another polder answers there: stop it, or choose another --runtime-dir", env.control())
	}
	w, err := build.New(cfg, build.Options{Dir: env.dir, Group: gid, StateDir: c.StateDir, Version: version(), Log: env.log})
	if err != nil {
		return err
	}
	defer w.Close()
	events, stop := w.Subscribe()
	defer stop()
	s, err := control.Listen(env.control(), gid, w, env.log)
	if err != nil {
		return err
	}
	defer s.Close()
	stopMetrics, err := serveMetrics(c.Metrics, w)
	if err != nil {
		return err
	}
	defer stopMetrics()
	unlock()
	if err := c.dropPrivileges(env, cfg); err != nil {
		return err
	}
	for _, sw := range w.Status().Switches {
		env.log.Info("switch ready", "switch", sw.Name, "type", sw.Type, "ports", len(sw.Ports))
	}
	env.log.Info("serving", "control", env.control())
	notify(env.log, daemon.SdNotifyReady)
	for {
		select {
		case e := <-events:
			logEvent(env.log, e)
		case <-reload:
			notify(env.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			c.reload(env, w)
			notify(env.log, daemon.SdNotifyReady)
		case <-env.ctx.Done():
			env.log.Info("stopping")
			notify(env.log, daemon.SdNotifyStopping)
			return nil
		}
	}
}

// hypervisorsListen tells whether there is a socket on which the hypervisor listens.
func hypervisorsListen(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.VMs, func(vm config.VM) bool {
		return slices.ContainsFunc(vm.Adapters, func(a config.Adapter) bool { return a.Socket.Mode == config.ModeClient })
	})
}

// dropPrivileges gives up what is not needed from now on. Private switches need nothing; the others need the host's
// network until they have put it back.
func (c *serveCmd) dropPrivileges(env *environment, cfg *config.Config) error {
	if c.KeepPrivileges || os.Geteuid() != 0 {
		return nil
	}
	var keep []int
	if slices.ContainsFunc(cfg.Switches, func(s config.Switch) bool { return s.Type != config.TypePrivate }) {
		keep = append(keep, privilege.Network...)
	}
	if c.Group != "" { // gets the sockets of adapters to come
		keep = append(keep, privilege.Chown)
	}
	if hypervisorsListen(cfg) { // and restart, with new sockets, under a user of their own
		keep = append(keep, privilege.Override)
	}
	err := privilege.Limit(keep...)
	if errors.Is(err, privilege.ErrCgo) {
		env.log.Warn("privileges are kept", "why", err)
		return nil
	}
	return err
}

// reloads tells whether SIGHUP means to read the file again. Without a file it ends the daemon.
func (c *serveCmd) reloads() bool { return c.Config != "" && !signal.Ignored(syscall.SIGHUP) }

// reload makes the file's configuration the running one. A file that is wrong changes nothing.
func (c *serveCmd) reload(env *environment, w *build.World) {
	cfg, err := loadConfig(c.Config)
	if err == nil {
		if len(c.PollCPUs) > 0 {
			cfg.PollCPUs = c.PollCPUs
		}
		var changes []api.Change
		if changes, err = w.Apply(cfg, false); err == nil {
			for _, ch := range changes {
				env.log.Info("reload", "action", ch.Action, "kind", ch.Kind, "name", ch.Name, "detail", ch.Detail)
			}
			env.log.Info("reloaded", "file", c.Config, "changes", len(changes))
			return
		}
	}
	env.log.Error("reload: the configuration stays as it was", "err", err)
}

// groupID returns the number of a group; control.NoGroup for none.
func groupID(name string) (int, error) {
	if name == "" {
		return control.NoGroup, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("--group: %w: make it with groupadd --system %s", err, name)
	}
	return strconv.Atoi(g.Gid)
}

// serveMetrics answers Prometheus on a TCP address; "" for none.
func serveMetrics(address string, w *build.World) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	s := &http.Server{Handler: control.Metrics(w), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go s.Serve(ln) // ends by Close
	return func() { s.Close() }, nil
}

// notify tells the service manager, if there is one, how the daemon is.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot tell the service manager", "err", err)
	}
}

// logEvent logs what happened.
func logEvent(log *slog.Logger, e api.Event) {
	switch {
	case e.Boot != nil:
		logBoot(log, *e.Boot)
	case e.Kind == api.EventMissed:
	default:
		log.Info(e.Kind, "switch", e.Switch, "port", e.Port, "detail", e.Detail)
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
