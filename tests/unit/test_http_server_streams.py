"""Responses in parts: framed, at the peer's pace, and never taken for whole when they are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from shim.core.exchange import Request, Response
from shim.http.outgoing import Outgoing
from tests.unit.http_site import (
    GET,
    ON_BOTH_LOOPS,
    QUICK,
    SOON,
    Handler,
    Run,
    narrow,
    reset_seen,
    response,
    site,
    until,
)

pytestmark = ON_BOTH_LOOPS

GET10 = b"GET / HTTP/1.0\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


class Source:
    """Parts of a response; counts what was taken of it. `then` is raised after the last, or waited for."""

    def __init__(self, *parts: bytes, then: BaseException | asyncio.Event | None = None) -> None:
        self._parts = list(parts)
        self._then = then
        self.taken = 0
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.taken < len(self._parts):
            self.taken += 1
            await asyncio.sleep(0)
            return self._parts[self.taken - 1]
        if isinstance(self._then, BaseException):
            raise self._then
        if self._then is not None:
            await self._then.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


def answer(source: Source, length: int | None = None, status: int = 200) -> Handler:
    return lambda caller, request: Response(status, ((b"x", b"y"),), parts=source, length=length, backend="nova")


def later(handler: Handler) -> Handler:
    async def asked(caller: str, request: Request) -> Response:
        await asyncio.sleep(0)
        made = handler(caller, request)
        assert isinstance(made, Response)
        return made

    return asked


@pytest.mark.parametrize(
    ("wire", "length", "expected"),
    [
        (
            LAST,
            None,
            b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n",
        ),
        (LAST, 19, b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 19\r\nconnection: close\r\n\r\nab" + b"c" * 17),
        (GET10, None, b"HTTP/1.1 200 OK\r\nx: y\r\nconnection: close\r\n\r\nab" + b"c" * 17),
        (GET10, 19, b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 19\r\nconnection: close\r\n\r\nab" + b"c" * 17),
    ],
)
@pytest.mark.parametrize("handled", [lambda handler: handler, later])
def test_on_the_wire(
    run: Run, wire: bytes, length: int | None, expected: bytes, handled: Callable[[Handler], Handler]
) -> None:
    async def main() -> None:
        source = Source(b"ab", b"", b"c" * 17)
        async with site(handled(answer(source, length))) as here:
            assert await here.exchange(wire) == expected
            assert source.closed == 0

    run(main())


def test_a_part_is_sent_when_it_is_there(run: Run) -> None:
    async def main() -> None:
        more = asyncio.Event()
        async with site(answer(Source(b"ab", then=more))) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"2\r\nab\r\n"), SOON)
            more.set()
            assert await asyncio.wait_for(reader.readexactly(5), SOON) == b"0\r\n\r\n"

    run(main())


def test_requests_behind_a_stream_wait_for_its_end(run: Run) -> None:
    async def main() -> None:
        more = asyncio.Event()
        asked: list[bytes] = []

        def handler(caller: str, request: Request) -> Response | Awaitable[Response]:
            asked.append(request.path)
            if request.path.endswith(b"/s"):
                return Response(200, (), parts=Source(request.path, then=more), length=len(request.path))
            return Response(200, (), request.path)

        async with site(handler) as here:
            reader, writer = await here.connect()
            paths = [b"/1/s", b"/2", b"/3/s", b"/4/s", b"/5"]
            writer.write(b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths))
            assert (await response(reader))[2] == b"/1/s"
            await asyncio.sleep(0.02)
            assert asked == [b"/1/s"]
            more.set()
            assert [(await response(reader))[2] for _ in paths[1:]] == paths[1:]
            assert asked == paths

    run(main())


def test_http10_keeps_a_connection_for_a_known_length_alone(run: Run) -> None:
    kept = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"

    async def main() -> None:
        async with site(lambda caller, request: Response(200, (), parts=Source(b"abc"), length=3)) as here:
            reader, writer = await here.connect()
            for _ in range(2):
                writer.write(kept)
                assert await response(reader) == (200, {"content-length": "3", "connection": "keep-alive"}, b"abc")
        async with site(lambda caller, request: Response(200, (), parts=Source(b"abc"))) as here:
            assert await here.exchange(kept) == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"

    run(main())


@pytest.mark.parametrize(
    ("wire", "status", "length", "expected"),
    [
        (HEAD, 200, 3, b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 3\r\n\r\n"),
        (HEAD, 200, None, b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"),
        (GET, 204, None, b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"),
        (GET, 304, 3, b"HTTP/1.1 304 Not Modified\r\nx: y\r\n\r\n"),
    ],
)
def test_parts_that_are_not_sent_are_closed(
    run: Run, wire: bytes, status: int, length: int | None, expected: bytes
) -> None:
    async def main() -> None:
        source = Source(b"abc")
        async with site(answer(source, length, status)) as here:
            reader, writer = await here.connect()
            writer.write(wire + b"BAD\r\n\r\n")
            got = await asyncio.wait_for(reader.read(), SOON)
            assert got.startswith(expected + b"HTTP/1.1 400 ")
            await until(lambda: source.closed == 1)
            assert source.taken == 0

    run(main())


BROKEN: dict[str, Callable[[], tuple[Source, int | None]]] = {
    "too few": lambda: (Source(b"ab"), 3),
    "too many": lambda: (Source(b"ab", b"cd"), 3),
    "too many at once": lambda: (Source(b"abcd"), 3),
    "more than none": lambda: (Source(b"a"), 0),
    "raises": lambda: (Source(b"ab", then=ValueError("secret")), 3),
    "raises, in chunks": lambda: (Source(b"ab", then=ValueError("secret")), None),
    "raises at the end": lambda: (Source(b"abc", then=ValueError("secret")), 3),
    "cancels itself": lambda: (Source(b"ab", then=asyncio.CancelledError()), None),
    "gives no bytes": lambda: (Source(b"ab", "secret"), None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("wire", [GET, GET10], ids=["1.1", "1.0"])
def test_what_is_not_whole_ends_in_a_reset(
    run: Run, kind: str, wire: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        source, length = BROKEN[kind]()
        async with site(answer(source, length)) as here:
            reader, writer = await here.connect()
            writer.write(wire)
            assert await reset_seen(reader)
            await until(lambda: source.closed == 1 and here.server.connections == 0)
            assert here.server.stats.cut_short == 1

    run(main())
    assert caplog.text.count("response cut short: ") == 1
    assert "secret" not in caplog.text


def test_more_than_the_length_is_never_sent(run: Run) -> None:
    async def main() -> None:
        written: list[bytes] = []
        errors: list[BaseException | None] = []
        source = Source(b"ab", b"c" + GET)
        outgoing = Outgoing(Response(200, parts=source, length=3), source, http10=False, last=False)
        outgoing.start(written.append, lambda outgoing, error: errors.append(error))
        await until(lambda: len(errors) == 1)
        assert (written, outgoing.sent) == ([b"ab"], 2)
        assert isinstance(errors[0], ValueError)

    run(main())


def test_a_response_that_would_be_split_is_not_begun(run: Run) -> None:
    async def main() -> None:
        source = Source(b"abc")
        split = Response(200, ((b"x", b"a\r\nSet-Cookie: b"),), parts=source)
        async with site(lambda caller, request: split) as here:
            got = await here.exchange(GET)
            assert got.startswith(b"HTTP/1.1 500 ") and b"Set-Cookie" not in got
            await until(lambda: source.closed == 1)

    run(main())


LARGE_PARTS = [bytes([number % 251]) * 50_000 for number in range(600)]


def test_no_faster_than_the_peer_reads(run: Run) -> None:
    async def main() -> None:
        source = Source(*LARGE_PARTS)
        async with site(answer(source, 30_000_000)) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await until(lambda: source.taken > 1)
            await asyncio.sleep(0.2)
            taken = source.taken
            assert taken < 300  # what the kernel's buffers hold, and a little
            await asyncio.sleep(0.05)
            assert source.taken == taken
            assert (await response(reader))[2] == b"".join(LARGE_PARTS)

    run(main())


def test_nothing_of_the_body_is_taken_before_there_is_room(run: Run) -> None:
    async def main() -> None:
        source = Source(*LARGE_PARTS)
        vast = Response(200, ((b"x", b"y" * 20_000_000),), parts=source)
        async with site(lambda caller, request: vast, QUICK) as here:
            sock = narrow(here.port)
            sock.send(GET)
            await until(lambda: here.server.stats.cut_off == 1)
            assert source.taken == 0
            sock.close()

    run(main())


@pytest.mark.parametrize("trickle", [0, 1])
def test_who_does_not_read_is_cut_off(run: Run, trickle: int) -> None:
    async def main() -> None:
        source = Source(*LARGE_PARTS)
        async with site(answer(source), QUICK) as here:
            sock = narrow(here.port)
            sock.send(GET)
            while here.server.stats.cut_off == 0:
                await asyncio.sleep(0.01)
                with contextlib.suppress(BlockingIOError):
                    sock.recv(trickle)
            await until(lambda: here.server.connections == 0)
            await until(lambda: source.closed == 1)
            assert (here.server.stats.cut_short, here.server.stats.timed_out) == (0, 0)
            sock.close()

    run(main())


def test_who_reads_slowly_gets_all(run: Run) -> None:
    async def main() -> None:
        source = Source(*LARGE_PARTS[:200])
        async with site(answer(source, 10_000_000), replace(QUICK, drain_seconds=0.4)) as here:
            sock = narrow(here.port, 32_768)
            sock.send(GET)
            got, began = 0, asyncio.get_running_loop().time()
            while got < 10_000_000:
                got += len(await asyncio.get_running_loop().sock_recv(sock, 150_000))
                await asyncio.sleep(0.008)
            assert asyncio.get_running_loop().time() - began > 0.5  # longer than it may be blocked
            assert here.server.stats.cut_off == 0
            sock.close()

    run(main())


def test_a_stream_that_pauses_is_not_the_peers_fault(run: Run) -> None:
    async def main() -> None:
        more = asyncio.Event()
        async with site(answer(Source(b"abc", then=more), 3), QUICK) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.sleep(0.6)
            more.set()
            assert (await response(reader))[2] == b"abc"
            assert here.server.stats.cut_off == 0

    run(main())


@pytest.mark.parametrize("way", ["politely", "rudely", "half"])
def test_the_parts_are_closed_when_the_peer_goes(run: Run, way: str) -> None:
    async def main() -> None:
        source = Source(b"ab", then=asyncio.Event())
        async with site(answer(source)) as here:
            reader, writer = await here.connect()
            writer.write(GET10)
            await asyncio.wait_for(reader.readuntil(b"ab"), SOON)
            if way == "rudely":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if way == "half":
                writer.write_eof()
                assert await reset_seen(reader)  # an HTTP/1.0 body that just ended would seem whole
            else:
                writer.close()
            await until(lambda: source.closed == 1 and here.server.connections == 0)
            assert (here.server.stats.cut_short, here.server.stats.failed) == (0, 0)

    run(main())


def test_an_async_generator_is_closed_where_it_waits(run: Run) -> None:
    async def main() -> None:
        ended: list[str] = []

        async def generated() -> AsyncIterator[bytes]:
            try:
                yield b"ab"
                await asyncio.Event().wait()
            finally:
                ended.append("ended")

        async with site(lambda caller, request: Response(200, (), parts=generated())) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"ab"), SOON)
            writer.close()
            await until(lambda: ended == ["ended"])

    run(main())


def test_parts_are_closed_of_a_response_that_comes_too_late(run: Run) -> None:
    async def main() -> None:
        answers: list[asyncio.Future[Response]] = []

        def handler(caller: str, request: Request) -> asyncio.Future[Response]:
            answers.append(asyncio.get_running_loop().create_future())
            return answers[-1]

        async with site(handler) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: len(answers) == 1)
            source = Source(b"abc")
            answers[0].set_result(Response(200, (), parts=source))
            here.server.abort(lambda caller: True)
            await until(lambda: source.closed == 1)
            assert source.taken == 0

    run(main())


def test_parts_are_closed_that_were_about_to_be_sent(run: Run) -> None:
    async def main() -> None:
        source = Source(b"abc")

        def handler(caller: str, request: Request) -> Response:
            asyncio.get_running_loop().call_soon(here.server.abort, lambda caller: True)
            return Response(200, (), parts=source)

        async with site(handler) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: source.closed == 1)
            assert source.taken == 0

    run(main())


def test_drain_lets_a_stream_end(run: Run) -> None:
    async def main() -> None:
        more = asyncio.Event()
        source = Source(b"abc", then=more)
        async with site(answer(source, 3)) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"abc"), SOON)
            drained = asyncio.ensure_future(here.server.drain(5))
            await asyncio.sleep(0.05)
            assert not drained.done()
            more.set()
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            await asyncio.wait_for(drained, SOON)
            assert source.closed == 0

    run(main())


def test_drain_resets_a_stream_that_outlasts_its_grace(run: Run) -> None:
    async def main() -> None:
        source = Source(b"ab", then=asyncio.Event())
        async with site(answer(source)) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"ab"), SOON)
            await asyncio.wait_for(here.server.drain(0.05), 2)
            assert await reset_seen(reader)
            await until(lambda: source.closed == 1)

    run(main())


def test_an_answer_that_is_a_future_costs_no_task(run: Run) -> None:
    async def main() -> None:
        answers: list[asyncio.Future[Response]] = []

        def handler(caller: str, request: Request) -> asyncio.Future[Response]:
            answers.append(asyncio.get_running_loop().create_future())
            return answers[-1]

        async with site(handler) as here:
            reader, writer = await here.connect()
            before = len(asyncio.all_tasks())
            writer.write(GET)
            await until(lambda: len(answers) == 1)
            assert len(asyncio.all_tasks()) == before
            answers[0].set_result(Response(200, (), b"abc"))
            assert (await response(reader))[2] == b"abc"

    run(main())
