package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// state is all that the host's network says of some devices: what a take-over moves, and what
// it puts back.
type state struct {
	Taken   int64    // when, in seconds of CLOCK_BOOTTIME: lifetimes count from then
	Links   []link   // those of the devices that are there
	Objects []object // of all tables, in the kernel's order
}

// link is one device.
type link struct {
	Name   string
	Kind   string // as ip(8) names it: "" for hardware, "veth", "bridge", "tap"
	MAC    string
	MTU    int
	Up     bool
	Master string `json:",omitempty"`
	Silent bool   `json:",omitempty"` // what arrives is for packet sockets only (see silence)

	// Settings are files beneath /proc/sys/net, with "*" where the device's name is: those that are watched, or
	// all that a device to be made shall have.
	Settings map[string]string `json:",omitempty"`
}

// Settings that a take-over itself changes, or goes by.
const (
	disableIPv6  = "ipv6/conf/*/disable_ipv6"
	addrGenMode  = "ipv6/conf/*/addr_gen_mode"
	acceptRA     = "ipv6/conf/*/accept_ra"
	forwarding6  = "ipv6/conf/*/forwarding"
	mcForwarding = "ipv4/conf/*/mc_forwarding"
)

var watched = []string{disableIPv6, addrGenMode, acceptRA, forwarding6, mcForwarding}

// genNone is the value of addrGenMode that makes no link-local address; see IN6_ADDR_GEN_MODE_NONE.
const genNone = "1"

// listens tells whether the kernel takes routers' advertisements on the device; else whoever configures it may.
func (l *link) listens() bool {
	accept, forwards := l.Settings[acceptRA], l.Settings[forwarding6] != "0"
	return accept == "2" || accept == "1" && !forwards
}

// find returns the device's state, nil if it is not there.
func (s *state) find(name string) *link {
	for i := range s.Links {
		if s.Links[i].Name == name {
			return &s.Links[i]
		}
	}
	return nil
}

// of returns the objects of a kind.
func (s *state) of(k kind) []object {
	var out []object
	for _, o := range s.Objects {
		if o.Kind == k {
			out = append(out, o)
		}
	}
	return out
}

// has tells whether the object is part of the state.
func (s *state) has(o *object) bool {
	k := o.key()
	return slices.ContainsFunc(s.Objects, func(x object) bool { return x.Kind == o.Kind && x.key() == k })
}

// owns tells whether the IPv4 route's source is an address of the state's: the route, by whichever device, goes when the address does.
func (s *state) owns(src []byte, o *object) bool {
	return o.Kind == route && o.family() == unix.AF_INET && src != nil && slices.ContainsFunc(s.Objects, func(a object) bool {
		return a.Kind == address && bytes.Equal(a.attr(unix.IFA_LOCAL), src)
	})
}

// clone copies the state as far as it is changed in place.
func (s *state) clone() state {
	c := state{Taken: s.Taken, Links: slices.Clone(s.Links), Objects: slices.Clone(s.Objects)}
	for i := range c.Links {
		c.Links[i].Settings = maps.Clone(c.Links[i].Settings)
	}
	return c
}

// aged returns the state with the lifetimes that are left at a later time; what has run out is gone.
func (s *state) aged(now int64) state {
	c := s.clone()
	spent := uint32(max(0, now-s.Taken))
	c.Taken = now
	less := func(v uint32) uint32 {
		if v == forever {
			return v
		}
		return v - min(v, spent)
	}
	c.Objects = slices.DeleteFunc(c.Objects, func(o object) bool {
		return o.Kind == address && less(o.Valid) == 0 || o.Kind == route && o.Valid != 0 && less(o.Valid) == 0
	})
	for i := range c.Objects {
		o := &c.Objects[i]
		o.Valid, o.Preferred = less(o.Valid), less(o.Preferred)
	}
	return c
}

// now is the time in seconds that runs on while the machine sleeps, as lifetimes do.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Now().Unix()
	}
	return ts.Sec
}

// read tells the state of devices. Those that are not there are left out.
func read(devices ...string) (state, error) {
	s := state{Taken: now()}
	for _, name := range devices {
		l, err := readLink(name)
		if err != nil {
			return s, err
		}
		if l != nil {
			s.Links = append(s.Links, *l)
		}
	}
	all, err := readObjects()
	if err != nil {
		return s, err
	}
	for _, o := range all {
		if !slices.ContainsFunc(devices, o.names) && !s.owns(o.attr(unix.RTA_PREFSRC), &o) {
			continue
		}
		if l := s.find(o.Dev); l != nil && o.Kind == route && o.family() == unix.AF_INET6 && o.protocol() == unix.RTPROT_RA {
			o.Advertised = l.listens()
		}
		s.Objects = append(s.Objects, o)
	}
	return s, nil
}

