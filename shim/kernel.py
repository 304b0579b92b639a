"""What lies in the kernel beneath the ports: the leak guard, the gateway's namespace, and one datapath of the two."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Collection, Iterator, Mapping
from pathlib import Path

from pyroute2 import AsyncIPRoute

from shim.config import Config
from shim.control.shapes import Ailment
from shim.datapath.base import Datapath, Enrolled
from shim.errors import KernelError
from shim.handover import Handover
from shim.host import OTHER, Kind, datapath_of, gateway_of, guard_of, mount_bpffs
from shim.netlink import gateway as gateways
from shim.netlink.links import Link

log = logging.getLogger(__name__)


class Kernel:
    """The kernel's side but for the ports. Once `start` has returned, `datapath` is the one in use, `fallback` says why
    it is not the one that `auto` prefers, and `left` is what the ports can go on with of the other one's."""

    def __init__(self, config: Config, route: AsyncIPRoute) -> None:
        self.gateway = gateway_of(config)
        self.gateway_ifindex = 0
        self.fallback = ""
        self.left: list[Enrolled] = []
        self._config = config
        self._route = route
        self._guard = guard_of(config)
        self._handover: Handover | None = None
        self._faults: dict[str, KernelError] = {}
        self.datapath = self._datapath("nft" if config.datapath.datapath == "nft" else "ebpf")

    def _datapath(self, kind: Kind) -> Datapath:
        return datapath_of(self._config, self._route, kind)

    async def start(self) -> bool:
        """Guard, gateway, datapath; whether the gateway's namespace is a new one. Raises KernelError."""
        self._ensure_guard()
        fresh = await self._ensure_gateway()
        await self._open()
        former = self._datapath(OTHER[self.datapath.name])
        if former.left():
            log.info("%s takes over from %s", self.datapath.name, former.name)
            self._handover = Handover(former)
            self.left = await self._handover.observe()
        elif not self.datapath.cut:
            return fresh
        await gateways.remove(self._route, self.gateway)
        await self._ensure_gateway()
        await self.datapath.open(self.gateway_ifindex)
        return True

    async def _ensure_gateway(self) -> bool:
        self.gateway_ifindex, fresh = await gateways.ensure(self._route, self.gateway)
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

    def stands(self, links: Mapping[int, Link]) -> bool:
        """Whether the gateway is as it was made, as far as a look at the links tells."""
        link = links.get(self.gateway_ifindex)
        return link is not None and link.up and gateways.is_namespace(self.gateway.path)

    async def audit(self) -> bool:
        """Makes again what somebody may have touched; whether the gateway's namespace is a new one."""
        self._ensure_guard()
        fresh = await self._ensure_gateway()
        await self.datapath.open(self.gateway_ifindex)
        await self.datapath.recheck()
        return fresh

    def _ensure_guard(self) -> None:
        """Where it cannot be had the host is served all the same: the datapath guards what is enrolled."""
        try:
            self._guard.ensure()
            self._faults.pop("leak guard", None)
        except KernelError as error:
            self._fault("leak guard", error)

    def _fault(self, part: str, error: KernelError) -> None:
        if str(self._faults.get(part)) != str(error):
            log.error("%s: %s", part, error)
        self._faults[part] = error

    async def hand_over(self, failed: Collection[int]) -> None:
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


async def teardown(config: Config, route: AsyncIPRoute) -> None:
    """Removes all that any run put into the kernel: either datapath, then the gateway, the guard last. What fails
    does not keep the rest; the first of the KernelErrors is raised in the end."""
    faults = []
    for step in _removals(config, route):
        try:
            await step
        except KernelError as error:
            faults.append(error)
    if faults:
        raise faults[0]


def _removals(config: Config, route: AsyncIPRoute) -> Iterator[Awaitable[None]]:
    yield datapath_of(config, route, "ebpf").teardown()
    yield datapath_of(config, route, "nft").teardown()
    yield gateways.remove(route, gateway_of(config))
    yield _remove_guard(config)


async def _remove_guard(config: Config) -> None:
    guard_of(config).teardown()
