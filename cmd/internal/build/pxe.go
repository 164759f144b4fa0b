package build

import (
	"fmt"
	"io/fs"
	"os"

	"polder/cmd/internal/config"
	"polder/pxe"
	"polder/tulip/bootrom"
	"polder/vswitch"
)

// bootService is a PXE service on its port.
type bootService struct {
	server *pxe.Server
	member *vswitch.Member
	mac    vswitch.MAC
	root   *os.Root // nil: none
}

// pxePort is the boot service's name on its switch. config.CheckAdapterName keeps it from
// guests' adapters.
const pxePort = "pxe"

// addPXE puts a boot service on the switch.
func (w *World) addPXE(sw *vswitch.Switch, name string, c *config.PXE) (_ *bootService, err error) {
	b := &bootService{mac: config.DeriveMAC("pxe." + name)}
	pc := pxe.Config{
		Address: c.Address, PoolFirst: c.Pool.First, PoolLast: c.Pool.Last, MAC: b.mac,
		Lease: c.Lease, Router: c.Router, DNS: c.DNS,
		Log:        w.Log.With("switch", name, "port", pxePort),
		DefaultNBP: bootrom.NBP,
		Events:     func(e pxe.Event) { w.events.publish(bootEvent(name, e)) },
	}
	if c.Root != "" {
		if b.root, err = os.OpenRoot(c.Root); err != nil {
			return nil, fmt.Errorf("pxe: root: %w", err)
		}
		pc.Files = b.root.FS()
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for _, r := range c.Reservations {
		uuid, err := parseUUID(r.UUID)
		if err != nil {
			return nil, fmt.Errorf("pxe: reservation: %w", err)
		}
		pc.Reservations = append(pc.Reservations, pxe.Reservation{MAC: vswitch.MAC(r.MAC), UUID: uuid, Addr: r.Address, Name: r.Hostname})
	}
	for _, r := range c.Boot {
		rule, err := bootRule(r, pc.Files)
		if err != nil {
			return nil, err
		}
		pc.Boot = append(pc.Boot, rule)
	}
	if b.server, err = pxe.New(pc); err != nil {
		return nil, fmt.Errorf("pxe: %w", err)
	}
	if b.member, err = sw.Join(pxePort, b.server, vswitch.PortOptions{}); err != nil {
		return nil, err
	}
	return b, b.server.Start(b.member.NewIngress())
}

// bootRule turns the operator's rule into the service's. A script is read now, so that a
// missing one is an error now.
func bootRule(r config.Boot, files fs.FS) (pxe.BootRule, error) {
	rule := pxe.BootRule{
		Match: pxe.Match{MAC: r.Match.MAC, Arch: r.Match.Arch, UserClass: r.Match.UserClass, VendorClass: r.Match.VendorClass},
		File:  r.File, Kernel: r.Kernel, Initrd: r.Initrd, Cmdline: r.Append,
	}
	var err error
	if rule.Match.UUID, err = parseUUID(r.Match.UUID); err != nil {
		return rule, fmt.Errorf("pxe: boot rule: %w", err)
	}
	if r.Script != "" {
		if files == nil {
			return rule, fmt.Errorf("pxe: script %s: there is no root to read it from", r.Script)
		}
		text, err := fs.ReadFile(files, r.Script)
		if err != nil {
			return rule, fmt.Errorf("pxe: script in the root: %w", err)
		}
		rule.Script = string(text)
	}
	return rule, nil
}

// parseUUID reads a UUID; "" is the zero one, which matches all.
func parseUUID(s string) (pxe.UUID, error) {
	if s == "" {
		return pxe.UUID{}, nil
	}
	return pxe.ParseUUID(s)
}

func (b *bootService) close() {
	if b.server != nil {
		b.server.Close()
	}
	if b.member != nil {
		b.member.Leave()
	}
	if b.root != nil {
		b.root.Close()
	}
}
