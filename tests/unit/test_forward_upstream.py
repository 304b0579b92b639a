"""Which address is asked, what follows when it fails, what is thought of it: on clients that tests drive by hand."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.forward.health import Finding, Health, State, judge
from shim.forward.upstream import RETRY_SECONDS, Answer, Endpoint, Pace, Upstream

GET = Request(b"GET", b"/latest/meta-data/")
OK = Response(200, (), b"yes")
REFUSED = BackendError("connection refused", sent=False)
BROKEN = BackendError("closed within the answer", sent=True)
LATE = BackendError("silent for 30 s", sent=True, late=True)
QUICK = Pace(well=0.05, again=0.01, deadline=0.05)

Done = Callable[[Response | BackendError], None]


class ByHand:
    """A client whose calls end when the test says so, or at once with `always`."""

    def __init__(self, always: Response | BackendError | None = None) -> None:
        self.always = always
        self.calls: list[ByHandCall] = []
        self.asked: list[Request] = []
        self.silenced: list[str] = []
        self.closed = False

    @property
    def busy(self) -> int:
        return len(self.calls)

    def ask(self, request: Request, done: Done) -> ByHandCall:
        self.asked.append(request)
        call = ByHandCall(self, done)
        self.calls.append(call)
        if self.always is not None:
            call.end(self.always)
        return call

    def end(self, outcome: Response | BackendError) -> None:
        """The oldest call ends."""
        self.calls[0].end(outcome)

    def fail_silent(self, why: str) -> None:
        self.silenced.append(why)
        for call in list(self.calls):
            call.end(BackendError(why, sent=True, late=True))

    async def close(self) -> None:
        self.closed = True


class ByHandCall:
    def __init__(self, client: ByHand, done: Done) -> None:
        self._client = client
        self._done: Done | None = done
        self.cancelled = False

    def end(self, outcome: Response | BackendError) -> None:
        done, self._done = self._done, None
        assert done is not None, "ended twice, or after it was cancelled"
        self._client.calls.remove(self)
        done(outcome)

    def cancel(self) -> None:
        assert self._done is not None, "cancelled after its end"
        self._client.calls.remove(self)
        self._done = None
        self.cancelled = True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Site:
    """An upstream of as many addresses as there are clients, with a clock that stands still."""

    def __init__(self, *clients: ByHand, pace: Pace = QUICK) -> None:
        self.clock = Clock()
        self.clients = clients
        self.probes = [ByHand(OK) for _ in clients]
        pairs = zip(clients, self.probes, strict=True)
        endpoints = [
            Endpoint(parse_address(f"http://10.0.0.{number}:80"), client, probe)
            for number, (client, probe) in enumerate(pairs, 1)
        ]
        self.upstream = Upstream("nova", endpoints, b"/health", self.clock, pace)

    @property
    def healthy(self) -> list[bool]:
        return [state.healthy for state in self.upstream.states]

    def asked(self) -> list[int]:
        return [len(client.asked) for client in self.clients]


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Runs a coroutine on uvloop; no exception may go astray there."""

    def it(main: Coroutine[Any, Any, None]) -> None:
        strays: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: strays.append(context))
            await asyncio.wait_for(main, 20)

        uvloop.run(watched())
        assert not strays, strays

    yield it


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def ended(answer: Response | asyncio.Future[Response]) -> Response:
    """What is at hand by now."""
    return answer if isinstance(answer, Response) else answer.result()


# What is thought of an address.


@pytest.mark.parametrize(
    ("outcome", "finding"),
    [
        (Response(200), Finding.PASSED),
        (Response(404), Finding.PASSED),
        (Response(499), Finding.PASSED),
        (Response(500), Finding.BAD),
        (Response(503), Finding.BAD),
        (REFUSED, Finding.REFUSED),
        (BROKEN, Finding.BAD),
        (LATE, Finding.SILENT),
        (BackendError("connect timed out", sent=False, late=True), Finding.SILENT),
    ],
)
def test_what_a_checks_outcome_says(outcome, finding):
    assert judge(outcome)[0] is finding
    assert bool(judge(outcome)[1]) == (finding is not Finding.PASSED)


P, R, S, B = Finding.PASSED, Finding.REFUSED, Finding.SILENT, Finding.BAD
UP, DOUBTED, DOWN = State.UP, State.DOUBTED, State.DOWN


