"""The strict grammar of a request's head. PURE.

Theory of operation. Where two parsers read one head differently, a request can be smuggled past the
one that decides. So a head is read here by a narrow grammar (RFC 9112 without its leniencies), and
then once more by llhttp; only what both read alike is a request. Whatever could be framed in two ways
(two lengths, a length and a coding, folded lines, a bare LF) is refused, not repaired.

`scan` looks at a head while it arrives and `read_head` at a whole one. What they say depends on the
bytes alone, never on how the bytes were split into segments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import httptools

from shim.core.exchange import Headers, Request
from shim.http.limits import Limits

END = b"\r\n\r\n"
METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"))
# Known to RFC 9110, but one would tunnel and the other echo what the guest sent.
FORBIDDEN_METHODS = frozenset((b"CONNECT", b"TRACE"))

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
# Origin-form alone (RFC 9112, 3.2.1). A fragment or a backslash is read differently by different servers.
_TARGET = re.compile(rb"/[!\"$-\[\]-~]*")
# What a URI's authority is made of (RFC 3986, 3.2), user information left out; `%` for IPv6 zones.
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
# Eighteen digits fit in 63 bits in every language a backend may be written in.
_LENGTH = re.compile(rb"[0-9]{1,18}")
_NEVER = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]|(?<!\r)\n")
_SHORT_LINE = 96
_SLASHES = re.compile(rb"//+")
_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class Refused(Exception):
    """This request cannot be taken. `status` 4xx or 5xx; `reason` is ours, with no byte of the guest's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Head:
    """A well-formed head. `request` has no body yet; `length` is the body's in bytes, None if chunked.

    `expect_continue` says what was asked for, whether a body is to come or not.
    """

    request: Request
    length: int | None
    keep_alive: bool
    http10: bool
    expect_continue: bool


def scan(buffer: bytearray, start: int, limits: Limits) -> int:
    """The index after the first head in `buffer`, or -1 while it is not whole.

    Bytes before `start` were scanned before. Raises Refused as soon as no further byte could mend the head.
    """
    end = buffer.find(END, start, limits.head_bytes)
    bad = _NEVER.search(buffer, start, limits.head_bytes if end < 0 else end + len(END))
    if bad is None and end >= 0:
        return end + len(END)
    line = buffer.find(b"\r\n", 0, limits.head_bytes if bad is None else bad.start())
    if line >= 0:
        read_request_line(bytes(buffer[:line]), limits)
    if bad is not None:
        raise Refused(400, "control character or bare line end in the request's head")
    if len(buffer) > limits.head_bytes:
        raise Refused(414 if line < 0 else 431, "request head too large")
    return -1


def read_head(raw: bytes, limits: Limits) -> Head:
    """Read a whole head, its blank line included, that `scan` has passed. Raises Refused."""
    line, _, block = raw[: -len(END)].partition(b"\r\n")
    method, target, http10 = read_request_line(line, limits)
    headers = _read_headers(block, limits)
    known = _read_once(headers)
    _check_host(known.get(b"host"), http10)
    length = _read_length(known.get(b"content-length"), known.get(b"transfer-encoding"), http10, limits)
    _check_second_reading(raw, method, target, headers)
    path, _, query = target.partition(b"?")
    if b"//" in path:
        # Several slashes are one, as at EC2 and at Google's: their own clients join a base that ends with one and a
        # path that begins with one. From here on there is one reading of it alone.
        path = _SLASHES.sub(b"/", path)
    return Head(
        request=Request(method, path, query, headers),
        length=length,
        keep_alive=_read_keep_alive(headers, http10),
        http10=http10,
        expect_continue=_read_expect(known.get(b"expect"), http10),
    )


