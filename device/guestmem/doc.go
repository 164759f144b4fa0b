// Package guestmem turns guest-physical addresses into memory of this process.
//
// A hypervisor shares its guest's RAM by passing a file descriptor (a memfd, a file on
// tmpfs or on hugetlbfs) together with the guest-physical range that shows it. A [Map] is the
// set of those ranges for one guest. It answers three questions on behalf of a device
// that does DMA: [Map.Window] lends the memory itself, [Map.Read] and [Map.Write] copy.
//
// The nouns are these. A [Region] is one range as the hypervisor announced it. A mapping is
// one mmap of a whole file, shared by all regions of that file. Firmware makes the
// hypervisor take the same RAM away and give it back, cut differently, several times
// while it boots; then only regions come and go, and the mapping stays. It is unmapped
// a short grace after its last region has gone.
//
// # Safety
//
// A slice from Window is not Go heap: it stays valid only until the region is unmapped, and
// touching it afterwards is a fault. The owner of the Map therefore serialises Map,
// Unmap and Close with every use of the memory; the package does not lock on behalf of
// lookups, which may run concurrently with one another.
//
// The guest and the hypervisor write to this memory at any time, so a value that is
// checked must be copied first and the copy used. The hypervisor may also truncate the
// file under the mapping: code that touches guest memory runs inside [Guard], which
// turns the resulting fault into [ErrFault].
//
// What one hypervisor can make this process hold is bounded: see the constants at the top of
// map.go. Only memory-backed files are accepted, since a page fault in a file
// served by a program (FUSE) or by another machine could last forever.
package guestmem
