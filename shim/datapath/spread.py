"""A datapath that keeps what it has in the namespaces of the taps: one of it in each, seen as one."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from dataclasses import replace

from shim.core.link import OWN_NETNS, Place
from shim.core.port import Port
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath.base import Datapath, Enrolled, Inside
from shim.errors import KernelError


class Spread:
    """One datapath; see Datapath for the methods. `own` is that of the agent's own namespace, `make` makes another."""

    def __init__(self, own: Datapath, make: Callable[[Inside], Datapath]) -> None:
        self.name, self.lacks = own.name, own.lacks
        self._make = make
        self._of: dict[str, Datapath] = {OWN_NETNS: own}
        self._where: dict[int, str] = {}
        self._poll: select.epoll | None = None

    def _all(self) -> Iterator[Datapath]:
        return iter(list(self._of.values()))

    def _must_have(self, port: Port) -> Datapath:
        found = self._of.get(port.netns)
        if found is None:
            raise KernelError(f"{port.tap}: the namespace {port.netns} is not guarded")
        return found

    @property
    def fd(self) -> int:
        return self._poll.fileno() if self._poll else -1

    @property
    def cut(self) -> bool:
        return any(one.cut for one in self._all())

    async def open(self, gateway_ifindex: int) -> None:
        await self._of[OWN_NETNS].open(gateway_ifindex)
        self._hear(self._of[OWN_NETNS])

    def _hear(self, one: Datapath) -> None:
        self._poll = self._poll or select.epoll()
        try:
            self._poll.register(one.fd, select.EPOLLIN)
        except FileExistsError:
            pass

    async def join(self, inside: Inside, gateway_ifindex: int) -> None:
        if inside.netns not in self._of:
            self._of[inside.netns] = self._make(inside)
        if self._poll is None:  # it is only looked at: another datapath takes over
            return
        await self._of[inside.netns].open(gateway_ifindex)
        self._hear(self._of[inside.netns])

    async def leave(self, netns: str) -> None:
        one = self._of.pop(netns, None)
        if one is not None:
            try:
                await one.teardown()
            finally:
                one.close()

    async def observe(self) -> list[Enrolled]:
        found = [
            replace(each, netns=netns) for netns, one in list(self._of.items()) for each in await one.observe()
        ]
        self._where = {each.slot: each.netns for each in found if each.ifindex and each.slot}
        return [each for each in found if each.ifindex] + list(_resting(found, self._where))

    async def ensure(self, port: Port) -> None:
        await self._must_have(port).ensure(port)
        self._where[port.slot] = port.netns

    async def remove(self, port: Port) -> None:
        if port.netns in self._of:
            await self._of[port.netns].remove(port)

    def counters(self, slot: int) -> dict[Verdict, int]:
        one = self._of.get(self._where.get(slot, OWN_NETNS))
        return one.counters(slot) if one is not None else {}

    def events(self) -> list[Event]:
        return [event for one in self._all() for event in one.events()]

    def trace(self, port: Port, on: bool) -> None:
        if port.netns in self._of:
            self._of[port.netns].trace(port, on)

    def traced(self) -> list[Traced]:
        return [packet for one in self._all() for packet in one.traced()]

    def left_out(self, slot: int) -> int:
        one = self._of.get(self._where.get(slot, OWN_NETNS))
        return one.left_out(slot) if one is not None else 0

    def detached(self, place: Place) -> None:
        if place.netns in self._of:
            self._of[place.netns].detached(place)

    async def recheck(self) -> None:
        for one in self._all():
            await one.recheck()

    async def prune(self) -> None:
        for one in self._all():
            await one.prune()

    def left(self) -> bool:
        return any(one.left() for one in self._all())

    async def teardown(self) -> None:
        for one in self._all():
            await one.teardown()

    def close(self) -> None:
        for one in self._all():
            one.close()
        if self._poll is not None:
            self._poll.close()
            self._poll = None


def _resting(found: list[Enrolled], taken: dict[int, str]) -> Iterator[Enrolled]:
    """Slots that are free in every namespace, with the last generation that any of them knows."""
    free: dict[int, Enrolled] = {}
    for each in found:
        if not each.ifindex and each.slot not in taken:
            known = free.get(each.slot)
            free[each.slot] = each if known is None or known.generation < each.generation else known
    yield from free.values()
