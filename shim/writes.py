"""What guests ask to have written: taken from the workers, committed many at a time, and told.

Theory of operation. Asks come one by one over the feed, and each must be on disk before it is answered. They are
gathered while the last ones are committed, and then committed in one transaction, in a thread of their own with a
Store of its own: the disk's time is nobody else's. A savepoint around each keeps one that fails from the others. Then
the workers are told that the store changed, and once they know, whoever asked is answered: who writes reads what it
wrote, from any worker. A Claim writes nothing, and is answered at once (see `shim.leases`).

The agent believes a worker that a slot's guest asks, and nothing else: what is asked is bounded and checked here
again, its values are opaque bytes, and none of it can open what was closed. What a worker tells of a reading (Read,
Spend, Release) is no wish of the guest's, and not bounded by how much that may ask: whoever writes as much as it may
must not be able to read on where a reading ends its access.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
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
from shim.metadata.schema import StoreFullError
from shim.metadata.store import Store
from shim.metadata.store_marks import Report

log = logging.getLogger("shim.writes")

BATCH = 256
BATCH_BYTES = 8 << 20
QUEUED_BYTES = 64 << 20
"""What may wait to be committed, of all guests; beyond it one is told to come again. As much again may wait of what
workers tell."""

_DONE = Outcome("done")
_REFUSED = Outcome("refused")
_BUSY = Outcome("unavailable", words="too much is to be written")
_RATE = Outcome("rate", words="too many writes")
_FULL = Outcome("full", words="no room is left on the host")
_UNWRITTEN = Outcome("unavailable", words="the store cannot be written")

Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Write:
    """An ask of one instance's, by a tap (empty: that is gone), through a worker's connection, the `reader`."""

    instance: UUID
    tap: str
    ask: Ask
    reader: object
    tell: Callable[[Outcome], None]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        if isinstance(self.ask, Put):
            return 200 + len(self.ask.value)
        return 200 + (sum(map(len, self.ask.items)) if isinstance(self.ask, Confirm | Spend | Release) else 0)


class Writes:
    """`run` must run. Asks of one worker come under one `reader`, which `gone` ends.

    left      which of an instance's items can still be had
    port      whose a slot and generation is, None if nobody's
    writing   held while anything is written to the store
    written   called, in the loop, with what was committed, before anybody is answered: tells the workers, and returns
              when they know
    clock     seconds, never going back
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
        self._leases = Leases(left, self._failed, lambda: secrets.randbits(62) | 1)
        self._queue: deque[Write] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "writes")
        self._store: Store | None = None
        self.trouble = ""
        """Why what guests ask could not be written the last time; empty: it was."""
        self.counts: dict[tuple[str, str], int] = {}
        """Asks by their kind and fate, since this began."""

    def hear(self, reader: object, asked: Asked, tell: Tell) -> None:
        """A worker's message. `tell` takes the answer to that very worker."""
        ask = asked.ask
        kind = type(ask).__name__.lower()

        def answer(outcome: Outcome) -> None:
            self.counts[kind, outcome.fate] = self.counts.get((kind, outcome.fate), 0) + 1
            tell(Told(asked.number, outcome))

        port = self._port(asked.slot, asked.generation)
        instance = port.instance if port is not None else None
        if isinstance(ask, Release):  # whose guest may be gone: its lease must end all the same
            instance = self._leases.owner(reader, ask.lease) or instance
        if instance is None:
            answer(_REFUSED)
        elif isinstance(ask, Claim):
            self._leases.claim(reader, instance, ask.items, answer)
        else:
            self._take(Write(instance, port.tap if port is not None else "", ask, reader, answer))

    def gone(self, reader: object) -> None:
        """A worker has ended, or hears us no more: what it was reading can be read again."""
        self._queue = deque(one for one in self._queue if one.reader is not reader or not isinstance(one.ask, Spend))
        self._queued_bytes = sum(one.size for one in self._queue)
        self._leases.gone(reader)

    def _take(self, write: Write) -> None:
        is_told = isinstance(write.ask, Spend | Release | Read)
        if not is_told and not self._allowance.take(write.instance, self._clock()):
            write.tell(_RATE)
        elif self._queued_bytes + write.size > QUEUED_BYTES * (2 if is_told else 1):
            self._end_lease(write.ask)
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
                while self._queue:
                    await self._commit()
        finally:
            self._thread.submit(self._close).result()
            self._thread.shutdown()

    async def _commit(self) -> None:
        """A batch of them, from when its turn to write has come to its answers."""
        async with self._writing:
            batch = self._batch()
            outcomes = await self._kept(batch)
            try:
                await self._written(list(zip(batch, outcomes, strict=True)))
            except Exception:  # the boundary of one batch: it is committed, and those after it must not wait for ever
                log.exception("what guests wrote could not be told")
        for write, outcome in zip(batch, outcomes, strict=True):
            self._end_lease(write.ask)
            write.tell(outcome)

    def _batch(self) -> list[Write]:
        batch: list[Write] = []
        size = 0
        while self._queue and len(batch) < BATCH and (not batch or size + self._queue[0].size <= BATCH_BYTES):
            batch.append(self._queue.popleft())
            size += batch[-1].size
        self._queued_bytes -= size
        return batch

    async def _kept(self, batch: list[Write]) -> list[Outcome]:
        allowed = [self._may(write) for write in batch]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._apply, batch, allowed)
        except Exception as error:  # noqa: BLE001 - the boundary of one batch
            return [self._failed(error)] * len(batch)
        return outcomes

    def _may(self, write: Write) -> bool:
        ask = write.ask
        return not isinstance(ask, Spend) or self._leases.may_spend(ask.lease, write.instance, ask.items)

    def _end_lease(self, ask: Ask) -> None:
        if isinstance(ask, Spend | Release):
            self._leases.end(ask.lease)

    def _failed(self, error: Exception) -> Outcome:
        """Why nothing was written, or cannot be looked up; said in the log once, as it is the host's matter."""
        if str(error) != self.trouble:
            self.trouble = str(error)
            unforeseen = None if isinstance(error, StoreError) else error
            log.error("what guests ask cannot be written: %s", error, exc_info=unforeseen)
        return _FULL if isinstance(error, StoreFullError) else _UNWRITTEN

    # In the thread.

    def _apply(self, batch: list[Write], allowed: list[bool]) -> list[Outcome]:
        """All in one commit. Where there is no room for all of them, each in its own: a small one may fit yet."""
        try:
            outcomes = self._committed(batch, allowed)
        except StoreFullError:
            if len(batch) == 1:
                raise
            return [self._apply_one(*one) for one in zip(batch, allowed, strict=True)]
        done = zip(batch, outcomes, strict=True)
        if any(one.fate == "done" and not isinstance(write.ask, Release) for write, one in done):
            self.trouble = ""  # a release mostly has nothing to be written
        return outcomes

    def _apply_one(self, write: Write, may: bool) -> Outcome:
        try:
            return self._committed([write], [may])[0]
        except StoreError as error:
            return self._failed(error)

    def _committed(self, batch: list[Write], allowed: list[bool]) -> list[Outcome]:
        store = self._store = self._store or Store(self._path, check=False)
        outcomes = []
        with store.transaction():
            for write, may in zip(batch, allowed, strict=True):
                try:
                    with store.savepoint():
                        outcomes.append(_apply(store, write, self._limits) if may else _REFUSED)
                except InputError as error:
                    outcomes.append(Outcome("refused", words=str(error)))
                except StoreError:
                    raise
                except Exception:  # the boundary of one ask
                    log.exception("a guest's %s failed", type(write.ask).__name__)
                    outcomes.append(_UNWRITTEN)
        return outcomes

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()


