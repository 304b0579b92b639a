"""What happened lately: bounded lists that operators can follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from shim.control.live_shapes import ChangesView, ChangeView
from shim.control.shapes import EventsView, EventView
from shim.waiting import Bell

KEPT = 1000
CHANGES_KEPT = 4096


class _Numbered(Protocol):
    @property
    def seq(self) -> int: ...


N = TypeVar("N", bound=_Numbered)


class Recent(Generic[N]):
    """The last `kept` things of a kind, numbered from 1."""

    def __init__(self, kept: int) -> None:
        self._kept: deque[N] = deque(maxlen=kept)
        self._news = Bell()
        self.last = 0
        """The number of the last one."""
        self.missed = 0
        """How many were gone before those who follow asked."""

    def add(self, make: Callable[[int], N]) -> None:
        """Adds what `make` makes of its number."""
        self.last += 1
        self._kept.append(make(self.last))
        self._news.ring()

    async def after(self, seq: int, wait: float, match: Callable[[N], bool] = lambda one: True) -> tuple[list[N], int]:
        """Those above `seq` that match, or the first that come within `wait` seconds; and how many were gone unseen,
        whether they would have matched or not. A `seq` above any is from before a restart: then all are the answer."""
        seen, missed = (seq if seq <= self.last else 0), 0
        follows = seen > 0
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            missed += max(self.last - len(self._kept) - seen, 0)
            found = [one for one in self._above(seen) if match(one)]
            seen = self.last
            left = deadline - asyncio.get_running_loop().time()
            if found or left <= 0:
                break
            await self._news.heard(left)
        self.missed += missed if follows else 0
        return found, missed

    def _above(self, seq: int) -> list[N]:
        """Those with a higher number, oldest first. Most who ask have seen nearly all."""
        return list(takewhile(lambda one: one.seq > seq, reversed(self._kept)))[::-1]


class Journal:
    """The last events. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: Recent[EventView] = Recent(KEPT)

    @property
    def missed(self) -> int:
        """Events that were gone before those who follow them asked."""
        return self._events.missed

    def note(
        self, kind: str, text: str, *, tap: str = "", netns: str = "", instance: UUID | None = None, reason: str = ""
    ) -> None:
        """Adds an event; kinds as of EventView."""
        now = self._clock()
        self._events.add(lambda seq: EventView(seq, now, kind, text, tap, netns, instance, reason))

    async def after(self, seq: int, wait: float) -> EventsView:
        """The events above `seq`, or the first that come within `wait` seconds."""
        found, missed = await self._events.after(seq, wait)
        return EventsView(found, self._events.last, missed)


class Changes:
    """The last changes of keys. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changes: Recent[ChangeView] = Recent(CHANGES_KEPT)

    @property
    def last(self) -> int:
        """The number of the last one."""
        return self._changes.last

    def put(self, instance: UUID, key: str, etag: str, size: int) -> None:
        """A key was written."""
        now = self._clock()
        self._changes.add(lambda seq: ChangeView(seq, now, instance, key, "put", etag, size))

    def deleted(self, instance: UUID, key: str) -> None:
        """A key was removed, or used up."""
        now = self._clock()
        self._changes.add(lambda seq: ChangeView(seq, now, instance, key, "delete"))

    async def after(self, seq: int, wait: float, instance: UUID | None, prefix: str) -> ChangesView:
        """Those above `seq` of an instance (None: of all) at or below a prefix (empty: all); see Recent.after."""

        def match(one: ChangeView) -> bool:
            here = not prefix or one.key == prefix or one.key.startswith(prefix + "/")
            return here and (instance is None or one.instance == instance)

        found, missed = await self._changes.after(seq, wait, match)
        return ChangesView(found, self._changes.last, missed)
