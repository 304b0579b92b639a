"""What Nova is sent, whatever a guest sends, and what the guest gets of any answer; limits of both families.

A raw backend is where Nova would be, as Nova itself never answers so, and does not show what it was sent.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from shim.core.exchange import Subject
from shim.forward.tag import nova_headers
from tests.backends.process import SECRET
from tests.backends.raw import Raw, message, says
from tests.backends.visit import request
from tests.backends.wiring import BUSY, ask, enrol, forward_to, visiting
from tests.lab import Lab, VethGuest
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import V4, V6

A, B = uuid_of(1), uuid_of(2)
PROJECT = "0123456789abcdef0123456789abcdef"
OWN = "10.0.0.7"
both = pytest.mark.parametrize("address", [V4, V6])


class RawPlace(NamedTuple):
    site: Hypervisor
    raw: Raw
    a: VethGuest
    b: VethGuest


@pytest.fixture(scope="module")
def raw_place() -> Iterator[RawPlace]:
    """A raw backend where Nova would be; the guests' links have other MTUs than the hypervisor's."""
    proxy = BUSY + "body_bytes = 4194304\n"
    with Lab() as lab, Raw(lab.host) as raw, Hypervisor(lab, forward_to("nova", raw), proxy=proxy) as site:
        site.start()
        a = enrol(site, "a", A, PROJECT, (f"{OWN}/24",), mtu=9000)
        yield RawPlace(site, raw, a, enrol(site, "b", B, "other", mtu=1280))


@pytest.fixture
def behind(raw_place: RawPlace) -> RawPlace:
    """It without what the test before left."""
    raw_place.raw.forget()
    return raw_place


class TestWhatNovaIsSent:
    def test_is_ours_once_and_the_guest_s_unchanged(self, behind):
        theirs = [("X-Instance-ID", str(B)), ("X_Tenant_ID", "other"), ("User-Agent", "Cloud-Init/23"), ("Accept", "*")]
        ask(behind.a, "/seen?q=%41&r", headers=theirs)
        (heard,) = behind.raw.heard("/seen")
        ours = nova_headers(Subject(A, PROJECT, OWN), SECRET.encode())
        for name, value in ours:
            assert heard.header(name.decode()) == [value.decode()]
        assert heard.target == "/seen?q=%41&r"
        assert [heard.header("User-Agent"), heard.header("Accept")] == [["Cloud-Init/23"], ["*"]]
        names = {name.replace("_", "-") for name, _ in heard.headers}
        assert names == {name.decode().lower() for name, _ in ours} | {"host", "user-agent", "accept"}

    def test_checks_are_of_nobody(self, behind):
        end = time.monotonic() + 6
        while not (checks := [heard for heard in behind.raw.heard() if not heard.header("User-Agent")]):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not [name for name, _ in checks[0].headers if name.startswith("x-")]

    @both
    def test_long_headers_whole(self, behind, address):
        """More than 4 KiB of them, the last as well as the first."""
        headers = [(f"X-Padding-{number}", str(number) * 50) for number in range(80)]
        ask(behind.a, "/seen", headers=headers, address=address)
        (heard,) = behind.raw.heard("/seen")
        assert [field for field in heard.headers if field[0].startswith("x-padding")] == [
            (name.lower(), value) for name, value in headers
        ]

    @both
    @pytest.mark.parametrize("guest", ["a", "b"])
    def test_long_bodies_whole(self, behind, address, guest):
        """More than 4 KiB, more than is kept in memory whole; in segments that come late; with another MTU."""
        for size in (5000, 60_000, 1_000_000):
            body = os.urandom(size)
            head = request("/seen", "POST", [("Content-Length", str(size))])
            with visiting(getattr(behind, guest), address) as visit:
                reply = visit.send(head, body[:10], body[10:4200], body[4200:], pause=0.05, method="POST")
            assert reply.status == 200
            assert behind.raw.heard("/seen")[-1].body == body

    def test_a_long_uri_whole(self, behind):
        target = f"/seen/{'p' * 4000}?{'q' * 4000}"
        ask(behind.a, target)
        assert [heard.target for heard in behind.raw.heard() if heard.target.startswith("/seen/")] == [target]


class TestRelayed:
    @both
    @pytest.mark.parametrize("status", [201, 202, 301, 400, 401, 403, 404, 405, 409, 413, 418, 429, 500, 502, 503])
    def test_statuses(self, behind, address, status):
        sent = [("WWW-Authenticate", "Basic"), ("Allow", "GET"), ("Retry-After", "9"), ("X-Own", "a"), ("X-Own", "b")]
        behind.raw.play("/s", says(message(b"body of it", status, *sent, reason="Said So")))
        reply = ask(behind.a, "/s", address=address)
        assert (reply.status, reply.body) == (status, b"body of it")
        assert [field for field in reply.headers if field in sent] == sent

    @pytest.mark.parametrize("status", [204, 304])
    def test_statuses_without_a_body(self, behind, status):
        behind.raw.play("/s", says(f"HTTP/1.1 {status} X\r\nETag: \"e\"\r\n\r\n".encode()))
        with visiting(behind.a) as visit:
            assert [visit.ask("/s").status, visit.ask("/other").body] == [status, b"raw"]

    @both
    @pytest.mark.parametrize("guest", ["a", "b"])
    def test_a_long_body_whole(self, behind, address, guest):
        body = os.urandom(1_000_000)
        behind.raw.play("/long", says(message(body)))
        reply = ask(getattr(behind, guest), "/long", address=address)
        assert reply.body == body

    def test_a_body_that_comes_slowly(self, behind):
        whole = message(b"slow")
        behind.raw.play("/slow", says(*(whole[at : at + 5] for at in range(0, len(whole), 5)), pause=0.05))
        assert ask(behind.a, "/slow").body == b"slow"

    def test_chunks(self, behind):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = (b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n", b"0\r\n\r\n")
        behind.raw.play("/chunks", says(head, *pieces, pause=0.05))
        with visiting(behind.a) as visit:
            assert [visit.ask("/chunks").body, visit.ask("/other").body] == [b"abcde", b"raw"]


@pytest.fixture(scope="module")
def limited() -> Iterator[RawPlace]:
    """One where guests may do little. It forwards to an IPv6 address."""
    rates = "request_rate = 1\nrequest_burst = 10\nconnections_per_instance = 4\n"
    proxy = f"{rates}head_bytes = 4096\nbody_bytes = 5000\n"
    with Lab() as lab, Raw(lab.host, host="::1") as raw, Hypervisor(lab, forward_to("nova", raw), proxy=proxy) as site:
        site.start()
        yield RawPlace(site, raw, enrol(site, "a", A, PROJECT), enrol(site, "b", B, "other"))


class TestLimits:
    """Of one instance, over both families together: others count IPv4 only."""

    def test_the_backend_is_named_as_it_should_be(self, limited):
        ask(limited.b, "/named")
        assert limited.raw.heard("/named")[0].header("Host") == [f"[::1]:{limited.raw.port}"]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_of_requests(self, limited, number):
        """All over IPv4, all over IPv6, and half of each."""
        addresses = {1: (V4, V4), 2: (V6, V6), 3: (V4, V6)}[number]
        instance = uuid_of(10 + number)
        guest = enrol(limited.site, f"r{number}", instance, PROJECT)
        replies = [ask(guest, "/x", address=addresses[turn % 2]) for turn in range(16)]
        statuses = [reply.status for reply in replies]
        passed = statuses.count(200)
        assert 10 <= passed <= 12  # a second may have gone by
        assert statuses == [200] * 10 + statuses[10:]
        assert set(statuses) == {200, 429}
        assert int(replies[statuses.index(429)].header("Retry-After")) >= 1
        assert ask(limited.b, "/x").status == 200

    @both
    def test_of_sizes(self, limited, address):
        guest = enrol(limited.site, "s4" if address == V4 else "s6", uuid_of(20 if address == V4 else 21), PROJECT)
        assert ask(guest, "/x", headers=[("X-Long", "x" * 4096)], address=address).status == 431
        assert ask(guest, "/x", "POST", body=b"x" * 5001, address=address).status == 413
        assert ask(guest, "/x", "POST", body=b"x" * 5000, address=address).status == 200

    def test_of_connections(self, limited):
        guest = enrol(limited.site, "c", uuid_of(30), PROJECT)
        with contextlib.ExitStack() as opened:
            four = [opened.enter_context(visiting(guest, address)) for address in (V4, V6, V4, V6)]
            assert [visit.ask("/x").status for visit in four] == [200] * 4
            for address in (V4, V6):
                with visiting(guest, address) as fifth:
                    reply = fifth.ask("/fifth")
                    assert (reply.status, reply.header("Connection")) == (429, "close")
                    assert int(reply.header("Retry-After")) >= 1
            assert ask(limited.b, "/x").status == 200
        assert limited.raw.heard("/fifth") == []
