#ifndef BASE_H
#define BASE_H

#include "tftp.h"

/* load_file fetches a file to a linear address, at most *size bytes, and returns
 * its length there. progress, if given, learns of each block. */
uint16_t load_file(const struct tftp_file *f, uint32_t to, uint32_t *size,
		   void (*progress)(uint32_t done));

#endif
