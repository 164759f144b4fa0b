/* The UNDI functions (PXE 2.1, section 4.3): the adapter's driver as boot programs
 * use it. They run with interrupts off. */
#include "net.h"
#include "pci.h"
#include "pxe.h"
#include "tulip.h"

enum { MTU = 1500, HARDWARE_ETHERNET = 1, NIC_PCI = 2 };

static bool probed(void)
{
	return nic.io != 0 || nic_probe();
}

uint16_t start_undi(void *params)
{
	const struct start_undi *p = params;

	if (nic.io == 0)
		pci_bdf = p->AX;
	return PXE_SUCCESS;
}

uint16_t undi_startup(void *params)
{
	(void)params;
	return probed() ? PXE_SUCCESS : PXE_UNDI_CANNOT_INITIALIZE_NIC;
}

uint16_t undi_cleanup(void *params)
{
	(void)params;
	return PXE_SUCCESS;
}

uint16_t undi_initialize(void *params)
{
	(void)params;
	if (!probed())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	nic_stop();
	return nic_link() ? PXE_SUCCESS : PXE_UNDI_MEDIATEST_FAILED;
}

/* set_multicasts takes a list over into the filter. */
static bool set_multicasts(const struct multicast_list *list)
{
	if (list->MCastAddrCount > MULTICAST_MAX)
		return false;
	nic.multicasts = list->MCastAddrCount;
	for (int i = 0; i < nic.multicasts; i++)
		memcpy(nic.multicast[i], list->McastAddr[i], MAC_LENGTH);
	return true;
}

uint16_t undi_reset_adapter(void *params)
{
	const struct undi_reset_adapter *p = params;
	bool interrupts = nic.interrupts;

	if (!probed() || !set_multicasts(&p->R_Mcast_Buf))
		return PXE_UNDI_INVALID_PARAMETER;
	if (!nic_start())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	if (interrupts)
		nic_enable_interrupts();
	return PXE_SUCCESS;
}

uint16_t undi_shutdown(void *params)
{
	(void)params;
	nic_stop();
	return PXE_SUCCESS;
}

uint16_t undi_open(void *params)
{
	const struct undi_open *p = params;

	if (!probed() || !set_multicasts(&p->R_Mcast_Buf))
		return PXE_UNDI_INVALID_PARAMETER;
	nic.filter = p->PktFilter;
	if (!nic_start())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	nic_enable_interrupts();
	return PXE_SUCCESS;
}

uint16_t undi_close(void *params)
{
	(void)params;
	nic_stop();
	return PXE_SUCCESS;
}

/* append copies one piece of a frame behind the others; false if it grows too
 * long. */
static bool append(uint8_t *frame, uint16_t *length, farptr data, uint16_t n)
{
	if (n > FRAME_MAX - *length)
		return false;
	copy_from_far(frame + *length, data, n);
	*length += n;
	return true;
}

uint16_t undi_transmit(void *params)
{
	static const uint16_t types[] = { [P_IP] = TYPE_IP, [P_ARP] = TYPE_ARP, [P_RARP] = TYPE_RARP };
	const struct undi_transmit *p = params;
	struct undi_tbd tbd;
	uint8_t to[MAC_LENGTH];
	uint16_t length = 0;

	if (!nic.started)
		return PXE_UNDI_INVALID_STATE;
	if (p->Protocol > P_RARP)
		return PXE_UNDI_INVALID_PARAMETER;
	uint8_t *frame = nic_buffer();
	if (frame == NULL)
		return PXE_UNDI_TRANSMIT_ERROR;
	if (p->Protocol != P_UNKNOWN) {
		if (p->XmitFlag == XMT_BROADCAST)
			memcpy(to, ethernet_broadcast, MAC_LENGTH);
		else
			copy_from_far(to, p->DestAddr, MAC_LENGTH);
		ethernet_header(frame, to, types[p->Protocol]);
		length = ETHERNET_HEADER;
	}
	copy_from_far(&tbd, p->TBD, sizeof tbd);
	if (tbd.DataBlkCount > 8 || !append(frame, &length, tbd.Xmit, tbd.ImmedLength))
		return PXE_UNDI_INVALID_PARAMETER;
	for (int i = 0; i < tbd.DataBlkCount; i++) {
		farptr data = tbd.DataBlock[i].TDDataPtr;
		if (tbd.DataBlock[i].TDPtrType == 0)
			data = far_linear(data);
		if (!append(frame, &length, data, tbd.DataBlock[i].TDDataLen))
			return PXE_UNDI_INVALID_PARAMETER;
	}
	nic_send(length);
	return PXE_SUCCESS;
}

static uint16_t refilter(void)
{
	return nic_refilter() ? PXE_SUCCESS : PXE_UNDI_CANNOT_INITIALIZE_NIC;
}

uint16_t undi_set_mcast_address(void *params)
{
	const struct undi_set_mcast_address *p = params;

	return set_multicasts(&p->R_Mcast_Buf) ? refilter() : PXE_UNDI_INVALID_PARAMETER;
}

uint16_t undi_set_station_address(void *params)
{
	const struct undi_set_station_address *p = params;

	if (p->StationAddress[0] & 1)
		return PXE_UNDI_BAD_MAC_ADDRESS;
	memcpy(nic.mac, p->StationAddress, MAC_LENGTH);
	return refilter();
}

uint16_t undi_set_packet_filter(void *params)
{
	const struct undi_set_packet_filter *p = params;

	if (!nic.started)
		return PXE_UNDI_INVALID_STATE;
	nic.filter = p->filter;
	return refilter();
}

