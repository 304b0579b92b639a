# Invariants: any bytes, split in any way, give the same events (the parts of a body put together) and raise
# nothing; nothing follows a Malformed; what is streamed of a body is what would be collected of it; an accepted
# request, written out again, reads as itself; and llhttp over the whole stream, and a small model that shares
# no code with ours, find the same requests with the same bodies.
"""Fuzzing of the guest's side of HTTP: soups of fragments that parsers disagree on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import httptools
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shim.core.exchange import Request, Response
from shim.http.limits import Limits
from shim.http.parse import Connection, End, Event, Heads, Malformed, Part, Received
from shim.http.serialize import render

LIMITS = Limits(head_bytes=400, headers=8, target_bytes=60, body_bytes=64)
STREAMED = replace(LIMITS, whole_bytes=4)

FRAGMENTS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b HTTP/1.1\r\n",
    b"PUT /x HTTP/1.0\r\n",
    b"HEAD http://h/ HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n",
    b"Host: a\r\n",
    b"host:b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length:0\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: 70\r\n",
    b"Content-Length : 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"X: y\xff z\t\r\n",
    b" folded\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;e=1\r\nhello\r\n",
    b"3\r\nabc\r\n",
    b"hello",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]
SOUPS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=6), max_size=14).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good stream with a few bytes changed, taken out or put in."""
    wire = bytearray(b"".join(draw(st.lists(st.sampled_from(FRAGMENTS[-3:]), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(wire) - 1))
        wire[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        if not wire:
            break
    return bytes(wire)


STREAMS = SOUPS | mutated()
HEADER_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_!", min_size=1, max_size=9)
HEADER_VALUES = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b > 31 and b != 127).strip())


def events(wire: bytes, cuts: list[int], limits: Limits = LIMITS) -> list[Event]:
    connection = Connection(Heads(limits))
    found: list[Event] = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    for start, end in pairwise(edges):
        connection.feed(wire[start:end])
        while (event := connection.next_event()) is not None:
            if isinstance(event, Part) and found and isinstance(found[-1], Part):
                found[-1] = Part(found[-1].data + event.data)
            else:
                found.append(event)
    return found


def accepted(wire: bytes) -> list[Request]:
    return [event.request for event in events(wire, []) if isinstance(event, Received)]


def put_together(found: list[Event]) -> list[Event]:
    """The events as if every body had been collected: what was not whole in the end was never asked."""
    made: list[Event] = []
    streamed, body = None, b""
    for event in found:
        if isinstance(event, Received) and event.streamed:
            assert streamed is None
            streamed, body = event, b""
        elif isinstance(event, Part):
            assert streamed is not None and event.data
            body += event.data
        elif isinstance(event, End):
            assert streamed is not None and streamed.request.length in (None, len(body))
            asked = streamed.request
            request = Request(asked.method, asked.path, asked.query, asked.headers, body)
            made.append(replace(streamed, request=request, streamed=False))
            streamed = None
        else:
            made.append(event)
    return made


@settings(max_examples=1200, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 300), max_size=12))
@example(b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", [24])
def test_splits_do_not_matter(wire: bytes, cuts: list[int]) -> None:
    whole = events(wire, [])
    assert events(wire, cuts) == whole
    assert events(wire, list(range(len(wire)))) == whole
    assert not any(isinstance(event, Malformed) for event in whole[:-1])


@settings(max_examples=1200, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 300), max_size=12))
def test_streamed_bodies_are_the_collected_ones(wire: bytes, cuts: list[int]) -> None:
    whole = events(wire, [], STREAMED)
    assert events(wire, cuts, STREAMED) == whole
    assert events(wire, list(range(len(wire))), STREAMED) == whole
    assert put_together(whole) == events(wire, [])


