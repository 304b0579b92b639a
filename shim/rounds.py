"""When which taps are settled: one that changed at once and alone, all of them now and then, and if need be.

Two things go on side by side. `_follow` settles a tap that the kernel told of, whatever the number of the others.
`_rounds` resolves all when an identity source says otherwise, tries again what failed, and audits: it holds whatever
was missed or heard wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Literal, Protocol

from shim.core.link import Link, Place
from shim.datapath.base import Datapath
from shim.enrolment import Enrolment
from shim.identity.resolve import Resolver
from shim.netlink.links import ALL

log = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0
"""How often what failed is tried again."""

AUDIT_SECONDS = 30.0
"""How often every port is written and attached again, whatever was seen or missed."""


class Ground(Protocol):
    """What lies beneath the ports: see Kernel."""

    datapath: Datapath

    def is_gateway(self, place: Place) -> bool:
        """Whether that is a link to the gateway."""

    def stands(self, links: Mapping[Place, Link]) -> bool:
        """Whether it is as it was made, as far as a glance tells."""

    async def audit(self) -> bool:
        """Makes it again where it is not; whether the gateway is a new one."""

    async def hand_over(self, failed: Collection[Place]) -> None:
        """Goes on with what another datapath left."""


class Rounds:
    """`links` is the watched table of them; `renewed` is called when an audit had to make another gateway, `enter` when
    sources may name taps in other namespaces than before."""

    def __init__(
        self,
        ground: Ground,
        enrolment: Enrolment,
        resolver: Resolver,
        links: Mapping[Place, Link],
        renewed: Callable[[], None],
        enter: Callable[[], Awaitable[None]],
    ) -> None:
        self._ground = ground
        self._enrolment = enrolment
        self._resolver = resolver
        self._links = links
        self._renewed = renewed
        self._enter = enter
        self._woken, self._told = asyncio.Event(), asyncio.Event()
        self._changed: set[Place] = set()
        self._suspects: set[Place] = set()
        self._resolve_all = False
        self._audit_at = time.monotonic() + AUDIT_SECONDS

    def wake(self, place: Place, undone: bool) -> None:
        """That link changed; `undone`: it, or what was attached to it, was removed. ALL: any there may be."""
        if place.ifindex == ALL or self._ground.is_gateway(place):
            self._audit_at = 0.0 if undone else self._audit_at
            self._woken.set()
            return
        if undone and place in self._enrolment.ports:
            self._ground.datapath.detached(place)
            self._suspects.add(place)
        self._changed.add(place)
        self._told.set()

    def resolve(self) -> None:
        """An identity source may say otherwise."""
        self._woken.set()

    def audit(self) -> None:
        """Anything may have happened to anything."""
        self._audit_at = 0.0
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop."""
        following = asyncio.ensure_future(self._follow())
        try:
            await self._rounds(stop)
        finally:
            following.cancel()

    async def _follow(self) -> None:
        while await self._told.wait():
            self._told.clear()
            changed, self._changed = self._changed, set()
            suspects, self._suspects = self._suspects, set()
            with self._boundary():
                self._refresh()
                await self._enrolment.settle(changed)
                await self._enrolment.settle(suspects & self._enrolment.ports.keys(), again=True)
            if self._resolve_all:
                self._woken.set()

    def _refresh(self) -> None:
        """A tap may come right after what says whose it is; who else that concerns is the next round's."""
        self._resolve_all |= self._resolver.refresh()

    async def _rounds(self, stop: asyncio.Event) -> None:
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            await self._pause(stopping)
            self._woken.clear()
            with self._boundary():
                self._refresh()
                await self._round()

    async def _pause(self, stopping: asyncio.Task[Literal[True]]) -> None:
        woken = asyncio.ensure_future(self._woken.wait())
        await asyncio.wait({woken, stopping}, timeout=AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()

    async def _round(self) -> None:
        everyone, self._resolve_all = self._resolve_all, False
        if time.monotonic() >= self._audit_at or not self._ground.stands(self._links):
            self._audit_at = time.monotonic() + AUDIT_SECONDS
            await self._audit()
        elif everyone:
            await self._enter()
            await self._enrolment.settle()
        else:
            await self._enrolment.settle(list(self._enrolment.failures))

    async def _audit(self) -> None:
        """Makes all of it again that somebody may have touched."""
        fresh = await self._ground.audit()
        await self._enter()
        await self._enrolment.settle(again=True)
        await self._ground.hand_over(self._enrolment.failures.keys())
        if fresh:
            self._renewed()

    @contextlib.contextmanager
    def _boundary(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # the boundary of one pass
            log.exception("a pass over the taps failed; the next one looks at everything")
            self._audit_at = 0.0