def _apply(store: Store, write: Write, limits: KvLimits) -> Outcome:
    """Does one of them. Raises StoreError, and InputError for what may not be."""
    ask, instance, who = write.ask, write.instance, f"guest on {write.tap}" if write.tap else "guest"
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
    elif isinstance(ask, Confirm | Spend | Release):
        return _used(store, instance, ask, who)
    return _DONE


def _used(store: Store, instance: UUID, ask: Confirm | Spend | Release, who: str) -> Outcome:
    """What is used up by it, or is not after all; the outcome tells these items."""
    if isinstance(ask, Confirm):
        concerned, what = store.spend(instance, ask.items), "confirm"
    elif isinstance(ask, Spend):
        concerned, what = _spent(store, instance, ask), "read once"
    else:
        concerned, what = store.unspend(instance, ask.items, ask.lease), "not read after all"
    for item in concerned:
        store.audit(who, what, instance, item)
    return Outcome("done", items=concerned)


def _spent(store: Store, instance: UUID, ask: Spend) -> tuple[str, ...]:
    """All of a lease's items at once, or none. Asked again, it is as it was."""
    spent = store.spend(instance, ask.items, ask.lease)
    if len(spent) < len(ask.items) and not store.spent_by(instance, ask.items, ask.lease):
        raise InputError("something of it is no longer to be had")
    return spent


def _guests(key: str) -> str:
    if not key.startswith("guest/"):
        raise InputError("a guest writes below guest/")
    return _checked(parse_key, key)


def _checked(parse: Callable[[str], str], text: str) -> str:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error)) from None
