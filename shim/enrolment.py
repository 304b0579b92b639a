"""Which taps are guarded, for whom: links and identities in, datapath actions out.

Wanted state comes from the table of links, the identity sources and the policies; what the kernel holds
is kept in `ports`. Whatever happens only wakes `settle`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from uuid import UUID

from shim.core.policy import Policy
from shim.core.port import Port, Slots
from shim.core.reconcile import Ensure, Remove, Unplaced, Wanted, reconcile
from shim.datapath.base import Datapath, Enrolled
from shim.errors import KernelError
from shim.identity.resolve import Resolution, Resolver
from shim.netlink.links import Link

log = logging.getLogger(__name__)

OWN_NETNS = ""
BREATH = 8
"""Taps settled before others have their turn on the loop: under a millisecond, as a disable may be waiting."""


class Enrolment:
    """`ports` is what the kernel holds, by ifindex; `failures` why a wanted tap is not guarded as it should be."""

    def __init__(
        self,
        datapath: Datapath,
        slots: Slots,
        resolver: Resolver,
        links: Mapping[int, Link],
        patterns: tuple[str, ...],
        policy_of: Callable[[UUID | None], Policy],
        changed: Callable[[Port, bool], None],
        clock: Callable[[], float],
    ) -> None:
        self.ports: dict[int, Port] = {}
        self.resolutions: dict[int, Resolution] = {}
        self.failures: dict[int, KernelError] = {}
        self._datapath = datapath
        self._slots = slots
        self._resolver = resolver
        self._links = links
        self._patterns = patterns
        self._policy_of = policy_of
        self._changed = changed
        self._clock = clock
        self._of_slot: dict[int, Port] = {}
        self._unserved: set[int] = set()  # slots taken in this run for taps of nobody: they need no rest
        self._taps_of: dict[UUID, set[int]] = {}
        self._busy = asyncio.Lock()

    def ports_of(self, instance: UUID) -> list[Port]:
        """The ports of one instance."""
        return [self.ports[ifindex] for ifindex in sorted(self._taps_of.get(instance, ()))]

    async def ports_by_now(self, instance: UUID) -> list[Port]:
        """The same, with one whose enrolment is under way: it may have begun under another policy than today's."""
        async with self._busy:
            return self.ports_of(instance)

    def port_of(self, slot: int, generation: int) -> Port | None:
        """The port that an owner of a slot is, if it still is."""
        port = self._of_slot.get(slot)
        return port if port is not None and port.generation == generation else None

    async def adopt(self, former: Iterable[Enrolled] = ()) -> None:
        """Goes on with what the kernel holds from an earlier run, or with what `former` tells of another datapath
        that the run had, then settles all. A tap that both hold is as this datapath has it."""
        strays = []
        for found in together(await self._datapath.observe(), former, self._slots.size):
            if not found.slot:
                strays.append(found.ifindex)
            elif not found.ifindex:
                self._slots.remember(found.slot, found.generation, self._clock())
            else:
                self._slots.adopt(found.slot, found.generation)
                self._hold(self._adopted(found))
        await self.settle(again=True)
        for ifindex in strays:
            if ifindex not in self.ports:
                await self._datapath.remove(nobodys(ifindex))

    def _adopted(self, found: Enrolled) -> Port:
        link = self._links.get(found.ifindex)
        policy = self._policy_of(found.instance)
        tap = link.name if link else ""
        return Port(found.slot, found.generation, found.ifindex, tap, OWN_NETNS, found.instance, policy)

    async def settle(self, only: Iterable[int] | None = None, *, again: bool = False) -> None:
        """Makes the kernel hold what is wanted: for all taps, or for some. A tap that fails stands in nobody's way."""
        for number, ifindex in enumerate(self._known() if only is None else list(only)):
            async with self._busy:
                await self._settle_one(ifindex, again)
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)

    def _known(self) -> list[int]:
        return list(self._links.keys() | self.ports.keys() | self.failures.keys())

    async def _settle_one(self, ifindex: int, again: bool) -> None:
        wanted = self._wanted(ifindex)
        held = self.ports.get(ifindex)
        pairs = ({ifindex: wanted} if wanted else {}, {ifindex: held} if held else {})
        again = again or ifindex in self.failures
        if not wanted and ifindex in self.failures:
            del self.failures[ifindex]
            if not held:
                await self._datapath.remove(nobodys(ifindex))
        try:
            for action in reconcile(*pairs, self._slots, self._clock(), again=again):
                await self._apply(action)  # what follows a failure is not done: it may rest on it
                self.failures.pop(ifindex, None)
        except KernelError as error:
            self._failed(ifindex, error)
            if not held:
                await self._shut(ifindex)
            elif wanted and held.instance != wanted.instance:
                await self._silence(held)

    def _wanted(self, ifindex: int) -> Wanted | None:
        link = self._links.get(ifindex)
        if link is None:
            self.resolutions.pop(ifindex, None)
            return None
        resolution = self._resolver.resolve(OWN_NETNS, link.name, link.alias)
        if resolution.instance is None and not self._is_guarded(link):
            self.resolutions.pop(ifindex, None)
            return None
        self.resolutions[ifindex] = resolution
        return Wanted(
            ifindex, link.name, OWN_NETNS, resolution.instance, self._policy_of(resolution.instance),
            resolution.project, resolution.address,
        )  # fmt: skip

    def _is_guarded(self, link: Link | None) -> bool:
        return link is not None and any(fnmatchcase(link.name, pattern) for pattern in self._patterns)

    async def _apply(self, action: Ensure | Remove | Unplaced) -> None:
        if isinstance(action, Unplaced):
            raise KernelError(
                f"no slot is left for {action.wanted.tap}", "raise datapath.max_ports, or wait: slots rest a minute"
            )
        if isinstance(action, Ensure):
            await self._ensure(action.port)
        else:
            await self._remove(action.port)

    async def _ensure(self, port: Port) -> None:
        former = self.ports.get(port.ifindex)
        moved_in = former is None or former.slot != port.slot
        if moved_in:  # the proxy knows the guest before its first packet gets through
            self._changed(port, True)
        try:
            await self._datapath.ensure(port)
        except KernelError:
            if moved_in:
                self._changed(port, False)
                self._slots.give_back(port.slot, self._clock())
            if port.ifindex in self._links:
                raise
            return  # the tap went meanwhile, and the kernel's side with it
        self._hold(port)
        if moved_in:
            if port.instance is None:
                self._unserved.add(port.slot)
            log.info("%s (interface %d): slot %d, instance %s", port.tap, port.ifindex, port.slot, port.instance)
        else:
            self._changed(port, True)

    async def _shut(self, ifindex: int) -> None:
        """A tap that cannot be enrolled is guarded all the same: as nobody's, so that nothing passes there."""
        with contextlib.suppress(KernelError):  # why it cannot is known already
            await self._datapath.ensure(nobodys(ifindex))

    async def _silence(self, former: Port) -> None:
        """The tap is another's by now, who cannot be enrolled: at least nobody gets the former owner's data there."""
        anonymous = replace(former, instance=None)
        self._changed(former, False)
        try:
            await self._datapath.ensure(anonymous)
            self._hold(anonymous)
        except KernelError as error:
            log.critical("%s may still be served as %s: %s", former.tap, former.instance, error)

    async def _remove(self, port: Port) -> None:
        self._changed(port, False)
        await self._datapath.remove(port)
        self._slots.give_back(port.slot, self._clock(), served=port.slot not in self._unserved)
        self._unserved.discard(port.slot)
        if self.ports.get(port.ifindex) == port:
            self._release(port)
            log.info("%s (interface %d): gone from slot %d", port.tap, port.ifindex, port.slot)

    def _hold(self, port: Port) -> None:
        former = self.ports.get(port.ifindex)
        if former is not None:
            self._release(former)
        self.ports[port.ifindex] = port
        self._of_slot[port.slot] = port
        if port.instance is not None:
            self._taps_of.setdefault(port.instance, set()).add(port.ifindex)

    def _release(self, port: Port) -> None:
        del self.ports[port.ifindex]
        del self._of_slot[port.slot]
        if port.instance is not None:
            taps = self._taps_of[port.instance]
            taps.discard(port.ifindex)
            if not taps:
                del self._taps_of[port.instance]

    def _failed(self, ifindex: int, error: KernelError) -> None:
        if str(self.failures.get(ifindex)) != str(error):
            log.error("%s", error)
        self.failures[ifindex] = error


def nobodys(ifindex: int) -> Port:
    """What guards a tap without a slot of its own: slot 0 serves nobody."""
    return Port(0, 0, ifindex, "", OWN_NETNS, None, Policy())


def together(found: list[Enrolled], former: Iterable[Enrolled], size: int) -> list[Enrolled]:
    """What one datapath holds, and of what another one held all that does not contradict it.

    A slot above `size`, or with a generation that is over, is nobody's to go on with: its tap gets another one.
    """
    taps = {one.ifindex for one in found if one.slot}
    owned = {one.slot for one in found if one.ifindex}
    resting = {one.slot: one.generation for one in found if one.slot and not one.ifindex}
    more = [
        one
        for one in former
        if 0 < one.slot <= size
        and one.slot not in owned
        and one.generation >= resting.get(one.slot, 0)
        and (not one.ifindex or one.ifindex not in taps)
    ]
    superseded = {one.slot for one in more}
    return [one for one in found if one.ifindex or one.slot not in superseded] + more
