"""What the server lets a peer hold, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from shim.core.exchange import Request, Response
from shim.http.limits import Limits
from shim.http.server import TOLD_AT_ONCE
from tests.unit.http_site import (
    BODY_TO_COME,
    GET,
    ON_BOTH_LOOPS,
    QUICK,
    SOON,
    Run,
    by_turns,
    narrow,
    reset_seen,
    response,
    site,
    until,
)

pytestmark = ON_BOTH_LOOPS


def raise_on_admission(peer: Any, local: Any) -> str:
    raise KeyError(peer)


@pytest.mark.parametrize("admit", [lambda peer, local: None, raise_on_admission])
def test_a_stranger_is_reset(run: Run, admit: Callable[[Any, Any], str | None]) -> None:
    async def main() -> None:
        async with site(admit=admit) as here:
            reader, writer = await here.connect()
            with contextlib.suppress(ConnectionError):
                writer.write(GET)
            assert await reset_seen(reader)
            assert (here.server.stats.strangers, here.server.connections) == (1, 0)

    run(main())


def test_admission_is_by_both_addresses(run: Run) -> None:
    seen: list[tuple[Any, Any]] = []

    def admit(peer: Any, local: Any) -> str:
        seen.append((peer, local))
        return "guest"

    async def main() -> None:
        async with site(admit=admit) as here:
            reader, writer = await here.connect()
            writer.write(GET)
            await response(reader)
            assert seen == [(writer.get_extra_info("sockname"), ("127.0.0.1", here.port))]

    run(main())


def test_connections_per_instance(run: Run) -> None:
    async def main() -> None:
        names = by_turns("a", "a", "a", "b", "a")
        async with site(limits=Limits(connections_per_instance=2), admit=names) as here:
            first, second = await here.connect(), await here.connect()
            answer = await here.exchange(GET)
            assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"retry-after: 1\r\n" in answer
            assert here.server.stats.over_instance_limit == 1
            other = await here.connect()
            for reader, writer in (first, second, other):
                writer.write(GET)
                assert (await response(reader))[0] == 200
            first[1].close()
            await until(lambda: here.server.connections == 2)
            reader, writer = await here.connect()
            writer.write(GET)
            assert (await response(reader))[0] == 200

    run(main())


def test_connections_in_all(run: Run) -> None:
    async def main() -> None:
        async with site(limits=Limits(connections=1), admit=by_turns("a", "b")) as here:
            _, kept = await here.connect()
            answer = await here.exchange(GET)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"retry-after: 1\r\n" in answer
            assert here.server.stats.over_total_limit == 1
            kept.close()

    run(main())


def test_far_over_a_limit_connections_are_reset(run: Run) -> None:
    async def main() -> None:
        async with site(limits=Limits(connections_per_instance=1)) as here:
            held = [await here.connect() for _ in range(1 + TOLD_AT_ONCE)]
            await until(lambda: here.server.connections == len(held))
            reader, _ = await here.connect()
            assert await reset_seen(reader)
            assert (await response(held[-1][0]))[0] == 429
            for _, writer in held:
                writer.close()

    run(main())


@pytest.mark.parametrize(
    ("begun", "statuses"),
    [
        (b"", []),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", [b"408"]),
        (BODY_TO_COME + b"a", [b"408"]),
        (GET, [b"200"]),
        (GET + b"G", [b"200", b"408"]),
        (GET + BODY_TO_COME, [b"200", b"408"]),
    ],
)
def test_each_phase_has_its_time(run: Run, begun: bytes, statuses: list[bytes]) -> None:
    async def main() -> None:
        async with site(limits=QUICK) as here:
            started = asyncio.get_running_loop().time()
            answer = await here.exchange(begun)
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == statuses
            assert here.server.stats.timed_out == statuses.count(b"408")
            assert 0.25 < asyncio.get_running_loop().time() - started < 3

    run(main())


@pytest.mark.parametrize("begun", [b"GET /", BODY_TO_COME])
def test_a_byte_now_and_then_buys_no_time(run: Run, begun: bytes) -> None:
    async def main() -> None:
        async with site(limits=QUICK) as here:
            reader, writer = await here.connect()
            started = asyncio.get_running_loop().time()
            writer.write(begun)
            while here.server.stats.timed_out == 0:
                assert asyncio.get_running_loop().time() - started < 3
                writer.write(b"a")
                await asyncio.sleep(0.02)
            assert (await response(reader))[0] == 408

    run(main())


def test_an_idle_connection_is_closed_after_an_answer_that_came_later_too(run: Run) -> None:
    async def later(caller: str, request: Request) -> Response:
        await asyncio.sleep(0.5)  # longer than every time-out: an answer has the time that it takes
        return Response(200)

    async def main() -> None:
        async with site(later, limits=QUICK) as here:
            assert await here.exchange(GET) == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    run(main())


LARGE = 1_000_000


def test_who_does_not_read_gets_no_more_answers_and_is_cut(run: Run) -> None:
    async def main() -> None:
        large = Response(200, (), b"x" * LARGE)
        async with site(lambda caller, request: large, limits=QUICK) as here:
            sock = narrow(here.port)
            sock.send(GET * 500)
            await until(lambda: here.server.stats.cut_off == 1)
            # What the kernel's buffers held was answered, not the 500.
            assert here.server.stats.requests < 20
            await until(lambda: here.server.connections == 0)
            sock.close()

    run(main())


def test_who_does_not_read_a_last_response_is_cut(run: Run) -> None:
    async def main() -> None:
        large = Response(200, (), b"x" * LARGE * 10, close=True)
        async with site(lambda caller, request: large, limits=QUICK) as here:
            sock = narrow(here.port)
            sock.send(GET)
            await until(lambda: here.server.stats.cut_off == 1 and here.server.connections == 0)
            sock.close()

    run(main())


def test_who_reads_late_gets_all(run: Run) -> None:
    async def main() -> None:
        large = Response(200, (), b"x" * LARGE)
        async with site(lambda caller, request: large) as here:
            reader, writer = await here.connect()
            writer.write(GET * 10)
            await asyncio.sleep(0.1)
            assert here.server.stats.requests < 10
            for _ in range(10):
                assert len((await response(reader))[2]) == LARGE

    run(main())


def test_who_says_that_it_has_sent_all_still_gets_all(run: Run) -> None:
    async def main() -> None:
        large = Response(200, (), b"x" * LARGE)
        async with site(lambda caller, request: large) as here:
            reader, writer = await here.connect()
            writer.write(GET * 10)
            writer.write_eof()
            for _ in range(10):
                assert len((await response(reader))[2]) == LARGE
            assert await asyncio.wait_for(reader.read(), SOON) == b""

    run(main())


def test_a_busy_peer_does_not_starve_another(run: Run) -> None:
    async def main() -> None:
        order: list[bytes] = []

        def handler(caller: str, request: Request) -> Response:
            order.append(request.path)
            if len(order) == 2:
                other.sendall(GET)  # while the busy one has some 2,000 more to be answered
            return Response(200)

        async with site(handler) as here:
            other = socket.create_connection(("127.0.0.1", here.port))
            reader, busy = await here.connect()
            busy.write(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\n")
            await response(reader)
            busy.write(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
            await until(lambda: len(order) == 2002)
            other.close()
            assert order.index(b"/") < 200

    run(main())
