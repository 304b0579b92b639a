"""A worker's embedded backend over a real store, with an agent of the test's own at the other end of its asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from shim import feed
from shim.asks import Asks
from shim.catalog import Catalog
from shim.core.ask import Ask, Claim, Confirm, Delete, Outcome, Put, Release, Spend
from shim.core.exchange import Caller, Pending, Request, Response
from shim.core.kv import Value
from shim.core.policy import Family, Policy
from shim.core.source import Reads, Scope, Source
from shim.embedded import Embedded
from shim.forward.identify import Entry
from shim.leases import Leases
from shim.metadata.reader import Reader
from shim.metadata.store import Store

A, B = UUID(int=1), UUID(int=2)
NOW = 1_700_000_000.0
HOST = Scope("host")
OWN = Scope("instance", str(A))
DENIED = Response(403, (), b"denied")


def source(name: str, body: bytes, scope: Scope = OWN, **more: object) -> Source:
    return Source(scope, name, body, **more)  # type: ignore[arg-type]


class LiveSite:
    """`asked` is what came to the agent, which answers by the store unless `silent`."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.store = Store(folder / "m.db", clock=lambda: self.now)
        self.reader = Reader(folder / "m.db", clock=lambda: self.now)
        self.entries = {A: Entry(1, 1, A, Policy()), B: Entry(2, 1, B, Policy())}
        self.denied: set[UUID] = set()
        self.asks = Asks()
        self.asks.connected(self._take)
        self.asked: list[Ask] = []
        self.silent = False
        numbers = iter(range(1, 10_000))
        self.leases = Leases(self.store.unspent, lambda error: Outcome("unavailable"), lambda: next(numbers))
        self.catalog = Catalog(self.reader, "merged", 49_149, lambda: self.now)
        self.embedded = Embedded(self.catalog, self.asks, self._still, 262_144, lambda: self.now)

    def _still(self, caller: Caller, path: bytes) -> Entry | Response:
        return DENIED if caller.instance in self.denied else self.entries[caller.instance]

    def caller(self, instance: UUID = A) -> Caller:
        return Caller(instance.int, 1, instance, Family.V4)

    def policy(self, policy: Policy, instance: UUID = A) -> None:
        self.entries[instance] = replace(self.entries[instance], policy=policy)
        self.embedded.recheck(self.entries[instance])

    def changed(self) -> None:
        """What the agent says after a write."""
        self.embedded.changed()

    def send(
        self, path: str, method: str = "GET", body: bytes = b"", instance: UUID = A, **headers: str
    ) -> Response | Pending | Awaitable[Response]:
        plain, _, query = path.partition("?")
        named = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
        request = Request(method.encode(), plain.encode(), query.encode(), named, body)
        return self.embedded(self.caller(instance), self.entries[instance], request)

    def get(self, path: str, instance: UUID = A, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        """An answer that is there at once."""
        answer = self.send(path, method, body, instance, **headers)
        if isinstance(answer, Pending):
            assert answer.response is not None, "it is still to come"
            return answer.response
        assert isinstance(answer, Response)
        return answer

    def _take(self, line: bytes) -> None:
        message = feed.read_from_worker(line)
        assert isinstance(message, feed.Asked)
        self.asked.append(message.ask)
        if not self.silent:
            self.answer(message)

    def answer(self, message: feed.Asked) -> None:
        """As the agent would, at once."""
        ask, instance = message.ask, UUID(int=message.slot)

        def tell(outcome: Outcome) -> None:
            self.asks.told(feed.Told(message.number, outcome))

        if isinstance(ask, Claim):
            self.leases.claim("worker", instance, ask.items, tell)
            return
        outcome = Outcome("done")
        if isinstance(ask, Put):
            outcome = self.store.put_value(instance, Value(ask.key, ask.value))
        elif isinstance(ask, Delete):
            outcome = self.store.delete_value(instance, ask.key)
        elif isinstance(ask, Spend):
            self.store.spend(instance, ask.items, ask.lease)
        elif isinstance(ask, Release):
            self.store.unspend(instance, ask.items, ask.lease)
        elif isinstance(ask, Confirm):
            self.store.spend(instance, ask.items)
        self.changed()
        if isinstance(ask, Spend | Release):
            self.leases.end(ask.lease)
        tell(outcome)


def tell(folder: Path, story: Callable[[LiveSite], Awaitable[None]]) -> None:
    """Tells a story of a site within a loop."""

    async def whole() -> None:
        site = LiveSite(folder)
        try:
            await story(site)
        finally:
            site.store.close()
            site.reader.close()

    asyncio.run(whole())


def body_of(answer: object) -> bytes:
    assert isinstance(answer, Response)
    return answer.body


ONCE = Reads.ONCE
