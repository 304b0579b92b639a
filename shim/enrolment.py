"""Which taps are guarded, for whom: links and identities in, datapath actions out.

Wanted state comes from the table of links, the identity sources and the policies; what the kernel holds
is kept in `ports`. Whatever happens only wakes `settle`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from uuid import UUID

from shim.core.claims import Claims
from shim.core.link import OWN_NETNS, Link, Place
from shim.core.policy import Policy
from shim.core.port import Port, Slots
from shim.core.reconcile import Action, Cut, Ensure, Unplaced, Wanted, reconcile
from shim.datapath.base import Datapath, Enrolled
from shim.errors import KernelError
from shim.identity.resolve import Resolution, Resolver

log = logging.getLogger(__name__)

BREATH = 8
"""Taps settled before others have their turn on the loop: under a millisecond, as a disable may be waiting."""


async def _lead_nowhere(slot: int, netns: str) -> None:
    """Where there is one namespace alone."""


class Enrolment:
    """`ports` is what the kernel holds, by place; `failures` why a wanted tap is not guarded as it should be.

    `lead` is called with a slot and a namespace before a port is ensured, so that replies find its tap; and once it is
    gone, with the agent's own, where all slots lead that are nobody's.
    """

    def __init__(
        self,
        datapath: Datapath,
        slots: Slots,
        resolver: Resolver,
        links: Mapping[Place, Link],
        patterns: tuple[str, ...],
        policy_of: Callable[[UUID | None], Policy],
        changed: Callable[[Port, bool], None],
        clock: Callable[[], float],
        lead: Callable[[int, str], Awaitable[None]] = _lead_nowhere,
    ) -> None:
        self.ports: dict[Place, Port] = {}
        self.resolutions: dict[Place, Resolution] = {}
        self.failures: dict[Place, KernelError] = {}
        self._datapath = datapath
        self._slots = slots
        self._resolver = resolver
        self._links = links
        self._patterns = patterns
        self._policy_of = policy_of
        self._changed = changed
        self._clock = clock
        self._lead = lead
        self._claims = Claims()
        self._disturbed: set[Place] = set()
        self._of_slot: dict[int, Port] = {}
        self._unserved: set[int] = set()  # slots taken in this run for taps of nobody: they need no rest
        self._taps_of: dict[UUID, set[Place]] = {}
        self._busy = asyncio.Lock()

    def ports_of(self, instance: UUID) -> list[Port]:
        """The ports of one instance."""
        return [self.ports[place] for place in sorted(self._taps_of.get(instance, ()))]

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
                strays.append(found.place)
            elif not found.ifindex:
                self._slots.remember(found.slot, found.generation, self._clock())
                await self._unlead(found.slot)
            else:
                self._slots.adopt(found.slot, found.generation)
                self._hold(self._adopted(found))
        await self.settle(again=True)
        for place in strays:
            if place not in self.ports:
                await self._datapath.remove(nobodys(place))

    def _adopted(self, found: Enrolled) -> Port:
        link = self._links.get(found.place)
        policy = self._policy_of(found.instance)
        tap = link.name if link else ""
        return Port(found.slot, found.generation, found.ifindex, tap, found.netns, found.instance, policy)

    async def settle(self, only: Iterable[Place] | None = None, *, again: bool = False) -> None:
        """Makes the kernel hold what is wanted: for all taps, or for some. A tap that fails stands in nobody's way."""
        todo = deque(self._known() if only is None else only)
        number = 0
        while todo:
            place = todo.popleft()
            async with self._busy:
                await self._settle_one(place, again)
                todo.extend(self._disturbed)
                self._disturbed.clear()
            number += 1
            if number % BREATH == 0:
                await asyncio.sleep(0)

    def _known(self) -> list[Place]:
        """All places, in the order that they came; first those where nothing is served yet, whose guests wait."""
        return sorted(dict.fromkeys([*self._links, *self.ports, *self.failures]), key=self.ports.__contains__)

    async def _settle_one(self, place: Place, again: bool) -> None:
        held = self.ports.get(place)
        wanted = self._wanted(place, held)
        pairs = ({place: wanted} if wanted else {}, {place: held} if held else {})
        again = again or place in self.failures
        if not wanted and place in self.failures:
            del self.failures[place]
            if not held:
                await self._datapath.remove(nobodys(place))
        try:
            for action in reconcile(*pairs, self._slots, self._clock(), again=again):
                await self._apply(action)  # what follows a failure is not done: it may rest on it
                self.failures.pop(place, None)
        except KernelError as error:
            self._failed(place, error)
            if not held:
                await self._shut(place)

    def _wanted(self, place: Place, held: Port | None) -> Wanted | None:
        link = self._links.get(place)
        resolution = self._resolver.resolve(link) if link is not None else Resolution()
        if resolution.waits and held is not None and held.instance is not None:
            resolution = replace(resolution, instance=held.instance)  # as the kernel has it of the former run
        self._disturbed |= self._claims.put(place, resolution.instance, resolution.rank)
        if link is None or (resolution.instance is None and not self._is_guarded(link)):
            self.resolutions.pop(place, None)
            return None
        if (better := self._claims.better(place)) is not None:
            resolution = self._outdone(resolution, better)
        self.resolutions[place] = resolution
        return Wanted(
            link.name, resolution.instance, self._policy_of(resolution.instance),
            resolution.project, resolution.address, resolution.name, resolution.flavor,
        )  # fmt: skip

    def _outdone(self, resolution: Resolution, better: Place) -> Resolution:
        """One instance, two taps, two sources: the better source knows where it is."""
        link, other = self._links.get(better), self.resolutions.get(better, Resolution())
        where = f"{link.name if link else better.ifindex}{f' in {better.netns}' if better.netns else ''}"
        what = f"{other.source} says that {resolution.instance} is on {where} and wins"
        return Resolution(elsewhere=f"{what}; {resolution.source} says it is here")

    def _is_guarded(self, link: Link | None) -> bool:
        return link is not None and any(fnmatchcase(link.name, pattern) for pattern in self._patterns)

    async def _apply(self, action: Action) -> None:
        if isinstance(action, Unplaced):
            raise KernelError(
                f"no slot is left for {action.wanted.tap}", "raise datapath.max_ports, or wait: slots rest a minute"
            )
        if isinstance(action, Ensure):
            await self._ensure(action.port)
        elif isinstance(action, Cut):
            await self._cut(action.port)
        else:
            await self._remove(action.port)

    async def _ensure(self, port: Port) -> None:
        former = self.ports.get(port.place)
        moved_in = former is None or former.slot != port.slot
        if moved_in:  # the proxy knows the guest before its first packet gets through
            self._changed(port, True)
        try:
            await self._lead(port.slot, port.netns)
            await self._datapath.ensure(port)
        except KernelError:
            if moved_in:
                self._changed(port, False)
                await self._undo(port)
            if port.place in self._links:
                raise
            return  # the tap went meanwhile
        self._hold(port)
        if moved_in:
            if port.instance is None:
                self._unserved.add(port.slot)
            log.info("%s: slot %d, instance %s", _shown(port), port.slot, port.instance)
        else:
            self._changed(port, True)

    async def _undo(self, port: Port) -> None:
        """What was made of a port that could not be enrolled: its slot is nobody's."""
        with contextlib.suppress(KernelError):  # whoever gets the slot next begins with all of it anew
            await self._datapath.remove(port)
        self._slots.give_back(port.slot, self._clock())
        await self._unlead(port.slot)

    async def _shut(self, place: Place) -> None:
        """A tap that cannot be enrolled is guarded all the same: as nobody's, so that nothing passes there."""
        with contextlib.suppress(KernelError):  # why it cannot is known already
            await self._datapath.ensure(nobodys(place))

    async def _cut(self, port: Port) -> None:
        """The tap is another's by now: nobody gets the former owner's data there any more, whatever comes next."""
        self._changed(port, False)
        anonymous = replace(port, instance=None)
        await self._datapath.ensure(anonymous)
        self._hold(anonymous)
        log.info("%s: no longer instance %s", _shown(port), port.instance)

    async def _remove(self, port: Port) -> None:
        self._changed(port, False)
        await self._datapath.remove(port)
        self._slots.give_back(port.slot, self._clock(), served=port.slot not in self._unserved)
        self._unserved.discard(port.slot)
        if self.ports.get(port.place) == port:
            self._release(port)
            log.info("%s: gone from slot %d", _shown(port), port.slot)
        await self._unlead(port.slot)

    async def _unlead(self, slot: int) -> None:
        with contextlib.suppress(KernelError):  # whoever gets it next has it led anew
            await self._lead(slot, OWN_NETNS)

    def _hold(self, port: Port) -> None:
        former = self.ports.get(port.place)
        if former is not None:
            self._release(former)
        self.ports[port.place] = port
        self._of_slot[port.slot] = port
        if port.instance is not None:
            self._taps_of.setdefault(port.instance, set()).add(port.place)

    def _release(self, port: Port) -> None:
        del self.ports[port.place]
        del self._of_slot[port.slot]
        if port.instance is not None:
            taps = self._taps_of[port.instance]
            taps.discard(port.place)
            if not taps:
                del self._taps_of[port.instance]

    def _failed(self, place: Place, error: KernelError) -> None:
        if str(self.failures.get(place)) != str(error):
            log.error("%s", error)
        self.failures[place] = error


def _shown(port: Port) -> str:
    return f"{port.tap} (interface {port.ifindex}{f' in {port.netns}' if port.netns else ''})"


def nobodys(place: Place) -> Port:
    """What guards a tap without a slot of its own: slot 0 serves nobody."""
    return Port(0, 0, place.ifindex, "", place.netns, None, Policy())


def together(found: list[Enrolled], former: Iterable[Enrolled], size: int) -> list[Enrolled]:
    """What one datapath holds, and of what another one held all that does not contradict it.

    A slot above `size`, or with a generation that is over, is nobody's to go on with: its tap gets another one.
    """
    taps = {one.place for one in found if one.slot}
    owned = {one.slot for one in found if one.ifindex}
    resting = {one.slot: one.generation for one in found if one.slot and not one.ifindex}
    more = [
        one
        for one in former
        if 0 < one.slot <= size
        and one.slot not in owned
        and one.generation >= resting.get(one.slot, 0)
        and (not one.ifindex or one.place not in taps)
    ]
    superseded = {one.slot for one in more}
    return [one for one in found if one.ifindex or one.slot not in superseded] + more
