"""The verb that traces, and the stream that it reads, against the API in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import sys

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from shim.cli import cli
from shim.control import api
from shim.control.arguments import Session
from shim.control.trace_client import TraceClient
from shim.control.trace_shapes import MissedView, PacketView, TapsView, TraceView
from shim.core.exchange import Request
from shim.errors import KernelError, NotFoundError, UnreachableError
from tests.unit.control_memory import NOBODY, ONE, Host, Memory

FRAME = bytes(
    Ether(src="02:00:00:00:00:05", dst="02:00:a9:fe:a9:fe")
    / IP(src="10.0.0.5", dst="169.254.169.254")
    / TCP(sport=4000, dport=80, flags="PA")
    / b"GET /latest/?k=sesame HTTP/1.1\r\nX: sesame\r\n\r\n"
)


def packet(verdict="delivered", **fields):
    given = {
        "time": 1_790_000_000.5, "tap": "tap10", "netns": "", "to_guest": False, "verdict": verdict,
        "refused": verdict != "delivered", "length": len(FRAME), "frame": base64.b64encode(FRAME).decode(),
    }  # fmt: skip
    return PacketView(**given | fields)


@pytest.fixture(autouse=True)
def _root_is_kept(monkeypatch):
    """The verb runs within the tests' own process here."""
    monkeypatch.setattr("shim.cli._drop", lambda uid, gid: None)
    monkeypatch.setenv("HOME", "/root")


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def host(memory, tmp_path):
    with Host(tmp_path / "sock", memory):
        yield memory


def run(tmp_path, *words):
    return CliRunner().invoke(cli, ["--socket", str(tmp_path / "sock"), "trace", *words])


class TestClient:
    def follow(self, tmp_path):
        told = []
        with TraceClient(tmp_path / "sock").trace(ONE) as stream, pytest.raises(UnreachableError, match="ended"):
            told += stream
        return told

    def test_tells_what_comes_in_its_order(self, host, tmp_path):
        host.shown = [TraceView([packet(), packet("no_flow")], 3), TraceView([], 0, [])]
        assert self.follow(tmp_path) == [
            TapsView(["tap10"]), packet(), packet("no_flow"), MissedView(3), TapsView([]), None,
        ]  # fmt: skip

    def test_an_unknown_instance_is_an_error_at_once(self, host, tmp_path):
        with pytest.raises(NotFoundError), TraceClient(tmp_path / "sock").trace(NOBODY):
            pass

    def test_what_the_kernel_refuses_too(self, host, tmp_path):
        host.fail = KernelError("no memory")
        with pytest.raises(KernelError, match="no memory"), TraceClient(tmp_path / "sock").trace(ONE):
            pass

    def test_no_agent(self, tmp_path):
        with pytest.raises(UnreachableError), TraceClient(tmp_path / "sock").trace(ONE):
            pass


class TestApi:
    def test_a_stream_that_is_closed_ends_the_trace(self, memory):
        async def look():
            answer = await api.Api(memory).handle(Request(b"GET", f"/v1/instances/{ONE}/trace".encode()), "me")
            first = await anext(answer.parts)
            during = list(memory.tracers)
            await answer.parts.aclose()
            return answer, first, during

        answer, first, during = asyncio.run(look())
        assert (answer.status, dict(answer.headers)[b"content-type"]) == (200, b"text/event-stream")
        assert first == b'event: taps\ndata: {"taps":["tap10"]}\n\n'
        assert (during, memory.tracers) == (["me"], [])

    def test_no_parameters_and_no_other_method(self, memory):
        for method, query in ((b"POST", b""), (b"GET", b"x=1")):
            request = Request(method, f"/v1/instances/{ONE}/trace".encode(), query)
            assert asyncio.run(api.Api(memory).handle(request)).status in (400, 405)


