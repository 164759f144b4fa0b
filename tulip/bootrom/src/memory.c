/* Copies within the segment, between segments and above 1 MiB, and the sum the
 * Internet checksum is made of. */
#include "platform.h"

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *memset(void *to, int byte, size_t n)
{
	void *d = to;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (; n > 0; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n] != 0)
		n++;
	return n;
}

/* copy_far copies n bytes, four at a time: emulators pay for each step of a
 * string instruction. Neither range may wrap in its segment. */
void copy_far(farptr to, farptr from, uint16_t n)
{
	uint32_t count = n >> 2, rest = n & 3;
	uint32_t si = from & 0xffff, di = to & 0xffff;

	__asm__ volatile(
		"pushw	%%ds\n\t"
		"pushw	%%es\n\t"
		"movw	%w[ds], %%ds\n\t"
		"movw	%w[es], %%es\n\t"
		"rep movsl\n\t"
		"movl	%[rest], %%ecx\n\t"
		"rep movsb\n\t"
		"popw	%%es\n\t"
		"popw	%%ds"
		: "+S"(si), "+D"(di), "+c"(count)
		: [ds] "a"(from >> 16), [es] "d"(to >> 16), [rest] "b"(rest)
		: "memory");
}

/* A segment descriptor of the table for INT 15h, AH = 87h. */
struct block_descriptor {
	uint16_t limit;
	uint16_t base_low;
	uint8_t base_middle;
	uint8_t access;
	uint8_t flags;
	uint8_t base_high;
} __attribute__((packed));

static void describe(struct block_descriptor *d, uint32_t base)
{
	d->limit = 0xffff;
	d->base_low = base;
	d->base_middle = base >> 16;
	d->access = 0x93;	/* present, data, writable, accessed */
	d->flags = 0;
	d->base_high = base >> 24;
}

static bool move_words(uint32_t to, uint32_t from, uint16_t words)
{
	struct block_descriptor table[6] = {};	/* 0, itself, source, target, CS, SS */
	uint32_t ax = 0x8700;

	describe(&table[2], from);
	describe(&table[3], to);
	__asm__ volatile("int $0x15\n\t"
			 "sbbb %%al, %%al"	/* AL = FFh when CF is set */
			 : "+a"(ax)
			 : "c"(words), "S"(table)
			 : "memory", "cc");
	return (ax & 0xff) == 0;
}

/* copy_linear copies between linear addresses, also above 1 MiB, where the BIOS
 * does it. It reports false when the BIOS could not. */
bool copy_linear(uint32_t to, uint32_t from, uint16_t n)
{
	uint16_t word;

	if (to + n <= 0x100000 && from + n <= 0x100000) {
		copy_far(far_linear(to), far_linear(from), n);
		return true;
	}
	if (n > 1 && !move_words(to, from, n >> 1))
		return false;
	if ((n & 1) == 0)
		return true;
	/* The BIOS moves words: merge the odd last byte into the word it shares. */
	to += n - 1;
	from += n - 1;
	uint16_t last;
	if (!move_words(near_linear(&last), from, 1) || !move_words(near_linear(&word), to, 1))
		return false;
	word = (word & 0xff00) | (last & 0xff);
	return move_words(to, near_linear(&word), 1);
}

/* sum16 adds n bytes at data, as little-endian words with the carries folded
 * in, to sum. A sum over an odd length pads with a zero byte. */
uint32_t sum16(farptr data, uint16_t n, uint32_t sum)
{
	uint32_t count = n >> 2, si = data & 0xffff;
	uint32_t word;

	if (count > 0)
		__asm__ volatile(
			"pushw	%%ds\n\t"
			"movw	%w[ds], %%ds\n\t"
			"clc\n"
			"1:	lodsl\n\t"
			"adcl	%%eax, %[sum]\n\t"
			"decl	%%ecx\n\t"	/* leaves CF alone */
			"jnz	1b\n\t"
			"adcl	$0, %[sum]\n\t"
			"popw	%%ds"
			: "+S"(si), "+c"(count), [sum] "+b"(sum), "=a"(word)
			: [ds] "d"(data >> 16)
			: "memory", "cc");
	uint32_t tail = 0;
	if (n & 3)
		copy_from_far(&tail, far(data >> 16, si), n & 3);
	sum = (sum & 0xffff) + (sum >> 16);
	sum += (tail & 0xffff) + (tail >> 16);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}
