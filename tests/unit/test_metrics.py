"""What Prometheus reads: over the shipped fake datapath, with workers that are spoken for."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from shim import __version__, feed, metrics
from shim.core.address import parse_address
from shim.core.exchange import Caller, Request, Response
from shim.core.link import Link, Place
from shim.core.policy import Access, Family, Policy
from shim.core.port import Port, Slots
from shim.core.verdict import Verdict
from shim.datapath import abi
from shim.datapath.fake import Fake
from shim.enrolment import Enrolment
from shim.errors import KernelError
from shim.identity.alias import Alias
from shim.identity.resolve import Resolver
from shim.journal import KEPT, Journal
from shim.metrics import FAMILIES, Metrics, Packets
from shim.tally import Tally
from shim.usage import Ledger
from shim.workers import Workers

ONE, TWO = UUID(int=1), UUID(int=2)
SETTINGS = abi.pack_settings(["169.254.169.254"], [80], rate=50, burst=200, event_rate=10, flows_per_port=8)
Key = tuple[str, frozenset[tuple[str, str]]]


class Counting(Fake):
    """A fake whose counters a test sets."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, lambda: 0)
        self.counted: dict[int, dict[Verdict, int]] = {}
        self.reads: list[int] = []

    def counters(self, slot: int) -> dict[Verdict, int]:
        self.reads.append(slot)
        return dict(self.counted.get(slot, {}))


class Host:
    """An agent's parts, with one worker that says what its tally counts."""

    def __init__(self, *, instances: bool = True, slots: int = 8) -> None:
        self.links: dict[Place, Link] = {}
        self.policies: dict[UUID | None, Policy] = {}
        self.datapath, self.journal, self.tally = Counting(), Journal(lambda: 0.0), Tally()
        self.ailments: list[object] = []
        self.now = 0.0
        self.step = 0.0
        self.enrolment = Enrolment(
            self.datapath, Slots(slots), Resolver([Alias()]), self.links, ("tap*",),
            lambda instance: self.policies.get(instance, Policy()), self.changed, lambda: 0.0,
        )  # fmt: skip
        ledger = Ledger(self.owner, {"nova": ["http://a:1"], "http": ["unix:/b"]})
        self.workers = Workers(
            2, 0, Path("/none"), list, lambda fds: None, list, ledger, lambda text: None,  # type: ignore
            lambda *asked: None, lambda reader: None,
        )  # fmt: skip
        self.metrics = Metrics(
            self.datapath, self.enrolment, self.workers, self.journal, lambda: self.ailments,
            lambda: {("put", "done"): 3, ("put", "rate"): 1}, instances=instances, clock=self.clock,
        )  # fmt: skip

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def changed(self, port: Port, here: bool) -> None:
        if not here:
            self.workers.gone(port.slot, port.generation)

    def owner(self, slot: int, generation: int) -> UUID | None:
        port = self.enrolment.port_of(slot, generation)
        return port.instance if port else None

    async def link(self, ifindex: int, instance: UUID | None = None) -> int:
        alias = f"metashim:{instance}" if instance else None
        self.links[Place("", ifindex)] = Link(ifindex, f"tap{ifindex}", alias)
        await self.enrolment.settle([Place("", ifindex)])
        return self.enrolment.ports[Place("", ifindex)].slot

    async def unlink(self, ifindex: int) -> None:
        del self.links[Place("", ifindex)]
        await self.enrolment.settle([Place("", ifindex)])

    def ask(self, ifindex: int, status: int = 200, seconds: float = 0.002, token: str = "without") -> None:
        port = self.enrolment.ports[Place("", ifindex)]
        caller = Caller(port.slot, port.generation, port.instance, Family.V4)
        self.tally.request(caller, status, 10, seconds, "nova" if status != 429 else "", token)
        for message in self.tally.changed():
            self.workers.ledger.hear(0, message)

    async def text(self, *headers: tuple[bytes, bytes]) -> tuple[Response, str]:
        response = await self.metrics.answer(Request(b"GET", b"/metrics", headers=headers))
        assert response.status == 200 and response.parts is not None
        return response, b"".join([part async for part in response.parts]).decode()

    async def samples(self) -> dict[Key, float]:
        _, text = await self.text()
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
        assert len(values) == len(found), "a series twice"
        return values

    async def value(self, name: str, **labels: str) -> float | None:
        return (await self.samples()).get((name, frozenset(labels.items())))


