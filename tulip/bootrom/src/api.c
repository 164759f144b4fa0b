/* The structures boot programs find the API by, and the dispatch of its calls. */
#include "pxe.h"

struct pxe_structure pxe_structure __attribute__((aligned(16)));
struct pxenv_structure pxenv_structure __attribute__((aligned(16)));

extern const uint8_t pxe_entry[], pxenv_entry[], undi_rom_id[], resident_end[];

static uint8_t negative_sum(const void *data, uint16_t n)
{
	const uint8_t *p = data;
	uint8_t sum = 0;

	while (n-- > 0)
		sum += *p++;
	return -sum;
}

static struct segment_descriptor describe(uint16_t segment, uint16_t size)
{
	return (struct segment_descriptor){ segment, (uint32_t)segment << 4, size };
}

void api_init(void)
{
	struct pxe_structure *p = &pxe_structure;
	struct pxenv_structure *e = &pxenv_structure;
	uint16_t cs = code_segment();
	uint16_t code_size = (uint16_t)(uintptr_t)resident_end;

	/* One segment holds all code, variables and stacks; the other one the
	 * receive buffers. The base code has no memory of its own. */
	memset(p, 0, sizeof *p);
	memcpy(p->Signature, "!PXE", sizeof p->Signature);
	p->StructLength = sizeof *p;
	p->UNDIROMID = far(rom_segment, (uint16_t)(uintptr_t)undi_rom_id);
	p->EntryPointSP = near_far(pxe_entry);
	p->StatusCallout = 0xffffffff;		/* none */
	p->SegDescCn = 7;
	p->FirstSelector = cs;
	p->Stack = describe(cs, code_size);
	p->UNDICode = p->UNDICodeWrite = describe(cs, code_size);
	p->UNDIData = describe(rx_segment, RX_AREA);
	p->BC_Code = p->BC_CodeWrite = describe(cs, 0);
	p->BC_Data = describe(rx_segment, 0);
	p->StructCksum = negative_sum(p, sizeof *p);

	memset(e, 0, sizeof *e);
	memcpy(e->Signature, "PXENV+", sizeof e->Signature);
	e->Version = 0x0201;
	e->Length = sizeof *e;
	e->RMEntry = near_far(pxenv_entry);
	e->StackSeg = cs;
	e->StackSize = code_size;
	e->BC_CodeSeg = cs;
	e->BC_DataSeg = rx_segment;
	e->UNDIDataSeg = rx_segment;
	e->UNDIDataSize = RX_AREA;
	e->UNDICodeSeg = cs;
	e->UNDICodeSize = code_size;
	e->PXEPtr = near_far(p);
	e->Checksum = negative_sum(e, sizeof *e);
}

#define VECTOR_1A (4 * 0x1a)

void api_hook(void)
{
	if (low_long(VECTOR_1A) == near_far(int1a))
		return;
	int1a_chain = low_long(VECTOR_1A);
	set_low_long(VECTOR_1A, near_far(int1a));
}

bool api_unhook(void)
{
	if (int1a_chain == 0)
		return true;			/* not hooked */
	if (low_long(VECTOR_1A) != near_far(int1a))
		return false;
	set_low_long(VECTOR_1A, int1a_chain);
	int1a_chain = 0;
	return true;
}

struct status_only {
	uint16_t Status;
};

/* What each function takes. PXE 2.1 has further ones (multicast TFTP, protected
 * mode, diagnostics): they are answered with PXE_UNSUPPORTED. */
