"""The body of a request, on its way from its parts to a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from shim.core.exchange import Parts
from shim.errors import BackendError
from shim.http.serialize import LAST_CHUNK, chunk


class Upload:
    """Sends `parts`, of `length` bytes in all (None: in chunks), no faster than the connection takes them.

    `done` is called once, with None when all was written, else with why it was not: the connection must be ended
    then, so that the backend does not take a part for the whole. `deadline` is when the connection has to have
    taken what was written; while a part is waited for there is none, as that is the guest's time. `written` is in
    bytes.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        parts: Parts,
        length: int | None,
        patience: float,
        done: Callable[[BackendError | None], None],
    ) -> None:
        self._transport = transport
        self._parts = parts
        self._length = length
        self._patience = patience
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._room: asyncio.Future[None] | None = None
        self.deadline = inf
        self.written = 0
        self._task = self._loop.create_task(self._run())

    # What the connection calls.

    def pause(self) -> None:
        """The connection's buffer is full."""
        self._room = self._loop.create_future()

    def resume(self) -> None:
        """There is room in it."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def cancel(self) -> None:
        """Send no more; `done` is not called. The parts are left to their owner."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._send()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the parts raise, the body was cut off
            self._done(BackendError(f"the request's body was cut off: {type(error).__name__}", sent=True))
        else:
            self._done(None)

    async def _send(self) -> None:
        left = self._length
        async for part in self._parts:
            if not part:
                continue
            if left is not None:
                left -= len(part)
                if left < 0:
                    raise ValueError("longer than its length")
            self._write(chunk(part) if left is None else part)
            await self._wait_for_room()
        if left:
            raise ValueError("shorter than its length")
        if left is None:
            self._write(LAST_CHUNK)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self.written += len(data)

    async def _wait_for_room(self) -> None:
        if self._room is not None:
            self.deadline = self._loop.time() + self._patience
            await self._room
            self.deadline = inf
