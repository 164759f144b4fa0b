package build

import (
	"cmp"
	"os"
	"runtime"
	"slices"
	"time"

	"polder/cmd/internal/api"
	"polder/vswitch"
)

// Status implements control.World.
func (w *World) Status() api.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := api.Status{Version: w.version, PID: os.Getpid(), Uptime: time.Since(w.started), Goroutines: runtime.NumGoroutine()}
	for _, n := range w.switches {
		s.Switches = append(s.Switches, w.switchStatus(n))
	}
	slices.SortFunc(s.Switches, func(a, b api.Switch) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func (w *World) switchStatus(n *network) api.Switch {
	s := api.Switch{Name: n.config.Name, Type: n.config.Type}
	if n.pxe != nil {
		p := portStatus(n.pxe.member)
		p.Kind, p.MAC, p.Attached = "pxe", n.pxe.mac.String(), true
		s.Ports = append(s.Ports, p)
	}
	for _, a := range w.adapters {
		if a.Switch != n.config.Name {
			continue
		}
		p := portStatus(a.member)
		p.Kind, p.MAC, p.Socket = a.Kind, a.MAC, a.Socket
		attached, drops := a.card.status()
		p.Attached = attached
		for reason, count := range drops {
			if count > 0 {
				p.Drops[reason] += count
			}
		}
		s.Ports = append(s.Ports, p)
	}
	slices.SortFunc(s.Ports, func(a, b api.Port) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range n.sw.FDB() {
		s.FDB = append(s.FDB, api.MAC{MAC: e.MAC.String(), Port: e.Port, Age: e.Age})
	}
	return s
}

func portStatus(m *vswitch.Member) api.Port {
	st := m.Stats()
	p := api.Port{Name: m.Name(), RxFrames: st.RxFrames, RxBytes: st.RxBytes, TxFrames: st.TxFrames, TxBytes: st.TxBytes, Drops: map[string]uint64{}}
	for reason, count := range st.Drops {
		if count > 0 {
			p.Drops[vswitch.DropReason(reason).String()] = count
		}
	}
	return p
}
