// Package vfiouser is the server side of vfio-user: the protocol by which a hypervisor uses a PCI
// device that lives in another process. It knows regions and interrupts; what the device is,
// it leaves to a [Device].
//
// The client is QEMU's vfio-user-pci, which connects to a unix stream socket that the
// server listens on. Messages have a header of 16 bytes; all numbers are little-endian; file descriptors
// (guest memory, eventfds) travel as SCM_RIGHTS. The client sends commands, the server replies.
//
// # The life of a connection
//
//  1. [Listen] makes the socket; [Server.Serve] accepts one client at a time. A client that comes while
//     another is attached waits a moment, as a hypervisor that was killed and started again does,
//     and is then turned away.
//  2. The client sends VERSION. The server calls [Device.Attach] and answers.
//  3. The client passes its guest's memory ([Device.MapDMA]), asks for the device's [Info], and passes an
//     eventfd for INTx ([Device.SetIRQs]).
//  4. Every access of the guest to a register or to configuration space is one message ([Device.ReadRegion],
//     [Device.WriteRegion]). Reads, and writes to I/O ports, are round trips for which
//     a virtual CPU stands still, so devices answer at once and do the work elsewhere.
//  5. At EOF, at the first malformed message, or when the server closes, the socket is closed and
//     [Device.Detach] is called. The client does not reconnect, but its successor may attach.
//
// One goroutine serves a connection and makes all its calls of the Device, in the order of the
// messages. That also keeps a read from overtaking the posted writes before it.
//
// # What it deliberately does not do
//
// The server never sends a command of its own. DMA goes through the mapped
// memory: a DMA_READ would wait for QEMU's main loop, which waits for the lock that the virtual CPU holds
// while it waits for us. It offers no mmap of regions, no migration, and no write_multiple,
// which makes QEMU's synchronous accesses twice as slow.
//
// A message that makes no sense closes the connection, with one line in the log. QEMU gives up on a reply after
// five seconds, and every later access of the guest then takes as long again for as long as the
// socket stays open; with the socket closed, accesses fail at once.
package vfiouser