def story(tell: Callable[[Host], Awaitable[None]]) -> Callable[[], None]:
    """Makes a test of a story told with a host of its own."""

    def run() -> None:
        async def begin() -> None:
            await tell(Host())

        asyncio.run(begin())

    run.__name__ = tell.__name__
    return run


@story
async def test_every_metric_and_no_other(host: Host) -> None:
    slot = await host.link(1, ONE)
    host.datapath.counted[slot] = {Verdict.DELIVERED: 1}
    host.ask(1)
    _, text = await host.text()
    heads = [tuple(line.split(" ", 3)[2:]) for line in text.splitlines() if line.startswith("# HELP ")]
    assert heads == [(name, text) for name, (_, _, text) in FAMILIES.items()]
    kinds = dict(line.split(" ")[2:] for line in text.splitlines() if line.startswith("# TYPE "))
    assert set(kinds) == set(FAMILIES)
    assert {name for name, kind in kinds.items() if kind == "counter"} == {n for n in FAMILIES if n.endswith("_total")}
    for name, labels in {(name, frozenset(key for key, _ in labels)) for name, labels in await host.samples()}:
        base = re.sub("_(bucket|sum|count)$", "", name) if "duration" in name else name
        assert labels - {"le"} <= set(FAMILIES[base][1])


@story
async def test_what_the_host_is(host: Host) -> None:
    host.ailments = [1, 2]
    await host.link(1, ONE)
    await host.link(2, ONE)
    await host.link(3)
    host.policies[TWO] = Policy(Access.RESET, Access.DROP)
    await host.link(4, TWO)
    host.workers.all[1].restarts = 3
    host.workers.all[0].connections = 5
    assert await host.value("metashim_build_info", version=__version__, datapath="fake") == 1
    assert await host.value("metashim_ailments") == 2
    assert await host.value("metashim_instances") == 2
    states = {"serving": 2, "refused": 1, "no-identity": 1, "failed": 0}
    assert {state: await host.value("metashim_ports", state=state) for state in states} == states
    assert await host.value("metashim_workers") == 2
    assert await host.value("metashim_workers_up") == 0
    assert await host.value("metashim_worker_restarts_total") == 3
    assert await host.value("metashim_connections") == 5


@story
async def test_ports_that_fail_are_counted_once(host: Host) -> None:
    await host.link(1, ONE)
    host.enrolment.failures[Place("", 1)] = KernelError("x")
    host.enrolment.failures[Place("", 9)] = KernelError("y")
    assert await host.value("metashim_ports", state="failed") == 2
    assert await host.value("metashim_ports", state="serving") == 0


@story
async def test_requests(host: Host) -> None:
    await host.link(1, ONE)
    host.ask(1, 200, 0.002)
    host.ask(1, 503, 20.0)
    host.ask(1, 429, 0.0, "")
    host.tally.malformed()
    host.ask(1, 401, 0.002, "refused")
    assert await host.value("metashim_requests_total", backend="nova", code="2xx") == 1
    assert await host.value("metashim_requests_total", backend="nova", code="5xx") == 1
    assert await host.value("metashim_requests_total", backend="proxy", code="4xx") == 1
    assert await host.value("metashim_response_bytes_total") == 40
    assert await host.value("metashim_malformed_requests_total") == 1
    assert await host.value("metashim_rate_limited_requests_total") == 1
    tokens = {"with": 0, "without": 2, "refused": 1}
    assert {name: await host.value("metashim_token_requests_total", outcome=name) for name in tokens} == tokens
    of = {"instance": str(ONE), "project": ""}
    assert await host.value("metashim_instance_requests_total", code="4xx", **of) == 2
    assert await host.value("metashim_instance_requests_total", code="3xx", **of) is None
    assert await host.value("metashim_instance_tokenless_requests_total", **of) == 2
    assert await host.value("metashim_instance_rate_limited_requests_total", **of) == 1
    assert await host.value("metashim_instance_response_bytes_total", **of) == 40


