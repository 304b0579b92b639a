"""The real rig: see rig.py. One hypervisor for all tests, taps and ports of each test's own.

An agent that is `abroad` lives in another network namespace than the taps.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute

from shim.core.link import Place
from shim.datapath import base, nft_rules
from shim.datapath.base import Datapath, Enrolled
from shim.datapath.ebpf import Ebpf
from shim.datapath.nft import Nft
from shim.datapath.spread import Spread
from shim.netlink import gateway
from shim.netlink.branches import Branches
from shim.netlink.inside import Inside as Rack
from shim.netlink.nflog import NfLog
from shim.netlink.nftables import Nftables
from shim.netlink.tc import Filters
from tests.contract.rig import FLOWS, MAX_PORTS, NFT_SETTINGS, SETTINGS, TAPS
from tests.lab import Frame, Lab, TapGuest, Wire, service_frames

T = TypeVar("T")

SETTLE = 0.01
PATIENCE = 2.0

_counter = itertools.count(1)


class Inside:
    """As much of a lab's namespace as a capture needs, of a namespace that the gateway made."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def call(self, function: Callable[..., T], *args: Any) -> T:
        with gateway.entered(self.path):
            return function(*args)

    def index(self, ifname: str) -> int:
        return self.call(socket.if_nametoindex, ifname)


class Hypervisor:
    """A lab whose own kernel says nothing on any link, with a gateway in which nobody answers."""

    def __init__(
        self, lab: Lab, kind: str, pins: Path, addresses: tuple[str, ...] = (), *, abroad: bool = False
    ) -> None:
        self.lab, self.kind, self.pins = lab, kind, pins
        self.own = lab.namespace("own") if abroad else lab.host
        self.netns = "rack" if abroad else ""
        for namespace in {lab.host, lab.wire, self.own}:
            namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.runner = asyncio.Runner()
        name = f"ct{os.getpid()}x{next(_counter)}"
        self.gateway = gateway.Gateway(name, addresses, "100.64.0.0/10", "fd6d:7368:696d::/96")
        self.route = self.run(self._open())
        self.link, _ = self.run(gateway.ensure(self.route, self.gateway))
        self.inside = Inside(self.gateway.path)
        self.branches = Branches(self.gateway)
        self.rack = self.run(self._enter_rack()) if abroad else None
        self.service_link = "gw1" if abroad else "gw0"

    async def _enter_rack(self) -> Rack:
        return Rack(self.netns, self.lab.host.path)

    async def _open(self) -> AsyncIPRoute:
        return AsyncIPRoute()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self.own.enter():
            return self.runner.run(coroutine)

    def datapath(self) -> Datapath:
        """The datapath as an agent has it that starts: opened, nothing looked at yet."""
        if self.kind == "nft":
            settings = replace(NFT_SETTINGS, table=nft_rules.table_name(self.gateway.name))
            made: Datapath = Nft(Nftables(settings.table), NfLog(settings.group), settings)
            if self.rack is not None:
                made = Spread(made, lambda inside: _nft_in(inside, settings))
        else:
            made = Ebpf(Filters(), self.pins, SETTINGS, MAX_PORTS, FLOWS)
        self.run(made.open(self.link))
        if self.rack is not None:
            self.run(made.join(self.rack, self.run(self.branches.ensure(self.rack))))
        return made

    def close(self) -> None:
        self.run(self._close_rack())
        self.run(gateway.remove(self.route, self.gateway))
        self.run(self._close_route())
        self.runner.close()

    async def _close_rack(self) -> None:
        self.branches.close()
        if self.rack is not None:
            self.rack.close()
            await asyncio.sleep(0)

    async def _close_route(self) -> None:
        self.route.close()
        await asyncio.sleep(0)


def _nft_in(inside: base.Inside, settings: nft_rules.Settings) -> Nft:
    """With a table of its own: what is asked for of `inside` lives as long as that, which here is all tests long."""
    assert isinstance(inside, Rack)
    table = Nftables(settings.table, enter=inside.entered)
    return Nft(table, inside.logs(settings.group), settings, inside.link_name)


