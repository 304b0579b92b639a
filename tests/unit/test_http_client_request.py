"""Requests to a backend, as bytes."""

from __future__ import annotations

import pytest

from shim.core.exchange import Request
from shim.http.client_request import render
from shim.http.serialize import chunk


def test_requests_as_bytes() -> None:
    headers = ((b"accept", b"*/*"), (b"x-instance-id", b"i"))
    assert render(Request(b"GET", b"/a", b"b=c", headers), b"nova:8775") == (
        b"GET /a?b=c HTTP/1.1\r\nHost: nova:8775\r\naccept: */*\r\nx-instance-id: i\r\n\r\n"
    )
    assert render(Request(b"POST", b"/a"), b"h") == b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    wire = render(Request(b"PUT", b"/a", body=b"\x00\r\n"), b"h")
    assert wire == b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n\x00\r\n"


async def _parts():  # type: ignore[no-untyped-def]
    yield b""


def test_requests_in_parts_as_bytes() -> None:
    sized = render(Request(b"PUT", b"/a", parts=_parts(), length=70_000), b"h")
    assert sized == b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n"
    chunked = render(Request(b"PUT", b"/a", parts=_parts()), b"h")
    assert chunked == b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"GE T", b"/"),
        Request(b"GET", b"/ HTTP/1.1\r\nX: y"),
        Request(b"GET", b""),
        Request(b"GET", b"/", b"a b"),
        Request(b"GET", b"/", headers=((b"x", b"a\r\nb: c"),)),
        Request(b"GET", b"/", headers=((b"x", b"a\nb"),)),
        Request(b"GET", b"/", headers=((b"x", b"a\0b"),)),
        Request(b"GET", b"/", headers=((b"x:", b"a"),)),
        Request(b"GET", b"/", headers=((b"", b"a"),)),
        Request(b"GET", b"/", headers=((b"Host", b"a"),)),
        Request(b"GET", b"/", headers=((b"content-length", b"1"),)),
        Request(b"GET", b"/", headers=((b"transfer-encoding", b"chunked"),)),
        Request(b"GET", b"/", headers=((b"connection", b"close"),)),
    ],
)
def test_what_cannot_be_written_is_refused(request_: Request) -> None:
    with pytest.raises(ValueError):
        render(request_, b"h")
