"""Backends that stop, freeze, reset and come back, on real sockets of the loopback: what guests get meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.forward.upstream import Endpoint, Pace, Upstream
from shim.http.client import Client
from tests.unit.forward_site import arrived, run, until

GET = Request(b"GET", b"/latest/meta-data/")
POST = Request(b"POST", b"/openstack/latest/password", body=b"x")
HEALTH = b"/health"
QUICK = Pace(well=0.3, again=0.1, deadline=0.3)


class Backend:
    """An HTTP server that does as told. `seen`: the request lines that reached it, checks aside."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.checks = 0
        self.health = 200
        self.delay = 0.0
        self.resets = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a process that is killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # RuntimeError: uvloop's, for writing to a transport that was aborted.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            while True:
                await self._answer(reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"content-length: 1\r\n" in head.lower():
            await reader.readexactly(1)
        await self._thawed.wait()
        line = head.split(b"\r\n")[0]
        if HEALTH in line:
            self.checks += 1
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self.health)
            return
        self.seen.append(line)
        if self.resets:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        await asyncio.sleep(self.delay)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


class Site:
    """Backends behind one upstream."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.backends: list[Backend] = []
        self.upstream: Upstream

    async def start(self, ports: list[int], read_seconds: float) -> None:
        self.endpoints = [endpoint(port, read_seconds) for port in ports]
        self.upstream = Upstream("nova", self.endpoints, HEALTH, pace=self.pace)
        self.upstream.start()

    @property
    def healthy(self) -> list[bool]:
        return [state.healthy for state in self.upstream.states]

    async def get(self, request: Request = GET) -> Response:
        return await arrived(self.upstream.ask(request))

    async def statuses(self, count: int, request: Request = GET) -> list[int]:
        return [(await self.get(request)).status for _ in range(count)]


def endpoint(port: int, read_seconds: float = 30.0) -> Endpoint:
    address = parse_address(f"http://127.0.0.1:{port}")
    client = Client(address, tls=None, connect_seconds=0.4, read_seconds=read_seconds, connections=64)
    probe = Client(address, tls=None, connect_seconds=2.0, read_seconds=2.0, connections=1, idle_seconds=0.08)
    return Endpoint(address, client, probe)


@contextlib.asynccontextmanager
async def site(
    count: int, *, pace: Pace = QUICK, read_seconds: float = 30.0, more: tuple[int, ...] = ()
) -> AsyncIterator[Site]:
    """`count` backends, and more ports where something else listens."""
    here = Site(pace)
    for _ in range(count):
        here.backends.append(Backend())
        await here.backends[-1].start()
    await here.start([*(backend.port for backend in here.backends), *more], read_seconds)
    try:
        yield here
    finally:
        await here.upstream.close()
        for backend in here.backends:
            backend.thaw()
            await backend.stop()


@contextlib.contextmanager
def within(seconds: float) -> Any:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.2f} s"


@contextlib.contextmanager
def blackhole() -> Any:
    """A port whose listener's backlog is full: to who connects it is as an address that does not answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def test_addresses_take_turns_and_connections_are_kept():
    async def main() -> None:
        async with site(2) as here:
            assert await here.statuses(10) == [200] * 10
            assert [len(backend.seen) for backend in here.backends] == [5, 5]

    run(main())


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
def test_no_request_fails_when_one_of_two_stops_and_it_is_used_again_when_back(request_, caplog):
    async def main() -> None:
        async with site(2) as here:
            first = here.backends[0]
            assert await here.statuses(4, request_) == [200] * 4
            await first.stop()
            assert await here.statuses(50, request_) == [200] * 50
            await until(lambda: here.healthy == [False, True])
            first.seen.clear()
            await first.start()
            await until(lambda: here.healthy == [True, True])
            assert await here.statuses(10, request_) == [200] * 10
            assert len(first.seen) == 5

    caplog.set_level(logging.INFO)
    run(main())
    changes = [record.getMessage() for record in caplog.records if "requests failed" not in record.getMessage()]
    assert len(changes) == 2 and "is down" in changes[0] and "is up again" in changes[1]


def test_with_all_stopped_503_at_once():
    async def main() -> None:
        async with site(2) as here:
            await here.statuses(4)
            for backend in here.backends:
                await backend.stop()
            with within(0.5):
                for _ in range(5):
                    answer = await here.get()
                    assert answer.status == 503 and (b"retry-after", b"2") in answer.headers
            await until(lambda: here.healthy == [False, False])
            await here.backends[1].start()
            await until(lambda: here.healthy == [False, True])
            assert await here.statuses(3) == [200] * 3

    run(main())


def test_a_stopped_backend_that_no_check_has_seen_yet():
    async def main() -> None:
        async with site(1, pace=Pace(well=60, again=0.1, deadline=1)) as here:
            await here.statuses(2)
            await here.backends[0].stop()
            with within(0.3):
                assert (await here.get()).status == 503
            await until(lambda: here.healthy == [False])

    run(main())


def test_an_address_that_does_not_answer_is_passed_over_within_a_second():
    async def main() -> None:
        with blackhole() as port:
            async with site(1, more=(port,), pace=Pace(well=60, again=0.1, deadline=1)) as here:
                for _ in range(6):
                    with within(1.0):
                        assert (await here.get()).status == 200
                await until(lambda: here.healthy == [True, False])

    run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_addresses_that_do_not_answer_give_503_within_a_second(count):
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            ports = tuple(stack.enter_context(blackhole()) for _ in range(count))
            async with site(0, more=ports, pace=Pace(well=2, again=0.1, deadline=1)) as here:
                with within(1.2):
                    answers = await asyncio.gather(*(here.get() for _ in range(5)))
                assert {answer.status for answer in answers} == {503}
                await until(lambda: not any(here.healthy))
                with within(0.05):
                    assert (await here.get()).status == 503

    run(main())