@contextlib.contextmanager
def hypervisor(kind: str, pins: Path, *, abroad: bool = False) -> Iterator[Hypervisor]:
    with Lab() as lab:
        made = Hypervisor(lab, kind, pins, abroad=abroad)
        try:
            yield made
        finally:
            made.close()


class KernelRig:
    """Taps on the hypervisor's bridge. `leaks` is every frame with a service address seen behind them."""

    def __init__(self, host: Hypervisor, **tap: Any) -> None:
        self.host = host
        self._kind = tap
        self.datapath = host.datapath()  # its slots are emptied by the first look, as their taps have gone
        self.taps = {name: self._plug(name) for name in TAPS}
        self._wires = [host.lab.capture("uplink", host.lab.wire), host.lab.capture("br0")]
        self.netns = host.netns
        self._gateway = Wire(host.inside, host.service_link, incoming=True)  # type: ignore[arg-type]
        self._service = Wire(host.inside, host.service_link)  # type: ignore[arg-type]
        self._behind: list[Frame] = []

    def _plug(self, name: str) -> TapGuest:
        return self.host.lab.tap_guest(f"tap{name}", **(self._kind if name != "c" else {}))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.host.run(coroutine)

    def ifindex(self, tap: str) -> int:
        return self.taps[tap].ifindex

    def replug(self, tap: str) -> None:
        former = self.taps[tap].ifindex
        self.taps[tap].close()
        self.taps[tap] = self._plug(tap)
        with self.host.own.enter():
            self.datapath.detached(Place(self.netns, former))  # as the agent does when it hears of it

    def restart(self) -> list[Enrolled]:
        self.datapath.close()
        self.datapath = self.host.datapath()
        return self.run(self.datapath.observe())

    def send(self, tap: str, frame: bytes) -> None:
        self.taps[tap].send(frame)

    def reply(self, frame: bytes) -> None:
        self._service.send(frame)

    def guest(self, tap: str, expect: int = 0) -> list[bytes]:
        return _gather(self.taps[tap].recv, expect)

    def gateway(self, expect: int = 0) -> list[bytes]:
        return _gather(self._gateway.recv, expect)

    def bridge(self, expect: int = 0) -> list[bytes]:
        """On the wire behind the bridge. What it flooded to the taps is taken away from there."""
        seen = _gather(self._wires[0].recv, expect)
        self._behind += [frame for frame in seen if isinstance(frame, Frame)]
        for tap in self.taps.values() if seen else ():
            flooded = [frame for frame in tap.recv(SETTLE) if bytes(frame) not in {bytes(f) for f in seen}]
            assert flooded == []
        return seen

    def passed_until(self, last: bytes) -> list[bytes]:
        """What goes on to the wire behind the bridge, up to a frame that is known to."""
        seen: list[Frame] = self._wires[0].recv(PATIENCE, want=lambda frame: frame == last)
        assert seen and seen[-1] == last
        return list(seen[:-1])

    def leaks(self) -> list[Frame]:
        """Frames with a service address that went on from any guarded tap since the rig was made."""
        others = self.taps["c"].recv(SETTLE)
        return service_frames([*self._behind, *others, *(f for wire in self._wires for f in wire.frames(SETTLE))])

    def close(self) -> None:
        self.datapath.close()
        for wire in (*self._wires, self._gateway, self._service):
            wire.close()
        for tap in self.taps.values():
            tap.close()


def _gather(recv: Callable[[float], list[Any]], expect: int) -> list[bytes]:
    """What comes until it is as much as is expected (or patience ends), and what comes a little later."""
    got: list[bytes] = []
    waited = 0.0
    while len(got) < expect and waited < PATIENCE:
        got += recv(SETTLE)
        waited += SETTLE
    return got + recv(SETTLE)
