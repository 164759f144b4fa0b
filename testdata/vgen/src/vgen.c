// vgen sends Ethernet frames between two DPDK ports, A and B, and judges what arrives at the other one. What is under
// test is whatever connects the two: a switch that is the back end of two virtio-user devices, or a bridge between two
// TAP devices.
//
//	vgen EAL-OPTION... -- OPTION...
//
//	--mode verify    nothing but the verification below (the default)
//	--mode uni       as many frames as fit from A to B: the rate at B
//	--mode bidi      the same in both directions at once: the sum of both rates
//	--mode rtt       one frame from A to B, then one back, over and over: the time of both
//	--size N         bytes of a frame without its check sequence; 0, the default, is a different one for each frame and
//	                 for --mode verify alone
//	--seconds S      how long to measure, default 1
//	--frames N       how many frames to verify in each direction, default 20000
//	--macs N         how many pairs of addresses talk, default 1
//	--queues N       pairs of queues of each port, default 1: verification uses them all, a measurement the first
//	--scatter        verified frames are sent in up to three pieces
//	--room N         bytes of a receive buffer, default 2048: with less, frames arrive in several
//
// Everything happens on one core, in two steps. First every byte is verified: both directions send frames that
// differ in every byte, and each must arrive once, whole and unchanged, and in order with those of the same queue and
// addresses. No more are under way than the receiver has room for, so none may be lost either. Then the measurement
// runs. The result is one JSON object:
//
//	{"verified": FRAMES, "sent": N, "received": N, "windows": [...], "p50": NS, "p99": NS}
//
// A window is 20 ms of the measurement: frames that arrived, per second; or the median of the round trips, in
// nanoseconds. Exit status 0 says that the verification found nothing wrong and the measurement could be made.

#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_udp.h>

enum {
	RING = 256,       // descriptors of a ring: what virtio-user takes by default
	BURST = 32,       // frames of a call
	POOL = 1023,      // buffers a port sends from, few enough to stay in a core's second-level cache
	MAX_FRAME = 1514, // bytes
	MIN_FRAME = 60,
	MAX_QUEUES = 8,
	HEADERS = RTE_ETHER_HDR_LEN + sizeof(struct rte_ipv4_hdr) + sizeof(struct rte_udp_hdr),
	UDP_PORT = 4789,
	MAX_WINDOWS = 16384,
	MAX_TRIPS = 1 << 22,
};

// A frame with this number only asks whether there is a way.
#define PROBE UINT64_MAX

static const char *mode = "verify";
static unsigned size, frames = 20000, macs = 1, queues = 1, room = 2048;
static double seconds = 1;
static bool scatter;

static volatile sig_atomic_t stopped; // by a signal
static uint64_t hz;           // of the time-stamp counter

// side is a port, and the frames that it sends. Sides are 0 for A and 1 for B.
static struct side {
	struct rte_mempool *pool; // of the frames it sends
	struct rte_mbuf *pending[MAX_QUEUES][BURST];
	unsigned npending[MAX_QUEUES];
	uint64_t sent[MAX_QUEUES];     // frames put on each queue's ring
	uint64_t received[MAX_QUEUES]; // of those, by the other side
	uint64_t talked[MAX_QUEUES][POOL]; // of those, between each pair of addresses
	bool reached;                  // a probe of its has been received
} sides[2];

static struct rte_mempool *receive_pool;

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

static void __rte_format_printf(1, 2) die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "vgen: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	exit(1);
}

// mix makes of a number another one in which every bit depends on all of its bits.
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

// length is the size of a verified frame.
static unsigned length(uint64_t number)
{
	return size ? size : MIN_FRAME + mix(number) % (MAX_FRAME - MIN_FRAME + 1);
}

static void address(uint8_t *mac, unsigned side, unsigned i)
{
	const uint8_t bytes[6] = {0x02, 0, 0, side ? 0x0b : 0x0a, i >> 8, i};
	memcpy(mac, bytes, sizeof bytes);
}

// tag is the beginning of a frame's payload.
struct tag {
	uint32_t queue;
	uint64_t number;
} __rte_packed;

