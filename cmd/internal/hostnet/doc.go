// Package hostnet is the host's side of internal and external switches: bridges, TAPs, addresses, routes and
// rules, by netlink. Private switches do not need it.
//
// # The nouns
//
// The *NIC* is the network adapter that an external switch is bound to. The *management adapter* is the host's own
// adapter on a switch: a kernel bridge or a TAP, which takes over what the host had on the NIC. A *take-over* is that move,
// and its journal; it lasts until it is rolled back.
//
// # A take-over is a transaction
//
//  1. PlanExternal reads the state of the NIC: its settings, and all addresses, routes of every table, rules and static
//     neighbours that name it. It refuses what it does not understand, with the reason and what to do. From the state before it
//     makes the state after. The plan prints the difference as commands; it has touched nothing.
//  2. Begin writes the journal, both states, to the disk, and makes the management adapter.
//  3. Commit converges: it reads the state that is, lists the steps from there to the state after, takes them in one
//     burst, and looks again until nothing differs. New addresses come before old ones go, and the MAC
//     address stays, so connections live on. It then asks every gateway that had answered before.
//  4. Confirm marks the journal. Without it, everything is rolled back when the time that was given to
//     Commit is over, and at the next start.
//  5. Rollback converges to the state before, in which what has changed on the management adapter since then has its
//     place, too, and removes the journal.
//
// Since every step is found by comparing what is with what is wanted, there is no step after which the way on or
// back is not known: Recover, after a crash, is the same convergence.
//
// # As the kernel told it
//
// Addresses, routes, rules and neighbours are kept as the kernel's own messages and told back, with the device
// exchanged. There is no list of what a route can be that would have to be complete. Only attributes that are known to mean
// the same on another device are let through; one that is not in the table is a reason to refuse.
//
// # What is not as before
//
// Lifetimes have gone on. Routes that a router has advertised come back by its next advertisement, which the kernel asks for; a
// stopgap serves until then. Among several NICs' routes to the same multicast or link-local prefix, which only their order
// tells apart, the NIC's comes last.
package hostnet
