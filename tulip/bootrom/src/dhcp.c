#include "dhcp.h"
#include "console.h"
#include "pxe.h"
#include "smbios.h"

enum {
	SERVER_PORT = CONST16(67),
	CLIENT_PORT = CONST16(68),
	PROXY_PORT = CONST16(4011),

	BOOTREQUEST = 1,
	BOOTREPLY = 2,

	MESSAGE_NONE = 0,		/* BOOTP */
	MESSAGE_DISCOVER = 1,
	MESSAGE_OFFER = 2,
	MESSAGE_REQUEST = 3,
	MESSAGE_DECLINE = 4,
	MESSAGE_ACK = 5,
	MESSAGE_NAK = 6,

	REQUEST_OPTIONS = 312,		/* RFC 2131's smallest options field */

	DISCOVER_TRIES = 5,		/* of 1, 2, 4, 8 and 16 seconds */
	REQUEST_TRIES = 4,
	PROXY_TRIES = 3,
	PROXY_WAIT_TRIES = 2,		/* how long an offer without a boot file waits for a proxy's */
	NAKS = 3,
};

static const char class_id[] = "PXEClient:Arch:00000:UNDI:002001";

static const uint8_t wanted[] = {
	OPTION_MASK, OPTION_ROUTER, 6 /* DNS servers */, 12 /* host name */, 13 /* boot file size */,
	15 /* domain */, 17 /* root path */, OPTION_VENDOR, OPTION_SERVER_ID, OPTION_CLASS,
	OPTION_TFTP_SERVER, OPTION_BOOT_FILE, OPTION_UUID,
	128, 129, 130, 131, 132, 133, 134, 135 /* reserved for PXE (RFC 4578) */,
	150 /* TFTP servers */, 208, 209, 210, 211 /* PXELINUX (RFC 5071) */,
};

struct cached discover, ack, reply;

static uint8_t request_buffer[BOOTP_HEADER + REQUEST_OPTIONS] __attribute__((aligned(4)));
static uint32_t xid;
static uint32_t started;	/* ticks when we began */

/* Writing. */

static uint8_t *put_option(uint8_t *at, uint8_t code, const void *value, uint8_t length)
{
	*at++ = code;
	*at++ = length;
	memcpy(at, value, length);
	return at + length;
}

static uint8_t *put_byte_option(uint8_t *at, uint8_t code, uint8_t value)
{
	return put_option(at, code, &value, 1);
}

/* build begins a packet: the header and the options every message has. It returns
 * where further options go. */
static uint8_t *build(struct dhcp_packet *p, uint8_t message)
{
	static const uint8_t undi_version[] = { 1, 2, 1 };	/* type UNDI, 2.1 */
	static const uint8_t architecture[] = { 0, 0 };		/* x86 BIOS */
	uint8_t uuid[17] = { 0 };				/* type GUID */

	memset(p, 0, BOOTP_HEADER + REQUEST_OPTIONS);
	p->op = BOOTREQUEST;
	p->hardware = 1;
	p->hardware_length = MAC_LENGTH;
	p->xid = xid;
	p->secs = swap16((ticks() - started) / TICKS_PER_SECOND);
	p->client = net.address;
	memcpy(p->mac, nic.mac, MAC_LENGTH);

	uint8_t *at = p->options;
	memcpy(at, dhcp_cookie, sizeof dhcp_cookie);
	at = put_byte_option(at + sizeof dhcp_cookie, OPTION_MESSAGE_TYPE, message);
	if (message == MESSAGE_DECLINE)
		return at;
	uint16_t max = CONST16(BOOTP_HEADER + DHCP_OPTIONS_MAX + 28);
	at = put_option(at, OPTION_MAX_SIZE, &max, sizeof max);
	at = put_option(at, OPTION_PARAMETERS, wanted, sizeof wanted);
	at = put_option(at, OPTION_CLASS, class_id, sizeof class_id - 1);
	at = put_option(at, OPTION_ARCHITECTURE, architecture, sizeof architecture);
	at = put_option(at, OPTION_UNDI, undi_version, sizeof undi_version);
	smbios_uuid(uuid + 1);
	return put_option(at, OPTION_UUID, uuid, sizeof uuid);
}

/* finish ends the options; it returns the length to send. */
static uint16_t finish(struct dhcp_packet *p, uint8_t *at)
{
	*at++ = OPTION_END;
	uint16_t length = at - (uint8_t *)p;
	return length < 300 ? 300 : length;	/* BOOTP's smallest (RFC 1542, 2.1) */
}