// write_frame makes the frame of this number that the side sends on a queue: n bytes, all of which follow from the
// arguments. Each queue's frames are a UDP flow of their own.
static void write_frame(uint8_t *p, unsigned n, unsigned side, unsigned queue, uint64_t number)
{
	unsigned i = number % macs;
	address(p, !side, i);
	address(p + 6, side, i);
	p[12] = RTE_ETHER_TYPE_IPV4 >> 8;
	p[13] = RTE_ETHER_TYPE_IPV4 & 0xff;

	struct rte_ipv4_hdr ip = {
		.version_ihl = RTE_IPV4_VHL_DEF,
		.total_length = rte_cpu_to_be_16(n - RTE_ETHER_HDR_LEN),
		.time_to_live = 64,
		.next_proto_id = IPPROTO_UDP,
		.src_addr = rte_cpu_to_be_32(RTE_IPV4(10, 9, 0, 1 + side)),
		.dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, 9, 0, 1 + !side)),
	};
	ip.hdr_checksum = rte_ipv4_cksum(&ip);
	memcpy(p + RTE_ETHER_HDR_LEN, &ip, sizeof ip);

	struct rte_udp_hdr udp = {
		.src_port = rte_cpu_to_be_16(UDP_PORT + queue),
		.dst_port = rte_cpu_to_be_16(UDP_PORT),
		.dgram_len = rte_cpu_to_be_16(n - RTE_ETHER_HDR_LEN - sizeof ip),
	};
	memcpy(p + RTE_ETHER_HDR_LEN + sizeof ip, &udp, sizeof udp);

	struct tag tag = {queue, number};
	memcpy(p + HEADERS, &tag, sizeof tag);
	uint64_t state = mix(number ^ (uint64_t)side << 63 ^ (uint64_t)queue << 48);
	for (unsigned at = HEADERS + sizeof tag; at < n; at += sizeof state) {
		state = mix(state + 1);
		memcpy(p + at, &state, RTE_MIN(n - at, sizeof state));
	}
}

// transmit puts what is pending on a queue's ring, as far as it fits.
static inline void transmit(unsigned side, unsigned queue)
{
	struct side *s = &sides[side];
	unsigned n = rte_eth_tx_burst(side, queue, s->pending[queue], s->npending[queue]);
	s->sent[queue] += n;
	s->npending[queue] -= n;
	if (n != 0 && s->npending[queue] != 0)
		memmove(s->pending[queue], s->pending[queue] + n, s->npending[queue] * sizeof s->pending[0][0]);
}

// cut moves the end of a frame, n bytes long, from the one buffer it is in to further ones.
static bool cut(struct rte_mbuf *head, unsigned n, uint64_t number)
{
	unsigned pieces = 1 + number % 3;
	struct rte_mbuf *last = head;
	for (unsigned i = 1, from = 0; i < pieces; i++) {
		struct rte_mbuf *next = rte_pktmbuf_alloc(head->pool);
		if (!next)
			return false;
		from += 1 + mix(number + i) % (n / 3);
		next->data_len = n - from;
		memcpy(rte_pktmbuf_mtod(next, void *), rte_pktmbuf_mtod_offset(head, void *, from), n - from);
		last->data_len -= n - from;
		last->next = next;
		last = next;
		head->nb_segs++;
	}
	return true;
}

// append makes the frame of this number pending. There must be room among the pending ones.
static bool append(unsigned side, unsigned queue, uint64_t number)
{
	struct side *s = &sides[side];
	struct rte_mbuf *m = rte_pktmbuf_alloc(s->pool);
	if (!m)
		return false;
	m->data_len = m->pkt_len = length(number);
	write_frame(rte_pktmbuf_mtod(m, uint8_t *), m->pkt_len, side, queue, number);
	if (scatter && number != PROBE && !cut(m, m->pkt_len, number)) {
		rte_pktmbuf_free(m);
		return false;
	}
	s->pending[queue][s->npending[queue]++] = m;
	return true;
}

static void dump(const char *what, const uint8_t *p, unsigned n)
{
	fprintf(stderr, "%s:", what);
	for (unsigned i = 0; i < n; i++)
		fprintf(stderr, i % 32 ? " %02x" : "\n  %02x", p[i]);
	fprintf(stderr, "\n");
}

