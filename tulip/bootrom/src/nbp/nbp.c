/*
 * The boot program a BIOS client gets when there is no file to boot: it says who
 * the machine is and what to do next, checks every function of the PXE API it was
 * started through, and gives the machine back to the BIOS.
 *
 * Output goes to the screen and to the first serial port.
 */
#include "../console.h"
#include "../dhcp.h"
#include "../pxe.h"

extern farptr pxenv_at, pxe_at;		/* as given at the start (start.S) */
extern const uint8_t image_start[], constant_end[], image_end[], nic_handler[];

enum {
	COM1 = 0x3f8,
	LINE_STATUS = 5,
	TRANSMIT_EMPTY = 0x20,

	TFTP_PORT_69 = CONST16(69),
	BLOCK = 512,
	HIGH_ADDRESS = 0x200000,	/* where TFTP_READ_FILE is tried above 1 MiB */
	LOW_ADDRESS = 0x40000,
	DRIVER_CODE = 0x2000,		/* segments for a second driver */
	DRIVER_DATA = 0x3000,
	PIC1 = 0x20,
	PIC2 = 0xa0,
	END_OF_INTERRUPT = 0x20,
	VIDEO_ENTRY = 0xf065,		/* INT 10h in a BIOS without a video BIOS */
};

#define BIOS_VIDEO (4 * 0x10)
#define IMAGE_SIZE ((uint32_t)(image_end - image_start))

/* Output. */

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* screen_is_serial tells whether the BIOS itself sends its screen to the serial
 * port, as SeaBIOS does without a display: then its own segment serves INT 10h,
 * but not at the place that a BIOS without any screen has. */
static bool screen_is_serial(void)
{
	uint32_t vector = low_long(BIOS_VIDEO);

	return vector >> 16 == 0xf000 && (vector & 0xffff) != VIDEO_ENTRY;
}

void put(char c)
{
	screen_put(c);
	if (screen_is_serial())
		return;
	/* A port that never empties is no port. */
	for (int i = 0; i < 20000 && !(inb(COM1 + LINE_STATUS) & TRANSMIT_EMPTY); i++)
		;
	outb(COM1, c);
}

/* Calls. */

static farptr entry;
static uint16_t last_exit;

static uint16_t call(uint16_t opcode, void *params)
{
	uint32_t ax;

	*(uint16_t *)params = 0xffff;
	__asm__ volatile("pushw	%%ds\n\t"
			 "pushw	%w[params]\n\t"
			 "pushw	%w[opcode]\n\t"
			 "lcallw	*%[entry]\n\t"
			 "addw	$6, %%sp"
			 : "=a"(ax)
			 : [opcode] "b"((uint32_t)opcode), [params] "D"(params), [entry] "m"(entry)
			 : "memory", "cc");
	last_exit = ax;
	return *(uint16_t *)params;
}

/* call_pxenv makes a call through PXENV+: opcode in BX, parameters at ES:DI. */
static uint16_t call_pxenv(uint16_t opcode, void *params)
{
	static farptr rm_entry;
	uint32_t ax;

	copy_from_far(&rm_entry, pxenv_at + offsetof(struct pxenv_structure, RMEntry), sizeof rm_entry);
	*(uint16_t *)params = 0xffff;
	__asm__ volatile("lcallw	*%[entry]"
			 : "=a"(ax)
			 : "b"((uint32_t)opcode), "D"(params), [entry] "m"(rm_entry)
			 : "memory", "cc");
	last_exit = ax;
	return *(uint16_t *)params;
}

/* Results. */

static uint16_t checks, passed;

static void result(const char *name, bool ok)
{
	checks++;
	if (ok)
		passed++;
	print("  ");
	print("%s", name);
	for (int n = strlen(name); n < 44; n++)
		put('.');
	print(ok ? " ok\n" : " FAILED\n");
}

