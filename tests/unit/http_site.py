"""Common ground of the server's tests: a server on a real socket of the loopback, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import uvloop

from shim.core.exchange import Request, Response
from shim.http.limits import Limits
from shim.http.server import Observe, Server

Handler = Callable[[str, Request], Response | Awaitable[Response]]
Run = Callable[[Coroutine[Any, Any, None]], None]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BODY_TO_COME = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n"
QUICK = Limits(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, drain_seconds=0.3)
# Long enough for a busy machine, short enough to wait for.
SOON = 5.0


def _run_on(runner: Callable[[Coroutine[Any, Any, None]], None], main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end on a fresh loop; no exception may go astray there."""
    strays: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: strays.append(context))
        await asyncio.wait_for(main, 20)

    runner(watched())
    assert not strays, strays


# For `pytestmark`: each test gets a `run` for the one loop, then for the other.
ON_BOTH_LOOPS = pytest.mark.parametrize(
    "run", [partial(_run_on, asyncio.run), partial(_run_on, uvloop.run)], ids=["asyncio", "uvloop"]
)


def hello(caller: str, request: Request) -> Response:
    return Response(200, (), b"hello " + request.path)


def admit_all(peer: Any, local: Any) -> str:
    return "guest"


class Site:
    """A server and its port."""

    def __init__(self, server: Server[str], port: int) -> None:
        self.server = server
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def leave(self) -> None:
        """Close what was opened here."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def exchange(self, wire: bytes) -> bytes:
        """Send, and read until the server closes."""
        reader, writer = await self.connect()
        writer.write(wire)
        answer = await asyncio.wait_for(reader.read(), SOON)
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def site(
    handler: Handler = hello,
    limits: Limits | None = None,
    admit: Callable[[Any, Any], str | None] = admit_all,
    observe: Observe[str] | None = None,
) -> AsyncIterator[Site]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server: Server[str] = Server(
        handler, limits or Limits(), admit, limit_key=lambda caller: caller, observe=observe
    )
    await server.serve([sock])
    here = Site(server, port)
    try:
        yield here
    finally:
        await here.leave()
        await server.drain(0.2)


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One response with a Content-Length, read off a kept connection."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:-2])
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), SOON)
    return int(head[0].split(" ")[1]), headers, body


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.01)


async def reset_seen(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ended by a reset rather than by an orderly close."""
    try:
        await asyncio.wait_for(reader.read(), SOON)
    except ConnectionResetError:
        return True
    return False


def narrow(port: int, room: int = 4096) -> socket.socket:
    """A connection whose owner can take little and does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def by_turns(*names: str) -> Callable[[Any, Any], str]:
    order = iter(names)
    return lambda peer, local: next(order)