// judge verifies a frame that a side has received. What the generator has not sent, a bridge's own for instance, is
// no matter.
static void judge(unsigned side, const struct rte_mbuf *m)
{
	uint8_t got[MAX_FRAME], want[MAX_FRAME];
	unsigned n = rte_pktmbuf_pkt_len(m), from = !side;
	struct tag tag;
	if (n < HEADERS + sizeof tag || n > MAX_FRAME)
		return;
	const uint8_t *p = rte_pktmbuf_read(m, 0, n, got);
	const uint8_t port[2] = {UDP_PORT >> 8, UDP_PORT & 0xff};
	if (memcmp(p + HEADERS - 6, port, sizeof port) != 0)
		return;
	memcpy(&tag, p + HEADERS, sizeof tag);
	if (tag.number == PROBE) {
		sides[from].reached = true;
		return;
	}
	if (tag.queue >= queues)
		die("%c received a frame of queue %u", 'A' + side, tag.queue);
	// A switch may keep the order of each pair's frames only.
	unsigned pair = tag.number % macs;
	uint64_t number = pair + macs * sides[from].talked[tag.queue][pair]++;
	sides[from].received[tag.queue]++;
	write_frame(want, length(number), from, tag.queue, number);
	if (n == length(number) && memcmp(p, want, n) == 0)
		return;
	dump("received", p, n);
	dump("expected", want, length(number));
	die("%c received frame %" PRIu64 " of %u bytes on queue %u, want frame %" PRIu64 " of %u bytes, unchanged",
		'A' + side, tag.number, n, tag.queue, number, length(number));
}

// receive takes what has arrived at a side, from all queues, and judges it.
static void receive(unsigned side)
{
	struct rte_mbuf *m[BURST];
	for (unsigned queue = 0; queue < queues; queue++) {
		unsigned n = rte_eth_rx_burst(side, queue, m, BURST);
		for (unsigned i = 0; i < n; i++)
			judge(side, m[i]);
		rte_pktmbuf_free_bulk(m, n);
	}
}

// find_way sends probes until one has arrived at each side.
static void find_way(void)
{
	uint64_t end = rte_rdtsc() + 30 * hz, next = 0;
	while (!(sides[0].reached && sides[1].reached)) {
		uint64_t now = rte_rdtsc();
		if (now > end || stopped)
			die("no frame arrives%s%s", sides[0].reached ? "" : " from A at B", sides[1].reached ? "" : " from B at A");
		for (unsigned side = 0; side < 2; side++) {
			if (now > next && sides[side].npending[0] == 0)
				append(side, 0, PROBE);
			transmit(side, 0);
			receive(side);
		}
		if (now > next)
			next = now + hz / 100;
	}
	for (uint64_t quiet = rte_rdtsc() + hz / 20; rte_rdtsc() < quiet;)
		for (unsigned side = 0; side < 2; side++) {
			transmit(side, 0);
			receive(side);
		}
	for (unsigned side = 0; side < 2; side++)
		memset(sides[side].sent, 0, sizeof sides[side].sent);
}

// verify sends frames in both directions on all queues and judges all of them.
static void verify(void)
{
	unsigned buffers = 1 + (MAX_FRAME + 64) / room;            // that a frame takes, at most
	unsigned under_way = RTE_MAX(RING / 2 / buffers / queues, 1u); // of a queue's frames
	uint64_t progress = rte_rdtsc(), before = 0;
	for (;;) {
		uint64_t done = 0;
		for (unsigned side = 0; side < 2; side++) {
			struct side *s = &sides[side];
			for (unsigned queue = 0; queue < queues; queue++) {
				for (;;) {
					uint64_t number = s->sent[queue] + s->npending[queue];
					if (s->npending[queue] == BURST || number == frames || number - s->received[queue] >= under_way ||
					    !append(side, queue, number))
						break;
				}
				transmit(side, queue);
				done += s->received[queue];
			}
			receive(!side);
		}
		if (done == 2 * (uint64_t)queues * frames)
			return;
		if (done != before) {
			before = done;
			progress = rte_rdtsc();
		} else if (rte_rdtsc() - progress > 5 * hz || stopped) {
			break;
		}
	}
	for (unsigned side = 0; side < 2; side++)
		for (unsigned queue = 0; queue < queues; queue++)
			fprintf(stderr, "vgen: %c, queue %u: sent %" PRIu64 ", received %" PRIu64 "\n", 'A' + side, queue,
				sides[side].sent[queue], sides[side].received[queue]);
	die("frames were lost while verifying");
}

// prepare writes a frame into a buffer of a side's pool. Sending leaves it there.
static void prepare(struct rte_mempool *pool, void *side, void *object, unsigned index)
{
	(void)pool;
	struct rte_mbuf *m = object;
	write_frame((uint8_t *)m->buf_addr + RTE_PKTMBUF_HEADROOM, size, *(unsigned *)side, 0, index);
}

