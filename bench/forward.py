"""What forwarding costs: a guest asks one backend through metashim, through haproxy, and directly.

    guest ─ tap, datapath, worker ─┐
    guest ─ plain link, haproxy ───┼─ 127.0.0.1, backend
    guest ─ plain link ────────────┘

One and the same backend answers all, in the host's namespace: metashim's one worker and haproxy's one thread both reach
it over the loopback, on connections that they keep. Worker and haproxy have one CPU to themselves, in turns; client and
backend share another. So a rate is what the one forwarder makes of one CPU, or what the other CPU can ask and answer.
Rounds of the three alternate, and medians count. All is forwarded as to Nova; what is `signed` as to any HTTP service,
which is told of each request anew who asks.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from bench import answer, load
from bench.figures import Figure, Limit
from bench.site import RAISED, Site, forwarded, plain_link, site
from tests.lab import VethGuest

ROUNDS = 5
SECONDS = 1
CONNECTIONS = (32, 1)
HOST, GUEST = "192.0.2.1", "192.0.2.2"
HAPROXY_PORT = 8081
SERVICE = "169.254.169.254"

RATE = Limit("ratio", least=0.55)
TAIL = Limit("ratio", most=2)
HELD_AT = (32, 200)
"""The connections and the body that the limits are about."""
SIGNED = "/signed"

SETTINGS = """\
global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout client 60s
  timeout connect 5s
  timeout server 60s
frontend guest
  bind {address}:{port}
  default_backend answer
backend answer
  http-reuse always
  server answer 127.0.0.1:{answer}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How the backend is reached: whom the guest asks, and the process that forwards, if one does."""

    name: str
    host: str
    port: int
    pid: int | None = None

    def url(self, body: int, prefix: str = "") -> str:
        """What to ask for to get a body of so many bytes."""
        return f"http://{self.host}:{self.port}{prefix}{answer.path_of(body)}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of wrk over one way, and the CPU seconds that its forwarder used meanwhile."""

    run: load.Run
    cpu: float

    @property
    def cpu_per_thousand(self) -> float:
        """Seconds of CPU that a thousand requests took."""
        return self.cpu * 1e3 / self.run.requests


def measure() -> list[Figure]:
    """All figures of forwarding."""
    with site(RAISED + forwarded(answer.PORT, requests=4096)) as here:
        guest = here.guest(0)
        here.know([0])
        plain_link(guest, here.lab.host, "plain0", (GUEST, HOST))
        with _ways(here) as ways:
            for way in ways:
                for body in answer.BODIES:
                    load.await_answer(guest, way.host, way.port, answer.path_of(body))
            return _compare(guest, ways)


@contextlib.contextmanager
def _ways(here: Site) -> Iterator[tuple[Way, Way, Way]]:
    """Through metashim, through haproxy, directly; all that runs is on its CPU."""
    busy, forwards = load.cpus()
    host = here.lab.host
    with (
        answer.serve(host, ("127.0.0.1", HOST), load.on_cpu(busy)),
        tempfile.NamedTemporaryFile("w", prefix="metashim-bench-", suffix=".cfg") as file,
    ):
        file.write(SETTINGS.format(address=HOST, port=HAPROXY_PORT, answer=answer.PORT))
        file.flush()
        haproxy = host.popen([*load.on_cpu(forwards), "haproxy", "-q", "-db", "-f", file.name])
        here.start(1)
        (worker,) = here.worker_pids
        os.sched_setaffinity(worker, {forwards})
        yield (
            Way("metashim", SERVICE, 80, worker),
            Way("haproxy", HOST, HAPROXY_PORT, haproxy.pid),
            Way("directly", HOST, answer.PORT),
        )


def _compare(guest: VethGuest, ways: tuple[Way, Way, Way]) -> list[Figure]:
    runs = [(body, connections, "") for body in answer.BODIES for connections in CONNECTIONS]
    runs.append((HELD_AT[1], HELD_AT[0], SIGNED))
    return [
        figure
        for body, connections, prefix in runs
        for figure in _figures(connections, body, _rounds(guest, ways, connections, body, prefix), prefix)
    ]


def _rounds(guest: VethGuest, ways: tuple[Way, ...], connections: int, body: int, prefix: str) -> list[list[Turn]]:
    """The turns of each way."""
    rounds = [[_turn(guest, way, connections, way.url(body, prefix)) for way in ways] for _ in range(ROUNDS)]
    return [list(turns) for turns in zip(*rounds, strict=True)]


def _turn(guest: VethGuest, way: Way, connections: int, url: str) -> Turn:
    busy, _ = load.cpus()
    began = load.cpu_seconds(way.pid) if way.pid else 0.0
    run = load.wrk(guest, url, connections, SECONDS, prefix=load.on_cpu(busy))
    return Turn(run, load.cpu_seconds(way.pid) - began if way.pid else 0.0)


def _figures(connections: int, body: int, turns: list[list[Turn]], prefix: str = "") -> list[Figure]:
    """Metashim's beside haproxy's and those without a forwarder; `turns` are in that order."""
    kept = "1 kept connection" if connections == 1 else f"{connections} kept connections"
    what = f"forwarded{', signed' if prefix else ''}, {body:,} bytes, {kept}"
    held = (connections, body) == HELD_AT and not prefix

    def figures(name: str, unit: str, of: Callable[[Turn], float], limit: Limit | None) -> list[Figure]:
        ours, haproxy, direct = (median(map(of, way)) for way in turns)
        return [
            Figure(f"{name}, {what}", ours, unit, haproxy, "haproxy", limit if held else None),
            Figure(f"{name}, {what} (directly)", ours, unit, direct, "directly"),
        ]

    return [
        *figures("requests/s", "/s", lambda turn: turn.run.rate, RATE),
        *figures("latency p50", "µs", lambda turn: turn.run.p50, None),
        *figures("latency p99", "µs", lambda turn: turn.run.p99, TAIL),
        figures("CPU s of the forwarder for 1,000 requests", "s", lambda turn: turn.cpu_per_thousand, None)[0],
    ]
