"""What lies in the kernel beneath the ports: the leak guard, the gateway's namespace, and one datapath of the two.

Other namespaces with taps have a guard, a link to the gateway and the datapath of their own: `join`, `leave`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import AsyncIPRoute

from shim.config import Config
from shim.control.shapes import Ailment
from shim.core.link import OWN_NETNS, Link, Place
from shim.datapath.base import Datapath, Enrolled
from shim.datapath.guard import Guard
from shim.errors import KernelError
from shim.handover import Handover
from shim.host import OTHER, Kind, datapath_of, gateway_of, guard_of, mount_bpffs
from shim.netlink import gateway as gateways
from shim.netlink import named
from shim.netlink.branches import Branches
from shim.netlink.inside import Inside

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """Another namespace; `ifindex` is its end of the link to the gateway."""

    inside: Inside
    guard: Guard
    ifindex: int


class Kernel:
    """The kernel's side but for the ports. Once `start` has returned, `datapath` is the one in use, `fallback` says why
    it is not the one that `auto` prefers, and `left` is what the ports can go on with of the other one's."""

    def __init__(self, config: Config, route: AsyncIPRoute) -> None:
        self.gateway = gateway_of(config)
        self.gateway_ifindex = 0
        self.fallback = ""
        self.left: list[Enrolled] = []
        self._branches = Branches(self.gateway)
        self._joined: dict[str, Joined] = {}
        self._config = config
        self._route = route
        self._guard = guard_of(config)
        self._handover: Handover | None = None
        self._faults: dict[str, KernelError] = {}
        self.datapath = self._datapath("nft" if config.datapath.datapath == "nft" else "ebpf")

    def _datapath(self, kind: Kind) -> Datapath:
        return datapath_of(self._config, kind)

    async def lay(self) -> bool:
        """Guard and gateway; whether the gateway's namespace is a new one. Raises KernelError."""
        self._ensure_guard(self._guard)
        return await self._ensure_gateway()

    async def start(self) -> bool:
        """The datapath, on what was laid; whether that took another gateway. Raises KernelError."""
        await self._branches.learn()
        await self._open()
        former = self._datapath(OTHER[self.datapath.name])
        if former.left():
            log.info("%s takes over from %s", self.datapath.name, former.name)
            self._handover = Handover(former)
            self.left = await self._handover.observe()
        elif not self.datapath.cut:
            return False
        self._branches.renew()
        await gateways.remove(self._route, self.gateway)
        await self._ensure_gateway()
        await self.datapath.open(self.gateway_ifindex)
        return True

    async def _ensure_gateway(self) -> bool:
        self.gateway_ifindex, fresh = await gateways.ensure(self._route, self.gateway)
        if fresh:
            self._branches.renew()
        return fresh

    async def _open(self) -> None:
        if self._config.datapath.datapath != "auto":
            await self._open_datapath()
            return
        left = self.datapath.left()
        try:
            await self._open_datapath()
        except KernelError as error:
            self.fallback = " ".join(str(error).split())
            log.warning("no eBPF datapath, nftables takes its place: %s", error)
            if not left:  # what was made in the attempt
                with contextlib.suppress(KernelError):
                    await self.datapath.teardown()
            await self._fall_back()

    async def _open_datapath(self) -> None:
        if self.datapath.name == "ebpf":
            mount_bpffs(Path(self._config.host.bpffs))
        await self.datapath.open(self.gateway_ifindex)

    async def _fall_back(self) -> None:
        self.datapath.close()
        self.datapath = self._datapath("nft")
        try:
            await self._open_datapath()
        except KernelError as error:
            what = f"neither datapath can be had: eBPF: {self.fallback}; nftables: {error}"
            raise KernelError(what, "see `metashim check`", error.errno) from error

    async def join(self, inside: Inside) -> None:
        """Guards taps in another namespace too. Idempotent. Raises KernelError."""
        former = self._joined.get(inside.netns)
        guard = former.guard if former else guard_of(self._config, inside)
        self._ensure_guard(guard, inside.netns)
        ifindex = await self._branches.ensure(inside)
        if self._handover is not None:
            await self._handover.former.join(inside, 0)
        await self.datapath.join(inside, ifindex)
        self._joined[inside.netns] = Joined(inside, guard, ifindex)

    async def leave(self, netns: str, *, unguarded: bool) -> None:
        """Lets go of another namespace, which has no port any more. `unguarded`: its taps are nobody's business from
        now on; else the leak guard stays, for whoever is in there still. Raises KernelError."""
        joined = self._joined.pop(netns, None)
        for part in (_guard_in(netns), _joining(netns)):
            self._faults.pop(part, None)
        if joined is None:
            return
        await self.datapath.leave(netns)
        await self._branches.remove(joined.inside)
        if unguarded:
            joined.guard.teardown()

    async def lead(self, slot: int, netns: str) -> None:
        """Has replies for a slot find the namespace of its tap. Raises KernelError."""
        await self._branches.lead(slot, netns)

    def has_left(self, inside: Inside) -> bool:
        """Whether any run left something in a namespace."""
        return is_ours(self._config, inside)

    def is_gateway(self, place: Place) -> bool:
        """Whether that is a link to the gateway."""
        if place.netns == OWN_NETNS:
            return place.ifindex == self.gateway_ifindex
        joined = self._joined.get(place.netns)
        return joined is not None and joined.ifindex == place.ifindex

    def stands(self, links: Mapping[Place, Link]) -> bool:
        """Whether the gateway is as it was made, as far as a look at the links tells."""
        ends = [Place(OWN_NETNS, self.gateway_ifindex)]
        ends += [Place(netns, joined.ifindex) for netns, joined in self._joined.items()]
        found = [links.get(end) for end in ends]
        return all(link is not None and link.up for link in found) and gateways.is_namespace(self.gateway.path)

    async def audit(self) -> bool:
        """Makes again what somebody may have touched; whether the gateway's namespace is a new one."""
        self._ensure_guard(self._guard)
        fresh = await self._ensure_gateway()
        await self.datapath.open(self.gateway_ifindex)
        for joined in list(self._joined.values()):
            await self._join_again(joined.inside)
        await self.datapath.recheck()
        return fresh

    async def _join_again(self, inside: Inside) -> None:
        """One that cannot be joined, as it may go just now, keeps nobody else from what is to be made again."""
        part = _joining(inside.netns)
        try:
            await self.join(inside)
            self._faults.pop(part, None)
        except KernelError as error:
            self._fault(part, error)

    def _ensure_guard(self, guard: Guard, netns: str = OWN_NETNS) -> None:
        """Where it cannot be had the host is served all the same: the datapath guards what is enrolled."""
        part = _guard_in(netns)
        try:
            guard.ensure()
            self._faults.pop(part, None)
        except KernelError as error:
            self._fault(part, error)

    def _fault(self, part: str, error: KernelError) -> None:
        if str(self._faults.get(part)) != str(error):
            log.error("%s: %s", part, error)
        self._faults[part] = error

    async def hand_over(self, failed: Collection[Place]) -> None:
        """Goes on with ending what the other datapath left, but on taps that `failed` here."""
        if self._handover is None:
            return
        part = f"hand-over from {self._handover.former.name}"
        try:
            await self._handover.go_on(failed)
            self._handover = None
            self._faults.pop(part, None)
        except KernelError as error:
            self._fault(part, error)

    def ailments(self) -> list[Ailment]:
        """What is not well here, for operators."""
        return [
            Ailment(part, str(error), error.hint or "the agent tries again every half minute; see the log")
            for part, error in self._faults.items()
        ]


