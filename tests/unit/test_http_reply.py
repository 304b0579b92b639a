"""What is made of a backend's bytes: in one piece, byte by byte, and by the short way."""

from __future__ import annotations

import pytest

from shim.http.reply import HEAD_BYTES, INTERIM_HEADS, SIZE_LINE_BYTES, TRAILER_BYTES, Reply, read_whole
from shim.http.reply_head import HEADERS, Malformed, read_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = OK + b"Content-Length: 3\r\n\r\n"
UNTIL_END = OK + b"\r\n"


def fed(wire: bytes, size: int, head_only: bool = False) -> tuple[Reply, bytes]:
    reply = Reply(head_only)
    body = b"".join([reply.feed(wire[at : at + size]) for at in range(0, len(wire), size)])
    return reply, body


SIZES = pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])


@SIZES
@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (SIZED + b"abc", b"abc"),
        (SIZED.replace(b"3", b"0"), b""),
        (OK + b"content-LENGTH:  \t3 \t\r\n\r\n\r\n\x00", b"\r\n\x00"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (CHUNKED + b"00A \r\n0123456789\r\n1;x=\"y z\"\r\n\n\r\n0;last\r\n\r\n", b"0123456789\n"),
        (CHUNKED + b"1\r\na\r\n0\r\nX-Sum: 1\r\nX-More:\r\n\r\n", b"a"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nContent-Length: 7\r\n\r\n" + SIZED + b"abc", b"abc"),
    ],
)
def test_whole_answers(wire: bytes, body: bytes, size: int) -> None:
    reply, seen = fed(wire, size)
    assert (reply.over, reply.surplus, reply.reusable, seen) == (True, False, True, body)
    more, seen = fed(wire + b"!", size)
    assert (more.over, more.surplus, more.reusable, seen) == (True, True, False, body)


@SIZES
@pytest.mark.parametrize(
    "wire", [SIZED + b"ab", CHUNKED + b"1\r\na\r\n", CHUNKED + b"0\r\n", CHUNKED + b"0\r\nX: 1\r\n"]
)
def test_an_end_before_the_bodys_is_a_cut(wire: bytes, size: int) -> None:
    reply, _ = fed(wire, size)
    assert not reply.over
    with pytest.raises(Malformed, match="ended"):
        reply.end()


@SIZES
def test_a_body_without_a_length_ends_with_the_connection(size: int) -> None:
    reply, body = fed(UNTIL_END + b"abc", size)
    assert (reply.over, body) == (False, b"abc")
    reply.end()
    assert (reply.over, reply.reusable) == (True, False)


def test_an_end_before_or_within_the_head() -> None:
    with pytest.raises(Malformed, match="no answer"):
        Reply(False).end()
    reply, _ = fed(OK, 1)
    with pytest.raises(Malformed, match="whole head"):
        reply.end()


@SIZES
def test_answers_to_head_have_no_body(size: int) -> None:
    for wire in (SIZED, CHUNKED, UNTIL_END):
        reply, body = fed(wire, size, head_only=True)
        assert (reply.over, reply.surplus, reply.reusable, body) == (True, False, True, b"")
    reply, _ = fed(SIZED + b"abc", size, head_only=True)
    assert (reply.surplus, reply.reusable) == (True, False)


@pytest.mark.parametrize("field", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_a_204_that_says_it_has_a_body_is_the_connections_last(field: bytes) -> None:
    reply, _ = fed(b"HTTP/1.1 204 No Content\r\n" + field + b"\r\n\r\n", 1 << 20)
    assert (reply.over, reply.reusable) == (True, False)


MALFORMED_HEADS = [
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\n\r\n",
    b"HTTP/1.1 200 O\rK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 600 OK\r\n\r\n",
    b"HTTP/1.1 +20 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    OK + b"Content-Length: 3, 3\r\n\r\nabc",
    OK + b"Content-Length: +3\r\n\r\nabc",
    OK + b"Content-Length: -3\r\n\r\nabc",
    OK + b"Content-Length: 3_0\r\n\r\nabc",
    OK + b"Content-Length: 0x3\r\n\r\nabc",
    OK + b"Content-Length:\r\n\r\n",
    OK + b"Content-Length: 9999999999999999999\r\n\r\n",
    OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    OK + b"Transfer-Encoding: identity\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"X-A: 1\r\n folded\r\n\r\n",
    OK + b" X-A: 1\r\n\r\n",
    OK + b"X-A : 1\r\n\r\n",
    OK + b"X A: 1\r\n\r\n",
    OK + b": 1\r\n\r\n",
    OK + b"no colon\r\n\r\n",
    OK + b"X-A: a\x00b\r\n\r\n",
    OK + b"X-A: a\rb\r\n\r\n",
    OK + b"X-A: a\nSet-Cookie: b\r\n\r\n",
    OK + b"X\xff: 1\r\n\r\n",
    OK + b"X: 1\r\n" * (HEADERS + 1) + b"\r\n",
]


@SIZES
@pytest.mark.parametrize("wire", MALFORMED_HEADS)
def test_malformed_heads(wire: bytes, size: int) -> None:
    with pytest.raises(Malformed):
        fed(wire, size)


@pytest.mark.parametrize("wire", MALFORMED_HEADS)
def test_malformed_heads_by_the_short_way(wire: bytes) -> None:
    try:
        assert read_whole(wire) is None
    except Malformed:
        pass


@SIZES
@pytest.mark.parametrize(
    "chunks",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\na0\r\n\r\n",
        b"1;a\x00\r\na\r\n",
        b"1;a\rb\r\na\r\n",
        b"1" * 16 + b"\r\n",
        b"1;" + b"x" * SIZE_LINE_BYTES,
        b"0" * SIZE_LINE_BYTES,
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\nX: a\nY: b\r\n\r\n",
        b"0\r\nX: " + b"x" * TRAILER_BYTES,
    ],
)
def test_malformed_chunks(chunks: bytes, size: int) -> None:
    with pytest.raises(Malformed):
        fed(CHUNKED + chunks, size)


