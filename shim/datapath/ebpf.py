"""The eBPF datapath: programs on tc ingress, state in pinned maps.

The maps are pinned, and outlive versions of all this: see pins.py. The programs' pins carry a hash of their
source, so an agent that starts again compiles nothing.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import struct
import sys
from pathlib import Path
from uuid import UUID

from shim.core.port import Port
from shim.core.verdict import Event, Verdict
from shim.datapath import abi, bpf, compile
from shim.datapath.base import Enrolled, Filters
from shim.datapath.pins import Pins, Shape
from shim.errors import KernelError

RULES = Path(__file__).parents[2] / "rules" / "bpf"


def _key(slot: int) -> bytes:
    return struct.pack("=I", slot)


class Ebpf:
    """One datapath; see Datapath for the methods. `settings` is what abi.pack_settings made."""

    name = "ebpf"
    lacks: tuple[str, ...] = ()

    def __init__(self, filters: Filters, pins: Path, settings: bytes, max_ports: int, flows_per_port: int) -> None:
        self._filters = filters
        self._root = pins
        self._pins = Pins(pins, Shape(abi.VERSION, max_ports, flows_per_port), abi.maps(max_ports, flows_per_port))
        self._settings = settings
        self._flows_per_port = flows_per_port
        self._filter = f"{pins.name}:from_instance"
        self._reply_filter = f"{pins.name}:to_instance"
        self._maps: dict[str, bpf.Map] = {}
        self._programs: dict[str, int] = {}
        self._attached: dict[int, tuple[int, int]] = {}
        self._gateway = 0
        self._ring: bpf.Ring | None = None

    @property
    def cut(self) -> bool:
        return self._pins.cut

    @property
    def fd(self) -> int:
        return self._ring.fd if self._ring else -1

    async def open(self, gateway_ifindex: int) -> None:
        self._gateway = gateway_ifindex
        if self._programs:
            await self._attach_reply()
            return
        self._open_maps()
        self._programs = _open_programs(self._pins.folder)
        self._pins.settle()
        self._maps["settings"].update(_key(0), self._settings)
        self._ring = bpf.Ring(self._maps["events"])
        await self._attach_reply()

    def _open_maps(self) -> None:
        if not self._maps:
            self._maps = self._pins.open()

    async def _attach_reply(self) -> None:
        await self._filters.attach(self._gateway, self._programs["to_instance"], self._reply_filter, 0)

    async def observe(self) -> list[Enrolled]:
        self._open_maps()  # of one that is not open, too: no program is needed when another datapath takes over
        self._attached.clear()
        found = []
        for ifindex, slot in (await self._filters.slots(self._filter)).items():
            port = self._port(slot)
            alive = port is not None and self._maps["taps"].lookup(_key(slot)) == _key(ifindex)
            # Not noted as attached: the first `ensure` puts this version's program there.
            found.append(Enrolled(slot, port[1], ifindex, port[2]) if port and alive else Enrolled(0, 0, ifindex, None))
        return found + self._vacate({enrolled.slot for enrolled in found})

    def _port(self, slot: int) -> tuple[int, int, UUID | None] | None:
        """(state, generation, instance) of a slot that is somebody's."""
        raw = self._maps["ports"].lookup(_key(slot))
        port = abi.read_port(raw) if raw else None
        return port if port and port[0] != abi.ABSENT else None

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
        self._maps["ports"].update(_key(slot), abi.pack_vacant(generation))
        self._forget_flows(slot)
        self._delete_tap(_key(slot))

    async def ensure(self, port: Port) -> None:
        slot, owner = _key(port.slot), (port.slot, port.generation)
        if self._attached.get(port.ifindex) == owner:
            self._maps["ports"].update(slot, abi.pack_port(port, self._gateway))
            return
        raw = self._maps["ports"].lookup(slot)
        if raw is None or abi.read_port(raw)[1] != port.generation:
            self._reset(slot)
        self._maps["ports"].update(slot, abi.pack_port(port, self._gateway))
        self._maps["taps"].update(slot, _key(port.ifindex))
        await self._filters.attach(port.ifindex, self._programs["from_instance"], self._filter, port.slot)
        self._attached[port.ifindex] = owner

    def _reset(self, slot: bytes) -> None:
        for name in ("counters", "port_states"):
            self._maps[name].update(slot, bytes(self._maps[name].shape.value_bytes))

    async def remove(self, port: Port) -> None:
        if port.slot:
            raw = self._maps["ports"].lookup(_key(port.slot))
            if raw is not None and abi.read_port(raw)[1] == port.generation:
                self._vacate_slot(port.slot, port.generation)
            elif self._maps["taps"].lookup(_key(port.slot)) == _key(port.ifindex):
                return  # the tap, too, is another owner's of the slot by now
        owner = self._attached.get(port.ifindex)
        if owner in (None, (port.slot, port.generation)):
            self._attached.pop(port.ifindex, None)
            if port.slot in (0, await self._filters.slot_of(port.ifindex, self._filter)):
                await self._filters.detach(port.ifindex, self._filter)

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
        return [abi.read_event(raw) for raw in self._ring.read()] if self._ring else []

    def detached(self, ifindex: int) -> None:
        self._attached.pop(ifindex, None)

    async def recheck(self) -> None:
        for ifindex, (slot, _) in list(self._attached.items()):
            if await self._filters.slot_of(ifindex, self._filter) != slot:
                self.detached(ifindex)
            await asyncio.sleep(0)  # operators have their turn: there may be ten thousand

    async def prune(self) -> None:
        """Pins of other shapes and sources."""
        self._pins.prune(f"{name}-{source_hash()}" for name in compile.PROGRAMS)

    def left(self) -> bool:
        return self._root.exists()

    async def teardown(self) -> None:
        for name in (self._filter, self._reply_filter):
            for ifindex in await self._filters.slots(name):
                await self._filters.detach(ifindex, name)
        if self._root.exists():
            shutil.rmtree(self._root)

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for made in self._maps.values():
            made.close()
        for program in self._programs.values():
            os.close(program)
        self._maps, self._programs = {}, {}


def source_hash() -> str:
    """What tells one version of the programs from another: all of their source."""
    text = compile.source(RULES) + (RULES / "kernel/include/linux/kconfig.h").read_text()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _open_programs(folder: Path) -> dict[str, int]:
    paths = {name: folder / f"{name}-{source_hash()}" for name in compile.PROGRAMS}
    if not all(path.exists() for path in paths.values()):
        compile.run(RULES, folder, sys.executable)
        for name, path in paths.items():
            (folder / f"{name}-new").rename(path)
    return {name: bpf.open_pin(path) for name, path in paths.items()}
