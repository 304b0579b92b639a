/* A token bucket in one word: the time up to which tokens are spent. Nothing to refill, nothing to sweep.
 *
 * Two queues of one tap may race here. Spending is atomic, so no token is lost while the bucket is busy; only when
 * it has stood idle may each CPU win one token more than it should. */
#pragma once

static __always_inline bool spend(u64 *spent_ns, u64 price_ns, u64 burst_ns, u64 now) {
    u64 ahead = *spent_ns > now ? *spent_ns - now : 0;
    if (ahead + price_ns > burst_ns)
        return false;
    if (!ahead)
        *spent_ns = now;
    __sync_fetch_and_add(spent_ns, price_ns);
    return true;
}
