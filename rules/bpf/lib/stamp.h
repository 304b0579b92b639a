/* The guest's address out, the slot's in (from_instance); and back (to_instance). */
#pragma once
#include "checksum.h"
#include "tcp.h"

#define TCP_CHECKSUM offsetof(struct tcp, checksum)

static __always_inline int replace4(struct __sk_buff *skb, u32 l3, u32 field, u32 from, u32 to) {
    u32 l4 = l3 + sizeof(struct ip4);
    if (bpf_l4_csum_replace(skb, l4 + TCP_CHECKSUM, from, to, BPF_F_PSEUDO_HDR | 4) ||
        bpf_l3_csum_replace(skb, l3 + offsetof(struct ip4, checksum), from, to, 4) ||
        bpf_skb_store_bytes(skb, l3 + field, &to, 4, 0))
        return -KERNEL_FAILED;
    return 0;
}

static __always_inline int replace6(struct __sk_buff *skb, u32 l3, u32 field, u32 *from, u32 *to) {
    u32 l4 = l3 + sizeof(struct ip6);
    u32 change = difference(from, to, 16, 0);
    if (bpf_l4_csum_replace(skb, l4 + TCP_CHECKSUM, 0, change, BPF_F_PSEUDO_HDR) ||
        bpf_skb_store_bytes(skb, l3 + field, to, 16, 0))
        return -KERNEL_FAILED;
    return 0;
}

static __always_inline void slot_address6(u32 slot, u32 *address) {
    const u8 prefix[16] = SLOT_PREFIX_V6;
    __builtin_memcpy(address, prefix, 12);
    address[3] = BE32(slot);
}

static __always_inline int strip_tags(struct __sk_buff *skb, struct frame *f) {
#pragma unroll
    for (int i = 0; i < TAGS; i++)
        if (i < f->tags && bpf_skb_vlan_pop(skb))
            return -KERNEL_FAILED;
    return 0;
}

/* Makes the segment one for the gateway namespace, from the slot's address. 0 or -KERNEL_FAILED. */
static __always_inline int stamp(struct __sk_buff *skb, struct frame *f, struct packet *p, u32 slot) {
    struct macs macs = {.destination = {SERVICE_MAC}, .source = {0x02, 0, 0, 0, 0, 0x01}};
    if (strip_tags(skb, f) || bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
        return -KERNEL_FAILED;
    /* A frame sent to a router's MAC must not look like one for another host once it is behind the link. */
    bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
    if (p->family == 4)
        return replace4(skb, ETH_HLEN, offsetof(struct ip4, source), p->source[0], BE32(SLOT_BASE_V4 + slot));
    u32 address[4];
    slot_address6(slot, address);
    return replace6(skb, ETH_HLEN, offsetof(struct ip6, source), p->source, address);
}

static __always_inline int set_hop_limit(struct __sk_buff *skb, struct packet *p, u8 hop_limit) {
    if (p->family == 6)
        return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ip6, hop_limit), &hop_limit, 1, 0);
    struct { u8 ttl, protocol; } old, fresh;
    u32 offset = ETH_HLEN + offsetof(struct ip4, ttl);
    if (bpf_skb_load_bytes(skb, offset, &old, 2))
        return -KERNEL_FAILED;
    fresh.ttl = hop_limit;
    fresh.protocol = old.protocol;
    return bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct ip4, checksum), *(u16 *)&old, *(u16 *)&fresh, 2) ||
           bpf_skb_store_bytes(skb, offset, &fresh, 2, 0);
}

static __always_inline int push_tags(struct __sk_buff *skb, struct flow *flow) {
    if (flow->tags > 1 && bpf_skb_vlan_push(skb, flow->tag[1].protocol, BE16(flow->tag[1].tci)))
        return -KERNEL_FAILED;
    if (flow->tags > 0 && bpf_skb_vlan_push(skb, flow->tag[0].protocol, BE16(flow->tag[0].tci)))
        return -KERNEL_FAILED;
    return 0;
}

/* Makes the service's segment one for the guest. 0 or -KERNEL_FAILED. */
static __always_inline int restore(struct __sk_buff *skb, struct packet *p, struct flow *flow, u8 hop_limit) {
    struct macs macs;
    copy_mac(macs.destination, flow->guest_mac);
    copy_asked_mac(macs.source, flow->asked_mac);
    u32 field = p->family == 4 ? offsetof(struct ip4, destination) : offsetof(struct ip6, destination);
    int error = p->family == 4 ? replace4(skb, ETH_HLEN, field, p->destination[0], flow->guest[0])
                               : replace6(skb, ETH_HLEN, field, p->destination, flow->guest);
    if (error || set_hop_limit(skb, p, hop_limit) || bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0))
        return -KERNEL_FAILED;
    return push_tags(skb, flow);
}
