// Package vswitch is an Ethernet learning switch between ports, ignorant of
// what a port is.
//
// # Nouns
//
// A [Port] takes frames: a guest's adapter, an uplink, a service. A [Switch]
// joins ports by name; joining makes a [Member], which is the port's place on
// the switch: its counters, its share of the address table, its way out. An
// [Ingress] is the way in: each goroutine that sends for a member owns one.
// The forwarding database (FDB) says behind which member a [MAC] address was
// last seen.
//
// # The life of one frame
//
//  1. A sender lends a batch of frames to [Ingress.Forward], on its own
//     goroutine. The first bytes of each, [Frame.Head], are out of reach of
//     whoever wrote them, so what the switch judges is what it sends.
//  2. The frame's format and addresses are checked. One that fails is dropped
//     with a [DropReason], counted at the sending port; so is every later drop.
//     A frame may leave a checksum, or cutting it into packets of a usual size,
//     to the network adapter ([Offload]); then its headers must agree.
//  3. The source address is learned: it is behind the sending port.
//  4. The destination is looked up. A known address leads to one port. A group
//     address, or one not known, goes to every port but the sender's (a
//     flood). An address known to be behind the sender has arrived already.
//     The groups 01:80:C2:00:00:00 to 0F, which bridges keep to themselves
//     (IEEE 802.1D-2004, 7.12.6), go nowhere.
//  5. When the batch is sorted, each port that gets anything gets one
//     [Port.Deliver] call with its frames, in the order they were sent. The
//     port copies what fits and says how many did; the rest are dropped with
//     the reason "receiver-full", counted at the receiving port. What was left
//     to an adapter the switch does for those ports that do not accept it
//     ([OffloadPort]); they may get several calls.
//
// Nothing on this path blocks, queues, allocates or asks for the time, but for
// the time of a batch from a port with a rate or an observer. A frame is copied
// once, by the receiving port, on the sender's goroutine. Between one Ingress
// and one port frames keep their order, floods included.
//
// # Policies
//
// [PortOptions] say what a port may do; [Member.SetOptions] changes them while
// frames pass. Between steps 2 and 3 a frame is then tested, and dropped with
// the reason of the first test it fails: the link is up, the VLAN is one of the
// port's, the source is one the port may use, it is no spanning tree frame, no
// DHCP server's and no router's, a rule admits it, and it is within the storm
// limit and the bandwidth. Between steps 4 and 5 each port it is for has tests of
// its own: the private VLAN, its link, its rules, its MTU. It gets the frame
// with the tag of the VLAN or without, as its mode is, and ports that mirror
// get a copy.
//
// Options are compiled into the table when they change. If all ports are
// ordinary and nobody observes, there is nothing to compile, and a batch costs
// one test more than if there were no policies at all.
//
// # Observers
//
// An [Observer] gets copies of the frames at some or all ports, as they come in
// and go out, with the reason if they are dropped. It has bounded memory, and
// loses what its reader does not fetch in time. Package capture writes what it
// sees as pcapng. What the data path finds worth telling, a loop or somebody
// else's address, goes to [Config].Events.
//
// # Who owns what
//
// Frames and the lists that hold them belong to the caller of each call and
// are valid until it returns: Forward's to the sender, Deliver's to the
// switch. A port calls neither Forward nor any method of a Switch or Member
// from Deliver.
//
// Members join and leave while others send. The set of members is an immutable
// table that senders load once a batch, so a sender that loaded it just before
// a Leave may still call that port once: see [Port].
//
// # Addresses
//
// A port learns unless it is closed: then its addresses are those of its
// options, which do not age, move, or give way to others. An entry that is
// learned lives for the ageing time after the last frame from its address, and
// goes at once when its port leaves. An address that shows up behind another
// port moves there, and the move is counted. Each VLAN has a database of its
// own; a private VLAN has one, for the primary and the secondaries. The
// database has a fixed size and never grows: [Config] and [PortOptions] say
// how much of it there is and how much one port can take, and a port that
// floods it with addresses cannot push out those of a port with fewer.
//
// # What it does not do
//
// There is no spanning tree: two ports that lead to the same network make a
// loop, which [Config].MaxMoves and the addresses of closed ports, seen coming
// from an uplink, can tell. The switch sends no frames of its own, opens no file and knows no
// operating system.
package vswitch
