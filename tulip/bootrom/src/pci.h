/* PCI configuration space, through the PCI BIOS. */
#ifndef PCI_H
#define PCI_H

#include "platform.h"

/* Configuration registers (PCI Local Bus Specification 2.1, section 6.1). */
enum {
	PCI_ID = 0x00,
	PCI_COMMAND = 0x04,
	PCI_CLASS_REVISION = 0x08,
	PCI_BAR0 = 0x10,
	PCI_SUBSYSTEM = 0x2c,
	PCI_INTERRUPT_LINE = 0x3c,
};

enum { PCI_COMMAND_IO = 1, PCI_COMMAND_MASTER = 4 };

/* pci_find looks for the first adapter of our kind: its address or
 * PCI_BDF_UNKNOWN. */
uint16_t pci_find(void);

uint32_t pci_read(uint16_t bdf, uint8_t reg);
void pci_write_word(uint16_t bdf, uint8_t reg, uint16_t value);

#endif
