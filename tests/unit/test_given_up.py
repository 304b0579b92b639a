"""Who gives up, who is late, what changes while one waits for its turn: nothing is lost, and nothing shown twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.core.ask import Release
from shim.core.exchange import Parts, Pending, Response
from shim.core.policy import Auto, Policy
from shim.waiting import collected, settled
from tests.unit.live_site import HOST, ONCE, A, LiveSite, source, tell

USER = "/latest/user-data"
GCE_USER = "/computeMetadata/v1/instance/attributes/user-data"
SECRET = b"#!/bin/sh\necho hunter2\n"


class Slip:
    """A receipt."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    async def commit(self) -> bool:
        return True

    def done(self, whole: bool) -> None:
        self.told.append(whole)


class Body(AsyncIterator[bytes]):
    """Parts that never end, unless they break off after `count`."""

    def __init__(self, count: int = 1 << 30, error: Exception | None = None) -> None:
        self.count, self.error, self.closed = count, error, 0

    async def __anext__(self) -> bytes:
        if not self.count:
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        self.count -= 1
        return b"x" * 10

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_answer_that_comes_as_it_is_given_up_uses_nothing_up(order: str) -> None:
    """The guest leaves in the very turn of the loop in which the agent answers; either may be first."""

    async def story() -> None:
        slip, body, pending = Slip(), Body(), Pending()
        task = asyncio.ensure_future(settled(pending))
        await asyncio.sleep(0)
        if order == "after":
            task.cancel()
        pending.settle(Response(200, (), b"secret", receipt=slip, parts=body))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slip.told == [False] and body.closed == 1

    asyncio.run(story())


def test_a_body_that_is_not_read_to_its_end_is_closed() -> None:
    async def story() -> None:
        whole = Body(3)
        task = asyncio.ensure_future(collected(whole, b"", 100))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert whole.closed == 1, "cancelled"
        broken = Body(3, ConnectionError())
        with pytest.raises(ConnectionError):
            await collected(broken, b"", 100)
        assert broken.closed == 1, "broken off"
        large = Body()
        assert await collected(large, b"", 100) is None and large.closed == 1, "too large"

    asyncio.run(story())


