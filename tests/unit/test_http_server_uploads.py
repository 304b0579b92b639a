"""Request bodies that are too large to be collected: handed on in parts, at the handler's pace and in time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace

import pytest

from shim.core.exchange import Parts, Request, Response
from shim.http.incoming import BODY_AHEAD
from shim.http.limits import Limits
from tests.unit.http_site import (
    GET,
    ON_BOTH_LOOPS,
    QUICK,
    SOON,
    Run,
    Site,
    response,
    site,
    until,
)

pytestmark = ON_BOTH_LOOPS

SMALL = Limits(body_bytes=64_000_000, whole_bytes=1000)
SMALL_AND_QUICK = replace(QUICK, whole_bytes=1000, body_bytes=64_000_000)
# What one read of a loop may add to the bytes that wait.
ONE_READ = 262_144


def pattern(size: int) -> bytes:
    """Bytes of which no two stretches are alike soon."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def sized(length: int) -> bytes:
    return b"PUT /sized HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


CHUNKED = b"PUT /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def joined(parts: Parts | None) -> bytes:
    assert parts is not None
    return b"".join([part async for part in parts])


class Uploads:
    """A handler that reads all, when it may, and says what came and how it ended."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ended: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, caller: str, request: Request) -> Response:
        self.requests.append(request)
        try:
            await self.go.wait()
            body = request.body if request.parts is None else await joined(request.parts)
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("whole")
        return Response(200, (), body)


@pytest.mark.parametrize("step", [1, 700, 100_000])
def test_sized_and_chunked_bodies_in_any_segments(run: Run, step: int) -> None:
    body = pattern(4000 if step == 1 else 300_000)

    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, SMALL) as here:
            reader, writer = await here.connect()
            for wire in (sized(len(body)) + body, CHUNKED + chunks(body, 999)):
                for at in range(0, len(wire), step):
                    writer.write(wire[at : at + step])
                    if at % (step * 16) == 0:
                        await asyncio.sleep(0)
                assert await response(reader) == (200, {"content-length": str(len(body))}, body)
            assert [request.length for request in uploads.requests] == [len(body), None]
            assert all(request.parts is not None and not request.body for request in uploads.requests)

    run(main())


@pytest.mark.parametrize("size", [1000, 1001])
def test_where_parts_begin(run: Run, size: int) -> None:
    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, SMALL) as here:
            reader, writer = await here.connect()
            for wire in (sized(size) + pattern(size), CHUNKED + chunks(pattern(size), 100)):
                writer.write(wire)
                assert (await response(reader))[2] == pattern(size)
            assert [request.parts is None for request in uploads.requests] == [size == 1000] * 2

    run(main())


async def send_all_that_fits(sock: socket.socket, data: memoryview) -> int:
    """How many bytes went before the receiver took no more for a while."""
    sent = idle = 0
    while idle < 20 and sent < len(data):
        try:
            sent += sock.send(data[sent : sent + 100_000])
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0.003)
    return sent


def rude(here: Site) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", here.port))
    sock.setblocking(False)
    return sock


def test_a_slow_handler_slows_the_peer_and_holds_little(run: Run) -> None:
    body = pattern(12_000_000)

    async def main() -> None:
        uploads = Uploads()
        uploads.go.clear()
        async with site(uploads, SMALL) as here:
            sock = rude(here)
            sock.send(sized(len(body)))
            sent = await send_all_that_fits(sock, memoryview(body))
            assert sent < len(body)
            (request,) = uploads.requests
            assert BODY_AHEAD < request.parts._unread <= BODY_AHEAD + ONE_READ  # type: ignore[union-attr]
            uploads.go.set()
            await asyncio.get_running_loop().sock_sendall(sock, memoryview(body)[sent:])
            reader, _ = await asyncio.open_connection(sock=sock)
            assert (await response(reader))[2] == body

    run(main())


def test_the_peer_is_not_blamed_for_a_slow_handler(run: Run) -> None:
    body = pattern(2_000_000)

    async def main() -> None:
        uploads = Uploads()
        uploads.go.clear()
        async with site(uploads, SMALL_AND_QUICK) as here:
            reader, writer = await here.connect()
            writer.write(sized(len(body)) + body)
            await asyncio.sleep(0.6)
            assert here.server.stats.timed_out == 0
            uploads.go.set()
            assert (await response(reader))[2] == body

    run(main())


@pytest.mark.parametrize("head", [sized(1_000_000), CHUNKED + b"ffff\r\n"])
@pytest.mark.parametrize("trickle", [b"", b"a"])
def test_a_body_that_does_not_come_on_is_late(run: Run, head: bytes, trickle: bytes) -> None:
    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, SMALL_AND_QUICK) as here:
            reader, writer = await here.connect()
            writer.write(head + b"a" * 5000)
            async with asyncio.timeout(3):
                while here.server.stats.timed_out == 0:
                    writer.write(trickle)
                    await asyncio.sleep(0.01)
            assert (await response(reader))[0] == 408
            await until(lambda: uploads.ended == ["CancelledError"])
            writer.close()

    run(main())


def test_a_peer_that_stops_after_the_handler_has_caught_up_is_late(run: Run) -> None:
    async def main() -> None:
        uploads = Uploads()
        uploads.go.clear()
        async with site(uploads, SMALL_AND_QUICK) as here:
            reader, writer = await here.connect()
            writer.write(sized(2_000_000) + bytes(BODY_AHEAD + 1))
            await until(lambda: len(uploads.requests) == 1)
            parts = uploads.requests[0].parts
            await until(lambda: parts._unread > BODY_AHEAD)  # type: ignore[union-attr]
            uploads.go.set()
            assert (await response(reader))[0] == 408
            assert here.server.stats.timed_out == 1

    run(main())


def test_a_body_that_comes_on_slowly_is_in_time(run: Run) -> None:
    async def main() -> None:
        async with site(Uploads(), SMALL_AND_QUICK) as here:
            reader, writer = await here.connect()
            writer.write(sized(15_000))
            for _ in range(15):  # 0.9 s in all, of a server that waits 0.3 s for each 1000 bytes
                await asyncio.sleep(0.06)
                writer.write(b"a" * 1000)
            assert (await response(reader))[2] == b"a" * 15_000

    run(main())


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b"5;e=1\r\nhello\r\n", 400),
        (b"5\r\nhelloX", 400),
        (b"0\r\nTrailer: a\r\n\r\n", 400),
        (b"f4240\r\n", 413),
    ],
)
def test_a_body_that_turns_out_bad(run: Run, bad: bytes, expected: int) -> None:
    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, replace(SMALL, body_bytes=900_000)) as here:
            reader, writer = await here.connect()
            writer.write(CHUNKED + b"7d0\r\n" + b"a" * 2000 + b"\r\n")
            await until(lambda: len(uploads.requests) == 1)
            writer.write(bad + GET)
            assert (await response(reader))[0] == expected
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            assert uploads.ended == ["CancelledError"]
            assert (here.server.stats.malformed, here.server.stats.failed) == (1, 0)

    run(main())


def test_a_body_that_is_bad_at_once_reaches_no_handler(run: Run) -> None:
    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, SMALL) as here:
            answer = await here.exchange(CHUNKED + b"7d0\r\n" + b"a" * 2000 + b"XX" + GET)
            assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
            assert uploads.requests == []

    run(main())


def test_a_refusal_arrives_though_nobody_reads_the_body(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(403, (), b"no"), SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(8_000_000))
            for _ in range(80):
                writer.write(b"a" * 100_000)
                await writer.drain()
            status, headers, body = await response(reader)
            assert (status, headers["connection"], body) == (403, "close", b"no")
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            writer.close()
            await until(lambda: here.server.connections == 0)
            assert here.server.stats.requests == 1

    run(main())


def test_a_refusal_waits_for_who_sends_all_before_it_reads(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(403, (), b"no"), SMALL) as here:
            sock = rude(here)
            sock.send(sized(1_000_000))
            await until(lambda: here.server.stats.requests == 1)
            for _ in range(10):
                await asyncio.get_running_loop().sock_sendall(sock, bytes(100_000))
                await asyncio.sleep(0.002)
            reader, _ = await asyncio.open_connection(sock=sock)
            assert (await response(reader))[2] == b"no"

    run(main())


def test_a_whole_body_that_nobody_read_leaves_the_connection_in_order(run: Run) -> None:
    async def late(caller: str, request: Request) -> Response:
        await asyncio.sleep(0.1 if request.parts else 0)
        return Response(200, (), request.path)

    async def main() -> None:
        async with site(late, SMALL) as here:
            reader, writer = await here.connect()
            body = GET * 75  # which is what its length says, though it looks like requests
            writer.write(sized(len(body)) + body + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await response(reader) == (200, {"content-length": "6"}, b"/sized")
            assert (await response(reader))[2] == b"/next"

    run(main())


def test_who_closes_the_parts_gets_the_rest_thrown_away(run: Run) -> None:
    async def main() -> None:
        answer = asyncio.Event()

        async def enough(caller: str, request: Request) -> Response:
            parts = request.parts
            assert parts is not None
            first = await anext(parts)
            await parts.aclose()  # type: ignore[attr-defined]
            await answer.wait()
            with pytest.raises(ConnectionAbortedError):  # never a body that looks whole
                await anext(parts)
            return Response(200, (), first[:4])

        async with site(enough, SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(40_000_000) + b"abcd")
            writer.write(bytes(40_000_000 - 4))
            await asyncio.wait_for(writer.drain(), SOON)
            await until(lambda: writer.transport.get_write_buffer_size() == 0)
            answer.set()
            assert (await response(reader))[2] == b"abcd"

    run(main())


@pytest.mark.parametrize("ending", ["close", "abort"])
def test_a_body_is_cut_off_when_the_peer_goes(run: Run, ending: str) -> None:
    seen: list[str] = []

    async def main() -> None:
        async def read(parts: Parts | None) -> None:
            try:
                await joined(parts)
            except ConnectionAbortedError as error:
                seen.append(str(error))

        def asked(caller: str, request: Request) -> asyncio.Future[Response]:
            reads.append(asyncio.ensure_future(read(request.parts)))
            return asyncio.get_running_loop().create_future()

        reads: list[asyncio.Task[None]] = []
        async with site(asked, SMALL) as here:
            _, writer = await here.connect()
            writer.write(sized(2000) + b"a" * 1500)
            await until(lambda: len(reads) == 1)
            await asyncio.sleep(0.01)
            getattr(writer.transport, ending)()
            await asyncio.wait_for(reads[0], SOON)
            assert seen == ["the request's body was cut off"]
            await until(lambda: here.server.connections == 0)

    run(main())


def test_continue_and_a_large_body(run: Run) -> None:
    async def main() -> None:
        async with site(Uploads(), SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(2000).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert await response(reader) == (100, {}, b"")
            writer.write(b"a" * 2000)
            assert (await response(reader))[2] == b"a" * 2000

    run(main())


def test_a_large_body_behind_many_requests(run: Run) -> None:
    async def main() -> None:
        async with site(Uploads(), SMALL) as here:
            reader, writer = await here.connect()
            body = pattern(500_000)
            for count in (1, 16, 40):
                writer.write(GET * count + sized(len(body)) + body + GET)
                for _ in range(count):
                    assert (await response(reader))[2] == b""
                assert (await response(reader))[2] == body
                assert (await response(reader))[2] == b""

    run(main())


def test_a_large_body_after_a_turn_of_requests_that_are_answered_at_once(run: Run) -> None:
    uploads = Uploads()

    async def main() -> None:
        def asked(caller: str, request: Request) -> Response | asyncio.Future[Response]:
            if request.parts is None:
                return Response(200)
            return asyncio.ensure_future(uploads(caller, request))

        async with site(asked, SMALL) as here:
            reader, writer = await here.connect()
            body = pattern(500_000)
            writer.write(GET * 16 + sized(len(body)))  # after 16 the others have their turn
            for _ in range(16):
                await response(reader)
            writer.write(body)
            assert (await response(reader))[2] == body

    run(main())


def test_the_answer_may_come_while_the_body_does(run: Run) -> None:
    async def main() -> None:
        def echo(caller: str, request: Request) -> Response:
            return Response(200, (), parts=request.parts, length=request.length)

        async with site(echo, SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(3000))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
            assert b"content-length: 3000\r\nconnection: close\r\n" in head
            for byte in (b"a", b"b", b"c"):
                writer.write(byte * 1000)
                assert await asyncio.wait_for(reader.readexactly(1000), SOON) == byte * 1000
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            assert here.server.stats.cut_short == 0

    run(main())


def test_a_body_that_is_late_after_its_answer_began_is_reset(run: Run) -> None:
    async def main() -> None:
        def echo(caller: str, request: Request) -> Response:
            return Response(200, (), parts=request.parts)

        async with site(echo, SMALL_AND_QUICK) as here:
            reader, writer = await here.connect()
            writer.write(sized(3000) + b"a" * 100)
            with contextlib.suppress(asyncio.IncompleteReadError):
                await asyncio.wait_for(reader.readuntil(b"a" * 100), SOON)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), SOON)
            assert here.server.stats.timed_out == 1

    run(main())


def test_a_body_that_is_bad_after_its_answer_began_is_reset(run: Run) -> None:
    async def main() -> None:
        def echo(caller: str, request: Request) -> Response:
            return Response(200, (), parts=request.parts)

        async with site(echo, SMALL) as here:
            reader, writer = await here.connect()
            writer.write(CHUNKED + b"7d0\r\n" + b"a" * 2000)
            await asyncio.wait_for(reader.readuntil(b"a" * 2000), SOON)
            writer.write(b"XX" + GET)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), SOON)
            assert (here.server.stats.malformed, here.server.stats.requests) == (1, 1)

    run(main())


def test_closing_the_parts_ends_who_waits_for_them(run: Run) -> None:
    async def main() -> None:
        async def given_up(caller: str, request: Request) -> Response:
            parts = request.parts
            reading = asyncio.ensure_future(joined(parts))
            await asyncio.sleep(0.01)
            await parts.aclose()  # type: ignore[union-attr]
            with pytest.raises(ConnectionAbortedError):
                await reading
            return Response(200, (), b"ended")

        async with site(given_up, SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(2000) + b"a" * 10)
            status, headers, body = await response(reader)
            assert (status, headers["connection"], body) == (200, "close", b"ended")

    run(main())


def test_drain_lets_an_upload_end(run: Run) -> None:
    async def main() -> None:
        uploads = Uploads()
        async with site(uploads, SMALL) as here:
            reader, writer = await here.connect()
            writer.write(sized(2000) + b"a" * 500)
            await until(lambda: len(uploads.requests) == 1)
            drained = asyncio.ensure_future(here.server.drain(5))
            await asyncio.sleep(0.02)
            writer.write(b"a" * 1500)
            status, headers, body = await response(reader)
            assert (status, headers["connection"], len(body)) == (200, "close", 2000)
            writer.close()
            await asyncio.wait_for(drained, SOON)

    run(main())
