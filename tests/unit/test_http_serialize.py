"""Responses on the wire, whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shim.core.exchange import Response
from shim.http.serialize import chunk, error_response, render

PLAIN = ((b"content-type", b"text/plain"),)


def wire(response: Response, head: bool = False, keep_alive: bool = True, http10: bool = False) -> bytes:
    return render(response, head=head, keep_alive=keep_alive, http10=http10)


def test_a_whole_response() -> None:
    expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\na\x00b"
    assert wire(Response(200, PLAIN, b"a\x00b")) == expected


def test_an_empty_body_has_a_length() -> None:
    assert wire(Response(404)) == b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


def test_close_and_keep_alive() -> None:
    assert wire(Response(200), keep_alive=False).endswith(b"content-length: 0\r\nconnection: close\r\n\r\n")
    assert wire(Response(200), http10=True).endswith(b"content-length: 0\r\nconnection: keep-alive\r\n\r\n")
    assert wire(Response(200), keep_alive=False, http10=True).count(b"connection: close") == 1


def test_head_tells_the_length_without_the_body() -> None:
    assert wire(Response(200, (), b"abc"), head=True) == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"


def test_head_of_a_handler_without_the_body_tells_its_length() -> None:
    told = Response(200, ((b"Content-Length", b"1234"),))
    assert wire(told, head=True) == b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"
    assert wire(told) == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    odd = Response(200, ((b"content-length", b"-1"),))
    assert wire(odd, head=True) == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_head_tells_no_length_that_only_the_backend_knows() -> None:
    assert wire(Response(200, backend="nova"), head=True) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert wire(Response(200, length=7, backend="nova"), head=True).endswith(b"\r\ncontent-length: 7\r\n\r\n")
    assert wire(Response(200, backend="nova")).endswith(b"\r\ncontent-length: 0\r\n\r\n")


async def none() -> AsyncIterator[bytes]:
    return
    yield b""


@pytest.mark.parametrize(
    ("length", "head", "http10", "framing"),
    [
        (5, False, False, b"content-length: 5\r\n"),
        (0, False, False, b"content-length: 0\r\n"),
        (5, True, False, b"content-length: 5\r\n"),
        (5, False, True, b"content-length: 5\r\n"),
        (None, False, False, b"transfer-encoding: chunked\r\n"),
        (None, True, False, b""),
        (None, False, True, b""),
    ],
)
def test_what_comes_before_parts(length: int | None, head: bool, http10: bool, framing: bytes) -> None:
    lying = ((b"Content-Length", b"9"), (b"Transfer-Encoding", b"gzip"))
    sent = wire(Response(200, lying, b"not sent", parts=none(), length=length), head=head, http10=http10)
    assert sent == b"HTTP/1.1 200 OK\r\n" + framing + (b"connection: keep-alive\r\n" if http10 else b"") + b"\r\n"


def test_a_length_below_none() -> None:
    with pytest.raises(ValueError, match="below 0"):
        wire(Response(200, parts=none(), length=-1))


def test_chunks() -> None:
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    sent = wire(Response(status, PLAIN, b"never sent"))
    assert sent.endswith(b"\r\ncontent-type: text/plain\r\n\r\n")
    assert b"content-length" not in sent


def test_a_handlers_framing_is_left_out_and_the_rest_passes_unchanged() -> None:
    headers = (
        (b"Content-Length", b"999"),
        (b"transfer-encoding", b"chunked"),
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Odd", b" \xff\t"),
        (b"x-odd", b""),
    )
    expected = b"HTTP/1.1 200 OK\r\nX-Odd:  \xff\t\r\nx-odd: \r\ncontent-length: 1\r\n\r\na"
    assert wire(Response(200, headers, b"a")) == expected


def test_a_status_without_a_phrase() -> None:
    assert wire(Response(299)).startswith(b"HTTP/1.1 299 \r\n")


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600, 1000, -1])
def test_no_final_status(status: int) -> None:
    with pytest.raises(ValueError, match="not a final status"):
        wire(Response(status))


@pytest.mark.parametrize("value", [b"a\r\nX: b", b"a\nb", b"a\rb", b"a\x00b", b"\n"])
def test_values_that_would_split_a_response(value: bytes) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        wire(Response(200, ((b"x", value),)))


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", b"\xe9"])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a token"):
        wire(Response(200, ((name, b"a"),)))


def test_errors_are_short_text_and_close() -> None:
    response = error_response(400, "malformed request line")
    assert response == Response(400, PLAIN, b"malformed request line\n", close=True)


def test_errors_that_say_what_to_do() -> None:
    allowed = dict(error_response(405, "no").headers)[b"allow"]
    assert allowed == b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert dict(error_response(503, "no").headers)[b"retry-after"] == b"1"
    assert dict(error_response(429, "no").headers)[b"retry-after"] == b"1"
    assert b"retry-after" not in dict(error_response(400, "no").headers)
