"""Time to enrol a tap: from the moment it is asked of the kernel until the datapath answers on it.

The guest holds a tap device and asks who has the service address, again and again, until it is told. The
baseline attaches the same program to such a tap by hand, with two runs of tc(8), and asks in the same way.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from bench.figures import Figure, middle_and_tail
from bench.site import MAC, Site, site
from tests.lab.tap import IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF

TAPS = 60
PATIENCE = 5.0
IFF_UP = 1

_mac = bytes.fromhex(MAC.replace(":", ""))
WHO_HAS = (
    b"\xff" * 6 + _mac + bytes.fromhex("0806 0001 0800 06 04 0001") + _mac + IPv4Address("10.66.0.5").packed
    + bytes(6) + IPv4Address("169.254.169.254").packed
)  # fmt: skip


def measure() -> list[Figure]:
    """All figures of enrolment."""
    with site() as here:
        here.guest(0)
        here.know(range(TAPS + 1))
        here.start(1)
        by_hand = _Hand(here)
        ours, theirs = [], []
        for number in range(1, TAPS + 1):
            ours.append(_time(here, f"tap{number}", lambda tap: None))
            theirs.append(_time(here, f"hand{number}", by_hand.attach))
        return middle_and_tail("enrol a tap", ours, "ms", theirs, "by hand, tc(8)", None)


class _Hand:
    """Attaches the site's program by tc(8), for the slot of its guest, which is enrolled."""

    def __init__(self, here: Site) -> None:
        self._here = here
        self._program = here.program
        self._slot = next(port.slot for port in here.client.ports())

    def attach(self, tap: str) -> None:
        """As an operator would type it."""
        run = self._here.lab.host.argv
        subprocess.run(run(["tc", "qdisc", "add", "dev", tap, "clsact"]), check=True)
        program = ["bpf", "direct-action", "object-pinned", str(self._program), "classid", f"0:{self._slot:x}"]
        subprocess.run(run(["tc", "filter", "add", "dev", tap, "ingress", *program]), check=True)


def _time(here: Site, tap: str, attach: Callable[[str], None]) -> float:
    """Milliseconds until the tap answers; it is removed then."""
    with here.lab.host.enter():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        began = time.monotonic()
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(tap.encode(), IFF_TAP | IFF_NO_PI))
        here.lab.host.set_up(here.lab.host.index(tap))
        attach(tap)
        while not _is_answered(fd):
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"{tap} is not enrolled within {PATIENCE} s")
        return (time.monotonic() - began) * 1000
    finally:
        os.close(fd)


def _is_answered(fd: int) -> bool:
    os.write(fd, WHO_HAS)
    try:
        while frame := os.read(fd, 2048):
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
                return True
    except BlockingIOError:
        pass
    return False
