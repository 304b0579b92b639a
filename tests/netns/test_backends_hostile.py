"""A guest, its tap, a whole metashim, and a backend that breaks every rule: breaks off, lies, splits, says nothing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import NamedTuple

import pytest

from tests.backends.raw import Raw, freezes, hangs_up, message, resets, says
from tests.backends.visit import request
from tests.backends.wiring import BUSY, ask, await_status, enrol, forward_to, timed, visiting
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import Hypervisor, uuid_of

A, B = uuid_of(1), uuid_of(2)
PROJECTS = {A: "p-one", B: "p-two"}
NO_MORE = (OSError, HTTPException)


class RawPlace(NamedTuple):
    site: Hypervisor
    raw: Raw
    a: VethGuest
    b: VethGuest


@pytest.fixture(scope="module")
def raw_place() -> Iterator[RawPlace]:
    with Lab() as lab, Raw(lab.host) as raw:
        settings = forward_to("http", raw, forward="read_seconds = 1.0")
        with Hypervisor(lab, settings, proxy=BUSY) as site:
            site.start()
            yield RawPlace(site, raw, enrol(site, "a", A, PROJECTS[A]), enrol(site, "b", B, PROJECTS[B]))


@pytest.fixture
def wild(raw_place: RawPlace) -> Iterator[RawPlace]:
    """A backend that breaks rules; whatever a test makes it do, nobody else gets any of it."""
    raw_place.raw.forget()
    yield raw_place
    raw_place.raw.forget()
    await_status(raw_place.b, "/fine", 200)
    for guest in (raw_place.b, raw_place.a):
        with visiting(guest) as visit:
            assert [visit.ask("/fine").body for _ in range(5)] == [b"raw"] * 5


OK = b"HTTP/1.1 200 OK\r\n"
POISON = message(b"poison", 200, ("X-Poison", "yes"))
LONG = b"x" * 200_000


class TestBrokenOff:
    @pytest.mark.parametrize("end", [resets, hangs_up])
    @pytest.mark.parametrize("body", [b"x" * 100, LONG])
    def test_within_a_body_of_known_length(self, wild, end, body):
        """A guest is never left in the belief that it has all."""
        wild.raw.play("/cut", end(message(body)[: -len(body) // 2]))
        self.guest_sees_no_whole(wild)

    @pytest.mark.parametrize("end", [resets, hangs_up])
    @pytest.mark.parametrize("body", [b"5\r\nhello\r\n", b"5\r\nhel", b"30d40\r\n" + LONG, b"5\r\nhello\r\n0\r\n"])
    def test_within_chunks(self, wild, end, body):
        wild.raw.play("/cut", end(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body))
        self.guest_sees_no_whole(wild)

    def test_by_a_reset_where_the_end_is_the_end(self, wild):
        wild.raw.play("/cut", resets(OK + b"\r\n" + LONG))
        self.guest_sees_no_whole(wild)

    def guest_sees_no_whole(self, wild: RawPlace) -> None:
        with visiting(wild.a) as visit, contextlib.suppress(*NO_MORE):
            assert visit.ask("/cut").status == 502
        assert len(wild.raw.heard("/cut")) == 1

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("end", [resets, hangs_up])
    @pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", OK, OK + b"Content-Length: 5\r\n"])
    def test_before_the_body(self, wild, end, said, method):
        """It had the request: it is not asked a second time, whatever the method."""
        wild.raw.play("/cut", end(said))
        reply = ask(wild.a, "/cut", method, body=b"do it" if method == "POST" else None)
        assert reply.status == 502
        assert int(reply.header("Retry-After")) > 0
        assert len(wild.raw.heard("/cut")) == 1

    @pytest.mark.parametrize("said", [b"", OK])
    def test_by_silence(self, wild, said):
        wild.raw.play("/silent", freezes(said))
        reply, seconds = timed(lambda: ask(wild.a, "/silent"))
        assert reply.status == 504
        assert 0.9 < seconds < 2.5

    def test_by_silence_within_a_body(self, wild):
        wild.raw.play("/silent", freezes(message(LONG)[:-10]))
        with visiting(wild.a) as visit, pytest.raises(NO_MORE):
            visit.ask("/silent")


class TestLies:
    def test_more_than_it_said(self, wild):
        """What is beyond the length is nobody's answer."""
        wild.raw.play("/lie", says(message(b"short") + POISON))
        self.no_poison(wild)

    def test_more_than_it_said_and_late(self, wild):
        """It comes while the connection waits for the next request, which must not get it."""
        wild.raw.play("/lie", says(message(b"short"), POISON, pause=0.1))
        self.no_poison(wild, wait=0.15)

    @pytest.mark.parametrize("status", [204, 304])
    def test_a_body_where_none_can_be(self, wild, status):
        wild.raw.play("/lie", says(f"HTTP/1.1 {status} X\r\nContent-Length: {len(POISON)}\r\n\r\n".encode() + POISON))
        self.no_poison(wild)

    def test_a_body_for_head(self, wild):
        wild.raw.play("/lie", says(message(POISON)))
        self.no_poison(wild, "HEAD")

    def no_poison(self, wild: RawPlace, method: str = "GET", wait: float = 0.0) -> None:
        for _ in range(10):
            for guest in (wild.a, wild.b):
                with visiting(guest) as visit, contextlib.suppress(*NO_MORE):
                    assert b"poison" not in visit.ask("/lie", method).body
                    time.sleep(wait)
                    following = [visit.ask("/fine") for _ in range(3)]
                    assert [(reply.body, reply.header("X-Poison")) for reply in following] == [(b"raw", None)] * 3

    @pytest.mark.parametrize(
        "said",
        [
            OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            OK + b"Content-Length: 3\r\nContent-Length: 6\r\n\r\npoison",
            OK + b"Content-Length: +6\r\n\r\npoison",
            OK + b"Content-Length: 6, 7\r\n\r\npoison",
            OK + b"Content-Length: 0x6\r\n\r\npoison",
            OK + b"Content-Length: -1\r\n\r\npoison",
            OK + b"Content-Length: 99999999999999999999999\r\n\r\npoison",
            OK + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            OK + b"X-A: a\rX-Poison: yes\r\nContent-Length: 0\r\n\r\n",
            OK + b"X-A: a\nX-Poison: yes\r\nContent-Length: 0\r\n\r\n",
            OK + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
            OK + b"X-A: a\r\n X-Poison: yes\r\nContent-Length: 0\r\n\r\n",
            OK + b"X-A : a\r\nContent-Length: 0\r\n\r\n",
            OK + b": a\r\nContent-Length: 0\r\n\r\n",
            OK + b"X A: a\r\nContent-Length: 0\r\n\r\n",
            OK + b"nonsense\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            OK + b"X-Long: " + b"x" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
            OK + b"X: y\r\n" * 300 + b"Content-Length: 0\r\n\r\n",
        ],
        ids=lambda said: repr(said[:60])[2:-1],
    )
    def test_a_head_that_makes_no_sense(self, wild, said):
        wild.raw.play("/lie", says(said))
        reply = ask(wild.a, "/lie")
        assert reply.status == 502
        assert reply.header("X-Poison") is None
        assert b"poison" not in reply.body

    @pytest.mark.parametrize("chunks", [b"zz\r\n", b"-1\r\nx\r\n", b"5\r\nhelloworld\r\n", b"fffffffffffffffff\r\nx"])
    def test_chunks_that_make_no_sense(self, wild, chunks):
        wild.raw.play("/lie", says(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks))
        with visiting(wild.a) as visit, contextlib.suppress(*NO_MORE):
            assert visit.ask("/lie").status == 502

    def test_headers_for_one_connection_stay_there(self, wild):
        sent = [("Connection", "X-Hop, keep-alive"), ("X-Hop", "1"), ("Keep-Alive", "timeout=9"), ("Upgrade", "h2c")]
        wild.raw.play("/lie", says(message(b"x", 200, *sent, ("X-End", "1"), ("Trailer", "X-T"))))
        reply = ask(wild.a, "/lie")
        assert (reply.body, reply.header("X-End")) == (b"x", "1")
        names = {name.lower() for name, _ in reply.headers}
        assert not names & {"x-hop", "keep-alive", "upgrade", "trailer", "proxy-authenticate"}

    def test_interim_answers_are_not_the_answer(self, wild):
        early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        wild.raw.play("/lie", says(early + message(b"x")))
        reply = ask(wild.a, "/lie")
        assert (reply.status, reply.body, reply.header("Link")) == (200, b"x", None)

    def test_trailers_are_not_headers(self, wild):
        body = b"1\r\nx\r\n0\r\nX-Poison: yes\r\n\r\n"
        wild.raw.play("/lie", says(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body))
        reply = ask(wild.a, "/lie")
        assert (reply.body, reply.header("X-Poison")) == (b"x", None)