def test_what_was_closed_while_one_waited_for_its_turn_is_not_given(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", SECRET, reads=ONCE))
        first, second = site.send(USER), site.send(USER)
        assert isinstance(first, Pending) and isinstance(second, Pending)
        site.denied.add(A)
        assert first.response is not None and first.response.receipt is not None
        first.response.receipt.done(False)
        assert second.response is not None and second.response.status == 403
        assert not site.leases, "and nothing is held"

    tell(tmp_path, story)


def test_what_was_closed_while_one_took_its_time_is_not_read(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", SECRET, reads=ONCE))
        answer = site.get(USER)
        assert answer.receipt is not None
        site.denied.add(A)
        assert not await answer.receipt.commit()
        answer.receipt.done(False)
        site.denied.clear()
        again = site.get(USER)
        assert again.body == SECRET and again.receipt is not None and await again.receipt.commit()

    tell(tmp_path, story)


def test_what_was_edited_while_one_waited_for_its_turn_is_given_as_it_is_now(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", SECRET, reads=ONCE))
        site.store.put_source(source("base", b"#!old\n", HOST))
        first, second, third = (site.send(USER) for _ in range(3))
        assert isinstance(first, Pending) and isinstance(second, Pending) and isinstance(third, Pending)
        site.store.put_source(source("base", b"#!new\n", HOST))
        site.policy(Policy(auto=Auto(on_read=True)))
        assert first.response is not None and first.response.receipt is not None
        first.response.receipt.done(False)
        assert second.response is not None and b"#!new" in second.response.body and SECRET in second.response.body
        assert second.response.receipt is not None
        assert await second.response.receipt.commit()
        second.response.receipt.done(True)
        assert type(site.asked[-1]).__name__ == "Read", "the policy of now counts, too"
        assert third.response is not None and third.response.body == b"#!new\n"

    tell(tmp_path, story)


def test_another_secret_that_came_meanwhile_is_claimed_too(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("one", SECRET, reads=ONCE))
        first, second = site.send(USER), site.send(USER)
        assert isinstance(first, Pending) and isinstance(second, Pending)
        site.store.put_source(source("two", b"#!two\n", reads=ONCE))
        assert first.response is not None and first.response.receipt is not None
        first.response.receipt.done(False)
        assert second.response is not None and b"#!two" in second.response.body
        assert len(site.leases) == 1
        assert second.response.receipt is not None
        assert await second.response.receipt.commit()
        second.response.receipt.done(True)
        assert site.get(USER).status == 404

    tell(tmp_path, story)


def test_a_time_that_is_over_shows_no_secret_unclaimed(tmp_path: Path) -> None:
    """GCE's wait ends with the content, changed or not: that is a read as any other."""

    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", SECRET, reads=ONCE))
        waiting = [
            site.send(f"{GCE_USER}?wait_for_change=true&timeout_sec=0.1", metadata_flavor="Google") for _ in range(2)
        ]
        for one in waiting:
            assert isinstance(one, Pending) and one.response is None
        await asyncio.sleep(0.3)
        first, second = waiting
        assert isinstance(first, Pending) and isinstance(second, Pending)
        assert first.response is not None and first.response.body == SECRET and first.response.receipt is not None
        assert second.response is None, "it waits for what becomes of the first"
        assert await first.response.receipt.commit()
        first.response.receipt.done(True)
        assert second.response is not None and second.response.status == 410

    tell(tmp_path, story)


@pytest.mark.parametrize("stream_first", [True, False])
def test_a_stream_and_a_wait_for_the_same_are_answered_each_in_its_way(tmp_path: Path, stream_first: bool) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        site.changed()
        tag = dict(site.get(USER).headers)[b"etag"].decode().strip('"')
        events: list[bytes] = []

        async def follow(parts: Parts) -> None:
            async for one in parts:
                events.append(one)

        def stream() -> asyncio.Task[None]:
            answer = site.send(USER, accept="text/event-stream")
            assert isinstance(answer, Response) and answer.parts is not None
            return asyncio.ensure_future(follow(answer.parts))

        if stream_first:
            task = stream()
            await asyncio.sleep(0.01)
        poll = site.send(f"{USER}?wait=0.1&etag={tag}")
        later = site.send(f"{USER}?wait=9&etag={tag}")
        if not stream_first:
            task = stream()
        await asyncio.sleep(0.3)
        assert isinstance(poll, Pending) and poll.response is not None and poll.response.status == 304
        site.store.put_source(source("base", SECRET, reads=ONCE))
        site.changed()
        await asyncio.sleep(0.05)
        assert isinstance(later, Pending) and later.response is not None and later.response.receipt is not None
        assert not any(b"hunter2" in one for one in events) and len(events) == 2
        later.response.receipt.done(False)
        assert isinstance(site.asked[-1], Release) and not site.leases
        task.cancel()

    tell(tmp_path, story)


def test_user_data_among_others_and_in_a_stream_was_read_too(tmp_path: Path) -> None:
    """cloud-init asks Compute Engine's face for all at once."""

    async def story(site: LiveSite) -> None:
        site.policy(Policy(auto=Auto(on_read=True)))
        gce = "/computeMetadata/v1/"

        def reads(path: str) -> bool:
            answer = site.get(path, metadata_flavor="Google")
            assert answer.status == 200, path
            return answer.receipt is not None

        shown = ("", "instance/", "instance/attributes/")
        for path in shown:
            assert not reads(f"{gce}{path}?recursive=true"), "there is none"
        site.store.put_source(source("base", b"#!/bin/sh\n"))
        site.changed()
        for path in shown:
            for query in ("recursive=true", "recursive=TRUE&alt=json", "alt=text&recursive=true"):
                assert reads(f"{gce}{path}?{query}"), (path, query)
            assert not reads(f"{gce}{path}?alt=json"), path
        for path in (f"{gce}instance/tags?recursive=true", f"{gce}project/?recursive=true", f"{gce}instance/id"):
            assert not reads(path), path
        answer = site.send(USER, accept="text/event-stream")
        assert isinstance(answer, Response) and answer.parts is not None
        assert b"#!/bin/sh" in await answer.parts.__anext__()
        assert site.asked == []
        follow = asyncio.ensure_future(answer.parts.__anext__())  # it has taken what was sent
        await asyncio.sleep(0.01)
        assert [type(one).__name__ for one in site.asked] == ["Read"]
        follow.cancel()

    tell(tmp_path, story)
