"""A response in parts on its way to the peer: framed, counted, and no faster than the peer reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shim.core.exchange import Parts, Response
from shim.http.serialize import LAST_CHUNK, chunk, is_chunked


class Outgoing:
    """What follows the head of `response`, whose `parts` they are.

    sent  bytes of the body written so far
    last  whether the connection ends with it
    waits_for_reader  whether it is for the peer to take what was written
    """

    __slots__ = ("_chunked", "_done", "_parts", "_room", "_write", "last", "response", "sent", "waits_for_reader")

    def __init__(self, response: Response, parts: Parts, *, http10: bool, last: bool) -> None:
        self.response = response
        self.last = last
        self.sent = 0
        self._parts = parts
        self._chunked = is_chunked(response, http10)
        self.waits_for_reader = False
        self._room: asyncio.Future[None] | None = None

    def start(
        self,
        write: Callable[[bytes], None],
        done: Callable[[Outgoing, BaseException | None], None],
    ) -> asyncio.Task[None]:
        """Send by `write`; then `done` is called with what went wrong, if anything did."""
        self._write = write
        self._done = done
        task = asyncio.ensure_future(self._run())
        task.add_done_callback(self._ended)
        return task

    def pause(self) -> None:
        """The peer does not read: take no further part."""
        self.waits_for_reader = True

    def resume(self) -> None:
        """There is room again."""
        self.waits_for_reader = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._done(self, asyncio.CancelledError() if task.cancelled() else task.exception())

    async def _run(self) -> None:
        await self._room_made()
        async for part in self._parts:
            if part:  # an empty chunk would be the last
                self._send(part)
                await self._room_made()
        if self.response.length not in (None, self.sent):
            raise ValueError("a response's parts are less than its length")
        if self._chunked:
            self._write(LAST_CHUNK)

    def _send(self, part: bytes) -> None:
        length = self.response.length
        if length is not None and self.sent + len(part) > length:
            raise ValueError("a response's parts are more than its length")
        self._write(chunk(part) if self._chunked else part)
        self.sent += len(part)

    async def _room_made(self) -> None:
        while self.waits_for_reader:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
