/*
 * The machine as 16-bit code sees it. Near pointers are offsets in the one
 * resident segment; GS reaches the first 64 KiB of memory and FS the receive
 * buffers (entry.S sets both); everything else is behind a farptr.
 */
#ifndef PLATFORM_H
#define PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include "layout.h"

/* A real-mode address as the PXE API passes it: segment in the high half. */
typedef uint32_t farptr;

static inline farptr far(uint16_t segment, uint16_t offset)
{
	return (uint32_t)segment << 16 | offset;
}

/* far_linear: a linear address below 1 MiB as a farptr with an offset below 16. */
static inline farptr far_linear(uint32_t linear)
{
	return far(linear >> 4, linear & 15);
}

static inline uint32_t linear(farptr p)
{
	return (p >> 16 << 4) + (p & 0xffff);
}

static inline uint16_t code_segment(void)
{
	uint16_t cs;
	__asm__("movw %%cs, %0" : "=r"(cs));
	return cs;
}

/* near_far, near_linear: one of our own objects, as others address it. */
static inline farptr near_far(const void *p)
{
	return far(code_segment(), (uint16_t)(uintptr_t)p);
}

static inline uint32_t near_linear(const void *p)
{
	return ((uint32_t)code_segment() << 4) + (uintptr_t)p;
}

#define FS_BYTES const uint8_t __seg_fs *	/* bytes in the receive buffers */

extern uint16_t rx_segment;	/* the segment FS holds */
extern uint16_t rom_segment;	/* where the BIOS put the ROM we were copied from */
extern uint16_t pci_bdf;	/* our adapter, as a PCI BIOS numbers it */
extern farptr int1a_chain;	/* interrupt 1Ah before us */
extern const uint8_t int1a[];

/* run_nbp runs the program at NBP_ADDRESS and returns what it left in AX; restart_nbp
 * abandons it for another one, loaded to the same place. */
uint16_t run_nbp(void);
void restart_nbp(void) __attribute__((noreturn));

/* Port I/O. An access to the adapter costs some 45 us under emulation. */
static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* The BIOS data area and the interrupt vectors. */
static inline uint16_t low_word(uint16_t address)
{
	return *(volatile uint16_t __seg_gs *)(uintptr_t)address;
}

static inline uint32_t low_long(uint16_t address)
{
	return *(volatile uint32_t __seg_gs *)(uintptr_t)address;
}

static inline void set_low_long(uint16_t address, uint32_t value)
{
	*(volatile uint32_t __seg_gs *)(uintptr_t)address = value;
}

/* BIOS timer ticks since midnight, 18.2 in a second. */
static inline uint32_t ticks(void)
{
	return low_long(BDA_TICKS);
}

#define TICKS_PER_SECOND 18

/* A timeout is kept as its start and length, so that midnight only shortens it. */
struct timer {
	uint32_t start, length;
};

static inline void timer_set(struct timer *t, uint32_t length)
{
	t->start = ticks();
	t->length = length;
}

static inline bool timer_expired(const struct timer *t)
{
	return ticks() - t->start >= t->length;
}

static inline void enable_interrupts(void)
{
	__asm__ volatile("sti" ::: "memory");
}

/* Network byte order. */
static inline uint16_t swap16(uint16_t v)
{
	return v << 8 | v >> 8;
}

#define CONST16(v) ((uint16_t)(((v) & 0xff) << 8 | ((v) >> 8 & 0xff)))

/* memory.c */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
void copy_far(farptr to, farptr from, uint16_t n);
bool copy_linear(uint32_t to, uint32_t from, uint16_t n);
uint32_t sum16(farptr data, uint16_t n, uint32_t sum);

static inline void copy_from_far(void *to, farptr from, uint16_t n)
{
	copy_far(near_far(to), from, n);
}

static inline void copy_to_far(farptr to, const void *from, uint16_t n)
{
	copy_far(to, near_far(from), n);
}

#endif
