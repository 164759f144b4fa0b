/* The screen and the keyboard, through the BIOS. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include "platform.h"

/* screen_put writes a character to the screen. */
void screen_put(char c);

/* put is where print's output goes: the ROM's is the screen, the default boot
 * program has its own. */
void put(char c);

/* print writes to the screen. It knows %s (near string), %d and %u (decimal),
 * %x (hexadecimal word of 4 digits), %b (hexadecimal byte), %c, %i (IPv4 address,
 * network order) and %m (near pointer to a MAC address). */
void print(const char *format, ...);

/* key_pressed takes a key from the BIOS: its ASCII code, 80h + the function key
 * number for F1 to F10, 0 if there is none. */
int key_pressed(void);

enum { KEY_ESC = 0x1b, KEY_CTRL_C = 0x03, KEY_ENTER = 0x0d, KEY_F8 = 0x88 };

/* keyboard_is_ours is set while the ROM itself is what the user sees. A boot program
 * gets its keys to itself. */
extern bool keyboard_is_ours;

/* canceled tells whether the user pressed Esc or Ctrl-C; other keys are eaten. It
 * is false while the keyboard is not ours. */
bool canceled(void);

#endif
