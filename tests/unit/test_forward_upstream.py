"""Which address is asked, and what follows when it fails."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from shim.core.exchange import Request
from shim.errors import BackendError
from shim.forward.upstream import RETRY_SECONDS, Answer
from tests.unit.forward_site import BROKEN, GET, LATE, OK, REFUSED, ByHand, Site, ended, run


def test_addresses_take_turns():
    async def main() -> None:
        site = Site(ByHand(OK), ByHand(OK), ByHand(OK))
        for _ in range(9):
            assert ended(site.upstream.ask(GET)) == OK
        assert site.asked() == [3, 3, 3]

    run(main())


def test_an_answer_is_there_as_soon_as_the_client_has_it():
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        assert answer.response is None
        site.clients[0].end(OK)
        assert answer.response is OK

    run(main())


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_never_reached_one_address_is_asked_at_the_next(method):
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK))
        request = Request(method, b"/", body=b"x")
        for _ in range(4):
            assert ended(site.upstream.ask(request)) == OK
        assert site.asked() == [1, 4], "the one that refused is doubted at once"

    run(main())


def test_a_doubted_address_is_used_when_there_is_no_other():
    async def main() -> None:
        client = ByHand(REFUSED)
        site = Site(client)
        assert ended(site.upstream.ask(GET)).status == 503
        client.always = OK
        assert ended(site.upstream.ask(GET)) == OK
        assert site.healthy == [True]

    run(main())


def test_a_kept_connection_that_was_closed_costs_nobody_an_answer():
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        site.clients[0].end(REFUSED)
        site.clients[0].end(OK)
        assert ended(answer) == OK

    run(main())


def test_all_are_tried_before_it_is_given_up():
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(REFUSED), ByHand(REFUSED))
        answer = ended(site.upstream.ask(GET))
        assert answer.status == 503 and answer.backend == "nova"
        assert (b"retry-after", b"2") in answer.headers and (b"content-type", b"text/plain") in answer.headers
        assert sorted(site.asked()) == [1, 1, 2], "the first once more"

    run(main())


@pytest.mark.parametrize(("error", "status"), [(BROKEN, 502), (LATE, 504)])
def test_what_may_have_reached_it_is_not_repeated(error, status):
    async def main() -> None:
        site = Site(ByHand(error), ByHand(error))
        answer = ended(site.upstream.ask(Request(b"POST", b"/password", body=b"x")))
        assert answer.status == status and answer.backend == "nova"
        assert any(name == b"retry-after" for name, _ in answer.headers)
        assert sum(site.asked()) == 1

    run(main())


@pytest.mark.parametrize(("took", "asked"), [(RETRY_SECONDS - 0.1, 2), (RETRY_SECONDS + 0.1, 1)])
def test_another_is_asked_within_a_second_only(took, asked):
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


def test_one_that_was_slow_to_refuse_is_not_asked_again():
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
def test_a_body_in_parts_is_not_sent_twice_once_read(read, asked):
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


def test_giving_up_a_body_in_parts_reaches_its_source():
    async def main() -> None:
        site = Site(ByHand())
        source = _parts()
        site.upstream.ask(Request(b"POST", b"/", parts=source))
        passed = site.clients[0].asked[0].parts
        await anext(passed)
        await passed.aclose()
        assert [part async for part in source] == []

    run(main())


def test_cancelling_gives_the_call_up():
    async def main() -> None:
        site = Site(ByHand())
        answer = site.upstream.ask(GET)
        (call,) = site.clients[0].calls
        over: list[bool] = []
        answer.then(lambda response: over.append(False))
        answer.when_over(lambda: over.append(True))
        answer.cancel()
        answer.cancel()
        assert call.cancelled and answer.response is None
        assert over == [True], "what waited is not called, and that it is over is told once"

    run(main())


def test_cancelling_after_fail_over_gives_up_the_call_of_now():
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        answer = site.upstream.ask(GET)
        first, second = sorted(site.clients, key=lambda client: -client.busy)
        first.end(REFUSED)
        (call,) = second.calls
        answer.cancel()
        assert call.cancelled

    run(main())


def test_cancelling_what_has_ended_touches_no_call():
    async def main() -> None:
        site = Site(ByHand(REFUSED), ByHand(OK), ByHand(BROKEN))
        for _ in range(6):
            answer = site.upstream.ask(GET)
            answer.cancel()
            assert ended(answer).status in (200, 502, 503)
        assert not any(call.cancelled for client in site.clients for call in client.calls)

    run(main())


def test_nothing_is_left_of_requests_that_ended():
    async def main() -> None:
        site = Site(ByHand(), ByHand())
        for number in range(10_000):
            answer = site.upstream.ask(GET)
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
        left = [one for one in gc.get_objects() if isinstance(one, Answer)]
        assert not left, "freed at once, not by the collector"

    gc.collect()  # what other tests left
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()
