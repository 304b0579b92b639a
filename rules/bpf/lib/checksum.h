/* Checksums over whole headers, and the question whether the device behind will complete them. */
#pragma once
#include "frame.h"

/* What takes `removed` from a sum and adds `added`, of `size` bytes each, a multiple of 4; 0 for none. It cannot fail
 * of the sizes here: before Linux 6.13 it is a sum of 32 bits, whose first one bcc's int takes for a sign. */
static __always_inline u32 difference(void *removed, void *added, u32 size, u32 seed) {
    return (u32)bpf_csum_diff(removed, removed ? size : 0, added, size, seed);
}

static __always_inline u64 sum_of(void *data, u32 size, u32 seed) {
    return difference(0, data, size, seed);
}

static __always_inline u16 fold(u64 sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (u16)sum;
}

/* Whether the checksum at `offset` still lacks the payload (CHECKSUM_PARTIAL: the sender left it to a device).
 * No field says so. But a change outside the pseudo header leaves exactly such a checksum as it is, so: change
 * by one, look, and write the field afterwards in any case. Negative: the packet cannot be written. */
static __always_inline int is_partial(struct __sk_buff *skb, u32 offset) {
    u16 before = 0, after = 0;
    if (bpf_skb_load_bytes(skb, offset, &before, 2) || bpf_l4_csum_replace(skb, offset, 0, BE16(1), 2) ||
        bpf_skb_load_bytes(skb, offset, &after, 2))
        return -KERNEL_FAILED;
    return before == after;
}

/* Writes a transport checksum: `pseudo` sums the pseudo header, `rest` the header and payload with a zero field. */
static __always_inline int write_checksum(struct __sk_buff *skb, u32 offset, u64 pseudo, u64 rest) {
    int partial = is_partial(skb, offset);
    if (partial < 0)
        return partial;
    u16 sum = partial ? fold(pseudo) : (u16)~fold(pseudo + rest);
    return bpf_skb_store_bytes(skb, offset, &sum, 2, 0) ? -KERNEL_FAILED : 0;
}
