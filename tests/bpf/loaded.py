"""The eBPF programs, compiled and loaded once, run on frames by BPF_PROG_TEST_RUN.

A test run cannot say by which filter a frame came, so the slot is 0 here: what a slot has (its port, its
buckets) is set for slot 0. A frame's outer VLAN tag stands in the frame and not beside it, as it does when
a device hands it over; what a program puts beside a frame (a pushed tag) a test run does not show.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes as ct
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from shim.core.policy import Policy
from shim.core.port import Port
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath import abi, bpf, compile
from shim.datapath.ebpf import RULES

BPFFS = Path("/sys/fs/bpf")
SERVICE_V4, SERVICE_V6, SERVICE_LINK_LOCAL = "169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"
ADDRESSES = [SERVICE_V4, SERVICE_V6, SERVICE_LINK_LOCAL]
PORTS = [80, 8775]
FLOWS = 8
INSTANCE = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
LOOPBACK = 1
GATEWAY_IFINDEX = LOOPBACK
"""Where a test run's frames come in by: replies come by the end of the gateway's link that the port is behind."""

SHOT, REDIRECT, PASSED = 2, 7, 0xFFFFFFFF
"""TC_ACT_SHOT, TC_ACT_REDIRECT, TC_ACT_UNSPEC"""

SLOT = struct.pack("=I", 0)


def settings(*, rate: int = 1_000_000, burst: int = 1_000_000, event_rate: int = 0, flows: int = FLOWS) -> bytes:
    """Settings that limit nothing unless told to."""
    limits = {"rate": rate, "burst": burst, "event_rate": event_rate, "flows_per_port": flows}
    return abi.pack_settings(ADDRESSES, PORTS, **limits)


def port(policy: Policy | None = None, *, generation: int = 1, instance: UUID | None = INSTANCE) -> Port:
    """Slot 0's port. Its tap is the loopback, since some device must be there."""
    return Port(0, generation, LOOPBACK, "tap", "", instance, policy or Policy())


@dataclass(frozen=True)
class Run:
    """What a program said of a frame, and the frame after."""

    action: int
    frame: bytes
    counted: dict[Verdict, int]


class Loaded:
    """Both programs and their maps. `rules`: what they are compiled of."""

    def __init__(self, folder: Path, rules: Path = RULES) -> None:
        self.shapes = abi.maps(4, FLOWS)
        self.maps = {shape.name: bpf.Map.create(shape) for shape in self.shapes}
        for name, made in self.maps.items():
            bpf.pin(made.fd, folder / name)
        asyncio.run(compile.run(rules, folder, sys.executable))
        self._from = bpf.open_pin(folder / "from_instance-new")
        self._to = bpf.open_pin(folder / "to_instance-new")
        self._rings = bpf.Rings(self.maps["events"], self.maps["traces"])

    def reset(self, policy: Policy | None = None, *, settings: bytes | None = None) -> None:
        """As at the start: one open port, no connections, nothing counted or reported."""
        self.maps["settings"].update(SLOT, settings or globals()["settings"]())
        for name in ("port_states", "counters", "tracings"):
            self.maps[name].update(SLOT, bytes(self.maps[name].shape.value_bytes))
        for name in ("flows", "rings"):
            for key in list(self.maps[name].keys()):
                self.maps[name].delete(key)
        self.enrol(port(policy))
        self.maps["taps"].update(SLOT, struct.pack("=I", LOOPBACK))
        self.events()
        self.traced()

    def enrol(self, port: Port | None, *, traced: bool = False) -> None:
        """Gives slot 0 to a port, or to nobody."""
        raw = abi.pack_port(port, GATEWAY_IFINDEX, traced=traced) if port else bytes(ct.sizeof(abi.PortRecord))
        self.maps["ports"].update(SLOT, raw)

    def counters(self) -> dict[Verdict, int]:
        raw = self.maps["counters"].lookup(SLOT)
        assert raw is not None
        return abi.read_counters(raw)

    def events(self) -> list[Event]:
        return [abi.read_event(raw) for raw in self._rings.read("events")]

    def traced(self) -> list[Traced]:
        return [abi.read_trace(raw) for raw in self._rings.read("traces")]

    def left_out(self) -> int:
        return abi.read_left_out(self.maps["tracings"].lookup(SLOT) or b"")

    def flows(self) -> list[abi.Flow]:
        found = self.maps["flows"]
        return [abi.Flow.from_buffer_copy(found.lookup(key) or b"") for key in list(found.keys())]

    def age_flows(self, ns: int) -> None:
        """Makes every connection seem not to have been heard of for `ns` longer."""
        found = self.maps["flows"]
        for key in list(found.keys()):
            flow = abi.Flow.from_buffer_copy(found.lookup(key) or b"")
            flow.seen_ns -= ns
            found.update(key, bytes(flow))

    def from_instance(self, frame: bytes) -> Run:
        """A frame that the guest sends."""
        return self._run(self._from, frame)

    def to_instance(self, frame: bytes) -> Run:
        """A frame that the gateway namespace sends."""
        return self._run(self._to, frame)

    def _run(self, program: int, frame: bytes) -> Run:
        before = self.counters()
        action, after, _ = bpf.test_run(program, bytes(frame))
        counted = {verdict: n - before.get(verdict, 0) for verdict, n in self.counters().items()}
        return Run(action, after, {verdict: n for verdict, n in counted.items() if n})

    def close(self) -> None:
        self._rings.close()
        for made in self.maps.values():
            made.close()
        os.close(self._from)
        os.close(self._to)


# Linux 6.13 folds it to 16 ("bpf: bpf_csum_diff: Optimize and homogenize for all archs").
_SUMS_OF_32_BITS = """
static __always_inline int sum_of_32_bits(void *from, u32 from_size, void *to, u32 to_size, u32 seed) {
    s64 sum = bpf_csum_diff(from, from_size, to, to_size, seed);
    return sum < 0 ? sum : (int)((u32)sum + 0xffffu * 0x8001u);
}
#define bpf_csum_diff sum_of_32_bits
"""


def of_older_kernels(folder: Path) -> Path:
    """The rules, in a folder, on a kernel before 6.13: there `bpf_csum_diff` gives a sum of 32 bits. Here it gives one
    that is congruent to the folded one, its first bit set, as half of theirs have it."""
    rules = shutil.copytree(RULES, folder / "rules")
    file = rules / "lib/checksum.h"
    head, include, rest = file.read_text().partition('#include "frame.h"\n')
    file.write_text(head + include + _SUMS_OF_32_BITS + rest)
    return rules


@contextlib.contextmanager
def pins(name: str) -> Iterator[Path]:
    """A folder of this process's own in bpffs, which is mounted if it is not there; gone afterwards."""
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    folder = BPFFS / f"test-{name}-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)


@contextlib.contextmanager
def loaded(name: str, rules: Path = RULES) -> Iterator[Loaded]:
    """The programs, with pins of their own."""
    with pins(name) as folder:
        made = Loaded(folder, rules)
        try:
            yield made
        finally:
            made.close()