def test_a_head_is_bounded() -> None:
    with pytest.raises(Malformed, match="head too large"):
        fed(OK + b"X: " + b"x" * HEAD_BYTES, 1000)
    large = OK + b"X: " + b"x" * (HEAD_BYTES - len(OK) - 3 - 4) + b"\r\n\r\n"
    assert len(large) == HEAD_BYTES
    assert fed(large, 1000)[0].head is not None
    assert len(read_head(OK + b"X: 1\r\n" * HEADERS + b"\r\n").headers) == HEADERS


def test_interim_answers_are_bounded_and_101_is_none_of_them() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    assert fed(interim * INTERIM_HEADS + SIZED + b"abc", 1 << 20)[1] == b"abc"
    with pytest.raises(Malformed, match="interim"):
        fed(interim * (INTERIM_HEADS + 1), 5)
    with pytest.raises(Malformed, match="unasked"):
        fed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", 5)


def test_end_to_end_headers_pass_in_order_as_spelt() -> None:
    head = read_head(
        OK + b"Server: x\r\nConnection: close, X-Hop\r\nX-hop: 1\r\nETag:\"a\"  \r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Connection: x\r\nTE: x\r\nTrailer: x\r\nUpgrade: x\r\nProxy-Authenticate: x\r\nset-cookie: a\r\n"
        b"SET-cookie: \xe9\r\nX-Empty:\r\nContent-Encoding: gzip\r\n\r\n"
    )
    assert head.headers == (
        (b"Server", b"x"),
        (b"ETag", b'"a"'),
        (b"set-cookie", b"a"),
        (b"SET-cookie", b"\xe9"),
        (b"X-Empty", b""),
        (b"Content-Encoding", b"gzip"),
    )


@pytest.mark.parametrize(
    ("wire", "keep_alive", "idle_seconds"),
    [
        (OK, True, None),
        (OK + b"Connection: close\r\n", False, None),
        (OK + b"Connection: x\r\nConnection: , CLOSE\r\n", False, None),
        (OK + b"Keep-Alive: timeout=15, max=100\r\n", True, 15),
        (OK + b"Keep-Alive: max=100, Timeout=0\r\n", True, 0),
        (OK + b"Keep-Alive: xtimeout=3\r\n", True, None),
        (b"HTTP/1.0 200 OK\r\n", False, None),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True, None),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n", False, None),
    ],
)
def test_how_long_a_connection_is_kept(wire: bytes, keep_alive: bool, idle_seconds: int | None) -> None:
    head = read_head(wire + b"\r\n")
    assert (head.keep_alive, head.idle_seconds) == (keep_alive, idle_seconds)


def test_the_short_way_takes_exactly_one_answer() -> None:
    whole = read_whole(SIZED + b"abc")
    assert whole is not None
    assert (whole[0].status, whole[0].headers, whole[1]) == (200, ((b"Content-Length", b"3"),), b"abc")
    empty = read_whole(OK + b"Content-Length: 0\r\n\r\n")
    assert empty is not None
    assert empty[1] == b""


@pytest.mark.parametrize(
    "wire",
    [
        SIZED + b"ab",
        SIZED + b"abcd",
        SIZED + b"abc" + SIZED + b"abc",
        SIZED[:-1],
        CHUNKED + b"0\r\n\r\n",
        UNTIL_END,
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc",
        b"",
    ],
)
def test_the_short_way_leaves_the_rest_to_the_long_one(wire: bytes) -> None:
    assert read_whole(wire) is None
