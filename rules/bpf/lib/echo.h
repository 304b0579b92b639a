/* Echo requests (RFC 792, RFC 4443) are answered where they stand, so that `ping` helps to find faults. */
#pragma once
#include "checksum.h"
#include "ip.h"

static __always_inline int judge_echo(struct __sk_buff *skb, struct packet *p) {
    struct { u8 type, code; } icmp;
    if (p->length < 8 || bpf_skb_load_bytes(skb, p->l4, &icmp, sizeof(icmp)))
        return -MALFORMED;
    return icmp.code == 0 && icmp.type == (p->family == 4 ? 8 : 128) ? ECHO_ANSWERED : -WRONG_PROTOCOL;
}

static __always_inline int answer_echo4(struct __sk_buff *skb, struct frame *f, u8 hop_limit) {
    struct ip4 ip;
    u16 old = BE16(0x0800), fresh = 0;
    if (bpf_skb_load_bytes(skb, f->l3, &ip, sizeof(ip)))
        return -KERNEL_FAILED;
    u32 swap = ip.source;
    ip.source = ip.destination;
    ip.destination = swap;
    ip.ttl = hop_limit;
    ip.checksum = 0;
    ip.checksum = (u16)~fold(sum_of(&ip, sizeof(ip), 0));
    u32 l4 = f->l3 + sizeof(ip);
    if (bpf_skb_store_bytes(skb, f->l3, &ip, sizeof(ip), 0) || bpf_l4_csum_replace(skb, l4 + 2, old, fresh, 2) ||
        bpf_skb_store_bytes(skb, l4, &fresh, 1, 0))
        return -KERNEL_FAILED;
    return 0;
}

static __always_inline int answer_echo6(struct __sk_buff *skb, struct frame *f, u8 hop_limit) {
    struct ip6 ip;
    u16 old = BE16(0x8000), fresh = BE16(0x8100);
    u8 reply = 129;
    if (bpf_skb_load_bytes(skb, f->l3, &ip, sizeof(ip)))
        return -KERNEL_FAILED;
    u32 swap[4];
    __builtin_memcpy(swap, ip.source, 16);
    __builtin_memcpy(ip.source, ip.destination, 16);
    __builtin_memcpy(ip.destination, swap, 16);
    ip.hop_limit = hop_limit;
    u32 l4 = f->l3 + sizeof(ip);
    if (bpf_skb_store_bytes(skb, f->l3, &ip, sizeof(ip), 0) || bpf_l4_csum_replace(skb, l4 + 2, old, fresh, 2) ||
        bpf_skb_store_bytes(skb, l4, &reply, 1, 0))
        return -KERNEL_FAILED;
    return 0;
}

static __always_inline int turn_macs(struct __sk_buff *skb) {
    struct macs macs;
    if (bpf_skb_load_bytes(skb, 0, &macs, sizeof(macs)))
        return -KERNEL_FAILED;
    u8 asked[6];
    copy_mac(asked, macs.destination);
    copy_mac(macs.destination, macs.source);
    copy_asked_mac(macs.source, asked);
    return bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0) ? -KERNEL_FAILED : 0;
}

static __always_inline int answer_echo(struct __sk_buff *skb, struct frame *f, u8 hop_limit) {
    int error = turn_macs(skb);
    if (error)
        return error;
    return f->protocol == ETH_P_IP_BE ? answer_echo4(skb, f, hop_limit) : answer_echo6(skb, f, hop_limit);
}