/* expect calls a function and compares its status; AX must agree. */
static bool returns(uint16_t opcode, void *params, uint16_t status)
{
	uint16_t got = call(opcode, params);
	bool ok = got == status && last_exit == (status == PXE_SUCCESS ? 0 : 1);

	if (!ok)
		print("  function %b: status %x, wanted %x, AX %x\n", opcode, got, status, last_exit);
	return ok;
}

static void expect(const char *name, uint16_t opcode, void *params, uint16_t status)
{
	result(name, returns(opcode, params, status));
}

static struct undi_get_information adapter;
static struct cached acknowledged, booted;
static uint32_t server;
static char file[129];

/* Structures. */

static bool sums_to_zero(farptr at, uint16_t n)
{
	uint8_t bytes[sizeof(struct pxe_structure)], sum = 0;

	if (n > sizeof bytes)
		return false;
	copy_from_far(bytes, at, n);
	while (n-- > 0)
		sum += bytes[n];
	return sum == 0;
}

static void check_structures(void)
{
	struct pxe_structure pxe;
	struct pxenv_structure pxenv;
	uint32_t ax = 0x5650, bx = 0, es, carry;

	copy_from_far(&pxe, pxe_at, sizeof pxe);
	entry = pxe.EntryPointSP;
	result("!PXE structure on the stack", memcmp(pxe.Signature, "!PXE", 4) == 0 &&
	       pxe.StructLength == sizeof pxe && sums_to_zero(pxe_at, sizeof pxe) &&
	       pxe.UNDICode.Seg_Addr == entry >> 16);
	copy_from_far(&pxenv, pxenv_at, sizeof pxenv);
	result("PXENV+ structure in ES:BX", memcmp(pxenv.Signature, "PXENV+", 6) == 0 &&
	       pxenv.Version == 0x0201 && sums_to_zero(pxenv_at, sizeof pxenv) &&
	       pxenv.PXEPtr == pxe_at);
	__asm__ volatile("pushw	%%es\n\t"
			 "int	$0x1a\n\t"
			 "movw	%%es, %w[es]\n\t"
			 "popw	%%es\n\t"
			 "sbbl	%[carry], %[carry]"
			 : "+a"(ax), "+b"(bx), [es] "=&d"(es), [carry] "=&c"(carry)
			 : : "memory", "cc");
	result("interrupt 1Ah, AX=5650h", (ax & 0xffff) == 0x564e && carry == 0 &&
	       far(es, bx) == pxenv_at);
}

/* What the base code knows. */

static bool cached(uint8_t type, struct cached *c)
{
	struct get_cached_info p = {
		.PacketType = type,
		.BufferSize = sizeof c->packet,
		.Buffer = near_far(&c->packet),
	};
	bool ok = returns(PXENV_GET_CACHED_INFO, &p, PXE_SUCCESS);

	c->length = p.BufferSize;
	return ok && c->length >= BOOTP_HEADER &&
	       memcmp(c->packet.mac, adapter.CurrentNodeAddress, MAC_LENGTH) == 0;
}

/* gather asks, without remarks, for what all else needs: who we are, what DHCP
 * said and where this program came from. */
static void gather(void)
{
	call(PXENV_UNDI_GET_INFORMATION, &adapter);
	cached(PACKET_TYPE_DHCP_ACK, &acknowledged);
	cached(PACKET_TYPE_CACHED_REPLY, &booted);
	server = boot_server(&booted);
	boot_file(&booted, file);
}

