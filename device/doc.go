// Package device joins a guest's adapter to the switch. It knows three things and puts them
// together: a protocol by which a hypervisor attaches (package vfiouser), a model of the
// adapter (package tulip), and a port of the switch (package vswitch). It owns the goroutines;
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
// # Locks
//
// Tulip.gate is held for reading during one Pull and for writing while memory is mapped or
// unmapped, so that memory that a Pull lends to a receiver stays. Tulip.mu guards the chip, the
// memory map and the interrupt line; it is never held while the switch is called, since a
// peer may be calling us at that moment. gate is taken before mu.
//
// # Hostile guests
//
// Guest memory is a file that the hypervisor can shrink, which makes an access fault. Every
// access runs with a handler for it (catch), whichever adapter makes it: a fault ends the attachment
// whose memory it was, and no other.
package device
