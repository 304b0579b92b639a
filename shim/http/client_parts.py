"""The body of an answer, on its way from a connection to who reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from shim.errors import BackendError

# Unread bytes at which the connection stops reading, and at which it goes on.
HIGH_BYTES = 65_536
LOW_BYTES = 16_384


class IncomingParts(AsyncIterator[bytes]):
    """Parts as they arrive; what has gathered meanwhile comes as one. For one reader.

    `taken` is called when the reader has taken what there was, `abandon` when it closes before the end. Raises
    BackendError, after what did arrive, where the body was cut off.
    """

    def __init__(self, taken: Callable[[], None], abandon: Callable[[], None]) -> None:
        self._taken = taken
        self._abandon = abandon
        self._parts: list[bytes] = []
        self._over = False
        self._error: BackendError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._when_over: Callable[[], None] | None = None
        self.unread = 0

    # What the connection calls.

    def put(self, part: bytes) -> None:
        """A part has arrived."""
        self._parts.append(part)
        self.unread += len(part)
        self._wake()

    def finish(self, error: BackendError | None = None) -> None:
        """The body is whole, or was cut off."""
        if not self._over:
            self._over = True
            self._error = error
            self._wake()
            if self._when_over is not None:
                self._when_over()

    # What the reader calls.

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._take()

    async def aclose(self) -> None:
        """No more is wanted: what is still to come is not read, and its connection is not used again."""
        self._parts.clear()
        if not self._over:
            self.finish(BackendError("the answer was closed by its reader", sent=True))
            self._abandon()

    def when_over(self, call: Callable[[], None]) -> None:
        """Have `call` called once when nothing more will arrive; now, if that is so."""
        if self._over:
            call()
        else:
            self._when_over = call

    def _take(self) -> bytes:
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        if not self._over:
            self._taken()
        return part

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
