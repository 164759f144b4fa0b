# What a BIOS reads before it runs anything: the option ROM header, the PCI data
# structure, the Plug and Play expansion header and the UNDI ROM ID structure.
# Their checksums and the ROM size are filled in by the build (see seal.sh).

#include "layout.h"

	.code16
	.section .header, "ax"
	.globl	rom_start
rom_start:
# Option ROM header (PCI Firmware Specification, "PCI Expansion ROM Header").
	.byte	0x55, 0xaa
	.byte	0			# image size in 512-byte units (seal.sh)
	.byte	0xe9			# jmp rom_init, kept three bytes long
	.word	rom_init - (. + 2)
	.byte	0			# makes the image sum to zero (seal.sh)
	.org	ROM_UNDI_PTR
	.word	undi_rom_id		# PXE 2.1, section 4.1: UNDI ROM ID structure
	.word	pcir			# PCI data structure
	.word	pnp			# first expansion header

# PCI data structure (PCI Local Bus Specification 2.1, section 6.3.1.2).
	.org	ROM_PCIR
pcir:
	.ascii	"PCIR"
	.word	ROM_PCI_VENDOR
	.word	ROM_PCI_DEVICE
	.word	0			# no vital product data
	.word	0x18			# length of this structure
	.byte	0			# revision
	.byte	0x00, 0x00, 0x02	# class: Ethernet controller
	.word	0			# image length in 512-byte units (seal.sh)
	.word	ROM_VERSION
	.byte	0			# code type: x86, PC-AT
	.byte	0x80			# last image
	.word	0

# Plug and Play expansion header (Plug and Play BIOS Specification 1.0A, 3.2).
	.org	ROM_PNP
pnp:
	.ascii	"$PnP"
	.byte	1			# revision
	.byte	PNP_LENGTH / 16
	.word	0			# no next header
	.byte	0
	.byte	0			# checksum (seal.sh)
	.long	0			# device identifier: none
	.word	manufacturer
	.word	product
	.byte	0x02, 0x00, 0x00	# device type: network, Ethernet
	.byte	0xf4			# DDIM, shadowable, cacheable, needed only to boot, IPL device
	.word	0			# boot connection vector: none
	.word	0			# disconnect vector: none
	.word	rom_bev			# bootstrap entry vector
	.word	0
	.word	0			# static resources: none

# UNDI ROM ID structure (PXE 2.1, section 4.1).
	.org	ROM_UNDI_ID
	.globl	undi_rom_id
undi_rom_id:
	.ascii	"UNDI"
	.byte	UNDI_ID_LENGTH
	.byte	0			# checksum (seal.sh)
	.byte	0			# structure revision
	.byte	0, 1, 2			# UNDI 2.1.0, low byte first
	.word	undi_loader
	.word	API_STACK		# stack an UNDI call needs
	.word	RX_AREA			# data segment: the receive buffers
	.word	resident_end		# code segment: code, data and stack
	.ascii	"PCIR"
	.org	ROM_UNDI_ID + UNDI_ID_LENGTH

manufacturer:
	.asciz	"Polder"
product:
	.ascii	"Polder PXE (PCI "
	.globl	product_location
product_location:
	.asciz	"00:00.0)"

# Which adapter this copy of the ROM belongs to: bus in the high byte, device
# and function in the low one, as a PCI BIOS numbers it. rom_init fills it in;
# PCI_BDF_UNKNOWN where the shadow could not be written.
	.globl	pci_bdf
pci_bdf:
	.word	PCI_BDF_UNKNOWN

	.section .note.GNU-stack, "", @progbits
