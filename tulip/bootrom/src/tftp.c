#include "tftp.h"
#include "pxe.h"
#include "console.h"

enum {				/* RFC 1350 and RFC 2347: packets and error codes */
	OP_RRQ = 1,
	OP_DATA = 3,
	OP_ACK = 4,
	OP_ERROR = 5,
	OP_OACK = 6,
	ERROR_NOT_FOUND = 1,
	ERROR_ACCESS = 2,
	ERROR_UNKNOWN_TID = 5,
	ERROR_OPTIONS = 8,

	PACKET_MAX = 512,	/* a request, an OACK or an error */
	OPEN_TRIES = 5,		/* of 1, 2, 4, 4 and 4 seconds */
	OPEN_WAIT = TICKS_PER_SECOND,
	READ_TRIES = 7,		/* of 1/4, 1/2, 1, 2, 4, 4 and 4 seconds */
	READ_WAIT = TICKS_PER_SECOND / 4,
	LONGEST_WAIT = 4 * TICKS_PER_SECOND,
	FIRST_LOCAL_PORT = 2070,
};

static struct {
	bool open;
	bool holding;		/* the buffer of the last block is still ours */
	bool first_waiting;	/* block 1 came as the answer and was not read yet */
	bool done;		/* the last block was acknowledged */
	bool gap_reported;	/* the server knows which block we miss */
	bool size_known;
	uint32_t server, gateway;
	uint16_t server_port, local_port;
	uint16_t block_size, window;
	uint16_t next;		/* the block we wait for */
	uint16_t taken;		/* blocks since the last acknowledgement */
	uint32_t size;
	struct datagram first;
} t;

static uint16_t ports_used;
static uint8_t packet[PACKET_MAX];
static char error_text[64];

bool tftp_is_open(void)
{
	return t.open;
}

uint16_t tftp_block_size(void)
{
	return t.block_size;
}

bool tftp_size(uint32_t *size)
{
	*size = t.size;
	return t.size_known;
}

const char *tftp_error_text(void)
{
	return error_text;
}

static uint16_t append_string(uint16_t at, const char *s)
{
	uint16_t n = strlen(s) + 1;

	if (at + n <= PACKET_MAX)
		memcpy(packet + at, s, n);
	return at + n;
}

static uint16_t append_number(uint16_t at, uint16_t v)
{
	char digits[6];
	int n = sizeof digits - 1;

	digits[n] = 0;
	do
		digits[--n] = '0' + v % 10;
	while ((v /= 10) != 0);
	return append_string(at, digits + n);
}

static bool send_packet(uint16_t length)
{
	return net_send(t.server, t.gateway, t.local_port, t.server_port, near_far(packet), length);
}

static bool send_request(const struct tftp_file *f, bool options)
{
	packet[0] = 0;
	packet[1] = OP_RRQ;
	uint16_t n = append_string(2, f->name);
	n = append_string(n, "octet");
	if (options) {
		n = append_string(n, "tsize");
		n = append_string(n, "0");
		n = append_string(n, "blksize");
		n = append_number(n, f->block_size);
		n = append_string(n, "windowsize");
		n = append_number(n, TFTP_WINDOW);
	}
	return n <= PACKET_MAX && send_packet(n);
}

static void send_ack(uint16_t block)
{
	packet[0] = 0;
	packet[1] = OP_ACK;
	packet[2] = block >> 8;
	packet[3] = block;
	send_packet(4);
	t.taken = 0;
}

static void send_error(uint16_t code, const char *text)
{
	packet[0] = 0;
	packet[1] = OP_ERROR;
	packet[2] = 0;
	packet[3] = code;
	send_packet(append_string(4, text));
}

static uint8_t byte_at(uint16_t offset)
{
	return *((FS_BYTES)(uintptr_t)offset);
}

static uint16_t word_at(uint16_t offset)
{
	return byte_at(offset) << 8 | byte_at(offset + 1);
}