@story
async def test_durations_are_a_histogram(host: Host) -> None:
    await host.link(1, ONE)
    for seconds in (0.0001, 0.002, 0.0024, 99.0):
        host.ask(1, 200, seconds)
    found = {
        dict(labels)["le"]: value
        for (name, labels), value in (await host.samples()).items()
        if name == "metashim_request_duration_seconds_bucket" and ("backend", "nova") in labels
    }
    assert (found["0.0005"], found["0.001"], found["0.0025"], found["10.0"], found["+Inf"]) == (1, 1, 3, 3, 4)
    assert await host.value("metashim_request_duration_seconds_count", backend="nova") == 4
    assert await host.value("metashim_request_duration_seconds_sum", backend="nova") == pytest.approx(99.0045)


@story
async def test_addresses_of_backends(host: Host) -> None:
    host.workers.ledger.hear(1, feed.Backends([feed.AddressHealth("nova", "http://a:1", False, "refused")]))
    assert await host.value("metashim_backend_up", backend="nova", address="http://a:1") == 0
    assert await host.value("metashim_backend_up", backend="http", address="unix:/b") == 1


@story
async def test_packets_never_go_down(host: Host) -> None:
    first, second = await host.link(1, ONE), await host.link(2, ONE)
    await host.link(3)
    host.datapath.counted = {first: {Verdict.DELIVERED: 100}, second: {Verdict.DELIVERED: 7}, 3: {Verdict.NO_FLOW: 2}}
    of = {"instance": str(ONE), "project": "", "verdict": "delivered"}
    assert await host.value("metashim_instance_packets_total", **of) == 107
    assert await host.value("metashim_packets_total", verdict="no_flow") == 2
    host.datapath.counted[second] = {Verdict.DELIVERED: 9}
    assert await host.value("metashim_packets_total", verdict="delivered") == 109
    await host.unlink(1)
    assert await host.value("metashim_packets_total", verdict="delivered") == 109
    assert await host.value("metashim_instance_packets_total", **of) == 109
    await host.unlink(2)
    assert await host.value("metashim_instance_packets_total", **of) is None
    assert ONE not in host.metrics._packets.instances
    assert await host.value("metashim_packets_total", verdict="delivered") == 109


def test_packets_of_who_is_gone_are_not_held():
    packets = Packets()
    ports = [Port(n, 1, n, f"tap{n}", "", UUID(int=n), Policy()) for n in (1, 2)]
    for port in ports:
        packets.read(port, {Verdict.DELIVERED: 1})
    packets.keep({(2, 1)}, {UUID(int=2)})
    assert (set(packets._last), set(packets.instances)) == ({(2, 1)}, {UUID(int=2)})
    packets.keep(set(), set())
    assert (packets._last, packets.instances, packets.host) == ({}, {}, Counter({Verdict.DELIVERED: 2}))


@story
async def test_events_missed(host: Host) -> None:
    for _ in range(KEPT + 10):
        host.journal.note("agent", "x")
    await host.journal.after(0, 0)
    assert await host.value("metashim_events_missed_total") == 0, "who begins to follow misses nothing"
    await host.journal.after(4, 0)
    assert await host.value("metashim_events_missed_total") == 6


@story
async def test_ports_that_take_too_long_are_read_the_next_time(host: Host) -> None:
    slots = [await host.link(n, UUID(int=n)) for n in range(1, 7)]
    host.step = 0.17
    seen: list[set[int]] = []
    for _ in range(5):
        host.datapath.reads.clear()
        await host.samples()
        seen.append(set(host.datapath.reads))
    assert all(0 < len(read) < 6 for read in seen)
    assert set.union(*seen) == set(slots)
    assert not seen[0] & seen[1]


@story
async def test_others_have_their_turn_between_slices(host: Host) -> None:
    for n in range(1, 7):
        await host.link(n, UUID(int=n))
    host.step = 2 * metrics.SLICE_SECONDS
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    response = await host.metrics.answer(Request(b"GET", b"/metrics"))
    gathered = turns
    async for _ in response.parts:
        pass
    task.cancel()
    assert gathered >= 12, "while counters are read, and while ports are gone through"
    assert turns > gathered


