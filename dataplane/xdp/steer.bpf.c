/*
 * Steering: which frames go to an AF_XDP socket and which to the node's own kernel.
 *
 * The only kernel code of Wirelane. Two programs, one for each kind of interface:
 *
 *   steer_pod     everything goes to the socket of the queue that it came in by
 *   steer_uplink  what is ours goes there, the rest to the kernel
 *
 * Loaded and fed by src/kernel/steering.rs: one steer_pod for the host's port and all pods, since the kernel waits for
 * all its processors whenever it meets a new program (bpf_dispatcher_change_prog). It says as little as it can about
 * packets: whoever receives them parses them again. So in doubt a frame passes to the kernel, which loses nothing by it.
 */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

/* The kernel's interface, as far as it is used here: linux/bpf.h, linux/in.h, linux/icmp.h, linux/icmpv6.h. */

enum xdp_action { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_LPM_TRIE = 11,
       BPF_MAP_TYPE_XSKMAP = 17 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { IPPROTO_ICMP = 1, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_FRAGMENT = 44, IPPROTO_ICMPV6 = 58,
       IPPROTO_SCTP = 132 };
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_IPV6 = 0x86dd };
enum { ARPOP_REQUEST = 1 };
enum { ICMP_ECHOREPLY = 0, ICMP_DEST_UNREACH = 3, ICMP_ECHO = 8, ICMP_TIME_EXCEEDED = 11, ICMP_PARAMETERPROB = 12 };
enum { ICMPV6_DEST_UNREACH = 1, ICMPV6_PARAMPROB = 4, ICMPV6_ECHO_REQUEST = 128, ICMPV6_ECHO_REPLY = 129,
       NDISC_FIRST = 133, NDISC_NEIGHBOUR_SOLICITATION = 135, NDISC_LAST = 137 };

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, type) type *name
#define __always_inline inline __attribute__((always_inline))
#define htons(x) __builtin_bswap16(x) /* clang's bpf target is the host's endianness; all we build for are little */

/* Headers: RFC 791, RFC 8200, RFC 768, RFC 9293, RFC 792, RFC 4443, RFC 826, RFC 4861. */

struct ethhdr {
	__u8 dest[6], source[6];
	__u16 type;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl, tos;
	__u16 len, id, frag_off;
	__u8 ttl, protocol;
	__u16 check;
	__u32 source, dest;
} __attribute__((packed));

struct ipv6hdr {
	__u32 version_class_label;
	__u16 payload_len;
	__u8 nexthdr, hop_limit;
	__u32 source[4], dest[4];
} __attribute__((packed));

/* The part that TCP, UDP and SCTP have in common. */
struct porthdr {
	__u16 source, dest;
} __attribute__((packed));

struct icmphdr {
	__u8 type, code;
	__u16 checksum;
	__u16 id, sequence; /* of echoes */
} __attribute__((packed));

/* ARP for IPv4 over Ethernet. */
struct arphdr {
	__u16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__u16 operation;
	__u8 sender_mac[6];
	__u32 sender;
	__u8 target_mac[6];
	__u32 target;
} __attribute__((packed));

struct solicitation {
	struct icmphdr icmp;
	__u32 target[4];
} __attribute__((packed));

/* What the maps hold. An IPv4 address is in its IPv4-mapped form, so that one map serves both families. */

struct address {
	__u32 word[4];
};

struct prefix {
	__u32 bits;
	struct address address;
};

#define MAX_INTERFACES 1024 /* tables::MAX_PORTS */
#define MAX_QUEUES 64 /* flows::MAX_WORKERS */
#define PORT_WORDS 1024 /* 65536 ports, 64 in a word */

/* The place of each interface among the sockets. An uplink has the first one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

/* The socket of each queue: MAX_QUEUES for each interface. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_INTERFACES * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* The node's own addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u8);
} node_addresses SEC(".maps");

/* Destinations that are ours whatever the packet is: this node's pods, virtual addresses of Services. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct prefix);
	__type(value, __u8);
} prefixes SEC(".maps");

/* Addresses that we answer for on the link; the kernel knows nothing of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct address);
	__type(value, __u8);
} announced SEC(".maps");

/* Ports of the node's addresses that are ours, one bit each: TCP, UDP, SCTP, then the identifiers of echoes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4 * PORT_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

/* UDP port of VXLAN, host order; 0: none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} vxlan_port SEC(".maps");

/* Frames by what became of them: passed to the kernel, given to a socket, no socket bound. */
enum { PASSED, STEERED, UNBOUND, OUTCOMES };
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

