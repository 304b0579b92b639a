/* Neighbour discovery (RFC 4861) for a service address: solicitations are answered on the port, claims refused.
 *
 * Discovery speaks to groups, so it must be looked for in every IPv6 frame, also behind extension headers: nobody
 * needs them there, and a neighbour's stack might accept what it finds behind them. */
#pragma once
#include "checksum.h"
#include "count.h"
#include "ip.h"

#define ND_SOLICIT 135
#define ND_ADVERTISE 136
#define ND_REDIRECT 137
#define ND_EXTENSIONS 4

#define NA_SOLICITED 0x40
#define NA_OVERRIDE 0x20

/* The first 24 bytes of a solicitation or an advertisement; a redirect has a second address behind them. */
struct nd {
    u8 type, code;
    u16 checksum;
    u8 flags, reserved[3];
    u32 target[4];
};

struct nd_answer {
    struct nd nd;
    u8 option, option_words;
    u8 mac[6];
};

static __always_inline int judge_nd_message(struct __sk_buff *skb, struct settings *s, u32 l4, bool plain) {
    u8 type;
    struct nd nd;
    u32 destination[4] = {};
    if (bpf_skb_load_bytes(skb, l4, &type, 1) || type < ND_SOLICIT || type > ND_REDIRECT)
        return 0;
    if (bpf_skb_load_bytes(skb, l4, &nd, sizeof(nd)))
        return -MALFORMED;
    if (type == ND_REDIRECT)
        bpf_skb_load_bytes(skb, l4 + sizeof(nd), destination, sizeof(destination));
    if (!is_service6(s, nd.target) && !is_service6(s, destination))
        return 0;
    if (type != ND_SOLICIT)
        return -SPOOFED_ND;
    if (!plain)
        return -EXTENSION_HEADER;
    return nd.code == 0 ? ND_ANSWERED : -MALFORMED;
}

/* 0 for what is no discovery of a service address. `next` and `l4` are of the fixed header's end. */
static __always_inline int judge_nd(struct __sk_buff *skb, struct settings *s, u8 next, u32 l4,
                                    const u32 *destination) {
    bool plain = true;
#pragma unroll
    for (int i = 0; i < ND_EXTENSIONS; i++) {
        struct { u8 next, size; } extension;
        if (next == P_ICMP6)
            return judge_nd_message(skb, s, l4, plain);
        if (next == P_FRAGMENT)
            return is_solicited_node(s, destination) ? -FRAGMENT : 0;
        if (next != P_HOP_BY_HOP && next != P_ROUTING && next != P_DESTINATION)
            return 0;
        if (bpf_skb_load_bytes(skb, l4, &extension, sizeof(extension)))
            return 0;
        plain = false;
        next = extension.next;
        l4 += ((u32)extension.size + 1) * 8;
    }
    return is_solicited_node(s, destination) ? -EXTENSION_HEADER : 0;
}

/* Turns the solicitation into the advertisement, where it stands. A solicitation without a sender (the guest tries
 * whether the address is free) is answered to all nodes: it is not. 0 or -KERNEL_FAILED. */
static __always_inline int answer_nd(struct __sk_buff *skb, struct frame *f) {
    struct ip6 ip;
    struct macs macs;
    struct nd_answer answer = {};
    if (bpf_skb_load_bytes(skb, f->l3, &ip, sizeof(ip)) || bpf_skb_load_bytes(skb, 0, &macs, sizeof(macs)) ||
        bpf_skb_load_bytes(skb, f->l3 + sizeof(ip), &answer.nd, sizeof(answer.nd)))
        return -KERNEL_FAILED;
    bool probe = !(ip.source[0] | ip.source[1] | ip.source[2] | ip.source[3]);
    copy_mac(macs.destination, macs.source);
    set_mac(macs.source, SERVICE_MAC);
    if (probe)
        set_mac(macs.destination, 0x33, 0x33, 0, 0, 0, 1);
    __builtin_memcpy(ip.destination, ip.source, 16);
    if (probe) {
        ip.destination[0] = BE32(0xff020000);
        ip.destination[3] = BE32(1);
    }
    __builtin_memcpy(ip.source, answer.nd.target, 16);
    ip.hop_limit = 255;
    ip.payload = BE16(sizeof(answer));
    answer.nd.type = ND_ADVERTISE;
    answer.nd.checksum = 0;
    answer.nd.flags = (probe ? 0 : NA_SOLICITED) | NA_OVERRIDE;
    answer.option = 2; /* target link-layer address */
    answer.option_words = 1;
    set_mac(answer.mac, SERVICE_MAC);
    u64 pseudo = sum_of(ip.source, 32, BE32(sizeof(answer)));
    pseudo += BE32(P_ICMP6);
    u64 rest = sum_of(&answer, sizeof(answer), 0);
    u32 l4 = f->l3 + sizeof(ip);
    if (bpf_skb_change_tail(skb, l4 + sizeof(answer), 0) || bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0) ||
        bpf_skb_store_bytes(skb, f->l3, &ip, sizeof(ip), 0) ||
        bpf_skb_store_bytes(skb, l4, &answer, sizeof(answer), 0))
        return -KERNEL_FAILED;
    return write_checksum(skb, l4 + 2, pseudo, rest);
}
