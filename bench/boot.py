"""A guest that boots: from its tap's being asked of the kernel until its connection is answered, while it sends from
before the tap is up; with an agent that runs, and with one that was killed at that instant and is started again.

A TCP that finds nobody sends its SYN again after a second, so that is what all of it is held to. The baseline of a
restart is what an interpreter takes to import what the agent does; of a tap that comes while it runs see `enrol`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench.figures import Figure, Limit, percentile
from bench.site import DATAPATHS, MAC, ROOT, Site, site
from tests.lab.tap import IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF

SIZES = (1, 1_000)
BOOTS, RESTARTS = 50, 3
TAPS = range(20_000, 20_000 + BOOTS + 1)
PATIENCE = 30.0
BETWEEN = 200e-6
"""Seconds between two SYNs: the processor is the agent's, too."""

FIRST_RETRANSMISSION = Limit("value", most=1000)  # RFC 6298, 2.1
SIOCSIFFLAGS, SIOCGIFHWADDR, IFF_UP = 0x8914, 0x8927, 1  # linux/sockios.h, linux/if.h
SYN_ACK = 0x12
SERVICE, GUEST = "169.254.169.254", "10.66.1.5"


def measure() -> list[Figure]:
    """All figures."""
    found = []
    with site() as here:
        importing = _importing()
        there = 0
        for size in SIZES:
            here.taps(range(there, size))
            there = size
            here.know([*range(size), *TAPS])
            for datapath in DATAPATHS:
                found += _at(here, datapath, size, importing)
    return found


def _at(here: Site, datapath: str, size: int, importing: float) -> Iterator[Figure]:
    name = f"{datapath}, {size:,} port{'s' if size > 1 else ''}"
    here.start(size, datapath)
    boots = [_boot(here, f"tap{number}") for number in TAPS[:BOOTS]]
    what = f"boot to first SYN-ACK, {name}"
    yield Figure(f"{what}, p50", median(boots), "ms")
    yield Figure(f"{what}, p99", percentile(boots, 99), "ms", limit=FIRST_RETRANSMISSION)
    for workers in (False, True):
        took = median(_restart(here, datapath, workers=workers) for _ in range(RESTARTS))
        what = "agent and workers" if workers else "agent"
        yield Figure(f"boot as the {what} restart, {name}", took, "ms", importing, "its imports", FIRST_RETRANSMISSION)
    here.forget()


def _restart(here: Site, datapath: str, *, workers: bool) -> float:
    """Milliseconds of a guest that boots as the agent dies, which is started again at once."""
    pids = here.worker_pids if workers else []
    here.stop(signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    took = _boot(here, f"tap{TAPS[-1]}", lambda: here.begin(datapath))
    here.await_ready()
    return took


def _importing() -> float:
    """Milliseconds, the least of some tries."""
    times = []
    for _ in range(RESTARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import shim.agent"], cwd=ROOT, check=True)
        times.append((time.monotonic() - began) * 1000)
    return min(times)


def _boot(here: Site, tap: str, then: Callable[[], None] = lambda: None) -> float:
    """Milliseconds until a guest on a new tap has an answer to its SYN; `then` is called once the tap is asked for."""
    frame = Ether(src=MAC, dst=MAC) / IP(src=GUEST, dst=SERVICE) / TCP(sport=40_000, dport=80, flags="S")
    syn = bytes(frame)
    with here.lab.host.enter():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        began = time.monotonic()
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(tap.encode(), IFF_TAP | IFF_NO_PI))
        fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ.pack(tap.encode(), IFF_UP))
        mac = fcntl.ioctl(control, SIOCGIFHWADDR, IFREQ.pack(tap.encode(), 0))[18:24]
        then()
        while not _is_answered(fd, mac + syn[6:]):
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"a guest on {tap} is not answered within {PATIENCE} s")
            time.sleep(BETWEEN)
        return (time.monotonic() - began) * 1000
    finally:
        control.close()
        os.close(fd)


def _is_answered(fd: int, syn: bytes) -> bool:
    """Sends once more; whether a SYN-ACK is among what has come."""
    os.write(fd, syn)
    with contextlib.suppress(BlockingIOError):
        while frame := os.read(fd, 2048):
            if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP and frame[47] == SYN_ACK:
                return True
    return False
