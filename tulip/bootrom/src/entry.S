# The ways into the ROM and out of it: initialisation, the bootstrap entry
# vector, the UNDI loader, the two PXE API entries, interrupt 1Ah and the jump to
# the network boot program (NBP).
#
# C code is called with CS = DS = ES = SS = the resident segment, FS = the
# receive buffers' segment, GS = 0 (interrupt vectors and the BIOS data area), the
# direction flag clear and ESP below 64 KiB.

#include "layout.h"

# Fields of UNDI_LOADER_T, the UNDI loader's parameter block (PXE 2.1, 4.1).
#define LOADER_STATUS	0x00
#define LOADER_AX	0x02
#define LOADER_UNDI_DS	0x0c
#define LOADER_UNDI_CS	0x0e
#define LOADER_PXE_PTR	0x10
#define LOADER_PXENV_PTR 0x14

# A machine that would keep less base memory than this for its boot program
# does not get the resident part.
#define MIN_FREE_KB	128

	.code16
	.text

# rom_init: the BIOS calls it once, with the adapter's PCI address in AX. It
# hooks nothing: it notes the address in the ROM's shadow, which is still
# writable, and shows it in the boot menu's product name.
	.globl	rom_init
rom_init:
	pushfw
	pushal
	pushw	%ds
	cld
	movw	%cs, %bx
	movw	%bx, %ds
	movw	%ax, pci_bdf
	movw	$product_location, %di
	movb	%ah, %dl		# bus
	call	put_hex
	incw	%di			# ":"
	movb	%al, %dl		# device: bits 7..3
	shrb	$3, %dl
	call	put_hex
	incw	%di			# "."
	andb	$7, %al
	addb	$'0', %al
	movb	%al, (%di)
	# The image changed, so balance its checksum again.
	xorw	%si, %si
	movzbw	2, %cx			# size in 512-byte units
	shlw	$9, %cx
	xorb	%dl, %dl
2:	lodsb
	addb	%al, %dl
	loop	2b
	subb	%dl, 6
	popw	%ds
	popal
	popfw
	movw	$0x20, %ax		# Plug and Play BIOS 1.0A, 3.3: an IPL device is attached
	lretw

# put_hex: writes %dl as two digits at %ds:(%di) and advances %di. Changes %dh.
put_hex:
	movb	%dl, %dh
	shrb	$4, %dl
	call	put_nibble
	movb	%dh, %dl
	andb	$15, %dl
put_nibble:
	cmpb	$10, %dl
	jb	1f
	addb	$'a' - '0' - 10, %dl
1:	addb	$'0', %dl
	movb	%dl, (%di)
	incw	%di
	ret

# rom_bev: the BIOS calls it to boot from this adapter. It takes memory off the
# top of base memory, copies the image there and boots from the copy, because
# the BIOS write-protects the shadow. It returns when there is nothing to boot.
	.globl	rom_bev
rom_bev:
	pushfw
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	pushw	%gs
	cld
	sti
	xorw	%ax, %ax
	movw	%ax, %gs
	movw	$resident_end, %dx
	shrw	$4, %dx			# paragraphs of code, data and stacks
	movw	%dx, %bx
	addw	$RX_AREA / 16 + 63, %bx
	shrw	$6, %bx			# KiB in all
	movw	%gs:BDA_MEMORY_KB, %cx
	movw	%cx, %ax
	subw	%bx, %ax
	jb	no_memory
	cmpw	$MIN_FREE_KB, %ax
	jb	no_memory
	movw	%ax, %gs:BDA_MEMORY_KB
	shlw	$6, %ax
	movw	%ax, %es
	addw	%ax, %dx
	call	load_resident
	movw	%cx, %es:memory_before
	movl	$boot_from_network, %eax
	call	call_resident
	# Give the memory back, unless somebody took more of it since.
	movw	%es, %ax
	shrw	$6, %ax
	cmpw	%gs:BDA_MEMORY_KB, %ax
	jne	1f
	movw	%es:memory_before, %ax
	movw	%ax, %gs:BDA_MEMORY_KB