def written(request: Request) -> bytes:
    """The request with the framing of a client that sends what it has in one piece."""
    target = request.path + (b"?" + request.query if request.query else b"")
    lines = [request.method + b" " + target + b" HTTP/1.1"]
    framing = (b"content-length", b"transfer-encoding", b"expect", b"host")
    lines += [name + b": " + value for name, value in request.headers if name not in framing]
    lines += [b"host: " + (request.header(b"host") or b""), b"content-length: %d" % len(request.body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + request.body


def essence(request: Request) -> tuple[object, ...]:
    framing = (b"content-length", b"transfer-encoding", b"expect", b"host")
    kept = tuple(pair for pair in request.headers if pair[0] not in framing)
    return request.method, request.path, request.query, kept, request.body


@settings(max_examples=600, deadline=None)
@given(STREAMS)
def test_an_accepted_request_written_again_reads_as_itself(wire: bytes) -> None:
    for request in accepted(wire):
        (again,) = accepted(written(request))
        assert essence(again) == essence(request)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([b"GET", b"PUT", b"DELETE"]),
    st.text("abc/%20.~-_", max_size=30).map(lambda path: b"/" + path.encode()),
    st.lists(st.tuples(HEADER_NAMES.map(lambda name: b"x-" + name.encode()), HEADER_VALUES), max_size=6),
    st.binary(max_size=64),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_every_good_request_is_accepted(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, cuts: list[int]
) -> None:
    (event,) = events(written(Request(method, path, b"", tuple(headers), body)), cuts)
    assert isinstance(event, Received)
    assert essence(event.request) == essence(Request(method, single(path), b"", tuple(headers), body))


def single(target: bytes) -> bytes:
    """As it is read: a path without empty segments."""
    path, mark, query = target.partition(b"?")
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path + mark + query


class WholeStream:
    """llhttp's reading of a whole stream: (method, target, body) of each request that it finds whole."""

    def __init__(self, wire: bytes) -> None:
        self.found: list[tuple[bytes, bytes, bytes]] = []
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(wire)
        except httptools.HttpParserError:
            pass

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.found.append((self._parser.get_method(), single(self._url), self._body))


def summary(request: Request) -> tuple[bytes, bytes, bytes]:
    return request.method, request.path + (b"?" + request.query if request.query else b""), request.body


@settings(max_examples=1200, deadline=None)
@given(STREAMS)
def test_llhttp_finds_the_same_requests(wire: bytes) -> None:
    ours = [summary(request) for request in accepted(wire)]
    theirs = WholeStream(wire).found
    # llhttp stops for good at an offer to upgrade and at a close; the server stops at the close too.
    assert theirs[: len(ours)] == ours[: len(theirs)]
    if b"Upgrade" not in wire:
        assert theirs[:1] == ours[:1] or not ours


def modelled(wire: bytes) -> bytes | None:
    """The first body by a model of RFC 9112, 6.3 that believes every line. None if it is not whole."""
    head, blank, rest = wire.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    assert blank
    fields = [line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:]]
    values = {name: value.strip() for name, value in fields}
    if values.get(b"transfer-encoding") != b"chunked":
        length = int(values.get(b"content-length", b"0"))
        return rest[:length] if len(rest) >= length else None
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return None


@settings(max_examples=800, deadline=None)
@given(STREAMS)
def test_a_model_finds_the_same_body(wire: bytes) -> None:
    first = accepted(wire)[:1]
    for request in first:
        assert modelled(wire) == request.body


@settings(max_examples=400, deadline=None)
@given(
    st.integers(-1, 700),
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=3),
    st.binary(max_size=40),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_response_reads_as_itself_or_is_not_made(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, head: bool, keep_alive: bool, http10: bool
) -> None:
    try:
        wire = render(Response(status, tuple(headers), body), head=head, keep_alive=keep_alive, http10=http10)
    except ValueError:
        return
    top, _, rest = wire.partition(b"\r\n\r\n")
    lines = top.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % status)
    assert rest == (b"" if head or status in (204, 304) else body)
    sent = [line.split(b": ", 1)[0].lower() for line in lines[1:]]
    ours = {b"content-length", b"connection", b"transfer-encoding", b"keep-alive"}
    assert [name for name in sent if name not in ours] == [
        name.lower() for name, _ in headers if name.lower() not in ours
    ]
    assert sent.count(b"content-length") == (status not in (204, 304))
