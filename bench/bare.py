"""The least server that httptools and uvloop make: `python -m bench.bare HOST PORT BODY_BYTES`.

One answer, made beforehand, to whatever whole request comes. It checks nothing, so it is what the same
parts can do at best.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n%s\r\n"


class Bare(asyncio.Protocol):
    """One connection."""

    body = b""
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        kept = self.parser.should_keep_alive()
        closing = b"" if kept else b"connection: close\r\n"
        self.transport.write(HEAD % (len(self.body), closing) + self.body)
        if not kept:
            self.transport.close()


async def serve(host: str, port: int) -> None:
    """Serves until cancelled."""
    server = await asyncio.get_running_loop().create_server(Bare, host, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    Bare.body = b"x" * int(sys.argv[3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2])))
