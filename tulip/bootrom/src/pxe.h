/*
 * The PXE application programming interface: Preboot Execution Environment (PXE)
 * Specification 2.1, chapters 3 and 4. Addresses and ports are in network order
 * throughout; fields are named after the specification's.
 */
#ifndef PXE_H
#define PXE_H

#include "platform.h"

/* Function numbers. */
enum {
	PXENV_START_UNDI = 0x00,
	PXENV_UNDI_STARTUP = 0x01,
	PXENV_UNDI_CLEANUP = 0x02,
	PXENV_UNDI_INITIALIZE = 0x03,
	PXENV_UNDI_RESET_ADAPTER = 0x04,
	PXENV_UNDI_SHUTDOWN = 0x05,
	PXENV_UNDI_OPEN = 0x06,
	PXENV_UNDI_CLOSE = 0x07,
	PXENV_UNDI_TRANSMIT = 0x08,
	PXENV_UNDI_SET_MCAST_ADDRESS = 0x09,
	PXENV_UNDI_SET_STATION_ADDRESS = 0x0a,
	PXENV_UNDI_SET_PACKET_FILTER = 0x0b,
	PXENV_UNDI_GET_INFORMATION = 0x0c,
	PXENV_UNDI_GET_STATISTICS = 0x0d,
	PXENV_UNDI_CLEAR_STATISTICS = 0x0e,
	PXENV_UNDI_INITIATE_DIAGS = 0x0f,
	PXENV_UNDI_FORCE_INTERRUPT = 0x10,
	PXENV_UNDI_GET_MCAST_ADDRESS = 0x11,
	PXENV_UNDI_GET_NIC_TYPE = 0x12,
	PXENV_UNDI_GET_IFACE_INFO = 0x13,
	PXENV_UNDI_ISR = 0x14,
	PXENV_STOP_UNDI = 0x15,
	PXENV_TFTP_OPEN = 0x20,
	PXENV_TFTP_CLOSE = 0x21,
	PXENV_TFTP_READ = 0x22,
	PXENV_TFTP_READ_FILE = 0x23,
	PXENV_TFTP_GET_FSIZE = 0x25,
	PXENV_UDP_OPEN = 0x30,
	PXENV_UDP_CLOSE = 0x31,
	PXENV_UDP_READ = 0x32,
	PXENV_UDP_WRITE = 0x33,
	PXENV_UNLOAD_STACK = 0x70,
	PXENV_GET_CACHED_INFO = 0x71,
	PXENV_RESTART_TFTP = 0x73,
	PXENV_START_BASE = 0x75,
	PXENV_STOP_BASE = 0x76,
};

/* What a call leaves in AX. */
enum { PXENV_EXIT_SUCCESS = 0, PXENV_EXIT_FAILURE = 1 };

/* Status codes (the specification's PXENV_STATUS_*); PXE-E messages show the
 * same numbers. */
