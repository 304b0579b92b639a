"""What the agent asks workers about requests that nobody makes, and their answers: see shim.dry_run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shim import feed
from shim.core.prospect import Course, Question

ANSWER_SECONDS = 2.0
"""A worker that takes longer is busy with guests, or stands still."""


class Inquiries:
    """Those that are open, by the connection to the worker that was asked: what another one says counts for nothing."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[tuple[object, int], asyncio.Future[Course]] = {}

    async def ask(
        self,
        worker: object,
        send: Callable[[feed.Explain], None],
        entry: feed.Entry,
        question: Question,
        latched: tuple[str, ...],
    ) -> Course | None:
        """What a worker says; None if it does not in time."""
        self._number += 1
        key = worker, self._number
        answer = self._open[key] = asyncio.get_running_loop().create_future()
        send(feed.Explain(self._number, entry, question, latched))
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            return None
        finally:
            del self._open[key]

    def told(self, worker: object, message: feed.Explained) -> None:
        """A worker's answer."""
        answer = self._open.get((worker, message.number))
        if answer is not None and not answer.done():
            answer.set_result(message.course)
