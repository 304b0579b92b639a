"""A request's body on its way from a connection to the handler that reads it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from shim.http.parse import Connection, Event, Part

# Bytes that the handler has not read yet, after which no more are taken off the wire. The last read may
# add what the loop reads at once, 256 KiB.
BODY_AHEAD = 65_536


class Incoming(AsyncIterator[bytes]):
    """The parts of one body, for one reader. Raises ConnectionAbortedError when the body was cut off.

    It stops the transport while the handler does not read, and calls `resumed` when it listens again.
    """

    __slots__ = ("_arriving", "_cut", "_parser", "_parts", "_resumed", "_transport", "_unread", "_waiter", "_wanted")

    def __init__(self, parser: Connection, transport: asyncio.ReadTransport, resumed: Callable[[], None]) -> None:
        self._parser = parser
        self._transport = transport
        self._resumed = resumed
        self._parts: deque[bytes] = deque()
        self._unread = 0
        self._arriving = self._wanted = True
        self._cut = False
        self._waiter: asyncio.Future[None] | None = None

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._cut:
                raise ConnectionAbortedError("the request's body was cut off")
            if not self._arriving:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        part = self._parts.popleft()
        self._unread -= len(part)
        self.listen()
        return part

    async def aclose(self) -> None:
        """Read no more: what is still to come is thrown away, and who still reads hears that it was cut off."""
        self._wanted = False
        self._cut = self._cut or self._arriving or bool(self._parts)
        self._drop()
        self._wake()
        self.listen()

    # What the connection calls.

    def pull(self) -> Event | None:
        """Take what the parser has of the body. What ended the body, if it did: an End, or a Malformed."""
        while isinstance(event := self._parser.next_event(), Part):
            if self._wanted:
                self._parts.append(event.data)
                self._unread += len(event.data)
        if self._parts and self._waiter is not None:
            self._wake()
        if event is None and self._unread > BODY_AHEAD:
            self._transport.pause_reading()
        return event

    def listen(self) -> None:
        """Listen to the peer, if there is more to come and room for it."""
        if self._arriving and self._unread <= BODY_AHEAD and not self._transport.is_reading():
            self._transport.resume_reading()
            self._resumed()

    def end(self) -> None:
        """The body is whole."""
        self._arriving = False
        self._wake()

    def cut_off(self) -> None:
        """The body will never be whole; what was not read of it is dropped."""
        self._arriving = False
        self._cut = True
        self._drop()
        self._wake()

    def _drop(self) -> None:
        self._parts.clear()
        self._unread = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