static void check_information(void)
{
	struct get_cached_info borrow = { .PacketType = PACKET_TYPE_DHCP_ACK };
	static struct cached copy;

	expect("UNDI_GET_INFORMATION", PXENV_UNDI_GET_INFORMATION, &adapter, PXE_SUCCESS);
	result("GET_CACHED_INFO, DHCP_DISCOVER", cached(PACKET_TYPE_DHCP_DISCOVER, &copy));
	result("GET_CACHED_INFO, DHCP_ACK", cached(PACKET_TYPE_DHCP_ACK, &copy) &&
	       copy.packet.your == acknowledged.packet.your);
	result("GET_CACHED_INFO, CACHED_REPLY", cached(PACKET_TYPE_CACHED_REPLY, &copy) &&
	       boot_server(&copy) == server);
	result("GET_CACHED_INFO without a buffer",
	       returns(PXENV_GET_CACHED_INFO, &borrow, PXE_SUCCESS) && borrow.Buffer != 0);
}

/* introduce says who we are and what to do next: last, so that it stays on the
 * screen. */
static void introduce(void)
{
	print("\n  adapter   MAC %m, I/O %x, IRQ %d\n", adapter.CurrentNodeAddress,
	      adapter.BaseIo, adapter.IntNumber);
	print("  address   %i, mask %i\n", acknowledged.packet.your,
	      address_option(&acknowledged, OPTION_MASK));
	print("  server    %i, boot file %s\n\n", server, file);
	print("The network works, but there was nothing to boot. Give Polder a directory of\n"
	      "boot files, and name one of them:\n\n"
	      "  polder run --root DIR --boot FILE -- qemu-system-x86_64 ...\n\n");
}

static void check_queries(void)
{
	struct undi_get_nic_type type;
	struct undi_get_iface_info iface;
	struct undi_get_statistics statistics;
	struct undi_get_mcast_address group = { .InetAddr = 0x010000e0 };	/* 224.0.0.1 */
	static const uint8_t group_mac[] = { 0x01, 0x00, 0x5e, 0x00, 0x00, 0x01 };
	struct unload_stack any;

	result("UNDI_GET_NIC_TYPE", returns(PXENV_UNDI_GET_NIC_TYPE, &type, PXE_SUCCESS) &&
	       type.NicType == 2 && type.Vendor_ID == ROM_PCI_VENDOR && type.Base_Class == 2);
	result("UNDI_GET_IFACE_INFO", returns(PXENV_UNDI_GET_IFACE_INFO, &iface, PXE_SUCCESS) &&
	       memcmp(iface.IfaceType, "DIX+802.3", 10) == 0 && iface.LinkSpeed >= 10000000);
	result("UNDI_GET_MCAST_ADDRESS",
	       returns(PXENV_UNDI_GET_MCAST_ADDRESS, &group, PXE_SUCCESS) &&
	       memcmp(group.MediaAddr, group_mac, MAC_LENGTH) == 0);
	result("UNDI_GET_STATISTICS",
	       returns(PXENV_UNDI_GET_STATISTICS, &statistics, PXE_SUCCESS) &&
	       statistics.XmtGoodFrames > 0 && statistics.RcvGoodFrames > 0);
	result("UNDI_CLEAR_STATISTICS", returns(PXENV_UNDI_CLEAR_STATISTICS, &any, PXE_SUCCESS) &&
	       returns(PXENV_UNDI_GET_STATISTICS, &statistics, PXE_SUCCESS) &&
	       statistics.XmtGoodFrames == 0);
	result("PXENV+ entry point", call_pxenv(PXENV_UNDI_GET_NIC_TYPE, &type) == PXE_SUCCESS &&
	       last_exit == 0 && type.NicType == 2);
	expect("UNDI_INITIATE_DIAGS is refused", PXENV_UNDI_INITIATE_DIAGS, &any, PXE_UNSUPPORTED);
	expect("an unknown function is refused", 0x99, &any, PXE_UNSUPPORTED);
}

/* TFTP. The file is this program: what arrives is compared with what runs. */

static void copy_name(char *to, const char *name)
{
	memset(to, 0, API_FILE_NAME);
	memcpy(to, name, strlen(name));
}

/* same_as_image compares n bytes of the file at offset with this program's
 * unchanging part. */
