"""Peers that wait for long, for an answer or for the next part of one: what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shim.core.exchange import Pending, Request, Response
from shim.http.limits import Limits
from shim.http.outbox import BATCH
from shim.http.server import Credentials, Server
from tests.unit.http_site import GET, ON_BOTH_LOOPS, QUICK, SOON, Run, response, site, until

pytestmark = ON_BOTH_LOOPS

MANY = Limits(connections_per_instance=2000)
WATCH = (
    b"GET /metashim/v1/kv/host/role?wait=300&etag=%08d HTTP/1.1\r\nHost: 169.254.169.254\r\n"
    b"User-Agent: curl/7.88.1\r\nAccept: */*\r\nX-aws-ec2-metadata-token: AgAA%08d\r\n\r\n"
)


class Hall:
    """A handler whose callers all wait. `over` counts those of whom nothing more will come."""

    def __init__(self) -> None:
        self.waiting: list[Pending] = []
        self.over = 0

    def __call__(self, caller: str, request: Request) -> Any:
        pending = Pending()
        pending.when_over(self._left)
        self.waiting.append(pending)
        return pending

    def _left(self) -> None:
        self.over += 1


def rude(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def leave(writer: asyncio.StreamWriter, way: str) -> None:
    """Go, or be thrown out by the kernel's word."""
    if way == "half":
        writer.write_eof()
        return
    if way == "rudely":
        rude(writer.get_extra_info("socket"))
    writer.close()


def test_who_waits_has_the_time_that_it_takes(run: Run) -> None:
    async def main() -> None:
        hall = Hall()
        async with site(hall, QUICK) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.sleep(1.0)  # three times as long as any limit
            assert here.server.connections == 1
            hall.waiting[0].settle(Response(200, (), b"at last"))
            assert (await response(reader))[2] == b"at last"
            assert await asyncio.wait_for(reader.read(), SOON) == b""  # idle from now on, which has its limit
            assert (here.server.stats.timed_out, here.server.stats.cut_off) == (0, 0)

    run(main())


@pytest.mark.parametrize("way", ["politely", "rudely", "half"])
def test_it_is_known_at_once_that_who_waits_has_left(run: Run, way: str) -> None:
    async def main() -> None:
        hall = Hall()
        async with site(hall) as here:
            _, writer = await here.connect()
            writer.write(GET + b"G")  # a byte ahead, as of a client that pipelines
            await until(lambda: len(hall.waiting) == 1)
            await leave(writer, way)
            async with asyncio.timeout(0.5):
                while not hall.over or here.server.connections:
                    await asyncio.sleep(0)
            hall.waiting[0].settle(Response(200))  # too late, and harmless
            assert hall.over == 1
            assert here.server.stats.failed == 0

    run(main())


def test_who_waits_is_given_up_with_its_access(run: Run) -> None:
    async def main() -> None:
        hall = Hall()
        async with site(hall) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: len(hall.waiting) == 1)
            here.server.abort(lambda caller: True)
            assert hall.over == 1

    run(main())


async def gather_watchers(port: int, hall: Hall, count: int) -> list[socket.socket]:
    """So many connections that wait, by sockets that no loop looks at."""
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for number, sock in enumerate(socks):
        sock.setblocking(False)
        sock.send(WATCH % (number, number))
    await until(lambda: len(hall.waiting) == count)
    return socks


def test_what_one_who_waits_holds(run: Run) -> None:
    """Of all that is allocated: transport, channel, parser, request, what waits, and the memory of request heads."""

    async def main() -> None:
        hall = Hall()
        async with site(hall, MANY) as here:
            first = await gather_watchers(here.port, hall, 20)
            gc.collect()
            tracemalloc.start()
            try:
                hall.waiting.clear()
                socks = await gather_watchers(here.port, hall, 400)
                gc.collect()
                held = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert held / 400 < 5000
            for sock in first + socks:
                sock.close()

    run(main())


