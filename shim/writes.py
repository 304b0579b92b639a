"""What guests ask to have written: taken from the workers, committed many at a time, and told.

Theory of operation. Asks come one by one over the feed, and each must be on disk before it is answered. They are
gathered while the last ones are committed, and then committed in one transaction, in a thread of their own with a
Store of its own: the disk's time is nobody else's. A savepoint around each keeps one that fails from the others. Then
the workers are told that the store changed, and once they know, whoever asked is answered: who writes reads what it
wrote, from any worker. A Claim writes nothing, and is answered at once (see `shim.leases`).

The agent believes a worker that a slot's guest asks, and nothing else: what is asked is bounded and checked here
again, its values are opaque bytes, and none of it can open what was closed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from shim.core.ask import (
    Ask,
    Claim,
    Confirm,
    Delete,
    Lock,
    Outcome,
    Put,
    Read,
    Ready,
    Release,
    Spend,
)
from shim.core.closure import parse_prefix
from shim.core.kv import KvLimits, Value, parse_key
from shim.core.port import Port
from shim.errors import InputError, StoreError
from shim.feed import Asked, Told
from shim.forward.allowance import Allowance
from shim.leases import Leases
from shim.metadata.store import Store
from shim.metadata.store_marks import Report

log = logging.getLogger("shim.writes")

BATCH = 256
BATCH_BYTES = 8 << 20
QUEUED_BYTES = 64 << 20
"""What may wait to be committed, of all guests; beyond it one is told to come again."""

_DONE = Outcome("done")
_REFUSED = Outcome("refused")
_BUSY = Outcome("unavailable", words="too much is to be written")
_RATE = Outcome("rate", words="too many writes")

Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Write:
    """An ask of one instance's, through the tap that it came by."""

    instance: UUID
    tap: str
    ask: Ask
    tell: Callable[[Outcome], None]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return 200 + (len(self.ask.value) if isinstance(self.ask, Put) else 0)


