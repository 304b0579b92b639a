/* tc ingress on a tap: everything that an instance sends.
 *
 * The filter's class id is the slot: the kernel hands it to the program beside the packet, and it goes when the
 * device goes, so neither a reused ifindex nor a reused name can lend one guest another's identity.
 *
 * `judge` says what a frame is: 0 is not ours, a positive number is served, a negative one refused. Only the entry
 * turns that into an action, and counts it. */
#include "lib/arp.h"
#include "lib/nd.h"
#include "lib/reset.h"
#include "lib/stamp.h"
#include "lib/trace.h"

struct inspection {
    struct frame frame;
    struct packet packet;
    struct tcp tcp;
    struct event what;
    u64 now;
};

/* The short way out for nearly every frame: IP or ARP without a tag inside, whose addresses lie in the linear part
 * and are not the service's. What may hide discovery (any IPv6 but TCP and UDP) goes the long way. */
static __always_inline bool passes_by(struct __sk_buff *skb, struct settings *s) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *eth = data;
    struct ip4 *ip4 = data + ETH_HLEN;
    struct ip6 *ip6 = data + ETH_HLEN;
    struct arp *arp = data + ETH_HLEN;
    if ((void *)(ip4 + 1) > end)
        return false;
    if (eth->h_proto == ETH_P_IP_BE)
        return !may_end_so(s->endings4, &ip4->source, &ip4->destination, 4) ||
               (!is_service4(s, ip4->destination) && !is_service4(s, ip4->source));
    if (eth->h_proto == ETH_P_IPV6_BE && (void *)(ip6 + 1) <= end)
        return (ip6->next == P_TCP || ip6->next == P_UDP) &&
               (!may_end_so(s->endings6, ip6->source, ip6->destination, 16) ||
                (!is_service6(s, ip6->destination) && !is_service6(s, ip6->source)));
    if (eth->h_proto == ETH_P_ARP_BE && (void *)(arp + 1) <= end)
        return arp->protocol == ETH_P_IP_BE && arp->protocol_size == 4 && arp->hardware_size == 6 &&
               !is_service4(s, *(u32 *)arp->sender) && !is_service4(s, *(u32 *)arp->target);
    return false;
}

static __always_inline u8 access_of(struct port *port, u8 family) {
    return family == 4 ? port->access4 : port->access6;
}

static __always_inline int judge_access(struct port *port, u8 family) {
    u8 access = access_of(port, family);
    if (access == OPEN)
        return 0;
    return access == RESET ? -DISABLED_RESET : -DISABLED_DROP;
}

static __always_inline int judge_port(struct port *port) {
    if (!port || port->state == ABSENT)
        return -NOT_ENROLLED;
    return port->state == SERVED ? 0 : -NO_IDENTITY;
}

static __always_inline int judge_tcp(struct __sk_buff *skb, struct inspection *i, struct settings *s, u32 slot,
                                     struct port *port) {
    struct packet *p = &i->packet;
    struct tcp *tcp = &i->tcp;
    if (p->length < sizeof(*tcp) || bpf_skb_load_bytes(skb, p->l4, tcp, sizeof(*tcp)))
        return -MALFORMED;
    u32 header = (tcp->offset >> 4) * 4;
    bool syn = tcp->flags & TCP_SYN;
    if (header < sizeof(*tcp) || header > p->length || (syn && (tcp->flags & (TCP_FIN | TCP_RST))))
        return -MALFORMED;
    i->what.source_port = tcp->source;
    i->what.destination_port = tcp->destination;
    if (!is_service_port(s, tcp->destination))
        return -WRONG_PORT;
    int refused = judge_access(port, p->family);
    if (refused)
        return refused;
    struct flow_key key = {.slot = slot, .guest_port = tcp->source, .service_port = tcp->destination};
    __builtin_memcpy(key.service, p->destination, 16);
    struct macs macs;
    if (bpf_skb_load_bytes(skb, 0, &macs, sizeof(macs)))
        return -MALFORMED;
    struct flow fresh = {.generation = port->generation, .tags = i->frame.tags, .seen_ns = i->now};
    __builtin_memcpy(fresh.guest, p->source, 16);
    copy_mac(fresh.guest_mac, macs.source);
    copy_mac(fresh.asked_mac, macs.destination);
    fresh.tag[0] = i->frame.tag[0];
    fresh.tag[1] = i->frame.tag[1];
    if (syn && !(tcp->flags & TCP_ACK))
        return open_flow(&key, &fresh, s, port, i->now);
    return follow_flow(&key, &fresh, tcp->flags, port->generation, i->now);
}

/* A sound, unfragmented packet from or to a service address. */
static __always_inline int judge_packet(struct __sk_buff *skb, struct inspection *i, struct settings *s, u32 slot) {
    struct packet *p = &i->packet;
    if (!tags_understood(&i->frame))
        return -VLAN_DEPTH;
    struct port *port = ports.lookup(&slot);
    int refused = judge_port(port);
    if (refused)
        return refused;
    if (p->protocol == P_TCP) {
        i->now = bpf_ktime_get_ns();
        return judge_tcp(skb, i, s, slot, port);
    }
    if (p->protocol != (p->family == 4 ? P_ICMP : P_ICMP6))
        return -WRONG_PROTOCOL;
    refused = judge_access(port, p->family);
    if (refused) /* no reset for what is not TCP */
        return -DISABLED_DROP;
    return judge_echo(skb, p);
}

