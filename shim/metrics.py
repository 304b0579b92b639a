"""What Prometheus reads of the agent: GET /metrics, on a loopback address or a Unix socket.

Theory of operation. A scrape first gathers what is counted, then writes it out family by family. With ten thousand
ports either takes longer than an operator may wait for a `disable`, so both are done in slices of half a millisecond,
between which the agent's loop does what else there is. Packets are counted by the kernel per port, and forgotten with
the port: what they grew by between two scrapes is summed here, so that no series goes down when a port goes.

This file alone imports prometheus_client (2 MB resident), so it is imported only where metrics are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any
from uuid import UUID

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from shim import __version__, feed
from shim.control.shapes import STATES
from shim.core.address import Address
from shim.core.exchange import Request, Response
from shim.core.port import Port
from shim.core.verdict import Verdict
from shim.datapath.base import Datapath
from shim.enrolment import Enrolment
from shim.host import unix_socket
from shim.http.limits import Limits
from shim.http.server import Server
from shim.journal import Journal
from shim.operations import state_of
from shim.usage import Totals, Usage
from shim.workers import Workers

PATH = b"/metrics"
PLAIN = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
SLICE_SECONDS = 0.0005
READING_SECONDS = 1.0
"""For reading the counters of ports in one scrape. Those that are not reached are the first of the next one: their
packets come late, as 10,000 ports of nftables would take longer than a scrape may."""
INSTANCES = 50  # of which one metric is written in one go: less than half a millisecond
LIMITS = Limits(body_bytes=0, idle_seconds=120, connections_per_instance=16, connections=16)
PROXY = "proxy"
"""How the backend is called in requests that the proxy answered itself."""

Encode = Callable[[Collector], bytes]
Rows = Iterable[tuple[list[str], Any]]
"""Of one metric: values of its labels, and what they come to."""

FAMILIES: dict[str, tuple[type[Metric], tuple[str, ...], str]] = {
    "metashim_build_info": (InfoMetricFamily, ("version", "datapath"), "Always 1."),
    "metashim_ailments": (GaugeMetricFamily, (), "What `metashim status` says is not well."),
    "metashim_ports": (GaugeMetricFamily, ("state",), "Guarded taps."),
    "metashim_instances": (GaugeMetricFamily, (), "Instances that have a port."),
    "metashim_workers": (GaugeMetricFamily, (), "Workers that there are to be."),
    "metashim_workers_up": (GaugeMetricFamily, (), "Workers that run and follow the agent."),
    "metashim_worker_restarts_total": (CounterMetricFamily, (), "Workers that ended unasked."),
    "metashim_connections": (GaugeMetricFamily, (), "Guests' connections that are open."),
    "metashim_connections_accepted_total": (CounterMetricFamily, (), "Guests' connections."),
    "metashim_connections_turned_away_total": (CounterMetricFamily, (), "Of these, how many were over a limit."),
    "metashim_watches": (GaugeMetricFamily, (), "Guests' requests that wait for something to change."),
    "metashim_guest_writes_total": (
        CounterMetricFamily, ("kind", "outcome"), "What guests asked to have written, and what became of it.",
    ),
    "metashim_requests_total": (
        CounterMetricFamily, ("backend", "code"),
        "Requests by class of status; the backend is `proxy` where the proxy answered itself.",
    ),
    "metashim_request_duration_seconds": (
        HistogramMetricFamily, ("backend",), "From a whole request to its answer's being written.",
    ),
    "metashim_response_bytes_total": (CounterMetricFamily, (), "Bytes of bodies sent to guests."),
    "metashim_malformed_requests_total": (CounterMetricFamily, (), "What guests sent that was no request of HTTP."),
    "metashim_rate_limited_requests_total": (CounterMetricFamily, (), "Requests that were answered 429."),
    "metashim_token_requests_total": (
        CounterMetricFamily, ("outcome",),
        "Requests with a good session token, without any, and those refused for want of a good one.",
    ),
    "metashim_backend_up": (
        GaugeMetricFamily, ("backend", "address"), "0 while any worker thinks that the address is down.",
    ),
    "metashim_packets_total": (
        CounterMetricFamily, ("verdict",), "Packets of guests by counter or reason, as under Drop reasons.",
    ),
    "metashim_events_missed_total": (
        CounterMetricFamily, (), "Events that were gone before those who follow them asked.",
    ),
    "metashim_instance_requests_total": (
        CounterMetricFamily, ("instance", "project", "code"), "Requests by class of status.",
    ),
    "metashim_instance_response_bytes_total": (CounterMetricFamily, ("instance", "project"), "Bytes of bodies."),
    "metashim_instance_tokenless_requests_total": (
        CounterMetricFamily, ("instance", "project"), "Requests without a session token: who would break.",
    ),
    "metashim_instance_rate_limited_requests_total": (
        CounterMetricFamily, ("instance", "project"), "Requests that were answered 429.",
    ),
    "metashim_instance_packets_total": (
        CounterMetricFamily, ("instance", "project", "verdict"), "Packets by counter or reason.",
    ),
}  # fmt: skip
"""Every metric: its kind, its labels, and what it says. Those of instances are the last."""


Owner = tuple[int, int]
"""Slot and generation."""


@dataclass(slots=True)
class Snapshot:
    """What one scrape found of the ports: how many are in each state, whose slots are, and each instance's project."""

    states: Counter[str] = field(default_factory=Counter)
    owners: set[Owner] = field(default_factory=set)
    instances: dict[UUID, str] = field(default_factory=dict)


