package hostnet

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A NIC whose frames Polder's own switch takes through a packet socket is silenced: the host's
// protocols would otherwise take every frame a second time. They are kept away by an ingress
// hook that drops all; packet sockets have had their copy by then, since the kernel serves them
// before its ingress hooks. It needs no more than nftables, and it goes with the device.

// silencer names the table of a NIC's hook.
func silencer(nic string) string { return "polder-" + nic }

// silent tells whether the NIC is silenced. A kernel without nftables has silenced none.
func silent(nic string) (bool, error) {
	found, err := findTable(&nftables.Table{Name: silencer(nic), Family: nftables.TableFamilyNetdev})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil
	}
	return found, err
}

// silence adds or removes the hook, each in one transaction.
func silence(nic string, on bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: silencer(nic), Family: nftables.TableFamilyNetdev}
	if on {
		drop := nftables.ChainPolicyDrop
		c.AddTable(t)
		c.AddChain(&nftables.Chain{
			Table: t, Name: "ingress", Type: nftables.ChainTypeFilter, Device: nic,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityRef(-500), Policy: &drop,
		})
	} else {
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: table netdev %s: %w", t.Name, err)
	}
	return nil
}

// silenceCommand is what nft(8) is told for the same.
func silenceCommand(nic string, on bool) string {
	if on {
		return fmt.Sprintf("nft add table netdev %[1]s '{ chain ingress { type filter hook ingress device %[2]s priority -500; policy drop; }; }'", silencer(nic), nic)
	}
	return "nft delete table netdev " + silencer(nic)
}
