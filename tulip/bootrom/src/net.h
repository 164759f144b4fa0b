/*
 * Ethernet, ARP, IPv4 and UDP, as far as a boot client needs them: one address,
 * one frame at a time, no fragments. Addresses and ports are in network order.
 */
#ifndef NET_H
#define NET_H

#include "tulip.h"

/* What we know of the network. address is 0 until DHCP gave us one. */
struct net {
	uint32_t address, mask, gateway;
	bool conflict;			/* somebody else uses our address ... */
	uint8_t rival[MAC_LENGTH];	/* ... and this is who */
};

extern struct net net;

#define IP_BROADCAST 0xffffffff

/* A received datagram. The payload lies in the receive buffers at FS:data and is
 * valid until net_release. */
struct datagram {
	uint32_t source, destination;
	uint16_t source_port, destination_port;
	uint16_t data;
	uint16_t length;
};

/* net_poll handles what has arrived and gives the next UDP datagram for us, if
 * there is one; net_release hands its buffer back. */
bool net_poll(struct datagram *d);
void net_release(void);

/* net_send sends a datagram; a gateway of 0 means the one of net. It reports
 * false if nobody answers for the next hop or the adapter does not send. */
bool net_send(uint32_t destination, uint32_t gateway, uint16_t source_port,
	      uint16_t destination_port, farptr data, uint16_t length);

/* net_probe asks whether anybody uses our new address; an answer sets conflict. */
void net_probe(void);

/* net_multicast_mac writes the link address of an IPv4 multicast group. */
void net_multicast_mac(uint32_t group, uint8_t *mac);

/* ethernet_header writes a header for a frame of the given type (host order). */
enum { ETHERNET_HEADER = 14, TYPE_IP = 0x0800, TYPE_ARP = 0x0806, TYPE_RARP = 0x8035 };
void ethernet_header(uint8_t *frame, const uint8_t *to, uint16_t type);

/* UDP payload that fits into a frame. */
enum { UDP_PAYLOAD_MAX = FRAME_MAX - ETHERNET_HEADER - 20 - 8 };

extern const uint8_t ethernet_broadcast[MAC_LENGTH];

#endif
