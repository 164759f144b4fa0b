#ifndef SMBIOS_H
#define SMBIOS_H

#include "platform.h"

/* smbios_uuid writes the machine's UUID, 16 bytes as DMTF DSP0134 stores them, or
 * zeros where the firmware gives none. */
void smbios_uuid(uint8_t *uuid);

#endif
