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

_STATUS_LINES = {code.value: b"HTTP/1.1 %d %s\r\n" % (code, code.phrase.encode()) for code in HTTPStatus}
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))
_BODILESS = frozenset((204, 304))
_BREAKS = re.compile(rb"[\r\n\x00]")
_DIGITS = re.compile(rb"[0-9]+")
_ALLOW = b", ".join(sorted(METHODS))
# Seconds until a refused peer may try again: connections end sooner than that, or the guest holds them.
_RETRY_AFTER = b"1"


def render(response: Response, *, head: bool, keep_alive: bool, http10: bool) -> bytes:
    """The response to one request, ready to be sent. RFC 9112, 6.

    `head`: it answers a HEAD, so its body is not sent but its length is told; a handler without the body
    tells the length with a Content-Length of its own. Raises ValueError on a status outside 200 to 599, a
    header name that is no token, or a value with CR, LF or NUL.
    """
    parts = [_status_line(response.status), _header_block(response.headers)]
    bodiless = response.status in _BODILESS
    if not bodiless:
        parts.append(b"content-length: %b\r\n" % _length(response, head))
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    elif http10:
        parts.append(b"connection: keep-alive\r\n")
    parts.append(b"\r\n")
    if not (head or bodiless):
        parts.append(response.body)
    return b"".join(parts)


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


def _length(response: Response, head: bool) -> bytes:
    if head and not response.body:
        told = next((value for name, value in response.headers if name.lower() == b"content-length"), b"0")
        if _DIGITS.fullmatch(told):
            return told
    return b"%d" % len(response.body)


@lru_cache(maxsize=128)
def _header_block(headers: Headers) -> bytes:
    for name, value in headers:
        if not TOKEN.fullmatch(name):
            raise ValueError("a response header's name is not a token")
        if _BREAKS.search(value):
            raise ValueError("a response header's value holds CR, LF or NUL")
    return b"".join(b"%b: %b\r\n" % pair for pair in headers if pair[0].lower() not in _FRAMING)
