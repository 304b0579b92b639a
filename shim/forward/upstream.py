"""A backend with several addresses: which of them is asked, what follows when it fails, which are in health.

Theory of operation. `ask` gives a request to the next address in turn, and a Future that always ends with a
Response. What provably never reached a backend is tried at the next address; anything else that fails becomes a
502, 503 or 504 with Retry-After. Requests never wait for a check: each address has a task that asks its health
path at a steady pace, sooner when a request failed there or the last check did, by a client of its own (`probe`),
so that one whose connections are all taken by slow answers is not thought frozen. health.py decides what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from shim.core.address import Address
from shim.core.exchange import Parts, Pending, Request, Response
from shim.errors import BackendError
from shim.forward.health import Finding, Health, State, judge
from shim.forward.unavailable import broken_off, unavailable

logger = logging.getLogger("shim.forward")

RETRY_SECONDS = 0.9
"""How long after its arrival a request may be given to another address."""
QUICK_SECONDS = 0.1
"""When all addresses failed as soon as this, the first is tried once more: it may have closed a kept connection
at the very moment."""
REPORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds from the start of one check to the next of the same address. `again`: after one that did not pass, and
    the least in any case; more where that took longer, `deadline` at the most."""

    well: float = 3.0
    again: float = 0.5
    deadline: float = 1.0


