#include "tulip.h"
#include "pci.h"

/* Control and status registers: CSRn is at 8n (21140A Hardware Reference Manual,
 * "Registers"); names of fields are the manual's. */
#define CSR(n) (nic.io + 8 * (n))

enum {
	CSR0_SWR = 1 << 0,		/* software reset */
	CSR0_PBL_32 = 32 << 8,		/* bursts of 32 longwords */
	CSR0_CAL_16 = 2 << 14,		/* cache lines of 16 longwords */

	CSR5_TI = 1 << 0,		/* frame sent */
	CSR5_RI = 1 << 6,		/* frame received */
	CSR5_RU = 1 << 7,		/* no receive descriptor */
	CSR5_GTE = 1 << 11,		/* general-purpose timer expired */
	CSR5_AIS = 1 << 15,		/* abnormal interrupt summary */
	CSR5_NIS = 1 << 16,		/* normal interrupt summary */
	CSR5_OURS = CSR5_TI | CSR5_RI | CSR5_RU | CSR5_GTE,

	CSR6_SR = 1 << 1,		/* start receive */
	CSR6_PR = 1 << 6,		/* promiscuous */
	CSR6_FD = 1 << 9,		/* full duplex */
	CSR6_ST = 1 << 13,		/* start transmit */
	CSR6_CA = 1 << 17,		/* capture effect */
	CSR6_PS = 1 << 18,		/* MII/SYM port */
	CSR6_HBD = 1 << 19,		/* no heartbeat */
	CSR6_SF = 1 << 21,		/* store and forward */
	CSR6_TTM = 1 << 22,		/* 10 Mb/s thresholds */
	CSR6_PCS = 1 << 23,		/* SYM: physical coding sublayer */
	CSR6_SCR = 1 << 24,		/* SYM: scrambler */
	CSR6_MBO = 1 << 25,		/* must be one */

	CSR9_SRCS = 1 << 0,		/* serial ROM: chip select, clock, in, out */
	CSR9_SRSK = 1 << 1,
	CSR9_SRDI = 1 << 2,
	CSR9_SRDO = 1 << 3,
	CSR9_SR = 1 << 11,		/* serial ROM select */
	CSR9_RD = 1 << 14,
	CSR9_MDC = 1 << 16,		/* MII management: clock, out, direction, in */
	CSR9_MDO = 1 << 17,
	CSR9_MMD = 1 << 18,
	CSR9_MDI = 1 << 19,

	CSR8_MISSED = 0xffff,
};

/* Descriptors (manual, "Descriptor Lists and Data Buffers"). */
struct descriptor {
	uint32_t status;
	uint32_t control;
	uint32_t buffer1, buffer2;
};

#define DES0_OWN (1u << 31)		/* the chip's */
enum {
	RDES0_CE = 1 << 1,		/* CRC error */
	RDES0_TL = 1 << 7,		/* long frame, e.g. tagged */
	RDES0_LS = 1 << 8,		/* last descriptor of the frame */
	RDES0_FS = 1 << 9,		/* first */
	RDES0_ERRORS = 1 << 1 | 1 << 4 | 1 << 6 | 1 << 11 | 1 << 14, /* CE RW CS RF DE */
	RDES0_FL_SHIFT = 16,		/* frame length with FCS */
	RDES0_FL = 0x3fff,
	RDES1_RER = 1 << 25,		/* end of ring */

	TDES1_TER = 1 << 25,		/* end of ring */
	TDES1_SET = 1 << 27,		/* set-up frame, perfect filtering */
	TDES1_FS = 1 << 29,
	TDES1_LS = 1 << 30,
};
#define TDES1_IC (1u << 31)		/* interrupt on completion */

enum {
	FCS_LENGTH = 4,
	TX_BUFFERS = 4,
	SETUP_LENGTH = 192,		/* 16 addresses of 3 longwords */
	SETUP_ADDRESSES = 16,

	SROM_MAC_WORD = 10,		/* bytes 20-25 of the serial ROM */
	SROM_READ = 6 << 6,		/* start bit, opcode 10, 6 address bits follow */
	SROM_COMMAND_BITS = 9,

	MII_BMSR = 1,			/* status register (IEEE 802.3, clause 22.2.4) */
	MII_ANLPAR = 5,			/* link partner ability */
	BMSR_LINK = 1 << 2,
	LPA_100 = 1 << 7 | 1 << 8,
	LPA_FULL = 1 << 6 | 1 << 8,
	PHY_NONE = 0xff,
	PHY_UNKNOWN = 0xfe,
};

