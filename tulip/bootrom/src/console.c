#include <stdarg.h>
#include "console.h"

bool keyboard_is_ours;

static void put_decimal(uint32_t v)
{
	char digits[10];
	int n = 0;

	do
		digits[n++] = '0' + v % 10;
	while ((v /= 10) != 0);
	while (n > 0)
		put(digits[--n]);
}

static void put_hex_byte(uint8_t v)
{
	static const char digits[] = "0123456789abcdef";

	put(digits[v >> 4]);
	put(digits[v & 15]);
}

void print(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	for (; *format != 0; format++) {
		if (*format == '\n')
			put('\r');
		if (*format != '%') {
			put(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s != 0; s++)
				put(*s);
			break;
		case 'd':
		case 'u':
			put_decimal(va_arg(args, uint32_t));
			break;
		case 'x': {
			uint16_t v = va_arg(args, uint32_t);
			put_hex_byte(v >> 8);
			put_hex_byte(v);
			break;
		}
		case 'b':
			put_hex_byte(va_arg(args, uint32_t));
			break;
		case 'c':
			put(va_arg(args, int));
			break;
		case 'i': {
			uint32_t ip = va_arg(args, uint32_t);
			for (int i = 0; i < 4; i++, ip >>= 8) {
				if (i > 0)
					put('.');
				put_decimal(ip & 0xff);
			}
			break;
		}
		case 'm': {
			const uint8_t *mac = va_arg(args, const uint8_t *);
			for (int i = 0; i < 6; i++) {
				if (i > 0)
					put(':');
				put_hex_byte(mac[i]);
			}
			break;
		}
		}
	}
	va_end(args);
}

int key_pressed(void)
{
	uint32_t ax = 0;

	/* Looking into the BIOS's buffer is much cheaper than asking. */
	if (low_word(BDA_KBD_HEAD) == low_word(BDA_KBD_TAIL))
		return 0;
	__asm__ volatile("int $0x16" : "+a"(ax) : : "memory", "cc");
	uint8_t ascii = ax, scan = ax >> 8;
	if (ascii != 0)
		return ascii;
	if (scan >= 0x3b && scan <= 0x44)
		return 0x81 + scan - 0x3b;
	return 0;
}

bool canceled(void)
{
	int key = keyboard_is_ours ? key_pressed() : 0;

	return key == KEY_ESC || key == KEY_CTRL_C;
}