static bool same_as_image(farptr data, uint32_t offset, uint16_t n)
{
	uint8_t copy[64];
	uint32_t constant = constant_end - image_start;

	while (n > 0 && offset < constant) {
		uint16_t part = n < sizeof copy ? n : sizeof copy;
		if (part > constant - offset)
			part = constant - offset;
		copy_from_far(copy, data, part);
		if (memcmp(copy, image_start + offset, part) != 0)
			return false;
		data += part;
		offset += part;
		n -= part;
	}
	return true;
}

static struct tftp_open_call open_call(const char *name, uint16_t packet)
{
	struct tftp_open_call p = {
		.ServerIPAddress = server,
		.TFTPPort = TFTP_PORT_69,
		.PacketSize = packet,
	};

	copy_name(p.FileName, name);
	return p;
}

static uint8_t buffer[1536];

static bool read_all(uint16_t packet)
{
	uint32_t done = 0;
	uint16_t number = 1;
	struct tftp_read_call p;

	do {
		p.Buffer = near_far(buffer);
		if (!returns(PXENV_TFTP_READ, &p, PXE_SUCCESS) || p.PacketNumber != number++ ||
		    !same_as_image(near_far(buffer), done, p.BufferSize))
			return false;
		done += p.BufferSize;
	} while (p.BufferSize == packet);
	return done == IMAGE_SIZE;
}

static bool read_file_to(uint32_t address)
{
	struct tftp_read_file_call p = {
		.BufferSize = IMAGE_SIZE,
		.Buffer = address,
		.ServerIPAddress = server,
		.TFTPSrvPort = TFTP_PORT_69,
	};

	copy_name(p.FileName, file);
	if (!returns(PXENV_TFTP_READ_FILE, &p, PXE_SUCCESS) || p.BufferSize != IMAGE_SIZE)
		return false;
	for (uint32_t at = 0; at < IMAGE_SIZE; at += sizeof buffer) {
		uint16_t n = IMAGE_SIZE - at < sizeof buffer ? IMAGE_SIZE - at : sizeof buffer;
		if (!copy_linear(near_linear(buffer), address + at, n) ||
		    !same_as_image(near_far(buffer), at, n))
			return false;
	}
	return true;
}

static void check_tftp(void)
{
	struct tftp_get_fsize_call size = { .ServerIPAddress = server };
	struct tftp_open_call p;
	struct tftp_read_call read = { .Buffer = near_far(buffer) };
	struct tftp_read_file_call restart = { .ServerIPAddress = server, .Buffer = LOW_ADDRESS,
					       .BufferSize = 0x10000 };
	struct unload_stack any;

	copy_name(size.FileName, file);
	result("TFTP_GET_FSIZE", returns(PXENV_TFTP_GET_FSIZE, &size, PXE_SUCCESS) &&
	       size.FileSize == IMAGE_SIZE);
	p = open_call(file, 1456);
	result("TFTP_OPEN with a packet size", returns(PXENV_TFTP_OPEN, &p, PXE_SUCCESS) &&
	       p.PacketSize > BLOCK && p.PacketSize <= 1456);
	uint16_t packet = p.PacketSize;
	expect("TFTP_OPEN while open is refused", PXENV_TFTP_OPEN, &p, PXE_TFTP_OPEN);
	result("TFTP_READ to the end", read_all(packet));
	expect("TFTP_CLOSE", PXENV_TFTP_CLOSE, &any, PXE_SUCCESS);
	expect("TFTP_READ while closed is refused", PXENV_TFTP_READ, &read, PXE_TFTP_CLOSED);
	p = open_call(file, BLOCK);
	result("TFTP with packets of 512 bytes", returns(PXENV_TFTP_OPEN, &p, PXE_SUCCESS) &&
	       p.PacketSize == BLOCK && read_all(BLOCK) &&
	       returns(PXENV_TFTP_CLOSE, &any, PXE_SUCCESS));
	p = open_call(file, BLOCK);
	result("TFTP_CLOSE in the middle", returns(PXENV_TFTP_OPEN, &p, PXE_SUCCESS) &&
	       returns(PXENV_TFTP_READ, &read, PXE_SUCCESS) &&
	       returns(PXENV_TFTP_CLOSE, &any, PXE_SUCCESS));
	p = open_call("polder/no/such/file", 1456);
	expect("TFTP_OPEN, a missing file", PXENV_TFTP_OPEN, &p, PXE_TFTP_FILE_NOT_FOUND);
	result("TFTP_READ_FILE to base memory", read_file_to(LOW_ADDRESS));
	result("TFTP_READ_FILE to extended memory", read_file_to(HIGH_ADDRESS));
	copy_name(restart.FileName, "polder/no/such/file");
	expect("RESTART_TFTP, a missing file", PXENV_RESTART_TFTP, &restart, PXE_TFTP_FILE_NOT_FOUND);
}