/* Reading. */

static uint8_t message_type(const struct cached *c)
{
	uint8_t n;
	const uint8_t *v = dhcp_option(c, OPTION_MESSAGE_TYPE, &n);

	return v != NULL && n == 1 ? *v : MESSAGE_NONE;
}

/* from_pxe tells whether a server says it serves PXE clients. */
static bool from_pxe(const struct cached *c)
{
	uint8_t n;
	const uint8_t *v = dhcp_option(c, OPTION_CLASS, &n);

	return v != NULL && n >= 9 && memcmp(v, class_id, 9) == 0;
}

static bool has_boot_information(const struct cached *c)
{
	char name[129];
	uint8_t n;

	return boot_file(c, name) || (from_pxe(c) && dhcp_option(c, OPTION_VENDOR, &n) != NULL);
}

/* receive takes a packet that answers us, if one has arrived, into c. */
static bool receive(struct cached *c)
{
	struct datagram d;

	if (!net_poll(&d))
		return false;
	bool good = d.destination_port == CLIENT_PORT && d.length >= BOOTP_HEADER &&
		    (d.source_port == SERVER_PORT || d.source_port == PROXY_PORT);
	if (good) {
		uint16_t n = d.length < sizeof c->packet ? d.length : sizeof c->packet;
		memset(c, 0, sizeof *c);
		copy_from_far(&c->packet, far(rx_segment, d.data), n);
		c->length = n;
		good = c->packet.op == BOOTREPLY && c->packet.xid == xid &&
		       memcmp(c->packet.mac, nic.mac, MAC_LENGTH) == 0 && well_formed(c);
	}
	net_release();
	return good;
}

static struct cached incoming;

static void keep(struct cached *c)
{
	memcpy(c, &incoming, sizeof incoming);
}

/* collect_offers sends DISCOVER until something bootable is offered: ack becomes
 * the best offer of an address, reply the first ProxyDHCP offer. */
static uint16_t collect_offers(void)
{
	ack.length = reply.length = 0;
	for (int try = 0; try < DISCOVER_TRIES; try++) {
		struct timer timer;

		discover.length = finish(&discover.packet, build(&discover.packet, MESSAGE_DISCOVER));
		if (!net_send(IP_BROADCAST, 0, CLIENT_PORT, SERVER_PORT,
			      near_far(&discover.packet), discover.length))
			return PXE_UNDI_TRANSMIT_ERROR;
		print(".");
		timer_set(&timer, TICKS_PER_SECOND << try);
		while (!timer_expired(&timer)) {
			if (canceled())
				return PXE_CANCELED;
			if (!receive(&incoming))
				continue;
			uint8_t type = message_type(&incoming);
			if (type != MESSAGE_OFFER && type != MESSAGE_NONE)
				continue;
			if (incoming.packet.your == 0) {
				if (reply.length == 0 && from_pxe(&incoming))
					keep(&reply);
			} else if (ack.length == 0 ||
				   (has_boot_information(&incoming) && !has_boot_information(&ack))) {
				keep(&ack);
			}
			/* Nothing better can come: do not wait for the rest. */
			if (ack.length != 0 && (reply.length != 0 || has_boot_information(&ack)))
				return PXE_SUCCESS;
		}
		if (ack.length != 0 && try + 1 >= PROXY_WAIT_TRIES)
			return PXE_SUCCESS;
	}
	return reply.length != 0 ? PXE_DHCP_NO_IP_ADDRESS : PXE_DHCP_TIMEOUT;
}

/* request takes up the offer in ack; the acknowledgement replaces it. */
static uint16_t request(void)
{
	struct dhcp_packet *p = (struct dhcp_packet *)request_buffer;
	uint32_t server = address_option(&ack, OPTION_SERVER_ID);
	uint32_t address = ack.packet.your;

	if (message_type(&ack) == MESSAGE_NONE)
		return PXE_SUCCESS;		/* BOOTP: that was all */
	for (int try = 0; try < REQUEST_TRIES; try++) {
		struct timer timer;

		uint8_t *at = build(p, MESSAGE_REQUEST);
		at = put_option(at, OPTION_REQUESTED_ADDRESS, &address, sizeof address);
		at = put_option(at, OPTION_SERVER_ID, &server, sizeof server);
		if (!net_send(IP_BROADCAST, 0, CLIENT_PORT, SERVER_PORT, near_far(p), finish(p, at)))
			return PXE_UNDI_TRANSMIT_ERROR;
		timer_set(&timer, TICKS_PER_SECOND << try);
		while (!timer_expired(&timer)) {
			if (canceled())
				return PXE_CANCELED;
			if (!receive(&incoming))
				continue;
			uint8_t type = message_type(&incoming);
			if (type == MESSAGE_NAK)
				return PXE_DHCP_REFUSED;
			if (type == MESSAGE_ACK && incoming.packet.your != 0) {
				keep(&ack);
				return PXE_SUCCESS;
			}
		}
	}
	return PXE_DHCP_TIMEOUT;
}

