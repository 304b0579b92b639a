"""The strict grammar of an answer's head. PURE.

What a guest is given of a head is its end-to-end headers, in their order and spelling. Backends repeat themselves:
a head is the same for a second (until its Date changes) and most of its lines for ever, so both are remembered by
their exact bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from shim.core.exchange import Headers
from shim.http.head import END, TOKEN

HEADERS = 200

_MEMO_HEADS = 512
_MEMO_HEAD_BYTES = 1024
_MEMO_LINES = 4096
_MEMO_LINE_BYTES = 256

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_BREAKS = re.compile(rb"[\r\n\x00]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:.*[,;\s])?timeout=([0-9]{1,9})(?:[,;\s].*)?")
# RFC 9110, 7.6.1, and what only the two ends of one connection say to each other (RFC 9110, 11.7).
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_FRAMES = frozenset((b"content-length", b"transfer-encoding"))
_CONCERNS = _FRAMES | {b"connection", b"keep-alive"}
_NO_OPTIONS: frozenset[bytes] = frozenset()
_PLAIN_OPTIONS = frozenset((b"close", b"keep-alive"))


class Malformed(Exception):
    """No answer that can be passed on. The message is ours, with no byte of the backend's."""


@dataclass(frozen=True, slots=True)
class Head:
    """A well-formed head. `headers` are the end-to-end ones; `length` is what Content-Length says, None if nothing.

    `idle_seconds` is how long the backend keeps the connection open after this answer, where it says so.
    """

    status: int
    headers: Headers
    length: int | None
    chunked: bool
    keep_alive: bool
    idle_seconds: int | None

    @property
    def bodiless(self) -> bool:
        """Whether no body follows, whatever the head says of one (RFC 9112, 6.3)."""
        return self.status < 200 or self.status in (204, 304)


def read_head(raw: bytes) -> Head:
    """Read a whole head, its blank line included. Raises Malformed."""
    return _remembered_head(raw) if len(raw) <= _MEMO_HEAD_BYTES else _read_head(raw)


def _read_head(raw: bytes) -> Head:
    lines = raw[: -len(END)].split(b"\r\n")
    found = _STATUS_LINE.fullmatch(lines[0])
    if found is None:
        raise Malformed("malformed status line")
    if len(lines) > HEADERS + 1:
        raise Malformed("too many headers")
    http10 = found[1] == b"0"
    headers, known = _read_fields(lines)
    length, chunked = _framing(known, http10)
    options = _options(known)
    if options - _PLAIN_OPTIONS:
        headers = [pair for pair in headers if pair[0].lower() not in options]
    return Head(
        status=int(found[2]),
        headers=tuple(headers),
        length=length,
        chunked=chunked,
        keep_alive=b"close" not in options and (not http10 or b"keep-alive" in options),
        idle_seconds=_idle_seconds(known),
    )


_remembered_head = lru_cache(_MEMO_HEADS)(_read_head)


def _read_fields(lines: list[bytes]) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    """The end-to-end headers of a head's lines, and the values of what concerns the connection.

    Of the latter only lists may come more than once, and are joined.
    """
    headers: list[tuple[bytes, bytes]] = []
    known: dict[bytes, bytes] = {}
    for line in islice(lines, 1, None):
        field, passes, concern = _remembered_field(line) if len(line) <= _MEMO_LINE_BYTES else read_field(line)
        if passes:
            headers.append(field)
        if not concern:
            continue
        if concern not in known:
            known[concern] = field[1]
        elif concern in _FRAMES:
            raise Malformed("more than one Content-Length or Transfer-Encoding")
        else:
            known[concern] += b"," + field[1]
    return headers, known


def read_field(line: bytes) -> tuple[tuple[bytes, bytes], bool, bytes]:
    """The header; whether it is an end-to-end one; and its name in lower case where it concerns the connection."""
    name, colon, value = line.partition(b":")
    if not colon or not TOKEN.fullmatch(name):
        raise Malformed("malformed header line")
    if _BREAKS.search(value):
        raise Malformed("CR, LF or NUL in a header's value")
    lower = name.lower()
    return (name, value.strip(b" \t")), lower not in _HOP_BY_HOP, lower if lower in _CONCERNS else b""


_remembered_field = lru_cache(_MEMO_LINES)(read_field)


def _framing(known: dict[bytes, bytes], http10: bool) -> tuple[int | None, bool]:
    """Content-Length, and whether the body is chunked."""
    length, coding = known.get(b"content-length"), known.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or http10 or coding.lower() != b"chunked":
            raise Malformed("Transfer-Encoding other than chunked, with Content-Length, or in HTTP/1.0")
        return None, True
    if length is None:
        return None, False
    if not _LENGTH.fullmatch(length):
        raise Malformed("malformed Content-Length")
    return int(length), False


def _options(known: dict[bytes, bytes]) -> frozenset[bytes]:
    value = known.get(b"connection")
    if value is None:
        return _NO_OPTIONS
    return frozenset([option.strip(b" \t") for option in value.lower().split(b",")])


def _idle_seconds(known: dict[bytes, bytes]) -> int | None:
    value = known.get(b"keep-alive")
    found = None if value is None else _KEEP_ALIVE_TIMEOUT.fullmatch(value.lower())
    return int(found[1]) if found else None