class Writes:
    """`run` must run. Asks of one worker come under one `reader`, which `gone` ends.

    port      whose a slot and generation is, None if nobody's
    writing   held while anything is written to the store
    written   called, in the loop, with what was committed, before anybody is answered: tells the workers, and returns
              when they know
    """

    def __init__(
        self,
        path: Path,
        left: Callable[[UUID, tuple[str, ...]], tuple[str, ...]],
        port: Callable[[int, int], Port | None],
        limits: KvLimits,
        writing: asyncio.Lock,
        written: Callable[[Sequence[tuple[Write, Outcome]]], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._port = port
        self._limits = limits
        self._writing = writing
        self._written = written
        self._clock = clock
        self._allowance = Allowance(limits.writes_per_second, limits.writes_per_second * 10)
        self._leases = Leases(left, _outcome_of, lambda: secrets.randbits(62) | 1)
        self._queue: list[Write] = []
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "writes")
        self._store: Store | None = None
        self.counts: dict[tuple[str, str], int] = {}
        """Asks by their kind and fate, since this began."""

    def hear(self, reader: object, asked: Asked, tell: Tell) -> None:
        """A worker's message. `tell` takes the answer to that very worker."""
        port = self._port(asked.slot, asked.generation)
        kind = type(asked.ask).__name__.lower()

        def answer(outcome: Outcome) -> None:
            self.counts[kind, outcome.fate] = self.counts.get((kind, outcome.fate), 0) + 1
            tell(Told(asked.number, outcome))

        if port is None or port.instance is None:
            answer(_REFUSED)
        elif isinstance(asked.ask, Claim):
            self._leases.claim(reader, port.instance, asked.ask.items, answer)
        else:
            self._take(Write(port.instance, port.tap, asked.ask, answer))

    def gone(self, reader: object) -> None:
        """A worker has ended, or hears us no more: what it was reading can be read again."""
        self._leases.gone(reader)

    def _take(self, write: Write) -> None:
        ask = write.ask
        if not isinstance(ask, Spend | Release) and not self._allowance.take(write.instance, self._clock()):
            write.tell(_RATE)
        elif self._queued_bytes + write.size > QUEUED_BYTES:
            write.tell(_BUSY)
        else:
            self._queue.append(write)
            self._queued_bytes += write.size
            self._news.set()

    async def run(self) -> None:
        """Commits what is asked, until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while batch := self._batch():
                    await self._commit(batch)
        finally:
            self._thread.submit(self._close).result()
            self._thread.shutdown()

    def _batch(self) -> list[Write]:
        size = count = 0
        for write in self._queue[:BATCH]:
            if count and size + write.size > BATCH_BYTES:
                break
            size, count = size + write.size, count + 1
        batch, self._queue = self._queue[:count], self._queue[count:]
        self._queued_bytes -= size
        return batch

    async def _commit(self, batch: list[Write]) -> None:
        outcomes: Sequence[Outcome]
        allowed = [self._may(write) for write in batch]
        async with self._writing:
            try:
                loop = asyncio.get_running_loop()
                outcomes = await loop.run_in_executor(self._thread, self._apply, batch, allowed)
            except Exception as error:  # noqa: BLE001 - the boundary of one batch
                outcomes = [_outcome_of(error)] * len(batch)
            done = list(zip(batch, outcomes, strict=True))
            await self._written(done)
        for write, outcome in done:
            self._end_lease(write.ask)
            write.tell(outcome)

    def _may(self, write: Write) -> bool:
        ask = write.ask
        return not isinstance(ask, Spend) or self._leases.may_spend(ask.lease, write.instance, ask.items)

    def _end_lease(self, ask: Ask) -> None:
        if isinstance(ask, Spend | Release):
            self._leases.end(ask.lease)

    # In the thread.

    def _apply(self, batch: list[Write], allowed: list[bool]) -> list[Outcome]:
        store = self._store = self._store or Store(self._path, check=False)
        outcomes = []
        with store.transaction():
            for write, may in zip(batch, allowed, strict=True):
                try:
                    with store.savepoint():
                        outcomes.append(_apply(store, write, self._limits) if may else _REFUSED)
                except InputError as error:
                    outcomes.append(Outcome("refused", words=str(error)))
        return outcomes

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()


def _apply(store: Store, write: Write, limits: KvLimits) -> Outcome:
    """Does one of them. Raises StoreError, and InputError for what may not be."""
    ask, instance, who = write.ask, write.instance, f"guest on {write.tap}"
    if isinstance(ask, Put):
        value = Value(_guests(ask.key), ask.value)
        return store.put_value(
            instance, value, if_match=ask.if_match, if_none_match=ask.if_none_match, limits=limits
        )
    if isinstance(ask, Delete):
        return store.delete_value(instance, _guests(ask.key), if_match=ask.if_match)
    if isinstance(ask, Lock):
        prefix = _checked(parse_prefix, ask.prefix)
        if store.latch(instance, prefix):
            store.audit(who, "lock", instance, prefix)
    elif isinstance(ask, Ready | Read):
        kind: Report = "ready" if isinstance(ask, Ready) else "read"
        if store.report(instance, kind):
            store.audit(who, kind, instance)
    elif isinstance(ask, Confirm):
        for item in store.spend(instance, ask.items):
            store.audit(who, "confirm", instance, item)
    elif isinstance(ask, Spend):
        return _spend(store, instance, ask, who)
    elif isinstance(ask, Release) and (back := store.unspend(instance, ask.items, ask.lease)):
        store.audit(who, "not read after all", instance, ", ".join(back))
    return _DONE


def _spend(store: Store, instance: UUID, ask: Spend, who: str) -> Outcome:
    """All of a lease's items at once, or none. Asked again, it is as it was."""
    spent = store.spend(instance, ask.items, ask.lease)
    if len(spent) < len(ask.items) and not store.spent_by(instance, ask.items, ask.lease):
        raise InputError("something of it is no longer to be had")
    for item in spent:
        store.audit(who, "read once", instance, item)
    return _DONE


def _guests(key: str) -> str:
    if not key.startswith("guest/"):
        raise InputError("a guest writes below guest/")
    return _checked(parse_key, key)


def _checked(parse: Callable[[str], str], text: str) -> str:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error)) from None


def _outcome_of(error: Exception) -> Outcome:
    """Why nothing was written; said in the log too, as it is the host's matter."""
    if not isinstance(error, StoreError):
        log.error("what guests ask cannot be written: %s", type(error).__name__, exc_info=error)
        return Outcome("unavailable", words="the store cannot be written")
    log.error("what guests ask cannot be written: %s", error)
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Outcome("full", words="no room is left on the host")
    return Outcome("unavailable", words="the store cannot be written")
