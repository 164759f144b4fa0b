# A network boot program that uses PXE as Windows' boot programs do: only the old
# PXENV+ entry point, what DHCP said from GET_CACHED_INFO, one file by TFTP_OPEN,
# TFTP_READ and TFTP_CLOSE, then another by TFTP of its own over UDP_OPEN, UDP_WRITE
# and UDP_READ. Names have backslashes and letters in any case, and a file that is
# not there is asked for, and is no reason to stop. For each file it prints the
# length and the sum of its bytes; then it returns to the BIOS.
#
# Structures, function numbers and field names: PXE Specification 2.1, chapter 3.

	.equ	GET_CACHED_INFO, 0x71
	.equ	TFTP_OPEN, 0x20
	.equ	TFTP_CLOSE, 0x21
	.equ	TFTP_READ, 0x22
	.equ	UDP_OPEN, 0x30
	.equ	UDP_CLOSE, 0x31
	.equ	UDP_READ, 0x32
	.equ	UDP_WRITE, 0x33

	.equ	DHCP_ACK, 2
	.equ	CACHED_REPLY, 3
	.equ	yiaddr, 16
	.equ	siaddr, 20

	.equ	BLOCK, 1456
	.equ	PORT_69, 69 << 8		# network order
	.equ	PORT_OURS, 0x1908
	.equ	OP_DATA, 3 << 8
	.equ	OP_ACK, 4 << 8
	.equ	OP_OACK, 6 << 8

	.equ	TICKS, 0x46c			# of 55 ms, in the BIOS data area
	.equ	PATIENCE, 36			# ticks, some 2 s
	.equ	TRIES, 5
	.equ	FILE_SEGMENT, 0x3000		# where the block at hand goes

	# call a function with a parameter block; on failure go to the label
	.macro	pxe function, block, failed
	movw	$\function, %bx
	movw	$\block, %di
	call	api
	jnz	\failed
	.endm

	.macro	say text
	movw	$\text, %si
	call	print
	.endm

	.code16
	.text
	.globl	_start
_start:
	pushw	%ds
	pushw	%es
	pushal
	ljmp	$0, $1f
1:	xorw	%ax, %ax
	movw	%ax, %ds
	cld
	sti

	# PXENV+ is at ES:BX.
	movw	$signature, %si
	movw	%bx, %di
	movw	$6, %cx
	repe cmpsb
	movw	$no_pxenv, %si
	jne	fail
	movl	%es:10(%bx), %eax
	movl	%eax, entry
	movw	%ds, %ax
	movw	%ax, %es

	# Our address, from a buffer of the ROM's that is only looked at.
	movw	$DHCP_ACK, info_type
	movw	$no_ack, %si
	pxe	GET_CACHED_INFO, info, fail
	lesw	info_buffer, %bx
	movl	%es:yiaddr(%bx), %eax
	movl	%eax, our_ip
	# The server's, from a copy.
	movw	%ds, %ax
	movw	%ax, %es
	movw	$CACHED_REPLY, info_type
	movw	$1500, info_size
	movw	$packet, info_buffer
	movw	$0, info_buffer + 2
	movw	$no_reply, %si
	pxe	GET_CACHED_INFO, info, fail
	movl	packet + siaddr, %eax
	movl	%eax, server_ip

	# A file that is not there, before and between those that are.
	movw	$name_missing, %si
	call	open
	movw	$found_missing, %si
	jz	fail

	movw	$name_manager, %si
	call	open
	movw	$no_open, %si
	jnz	fail
	call	clear
2:	movw	$0, read_size
	movw	$no_read, %si
	pxe	TFTP_READ, read, fail
	movw	read_size, %cx
	xorw	%si, %si
	call	add
	cmpw	open_size, %cx
	je	2b
	movw	$no_close, %si
	pxe	TFTP_CLOSE, close, fail
	say	name_manager
	call	report

	movw	$name_missing, %si
	call	open
	movw	$found_missing, %si
	jz	fail

	call	udp_file
	jnz	fail
	say	name_store
	call	report
	say	passed
	popal
	popw	%es
	popw	%ds
	xorw	%ax, %ax
	lret

# fail: SI says what did not work; STATUS is the last call's.
fail:
	pushw	%si
	say	failed
	popw	%si
	call	print
	movzwl	status, %eax
	call	decimal
	say	newline
	popal
	popw	%es
	popw	%ds
	movw	$1, %ax
	lret

# api: function BX with the parameter block DI. ZF is set if AX and the block's
# status both say success. SI is kept.
api:
	pushw	%si
	pushw	%di
	movw	$0xffff, (%di)
	lcall	*entry
	popw	%di
	popw	%si
	movw	(%di), %bx
	movw	%bx, status
	orw	%bx, %ax
	ret

# open: TFTP_OPEN of the name SI; ZF as of api.
open:
	movw	$open_name, %di
1:	lodsb
	stosb
	testb	%al, %al
	jnz	1b
	movl	server_ip, %eax
	movl	%eax, open_server
	movw	$BLOCK, open_size
	movw	$TFTP_OPEN, %bx
	movw	$open_block, %di
	jmp	api

# clear and add: the length and the sum of a file's bytes, CX bytes at
# FILE_SEGMENT:SI at a time. CX is kept.
clear:
	movl	$0, length
	movl	$0, sum
	ret
add:
	movzwl	%cx, %eax
	addl	%eax, length
	pushw	%cx
	pushw	%ds
	movw	$FILE_SEGMENT, %ax
	movw	%ax, %ds
	xorl	%eax, %eax
	xorl	%edx, %edx
	jcxz	2f
1:	lodsb
	addl	%eax, %edx
	loop	1b
2:	popw	%ds
	popw	%cx
	addl	%edx, sum
	ret

