#include "pci.h"

/* INT 1Ah functions of the PCI BIOS Specification 2.1. */
enum {
	PCIBIOS_FIND_DEVICE = 0xb102,
	PCIBIOS_READ_DWORD = 0xb10a,
	PCIBIOS_WRITE_WORD = 0xb10c,
};

uint16_t pci_find(void)
{
	uint32_t ax = PCIBIOS_FIND_DEVICE, bx = 0;

	__asm__ volatile("int $0x1a"
			 : "+a"(ax), "+b"(bx)
			 : "c"(ROM_PCI_DEVICE), "d"(ROM_PCI_VENDOR), "S"(0)
			 : "memory", "cc");
	return (ax & 0xff00) == 0 ? bx : PCI_BDF_UNKNOWN;
}

uint32_t pci_read(uint16_t bdf, uint8_t reg)
{
	uint32_t ax = PCIBIOS_READ_DWORD, value = 0;

	__asm__ volatile("int $0x1a"
			 : "+a"(ax), "+c"(value)
			 : "b"(bdf), "D"((uint32_t)reg)
			 : "edx", "memory", "cc");
	return value;
}

void pci_write_word(uint16_t bdf, uint8_t reg, uint16_t value)
{
	uint32_t ax = PCIBIOS_WRITE_WORD;

	__asm__ volatile("int $0x1a"
			 : "+a"(ax)
			 : "b"(bdf), "c"(value), "D"((uint32_t)reg)
			 : "edx", "memory", "cc");
}
