"""One connection's incoming side: bytes in, events out, in the order of the wire. PURE.

`feed` takes bytes; `next_event` gives one event at a time, so that a peer who pipelines thousands of
requests costs the memory of its bytes and no more. The events depend on the bytes alone, never on
how they were split; only where one Part ends and the next begins does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shim.core.exchange import Request
from shim.http.body import Body, ChunkedBody, SizedBody
from shim.http.head import END, Head, Refused, read_head, scan
from shim.http.limits import Limits

# A client repeats its heads, byte for byte, for all its life. 512 heads of at most 1 KiB: about 2 MB.
_MEMO_HEADS = 512
_MEMO_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Received:
    """A whole request. `keep_alive`: the peer wants the connection to go on after the response.

    `streamed`: its body is too large to be collected, and follows in Parts up to an End, or to a Malformed.
    """

    request: Request
    keep_alive: bool
    http10: bool
    head_only: bool
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One byte or more of a streamed body, decoded."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """A streamed body was whole."""


@dataclass(frozen=True, slots=True)
class Continue:
    """The peer waits for 100 Continue before it sends its body (RFC 9110, 10.1.1)."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """No request, nor any after it: answer `status` (4xx or 5xx) and close. `reason` quotes no guest."""

    status: int
    reason: str


Event = Received | Part | End | Continue | Malformed


class Phase(Enum):
    """What a connection waits for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    OVER = "nothing: it was refused"

    __hash__ = object.__hash__  # Enum's own runs Python code, and this is a key once a request


_IDLE = Phase.IDLE  # reaching it by its class takes 0.1 µs (Python 3.11)


class Heads:
    """Reads heads, and remembers the well-formed small ones by their exact bytes. One for all connections."""

    __slots__ = ("_known", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._known: dict[bytes, tuple[Head, Received]] = {}

    def recall(self, raw: bytes) -> tuple[Head, Received] | None:
        """A head that was read before, and its request as it is when it has no body."""
        return self._known.get(raw)

    def read(self, raw: bytes) -> tuple[Head, Received]:
        """As `recall`, of a head that `scan` has passed. Raises Refused."""
        head = read_head(raw, self.limits)
        pair = head, _received(head, head.request)
        if len(raw) <= _MEMO_HEAD_BYTES:
            if len(self._known) >= _MEMO_HEADS:
                del self._known[next(iter(self._known))]
            self._known[raw] = pair
        return pair


class Connection:
    """The incoming side of one connection."""

    __slots__ = (
        "_blank_line_skipped",
        "_body",
        "_buffer",
        "_collected",
        "_head",
        "_heads",
        "_over",
        "_scanned",
        "_streaming",
    )

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._buffer = bytearray()
        self._scanned = 0
        self._blank_line_skipped = False
        self._head: Head | None = None
        self._body: Body | None = None
        # Of a small body; none is kept while a connection waits.
        self._collected: bytes | bytearray = b""
        self._streaming = False
        self._over = False

    @property
    def phase(self) -> Phase:
        """What is waited for, as of the last `next_event`."""
        if self._over:
            return Phase.OVER
        if self._head is not None:
            return Phase.BODY
        return Phase.HEAD if self._buffer else _IDLE

    @property
    def buffered(self) -> int:
        """Bytes fed and not yet given as events."""
        return len(self._buffer) + len(self._collected)

    def feed(self, data: bytes) -> None:
        """Add what arrived. After a Malformed event it is thrown away."""
        if not self._over:
            self._buffer += data

    def next_event(self) -> Event | None:
        """The next event, or None until more is fed."""
        if not self._buffer and self._head is None:
            return None
        try:
            if self._head is None or self._body is None:
                return self._next_head()
            return self._next_body(self._head, self._body)
        except Refused as refused:
            self._over = True
            self._buffer.clear()
            self._forget_body()
            return Malformed(refused.status, refused.reason)

    def _next_head(self) -> Event | None:
        found = self._take_head()
        if found is None:
            return None
        head, received = found
        if head.length == 0:
            return received
        self._head = head
        self._body = self._expected(head)
        self._collected = bytearray()
        return Continue() if head.expect_continue else self._next_body(head, self._body)

    def _expected(self, head: Head) -> Body:
        return ChunkedBody(self._heads.limits.body_bytes) if head.length is None else SizedBody(head.length)

    def _take_head(self) -> tuple[Head, Received] | None:
        end = self._buffer.find(END, self._scanned) + len(END)
        raw = bytes(self._buffer) if end == len(self._buffer) else bytes(self._buffer[:end])
        found = self._heads.recall(raw)
        if found is None:
            self._skip_blank_line()
            end = scan(self._buffer, self._scanned, self._heads.limits)
            if end < 0:
                self._scanned = max(0, len(self._buffer) - len(END) + 1)
                return None
            found = self._heads.read(bytes(self._buffer[:end]))
        del self._buffer[:end]
        self._scanned = 0
        self._blank_line_skipped = False
        return found

    def _skip_blank_line(self) -> None:
        """One stray line end before a request is passed over (RFC 9112, 2.2)."""
        if not self._blank_line_skipped and self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
            self._scanned = 0
            self._blank_line_skipped = True

    def _next_body(self, head: Head, body: Body) -> Event | None:
        if self._streaming:
            return self._next_part(body)
        whole = self._collect(body)
        asked = head.request
        if body.announced > self._heads.limits.whole_bytes:
            self._streaming = True
            request = Request(asked.method, asked.path, asked.query, asked.headers, length=head.length)
            return _received(head, request, streamed=True)
        if not whole:
            return None
        request = Request(asked.method, asked.path, asked.query, asked.headers, bytes(self._collected))
        self._forget_body()
        return _received(head, request)

    def _collect(self, body: Body) -> bool:
        """Take what has come, as long as the body is small. Whether it is whole."""
        while body.announced <= self._heads.limits.whole_bytes:
            part = body.take(self._buffer)
            if not part:
                return part is not None
            self._collected += part
        return False

    def _next_part(self, body: Body) -> Event | None:
        part = bytes(self._collected) or body.take(self._buffer)
        if part is None:
            return None
        if not part:
            self._forget_body()
            return End()
        self._collected = b""
        return Part(part)

    def _forget_body(self) -> None:
        self._head = self._body = None
        self._collected = b""
        self._streaming = False


def _received(head: Head, request: Request, streamed: bool = False) -> Received:
    return Received(request, head.keep_alive, head.http10, request.method == b"HEAD", streamed)
