package build

import (
	"net/http"

	"polder/cmd/internal/api"
	"polder/vswitch"
)

// port finds a port of a switch by its name.
func (w *World) port(sw, port string) (*network, *vswitch.Member, error) {
	n, ok := w.switches[sw]
	if !ok {
		return nil, nil, api.Problemf(http.StatusNotFound, "there is no switch %q", sw)
	}
	if port == "" {
		return n, nil, nil
	}
	for _, m := range n.sw.Members() {
		if m.Name() == port {
			return n, m, nil
		}
	}
	return nil, nil, api.Problemf(http.StatusNotFound, "there is no port %q on switch %q: polder show %s names its ports", port, sw, sw)
}

// AddMAC implements control.World.
func (w *World) AddMAC(sw string, r api.MACRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	mac, err := vswitch.ParseMAC(r.MAC)
	if err != nil {
		return api.Problemf(http.StatusUnprocessableEntity, "mac: %q is no MAC address: write it like 00:15:5d:01:02:03", r.MAC)
	}
	if r.VLAN < 0 || r.VLAN > vswitch.MaxVLAN {
		return api.Problemf(http.StatusUnprocessableEntity, "vlan %d: from 0 to %d", r.VLAN, vswitch.MaxVLAN)
	}
	if r.Port == "" {
		return api.Problemf(http.StatusUnprocessableEntity, "port: behind which port is %v?", mac)
	}
	n, m, err := w.port(sw, r.Port)
	if err != nil {
		return err
	}
	return n.sw.AddStatic(m, uint16(r.VLAN), mac)
}

// FlushFDB implements control.World.
func (w *World) FlushFDB(sw, port, mac string, vlan int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, m, err := w.port(sw, port)
	switch {
	case err != nil:
		return 0, err
	case mac != "":
		address, err := vswitch.ParseMAC(mac)
		if err != nil {
			return 0, api.Problemf(http.StatusUnprocessableEntity, "mac: %q is no MAC address: write it like 00:15:5d:01:02:03", mac)
		}
		if !n.sw.Delete(uint16(vlan), address) {
			return 0, api.Problemf(http.StatusNotFound, "switch %q does not know %v in VLAN %d", sw, address, vlan)
		}
		return 1, nil
	case vlan != 0:
		return n.sw.FlushVLAN(m, uint16(vlan)), nil
	}
	return n.sw.Flush(m), nil
}
