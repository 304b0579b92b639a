"""One request of a guest's and its response, as every room sees them. PURE.

Header names are lower-case bytes, values are bytes without surrounding white space; both in the
order of the wire. Header names of a response may be in any case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol
from uuid import UUID

import msgspec

from shim.core.policy import Family

Headers = tuple[tuple[bytes, bytes], ...]

Parts = AsyncIterator[bytes]
"""A body that comes in parts of one byte or more each, read once. One that raises, or that is closed before its
end, was cut off."""


# Structs, as one of each is made for a request: that takes a fifth of a frozen dataclass's time.
class Request(msgspec.Struct, frozen=True):
    """A well-formed request. `path` is the target up to `?`, as sent (not percent-decoded).

    A small body is whole, in `body`. A larger one comes in `parts`, of `length` bytes in all (None: chunked).
    """

    method: bytes
    path: bytes
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    parts: Parts | None = None
    length: int | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (name in lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def target(self) -> bytes:
        """Path and query, as sent."""
        return self.path + b"?" + self.query if self.query else self.path


class Receipt(Protocol):
    """What is told how far a response got. The response has a whole body of one byte or more, and is no HEAD's."""

    async def commit(self) -> bool:
        """All of the body but its last byte was acknowledged by the peer's kernel. True: the last one follows.
        False, or if it raises: it does not, and the connection is reset."""

    def done(self, whole: bool) -> None:
        """It is over, told once: whether the last byte went out on the wire. Not told before `commit` has ended."""


class Response(msgspec.Struct, frozen=True):
    """A response. The server adds Content-Length or chunks, and Connection; `close` ends the connection after it.

    A body that comes in `parts` has `length` bytes in all, None where that is not known before its end.
    `backend` is who made it, for the log. `receipt` is told how far it got.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False
    parts: Parts | None = None
    length: int | None = None
    backend: str = ""
    receipt: Receipt | None = None


class Rendered(msgspec.Struct, frozen=True):
    """What a face makes of a request.

    etag    of the representation, without quotes; empty where there is none (errors)
    claims  items (Source.item, Value.item) that this answer uses up when it is read
    until   Unix seconds from when on it no longer is the answer
    """

    response: Response
    etag: str = ""
    claims: tuple[str, ...] = ()
    until: float = inf


class Pending:
    """A response that is to come, for the one who waits for it.

    What a Future is, without its way through the event loop: who waits is called at the very place where the
    response comes. So `then` must bear to be called from anywhere.
    """

    __slots__ = ("_over", "_response", "_then")

    def __init__(self) -> None:
        self._response: Response | None = None
        self._then: Callable[[Response], None] | None = None
        self._over: Callable[[], None] | None = None

    @property
    def response(self) -> Response | None:
        """The response, once it is there."""
        return self._response

    def then(self, call: Callable[[Response], None]) -> None:
        """Have `call` called with the response: now, if it is there."""
        if self._response is not None:
            call(self._response)
        else:
            self._then = call

    def when_over(self, call: Callable[[], None]) -> None:
        """Have `call` called once when nothing more will come, parts of the body included, or it was given up.

        To be asked for before the response is there.
        """
        self._over = call

    def settle(self, response: Response) -> None:
        """This is the response."""
        self._response = response
        then, self._then = self._then, None
        if response.parts is None:
            self._end()
        elif self._over is not None:
            over, self._over = self._over, None
            getattr(response.parts, "when_over", _at_once)(over)
        if then is not None:
            then(response)

    def cancel(self) -> None:
        """Nobody waits any more. A response that comes all the same uses nothing up."""
        self._then = None
        if self._response is None:
            self._then = _to_nobody
            self._end()

    def _end(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over()


def _to_nobody(response: Response) -> None:
    if response.receipt is not None:
        response.receipt.done(False)


def _at_once(call: Callable[[], None]) -> None:
    """Parts that do not tell when they are over hold nothing."""
    call()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who speaks on a connection: decided by the slot that the kernel stamped, by nothing the guest sent.

    `generation` tells two owners of one slot apart.
    """

    slot: int
    generation: int
    instance: UUID
    family: Family


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose request it is, as a backend is told. `project` and `address` (the instance's own IP address, in text)
    are empty where no source knows them.

    `name` and `flavor` of the instance, `port` (Neutron's, say) and `mac` of the tap are for operators to see.
    """

    instance: UUID
    project: str = ""
    address: str = ""
    name: str = ""
    flavor: str = ""
    port: str = ""
    mac: str = ""
