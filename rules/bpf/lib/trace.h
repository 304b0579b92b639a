/* Packets shown to an operator who traces a port (`metashim trace`): how each began, and what became of it.
 *
 * A port that is not traced pays for one look at a byte of a record that is at hand. One that is may be shown a
 * bounded number of packets; what is left out is counted. */
#pragma once
#include "bucket.h"
#include "frame.h"

#define TRACE_NS 1000000ull /* the price of one: 1,000 a second */
#define TRACE_BURST_NS 200000000ull

static __always_inline struct trace *reserve_trace(struct tracing *of, u64 now) {
    struct trace *shown = 0;
    if (spend(&of->spent_ns, TRACE_NS, TRACE_BURST_NS, now))
        shown = traces.ringbuf_reserve(sizeof(*shown));
    if (!shown)
        __sync_fetch_and_add(&of->left_out, 1);
    return shown;
}

/* Copies the packet as it is now. 0 if it is not to be shown; else `is_shown` is set, and `end_trace` must follow.
 *
 * That has a variable of its own, which the compiler may not look into: verifiers before 6.4 do not know that what was
 * reserved cannot be null when it is asked for a second time, and miss the submission on that way. */
static __always_inline struct trace *begin_trace(struct __sk_buff *skb, u32 slot, struct port *port, u8 to_guest,
                                                 u64 *is_shown) {
    *is_shown = 0;
    if (!port || !port->traced)
        return 0;
    struct tracing *of = tracings.lookup(&slot);
    u64 now = bpf_ktime_get_ns();
    struct trace *shown = of ? reserve_trace(of, now) : 0;
    if (!shown)
        return 0;
    u32 last = skb->len < TRACE_BYTES ? skb->len - 1 : TRACE_BYTES - 1;
    asm volatile("" : "+r"(last)); /* else the compiler drops the mask, and the verifier sees no bound */
    u32 kept = (last & (TRACE_BYTES - 1)) + 1;
    if (bpf_skb_load_bytes(skb, 0, shown->frame, kept))
        kept = 0;
    shown->ns = now;
    shown->slot = slot;
    shown->generation = port->generation;
    shown->length = skb->len;
    shown->kept = kept;
    shown->tag_protocol = skb->vlan_present ? (u16)skb->vlan_proto : 0;
    shown->tag_tci = BE16((u16)skb->vlan_tci);
    shown->to_guest = to_guest;
    u64 yes = 1;
    asm volatile("" : "+r"(yes));
    *is_shown = yes;
    return shown;
}

static __always_inline void end_trace(struct trace *shown, u64 is_shown, int verdict) {
    if (!is_shown)
        return;
    shown->verdict = verdict < 0 ? -verdict : verdict;
    traces.ringbuf_submit(shown, 0);
}