/* UDP: a TFTP transfer by hand. */

static bool udp_write(uint16_t port, const void *data, uint16_t n)
{
	struct udp_write_call p = {
		.ip = server,
		.src_port = CONST16(5000),
		.dst_port = port,
		.buffer_size = n,
		.buffer = near_far(data),
	};

	return returns(PXENV_UDP_WRITE, &p, PXE_SUCCESS);
}

static bool udp_read(struct udp_read_call *p)
{
	struct timer t;

	timer_set(&t, 3 * TICKS_PER_SECOND);
	do {
		*p = (struct udp_read_call){
			.d_port = CONST16(5000),
			.buffer_size = sizeof buffer,
			.buffer = near_far(buffer),
		};
		if (call(PXENV_UDP_READ, p) == PXE_SUCCESS)
			return p->src_ip == server;
	} while (!timer_expired(&t));
	return false;
}

static bool transfer_by_hand(void)
{
	uint8_t request[160] = { 0, 1 };
	uint8_t ack[4] = { 0, 4 };
	uint32_t done = 0;
	struct udp_read_call p;

	uint16_t n = strlen(file) + 1;
	memcpy(request + 2, file, n);
	memcpy(request + 2 + n, "octet", 6);
	if (!udp_write(TFTP_PORT_69, request, 2 + n + 6))
		return false;
	do {
		if (!udp_read(&p) || p.buffer_size < 4 || buffer[1] != 3)
			return false;
		if (!same_as_image(near_far(buffer) + 4, done, p.buffer_size - 4))
			return false;
		done += p.buffer_size - 4;
		memcpy(ack + 2, buffer + 2, 2);
		if (!udp_write(p.s_port, ack, sizeof ack))
			return false;
	} while (p.buffer_size == 4 + BLOCK);
	return done == IMAGE_SIZE;
}

static void check_udp(void)
{
	struct udp_open_call open = { .src_ip = acknowledged.packet.your };
	struct udp_read_call read = { .buffer_size = sizeof buffer, .buffer = near_far(buffer) };
	struct unload_stack any;

	expect("UDP_READ while closed is refused", PXENV_UDP_READ, &read, PXE_UDP_CLOSED);
	expect("UDP_OPEN", PXENV_UDP_OPEN, &open, PXE_SUCCESS);
	read = (struct udp_read_call){ .d_port = CONST16(5001), .buffer_size = sizeof buffer,
				       .buffer = near_far(buffer) };
	expect("UDP_READ, nothing there", PXENV_UDP_READ, &read, PXE_FAILURE);
	result("UDP_WRITE and UDP_READ, a file by hand", transfer_by_hand());
	expect("UDP_CLOSE", PXENV_UDP_CLOSE, &any, PXE_SUCCESS);
}

/* UNDI: an ARP request and its answer, polled and by interrupt. */

static volatile uint16_t interrupts;	/* that were ours */

