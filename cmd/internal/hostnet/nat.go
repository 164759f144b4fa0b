package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Address translation is a table of nftables of its own, and the setting that has the kernel forward what comes in
// by a device: that of the management adapter, and those of the devices with a default route. It is not switched on for all
// devices, as net.ipv4.ip_forward would: a host that was no router between its other
// networks does not become one.

// nat is the journal of one switch's address translation.
type nat struct {
	Place      place
	Switch     string
	Forwarding map[string]string // by device: the setting as it was before any switch's
}

const (
	natSuffix  = ".nat"
	forwarding = "ipv4/conf/*/forwarding"
)

func natPath(dir, switchName string) string { return filepath.Join(dir, switchName+natSuffix) }

// natTable is a switch's.
func natTable(switchName string) *nftables.Table {
	return &nftables.Table{Name: "polder-" + switchName, Family: nftables.TableFamilyIPv4}
}

func openNAT(c Internal, dir string, log *slog.Logger) error {
	place, err := here()
	if err != nil {
		return err
	}
	if found, err := findTable(natTable(c.Switch)); err != nil || found {
		if err == nil {
			err = fmt.Errorf("there is an nftables table ip %[1]s already, which this program has not made: remove it with `nft delete table ip %[1]s`", natTable(c.Switch).Name)
		}
		return err
	}
	j := nat{Place: place, Switch: c.Switch, Forwarding: map[string]string{}}
	uplinks, err := defaultDevices()
	if err != nil {
		return err
	}
	if len(uplinks) == 0 {
		log.Warn("nat: the host has no default route", "switch", c.Switch)
	}
	others, err := readNATs(dir, place)
	if err != nil {
		return err
	}
	for _, d := range append(uplinks, c.Device) {
		v, err := os.ReadFile(settingPath(forwarding, d))
		if err != nil {
			return err
		}
		j.Forwarding[d] = strings.TrimSpace(string(v))
		for _, o := range others {
			if was, ok := o.Forwarding[d]; ok {
				j.Forwarding[d] = was
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := store(natPath(dir, c.Switch), j); err != nil {
		return err
	}
	for d := range j.Forwarding {
		if err := (stepper{}).do(set(forwarding, d, "1")); err != nil {
			return err
		}
	}
	for _, chain := range droppingForwards(natTable(c.Switch).Name) {
		log.Warn("nat: a packet filter drops what it does not know, and may drop guests' packets: have it accept what comes in by the device and goes out by it", "switch", c.Switch, "device", c.Device, "chain", chain)
	}
	return addNATTable(c)
}

// addNATTable adds the rules, in one transaction:
//
//	table ip polder-LAB {
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			ip saddr 192.168.77.0/24 oifname != "vEth-LAB" masquerade
//		}
//		chain forward {
//			type filter hook forward priority filter
//			oifname "vEth-LAB" ct state established,related accept
//			oifname "vEth-LAB" drop
//		}
//	}
//
// The second chain keeps the outside from guests that have not asked for it.
func addNATTable(c Internal) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := conn.AddTable(natTable(c.Switch))
	post := conn.AddChain(&nftables.Chain{
		Table: t, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	forward := conn.AddChain(&nftables.Chain{
		Table: t, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, p := range c.Addresses {
		if !p.Addr().Is4() {
			continue
		}
		conn.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: concat(sourceIn(p.Masked()), outBy(expr.CmpOpNeq, c.Device), &expr.Masq{})})
	}
	const known = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	conn.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: concat(outBy(expr.CmpOpEq, c.Device), []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(known), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}, &expr.Verdict{Kind: expr.VerdictAccept})})
	conn.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: concat(outBy(expr.CmpOpEq, c.Device), nil, &expr.Verdict{Kind: expr.VerdictDrop})})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: table ip %s: %w", t.Name, err)
	}
	return nil
}

func concat(a, b []expr.Any, last expr.Any) []expr.Any { return append(append(a, b...), last) }

// outBy matches packets by the device they leave by.
func outBy(op expr.CmpOp, device string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
}

// sourceIn matches packets by the network that they are from: four bytes at 12 of the IPv4 header.
func sourceIn(p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// closeNAT removes the rules, puts settings back that no other switch needs, and removes the journal. There may be less
// to remove, or nothing.
func closeNAT(switchName, dir string) error {
	path := natPath(dir, switchName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var j nat
	if err == nil {
		err = json.Unmarshal(text, &j)
	}
	if err != nil {
		return fmt.Errorf("journal %s: %w", path, err)
	}
	place, err := here()
	if err != nil {
		return err
	}
	if j.Place != place {
		return forget(path)
	}
	if found, err := findTable(natTable(switchName)); err != nil {
		return err
	} else if found {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		conn.DelTable(natTable(switchName))
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("nftables: table ip %s: %w", natTable(switchName).Name, err)
		}
	}
	all, err := readNATs(dir, place)
	if err != nil {
		return err
	}
	for d, was := range j.Forwarding {
		needed := false
		for _, o := range all {
			_, names := o.Forwarding[d]
			needed = needed || names && o.Switch != switchName
		}
		if _, err := os.Stat(settingPath(forwarding, d)); needed || err != nil {
			continue // or the device is gone
		}
		if err := (stepper{}).do(set(forwarding, d, was)); err != nil {
			return err
		}
	}
	return forget(path)
}

// recoverNAT ends what a process that did not end well has left.
func recoverNAT(dir string) error {
	names, err := journals(dir, natSuffix)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, closeNAT(n, dir))
	}
	return errors.Join(errs...)
}

// readNATs reads the journals that are valid here.
func readNATs(dir string, here place) ([]nat, error) {
	names, err := journals(dir, natSuffix)
	if err != nil {
		return nil, err
	}
	var out []nat
	for _, n := range names {
		text, err := os.ReadFile(natPath(dir, n))
		var j nat
		if err == nil {
			err = json.Unmarshal(text, &j)
		}
		if err != nil {
			return nil, fmt.Errorf("journal %s: %w", natPath(dir, n), err)
		}
		if j.Place == here {
			out = append(out, j)
		}
	}
	return out, nil
}

// findTable tells whether there is such a table.
func findTable(t *nftables.Table) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("nftables: %w: address translation and the driver packet need it in the kernel", err)
	}
	for _, x := range tables {
		if x.Name == t.Name {
			return true, nil
		}
	}
	return false, nil
}

// defaultDevices are the devices that the IPv4 default routes of the table main go out by.
func defaultDevices() ([]string, error) {
	all, err := readObjects()
	if err != nil {
		return nil, err
	}
	var devices []string
	seen := map[string]bool{}
	add := func(d string) {
		if d != "" && !seen[d] {
			seen[d] = true
			devices = append(devices, d)
		}
	}
	for _, o := range all {
		if o.Kind != route || o.family() != unix.AF_INET || o.Head[1] != 0 || o.table() != unix.RT_TABLE_MAIN {
			continue
		}
		add(o.Dev)
		for _, h := range o.Hops {
			add(h.Dev)
		}
	}
	return devices, nil
}

// droppingForwards names the chains, but our table's, that drop what is forwarded and matches none of their rules.
func droppingForwards(ours string) []string {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil
	}
	var out []string
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop &&
			c.Table.Name != ours && (c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet) {
			out = append(out, fmt.Sprintf("table %s %s, chain %s", familyText(c.Table.Family), c.Table.Name, c.Name))
		}
	}
	return out
}
