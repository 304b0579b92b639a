"""What guests ask of the agent, on its way from a worker and back. It knows the agent only as a stream of lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from shim import feed
from shim.core.ask import Ask, Outcome
from shim.core.exchange import Caller
from shim.waiting import fulfil

UNAVAILABLE = Outcome("unavailable", words="the agent of this host does not answer")


class _Open(NamedTuple):
    line: bytes
    then: Callable[[Outcome], object]
    until_told: bool


class Asks:
    """The questions that are open. Without an agent one gets `unavailable` at once, unless it is to be asked until it
    is answered: such a one must bear to be asked twice."""

    def __init__(self) -> None:
        self._write: Callable[[bytes], None] | None = None
        self._number = 0
        self._open: dict[int, _Open] = {}
        self._posted: set[tuple[int, int, Ask]] = set()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def connected(self, write: Callable[[bytes], None]) -> None:
        """There is an agent: `write` takes lines for it."""
        self._write = write
        for one in list(self._open.values()):
            write(one.line)

    def disconnected(self) -> None:
        """There is none any more."""
        self._write = None
        for number, one in list(self._open.items()):
            if not one.until_told:
                del self._open[number]
                one.then(UNAVAILABLE)

    def ask(self, caller: Caller, ask: Ask, then: Callable[[Outcome], object], *, until_told: bool = False) -> None:
        """Have `then` called with what becomes of it."""
        if self._write is None and not until_told:
            then(UNAVAILABLE)
            return
        self._number += 1
        number = self._number
        line = feed.encode(feed.Asked(number, caller.slot, caller.generation, ask))
        if len(line) > feed.LINE_BYTES:  # which the agent would end this worker for, and all whom it serves
            then(UNAVAILABLE)
            return
        self._open[number] = _Open(line, then, until_told)
        if self._write is not None:
            self._write(line)

    async def answered(self, caller: Caller, ask: Ask) -> Outcome:
        """What becomes of it, however long that takes; asked again of the next agent if this one dies."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ask(caller, ask, partial(fulfil, future), until_told=True)
        return await future

    def post(self, caller: Caller, ask: Ask) -> None:
        """Tell the agent, now or when there is one. What it is being told already is not told twice: while there is
        none, a guest may read the same as often as it likes."""
        said = caller.slot, caller.generation, ask
        if said not in self._posted:
            self._posted.add(said)
            self.ask(caller, ask, lambda outcome: self._posted.discard(said), until_told=True)

    def told(self, message: feed.Told) -> None:
        """The agent's answer."""
        one = self._open.pop(message.number, None)
        if one is not None:
            one.then(message.outcome)