class Call(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """Give it up; `done` is not called any more."""


class Client(Protocol):
    """All connections to one address."""

    @property
    def busy(self) -> int:
        """Requests under way."""

    def ask(self, request: Request, done: Callable[[Response | BackendError], None], /) -> Call:
        """Send a request; `done` is called once with what comes of it, perhaps before this returns."""

    def fail_silent(self, why: str, /) -> None:
        """End the requests that have no byte of an answer yet."""

    async def close(self) -> None:
        """End all connections."""


@dataclass(frozen=True, slots=True)
class AddressState:
    """What is thought of one address: `since` by the upstream's clock."""

    text: str
    healthy: bool
    why: str
    since: float


class Endpoint:
    """One address of an upstream. `probe` is another client for it, which checks alone use."""

    __slots__ = ("address", "answers", "answers_before", "client", "doubted", "health", "probe")

    def __init__(self, address: Address, client: Client, probe: Client) -> None:
        self.address = address
        self.client = client
        self.probe = probe
        self.health = Health(0.0)
        self.answers = 0
        self.answers_before = 0  # when the last check began
        self.doubted = asyncio.Event()


class Upstream:
    """See above. `name` is the backend's, for logs and Response.backend; `health_path` is asked for by GET."""

    def __init__(
        self,
        name: str,
        endpoints: Iterable[Endpoint],
        health_path: bytes = b"/",
        clock: Callable[[], float] = time.monotonic,
        pace: Pace = Pace(),
    ) -> None:
        self.name = name
        self.clock = clock
        self.forbidden: Callable[[], None] | None = None
        """Called when the backend answered a request with 403."""
        self._endpoints = tuple(endpoints)
        self._check_request = Request(b"GET", health_path)
        self._pace = pace
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._reports = Reports(name)
        self._unavailable = unavailable(name)
        self._preferred = self._usable = self._endpoints
        now = clock()
        for endpoint in self._endpoints:
            endpoint.health.since = now

    def start(self) -> None:
        """Begin to check, within the running loop. Requests need not wait for it."""
        self._tasks = [asyncio.ensure_future(self._watch(endpoint)) for endpoint in self._endpoints]

    async def close(self) -> None:
        """End the checks and all connections. Requests under way get their 502 or 503."""
        endpoints, self._endpoints = self._endpoints, ()
        self._sort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in endpoints:
            await endpoint.probe.close()
            await endpoint.client.close()

    @property
    def states(self) -> list[AddressState]:
        """All addresses, in the configured order."""
        pairs = ((endpoint.address.text, endpoint.health) for endpoint in self._endpoints)
        return [AddressState(text, h.state is not State.DOWN, h.why, h.since) for text, h in pairs]

    @property
    def refusal(self) -> Response | None:
        """What requests get that are sent nowhere, as no address is up; None while one is."""
        return None if self._preferred else self._unavailable

    # Requests.

    def ask(self, request: Request) -> Response | Pending:
        """The answer, whatever happens a Response; cancelling it gives the request up. At once if no address is up."""
        preferred = self._preferred
        if not preferred:
            return self._unavailable
        self._turn = turn = (self._turn + 1) % len(preferred)
        if request.parts is not None:
            request = replace(request, parts=Once(request.parts))
        return Answer(self, request, preferred[turn])

    def another(self, tried: tuple[Endpoint, ...], began: float) -> Endpoint | None:
        """Who is asked after those that failed."""
        took = self.clock() - began
        fresh = next((e for e in (*self._preferred, *self._usable) if e not in tried), None)
        if fresh is not None:
            return fresh if took < RETRY_SECONDS else None
        first = tried[0]
        again = took < QUICK_SECONDS and tried.count(first) == 1 and first in self._usable
        return first if again else None

    def failed(self, endpoint: Endpoint, error: BackendError) -> None:
        """A request failed there: doubt it, and have it checked."""
        now = self.clock()
        self._reports.failed(f"{endpoint.address.text}: {error}", now)
        endpoint.health.doubt(str(error), now)
        endpoint.doubted.set()
        self._sort()

    def failure(self, error: BackendError) -> Response:
        """What the guest is told of it."""
        return broken_off(self.name, late=error.late) if error.sent else self._unavailable

    # Health.

    async def _watch(self, endpoint: Endpoint) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            endpoint.doubted.clear()
            endpoint.answers_before = endpoint.answers
            finding, why = await self._check(endpoint.probe)
            self._conclude(endpoint, finding, why)
            await asyncio.sleep(began + self._pace.again - now())
            if finding is Finding.PASSED:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(endpoint.doubted.wait(), began + self._pace.well - now())

    async def _check(self, probe: Client) -> tuple[Finding, str]:
        outcome: asyncio.Future[Response | BackendError] = asyncio.get_running_loop().create_future()
        call: Call | None = None
        try:
            call = probe.ask(self._check_request, partial(_settle, outcome))
            async with asyncio.timeout(self._pace.deadline):
                found = await outcome
            if isinstance(found, Response) and found.parts is not None:
                await close_parts(found.parts)
        except TimeoutError:
            return Finding.SILENT, f"no answer to a check within {self._pace.deadline:g} s"
        except Exception as error:  # noqa: BLE001 - the boundary of one check: the next one may do better
            return Finding.BAD, f"a check failed: {error!r}"
        finally:
            if call is not None and outcome.cancelled():
                call.cancel()
        return judge(found)

    def _conclude(self, endpoint: Endpoint, finding: Finding, why: str) -> None:
        health = endpoint.health
        answered = endpoint.answers != endpoint.answers_before
        if health.check(finding, why, self.clock(), answered=answered):
            down = health.state is State.DOWN
            log, text = (logger.warning, f"is down: {why}") if down else (logger.info, "is up again")
            log("backend %s: %s %s", self.name, endpoint.address.text, text)
        self._sort()
        if health.state is State.DOWN and finding is Finding.SILENT:
            endpoint.client.fail_silent(why)

    def _sort(self) -> None:
        self._usable = tuple(e for e in self._endpoints if e.health.state is not State.DOWN)
        self._preferred = tuple(e for e in self._usable if e.health.state is State.UP) or self._usable


def _settle(outcome: asyncio.Future[Response | BackendError], found: Response | BackendError) -> None:
    if not outcome.done():  # its time may be over in this very turn of the loop
        outcome.set_result(found)


class Answer(Pending):
    """The answer to one request, whichever address gives it."""

    __slots__ = ("_began", "_call", "_endpoint", "_request", "_tried", "_upstream")

    _endpoint: Endpoint

    def __init__(self, upstream: Upstream, request: Request, endpoint: Endpoint) -> None:
        super().__init__()
        self._upstream = upstream
        self._request = request
        self._began = upstream.clock()
        self._tried: tuple[Endpoint, ...] = ()
        self._call: Call | None = None
        self._try(endpoint)

    def cancel(self) -> None:
        """The guest has gone: the backend is left at once too."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        super().cancel()

    def _try(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tried = tried = (*self._tried, endpoint)
        call = endpoint.client.ask(self._request, self._ended)
        if self._tried is tried and self.response is None:
            self._call = call

    def _ended(self, outcome: Response | BackendError) -> None:
        self._call = None  # it holds this method, which holds this: not left to the collector
        if isinstance(outcome, Response):
            self._endpoint.answers += 1
            if outcome.status == 403 and (forbidden := self._upstream.forbidden) is not None:
                forbidden()
            self.settle(outcome)
        else:
            self._failed(outcome)

    def _failed(self, error: BackendError) -> None:
        self._upstream.failed(self._endpoint, error)
        parts = self._request.parts
        spent = error.sent or (isinstance(parts, Once) and parts.begun)
        other = None if spent else self._upstream.another(self._tried, self._began)
        if other is None:
            self.settle(self._upstream.failure(error))
        else:
            self._try(other)


class Once:
    """A body in parts that tells whether any of it was asked for: then it cannot be sent a second time."""

    __slots__ = ("_parts", "begun")

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.begun = False

    def __aiter__(self) -> Once:
        return self

    def __anext__(self) -> Any:
        self.begun = True
        return self._parts.__anext__()

    async def aclose(self) -> None:
        """It is given up."""
        await close_parts(self._parts)


async def close_parts(parts: Parts) -> None:
    """Give up a body in parts, if it is of a kind that can be told."""
    aclose = getattr(parts, "aclose", None)
    if aclose is not None:
        await aclose()


class Reports:
    """Failed requests in the log: the first, then at most one line in REPORT_SECONDS, with how many there were."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = float("-inf")
        self._count = 0

    def failed(self, what: str, now: float) -> None:
        """One more."""
        self._count += 1
        if now >= self._next:
            logger.warning("backend %s: requests failed: %d, the last at %s", self._name, self._count, what)
            self._count, self._next = 0, now + REPORT_SECONDS
