"""The server answers: real sockets, asyncio's own loop and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable

import pytest

from shim.core.exchange import Request, Response
from shim.http.channel import READ_AHEAD
from shim.http.limits import Limits
from shim.http.server import FAILURES_LOGGED
from tests.unit.http_site import GET, ON_BOTH_LOOPS, SOON, Handler, Run, response, site, until

pytestmark = ON_BOTH_LOOPS


def test_requests_on_one_connection(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            reader, writer = await here.connect()
            for path in (b"/a", b"/b", b"/a"):
                writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                assert await response(reader) == (200, {"content-length": "8"}, b"hello " + path)
            assert (here.server.connections, here.server.stats.requests) == (1, 3)
            writer.close()
            await until(lambda: here.server.connections == 0)

    run(main())


def test_a_body_in_one_byte_segments(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(200, (), request.body)) as here:
            reader, writer = await here.connect()
            for byte in b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\x00\r\n\xff":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert (await response(reader))[2] == b"\x00\r\n\xff"

    run(main())


def test_a_large_body_in_segments_arrives_whole(run: Run) -> None:
    body = bytes(range(256)) * 256

    async def main() -> None:
        limits = Limits(whole_bytes=len(body))
        async with site(lambda caller, request: Response(200, (), request.body), limits) as here:
            reader, writer = await here.connect()
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
            for at in range(0, len(body), 5000):
                await asyncio.sleep(0.001)
                writer.write(body[at : at + 5000])
            assert (await response(reader))[2] == body

    run(main())


def test_continue(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(200, (), request.body)) as here:
            reader, writer = await here.connect()
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert await response(reader) == (100, {}, b"")
            writer.write(b"ab")
            assert (await response(reader))[2] == b"ab"

    run(main())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def later(request: Request) -> Response:
        await asyncio.sleep(0.001)
        return Response(200, (), request.path)

    def mixed(caller: str, request: Request) -> Response | Awaitable[Response]:
        return later(request) if request.path.endswith(b"5") else Response(200, (), request.path)

    async def main() -> None:
        async with site(mixed) as here:
            reader, writer = await here.connect()
            paths = [b"/%d" % number for number in range(300)]
            writer.write(b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths))
            assert [(await response(reader))[2] for _ in paths] == paths

    run(main())


def test_one_request_at_a_time_and_bounded_read_ahead(run: Run) -> None:
    running = most = 0

    async def slow(caller: str, request: Request) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1
        return Response(200, close=True)

    async def main() -> None:
        async with site(slow) as here:
            sock = socket.create_connection(("127.0.0.1", here.port))
            sock.setblocking(False)
            sent = 0
            for _ in range(200):
                with contextlib.suppress(BlockingIOError):
                    sent += sock.send(GET * 10_000)
                await asyncio.sleep(0.001)
            # The kernel's buffers took some; the server stopped reading, so far from all was taken.
            assert READ_AHEAD < sent < 100 * 10_000 * len(GET)
            await until(lambda: here.server.stats.requests == 1 and running == 0)
            sock.close()
        assert most == 1

    run(main())


def test_head_and_http10(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            answer = await here.exchange(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert answer == b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n"
            answer = await here.exchange(b"GET / HTTP/1.0\r\n\r\n")
            assert answer == b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nhello /"
            reader, writer = await here.connect()
            for _ in range(2):
                writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert (await response(reader))[1]["connection"] == "keep-alive"

    run(main())


def test_a_handlers_close_closes(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(403, close=True)) as here:
            answer = await here.exchange(GET + GET)
            assert answer == b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            assert here.server.stats.requests == 1

    run(main())


def test_a_malformed_request_reaches_no_handler(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            answer = await here.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nHost: secret\r\n\r\n" + GET)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"connection: close" in head
            assert body == b"header given more than once: host\n"
            assert (here.server.stats.requests, here.server.stats.malformed) == (0, 1)

    run(main())


def test_the_refusal_arrives_while_the_peer_still_sends(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            reader, writer = await here.connect()
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
            for _ in range(40):
                writer.write(b"x" * 100_000)
                await writer.drain()
                await asyncio.sleep(0.002)
            assert (await response(reader))[0] == 413
            assert await asyncio.wait_for(reader.read(), SOON) == b""

    run(main())


async def raise_later() -> Response:
    raise ValueError("secret of the guest")


async def cancel_itself() -> Response:
    raise asyncio.CancelledError("secret of the guest")


def raise_now(caller: str, request: Request) -> Response:
    raise ValueError("secret of the guest")


FAILING: dict[str, Handler] = {
    "raises": raise_now,
    "raises later": lambda caller, request: raise_later(),
    "is cancelled": lambda caller, request: cancel_itself(),
    "splits the response": lambda caller, request: Response(200, ((b"x", b"a\r\nsecret: b"),)),
    "has no such status": lambda caller, request: Response(99),
    "answers something else": lambda caller, request: "secret",  # type: ignore[dict-item,return-value]
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_failing_handler_tells_nothing(run: Run, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site(FAILING[kind]) as here:
            answer = await here.exchange(b"GET /secret HTTP/1.1\r\nHost: a\r\nX: secret\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert answer.endswith(b"\r\n\r\ninternal error\n") and b"connection: close" in answer
            assert here.server.stats.failed == 1

    with caplog.at_level(logging.DEBUG, "metashim"):
        run(main())
    assert caplog.text.count("GET request failed: ") == 1
    assert "secret" not in caplog.text


def test_failures_cannot_flood_the_log(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site(raise_now) as here:
            for _ in range(FAILURES_LOGGED * 2):
                await here.exchange(GET)
            assert here.server.stats.failed == FAILURES_LOGGED * 2

    run(main())
    # One sweep may fall in between on a slow machine, and starts the count again.
    assert FAILURES_LOGGED <= caplog.text.count("GET request failed") < FAILURES_LOGGED * 2
