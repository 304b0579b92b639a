"""Guests that wait for something to become another: long polls and event streams.

Theory of operation. Who waits is kept under what it asks for, by instance; nothing is done for it until its instance
changes. Then what it asks for is made once for all who ask for the same, and whoever has another entity tag is
answered. So it is level-triggered: what changed, how often, and whether anything did, does not matter. Thousands who
wake at once take their turns in slices, so that other guests are answered in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from math import ceil, inf
from uuid import UUID

from shim.core.exchange import Caller, Pending, Rendered, Request, Response

SLICE_SECONDS = 0.002
"""How long those who wake may keep others waiting."""

TICK_SECONDS = 0.1
"""How late one may be told that its time is over: those of one tick share a timer, as thousands would cost."""

Key = tuple[int, int, bytes, bytes, bytes, str]

Evaluate = Callable[[Caller, Request], Rendered | Response]
"""What a caller gets for a request now; a Response where it may not have it any more."""
Deliver = Callable[[Rendered], Response | Pending]
"""An answer made of what is now. A Response without a receipt is the same for all who ask for the same."""
Late = Callable[[], Response | Pending]
"""What one gets whose time is over."""


class Waiter:
    """One who waits, in a group (None: no more); `etag` is what it has."""

    __slots__ = ("etag", "group", "pending", "tick")

    def __init__(self, group: _Group, etag: str) -> None:
        self.group: _Group | None = group
        self.etag = etag
        self.pending = Pending()
        self.tick = 0


class _Group:
    """All who ask for the same, by the same slot, in the same way."""

    __slots__ = ("caller", "deliver", "instance", "key", "late", "request", "waiters")

    def __init__(self, key: Key, caller: Caller, request: Request, deliver: Deliver, late: Late) -> None:
        self.key = key
        self.caller = caller
        self.instance = caller.instance
        self.request = request
        self.deliver = deliver
        self.late = late
        self.waiters: dict[Waiter, None] = {}


class Watches:
    """`evaluate` is asked for what is now; it may raise, which ends those who wait by `failed`, whatever it says.

    To be made within the running loop.
    """

    def __init__(self, evaluate: Evaluate, failed: Callable[[Exception], Response], now: Callable[[], float]) -> None:
        self._evaluate = evaluate
        self._failed = failed
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._groups: dict[UUID, dict[Key, _Group]] = {}
        self._woken: dict[UUID, None] = {}
        self._expiries: dict[UUID, tuple[float, asyncio.TimerHandle]] = {}
        self._ticks: dict[int, dict[Waiter, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    @property
    def instances(self) -> Iterable[UUID]:
        """Whose guests wait."""
        return self._groups.keys()

    def wait(
        self,
        caller: Caller,
        request: Request,
        known: Rendered,
        seconds: float,
        deliver: Deliver,
        late: Late,
        way: str = "",
    ) -> Pending:
        """The answer of one who has `known`, which is what is now: once that is another, or `late` after `seconds`.

        `request` decides what is asked for by its path, its query and its Metadata-Flavor. Those who ask for the same
        in the same `way` share `deliver` and `late`.
        """
        group = self._group(caller, request, deliver, late, way)
        waiter = Waiter(group, known.etag)
        group.waiters[waiter] = None
        self._count += 1
        if seconds != inf:
            self._time(waiter, seconds)
        waiter.pending.when_over(partial(self._forget, waiter))
        if known.until != inf:
            self._expect(caller.instance, known.until)
        return waiter.pending

    def _group(self, caller: Caller, request: Request, deliver: Deliver, late: Late, way: str) -> _Group:
        flavor = request.header(b"metadata-flavor") or b""
        key = (caller.slot, caller.generation, request.path, request.query, flavor, way)
        groups = self._groups.setdefault(caller.instance, {})
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(key, caller, request, deliver, late)
        return group

    def wake(self, instances: Iterable[UUID]) -> None:
        """These instances changed, or what they may do did."""
        idle = not self._woken
        self._woken.update(dict.fromkeys(one for one in instances if one in self._groups))
        if idle and self._woken:
            self._loop.call_soon(self._run)

    def end(self) -> None:
        """The time of all who wait is over."""
        for instance in list(self._groups):
            if instance in self._woken:
                self._look_at(instance)  # it changed, and its turn had not come
            for group in list(self._groups.get(instance, {}).values()):
                for waiter in list(group.waiters):
                    self._answer(waiter, group.late())

    def _run(self) -> None:
        """A slice of those who woke."""
        end = self._loop.time() + SLICE_SECONDS
        while self._woken and self._loop.time() < end:
            self._look_at(next(iter(self._woken)))
        if self._woken:
            self._loop.call_soon(self._run)

    def _look_at(self, instance: UUID) -> None:
        del self._woken[instance]
        for group in list(self._groups.get(instance, {}).values()):
            self._look(group)

    def _look(self, group: _Group) -> None:
        try:
            found = self._evaluate(group.caller, group.request)
        except Exception as error:  # noqa: BLE001 - the boundary of one group's requests
            found = self._failed(error)
        if isinstance(found, Response):
            for waiter in list(group.waiters):
                self._answer(waiter, found)
            return
        if found.until != inf:
            self._expect(group.instance, found.until)
        shared: Response | None = None
        for waiter in [one for one in group.waiters if one.etag != found.etag]:
            answer = shared if shared is not None else group.deliver(found)
            if isinstance(answer, Response) and answer.receipt is None:
                shared = answer
            self._answer(waiter, answer)

    def _answer(self, waiter: Waiter, answer: Response | Pending) -> None:
        self._forget(waiter)
        pending = waiter.pending
        if isinstance(answer, Pending):
            pending.when_over(answer.cancel)
            answer.then(pending.settle)
        else:
            pending.settle(answer)

    def _time(self, waiter: Waiter, seconds: float) -> None:
        waiter.tick = tick = ceil((self._loop.time() + seconds) / TICK_SECONDS)
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = {}
            self._loop.call_at(tick * TICK_SECONDS, self._tick, tick)
        due[waiter] = None

    def _tick(self, tick: int) -> None:
        for waiter in list(self._ticks.pop(tick)):
            group = waiter.group
            if group is not None and group.instance in self._woken:
                self._look_at(group.instance)  # it changed, and others stand before it
            if waiter.group is not None:
                self._answer(waiter, waiter.group.late())

    def _expect(self, instance: UUID, until: float) -> None:
        """What is now will not be after `until` (Unix seconds): look then."""
        known = self._expiries.get(instance)
        if known is not None and known[0] <= until:
            return
        if known is not None:
            known[1].cancel()
        # The clock may be set meanwhile: an hour at most is slept away, then it is looked at again.
        timer = self._loop.call_later(min(max(until - self._now(), 0), 3600) + 0.001, self._expire, instance)
        self._expiries[instance] = (until, timer)

    def _expire(self, instance: UUID) -> None:
        del self._expiries[instance]
        self.wake([instance])

    def _forget(self, waiter: Waiter) -> None:
        group = waiter.group
        if group is None:
            return
        waiter.group = None
        del group.waiters[waiter]
        self._count -= 1
        due = self._ticks.get(waiter.tick)
        if due is not None:  # its timer stays: it finds nobody
            due.pop(waiter, None)
        if not group.waiters:
            self._dissolve(group)

    def _dissolve(self, group: _Group) -> None:
        groups = self._groups[group.instance]
        del groups[group.key]
        if not groups:
            del self._groups[group.instance]
            if group.instance in self._expiries:
                self._expiries.pop(group.instance)[1].cancel()
