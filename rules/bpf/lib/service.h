/* Which addresses and ports are the service's. */
#pragma once
#include "abi.h"

static __always_inline struct settings *read_settings(void) {
    u32 zero = 0;
    return settings.lookup(&zero);
}

static __always_inline bool is_service4(struct settings *s, u32 a) {
    return a == s->service4[0] || a == s->service4[1] || a == s->service4[2] || a == s->service4[3];
}

static __always_inline bool same6(const u32 *a, const u32 *b) {
    return a[3] == b[3] && a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

static __always_inline bool is_service6(struct settings *s, const u32 *a) {
    return same6(a, s->service6[0]) || same6(a, s->service6[1]) || same6(a, s->service6[2]) ||
           same6(a, s->service6[3]);
}

static __always_inline bool is_service_port(struct settings *s, u16 port) {
    return port == s->service_port[0] || port == s->service_port[1] || port == s->service_port[2] ||
           port == s->service_port[3];
}

/* The quick no for nearly every packet of others: neither address ends as a service address does. */
static __always_inline bool may_end_so(u64 endings, const void *one, const void *other, u32 bytes) {
    u8 a = *((const u8 *)one + bytes - 1), b = *((const u8 *)other + bytes - 1);
    return (endings >> (a & 63) | endings >> (b & 63)) & 1;
}

/* Whether an address is the solicited-node group of a service address (RFC 4291, 2.7.1). */
static __always_inline bool is_solicited_node(struct settings *s, const u32 *a) {
    if (a[0] != BE32(0xff020000) || a[1] != 0 || a[2] != BE32(1))
        return false;
    u32 low = a[3] | BE32(0xff000000);
#pragma unroll
    for (int i = 0; i < SERVICES; i++)
        if (low == (s->service6[i][3] | BE32(0xff000000)))
            return true;
    return false;
}