def _guard_in(netns: str) -> str:
    return f"leak guard in {netns}" if netns else "leak guard"


def _joining(netns: str) -> str:
    return f"namespace {netns}"


def is_ours(config: Config, inside: Inside) -> bool:
    """Whether any run left something in a namespace."""
    guard = guard_of(config, inside)
    return bool(inside.link_index(gateway_of(config).link)) or guard.is_there()


async def teardown(config: Config, route: AsyncIPRoute) -> None:
    """Removes all that any run put into the kernel: either datapath, then the gateway, the guard last, in every
    namespace. What fails does not keep the rest; the first of the KernelErrors is raised in the end."""
    with contextlib.ExitStack() as opened:
        insides = list(_insides(config, opened))
        faults = []
        for step in _removals(config, route, insides):
            try:
                await step
            except KernelError as error:
                faults.append(error)
    if faults:
        raise faults[0]


def _insides(config: Config, opened: contextlib.ExitStack) -> Iterator[Inside]:
    """The other namespaces in which there is something of ours."""
    for name in named.names().keys() - {config.host.name}:
        with contextlib.suppress(OSError):  # it went just now
            inside = Inside(name, named.path_of(name))
            opened.callback(inside.close)
            if is_ours(config, inside):
                yield inside


def _removals(config: Config, route: AsyncIPRoute, insides: list[Inside]) -> Iterator[Awaitable[None]]:
    for kind in ("ebpf", "nft"):
        yield _remove_datapath(datapath_of(config, kind), insides)
    branches = Branches(gateway_of(config))
    for inside in insides:
        yield branches.remove(inside)
        yield _remove_guard(guard_of(config, inside))
    yield gateways.remove(route, gateway_of(config))
    yield _remove_guard(guard_of(config))


async def _remove_datapath(datapath: Datapath, insides: list[Inside]) -> None:
    for inside in insides:
        await datapath.join(inside, 0)
    await datapath.teardown()


async def _remove_guard(guard: Guard) -> None:
    guard.teardown()