/* What becomes of our frames while their queue has no socket: XDP_DROP or XDP_PASS. Set by the loader. */
const volatile __u32 when_unbound = XDP_DROP;

static __always_inline void count(__u32 outcome)
{
	__u64 *frames = bpf_map_lookup_elem(&outcomes, &outcome);

	if (frames)
		(*frames)++;
}

/* What becomes of a frame is `otherwise` if its queue has no socket. */
static __always_inline int to_socket(struct xdp_md *ctx, __u32 place, __u32 otherwise)
{
	/* Of a queue that is another's place the kernel takes nothing: a socket knows its interface and queue. */
	int action = bpf_redirect_map(&sockets, place * MAX_QUEUES + ctx->rx_queue_index, otherwise);

	count(action == XDP_REDIRECT ? STEERED : UNBOUND);
	return action;
}

static __always_inline int to_kernel(void)
{
	count(PASSED);
	return XDP_PASS;
}

static __always_inline struct address mapped(__u32 ipv4)
{
	return (struct address){ { 0, 0, htons(0xffff) << 16, ipv4 } };
}

static __always_inline struct address address6(const __u32 *ipv6)
{
	return (struct address){ { ipv6[0], ipv6[1], ipv6[2], ipv6[3] } };
}

static __always_inline int in_prefix(const struct address *address)
{
	struct prefix key = { 128, *address };

	return bpf_map_lookup_elem(&prefixes, &key) != 0;
}

static __always_inline int is_node(const struct address *address)
{
	return bpf_map_lookup_elem(&node_addresses, address) != 0;
}

static __always_inline int is_announced(const struct address *address)
{
	return bpf_map_lookup_elem(&announced, address) != 0;
}

static __always_inline int is_vxlan(__u8 protocol, __u16 port)
{
	__u32 zero = 0;
	__u32 *vxlan = bpf_map_lookup_elem(&vxlan_port, &zero);

	return protocol == IPPROTO_UDP && vxlan && *vxlan && *vxlan == port;
}

enum { TCP, UDP, SCTP, ECHO };

static __always_inline int is_set(__u32 bitmap, __u16 port)
{
	__u32 word = port / 64 + bitmap * PORT_WORDS;
	__u64 *bits = bpf_map_lookup_elem(&ports, &word);

	return bits && (*bits >> (port % 64) & 1);
}

/*
 * Whose a frame is. A fragment for the node may be anybody's: only the first of a datagram has ports. So all go to the
 * socket, whose worker passes on what is not ours; but without a worker the kernel shall not miss them. The same holds
 * for questions about addresses that we announce.
 */
enum whose { THE_KERNELS, OURS, PERHAPS_OURS };

static __always_inline int in_use(__u8 protocol, __u16 port)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return is_set(TCP, port);
	case IPPROTO_UDP:
		return is_set(UDP, port);
	case IPPROTO_SCTP:
		return is_set(SCTP, port);
	default:
		return 0;
	}
}

/* Whether the packet that an ICMP error brings back is one that we sent from a node address: of an echo request, too,
   the first eight bytes are there. */
static __always_inline int sent_by_us(const struct address *source, __u8 protocol, const void *at, const void *end)
{
	const struct porthdr *transport = at;
	const struct icmphdr *icmp = at;

	if ((void *)(transport + 1) > end || !is_node(source))
		return 0;
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return (void *)(icmp + 1) <= end && (icmp->type == ICMP_ECHO || icmp->type == ICMPV6_ECHO_REQUEST) &&
		       is_set(ECHO, htons(icmp->id));
	return in_use(protocol, htons(transport->source)) || is_vxlan(protocol, htons(transport->dest));
}

