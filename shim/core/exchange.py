"""One request of a guest's and its response, as every room sees them. PURE.

Header names are lower-case bytes, values are bytes without surrounding white space; both in the
order of the wire. Header names of a response may be in any case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
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
        return next((value for key, value in self.headers if key == name), None)

    @property
    def target(self) -> bytes:
        """Path and query, as sent."""
        return self.path + b"?" + self.query if self.query else self.path


class Response(msgspec.Struct, frozen=True):
    """A response. The server adds Content-Length or chunks, and Connection; `close` ends the connection after it.

    A body that comes in `parts` has `length` bytes in all, None where that is not known before its end.
    `backend` is who made it, for the log.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False
    parts: Parts | None = None
    length: int | None = None
    backend: str = ""


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
    are empty where no source knows them."""

    instance: UUID
    project: str = ""
    address: str = ""
