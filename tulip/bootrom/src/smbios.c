#include "smbios.h"
#include "dhcp.h"

enum {
	BIOS_SEGMENT = 0xf000,
	UUID_LENGTH = 16,
	TYPE_SYSTEM = 1,		/* the structure that holds the UUID */
	TYPE_END = 127,
	SYSTEM_UUID = 8,		/* its offset there */
	TABLE_MAX = sizeof(struct dhcp_packet),
};

/* The parts of the entry point "_SM_" (DSP0134, 5.2.1) that matter. */
struct entry_point {
	uint8_t anchor[4];
	uint8_t checksum, length;
	uint8_t skipped[16];
	uint16_t table_length;
	uint32_t table;
} __attribute__((packed));

static bool find_entry_point(struct entry_point *e)
{
	for (uint32_t at = 0; at < 0x10000; at += 16) {
		copy_from_far(e, far(BIOS_SEGMENT, at), sizeof *e);
		if (memcmp(e->anchor, "_SM_", 4) == 0)
			return true;
	}
	return false;
}

void smbios_uuid(uint8_t *uuid)
{
	/* Searched once; the table goes where the next reply will be received. */
	static bool known;
	static uint8_t found[UUID_LENGTH];
	struct entry_point e;
	uint8_t *table = (uint8_t *)&reply.packet;

	if (!known && find_entry_point(&e)) {
		uint16_t size = e.table_length < TABLE_MAX ? e.table_length : TABLE_MAX;
		const uint8_t *end = table + size;
		if (!copy_linear(near_linear(table), e.table, size))
			size = 0;
		for (const uint8_t *s = table; size > 0 && s + 4 <= end && s[0] != TYPE_END;) {
			if (s[0] == TYPE_SYSTEM && s[1] >= SYSTEM_UUID + UUID_LENGTH) {
				memcpy(found, s + SYSTEM_UUID, UUID_LENGTH);
				break;
			}
			/* Behind the formatted part are strings, ended by two NULs. */
			for (s += s[1]; s + 2 <= end && (s[0] | s[1]) != 0;)
				s++;
			s += 2;
		}
	}
	known = true;
	memcpy(uuid, found, UUID_LENGTH);
}
