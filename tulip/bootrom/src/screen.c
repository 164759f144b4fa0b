#include "console.h"

void screen_put(char c)
{
	/* INT 10h, AH = 0Eh: teletype output. Some BIOSes lose BP when they scroll. */
	__asm__ volatile("pushl %%ebp\n\t"
			 "int $0x10\n\t"
			 "popl %%ebp"
			 : : "a"(0x0e00 | (uint8_t)c), "b"(7) : "memory", "cc");
}
