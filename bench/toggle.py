"""Time from `disable` to the first refused packet, by the kernel's own clock.

A guest sends SYNs in a tight loop. The operator's request is written to the control socket at one reading of
the monotonic clock; the kernel notes the same clock in the event of each refusal, and the first after that
counts. So the figure holds the whole of the agent's work, and the wait for the guest's next packet. The
baseline writes the port's record into the kernel's map by hand, with no agent in between.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench.figures import Figure, Limit, middle_and_tail
from bench.site import MAC, ROOT, Site, instance_of
from shim.config import Datapath
from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.verdict import Verdict
from shim.datapath import abi, bpf
from tests.lab import VethGuest

TRIES = 100
BY_HAND = 30
PAUSE = 0.03
PATIENCE = 2.0
LIMIT = Limit("value", most=2)
SYN = Ether(src=MAC, dst="02:be:00:00:00:02") / IP(src="10.66.0.5", dst="169.254.169.254") / TCP(
    sport=40000, dport=80, flags="S"
)  # fmt: skip


class Tail:
    """Reads the ring of events beside the agent, and takes nothing from it: it looks at the pages as they are."""

    def __init__(self, ring: bpf.Map) -> None:
        page, size = mmap.PAGESIZE, ring.shape.entries
        self._mask = size - 1
        self._data = mmap.mmap(ring.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._at = self._end()

    def _end(self) -> int:
        return int(struct.unpack_from("=Q", self._data)[0])

    def skip(self) -> None:
        """Forget what is there already."""
        self._at = self._end()

    def refusal(self, since: int) -> int | None:
        """The kernel's time (ns) of the first refusal by policy at or after `since`, if there is one by now."""
        while self._at < self._end():
            start = mmap.PAGESIZE + (self._at & self._mask)
            length = struct.unpack_from("=I", self._data, start)[0]
            if length >> 31:  # being written
                return None
            body = self._data[start + 8 : start + 8 + length]
            self._at += (length + 15) // 8 * 8
            event = abi.read_event(body)
            if event.verdict is Verdict.DISABLED_RESET and event.ns >= since:
                return event.ns
        return None


class Operator:
    """One connection to the control socket, which a policy is written to."""

    def __init__(self, here: Site, instance: UUID) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(str(here.config.control_socket))
        self._path = f"/v1/instances/{instance}/policy"

    def ask(self, access: Access) -> int:
        """Writes the request; the monotonic clock (ns) as of then."""
        body = json.dumps({"access": access.value})
        head = f"PUT {self._path} HTTP/1.1\r\nHost: metashim\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.monotonic_ns()
        self._sock.sendall((head + body).encode())
        return began

    def hear(self) -> None:
        """Takes the answer. RuntimeError unless it is well."""
        answer = self._sock.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the agent answered {answer!r}")


def measure(here: Site, guest: VethGuest, ports: int) -> list[Figure]:
    """The figures at so many ports; the guest is number 0, and its kernel silent."""
    operator = Operator(here, instance_of(0))
    tail = Tail(bpf.Map.open(here.pins / "events", _shape(here.config.datapath, "events")))
    by_hand = _by_hand(here)

    def disable() -> int:
        began = operator.ask(Access.RESET)
        operator.hear()
        return began

    def enable() -> None:
        operator.ask(Access.OPEN)
        operator.hear()

    with _flood(guest):
        ours = [_time(tail, disable, enable) for _ in range(TRIES)]
        theirs = [_time(tail, *by_hand) for _ in range(BY_HAND)]
    name = f"disable to refusal, {ports:,} port{'s' if ports > 1 else ''}"
    return middle_and_tail(name, ours, "ms", theirs, "map by hand", LIMIT)


def _shape(path: Datapath, name: str) -> abi.MapShape:
    return next(shape for shape in abi.maps(path.max_ports, path.flows_per_port) if shape.name == name)


def _by_hand(here: Site) -> tuple[Callable[[], int], Callable[[], None]]:
    """What the agent does in the end: one write of the port's record."""
    ports = bpf.Map.open(here.pins / "ports", _shape(here.config.datapath, "ports"))
    view = next(port for port in here.client.ports() if port.instance == instance_of(0))
    assert view.slot is not None
    key = struct.pack("=I", view.slot)
    record = abi.PortRecord.from_buffer_copy(ports.lookup(key) or b"")
    port = Port(view.slot, view.generation, view.ifindex, view.tap, "", view.instance, Policy(Access.OPEN, Access.OPEN))

    def write(access: Access) -> None:
        ports.update(key, abi.pack_port(replace(port, policy=Policy(access, access)), record.gateway_ifindex))

    def disable() -> int:
        began = time.monotonic_ns()
        write(Access.RESET)
        return began

    return disable, lambda: write(Access.OPEN)


@contextmanager
def _flood(guest: VethGuest) -> Iterator[None]:
    process = guest.popen([sys.executable, "-m", "bench.flood", "eth0", bytes(SYN).hex()], cwd=ROOT)
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def _time(tail: Tail, disable: Callable[[], int], enable: Callable[[], None]) -> float:
    """Milliseconds of one try."""
    time.sleep(PAUSE)  # the rate of events is bounded: let it recover
    tail.skip()
    began = disable()
    end = time.monotonic() + PATIENCE
    while (refused := tail.refusal(began)) is None:
        if time.monotonic() > end:
            raise RuntimeError("no packet was refused: does the guest send?")
    enable()
    return (refused - began) / 1e6
