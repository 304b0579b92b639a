"""Common ground of the upstream's tests: clients that tests drive by hand, and an upstream on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from shim.core.address import parse_address
from shim.core.exchange import Pending, Request, Response
from shim.errors import BackendError
from shim.forward.upstream import Endpoint, Pace, Upstream

GET = Request(b"GET", b"/latest/meta-data/")
OK = Response(200, (), b"yes")
REFUSED = BackendError("connection refused", sent=False)
BROKEN = BackendError("closed within the answer", sent=True)
LATE = BackendError("silent for 30 s", sent=True, late=True)
QUICK = Pace(well=0.05, again=0.01, deadline=0.05)

Done = Callable[[Response | BackendError], None]


class ByHand:
    """A client whose calls end when the test says so, or at once with `always`."""

    def __init__(self, always: Response | BackendError | None = None) -> None:
        self.always = always
        self.calls: list[ByHandCall] = []
        self.asked: list[Request] = []
        self.silenced: list[str] = []
        self.closed = False

    @property
    def busy(self) -> int:
        return len(self.calls)

    def ask(self, request: Request, done: Done) -> ByHandCall:
        self.asked.append(request)
        call = ByHandCall(self, done)
        self.calls.append(call)
        if self.always is not None:
            call.end(self.always)
        return call

    def end(self, outcome: Response | BackendError) -> None:
        """The oldest call ends."""
        self.calls[0].end(outcome)

    def fail_silent(self, why: str) -> None:
        self.silenced.append(why)
        for call in list(self.calls):
            call.end(BackendError(why, sent=True, late=True))

    async def close(self) -> None:
        self.closed = True


class ByHandCall:
    """As a real call it goes on to hold `done` after its end."""

    def __init__(self, client: ByHand, done: Done) -> None:
        self._client = client
        self._done = done
        self.over = False
        self.cancelled = False

    def end(self, outcome: Response | BackendError) -> None:
        assert not self.over, "ended twice, or after it was cancelled"
        self.over = True
        self._client.calls.remove(self)
        self._done(outcome)

    def cancel(self) -> None:
        assert not self.over, "cancelled after its end"
        self.over = self.cancelled = True
        self._client.calls.remove(self)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Site:
    """An upstream of as many addresses as there are clients, with a clock that stands still."""

    def __init__(self, *clients: ByHand, pace: Pace = QUICK) -> None:
        self.clock = Clock()
        self.clients = clients
        self.probes = [ByHand(OK) for _ in clients]
        pairs = zip(clients, self.probes, strict=True)
        endpoints = [
            Endpoint(parse_address(f"http://10.0.0.{number}:80"), client, probe)
            for number, (client, probe) in enumerate(pairs, 1)
        ]
        self.upstream = Upstream("nova", endpoints, b"/health", self.clock, pace)

    @property
    def healthy(self) -> list[bool]:
        return [state.healthy for state in self.upstream.states]

    def asked(self) -> list[int]:
        return [len(client.asked) for client in self.clients]


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine on uvloop; no exception may go astray there."""
    strays: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: strays.append(context))
        await asyncio.wait_for(main, 30)

    uvloop.run(watched())
    assert not strays, strays


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def ended(answer: Response | Pending) -> Response:
    """What is at hand by now."""
    response = answer.response if isinstance(answer, Pending) else answer
    assert response is not None
    return response


async def arrived(answer: Response | Pending) -> Response:
    """What comes of it; who gives up waiting gives the answer up."""
    if isinstance(answer, Response):
        return answer
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    answer.then(future.set_result)
    try:
        return await future
    except asyncio.CancelledError:
        answer.cancel()
        raise
