"""`metashim trace` on a whole hypervisor: the real verb, real guests, both datapaths."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from shim.core.policy import Access
from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import on_both
from tests.netns.hypervisor import ROOT, Hypervisor, uuid_of
from tests.netns.say import request
from tests.netns.talk import V4, V6, ask, connect, outcome

pytestmark = on_both
READY_SECONDS = 30.0

A, B = uuid_of(1), uuid_of(2)
SAME = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24", "v6": "fd00:1::5/64"}
SECRET = "sesame-0815"


class Trace:
    """One run of the verb; what it prints goes to files."""

    def __init__(self, site: Hypervisor, folder: Path, *words: str, instance: object = A) -> None:
        folder.mkdir()
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            argv = [*site.argv, "trace", str(instance), *words]
            environment = {**os.environ, "COLUMNS": "300", "PYTHONUNBUFFERED": "1"}
            self.process = site.lab.host.popen(argv, cwd=str(ROOT), stdout=out, stderr=err, env=environment)
        wait_until(self._has_begun, "a trace", READY_SECONDS)

    def _has_begun(self) -> bool:
        return "tracing" in self.err.read_text() or self.process.poll() is not None

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def await_line(self, *words: str) -> str:
        """A line with all of these words."""

        def found() -> list[str]:
            return [line for line in self.lines() if all(word in line for word in words)]

        wait_until(lambda: bool(found()), f"a line with {words} in:\n{self.out.read_text()}", 10)
        return found()[0]

    def await_silence(self) -> None:
        """Until no more packets are shown: an interrupt may come between what is kept of one and its line."""
        known = -1
        while known != (known := len(self.lines())):
            time.sleep(0.5)

    def end(self) -> str:
        """Interrupts it; what it says then."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(10) == 0, self.err.read_text()
        return self.err.read_text().splitlines()[-1]


@pytest.fixture(scope="module")
def guests(shared: Hypervisor) -> dict[str, VethGuest]:
    """`on` and `other` are served."""
    found = {name: shared.lab.veth_guest(f"g-{name}", f"tap-{name}", **SAME) for name in ("on", "other")}
    for name, instance in (("on", A), ("other", B)):
        shared.api.attach(f"tap-{name}", instance)
        shared.await_port(f"tap-{name}", instance)
    return found


@pytest.fixture
def start(shared: Hypervisor, guests: object, tmp_path: Path) -> Iterator[Callable[..., Trace]]:
    made: list[Trace] = []

    def start(*words: str, **named: Any) -> Trace:
        made.append(Trace(shared, tmp_path / str(len(made)), *words, **named))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
    shared.enable(A)


def test_shows_a_request_in_both_directions(shared, guests, start):
    trace = start()
    assert any(event.text == "traced by root (uid 0)" and event.instance == A for event in shared.api.events().events)
    assert ask(guests["on"]).status == 200
    ask(guests["on"], V6)
    guest, service = r"10.0.0.5", "169.254.169.254:80"
    trace.await_line("tap-on →", f"> {service} S seq", "opened")
    trace.await_line("tap-on ←", f"TCP {service} >", "SA seq", "replied")
    trace.await_line("→ TCP", guest, "GET /latest/meta-data/instance-id", "delivered")
    trace.await_line("←", "HTTP 200", "replied")
    trace.await_line("→", "[fd00:ec2::254]:80", "GET /latest", "delivered")
    last = trace.end()
    assert last.split(" ")[1] == "packets:"
    assert "delivered" in last


def test_says_why_not(shared, guests, start):
    trace = start()
    with pytest.raises((TimeoutError, ConnectionRefusedError)):
        port_of(guests["on"], 22)
    trace.await_line("169.254.169.254:22", "wrong_port")
    shared.disable(A, Access.RESET)
    assert outcome(guests["on"]) == "refused"
    trace.await_line("S seq", "disabled_reset")


def port_of(guest: VethGuest, port: int) -> None:
    sock = guest.call(socket.socket)
    with sock:
        sock.settimeout(0.3)
        sock.connect((V4, port))


def test_another_instance_is_not_shown(guests, start):
    trace = start("--json")
    ask(guests["other"])
    ask(guests["on"])
    trace.await_line("HTTP 200")
    assert {json.loads(line)["tap"] for line in trace.lines()} == {"tap-on"}


def test_json(guests, start):
    trace = start("--json", "--count", "3")
    ask(guests["on"])
    assert trace.process.wait(10) == 0
    first, second, third = (json.loads(line) for line in trace.lines())
    assert (first["direction"], first["verdict"], first["protocol"]) == ("from_guest", "opened", "TCP")
    assert (second["direction"], second["verdict"]) == ("to_guest", "replied")
    assert (first["source"], first["destination"]) == ("10.0.0.5", "169.254.169.254")
    assert abs(third["time"] - time.time()) < 60
    assert first["length"] == 74


def test_ends_after_a_time(start):
    began = time.monotonic()
    trace = start("--seconds", "1")
    assert trace.process.wait(20) == 0
    assert time.monotonic() - began >= 1
    assert trace.err.read_text().splitlines()[-1].startswith("0 packets")


def test_no_secret_is_shown_or_written(guests, start, tmp_path):
    kept = tmp_path / "kept.pcap"
    trace = start("--write", str(kept))
    headers = {"X-aws-ec2-metadata-token": SECRET, "X-metadata-token-ttl-seconds": "60"}
    for method, path in (("GET", f"/latest/{SECRET[:3]}?token={SECRET}"), ("PUT", "/latest/api/token")):
        with connect(guests["on"]) as sock:
            sock.sendall(request(method, path, headers=headers, body=SECRET.encode()))
            sock.recv(65536)
    trace.await_line("GET /latest/ses?…", "delivered")
    trace.await_line("PUT /latest/api/token", "delivered")
    trace.await_silence()
    trace.end()
    assert SECRET not in trace.out.read_text() + trace.err.read_text()
    raw = kept.read_bytes()
    assert SECRET.encode() not in raw
    assert b"HTTP" not in raw
    packets = list(rdpcap(str(kept)))
    assert len(packets) == len(trace.lines())
    assert TCP in packets[0]
    assert any(one.wirelen > len(one) for one in packets)


