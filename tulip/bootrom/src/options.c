/* Reading DHCP packets; the default boot program does it too. */
#include "dhcp.h"

enum {				/* values of option 52 */
	OVERLOAD_FILE = 1,
	OVERLOAD_SNAME = 2,
};

const uint8_t dhcp_cookie[4] = { 99, 130, 83, 99 };

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

bool well_formed(const struct cached *c)
{
	const uint8_t *at = c->packet.options, *end = at + (c->length - BOOTP_HEADER);

	if (end - at < (int)sizeof dhcp_cookie || memcmp(at, dhcp_cookie, sizeof dhcp_cookie) != 0)
		return true;		/* BOOTP without options */
	at += sizeof dhcp_cookie;
	while (at < end && *at != OPTION_END) {
		if (*at == OPTION_PAD) {
			at++;
			continue;
		}
		if (end - at < 2 || end - at - 2 < at[1])
			return false;
		at += 2 + at[1];
	}
	return true;
}

const uint8_t *dhcp_option(const struct cached *c, uint8_t code, uint8_t *length)
{
	const struct dhcp_packet *p = &c->packet;
	uint8_t n;

	if (c->length < BOOTP_HEADER + sizeof dhcp_cookie || memcmp(p->options, dhcp_cookie, sizeof dhcp_cookie) != 0)
		return NULL;
	const uint8_t *options = p->options + sizeof dhcp_cookie;
	uint16_t size = c->length - BOOTP_HEADER - sizeof dhcp_cookie;
	const uint8_t *found = find_tag(options, size, code, length);
	const uint8_t *overload = find_tag(options, size, OPTION_OVERLOAD, &n);
	if (found != NULL || overload == NULL || n != 1)
		return found;
	if (*overload & OVERLOAD_FILE)
		found = find_tag((const uint8_t *)p->file, sizeof p->file, code, length);
	if (found == NULL && (*overload & OVERLOAD_SNAME))
		found = find_tag((const uint8_t *)p->server_name, sizeof p->server_name, code, length);
	return found;
}

uint32_t address_option(const struct cached *c, uint8_t code)
{
	uint8_t n;
	const uint8_t *v = dhcp_option(c, code, &n);
	uint32_t address = 0;

	if (v != NULL && n >= sizeof address)
		memcpy(&address, v, sizeof address);
	return address;
}

bool boot_file(const struct cached *c, char *name)
{
	uint8_t n = 0, overload_length;
	const uint8_t *v = dhcp_option(c, OPTION_BOOT_FILE, &n);
	const uint8_t *overload = dhcp_option(c, OPTION_OVERLOAD, &overload_length);

	if (v == NULL && !(overload != NULL && (*overload & OVERLOAD_FILE))) {
		v = (const uint8_t *)c->packet.file;
		n = sizeof c->packet.file;
	}
	if (v == NULL)
		return false;
	uint8_t i = 0;
	/* Some servers end the name with FFh or count its NUL. */
	while (i < n && i < 128 && v[i] != 0 && v[i] != 0xff) {
		name[i] = v[i];
		i++;
	}
	name[i] = 0;
	return i > 0;
}

uint32_t boot_server(const struct cached *c)
{
	uint8_t n;

	if (c->packet.server != 0)
		return c->packet.server;
	const uint8_t *v = dhcp_option(c, OPTION_TFTP_SERVER, &n);
	uint32_t address = 0, part = 0;
	int dots = 0;
	/* A dotted address; a name would need a resolver. */
	for (; v != NULL && n > 0; v++, n--) {
		if (*v >= '0' && *v <= '9' && part <= 25) {
			part = part * 10 + *v - '0';
		} else if (*v == '.' && dots < 3) {
			address |= part << 8 * dots++;
			part = 0;
		} else if (*v != 0) {
			dots = 0;
			break;
		}
	}
	if (dots == 3)
		return address | part << 24;
	return address_option(c, OPTION_SERVER_ID);
}
