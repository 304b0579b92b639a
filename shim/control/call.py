"""One request to the control API, as what answers it is given it, and the forms that answers have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import msgspec

from shim.control import shapes
from shim.control.operations import Operations
from shim.core.exchange import Headers, Request, Response

MAX_WAIT = 30  # seconds that a GET may block

JSON = ((b"content-type", b"application/json"),)
BYTES = ((b"content-type", b"application/octet-stream"),)


class Call(NamedTuple):
    """A request to a resource.

    items  what is in the places of the resource's <…>, decoded
    query  the parameters that it takes, those that were given
    who    who asks, for the audit trail
    now    Unix seconds
    """

    operations: Operations
    request: Request
    items: tuple[str, ...]
    query: dict[str, str]
    who: str
    now: float

    @property
    def item(self) -> str:
        """The first of them."""
        return self.items[0]

    def accepts(self, kind: bytes) -> bool:
        """Whether the client asks for this media type by name."""
        given = self.request.header(b"accept") or b""
        return any(one.partition(b";")[0].strip().lower() == kind for one in given.split(b","))


Operation = tuple[Callable[[Call], Awaitable[Response]], tuple[str, ...]]
"""What answers, and the query parameters that it takes."""

Resources = Mapping[str, Mapping[str, Operation]]
"""Operation by method by resource: `instances/<uuid>/policy`. `<…>` is one segment of the path, not empty, and
`<…*>` at the end one or more."""


class Refusal(Exception):
    """A request that fits no operation."""

    def __init__(self, status: int, what: str, hint: str, headers: Headers = ()) -> None:
        super().__init__(what)
        self.status, self.hint, self.headers = status, hint, headers


def answer(view: object, status: int = 200, headers: Headers = ()) -> Response:
    """A view as JSON."""
    return Response(status, JSON + headers, msgspec.json.encode(view) + b"\n")


def problem(status: int, what: str, hint: str, headers: Headers = ()) -> Response:
    """What happened, and what to do."""
    return answer(shapes.Problem(what, hint), status, headers)


def tag(etag: str) -> Headers:
    """An entity tag as a header."""
    return ((b"etag", f'"{etag}"'.encode()),)