enum {
	PXE_SUCCESS = 0x00,
	PXE_FAILURE = 0x01,
	PXE_BAD_FUNC = 0x02,
	PXE_UNSUPPORTED = 0x03,
	PXE_KEEP_UNDI = 0x04,
	PXE_OUT_OF_RESOURCES = 0x06,
	PXE_ARP_TIMEOUT = 0x11,
	PXE_UDP_CLOSED = 0x18,
	PXE_UDP_OPEN = 0x19,
	PXE_TFTP_CLOSED = 0x1a,
	PXE_TFTP_OPEN = 0x1b,
	PXE_TFTP_CANNOT_ARP_ADDRESS = 0x30,
	PXE_TFTP_OPEN_TIMEOUT = 0x32,
	PXE_TFTP_UNKNOWN_OPCODE = 0x33,
	PXE_TFTP_READ_TIMEOUT = 0x35,
	PXE_TFTP_ERROR_OPCODE = 0x36,
	PXE_TFTP_CANNOT_OPEN_CONNECTION = 0x38,
	PXE_TFTP_CANNOT_READ_FROM_CONNECTION = 0x39,
	PXE_TFTP_FILE_NOT_FOUND = 0x3b,
	PXE_TFTP_ACCESS_VIOLATION = 0x3c,
	PXE_TFTP_NO_FILESIZE = 0x3e,
	PXE_TFTP_INVALID_PACKET_SIZE = 0x3f,
	PXE_DHCP_TIMEOUT = 0x51,
	PXE_DHCP_NO_IP_ADDRESS = 0x52,
	PXE_DHCP_NO_BOOTFILE_NAME = 0x53,
	PXE_DHCP_BAD_IP_ADDRESS = 0x54,
	PXE_PROXY_NO_REPLY = 0x55,	/* this and the next only in messages */
	PXE_DHCP_REFUSED = 0x56,
	PXE_UNDI_INVALID_FUNCTION = 0x60,
	PXE_UNDI_MEDIATEST_FAILED = 0x61,
	PXE_UNDI_CANNOT_INITIALIZE_NIC = 0x63,
	PXE_UNDI_BAD_MAC_ADDRESS = 0x67,
	PXE_UNDI_INVALID_STATE = 0x6a,
	PXE_UNDI_TRANSMIT_ERROR = 0x6b,
	PXE_UNDI_INVALID_PARAMETER = 0x6c,
	PXE_BSTRAP_PROMPT_MENU = 0x74,
	PXE_BSTRAP_MISSING_LIST = 0x77,
	PXE_BSTRAP_NO_RESPONSE = 0x78,
	PXE_BSTRAP_FILE_TOO_BIG = 0x79,
	PXE_CANCELED = 0xa0,		/* BINL_CANCELED_BY_KEYSTROKE */
	PXE_BINL_NO_PXE_SERVER = 0xa1,
	PXE_LOCAL_BOOT = 0xd0,		/* ours: the user chose the next boot device */
};

#define PACKED __attribute__((packed))

enum { API_MAC_LENGTH = 16, API_FILE_NAME = 128 };

/* A segment as !PXE describes it. */
struct segment_descriptor {
	uint16_t Seg_Addr;
	uint32_t Phy_Addr;
	uint16_t Seg_Size;
} PACKED;

/* !PXE (section 4.2). */
struct pxe_structure {
	uint8_t Signature[4];
	uint8_t StructLength;
	uint8_t StructCksum;
	uint8_t StructRev;
	uint8_t reserved_1;
	farptr UNDIROMID;
	farptr BaseROMID;
	farptr EntryPointSP;
	farptr EntryPointESP;
	farptr StatusCallout;
	uint8_t reserved_2;
	uint8_t SegDescCn;
	uint16_t FirstSelector;
	struct segment_descriptor Stack, UNDIData, UNDICode, UNDICodeWrite;
	struct segment_descriptor BC_Data, BC_Code, BC_CodeWrite;
} PACKED;

/* PXENV+ (section 3.1.2). */
struct pxenv_structure {
	uint8_t Signature[6];
	uint16_t Version;
	uint8_t Length;
	uint8_t Checksum;
	farptr RMEntry;
	uint32_t PMOffset;
	uint16_t PMSelector;
	uint16_t StackSeg, StackSize;
	uint16_t BC_CodeSeg, BC_CodeSize;
	uint16_t BC_DataSeg, BC_DataSize;
	uint16_t UNDIDataSeg, UNDIDataSize;
	uint16_t UNDICodeSeg, UNDICodeSize;
	farptr PXEPtr;
} PACKED;

/* Parameter blocks. Each begins with the status the call leaves behind. */

struct start_undi {
	uint16_t Status;
	uint16_t AX, BX, DX, DI, ES;
} PACKED;

/* UNDI ROM ID (section 4.1), in the ROM. */
struct undi_rom_id {
	uint8_t Signature[4];
	uint8_t StructLength;
	uint8_t StructCksum;
	uint8_t StructRev;
	uint8_t UNDIRev[3];
	uint16_t UNDILoader;
	uint16_t StackSize;
	uint16_t DataSize;
	uint16_t CodeSize;
	uint8_t BusType[4];
} PACKED;

/* What the UNDI loader takes (section 4.1.1). */
struct undi_loader {
	uint16_t Status;
	uint16_t AX, BX, DX, DI, ES;
	uint16_t UNDI_DS, UNDI_CS;
	farptr PXEptr;
	farptr PXENVptr;
} PACKED;

struct multicast_list {
	uint16_t MCastAddrCount;
	uint8_t McastAddr[8][API_MAC_LENGTH];
} PACKED;

struct undi_reset_adapter {
	uint16_t Status;
	struct multicast_list R_Mcast_Buf;
} PACKED;

