/* ARP for a service address is answered on the port; a claim to one is refused. */
#pragma once
#include "count.h"
#include "frame.h"
#include "service.h"

#define ARP_REQUEST_BE 0x0100
#define ARP_REPLY_BE 0x0200

/* RFC 826 for Ethernet and IPv4. */
struct arp {
    u16 hardware, protocol;
    u8 hardware_size, protocol_size;
    u16 operation;
    u8 sender_mac[6];
    u8 sender[4];
    u8 target_mac[6];
    u8 target[4];
};

static __always_inline int judge_arp(struct __sk_buff *skb, struct frame *f, struct settings *s,
                                     struct event *what) {
    struct arp arp;
    if (bpf_skb_load_bytes(skb, f->l3, &arp, sizeof(arp)))
        return -MALFORMED;
    if (arp.protocol != ETH_P_IP_BE || arp.protocol_size != 4)
        return 0;
    if (arp.hardware_size != 6) /* where the addresses are would be a guess */
        return -MALFORMED;
    u32 sender, target;
    __builtin_memcpy(&sender, arp.sender, 4);
    __builtin_memcpy(&target, arp.target, 4);
    what->source[0] = sender;
    what->destination[0] = target;
    if (is_service4(s, sender))
        return -SPOOFED_ARP;
    if (!is_service4(s, target))
        return 0;
    if (!tags_understood(f))
        return -VLAN_DEPTH;
    return arp.operation == ARP_REQUEST_BE ? ARP_ANSWERED : -WRONG_PROTOCOL;
}

/* Turns the request into its answer, where it stands. 0 or -KERNEL_FAILED. */
static __always_inline int answer_arp(struct __sk_buff *skb, struct frame *f) {
    struct arp arp;
    struct macs macs;
    if (bpf_skb_load_bytes(skb, f->l3, &arp, sizeof(arp)))
        return -KERNEL_FAILED;
    copy_mac(macs.destination, arp.sender_mac);
    set_mac(macs.source, SERVICE_MAC);
    u8 asked[4];
    __builtin_memcpy(asked, arp.target, 4);
    arp.operation = ARP_REPLY_BE;
    copy_mac(arp.target_mac, arp.sender_mac);
    __builtin_memcpy(arp.target, arp.sender, 4);
    set_mac(arp.sender_mac, SERVICE_MAC);
    __builtin_memcpy(arp.sender, asked, 4);
    if (bpf_skb_store_bytes(skb, 0, &macs, sizeof(macs), 0) ||
        bpf_skb_store_bytes(skb, f->l3, &arp, sizeof(arp), 0))
        return -KERNEL_FAILED;
    return 0;
}
