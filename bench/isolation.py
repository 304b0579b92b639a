"""What a guest notices of another that floods: its latencies beside those while all is calm.

The victim asks every PACE seconds, which is below what the limits as they come allow one instance, in turns on a kept
connection and on a new one. The other guests flood one after the other: SYNs that nobody will ever complete, requests
as fast as wrk makes them on 64 connections, requests that never end on all the connections that are to be had. All go
to a backend that always answers the same.

A flood is made on a CPU of its own, at the least priority, and the victim, the worker and the backend share another:
what is measured is not who gets the CPU, which is the hypervisor's to share out, but what of a flood gets past the
limits. For the same reason the other CPU is not idle while all is calm: it counts. Where CPUs are threads of one core,
or shares of a host's, a busy neighbour alone costs milliseconds. The first moments are left out: the bursts that the
limits let through once. Rounds of calm and each of the floods alternate; percentiles are of all rounds together.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench import answer, load
from bench.figures import Figure, Limit, percentile
from bench.site import DEFAULTS, ROOT, Site, forwarded, site
from tests.lab import VethGuest

ROUNDS = 7
SECONDS = 3.0
LEAD = 1.0
"""From the start of a flood to the first request that counts."""
PACE = 0.012
NEW_EVERY = 3
"""Of so many requests one is on a new connection."""
HOST, PORT = "169.254.169.254", 80
PATH = answer.path_of(200)
TAIL = Limit("ratio", most=2)
BUSY = "import sys, time; end = time.time() + int(sys.argv[1]); exec('while time.time() < end: pass'); print(1)"
"""What keeps the other CPU from sleeping while all is calm."""


@dataclass(frozen=True, slots=True)
class Flood:
    """What one guest does: a command, for how long it runs, and how to read from what it prints how hard it did."""

    name: str
    unit: str
    guest: VethGuest
    command: list[str]
    read: Callable[[str], float] = float


@dataclass(slots=True)
class Seen:
    """The victim's latencies in microseconds, and how hard the flood was in each round."""

    kept: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)


def measure() -> list[Figure]:
    """All figures of isolation."""
    quiet, _ = load.cpus()
    with site(DEFAULTS + forwarded(answer.PORT)) as here:
        victim, syns, asker = here.guest(0), here.quiet_guest(1), here.guest(2)
        here.know(range(3))
        with answer.serve(here.lab.host, ("127.0.0.1",), load.on_cpu(quiet)):
            here.start(3)
            load.await_answer(victim, HOST, PORT, PATH)
            with _pinned(here, quiet):
                return _rounds(Victim(victim), _floods(syns, asker))


@contextlib.contextmanager
def _pinned(here: Site, cpu: int) -> Iterator[None]:
    """The workers and the calling thread on one CPU."""
    before = os.sched_getaffinity(0)
    for pid in (*here.worker_pids, 0):
        os.sched_setaffinity(pid, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _floods(syns: VethGuest, asker: VethGuest) -> list[Flood]:
    whole = str(int(LEAD + SECONDS + 1))
    url = f"http://{HOST}{PATH}"
    wrk = ["wrk", "-t1", "-c64", f"-d{whole}s", url]
    slow = [sys.executable, "-m", "bench.slow", HOST, str(PORT), whole]
    return [
        Flood("nothing", "", asker, [sys.executable, "-c", BUSY, whole]),
        Flood("SYNs", "/s", syns, [sys.executable, "-m", "bench.syns", "eth0", whole]),
        Flood("requests", "/s", asker, wrk, read_rate),
        Flood("slow requests", "connections", asker, slow),
    ]


def read_rate(text: str) -> float:
    """Requests/s that wrk printed, whatever became of them. RuntimeError for text that is not wrk's."""
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    if rate is None:
        raise RuntimeError(f"wrk printed something else:\n{text}")
    return float(rate[1])


def _rounds(victim: Victim, floods: list[Flood]) -> list[Figure]:
    calm, *floods = floods
    during = {flood.name: Seen() for flood in (calm, *floods)}
    for _ in range(ROUNDS):
        for flood in (calm, *floods):
            _endure(victim, flood, during[flood.name])
    base = during[calm.name]
    return [figure for flood in floods for figure in _figures(flood, during[flood.name], base)]


def _endure(victim: Victim, flood: Flood, seen: Seen) -> None:
    """One flood. RuntimeError when it did not last, or did nothing."""
    _, noisy = load.cpus()
    command = [*load.on_cpu(noisy), "nice", "-n", "19", *flood.command]
    process = flood.guest.popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(LEAD)
    victim.watch(seen, SECONDS)
    lasted = process.poll() is None
    printed, _ = process.communicate(timeout=10)
    strength = flood.read(printed)
    if not lasted or strength <= 0:
        raise RuntimeError(f"the flood of {flood.name} ended early, or was none:\n{printed}")
    seen.strengths.append(strength)


def _figures(flood: Flood, seen: Seen, calm: Seen) -> list[Figure]:
    figures = [Figure(f"flood of {flood.name}", median(seen.strengths), flood.unit)]
    for kind, ours, base in (("kept", seen.kept, calm.kept), ("new", seen.new, calm.new)):
        name = f"victim's latency, {kind} connections, flood of {flood.name}"
        figures += [
            Figure(f"{name}, p50", median(ours), "µs", median(base), "calm"),
            Figure(f"{name}, p99", percentile(ours, 99), "µs", percentile(base, 99), "calm", TAIL),
        ]
    return figures


class Victim:
    """A guest that asks now and then."""

    def __init__(self, guest: VethGuest) -> None:
        self._guest = guest
        self._kept = self._socket()
        self._kept.connect((HOST, PORT))

    def _socket(self) -> socket.socket:
        sock = self._guest.call(socket.socket)
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def watch(self, seen: Seen, seconds: float) -> None:
        """Asks for so long. RuntimeError for any answer but 200."""
        gc.disable()
        end = time.monotonic() + seconds
        for turn in itertools.count():
            if time.monotonic() > end:
                break
            if turn % NEW_EVERY:
                seen.kept.append(_timed(lambda: ask(self._kept)))
            else:
                with self._socket() as sock:
                    seen.new.append(_timed(lambda sock=sock: self._ask_anew(sock)))  # type: ignore[misc]
            time.sleep(PACE)
        gc.enable()

    def _ask_anew(self, sock: socket.socket) -> None:
        sock.connect((HOST, PORT))
        ask(sock)


def _timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e6


REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def ask(sock: socket.socket) -> None:
    """One request and its whole answer. RuntimeError unless that is a 200 with a Content-Length."""
    sock.sendall(REQUEST)
    data = b""
    while len(data) < (whole := whole_length(data)):
        part = sock.recv(65536)
        if not part:
            raise RuntimeError(f"the answer ended early: {data[:60]!r}")
        data += part
    if len(data) > whole:
        raise RuntimeError("more than an answer came")


def whole_length(data: bytes) -> int:
    """Bytes of the answer that begins so; one more than there are as long as its head is not whole. RuntimeError
    unless it is a 200 with a Content-Length."""
    head, blank, _ = data.partition(b"\r\n\r\n")
    if not blank:
        return len(data) + 1
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise RuntimeError(f"the victim got {head[:200]!r}")
    return len(head) + len(blank) + int(length[1])