struct nic nic;

static volatile struct descriptor rx_ring[RX_BUFFERS] __attribute__((aligned(16)));
static volatile struct descriptor tx_ring[TX_BUFFERS] __attribute__((aligned(16)));
static uint8_t tx_buffer[TX_BUFFERS][FRAME_MAX + 6] __attribute__((aligned(4)));
static uint8_t rx_next;		/* the descriptor the next frame arrives in */
static uint8_t rx_burst;	/* frames released since the ring was last seen empty */
static bool holding;		/* the oldest frame was given out and not released */
static uint8_t tx_next;		/* the descriptor the next frame leaves from */
static uint8_t tx_oldest;	/* the oldest one not reaped */
static uint8_t tx_unreaped;
static uint8_t phy = PHY_UNKNOWN;

static void reset(void)
{
	/* The port is selected first, so that the reset acts on its logic. */
	outl(CSR(6), CSR6_PS);
	outl(CSR(0), CSR0_SWR);
	inl(CSR(0));		/* longer than the 50 PCI clocks the reset takes */
	outl(CSR(0), CSR0_PBL_32 | CSR0_CAL_16);
}

/* srom_read reads one word of the 93C46. The device takes a bit, and shows one,
 * at each rising edge of the clock. */
static uint16_t srom_read(uint8_t address)
{
	const uint32_t select = CSR9_SR | CSR9_RD | CSR9_SRCS;
	uint16_t command = SROM_READ | address, word = 0;

	outl(CSR(9), CSR9_SR | CSR9_RD);
	for (int bit = SROM_COMMAND_BITS - 1; bit >= 0; bit--) {
		uint32_t data = command >> bit & 1 ? CSR9_SRDI : 0;
		outl(CSR(9), select | data);
		outl(CSR(9), select | data | CSR9_SRSK);
	}
	for (int bit = 0; bit < 16; bit++) {
		outl(CSR(9), select);
		outl(CSR(9), select | CSR9_SRSK);
		word = word << 1 | (inl(CSR(9)) & CSR9_SRDO ? 1 : 0);
	}
	outl(CSR(9), 0);
	return word;
}

static void mdio_clock(uint32_t lines)
{
	outl(CSR(9), lines);
	outl(CSR(9), lines | CSR9_MDC);
}

/* mdio_read reads a PHY register (IEEE 802.3, clause 22.2.4.5); all ones if no
 * PHY has that address. */
static uint16_t mdio_read(uint8_t address, uint8_t reg)
{
	uint16_t command = 6 << 10 | address << 5 | reg; /* start 01, read 10 */
	uint32_t value = 0;

	for (int bit = 0; bit < 32; bit++)
		mdio_clock(CSR9_MDO);
	for (int bit = 13; bit >= 0; bit--)
		mdio_clock(command >> bit & 1 ? CSR9_MDO : 0);
	/* Turnaround (2), data (16): sampled before the edge that moves on. */
	for (int bit = 0; bit < 19; bit++) {
		outl(CSR(9), CSR9_MMD);
		value = value << 1 | (inl(CSR(9)) & CSR9_MDI ? 1 : 0);
		outl(CSR(9), CSR9_MMD | CSR9_MDC);
	}
	return value >> 1;
}

static void find_phy(void)
{
	/* Address 1 first: most boards, and ours. */
	for (uint8_t i = 1; i <= 32; i++) {
		uint16_t status = mdio_read(i & 31, MII_BMSR);
		if (status != 0xffff && status != 0) {
			phy = i & 31;
			return;
		}
	}
	phy = PHY_NONE;
}

bool nic_probe(void)
{
	uint16_t bdf = pci_bdf;

	if (bdf == PCI_BDF_UNKNOWN)
		bdf = pci_bdf = pci_find();
	if (bdf == PCI_BDF_UNKNOWN ||
	    pci_read(bdf, PCI_ID) != ((uint32_t)ROM_PCI_DEVICE << 16 | ROM_PCI_VENDOR))
		return false;
	uint16_t command = pci_read(bdf, PCI_COMMAND);
	pci_write_word(bdf, PCI_COMMAND, command | PCI_COMMAND_IO | PCI_COMMAND_MASTER);
	nic.io = pci_read(bdf, PCI_BAR0) & 0xff80;
	nic.irq = pci_read(bdf, PCI_INTERRUPT_LINE);
	reset();
	for (int i = 0; i < 3; i++) {
		uint16_t word = srom_read(SROM_MAC_WORD + i);
		nic.permanent[2 * i] = word;
		nic.permanent[2 * i + 1] = word >> 8;
	}
	memcpy(nic.mac, nic.permanent, MAC_LENGTH);
	nic.filter = FILTER_DIRECTED | FILTER_BROADCAST;
	return true;
}

