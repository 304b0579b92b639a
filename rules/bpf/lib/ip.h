/* IPv4 and IPv6 headers, and the one shape both take here: addresses of four words, IPv4 in the first. */
#pragma once
#include "frame.h"
#include "service.h"

#define IP_MF_OR_OFFSET_BE 0xff3f

#define P_TCP 6
#define P_ICMP 1
#define P_UDP 17
#define P_ICMP6 58
#define P_HOP_BY_HOP 0
#define P_ROUTING 43
#define P_FRAGMENT 44
#define P_ESP 50
#define P_AH 51
#define P_DESTINATION 60

struct ip4 {
    u8 version_ihl, tos;
    u16 total;
    u16 id, fragment;
    u8 ttl, protocol;
    u16 checksum;
    u32 source, destination;
};

struct ip6 {
    u32 version_class_flow;
    u16 payload;
    u8 next, hop_limit;
    u32 source[4], destination[4];
};

/* A packet to a service address, once its network header is found sound. */
struct packet {
    u32 source[4], destination[4];
    u32 l4;     /* offset of the transport header */
    u32 length; /* of transport header and payload */
    u8 family;  /* 4 or 6 */
    u8 protocol;
};

/* The sizes in the header against each other and against the frame. */
static __always_inline int read_ip4(struct __sk_buff *skb, struct frame *f, struct packet *p) {
    struct ip4 ip;
    if (bpf_skb_load_bytes(skb, f->l3, &ip, sizeof(ip)))
        return -MALFORMED;
    u32 header = (ip.version_ihl & 0xf) * 4, total = BE16(ip.total);
    if (ip.version_ihl >> 4 != 4 || header < sizeof(ip) || total < header || f->l3 + total > skb->len)
        return -MALFORMED;
    p->family = 4;
    p->protocol = ip.protocol;
    p->source[0] = ip.source;
    p->destination[0] = ip.destination;
    p->l4 = f->l3 + sizeof(ip);
    p->length = total - sizeof(ip);
    if (ip.fragment & IP_MF_OR_OFFSET_BE)
        return -FRAGMENT;
    return header > sizeof(ip) ? -IP_OPTIONS : 0;
}

static __always_inline bool is_extension(u8 next) {
    /* 135, 139, 140: mobility, host identity, shim6; 253, 254: experiments (RFC 6564, RFC 7045). */
    return next == P_HOP_BY_HOP || next == P_ROUTING || next == P_ESP || next == P_AH || next == P_DESTINATION ||
           next == 135 || next == 139 || next == 140 || next == 253 || next == 254;
}

static __always_inline int read_ip6(struct __sk_buff *skb, struct frame *f, struct packet *p) {
    struct ip6 ip;
    if (bpf_skb_load_bytes(skb, f->l3, &ip, sizeof(ip)))
        return -MALFORMED;
    if ((ip.version_class_flow & 0xf0) != 0x60 || f->l3 + sizeof(ip) + BE16(ip.payload) > skb->len)
        return -MALFORMED;
    p->family = 6;
    p->protocol = ip.next;
    __builtin_memcpy(p->source, ip.source, 16);
    __builtin_memcpy(p->destination, ip.destination, 16);
    p->l4 = f->l3 + sizeof(ip);
    p->length = BE16(ip.payload);
    if (ip.next == P_FRAGMENT)
        return -FRAGMENT;
    return is_extension(ip.next) ? -EXTENSION_HEADER : 0;
}
