// Package bootrom is the adapter's PXE option ROM: the images that Polder serves
// through the expansion ROM BAR, and the means to judge another one.
//
// A BIOS finds the ROM on the adapter, lists it among its boot devices and calls
// its bootstrap entry vector. The ROM then takes some 90 KiB off the top of base
// memory, copies itself there and configures the network by DHCP (or ProxyDHCP,
// or BOOTP), shows a boot menu if a server sent one, and loads a network boot
// program by TFTP. That program may go on using the network through the PXE 2.1
// API of the copy; when it returns, or when anything fails, the BIOS gets its
// memory back and tries the next device.
//
// The 16-bit source is in src; "make -C src" builds [Image] and [NBP] with GNU
// tools alone, the same bytes each time. One file there is one concern:
//
//	header.S entry.S             what the BIOS reads, and every way in and out
//	tulip.c pci.c                the adapter: rings in base memory, polled
//	net.c                        Ethernet, ARP, IPv4, UDP
//	dhcp.c menu.c options.c      address, boot file, boot menu
//	tftp.c                       RFC 1350 with block size, size and window options
//	window.c                     the same window for programs that know none
//	api.c undi.c base.c          the PXE API that boot programs call
//	boot.c console.c screen.c    the order of things, and what the user sees
//	memory.c smbios.c            copies between segments; the machine's UUID
//	nbp/                         the default boot program
//
// What it does not do: protected-mode entry points, multicast TFTP, IP fragments
// and options, and HTTP. The API answers such calls with the specification's
// "unsupported".
package bootrom
