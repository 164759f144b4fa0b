package main

import (
	"fmt"

	"polder/testdata/guest"
	"polder/testdata/tapport"
)

// TCP between two Linux guests in QEMU without hardware virtualisation, as people have them: everything where the
// scheduler puts it. Polder's synthetic adapters against QEMU's own virtio-net on TAP devices of a Linux bridge; both
// pass the segments of TSO on.

var tcgComparisons = []windowed{
	{name: "tcg-tcp-bridge", load: load{mode: "tcp"}, ours: tcgPolder, peer: tcgBridge},
}

// tcgGuest is the QEMU arguments of guest i of the pair, without its adapter.
func tcgGuest(i int) []string {
	return append(guest.Linux(cache, tcpWords(i)...), "-no-reboot")
}

// tcgPolder measures polder serve.
func tcgPolder(load) (m measured, err error) {
	program, err := polder()
	if err != nil {
		return m, err
	}
	d, err := guest.Serve(program, `
switches:
  - name: bench
vms:
  - {name: a, memory: 256M, adapters: [{kind: synthetic, switch: bench}]}
  - {name: b, memory: 256M, adapters: [{kind: synthetic, switch: bench}]}
`)
	if err != nil {
		return m, err
	}
	defer d.Close()
	if err := ahead(d.Pid()); err != nil {
		return m, err
	}
	var guests [2]*guest.Guest
	for i, vm := range []string{"a", "b"} {
		c, err := d.Machine(vm, tcgGuest(i)...)
		if err == nil {
			guests[i], err = guest.Start(cache, c)
		}
		if err != nil {
			return m, err
		}
		defer guests[i].Close()
	}
	return tcpBetween(guests, "")
}

// tcgBridge measures a Linux bridge in a namespace of its own.
func tcgBridge(load) (m measured, err error) {
	n, err := newNamespace()
	if err != nil {
		return m, err
	}
	defer n.close()
	for _, command := range []string{"link add br0 type bridge", "link set br0 up"} {
		if err := n.ip(command); err != nil {
			return m, err
		}
	}
	var guests [2]*guest.Guest
	for i := range guests {
		tap := fmt.Sprintf("tap%d", i)
		if err := n.do(func() error { return tapport.Make(tap) }); err != nil {
			return m, err
		}
		for _, command := range []string{"link set " + tap + " master br0", "link set " + tap + " up"} {
			if err := n.ip(command); err != nil {
				return m, err
			}
		}
		if err := n.do(func() (err error) {
			guests[i], err = guest.Start(cache, guest.Config{Name: tap, Args: append(tcgGuest(i),
				"-netdev", "tap,id=n0,script=no,downscript=no,ifname="+tap,
				"-device", fmt.Sprintf("virtio-net-pci,netdev=n0,mac=52:54:00:00:00:%02x", i+1))})
			return err
		}); err != nil {
			return m, err
		}
		defer guests[i].Close()
	}
	return tcpBetween(guests, "")
}
