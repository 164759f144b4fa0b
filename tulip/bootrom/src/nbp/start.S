# Entry and exit of the default boot program, and its interrupt handler. PXE 2.1,
# section 3.2.2.3: entered by a far call at 0000:7C00 with ES:BX -> PXENV+ and
# SS:SP+4 -> far pointer to !PXE; a far return gives the machine back.

	.code16
	.section .start, "ax"
	.globl	start
start:
	pushfw
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	pushw	%gs
	cld
	movw	%sp, %bp
	movl	46(%bp), %ecx		# !PXE: behind what was pushed and the return address
	movw	%es, %dx
	shll	$16, %edx
	movw	%bx, %dx		# PXENV+
	movl	%esp, %esi
	movw	%ss, %di
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	movl	$stack_end, %esp
	movl	%edx, pxenv_at
	movl	%ecx, pxe_at
	pushl	%esi
	pushw	%di
	movw	$image_end, %di
	movw	$bss_clear_end, %cx
	subw	%di, %cx
	xorb	%al, %al
	# The stack and the two pointers lie behind what is cleared.
	rep stosb
	calll	nbp_main
	popw	%di
	popl	%esi
	movw	%di, %ss
	movl	%esi, %esp
	popw	%gs
	popw	%fs
	popw	%es
	popw	%ds
	popal
	popfw
	xorw	%ax, %ax
	lretw

# nic_handler serves the adapter's interrupt line while nbp_main tests it: it asks
# PXENV_UNDI_ISR whose interrupt it is, counts ours and acknowledges the PIC.
	.globl	nic_handler
nic_handler:
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	pushw	%gs
	cld
	movl	%esp, %esi
	movw	%ss, %di
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	movl	$handler_stack_end, %esp
	calll	nic_interrupt
	movw	%di, %ss
	movl	%esi, %esp
	popw	%gs
	popw	%fs
	popw	%es
	popw	%ds
	popal
	iretw

	.section .stacks, "aw", @nobits
	.globl	pxenv_at, pxe_at
	.balign	16
pxenv_at:	.skip	4
pxe_at:		.skip	4
		.skip	1024
handler_stack_end:
		.skip	4096
stack_end:

	.section .note.GNU-stack, "", @progbits