class TestVerb:
    def test_a_line_a_packet_and_a_summary(self, host, tmp_path):
        host.shown = [TraceView([packet(), packet("no_flow"), packet()], 7)]
        found = run(tmp_path, str(ONE))
        assert [line.split("  ")[-1] for line in found.stdout.splitlines()] == ["delivered", "no_flow", "delivered"]
        assert "GET /latest/?… " in found.stdout
        assert "sesame" not in found.output
        assert "tracing tap10" in found.stderr
        assert "7 packets not shown" in found.stderr
        assert found.stderr.splitlines()[-1] == "3 packets: 2 delivered, 1 no_flow; 7 not shown"

    def test_ends_after_a_number(self, host, tmp_path):
        host.shown = [TraceView([packet()] * 5)]
        found = run(tmp_path, str(ONE), "--count", "2")
        assert found.exit_code == 0
        assert len(found.stdout.splitlines()) == 2
        assert found.stderr.splitlines()[-1] == "2 packets: 2 delivered"

    def test_ends_after_a_time(self, host, tmp_path):
        host.shown = [TraceView([packet()] * 5)]
        found = run(tmp_path, str(ONE), "--seconds", "0")
        assert (found.exit_code, found.stdout) == (0, "")
        assert found.stderr.splitlines()[-1] == "0 packets"

    def test_json(self, host, tmp_path):
        host.shown = [TraceView([packet()])]
        found = run(tmp_path, str(ONE), "--json", "--count", "1")
        (said,) = (json.loads(line) for line in found.stdout.splitlines())
        assert (said["tap"], said["verdict"], said["direction"]) == ("tap10", "delivered", "from_guest")
        assert "frame" not in said

    def test_a_file_of_headers(self, host, tmp_path):
        host.shown = [TraceView([packet()])]
        run(tmp_path, str(ONE), "--write", str(tmp_path / "kept"), "--count", "1")
        raw = (tmp_path / "kept").read_bytes()
        assert struct.unpack("=IHHiIII", raw[:24]) == (0xA1B2C3D4, 2, 4, 0, 0, 256, 1)
        assert struct.unpack("=IIII", raw[24:40]) == (1_790_000_000, 500_000, 54, len(FRAME))
        assert raw[40:] == FRAME[:54]

    def test_a_file_that_cannot_be_written(self, host, tmp_path):
        found = run(tmp_path, str(ONE), "--write", str(tmp_path / "no/such"))
        assert "No such file" in str(found.exception)
        assert host.tracers == []

    def test_the_end_of_the_agent(self, host, tmp_path):
        found = run(tmp_path, str(ONE))
        assert isinstance(found.exception, UnreachableError)
        assert found.stderr.splitlines()[-1] == "0 packets"

    def test_a_tap_is_still_to_come(self, host, tmp_path):
        host.shown = [TraceView([], 0, [])]
        assert "the instance has no tap here" in run(tmp_path, str(ONE)).stderr


class TestRoot:
    def test_is_given_up_for_nobody(self, monkeypatch):
        dropped = []
        monkeypatch.setattr("os.geteuid", lambda: 0)
        Session(None, None, lambda *ids: dropped.append(ids)).give_up_root()
        assert dropped == [(65534, 65534)]
        assert os.environ["HOME"] != "/root"

    def test_is_given_up_before_anything_is_taken_apart(self, host, tmp_path, monkeypatch):
        """What takes packets apart is not even imported before."""
        seen = []
        monkeypatch.delitem(sys.modules, "shim.control.trace_text", raising=False)
        monkeypatch.delattr("shim.control.trace_text", raising=False)
        monkeypatch.setattr("shim.cli._drop", lambda *ids: seen.append("shim.control.trace_text" in sys.modules))
        host.shown = [TraceView([packet()])]
        monkeypatch.setattr("os.geteuid", lambda: 0)
        assert run(tmp_path, str(ONE), "--count", "1").exit_code == 0
        assert seen == [False]
        assert "shim.control.trace_text" in sys.modules

    def test_is_not_there_to_give_up(self, monkeypatch):
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        Session(None, None, lambda *ids: pytest.fail("dropped")).give_up_root()
