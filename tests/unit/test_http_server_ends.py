"""How connections end, by the peer's will, the operator's or the server's."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable
from pathlib import Path

import pytest

from shim.core.exchange import Request, Response
from shim.http.channel import READ_AHEAD
from shim.http.limits import Limits
from shim.http.server import Server
from tests.unit.http_site import (
    BODY_TO_COME,
    GET,
    ON_BOTH_LOOPS,
    SOON,
    Run,
    admit_all,
    by_turns,
    hello,
    reset_seen,
    response,
    site,
    until,
)

pytestmark = ON_BOTH_LOOPS


class Endless:
    """A handler that never answers, and remembers who was cancelled."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0

    async def __call__(self, caller: str, request: Request) -> Response:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Response(200)


@pytest.mark.parametrize("rudely", [False, True])
def test_an_answer_is_given_up_when_the_peer_goes(run: Run, rudely: bool) -> None:
    endless = Endless()

    async def main() -> None:
        async with site(endless) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: endless.begun == 1)
            if rudely:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            await until(lambda: endless.cancelled == 1 and here.server.connections == 0)
            await asyncio.sleep(0.01)
            assert here.server.stats.failed == 0

    run(main())


def test_abort_ends_one_callers_connections_and_no_others(run: Run) -> None:
    endless = Endless()

    def handler(caller: str, request: Request) -> Response | Awaitable[Response]:
        return endless(caller, request) if request.path == b"/wait" else Response(200, (), caller.encode())

    async def main() -> None:
        async with site(handler, admit=by_turns("a", "b", "a")) as here:
            idle, other, waiting = [await here.connect() for _ in range(3)]
            waiting[1].write(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: endless.begun == 1)
            assert here.server.abort(lambda caller: caller == "a") == 2
            assert await reset_seen(idle[0]) and await reset_seen(waiting[0])
            await until(lambda: endless.cancelled == 1 and here.server.connections == 1)
            other[1].write(GET)
            assert (await response(other[0]))[2] == b"b"

    run(main())


def test_drain_lets_what_is_begun_end(run: Run) -> None:
    async def later(caller: str, request: Request) -> Response:
        await asyncio.sleep(0.2)
        return Response(200, (), b"done")

    async def main() -> None:
        async with site(later) as here:
            idle, busy, half = [await here.connect() for _ in range(3)]
            busy[1].write(GET + GET)
            half[1].write(GET[:10])
            await until(lambda: here.server.stats.requests == 1 and here.server.connections == 3)
            drained = asyncio.ensure_future(here.server.drain(5))
            assert await asyncio.wait_for(idle[0].read(), SOON) == b""
            half[1].write(GET[10:])
            for reader, writer in (busy, half):
                answer = await asyncio.wait_for(reader.read(), SOON)
                assert answer.endswith(b"connection: close\r\n\r\ndone") and answer.count(b"HTTP/1.1") == 1
                writer.close()
            await asyncio.wait_for(drained, 3)
            with pytest.raises(ConnectionRefusedError):
                await here.connect()

    run(main())


def test_who_was_idle_learns_with_its_next_response_that_it_was_the_last(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            kept, silent = [await here.connect() for _ in range(2)]
            for reader, writer in (kept, silent):
                writer.write(GET)
                assert "connection" not in (await response(reader))[1]
            retired = asyncio.ensure_future(here.server.retire(0.5))
            await asyncio.sleep(0.1)
            new = await here.connect()
            for reader, writer in (kept, new):
                writer.write(GET)
                assert (await response(reader))[1]["connection"] == "close"
                assert await asyncio.wait_for(reader.read(), SOON) == b""
            assert not retired.done(), "one is left to be told"
            await asyncio.wait_for(retired, SOON)
            assert here.server.connections == 1
            await here.server.drain(1)
            assert await asyncio.wait_for(silent[0].read(), SOON) == b""

    run(main())


def test_retire_waits_for_nobody_but_who_was_idle(run: Run) -> None:
    endless = Endless()

    async def main() -> None:
        async with site(endless) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: endless.begun == 1)
            await asyncio.wait_for(here.server.retire(60), 2)

    run(main())


