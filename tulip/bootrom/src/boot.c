/* A boot from the network, from the bootstrap entry vector to the boot program's
 * return: what the user sees, and what happens when something fails. */
#include "base.h"
#include "console.h"
#include "dhcp.h"
#include "pxe.h"
#include "tulip.h"

enum { LINK_SECONDS = 5 };

static const struct message {
	uint8_t status;
	const char *text;
} messages[] = {
	{ PXE_TFTP_CANNOT_ARP_ADDRESS, "The TFTP server does not answer to ARP." },
	{ PXE_TFTP_OPEN_TIMEOUT, "TFTP open timeout." },
	{ PXE_TFTP_UNKNOWN_OPCODE, "TFTP unknown opcode." },
	{ PXE_TFTP_READ_TIMEOUT, "TFTP read timeout." },
	{ PXE_TFTP_ERROR_OPCODE, "Error received from TFTP server." },
	{ PXE_TFTP_CANNOT_READ_FROM_CONNECTION, "TFTP cannot read from connection: the file came incomplete." },
	{ PXE_TFTP_FILE_NOT_FOUND, "TFTP error: file not found." },
	{ PXE_TFTP_ACCESS_VIOLATION, "TFTP error: access violation." },
	{ PXE_TFTP_INVALID_PACKET_SIZE, "TFTP invalid packet size." },
	{ PXE_DHCP_TIMEOUT, "No DHCP or proxyDHCP offers were received." },
	{ PXE_DHCP_NO_IP_ADDRESS, "ProxyDHCP offers were received. No DHCP offers were received." },
	{ PXE_DHCP_NO_BOOTFILE_NAME, "No boot filename received." },
	{ PXE_DHCP_BAD_IP_ADDRESS, "The address offered is already in use." },
	{ PXE_PROXY_NO_REPLY, "ProxyDHCP service did not reply to request on port 4011." },
	{ PXE_DHCP_REFUSED, "The DHCP server refused the address it had offered." },
	{ PXE_UNDI_MEDIATEST_FAILED, "Media test failure, check cable." },
	{ PXE_UNDI_CANNOT_INITIALIZE_NIC, "Error while initializing the NIC." },
	{ PXE_UNDI_TRANSMIT_ERROR, "Error while transmitting." },
	{ PXE_BSTRAP_PROMPT_MENU, "Bad or missing PXE menu and/or prompt information." },
	{ PXE_BSTRAP_NO_RESPONSE, "Could not locate boot server." },
	{ PXE_BSTRAP_FILE_TOO_BIG, "NBP is too big to fit in free base memory." },
	{ PXE_CANCELED, "Network boot canceled by keystroke." },
};

void put(char c)
{
	screen_put(c);
}

static void explain(uint16_t status)
{
	const char *text = "Network boot failed.";

	for (unsigned i = 0; i < sizeof messages / sizeof messages[0]; i++)
		if (messages[i].status == status)
			text = messages[i].text;
	/* Numbers above 9Fh are PXE-EA0 and so on: the same two digits. */
	print("\nPXE-E%c%c: %s\n", "0123456789ABCDEF"[status >> 4 & 15],
	      "0123456789ABCDEF"[status & 15], text);
}

static uint16_t bring_up(void)
{
	struct timer timer;

	if (!nic_probe())
		return PXE_UNDI_CANNOT_INITIALIZE_NIC;
	print("\nPolder PXE 2.1, DECchip 21140 at PCI %b:%b.%d, MAC %m\n", pci_bdf >> 8,
	      pci_bdf >> 3 & 31, pci_bdf & 7, nic.mac);
	timer_set(&timer, LINK_SECONDS * TICKS_PER_SECOND);
	while (!nic_link()) {
		if (canceled())
			return PXE_CANCELED;
		if (timer_expired(&timer))
			return PXE_UNDI_MEDIATEST_FAILED;
	}
	return nic_start() ? PXE_SUCCESS : PXE_UNDI_CANNOT_INITIALIZE_NIC;
}

static void show_progress(uint32_t done)
{
	static uint32_t shown;

	/* Every 64 KiB: the screen is slow. */
	if (done >> 16 != shown >> 16)
		print(".");
	shown = done;
}

static uint16_t load_nbp(const struct boot_choice *choice)
{
	struct tftp_file f = {
		.server = choice->server,
		.block_size = TFTP_BLOCK_MAX,
		.name = choice->file,
	};
	uint32_t size = ((uint32_t)low_word(BDA_MEMORY_KB) << 10) - NBP_ADDRESS;

	print("TFTP %i: %s ", choice->server, choice->file);
	uint16_t status = load_file(&f, NBP_ADDRESS, &size, show_progress);
	if (status == PXE_SUCCESS && net.conflict)
		status = PXE_DHCP_BAD_IP_ADDRESS;
	if (status == PXE_SUCCESS)
		print(" %u bytes\n", size);
	return status;
}

static uint16_t prepare(void)
{
	struct boot_choice choice;

	uint16_t status = bring_up();
	if (status != PXE_SUCCESS)
		return status;
	print("DHCP (Esc to skip) ");
	status = dhcp_configure(&choice);
	if (net.address != 0)
		print("\nAddress %i, mask %i", net.address, net.mask);
	if (net.gateway != 0)
		print(", gateway %i", net.gateway);
	print("\n");
	return status == PXE_SUCCESS ? load_nbp(&choice) : status;
}

/* boot_from_network is called by the bootstrap entry vector; when it returns, the
 * BIOS tries its next device. */
void boot_from_network(void)
{
	api_init();
	keyboard_is_ours = true;
	uint16_t status = prepare();
	keyboard_is_ours = false;
	if (status == PXE_SUCCESS) {
		api_hook();
		status = run_nbp();
		print("\nThe boot program returned %x.\n", status);
	} else if (status != PXE_LOCAL_BOOT) {
		if (tftp_error_text()[0] != 0)
			print("\nThe server says: %s", tftp_error_text());
		explain(status);
	}
	if (net.conflict) {
		print("%i belongs to %m.\n", net.address, net.rival);
		dhcp_decline();
	}
	nic_stop();
	api_unhook();
	print("PXE-M0F: Exiting Polder PXE.\n");
}