static __always_inline enum whose ours_ipv4(void *at, void *end)
{
	struct iphdr *ip = at, *inner;
	struct address address;
	struct porthdr *transport;
	struct icmphdr *icmp;
	__u32 header;

	if ((void *)(ip + 1) > end || ip->version_ihl < 0x45 || ip->version_ihl > 0x4f)
		return 0;
	address = mapped(ip->dest);
	if (in_prefix(&address))
		return OURS;
	if (!is_node(&address))
		return THE_KERNELS;
	if (ip->frag_off & htons(0x3fff))
		return PERHAPS_OURS;
	header = (ip->version_ihl & 15) * 4;
	if (ip->protocol != IPPROTO_ICMP) {
		transport = at + header;
		return (void *)(transport + 1) <= end && (in_use(ip->protocol, htons(transport->dest)) ||
							  is_vxlan(ip->protocol, htons(transport->dest)));
	}

	icmp = at + header;
	if ((void *)(icmp + 1) > end)
		return 0;
	if (icmp->type == ICMP_ECHOREPLY)
		return is_set(ECHO, htons(icmp->id));
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_PARAMETERPROB)
		return 0;
	inner = (void *)(icmp + 1);
	if ((void *)(inner + 1) > end || inner->version_ihl < 0x45 || inner->version_ihl > 0x4f)
		return 0;
	address = mapped(inner->source);
	return sent_by_us(&address, inner->protocol, (void *)inner + (inner->version_ihl & 15) * 4, end);
}

static __always_inline enum whose ours_ipv6(void *at, void *end)
{
	struct ipv6hdr *ip = at, *inner;
	struct address address;
	struct porthdr *transport;
	struct solicitation *solicitation;
	struct icmphdr *icmp;

	if ((void *)(ip + 1) > end)
		return 0;
	icmp = (void *)(ip + 1);
	solicitation = (void *)icmp;
	if (ip->nexthdr == IPPROTO_ICMPV6 && (void *)(solicitation + 1) <= end &&
	    icmp->type == NDISC_NEIGHBOUR_SOLICITATION) {
		/* To the address itself or to its group. */
		address = address6(solicitation->target);
		return is_announced(&address) ? PERHAPS_OURS : THE_KERNELS;
	}
	address = address6(ip->dest);
	if (in_prefix(&address)) {
		/* All other neighbour discovery is the kernel's, whatever address it is about. */
		return ip->nexthdr != IPPROTO_ICMPV6 || (void *)(icmp + 1) > end ||
		       icmp->type < NDISC_FIRST || icmp->type > NDISC_LAST;
	}
	if (!is_node(&address))
		return THE_KERNELS;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return PERHAPS_OURS;
	if (ip->nexthdr != IPPROTO_ICMPV6) {
		transport = (void *)(ip + 1);
		return (void *)(transport + 1) <= end && (in_use(ip->nexthdr, htons(transport->dest)) ||
							  is_vxlan(ip->nexthdr, htons(transport->dest)));
	}

	if ((void *)(icmp + 1) > end)
		return 0;
	if (icmp->type == ICMPV6_ECHO_REPLY)
		return is_set(ECHO, htons(icmp->id));
	if (icmp->type < ICMPV6_DEST_UNREACH || icmp->type > ICMPV6_PARAMPROB)
		return 0;
	inner = (void *)(icmp + 1);
	if ((void *)(inner + 1) > end)
		return 0;
	address = address6(inner->source);
	return sent_by_us(&address, inner->nexthdr, inner + 1, end);
}

static __always_inline enum whose ours_arp(void *at, void *end)
{
	struct arphdr *arp = at;
	struct address address;

	if ((void *)(arp + 1) > end || arp->operation != htons(ARPOP_REQUEST))
		return THE_KERNELS;
	address = mapped(arp->target);
	return is_announced(&address) ? PERHAPS_OURS : THE_KERNELS;
}

SEC("xdp")
int steer_pod(struct xdp_md *ctx)
{
	__u32 interface = ctx->ingress_ifindex;
	__u32 *place = bpf_map_lookup_elem(&interfaces, &interface);

	if (place)
		return to_socket(ctx, *place, when_unbound);
	count(UNBOUND);
	return when_unbound;
}

SEC("xdp")
int steer_uplink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	enum whose whose = THE_KERNELS;

	if ((void *)(ethernet + 1) > end)
		return to_kernel();
	if (ethernet->type == htons(ETH_P_IP))
		whose = ours_ipv4(ethernet + 1, end);
	else if (ethernet->type == htons(ETH_P_IPV6))
		whose = ours_ipv6(ethernet + 1, end);
	else if (ethernet->type == htons(ETH_P_ARP))
		whose = ours_arp(ethernet + 1, end);
	if (whose == THE_KERNELS)
		return to_kernel();
	return to_socket(ctx, 0, whose == OURS ? when_unbound : XDP_PASS);
}

char _license[] SEC("license") = "MIT";