/* nic_interrupt is called by nic_handler. */
void nic_interrupt(void)
{
	static struct undi_isr p;

	p.FuncFlag = ISR_IN_START;
	if (call(PXENV_UNDI_ISR, &p) == PXE_SUCCESS && p.FuncFlag == ISR_OUT_OURS)
		interrupts++;
	if (adapter.IntNumber >= 8)
		outb(PIC2, END_OF_INTERRUPT);
	outb(PIC1, END_OF_INTERRUPT);
}

static bool send_arp(void)
{
	static struct {
		uint16_t hardware, protocol;
		uint8_t hardware_length, protocol_length;
		uint16_t operation;
		uint8_t sender_mac[MAC_LENGTH];
		uint32_t sender_ip;
		uint8_t target_mac[MAC_LENGTH];
		uint32_t target_ip;
	} PACKED arp;
	static struct undi_tbd tbd;
	struct undi_transmit p = { .Protocol = P_ARP, .XmitFlag = XMT_BROADCAST, .TBD = near_far(&tbd) };

	arp.hardware = CONST16(1);
	arp.protocol = CONST16(0x0800);
	arp.hardware_length = MAC_LENGTH;
	arp.protocol_length = 4;
	arp.operation = CONST16(1);
	memcpy(arp.sender_mac, adapter.CurrentNodeAddress, MAC_LENGTH);
	arp.sender_ip = acknowledged.packet.your;
	arp.target_ip = server;
	/* In two pieces, as a boot program may. */
	tbd.ImmedLength = 8;
	tbd.Xmit = near_far(&arp);
	tbd.DataBlkCount = 1;
	tbd.DataBlock[0].TDPtrType = 1;
	tbd.DataBlock[0].TDDataLen = sizeof arp - 8;
	tbd.DataBlock[0].TDDataPtr = near_far(&arp) + 8;
	return returns(PXENV_UNDI_TRANSMIT, &p, PXE_SUCCESS);
}

/* drain takes what the driver has; it notes a finished transmission and the
 * server's answer. */
static bool drain(bool *sent, bool *answered)
{
	struct undi_isr p;
	uint8_t frame[60];

	for (uint16_t in = ISR_IN_PROCESS;; in = ISR_IN_GET_NEXT) {
		p.FuncFlag = in;
		if (call(PXENV_UNDI_ISR, &p) != PXE_SUCCESS)
			return false;
		if (p.FuncFlag == ISR_OUT_DONE)
			return true;
		if (p.FuncFlag == ISR_OUT_TRANSMIT)
			*sent = true;
		if (p.FuncFlag != ISR_OUT_RECEIVE || p.BufferLength < sizeof frame)
			continue;
		copy_from_far(frame, p.Frame, sizeof frame);
		if (p.ProtType == P_ARP && p.PktType == PACKET_DIRECTED &&
		    p.FrameHeaderLength == 14 && frame[21] == 2 && memcmp(frame + 28, &server, 4) == 0)
			*answered = true;
	}
}

static bool resolve_polled(void)
{
	struct timer t;
	bool sent = false, answered = false;

	if (!send_arp())
		return false;
	timer_set(&t, 2 * TICKS_PER_SECOND);
	while (!(sent && answered) && !timer_expired(&t))
		if (!drain(&sent, &answered))
			return false;
	return sent && answered;
}

static bool wait_interrupts(uint16_t before)
{
	struct timer t;

	timer_set(&t, 2 * TICKS_PER_SECOND);
	while (interrupts == before && !timer_expired(&t))
		;
	return interrupts != before;
}

/* with_interrupts hooks the adapter's line for one exchange and one forced
 * interrupt. */