/* refused translates an error packet. */
static uint16_t refused(const struct datagram *d)
{
	uint16_t code = word_at(d->data + 2);
	uint16_t n = d->length - 4;

	if (n > sizeof error_text - 1)
		n = sizeof error_text - 1;
	copy_from_far(error_text, far(rx_segment, d->data + 4), n);
	error_text[n] = 0;
	for (char *c = error_text; *c != 0; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	switch (code) {
	case ERROR_NOT_FOUND:
		return PXE_TFTP_FILE_NOT_FOUND;
	case ERROR_ACCESS:
		return PXE_TFTP_ACCESS_VIOLATION;
	default:
		return PXE_TFTP_ERROR_OPCODE;
	}
}

/* option_is compares an option's name without regard to case (RFC 2347). */
static bool option_is(const char *option, const char *name)
{
	while (*name != 0 && (*option | 0x20) == *name)
		option++, name++;
	return *option == 0 && *name == 0;
}

static bool parse_number(const char *s, uint32_t *v)
{
	if (*s == 0)
		return false;
	for (*v = 0; *s != 0; s++) {
		if (*s < '0' || *s > '9' || *v > (0xffffffff - 9) / 10)
			return false;
		*v = *v * 10 + *s - '0';
	}
	return true;
}

/* accept_options takes over what the server agreed to. It must not exceed what
 * was asked for. */
static bool accept_options(const struct datagram *d, uint16_t asked_block)
{
	uint16_t n = d->length;

	if (n > PACKET_MAX)
		return false;
	copy_from_far(packet, far(rx_segment, d->data), n);
	if (packet[n - 1] != 0)
		return false;
	for (uint16_t at = 2; at < n;) {
		const char *name = (const char *)packet + at;
		at += strlen(name) + 1;
		if (at >= n)
			return false;
		const char *value = (const char *)packet + at;
		at += strlen(value) + 1;
		uint32_t v;
		if (!parse_number(value, &v))
			return false;
		if (option_is(name, "blksize")) {
			if (v < 8 || v > asked_block)
				return false;
			t.block_size = v;
		} else if (option_is(name, "windowsize")) {
			if (v < 1 || v > TFTP_WINDOW)
				return false;
			t.window = v;
		} else if (option_is(name, "tsize")) {
			t.size = v;
			t.size_known = true;
		}
	}
	return true;
}

/* ours tells whether a datagram belongs to the transfer; before the server has
 * answered, its port is not known. */
static bool ours(const struct datagram *d, bool any_port)
{
	return d->destination_port == t.local_port && d->source == t.server &&
	       (any_port || d->source_port == t.server_port) && d->length >= 4;
}

static uint32_t patience(uint32_t first, int try)
{
	uint32_t wait = first << try;

	return wait < LONGEST_WAIT ? wait : LONGEST_WAIT;
}

/* answer waits for the server's first packet. */
static uint16_t answer(const struct tftp_file *f, bool options, int try)
{
	struct timer timer;
	struct datagram d;

	timer_set(&timer, patience(OPEN_WAIT, try));
	while (!timer_expired(&timer)) {
		if (canceled())
			return PXE_CANCELED;
		if (net.conflict)
			return PXE_DHCP_BAD_IP_ADDRESS;
		if (!net_poll(&d))
			continue;
		if (!ours(&d, true)) {
			net_release();
			continue;
		}
		uint16_t op = word_at(d.data);
		t.server_port = d.source_port;
		if (op == OP_DATA && word_at(d.data + 2) == 1 &&
		    d.length - 4 <= TFTP_BLOCK_DEFAULT) {
			t.first = d;	/* the server knows no options */
			t.first_waiting = true;
			return PXE_SUCCESS;
		}
		uint16_t status = PXE_TFTP_UNKNOWN_OPCODE;
		if (op == OP_ERROR) {
			status = refused(&d);
			if (options && word_at(d.data + 2) == ERROR_OPTIONS)
				status = PXE_TFTP_INVALID_PACKET_SIZE;
		} else if (op == OP_OACK && options) {
			status = accept_options(&d, f->block_size) ?
				PXE_SUCCESS : PXE_TFTP_INVALID_PACKET_SIZE;
			if (status != PXE_SUCCESS)
				send_error(ERROR_OPTIONS, "bad option");
		}
		net_release();
		return status;
	}
	return PXE_TFTP_OPEN_TIMEOUT;
}

uint16_t tftp_open(const struct tftp_file *f)
{
	uint16_t status = PXE_TFTP_OPEN_TIMEOUT;
	bool options = true;

	enable_interrupts();
	tftp_close();
	error_text[0] = 0;
	for (int try = 0; try < OPEN_TRIES && status == PXE_TFTP_OPEN_TIMEOUT; try++) {
		/* Each request gets a port of its own: answers to an older one are
		 * then no part of it (RFC 1350, section 4). */
		memset(&t, 0, sizeof t);
		t.server = f->server;
		t.gateway = f->gateway;
		t.server_port = f->port != 0 ? f->port : TFTP_PORT;
		t.local_port = swap16(FIRST_LOCAL_PORT + (ports_used++ & 0x3ff));
		t.block_size = TFTP_BLOCK_DEFAULT;
		t.window = 1;
		t.next = 1;
		if (!send_request(f, options))
			return PXE_TFTP_CANNOT_ARP_ADDRESS;
		status = answer(f, options, try);
		if (status == PXE_TFTP_INVALID_PACKET_SIZE && options) {
			options = false;	/* it dislikes our options: do without */
			status = PXE_TFTP_OPEN_TIMEOUT;
		}
	}
	if (status != PXE_SUCCESS)
		return status;
	t.open = true;
	if (!t.first_waiting)
		send_ack(0);
	return PXE_SUCCESS;
}

/* take hands out the block that d holds, which is the one we waited for. */
static void take(const struct datagram *d, struct tftp_block *b)
{
	b->number = t.next++;
	b->data = d->data + 4;
	b->length = d->length - 4;
	b->last = b->length < t.block_size;
	t.holding = true;
	t.gap_reported = false;
	/* Acknowledge before the block is consumed: the server works meanwhile. */
	if (++t.taken >= t.window || b->last)
		send_ack(b->number);
	t.done = b->last;
}

/* examine judges one packet of the transfer: true if it is the next block or
 * ends the transfer. */
static bool examine(const struct datagram *d, struct tftp_block *b, uint16_t *status)
{
	uint16_t op = word_at(d->data), number = word_at(d->data + 2);

	if (op == OP_ERROR) {
		*status = refused(d);
		return true;
	}
	if (op != OP_DATA || d->length - 4 > t.block_size)
		return false;
	if (number == t.next) {
		take(d, b);
		*status = PXE_SUCCESS;
		return true;
	}
	/* A block is missing: say so once, and the server goes back (RFC 7440,
	 * section 4). Older blocks are duplicates, which need no answer: if our
	 * acknowledgement was lost, our own timeout repeats it. */
	if ((int16_t)(number - t.next) > 0 && !t.gap_reported) {
		t.gap_reported = true;
		send_ack(t.next - 1);
	}
	return false;
}

uint16_t tftp_read(struct tftp_block *b)
{
	struct timer timer;
	struct datagram d;
	uint16_t status = PXE_SUCCESS;

	if (!t.open || t.done)
		return PXE_TFTP_CLOSED;
	enable_interrupts();
	if (t.holding) {
		net_release();
		t.holding = false;
	}
	if (t.first_waiting) {
		t.first_waiting = false;
		take(&t.first, b);
		return PXE_SUCCESS;
	}
	for (int try = 0; try < READ_TRIES; try++) {
		timer_set(&timer, patience(READ_WAIT, try));
		while (!timer_expired(&timer)) {
			if (net_poll(&d)) {
				if (!ours(&d, false)) {
					net_release();
				} else if (examine(&d, b, &status)) {
					if (!t.holding)
						net_release();
					return status;
				} else {
					net_release();
				}
				continue;
			}
			if (canceled())
				return PXE_CANCELED;
			if (net.conflict)
				return PXE_DHCP_BAD_IP_ADDRESS;
		}
		t.gap_reported = false;
		send_ack(t.next - 1);
	}
	return PXE_TFTP_READ_TIMEOUT;
}

void tftp_close(void)
{
	if (t.holding || t.first_waiting)
		net_release();
	if (t.open && !t.done)
		send_error(0, "closed");
	t.open = t.holding = t.first_waiting = false;
}
