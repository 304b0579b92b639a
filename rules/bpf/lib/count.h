/* Counters and events. */
#pragma once
#include "abi.h"
#include "bucket.h"

static __always_inline void count(u32 slot, u32 verdict) {
    struct counters *c = counters.lookup(&slot);
    if (c && verdict < COUNTERS)
        __sync_fetch_and_add(&c->packets[verdict], 1);
}

/* Tells whoever watches of a refusal, at a bounded rate for each port. `what` says who sent what to whom. */
static __always_inline void report(u32 slot, struct settings *s, struct event *what, u64 now) {
    struct port_state *state = port_states.lookup(&slot);
    if (!state || !spend(&state->events_ns, s->event_ns, s->event_burst_ns, now))
        return;
    what->ns = now;
    what->slot = slot;
    struct port *port = ports.lookup(&slot);
    what->generation = port ? port->generation : 0;
    events.ringbuf_output(what, sizeof(*what), 0);
}
