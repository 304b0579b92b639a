"""The embedded backend over a real store: what is kept and until when, conditions, claims, waits, streams, writes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from shim.core.ask import Claim, Delete, Put, Read, Release, Spend
from shim.core.exchange import Pending, Response
from shim.core.policy import Auto, Policy
from shim.core.source import Reads
from shim.errors import StoreError
from tests.unit.live_site import DENIED, HOST, NOW, ONCE, OWN, A, B, LiveSite, source, tell

ID = "/latest/meta-data/instance-id"
USER = "/latest/user-data"


def etag(response: Response) -> str:
    return dict(response.headers)[b"etag"].decode()


async def turns(seconds: float = 0.01) -> None:
    await asyncio.sleep(seconds)


def test_each_instance_has_its_own_and_a_kept_answer_is_the_same(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        assert [site.get(ID).body, site.get(ID, B).body] == [str(A).encode(), str(B).encode()]
        assert site.get(ID) is site.get(ID)
        assert site.get(ID, method="HEAD") == site.get(ID)

    tell(tmp_path, story)


def test_a_change_ends_what_is_kept_of_those_it_concerns_alone(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        mine, others = site.get(ID), site.get(ID, B)
        site.store.put_document(A, b'{"name": "a"}')
        site.changed()
        assert site.get(ID) is not mine and site.get(ID, B) is others
        site.store.put_source(source("base", b"#!x\n", HOST))
        site.changed()
        assert site.get(ID, B) is not others
        assert [site.get(USER).body, site.get(USER, B).body] == [b"#!x\n"] * 2

    tell(tmp_path, story)


def test_the_store_is_looked_at_by_itself_every_two_milliseconds(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        assert site.get(USER).status == 404
        site.store.put_source(source("base", b"#!x\n"))
        await turns(0.003)
        assert site.get(USER).status == 200

    tell(tmp_path, story)


def test_an_unreadable_store_gets_503_even_for_what_was_kept(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        assert site.get(ID).status == 200

        def fail() -> object:
            raise StoreError("gone")

        site.catalog.news = fail  # type: ignore[method-assign, assignment]
        site.catalog.is_old = lambda: True
        response = site.get(ID)
        assert response.status == 503 and int(dict(response.headers)[b"retry-after"]) > 0

    tell(tmp_path, story)


def test_what_has_a_deadline_is_not_served_beyond_it_from_what_is_kept(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!x\n", until=NOW + 10))
        site.changed()
        assert site.get(USER).status == 200
        site.now = NOW + 10
        assert site.get(USER).status == 404

    tell(tmp_path, story)


def test_conditions(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!x\n"))
        tag = etag(site.get(USER))
        for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            answer = site.get(USER, if_none_match=known)
            assert (answer.status, answer.body, etag(answer)) == (304, b"", tag)
        assert site.get(USER, if_none_match='"other"').status == 200
        assert site.get("/none", if_none_match="*").status == 404

    tell(tmp_path, story)


def test_a_header_that_decides_is_never_forgotten(tmp_path: Path) -> None:
    """GCE's face is for who says so: however its path is spelt, what such a one was shown is not kept for all."""

    async def story(site: LiveSite) -> None:
        for path in ("/computeMetadata/v1/instance/id", "/%63omputeMetadata/v1/instance/id"):
            assert site.get(path, metadata_flavor="Google").status == 200
            assert site.get(path).status == 403

    tell(tmp_path, story)


