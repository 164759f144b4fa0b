// Package device joins a guest's adapter to the switch. It knows three things and puts them
// together: a protocol by which a hypervisor attaches (package vfiouser or vhostuser), a model of the
// adapter (package tulip or virtq), and a port of the switch (package vswitch). It owns the goroutines;
// the three know nothing of each other.
//
// # The nouns
//
// An *adapter* (Tulip) exists as long as its port does, whether or not a guest runs. An
// *attachment* is one connection of a hypervisor to it: it brings the guest's memory and takes
// it away again, and when it ends the adapter is as new. Its goroutine answers the guest's
// register accesses and sends the guest's frames; a *worker* (Run) sends what a timer starts.
//
// # One frame from a guest
//
//  1. The guest writes CSR1. The attachment's goroutine hands the write to the chip, answers
//     it, and, before it waits for the next message, calls Work.
//  2. Work calls Pull: under mu the chip fetches descriptors and lends the buffers (PollTx).
//  3. Without mu, the first bytes of each frame are copied out of the guest's reach, and
//     Ingress.Forward judges those and has each receiver copy the rest from the sender's
//     memory into its own.
//  4. Under mu again the chip closes the descriptors and asks for its interrupt (FinishTx).
//
// # One frame to a guest
//
// The sender's goroutine calls Deliver: under mu, the chip filters the frame, copies it into
// the guest's buffers and asks for its interrupt; once per call the interrupt line's level is
// compared with what the hypervisor was last told.
//
// A frame for which the guest has no descriptor waits in the port's *backlog*, and all behind it do. It goes on
// when the guest has freed descriptors, which is looked for at its next register access, at the next
// Deliver and by a timer. Only when the backlog is full is a frame lost, and the chip told of it.
//
// # The synthetic adapter
//
// A VirtioNet has no registers, which the hypervisor keeps: it has rings (package virtq), which an attachment
// by vhost-user (package vhostuser) hands over and takes back one by one. From its start to its stop, a transmit ring is looked
// after by one of the process's Workers, which sleep when there is nothing to do or, in poll mode, never. The rest is the same: an
// adapter outlives its attachments, a worker pulls and forwards, Deliver copies into the guest's memory.
//
// # The host
//
// A Tap is an interface of the host whose other end is the switch, and a Packet is an interface whose
// other end is a wire. Either is one or several descriptors, with a worker (Run) for each, which reads frames into memory of its
// own and forwards them. Deliver writes to a descriptor, from where a frame lies in the sender's memory: the kernel copies it, and
// for a Tap goes on with it through the host's stack before the call returns.
//
// # Locks
//
// Tulip.gate is held for reading during one Pull and for writing while memory is mapped or
// unmapped, so that memory that a Pull lends to a receiver stays. Tulip.mu guards the chip, the
// memory map and the interrupt line; it is never held while the switch is called, since a
// peer may be calling us at that moment. gate is taken before mu.
//
// Each ring of a VirtioNet has a lock. That of a transmit ring is held during a whole Pull, also while the switch is
// called; that of a receive ring never. Memory changes only while no ring runs, and to stop a
// ring takes its lock, so there is nothing else for memory to be held by.
//
// Deliver of a Tap or a Packet takes a lock that others who deliver can have at the same time: it is only
// there to have the descriptors closed when nobody uses them.
//
// # Hostile guests
//
// Guest memory is a file that the hypervisor can shrink, which makes an access fault. Every
// access runs with a handler for it (catch), whichever adapter makes it: a fault ends the attachment
// whose memory it was, and no other.
package device