// readLink tells a device's state, nil if it is not there.
func readLink(name string) (*link, error) {
	l, err := linkByName(name)
	if l == nil {
		return nil, err
	}
	a := l.Attrs()
	out := &link{Name: name, Kind: kindOf(l), MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
	if a.MasterIndex != 0 {
		m, err := netlink.LinkByIndex(a.MasterIndex)
		if err != nil {
			return nil, fmt.Errorf("%s: its master: %w", name, err)
		}
		out.Master = m.Attrs().Name
	}
	if out.Silent, err = silent(name); err != nil {
		return nil, err
	}
	out.Settings = map[string]string{}
	for _, k := range watched {
		if v, err := os.ReadFile(settingPath(k, name)); err == nil {
			out.Settings[k] = strings.TrimSpace(string(v))
		}
	}
	return out, nil
}

// linkByName finds a device; nil and no error if there is none of that name.
func linkByName(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// kindOf names what a device is: "" for hardware.
func kindOf(l netlink.Link) string {
	switch l := l.(type) {
	case *netlink.Device:
		return ""
	case *netlink.Tuntap:
		if l.Mode == netlink.TUNTAP_MODE_TAP {
			return "tap"
		}
		return "tun"
	default:
		return l.Type()
	}
}

// settingDirs are where a device's settings are, beneath /proc/sys/net.
var settingDirs = []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"}

const sysNet = "/proc/sys/net"

// readSettings reads a device's settings. What cannot be read is not set (the secret for stable addresses), or the kernel has no such protocol.
func readSettings(device string) map[string]string {
	settings := map[string]string{}
	for _, dir := range settingDirs {
		files, _ := os.ReadDir(filepath.Join(sysNet, dir, device))
		for _, f := range files {
			if v, err := os.ReadFile(filepath.Join(sysNet, dir, device, f.Name())); err == nil {
				settings[filepath.Join(dir, "*", f.Name())] = strings.TrimSpace(string(v))
			}
		}
	}
	return settings
}

// settingPath is the file of a setting of a device.
func settingPath(setting, device string) string {
	return filepath.Join(sysNet, strings.Replace(setting, "*", device, 1))
}

// readObjects reads all addresses, routes, rules and neighbours that were configured: not the
// neighbours that the kernel found itself.
func readObjects() ([]object, error) {
	links, err := again(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	names := map[uint32]string{}
	for _, l := range links {
		names[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	var all []object
	for _, k := range []kind{address, route, rule, neighbour} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			objects, err := dump(k, family, 0, names)
			if err != nil {
				return nil, err
			}
			if k == neighbour {
				objects = slices.DeleteFunc(objects, func(o object) bool {
					return binary.NativeEndian.Uint16(o.Head[8:])&unix.NUD_PERMANENT == 0
				})
				proxies, err := dump(k, family, unix.NTF_PROXY, names)
				if err != nil {
					return nil, err
				}
				objects = append(objects, proxies...)
			}
			all = append(all, objects...)
		}
	}
	return all, nil
}

// dump asks the kernel for all objects of a kind and family. flags are a neighbour's.
func dump(k kind, family, flags uint8, names map[uint32]string) ([]object, error) {
	f := formats[k]
	msgs, err := again(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(int(f.get), unix.NLM_F_DUMP)
		body := make([]byte, f.head)
		body[0] = family
		if k == neighbour {
			body[10] = flags
		}
		req.AddRawData(body)
		return req.Execute(unix.NETLINK_ROUTE, f.add)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: dump: %w", k, err)
	}
	var out []object
	for _, m := range msgs {
		// A kernel without the protocol tells of all it has instead.
		if len(m) < f.head || m[0] != family || k == route && binary.NativeEndian.Uint32(m[8:])&unix.RTM_F_CLONED != 0 {
			continue
		}
		o, err := parse(k, m, names)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// again repeats a dump that a change has interrupted.
func again[T any](dump func() (T, error)) (v T, err error) {
	for range 10 {
		if v, err = dump(); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}
