"""A kept connection that is closed as a request is written: only what never reached the backend is told as unsent.

The backend here is a plain socket, so that what it does comes before the client's loop can see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Request
from shim.http.client import Client
from tests.unit.http_backend import GET, HELLO, begin, failure, whole
from tests.unit.http_site import ON_BOTH_LOOPS, SOON, Run

pytestmark = ON_BOTH_LOOPS

# As many as make Linux delay its acknowledgements (it sends the first ones at once).
WARM = 30


class Kept:
    """A client, and the other end of the one connection that it keeps."""

    def __init__(self, client: Client, listener: socket.socket) -> None:
        self.client = client
        self._listener = listener
        self.peer: socket.socket | None = None

    async def accepted(self) -> socket.socket:
        peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        peer.setblocking(False)
        return peer

    async def answered(self, times: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(times):
            asked, _ = begin(self.client)
            if self.peer is None:
                self.peer = await self.accepted()
            assert (await asyncio.wait_for(loop.sock_recv(self.peer, 65_536), SOON)).startswith(b"GET")
            self.peer.send(HELLO)
            assert await whole(await asked) == b"hello"

    def close(self, reset: bool = False) -> None:
        assert self.peer is not None
        if reset:
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


@contextlib.asynccontextmanager
async def kept(unix: Path | None = None, warm: int = WARM) -> AsyncIterator[Kept]:
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as listener:
        listener.bind(str(unix) if unix else ("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        text = f"unix:{unix}" if unix else f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = Client(parse_address(text), tls=None, connect_seconds=1, read_seconds=2, connections=1)
        here = Kept(client, listener)
        try:
            await here.answered(warm)
            yield here
        finally:
            await client.close()
            if here.peer is not None:
                here.peer.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("request_", [GET, Request(b"POST", b"/", body=b"x" * 16_000)], ids=["GET", "POST"])
def test_closed_just_before_the_request(run: Run, reset: bool, request_: Request) -> None:
    async def main() -> None:
        async with kept() as here:
            here.close(reset)
            asked, _ = begin(here.client, request_)
            assert failure(await asked) == (False, False)

    run(main())


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("warm", [1, WARM])
def test_closed_when_it_has_read_the_request(run: Run, reset: bool, warm: int) -> None:
    """The reset is the trap: the kernel of a backend that delays acknowledgements has not told ours yet."""

    async def main() -> None:
        async with kept(warm=warm) as here:
            asked, _ = begin(here.client)
            assert here.peer is not None
            assert await asyncio.get_running_loop().sock_recv(here.peer, 65_536)
            here.close(reset)
            assert failure(await asked) == (True, False)

    run(main())


def test_closed_with_the_request_unread(run: Run) -> None:
    """It never was read, but nothing proves that."""

    async def main() -> None:
        async with kept() as here:
            asked, _ = begin(here.client)
            await asyncio.sleep(0.01)
            here.close()
            assert failure(await asked) == (True, False)

    run(main())


def test_closed_with_a_part_of_the_request_read(run: Run) -> None:
    async def main() -> None:
        async with kept() as here:
            asked, _ = begin(here.client, Request(b"POST", b"/", body=b"x" * 5_000_000))
            assert here.peer is not None
            assert await asyncio.get_running_loop().sock_recv(here.peer, 1000)
            here.close()
            assert failure(await asked) == (True, False)

    run(main())


def test_closed_after_an_upload_and_just_before_the_request(run: Run) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"a"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with kept(warm=0) as here:
            uploaded, _ = begin(here.client, Request(b"PUT", b"/", parts=source()))
            here.peer = await here.accepted()
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += await asyncio.wait_for(loop.sock_recv(here.peer, 65_536), SOON)
            here.peer.send(HELLO)
            assert await whole(await uploaded) == b"hello"
            here.close(reset=True)
            asked, _ = begin(here.client)
            assert failure(await asked) == (False, False)

    run(main())


def test_a_unix_socket_that_was_closed_just_before(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with kept(tmp_path / "s") as here:
            here.close()
            asked, _ = begin(here.client)
            assert failure(await asked) == (False, False)

    run(main())


def test_a_unix_socket_that_was_closed_with_the_request_in_it(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        for read in (False, True):
            path = tmp_path / str(read)
            async with kept(path) as here:
                asked, _ = begin(here.client)
                await asyncio.sleep(0.01)
                assert here.peer is not None
                if read:
                    assert here.peer.recv(65_536)
                here.close()
                assert failure(await asked) == (True, False)

    run(main())


def test_a_large_request_in_a_unix_socket_proves_nothing(run: Run, tmp_path: Path) -> None:
    """The first piece of it may have been taken before a later write fails."""

    async def main() -> None:
        async with kept(tmp_path / "s") as here:
            asked, _ = begin(here.client, Request(b"POST", b"/", body=b"x" * 800_000))
            await asyncio.sleep(0.01)
            here.close()
            assert failure(await asked) == (True, False)

    run(main())


def test_after_an_idle_close_the_next_request_takes_a_new_connection(run: Run) -> None:
    async def main() -> None:
        async with kept() as here:
            here.close()
            here.peer = None
            await asyncio.sleep(0.02)
            await here.answered(1)

    run(main())
