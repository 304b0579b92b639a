"""Pins as the first version of the ABI left them, made by hand, are gone on with by today's datapath."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.verdict import Verdict
from shim.datapath import abi, bpf
from shim.datapath.abi import ARRAY, DEVMAP, HASH, RINGBUF, MapShape
from shim.datapath.ebpf import Ebpf
from shim.errors import KernelError
from tests.bpf import loaded

MAX_PORTS, FLOWS = 4, 8
SETTINGS = loaded.settings()
FIRST = [
    MapShape("settings", ARRAY, 4, 144, 1),
    MapShape("ports", ARRAY, 4, 28, MAX_PORTS + 1),
    MapShape("port_states", ARRAY, 4, 24, MAX_PORTS + 1),
    MapShape("counters", ARRAY, 4, 512, MAX_PORTS + 1),
    MapShape("taps", DEVMAP, 4, 4, MAX_PORTS + 1),
    MapShape("flows", HASH, 24, 56, MAX_PORTS * FLOWS, 1),
    MapShape("rings", HASH, 8, 24, MAX_PORTS * FLOWS, 1),
    MapShape("events", RINGBUF, 0, 0, 65536),
]
"""Written out, so that no change of today's shapes makes the first version's another one."""

PORT = struct.Struct("=IIBBBB16s")
A, B = UUID(int=0xA), UUID(int=0xB)
LOOPBACK = 1


class Unattached:
    """Filters of links that are only said to be there."""

    def __init__(self, slots: dict[int, int]) -> None:
        self.there = slots
        self.attached: list[tuple[int, int]] = []

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        self.attached.append((ifindex, classid))

    async def slot_of(self, ifindex: int, name: str) -> int | None:
        return self.there.get(ifindex)

    async def slots(self, name: str) -> dict[int, int]:
        return self.there

    async def detach(self, ifindex: int, name: str) -> None:
        self.there.pop(ifindex, None)


def key(number: int) -> bytes:
    return struct.pack("=I", number)


@pytest.fixture
def first() -> Iterator[tuple[Path, dict[str, bpf.Map]]]:
    """Slot 1 is A's, whose tap is the loopback; slot 2 is nobody's any more, slot 3 B's, whose tap has gone."""
    with loaded.pins("former") as root:
        folder = root / f"v1-{MAX_PORTS}-{FLOWS}"
        folder.mkdir()
        maps = {shape.name: bpf.Map.create(shape) for shape in FIRST}
        for name, made in maps.items():
            bpf.pin(made.fd, folder / name)
        maps["ports"].update(key(1), PORT.pack(LOOPBACK, 5, 1, 1, 2, 9, A.bytes))
        maps["ports"].update(key(2), PORT.pack(0, 6, 0, 0, 0, 0, bytes(16)))
        maps["ports"].update(key(3), PORT.pack(LOOPBACK, 8, 1, 1, 1, 64, B.bytes))
        maps["taps"].update(key(1), key(LOOPBACK))
        maps["flows"].update(bytes(range(24)), bytes(range(56)))
        maps["counters"].update(key(1), struct.pack("=64Q", *([0, 41] + [0] * 62)))
        yield root, maps


@contextlib.contextmanager
def opened(root: Path, max_ports: int = MAX_PORTS) -> Iterator[tuple[Ebpf, Unattached]]:
    filters = Unattached({LOOPBACK: 1})
    datapath = Ebpf(filters, root, SETTINGS, max_ports, FLOWS)
    asyncio.run(datapath.open(LOOPBACK))
    try:
        yield datapath, filters
    finally:
        datapath.close()


def test_slots_owners_and_counters_are_found_again(first):
    root, _ = first
    with opened(root) as (datapath, _):
        assert not datapath.cut
        found = asyncio.run(datapath.observe())
        assert {(one.slot, one.generation, one.ifindex, one.instance) for one in found} == {
            (1, 5, LOOPBACK, A), (2, 6, 0, None), (3, 8, 0, None),
        }  # fmt: skip
        assert datapath.counters(1) == {Verdict.DELIVERED: 41}


def test_connections_are_those_of_the_former_programs(first):
    root, maps = first
    with opened(root) as (datapath, _):
        assert datapath._maps["flows"].id == maps["flows"].id
        assert datapath._maps["ports"].id != maps["ports"].id


def test_a_record_says_the_same_in_todays_words(first):
    root, _ = first
    with opened(root) as (datapath, _):
        raw = datapath._maps["ports"].lookup(key(1)) or b""
        record = abi.PortRecord.from_buffer_copy(raw)
        said = (record.gateway_ifindex, record.access4, record.access6, record.hop_limit, record.traced)
        assert said == (LOOPBACK, abi.ACCESS[Access.OPEN], abi.ACCESS[Access.RESET], 9, 0)


def test_the_former_programs_go_on_with_their_own_until_they_are_replaced(first):
    root, maps = first
    with opened(root) as (datapath, filters):
        asyncio.run(datapath.observe())
        asyncio.run(datapath.ensure(Port(1, 5, LOOPBACK, "tap", "", A, Policy(Access.DROP, Access.DROP))))
        assert filters.attached[-1] == (LOOPBACK, 1)
        assert PORT.unpack(maps["ports"].lookup(key(1)) or b"")[3] == 1
        asyncio.run(datapath.prune())
        assert not any(maps["ports"].lookup(key(1)) or b""), "and serve nobody afterwards"
        assert [path.name for path in root.iterdir()] == [f"v{abi.VERSION}-{MAX_PORTS}-{FLOWS}"]


def test_programs_that_do_not_load_leave_the_first_version_as_it_was(first, monkeypatch, tmp_path):
    root, maps = first
    broken = tmp_path / "bpf"
    shutil.copytree(loaded.RULES, broken)
    (broken / "to_instance.c").write_text("no C")
    monkeypatch.setattr("shim.datapath.ebpf.RULES", broken)
    with pytest.raises(KernelError, match="cannot be compiled"), opened(root):
        pass
    assert (root / f"v1-{MAX_PORTS}-{FLOWS}/ports").exists()
    assert not (root / f"v{abi.VERSION}-{MAX_PORTS}-{FLOWS}").exists()
    assert PORT.unpack(maps["ports"].lookup(key(1)) or b"")[-1] == A.bytes


def test_other_sizes_begin_anew_and_say_so(first, caplog):
    root, maps = first
    with caplog.at_level(logging.WARNING), opened(root, MAX_PORTS + 1) as (datapath, _):
        assert datapath.cut
        (found,) = asyncio.run(datapath.observe())
        assert (found.slot, found.ifindex) == (0, LOOPBACK)
    (line,) = caplog.messages
    assert "open connections are reset; identities and policies hold" in line
    assert not any(maps["ports"].lookup(key(1)) or b"")
