"""Bodies that stream, either way: back-pressure, bounds, and what happens when one side gives up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.http.client import Client
from shim.http.client_parts import HIGH_BYTES
from tests.unit.http_backend import CHUNKED, HELLO, OK, Peer, ask, backend, begin, failure, whole
from tests.unit.http_site import ON_BOTH_LOOPS, SOON, Run, until

pytestmark = ON_BOTH_LOOPS

# More than the buffers of two sockets, of an asyncio reader and of a transport hold.
MUCH = 32 * 2**20
PIECE = b"x" * 65_536


async def parts(*pieces: bytes, fails: bool = False) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
    if fails:
        raise ConnectionResetError


class Endless:
    """Parts that can be counted."""

    def __init__(self, most: int = MUCH // len(PIECE)) -> None:
        self.given = 0
        self._most = most

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        if self.given == self._most:
            raise StopAsyncIteration
        self.given += 1
        return PIECE


async def read_chunks(peer: Peer) -> bytes:
    body = b""
    while size := int((await peer.reader.readuntil(b"\r\n"))[:-2], 16):
        body += await peer.reader.readexactly(size)
        assert await peer.reader.readexactly(2) == b"\r\n"
    assert await peer.reader.readexactly(2) == b"\r\n"
    return body


@pytest.mark.parametrize("length", [None, 70_003], ids=["chunked", "sized"])
def test_an_upload_in_parts(run: Run, length: int | None) -> None:
    body = b"a" * 70_000 + b"\x00\r\n"

    async def script(peer: Peer) -> None:
        while True:
            head = await peer.head()
            if length is None:
                assert b"Transfer-Encoding: chunked\r\n" in head
                assert await read_chunks(peer) == body
            else:
                assert b"Content-Length: 70003\r\n" in head
                assert await peer.reader.readexactly(length) == body
            await peer.say(HELLO)

    async def main() -> None:
        async with backend(script) as here:
            pieces = (body[:10], b"", body[10:69_000], body[69_000:])
            request = Request(b"PUT", b"/", parts=parts(*pieces), length=length)
            assert await whole(await ask(here.client, request)) == b"hello"
            assert here.client.busy == 0
            request = Request(b"PUT", b"/", body=body) if length else Request(b"PUT", b"/", parts=parts(body))
            assert await whole(await ask(here.client, request)) == b"hello"
            assert len(here.peers) == (1 if length else 2)  # one in parts always gets a new connection

    run(main())


@pytest.mark.parametrize(
    ("pieces", "length", "fails"),
    [((b"abc",), 4, False), ((b"abc", b"de"), 4, False), ((b"abc",), 4, True), ((b"abc",), None, True)],
    ids=["short", "long", "cut off, sized", "cut off, chunked"],
)
def test_an_upload_that_is_cut_off_never_ends_well(
    run: Run, pieces: tuple[bytes, ...], length: int | None, fails: bool
) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        seen.append(await peer.gone())

    async def main() -> None:
        async with backend(script) as here:
            request = Request(b"PUT", b"/", parts=parts(*pieces, fails=fails), length=length)
            assert failure(await ask(here.client, request)) == (True, False)
            await until(lambda: len(seen) == 1)
            assert seen[0] in ((b"", b"3\r\nabc\r\n") if length is None else (b"", b"abc"))

    run(main())


@pytest.mark.parametrize("length", [None, MUCH], ids=["chunked", "sized"])
def test_an_upload_waits_for_a_backend_that_does_not_read(run: Run, length: int | None) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(SOON)

    async def main() -> None:
        async with backend(script, read_seconds=0.3) as here:
            source = Endless()
            assert failure(await ask(here.client, Request(b"PUT", b"/", parts=source, length=length))) == (True, True)
            assert source.given * len(PIECE) < MUCH / 2

    run(main())


def test_an_upload_whose_guest_is_slow_is_not_the_backends_fault(run: Run) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.5)
        yield b"b"

    async def script(peer: Peer) -> None:
        await peer.head()
        assert await read_chunks(peer) == b"ab"
        await peer.say(HELLO)

    async def main() -> None:
        async with backend(script, read_seconds=0.15) as here:
            assert await whole(await ask(here.client, Request(b"PUT", b"/", parts=slow()))) == b"hello"

    run(main())


def test_silence_after_an_upload_is(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()

    async def main() -> None:
        async with backend(script, read_seconds=0.15) as here:
            assert failure(await ask(here.client, Request(b"PUT", b"/", parts=parts(b"a")))) == (True, True)

    run(main())


@pytest.mark.parametrize("then", ["reads on", "closes", "resets"])
@pytest.mark.parametrize("length", [None, MUCH], ids=["chunked", "sized"])
def test_an_early_answer_to_an_upload_is_given(run: Run, length: int | None, then: str) -> None:
    ended: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.sleep(0.05)
        peer.say_at_once(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
        if then == "reads on":
            await peer.gone()
        elif then == "resets":
            peer.reset()
        ended.append(1)

    async def main() -> None:
        async with backend(script, idle_seconds=60) as here:
            source = Endless()
            answer = await ask(here.client, Request(b"PUT", b"/", parts=source, length=length))
            assert isinstance(answer, Response)
            assert (answer.status, answer.body) == (413, b"large")
            await until(lambda: ended == [1] and here.client.busy == 0)
            assert source.given * len(PIECE) < MUCH
            assert await whole(await ask(here.client)) == b"large"
            assert len(here.peers) == 2

    run(main())


def test_an_early_answer_that_a_failing_write_overtakes(run: Run) -> None:
    """The backend answers and is gone, with a reset, before the loop can read either: the next write meets it first."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)

            async def source() -> AsyncIterator[bytes]:
                yield PIECE
                peer, _ = await loop.sock_accept(listener)
                await asyncio.sleep(0.02)
                peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
                peer.close()  # with bytes unread, so by a reset
                for _ in range(3):
                    yield PIECE
                await asyncio.sleep(SOON)

            address = parse_address(f"http://127.0.0.1:{listener.getsockname()[1]}")
            client = Client(address, tls=None, connect_seconds=1, read_seconds=2, connections=1)
            answer = await ask(client, Request(b"PUT", b"/", parts=source()))
            assert isinstance(answer, Response), answer
            assert (answer.status, answer.body) == (413, b"large")
            await client.close()

    run(main())


