/* The base code functions (PXE 2.1, sections 3.3 to 3.5): TFTP, UDP and what boot
 * programs ask about how they were booted. */
#include "base.h"
#include "dhcp.h"
#include "pxe.h"
#include "tftp.h"
#include "window.h"

static bool udp_is_open;

enum { DEFAULT_SOURCE_PORT = CONST16(2069) };

/* ready has the chip running, though the boot program may have closed UNDI. */
static bool ready(void)
{
	if (nic.started)
		return true;
	nic.filter = FILTER_DIRECTED | FILTER_BROADCAST;
	nic.multicasts = 0;
	return nic.io != 0 && nic_start();
}

uint16_t base_tftp_open(void *params)
{
	struct tftp_open_call *p = params;
	char name[API_FILE_NAME + 1];

	if (udp_is_open)
		return PXE_UDP_OPEN;
	if (tftp_is_open())
		return PXE_TFTP_OPEN;
	if (!ready())
		return PXE_TFTP_CANNOT_OPEN_CONNECTION;
	memcpy(name, p->FileName, API_FILE_NAME);
	name[API_FILE_NAME] = 0;
	struct tftp_file f = {
		.server = p->ServerIPAddress,
		.gateway = p->GatewayIPAddress,
		.port = p->TFTPPort,
		.block_size = TFTP_BLOCK_DEFAULT,	/* the smallest the specification knows */
		.name = name,
	};
	if (p->PacketSize > TFTP_BLOCK_DEFAULT)
		f.block_size = p->PacketSize < TFTP_BLOCK_MAX ? p->PacketSize : TFTP_BLOCK_MAX;
	uint16_t status = tftp_open(&f);
	if (status == PXE_SUCCESS)
		p->PacketSize = tftp_block_size();
	return status;
}

uint16_t base_tftp_close(void *params)
{
	(void)params;
	if (!tftp_is_open())
		return PXE_TFTP_CLOSED;
	tftp_close();
	return PXE_SUCCESS;
}

uint16_t base_tftp_read(void *params)
{
	struct tftp_read_call *p = params;
	struct tftp_block b;

	uint16_t status = tftp_read(&b);
	if (status != PXE_SUCCESS)
		return status;
	copy_far(p->Buffer, far(rx_segment, b.data), b.length);
	p->PacketNumber = b.number;
	p->BufferSize = b.length;
	return PXE_SUCCESS;
}

uint16_t load_file(const struct tftp_file *f, uint32_t to, uint32_t *size,
		   void (*progress)(uint32_t done))
{
	uint32_t done = 0, announced;
	bool known;
	struct tftp_block b;

	uint16_t status = tftp_open(f);
	if (status != PXE_SUCCESS)
		return status;
	known = tftp_size(&announced);
	if (known && announced > *size) {
		tftp_close();
		return PXE_BSTRAP_FILE_TOO_BIG;
	}
	do {
		status = tftp_read(&b);
		if (status == PXE_SUCCESS && b.length > *size - done)
			status = PXE_BSTRAP_FILE_TOO_BIG;
		if (status == PXE_SUCCESS &&
		    !copy_linear(to + done, ((uint32_t)rx_segment << 4) + b.data, b.length))
			status = PXE_TFTP_CANNOT_READ_FROM_CONNECTION;
		if (status != PXE_SUCCESS)
			break;
		done += b.length;
		if (progress != NULL)
			progress(done);
	} while (!b.last);
	tftp_close();
	*size = done;
	if (status == PXE_SUCCESS && known && done != announced)
		return PXE_TFTP_CANNOT_READ_FROM_CONNECTION;	/* a block came cut short */
	return status;
}

static uint16_t read_file(struct tftp_read_file_call *p)
{
	char name[API_FILE_NAME + 1];

	if (udp_is_open)
		return PXE_UDP_OPEN;
	if (tftp_is_open())
		return PXE_TFTP_OPEN;
	if (!ready())
		return PXE_TFTP_CANNOT_OPEN_CONNECTION;
	memcpy(name, p->FileName, API_FILE_NAME);
	name[API_FILE_NAME] = 0;
	struct tftp_file f = {
		.server = p->ServerIPAddress,
		.gateway = p->GatewayIPAddress,
		.port = p->TFTPSrvPort,
		.block_size = TFTP_BLOCK_MAX,
		.name = name,
	};
	uint32_t size = p->BufferSize;
	uint16_t status = load_file(&f, p->Buffer, &size, NULL);
	if (status == PXE_SUCCESS)
		p->BufferSize = size;
	return status == PXE_BSTRAP_FILE_TOO_BIG ? PXE_OUT_OF_RESOURCES : status;
}

uint16_t base_tftp_read_file(void *params)
{
	return read_file(params);
}

uint16_t base_restart_tftp(void *params)
{
	uint16_t status = read_file(params);

	if (status == PXE_SUCCESS)
		restart_nbp();
	return status;
}