@pytest.mark.parametrize(
    ("findings", "states"),
    [
        ([P, P], [UP, UP]),
        ([R, P], [DOWN, UP]),
        ([S, S, S, P], [DOUBTED, DOWN, DOWN, UP]),
        ([B, P, B, S, B], [DOUBTED, UP, DOUBTED, DOWN, DOWN]),
        ([S, R, S], [DOUBTED, DOWN, DOWN]),
        ([R, P, S, S], [DOWN, UP, DOUBTED, DOWN]),
    ],
)
def test_what_checks_lead_to(findings, states):
    health, seen, changes = Health(0.0), [], []
    for number, finding in enumerate(findings):
        changes.append(health.check(finding, "why", float(number), answered=False))
        seen.append(health.state)
    assert seen == states
    down = [False, *(state is DOWN for state in states)]
    assert changes == [before != after for before, after in pairwise(down)]


def test_a_request_that_fails_brings_doubt_and_no_more():
    health = Health(1.0)
    health.doubt("closed", 2.0)
    assert (health.state, health.why, health.since) == (DOUBTED, "closed", 2.0)
    health.doubt("again", 3.0)
    assert (health.why, health.since) == ("closed", 2.0)
    health.check(S, "silent", 4.0, answered=False)
    assert health.state is DOUBTED
    health.check(S, "silent", 5.0, answered=False)
    assert (health.state, health.why, health.since) == (DOWN, "silent", 5.0)
    health.doubt("closed", 6.0)
    assert health.state is DOWN


def test_one_that_answers_requests_is_not_frozen_though_checks_wait():
    health = Health(0.0)
    for _ in range(5):
        assert not health.check(S, "silent", 1.0, answered=True)
    assert health.state is UP
    health.check(B, "answers 500", 2.0, answered=True)
    assert health.check(B, "answers 500", 3.0, answered=True)
    assert not health.check(S, "silent", 4.0, answered=True)
    assert health.state is DOWN


# Requests.


def test_addresses_take_turns(run):
    async def main() -> None:
        site = Site(ByHand(OK), ByHand(OK), ByHand(OK))
        for _ in range(9):
            assert ended(site.upstream.ask(GET)) == OK
        assert site.asked() == [3, 3, 3]

    run(main())


def test_an_answer_is_there_as_soon_as_the_client_has_it(run):
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        assert not answer.done()
        site.clients[0].end(OK)
        assert answer.done() and answer.result() is OK

    run(main())


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_never_reached_one_address_is_asked_at_the_next(run, method):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK))
        request = Request(method, b"/", body=b"x")
        for _ in range(4):
            assert ended(site.upstream.ask(request)) == OK
        assert site.asked() == [1, 4], "the one that refused is doubted at once"

    run(main())


def test_a_doubted_address_is_used_when_there_is_no_other(run):
    async def main() -> None:
        client = ByHand(REFUSED)
        site = Site(client)
        assert ended(site.upstream.ask(GET)).status == 503
        client.always = OK
        assert ended(site.upstream.ask(GET)) == OK
        assert site.healthy == [True]

    run(main())


def test_a_kept_connection_that_was_closed_costs_nobody_an_answer(run):
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        site.clients[0].end(REFUSED)
        site.clients[0].end(OK)
        assert ended(answer) == OK

    run(main())


def test_all_are_tried_before_it_is_given_up(run):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(REFUSED), ByHand(REFUSED))
        answer = ended(site.upstream.ask(GET))
        assert answer.status == 503 and answer.backend == "nova"
        assert (b"retry-after", b"2") in answer.headers and (b"content-type", b"text/plain") in answer.headers
        assert sorted(site.asked()) == [1, 1, 2], "the first once more"

    run(main())


@pytest.mark.parametrize(("error", "status"), [(BROKEN, 502), (LATE, 504)])
def test_what_may_have_reached_it_is_not_repeated(run, error, status):
    async def main() -> None:
        site = Site(ByHand(error), ByHand(error))
        answer = ended(site.upstream.ask(Request(b"POST", b"/password", body=b"x")))
        assert answer.status == status and answer.backend == "nova"
        assert any(name == b"retry-after" for name, _ in answer.headers)
        assert sum(site.asked()) == 1

    run(main())


