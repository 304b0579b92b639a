"""Requests to a backend, as bytes. PURE.

What frames a message is written here and nowhere else: Host, and Content-Length or Transfer-Encoding. The
headers of a request that is given are end-to-end ones (RFC 9110, 7.6.1) and hold none of these.
"""

from __future__ import annotations

import re
from functools import lru_cache

from shim.core.exchange import Headers, Request
from shim.http.head import TOKEN

# A guest repeats its requests, and its headers with them. 256 heads of at most some 16 KiB.
_MEMO_HEADS = 256
_TARGET = re.compile(rb"[!-~\x80-\xff]+")
_OURS = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))
# Methods that say Content-Length: 0 when they have no body (RFC 9110, 8.6).
_BODY_EXPECTED = frozenset((b"POST", b"PUT", b"PATCH"))


def render(request: Request, authority: bytes) -> bytes:
    """The head, and the body where it is whole; one in parts is framed by `chunk`, or sent as it is.

    Raises ValueError on a method or header name that is no token, a header that is written here, a target with
    white space or controls, or a value with CR, LF or NUL.
    """
    # The last header may be a signature, which never comes again; all before it is remembered.
    start = _start(request.method, request.path, request.query, request.headers[:-1], authority)
    last = _header_line(request.headers[-1]) if request.headers else b""
    if request.parts is not None:
        return start + last + _framing(request.length)
    body = request.body
    if body or request.method in _BODY_EXPECTED:
        return start + last + _framing(len(body)) + body
    return start + last + b"\r\n"


def _framing(length: int | None) -> bytes:
    if length is None:
        return b"Transfer-Encoding: chunked\r\n\r\n"
    return b"Content-Length: %d\r\n\r\n" % length


@lru_cache(_MEMO_HEADS)
def _start(method: bytes, path: bytes, query: bytes, headers: Headers, authority: bytes) -> bytes:
    target = path + b"?" + query if query else path
    if not TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise ValueError("a request's method or target is malformed")
    line = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, authority)
    return line + b"".join(map(_header_line, headers))


def _header_line(header: tuple[bytes, bytes]) -> bytes:
    name, value = header
    if not TOKEN.fullmatch(name) or name.lower() in _OURS:
        raise ValueError("a request header's name is no token, or frames the message")
    if b"\n" in value or b"\r" in value or b"\0" in value:  # a tenth of what a regular expression takes
        raise ValueError("a request header's value holds CR, LF or NUL")
    return name + b": " + value + b"\r\n"