uint16_t undi_get_information(void *params)
{
	struct undi_get_information *p = params;

	if (!probed())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	memset(p, 0, sizeof *p);
	p->BaseIo = nic.io;
	p->IntNumber = nic.irq;
	p->MaxTranUnit = MTU;
	p->HwType = HARDWARE_ETHERNET;
	p->HwAddrLen = MAC_LENGTH;
	memcpy(p->CurrentNodeAddress, nic.mac, MAC_LENGTH);
	memcpy(p->PermNodeAddress, nic.permanent, MAC_LENGTH);
	p->ROMAddress = rom_segment;
	p->RxBufCt = RX_BUFFERS;
	p->TxBufCt = 1;
	return PXE_SUCCESS;
}

uint16_t undi_get_statistics(void *params)
{
	struct undi_get_statistics *p = params;

	nic_count_missed();
	p->XmtGoodFrames = nic.sent;
	p->RcvGoodFrames = nic.received;
	p->RcvCRCErrors = nic.crc_errors;
	p->RcvResourceErrors = nic.missed;
	return PXE_SUCCESS;
}

uint16_t undi_clear_statistics(void *params)
{
	(void)params;
	nic_count_missed();
	nic.sent = nic.received = nic.crc_errors = nic.missed = 0;
	return PXE_SUCCESS;
}

uint16_t undi_force_interrupt(void *params)
{
	(void)params;
	if (!nic.interrupts)
		return PXE_UNDI_INVALID_STATE;
	nic_force_interrupt();
	return PXE_SUCCESS;
}

uint16_t undi_get_mcast_address(void *params)
{
	struct undi_get_mcast_address *p = params;

	memset(p->MediaAddr, 0, sizeof p->MediaAddr);
	net_multicast_mac(p->InetAddr, p->MediaAddr);
	return PXE_SUCCESS;
}

uint16_t undi_get_nic_type(void *params)
{
	struct undi_get_nic_type *p = params;

	if (!probed())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	uint32_t id = pci_read(pci_bdf, PCI_ID);
	uint32_t class = pci_read(pci_bdf, PCI_CLASS_REVISION);
	uint32_t subsystem = pci_read(pci_bdf, PCI_SUBSYSTEM);
	p->NicType = NIC_PCI;
	p->Vendor_ID = id;
	p->Dev_ID = id >> 16;
	p->Base_Class = class >> 24;
	p->Sub_Class = class >> 16;
	p->Prog_Intf = class >> 8;
	p->Rev = class;
	p->BusDevFunc = pci_bdf;
	p->SubVendor_ID = subsystem;
	p->SubDevice_ID = subsystem >> 16;
	return PXE_SUCCESS;
}

uint16_t undi_get_iface_info(void *params)
{
	struct undi_get_iface_info *p = params;

	memset(p, 0, sizeof *p);
	memcpy(p->IfaceType, "DIX+802.3", 9);
	p->LinkSpeed = nic.mbit100 ? 100000000 : 10000000;
	p->ServiceFlags = IFACE_BROADCAST | IFACE_MULTICAST | IFACE_PROMISCUOUS |
			  IFACE_SET_STATION | IFACE_STATISTICS | IFACE_RESET |
			  IFACE_OPEN_CLOSE | IFACE_INTERRUPT;
	return PXE_SUCCESS;
}

static uint8_t packet_type(const uint8_t *to)
{
	if (memcmp(to, nic.mac, MAC_LENGTH) == 0)
		return PACKET_DIRECTED;
	if (memcmp(to, ethernet_broadcast, MAC_LENGTH) == 0)
		return PACKET_BROADCAST;
	return to[0] & 1 ? PACKET_MULTICAST : PACKET_PROMISCUOUS;
}

static uint8_t protocol_type(uint16_t type)
{
	switch (type) {
	case TYPE_IP:
		return P_IP;
	case TYPE_ARP:
		return P_ARP;
	case TYPE_RARP:
		return P_RARP;
	default:
		return P_UNKNOWN;
	}
}

/* next_event reports one finished transmission, else one received frame, which
 * stays in its receive buffer until the next call, else that there is no more. */
static void next_event(struct undi_isr *p)
{
	uint8_t header[ETHERNET_HEADER];
	uint16_t offset, length;

	nic_release();
	p->BufferLength = p->FrameLength = p->FrameHeaderLength = 0;
	p->FuncFlag = ISR_OUT_DONE;
	if (!nic.started)
		return;
	if (nic_reap()) {
		p->FuncFlag = ISR_OUT_TRANSMIT;
		return;
	}
	if (!nic_receive(&offset, &length))
		return;
	p->FuncFlag = ISR_OUT_RECEIVE;
	p->BufferLength = p->FrameLength = length;
	p->FrameHeaderLength = ETHERNET_HEADER;
	p->Frame = far(rx_segment, offset);
	copy_from_far(header, p->Frame, sizeof header);
	p->ProtType = protocol_type(header[12] << 8 | header[13]);
	p->PktType = packet_type(header);
}

uint16_t undi_isr(void *params)
{
	struct undi_isr *p = params;

	switch (p->FuncFlag) {
	case ISR_IN_START:
		p->FuncFlag = nic.started && nic_acknowledge() ? ISR_OUT_OURS : ISR_OUT_NOT_OURS;
		return PXE_SUCCESS;
	case ISR_IN_PROCESS:
	case ISR_IN_GET_NEXT:
		next_event(p);
		return PXE_SUCCESS;
	default:
		return PXE_UNDI_INVALID_PARAMETER;
	}
}

uint16_t stop_undi(void *params)
{
	(void)params;
	nic_stop();
	return PXE_SUCCESS;
}
