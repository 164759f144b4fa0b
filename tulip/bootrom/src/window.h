/*
 * A TFTP window for boot programs that know none.
 *
 * PXELINUX and others do TFTP themselves, over UDP_READ and UDP_WRITE, one block at
 * a time: each block costs a round trip. The base code, which carries those
 * datagrams, asks for a window (RFC 7440) on their behalf. It adds the option to
 * their requests and takes it out of the answers; it hands the blocks of a window
 * over in order, keeps to itself the acknowledgements inside a window and sends
 * the one at its end early, while the program still works on the block. What the
 * program sees is a server that always has the next block ready.
 *
 * A server without the option gets and gives the same datagrams as ever. So does a
 * program that asks for a window itself, or for no block size: it expects no
 * options at all.
 */
#ifndef WINDOW_H
#define WINDOW_H

#include "net.h"

/* What to do with a datagram. */
enum window_verdict {
	WINDOW_PASS,	/* carry it on as it is */
	WINDOW_CHANGED,	/* carry on the bytes in window_packet instead */
	WINDOW_DROP,	/* it has served its purpose */
};

/* The changed datagram. */
enum { WINDOW_PACKET_MAX = 512 };
extern uint8_t window_packet[WINDOW_PACKET_MAX];
extern uint16_t window_packet_length;

/* A datagram the program sends. */
struct outgoing {
	uint32_t server, gateway;
	uint16_t source_port, destination_port;
	farptr data;
	uint16_t length;
};

/* window_outgoing judges what the program sends, window_incoming what it is about
 * to be given. */
enum window_verdict window_outgoing(const struct outgoing *o);
enum window_verdict window_incoming(const struct datagram *d);

/* window_forget ends all transfers. */
void window_forget(void);

#endif
