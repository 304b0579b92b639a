"""What happened lately: a bounded list that operators can follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

from shim.control.shapes import EventsView, EventView

KEPT = 1000


class Journal:
    """The last events, numbered from 1. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: deque[EventView] = deque(maxlen=KEPT)
        self._last = 0
        self._news = asyncio.Event()
        self.missed = 0
        """Events that were gone before those who follow them asked."""

    def note(
        self, kind: str, text: str, *, tap: str = "", netns: str = "", instance: UUID | None = None, reason: str = ""
    ) -> None:
        """Adds an event; kinds as of EventView."""
        self._last += 1
        self._events.append(EventView(self._last, self._clock(), kind, text, tap, netns, instance, reason))
        self._news.set()

    async def after(self, seq: int, wait: float) -> EventsView:
        """The events above `seq`, or the first that come within `wait` seconds."""
        if seq > self._last:  # from before a restart
            seq = 0
        if seq == self._last and wait > 0:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), wait)
            except TimeoutError:
                pass
        found = [event for event in self._events if event.seq > seq]
        missed = found[0].seq - seq - 1 if found else 0
        self.missed += missed if seq else 0
        return EventsView(found, self._last, missed)