bool nic_link(void)
{
	if (phy == PHY_UNKNOWN)
		find_phy();
	nic.mbit100 = nic.full_duplex = true;
	if (phy == PHY_NONE)
		return true;
	/* The link bit latches failures: a second look shows the present. */
	if (!(mdio_read(phy, MII_BMSR) & BMSR_LINK) &&
	    !(mdio_read(phy, MII_BMSR) & BMSR_LINK))
		return false;
	uint16_t partner = mdio_read(phy, MII_ANLPAR);
	if (partner != 0 && partner != 0xffff) {
		nic.mbit100 = partner & LPA_100;
		nic.full_duplex = partner & LPA_FULL;
	}
	return true;
}

static uint32_t operation_mode(void)
{
	uint32_t mode = CSR6_MBO | CSR6_HBD | CSR6_SF | CSR6_CA | CSR6_PS;

	if (phy == PHY_NONE)
		mode |= CSR6_PCS | CSR6_SCR;
	if (!nic.mbit100)
		mode |= CSR6_TTM;
	if (nic.full_duplex)
		mode |= CSR6_FD;
	if (nic.filter & FILTER_PROMISCUOUS)
		mode |= CSR6_PR;
	return mode | CSR6_SR | CSR6_ST;
}

static void submit(uint32_t control, uint16_t length)
{
	volatile struct descriptor *d = &tx_ring[tx_next];

	if (tx_next == TX_BUFFERS - 1)
		control |= TDES1_TER;
	d->control = control | length;
	d->status = DES0_OWN;
	tx_next = (tx_next + 1) % TX_BUFFERS;
	if (tx_unreaped < TX_BUFFERS)
		tx_unreaped++;
	else
		tx_oldest = (tx_oldest + 1) % TX_BUFFERS;
}

static bool wait_owned(volatile struct descriptor *d)
{
	struct timer t;

	timer_set(&t, TICKS_PER_SECOND);
	/* The iteration count bounds the wait where the timer's interrupt is off. */
	for (uint32_t n = 0; d->status & DES0_OWN; n++)
		if (timer_expired(&t) || n > 50000000)
			return false;
	return true;
}

/* queue_setup puts a set-up frame into the transmit ring: perfect filtering, an
 * address being three longwords whose low halves hold two bytes each. */
static volatile struct descriptor *queue_setup(void)
{
	volatile struct descriptor *d = &tx_ring[tx_next];
	uint8_t address[SETUP_ADDRESSES][MAC_LENGTH];
	uint8_t *frame = tx_buffer[tx_next];

	for (int i = 0; i < SETUP_ADDRESSES; i++)
		memcpy(address[i], nic.mac, MAC_LENGTH);
	if (nic.filter & FILTER_BROADCAST)
		memset(address[1], 0xff, MAC_LENGTH);
	memcpy(address[2], nic.multicast, nic.multicasts * MAC_LENGTH);
	for (int i = 0; i < SETUP_LENGTH / 4; i++) {
		const uint8_t *pair = (const uint8_t *)address + 2 * i;
		frame[4 * i] = frame[4 * i + 2] = pair[0];
		frame[4 * i + 1] = frame[4 * i + 3] = pair[1];
	}
	submit(TDES1_SET, SETUP_LENGTH);
	return d;
}

/* finish_setup waits for a set-up frame and forgets it: it was no transmission. */
static bool finish_setup(volatile struct descriptor *d)
{
	bool ok = wait_owned(d);

	tx_oldest = tx_next;
	tx_unreaped = 0;
	return ok;
}

