/* TCP to the service: flows, stamping on the way in, restoring on the way out.
 *
 * The gateway namespace knows a guest only as its slot address, so what must be put back into a reply (the guest's
 * own address, MACs, tags) is kept for each connection. A guest may fill no more than its own ring of places: a new
 * connection takes the next place whose flow has ended, gone quiet, or belonged to an earlier owner of the slot, so
 * nobody's connections are forgotten for another's, and nothing has to be swept while no agent runs. */
#pragma once
#include "count.h"
#include "ip.h"
#include "service.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define FLOW_QUIET_NS 120000000000ull /* the proxy probes idle connections far more often (TCP keep-alive) */
#define RING_TRIES 8

struct tcp {
    u16 source, destination;
    u32 sequence, acknowledged;
    u8 offset; /* upper four bits: header length in words */
    u8 flags;
    u16 window, checksum, urgent;
};

/* Another CPU may have seen a segment after this one's `now`: a negative silence is none. */
static __always_inline bool is_over(struct flow *flow, u32 generation, u64 now) {
    return flow->generation != generation || (flow->ended & ENDED) || (flow->ended & FIN_BOTH) == FIN_BOTH ||
           (s64)(now - flow->seen_ns) > (s64)FLOW_QUIET_NS;
}

static __always_inline bool same_guest(struct flow *flow, struct flow *other) {
    return same6(flow->guest, other->guest) && same_mac(flow->guest_mac, other->guest_mac) &&
           flow->tags == other->tags && flow->tag[0].tci == other->tag[0].tci &&
           flow->tag[1].tci == other->tag[1].tci;
}

/* Takes a place in the slot's ring for a new flow. 0 or -FLOW_LIMIT. */
static __always_inline int take_place(struct flow_key *key, struct settings *s, struct port *port, u64 now) {
    struct port_state *state = port_states.lookup(&key->slot);
    if (!state || !s->flows_per_port)
        return -FLOW_LIMIT;
#pragma unroll
    for (int i = 0; i < RING_TRIES; i++) {
        struct ring_key place = {.slot = key->slot, .place = state->ring_next++ % s->flows_per_port};
        struct flow_key *former = rings.lookup(&place);
        if (former) {
            struct flow_key former_key = *former;
            struct flow *flow = flows.lookup(&former_key);
            if (flow && !is_over(flow, port->generation, now))
                continue;
            flows.delete(&former_key);
        }
        return rings.update(&place, key) ? -FLOW_LIMIT : 0;
    }
    return -FLOW_LIMIT;
}

/* Every SYN pays, also one sent again: a flood of equal ones is a flood too. */
static __always_inline int open_flow(struct flow_key *key, struct flow *fresh, struct settings *s,
                                     struct port *port, u64 now) {
    struct flow *flow = flows.lookup(key);
    if (flow && !is_over(flow, port->generation, now) && !same_guest(flow, fresh))
        return -FLOW_CLASH;
    struct port_state *state = port_states.lookup(&key->slot);
    if (!state || !spend(&state->connections_ns, s->connection_ns, s->connection_burst_ns, now))
        return -RATE_LIMITED;
    if (!flow) {
        int error = take_place(key, s, port, now);
        if (error)
            return error;
    }
    return flows.update(key, fresh) ? -FLOW_LIMIT : OPENED;
}

static __always_inline void note_end(struct flow *flow, u8 tcp_flags, u8 fin) {
    if (tcp_flags & TCP_RST)
        flow->ended |= ENDED;
    else if (tcp_flags & TCP_FIN)
        flow->ended |= fin;
}

static __always_inline int follow_flow(struct flow_key *key, struct flow *fresh, u8 tcp_flags, u32 generation,
                                       u64 now) {
    struct flow *flow = flows.lookup(key);
    if (!flow || flow->generation != generation || !same_guest(flow, fresh))
        return -NO_FLOW;
    flow->seen_ns = now;
    note_end(flow, tcp_flags, FIN_GUEST);
    return DELIVERED;
}