@pytest.mark.parametrize(("took", "asked"), [(RETRY_SECONDS - 0.1, 2), (RETRY_SECONDS + 0.1, 1)])
def test_another_is_asked_within_a_second_only(run, took, asked):
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        answer = site.upstream.ask(GET)
        first, second = sorted(site.clients, key=lambda client: -client.busy)
        site.clock.now += took
        first.end(BackendError("connect timed out", sent=False, late=True))
        assert sum(site.asked()) == asked
        if second.calls:
            second.end(OK)
        assert ended(answer).status == (200 if asked == 2 else 503)

    run(main())


def test_one_that_was_slow_to_refuse_is_not_asked_again(run):
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        site.clock.now += 0.4
        site.clients[0].end(BackendError("connect timed out", sent=False, late=True))
        assert ended(answer).status == 503 and site.asked() == [1]

    run(main())


async def _parts() -> Any:
    yield b"one"
    yield b"two"


@pytest.mark.parametrize(("read", "asked"), [(False, 2), (True, 1)])
def test_a_body_in_parts_is_not_sent_twice_once_read(run, read, asked):
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        answer = site.upstream.ask(Request(b"POST", b"/", parts=_parts(), length=6))
        first, second = sorted(site.clients, key=lambda client: -client.busy)
        if read:
            assert await anext(first.asked[0].parts) == b"one"
        first.end(REFUSED)
        assert sum(site.asked()) == asked
        if second.calls:
            assert second.asked[0].length == 6
            assert [part async for part in second.asked[0].parts] == [b"one", b"two"]
            second.end(OK)
        assert ended(answer).status == (503 if read else 200)

    run(main())


def test_giving_up_a_body_in_parts_reaches_its_source(run):
    async def main() -> None:
        site = Site(ByHand())
        source = _parts()
        site.upstream.ask(Request(b"POST", b"/", parts=source))
        passed = site.clients[0].asked[0].parts
        await anext(passed)
        await passed.aclose()
        assert [part async for part in source] == []

    run(main())


def test_cancelling_gives_the_call_up(run):
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        (call,) = site.clients[0].calls
        assert answer.cancel() and call.cancelled and answer.cancelled()
        assert not answer.cancel()

    run(main())


def test_cancelling_after_fail_over_gives_up_the_call_of_now(run):
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        answer = site.upstream.ask(GET)
        first, second = sorted(site.clients, key=lambda client: -client.busy)
        first.end(REFUSED)
        (call,) = second.calls
        answer.cancel()
        assert call.cancelled

    run(main())


def test_cancelling_what_has_ended_touches_no_call(run):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK), ByHand(BROKEN))
        for _ in range(6):
            assert not site.upstream.ask(GET).cancel()

    run(main())


def test_nothing_is_left_of_requests_that_ended(run):
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        left: list[weakref.ref[Answer]] = []
        for number in range(10_000):
            answer = site.upstream.ask(GET)
            left.append(weakref.ref(answer))
            (busy,) = (client for client in site.clients if client.calls)
            if number % 4 == 0:
                answer.cancel()
            else:
                busy.end((OK, BROKEN, REFUSED)[number % 3])
            for client in site.clients:
                while client.calls:
                    client.end(OK)
                client.asked.clear()
            del answer
        assert not any(ref() for ref in left), "freed at once, not by the collector"

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


# Checks.


def test_no_request_waits_for_a_check(run):
    async def main() -> None:
        site = Site(ByHand(OK))
        site.probes[0].always = None
        assert ended(site.upstream.ask(GET)) == OK
        site.upstream.start()
        assert ended(site.upstream.ask(GET)) == OK
        await site.upstream.close()

    run(main())


def test_a_check_asks_the_health_path_and_says_nothing_of_guests(run):
    async def main() -> None:
        site = Site(ByHand(OK))
        site.upstream.start()
        await until(lambda: len(site.probes[0].asked) >= 3)
        assert set(site.probes[0].asked) == {Request(b"GET", b"/health")}
        assert site.clients[0].asked == []
        await site.upstream.close()
        assert site.probes[0].closed and site.clients[0].closed

    run(main())


def test_checks_keep_their_pace(run):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK), pace=Pace(well=0.2, again=0.1, deadline=0.1))
        site.upstream.start()
        for _ in range(100):
            ended(site.upstream.ask(GET))
            await asyncio.sleep(0.005)
        assert 3 <= len(site.probes[0].asked) <= 7, "one each 0.1 s at most, however many requests fail"
        assert 2 <= len(site.probes[1].asked) <= 4
        await site.upstream.close()

    run(main())


