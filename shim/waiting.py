"""Waiting, in a coroutine, for what comes by calls: an answer that is pending, a body in parts, news."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TypeVar

from shim.core.exchange import Parts, Pending, Response

T = TypeVar("T")


class Bell:
    """Rings for all who wait for the next of something."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def ring(self) -> None:
        """There is one."""
        self._news.set()
        self._news = asyncio.Event()

    async def heard(self, seconds: float) -> None:
        """Returns at the next ring, or after so many seconds."""
        with contextlib.suppress(TimeoutError):  # wait_for would swallow a cancellation that comes with a ring
            async with asyncio.timeout(seconds):
                await self._news.wait()


async def settled(answer: Response | Pending) -> Response:
    """The response, once it is there. Who is cancelled meanwhile gives it up, be it there at that very moment."""
    if isinstance(answer, Response):
        return answer
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    answer.then(partial(fulfil, future))
    try:
        return await future
    except asyncio.CancelledError:
        answer.cancel()
        if answer.response is not None:  # it came after the future was cancelled, or just before
            await _give_up(answer.response)
        raise


async def _give_up(response: Response) -> None:
    """Nobody takes it: what it would have used up is not, and what its parts come from is free again."""
    if response.receipt is not None:
        response.receipt.done(False)
    await close(response.parts)


def fulfil(future: asyncio.Future[T], value: T) -> None:
    """This is what it waits for, if it still does."""
    if not future.done():
        future.set_result(value)


async def collected(parts: Parts | None, body: bytes, most: int) -> bytes | None:
    """A whole body: what comes in parts, which are closed then, or `body` where there are none. None if it has more
    than `most` bytes; the rest is not read then. Raises what the parts raise."""
    if parts is None:
        return body if len(body) <= most else None
    found = bytearray()
    try:
        async for part in parts:
            found += part
            if len(found) > most:
                return None
    finally:  # also of what breaks off, and for one who is cancelled meanwhile
        await close(parts)
    return bytes(found)


async def close(parts: Parts | None) -> None:
    """No more of them is wanted."""
    if parts is not None:
        await getattr(parts, "aclose", _nothing)()


async def _nothing() -> None:
    pass
