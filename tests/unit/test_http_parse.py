"""What is a request and what is not. Every case runs in one chunk and byte by byte, with one outcome."""

from __future__ import annotations

import pytest

from shim.core.exchange import Request
from shim.http.head import Refused, read_head
from shim.http.limits import Limits
from shim.http.parse import Connection, Continue, End, Event, Heads, Malformed, Part, Phase, Received

LIMITS = Limits(head_bytes=2048, headers=10, target_bytes=256, body_bytes=1000)
HOST = b"Host: 169.254.169.254\r\n"


def pulled(connection: Connection) -> list[Event]:
    events = []
    while (event := connection.next_event()) is not None:
        events.append(event)
    return events


def events_of(wire: bytes, step: int, limits: Limits = LIMITS) -> list[Event]:
    connection = Connection(Heads(limits))
    events: list[Event] = []
    for at in range(0, len(wire), step):
        connection.feed(wire[at : at + step])
        events += pulled(connection)
    return events


def merged(events: list[Event]) -> list[Event]:
    """The events with the parts of each body put together."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Part) and found and isinstance(found[-1], Part):
            found[-1] = Part(found[-1].data + event.data)
        else:
            found.append(event)
    return found


def outcome(wire: bytes, limits: Limits = LIMITS) -> list[Event]:
    """The events, which must be the same however the bytes are split."""
    whole = merged(events_of(wire, len(wire), limits))
    for step in (1, 2, 3, 7):
        assert merged(events_of(wire, step, limits)) == whole, f"differs in steps of {step}"
    return whole


def status(wire: bytes, limits: Limits = LIMITS) -> int:
    """The status of the refusal, which must be the only event."""
    (event,) = outcome(wire, limits)
    assert isinstance(event, Malformed), event
    return event.status


def only_request(wire: bytes, limits: Limits = LIMITS) -> Received:
    (event,) = outcome(wire, limits)
    assert isinstance(event, Received), event
    return event


def get(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])


def test_a_plain_get() -> None:
    lines = b"X-Two:  a b\t \r\nx-two:c\r\nEmpty:\r\n\r\n"
    wire = b"GET /latest/meta-data/?a=b?c HTTP/1.1\r\n" + HOST + lines
    headers = ((b"host", b"169.254.169.254"), (b"x-two", b"a b"), (b"x-two", b"c"), (b"empty", b""))
    request = Request(b"GET", b"/latest/meta-data/", b"a=b?c", headers)
    assert only_request(wire) == Received(request, keep_alive=True, http10=False, head_only=False)


@pytest.mark.parametrize("slashes", [b"//", b"///////"])
def test_slashes_are_one(slashes: bytes) -> None:
    path = slashes + b"latest" + slashes + b"meta-data" + slashes
    request = only_request(b"GET " + path + b"?a=//b HTTP/1.1\r\n" + HOST + b"\r\n").request
    assert (request.path, request.query) == (b"/latest/meta-data/", b"a=//b")
    assert only_request(b"GET " + slashes + b" HTTP/1.1\r\n" + HOST + b"\r\n").request.path == b"/"


def test_a_head_is_marked() -> None:
    assert only_request(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n").head_only


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
def test_known_methods(method: bytes) -> None:
    assert only_request(method + b" /a HTTP/1.1\r\n" + HOST + b"\r\n").request.method == method


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"CONNECT 169.254.169.254:80 HTTP/1.1", 405),
        (b"CONNECT / HTTP/1.1", 405),
        (b"TRACE / HTTP/1.1", 405),
        (b"BREW / HTTP/1.1", 501),
        (b"get / HTTP/1.1", 501),
        (b"G@T / HTTP/1.1", 400),
        (b"G\xc9T / HTTP/1.1", 400),
        (b" / HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET\t/\tHTTP/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET HTTP/1.1", 400),
        (b"GET", 400),
        (b"GET http://169.254.169.254/ HTTP/1.1", 400),
        (b"GET 169.254.169.254:80 HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 400),
        (b"GET latest HTTP/1.1", 400),
        (b"GET ?a HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /a\\b HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\t HTTP/1.1", 400),
        (b"GET / HTTP/1.1x", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/11.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET / HTTP/1.\xb2", 400),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
    ],
)
def test_request_lines_refused(line: bytes, expected: int) -> None:
    assert status(line + b"\r\n" + HOST + b"\r\n") == expected


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"GET /\r\n", 505),  # HTTP/0.9: nothing more would come
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),  # HTTP/2 with prior knowledge
        (b"GET / HTTP/2.0\r\n", 505),  # before the head is whole
        (b"\x16\x03\x01\x02\x00\x01", 400),  # TLS
        (b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        (b"\nGET / HTTP/1.1\r\n", 400),
    ],
)
def test_what_is_no_head_is_refused_at_once(wire: bytes, expected: int) -> None:
    assert status(wire) == expected


@pytest.mark.parametrize("byte", [*range(0x09), *range(0x0A, 0x20), 0x7F])
@pytest.mark.parametrize("place", [b"X: a%cb", b"X%ca: b", b"X: %c", b"%cX: b"])
def test_control_characters_anywhere(byte: int, place: bytes) -> None:
    assert status(get(HOST[:-2], place % byte)) == 400


@pytest.mark.parametrize(
    "line",
    [
        b" folded",
        b"\tfolded",
        b"Name : b",
        b"Name\t: b",
        b": b",
        b"no colon",
        b"a b: c",
        b"a(b): c",
        b"a\xe9b: c",
        b"a@b: c",
        b'"a": c',
    ],
)
def test_header_lines_refused(line: bytes) -> None:
    assert status(get(HOST[:-2], line)) == 400
    assert status(get(line, HOST[:-2])) == 400


def test_header_values_may_hold_tabs_and_high_bytes() -> None:
    received = only_request(get(HOST[:-2], b"X: a\tb\xff\xc3\xa9"))
    assert received.request.header(b"x") == b"a\tb\xff\xc3\xa9"


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"Host: a", b"Host: a"),
        (b"Host: a", b"HOST: b"),
        (b"Host: a, b c",),
        (b"Host: a/b",),
        (b"Host: user@a",),
        (b"Host: a\xe9",),
        (b"Host: a?b",),
    ],
)
def test_hosts_refused(lines: tuple[bytes, ...]) -> None:
    assert status(get(*lines)) == 400


@pytest.mark.parametrize(
    "host", [b"", b"a", b"a.example:80", b"[fe80::a9fe:a9fe%25eth0]", b"[fe80::a9fe:a9fe%eth0]:80", b"a_b"]
)
def test_hosts_accepted(host: bytes) -> None:
    assert only_request(get(b"Host: " + host)).request.header(b"host") == host


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /p HTTP/1.1", HOST[:-2], *lines, b"", b""]) + body


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5", b"content-length: 6"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 5,5",),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: 5 5",),
        (b"Content-Length: 5.0",),
        (b"Content-Length: 1_0",),
        (b"Content-Length:",),
        (b"Content-Length: \xb2",),
        (b"Content-Length: \xd9\xa5",),
        (b"Content-Length: 18446744073709551621",),
        (b"Content-Length: " + b"0" * 30 + b"5",),
        (b"Expect: 100-continue", b"Expect: 100-continue"),
    ],
)
def test_ambiguous_framing_is_refused(lines: tuple[bytes, ...]) -> None:
    assert status(post(*lines, body=b"5\r\nhello\r\n0\r\n\r\n")) == 400


@pytest.mark.parametrize(
    "coding",
    [b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked;a", b"xchunked", b"", b'"chunked"'],
)
def test_other_codings_are_not_known(coding: bytes) -> None:
    assert status(post(b"Transfer-Encoding: " + coding, body=b"0\r\n\r\n")) == 501


def test_chunked_in_http10_is_refused() -> None:
    assert status(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") == 400


def test_a_body_by_length_is_whole_however_it_is_split() -> None:
    body = bytes(range(256)) + b"\r\n\r\n"
    received = only_request(post(b"Content-Length: 260", body=body))
    assert received.request.body == body
    assert received.request.path == b"/p"


def test_a_get_may_have_a_body_and_a_post_may_have_none() -> None:
    assert only_request(get(HOST[:-2], b"Content-Length: 2") + b"ab").request.body == b"ab"
    assert only_request(post(b"Content-Length: 0")).request.body == b""
    assert only_request(post()).request.body == b""


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *lines, body=body)


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\nA\r\n" + b"\r\n" * 6 + b"0\r\n\r\n", b"0123456789" + b"\r\n" * 5),
        (b"00000005\r\nhello\r\n000\r\n\r\n", b"hello"),
    ],
)
def test_chunked_bodies(wire: bytes, body: bytes) -> None:
    assert only_request(chunked(wire)).request.body == body


def test_chunked_in_any_case() -> None:
    assert only_request(post(b"Transfer-Encoding: CHUNKED", body=b"1\r\na\r\n0\r\n\r\n")).request.body == b"a"


@pytest.mark.parametrize(
    "wire",
    [
        b"5;ext=1\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\rhello",
        b"\r\nhello\r\n0\r\n\r\n",
        b"000000005\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff1\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"g\r\n",
        b"0\r\nTrailer: a\r\n\r\n",
        b"0\r\nX",
        b"0;a\r\n\r\n",
        b"0\r\n\n",
    ],
)
def test_chunk_tricks_are_refused(wire: bytes) -> None:
    assert status(chunked(wire)) == 400


def test_limits_at_their_edges() -> None:
    assert only_request(post(b"Content-Length: 1000", body=b"x" * 1000)).request.body == b"x" * 1000
    assert status(post(b"Content-Length: 1001")) == 413  # before a byte of it
    assert only_request(chunked(b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")).request.body == b"x" * 1000
    assert status(chunked(b"3e9\r\n")) == 413
    assert status(chunked(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n")) == 413
    assert len(only_request(get(HOST[:-2], *[b"a: b"] * 9)).request.headers) == 10
    assert status(get(HOST[:-2], *[b"a: b"] * 10)) == 431
    assert only_request(b"GET /%b HTTP/1.1\r\n" % (b"a" * 255) + HOST + b"\r\n")
    assert status(b"GET /%b HTTP/1.1\r\n" % (b"a" * 256) + HOST + b"\r\n") == 414


def test_a_head_of_exactly_the_limit_and_one_byte_more() -> None:
    room = LIMITS.head_bytes - len(get(HOST[:-2], b"X: "))
    assert only_request(get(HOST[:-2], b"X: " + b"a" * room))
    assert status(get(HOST[:-2], b"X: " + b"a" * (room + 1))) == 431


def test_a_head_that_never_ends_is_refused_at_the_limit() -> None:
    assert status(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000) == 431
    assert status(b"GET /" + b"a" * 5000) == 414
    assert status(b"a" * 5000) == 414


def test_too_many_chunks_are_refused() -> None:
    limits = Limits(body_bytes=100_000)
    wire = chunked(b"1\r\na\r\n" * 5000 + b"0\r\n\r\n")
    events = events_of(wire, 4096, limits)
    assert [type(event) for event in events] == [Malformed]
    assert events == events_of(wire, len(wire), limits)


STREAMED = Limits(body_bytes=1000, whole_bytes=10)


def test_a_sized_body_too_large_to_collect_follows_in_parts() -> None:
    wire = post(b"Content-Length: 11", body=b"hello world") + get(HOST[:-2])
    received, part, end, after = outcome(wire, STREAMED)
    assert isinstance(received, Received) and received.streamed
    assert (received.request.length, received.request.body) == (11, b"")
    assert (part, end) == (Part(b"hello world"), End())
    assert isinstance(after, Received) and not after.streamed and after.request.length is None


def test_a_chunked_body_that_grows_too_large_follows_in_parts() -> None:
    wire = chunked(b"5\r\nhello\r\n5\r\n worl\r\n1\r\nd\r\n0\r\n\r\n") + get(HOST[:-2])
    received, part, end, after = outcome(wire, STREAMED)
    assert isinstance(received, Received) and received.streamed and received.request.length is None
    assert (part, end) == (Part(b"hello world"), End())
    assert isinstance(after, Received) and not after.streamed


def test_bodies_of_just_the_size_are_collected() -> None:
    for wire in (post(b"Content-Length: 10", body=b"hello worl"), chunked(b"a\r\nhello worl\r\n0\r\n\r\n")):
        received = only_request(wire, STREAMED)
        assert (received.streamed, received.request.body) == (False, b"hello worl")


def test_a_large_body_is_announced_by_its_head_alone() -> None:
    (received,) = outcome(post(b"Content-Length: 11"), STREAMED)
    assert isinstance(received, Received) and received.streamed
    first, received = outcome(post(b"Content-Length: 11", b"Expect: 100-continue"), STREAMED)
    assert first == Continue() and isinstance(received, Received) and received.streamed
    (received,) = outcome(chunked(b"b\r\n"), STREAMED)
    assert isinstance(received, Received) and received.streamed


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (b"b\r\nhello worldX", 400),
        (b"b\r\nhello world\r\n1;e\r\n", 400),
        (b"b\r\nhello world\r\n0\r\nTrailer: a\r\n\r\n", 400),
        (b"b\r\nhello world\r\n3de\r\n", 413),
    ],
)
def test_what_is_wrong_with_a_body_is_told_after_its_parts(rest: bytes, expected: int) -> None:
    received, part, bad = outcome(chunked(rest) + get(HOST[:-2]), STREAMED)
    assert isinstance(received, Received) and received.streamed
    assert part == Part(b"hello world")
    assert isinstance(bad, Malformed) and bad.status == expected


def test_large_bodies_may_come_in_more_chunks() -> None:
    limits = Limits(body_bytes=1_000_000)
    for count, last in ((15_625, End), (15_626, Malformed)):  # one to 64 bytes, the last chunk included
        wire = chunked(b"2\r\nab\r\n" * (count - 1) + b"0\r\n\r\n")
        assert isinstance(events_of(wire, len(wire), limits)[-1], last)


def test_the_phase_of_a_body_in_parts() -> None:
    connection = Connection(Heads(STREAMED))
    connection.feed(post(b"Content-Length: 20", body=b"hello"))
    assert [type(event) for event in pulled(connection)] == [Received, Part]
    assert (connection.phase, connection.buffered) == (Phase.BODY, 0)
    connection.feed(b"x" * 15 + b"G")
    assert [type(event) for event in pulled(connection)] == [Part, End]
    assert (connection.phase, connection.buffered) == (Phase.HEAD, 1)


def test_what_is_collected_counts_as_buffered() -> None:
    connection = Connection(Heads(LIMITS))
    connection.feed(post(b"Content-Length: 20", body=b"hello"))
    assert pulled(connection) == []
    assert connection.buffered == 5


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", None, True),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Close", False),
        (b"1.1", b"te , close", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.1", b"closed", True),
        (b"1.1", b"Upgrade, HTTP2-Settings", True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_keep_alive(version: bytes, connection: bytes | None, kept: bool) -> None:
    line = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    received = only_request(b"GET / HTTP/" + version + b"\r\n" + HOST + line + b"\r\n")
    assert received.keep_alive is kept
    assert received.http10 is (version == b"1.0")


def test_close_in_a_second_connection_header_counts() -> None:
    assert not only_request(get(HOST[:-2], b"Connection: te", b"Connection: close")).keep_alive


def test_http10_needs_no_host() -> None:
    assert only_request(b"GET / HTTP/1.0\r\n\r\n").request.headers == ()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2"])
def test_an_upgrade_is_not_taken_and_what_follows_is_http(protocol: bytes) -> None:
    wire = get(HOST[:-2], b"Connection: Upgrade", b"Upgrade: " + protocol)
    first, second = outcome(wire + get(HOST[:-2], b"n: 2"))
    assert isinstance(first, Received) and isinstance(second, Received)
    assert second.request.header(b"n") == b"2"
    assert [type(event) for event in outcome(wire + b"PRI * HTTP/2.0\r\n\r\n")] == [Received, Malformed]


def test_continue_is_asked_for_before_the_body() -> None:
    first, second = outcome(post(b"Content-Length: 3", b"Expect: 100-Continue", body=b"abc"))
    assert first == Continue()
    assert isinstance(second, Received) and second.request.body == b"abc"


def test_continue_is_not_for_a_request_without_body_nor_http10_nor_too_much() -> None:
    assert only_request(post(b"Expect: 100-continue"))
    assert only_request(post(b"Expect: 100-continue", b"Content-Length: 0"))
    assert only_request(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na")
    assert status(post(b"Content-Length: 1001", b"Expect: 100-continue")) == 413


def test_other_expectations_fail() -> None:
    assert status(post(b"Expect: 200-maybe", b"Content-Length: 1", body=b"a")) == 417


def test_pipelined_requests_come_in_order_up_to_the_first_bad_one() -> None:
    wire = get(HOST[:-2], b"n: 1") + post(b"Content-Length: 4", body=b"GET ")
    wire += chunked(b"1\r\na\r\n0\r\n\r\n")
    events = outcome(wire + b"BAD\r\n\r\n" + get(HOST[:-2]))
    assert [type(event) for event in events] == [Received, Received, Received, Malformed]
    assert [event.request.body for event in events[:3] if isinstance(event, Received)] == [b"", b"GET ", b"a"]


def test_a_bad_byte_after_a_whole_request_does_not_spoil_it() -> None:
    assert [type(event) for event in outcome(get(HOST[:-2]) + b"\x00")] == [Received, Malformed]


def test_one_stray_line_end_between_requests_is_passed_over() -> None:
    wire = post(b"Content-Length: 2", body=b"ab") + b"\r\n" + get(HOST[:-2]) + b"\r\n" + get(HOST[:-2])
    events = outcome(wire)
    assert [type(event) for event in events] == [Received] * 3


def test_phases() -> None:
    connection = Connection(Heads(LIMITS))
    steps = [(b"POST / HT", Phase.HEAD), (b"TP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n", Phase.BODY)]
    seen = []
    assert connection.phase is Phase.IDLE
    for data, _ in steps:
        connection.feed(data)
        assert pulled(connection) == []
        seen.append(connection.phase)
    assert seen == [phase for _, phase in steps]
    connection.feed(b"ab")
    assert len(pulled(connection)) == 1
    assert (connection.phase, connection.buffered) == (Phase.IDLE, 0)
    connection.feed(b"\x00")
    assert len(pulled(connection)) == 1
    assert connection.phase is Phase.OVER
    connection.feed(get(HOST[:-2]))
    assert (pulled(connection), connection.buffered) == ([], 0)


def test_remembered_heads_are_told_apart_by_every_byte() -> None:
    heads = Heads(LIMITS)
    for value in (b"a", b"b", b"a", b"A"):
        connection = Connection(heads)
        connection.feed(get(HOST[:-2], b"X: " + value))
        (event,) = pulled(connection)
        assert isinstance(event, Received) and event.request.header(b"x") == value


def test_a_remembered_head_gives_each_request_its_own_body() -> None:
    connection = Connection(Heads(LIMITS))
    bodies = []
    for body in (b"one", b"two"):
        connection.feed(post(b"Content-Length: 3", body=body))
        (event,) = pulled(connection)
        assert isinstance(event, Received)
        bodies.append(event.request.body)
    assert bodies == [b"one", b"two"]


def test_the_memory_of_heads_is_bounded() -> None:
    heads = Heads(Limits())
    wires = [get(HOST[:-2], b"n: %d" % number) for number in range(2000)]
    for wire in wires:
        heads.read(wire)
    assert sum(heads.recall(wire) is not None for wire in wires) == 512
    assert heads.recall(wires[-1]) is not None
    large = get(HOST[:-2], b"X: " + b"a" * 2000)
    heads.read(large)
    assert heads.recall(large) is None


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (
            post(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
            "Content-Length and Transfer-Encoding together",
        ),
        (get(HOST[:-2], b" folded"), "folded header line"),
        (get(HOST[:-2], b"Host: a"), "header given more than once: host"),
    ],
)
def test_reasons_that_help_to_find_the_fault(wire: bytes, reason: str) -> None:
    assert outcome(wire) == [Malformed(400, reason)]


@pytest.mark.parametrize(
    "unscanned",
    [b"Host: a\r\nX: a\rb\r\n\r\n", b"Host: a\nX: b\r\n\r\n", b"Host: a\r\nX:"],
)
def test_the_second_reading_refuses_what_slipped_past_the_first(unscanned: bytes) -> None:
    with pytest.raises(Refused):
        read_head(b"GET / HTTP/1.1\r\n" + unscanned, LIMITS)
