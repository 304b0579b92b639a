"""Common ground of the client's tests: a backend that does as its script says, on a real socket, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.http.client import Client
from shim.http.client_connection import Call
from tests.unit.http_site import SOON

Script = Callable[["Peer"], Awaitable[None]]
GET = Request(b"GET", b"/a", b"", ((b"x-instance-id", b"i"),))
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The backend's end of one connection; `number` counts them from 1."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """A request's head."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def say(self, *pieces: bytes) -> None:
        """Answer, each piece in a segment of its own."""
        for piece in pieces:
            if self.writer.transport.is_closing():
                raise ConnectionResetError  # uvloop's own is a RuntimeError
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.005)

    async def gone(self) -> bytes:
        """Wait for the client to end the connection; what it still sent."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    def say_at_once(self, piece: bytes) -> None:
        """Answer past the loop's buffers: the kernel has it when this returns."""
        os.write(self.writer.get_extra_info("socket").fileno(), piece)

    def reset(self) -> None:
        """End with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Backend:
    """A listening backend; `client` speaks to it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []


async def ask(client: Client, request: Request = GET) -> Response | BackendError:
    """One answer."""
    return await asyncio.wait_for(begin(client, request)[0], SOON)


def begin(client: Client, request: Request = GET) -> tuple[asyncio.Future[Response | BackendError], Call]:
    """A request on its way, and its call."""
    future: asyncio.Future[Response | BackendError] = asyncio.get_running_loop().create_future()
    return future, client.ask(request, future.set_result)


async def whole(answer: Response | BackendError) -> bytes:
    """The body of an answer, however it comes."""
    assert isinstance(answer, Response), answer
    if answer.parts is None:
        return answer.body
    async with asyncio.timeout(SOON):
        return answer.body + b"".join([part async for part in answer.parts])


def failure(answer: Response | BackendError) -> tuple[bool, bool]:
    """`sent` and `late` of a failure."""
    assert isinstance(answer, BackendError), answer
    return answer.sent, answer.late


@contextlib.asynccontextmanager
async def backend(
    script: Script,
    *,
    unix: Path | None = None,
    server_tls: ssl.SSLContext | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    connect_seconds: float = 2.0,
    read_seconds: float = 2.0,
    connections: int = 4,
    idle_seconds: float = 4.0,
) -> AsyncIterator[Backend]:
    """A backend whose every connection follows `script`. A script that fails (the client's going aside) fails here."""
    here: Backend

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(here.peers) + 1, reader, writer)
        here.peers.append(peer)
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 - it is raised below
            here.failures.append(error)
        finally:
            writer.close()

    if unix is not None:
        server = await asyncio.start_unix_server(serve, unix)
        address = parse_address(f"unix:{unix}")
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
        scheme = "https" if tls else "http"
        address = parse_address(f"{scheme}://{host}:{server.sockets[0].getsockname()[1]}")
    client = Client(
        address,
        tls=tls,
        connect_seconds=connect_seconds,
        read_seconds=read_seconds,
        connections=connections,
        idle_seconds=idle_seconds,
        name="nova",
    )
    here = Backend(client)
    try:
        yield here
    finally:
        await asyncio.wait_for(client.close(), SOON)
        server.close()
        for peer in here.peers:
            peer.writer.transport.abort()
        await asyncio.sleep(0.01)
    assert not here.failures, here.failures


async def always(peer: Peer, answer: bytes = HELLO) -> None:
    """The script of a backend that answers every request."""
    while True:
        await peer.head()
        peer.writer.write(answer)