// load sends a burst of prepared frames, or what is left of the last one.
static inline void load(unsigned side)
{
	struct side *s = &sides[side];
	if (s->npending[0] == 0) {
		if (rte_pktmbuf_alloc_bulk(s->pool, s->pending[0], BURST) != 0)
			return;
		for (unsigned i = 0; i < BURST; i++)
			s->pending[0][i]->data_len = s->pending[0][i]->pkt_len = size;
		s->npending[0] = BURST;
	}
	transmit(side, 0);
}

// count takes what has arrived at a side and returns how many frames that is.
static inline unsigned count(unsigned side)
{
	struct rte_mbuf *m[BURST];
	unsigned n = rte_eth_rx_burst(side, 0, m, BURST);
	if (n != 0) {
		sides[!side].received[0] += n;
		rte_pktmbuf_free_bulk(m, n);
	}
	return n;
}

// forget waits for what is under way and starts counting anew.
static void forget(void)
{
	for (unsigned side = 0; side < 2; side++) {
		rte_pktmbuf_free_bulk(sides[side].pending[0], sides[side].npending[0]);
		sides[side].npending[0] = 0;
	}
	for (uint64_t end = rte_rdtsc() + hz / 20; rte_rdtsc() < end;) {
		count(0);
		count(1);
	}
	for (unsigned side = 0; side < 2; side++)
		sides[side].sent[0] = sides[side].received[0] = 0;
}

static double windows[MAX_WINDOWS];
static unsigned nwindows;

// stream sends from A, or from both sides, for this long.
static void stream(bool both, double duration)
{
	forget();
	nwindows = 0;
	uint64_t now = rte_rdtsc(), end = now + duration * hz, begin = now, counted = 0;
	while ((now = rte_rdtsc()) < end && !stopped) {
		if (now - begin > hz / 50) {
			uint64_t n = sides[0].received[0] + sides[1].received[0];
			if (nwindows < MAX_WINDOWS)
				windows[nwindows++] = (double)(n - counted) * hz / (now - begin);
			counted = n;
			begin = now;
		}
		for (unsigned i = 0; i < 8; i++) {
			load(0);
			if (both)
				load(1);
			count(1);
			count(0);
		}
	}
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

// pass sends one frame from a side and waits until the other one has it. False: it has not come in time.
static inline bool pass(unsigned side, uint64_t deadline)
{
	struct side *s = &sides[side];
	if (s->npending[0] == 0) {
		struct rte_mbuf *m = rte_pktmbuf_alloc(s->pool);
		if (!m)
			return false;
		m->data_len = m->pkt_len = size;
		s->pending[0][s->npending[0]++] = m;
	}
	do {
		if (s->npending[0] != 0)
			transmit(side, 0);
		if (count(!side) != 0)
			return true;
	} while (rte_rdtsc() < deadline);
	return false;
}

static uint32_t trips[MAX_TRIPS]; // in cycles
static unsigned ntrips;

// round_trips passes a frame to and fro for this long.
static void round_trips(double duration)
{
	forget();
	nwindows = ntrips = 0;
	unsigned first = 0; // trip of the window
	uint64_t now = rte_rdtsc(), end = now + duration * hz, begin = now;
	while ((now = rte_rdtsc()) < end && !stopped && ntrips < MAX_TRIPS) {
		if (now - begin > hz / 50) {
			if (nwindows < MAX_WINDOWS && ntrips > first) {
				qsort(trips + first, ntrips - first, sizeof trips[0], compare);
				windows[nwindows++] = trips[(first + ntrips) / 2] * 1e9 / hz;
			}
			first = ntrips;
			begin = now = rte_rdtsc();
		}
		uint64_t deadline = now + hz / 50;
		if (pass(0, deadline) && pass(1, deadline))
			trips[ntrips++] = rte_rdtsc() - now;
		else
			forget();
	}
	if (ntrips == 0)
		die("no frame came back");
	qsort(trips, ntrips, sizeof trips[0], compare);
}

static void print(void)
{
	printf("{\"verified\": %" PRIu64, 2 * (uint64_t)queues * frames);
	if (strcmp(mode, "verify") != 0) {
		printf(", \"sent\": %" PRIu64 ", \"received\": %" PRIu64 ", \"windows\": [", sides[0].sent[0] + sides[1].sent[0],
			sides[0].received[0] + sides[1].received[0]);
		for (unsigned i = 0; i < nwindows; i++)
			printf("%s%.0f", i ? ", " : "", windows[i]);
		printf("]");
	}
	if (ntrips != 0)
		printf(", \"p50\": %.0f, \"p99\": %.0f", trips[ntrips / 2] * 1e9 / hz, trips[(size_t)(ntrips * 0.99)] * 1e9 / hz);
	printf("}\n");
}

static struct rte_mempool *make_pool(const char *name, unsigned n, unsigned bytes)
{
	struct rte_mempool *pool = rte_pktmbuf_pool_create(name, n, 128, 0, RTE_PKTMBUF_HEADROOM + bytes, rte_socket_id());
	if (!pool)
		die("buffers: %s", rte_strerror(rte_errno));
	return pool;
}

static void start_port(unsigned port)
{
	struct rte_eth_conf conf = {
		.rxmode.offloads = room < MAX_FRAME ? RTE_ETH_RX_OFFLOAD_SCATTER : 0,
		.txmode.offloads = scatter ? RTE_ETH_TX_OFFLOAD_MULTI_SEGS : 0,
	};
	int result = rte_eth_dev_configure(port, queues, queues, &conf);
	for (unsigned queue = 0; queue < queues && result == 0; queue++) {
		result = rte_eth_rx_queue_setup(port, queue, RING, SOCKET_ID_ANY, NULL, receive_pool);
		if (result == 0)
			result = rte_eth_tx_queue_setup(port, queue, RING, SOCKET_ID_ANY, NULL);
	}
	if (result == 0)
		result = rte_eth_dev_start(port);
	if (result != 0)
		die("port %c: %s", 'A' + port, rte_strerror(-result));
}

static unsigned number_option(const char *name, unsigned min, unsigned max)
{
	char *end;
	unsigned long value = strtoul(optarg, &end, 10);
	if (*optarg == 0 || *end != 0 || value < min || value > max)
		die("--%s %s: want a number from %u to %u", name, optarg, min, max);
	return value;
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{"mode", required_argument, NULL, 'm'},    {"size", required_argument, NULL, 'l'},
		{"seconds", required_argument, NULL, 't'}, {"frames", required_argument, NULL, 'n'},
		{"macs", required_argument, NULL, 'a'},    {"queues", required_argument, NULL, 'q'},
		{"scatter", no_argument, NULL, 's'},       {"room", required_argument, NULL, 'r'},
		{0},
	};
	int option;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'm': mode = optarg; break;
		case 'l': size = number_option("size", 0, MAX_FRAME); break;
		case 't': seconds = atof(optarg); break;
		case 'n': frames = number_option("frames", 1, 1 << 30); break;
		case 'a': macs = number_option("macs", 1, POOL); break;
		case 'q': queues = number_option("queues", 1, MAX_QUEUES); break;
		case 's': scatter = true; break;
		case 'r': room = number_option("room", 64, 2048); break;
		default: exit(2);
		}
	}
	if (size != 0 && size < MIN_FRAME)
		die("--size %u: the least is %u", size, MIN_FRAME);
	if (strcmp(mode, "verify") != 0 && size == 0)
		die("--mode %s needs a --size", mode);
	if (seconds <= 0)
		die("--seconds must be more than 0");
}

