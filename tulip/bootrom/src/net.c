#include "net.h"

struct net net;

const uint8_t ethernet_broadcast[MAC_LENGTH] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

struct arp {			/* RFC 826, for Ethernet and IPv4 */
	uint16_t hardware, protocol;
	uint8_t hardware_length, protocol_length;
	uint16_t operation;
	uint8_t sender_mac[MAC_LENGTH];
	uint32_t sender_ip;
	uint8_t target_mac[MAC_LENGTH];
	uint32_t target_ip;
} __attribute__((packed));

enum { ARP_REQUEST = CONST16(1), ARP_REPLY = CONST16(2) };

struct ip {			/* RFC 791 */
	uint8_t version_length;
	uint8_t service;
	uint16_t length;
	uint16_t id;
	uint16_t fragment;
	uint8_t ttl;
	uint8_t protocol;
	uint16_t checksum;
	uint32_t source, destination;
} __attribute__((packed));

struct udp {			/* RFC 768 */
	uint16_t source_port, destination_port;
	uint16_t length;
	uint16_t checksum;
} __attribute__((packed));

enum {
	IP_VERSION_4_PLAIN = 0x45,	/* no options */
	IP_FRAGMENT_BITS = CONST16(0x3fff), /* more fragments, offset */
	IP_TTL = 64,
	PROTOCOL_UDP = 17,

	ARP_ENTRIES = 4,
	ARP_TRIES = 4,
	ARP_PATIENCE = TICKS_PER_SECOND / 2,	/* for one try */
};

/* The neighbours we talked to last. */
static struct neighbour {
	uint32_t ip;
	uint8_t mac[MAC_LENGTH];
} neighbours[ARP_ENTRIES];
static uint8_t next_neighbour;

static uint16_t next_id;

void ethernet_header(uint8_t *frame, const uint8_t *to, uint16_t type)
{
	memcpy(frame, to, MAC_LENGTH);
	memcpy(frame + MAC_LENGTH, nic.mac, MAC_LENGTH);
	frame[12] = type >> 8;
	frame[13] = type;
}

/* RFC 1112, section 6.4. */
void net_multicast_mac(uint32_t group, uint8_t *mac)
{
	mac[0] = 0x01;
	mac[1] = 0x00;
	mac[2] = 0x5e;
	mac[3] = group >> 8 & 0x7f;
	mac[4] = group >> 16;
	mac[5] = group >> 24;
}

static const uint8_t *find_neighbour(uint32_t ip)
{
	for (int i = 0; i < ARP_ENTRIES; i++)
		if (neighbours[i].ip == ip)
			return neighbours[i].mac;
	return NULL;
}

static void learn_neighbour(uint32_t ip, const uint8_t *mac)
{
	struct neighbour *n = &neighbours[next_neighbour];

	for (int i = 0; i < ARP_ENTRIES; i++)
		if (neighbours[i].ip == ip)
			n = &neighbours[i];
	if (n == &neighbours[next_neighbour])
		next_neighbour = (next_neighbour + 1) % ARP_ENTRIES;
	n->ip = ip;
	memcpy(n->mac, mac, MAC_LENGTH);
}

static bool send_arp(uint16_t operation, uint32_t sender_ip, const uint8_t *target_mac,
		     uint32_t target_ip)
{
	uint8_t *frame = nic_buffer();

	if (frame == NULL)
		return false;
	bool request = operation == ARP_REQUEST;
	ethernet_header(frame, request ? ethernet_broadcast : target_mac, TYPE_ARP);
	struct arp *arp = (struct arp *)(frame + ETHERNET_HEADER);
	arp->hardware = CONST16(1);
	arp->protocol = CONST16(TYPE_IP);
	arp->hardware_length = MAC_LENGTH;
	arp->protocol_length = 4;
	arp->operation = operation;
	memcpy(arp->sender_mac, nic.mac, MAC_LENGTH);
	arp->sender_ip = sender_ip;
	if (request)
		memset(arp->target_mac, 0, MAC_LENGTH);
	else
		memcpy(arp->target_mac, target_mac, MAC_LENGTH);
	arp->target_ip = target_ip;
	nic_send(ETHERNET_HEADER + sizeof *arp);
	return true;
}

static void receive_arp(uint16_t offset, uint16_t length)
{
	struct arp arp;

	if (length < sizeof arp)
		return;
	copy_from_far(&arp, far(rx_segment, offset), sizeof arp);
	if (arp.hardware != CONST16(1) || arp.protocol != CONST16(TYPE_IP) || net.address == 0)
		return;
	if (memcmp(arp.sender_mac, nic.mac, MAC_LENGTH) == 0)
		return;
	/* Somebody else sends with our address (RFC 5227, 2.1.1). */
	if (arp.sender_ip == net.address) {
		net.conflict = true;
		memcpy(net.rival, arp.sender_mac, MAC_LENGTH);
		return;
	}
	if (arp.target_ip != net.address)
		return;
	if (arp.sender_ip != 0)
		learn_neighbour(arp.sender_ip, arp.sender_mac);
	if (arp.operation == ARP_REQUEST)
		send_arp(ARP_REPLY, net.address, arp.sender_mac, arp.sender_ip);
}

static bool for_us(uint32_t destination)
{
	return net.address == 0 || destination == net.address ||
	       destination == IP_BROADCAST || destination == (net.address | ~net.mask);
}

/* receive_ip checks one IP packet and, if it is a UDP datagram for us, describes
 * it in d. Its header is copied first: judged and used are the same bytes. */
