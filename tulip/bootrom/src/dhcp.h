/*
 * DHCP (RFC 2131, 2132) with the PXE options, ProxyDHCP, BOOTP, and the boot
 * server discovery of PXE 2.1, chapter 2.
 */
#ifndef DHCP_H
#define DHCP_H

#include "net.h"

enum {
	DHCP_OPTIONS_MAX = 1200,	/* a packet of 1436 bytes in a frame of 1500 */
	BOOTP_HEADER = 236,
};

struct dhcp_packet {
	uint8_t op;
	uint8_t hardware;
	uint8_t hardware_length;
	uint8_t hops;
	uint32_t xid;
	uint16_t secs;
	uint16_t flags;
	uint32_t client, your, server, relay;
	uint8_t mac[16];
	char server_name[64];
	char file[128];
	uint8_t options[DHCP_OPTIONS_MAX];	/* begins with the magic cookie */
} __attribute__((packed));

/* The packets GET_CACHED_INFO gives out, with their lengths; 0 = none. reply is
 * the one that told us what to boot; it may be a copy of ack. */
struct cached {
	struct dhcp_packet packet;
	uint16_t length;
};

extern struct cached discover, ack, reply;

/* What to boot. */
struct boot_choice {
	uint32_t server;
	char file[129];
};

/* dhcp_configure gets an address, and in net all that belongs to it, and finds out
 * what to boot. It returns a status of the PXE API. */
uint16_t dhcp_configure(struct boot_choice *choice);

/* dhcp_decline tells the server that its address is taken. */
void dhcp_decline(void);

/* Options of RFC 2132 and of PXE 2.1. */
enum {
	OPTION_PAD = 0,
	OPTION_MASK = 1,
	OPTION_ROUTER = 3,
	OPTION_VENDOR = 43,
	OPTION_REQUESTED_ADDRESS = 50,
	OPTION_OVERLOAD = 52,
	OPTION_MESSAGE_TYPE = 53,
	OPTION_SERVER_ID = 54,
	OPTION_PARAMETERS = 55,
	OPTION_MAX_SIZE = 57,
	OPTION_CLASS = 60,
	OPTION_TFTP_SERVER = 66,
	OPTION_BOOT_FILE = 67,
	OPTION_ARCHITECTURE = 93,
	OPTION_UNDI = 94,
	OPTION_UUID = 97,
	OPTION_END = 255,
};

/* options.c */

extern const uint8_t dhcp_cookie[4];

/* find_tag finds a tag in a run of options; NULL if it is not there. */
const uint8_t *find_tag(const uint8_t *at, uint16_t size, uint8_t code, uint8_t *length);

/* well_formed tells whether the options of a packet end where it ends. */
bool well_formed(const struct cached *c);

/* dhcp_option finds an option, also in an overloaded file or server name field;
 * its length comes through *length. NULL if it is not there. */
const uint8_t *dhcp_option(const struct cached *c, uint8_t code, uint8_t *length);

/* address_option is the first address in an option; 0 if there is none. */
uint32_t address_option(const struct cached *c, uint8_t code);

/* boot_file copies the boot file's name, of at most 128 characters; false if there
 * is none. */
bool boot_file(const struct cached *c, char *name);

/* boot_server is where the boot file is: siaddr, or what replaces it; 0 if
 * unknown. */
uint32_t boot_server(const struct cached *c);

/* dhcp.c */

/* boot_server_request asks a boot server for an item of the menu: a request to
 * server (which may be a broadcast) that waits for an acknowledgement into
 * reply. */
bool boot_server_request(uint32_t server, uint16_t port, uint16_t type);

/* menu.c: chooses from the menu of the packet in reply, if there is one, and asks
 * the boot server it names. *local tells that the user chose to go on to the next
 * boot device. */
uint16_t menu_choose(bool *local);

#endif