def read_request_line(line: bytes, limits: Limits) -> tuple[bytes, bytes, bool]:
    """Method, target, and whether this is HTTP/1.0. Raises Refused."""
    parts = line.split(b" ")
    if len(parts) == 2 and parts[0] == b"GET" and _TARGET.fullmatch(parts[1]):
        raise Refused(505, "HTTP/0.9 is not supported")
    if len(parts) != 3 or not TOKEN.fullmatch(parts[0]) or not _VERSION.fullmatch(parts[2]):
        raise Refused(400, "malformed request line")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    if len(target) > limits.target_bytes:
        raise Refused(414, "request target too long")
    _check_method(method)
    if not _TARGET.fullmatch(target):
        raise Refused(400, "malformed request target")
    return method, target, version == b"HTTP/1.0"


def _check_method(method: bytes) -> None:
    if method in FORBIDDEN_METHODS:
        raise Refused(405, "method not allowed")
    if method not in METHODS:
        raise Refused(501, "method not known")


def _read_headers(block: bytes, limits: Limits) -> Headers:
    lines = block.split(b"\r\n") if block else []
    if len(lines) > limits.headers:
        raise Refused(431, "too many headers")
    return tuple(_read_field(line) for line in lines)


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    return _read_short_field(line) if len(line) <= _SHORT_LINE else _split_field(line)


@lru_cache(maxsize=256)
def _read_short_field(line: bytes) -> tuple[bytes, bytes]:
    """Remembered: the clients of many guests send the same lines, and who waits for long keeps its request's."""
    return _split_field(line)


def _split_field(line: bytes) -> tuple[bytes, bytes]:
    if line[:1] in (b" ", b"\t"):
        raise Refused(400, "folded header line")
    name, colon, value = line.partition(b":")
    if not colon or not TOKEN.fullmatch(name):
        raise Refused(400, "malformed header line")
    return name.lower(), value.strip(b" \t")


def _read_once(headers: Headers) -> dict[bytes, bytes]:
    """The headers that may come once at most. Equal copies are refused too: a list may be made of them."""
    known: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _ONCE:
            if name in known:
                raise Refused(400, "header given more than once: " + name.decode())
            known[name] = value
    return known


def _check_host(host: bytes | None, http10: bool) -> None:
    if host is None and not http10:
        raise Refused(400, "no Host header")
    if host is not None and not _HOST.fullmatch(host):
        raise Refused(400, "malformed Host header")


def _read_length(length: bytes | None, coding: bytes | None, http10: bool, limits: Limits) -> int | None:
    """The body's length as RFC 9112, 6.3 has it; None if chunked."""
    if coding is not None:
        _check_coding(length, coding, http10)
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise Refused(400, "malformed Content-Length")
    if int(length) > limits.body_bytes:
        raise Refused(413, "request body too large")
    return int(length)


def _check_coding(length: bytes | None, coding: bytes, http10: bool) -> None:
    if length is not None:
        raise Refused(400, "Content-Length and Transfer-Encoding together")
    if http10:
        raise Refused(400, "Transfer-Encoding in HTTP/1.0")
    if coding.lower() != b"chunked":
        raise Refused(501, "transfer coding not known")


def _read_keep_alive(headers: Headers, http10: bool) -> bool:
    options = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    asked = {option.strip(b" \t") for option in options}
    if b"close" in asked:
        return False
    return not http10 or b"keep-alive" in asked


def _read_expect(expect: bytes | None, http10: bool) -> bool:
    # RFC 9110, 10.1.1: an HTTP/1.0 client's is ignored.
    if expect is None or http10:
        return False
    if expect.lower() != b"100-continue":
        raise Refused(417, "expectation not known")
    return True


class _Reading:
    """What llhttp makes of a head: httptools calls these."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.whole = True


def _check_second_reading(raw: bytes, method: bytes, target: bytes, headers: Headers) -> None:
    reading = _Reading()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer, which a server may ignore (RFC 9110, 7.8); the head was read all the same
    except httptools.HttpParserError:
        raise Refused(400, "malformed request head") from None
    seen = (reading.whole, parser.get_method(), reading.url, tuple(reading.headers))
    if seen != (True, method, target, headers):
        raise Refused(400, "ambiguous request head")
