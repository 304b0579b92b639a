"""What happened lately, as operators follow it: nothing twice, nothing left out unsaid, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from uuid import UUID

import pytest

from shim.control.live_shapes import ChangeView
from shim.journal import CHANGES_KEPT, KEPT, Changes, Journal, Recent

A, B = UUID(int=1), UUID(int=2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tell(story: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def numbers(recent: Recent[ChangeView], *keys: str) -> None:
    for key in keys:
        recent.add(lambda seq, key=key: ChangeView(seq, 0.0, A, key, "put"))  # type: ignore[misc]


def test_those_above_a_number_oldest_first() -> None:
    async def story() -> None:
        journal, clock = Journal(clock := Clock()), clock
        for number in range(3):
            clock.now += 1
            journal.note("agent", f"{number}", tap="tap1", instance=A)
        view = await journal.after(0, 0)
        assert [(e.seq, e.time, e.text, e.tap, e.instance) for e in view.events] == [
            (1, 1001.0, "0", "tap1", A), (2, 1002.0, "1", "tap1", A), (3, 1003.0, "2", "tap1", A),
        ]  # fmt: skip
        assert (view.next, view.missed) == (3, 0)
        assert [e.seq for e in (await journal.after(2, 0)).events] == [3]
        view = await journal.after(3, 0)
        assert (view.events, view.next, view.missed) == ([], 3, 0)

    tell(story)


def test_nothing_yet_is_nothing_missed() -> None:
    async def story() -> None:
        view = await Journal(Clock()).after(0, 0)
        assert (view.events, view.next, view.missed) == ([], 0, 0)

    tell(story)


def test_who_waits_is_told_of_the_first_that_comes() -> None:
    async def story() -> None:
        journal = Journal(Clock())
        waiting = [asyncio.ensure_future(journal.after(0, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        journal.note("agent", "first")
        journal.note("agent", "second")
        for one in waiting:
            assert [e.text for e in (await one).events] == ["first", "second"]
        late = asyncio.ensure_future(journal.after(2, 10))
        await asyncio.sleep(0)
        assert not late.done()
        journal.note("agent", "third")
        assert [e.text for e in (await late).events] == ["third"]

    tell(story)


def test_a_wait_ends_with_its_time() -> None:
    async def story() -> None:
        journal, loop = Journal(Clock()), asyncio.get_running_loop()
        journal.note("agent", "before")
        began = loop.time()
        assert (await journal.after(1, 0.05)).events == []
        assert 0.04 < loop.time() - began < 1

    tell(story)


def test_who_waits_for_some_is_not_told_of_others() -> None:
    async def story() -> None:
        changes = Changes(Clock())
        waiting = asyncio.ensure_future(changes.after(0, 10, A, "guest/app"))
        for instance, key in ((B, "guest/app"), (A, "guest/application"), (A, "host/guest/app"), (A, "guest")):
            await asyncio.sleep(0)
            changes.put(instance, key, "e", 1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        changes.put(A, "guest/app/state", "tag", 7)
        view = await waiting
        (one,) = view.changes
        assert (one.seq, one.key, one.op, one.etag, one.bytes) == (5, "guest/app/state", "put", "tag", 7)
        assert (view.next, view.missed) == (5, 0)

    tell(story)


@pytest.mark.parametrize(
    ("instance", "prefix", "found"),
    [
        (None, "", ["guest/a", "guest/a/b", "guest/ab", "host/a", "guest/a"]),
        (A, "", ["guest/a", "guest/ab", "host/a"]),
        (B, "guest/a", ["guest/a/b", "guest/a"]), (None, "guest/a", ["guest/a", "guest/a/b", "guest/a"]),
        (None, "guest", ["guest/a", "guest/a/b", "guest/ab", "guest/a"]), (None, "gues", []), (UUID(int=9), "", []),
    ],
)  # fmt: skip
def test_changes_of_an_instance_and_below_a_prefix(instance: UUID | None, prefix: str, found: list[str]) -> None:
    async def story() -> None:
        changes = Changes(Clock())
        for owner, key in ((A, "guest/a"), (B, "guest/a/b"), (A, "guest/ab"), (A, "host/a")):
            changes.put(owner, key, "e", 1)
        changes.deleted(B, "guest/a")
        view = await changes.after(0, 0, instance, prefix)
        assert [change.key for change in view.changes] == found and view.next == 5
        if found and instance is not A:
            assert (view.changes[-1].op, view.changes[-1].etag, view.changes[-1].bytes) == ("delete", "", 0)

    tell(story)


def test_what_was_gone_before_it_was_asked_for_is_counted() -> None:
    async def story() -> None:
        journal = Journal(Clock())
        for number in range(KEPT + 10):
            journal.note("agent", f"{number}")
        view = await journal.after(3, 0)
        assert (len(view.events), view.events[0].seq, view.next, view.missed) == (KEPT, 11, KEPT + 10, 7)
        assert journal.missed == 7
        assert (await journal.after(10, 0)).missed == 0
        assert (await journal.after(9, 0)).missed == 1
        view = await journal.after(0, 0)  # who begins has missed nothing that the host should hear of
        assert view.missed == 10 and journal.missed == 8

    tell(story)


def test_what_one_who_waits_has_looked_at_is_not_missed() -> None:
    """Others' changes go by in thousands: they were seen as they came, and are gone when one of its own comes."""

    async def story() -> None:
        changes = Changes(Clock())
        changes.put(A, "guest/a", "e", 1)
        waiting = asyncio.ensure_future(changes.after(1, 10, A, ""))
        for _ in range(3 * CHANGES_KEPT // 100):
            await asyncio.sleep(0)
            for _ in range(100):
                changes.put(B, "guest/b", "e", 1)
        await asyncio.sleep(0.01)
        changes.put(A, "guest/a", "e2", 1)
        view = await waiting
        assert [change.etag for change in view.changes] == ["e2"] and view.missed == 0

    tell(story)


def test_what_came_and_went_in_one_turn_of_others_is_missed() -> None:
    async def story() -> None:
        recent: Recent[ChangeView] = Recent(4)
        numbers(recent, "a")
        waiting = asyncio.ensure_future(recent.after(1, 10, lambda one: one.key == "z"))
        await asyncio.sleep(0)
        numbers(recent, *"bcdefg")  # b and c are gone at once
        await asyncio.sleep(0.01)
        assert not waiting.done()
        numbers(recent, "z")
        found, missed = await waiting
        assert ([one.seq for one in found], missed, recent.missed) == ([8], 2, 2)

    tell(story)


def test_a_number_from_before_a_restart_gets_all_that_there_is() -> None:
    async def story() -> None:
        journal = Journal(Clock())
        journal.note("agent", "started")
        view = await journal.after(4711, 0)
        assert [e.text for e in view.events] == ["started"] and (view.next, view.missed) == (1, 0)
        empty = Journal(Clock())
        waiting = asyncio.ensure_future(empty.after(4711, 10))
        await asyncio.sleep(0)
        empty.note("agent", "first")
        assert [e.text for e in (await waiting).events] == ["first"]

    tell(story)


def test_what_is_kept_is_bounded() -> None:
    async def story() -> None:
        changes = Changes(Clock())
        for number in range(CHANGES_KEPT + 100):
            changes.put(A, f"guest/{number}", "e", 1)
        view = await changes.after(0, 0, None, "")
        assert len(view.changes) == CHANGES_KEPT and view.missed == 100 and changes.last == CHANGES_KEPT + 100

    tell(story)


def test_thousands_of_changes_are_cheap_to_hundreds_who_wait() -> None:
    async def story() -> None:
        changes = Changes(Clock())
        for _ in range(CHANGES_KEPT):
            changes.put(B, "guest/b", "e", 1)
        waiting = [asyncio.ensure_future(changes.after(changes.last, 30, A, "")) for _ in range(200)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(100):
            changes.put(B, "guest/b", "e", 1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert loop.time() - began < 5, "a look at all that is kept, each time, takes longer"
        changes.put(A, "guest/a", "e", 1)
        assert [len(view.changes) for view in await asyncio.gather(*waiting)] == [1] * 200

    tell(story)