int main(int argc, char **argv)
{
	int consumed = rte_eal_init(argc, argv);
	if (consumed < 0)
		die("DPDK: %s", rte_strerror(rte_errno));
	parse(argc - consumed, argv + consumed);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	hz = rte_get_tsc_hz();
	if (rte_eth_dev_count_avail() != 2)
		die("there are %u ports, want 2", rte_eth_dev_count_avail());
	sides[0].pool = make_pool("A", POOL, 2048);
	sides[1].pool = make_pool("B", POOL, 2048);
	receive_pool = make_pool("receive", 4095 * queues, room);
	for (unsigned port = 0; port < 2; port++)
		start_port(port);

	find_way();
	verify();
	if (strcmp(mode, "verify") != 0)
		for (unsigned side = 0; side < 2; side++)
			rte_mempool_obj_iter(sides[side].pool, prepare, &side);
	if (strcmp(mode, "uni") == 0 || strcmp(mode, "bidi") == 0) {
		bool both = strcmp(mode, "bidi") == 0;
		stream(both, 0.3); // until caches, frequencies and rings are as they stay
		stream(both, seconds);
	} else if (strcmp(mode, "rtt") == 0) {
		round_trips(0.3);
		round_trips(seconds);
	} else if (strcmp(mode, "verify") != 0) {
		die("--mode %s: want verify, uni, bidi or rtt", mode);
	}
	if (stopped)
		die("stopped by a signal");
	print();
	return 0;
}