def test_a_heads_answer_never_stands_for_a_gets(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        assert site.get(USER, method="HEAD").status == 200
        assert site.asked == []
        assert site.get(USER).receipt is not None

    tell(tmp_path, story)


async def read(response: Response) -> bool:
    """What the server does of a response whose reader takes all of it."""
    assert response.receipt is not None
    committed = await response.receipt.commit()
    response.receipt.done(committed)
    return committed


def test_one_reads_and_the_next_gets_what_is_left(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#cloud-config\n{}\n", HOST))
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        site.changed()
        first, second = site.send(USER), site.send(USER)
        assert isinstance(first, Pending) and isinstance(second, Pending)
        assert first.response is not None and second.response is None
        assert b"#!secret" in first.response.body
        assert await read(first.response)
        assert second.response is not None and second.response.body == b"#cloud-config\n{}\n"
        assert second.response.receipt is None

    tell(tmp_path, story)


def test_on_its_own_path_who_waited_learns_that_it_is_gone(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        path = "/metashim/v1/sources/instance/secret"
        first, second = site.send(path), site.send(path)
        assert isinstance(first, Pending) and isinstance(second, Pending) and first.response is not None
        assert await read(first.response)
        assert second.response is not None and second.response.status == 410
        assert site.get(path).status == 404

    tell(tmp_path, story)


def test_who_breaks_off_leaves_it_to_the_next(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        first, second = site.send(USER), site.send(USER)
        assert isinstance(first, Pending) and isinstance(second, Pending)
        assert first.response is not None and first.response.receipt is not None
        first.response.receipt.done(False)  # before its commit
        assert second.response is not None and second.response.receipt is not None
        assert await second.response.receipt.commit()
        second.response.receipt.done(False)  # after its commit, and before the last byte
        assert site.get(USER).body == b"#!secret\n"
        assert [type(one) for one in site.asked] == [Claim, Claim, Release, Spend, Release, Claim]

    tell(tmp_path, story)


def test_who_leaves_before_the_agent_answers_holds_nothing(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        first = site.send(USER)
        second, third = site.send(USER), site.send(USER)
        assert isinstance(first, Pending) and isinstance(second, Pending) and isinstance(third, Pending)
        second.cancel()
        assert first.response is not None and first.response.receipt is not None
        first.response.receipt.done(False)
        assert third.response is not None and third.response.body == b"#!secret\n"
        assert len(site.leases) == 1

    tell(tmp_path, story)


def test_without_an_agent_it_is_not_read(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        site.asks.disconnected()
        assert site.get(USER).status == 503
        assert site.get(ID).status == 200

    tell(tmp_path, story)


def test_an_agent_that_dies_during_the_commit_is_asked_again(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        answer = site.get(USER)
        assert answer.receipt is not None
        site.silent = True
        committing = asyncio.ensure_future(answer.receipt.commit())
        await turns()
        site.asks.disconnected()
        await turns()
        assert not committing.done()
        site.silent = False
        site.asks.connected(site._take)
        assert await committing
        assert [type(one) for one in site.asked] == [Claim, Spend, Spend]

    tell(tmp_path, story)


def test_reading_user_data_is_told_where_somebody_waits_for_it(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!x\n"))
        assert site.get(USER).receipt is None
        site.policy(Policy(auto=Auto(on_read=True)))
        for path in (USER, "/openstack/latest/user_data", "/metashim/v1/user-data", "/lat%65st/user-data"):
            answer = site.get(path)
            assert answer.receipt is not None, path
            answer.receipt.done(False)
            assert site.asked == []
            assert await read(answer)
            assert site.asked.pop() == Read()
        for path in (ID, "/latest/", "/openstack/latest/meta_data.json"):
            assert site.get(path).receipt is None, path

    tell(tmp_path, story)


def test_a_long_poll(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        tag = etag(site.get(USER)).strip('"')
        assert site.get(f"{USER}?wait=5&etag=other").body == b"#!1\n"
        waiting = site.send(f"{USER}?wait=5&etag={tag}")
        assert isinstance(waiting, Pending) and waiting.response is None
        assert len(site.embedded.watches) == 1
        site.store.put_source(source("base", b"#!2\n"))
        site.changed()
        await turns()
        assert waiting.response is not None and waiting.response.body == b"#!2\n"
        late = site.send(f"{USER}?wait=0.01&etag={etag(waiting.response).strip(chr(34))}")
        assert isinstance(late, Pending)
        await turns(0.3)
        assert late.response is not None and late.response.status == 304
        assert len(site.embedded.watches) == 0

    tell(tmp_path, story)


def test_a_change_just_before_is_not_missed(tmp_path: Path) -> None:
    """It was written after the last look at the store, which is not looked at again for two milliseconds; the agent
    says so only when the guest waits already."""

    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        tag = etag(site.get(USER)).strip('"')
        site.store.put_source(source("base", b"#!2\n"))
        waiting = site.send(f"{USER}?wait=5&etag={tag}")
        site.changed()
        await turns()
        answer = waiting.response if isinstance(waiting, Pending) else waiting
        assert isinstance(answer, Response) and answer.body == b"#!2\n"

    tell(tmp_path, story)


def test_a_wait_ends_with_the_access_or_when_it_is_gone(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        tag = etag(site.get(USER)).strip('"')
        first = site.send(f"{USER}?wait=5&etag={tag}")
        site.denied.add(A)
        site.embedded.recheck(site.entries[A])
        await turns()
        assert isinstance(first, Pending) and first.response is DENIED
        site.denied.clear()
        second = site.send(f"{USER}?wait=5&etag={tag}")
        site.store.delete_source(OWN, "base")
        site.changed()
        await turns()
        assert isinstance(second, Pending) and second.response is not None and second.response.status == 404

    tell(tmp_path, story)


def test_a_wait_for_what_is_read_once_is_a_claim_when_it_comes(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n", HOST))
        tag = etag(site.get(USER)).strip('"')
        waiting = [site.send(f"{USER}?wait=5&etag={tag}") for _ in range(3)]
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        site.changed()
        await turns()
        bodies = [one.response.body for one in waiting if isinstance(one, Pending) and one.response is not None]
        assert len(bodies) == 1 and b"#!secret" in bodies[0]
        first = next(one.response for one in waiting if isinstance(one, Pending) and one.response is not None)
        assert await read(first)
        assert [one.response is not None for one in waiting if isinstance(one, Pending)] == [True] * 3

    tell(tmp_path, story)


def test_a_stream(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        answer = site.get(USER, accept="text/event-stream")
        assert answer.parts is not None and answer.length is None
        parts = aiter(answer.parts)
        first = await anext(parts)
        assert b"data: #!1" in first and etag(site.get(USER)).strip('"').encode() in first
        coming = asyncio.ensure_future(anext(parts))
        await turns()
        assert not coming.done()
        for number in range(2, 9):  # what is over before it is looked at is not seen
            site.store.put_source(source("base", b"#!%d\n" % number))
        site.changed()
        assert b"data: #!8" in await coming
        ending = asyncio.ensure_future(anext(parts))
        await turns()
        site.denied.add(A)
        site.embedded.recheck(site.entries[A])
        with pytest.raises(StopAsyncIteration):
            await ending
        assert len(site.embedded.watches) == 0

    tell(tmp_path, story)


def test_a_stream_that_goes_on_from_what_the_guest_has_and_one_that_is_left(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("base", b"#!1\n"))
        tag = etag(site.get(USER)).strip('"')
        answer = site.get(USER, accept="text/event-stream", last_event_id=tag)
        assert answer.parts is not None
        coming = asyncio.ensure_future(anext(aiter(answer.parts)))
        await turns()
        assert not coming.done() and len(site.embedded.watches) == 1
        coming.cancel()
        await turns()
        assert len(site.embedded.watches) == 0

    tell(tmp_path, story)


def test_what_is_read_once_is_told_by_a_stream_and_not_in_it(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!plain\n"))
        answer = site.get(USER, accept="text/event-stream")
        assert answer.parts is not None
        parts = aiter(answer.parts)
        assert b"#!plain" in await anext(parts)
        site.store.put_source(source("secret", b"#!secret\n", reads=ONCE))
        site.changed()
        told = await anext(parts)
        assert b"event: once" in told and b"secret" not in told and site.asked == []
        assert await read(site.get(USER))
        assert b"event: status\ndata: 404" in await anext(parts)
        site.store.put_source(source("secret", b"#!back\n"))
        site.changed()
        assert b"#!back" in await anext(parts)

    tell(tmp_path, story)


def test_writes(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        path = "/metashim/v1/kv/guest/a"
        assert site.get(path, method="PUT", body=b"1").status == 201
        assert site.get(path).body == b"1"
        assert site.get(path, method="DELETE").status == 204
        assert site.get(path).status == 404
        assert site.asked == [Put("guest/a", b"1"), Delete("guest/a")]
        assert site.get("/latest/meta-data/", method="PUT").status == 405
        assert site.get("/metashim/v1/kv/host/a", method="PUT").status == 403
        assert site.get(path, B).status == 404

    tell(tmp_path, story)


def test_a_body_in_parts_is_taken_whole_within_bounds(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        async def parts(count: int):  # type: ignore[no-untyped-def]
            for _ in range(count):
                yield b"x" * 1000

        for count, status in ((200, 201), (300, 413)):
            request = replace(site_request(), parts=parts(count))
            answer = site.embedded(site.caller(), site.entries[A], request)
            assert not isinstance(answer, Response | Pending)
            assert (await answer).status == status
        assert len(site.get("/metashim/v1/kv/guest/big").body) == 200_000

    tell(tmp_path, story)


def site_request():  # type: ignore[no-untyped-def]
    from shim.core.exchange import Request

    return Request(b"PUT", b"/metashim/v1/kv/guest/big")


def test_a_template_that_fails_fails_where_it_is_shown_alone(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("t", b"#!x\n{{ kv['host/a'] }}\n", template=True))
        assert site.get(USER).status == 503
        assert site.get(ID).status == 200
        site.get("/metashim/v1/kv/guest/a", method="PUT", body=b"1")
        assert site.get(USER).status == 503
        from shim.core.kv import Value

        site.store.put_value(A, Value("host/a", b"there"))
        site.changed()
        assert site.get(USER).body == b"#!x\nthere\n"

    tell(tmp_path, story)


def test_confirmed_is_gone(tmp_path: Path) -> None:
    async def story(site: LiveSite) -> None:
        site.store.put_source(source("secret", b"#!secret\n", reads=Reads.CONFIRM))
        assert [site.get(USER).body for _ in range(2)] == [b"#!secret\n"] * 2
        assert site.get("/metashim/v1/confirm", method="POST").status == 204
        assert site.get(USER).status == 404

    tell(tmp_path, story)
