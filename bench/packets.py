"""What a packet pays, by BPF_PROG_TEST_RUN: nanoseconds of the program alone, as the kernel takes them.

Bystanders and drops leave the packet as it is, so the kernel repeats them, a hundred thousand times a round.
A reset turns the packet round: the next repeat would meet another one. So it is run once a call, and compared
with the empty program run in the same way, caches as cold as between calls. What is measured of an answer ends
where the kernel would take it over (bpf_redirect); sending it is not part of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from statistics import median

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from bench.figures import Figure, Limit
from bench.site import instance_of
from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.datapath import abi, bpf
from shim.datapath.ebpf import Ebpf

ROUNDS = 31
REPEAT = 100_000
SINGLE_RUNS = 20_000

PROG_LOAD = 5  # linux/bpf.h
SCHED_CLS = 3
# BPF_ALU64 | BPF_MOV | BPF_K of r0, then BPF_EXIT: return TC_ACT_UNSPEC
EMPTY = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)

BYSTANDER = Limit("over", most=5)
ETHER = Ether(src="02:be:00:00:00:01", dst="02:be:00:00:00:02")
BYSTANDERS = {
    "IPv4 TCP": ETHER / IP(src="10.0.0.5", dst="10.0.0.9") / TCP(dport=443) / (b"x" * 1000),
    "IPv6 TCP": ETHER / IPv6(src="fd00::5", dst="fd00::9") / TCP(dport=443) / (b"x" * 1000),
    "ARP": ETHER / ARP(psrc="10.0.0.5", pdst="10.0.0.9"),
}
SERVICE4 = bytes(ETHER / IP(src="10.0.0.5", dst="169.254.169.254") / TCP(sport=40000, dport=80, flags="S"))
SERVICE6 = bytes(ETHER / IPv6(src="fd00::5", dst="fd00:ec2::254") / TCP(sport=40000, dport=80, flags="S"))

# What a test run may not set (skb->tc_classid) is 0, so the port under test has slot 0.
PORT = Port(0, 1, 1, "tap0", "", instance_of(0), Policy(Access.OPEN, Access.OPEN, 64))


class _Unattached:
    """Filters of no link: nothing is attached, the programs are only run."""

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Nothing to do."""

    async def slot_of(self, ifindex: int, name: str) -> int | None:
        """None is there."""
        return None

    async def slots(self, name: str) -> dict[int, int]:
        """None is there."""
        return {}

    async def detach(self, ifindex: int, name: str) -> None:
        """Nothing to do."""


def load_empty() -> int:
    """The descriptor of a program that does nothing."""
    code, licence = ctypes.create_string_buffer(EMPTY), ctypes.create_string_buffer(b"GPL")
    pointers = ctypes.addressof(code), ctypes.addressof(licence)
    attr = struct.pack("=IIQQ", SCHED_CLS, len(EMPTY) // 8, *pointers)
    return bpf._bpf(PROG_LOAD, attr, "cannot load an empty program")[0]


def measure() -> list[Figure]:
    """All figures of packets."""
    pins = Path(f"/sys/fs/bpf/bench{os.getpid()}p")
    settings = abi.pack_settings(
        ["169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"], [80], rate=50, burst=200, event_rate=10,
        flows_per_port=8,
    )  # fmt: skip
    datapath = Ebpf(_Unattached(), pins, settings, 1, 8)
    try:
        asyncio.run(datapath.open(1))
        ours = bpf.open_pin(next(pins.glob("v*/from_instance-*")))
        return _measure(datapath, load_empty(), ours)
    finally:
        shutil.rmtree(pins, ignore_errors=True)


def _measure(datapath: Ebpf, empty: int, ours: int) -> list[Figure]:
    figures = [_repeated(f"bystander {kind}", bytes(p), empty, ours, BYSTANDER) for kind, p in BYSTANDERS.items()]
    _set(datapath, Access.DROP)
    figures.append(_repeated("refuse by drop, IPv4", SERVICE4, empty, ours, None))
    figures.append(_repeated("refuse by drop, IPv6", SERVICE6, empty, ours, None))
    _set(datapath, Access.RESET)
    figures.append(_single("refuse by reset, IPv4", SERVICE4, empty, ours))
    figures.append(_single("refuse by reset, IPv6", SERVICE6, empty, ours))
    return figures


def _set(datapath: Ebpf, access: Access) -> None:
    asyncio.run(datapath.ensure(replace(PORT, policy=Policy(access, access, 64))))


def _repeated(name: str, frame: bytes, empty: int, ours: int, limit: Limit | None) -> Figure:
    """Rounds of the two in turn; what counts is by how much the two of a round differ, since the processor's clock
    may change from round to round by more than that."""
    rounds = [[bpf.test_run(program, frame, REPEAT)[2] for program in (empty, ours)] for _ in range(ROUNDS)]
    baseline = median(bare for bare, _ in rounds)
    more = median(full - bare for bare, full in rounds)
    return Figure(name, baseline + more, "ns", baseline, "empty program", limit)


def _single(name: str, frame: bytes, empty: int, ours: int) -> Figure:
    times: tuple[list[int], list[int]] = [], []
    for _ in range(SINGLE_RUNS):
        for program, kept in zip((empty, ours), times, strict=True):
            kept.append(bpf.test_run(program, frame)[2])
    _check_reset(bpf.test_run(ours, frame)[1])
    return Figure(name, median(times[1]), "ns", median(times[0]), "empty program, single runs", None)


def _check_reset(after: bytes) -> None:
    packet = Ether(after)
    if TCP not in packet or not packet[TCP].flags.R:
        raise RuntimeError("the packet was not answered with a reset")
