// Package e2e boots real guests, in stock QEMU and as User Mode Linux, against the polder binary: network boot of
// Debian's installer, guests on one switch that judge every frame they receive, every kind of boot program through
// the adapter's ROM and every fault of the network under it, and what happens when a hypervisor, a guest or the
// daemon dies. Network namespaces are the hosts and the local networks of switches that the host is on, and the
// programs of those who operate such a network, Wireshark's first, judge what Polder writes for them. DPDK's driver and
// testpmd take the place of guests where it is about every layout of the rings.
//
// Its tests need what testdata/setup gets; they fail with that remedy when something is missing. Run them with
// go test ./testdata/e2e, since ./... leaves directories named testdata out.
package e2e
