#include "window.h"
#include "tftp.h"

enum {
	OP_RRQ = 1,
	OP_DATA = 3,
	OP_ACK = 4,
	OP_ERROR = 5,
	OP_OACK = 6,
	TRANSFERS = 4,		/* a program may have more than one file open */
	ACK_LENGTH = 4,
};

enum state {
	FREE,
	ASKED,			/* the request went out with our option */
	WINDOWED,		/* the server agreed */
};

struct transfer {
	uint8_t state;
	bool fresh;		/* the program has not acknowledged the block it was given last */
	bool last;		/* that block was the file's last */
	bool gap_reported;	/* the server knows which block we miss */
	uint32_t server, gateway;
	uint16_t client_port, server_port;
	uint16_t block_size, window;
	uint16_t delivered;	/* the block the program was given last */
	uint16_t unacknowledged; /* blocks given since the server got an acknowledgement */
};

static struct transfer transfers[TRANSFERS];
static uint8_t next_transfer;

uint8_t window_packet[WINDOW_PACKET_MAX];
uint16_t window_packet_length;

static const char option_name[] = "windowsize";

void window_forget(void)
{
	memset(transfers, 0, sizeof transfers);
}

static struct transfer *find(uint32_t server, uint16_t client_port)
{
	for (int i = 0; i < TRANSFERS; i++)
		if (transfers[i].state != FREE && transfers[i].server == server &&
		    transfers[i].client_port == client_port)
			return &transfers[i];
	return NULL;
}

/* load copies a packet of n bytes, ending in NUL, to window_packet. */
static bool load(farptr data, uint16_t n)
{
	if (n < 4 || n > WINDOW_PACKET_MAX)
		return false;
	copy_from_far(window_packet, data, n);
	window_packet_length = n;
	return window_packet[n - 1] == 0;
}

/* next_string gives the offset behind the string at offset at. */
static uint16_t next_string(uint16_t at)
{
	return at + strlen((const char *)window_packet + at) + 1;
}

static bool is(uint16_t at, const char *name)
{
	const char *s = (const char *)window_packet + at;

	/* Names of options are compared without regard to case (RFC 2347). */
	while (*name != 0 && (*s | 0x20) == *name)
		s++, name++;
	return *s == 0 && *name == 0;
}

static uint16_t number(uint16_t at)
{
	uint32_t v = 0;

	for (const char *s = (const char *)window_packet + at; *s >= '0' && *s <= '9' && v < 65536; s++)
		v = v * 10 + *s - '0';
	return v < 65536 ? v : 0;
}

/* find_option gives the offset of an option's name among those that begin at
 * offset at; 0 if it is not there. */
static uint16_t find_option(uint16_t at, const char *name)
{
	while (at < window_packet_length) {
		uint16_t value = next_string(at);
		if (value >= window_packet_length)
			return 0;
		if (is(at, name))
			return at;
		at = next_string(value);
	}
	return 0;
}

/* ask adds our option to the request that the program sends. */
static enum window_verdict ask(const struct outgoing *o)
{
	static const char value[] = "16";

	if (!load(o->data, o->length))
		return WINDOW_PASS;
	uint16_t mode = next_string(2);
	if (mode >= o->length || !is(mode, "octet"))
		return WINDOW_PASS;
	uint16_t options = next_string(mode);
	uint16_t n = o->length + sizeof option_name + sizeof value;
	if (find_option(options, "blksize") == 0 || find_option(options, option_name) != 0 ||
	    n > WINDOW_PACKET_MAX)
		return WINDOW_PASS;
	memcpy(window_packet + o->length, option_name, sizeof option_name);
	memcpy(window_packet + o->length + sizeof option_name, value, sizeof value);
	window_packet_length = n;

	struct transfer *t = find(o->server, o->source_port);
	if (t == NULL) {
		t = &transfers[next_transfer];
		next_transfer = (next_transfer + 1) % TRANSFERS;
	}
	memset(t, 0, sizeof *t);
	t->state = ASKED;
	t->server = o->server;
	t->gateway = o->gateway;
	t->client_port = o->source_port;
	return WINDOW_CHANGED;
}

