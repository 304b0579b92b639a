"""Waiting, in a coroutine, for what comes by calls: an answer that is pending, a body in parts."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TypeVar

from shim.core.exchange import Parts, Pending, Response

T = TypeVar("T")


async def settled(answer: Response | Pending) -> Response:
    """The response, once it is there. Who is cancelled meanwhile gives it up."""
    if isinstance(answer, Response):
        return answer
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    answer.then(partial(fulfil, future))
    try:
        return await future
    except asyncio.CancelledError:
        answer.cancel()
        raise


def fulfil(future: asyncio.Future[T], value: T) -> None:
    """This is what it waits for, if it still does."""
    if not future.done():
        future.set_result(value)


async def collected(parts: Parts | None, body: bytes, most: int) -> bytes | None:
    """A whole body: what comes in parts, or `body` where there are none. None if it has more than `most` bytes; the
    rest is not read then. Raises what the parts raise."""
    if parts is None:
        return body if len(body) <= most else None
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > most:
            await getattr(parts, "aclose", _nothing)()
            return None
    return bytes(found)


async def _nothing() -> None:
    pass