struct undi_open {
	uint16_t Status;
	uint16_t OpenFlag;
	uint16_t PktFilter;
	struct multicast_list R_Mcast_Buf;
} PACKED;

struct undi_transmit {
	uint16_t Status;
	uint8_t Protocol;
	uint8_t XmitFlag;
	farptr DestAddr;
	farptr TBD;
	uint32_t Reserved[2];
} PACKED;

enum { P_UNKNOWN, P_IP, P_ARP, P_RARP };	/* Protocol; also UNDI_ISR's ProtType */
enum { XMT_DESTADDR, XMT_BROADCAST };		/* XmitFlag */

struct undi_tbd {
	uint16_t ImmedLength;
	farptr Xmit;
	uint16_t DataBlkCount;
	struct {
		uint8_t TDPtrType;	/* 1 = segment:offset, 0 = linear */
		uint8_t TDRsvdByte;
		uint16_t TDDataLen;
		uint32_t TDDataPtr;
	} PACKED DataBlock[8];
} PACKED;

struct undi_set_mcast_address {
	uint16_t Status;
	struct multicast_list R_Mcast_Buf;
} PACKED;

struct undi_set_station_address {
	uint16_t Status;
	uint8_t StationAddress[API_MAC_LENGTH];
} PACKED;

struct undi_set_packet_filter {
	uint16_t Status;
	uint8_t filter;
} PACKED;

struct undi_get_information {
	uint16_t Status;
	uint16_t BaseIo;
	uint16_t IntNumber;
	uint16_t MaxTranUnit;
	uint16_t HwType;
	uint16_t HwAddrLen;
	uint8_t CurrentNodeAddress[API_MAC_LENGTH];
	uint8_t PermNodeAddress[API_MAC_LENGTH];
	uint16_t ROMAddress;
	uint16_t RxBufCt;
	uint16_t TxBufCt;
} PACKED;

struct undi_get_statistics {
	uint16_t Status;
	uint32_t XmtGoodFrames;
	uint32_t RcvGoodFrames;
	uint32_t RcvCRCErrors;
	uint32_t RcvResourceErrors;
} PACKED;

struct undi_get_mcast_address {
	uint16_t Status;
	uint32_t InetAddr;
	uint8_t MediaAddr[API_MAC_LENGTH];
} PACKED;

struct undi_get_nic_type {
	uint16_t Status;
	uint8_t NicType;		/* 2 = PCI */
	uint16_t Vendor_ID;
	uint16_t Dev_ID;
	uint8_t Base_Class;
	uint8_t Sub_Class;
	uint8_t Prog_Intf;
	uint8_t Rev;
	uint16_t BusDevFunc;
	uint16_t SubVendor_ID;
	uint16_t SubDevice_ID;
} PACKED;

struct undi_get_iface_info {
	uint16_t Status;
	uint8_t IfaceType[16];
	uint32_t LinkSpeed;		/* bits per second */
	uint32_t ServiceFlags;
	uint32_t Reserved[4];
} PACKED;

enum {					/* ServiceFlags (NDIS 2.0) */
	IFACE_BROADCAST = 1 << 0,
	IFACE_MULTICAST = 1 << 1,
	IFACE_PROMISCUOUS = 1 << 3,
	IFACE_SET_STATION = 1 << 4,
	IFACE_STATISTICS = 1 << 5,
	IFACE_RESET = 1 << 10,
	IFACE_OPEN_CLOSE = 1 << 11,
	IFACE_INTERRUPT = 1 << 12,
};

struct undi_isr {
	uint16_t Status;
	uint16_t FuncFlag;
	uint16_t BufferLength;
	uint16_t FrameLength;
	uint16_t FrameHeaderLength;
	farptr Frame;
	uint8_t ProtType;
	uint8_t PktType;
} PACKED;

enum { ISR_IN_START = 1, ISR_IN_PROCESS = 2, ISR_IN_GET_NEXT = 3 };
enum { ISR_OUT_OURS = 0, ISR_OUT_NOT_OURS = 1 };
enum { ISR_OUT_DONE = 0, ISR_OUT_TRANSMIT = 2, ISR_OUT_RECEIVE = 3 };
enum { PACKET_DIRECTED, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_PROMISCUOUS };

