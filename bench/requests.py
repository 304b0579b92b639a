"""Requests a second and their latencies: a guest asks the proxy through the datapath, and its peers over a plain link.

The peers run in a namespace of their own at the other end of a veth pair from the same guest, on one CPU like the
proxy's one worker: a bare server on httptools and uvloop, and haproxy's `http-request return`. All answer with equal
bodies, to the same client. Rounds of the three alternate, and medians count.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bench import load
from bench.figures import Figure, Limit, percentile
from bench.site import ROOT, Site, instance_of, plain_link, site
from tests.lab import Namespace, VethGuest

BODY_BYTES = 200
ROUNDS = 5
SECONDS = 1
PEER, GUEST = "192.0.2.1", "192.0.2.2"
BARE_PORT, HAPROXY_PORT = 8001, 8002
SERVICE = "169.254.169.254"
PATH = "/latest/user-data"

T = TypeVar("T")

HALF = Limit("ratio", least=0.5)

HAPROXY = """\
global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout client 30s
  timeout connect 5s
  timeout server 30s
frontend f
  bind {address}:{port}
  http-request return status 200 content-type application/octet-stream string "{body}"
"""


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked, where."""

    name: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """What to ask for."""
        return f"http://{self.host}:{self.port}{PATH}"


OURS = Server("metashim", SERVICE, 80)
BARE = Server("bare server", PEER, BARE_PORT)
HAPROXY_SERVER = Server("haproxy", PEER, HAPROXY_PORT)
SERVERS = (OURS, BARE, HAPROXY_SERVER)


def measure() -> list[Figure]:
    """All figures of requests."""
    with site() as here:
        guest = here.guest(0)
        here.know([0])
        here.start(1)
        document = {"user_data": "x" * BODY_BYTES}
        here.client.put_document(instance_of(0), json.dumps(document).encode())
        _widen_ports(guest)
        with _peers(here, guest):
            return _compare(guest)


def _widen_ports(guest: Namespace) -> None:
    """So that new connections do not run out of ports: those of ended ones wait for a minute."""
    guest.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    guest.sysctl("net.ipv4.tcp_tw_reuse", 1)


@contextlib.contextmanager
def _peers(here: Site, guest: VethGuest) -> Iterator[None]:
    """The peers at the other end of a plain link from the guest."""
    peer = here.lab.namespace("peer")
    plain_link(guest, peer, "eth0", (GUEST, PEER))
    with tempfile.NamedTemporaryFile("w", prefix="metashim-bench-", suffix=".cfg") as file:
        file.write(HAPROXY.format(address=PEER, port=HAPROXY_PORT, body="x" * BODY_BYTES))
        file.flush()
        peer.popen([sys.executable, "-m", "bench.bare", PEER, str(BARE_PORT), str(BODY_BYTES)], cwd=ROOT)
        peer.popen(["haproxy", "-q", "-db", "-f", file.name])
        for server in SERVERS:
            load.await_answer(guest, server.host, server.port, PATH)
        yield


def _compare(guest: VethGuest) -> list[Figure]:
    figures = []
    for name, connections, fresh in (
        ("1 kept connection", 1, False),
        ("32 kept connections", 32, False),
        ("a new connection each, 32 at a time", 32, True),
    ):
        runs = _rounds(lambda s, c=connections, f=fresh: load.wrk(guest, s.url, c, SECONDS, fresh=f))  # type: ignore[misc]
        figures += _rates(name, runs)
        if not fresh:
            figures += _latencies(name, runs)
    visits = _rounds(lambda s: load.visits(guest, s.host, s.port, PATH, SECONDS / 2))
    figures += _visits("a new connection each, one at a time", visits)
    return figures


def _rounds(run: Callable[[Server], T]) -> dict[Server, list[T]]:
    found: dict[Server, list[T]] = {server: [] for server in SERVERS}
    for _ in range(ROUNDS):
        for server in SERVERS:
            found[server].append(run(server))
    return found


def _rates(name: str, runs: dict[Server, list[load.Run]]) -> list[Figure]:
    rate = {server: median(run.rate for run in runs[server]) for server in SERVERS}
    return [
        Figure(f"requests/s, {name}", rate[OURS], "/s", rate[BARE], BARE.name, HALF),
        Figure(f"requests/s, {name} (haproxy)", rate[OURS], "/s", rate[HAPROXY_SERVER], HAPROXY_SERVER.name),
    ]


def _latencies(name: str, runs: dict[Server, list[load.Run]]) -> list[Figure]:
    middle = {server: median(run.p50 for run in runs[server]) for server in SERVERS}
    tail = {server: median(run.p99 for run in runs[server]) for server in SERVERS}
    return _against_both(f"latency, {name}", middle, tail)


def _visits(name: str, visits: dict[Server, list[list[float]]]) -> list[Figure]:
    times = {server: [t for part in visits[server] for t in part] for server in SERVERS}
    middle = {server: median(times[server]) for server in SERVERS}
    tail = {server: percentile(times[server], 99) for server in SERVERS}
    return _against_both(f"latency, {name}", middle, tail)


def _against_both(name: str, middle: dict[Server, float], tail: dict[Server, float]) -> list[Figure]:
    return [
        Figure(f"{name}, {which}{note}", values[OURS], "µs", values[peer], peer.name)
        for which, values in (("p50", middle), ("p99", tail))
        for peer, note in ((BARE, ""), (HAPROXY_SERVER, " (haproxy)"))
    ]