class TestNeighbour:
    def test_slow_answers_to_one_hold_up_no_other(self, wild):
        """One guest has as many slow requests under way as it can; its neighbour is asked all the same."""
        wild.raw.play("/hold", says(OK, *[b"X-A: a\r\n"] * 4, b"Content-Length: 0\r\n\r\n", pause=0.4))
        with contextlib.ExitStack() as opened:
            held = [opened.enter_context(visiting(wild.a)) for _ in range(32)]
            for visit in held:
                visit.sock.sendall(request("/hold"))
            waits = [timed(lambda: ask(wild.b, "/fine")) for _ in range(20)]
        assert [reply.status for reply, _ in waits] == [200] * 20
        assert max(seconds for _, seconds in waits) < 0.5

    def test_a_guest_that_goes_takes_its_request_along(self, wild):
        wild.raw.play("/hold", freezes())
        with visiting(wild.a) as visit:
            visit.sock.sendall(request("/hold"))
            wait_until(lambda: bool(wild.raw.heard("/hold")), "the request")
            (connection,) = [one for one in wild.raw.connections if b"/hold" in one.bytes]
        wait_until(lambda: connection.sock.fileno() < 0 or peer_is_gone(connection.sock), "its end", 0.8)


def peer_is_gone(sock: socket.socket) -> bool:
    """Whether the other end closed the connection (TCP_INFO's first byte is the state: 1 is ESTABLISHED)."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1
    except OSError:
        return True
