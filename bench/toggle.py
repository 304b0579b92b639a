"""Time from `disable` to the first refused packet, by what the guest gets.

A guest sends SYNs in a tight loop. The operator's request is written to the control socket at one reading of the
clock; the kernel stamps the resets that reach the guest by the same clock, and the first one counts. So the figure
holds the whole of the agent's work, the wait for the guest's next packet, and the way of the answer. The baseline
changes what the kernel holds of the port by hand, while no agent runs.
"""

from __future__ import annotations

import ctypes
import json
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

from bench.site import MAC, ROOT, Site, instance_of
from shim.control.shapes import PortView
from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.datapath import abi, bpf, nft_ports
from shim.host import nft_settings
from shim.netlink.nftables import Nftables
from shim.settings import Datapath
from tests.lab import VethGuest

TRIES = 100
BY_HAND = 30
PAUSE = 0.02
PATIENCE = 2.0
SYN = Ether(src=MAC, dst="02:be:00:00:00:02") / IP(src="10.66.0.5", dst="169.254.169.254") / TCP(
    sport=40000, dport=80, flags="S"
)  # fmt: skip

SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35  # asm-generic/socket.h
ETH_P_IP = 0x0800
# linux/filter.h: of IPv4 without options (all that comes here) only TCP with the flag RST
_RESETS = (
    (0x30, 0, 0, 23), (0x15, 0, 3, 6),  # ldb protocol; jeq TCP
    (0x30, 0, 0, 47), (0x45, 0, 1, 4),  # ldb flags; jset RST
    (0x06, 0, 0, 64), (0x06, 0, 0, 0),  # ret 64 bytes; ret none
)  # fmt: skip

Change = Callable[[Access], int]
"""Changes the access of the port; the clock (ns) as that was asked for."""


class Resets:
    """The resets that reach a guest, stamped by the kernel."""

    def __init__(self, guest: VethGuest) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _RESETS))
        self._socket = guest.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        program = struct.pack("@HP", len(_RESETS), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind(("eth0", ETH_P_IP))

    def forget(self) -> None:
        """Forget what is there already."""
        self._socket.settimeout(0)
        try:
            while True:
                self._socket.recv(64)
        except BlockingIOError:
            self._socket.settimeout(PATIENCE)

    def first(self, since: int) -> int:
        """When (ns of the wall clock) the first at or after `since` came."""
        while True:
            try:
                _, (stamp,), _, _ = self._socket.recvmsg(64, socket.CMSG_SPACE(16))
            except TimeoutError:
                raise RuntimeError("no packet was refused: does the guest send?") from None
            seconds, ns = struct.unpack("@qq", stamp[2])
            if (came := seconds * 10**9 + ns) >= since:
                return int(came)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


class Operator:
    """One connection to the control socket, which a policy is written to."""

    def __init__(self, here: Site, instance: UUID) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(here.config.control_socket))
        self._path = f"/v1/instances/{instance}/policy"

    def change(self, access: Access) -> int:
        """As `metashim disable` and `enable` do. RuntimeError unless the agent says that it is done."""
        body = json.dumps({"access": access.value})
        head = f"PUT {self._path} HTTP/1.1\r\nHost: metashim\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.time_ns()
        self._socket.sendall((head + body).encode())
        answer = self._socket.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the agent answered {answer!r}")
        return began


def measure(here: Site, guest: VethGuest) -> list[float]:
    """Milliseconds of each try; the guest is number 0, and its kernel silent."""
    return _times(guest, Operator(here, instance_of(0)).change, TRIES)


def measure_by_hand(here: Site, guest: VethGuest, datapath: str, view: PortView) -> list[float]:
    """The same without an agent. `view` is how the agent, which has gone, saw the guest's port."""
    assert view.slot is not None
    port = Port(view.slot, view.generation, view.ifindex, view.tap, "", view.instance, Policy())
    put = _in_map(here, port) if datapath == "ebpf" else _in_table(here, port)

    def change(access: Access) -> int:
        began = time.time_ns()
        put(access)
        return began

    return _times(guest, change, BY_HAND)


def _in_map(here: Site, port: Port) -> Callable[[Access], None]:
    """One write of the port's record."""
    ports = bpf.Map.open(here.pins / "ports", _shape(here.config.datapath, "ports"))
    key = struct.pack("=I", port.slot)
    record = abi.PortRecord.from_buffer_copy(ports.lookup(key) or b"")

    def put(access: Access) -> None:
        ports.update(key, abi.pack_port(replace(port, policy=Policy(access, access)), record.gateway_ifindex))

    return put


def _shape(path: Datapath, name: str) -> abi.MapShape:
    return next(shape for shape in abi.maps(path.max_ports, path.flows_per_port) if shape.name == name)


def _in_table(here: Site, port: Port) -> Callable[[Access], None]:
    """One transaction that moves the port from one pair of sets to another."""
    table = Nftables(nft_settings(here.config).table)
    held = nft_ports.pieces(replace(port, policy=Policy(Access.OPEN, Access.OPEN)))

    def put(access: Access) -> None:
        nonlocal held
        wanted = nft_ports.pieces(replace(port, policy=Policy(access, access)))
        here.lab.host.call(table.change, held - wanted, wanted - held)
        held = wanted

    return put


def _times(guest: VethGuest, change: Change, tries: int) -> list[float]:
    resets = Resets(guest)
    try:
        with _flood(guest):
            return [_time(resets, change) for _ in range(tries)]
    finally:
        resets.close()


@contextmanager
def _flood(guest: VethGuest) -> Iterator[None]:
    process = guest.popen([sys.executable, "-m", "bench.flood", "eth0", bytes(SYN).hex()], cwd=ROOT)
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def _time(resets: Resets, change: Change) -> float:
    """Milliseconds of one try."""
    time.sleep(PAUSE)  # what was refused last is on its way no more, and the agent has noted it
    resets.forget()
    began = change(Access.RESET)
    refused = resets.first(began)
    change(Access.OPEN)
    return (refused - began) / 1e6
