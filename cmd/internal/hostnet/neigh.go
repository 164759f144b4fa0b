package hostnet

import (
	"context"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// reachable has the kernel ask for the gateways' MAC addresses, and returns those that have
// answered within the time; it returns as soon as all have.
func reachable(ctx context.Context, gateways []gateway, within time.Duration) []gateway {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(within / 60)
	defer tick.Stop()
	for {
		var found []gateway
		for _, g := range gateways {
			if probe(g) {
				found = append(found, g)
			}
		}
		if len(found) == len(gateways) {
			return found
		}
		select {
		case <-ctx.Done():
			return found
		case <-tick.C:
		}
	}
}

// probe tells whether the kernel knows that the gateway answers, and has it asked if not.
func probe(g gateway) bool {
	l, err := linkByName(g.dev)
	if l == nil || err != nil {
		return false
	}
	index := l.Attrs().Index
	neighbours, err := again(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return false
	}
	i := slices.IndexFunc(neighbours, func(n netlink.Neigh) bool { return n.IP.Equal(g.addr.AsSlice()) })
	if i >= 0 && neighbours[i].State&(unix.NUD_REACHABLE|unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 {
		return true
	}
	// NTF_USE is what a packet on its way would do. What was once known would be believed for some seconds: that is probed.
	ask := &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, IP: g.addr.AsSlice(), Flags: unix.NTF_USE, State: unix.NUD_NONE}
	if g.addr.Is6() {
		ask.Family = netlink.FAMILY_V6
	}
	if i >= 0 && neighbours[i].State&(unix.NUD_STALE|unix.NUD_DELAY) != 0 {
		ask.HardwareAddr, ask.State, ask.Flags = neighbours[i].HardwareAddr, unix.NUD_PROBE, 0
	}
	_ = netlink.NeighSet(ask) // what fails is asked again at the next look
	return false
}
