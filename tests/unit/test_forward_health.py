"""What is thought of an address, by what checks and requests met there, and what follows for requests."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.forward.health import Finding, Health, State, judge
from shim.forward.upstream import Pace
from tests.unit.forward_site import BROKEN, GET, LATE, OK, REFUSED, ByHand, Site, arrived, ended, run, until

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
    health.check(R, "refused", 7.0, answered=False)
    assert (health.state, health.why, health.since) == (DOWN, "refused", 5.0)


def test_one_that_answers_requests_is_not_frozen_though_checks_wait():
    health = Health(0.0)
    for _ in range(5):
        assert not health.check(S, "silent", 1.0, answered=True)
    assert health.state is UP
    health.check(B, "answers 500", 2.0, answered=True)
    assert health.check(B, "answers 500", 3.0, answered=True)
    assert not health.check(S, "silent", 4.0, answered=True)
    assert health.state is DOWN


# Checks.


def test_no_request_waits_for_a_check():
    async def main() -> None:
        site = Site(ByHand(OK))
        site.probes[0].always = None
        assert ended(site.upstream.ask(GET)) == OK
        site.upstream.start()
        assert ended(site.upstream.ask(GET)) == OK
        await site.upstream.close()

    run(main())


def test_a_check_asks_the_health_path_and_says_nothing_of_guests():
    async def main() -> None:
        site = Site(ByHand(OK))
        site.upstream.start()
        await until(lambda: len(site.probes[0].asked) >= 3)
        assert set(site.probes[0].asked) == {Request(b"GET", b"/health")}
        assert site.clients[0].asked == []
        await site.upstream.close()
        assert site.probes[0].closed and site.clients[0].closed

    run(main())


def test_checks_keep_their_pace():
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


def test_a_request_that_fails_has_its_address_checked_at_once():
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK), pace=Pace(well=60, again=0.01, deadline=1))
        site.upstream.start()
        await asyncio.sleep(0.05)
        assert site.healthy == [True, True] and len(site.probes[0].asked) == 1
        site.probes[0].always = REFUSED
        for _ in range(2):
            assert ended(site.upstream.ask(GET)) == OK
        await until(lambda: site.healthy == [False, True])
        site.probes[0].always = OK
        await until(lambda: site.healthy == [True, True])
        checks = len(site.probes[0].asked)
        await asyncio.sleep(0.1)
        assert len(site.probes[0].asked) == checks, "well again, and checked no more often than others"
        await site.upstream.close()

    run(main())


def test_with_none_up_the_answer_is_there_at_once_until_one_is_back(caplog):
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


def test_requests_at_a_frozen_address_end_when_checks_find_it_so():
    async def main() -> None:
        site = Site(ByHand())
        site.probes[0].always = None
        site.upstream.start()
        answer = site.upstream.ask(GET)
        assert (await arrived(answer)).status == 504
        assert site.healthy == [False] and "no answer to a check" in site.clients[0].silenced[0]
        assert len(site.probes[0].calls) <= 1, "checks that were not answered are given up"
        assert ended(site.upstream.ask(GET)).status == 503
        await site.upstream.close()
        assert site.probes[0].calls == []

    run(main())


@pytest.mark.parametrize("found", [REFUSED, Response(500), BROKEN])
def test_requests_under_way_are_let_be_where_the_backend_speaks(found):
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


def test_slow_answers_are_waited_for_while_checks_pass():
    async def main() -> None:
        site = Site(ByHand())
        site.upstream.start()
        answer = site.upstream.ask(GET)
        await until(lambda: len(site.probes[0].asked) >= 10)
        assert answer.response is None and site.healthy == [True]
        site.clients[0].end(OK)
        assert ended(answer) == OK
        await site.upstream.close()

    run(main())


def test_one_that_is_too_busy_for_checks_but_answers_requests_stays_up():
    async def main() -> None:
        site = Site(ByHand(OK))
        site.probes[0].always = None
        site.upstream.start()
        for _ in range(40):
            assert ended(site.upstream.ask(GET)) == OK
            await asyncio.sleep(0.01)
        assert len(site.probes[0].asked) >= 3 and site.healthy == [True]
        await site.upstream.close()

    run(main())


def test_answers_of_before_it_froze_do_not_speak_for_it():
    async def main() -> None:
        site = Site(ByHand(OK))
        site.upstream.start()
        for _ in range(3):
            seen = len(site.probes[0].asked)
            await until(lambda seen=seen: len(site.probes[0].asked) > seen)
            assert ended(site.upstream.ask(GET)) == OK
        site.probes[0].always = None
        before, found = len(site.probes[0].asked), []
        site.clients[0].fail_silent = lambda why: found.append(len(site.probes[0].asked))
        await until(lambda: found != [])
        assert found[0] - before == 2
        await site.upstream.close()

    run(main())


def test_a_check_that_cannot_be_made_is_one_that_failed():
    async def main() -> None:
        site = Site(ByHand(OK))
        ask, site.probes[0].ask = site.probes[0].ask, None
        site.upstream.start()
        await until(lambda: site.healthy == [False])
        site.probes[0].ask = ask
        await until(lambda: site.healthy == [True])
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


def test_a_checks_body_is_not_read():
    async def main() -> None:
        site = Site(ByHand())
        parts = Closable()
        site.probes[0].always = Response(200, parts=parts)
        site.upstream.start()
        await until(lambda: parts.closed)
        assert site.healthy == [True]
        await site.upstream.close()

    run(main())


def test_failed_requests_are_logged_now_and_then(caplog):
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