def test_a_request_that_fails_has_its_address_checked_at_once(run):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK), pace=Pace(well=60, again=0.01, deadline=1))
        site.upstream.start()
        await asyncio.sleep(0.05)
        assert site.healthy == [True, True] and len(site.probes[0].asked) == 1
        site.probes[0].always = REFUSED
        for _ in range(2):
            assert ended(site.upstream.ask(GET)) == OK
        await until(lambda: site.healthy == [False, True])
        await site.upstream.close()

    run(main())


def test_with_none_up_the_answer_is_there_at_once_until_one_is_back(run, caplog):
    async def main() -> None:
        site = Site(ByHand(OK), ByHand(OK))
        site.probes[0].always = site.probes[1].always = REFUSED
        site.upstream.start()
        await until(lambda: site.healthy == [False, False])
        answer = site.upstream.ask(GET)
        assert isinstance(answer, Response) and answer.status == 503 and site.asked() == [0, 0]
        assert [state.why for state in site.upstream.states] == ["connection refused"] * 2
        site.probes[1].always = OK
        await until(lambda: site.healthy == [False, True])
        assert ended(site.upstream.ask(GET)) == OK and site.asked() == [0, 1]
        await site.upstream.close()

    caplog.set_level(logging.INFO, "shim.forward")
    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "backend nova: http://10.0.0.1:80 is down: connection refused",
        "backend nova: http://10.0.0.2:80 is down: connection refused",
        "backend nova: http://10.0.0.2:80 is up again",
    ]


def test_requests_at_a_frozen_address_end_when_checks_find_it_so(run):
    async def main() -> None:
        site = Site(ByHand())
        site.probes[0].always = None
        site.upstream.start()
        answer = site.upstream.ask(GET)
        assert (await answer).status == 504
        assert site.healthy == [False] and "no answer to a check" in site.clients[0].silenced[0]
        assert len(site.probes[0].calls) <= 1, "checks that were not answered are given up"
        assert ended(site.upstream.ask(GET)).status == 503
        await site.upstream.close()
        assert site.probes[0].calls == []

    run(main())


@pytest.mark.parametrize("found", [REFUSED, Response(500), BROKEN])
def test_requests_under_way_are_let_be_where_the_backend_speaks(run, found):
    """One that shuts down in good order refuses connections and still answers what it has."""

    async def main() -> None:
        site = Site(ByHand())
        site.probes[0].always = found
        answer = site.upstream.ask(GET)
        site.upstream.start()
        await until(lambda: site.healthy == [False])
        await asyncio.sleep(0.05)
        site.clients[0].end(OK)
        assert ended(answer) == OK
        await site.upstream.close()

    run(main())


def test_slow_answers_are_waited_for_while_checks_pass(run):
    async def main() -> None:
        site = Site(ByHand())
        site.upstream.start()
        answer = site.upstream.ask(GET)
        await until(lambda: len(site.probes[0].asked) >= 10)
        assert not answer.done() and site.healthy == [True]
        site.clients[0].end(OK)
        assert ended(answer) == OK
        await site.upstream.close()

    run(main())


class Closable:
    def __init__(self) -> None:
        self.closed = False

    def __aiter__(self) -> Closable:
        return self

    async def __anext__(self) -> bytes:
        return b"more"

    async def aclose(self) -> None:
        self.closed = True


def test_a_checks_body_is_not_read(run):
    async def main() -> None:
        site = Site(ByHand())
        parts = Closable()
        site.probes[0].always = Response(200, parts=parts)
        site.upstream.start()
        await until(lambda: parts.closed)
        assert site.healthy == [True]
        await site.upstream.close()

    run(main())


def test_failed_requests_are_logged_now_and_then(run, caplog):
    async def main() -> None:
        site = Site(ByHand(BROKEN))
        for _ in range(50):
            ended(site.upstream.ask(GET))
        site.clock.now += 60
        ended(site.upstream.ask(GET))

    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "backend nova: requests failed: 1, the last at http://10.0.0.1:80: closed within the answer",
        "backend nova: requests failed: 50, the last at http://10.0.0.1:80: closed within the answer",
    ]