def test_many_instances_are_written_in_parts_with_one_head():
    async def run() -> None:
        host = Host(slots=300)
        for n in range(1, 200):
            await host.link(n, UUID(int=n))
            host.ask(n)
        _, text = await host.text()
        assert text.count("# TYPE metashim_instance_requests_total counter") == 1
        assert text.count("\nmetashim_instance_requests_total{") == 199
        assert len(await host.samples()) > 650

    asyncio.run(run())


@story
async def test_projects_are_labels_and_quoted(host: Host) -> None:
    await host.link(1, ONE)
    port = host.enrolment.ports[Place("", 1)]
    for project in ("blue", 'a"b\\c\nd'):
        host.enrolment.ports[Place("", 1)] = replace(port, project=project)
        assert await host.value("metashim_instance_response_bytes_total", instance=str(ONE), project=project) == 0


def test_series_of_instances_can_be_switched_off():
    async def run() -> None:
        host = Host(instances=False)
        await host.link(1, ONE)
        host.ask(1)
        _, text = await host.text()
        assert str(ONE) not in text and "metashim_instance_" not in text
        assert "metashim_requests_total{" in text

    asyncio.run(run())


@story
async def test_text_format_and_openmetrics(host: Host) -> None:
    await host.link(1, ONE)
    host.ask(1)
    plain, _ = await host.text()
    assert dict(plain.headers)[b"content-type"].startswith(b"text/plain; version=0.0.4")
    accept = b"application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"
    response, text = await host.text((b"accept", accept))
    assert dict(response.headers)[b"content-type"].startswith(b"application/openmetrics-text")
    assert text.count("# EOF") == 1 and text.endswith("# EOF\n")
    families = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert families == {re.sub("_(total|info)$", "", name) for name in FAMILIES}


@story
async def test_other_requests(host: Host) -> None:
    assert (await host.metrics.answer(Request(b"GET", b"/"))).status == 404
    assert (await host.metrics.answer(Request(b"POST", b"/metrics"))).status == 405
    head = await host.metrics.answer(Request(b"HEAD", b"/metrics"))
    assert (head.status, head.parts, head.body) == (200, None, b"")


@pytest.mark.parametrize("accept", [b"\xff\xfe", b"application/openmetrics-text;version=x", b",;,", b"a" * 5000])
def test_an_accept_header_of_any_kind_is_answered(accept):
    async def run() -> None:
        assert (await Host().metrics.answer(Request(b"GET", b"/metrics", headers=((b"accept", accept),)))).status == 200

    asyncio.run(run())


class TestServed:
    def scrape(self, address: str) -> str:
        async def run() -> str:
            server = await metrics.serve(Host().metrics, parse_address(address), 0)
            try:
                if address.startswith("unix:"):
                    mode = Path(address[5:]).stat()
                    assert (stat.S_IMODE(mode.st_mode), mode.st_gid) == (0o660, 0)
                    reader, writer = await asyncio.open_unix_connection(address[5:])
                else:
                    host, _, port = address.removeprefix("http://").rpartition(":")
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                text = (await reader.read()).decode()
                writer.close()
                return text
            finally:
                await server.drain(0.1)

        return asyncio.run(run())

    @pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
    def test_on_a_loopback_address(self, family, host):
        with socket.socket(family) as sock:
            sock.bind((host, 0))
            port = sock.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        text = self.scrape(f"http://{shown}:{port}")
        assert text.startswith("HTTP/1.1 200 ") and "metashim_build_info{" in text

    @pytest.mark.root
    def test_on_a_unix_socket_also_where_one_was_left(self, tmp_path):
        path = tmp_path / "metrics.sock"
        for _ in range(2):
            assert "metashim_build_info{" in self.scrape(f"unix:{path}")

    def test_a_file_that_is_no_socket_stays(self, tmp_path):
        path = tmp_path / "precious"
        path.write_text("x")
        with pytest.raises(OSError, match="in use"):
            self.scrape(f"unix:{path}")
        assert path.read_text() == "x"

    def test_an_address_that_is_taken(self):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            with pytest.raises(OSError, match="in use"):
                self.scrape(f"http://127.0.0.1:{sock.getsockname()[1]}")