def test_a_request_that_came_before_the_close_is_answered(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await response(reader)
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
                sock.send(GET)  # past the loop, which does not know of it when the drain begins
            await here.server.drain(5)
            assert (await response(reader))[1]["connection"] == "close"

    run(main())


def test_who_was_accepted_and_not_met_yet_is_answered(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            with socket.create_connection(("127.0.0.1", here.port)) as sock:
                sock.sendall(GET)
                for _ in range(3):  # until the loop has accepted it
                    await asyncio.sleep(0)
                await here.server.drain(5)
                sock.settimeout(SOON)
                if here.server.stats.accepted:
                    assert sock.recv(9) == b"HTTP/1.1 "

    run(main())


def test_drain_waits_for_a_slow_reader_and_no_longer(run: Run) -> None:
    async def main() -> None:
        large = Response(200, (), b"x" * 30_000_000)
        async with site(lambda caller, request: large) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await until(lambda: here.server.stats.requests == 1)
            drained = asyncio.ensure_future(here.server.drain(15))
            await asyncio.sleep(0.2)
            assert not drained.done()
            assert len((await response(reader))[2]) == 30_000_000
            await asyncio.wait_for(drained, SOON)

    run(main())


def test_a_last_response_arrives_though_more_was_sent_than_was_read(run: Run) -> None:
    async def last(caller: str, request: Request) -> Response:
        await asyncio.sleep(0.1)
        return Response(200, (), b"bye", close=True)

    async def main() -> None:
        async with site(last) as here:
            reader, writer = await here.connect()
            writer.write(GET + b"x" * 4_000_000)
            assert (await response(reader))[2] == b"bye"
            await writer.drain()
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            writer.close()
            await until(lambda: here.server.connections == 0)
            assert here.server.stats.cut_off == 0

    run(main())


def test_a_last_response_to_a_peer_that_left_unnoticed(run: Run) -> None:
    async def main() -> None:
        begun, left = asyncio.Event(), asyncio.Event()

        async def last(caller: str, request: Request) -> Response:
            begun.set()
            await left.wait()
            return Response(200, (), b"bye", close=True)

        async with site(last) as here:
            sock = socket.create_connection(("127.0.0.1", here.port))
            sock.sendall(GET)
            await begun.wait()
            sock.sendall(b"x" * READ_AHEAD * 2)  # after which the server reads no more, nor sees the end
            await asyncio.sleep(0.05)
            sock.close()
            left.set()
            await until(lambda: here.server.connections == 0)

    run(main())


def test_nothing_is_kept_of_callers_that_are_gone(run: Run) -> None:
    names = [str(number) for number in range(20)]

    async def main() -> None:
        async with site(admit=by_turns(*names)) as here:
            for _ in names:
                await here.exchange(b"GET / HTTP/1.0\r\n\r\n")
            await until(lambda: here.server.connections == 0)
            assert len(here.server._held) == 0  # the table that the limit per instance counts in

    run(main())


def test_drain_resets_what_outlasts_its_grace(run: Run) -> None:
    endless = Endless()

    async def main() -> None:
        async with site(endless) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await until(lambda: endless.begun == 1)
            await asyncio.wait_for(here.server.drain(0.1), 2)
            assert (endless.cancelled, here.server.connections) == (1, 0)
            assert await reset_seen(reader)

    run(main())


def test_a_unix_socket(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        server: Server[str] = Server(hello, Limits(), admit_all, limit_key=lambda caller: caller)
        await server.serve([sock])
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(GET)
        assert (await response(reader))[2] == b"hello /"
        assert server.abort(lambda caller: True) == 1
        await server.drain(1)
        writer.close()

    run(main())


def test_accepted_connections_are_kept_alive_by_the_kernel(run: Run) -> None:
    async def main() -> None:
        async with site() as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await response(reader)
            client = writer.get_extra_info("sockname")[1]
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
            ends = (f":{here.port:04X}", f":{client:04X}")
            (timer,) = [row[5] for row in rows if (row[1][-5:], row[2][-5:]) == ends]
            kind, hundredths = timer.split(":")
            assert kind == "02"  # keepalive
            assert 2000 < int(hundredths, 16) <= 3000

    run(main())


def test_many_rude_peers_leave_nothing(run: Run) -> None:
    pieces = [b"", GET[:9], GET, GET * 50, BODY_TO_COME + b"ab", b"\x00" * 9000]

    async def later(caller: str, request: Request) -> Response:
        await asyncio.sleep(0.01)
        return Response(200, (), b"x" * 100_000)

    async def main() -> None:
        async with site(later) as here:
            for number in range(60):
                _, writer = await here.connect()
                writer.write(pieces[number % len(pieces)])
                await asyncio.sleep(0.001 * (number % 4))
                writer.transport.abort()
            await until(lambda: here.server.connections == 0)

    run(main())


def test_who_asks_and_ends_in_one_turn_of_the_loop_is_answered(run: Run) -> None:
    async def main() -> None:
        async with site(lambda caller, request: Response(200, (), b"heard")) as here:
            reader, _ = await here.connect()
            await until(lambda: here.server.connections == 1)
            (channel,) = here.server._channels
            channel.data_received(GET)
            channel.eof_received()
            channel._transport.close()  # as a transport does by itself after that
            assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"heard")

    run(main())
