"""A guest whose requests never end: `python -m bench.slow HOST PORT SECONDS`.

It wants WANTED connections at a time. On a third of them the head comes byte by byte, on the others the body, a short
one or a long one. What is closed, answered, or not open soon is tried again at once. Prints the most connections that
it held at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

WANTED = 256
INTERVAL = 0.1
"""Seconds from one byte to the next, and within which a connection is to be open."""

HOST = b"HTTP/1.1\r\nHost: 169.254.169.254\r\n"
OPENINGS = (
    b"GET / " + HOST + b"X-Slow: ",
    b"POST / " + HOST + b"Content-Length: 10000\r\n\r\n",
    b"POST / " + HOST + b"Content-Length: 60000\r\n\r\n",
)


class Slow:
    """The guest. `most` is the most connections held at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.most = 0
        self._address = (host, port)
        self._held = 0

    async def run(self, seconds: float) -> None:
        """Floods for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for number in range(WANTED):
                    group.create_task(self._insist(OPENINGS[number % len(OPENINGS)]))

    async def _insist(self, opening: bytes) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                await self._ask(opening)

    async def _ask(self, opening: bytes) -> None:
        async with asyncio.timeout(INTERVAL):
            reader, writer = await asyncio.open_connection(*self._address)
        self._held += 1
        try:
            writer.write(opening)
            await self._dribble(reader, writer)
        finally:
            self._held -= 1
            writer.transport.abort()

    async def _dribble(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A byte at a time, until there is an answer or an end; only what was held for that long counts."""
        answer = asyncio.ensure_future(reader.read(1))
        while not (await asyncio.wait([answer], timeout=INTERVAL))[0]:
            self.most = max(self.most, self._held)
            writer.write(b"a")
        await answer


async def main(host: str, port: int, seconds: float) -> None:
    """Floods for so long."""
    slow = Slow(host, port)
    await slow.run(seconds)
    print(slow.most)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