def test_thousands_who_wait_for_one_thing_get_each_their_own(run: Run) -> None:
    async def main() -> None:
        hall = Hall()
        async with site(hall, MANY) as here:
            socks = await gather_watchers(here.port, hall, BATCH * 3 + 7)
            rude(socks[0])
            socks[0].close()
            socks[1].close()
            for number, pending in enumerate(hall.waiting):
                pending.settle(Response(200, (), b"%08d" % number))
            # The loop has had no turn, and those of the first batch but for its last have their answers.
            assert all(sock.recv(999).endswith(b"\r\n\r\n%08d" % at) for at, sock in enumerate(socks[2:BATCH], 2))
            loop = asyncio.get_running_loop()
            for number, sock in enumerate(socks[BATCH:], BATCH):
                got = await asyncio.wait_for(loop.sock_recv(sock, 999), SOON)
                assert got.endswith(b"\r\n\r\n%08d" % number)
            await until(lambda: here.server.connections == len(socks) - 2)
            socks[-1].send(GET)  # and each goes on
            await until(lambda: len(hall.waiting) == len(socks) + 1)
            assert hall.over == len(socks)
            for sock in socks:
                sock.close()

    run(main())


class Events:
    """An event stream that says one thing, and waits for the next."""

    def __init__(self) -> None:
        self.next: asyncio.Future[bytes] | None = None
        self.ended = 0

    def __call__(self, caller: str, request: Request) -> Response:
        return Response(200, ((b"content-type", b"text/event-stream"),), parts=self._told())

    async def _told(self) -> AsyncIterator[bytes]:
        yield b"data: first\n\n"
        try:
            while True:
                self.next = asyncio.get_running_loop().create_future()
                yield await self.next
        finally:
            self.ended += 1


def test_an_event_is_a_chunk_of_its_own_at_once_however_long_it_takes(run: Run) -> None:
    async def main() -> None:
        events = Events()
        async with site(events, QUICK) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
            assert await asyncio.wait_for(reader.readexactly(18), SOON) == b"d\r\ndata: first\n\n\r\n"
            for number in range(2):
                await asyncio.sleep(0.7)  # twice as long as any limit
                assert events.next is not None
                events.next.set_result(b"data: %d\n\n" % number)
                assert await asyncio.wait_for(reader.readexactly(14), SOON) == b"9\r\ndata: %d\n\n\r\n" % number
            assert (here.server.stats.timed_out, here.server.stats.cut_off) == (0, 0)
            assert events.ended == 0

    run(main())


@pytest.mark.parametrize("way", ["politely", "rudely", "half", "aborted"])
def test_a_stream_ends_at_once_with_its_peer(run: Run, way: str) -> None:
    async def main() -> None:
        events = Events()
        async with site(events) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await asyncio.wait_for(reader.readuntil(b"first"), SOON)
            await until(lambda: events.next is not None)
            if way == "aborted":
                here.server.abort(lambda caller: True)
            else:
                await leave(writer, way)
            async with asyncio.timeout(0.5):
                while not events.ended or here.server.connections:
                    await asyncio.sleep(0)
            assert (here.server.stats.cut_short, here.server.stats.failed) == (0, 0)

    run(main())


@pytest.mark.parametrize("name", ["path", "abstract", "bound"])
def test_who_speaks_on_a_unix_socket(run: Run, name: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    def admit(peer: Any, own: Any) -> str:
        seen.append(peer)
        return "operator"

    async def main() -> None:
        own = f"\0metashim-test-{id(seen)}" if name == "abstract" else str(tmp_path / "s")
        sock, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        sock.bind(own)
        server: Server[str] = Server(lambda caller, request: Response(200), Limits(), admit, limit_key=str)
        await server.serve([sock])
        if name == "bound":
            client.bind(str(tmp_path / "c"))
        client.connect(own)
        await until(lambda: len(seen) == 1)
        client.close()
        await server.drain(1)
        for path in tmp_path.iterdir():
            path.unlink()

    run(main())
    (pid, uid, gid) = seen[0]
    assert isinstance(seen[0], Credentials)
    expected = {line.split(":")[0]: line.split() for line in Path("/proc/self/status").read_text().splitlines()}
    assert [str(pid), str(uid), str(gid)] == [expected[key][at] for key, at in (("Pid", 1), ("Uid", 2), ("Gid", 2))]