uint16_t base_tftp_get_fsize(void *params)
{
	struct tftp_get_fsize_call *p = params;
	char name[API_FILE_NAME + 1];

	if (udp_is_open)
		return PXE_UDP_OPEN;
	if (tftp_is_open())
		return PXE_TFTP_OPEN;
	if (!ready())
		return PXE_TFTP_CANNOT_OPEN_CONNECTION;
	memcpy(name, p->FileName, API_FILE_NAME);
	name[API_FILE_NAME] = 0;
	struct tftp_file f = {
		.server = p->ServerIPAddress,
		.gateway = p->GatewayIPAddress,
		.block_size = TFTP_BLOCK_MAX,
		.name = name,
	};
	uint16_t status = tftp_open(&f);
	if (status != PXE_SUCCESS)
		return status;
	uint32_t size;
	if (tftp_size(&size))
		p->FileSize = size;
	else
		status = PXE_TFTP_NO_FILESIZE;
	tftp_close();
	return status;
}

uint16_t base_udp_open(void *params)
{
	const struct udp_open_call *p = params;

	if (udp_is_open)
		return PXE_UDP_OPEN;
	if (tftp_is_open())
		return PXE_TFTP_OPEN;
	if (!ready())
		return PXE_FAILURE;
	if (p->src_ip != 0)
		net.address = p->src_ip;
	window_forget();
	udp_is_open = true;
	return PXE_SUCCESS;
}

uint16_t base_udp_close(void *params)
{
	(void)params;
	if (!udp_is_open)
		return PXE_UDP_CLOSED;
	udp_is_open = false;
	return PXE_SUCCESS;
}

/* wanted tells whether a datagram is one the call asked for. */
static bool wanted(const struct udp_read_call *p, const struct datagram *d)
{
	return (p->dest_ip == 0 || d->destination == p->dest_ip) &&
	       (p->d_port == 0 || d->destination_port == p->d_port);
}

uint16_t base_udp_read(void *params)
{
	struct udp_read_call *p = params;
	struct datagram d;

	if (!udp_is_open)
		return PXE_UDP_CLOSED;
	while (ready() && net_poll(&d)) {
		enum window_verdict verdict = wanted(p, &d) ? window_incoming(&d) : WINDOW_DROP;
		if (verdict == WINDOW_DROP) {
			net_release();
			continue;
		}
		farptr data = far(rx_segment, d.data);
		uint16_t n = d.length;
		if (verdict == WINDOW_CHANGED) {
			data = near_far(window_packet);
			n = window_packet_length;
		}
		if (n > p->buffer_size)
			n = p->buffer_size;
		copy_far(p->buffer, data, n);
		p->src_ip = d.source;
		p->dest_ip = d.destination;
		p->s_port = d.source_port;
		p->d_port = d.destination_port;
		p->buffer_size = n;
		net_release();
		return PXE_SUCCESS;
	}
	return PXE_FAILURE;	/* nothing there: the caller asks again */
}

uint16_t base_udp_write(void *params)
{
	const struct udp_write_call *p = params;
	struct outgoing o = {
		.server = p->ip,
		.gateway = p->gw,
		.source_port = p->src_port != 0 ? p->src_port : DEFAULT_SOURCE_PORT,
		.destination_port = p->dst_port,
		.data = p->buffer,
		.length = p->buffer_size,
	};

	if (!udp_is_open)
		return PXE_UDP_CLOSED;
	if (p->buffer_size > UDP_PAYLOAD_MAX)
		return PXE_OUT_OF_RESOURCES;
	if (!ready())
		return PXE_FAILURE;
	switch (window_outgoing(&o)) {
	case WINDOW_DROP:
		return PXE_SUCCESS;
	case WINDOW_CHANGED:
		o.data = near_far(window_packet);
		o.length = window_packet_length;
		break;
	case WINDOW_PASS:
		break;
	}
	return net_send(o.server, o.gateway, o.source_port, o.destination_port, o.data, o.length) ?
		PXE_SUCCESS : PXE_ARP_TIMEOUT;
}

uint16_t base_get_cached_info(void *params)
{
	struct get_cached_info *p = params;
	const struct cached *c;

	switch (p->PacketType) {
	case PACKET_TYPE_DHCP_DISCOVER:
		c = &discover;
		break;
	case PACKET_TYPE_DHCP_ACK:
		c = &ack;
		break;
	case PACKET_TYPE_CACHED_REPLY:
		c = &reply;
		break;
	default:
		return PXE_UNDI_INVALID_PARAMETER;
	}
	if (c->length == 0)
		return PXE_FAILURE;
	if (p->BufferSize == 0) {
		/* No buffer: the caller looks at ours. */
		p->Buffer = near_far(&c->packet);
		p->BufferSize = p->BufferLimit = sizeof c->packet;
		return PXE_SUCCESS;
	}
	if (p->BufferSize > c->length)
		p->BufferSize = c->length;
	copy_to_far(p->Buffer, &c->packet, p->BufferSize);
	p->BufferLimit = sizeof c->packet;
	return PXE_SUCCESS;
}

uint16_t base_unload_stack(void *params)
{
	(void)params;
	tftp_close();
	udp_is_open = false;
	nic_stop();
	/* The driver stays until STOP_UNDI; the caller then frees the segments that
	 * !PXE describes (section 4.2.3). */
	return api_unhook() ? PXE_SUCCESS : PXE_KEEP_UNDI;
}

uint16_t base_start(void *params)
{
	(void)params;
	api_hook();
	return ready() ? PXE_SUCCESS : PXE_FAILURE;
}

uint16_t base_stop(void *params)
{
	(void)params;
	tftp_close();
	udp_is_open = false;
	return PXE_SUCCESS;
}