bool nic_start(void)
{
	reset();
	uint32_t base = (uint32_t)rx_segment << 4;
	for (int i = 0; i < RX_BUFFERS; i++) {
		rx_ring[i].control = RX_BUFFER_SIZE | (i == RX_BUFFERS - 1 ? RDES1_RER : 0);
		rx_ring[i].buffer1 = base + i * RX_BUFFER_SIZE;
		rx_ring[i].buffer2 = 0;
		rx_ring[i].status = DES0_OWN;
	}
	for (int i = 0; i < TX_BUFFERS; i++) {
		tx_ring[i].status = 0;
		tx_ring[i].buffer1 = near_linear(tx_buffer[i]);
		tx_ring[i].buffer2 = 0;
	}
	rx_next = rx_burst = tx_next = tx_oldest = tx_unreaped = 0;
	holding = false;
	outl(CSR(3), near_linear((void *)rx_ring));
	outl(CSR(4), near_linear((void *)tx_ring));
	volatile struct descriptor *setup = queue_setup();
	outl(CSR(6), operation_mode());
	nic.started = true;
	nic.interrupts = false;
	return finish_setup(setup);
}

void nic_stop(void)
{
	if (nic.io != 0)
		reset();
	nic.started = nic.interrupts = false;
}

bool nic_refilter(void)
{
	if (!nic.started)
		return true;
	if (!wait_owned(&tx_ring[tx_next]))
		return false;
	volatile struct descriptor *setup = queue_setup();
	outl(CSR(6), operation_mode());
	outl(CSR(1), 0);
	return finish_setup(setup);
}

/* advance gives the oldest buffer back to the chip. */
static void advance(void)
{
	rx_ring[rx_next].status = DES0_OWN;
	rx_next = (rx_next + 1) % RX_BUFFERS;
	if (rx_burst < RX_BUFFERS)
		rx_burst++;
}

bool nic_receive(uint16_t *offset, uint16_t *length)
{
	static uint32_t last_demand;

	for (;;) {
		uint32_t status = rx_ring[rx_next].status;
		if (status & DES0_OWN) {
			/* Empty. If the chip may have found the ring full, or nothing
			 * came for a tick, tell it that there is room again. */
			bool full = rx_burst >= RX_BUFFERS;
			rx_burst = 0;
			if (full || last_demand != ticks()) {
				last_demand = ticks();
				outl(CSR(2), 0);
			}
			return false;
		}
		uint16_t n = (status >> RDES0_FL_SHIFT) & RDES0_FL;
		bool whole = (status & (RDES0_FS | RDES0_LS)) == (RDES0_FS | RDES0_LS);
		if (whole && !(status & RDES0_ERRORS) && n > FCS_LENGTH && n <= RX_BUFFER_SIZE) {
			nic.received++;
			*length = n - FCS_LENGTH;
			last_demand = ticks();
			holding = true;
			*offset = rx_next * RX_BUFFER_SIZE;
			return true;
		}
		if (status & RDES0_CE)
			nic.crc_errors++;
		advance();
	}
}

void nic_release(void)
{
	if (holding)
		advance();
	holding = false;
}

uint8_t *nic_buffer(void)
{
	return wait_owned(&tx_ring[tx_next]) ? tx_buffer[tx_next] : NULL;
}

void nic_send(uint16_t length)
{
	if (length < FRAME_MIN) {
		memset(tx_buffer[tx_next] + length, 0, FRAME_MIN - length);
		length = FRAME_MIN;
	}
	submit(TDES1_FS | TDES1_LS | (nic.interrupts ? TDES1_IC : 0), length);
	outl(CSR(1), 0);
	nic.sent++;
}

bool nic_reap(void)
{
	if (tx_unreaped == 0 || (tx_ring[tx_oldest].status & DES0_OWN))
		return false;
	tx_oldest = (tx_oldest + 1) % TX_BUFFERS;
	tx_unreaped--;
	return true;
}

void nic_enable_interrupts(void)
{
	nic.interrupts = true;
	outl(CSR(7), CSR5_NIS | CSR5_AIS | CSR5_OURS);
}

void nic_disable_interrupts(void)
{
	nic.interrupts = false;
	outl(CSR(7), 0);
}

bool nic_acknowledge(void)
{
	/* A finished descriptor is proof enough, and saves reading the register:
	 * the chip writes it back before it asserts INTA. */
	bool work = !(rx_ring[rx_next].status & DES0_OWN) ||
		    (tx_unreaped > 0 && !(tx_ring[tx_oldest].status & DES0_OWN));

	if (!work && !(inl(CSR(5)) & CSR5_OURS))
		return false;
	if (nic.interrupts || !work)
		outl(CSR(5), CSR5_NIS | CSR5_AIS | CSR5_OURS);
	return true;
}

void nic_force_interrupt(void)
{
	outl(CSR(11), 1);
}

void nic_count_missed(void)
{
	if (nic.started)
		nic.missed += inl(CSR(8)) & CSR8_MISSED;
}
