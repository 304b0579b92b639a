"""Guests that wait for something to become another: long polls and event streams.

Theory of operation. Who waits is kept under what it asks for, by instance; nothing is done for it until its instance
changes. Then what it asks for is made once for all who ask for the same, and whoever has another entity tag is
answered. So it is level-triggered: what changed, how often, and whether anything did, does not matter. Thousands who
wake at once take their turns in slices, so that other guests are answered in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import ceil, inf
from uuid import UUID

from shim.core.exchange import Caller, Pending, Rendered, Request, Response

SLICE_SECONDS = 0.002
"""How long those who wake may keep others waiting."""

TICK_SECONDS = 0.1
"""How late one may be told that its time is over: those of one tick share a timer, as thousands would cost."""

Key = tuple[int, int, bytes, bytes, bytes]

Evaluate = Callable[[Caller, Request], Rendered | Response]
"""What a caller gets for a request now; a Response where it may not have it any more."""


class Waiter:
    """One who waits. `etag` is what it has; `deliver` makes its answer of what is now."""

    __slots__ = ("deliver", "etag", "key", "late", "pending", "tick")

    def __init__(
        self, key: Key, etag: str, deliver: Callable[[Rendered], Response | Pending], late: Callable[[], Response]
    ) -> None:
        self.key = key
        self.etag = etag
        self.deliver = deliver
        self.late = late
        self.pending = Pending()
        self.tick = 0


class _Group:
    """All who ask for the same."""

    __slots__ = ("caller", "request", "waiters")

    def __init__(self, caller: Caller, request: Request) -> None:
        self.caller = caller
        self.request = request
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
        self._ticks: dict[int, dict[Waiter, UUID]] = {}
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
        deliver: Callable[[Rendered], Response | Pending],
        late: Callable[[], Response],
    ) -> Pending:
        """The answer of one who has `known`, which is what is now: once that is another, or `late` after `seconds`.

        `request` decides what is asked for by its path, its query and its Metadata-Flavor.
        """
        flavor = request.header(b"metadata-flavor") or b""
        key = (caller.slot, caller.generation, request.path, request.query, flavor)
        groups = self._groups.setdefault(caller.instance, {})
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(caller, request)
        waiter = Waiter(key, known.etag, deliver, late)
        group.waiters[waiter] = None
        self._count += 1
        if seconds != inf:
            self._time(caller.instance, waiter, seconds)
        waiter.pending.when_over(lambda: self._forget(caller.instance, waiter))
        self._expect(caller.instance, known.until)
        return waiter.pending

    def wake(self, instances: Iterable[UUID]) -> None:
        """These instances changed, or what they may do did."""
        idle = not self._woken
        self._woken.update(dict.fromkeys(one for one in instances if one in self._groups))
        if idle and self._woken:
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        """A slice of those who woke."""
        end = self._loop.time() + SLICE_SECONDS
        while self._woken and self._loop.time() < end:
            instance = next(iter(self._woken))
            del self._woken[instance]
            for group in list(self._groups.get(instance, {}).values()):
                self._look(instance, group)
        if self._woken:
            self._loop.call_soon(self._run)

    def _look(self, instance: UUID, group: _Group) -> None:
        try:
            found = self._evaluate(group.caller, group.request)
        except Exception as error:  # noqa: BLE001 - the boundary of one group's requests
            found = self._failed(error)
        if isinstance(found, Response):
            for waiter in list(group.waiters):
                self._answer(instance, waiter, found)
            return
        self._expect(instance, found.until)
        for waiter in list(group.waiters):
            if waiter.etag != found.etag:
                self._answer(instance, waiter, waiter.deliver(found))

    def _answer(self, instance: UUID, waiter: Waiter, answer: Response | Pending) -> None:
        self._forget(instance, waiter)
        if isinstance(answer, Pending):
            waiter.pending.when_over(answer.cancel)
            answer.then(waiter.pending.settle)
        else:
            waiter.pending.settle(answer)

    def _time(self, instance: UUID, waiter: Waiter, seconds: float) -> None:
        waiter.tick = tick = ceil((self._loop.time() + seconds) / TICK_SECONDS)
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = {}
            self._loop.call_at(tick * TICK_SECONDS, self._tick, tick)
        due[waiter] = instance

    def _tick(self, tick: int) -> None:
        for waiter, instance in list(self._ticks.pop(tick).items()):
            self._time_out(instance, waiter)

    def _time_out(self, instance: UUID, waiter: Waiter) -> None:
        if instance in self._woken:  # it changed, and others stand before it: its turn comes
            self._run_now(instance)
        if waiter.pending.response is None and self._is_waiting(instance, waiter):
            self._answer(instance, waiter, waiter.late())

    def _run_now(self, instance: UUID) -> None:
        del self._woken[instance]
        for group in list(self._groups.get(instance, {}).values()):
            self._look(instance, group)

    def _is_waiting(self, instance: UUID, waiter: Waiter) -> bool:
        group = self._groups.get(instance, {}).get(waiter.key)
        return group is not None and waiter in group.waiters

    def _expect(self, instance: UUID, until: float) -> None:
        """What is now will not be after `until` (Unix seconds): look then."""
        known = self._expiries.get(instance)
        if until == inf or (known is not None and known[0] <= until):
            return
        if known is not None:
            known[1].cancel()
        # The clock may be set meanwhile: an hour at most is slept away, then it is looked at again.
        timer = self._loop.call_later(min(max(until - self._now(), 0), 3600) + 0.001, self._expire, instance)
        self._expiries[instance] = (until, timer)

    def _expire(self, instance: UUID) -> None:
        del self._expiries[instance]
        self.wake([instance])

    def _forget(self, instance: UUID, waiter: Waiter) -> None:
        groups = self._groups.get(instance)
        group = groups.get(waiter.key) if groups is not None else None
        if groups is None or group is None or waiter not in group.waiters:
            return
        del group.waiters[waiter]
        self._count -= 1
        due = self._ticks.get(waiter.tick)
        if due is not None:  # its timer stays: it finds nobody
            due.pop(waiter, None)
        if not group.waiters:
            del groups[waiter.key]
            if not groups:
                del self._groups[instance]
                if instance in self._expiries:
                    self._expiries.pop(instance)[1].cancel()
