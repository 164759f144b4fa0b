package build

import (
	"cmp"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"polder/cmd/internal/api"
	"polder/cmd/internal/config"
	"polder/pxe"
	"polder/vswitch"
)

// Status implements control.World.
func (w *World) Status() api.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := api.Status{
		Version: w.Version, PID: os.Getpid(), Uptime: time.Since(w.started), Goroutines: runtime.NumGoroutine(),
		Switches: []api.Switch{}, Adapters: []api.Port{},
	}
	for _, n := range w.switches {
		s.Switches = append(s.Switches, w.switchStatus(n))
	}
	slices.SortFunc(s.Switches, func(a, b api.Switch) int { return cmp.Compare(a.Name, b.Name) })
	for _, a := range w.adapters {
		if a.member == nil {
			s.Adapters = append(s.Adapters, a.status())
		}
	}
	slices.SortFunc(s.Adapters, func(a, b api.Port) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func (w *World) switchStatus(n *network) api.Switch {
	s := api.Switch{Name: n.config.Name, Type: n.config.Type, Ports: []api.Port{}, FDB: []api.MAC{}}
	if n.pxe != nil {
		p := portStatus(n.pxe.member)
		p.Kind, p.MAC, p.Attached = api.KindPXE, n.pxe.mac.String(), true
		s.Ports = append(s.Ports, p)
	}
	for _, p := range n.host.ports {
		s.Ports = append(s.Ports, p.status())
	}
	for _, a := range w.adapters {
		if a.Switch == n.config.Name {
			s.Ports = append(s.Ports, a.status())
		}
	}
	slices.SortFunc(s.Ports, func(a, b api.Port) int { return cmp.Compare(a.Name, b.Name) })
	for i := range s.Ports {
		s.Ports[i].Switch = s.Name
	}
	for _, e := range n.sw.FDB() {
		s.FDB = append(s.FDB, api.MAC{MAC: e.MAC.String(), VLAN: int(e.VLAN), Port: e.Port, Age: e.Age, Static: e.Static})
	}
	return s
}

// status tells of the adapter, connected or not.
func (a *adapter) status() api.Port {
	p := api.Port{Name: a.Name, Link: config.LinkDown, Drops: map[string]uint64{}}
	if a.member != nil {
		p = portStatus(a.member)
		p.ACL = ruleCounts(a)
	}
	p.VM, p.Kind, p.MAC, p.Socket = a.request.VM, a.Kind, a.MAC, a.Socket
	attached, drops := a.card.status()
	p.Attached = attached
	for reason, count := range drops {
		if count > 0 {
			p.Drops[reason] += count
		}
	}
	policy := a.request.Policy
	p.Policy = &policy
	return p
}

// ruleCounts returns how many frames each of the operator's rules has matched.
func ruleCounts(a *adapter) (counts []uint64) {
	matched := a.member.RuleCounts()
	for i := range a.request.ACL {
		n := rulesOf(&a.request.ACL[i])
		var sum uint64
		for _, r := range matched[:n] {
			sum += r.Frames
		}
		matched = matched[n:]
		counts = append(counts, sum)
	}
	return counts
}

func portStatus(m *vswitch.Member) api.Port {
	st := m.Stats()
	p := api.Port{
		Name: m.Name(), RxFrames: st.RxFrames, RxBytes: st.RxBytes, TxFrames: st.TxFrames, TxBytes: st.TxBytes,
		GSOSegmented: st.GSOSegmented, ChecksumsCompleted: st.ChecksumsCompleted, MACMoves: st.MACMoves,
		Link: config.LinkDown, Drops: map[string]uint64{},
	}
	if m.Link() {
		p.Link = config.LinkUp
	}
	for reason, count := range st.Drops {
		if count > 0 {
			p.Drops[vswitch.DropReason(reason).String()] = count
		}
	}
	return p
}

// Leases implements control.World.
func (w *World) Leases() []api.Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := []api.Lease{}
	for name, n := range w.switches {
		if n.pxe == nil {
			continue
		}
		for _, l := range n.pxe.server.Leases() {
			lease := api.Lease{
				Switch: name, Address: l.Addr, MAC: l.Client.MAC.String(), Hostname: l.Client.Hostname,
				Expires: l.Expires, Reserved: l.Reserved,
			}
			if l.Client.UUID != (pxe.UUID{}) {
				lease.UUID = l.Client.UUID.String()
			}
			list = append(list, lease)
		}
	}
	slices.SortFunc(list, func(a, b api.Lease) int {
		return cmp.Or(strings.Compare(a.Switch, b.Switch), a.Address.Compare(b.Address))
	})
	return list
}