class Packets:
    """Packets by verdict, of all ports that there ever were and of each instance that has one."""

    def __init__(self) -> None:
        self.host: Counter[Verdict] = Counter()
        self.instances: dict[UUID, Counter[Verdict]] = {}
        self._last: dict[Owner, dict[Verdict, int]] = {}

    def read(self, port: Port, now: dict[Verdict, int]) -> None:
        """What a port's counters say now."""
        key = (port.slot, port.generation)
        last = self._last.get(key, {})
        own = self.instances.setdefault(port.instance, Counter()) if port.instance else Counter()
        for verdict, packets in now.items():
            growth = max(0, packets - last.get(verdict, 0))
            self.host[verdict] += growth
            own[verdict] += growth
        self._last[key] = now

    def keep(self, owners: Set[Owner], instances: Set[UUID]) -> None:
        """Forgets all others."""
        gone = self._last.keys() - owners
        for owner in gone:
            del self._last[owner]
        if gone:  # no instance goes but with a slot
            for instance in self.instances.keys() - instances:
                del self.instances[instance]


class Breath:
    """Lets others have their turn on the loop when a slice of time is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = clock() + SLICE_SECONDS

    async def take(self) -> None:
        """To be called wherever others may have it."""
        if self._clock() > self._end:
            await asyncio.sleep(0)
            self._end = self._clock() + SLICE_SECONDS


class Metrics:
    """Answers scrapes. `writes` counts what guests asked to have written, by kind and outcome; `instances`: whether
    there are series of each. `clock` is in seconds."""

    def __init__(
        self,
        datapath: Datapath,
        enrolment: Enrolment,
        workers: Workers,
        journal: Journal,
        ailments: Callable[[], Sequence[object]],
        writes: Callable[[], Mapping[tuple[str, str], int]],
        *,
        instances: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._datapath = datapath
        self._enrolment = enrolment
        self._workers = workers
        self._journal = journal
        self._ailments = ailments
        self._writes = writes
        self._with_instances = instances
        self._clock = clock
        self._packets = Packets()
        self._unread = 0  # the port to begin with
        self._gathering = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """GET /metrics, in the text format 0.0.4, or in OpenMetrics for who accepts it."""
        if request.path != PATH:
            return Response(404, ((b"content-type", b"text/plain"),), b"it is /metrics\n")
        if request.method not in (b"GET", b"HEAD"):
            return Response(405, ((b"allow", b"GET, HEAD"), (b"content-type", b"text/plain")), b"GET /metrics\n")
        is_open = b"application/openmetrics-text" in (request.header(b"accept") or b"")
        headers = ((b"content-type", OPENMETRICS if is_open else PLAIN),)
        if request.method == b"HEAD":
            return Response(200, headers)
        encode = openmetrics.generate_latest if is_open else generate_latest
        parts = self._write(await self._gather(), encode, is_open=is_open)
        return Response(200, headers, parts=parts)

    async def _gather(self) -> Snapshot:
        async with self._gathering:
            ports = list(self._enrolment.ports.values())
            breath = Breath(self._clock)
            await self._read_packets(ports, breath)
            found = Snapshot()
            for port in ports:
                self._add(found, port)
                await breath.take()
            found.states["failed"] += len(self._enrolment.failures)
            self._packets.keep(found.owners, found.instances.keys())
            return found

    async def _read_packets(self, ports: list[Port], breath: Breath) -> None:
        start = self._unread if self._unread < len(ports) else 0
        end = self._clock() + READING_SECONDS
        for number, port in enumerate(ports[start:] + ports[:start]):
            if self._clock() > end:
                self._unread = (start + number) % len(ports)
                break
            self._packets.read(port, self._datapath.counters(port.slot))
            await breath.take()

    def _add(self, found: Snapshot, port: Port) -> None:
        found.owners.add((port.slot, port.generation))
        if port.place not in self._enrolment.failures:
            found.states[state_of(port)] += 1
        if port.instance is not None:
            found.instances[port.instance] = found.instances.get(port.instance) or port.project

    async def _write(self, found: Snapshot, encode: Encode, *, is_open: bool) -> AsyncIterator[bytes]:
        for name, rows in self._host(found).items():
            yield _text(encode, _family(name, rows))
            await asyncio.sleep(0)
        if self._with_instances:
            for name in _OF_INSTANCES:
                yield _text(encode, _family(name, ()))
                instances = iter(found.instances.items())
                while some := list(islice(instances, INSTANCES)):
                    if text := "".join(self._lines(name, some)):
                        yield text.encode()
                    await asyncio.sleep(0)
        if is_open:
            yield b"# EOF\n"

    def _lines(self, name: str, instances: list[tuple[UUID, str]]) -> Iterator[str]:
        """The samples of one metric of some instances, with their projects: the encoders take ten times as long."""
        told = _OF_INSTANCES[name]
        label = FAMILIES[name][1][-1]
        none: Counter[Verdict] = Counter()
        for instance, project in instances:
            usage, packets = self._workers.ledger.usage_of(instance), self._packets.instances.get(instance, none)
            own = f'{name}{{instance="{instance}",project="{_escaped(project)}"'
            for value, number in told(usage, packets):
                yield f'{own},{label}="{value}"}} {number}\n' if value else f"{own}}} {number}\n"

    def _host(self, found: Snapshot) -> dict[str, Rows]:
        """All metrics but those of instances."""
        workers = self._workers.all
        totals = self._workers.ledger.totals()
        rows: dict[str, Rows] = {
            "metashim_build_info": [([], {"version": __version__, "datapath": self._datapath.name})],
            "metashim_ailments": [([], len(self._ailments()))],
            "metashim_ports": [([state], found.states[state]) for state in STATES],
            "metashim_instances": [([], len(found.instances))],
            "metashim_workers": [([], len(workers))],
            "metashim_workers_up": [([], sum(worker.writer is not None for worker in workers))],
            "metashim_worker_restarts_total": [([], sum(worker.restarts for worker in workers))],
            "metashim_connections": [([], sum(worker.connections for worker in workers))],
            "metashim_connections_accepted_total": [([], totals.accepted)],
            "metashim_connections_turned_away_total": [([], totals.turned_away)],
            "metashim_watches": [([], sum(worker.watches for worker in workers))],
            "metashim_guest_writes_total": [([kind, fate], n) for (kind, fate), n in sorted(self._writes().items())],
            "metashim_response_bytes_total": [([], totals.usage.bytes)],
            "metashim_malformed_requests_total": [([], totals.malformed)],
            "metashim_rate_limited_requests_total": [([], totals.usage.limited)],
            "metashim_token_requests_total": [([name], n) for name, n in totals.usage.tokens.items()],
            "metashim_backend_up": [
                ([view.backend, view.address], int(view.healthy)) for view in self._workers.ledger.backends()
            ],
            "metashim_packets_total": [([verdict.label], self._packets.host[verdict]) for verdict in Verdict],
            "metashim_events_missed_total": [([], self._journal.missed)],
            **_of_backends(totals),
        }
        return {name: rows[name] for name in FAMILIES if name in rows}


_OF_INSTANCES: dict[str, Callable[[Usage, Counter[Verdict]], list[tuple[str, int]]]] = {
    "metashim_instance_requests_total": lambda usage, _: [(code, n) for code, n in usage.codes.items() if n],
    "metashim_instance_response_bytes_total": lambda usage, _: [("", usage.bytes)],
    "metashim_instance_tokenless_requests_total": lambda usage, _: [("", usage.without_token)],
    "metashim_instance_rate_limited_requests_total": lambda usage, _: [("", usage.limited)],
    "metashim_instance_packets_total": lambda _, packets: [(v.label, n) for v, n in packets.items() if n],
}
"""Per metric: (value of its last label, number) of an instance; zeros are left out where there are many."""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _of_backends(totals: Totals) -> dict[str, Rows]:
    spent = {name or PROXY: spent for name, spent in sorted(totals.backends.items())}
    return {
        "metashim_requests_total": [
            ([name, code], requests) for name, one in spent.items() for code, requests in one.codes.items()
        ],
        "metashim_request_duration_seconds": [
            ([name], (list(_cumulative(one.buckets)), one.seconds)) for name, one in spent.items()
        ],
    }


def _cumulative(buckets: Sequence[int]) -> Iterator[tuple[str, int]]:
    return zip([*map(str, feed.BUCKETS), "+Inf"], accumulate(buckets), strict=True)


def _family(name: str, rows: Rows) -> Metric:
    """A metric with its samples."""
    kind, labels, text = FAMILIES[name]
    if kind is InfoMetricFamily:
        return InfoMetricFamily(name.removesuffix("_info"), text, next(iter(rows))[1])
    family = kind(name, text, labels=labels)  # type: ignore[call-arg]
    for values, value in rows:
        if kind is HistogramMetricFamily:
            family.add_metric(values, *value)  # type: ignore[attr-defined]
        else:
            family.add_metric(values, value)  # type: ignore[attr-defined]
    return family


class _One(Collector):
    """One metric, as the encoders want it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> list[Metric]:
        return [self._metric]


def _text(encode: Encode, metric: Metric) -> bytes:
    return encode(_One(metric)).removesuffix(b"# EOF\n")


async def serve(metrics: Metrics, address: Address, gid: int) -> Server[str]:
    """Answers scrapes at an address; a Unix socket is the group's. Raises OSError when it cannot be had."""

    def handle(caller: str, request: Request) -> object:
        return metrics.answer(request)

    server = Server[str](
        handle, LIMITS, lambda peer, own: "prometheus", limit_key=lambda caller: caller  # type: ignore[arg-type]
    )
    await server.serve([_listen(address, gid)])
    return server


def _listen(address: Address, gid: int) -> socket.socket:
    if address.path:
        return unix_socket(Path(address.path), gid)
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        undo.pop_all()
    return sock