def test_a_guest_cannot_steer_the_terminal(guests, start):
    trace = start()
    with connect(guests["on"]) as sock:
        sock.sendall(b"GET /\x1b[2J\x9b31m\x07 HTTP/1.1\r\nhost: x\r\n\r\n")
        sock.recv(1000)
    trace.await_line("GET /\\x1b[2J\\x9b31m\\x07")
    assert not any(character < " " and character != "\n" for character in trace.out.read_text())


def test_who_takes_packets_apart_has_no_privileges(guests, start):
    trace = start()
    ask(guests["on"])
    trace.await_line("HTTP 200")
    status = Path(f"/proc/{trace.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"65534"}
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["Groups"].strip() == ""


def test_a_flood_is_bounded_and_told(guests, start):
    trace = start()
    wire = guests["on"].raw()
    frame = flood_frame(guests["on"])
    began = time.monotonic()
    for _ in range(8000):
        wire.send(frame)
    seconds = time.monotonic() - began
    wire.close()
    wait_until(lambda: "not shown" in trace.err.read_text(), "what was left out", 10)
    shown = [line for line in trace.lines() if "wrong_port" in line]
    assert len(shown) <= 200 + 1000 * (seconds + 1)
    ask(guests["other"])
    assert "not shown" in trace.end()


def flood_frame(guest: VethGuest) -> bytes:
    return bytes(Ether(src=guest.mac, dst="02:00:a9:fe:a9:fe") / IP(src="10.0.0.5", dst=V4) / TCP(dport=22))


def flagged(shared: Hypervisor, datapath: str) -> int:
    """How many ports the kernel shows packets of."""
    if datapath == "nft":
        table = f"datapath-{shared.name}"
        said = shared.lab.host.run(["nft", "-j", "list", "set", "netdev", table, "traced"]).stdout
        (found,) = [one["set"] for one in json.loads(said)["nftables"] if "set" in one]
        return len(found.get("elem", []))
    from shim.datapath import abi, bpf

    (folder,) = Path(f"/sys/fs/bpf/{shared.name}").iterdir()
    ports = bpf.Map.of_any_shape(folder / "ports")
    try:
        values = (ports.lookup(struct.pack("=I", slot)) or b"" for slot in range(16))
        return sum(abi.PortRecord.from_buffer_copy(value).traced for value in values)
    finally:
        ports.close()


def test_two_at_once_both_see_all(shared, guests, start, datapath):
    first, second = start(), start()
    assert flagged(shared, datapath) == 1
    ask(guests["on"])
    for trace in (first, second):
        trace.await_line("HTTP 200")
    first.end()
    assert flagged(shared, datapath) == 1
    ask(guests["on"], V6)
    second.await_line("[fd00:ec2::254]", "HTTP 200")
    second.end()
    wait_until(lambda: flagged(shared, datapath) == 0, "the flag to be off", 5)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_flag_goes_with_a_client_that_is_killed(shared, start, datapath, how):
    trace = start()
    assert flagged(shared, datapath) == 1
    trace.process.send_signal(how)
    wait_until(lambda: flagged(shared, datapath) == 0, "the flag to be off", 5)


def test_one_that_does_not_read_holds_nobody_up(shared, guests, start, datapath):
    trace = start()
    with shared.stopped(trace.process.pid):
        wire = guests["on"].raw()
        for _ in range(3000):
            wire.send(flood_frame(guests["on"]))
        wire.close()
        assert ask(guests["on"]).status == 200
        assert shared.api.status().datapath == datapath
    trace.await_line("wrong_port")


def test_a_tap_that_comes_later_is_shown_too(shared, guests, start):
    instance = uuid_of(7)
    shared.api.put_document(instance, b"{}")
    trace = start(instance=instance)
    assert "no tap here" in trace.err.read_text()
    guest = shared.lab.veth_guest("g-late", "tap-late", **SAME)
    shared.api.attach("tap-late", instance)
    shared.await_port("tap-late", instance)
    ask(guest)
    trace.await_line("tap-late →", "opened")
    trace.await_line("tap-late ←", "HTTP 200")
    assert "tracing tap-late" in trace.err.read_text()
    shared.api.detach("tap-late")


def test_nobody_is_traced_after_a_restart(shared, guests, start, datapath):
    trace = start()
    shared.end(signal.SIGKILL)
    assert trace.process.wait(20) == 9
    assert flagged(shared, datapath) == 1
    shared.start()
    assert flagged(shared, datapath) == 0
    again = start()
    ask(guests["on"])
    again.await_line("HTTP 200")


def test_an_unknown_instance_is_told(shared):
    done = shared.verb("trace", str(uuid_of(99)), check=False)
    assert done.returncode == 5
    assert "no instance" in done.stderr


def test_curl_can_follow_too(shared, guests):
    url = f"http://metashim/v1/instances/{A}/trace"
    argv = ["curl", "-sN", "--max-time", "3", "--unix-socket", str(shared.run / "control.sock"), url]
    curl = subprocess.Popen(shared.lab.host.argv(argv), stdout=subprocess.PIPE)
    time.sleep(1)
    ask(guests["on"])
    out, _ = curl.communicate(timeout=10)
    assert b"event: taps\ndata: {" in out
    assert b'"verdict":"opened"' in out
