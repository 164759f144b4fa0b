/*
 * The 21140 driven by polling descriptors in base memory: a register access is
 * dear under emulation, so a received frame costs none and a sent one a single
 * poll demand.
 */
#ifndef TULIP_H
#define TULIP_H

#include "platform.h"

enum {
	MAC_LENGTH = 6,
	FRAME_MAX = 1514,	/* without the frame check sequence */
	FRAME_MIN = 60,
	MULTICAST_MAX = 8,	/* PXE 2.1's MAXNUM_MCADDR */
};

/* What the receiver lets through; the values are PXE 2.1's FLTR_*. */
enum {
	FILTER_DIRECTED = 1,
	FILTER_BROADCAST = 2,
	FILTER_PROMISCUOUS = 4,
};

/* The adapter, from nic_probe on. */
struct nic {
	uint16_t io;			/* I/O base, 0 before nic_probe */
	uint8_t irq;			/* PIC line, 0 or above 15 if none */
	bool started;			/* the rings are live */
	bool interrupts;		/* sent frames and received ones raise INTA */
	bool full_duplex;
	bool mbit100;
	uint8_t permanent[MAC_LENGTH];	/* of the serial ROM */
	uint8_t mac[MAC_LENGTH];	/* the station address in use */
	uint8_t filter;			/* FILTER_* */
	uint8_t multicasts;
	uint8_t multicast[MULTICAST_MAX][MAC_LENGTH];
	uint32_t sent, received, crc_errors, missed;
};

extern struct nic nic;

/* nic_probe finds the adapter, lets it answer I/O and master the bus, and reads
 * its address. It reports false if there is none. */
bool nic_probe(void);

/* nic_link tells whether there is a carrier; it also sets the speed and duplex
 * that nic_start configures. A board without MII is taken to have one. */
bool nic_link(void);

/* nic_start resets the chip, lays out the rings and starts both processes with
 * nic.mac, nic.filter and nic.multicast. Interrupts stay off. */
bool nic_start(void);

/* nic_stop resets the chip: no DMA after it returns. */
void nic_stop(void);

/* nic_refilter makes changed filters effective in a running chip. */
bool nic_refilter(void);

/* nic_receive gives the oldest received frame, if there is one: its offset in the
 * receive segment and its length without FCS. The frame stays ours until
 * nic_release, which does nothing if none was given out. */
bool nic_receive(uint16_t *offset, uint16_t *length);
void nic_release(void);

/* nic_buffer is where the next frame to send is written, FRAME_MAX bytes; NULL if
 * the chip does not finish the ones before. nic_send sends it, padded. */
uint8_t *nic_buffer(void);
void nic_send(uint16_t length);

/* nic_reap counts one finished frame out and reports whether there was one. */
bool nic_reap(void);

/* nic_enable_interrupts and nic_disable_interrupts set the mask (CSR7). */
void nic_enable_interrupts(void);
void nic_disable_interrupts(void);

/* nic_acknowledge tells whether the adapter asserts INTA, and lets it go. */
bool nic_acknowledge(void);

/* nic_count_missed adds the chip's counter of frames it had no buffer for to
 * nic.missed. */
void nic_count_missed(void);

/* nic_force_interrupt makes the adapter interrupt within 0.1 ms. */
void nic_force_interrupt(void);

#endif
