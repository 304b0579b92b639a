"""Who waits for another state is told of it, once, and of nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from math import inf
from uuid import UUID

from shim.core.exchange import Caller, Pending, Rendered, Request, Response
from shim.core.policy import Family
from shim.errors import StoreError
from shim.forward.watches import SLICE_SECONDS, TICK_SECONDS, Watches

A, B = UUID(int=1), UUID(int=2)
LATE = Response(304)
FAILED = Response(503)
SHUT = Response(403)


class Room:
    """States by instance, and those who wait for them."""

    def __init__(self) -> None:
        self.states = {A: "a0", B: "b0"}
        self.until = inf
        self.now = 1000.0
        self.shut: set[UUID] = set()
        self.broken = False
        self.made: Counter[UUID] = Counter()
        self.watches = Watches(self.evaluate, lambda error: FAILED, lambda: self.now)

    def evaluate(self, caller: Caller, request: Request) -> Rendered | Response:
        self.made[caller.instance] += 1
        if self.broken:
            raise StoreError("gone")
        if caller.instance in self.shut:
            return SHUT
        state = self.states[caller.instance]
        return Rendered(Response(200, (), state.encode()), state, (), self.until)

    def wait(self, instance: UUID = A, path: bytes = b"/x", seconds: float = 60, has: str | None = None) -> Pending:
        caller = Caller(instance.int, 1, instance, Family.V4)
        known = Rendered(Response(200), has or self.states[instance], (), self.until)
        return self.watches.wait(
            caller, Request(b"GET", path), known, seconds, lambda now: now.response, lambda: LATE
        )

    def set(self, state: str, instance: UUID = A) -> None:
        self.states[instance] = state
        self.watches.wake([instance])


def tell(story: Callable[[Room], Awaitable[None]]) -> None:
    async def whole() -> None:
        room = Room()
        await story(room)

    asyncio.run(whole())


async def turns(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


def test_another_state_is_told_to_all_who_wait_and_made_once() -> None:
    async def story(room: Room) -> None:
        mine, others = [room.wait() for _ in range(10)], room.wait(B)
        room.set("a1")
        await turns()
        assert [one.response.body for one in mine if one.response] == [b"a1"] * 10
        assert others.response is None
        assert room.made == {A: 1}
        assert len(room.watches) == 1

    tell(story)


def test_the_same_state_again_is_no_news() -> None:
    async def story(room: Room) -> None:
        pending = room.wait()
        room.set("a1")
        room.set("a0")
        await turns()
        assert pending.response is None
        room.set("a2")
        await turns()
        assert pending.response is not None

    tell(story)


def test_who_came_with_another_state_is_told_at_the_next_wake() -> None:
    async def story(room: Room) -> None:
        pending = room.wait(has="older")
        room.watches.wake([A])
        await turns()
        assert pending.response is not None and pending.response.body == b"a0"

    tell(story)


def test_time_is_over_once() -> None:
    async def story(room: Room) -> None:
        pending = room.wait(seconds=0.01)
        await turns(0.01 + 2 * TICK_SECONDS)
        assert pending.response is LATE
        assert len(room.watches) == 0
        room.set("a1")
        await turns()
        assert pending.response is LATE

    tell(story)


def test_a_change_before_the_time_is_over_is_told_although_its_turn_has_not_come() -> None:
    async def story(room: Room) -> None:
        pending = room.wait(seconds=0.005)
        await asyncio.sleep(0)
        room.states[A] = "a1"
        room.watches._woken[A] = None  # its turn is still to come
        await turns(2 * TICK_SECONDS)
        assert pending.response is not None and pending.response.body == b"a1"

    tell(story)


def test_who_leaves_is_forgotten() -> None:
    async def story(room: Room) -> None:
        stays, leaves = room.wait(), room.wait()
        leaves.cancel()
        assert len(room.watches) == 1
        stays.cancel()
        assert len(room.watches) == 0 and not list(room.watches.instances)

    tell(story)


def test_who_may_not_see_it_any_more_is_told_so() -> None:
    async def story(room: Room) -> None:
        pending = room.wait()
        room.shut.add(A)
        room.watches.wake([A])
        await turns()
        assert pending.response is SHUT

    tell(story)


def test_a_failure_ends_those_it_concerns_alone() -> None:
    async def story(room: Room) -> None:
        pending = room.wait()
        room.broken = True
        room.watches.wake([A])
        await turns()
        assert pending.response is FAILED
        room.broken = False
        other = room.wait(B)
        room.set("b1", B)
        await turns()
        assert other.response is not None and other.response.body == b"b1"

    tell(story)


def test_what_is_so_until_a_time_is_looked_at_then() -> None:
    async def story(room: Room) -> None:
        room.until = room.now + 0.02
        pending = room.wait()
        await turns()
        assert pending.response is None
        room.states[A], room.until = "a1", inf
        await turns(0.05)
        assert pending.response is not None

    tell(story)


def test_at_the_end_all_are_late_but_those_for_whom_there_is_news() -> None:
    async def story(room: Room) -> None:
        late, endless, news = room.wait(), room.wait(seconds=inf), room.wait(B)
        room.set("b1", B)
        room.watches.end()
        assert (late.response, endless.response) == (LATE, LATE)
        assert news.response is not None
        assert news.response.body == b"b1"
        assert len(room.watches) == 0

    tell(story)


def test_thousands_wake_in_slices_and_let_others_in() -> None:
    async def story(room: Room) -> None:
        instances = [UUID(int=n) for n in range(10, 3010)]
        for one in instances:
            room.states[one] = "0"
        waiting = [room.wait(one) for one in instances]
        for one in instances:
            room.states[one] = "1"
        longest, loop = 0.0, asyncio.get_running_loop()
        room.watches.wake(instances)
        while any(one.response is None for one in waiting):
            began = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - began)
        assert longest < 10 * SLICE_SECONDS, "others had their turn"

    tell(story)