1:	popw	%gs
	popw	%fs
	popw	%es
	popw	%ds
	popal
	popfw
	lretw

no_memory:
	movw	%cs, %ax
	movw	%ax, %ds
	movw	$no_memory_text, %si
2:	lodsb
	testb	%al, %al
	jz	1b
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	2b

	.section .rodata
no_memory_text:
	.asciz	"\r\nPXE-E00: Could not find enough free base memory.\r\n"
	.text

# undi_loader: loads the driver alone, into segments of the caller's choosing
# (PXE 2.1, section 4.1). The far pointer to the parameter block is on the stack.
	.globl	undi_loader
undi_loader:
	pushfw
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	pushw	%gs
	cld
	movw	%sp, %bp
	lfsw	46(%bp), %di		# behind the return address and what was pushed
	movw	%fs:LOADER_UNDI_CS(%di), %es
	movw	%fs:LOADER_UNDI_DS(%di), %dx
	pushw	%di
	call	load_resident
	popw	%di
	movw	%fs:LOADER_AX(%di), %ax
	movw	%ax, %es:pci_bdf
	pushw	%fs
	pushw	%di
	movl	$api_init, %eax
	call	call_resident
	popw	%di
	popw	%fs
	movw	$0, %fs:LOADER_STATUS(%di)
	movw	$pxe_structure, %fs:LOADER_PXE_PTR(%di)
	movw	%es, %fs:LOADER_PXE_PTR + 2(%di)
	movw	$pxenv_structure, %fs:LOADER_PXENV_PTR(%di)
	movw	%es, %fs:LOADER_PXENV_PTR + 2(%di)
	popw	%gs
	popw	%fs
	popw	%es
	popw	%ds
	popal
	popfw
	xorw	%ax, %ax		# PXENV_EXIT_SUCCESS
	lretw

# load_resident: copies the image to %es:0 and clears the rest of the segment.
# %dx is the receive buffers' segment. Preserves all but %si and %di.
load_resident:
	pushw	%ax
	pushw	%cx
	pushw	%ds
	movw	%cs, %ax
	movw	%ax, %ds
	xorw	%si, %si
	xorw	%di, %di
	movw	$image_end, %cx
	shrw	$2, %cx
	rep movsl
	movw	$resident_end, %cx
	subw	%di, %cx
	shrw	$2, %cx
	xorl	%eax, %eax
	rep stosl
	movw	%dx, %es:rx_segment
	movw	%cs, %es:rom_segment
	popw	%ds
	popw	%cx
	popw	%ax
	ret

# call_resident: calls the C function at offset %eax of the copy at %es, on the
# copy's own stack. Preserves %es and %gs.
call_resident:
	pushw	%es
	pushw	%cs
	pushw	$1f
	pushw	%es
	pushw	$resident_entry
	lretw
1:	popw	%es
	ret

resident_entry:
	movw	%cs, %cx
	movw	%cx, %ds
	movw	%cx, %es
	movw	%ss, bios_ss
	movl	%esp, bios_esp
	movw	%cx, %ss
	movl	$api_stack_end, %esp
	call	set_far_segments
	calll	*%eax
	movw	bios_ss, %ss
	movl	bios_esp, %esp
	lretw

# set_far_segments: FS = the receive buffers, GS = 0. Changes %cx only.
set_far_segments:
	movw	%cs:rx_segment, %fs
	xorw	%cx, %cx
	movw	%cx, %gs
	ret

# run_nbp: calls the program at 0000:7C00 on the BIOS's stack, as PXE 2.1,
# section 3.2.2.3 wants it: ES:BX -> PXENV+, SS:SP+4 -> far pointer to !PXE.
# Meanwhile API calls use our stack from here downwards. Returns what the
# program left in AX.
	.globl	run_nbp
run_nbp:
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	pushl	%ebp
	movl	%esp, api_esp
