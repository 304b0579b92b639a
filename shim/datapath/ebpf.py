"""The eBPF datapath: programs on tc ingress, state in pinned maps.

The maps are pinned, and outlive versions of all this: see pins.py. The programs' pins carry a hash of their
source, so an agent that starts again compiles nothing; after a boot they are loaded from what was kept (bytecode.py).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import struct
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from shim.core.link import OWN_NETNS, Place
from shim.core.port import Port
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath import abi, bpf, bytecode, compile
from shim.datapath.base import Enrolled, Filters, Inside
from shim.datapath.pins import Pins, Shape
from shim.errors import KernelError

RULES = Path(__file__).parents[2] / "rules" / "bpf"


def _key(slot: int) -> bytes:
    return struct.pack("=I", slot)


@dataclass(slots=True)
class Ground:
    """A namespace with taps: its filters, a way in (for the map of devices, whose numbers are its own), and its end of
    the link to the gateway; 0 before that is known."""

    filters: Filters
    entered: Callable[[], AbstractContextManager[None]]
    gateway: int = 0


class Ebpf:
    """One datapath; see Datapath for the methods. `settings` is what abi.pack_settings made; `kept` is a folder for
    what was compiled; without one it is compiled whenever it is not pinned."""

    name = "ebpf"
    lacks: tuple[str, ...] = ()

    def __init__(
        self,
        filters: Filters,
        pins: Path,
        settings: bytes,
        max_ports: int,
        flows_per_port: int,
        kept: Path | None = None,
    ) -> None:
        self._root = pins
        self._kept = kept
        self._pins = Pins(pins, Shape(abi.VERSION, max_ports, flows_per_port), abi.maps(max_ports, flows_per_port))
        self._settings = settings
        self._flows_per_port = flows_per_port
        self._filter = f"{pins.name}:from_instance"
        self._reply_filter = f"{pins.name}:to_instance"
        self._maps: dict[str, bpf.Map] = {}
        self._programs: dict[str, int] = {}
        self._attached: dict[Place, tuple[int, int]] = {}
        self._grounds = {OWN_NETNS: Ground(filters, nullcontext)}
        self._rings: bpf.Rings | None = None
        self._traced: set[int] = set()

    @property
    def cut(self) -> bool:
        return self._pins.cut

    @property
    def fd(self) -> int:
        return self._rings.fd if self._rings else -1

    async def open(self, gateway_ifindex: int) -> None:
        own = self._grounds[OWN_NETNS]
        own.gateway = gateway_ifindex
        if self._programs:
            await self._attach_reply(own)
            return
        self._open_maps()
        self._programs = await _open_programs(self._pins.folder, self._kept)
        self._pins.settle()
        self._maps["settings"].update(_key(0), self._settings)
        self._rings = bpf.Rings(self._maps["events"], self._maps["traces"])
        self._rings.read("traces")  # of a run before
        await self._attach_reply(own)

    def _open_maps(self) -> None:
        if not self._maps:
            self._maps = self._pins.open()

    async def _attach_reply(self, ground: Ground) -> None:
        await ground.filters.attach(ground.gateway, self._programs["to_instance"], self._reply_filter, 0)

    async def join(self, inside: Inside, gateway_ifindex: int) -> None:
        ground = self._grounds[inside.netns] = Ground(inside.filters, inside.entered, gateway_ifindex)
        if self._programs:
            await self._attach_reply(ground)

    async def leave(self, netns: str) -> None:
        ground = self._grounds.pop(netns, None)
        if ground is not None:
            await self._detach_all(ground.filters)
        for place in [place for place in self._attached if place.netns == netns]:
            self.detached(place)

    async def observe(self) -> list[Enrolled]:
        self._open_maps()  # of one that is not open, too: no program is needed when another datapath takes over
        self._attached.clear()
        found = [one for netns in self._grounds for one in await self._observed(netns)]
        return found + self._vacate({enrolled.slot for enrolled in found})

    async def _observed(self, netns: str) -> list[Enrolled]:
        gateway = self._grounds[netns].gateway
        slots = await self._grounds[netns].filters.slots(self._filter)
        return [self._enrolled(Place(netns, ifindex), slot, gateway) for ifindex, slot in slots.items()]

    def _enrolled(self, place: Place, slot: int, gateway: int) -> Enrolled:
        """What a tap is whose filter has that slot. It is not noted as attached: the first `ensure` puts this version's
        program there."""
        raw = self._maps["ports"].lookup(_key(slot))
        state, generation, instance = abi.read_port(raw) if raw else (abi.ABSENT, 0, None)
        # The tap's number alone does not say whose the slot is: another namespace may have it too.
        here = raw is not None and (not gateway or abi.read_gateway(raw) == gateway)
        if state == abi.ABSENT or not here or self._maps["taps"].lookup(_key(slot)) != _key(place.ifindex):
            return Enrolled(0, 0, place.ifindex, None, place.netns)
        return Enrolled(slot, generation, place.ifindex, instance, place.netns)

    def _vacate(self, alive: set[int]) -> list[Enrolled]:
        """Empties the slots whose tap went while no agent looked; all that ever had an owner, and have none."""
        found = []
        for slot in range(1, self._maps["ports"].shape.entries):
            state, generation, _ = abi.read_port(self._maps["ports"].lookup(_key(slot)) or b"")
            if generation and slot not in alive:
                found.append(Enrolled(slot, generation, 0, None))
                if state != abi.ABSENT:
                    self._vacate_slot(slot, generation)
        return found

    def _vacate_slot(self, slot: int, generation: int) -> None:
        self._traced.discard(slot)
        self._maps["ports"].update(_key(slot), abi.pack_vacant(generation))
        self._forget_flows(slot)
        self._delete_tap(_key(slot))

    async def ensure(self, port: Port) -> None:
        ground = self._grounds.get(port.netns)
        if ground is None:
            raise KernelError(f"{port.tap}: the namespace {port.netns} is not guarded", errno=errno.ENOENT)
        slot, owner = _key(port.slot), (port.slot, port.generation)
        if self._attached.get(port.place) == owner:
            self._maps["ports"].update(slot, self._packed(port, ground))
            return
        raw = self._maps["ports"].lookup(slot)
        if raw is None or abi.read_port(raw)[1] != port.generation:
            self._reset(slot)
        self._maps["ports"].update(slot, self._packed(port, ground))
        with ground.entered():
            self._maps["taps"].update(slot, _key(port.ifindex))
        await ground.filters.attach(port.ifindex, self._programs["from_instance"], self._filter, port.slot)
        self._attached[port.place] = owner

    def _packed(self, port: Port, ground: Ground) -> bytes:
        return abi.pack_port(port, ground.gateway, traced=port.slot in self._traced)

    def _reset(self, slot: bytes) -> None:
        for name in ("counters", "port_states", "tracings"):
            self._maps[name].update(slot, bytes(self._maps[name].shape.value_bytes))

    async def remove(self, port: Port) -> None:
        if port.slot:
            raw = self._maps["ports"].lookup(_key(port.slot))
            if raw is not None and abi.read_port(raw)[1] == port.generation:
                self._vacate_slot(port.slot, port.generation)
            elif self._maps["taps"].lookup(_key(port.slot)) == _key(port.ifindex):
                return  # the tap, too, is another owner's of the slot by now
        owner, ground = self._attached.get(port.place), self._grounds.get(port.netns)
        if owner in (None, (port.slot, port.generation)):
            self._attached.pop(port.place, None)
            if ground and port.slot in (0, await ground.filters.slot_of(port.ifindex, self._filter)):
                await ground.filters.detach(port.ifindex, self._filter)

    def _delete_tap(self, slot: bytes) -> None:
        try:
            self._maps["taps"].delete(slot)
        except KernelError as error:  # an array of devices refuses what is empty already
            if error.errno != errno.EINVAL:
                raise

    def _forget_flows(self, slot: int) -> None:
        rings, flows = self._maps["rings"], self._maps["flows"]
        for place in range(self._flows_per_port):
            key = struct.pack("=II", slot, place)
            flow = rings.lookup(key)
            if flow is None:  # places are filled in order
                break
            flows.delete(flow)
            rings.delete(key)

    def counters(self, slot: int) -> dict[Verdict, int]:
        raw = self._maps["counters"].lookup(_key(slot))
        return abi.read_counters(raw) if raw else {}

    def events(self) -> list[Event]:
        return [abi.read_event(raw) for raw in self._rings.read("events")] if self._rings else []

    def trace(self, port: Port, on: bool) -> None:
        (self._traced.add if on else self._traced.discard)(port.slot)
        raw = self._maps["ports"].lookup(_key(port.slot))
        if raw is not None and abi.read_port(raw)[1] == port.generation:
            self._maps["ports"].update(_key(port.slot), abi.with_traced(raw, on))

    def traced(self) -> list[Traced]:
        return [abi.read_trace(raw) for raw in self._rings.read("traces")] if self._rings else []

    def left_out(self, slot: int) -> int:
        raw = self._maps["tracings"].lookup(_key(slot))
        return abi.read_left_out(raw) if raw else 0

    def detached(self, place: Place) -> None:
        self._attached.pop(place, None)

    async def recheck(self) -> None:
        for place, (slot, _) in list(self._attached.items()):
            if await self._grounds[place.netns].filters.slot_of(place.ifindex, self._filter) != slot:
                self.detached(place)
            await asyncio.sleep(0)  # operators have their turn: there may be ten thousand

    async def prune(self) -> None:
        """Pins of other shapes and sources."""
        self._pins.prune(_pin_names().values())

    def left(self) -> bool:
        return self._root.exists()

    async def teardown(self) -> None:
        for ground in self._grounds.values():
            await self._detach_all(ground.filters)
        if self._root.exists():
            shutil.rmtree(self._root)

    async def _detach_all(self, filters: Filters) -> None:
        for name in (self._filter, self._reply_filter):
            for ifindex in await filters.slots(name):
                await filters.detach(ifindex, name)

    def close(self) -> None:
        if self._rings is not None:
            self._rings.close()
            self._rings = None
        for made in self._maps.values():
            made.close()
        for program in self._programs.values():
            os.close(program)
        self._maps, self._programs = {}, {}


def source_hash() -> str:
    """What tells one version of the programs from another: all of their source."""
    text = compile.source(RULES) + (RULES / "kernel/include/linux/kconfig.h").read_text()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pin_names() -> dict[str, str]:
    """What the programs of this version are pinned as."""
    version = source_hash()
    return {name: f"{name}-{version}" for name in compile.PROGRAMS}


def in_use(root: Path) -> bool:
    """Whether the programs of this version are pinned below a folder: the kernel took them."""
    names = _pin_names().values()
    return any(all((folder / name).exists() for name in names) for folder in root.glob("v*"))


async def _open_programs(folder: Path, kept: Path | None) -> dict[str, int]:
    paths = {name: folder / pin for name, pin in _pin_names().items()}
    if not all(path.exists() for path in paths.values()):
        file = kept / f"programs-{source_hash()}" if kept else None
        if file is None or not bytecode.load(file, folder):
            await compile.run(RULES, folder, sys.executable, file)
        for name, path in paths.items():
            (folder / f"{name}-new").rename(path)
    return {name: bpf.open_pin(path) for name, path in paths.items()}