static void check_interrupts(void)
{
	uint8_t line = adapter.IntNumber;
	uint16_t vector = 4 * (line < 8 ? 0x08 + line : 0x70 + line - 8);
	uint32_t chained = low_long(vector);
	uint8_t mask1 = inb(PIC1 + 1), mask2 = inb(PIC2 + 1);
	bool sent = false, answered = false, ok;
	struct unload_stack any;
	struct timer t;

	if (line == 0 || line > 15) {
		result("UNDI_ISR by interrupt", false);
		return;
	}
	set_low_long(vector, near_far(nic_handler));
	if (line >= 8) {
		outb(PIC2 + 1, mask2 & ~(1 << (line - 8)));
		outb(PIC1 + 1, mask1 & ~(1 << 2));
	} else {
		outb(PIC1 + 1, mask1 & ~(1 << line));
	}
	enable_interrupts();
	ok = send_arp();
	timer_set(&t, 2 * TICKS_PER_SECOND);
	for (uint16_t seen = 0; ok && !(sent && answered) && !timer_expired(&t);) {
		if (seen == interrupts)
			continue;
		seen = interrupts;
		ok = drain(&sent, &answered);
	}
	result("UNDI_ISR by interrupt", ok && sent && answered);
	uint16_t before = interrupts;
	result("UNDI_FORCE_INTERRUPT", returns(PXENV_UNDI_FORCE_INTERRUPT, &any, PXE_SUCCESS) &&
	       wait_interrupts(before));
	outb(PIC1 + 1, mask1);
	outb(PIC2 + 1, mask2);
	set_low_long(vector, chained);
}

static void check_undi(void)
{
	struct unload_stack any;
	struct undi_open open = { .PktFilter = 3 };
	struct undi_reset_adapter reset = { 0 };
	struct undi_set_mcast_address groups = {
		.R_Mcast_Buf = { .MCastAddrCount = 1, .McastAddr = { { 0x01, 0x00, 0x5e, 0, 0, 1 } } }
	};
	struct undi_set_station_address station;
	struct undi_set_packet_filter filter = { .filter = 7 };
	struct undi_isr isr = { .FuncFlag = ISR_IN_START };

	expect("UNDI_SHUTDOWN", PXENV_UNDI_SHUTDOWN, &any, PXE_SUCCESS);
	result("UNDI_ISR, not our interrupt", returns(PXENV_UNDI_ISR, &isr, PXE_SUCCESS) &&
	       isr.FuncFlag == ISR_OUT_NOT_OURS);
	expect("UNDI_INITIALIZE", PXENV_UNDI_INITIALIZE, &any, PXE_SUCCESS);
	memcpy(station.StationAddress, adapter.CurrentNodeAddress, API_MAC_LENGTH);
	expect("UNDI_SET_STATION_ADDRESS", PXENV_UNDI_SET_STATION_ADDRESS, &station, PXE_SUCCESS);
	expect("UNDI_SET_MCAST_ADDRESS", PXENV_UNDI_SET_MCAST_ADDRESS, &groups, PXE_SUCCESS);
	expect("UNDI_OPEN", PXENV_UNDI_OPEN, &open, PXE_SUCCESS);
	result("UNDI_TRANSMIT and UNDI_ISR, polled", resolve_polled());
	expect("UNDI_SET_PACKET_FILTER", PXENV_UNDI_SET_PACKET_FILTER, &filter, PXE_SUCCESS);
	result("UNDI_RESET_ADAPTER", returns(PXENV_UNDI_RESET_ADAPTER, &reset, PXE_SUCCESS) &&
	       resolve_polled());
	check_interrupts();
	expect("UNDI_CLOSE", PXENV_UNDI_CLOSE, &any, PXE_SUCCESS);
}

