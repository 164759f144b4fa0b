/*
 * A TFTP client (RFC 1350) with the options blksize (RFC 2348), tsize (RFC 2349)
 * and windowsize (RFC 7440). One transfer at a time.
 */
#ifndef TFTP_H
#define TFTP_H

#include "net.h"

enum {
	TFTP_PORT = CONST16(69),
	TFTP_BLOCK_DEFAULT = 512,
	TFTP_BLOCK_MAX = UDP_PAYLOAD_MAX - 4,
	TFTP_WINDOW = 16,		/* must fit into the receive ring */
};

/* What to fetch from where; port 0 means 69. name is near. */
struct tftp_file {
	uint32_t server, gateway;
	uint16_t port;
	uint16_t block_size;		/* to ask for */
	const char *name;
};

/* A block of the file, in the receive buffers, until the next call. */
struct tftp_block {
	uint16_t number;
	uint16_t data;			/* at FS:data */
	uint16_t length;
	bool last;
};

/* All of these return a status of the PXE API, PXE_SUCCESS if well. */

/* tftp_open asks for a file and waits for the answer. */
uint16_t tftp_open(const struct tftp_file *f);

/* tftp_read gives the next block, in order. */
uint16_t tftp_read(struct tftp_block *b);

/* tftp_close ends a transfer; the server of an unfinished one is told. */
void tftp_close(void);

bool tftp_is_open(void);
uint16_t tftp_block_size(void);

/* tftp_size is the file's length as the server gave it; false if it did not. */
bool tftp_size(uint32_t *size);

/* tftp_error_text is what the server said when it refused, "" if nothing. */
const char *tftp_error_text(void);

#endif
