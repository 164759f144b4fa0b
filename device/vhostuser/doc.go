// Package vhostuser is the back-end side of vhost-user: the protocol by which a hypervisor hands the rings of a
// virtio device to another process. It knows messages, descriptors and the states of
// rings; what the rings carry, it leaves to a [Backend].
//
// The front end is QEMU's vhost-user netdev, DPDK's virtio-user or User Mode Linux's virtio_uml. Messages have a
// header of 12 bytes; numbers are in the byte order of the machine, here always little-endian; file descriptors
// (guest memory, eventfds) travel as SCM_RIGHTS. The front end asks, the back end answers. The
// specification is QEMU's docs/interop/vhost-user.rst; its sections are cited by name.
//
// # The life of a connection
//
//  1. Either side may be the one that listens. [Listen] makes a socket, and [Server.Serve] accepts front ends; a
//     [Client] connects to the socket of the front end, and does so again when that went away.
//  2. With the first message, [Backend.Attach] is called. The front end asks for features and acknowledges some
//     ([Backend.SetFeatures]), and passes its guest's memory ([Backend.SetMemory]).
//  3. For each ring it says size, position and addresses, and passes eventfds for the kick and the call. When that is
//     complete the ring runs ([Backend.StartVring]) until GET_VRING_BASE ([Backend.StopVring]).
//  4. At EOF, at the first malformed message, when the Backend hangs up, or when the server closes, the
//     socket is closed and [Backend.Detach] is called.
//
// One goroutine serves a connection and makes all its calls of the Backend, in the order of the messages.
//
// # Two front ends
//
// A guest that migrates from one hypervisor to another on the same machine has, for a while, two front ends. Both
// connect to the same socket. The second one has a connection and no more: what it says is answered and kept. When it starts a
// ring, the first has stopped all of its own. Then that is detached, and the second attached in its place with all that it has
// said so far. The first may take the device back in the same way, if the migration failed. A front end that starts a ring while
// those of another run loses its connection: somebody started a guest twice.
//
// # The states of a ring
//
//	           SET_VRING_KICK, with size,                  SET_VRING_ENABLE 1, or feature
//	           addresses and memory known                  PROTOCOL_FEATURES not acknowledged
//	stopped ───────────────────────────► running, disabled ◄───────────────────► running, enabled
//	   ▲                                        │               ENABLE 0                │
//	   └────────────────────────────────────────┴───────────────────────────────────────┘
//	     GET_VRING_BASE, RESET_OWNER, RESET_DEVICE, or a message that configures a running ring anew
//
// The specification ("Ring states") starts a ring when its kick is first signalled; starting when
// the kick is passed looks at a ring early, which finds it empty. A ring may be enabled before anything else is
// known of it, which QEMU does at each reset of the machine. A front end may
// configure a ring that it never stopped, as User Mode Linux does when its driver is bound again: the first such message
// stops the ring, and it takes a new kick to start it.
//
// The memory may change while rings run. For the Backend it never does: the rings that run are stopped, the
// whole new table is handed over, and the same rings are started where they stopped, their addresses
// translated anew.
//
// # Who owns a descriptor
//
// A descriptor is closed by the connection unless it is handed out. Files in a [MemRegion] or a [Log] are
// lent until the call returns. Files in a [VringConfig], and the one of
// [Backend.SetVringCall], are duplicates that belong to the Backend.
//
// # What it deliberately does not do
//
// It maps no memory and looks into no ring. It offers no IOTLB, no inflight region (QEMU does not use it for
// network devices), no configuration space (QEMU keeps that of a network device itself), no in-band
// notifications and no postcopy. It accepts the channel for requests of the back end, without which User Mode Linux has no
// interrupt, but sends none.
//
// A message that makes no sense closes the connection, with one line in the log.
package vhostuser
