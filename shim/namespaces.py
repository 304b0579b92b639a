"""Which other network namespaces have taps to guard, as they come and go.

A namespace is entered when its name matches `datapath.namespaces`, or when an identity source names a tap in it. What
happens to /run/netns only wakes `settle`, which compares what is there with what is entered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shim.control.shapes import Ailment
from shim.core.link import Link, Place
from shim.enrolment import Enrolment
from shim.errors import KernelError, MetashimError
from shim.kernel import Kernel
from shim.netlink import named
from shim.netlink.inside import Inside
from shim.netlink.links import Links
from shim.netlink.nftables import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entered:
    """A namespace that taps are guarded in. `inode` tells it from a later one of its name."""

    inode: int
    inside: Inside
    links: Links
    tasks: tuple[asyncio.Task[None], ...]


class Namespaces:
    """`named_by_sources` are those that identity sources name taps in; `wake` is told of their links as of the host's
    own, `touched` when somebody else changed tables of ours in one."""

    def __init__(
        self,
        kernel: Kernel,
        enrolment: Enrolment,
        patterns: tuple[str, ...],
        named_by_sources: Callable[[], frozenset[str]],
        table: dict[Place, Link],
        wake: Callable[[Place, bool], None],
        tables: frozenset[str],
        touched: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._enrolment = enrolment
        self._patterns = patterns
        self._named_by_sources = named_by_sources
        self._table = table
        self._wake = wake
        self._tables = tables
        self._touched = touched
        self._entered: dict[str, Entered] = {}
        self._failures: dict[str, MetashimError] = {}
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Keeps up with what is mounted, until cancelled."""
        async for _ in named.changes():
            try:
                await self.settle()
            except Exception:  # the boundary of one look; an audit takes another
                log.exception("a look at the network namespaces failed")

    async def settle(self) -> None:
        """Enters what is wanted, and leaves what has gone or is wanted no more."""
        async with self._busy:
            there = named.names()
            named_by_sources = self._named_by_sources()
            wanted = {name for name in there if name in named_by_sources or self._matches(name)}
            wanted.discard(self._kernel.gateway.name)
            for name, entered in list(self._entered.items()):
                if name not in wanted or entered.inode != there[name]:
                    await self._leave(name, unguarded=there.get(name) == entered.inode)
            self._failures = {name: error for name, error in self._failures.items() if name in wanted}
            for name in sorted(wanted - self._entered.keys()):
                await self._try(name, there[name])

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    async def clean(self) -> None:
        """Removes what a former run left where this one has no taps to guard: a filter there would still stamp its
        packets with a slot that is another's by now."""
        for name in named.names().keys() - self._entered.keys() - {self._kernel.gateway.name}:
            try:
                await self._clean(name)
            except (OSError, KernelError) as error:
                log.warning("the namespace %s could not be looked at: %s", name, error)

    async def _clean(self, name: str) -> None:
        inside = Inside(name, named.path_of(name))
        try:
            if self._kernel.has_left(inside):
                await self._kernel.join(inside)
                await self._kernel.leave(name, unguarded=True)
                log.info("the namespace %s is guarded no more", name)
        finally:
            inside.close()

    async def _try(self, name: str, inode: int) -> None:
        try:
            await self._enter(name, inode)
            self._failures.pop(name, None)
        except (OSError, KernelError) as error:
            what = f"the namespace {name} cannot be guarded: {error}"
            if str(self._failures.get(name)) != what:
                log.error("%s", what)
            self._failures[name] = KernelError(what, "nothing is served there; see the log")

    async def _enter(self, name: str, inode: int) -> None:
        if twins := [other for other, entered in self._entered.items() if entered.inode == inode]:
            raise KernelError(f"it is {twins[0]} by another name")
        inside = Inside(name, named.path_of(name))
        try:
            await self._kernel.join(inside)
        except BaseException:
            inside.close()
            raise
        links = Links(self._table, self._wake, name, inside.entered)
        ready = asyncio.Event()
        watch = Watch(self._tables, self._touched, inside.entered)
        tasks = asyncio.ensure_future(links.run(ready)), asyncio.ensure_future(watch.run())
        self._entered[name] = Entered(inode, inside, links, tasks)
        await ready.wait()
        log.info("the namespace %s is guarded", name)
        for place in self._places(name):
            self._wake(place, False)

    def _places(self, name: str) -> Iterable[Place]:
        return [place for place in self._table if place.netns == name]

    async def _leave(self, name: str, *, unguarded: bool) -> None:
        entered = self._entered.pop(name)
        for task in entered.tasks:
            task.cancel()
        await asyncio.gather(*entered.tasks, return_exceptions=True)
        gone = set(entered.links.forget())
        gone |= {place for place in self._enrolment.ports if place.netns == name}
        await self._enrolment.settle(gone)
        try:
            await self._kernel.leave(name, unguarded=unguarded)
        except KernelError as error:
            log.warning("the namespace %s: %s", name, error)
        entered.inside.close()
        log.info("the namespace %s is guarded no more", name)

    def close(self) -> None:
        """Ends this side; what is in the kernel stays."""
        for entered in self._entered.values():
            for task in entered.tasks:
                task.cancel()
            entered.inside.close()
        self._entered.clear()

    def ailments(self) -> list[Ailment]:
        """What is not well, for operators."""
        return [Ailment("namespace", str(error), error.hint or "") for error in self._failures.values()]