static uint16_t opcode_of(const uint8_t *packet)
{
	return packet[0] << 8 | packet[1];
}

enum window_verdict window_outgoing(const struct outgoing *o)
{
	uint8_t packet[ACK_LENGTH];

	if (o->length < ACK_LENGTH)
		return WINDOW_PASS;
	copy_from_far(packet, o->data, sizeof packet);
	uint16_t opcode = opcode_of(packet);
	if (o->destination_port == TFTP_PORT && opcode == OP_RRQ)
		return ask(o);
	struct transfer *t = find(o->server, o->source_port);
	if (t == NULL || t->state != WINDOWED || o->destination_port != t->server_port)
		return WINDOW_PASS;
	if (opcode != OP_ACK) {
		t->state = FREE;	/* the program gives up */
		return WINDOW_PASS;
	}
	uint16_t block = packet[2] << 8 | packet[3];
	if (block == t->delivered && t->fresh && !t->last) {
		t->fresh = false;
		return WINDOW_DROP;
	}
	if (t->last && block == t->delivered)
		t->state = FREE;
	/* The first one, the last one, or one that is repeated because nothing came:
	 * the server goes on behind it. */
	t->delivered = block;
	t->fresh = false;
	t->unacknowledged = 0;
	return WINDOW_PASS;
}

/* answer looks for our option in what the server agreed to, and takes it out. */
static enum window_verdict answer(struct transfer *t, const struct datagram *d)
{
	t->state = FREE;
	if (!load(far(rx_segment, d->data), d->length) || opcode_of(window_packet) != OP_OACK)
		return WINDOW_PASS;
	uint16_t at = find_option(2, option_name), size = find_option(2, "blksize");
	if (at == 0)
		return WINDOW_PASS;
	t->window = number(next_string(at));
	t->block_size = size != 0 ? number(next_string(size)) : TFTP_BLOCK_DEFAULT;
	uint16_t end = next_string(next_string(at));
	memcpy(window_packet + at, window_packet + end, window_packet_length - end);
	window_packet_length -= end - at;
	/* A window beyond what was asked for might not fit: the program sees the
	 * option it did not ask for, and refuses. */
	if (t->window < 1 || t->window > TFTP_WINDOW)
		return WINDOW_PASS;
	t->server_port = d->source_port;
	t->state = WINDOWED;
	return WINDOW_CHANGED;
}

static void acknowledge(const struct transfer *t)
{
	uint8_t ack[ACK_LENGTH] = { 0, OP_ACK, t->delivered >> 8, t->delivered };

	net_send(t->server, t->gateway, t->client_port, t->server_port, near_far(ack), sizeof ack);
}

enum window_verdict window_incoming(const struct datagram *d)
{
	struct transfer *t = find(d->source, d->destination_port);
	uint8_t packet[ACK_LENGTH];

	if (t == NULL || d->length < ACK_LENGTH)
		return WINDOW_PASS;
	if (t->state == ASKED)
		return answer(t, d);
	if (d->source_port != t->server_port)
		return WINDOW_PASS;
	copy_from_far(packet, far(rx_segment, d->data), sizeof packet);
	uint16_t opcode = opcode_of(packet);
	uint16_t block = packet[2] << 8 | packet[3];
	if (opcode == OP_OACK)
		return WINDOW_DROP;	/* it has had that */
	if (opcode != OP_DATA) {
		t->state = FREE;
		return WINDOW_PASS;
	}
	uint16_t ahead = block - t->delivered;
	if (ahead != 1) {
		/* The program would take it for an answer. If one is missing, have the
		 * server go back now; the program would notice by a timeout. */
		if (ahead != 0 && ahead <= TFTP_WINDOW && !t->gap_reported) {
			t->gap_reported = true;
			acknowledge(t);
			t->unacknowledged = 0;
		}
		return WINDOW_DROP;
	}
	t->delivered = block;
	t->gap_reported = false;
	t->fresh = true;
	t->last = d->length - ACK_LENGTH < t->block_size;
	if (++t->unacknowledged >= t->window && !t->last) {
		acknowledge(t);
		t->unacknowledged = 0;
	}
	return WINDOW_PASS;
}