start_nbp:
	movb	$0, api_busy
	movw	bios_ss, %ss
	movl	bios_esp, %esp
	movw	%cs, %ax
	movw	%ax, %es
	movw	$pxenv_structure, %bx
	pushw	%ax
	pushw	$pxe_structure
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %fs
	movw	%ax, %gs
	sti
	lcallw	$0, $NBP_ADDRESS
	cld
	movw	%cs, %cx
	movw	%cx, %ds
	movw	%cx, %es
	movw	%cx, %ss
	movl	api_esp, %esp
	movl	$api_stack_end, api_esp
	call	set_far_segments
	sti
	movzwl	%ax, %eax
	popl	%ebp
	popl	%edi
	popl	%esi
	popl	%ebx
	retl

# restart_nbp: the same for a program that PXENV_RESTART_TFTP has just loaded
# over the old one. The frames of the call are abandoned; it does not return.
	.globl	restart_nbp
restart_nbp:
	movl	api_esp, %esp
	jmp	start_nbp

# pxe_entry: !PXE.EntryPointSP, a far call with cdecl arguments on the stack:
# opcode, then the far pointer to the parameter block (PXE 2.1, 4.2.1).
	.globl	pxe_entry
pxe_entry:
	pushw	%bp
	pushw	%bx
	pushw	%di
	pushw	%es
	movw	%sp, %bp
	movw	12(%bp), %bx		# behind 8 bytes saved and the return address
	lesw	14(%bp), %di
	pushw	%cs
	call	pxenv_entry
	popw	%es
	popw	%di
	popw	%bx
	popw	%bp
	lretw

# pxenv_entry: PXENV+.RMEntry, a far call with the opcode in BX and the parameter
# block at ES:DI (PXE 2.1, 3.1.3). Returns AX = 0 and CF clear, or AX = 1 and CF
# set; all other registers are preserved.
	.globl	pxenv_entry
pxenv_entry:
	pushfw
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	pushw	%gs
	cli
	cld
	movw	%cs, %bp
	movw	%bp, %ds
	movw	%es, %dx
	shll	$16, %edx
	movw	%di, %dx		# %edx = parameter block, segment:offset
	movzwl	%bx, %eax		# %eax = opcode
	movw	%ss, %di
	movl	%esp, %esi		# %di:%esi = the caller's stack
	movw	%bp, %es
	call	set_far_segments
	movzwl	%sp, %ecx
	cmpw	%bp, %di
	je	2f			# already on one of ours
	movl	api_esp, %ecx
	cmpb	$0, api_busy
	je	2f
	movl	$isr_stack_end, %ecx	# we were interrupted on the first
2:	movw	%bp, %ss
	movl	%ecx, %esp
	incb	api_busy
	calll	pxe_api
	cli
	decb	api_busy
	movw	%di, %ss
	movl	%esi, %esp
	popw	%gs
	popw	%fs
	popw	%es
	popw	%ds
	movw	%sp, %bp
	movw	%ax, 28(%bp)		# AX in the frame of pushal
	popal
	popfw
	cmpw	$1, %ax
	cmc				# CF = AX != 0
	lretw

# int1a: interrupt 1Ah, AX = 5650h tells where PXENV+ is (PXE 2.1, 3.2.2.4).
	.globl	int1a
int1a:
	cmpw	$0x5650, %ax
	jne	1f
	movw	$0x564e, %ax
	pushw	%cs
	popw	%es
	movw	$pxenv_structure, %bx
	pushw	%bp
	movw	%sp, %bp
	andb	$~1, 6(%bp)		# clear CF in the flags that iret pops
	popw	%bp
	iretw
1:	ljmpw	*%cs:int1a_chain

	.bss
	.balign	4
	.globl	int1a_chain, rx_segment, rom_segment
bios_esp:	.skip	4
int1a_chain:	.skip	4		# the vector before ours
bios_ss:	.skip	2
rx_segment:	.skip	2
rom_segment:	.skip	2		# where the BIOS put the ROM
memory_before:	.skip	2		# KiB of base memory before we took ours
api_busy:	.skip	1		# depth of API calls on our stacks
	.balign	16
	.skip	ISR_STACK
isr_stack_end:
	.skip	API_STACK
api_stack_end:

	.data
	.balign	4
api_esp:	.long	api_stack_end	# where the next API call's stack begins

	.section .note.GNU-stack, "", @progbits
