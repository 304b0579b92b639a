/* tc ingress on the host's end of the link to the gateway namespace: everything that the service sends.
 *
 * Nothing passes here but TCP to a slot whose tap is alive, on a connection of the port's present owner. The rest
 * (discovery and the like of the gateway namespace's own stack) ends here, so the host's stack never sees any. */
#include "lib/stamp.h"
#include "lib/trace.h"

static __always_inline bool slot_of(struct packet *p, u32 *slot) {
    const u8 prefix[16] = SLOT_PREFIX_V6;
    if (p->family == 4) {
        u32 address = BE32(p->destination[0]);
        *slot = address & 0x3fffff;
        return (address & ~0x3fffffu) == SLOT_BASE_V4;
    }
    u32 words[4];
    __builtin_memcpy(words, prefix, 16);
    *slot = BE32(p->destination[3]);
    return p->destination[0] == words[0] && p->destination[1] == words[1] && p->destination[2] == words[2];
}

/* A refused port still gets the reset with which its open connections end. */
static __always_inline bool may_reply(u8 access, u8 tcp_flags) {
    return access == OPEN || (access == RESET && (tcp_flags & TCP_RST));
}

static __always_inline int read_reply(struct __sk_buff *skb, struct packet *p, struct tcp *tcp, u32 *slot) {
    struct frame f = {};
    if (find_l3(skb, &f) || f.tags)
        return -REPLY_FOREIGN;
    int error = f.protocol == ETH_P_IP_BE     ? read_ip4(skb, &f, p)
                : f.protocol == ETH_P_IPV6_BE ? read_ip6(skb, &f, p)
                                              : -REPLY_FOREIGN;
    if (error || p->protocol != P_TCP || !slot_of(p, slot) || bpf_skb_load_bytes(skb, p->l4, tcp, sizeof(*tcp)))
        return -REPLY_FOREIGN;
    return 0;
}

static __always_inline int judge_reply(struct packet *p, struct tcp *tcp, u32 slot, struct port *port,
                                       struct flow *flow, u64 now) {
    if (port->state != SERVED)
        return -REPLY_NO_PORT;
    if (!flow || flow->generation != port->generation)
        return -REPLY_NO_FLOW;
    if (!may_reply(p->family == 4 ? port->access4 : port->access6, tcp->flags))
        return -REPLY_DISABLED;
    flow->seen_ns = now;
    note_end(flow, tcp->flags, FIN_SERVICE);
    return REPLIED;
}

int to_instance(struct __sk_buff *skb) {
    struct packet p = {};
    struct tcp tcp;
    u32 slot;
    if (read_reply(skb, &p, &tcp, &slot))
        return TC_ACT_SHOT; /* no port to count it under */
    struct port *port = ports.lookup(&slot);
    u32 *tap = taps.lookup(&slot);
    /* The tap's number is its own namespace's, so a reply that came by another one's link would go to anybody. */
    if (!port || !tap || !*tap || port->gateway_ifindex != skb->ifindex) {
        count(slot, REPLY_NO_PORT);
        return TC_ACT_SHOT;
    }
    struct flow_key key = {.slot = slot, .guest_port = tcp.destination, .service_port = tcp.source};
    __builtin_memcpy(key.service, p.source, 16);
    struct flow *flow = flows.lookup(&key);
    int verdict = judge_reply(&p, &tcp, slot, port, flow, bpf_ktime_get_ns());
    u32 ifindex = *tap;
    u8 hop_limit = port->hop_limit;
    struct flow restored = {};
    if (verdict == REPLIED && flow)
        restored = *flow;
    if (verdict == REPLIED && restore(skb, &p, &restored, hop_limit))
        verdict = -KERNEL_FAILED;
    count(slot, verdict < 0 ? -verdict : verdict);
    u64 is_shown;
    struct trace *shown = begin_trace(skb, slot, port, 1, &is_shown);
    end_trace(shown, is_shown, verdict);
    return verdict == REPLIED ? bpf_redirect(ifindex, 0) : TC_ACT_SHOT;
}
