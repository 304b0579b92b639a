"""The client gets answers, keeps connections, and waits its turn: real sockets, both loops."""

from __future__ import annotations

import asyncio
import gzip
from functools import partial
from pathlib import Path

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.http.client import Client
from shim.http.client_connection import WHOLE_BYTES
from shim.http.serialize import chunk
from tests.unit.http_backend import CHUNKED, GET, HELLO, OK, Peer, always, ask, backend, begin, failure, whole
from tests.unit.http_site import ON_BOTH_LOOPS, Run, until

pytestmark = ON_BOTH_LOOPS


def test_requests_on_one_kept_connection(run: Run) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append(await peer.head())
            await peer.say(OK + b"Server: x\r\nContent-Length: 5\r\n\r\nhello")

    async def main() -> None:
        async with backend(script) as here:
            for _ in range(3):
                answer = await ask(here.client)
                assert answer == Response(200, ((b"Server", b"x"), (b"Content-Length", b"5")), b"hello", backend="nova")
            port = here.client.address.port
            assert heads == [b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nx-instance-id: i\r\n\r\n" % port] * 3
            assert (len(here.peers), here.client.busy, here.client.waiting) == (1, 0, 0)

    run(main())


@pytest.mark.parametrize(
    ("answer", "method", "status", "body"),
    [
        ([HELLO], b"GET", 200, b"hello"),
        ([HELLO[:9], HELLO[9:40], HELLO[40:]], b"GET", 200, b"hello"),
        ([OK + b"Content-Length: 0\r\n\r\n"], b"GET", 200, b""),
        ([OK + b"Content-Length: 4000\r\n\r\n"], b"HEAD", 200, b""),
        ([CHUNKED], b"HEAD", 200, b""),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b"DELETE", 204, b""),
        ([b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"], b"GET", 304, b""),
        ([CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"], b"GET", 200, b"hello"),
        ([CHUNKED, b"5\r\nhe", b"llo\r\n", b"0\r\nX: 1\r\n\r\n"], b"GET", 200, b"hello"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 \r\n\r\n" + HELLO], b"PUT", 200, b"hello"),
        ([b"HTTP/1.1 451 No\r\nContent-Length: 1\r\n\r\n\xff"], b"GET", 451, b"\xff"),
        ([b"HTTP/1.0 503 No\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno"], b"GET", 503, b"no"),
    ],
)
def test_answers_of_every_shape_keep_the_connection(
    run: Run, answer: list[bytes], method: bytes, status: int, body: bytes
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await peer.say(*answer)

    async def main() -> None:
        async with backend(script) as here:
            for _ in range(2):
                got = await ask(here.client, Request(method, b"/"))
                assert await whole(got) == body
                assert isinstance(got, Response)
                assert got.status == status
            assert len(here.peers) == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"\r\nhello",
        HELLO + HELLO,
        HELLO + b"\r\n",
        OK + b"Keep-Alive: timeout=0\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_answers_that_are_a_connections_last(run: Run, answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(answer)
        if answer.endswith(b"\r\n\r\nhello") and b"Length" not in answer:
            return
        assert await peer.gone() == b""

    async def main() -> None:
        async with backend(script) as here:
            for _ in range(2):
                assert await whole(await ask(here.client)) == b"hello"
            await until(lambda: len(here.peers) == 2)

    run(main())


@pytest.mark.parametrize("lie", [b"HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\nhello", HELLO.replace(b"200", b"304")])
def test_a_body_where_none_may_be(run: Run, lie: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(lie)
        assert await peer.gone() == b""

    async def main() -> None:
        async with backend(script) as here:
            for _ in range(2):
                assert await whole(await ask(here.client)) == b""
            await until(lambda: len(here.peers) == 2)

    run(main())


@pytest.mark.parametrize("framing", ["sized", "chunked", "until the end"])
def test_large_bodies_pass_unchanged(run: Run, framing: str) -> None:
    body = gzip.compress(bytes(range(256)), mtime=0) + bytes(range(256)) * 1500
    chunks = b"".join(chunk(body[at : at + 999]) for at in range(0, len(body), 999))
    wire = {
        "sized": OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        "chunked": CHUNKED + chunks + b"0\r\n\r\n",
        "until the end": OK + b"\r\n" + body,
    }[framing]

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(wire)

    async def main() -> None:
        async with backend(script) as here:
            answer = await ask(here.client)
            assert isinstance(answer, Response)
            assert answer.parts is not None
            assert answer.length == (len(body) if framing == "sized" else None)
            assert await whole(answer) == body

    run(main())


def test_a_small_body_comes_whole_and_a_larger_one_in_parts(run: Run) -> None:
    sizes = iter((WHOLE_BYTES, WHOLE_BYTES + 1))

    async def script(peer: Peer) -> None:
        for size in sizes:
            await peer.head()
            await peer.say(OK + b"Content-Length: %d\r\n\r\n" % size, b"x" * size)

    async def main() -> None:
        async with backend(script) as here:
            small, large = await ask(here.client), await ask(here.client)
            assert isinstance(small, Response)
            assert isinstance(large, Response)
            assert (small.parts, len(small.body), large.body) == (None, WHOLE_BYTES, b"")
            assert len(await whole(large)) == WHOLE_BYTES + 1

    run(main())


def test_a_unix_socket(run: Run, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        assert b"Host: localhost\r\n" in await peer.head()
        await peer.say(HELLO)
        await always(peer)

    async def main() -> None:
        async with backend(script, unix=tmp_path / "s") as here:
            assert [await whole(await ask(here.client)) for _ in range(2)] == [b"hello"] * 2
            assert len(here.peers) == 1

    run(main())


def test_calls_wait_in_order_for_a_connection(run: Run) -> None:
    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.head()).split(b" ")[1]
            await asyncio.sleep(0.01)
            await peer.say(OK + b"Content-Length: 2\r\n\r\n" + path)

    order: list[bytes] = []

    async def main() -> None:
        async with backend(script, connections=2) as here:
            for number in range(6):
                request = Request(b"GET", b"/%d" % number)
                here.client.ask(request, lambda got: order.append(got.body if isinstance(got, Response) else b""))
            assert here.client.waiting == 6
            await until(lambda: (here.client.busy, here.client.waiting) == (2, 4))
            await until(lambda: len(order) == 6)
            assert [set(order[at : at + 2]) for at in (0, 2, 4)] == [{b"/0", b"/1"}, {b"/2", b"/3"}, {b"/4", b"/5"}]
            assert len(here.peers) == 2

    run(main())


def test_a_call_that_waits_too_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.http.client.WAIT_SECONDS", 0.15)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()

    async def main() -> None:
        async with backend(script, connections=1) as here:
            first, call = begin(here.client)
            assert failure(await ask(here.client)) == (False, True)
            assert not first.done()
            call.cancel()

    run(main())


def test_a_cancelled_call_hears_nothing_and_its_connection_ends(run: Run) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        seen.append(await peer.gone())

    async def main() -> None:
        async with backend(script, connections=1) as here:
            first, call = begin(here.client)
            waiting, second = begin(here.client)
            await until(lambda: here.client.busy == 1)
            second.cancel()
            assert here.client.waiting == 0
            call.cancel()
            call.cancel()
            await until(lambda: seen == [b""])
            assert (first.done(), waiting.done(), here.client.busy) == (False, False, 0)

    run(main())


def test_idle_connections_are_closed_in_time(run: Run) -> None:
    closed: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Keep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n" if peer.number == 2 else HELLO)
        await peer.gone()
        closed.append(peer.number)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with backend(script, idle_seconds=0.1) as here:
            await ask(here.client)
            await until(lambda: closed == [1])
            assert not here.client._idle
        async with backend(script, idle_seconds=20) as here:
            first, _ = begin(here.client)
            await ask(here.client)
            await first
            began = loop.time()
            await until(lambda: closed == [1, 2])
            assert loop.time() - began < 1.0

    run(main())


def test_bytes_that_nobody_asked_for_end_an_idle_connection(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(HELLO, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert await peer.gone() == b""

    async def main() -> None:
        async with backend(script) as here:
            assert await whole(await ask(here.client)) == b"hello"
            await asyncio.sleep(0.05)
            assert await whole(await ask(here.client)) == b"hello"
            assert len(here.peers) == 2

    run(main())


def test_the_next_request_may_be_asked_from_an_answer(run: Run) -> None:
    async def main() -> None:
        async with backend(always) as here:
            bodies: list[bytes] = []

            def again(answer: object) -> None:
                assert isinstance(answer, Response)
                bodies.append(answer.body)
                if len(bodies) < 5:
                    here.client.ask(GET, again)

            here.client.ask(GET, again)
            await until(lambda: len(bodies) == 5)
            assert len(here.peers) == 1

    run(main())


def test_close_ends_all_that_is_under_way(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()

    async def main() -> None:
        async with backend(script, connections=1) as here:
            under_way, _ = begin(here.client)
            waits, _ = begin(here.client)
            await until(lambda: here.client.busy == 1)
            await here.client.close()
            assert failure(await under_way) == (True, False)
            assert failure(await waits) == (False, False)
            with pytest.raises(RuntimeError):
                begin(here.client)
        nobody = Client(parse_address("http://127.0.0.1:1"), tls=None, connect_seconds=1, read_seconds=1, connections=1)
        opening, _ = begin(nobody)
        await nobody.close()
        assert failure(await opening) == (False, False)

    run(main())


def test_many_at_once(run: Run) -> None:
    async def main() -> None:
        async with backend(partial(always, answer=HELLO), connections=8) as here:
            answers = await asyncio.gather(*[ask(here.client) for _ in range(300)])
            assert {await whole(answer) for answer in answers} == {b"hello"}
            assert len(here.peers) <= 8

    run(main())
