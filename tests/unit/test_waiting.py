"""Waiting for a ring: it ends by the ring, by time, and by being cancelled, whatever comes together."""

from __future__ import annotations

import asyncio
import time

from shim.waiting import Bell


def test_a_ring_is_heard_by_all_who_wait():
    async def hear():
        bell = Bell()
        waiting = [asyncio.ensure_future(bell.heard(10)) for _ in range(3)]
        await asyncio.sleep(0)
        bell.ring()
        await asyncio.wait_for(asyncio.gather(*waiting), 1)

    asyncio.run(hear())


def test_without_a_ring_it_ends_in_time():
    began = time.monotonic()
    asyncio.run(Bell().heard(0.05))
    assert 0.05 <= time.monotonic() - began < 5


def test_who_is_cancelled_as_it_rings_has_ended():
    """A stream of changes whose reader goes at the moment of a change must not go on for nobody."""

    async def hear():
        bell = Bell()

        async def follow():
            while True:
                await bell.heard(0.05)

        task = asyncio.ensure_future(follow())
        await asyncio.sleep(0)
        bell.ring()
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled()

    asyncio.run(hear())