static void use_address(void)
{
	uint32_t address = ack.packet.your;

	net.address = address;
	net.mask = address_option(&ack, OPTION_MASK);
	if (net.mask == 0)	/* by class, network order */
		net.mask = (address & 0x80) == 0 ? 0xff : (address & 0x40) == 0 ? 0xffff : 0xffffff;
	net.gateway = address_option(&ack, OPTION_ROUTER);
}

bool boot_server_request(uint32_t server, uint16_t port, uint16_t type)
{
	struct dhcp_packet *p = (struct dhcp_packet *)request_buffer;
	/* PXE_BOOT_ITEM, tag 71: type, layer 0, then the end of the vendor options. */
	uint8_t item[] = { 71, 4, type >> 8, type, 0, 0, OPTION_END };

	for (int try = 0; try < PROXY_TRIES; try++) {
		struct timer timer;

		uint8_t *at = build(p, MESSAGE_REQUEST);
		if (type != 0)
			at = put_option(at, OPTION_VENDOR, item, sizeof item);
		if (!net_send(server, 0, CLIENT_PORT, port, near_far(p), finish(p, at)))
			return false;
		timer_set(&timer, TICKS_PER_SECOND << try);
		while (!timer_expired(&timer)) {
			if (canceled())
				return false;
			if (receive(&incoming) && message_type(&incoming) == MESSAGE_ACK &&
			    has_boot_information(&incoming)) {
				keep(&reply);
				return true;
			}
		}
	}
	return false;
}

/* ask_proxy completes a ProxyDHCP offer without a file name at port 4011. */
static bool ask_proxy(void)
{
	uint32_t server = address_option(&reply, OPTION_SERVER_ID);

	if (server == 0)
		server = reply.packet.server;
	return boot_server_request(server, PROXY_PORT, 0);
}

uint16_t dhcp_configure(struct boot_choice *choice)
{
	uint16_t status = PXE_DHCP_TIMEOUT;
	char name[129];

	memset(&net, 0, sizeof net);
	started = ticks();
	memcpy(&xid, nic.mac + 2, sizeof xid);
	xid ^= started << 8;
	for (int nak = 0; nak < NAKS; nak++) {
		xid++;
		status = collect_offers();
		if (status != PXE_SUCCESS)
			return status;
		status = request();
		if (status != PXE_DHCP_REFUSED)
			break;
	}
	if (status != PXE_SUCCESS)
		return status;
	use_address();
	net_probe();
	if (reply.length == 0 || (from_pxe(&ack) && has_boot_information(&ack)))
		memcpy(&reply, &ack, sizeof ack);
	else if (!boot_file(&reply, name) && !ask_proxy())
		return PXE_PROXY_NO_REPLY;

	bool local = false;
	status = menu_choose(&local);
	if (status != PXE_SUCCESS)
		return status;
	if (local)
		return PXE_LOCAL_BOOT;
	choice->server = boot_server(&reply);
	if (!boot_file(&reply, choice->file) || choice->server == 0)
		return PXE_DHCP_NO_BOOTFILE_NAME;
	return PXE_SUCCESS;
}

void dhcp_decline(void)
{
	struct dhcp_packet *p = (struct dhcp_packet *)request_buffer;
	uint32_t server = address_option(&ack, OPTION_SERVER_ID);
	uint32_t address = net.address;

	if (server == 0)
		return;
	net.address = 0;	/* no longer ours to send from (RFC 2131, 4.4.4) */
	uint8_t *at = build(p, MESSAGE_DECLINE);
	at = put_option(at, OPTION_REQUESTED_ADDRESS, &address, sizeof address);
	at = put_option(at, OPTION_SERVER_ID, &server, sizeof server);
	net_send(IP_BROADCAST, 0, CLIENT_PORT, SERVER_PORT, near_far(p), finish(p, at));
}
