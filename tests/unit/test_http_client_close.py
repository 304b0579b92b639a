"""A client that is closed while it connects."""

from __future__ import annotations

import asyncio

import uvloop

from shim.core.address import parse_address
from shim.core.exchange import Request
from shim.http.client import Client

TURNS = 10


def test_it_is_closed_in_each_turn_of_an_opening() -> None:
    """uvloop says nothing of the loss of a connection whose making was cancelled once it was made."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        there = parse_address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for turns in range(TURNS):
            for _ in range(15):
                client = Client(there, tls=None, connect_seconds=5, read_seconds=5, connections=1)
                client.ask(Request(b"GET", b"/"), lambda _: None)
                for _ in range(turns):
                    await asyncio.sleep(0)
                async with asyncio.timeout(5):
                    await client.close()
        server.close()

    uvloop.run(main())
