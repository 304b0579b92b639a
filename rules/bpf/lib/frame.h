/* A frame under inspection: Ethernet and VLAN tags, then what is not decided by addresses alone.
 *
 * The outermost tag of a frame that came in by a device stands beside the packet (skb->vlan_tci), any further ones
 * in it; in BPF_PROG_TEST_RUN all of them stand in it. Both are read here. Frames that are not ours see this and the
 * address comparison of their family only; that path reads the packet directly, all others by bpf_skb_load_bytes,
 * which also reads what does not lie in the linear part. */
#pragma once
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include "abi.h"

#define ETH_P_8021Q_BE 0x0081
#define ETH_P_8021AD_BE 0xa888
#define ETH_P_QINQ1_BE 0x0091
#define ETH_P_IP_BE 0x0008
#define ETH_P_IPV6_BE 0xdd86
#define ETH_P_ARP_BE 0x0608
#define TAGS_SEEN 4 /* tags that are looked under for service addresses; a frame with more is refused */

#define BE16(x) ((u16)__builtin_bswap16(x))
#define BE32(x) ((u32)__builtin_bswap32(x))

struct frame {
    u32 l3;           /* offset of the network header */
    u16 protocol;     /* ethertype behind the tags, network order */
    u8 tags;          /* all of them */
    u8 tags_inside;   /* those in the packet itself */
    u8 tags_foreign;  /* those of a kind that the kernel's bpf_skb_vlan_pop and _push know nothing of */
    struct tag tag[TAGS];
};

struct macs {
    u8 destination[6];
    u8 source[6];
};

static __always_inline bool is_tag(u16 protocol) {
    return protocol == ETH_P_8021Q_BE || protocol == ETH_P_8021AD_BE || protocol == ETH_P_QINQ1_BE;
}

/* Whether the tags can be taken off and put back into replies. */
static __always_inline bool tags_understood(struct frame *f) {
    return f->tags <= TAGS && !f->tags_foreign;
}

static __always_inline void note_tag(struct frame *f, u16 protocol, u16 tci) {
    if (f->tags == 0)
        f->tag[0] = (struct tag){protocol, tci};
    else if (f->tags == 1)
        f->tag[1] = (struct tag){protocol, tci};
    f->tags++;
    f->tags_foreign += protocol == ETH_P_QINQ1_BE;
}

/* Finds the network header. 0, or -VLAN_DEPTH, or -MALFORMED for a frame that ends within its tags. */
static __always_inline int find_l3(struct __sk_buff *skb, struct frame *f) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    if (data + ETH_HLEN > end)
        return -MALFORMED;
    f->protocol = ((struct ethhdr *)data)->h_proto;
    f->l3 = ETH_HLEN;
    if (skb->vlan_present)
        note_tag(f, (u16)skb->vlan_proto, (u16)BE16((u16)skb->vlan_tci));
    if (!is_tag(f->protocol))
        return 0;
#pragma unroll
    for (int i = 0; i < TAGS_SEEN; i++) {
        struct { u16 tci; u16 protocol; } inside;
        if (bpf_skb_load_bytes(skb, f->l3, &inside, sizeof(inside)))
            return -MALFORMED;
        note_tag(f, f->protocol, inside.tci);
        f->tags_inside++;
        f->l3 += sizeof(inside);
        f->protocol = inside.protocol;
        if (!is_tag(f->protocol))
            return f->tags > TAGS_SEEN ? -VLAN_DEPTH : 0;
    }
    return -VLAN_DEPTH;
}

static __always_inline bool same_mac(const u8 *a, const u8 *b) {
    return *(u32 *)a == *(u32 *)b && *(u16 *)(a + 4) == *(u16 *)(b + 4);
}

static __always_inline void copy_mac(u8 *to, const u8 *from) {
    __builtin_memcpy(to, from, 6);
}

/* By its bytes and not from an array: some compilers (LLVM 19) take the address of one that is constant, which lies in
 * .rodata then, and bcc loads none. */
static __always_inline void set_mac(u8 *to, u8 a, u8 b, u8 c, u8 d, u8 e, u8 f) {
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
    to[4] = e;
    to[5] = f;
}

/* An answer comes from where the question went, unless that was a group. */
static __always_inline void copy_asked_mac(u8 *to, const u8 *asked) {
    if (asked[0] & 1)
        set_mac(to, SERVICE_MAC);
    else
        copy_mac(to, asked);
}
