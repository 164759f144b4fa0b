/* Numbers that the assembler, the compiler and the build share. */
#ifndef LAYOUT_H
#define LAYOUT_H

/* The adapter this ROM drives. A build for another tulip (for example QEMU's
 * 1011:0019) overrides these on make's command line. */
#ifndef ROM_PCI_VENDOR
#define ROM_PCI_VENDOR	0x1011
#endif
#ifndef ROM_PCI_DEVICE
#define ROM_PCI_DEVICE	0x0009
#endif
#define ROM_VERSION	1

/* Where the fixed structures lie in the image; seal.sh knows the same offsets. */
#define ROM_UNDI_PTR	0x16
#define ROM_PCIR	0x20
#define ROM_PNP		0x40
#define PNP_LENGTH	0x20
#define ROM_UNDI_ID	0x60
#define UNDI_ID_LENGTH	0x16

#define PCI_BDF_UNKNOWN	0xffff

/* Stacks inside the resident segment, bytes. The second one serves an API call
 * that interrupts another (an interrupt handler asking PXENV_UNDI_ISR). */
#define API_STACK	4096
#define ISR_STACK	1024

/* Receive buffers, in a segment of their own behind the resident one. A TFTP
 * window of 16 blocks and the block being consumed must fit, with some slack
 * for broadcasts. */
#define RX_BUFFERS	24
#define RX_BUFFER_SIZE	1536
#define RX_AREA		(RX_BUFFERS * RX_BUFFER_SIZE)

/* The BIOS data area, as linear addresses. */
#define BDA_MEMORY_KB	0x413
#define BDA_TICKS	0x46c
#define BDA_KBD_HEAD	0x41a
#define BDA_KBD_TAIL	0x41c

#define NBP_ADDRESS	0x7c00

#endif