static __always_inline int judge_ip4(struct __sk_buff *skb, struct inspection *i, struct settings *s, u32 slot) {
    u32 addresses[2];
    if (bpf_skb_load_bytes(skb, i->frame.l3 + offsetof(struct ip4, source), addresses, sizeof(addresses)))
        return -MALFORMED;
    bool from = is_service4(s, addresses[0]);
    if (!from && !is_service4(s, addresses[1]))
        return 0;
    int error = read_ip4(skb, &i->frame, &i->packet);
    if (from)
        return -SPOOFED_SOURCE;
    return error ? error : judge_packet(skb, i, s, slot);
}

static __always_inline int judge_ip6(struct __sk_buff *skb, struct inspection *i, struct settings *s, u32 slot) {
    struct ip6 ip;
    if (bpf_skb_load_bytes(skb, i->frame.l3, &ip, sizeof(ip)))
        return -MALFORMED;
    bool from = is_service6(s, ip.source), to = is_service6(s, ip.destination);
    int discovery = from ? 0 : judge_nd(skb, s, ip.next, i->frame.l3 + sizeof(ip), ip.destination);
    if (!from && !to && !discovery)
        return 0;
    int error = read_ip6(skb, &i->frame, &i->packet);
    if (from)
        return -SPOOFED_SOURCE;
    if (discovery < 0 || error)
        return discovery < 0 ? discovery : error;
    if (discovery)
        return tags_understood(&i->frame) ? discovery : -VLAN_DEPTH;
    return judge_packet(skb, i, s, slot);
}

static __always_inline int judge(struct __sk_buff *skb, struct inspection *i, struct settings *s, u32 slot) {
    int error = find_l3(skb, &i->frame);
    if (error)
        return error;
    if (i->frame.protocol == ETH_P_IP_BE)
        return judge_ip4(skb, i, s, slot);
    if (i->frame.protocol == ETH_P_IPV6_BE)
        return judge_ip6(skb, i, s, slot);
    if (i->frame.protocol == ETH_P_ARP_BE)
        return judge_arp(skb, &i->frame, s, &i->what);
    return 0;
}

/* Nobody is told where the service is on a port that nobody is served on. */
static __always_inline int judge_neighbour(int verdict, struct port *port) {
    int refused = verdict == ARP_ANSWERED || verdict == ND_ANSWERED ? judge_port(port) : 0;
    return refused ? refused : verdict;
}

static __always_inline int answer(struct __sk_buff *skb, struct inspection *i, int verdict, u8 hop_limit) {
    if (verdict == ARP_ANSWERED)
        return answer_arp(skb, &i->frame);
    if (verdict == ND_ANSWERED)
        return answer_nd(skb, &i->frame);
    if (verdict == ECHO_ANSWERED)
        return answer_echo(skb, &i->frame, hop_limit);
    return answer_reset(skb, &i->frame, &i->packet, &i->tcp, hop_limit);
}

static __always_inline void report_refusal(struct inspection *i, struct settings *s, u32 slot, int verdict) {
    i->what.verdict = -verdict;
    i->what.family = i->packet.family;
    if (i->packet.family) {
        __builtin_memcpy(i->what.source, i->packet.source, 16);
        __builtin_memcpy(i->what.destination, i->packet.destination, 16);
    }
    report(slot, s, &i->what, bpf_ktime_get_ns());
}

static __always_inline bool is_answered(struct inspection *i, int verdict) {
    if (verdict == -DISABLED_RESET || verdict == -NO_FLOW)
        return !(i->tcp.flags & TCP_RST); /* a reset is answered by nothing */
    return verdict > 0;
}

/* Carries out a verdict. Whatever cannot be carried out is dropped, and that is the verdict then. */
static __always_inline int act(struct __sk_buff *skb, struct inspection *i, struct port *port, u32 slot,
                               int *judged) {
    int verdict = *judged;
    if (!port || !is_answered(i, verdict))
        return TC_ACT_SHOT;
    u32 gateway = port->gateway_ifindex;
    if (verdict == OPENED || verdict == DELIVERED) {
        if (!stamp(skb, &i->frame, &i->packet, slot))
            return bpf_redirect_peer(gateway, 0);
    } else if (!answer(skb, i, verdict, port->hop_limit)) {
        return bpf_redirect(skb->ifindex, 0);
    }
    count(slot, KERNEL_FAILED);
    *judged = -KERNEL_FAILED;
    return TC_ACT_SHOT;
}

int from_instance(struct __sk_buff *skb) {
    struct settings *s = read_settings();
    if (!s) /* cannot be; refuse rather than guess */
        return TC_ACT_SHOT;
    if (passes_by(skb, s))
        return TC_ACT_UNSPEC;
    struct inspection i = {};
    u32 slot = skb->tc_classid;
    struct port *port = ports.lookup(&slot);
    int verdict = judge_neighbour(judge(skb, &i, s, slot), port);
    if (verdict == 0)
        return TC_ACT_UNSPEC;
    if (verdict == OPENED)
        count(slot, DELIVERED);
    count(slot, verdict < 0 ? -verdict : verdict);
    if (verdict < 0)
        report_refusal(&i, s, slot, verdict);
    u64 is_shown;
    struct trace *shown = begin_trace(skb, slot, port, 0, &is_shown);
    int action = act(skb, &i, port, slot, &verdict);
    end_trace(shown, is_shown, verdict);
    return action;
}