/* check_loader has the UNDI loader of the ROM load a second driver, and tries it. */
static void check_loader(void)
{
	static struct undi_loader loader;
	static farptr loader_at;
	struct undi_rom_id id;
	struct undi_get_nic_type type;
	struct pxe_structure pxe;
	struct start_undi start = { 0 };
	struct undi_open open = { .PktFilter = 3 };
	struct unload_stack any;
	uint32_t ax;

	copy_from_far(&pxe, pxe_at, sizeof pxe);
	copy_from_far(&id, pxe.UNDIROMID, sizeof id);
	bool ok = memcmp(id.Signature, "UNDI", 4) == 0 &&
		  sums_to_zero(pxe.UNDIROMID, sizeof id) &&
		  returns(PXENV_UNDI_GET_NIC_TYPE, &type, PXE_SUCCESS);
	if (ok) {
		loader_at = far(pxe.UNDIROMID >> 16, id.UNDILoader);
		loader.AX = start.AX = type.BusDevFunc;
		loader.UNDI_CS = DRIVER_CODE;
		loader.UNDI_DS = DRIVER_DATA;
		__asm__ volatile("pushw	%%ds\n\t"
				 "pushw	%w[params]\n\t"
				 "lcallw	*%[loader]\n\t"
				 "addw	$4, %%sp"
				 : "=a"(ax)
				 : [params] "D"(&loader), [loader] "m"(loader_at)
				 : "memory", "cc");
		ok = (ax & 0xffff) == 0 && loader.Status == PXE_SUCCESS &&
		     sums_to_zero(loader.PXEptr, sizeof pxe) &&
		     sums_to_zero(loader.PXENVptr, sizeof(struct pxenv_structure));
	}
	result("UNDI loader in the ROM", ok);
	if (!ok)
		return;
	copy_from_far(&pxe, loader.PXEptr, sizeof pxe);
	entry = pxe.EntryPointSP;
	result("the driver it loaded", returns(PXENV_START_UNDI, &start, PXE_SUCCESS) &&
	       returns(PXENV_UNDI_STARTUP, &any, PXE_SUCCESS) &&
	       returns(PXENV_UNDI_INITIALIZE, &any, PXE_SUCCESS) &&
	       returns(PXENV_UNDI_OPEN, &open, PXE_SUCCESS) &&
	       resolve_polled() &&
	       returns(PXENV_UNDI_CLOSE, &any, PXE_SUCCESS) &&
	       returns(PXENV_UNDI_SHUTDOWN, &any, PXE_SUCCESS) &&
	       returns(PXENV_STOP_UNDI, &any, PXE_SUCCESS));
}

static void check_end(void)
{
	struct unload_stack any;
	struct start_undi start = { 0 };
	struct tftp_get_fsize_call size = { .ServerIPAddress = server };

	expect("STOP_BASE", PXENV_STOP_BASE, &any, PXE_SUCCESS);
	copy_name(size.FileName, file);
	result("START_BASE, then TFTP again", returns(PXENV_START_BASE, &any, PXE_SUCCESS) &&
	       returns(PXENV_TFTP_GET_FSIZE, &size, PXE_SUCCESS));
	expect("UNLOAD_STACK", PXENV_UNLOAD_STACK, &any, PXE_SUCCESS);
	expect("UNDI_CLEANUP", PXENV_UNDI_CLEANUP, &any, PXE_SUCCESS);
	expect("STOP_UNDI", PXENV_STOP_UNDI, &any, PXE_SUCCESS);
	expect("START_UNDI", PXENV_START_UNDI, &start, PXE_SUCCESS);
	expect("UNDI_STARTUP", PXENV_UNDI_STARTUP, &any, PXE_SUCCESS);
	expect("UNDI_SHUTDOWN", PXENV_UNDI_SHUTDOWN, &any, PXE_SUCCESS);
}

void nbp_main(void)
{
	struct pxe_structure pxe;

	enable_interrupts();
	copy_from_far(&pxe, pxe_at, sizeof pxe);
	entry = pxe.EntryPointSP;
	gather();
	print("\nPolder's default boot program. It checks the PXE API:\n");
	check_structures();
	check_information();
	check_queries();
	check_tftp();
	check_udp();
	check_undi();
	check_end();
	check_loader();
	print("Polder PXE self-test: %d of %d passed\n", passed, checks);
	if (passed != checks)
		print("Polder PXE self-test: FAILED\n");
	introduce();
}
