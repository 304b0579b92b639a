"""One request of a guest's and its response, as every room sees them. PURE.

Header names are lower-case bytes, values are bytes without surrounding white space; both in the
order of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shim.core.policy import Family

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A whole, well-formed request. `path` is the target up to `?`, as sent (not percent-decoded)."""

    method: bytes
    path: bytes
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (name in lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. The server adds Content-Length and Connection; `close` ends the connection after it."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who speaks on a connection: decided by the slot that the kernel stamped, by nothing the guest sent.

    `generation` tells two owners of one slot apart.
    """

    slot: int
    generation: int
    instance: UUID
    family: Family
