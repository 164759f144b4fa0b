// Package capture writes what an observer of a switch sees as pcapng, the
// format of Wireshark and tcpdump (draft-ietf-opsawg-pcapng).
//
// Each port is an interface, with the port's name. Each packet says whether it
// came In at the port or went Out there (epb_flags), and the switch's findings
// are in comments, which Wireshark shows in the packet list and filters by:
//
//	drop=dhcp-guard         why the frame went no further
//	checksum=completed      the sender left the checksum to an adapter; here it is filled in
//	gso=tcp4/1448           the sender left cutting it into segments of 1448 bytes to an adapter
//
// Packets lost because the reader was slow are counted in the next packet of
// the same port (epb_dropcount), and all of them in the statistics with which
// the capture ends.
//
// The package has its own writer of the four blocks this takes. That of
// gopacket cannot begin before the first interface is known, so a reader of a
// quiet switch would not get as much as a header, and it would bring decoders
// for a hundred protocols into a program that needs none.
package capture
