"""Responses as bytes. PURE.

What frames a message (length, connection, coding) is written here and nowhere else: a handler's own
copies of those headers are left out, its other headers and its body pass unchanged.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus

from shim.core.exchange import Headers, Response
from shim.http.head import METHODS, TOKEN

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_STATUS_LINES = {code.value: b"HTTP/1.1 %d %s\r\n" % (code, code.phrase.encode()) for code in HTTPStatus}
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))
_BODILESS = frozenset((204, 304))
_BREAKS = re.compile(rb"[\r\n\x00]")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_ALLOW = b", ".join(sorted(METHODS))
# Seconds until a refused peer may try again: connections end sooner than that, or the guest holds them.
_RETRY_AFTER = b"1"


def render(response: Response, head: bool, keep_alive: bool, http10: bool) -> bytes:
    """The response to one request, ready to be sent; of one in parts, what comes before them. RFC 9112, 6.

    `head`: it answers a HEAD, so its body is not sent but its length is told, if it is known; a handler
    without the body tells it by `length`, or with a Content-Length of its own. A response in parts of unknown
    length is chunked, and in HTTP/1.0 ends with the connection. Raises ValueError on a status outside 200 to
    599, a header name that is no token, a value with CR, LF or NUL, a length below 0, or parts with a receipt.
    """
    if response.parts is None and not head and response.status not in _BODILESS:
        return _top(response.status, response.headers, len(response.body), False, keep_alive, http10) + response.body
    if response.parts is not None and response.receipt is not None:
        raise ValueError("a response in parts cannot have a receipt")
    length = None if response.status in _BODILESS else _length(response)
    chunked = is_chunked(response, http10) and body_sent(response, head)
    return _top(response.status, response.headers, length, chunked, keep_alive, http10)


def body_sent(response: Response, head: bool) -> bool:
    """Whether the response to a request (`head`: to a HEAD) has its body sent after its head."""
    return not head and response.status not in _BODILESS


def is_chunked(response: Response, http10: bool) -> bool:
    """Whether a response is sent in chunks."""
    return response.parts is not None and response.length is None and not http10


def ends_with_connection(response: Response) -> bool:
    """Whether, in HTTP/1.0, the end of the connection is what ends the response (RFC 9112, 6.3, 8)."""
    return response.parts is not None and response.length is None


def chunk(part: bytes) -> bytes:
    """One byte or more of a body, as a chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(part), part)


def error_response(status: int, reason: str) -> Response:
    """A short text answer that ends the connection. `reason` must hold nothing that the peer sent."""
    headers: Headers = ((b"content-type", b"text/plain"),)
    if status == 405:
        headers += ((b"allow", _ALLOW),)
    elif status in (429, 503):
        headers += ((b"retry-after", _RETRY_AFTER),)
    return Response(status, headers, reason.encode() + b"\n", close=True)


def _status_line(status: int) -> bytes:
    if not 200 <= status <= 599:
        raise ValueError(f"not a final status: {status}")
    # RFC 9112, 4: the reason phrase may be empty, the space before it may not be left out.
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def _length(response: Response) -> int | None:
    """The length of a body that is in parts or is not sent; None where it is not known."""
    if response.length is not None:
        if response.length < 0:
            raise ValueError("a response's length is below 0")
        return response.length
    if response.parts is not None:
        return None
    if response.body:
        return len(response.body)
    told = next((value for name, value in response.headers if name.lower() == b"content-length"), None)
    if told is None:
        return None if response.backend else 0  # a backend that did not say it was not asked for the body
    return int(told) if _DIGITS.fullmatch(told) else 0


@lru_cache(maxsize=256)
def _top(
    status: int, headers: Headers, length: int | None, chunked: bool, keep_alive: bool, http10: bool
) -> bytes:
    """All before the body. Remembered: a service's answers are few, as its guests' questions are."""
    lines = [_status_line(status), *map(_header_line, headers)]
    if length is not None:
        lines.append(b"content-length: %d\r\n" % length)
    elif chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    elif http10:
        lines.append(b"connection: keep-alive\r\n")
    return b"".join(lines) + b"\r\n"


def _header_line(header: tuple[bytes, bytes]) -> bytes:
    name, value = header
    if not TOKEN.fullmatch(name):
        raise ValueError("a response header's name is not a token")
    if _BREAKS.search(value):
        raise ValueError("a response header's value holds CR, LF or NUL")
    return b"" if name.lower() in _FRAMING else name + b": " + value + b"\r\n"