# udp_file reads a file by TFTP over the UDP functions. ZF is set if that worked;
# otherwise SI says what did not.
udp_file:
	call	clear
	movl	our_ip, %eax
	movl	%eax, udp_ip
	movw	$no_udp, %si
	pxe	UDP_OPEN, udp_open, udp_failed
	movw	$PORT_69, write_port
	movw	$request, write_data
	movw	$request_end - request, write_size
	movw	$0, block			# the block that was acknowledged last
send:
	movw	$TRIES, tries
again:
	decw	tries
	movw	$no_answer, %si
	js	udp_failed
	movl	server_ip, %eax
	movl	%eax, write_ip
	movw	$no_write, %si
	pxe	UDP_WRITE, write, udp_failed
	movl	TICKS, %eax
	movl	%eax, since
receive:
	movl	TICKS, %eax
	subl	since, %eax
	cmpl	$PATIENCE, %eax
	jae	again
	movl	our_ip, %eax
	movl	%eax, udp_to
	movw	$PORT_OURS, udp_port
	movw	$BLOCK + 4, udp_size
	pxe	UDP_READ, udp_read, receive	# nothing there yet
	movw	$FILE_SEGMENT, %ax
	movw	%ax, %fs
	cmpw	$OP_OACK, %fs:0
	jne	1f
	cmpw	$0, block
	jne	receive
	xorw	%ax, %ax
	movw	$BLOCK, %cx			# it is not the end
	jmp	acknowledge
1:	cmpw	$OP_DATA, %fs:0
	movw	$no_data, %si
	jne	udp_failed
	movw	block, %ax
	incw	%ax
	movw	%fs:2, %bx
	xchgb	%bh, %bl
	cmpw	%ax, %bx
	jne	receive				# one that we had
	movw	%ax, block
	movw	udp_size, %cx
	subw	$4, %cx
	pushw	%ax
	movw	$4, %si
	call	add
	popw	%ax
acknowledge:
	xchgb	%ah, %al
	movw	%ax, ack_block
	movw	udp_from_port, %ax
	movw	%ax, write_port
	movw	$ack, write_data
	movw	$4, write_size
	cmpw	$BLOCK, %cx
	je	send
	movl	server_ip, %eax
	movl	%eax, write_ip
	movw	$no_write, %si
	pxe	UDP_WRITE, write, udp_failed
	movw	$no_udp_close, %si
	pxe	UDP_CLOSE, close, udp_failed
	ret
udp_failed:
	orw	$1, %ax
	ret

# report prints length and sum after a file's name.
report:
	say	colon
	movl	length, %eax
	call	decimal
	say	bytes
	movl	sum, %eax
	call	decimal
	say	newline
	ret

print:
	lodsb
	testb	%al, %al
	jz	1f
	call	putc
	jmp	print
1:	ret

putc:
	pushaw
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	popaw
	ret

decimal:
	xorl	%edx, %edx
	movl	$10, %ecx
	divl	%ecx
	pushw	%dx
	testl	%eax, %eax
	jz	1f
	call	decimal
1:	popw	%ax
	addb	$'0', %al
	jmp	putc

signature:	.ascii	"PXENV+"
name_manager:	.asciz	"\\Boot\\BootMgr.EXE"
name_store:	.asciz	"\\boot\\BCD"
name_missing:	.asciz	"\\Boot\\Fonts\\missing.ttf"
no_pxenv:	.asciz	"PXENV+ "
no_ack:		.asciz	"GET_CACHED_INFO DHCP_ACK "
no_reply:	.asciz	"GET_CACHED_INFO CACHED_REPLY "
found_missing:	.asciz	"TFTP_OPEN of a missing file "
no_open:	.asciz	"TFTP_OPEN "
no_read:	.asciz	"TFTP_READ "
no_close:	.asciz	"TFTP_CLOSE "
no_udp:		.asciz	"UDP_OPEN "
no_udp_close:	.asciz	"UDP_CLOSE "
no_write:	.asciz	"UDP_WRITE "
no_answer:	.asciz	"UDP_READ got no answer "
no_data:	.asciz	"UDP_READ got no data "
passed:		.asciz	"ntldr: passed\r\n"
failed:		.asciz	"\r\nntldr: failed: "
colon:		.asciz	": "
bytes:		.asciz	" bytes, sum "
newline:	.asciz	"\r\n"

request:
	.byte	0, 1
	.asciz	"\\boot\\BCD"
	.asciz	"octet"
	.asciz	"blksize"
	.asciz	"1456"
	.asciz	"tsize"
	.asciz	"0"
request_end:

ack:		.word	OP_ACK
ack_block:	.word	0

# Parameter blocks.
info:		.word	0
info_type:	.word	0
info_size:	.word	0
info_buffer:	.long	0
		.word	0

open_block:	.word	0
open_server:	.long	0
		.long	0			# gateway
open_name:	.space	128
		.word	PORT_69
open_size:	.word	0

read:		.word	0
		.word	0			# packet number
read_size:	.word	0
		.word	0, FILE_SEGMENT

close:		.word	0

udp_open:	.word	0
udp_ip:		.long	0

udp_read:	.word	0
		.long	0			# sender
udp_to:		.long	0
udp_from_port:	.word	0
udp_port:	.word	0
udp_size:	.word	0
		.word	0, FILE_SEGMENT

write:		.word	0
write_ip:	.long	0
		.long	0			# gateway
		.word	PORT_OURS
write_port:	.word	0
write_size:	.word	0
write_data:	.word	0, 0

entry:		.long	0
our_ip:		.long	0
server_ip:	.long	0
length:		.long	0
sum:		.long	0
since:		.long	0
status:		.word	0
block:		.word	0
tries:		.word	0

		.bss
packet:		.space	1500
