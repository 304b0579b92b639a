/* Turns a TCP segment into the reset that answers it (RFC 9293, 3.10.7.1), where it stands. */
#pragma once
#include "checksum.h"
#include "echo.h"
#include "tcp.h"

static __always_inline void write_reset(struct tcp *reset, struct tcp *asked, u32 payload) {
    reset->source = asked->destination;
    reset->destination = asked->source;
    reset->offset = (sizeof(*reset) / 4) << 4;
    if (asked->flags & TCP_ACK) {
        reset->sequence = asked->acknowledged;
        reset->flags = TCP_RST;
        return;
    }
    u32 length = payload + !!(asked->flags & TCP_SYN) + !!(asked->flags & TCP_FIN);
    reset->acknowledged = BE32(BE32(asked->sequence) + length);
    reset->flags = TCP_RST | TCP_ACK;
}

static __always_inline int store_ip4(struct __sk_buff *skb, struct frame *f, struct packet *p, u8 hop_limit) {
    struct ip4 ip = {.version_ihl = 0x45,
                     .total = BE16(sizeof(struct ip4) + sizeof(struct tcp)),
                     .fragment = BE16(0x4000),
                     .ttl = hop_limit,
                     .protocol = P_TCP,
                     .source = p->destination[0],
                     .destination = p->source[0]};
    ip.checksum = (u16)~fold(sum_of(&ip, sizeof(ip), 0));
    return bpf_skb_store_bytes(skb, f->l3, &ip, sizeof(ip), 0);
}

static __always_inline int store_ip6(struct __sk_buff *skb, struct frame *f, struct packet *p, u8 hop_limit) {
    struct ip6 ip = {.version_class_flow = 0x60,
                     .payload = BE16(sizeof(struct tcp)),
                     .next = P_TCP,
                     .hop_limit = hop_limit};
    __builtin_memcpy(ip.source, p->destination, 16);
    __builtin_memcpy(ip.destination, p->source, 16);
    return bpf_skb_store_bytes(skb, f->l3, &ip, sizeof(ip), 0);
}

/* 0, or -KERNEL_FAILED, also for a segment that is a reset itself and gets no answer. */
static __always_inline int answer_reset(struct __sk_buff *skb, struct frame *f, struct packet *p, struct tcp *asked,
                                        u8 hop_limit) {
    struct tcp reset = {};
    if (asked->flags & TCP_RST)
        return -KERNEL_FAILED;
    write_reset(&reset, asked, p->length - (asked->offset >> 4) * 4);
    u64 pseudo = sum_of(p->source, 32, BE32(sizeof(reset))) + BE32(P_TCP);
    u64 rest = sum_of(&reset, sizeof(reset), 0);
    if (bpf_skb_change_tail(skb, p->l4 + sizeof(reset), 0) || turn_macs(skb))
        return -KERNEL_FAILED;
    int error = p->family == 4 ? store_ip4(skb, f, p, hop_limit) : store_ip6(skb, f, p, hop_limit);
    /* The checksum field keeps what it held until write_checksum has asked whose it is. */
    if (error || bpf_skb_store_bytes(skb, p->l4, &reset, offsetof(struct tcp, checksum), 0) ||
        bpf_skb_store_bytes(skb, p->l4 + offsetof(struct tcp, urgent), &reset.urgent, 2, 0))
        return -KERNEL_FAILED;
    return write_checksum(skb, p->l4 + offsetof(struct tcp, checksum), pseudo, rest);
}
