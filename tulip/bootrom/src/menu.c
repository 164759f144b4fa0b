/* The boot menu and boot servers of PXE 2.1, section 2.4: the tags inside DHCP
 * option 43. */
#include "dhcp.h"
#include "console.h"
#include "pxe.h"

enum {
	PXE_DISCOVERY_CONTROL = 6,
	DISCOVER_NO_BROADCAST = 1,
	DISCOVER_NO_MULTICAST = 2,
	DISCOVER_LISTED_ONLY = 4,
	DISCOVER_SKIP = 8,		/* just boot the file */
	PXE_DISCOVERY_MCAST_ADDR = 7,
	PXE_BOOT_SERVERS = 8,
	PXE_BOOT_MENU = 9,
	PXE_MENU_PROMPT = 10,

	TYPE_LOCAL = 0,
	PROMPT_SHOW_MENU = 255,		/* prompt timeout: show the menu at once, for ever */
	MENU_MAX = 9,			/* items a digit can choose */

	BOOT_SERVER_PORT = CONST16(4011),
	DHCP_SERVER_PORT = CONST16(67),
};

static uint16_t word(const uint8_t *p)
{
	return p[0] << 8 | p[1];
}

/* The menu is a run of {type, 2 bytes; length; text}. */
struct item {
	uint16_t type;
	const uint8_t *text;
	uint8_t length;
};

static int read_menu(const uint8_t *at, uint8_t size, struct item *items)
{
	int n = 0;

	for (; size >= 3 && size - 3 >= at[2] && n < MENU_MAX; n++) {
		items[n].type = word(at);
		items[n].length = at[2];
		items[n].text = at + 3;
		size -= 3 + at[2];
		at += 3 + at[2];
	}
	return n;
}

static void print_text(const uint8_t *text, uint8_t length)
{
	for (; length > 0; length--, text++)
		print("%c", *text >= ' ' && *text <= '~' ? *text : '?');
}

/* prompt shows the server's prompt and waits for F8: true if it was pressed or
 * need not be, false if the time passed; *skip if Esc was. */
static bool prompt(const uint8_t *tag, uint8_t size, bool *skip)
{
	struct timer timer;

	if (tag[0] == PROMPT_SHOW_MENU)
		return true;
	if (tag[0] == 0)
		return false;
	print("\n");
	print_text(tag + 1, size - 1);
	timer_set(&timer, tag[0] * TICKS_PER_SECOND);
	while (!timer_expired(&timer)) {
		int key = key_pressed();
		if (key == KEY_F8)
			return true;
		if (key == KEY_ESC || key == KEY_CTRL_C) {
			*skip = true;
			return false;
		}
	}
	return false;
}

/* choose_item shows the menu; -1 if the user pressed Esc. */
static int choose_item(const struct item *items, int count)
{
	print("\n");
	for (int i = 0; i < count; i++) {
		print("  %d  ", i + 1);
		print_text(items[i].text, items[i].length);
		print("\n");
	}
	print("Choose 1 to %d, or Esc: ", count);
	for (;;) {
		int key = key_pressed();
		if (key == KEY_ESC || key == KEY_CTRL_C)
			return -1;
		if (key == KEY_ENTER)
			key = '1';
		if (key > '0' && key <= '0' + count) {
			print("%c\n", key);
			return key - '1';
		}
	}
}

/* ask_listed asks the boot servers listed for a type, one after the other: runs of
 * {type, 2 bytes; count; addresses}. */
static bool ask_listed(const uint8_t *at, uint8_t size, uint16_t type)
{
	while (size >= 3 && (size - 3) / 4 >= at[2]) {
		for (int i = 0; word(at) == type && i < at[2]; i++) {
			uint32_t server;
			memcpy(&server, at + 3 + 4 * i, sizeof server);
			if (boot_server_request(server, BOOT_SERVER_PORT, type))
				return true;
		}
		size -= 3 + 4 * at[2];
		at += 3 + 4 * at[2];
	}
	return false;
}

static bool ask_boot_servers(const uint8_t *tags, uint8_t size, uint16_t type)
{
	uint8_t n;
	const uint8_t *v = find_tag(tags, size, PXE_DISCOVERY_CONTROL, &n);
	uint8_t control = v != NULL && n == 1 ? *v : 0;
	/* An acknowledgement overwrites reply, and with it these tags, so collect
	 * what is needed before asking. */
	static uint8_t list[255];
	uint8_t list_size = 0;
	uint32_t group = 0;

	v = find_tag(tags, size, PXE_BOOT_SERVERS, &n);
	if (v != NULL) {
		memcpy(list, v, n);
		list_size = n;
	}
	v = find_tag(tags, size, PXE_DISCOVERY_MCAST_ADDR, &n);
	if (v != NULL && n == 4)
		memcpy(&group, v, n);
	if (ask_listed(list, list_size, type))
		return true;
	if (control & DISCOVER_LISTED_ONLY)
		return false;
	if (group != 0 && !(control & DISCOVER_NO_MULTICAST) &&
	    boot_server_request(group, BOOT_SERVER_PORT, type))
		return true;
	return !(control & DISCOVER_NO_BROADCAST) &&
	       boot_server_request(IP_BROADCAST, DHCP_SERVER_PORT, type);
}

uint16_t menu_choose(bool *local)
{
	struct item items[MENU_MAX];
	uint8_t size, n;
	const uint8_t *tags = dhcp_option(&reply, OPTION_VENDOR, &size);
	int chosen = 0;
	bool skip = false;

	if (tags == NULL)
		return PXE_SUCCESS;
	const uint8_t *control = find_tag(tags, size, PXE_DISCOVERY_CONTROL, &n);
	const uint8_t *menu = find_tag(tags, size, PXE_BOOT_MENU, &n);
	if (menu == NULL || (control != NULL && (*control & DISCOVER_SKIP)))
		return PXE_SUCCESS;
	int count = read_menu(menu, n, items);
	if (count == 0)
		return PXE_BSTRAP_PROMPT_MENU;
	const uint8_t *question = find_tag(tags, size, PXE_MENU_PROMPT, &n);
	if (question != NULL && n > 0 && prompt(question, n, &skip))
		chosen = choose_item(items, count);
	if (skip || chosen < 0)
		return PXE_CANCELED;
	if (items[chosen].type == TYPE_LOCAL) {
		*local = true;
		return PXE_SUCCESS;
	}
	return ask_boot_servers(tags, size, items[chosen].type) ?
		PXE_SUCCESS : PXE_BSTRAP_NO_RESPONSE;
}