def test_both_ways_at_once(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(CHUNKED)
        while size := int((await peer.reader.readuntil(b"\r\n"))[:-2], 16):
            piece = await peer.reader.readexactly(size + 2)
            await peer.say(b"%x\r\n" % size + piece)
        await peer.say(b"0\r\n\r\n")

    async def main() -> None:
        async with backend(script) as here:
            sent = [b"%d" % number for number in range(20)]
            answer = await ask(here.client, Request(b"PUT", b"/", parts=parts(*sent)))
            assert await whole(answer) == b"".join(sent)

    run(main())


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_large_answer_waits_for_its_reader(run: Run, chunked: bool) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.head()
        await peer.say(CHUNKED if chunked else OK + b"Content-Length: %d\r\n\r\n" % MUCH)
        for _ in range(MUCH // len(PIECE)):
            peer.writer.write(b"10000\r\n" + PIECE + b"\r\n" if chunked else PIECE)
            await peer.writer.drain()
            sent += len(PIECE)
        if chunked:
            await peer.say(b"0\r\n\r\n")
        await peer.gone()

    async def main() -> None:
        async with backend(script, read_seconds=0.3) as here:
            answer = await ask(here.client)
            assert isinstance(answer, Response)
            assert answer.parts is not None
            await asyncio.sleep(0.5)  # longer than read_seconds: the reader's slowness is not the backend's
            assert sent < MUCH / 2
            most = got = 0
            async for part in answer.parts:
                most = max(most, len(part))
                got += len(part)
            assert got == MUCH
            assert most <= HIGH_BYTES + 2**18
            await until(lambda: here.client.busy == 0)
            assert len(here.peers) == 1
            again, call = begin(here.client)
            await asyncio.sleep(0.05)
            assert (len(here.peers), again.done()) == (1, False)  # the connection was kept
            call.cancel()

    run(main())


def test_an_answer_that_nobody_reads_is_cut_off_in_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.http.client_connection.STALLED_SECONDS", 0.3)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(OK + b"Content-Length: %d\r\n\r\n" % MUCH)
        while True:
            peer.writer.write(PIECE)
            await peer.writer.drain()

    async def main() -> None:
        async with backend(script, read_seconds=0.2) as here:
            answer = await ask(here.client)
            await until(lambda: here.client.busy == 0)
            with pytest.raises(BackendError):
                await whole(answer)

    run(main())


@pytest.mark.parametrize("how", ["aclose", "cancel"])
def test_an_answer_that_is_closed_early_ends_the_connection(run: Run, how: str) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.say(CHUNKED + b"1\r\na\r\n")
        seen.append(await peer.gone())

    async def main() -> None:
        async with backend(script, read_seconds=60) as here:
            future, call = begin(here.client)
            answer = await future
            assert isinstance(answer, Response)
            assert answer.parts is not None
            assert await anext(answer.parts) == b"a"
            reading = asyncio.ensure_future(anext(answer.parts))
            await asyncio.sleep(0)
            if how == "aclose":
                await answer.parts.aclose()  # type: ignore[attr-defined]
            else:
                call.cancel()
            with pytest.raises(BackendError):  # never the end of a whole body
                await asyncio.wait_for(reading, SOON)
            await until(lambda: seen == [b""])
            assert here.client.busy == 0

    run(main())


def test_a_connection_that_was_paused_at_the_end_of_a_body_is_kept(run: Run) -> None:
    body = b"x" * (HIGH_BYTES + 10_000)

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            peer.say_at_once(OK + b"Content-Length: %d\r\n\r\n" % len(body))
            await asyncio.sleep(0.01)
            peer.say_at_once(body)

    async def main() -> None:
        async with backend(script) as here:
            first = await ask(here.client)
            await until(lambda: here.client.busy == 0)
            second = await ask(here.client)
            assert [await whole(first), await whole(second)] == [body, body]
            assert len(here.peers) == 1

    run(main())


def test_an_upload_takes_the_place_of_an_idle_connection(run: Run) -> None:
    async def script(peer: Peer) -> None:
        while True:
            if b"chunked" in await peer.head():
                assert await read_chunks(peer) == b"a"
            await peer.say(HELLO)

    async def main() -> None:
        async with backend(script, connections=1) as here:
            for request in (Request(b"GET", b"/"), Request(b"PUT", b"/", parts=parts(b"a")), Request(b"GET", b"/")):
                assert await whole(await ask(here.client, request)) == b"hello"
            assert len(here.peers) == 2

    run(main())


def test_a_body_that_is_whole_may_be_read_later(run: Run) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await peer.say(CHUNKED, b"3\r\nabc\r\n0\r\n\r\n")

    async def main() -> None:
        async with backend(script) as here:
            first = await ask(here.client)
            await asyncio.sleep(0.02)
            second = await ask(here.client)
            assert [await whole(first), await whole(second)] == [b"abc", b"abc"]
            assert len(here.peers) == 1

    run(main())


def test_a_cancelled_upload_leaves_its_parts_alone(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()

    class Waiting:
        cancelled = False

        def __aiter__(self) -> Waiting:
            return self

        async def __anext__(self) -> bytes:
            try:
                await asyncio.sleep(SOON)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return b""

    async def main() -> None:
        async with backend(script) as here:
            source = Waiting()
            future, call = begin(here.client, Request(b"PUT", b"/", parts=source))
            await until(lambda: here.client.busy == 1)
            await asyncio.sleep(0.01)
            call.cancel()
            await until(lambda: source.cancelled)
            assert not future.done()

    run(main())