static const struct function {
	uint8_t opcode;
	uint8_t size;
	uint16_t (*call)(void *params);
} functions[] = {
	/* The hottest first. */
	{ PXENV_UDP_READ, sizeof(struct udp_read_call), base_udp_read },
	{ PXENV_UDP_WRITE, sizeof(struct udp_write_call), base_udp_write },
	{ PXENV_UNDI_ISR, sizeof(struct undi_isr), undi_isr },
	{ PXENV_UNDI_TRANSMIT, sizeof(struct undi_transmit), undi_transmit },
	{ PXENV_TFTP_READ, sizeof(struct tftp_read_call), base_tftp_read },

	{ PXENV_START_UNDI, sizeof(struct start_undi), start_undi },
	{ PXENV_UNDI_STARTUP, sizeof(struct status_only), undi_startup },
	{ PXENV_UNDI_CLEANUP, sizeof(struct status_only), undi_cleanup },
	{ PXENV_UNDI_INITIALIZE, sizeof(struct status_only), undi_initialize },
	{ PXENV_UNDI_RESET_ADAPTER, sizeof(struct undi_reset_adapter), undi_reset_adapter },
	{ PXENV_UNDI_SHUTDOWN, sizeof(struct status_only), undi_shutdown },
	{ PXENV_UNDI_OPEN, sizeof(struct undi_open), undi_open },
	{ PXENV_UNDI_CLOSE, sizeof(struct status_only), undi_close },
	{ PXENV_UNDI_SET_MCAST_ADDRESS, sizeof(struct undi_set_mcast_address), undi_set_mcast_address },
	{ PXENV_UNDI_SET_STATION_ADDRESS, sizeof(struct undi_set_station_address), undi_set_station_address },
	{ PXENV_UNDI_SET_PACKET_FILTER, sizeof(struct undi_set_packet_filter), undi_set_packet_filter },
	{ PXENV_UNDI_GET_INFORMATION, sizeof(struct undi_get_information), undi_get_information },
	{ PXENV_UNDI_GET_STATISTICS, sizeof(struct undi_get_statistics), undi_get_statistics },
	{ PXENV_UNDI_CLEAR_STATISTICS, sizeof(struct status_only), undi_clear_statistics },
	{ PXENV_UNDI_FORCE_INTERRUPT, sizeof(struct status_only), undi_force_interrupt },
	{ PXENV_UNDI_GET_MCAST_ADDRESS, sizeof(struct undi_get_mcast_address), undi_get_mcast_address },
	{ PXENV_UNDI_GET_NIC_TYPE, sizeof(struct undi_get_nic_type), undi_get_nic_type },
	{ PXENV_UNDI_GET_IFACE_INFO, sizeof(struct undi_get_iface_info), undi_get_iface_info },
	{ PXENV_STOP_UNDI, sizeof(struct status_only), stop_undi },

	{ PXENV_TFTP_OPEN, sizeof(struct tftp_open_call), base_tftp_open },
	{ PXENV_TFTP_CLOSE, sizeof(struct status_only), base_tftp_close },
	{ PXENV_TFTP_READ_FILE, sizeof(struct tftp_read_file_call), base_tftp_read_file },
	{ PXENV_TFTP_GET_FSIZE, sizeof(struct tftp_get_fsize_call), base_tftp_get_fsize },
	{ PXENV_UDP_OPEN, sizeof(struct udp_open_call), base_udp_open },
	{ PXENV_UDP_CLOSE, sizeof(struct status_only), base_udp_close },
	{ PXENV_UNLOAD_STACK, sizeof(struct status_only), base_unload_stack },
	{ PXENV_GET_CACHED_INFO, sizeof(struct get_cached_info), base_get_cached_info },
	{ PXENV_RESTART_TFTP, sizeof(struct tftp_read_file_call), base_restart_tftp },
	{ PXENV_START_BASE, sizeof(struct status_only), base_start },
	{ PXENV_STOP_BASE, sizeof(struct status_only), base_stop },
};

enum { PARAMETERS_MAX = sizeof(struct tftp_read_file_call) };

/* pxe_api runs one call (entry.S): its parameters are copied here and back, as
 * near code works on near data. */
uint16_t pxe_api(uint32_t opcode, farptr params)
{
	uint8_t block[PARAMETERS_MAX] __attribute__((aligned(4)));
	uint16_t status = PXE_UNSUPPORTED;

	for (unsigned i = 0; i < sizeof functions / sizeof functions[0]; i++) {
		const struct function *f = &functions[i];
		if (f->opcode != opcode)
			continue;
		copy_from_far(block, params, f->size);
		status = f->call(block);
		copy_to_far(params, block, f->size);
		break;
	}
	copy_to_far(params, &status, sizeof status);
	return status == PXE_SUCCESS ? PXENV_EXIT_SUCCESS : PXENV_EXIT_FAILURE;
}
