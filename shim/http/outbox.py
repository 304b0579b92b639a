"""Writes of one turn of the event loop, made back to back at its end.

A write wakes its reader up, on another processor, and readers that have slept in between cost the writer a third of
its time. Those who are written to in one go are awake for the whole of it. Where very many are to be written to, as
when thousands wait for one thing, the first of them do not wait for the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

BATCH = 128


class Sender(Protocol):
    """Who holds bytes back."""

    def flush(self) -> None:
        """Write what is held back, if it is still to be written. Never raises."""


class Outbox:
    """`call_soon` is the event loop's."""

    __slots__ = ("_call_soon", "_senders")

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._call_soon = call_soon
        self._senders: list[Sender] = []

    def post(self, sender: Sender) -> None:
        """Have a sender flushed at the end of this turn, or as soon as there are many."""
        if not self._senders:
            self._call_soon(self._flush)
        self._senders.append(sender)
        if len(self._senders) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.flush()
