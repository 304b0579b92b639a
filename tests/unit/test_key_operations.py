"""What operators do with guests' keys: conditions, what is told to whom follows changes, the trail of secrets."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import UUID

import pytest

from shim.control.operations import ChangedError
from shim.core.ask import Outcome, Put, Spend
from shim.core.kv import Value, etag
from shim.core.source import Reads
from shim.errors import ConflictError, InputError, NotFoundError, StoreError
from shim.writes import Write
from tests.unit.agent_site import ONE, TWO, WHO, Host, tell


async def put(
    host: Host, key: str, body: bytes = b"1", reads: Reads = Reads.MANY, instance: UUID = ONE,
    until: float | None = None, if_match: tuple[str, ...] | None = None, if_none_match: tuple[str, ...] | None = None,
):  # type: ignore[no-untyped-def]  # fmt: skip
    return await host.operations.put_key(
        instance, Value(key, body, reads, until), if_match, if_none_match, who=WHO
    )


async def names(host: Host, prefix: str = "", instance: UUID = ONE) -> list[str]:
    return [one.key for one in (await host.operations.kv(instance, prefix)).values]


async def changes(host: Host) -> list[tuple[str, str]]:
    return [(one.op, one.key) for one in (await host.operations.kv_changes(0, 0, None, "")).changes]


def test_one_is_written_read_and_taken_back(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        first = await put(host, "host/role", b"web")
        assert (first.key, first.etag, first.revision, first.created) == ("host/role", etag(b"web"), 1, True)
        again = await put(host, "host/role", b"db")
        assert (again.revision, again.created) == (2, False)
        assert [what for what, _ in host.workers.told] == ["changed", "settled"] * 2
        (kept,) = (await host.operations.kv(ONE, "host/role")).values
        assert (kept.body, kept.revision) == (b"db", 2)
        assert await names(host, instance=TWO) == []
        await host.operations.delete_key(ONE, "host/role", None, who=WHO)
        assert await names(host) == [] and host.workers.told[-1][0] == "settled"
        with pytest.raises(NotFoundError, match="no key host/role"):
            await host.operations.delete_key(ONE, "host/role", None, who=WHO)
        found = (await host.operations.kv_changes(0, 0, None, "")).changes
        assert [(one.seq, one.op, one.etag, one.bytes, one.instance) for one in found] == [
            (1, "put", etag(b"web"), 3, ONE), (2, "put", etag(b"db"), 2, ONE), (3, "delete", "", 0, ONE),
        ]  # fmt: skip

    tell(tmp_path, story)


def test_keys_at_and_below_a_prefix_in_whole_segments(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        for key in ("host/app", "host/application", "host/apps/b", "host/apps/a", "guest/app/x"):
            await put(host, key)
        assert await names(host) == ["guest/app/x", "host/app", "host/application", "host/apps/a", "host/apps/b"]
        assert await names(host, "host") == ["host/app", "host/application", "host/apps/a", "host/apps/b"]
        assert await names(host, "host/app") == ["host/app"]
        assert await names(host, "host/apps") == ["host/apps/a", "host/apps/b"]
        assert await names(host, "hos") == [] == await names(host, "ähost")
        found = await host.operations.kv(ONE, "")
        assert found.seq == 5

    tell(tmp_path, story)


def test_conditions(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        one = etag(b"1")
        await put(host, "host/a", if_none_match=("*",))
        with pytest.raises(ChangedError, match="host/a is another by now"):
            await put(host, "host/a", b"2", if_none_match=("*",))
        with pytest.raises(ChangedError):
            await put(host, "host/a", b"2", if_match=("other",))
        with pytest.raises(ChangedError):
            await put(host, "host/none", if_match=("*",))
        assert not (await put(host, "host/a", b"2", if_match=("other", one))).created
        with pytest.raises(ChangedError):
            await host.operations.delete_key(ONE, "host/a", (one,), who=WHO)
        await host.operations.delete_key(ONE, "host/a", (etag(b"2"),), who=WHO)
        assert await changes(host) == [("put", "host/a"), ("put", "host/a"), ("delete", "host/a")]

    tell(tmp_path, story)


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, "host/a")
        host.workers.told.clear()
        with pytest.raises(ConflictError, match="cannot be a folder"):
            await put(host, "host/a/b")
        with pytest.raises(InputError, match="read once is empty"):
            await put(host, "host/b", b"", Reads.ONCE)
        with pytest.raises(InputError, match="a key begins with"):
            await put(host, "other/b")
        with pytest.raises(InputError, match="deadline"):
            await put(host, "host/b", until=float("inf"))
        assert await names(host) == ["host/a"] and await changes(host) == [("put", "host/a")]
        assert host.workers.told == []

    tell(tmp_path, story)


def test_an_operator_is_not_bound_by_the_guest_s_limits(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        for number in range(5):
            await put(host, f"guest/{number}", b"x" * 200_000)

    tell(tmp_path, story, b"[kv]\nkeys = 2\nvalue_bytes = 10\ntotal_bytes = 20\n")


def test_secrets_alone_are_in_the_trail_and_nothing_of_what_they_are(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, "host/plain", b"plain")
        await put(host, "host/secret", b"hunter2", Reads.ONCE)
        await put(host, "host/token", b"hunter3", Reads.CONFIRM)
        for key in ("host/plain", "host/secret", "host/token"):
            await host.operations.delete_key(ONE, key, None, who=WHO)
        assert host.audited == [
            (WHO, "key put", "host/secret, once"), (WHO, "key put", "host/token, confirm"),
            (WHO, "key remove", "host/secret, once"), (WHO, "key remove", "host/token, confirm"),
        ]  # fmt: skip
        assert "hunter" not in str(await host.noted())

    tell(tmp_path, story)


def test_what_is_used_up_or_over_is_gone_and_written_again_is_new(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, "host/once", b"1", Reads.ONCE)
        (kept,) = (await host.operations.kv(ONE, "")).values
        host.store.spend(ONE, [kept.item], 7)
        over = await put(host, "host/over", until=time.time() + 0.03)
        assert over.created and over.revision > 0
        await asyncio.sleep(0.04)
        assert await names(host) == []
        for key in ("host/once", "host/over"):
            with pytest.raises(NotFoundError):
                await host.operations.delete_key(ONE, key, None, who=WHO)
            assert (await put(host, key)).created
        assert (await put(host, "host/past", until=1.0)).revision > 0, "even of one that nobody ever sees"

    tell(tmp_path, story)


def test_who_follows_is_told_of_operators_and_guests_alike(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, "host/secret", b"1", Reads.ONCE)
        (secret,) = (await host.operations.kv(ONE, "")).values
        waiting = asyncio.ensure_future(host.operations.kv_changes(1, 10, ONE, "guest"))
        await asyncio.sleep(0)
        async with host.operations.writing:
            asks = [
                (Put("guest/a", b"12"), host.store.put_value(ONE, Value("guest/a", b"12"))),
                (Put("guest/b", b"1"), Outcome("quota")),
                (Spend(7, (secret.item,)), Outcome("done", items=host.store.spend(ONE, [secret.item], 7))),
            ]
            done = [(Write(ONE, "tap1", ask, "w1", lambda outcome: None), outcome) for ask, outcome in asks]
            await host.operations.written(done)
        (one,) = (await waiting).changes
        assert (one.op, one.key, one.etag, one.bytes) == ("put", "guest/a", etag(b"12"), 2)
        assert await changes(host) == [("put", "host/secret"), ("put", "guest/a"), ("delete", "host/secret")]
        assert (await host.operations.kv(ONE, "")).seq == 3

    tell(tmp_path, story)


def test_a_store_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        await put(host, "host/a")
        host.store._db.execute("PRAGMA query_only = 1")
        with pytest.raises(StoreError):
            await put(host, "host/b")
        with pytest.raises(StoreError):
            await host.operations.delete_key(ONE, "host/a", None, who=WHO)
        assert await names(host) == ["host/a"] and await changes(host) == [("put", "host/a")]
        host.store._db.execute("PRAGMA query_only = 0")
        await put(host, "host/b")

    tell(tmp_path, story)


def test_who_goes_before_the_end_leaves_no_half(tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        for turns in range(1, 6):
            host.workers.told.clear()
            doing = asyncio.ensure_future(put(host, f"host/{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            doing.cancel()
            await asyncio.gather(doing, *host.operations.under_way, return_exceptions=True)
            assert f"host/{turns}" in await names(host)
            assert [what for what, _ in host.workers.told] == ["changed", "settled"]

    tell(tmp_path, story)
