/* What the kernel and the agent share: shapes, constants, maps. shim/datapath/abi.py says the same in Python,
 * and a test compares sizes, offsets and constants. Addresses and ports are in network byte order, the rest in
 * the host's. The agent makes and pins the maps (their sizes are its settings); bcc opens the pins. */
#pragma once
#include "verdict.h"

#define SERVICES 4      /* service addresses of a family; unused places repeat the first */
#define SERVICE_PORTS 4 /* the same */
#define TAGS 2          /* VLAN tags that are understood: 802.1Q, QinQ */

#define ABSENT 0 /* a port's state: a zeroed record serves nobody */
#define SERVED 1
#define ANONYMOUS 2 /* a guarded tap that no source knows an instance for */

#define CLOSED 0 /* access over one family: a zeroed record is closed */
#define OPEN 1
#define RESET 2
#define DROP 3

#define FIN_GUEST 1 /* a flow's `ended` */
#define FIN_SERVICE 2
#define FIN_BOTH 3
#define ENDED 4

#define TRACE_BYTES 256 /* of a frame, for operators who trace its port */

#define SLOT_BASE_V4 0x64400000u /* 100.64.0.0 + slot is who speaks, inside the gateway namespace */
#define SLOT_PREFIX_V6 {0xfd, 0x6d, 0x73, 0x68, 0x69, 0x6d} /* fd6d:7368:696d::/96 + slot */
#define SERVICE_MAC 0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe /* ARP and ND answer, and the gateway's own link */

struct settings {
    u32 service4[SERVICES];
    u32 service6[SERVICES][4];
    u16 service_port[SERVICE_PORTS];
    u64 connection_ns; /* what one new connection costs */
    u64 connection_burst_ns;
    u64 event_ns;
    u64 event_burst_ns;
    u64 endings4; /* bit n: a service address of the family ends in a byte that is n modulo 64 */
    u64 endings6;
    u32 flows_per_port;
    u32 pad;
};

struct port {
    u32 gateway_ifindex; /* the host's end of the link to the gateway namespace */
    u32 generation;      /* tells two owners of one slot apart */
    u8 state;
    u8 access4;
    u8 access6;
    u8 hop_limit;
    u8 instance[16]; /* for an agent that starts and finds the port there */
    u8 traced;       /* whether its packets are shown to an operator */
    u8 pad[3];
};

struct port_state {
    u64 connections_ns; /* token buckets: the time up to which tokens are spent */
    u64 events_ns;
    u32 ring_next;
    u32 pad;
};

struct tracing {
    u64 spent_ns; /* token bucket of what is shown */
    u64 left_out; /* packets of a traced port that were not shown, by now */
};

struct counters {
    u64 packets[COUNTERS];
};

struct tag {
    u16 protocol; /* network order */
    u16 tci;
};

/* A connection, as the gateway namespace sees it. */
struct flow_key {
    u32 slot;
    u16 guest_port;
    u16 service_port;
    u32 service[4]; /* an IPv4 address fills the first word */
};

/* What must be put back into its replies. */
struct flow {
    u32 guest[4];
    u8 guest_mac[6];
    u8 asked_mac[6]; /* where the guest sent its frames, so where answers come from */
    struct tag tag[TAGS]; /* outer first */
    u32 generation;
    u8 tags;
    u8 ended;
    u8 pad[6];
    u64 seen_ns;
};

struct ring_key {
    u32 slot;
    u32 place;
};

struct event {
    u64 ns; /* CLOCK_MONOTONIC */
    u32 slot;
    u32 generation;
    u32 source[4];
    u32 destination[4];
    u16 source_port;
    u16 destination_port;
    u8 verdict;
    u8 family; /* 4, 6, or 0 for ARP */
    u16 pad;
};

/* A packet of a traced port: from the guest as it came, to the guest as it leaves. */
struct trace {
    u64 ns; /* CLOCK_MONOTONIC */
    u32 slot;
    u32 generation;
    u32 length; /* of the whole frame, without the tag beside it */
    u16 kept;
    u16 tag_protocol; /* of the tag that stands beside the packet, network order; 0: there is none */
    u16 tag_tci;      /* network order */
    u8 verdict;
    u8 to_guest;
    u8 frame[TRACE_BYTES];
    u8 pad[4];
};

BPF_TABLE_PINNED("array", u32, struct settings, settings, 1, PINS "/settings");
BPF_TABLE_PINNED("array", u32, struct port, ports, 1, PINS "/ports");
BPF_TABLE_PINNED("array", u32, struct port_state, port_states, 1, PINS "/port_states");
BPF_TABLE_PINNED("array", u32, struct counters, counters, 1, PINS "/counters");
BPF_TABLE_PINNED("array", u32, struct tracing, tracings, 1, PINS "/tracings");
/* The kernel itself forgets a device here when it goes, so no reply reaches a later device of the same index. */
BPF_TABLE_PINNED("devmap", u32, u32, taps, 1, PINS "/taps");
BPF_TABLE_PINNED("hash", struct flow_key, struct flow, flows, 1, PINS "/flows");
BPF_TABLE_PINNED("hash", struct ring_key, struct flow_key, rings, 1, PINS "/rings");

/* bcc has no macro for a ring buffer with a pin: this is what one would expand to. What is traced has a ring of its
 * own, so that it takes no refusal's place. */
struct ring_table_t {
    int key;
    u32 leaf;
    int (*ringbuf_output)(void *, u64, u64);
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_submit)(void *, u64);
    u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PINS "/events"))) struct ring_table_t events = {.max_entries = 65536};
__attribute__((section("maps/ringbuf:" PINS "/traces"))) struct ring_table_t traces = {.max_entries = 262144};