def test_a_frozen_backend_is_found_and_passed_over_until_it_thaws():
    async def main() -> None:
        async with site(1) as here:
            (backend,) = here.backends
            await here.statuses(2)
            backend.freeze()
            with within(2.5):
                answers = await asyncio.gather(*(here.get() for _ in range(5)))
            assert {answer.status for answer in answers} == {504}
            assert here.healthy == [False]
            with within(0.05):
                assert (await here.get()).status == 503
            backend.thaw()
            await until(lambda: here.healthy == [True])
            assert await here.statuses(3) == [200] * 3

    run(main())


def test_one_frozen_of_two_hurts_only_what_it_has():
    async def main() -> None:
        async with site(2) as here:
            await here.statuses(4)
            here.backends[0].freeze()
            answers = await asyncio.gather(*(here.get() for _ in range(4)))
            assert sorted(answer.status for answer in answers) == [200, 200, 504, 504]
            with within(0.5):
                assert await here.statuses(10) == [200] * 10

    run(main())


def test_more_requests_than_connections_at_a_frozen_backend():
    async def main() -> None:
        async with site(1) as here:
            await here.statuses(2)
            here.backends[0].freeze()
            with within(3):
                answers = await asyncio.gather(*(here.get() for _ in range(100)))
            assert {answer.status for answer in answers} <= {503, 504}
            assert len([answer for answer in answers if answer.status == 504]) >= 64

    run(main())


def test_a_slow_backend_that_is_well_is_waited_for():
    async def main() -> None:
        async with site(1) as here:
            here.backends[0].delay = 2.0  # six times as long as a check may take
            answers = await asyncio.gather(*(here.get() for _ in range(5)))
            assert [answer.status for answer in answers] == [200] * 5 and here.healthy == [True]

    run(main())


def test_a_slow_answer_is_given_up_after_read_seconds():
    async def main() -> None:
        async with site(1, read_seconds=0.5) as here:
            here.backends[0].delay = 5
            with within(1.5):
                assert (await here.get()).status == 504
            await asyncio.sleep(0.3)
            assert here.healthy == [True]

    run(main())


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
def test_a_request_that_was_reset_is_not_repeated(request_):
    async def main() -> None:
        async with site(2) as here:
            await here.statuses(4)
            for backend in here.backends:
                backend.seen.clear()
                backend.resets = True
            assert (await here.get(request_)).status == 502
            assert sum(len(backend.seen) for backend in here.backends) == 1

    run(main())


def test_one_that_answers_500_at_the_health_path_is_passed_over():
    async def main() -> None:
        async with site(2) as here:
            here.backends[0].health = 500
            await until(lambda: here.healthy == [False, True])
            here.backends[0].seen.clear()
            assert await here.statuses(6) == [200] * 6 and here.backends[0].seen == []
            here.backends[0].health = 204
            await until(lambda: here.healthy == [True, True])

    run(main())


def test_a_guest_that_goes_is_gone_at_the_backend_too():
    async def main() -> None:
        async with site(1) as here:
            here.backends[0].delay = 5
            answers = [here.upstream.ask(GET) for _ in range(10)]
            await until(lambda: len(here.backends[0].seen) == 10)
            client = here.endpoints[0].client
            assert client.busy == 10
            for answer in answers:
                answer.cancel()
            await until(lambda: client.busy == 0)
            here.backends[0].delay = 0
            assert await here.statuses(3) == [200] * 3

    run(main())


def test_ten_thousand_requests_leave_nothing():
    async def main() -> None:
        async with site(2) as here:
            before = 0
            for _ in range(200):
                answers = await asyncio.gather(*(here.get() for _ in range(50)))
                assert all(answer.status == 200 for answer in answers)
                before = before or len(asyncio.all_tasks())
            assert len(asyncio.all_tasks()) <= before
            assert all(end.client.busy == 0 for end in here.endpoints)

    run(main())


def test_a_backend_that_restarts_all_the_time_under_load():
    """Every request ends, soon, with an answer or with one that says to come again."""

    async def main() -> None:
        async with site(1) as here:
            statuses: set[int] = set()
            over = False

            async def guest() -> None:
                while not over:
                    with within(1.0):
                        statuses.add((await here.get()).status)
                    await asyncio.sleep(0.001)

            guests = [asyncio.ensure_future(guest()) for _ in range(8)]
            for _ in range(5):
                await asyncio.sleep(0.2)
                await here.backends[0].stop()
                await asyncio.sleep(0.1)
                await here.backends[0].start()
            await until(lambda: here.healthy == [True])
            over = True
            await asyncio.gather(*guests)
            assert 200 in statuses and statuses <= {200, 502, 503}
            assert await here.statuses(5) == [200] * 5

    run(main())


def test_closing_ends_what_is_under_way_and_what_waits():
    async def main() -> None:
        async with site(2) as here:
            for backend in here.backends:
                backend.delay = 5
            answers = [asyncio.ensure_future(here.get()) for _ in range(150)]  # 128 connections in all
            await until(lambda: sum(len(backend.seen) for backend in here.backends) == 128)
            await here.upstream.close()
            statuses = [answer.status for answer in await asyncio.gather(*answers)]
            assert sorted(set(statuses)) == [502, 503] and statuses.count(502) == 128
            assert (await here.get()).status == 503

    run(main())