struct tftp_open_call {
	uint16_t Status;
	uint32_t ServerIPAddress;
	uint32_t GatewayIPAddress;
	char FileName[API_FILE_NAME];
	uint16_t TFTPPort;
	uint16_t PacketSize;
} PACKED;

struct tftp_read_call {
	uint16_t Status;
	uint16_t PacketNumber;
	uint16_t BufferSize;
	farptr Buffer;
} PACKED;

struct tftp_read_file_call {		/* also RESTART_TFTP */
	uint16_t Status;
	char FileName[API_FILE_NAME];
	uint32_t BufferSize;
	uint32_t Buffer;		/* linear */
	uint32_t ServerIPAddress;
	uint32_t GatewayIPAddress;
	uint32_t McastIPAddress;
	uint16_t TFTPClntPort;
	uint16_t TFTPSrvPort;
	uint16_t TFTPOpenTimeOut;
	uint16_t TFTPReopenDelay;
} PACKED;

struct tftp_get_fsize_call {
	uint16_t Status;
	uint32_t ServerIPAddress;
	uint32_t GatewayIPAddress;
	char FileName[API_FILE_NAME];
	uint32_t FileSize;
} PACKED;

struct udp_open_call {
	uint16_t Status;
	uint32_t src_ip;
} PACKED;

struct udp_read_call {
	uint16_t Status;
	uint32_t src_ip;
	uint32_t dest_ip;
	uint16_t s_port;
	uint16_t d_port;
	uint16_t buffer_size;
	farptr buffer;
} PACKED;

struct udp_write_call {
	uint16_t Status;
	uint32_t ip;
	uint32_t gw;
	uint16_t src_port;
	uint16_t dst_port;
	uint16_t buffer_size;
	farptr buffer;
} PACKED;

struct get_cached_info {
	uint16_t Status;
	uint16_t PacketType;
	uint16_t BufferSize;
	farptr Buffer;
	uint16_t BufferLimit;
} PACKED;

enum { PACKET_TYPE_DHCP_DISCOVER = 1, PACKET_TYPE_DHCP_ACK = 2, PACKET_TYPE_CACHED_REPLY = 3 };

struct unload_stack {
	uint16_t Status;
	uint8_t reserved[10];
} PACKED;

/* api.c */
extern struct pxe_structure pxe_structure;
extern struct pxenv_structure pxenv_structure;

/* api_init fills in !PXE and PXENV+; api_hook and api_unhook put us into interrupt
 * 1Ah and take us out: api_unhook reports false if somebody hooked it after us. */
void api_init(void);
void api_hook(void);
bool api_unhook(void);

/* The functions themselves take their parameter block, already copied near, and
 * return the status to leave in it. */

/* undi.c */
uint16_t start_undi(void *params);
uint16_t undi_startup(void *params);
uint16_t undi_cleanup(void *params);
uint16_t undi_initialize(void *params);
uint16_t undi_reset_adapter(void *params);
uint16_t undi_shutdown(void *params);
uint16_t undi_open(void *params);
uint16_t undi_close(void *params);
uint16_t undi_transmit(void *params);
uint16_t undi_set_mcast_address(void *params);
uint16_t undi_set_station_address(void *params);
uint16_t undi_set_packet_filter(void *params);
uint16_t undi_get_information(void *params);
uint16_t undi_get_statistics(void *params);
uint16_t undi_clear_statistics(void *params);
uint16_t undi_force_interrupt(void *params);
uint16_t undi_get_mcast_address(void *params);
uint16_t undi_get_nic_type(void *params);
uint16_t undi_get_iface_info(void *params);
uint16_t undi_isr(void *params);
uint16_t stop_undi(void *params);

/* base.c */
uint16_t base_tftp_open(void *params);
uint16_t base_tftp_close(void *params);
uint16_t base_tftp_read(void *params);
uint16_t base_tftp_read_file(void *params);
uint16_t base_tftp_get_fsize(void *params);
uint16_t base_udp_open(void *params);
uint16_t base_udp_close(void *params);
uint16_t base_udp_read(void *params);
uint16_t base_udp_write(void *params);
uint16_t base_unload_stack(void *params);
uint16_t base_get_cached_info(void *params);
uint16_t base_restart_tftp(void *params);
uint16_t base_start(void *params);
uint16_t base_stop(void *params);

#endif