static bool receive_ip(uint16_t offset, uint16_t length, struct datagram *d)
{
	struct ip ip;
	struct udp udp;

	if (length < sizeof ip)
		return false;
	copy_from_far(&ip, far(rx_segment, offset), sizeof ip);
	uint16_t header = (ip.version_length & 15) * 4;
	uint16_t total = swap16(ip.length);
	if (ip.version_length >> 4 != 4 || header < sizeof ip || total > length ||
	    total < header + sizeof udp)
		return false;
	if (ip.protocol != PROTOCOL_UDP || (ip.fragment & IP_FRAGMENT_BITS) ||
	    !for_us(ip.destination))
		return false;
	if (sum16(far(rx_segment, offset), header, 0) != 0xffff)
		return false;
	copy_from_far(&udp, far(rx_segment, offset + header), sizeof udp);
	uint16_t udp_length = swap16(udp.length);
	if (udp_length < sizeof udp || udp_length > total - header)
		return false;
	if (udp.checksum != 0) {
		uint32_t pseudo = (ip.source & 0xffff) + (ip.source >> 16) +
				  (ip.destination & 0xffff) + (ip.destination >> 16) +
				  CONST16(PROTOCOL_UDP) + udp.length;
		if (sum16(far(rx_segment, offset + header), udp_length, pseudo) != 0xffff)
			return false;
	}
	d->source = ip.source;
	d->destination = ip.destination;
	d->source_port = udp.source_port;
	d->destination_port = udp.destination_port;
	d->data = offset + header + sizeof udp;
	d->length = udp_length - sizeof udp;
	return true;
}

bool net_poll(struct datagram *d)
{
	uint16_t offset, length;

	while (nic_receive(&offset, &length)) {
		if (length > ETHERNET_HEADER) {
			uint8_t type[2];
			copy_from_far(type, far(rx_segment, offset + 12), sizeof type);
			uint16_t payload = offset + ETHERNET_HEADER;
			length -= ETHERNET_HEADER;
			if (type[0] == TYPE_IP >> 8 && type[1] == (TYPE_IP & 0xff)) {
				if (receive_ip(payload, length, d))
					return true;
			} else if (type[0] == TYPE_ARP >> 8 && type[1] == (TYPE_ARP & 0xff)) {
				receive_arp(payload, length);
			}
		}
		nic_release();
	}
	return false;
}

void net_release(void)
{
	nic_release();
}

/* resolve finds the link address of a host on our network, and asks for it if
 * need be; other datagrams that arrive meanwhile are lost. */
static const uint8_t *resolve(uint32_t ip)
{
	const uint8_t *mac = find_neighbour(ip);

	for (int try = 0; mac == NULL && try < ARP_TRIES; try++) {
		struct timer t;
		struct datagram d;

		if (!send_arp(ARP_REQUEST, net.address, NULL, ip))
			return NULL;
		enable_interrupts();
		timer_set(&t, ARP_PATIENCE);
		do {
			if (net_poll(&d))
				net_release();
			mac = find_neighbour(ip);
		} while (mac == NULL && !timer_expired(&t));
	}
	return mac;
}

bool net_send(uint32_t destination, uint32_t gateway, uint16_t source_port,
	      uint16_t destination_port, farptr data, uint16_t length)
{
	uint8_t multicast[MAC_LENGTH];
	const uint8_t *mac;

	if (length > UDP_PAYLOAD_MAX)
		return false;
	if (destination == IP_BROADCAST ||
	    (net.address != 0 && destination == (net.address | ~net.mask))) {
		mac = ethernet_broadcast;
	} else if ((destination & 0xf0) == 0xe0) {
		net_multicast_mac(destination, multicast);
		mac = multicast;
	} else {
		uint32_t hop = destination;
		if ((destination ^ net.address) & net.mask) {
			hop = gateway != 0 ? gateway : net.gateway;
			if (hop == 0)
				hop = destination;	/* let a proxy ARP answer */
		}
		mac = resolve(hop);
	}
	uint8_t *frame = mac != NULL ? nic_buffer() : NULL;
	if (frame == NULL)
		return false;

	ethernet_header(frame, mac, TYPE_IP);
	struct ip *ip = (struct ip *)(frame + ETHERNET_HEADER);
	struct udp *udp = (struct udp *)(ip + 1);
	udp->source_port = source_port;
	udp->destination_port = destination_port;
	udp->length = swap16(sizeof *udp + length);
	udp->checksum = 0;
	copy_from_far(udp + 1, data, length);
	ip->version_length = IP_VERSION_4_PLAIN;
	ip->service = 0;
	ip->length = swap16(sizeof *ip + sizeof *udp + length);
	ip->id = swap16(next_id++);
	ip->fragment = 0;
	ip->ttl = IP_TTL;
	ip->protocol = PROTOCOL_UDP;
	ip->checksum = 0;
	ip->source = net.address;
	ip->destination = destination;
	ip->checksum = ~sum16(near_far(ip), sizeof *ip, 0);
	uint32_t pseudo = (ip->source & 0xffff) + (ip->source >> 16) +
			  (destination & 0xffff) + (destination >> 16) +
			  CONST16(PROTOCOL_UDP) + udp->length;
	uint16_t sum = ~sum16(near_far(udp), sizeof *udp + length, pseudo);
	udp->checksum = sum != 0 ? sum : 0xffff;
	nic_send(ETHERNET_HEADER + sizeof *ip + sizeof *udp + length);
	return true;
}

void net_probe(void)
{
	net.conflict = false;
	send_arp(ARP_REQUEST, 0, NULL, net.address);
}
