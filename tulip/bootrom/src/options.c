#include "dhcp.h"

const uint8_t *find_tag(const uint8_t *at, uint16_t size, uint8_t code, uint8_t *length)
{
	const uint8_t *end = at + size;

	while (at < end && *at != OPTION_END) {
		if (*at == OPTION_PAD) {
			at++;
			continue;
		}
		if (end - at < 2 || end - at - 2 < at[1])
			return NULL;
		if (*at == code) {
			*length = at[1];
			return at + 2;
		}
		at += 2 + at[1];
	}
	return NULL;
}
