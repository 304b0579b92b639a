"""What operators can watch on a real hypervisor: metrics, by loopback address or Unix socket, and the access log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ID, Talk, await_outcome

A = uuid_of(1)
FACE = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24"}
PORT = 9105
LISTEN = f'listen = "http://127.0.0.1:{PORT}"'
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def fetch(sock: socket.socket, path: str = "/metrics") -> tuple[int, str]:
    """Status and whole body of one GET, from a connection that ends with it."""
    with sock, sock.makefile("rb") as reader:
        sock.settimeout(10)
        sock.sendall(f"GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n".encode())
        head, _, body = reader.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def over_loopback(site: Hypervisor) -> socket.socket:
    sock = site.lab.host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    sock.connect(("127.0.0.1", PORT))
    return sock


def over_unix(site: Hypervisor) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(site.run / "metrics.sock"))
    return sock


def scrape(site: Hypervisor, by: Callable[[Hypervisor], socket.socket] = over_loopback) -> Series:
    status, text = fetch(by(site))
    assert status == 200, text
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


def await_value(site: Hypervisor, least: float, name: str, **labels: str) -> Series:
    """Scrapes until a series has a value; workers tell what they count every 2 s."""
    found: list[Series] = []

    def there() -> bool:
        found.append(scrape(site))
        return value(found[-1], name, **labels) >= least

    wait_until(there, f"{name} to be {least}, not {value(found[-1], name, **labels) if found else '?'}", 8)
    return found[-1]


def counters(series: Series) -> Series:
    return {key: n for key, n in series.items() if key[0].endswith(("_total", "_bucket", "_sum", "_count"))}


def access_lines(site: Hypervisor) -> list[dict[str, Any]]:
    """The lines of the access log, as objects."""
    found = re.findall(r"shim\.access: (\{.*\})$", site.log_text(), re.MULTILINE)
    return [json.loads(line) for line in found]


def serve(site: Hypervisor, lab: Lab, instance: UUID = A) -> VethGuest:
    guest = lab.veth_guest("one", "tap1", **FACE)
    site.start()
    site.api.attach("tap1", instance)
    await_outcome(guest, str(instance))
    return guest


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Hypervisor, VethGuest]]:
    """One served guest and metrics on a loopback address."""
    with Lab() as lab, Hypervisor(lab, f"{PLENTY}\n[metrics]\n{LISTEN}\n") as site:
        yield site, serve(site, lab)


class TestMetrics:
    def test_of_the_host_and_of_instances(self, place):
        site, guest = place
        before = value(scrape(site), "metashim_instance_requests_total", instance=str(A), project="", code="2xx")
        with Talk(guest) as talk:
            for _ in range(20):
                assert talk.ask().status == 200
            assert talk.ask("/nothing/here").status == 404
        of = {"instance": str(A), "project": ""}
        await_value(site, before + 20, "metashim_instance_requests_total", code="2xx", **of)
        series = scrape(site)  # another one: a scrape looks at the host first, and news may come while it goes on
        assert value(series, "metashim_instance_requests_total", code="4xx", **of) >= 1
        assert value(series, "metashim_instance_response_bytes_total", **of) >= 20 * len(str(A))
        assert value(series, "metashim_instance_tokenless_requests_total", **of) >= 20
        assert value(series, "metashim_instance_packets_total", verdict="delivered", **of) > 20
        assert value(series, "metashim_packets_total", verdict="opened") >= 1
        assert value(series, "metashim_requests_total", backend="embedded", code="2xx") >= 20
        assert value(series, "metashim_request_duration_seconds_count", backend="embedded") >= 20
        assert value(series, "metashim_ports", state="serving") == 1
        assert value(series, "metashim_instances") == value(series, "metashim_workers_up") == 1
        assert value(series, "metashim_connections_accepted_total") >= 1

    def test_malformed_requests(self, place):
        site, guest = place
        before = value(scrape(site), "metashim_malformed_requests_total")
        with Talk(guest) as talk:
            talk.sock.sendall(b"GET / HTTP/1.1\r\nhost : x\r\n\r\n")
            assert talk.answer().status == 400
        await_value(site, before + 1, "metashim_malformed_requests_total")

    def test_nothing_else_is_served_there(self, place):
        site, _ = place
        assert fetch(over_loopback(site), "/v1/status")[0] == 404

    def test_counters_go_on_when_a_worker_is_killed(self, place):
        site, guest = place
        with Talk(guest) as talk:
            for _ in range(10):
                talk.ask()
        time.sleep(2.5)  # it tells what it counted every 2 s
        before = scrape(site)
        os.kill(site.worker, signal.SIGKILL)
        wait_until(lambda: value(scrape(site), "metashim_worker_restarts_total") == 1, "the restart to be counted")
        site.await_workers()
        await_outcome(guest, str(A))
        of = {"instance": str(A), "project": "", "code": "2xx"}
        now = await_value(site, value(before, "metashim_instance_requests_total", **of) + 1,
                          "metashim_instance_requests_total", **of)  # fmt: skip
        assert {key: (n, now.get(key)) for key, n in counters(before).items() if now.get(key, -1.0) < n} == {}

    def test_a_next_agent_knows_what_its_workers_counted(self, place):
        site, guest = place
        with Talk(guest) as talk:
            for _ in range(5):
                talk.ask()
        of = {"instance": str(A), "project": "", "code": "2xx"}
        before = value(await_value(site, 5, "metashim_instance_requests_total", **of),
                       "metashim_requests_total", backend="embedded", code="2xx")  # fmt: skip
        worker, lost = site.worker, value(scrape(site), "metashim_worker_restarts_total")
        site.end(signal.SIGKILL)
        site.start()
        assert site.worker == worker
        now = await_value(site, 5, "metashim_instance_requests_total", **of)
        assert lost or value(now, "metashim_requests_total", backend="embedded", code="2xx") >= before


class TestWhereAndWhat:
    def test_a_unix_socket_without_series_of_instances(self, site, lab):
        site.configure(f'{PLENTY}\n[metrics]\nlisten = "unix:{site.run}/metrics.sock"\ninstances = false\n')
        serve(site, lab)
        mode = (site.run / "metrics.sock").stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid, mode.st_gid) == (0o660, 0, 0)
        series = scrape(site, over_unix)
        assert value(series, "metashim_ports", state="serving") == 1
        assert [key for key in series if key[0].startswith("metashim_instance_")] == []
        site.end(signal.SIGTERM)
        assert not (site.run / "metrics.sock").exists()

    def test_an_address_that_is_taken_is_said_and_harms_nothing_else(self, site, lab):
        site.configure(f"{PLENTY}\n[metrics]\n{LISTEN}\n")
        other = lab.host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        with other:
            other.bind(("127.0.0.1", PORT))
            other.listen()
            serve(site, lab)
            (ailment,) = site.api.status().ailments
            assert ailment.part == "metrics" and "in use" in ailment.what

    def test_an_address_of_a_backend_that_is_down(self, site, lab):
        secret = site.folder / "secret"
        secret.write_text("x" * 40)
        secret.chmod(0o600)
        address = "http://127.0.0.1:9"
        nova = f'[nova]\naddresses = ["{address}"]\nsecret_file = "{secret}"\n'
        site.configure(f"{PLENTY}\n[metrics]\n{LISTEN}\n{nova}")
        serve(site, lab)
        of = {"backend": "nova", "address": address}
        wait_until(lambda: scrape(site)[("metashim_backend_up", frozenset(of.items()))] == 0, "it to be down", 8)
        assert {ailment.part for ailment in site.api.status().ailments} == {"backend nova"}
        (shown,) = site.api.status().backends
        assert (shown.name, shown.address, shown.healthy) == ("nova", address, False)
        assert f"backends   nova {address} down: " in site.verb("status").stdout

    def test_without_the_setting_nothing_listens(self, site, lab):
        serve(site, lab)
        assert lab.host.run(["ss", "-Hltn"]).stdout == ""


class TestAccessLog:
    def test_a_line_a_request_and_nothing_that_a_guest_chose(self, site, lab):
        guest = serve(site, lab)
        with Talk(guest) as talk:
            talk.sock.sendall(
                f"GET /latest/user-data?hunter2 HTTP/1.1\r\nhost: hunter2\r\nx-aws-ec2-metadata-token: hunter2\r\n"
                f"cookie: hunter2\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n\r\n".encode()
            )
            status = talk.answer().status
            assert talk.ask("/hunter2").status == 404
        wait_until(lambda: len(access_lines(site)) >= 3, "the lines")
        *_, first, second = [line for line in access_lines(site) if "instance" in line]
        assert (first["instance"], first["family"], first["method"]) == (str(A), 4, "GET")
        assert (first["path"], first["status"], first["trace"]) == ("ec2/user-data", status, TRACE)
        assert (second["path"], second["status"], second["backend"]) == ("other", 404, "embedded")
        assert "trace" not in second
        assert "hunter2" not in site.log_text()

    def test_its_rate_is_bounded_and_what_is_left_out_is_told(self, site, lab):
        site.configure(f"{PLENTY}\n[log]\naccess_rate = 5\n", proxy="request_rate = 100000\nrequest_burst = 100000")
        guest = serve(site, lab)
        time.sleep(2.5)  # whatever was spent is there again, and what was left out is told
        before, began = len(access_lines(site)), time.monotonic()
        with Talk(guest) as talk:
            for _ in range(300):
                talk.ask(ID)
        allowed = 5 + 5 * (time.monotonic() - began) + 1
        wait_until(lambda: any("left_out" in line for line in access_lines(site)[before:]), "what was left out", 5)
        time.sleep(2.5)  # the flood may have gone on beyond the first such line
        lines = access_lines(site)[before:]
        written = [line for line in lines if "instance" in line]
        assert 5 <= len(written) <= allowed
        assert len(written) + sum(line.get("left_out", 0) for line in lines) == 300

    def test_it_can_be_switched_off(self, site, lab):
        site.configure(f"{PLENTY}\n[log]\naccess_rate = 0\n")
        serve(site, lab)
        time.sleep(2.5)
        assert access_lines(site) == []
