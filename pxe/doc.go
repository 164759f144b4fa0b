// Package pxe is one port of a virtual switch that boots guests: DHCP, TFTP and HTTP over a private
// IP stack, with no socket of the host.
//
// # The nouns
//
//   - A [Server] is the port: it takes the switch's frames and sends its own.
//   - A [Client] is what a guest said of itself in DHCP.
//   - The [Policy] is a pure function from a Client to a [Reply]: which file to boot, and what the
//     firmware must hear to boot it. It follows the operator's [BootRule] list; without one, what lies
//     in the root decides, and without a root, iPXE gets a script that shows who the guest is.
//   - A [Lease] is an address in use.
//   - An [Event] is a step of a guest's boot; together they are its timeline.
//
// # The life of a boot
//
//  1. A guest broadcasts a DISCOVER. The switch calls [Server.Deliver] on the goroutine of the guest's
//     port, which copies the frame into a queue of fixed size and returns.
//  2. The service's own goroutine takes it from there and gives it to the stack (internal/ipstack),
//     which checks it and calls the handler of UDP port 67. That queues the message once more, for the
//     goroutine that answers DHCP, since looking for a boot file can wait for a disk.
//  3. The OFFER, and after the REQUEST the ACK, name the file. iPXE is told not to wait for a ProxyDHCP
//     offer (option 175.176), PXE ROMs not to look for boot servers or menus (option 43.6), and a Router
//     Solicitation gets an empty answer: without the three, a boot spends 3 to 16 seconds waiting.
//  4. The guest asks for the file by TFTP. The transfer gets a goroutine, which opens the file and reads
//     it ahead, and a UDP port of its own. Each ACK is answered at once, where it arrives, by the
//     service's goroutine; a block costs one hand-over, from the sender of the ACK to it.
//  5. The kernel asks for an address like any host, and keeps it for Config.Lease.
//
// Two kinds of senders serve TFTP. The library github.com/pin/tftp, behind the gate of tftplib.go, sends
// netascii. All octet transfers, with windows (RFC 7440, which the library does not know) and without,
// are our own sender's (tftpwindow.go): the library needs two more hand-overs for each block. Over a
// switch in memory, with a client that costs next to nothing and blocks of 1468 bytes, a block in
// lock step takes 4.3 µs and 19 allocations with the library, and 1.5 µs with none of the sender's own
// this way; with a window of 16, 0.5 µs (BenchmarkTFTP; 2 virtual CPUs of an EPYC, Go 1.26).
//
// # What guests cannot do
//
// All input is a guest's and is taken for hostile. Memory and goroutines are bounded: the queues, the
// leases by the pool, the clients remembered, transfers in all and per guest, HTTP connections. A guest
// cannot write, cannot name a file outside the root, cannot speak DHCP for another's MAC address, and
// cannot write more than a few log lines a second. What it does wrong costs it its packet or its
// transfer and nothing else.
//
// # What is not here
//
// The service routes nothing, so it tells guests no router unless one is configured. It asks nobody
// whether an address is in use before it offers it (dnsmasq waits up to 3 s for that): a client that
// finds it so declines. Leases are kept in memory. It does not give IPv6 addresses. It reads no file
// but through Config.Files.
package pxe
