"""Time to enrol a tap: from the moment it is asked of the kernel until the datapath answers on it.

The guest holds a tap device and asks who has the service address, again and again, until it is told. The baseline
does by hand, while no agent runs, what makes the datapath answer on such a tap: tc(8), twice, or nft(8).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from bench.site import MAC, Site, instance_of
from shim.control.shapes import PortView
from shim.core.policy import Policy
from shim.core.port import Port
from shim.datapath import nft_ports
from shim.host import nft_settings
from tests.lab.tap import IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF

TAPS = range(20_000, 20_050)
"""Numbers of the taps that come and go; the identity file must know them."""

BY_HAND = 8
HAND_SLOT = 16_000  # below the site's max_ports, and never reached by the agent
PATIENCE = 5.0
BETWEEN = 50e-6
"""Seconds between two questions: the processor is the agent's, too."""

SIOCSIFFLAGS, SIOCGIFINDEX, IFF_UP = 0x8914, 0x8933, 1  # linux/sockios.h, linux/if.h

_mac = bytes.fromhex(MAC.replace(":", ""))
WHO_HAS = (
    b"\xff" * 6 + _mac + bytes.fromhex("0806 0001 0800 06 04 0001") + _mac + IPv4Address("10.66.0.5").packed
    + bytes(6) + IPv4Address("169.254.169.254").packed
)  # fmt: skip

Attach = Callable[[str, int], None]
"""Has the datapath answer on a tap of this name and interface index."""


def measure(here: Site) -> list[float]:
    """Milliseconds of each try, which the agent enrols."""
    return [_time(here, f"tap{number}", lambda tap, ifindex: None) for number in TAPS]


def measure_by_hand(here: Site, datapath: str, view: PortView) -> list[float]:
    """The same without an agent. `view` is a port that it had."""
    attach = _by_tc(here, view) if datapath == "ebpf" else _by_nft(here)
    return [_time(here, f"hand{number}", attach) for number in range(BY_HAND)]


def _by_tc(here: Site, view: PortView) -> Attach:
    """Attaches the program, as an operator would type it, for a slot that is served."""

    def attach(tap: str, ifindex: int) -> None:
        run = here.lab.host.argv
        subprocess.run(run(["tc", "qdisc", "add", "dev", tap, "clsact"]), check=True)
        program = ["bpf", "direct-action", "object-pinned", str(here.program), "classid", f"0:{view.slot:x}"]
        subprocess.run(run(["tc", "filter", "add", "dev", tap, "ingress", *program]), check=True)

    return attach


def _by_nft(here: Site) -> Attach:
    """Adds a port to the table: its chain, and its elements."""
    table = nft_settings(here.config).table
    generation = 0

    def attach(tap: str, ifindex: int) -> None:
        nonlocal generation
        generation += 1
        port = Port(HAND_SLOT + generation, generation, ifindex, tap, "", instance_of(0), Policy())
        lines = [nft_ports.text(table, piece) for piece in nft_ports.pieces(port) | nft_ports.owner(port)]
        here.lab.host.run(["nft", "-f", "-"], input="\n".join(lines), stdin=None)

    return attach


def _time(here: Site, tap: str, attach: Attach) -> float:
    """Milliseconds until the tap answers; it is removed then."""
    with here.lab.host.enter():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        began = time.monotonic()
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(tap.encode(), IFF_TAP | IFF_NO_PI))
        fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ.pack(tap.encode(), IFF_UP))
        attach(tap, _index(control, tap))
        while not _is_answered(fd):
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"{tap} is not enrolled within {PATIENCE} s")
            time.sleep(BETWEEN)
        return (time.monotonic() - began) * 1000
    finally:
        control.close()
        os.close(fd)


def _index(control: socket.socket, tap: str) -> int:
    answer = fcntl.ioctl(control, SIOCGIFINDEX, IFREQ.pack(tap.encode(), 0))
    return int(struct.unpack_from("16xi", answer)[0])


def _is_answered(fd: int) -> bool:
    os.write(fd, WHO_HAS)
    try:
        while frame := os.read(fd, 2048):
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
                return True
    except BlockingIOError:
        pass
    return False
