"""What an observer is told: once a request, with what the peer got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shim.core.exchange import Request, Response
from shim.http.limits import Limits
from tests.unit.http_site import (
    BODY_TO_COME,
    GET,
    ON_BOTH_LOOPS,
    QUICK,
    SOON,
    Handler,
    Run,
    hello,
    reset_seen,
    site,
    until,
)

pytestmark = ON_BOTH_LOOPS

Row = tuple[str, bytes | None, int, int, str]
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE_BODY = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + b"a" * 2000


class Book:
    """What was told, without the seconds, which are kept apart."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds: list[float] = []

    def __call__(
        self, caller: str, request: Request | None, status: int, body_bytes: int, seconds: float, backend: str
    ) -> None:
        self.rows.append((caller, None if request is None else request.method, status, body_bytes, backend))
        self.seconds.append(seconds)


async def parts(*given: bytes, wait: bool = False) -> AsyncIterator[bytes]:
    for part in given:
        yield part
    if wait:
        await asyncio.Event().wait()


def raising(caller: str, request: Request) -> Response:
    raise ValueError


async def unread(caller: str, request: Request) -> Response:
    await asyncio.Event().wait()
    return Response(200)


async def later(caller: str, request: Request) -> Response:
    await asyncio.sleep(0.03)
    return Response(202, (), b"abc", backend="nova")


CASES: dict[str, tuple[Handler, bytes, list[Row]]] = {
    "a whole response": (
        lambda caller, request: Response(201, (), b"abc", backend="nova", close=True),
        GET,
        [("guest", b"GET", 201, 3, "nova")],
    ),
    "each of two": (hello, GET + GET, [("guest", b"GET", 200, 7, "")] * 2),
    "a HEAD": (hello, HEAD, [("guest", b"HEAD", 200, 0, "")]),
    "no content": (lambda caller, request: Response(204, (), b"abc"), GET, [("guest", b"GET", 204, 0, "")]),
    "an answer that came later": (later, GET, [("guest", b"GET", 202, 3, "nova")]),
    "a failure": (raising, GET, [("guest", b"GET", 500, 15, "")]),
    "parts": (
        lambda caller, request: Response(200, (), parts=parts(b"ab", b"c"), backend="http"),
        GET,
        [("guest", b"GET", 200, 3, "http")],
    ),
    "parts for a HEAD": (
        lambda caller, request: Response(200, (), parts=parts(b"ab", b"c"), backend="http"),
        HEAD,
        [("guest", b"HEAD", 200, 0, "http")],
    ),
    "too few parts": (
        lambda caller, request: Response(206, (), parts=parts(b"ab"), length=3, backend="http"),
        GET,
        [("guest", b"GET", 206, 2, "http")],
    ),
    "malformed": (hello, b"BAD\r\n\r\n", [("guest", None, 400, 23, "")]),
    "malformed after a good one": (
        hello,
        GET + b"BAD\r\n\r\n",
        [("guest", b"GET", 200, 7, ""), ("guest", None, 400, 23, "")],
    ),
    "a late head": (hello, GET[:-2], [("guest", None, 408, 29, "")]),
    "a late body": (hello, BODY_TO_COME, [("guest", None, 408, 29, "")]),
    "a late body in parts": (unread, LARGE_BODY, [("guest", b"PUT", 408, 29, "")]),
    "a malformed body in parts": (unread, LARGE_BODY + b"a" * 2096, [("guest", b"PUT", 400, 30, "")]),
    "nothing": (hello, b"", []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_told(run: Run, case: str) -> None:
    handler, wire, expected = CASES[case]

    async def main() -> None:
        book = Book()
        async with site(handler, replace(QUICK, whole_bytes=1000), observe=book) as here:
            reader, writer = await here.connect()
            writer.write(wire)
            await reset_seen(reader)  # or not: the server ends it, idle or not
            writer.close()
            await until(lambda: here.server.connections == 0)
            assert book.rows == expected
            assert all(0 <= second < SOON for second in book.seconds)

    run(main())


def test_seconds_are_the_handlers(run: Run) -> None:
    async def main() -> None:
        book = Book()
        async with site(later, observe=book) as here:
            await here.exchange(GET.replace(b"1.1", b"1.0"))
            (seconds,) = book.seconds
            assert 0.02 < seconds < SOON

    run(main())


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (unread, ("guest", b"GET", 499, 0, "")),
        (
            lambda caller, request: Response(203, (), parts=parts(b"abc", wait=True), backend="http"),
            ("guest", b"GET", 203, 3, "http"),
        ),
    ],
)
@pytest.mark.parametrize("who", ["guest", "server"])
def test_who_leaves_is_told_of(run: Run, handler: Handler, expected: Row, who: str) -> None:
    async def main() -> None:
        book = Book()
        async with site(handler, observe=book) as here:
            _, writer = await here.connect()
            writer.write(GET)
            await until(lambda: here.server.stats.requests == 1)
            await asyncio.sleep(0.02)
            if who == "guest":
                writer.close()
            else:
                here.server.abort(lambda caller: True)
            await until(lambda: here.server.connections == 0)
            assert book.rows == [expected]

    run(main())


@pytest.mark.parametrize(
    ("limits", "status", "size"),
    [(Limits(connections_per_instance=1), 429, 38), (Limits(connections=1), 503, 21)],
)
def test_connections_over_a_limit(run: Run, limits: Limits, status: int, size: int) -> None:
    async def main() -> None:
        book = Book()
        async with site(limits=limits, observe=book) as here:
            await here.connect()
            await here.exchange(GET)
            assert book.rows == [("guest", None, status, size, "")]
            assert book.seconds == [0.0]

    run(main())


def test_an_observer_that_fails_harms_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*told: object) -> None:
        raise ValueError("secret")

    async def main() -> None:
        async with site(observe=broken) as here:
            answer = await here.exchange(GET + GET.replace(b"1.1", b"1.0"))
            assert answer.count(b"hello /") == 2

    run(main())
    assert caplog.text.count("request not observed: ValueError") == 2
    assert "secret" not in caplog.text
