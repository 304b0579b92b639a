"""What guests ask to have written, committed by a real thread to a real store: batches, bounds, leases, failures."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from shim import writes as writes_module
from shim.core.ask import (
    Ask,
    Claim,
    Confirm,
    Delete,
    Lock,
    Outcome,
    Put,
    Read,
    Ready,
    Release,
    Spend,
)
from shim.core.kv import KvLimits, Value, etag
from shim.core.policy import Policy
from shim.core.port import Port
from shim.core.source import HOST, Reads, Source
from shim.feed import Asked, Told
from shim.metadata import store_file
from shim.metadata.store import Store
from shim.writes import BATCH, Write, Writes
from tests.unit.store_hall import A, B

DONE = Outcome("done")
OFTEN = KvLimits(writes_per_second=1000)


class Desk:
    """A worker's side of Writes, of guest A at slot 1 and B at slot 2, and the agent's around it."""

    def __init__(self, folder: Path, limits: KvLimits) -> None:
        self.path = folder / "m.db"
        self.store = Store(self.path)
        self.now = 0.0
        self.ports = {1: port(1, A), 2: port(2, B)}
        self.writing = asyncio.Lock()
        self.batches: list[list[tuple[Ask, str]]] = []
        self.fail_to_tell = False
        self.limits = limits
        self.writes = Writes(
            self.path, self.store.unspent, self._port, limits, self.writing, self._written, lambda: self.now
        )
        self._number = 0

    def _port(self, slot: int, generation: int) -> Port | None:
        found = self.ports.get(slot)
        return found if found is not None and found.generation == generation else None

    async def _written(self, done: Sequence[tuple[Write, Outcome]]) -> None:
        assert self.writing.locked()
        self.batches.append([(write.ask, outcome.fate) for write, outcome in done])
        if self.fail_to_tell:
            raise RuntimeError("a mistake of ours")

    def send(self, ask: Ask, slot: int = 1, reader: object = "w1", generation: int = 1) -> asyncio.Future[Outcome]:
        """The outcome that is to come."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._number += 1
        number = self._number

        def told(message: Told) -> None:
            assert message.number == number
            future.set_result(message.outcome)

        self.writes.hear(reader, Asked(number, slot, generation, ask), told)
        return future

    async def ask(self, ask: Ask, slot: int = 1, reader: object = "w1") -> Outcome:
        return await asyncio.wait_for(self.send(ask, slot, reader), 10)

    async def again(self) -> None:
        """Another agent, over the same store."""
        self.writes = Writes(
            self.path, self.store.unspent, self._port, self.limits, self.writing, self._written, lambda: self.now
        )


def port(slot: int, instance: UUID | None, generation: int = 1) -> Port:
    return Port(slot, generation, slot, f"tap{slot}", "", instance, Policy())


@contextlib.asynccontextmanager
async def running(desk: Desk):  # type: ignore[no-untyped-def]
    run = asyncio.ensure_future(desk.writes.run())
    try:
        yield
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run


Story = Callable[[Desk], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path) -> Iterator[Callable[..., None]]:
    def told(story: Story, limits: KvLimits = OFTEN, *, run: bool = True) -> None:
        async def whole() -> None:
            desk = Desk(tmp_path, limits)
            try:
                async with running(desk) if run else contextlib.nullcontext():
                    await asyncio.wait_for(story(desk), 60)  # type: ignore[arg-type]
            finally:
                desk.store.close()

        asyncio.run(whole())

    return told


Tell = Callable[..., None]


def commits(desk: Desk) -> int:
    """How many commits others have made, as SQLite counts them for this connection."""
    return int(desk.store._db.execute("PRAGMA data_version").fetchone()[0])


# Batches.


def test_what_is_asked_together_is_one_commit_in_its_order(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        await desk.ask(Put("guest/before", b""))
        before = commits(desk)
        outcomes = await asyncio.gather(*(desk.send(Put("guest/a", b"%d" % number)) for number in range(100)))
        assert [one.created for one in outcomes] == [True] + [False] * 99
        assert [one.etag for one in outcomes] == [etag(b"%d" % number) for number in range(100)]
        assert commits(desk) == before + 1 and len(desk.batches) == 2
        found = desk.store.value(A, "guest/a")
        assert found is not None and found.body == b"99"

    tell(story)


def test_a_batch_is_bounded_in_asks_and_in_bytes(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes_module, "BATCH_BYTES", 50_000)

    async def story(desk: Desk) -> None:
        small = [desk.send(Put(f"guest/{number}", b"")) for number in range(2 * BATCH + 10)]
        assert all(one.fate == "done" for one in await asyncio.gather(*small))
        assert [len(one) for one in desk.batches] == [250, 250, 22], "50,000 bytes are 250 of 200"
        desk.batches.clear()
        large = [desk.send(Put(f"guest/l{number}", b"x" * 20_000)) for number in range(5)]
        larger = desk.send(Put("guest/larger", b"x" * 60_000))
        assert all(one.fate == "done" for one in await asyncio.gather(*large, larger))
        assert [len(one) for one in desk.batches] == [2, 2, 1, 1], "one that is larger than a batch goes alone"

    tell(story, KvLimits(keys=1000, total_bytes=1 << 20, writes_per_second=1000))


def test_one_that_may_not_be_spoils_no_other(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        asks = [
            (Put("guest/a", b"1"), "done"), (Put("host/a", b"1"), "refused"), (Put("guest/../host/a", b"1"), "refused"),
            (Put("guest/a/b", b"1"), "clash"), (Put("guest/big", b"x" * 101), "quota"), (Lock("/../x"), "refused"),
            (Delete("guest/none"), "absent"), (Delete("host/a"), "refused"), (Put("guest/b", b"2"), "done"),
            (Put("guest/a", b"3", if_none_match=("*",)), "changed"), (Delete("guest/a", ("no",)), "changed"),
            (Confirm(("nonsense", "kv ", "kv a b c", "source host/x 1")), "done"), (Lock("kv"), "done"),
            (Spend(7, ("kv guest/a 1",)), "refused"), (Release(7, ("nonsense",)), "done"), (Ready(), "done"),
        ]  # fmt: skip
        outcomes = await asyncio.gather(*(desk.send(ask) for ask, _ in asks))
        assert [one.fate for one in outcomes] == [fate for _, fate in asks]
        assert len(desk.batches) == 1
        assert {key: one.body for key, one in desk.store.values(A).items()} == {"guest/a": b"1", "guest/b": b"2"}
        assert desk.store.latches() == {A: ("kv",)} and list(desk.store.reports(A)) == ["ready"]
        assert [(row.who, row.what, row.detail) for row in desk.store.audits()] == [
            ("guest on tap1", "lock", "kv"), ("guest on tap1", "ready", ""),
        ]  # fmt: skip
        for outcome in outcomes:
            assert "guest/a" not in outcome.words and "nonsense" not in outcome.words

    tell(story, KvLimits(value_bytes=100, writes_per_second=100))


def test_who_is_told_what_was_written_is_told_before_who_asked(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        waiting = desk.send(Put("guest/a", b"1"))
        while not desk.batches:
            assert not waiting.done()
            await asyncio.sleep(0.001)
        assert (await waiting).fate == "done"

    tell(story)


def test_a_mistake_in_telling_stops_nothing(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    async def story(desk: Desk) -> None:
        desk.fail_to_tell = True
        assert (await desk.ask(Put("guest/a", b"1"))).fate == "done"
        desk.fail_to_tell = False
        assert (await desk.ask(Put("guest/b", b"1"))).fate == "done"

    tell(story)
    assert "could not be told" in caplog.text


def test_operators_and_guests_take_turns(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        async with desk.writing:
            waiting = desk.send(Put("guest/a", b"1"))
            with desk.store.transaction():
                desk.store.put_value(A, Value("host/a", b"1"))
                await asyncio.sleep(0.05)
            assert not waiting.done()
        assert (await waiting).fate == "done"

    tell(story)


def test_each_instance_writes_its_own(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        await asyncio.gather(desk.send(Put("guest/x", b"a")), desk.send(Put("guest/x", b"b"), slot=2))
        assert [desk.store.value(one, "guest/x").body for one in (A, B)] == [b"a", b"b"]  # type: ignore[union-attr]

    tell(story)


def test_whose_slot_it_is_not_is_refused(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        desk.ports[3] = port(3, None)
        for slot, generation in ((9, 1), (1, 2), (3, 1), (0, 0)):
            for ask in (Put("guest/a", b"1"), Claim(("x",)), Lock("/"), Read(), Spend(1, ("x",)), Release(1, ("x",))):
                assert await desk.send(ask, slot, generation=generation) == Outcome("refused")
        assert desk.batches == [] and desk.store.instances() == set()

    tell(story)


# Bounds.


def test_a_guest_writes_so_often_and_no_more_and_others_are_not_held_up(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        fates = [(await desk.ask(Put("guest/a", b""))).fate for _ in range(55)]
        assert fates == ["done"] * 50 + ["rate"] * 5
        for ask in (Ready(), Lock("kv"), Delete("guest/a"), Confirm(("x",))):
            assert (await desk.ask(ask)).fate == "rate"
        assert (await desk.ask(Put("guest/a", b""), slot=2)).fate == "done"
        desk.now += 0.2
        assert [(await desk.ask(Put("guest/a", b""))).fate for _ in range(2)] == ["done", "rate"]
        assert desk.writes.counts["put", "rate"] == 6 and desk.writes.counts["put", "done"] == 52

    tell(story, KvLimits(writes_per_second=5))


def test_what_a_worker_tells_of_a_reading_is_not_kept_out_by_what_the_guest_writes(tell: Tell) -> None:
    """Else a guest could read on where its reading is to end its access, or hold an item for ever."""

    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        claim = await desk.ask(Claim((item,)))
        while (await desk.ask(Put("guest/a", b""))).fate != "rate":
            pass
        assert (await desk.ask(Read())).fate == "done" and "read" in desk.store.reports(A)
        assert (await desk.ask(Spend(claim.lease, (item,)))).fate == "done"
        assert (await desk.ask(Release(claim.lease, (item,)))).fate == "done"

    tell(story, KvLimits(writes_per_second=5))


def test_what_waits_is_bounded_and_comes_again(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes_module, "QUEUED_BYTES", 10_000)

    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        lease = (await desk.ask(Claim((item,)))).lease
        async with desk.writing:
            waiting = [desk.send(Put(f"guest/{number}", b"x" * 1000)) for number in range(10)]
            told = [one.result().fate for one in waiting if one.done()]
            assert told == ["unavailable", "unavailable"], "8 of 1,200 bytes fit"
            spending = desk.send(Spend(lease, (item,)))
            assert not spending.done(), "as many bytes again are for what workers tell"
        assert [(await one).fate for one in waiting] == ["done"] * 8 + ["unavailable"] * 2
        assert (await spending).fate == "done"
        assert desk.writes._queued_bytes == 0
        assert (await desk.ask(Put("guest/9", b"x" * 1000))).fate == "done"

    tell(story)


def test_a_release_that_finds_no_room_ends_its_lease_all_the_same(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes_module, "QUEUED_BYTES", 300)

    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        lease = (await desk.ask(Claim((item,)))).lease
        second = desk.send(Claim((item,)))
        async with desk.writing:
            flood = [desk.send(Read()) for _ in range(4)]
            assert (await desk.ask(Release(lease, (item,)))).fate == "unavailable"
            assert (await second).items == (item,)
        await asyncio.gather(*flood)

    tell(story)


def test_quotas(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        assert (await desk.ask(Put("guest/a", b"x" * 100))).fate == "done"
        assert (await desk.ask(Put("guest/b", b"x" * 101))).fate == "quota"
        assert (await desk.ask(Put("guest/b", b"x" * 100))).fate == "quota", "of all together, with the keys"
        assert (await desk.ask(Put("guest/b", b"x" * 80))).fate == "done"
        assert (await desk.ask(Put("guest/c", b""))).fate == "quota", "of keys"
        assert (await desk.ask(Put("guest/b", b"x" * 81))).fate == "done"
        assert (await desk.ask(Put("guest/c", b""), slot=2)).fate == "done"

    tell(story, KvLimits(keys=2, value_bytes=100, total_bytes=198, writes_per_second=100))


# What can be read once.


def secret(store: Store, reads: Reads = Reads.ONCE, key: str = "host/secret") -> str:
    """The item of a new key that A may read once."""
    store.put_value(A, Value(key, b"secret", reads))
    found = store.value(A, key)
    assert found is not None
    return found.item


def test_one_reads_once(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        claim = await desk.ask(Claim((item, "gone 1")))
        assert claim.fate == "done" and claim.items == (item,) and claim.lease > 0
        waiting = desk.send(Claim((item,)), reader="w2")
        spend = await desk.ask(Spend(claim.lease, claim.items))
        assert spend == Outcome("done", items=(item,))
        assert await waiting == DONE, "nothing is left"
        assert desk.store.value(A, "host/secret") is None
        assert [(row.what, row.detail) for row in desk.store.audits()] == [("read once", item)]
        assert await desk.ask(Claim((item,)), slot=2) == DONE, "it was never another's"

    tell(story)


def test_who_breaks_off_leaves_it_and_after_the_commit_takes_that_back(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        first = await desk.ask(Claim((item,)))
        second = desk.send(Claim((item,)))
        await desk.ask(Release(first.lease, (item,)))
        lease = (await second).lease
        assert (await desk.ask(Spend(lease, (item,)))).fate == "done"
        assert desk.store.value(A, "host/secret") is None
        assert await desk.ask(Release(lease, (item,))) == Outcome("done", items=(item,))
        assert desk.store.value(A, "host/secret") is not None
        assert [row.what for row in desk.store.audits()] == ["read once", "not read after all"]
        assert await desk.ask(Release(lease, (item,))) == DONE, "once is as good as twice"

    tell(story)


def test_asked_twice_it_is_as_it_was_and_another_lease_is_refused(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        lease = (await desk.ask(Claim((item,)))).lease
        assert [(await desk.ask(Spend(lease, (item,)))).fate for _ in range(3)] == ["done"] * 3
        assert [row.what for row in desk.store.audits()] == ["read once"]
        assert (await desk.ask(Spend(lease + 2, (item,)))).fate == "refused"
        assert (await desk.ask(Release(lease + 2, (item,)))).items == (), "whose it was not takes nothing back"
        assert desk.store.value(A, "host/secret") is None

    tell(story)


def test_a_lease_is_spent_whole_or_not_at_all(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        one, other = secret(desk.store), secret(desk.store, key="host/other")
        lease = (await desk.ask(Claim((one, other)))).lease
        desk.store.delete_value(A, "host/other")
        assert (await desk.ask(Spend(lease, (one, other)))).fate == "refused"
        assert desk.store.unspent(A, (one,)) == (one,)
        assert (await desk.ask(Claim((one, other)))).items == (one,), "the lease is over"

    tell(story)


def test_a_lease_outlives_its_agent(tell: Tell) -> None:
    """The worker asks the next agent: that has no leases, and knows what was committed."""

    async def story(desk: Desk) -> None:
        one, other = secret(desk.store), secret(desk.store, key="host/other")
        async with running(desk):
            first, second = await desk.ask(Claim((one,))), await desk.ask(Claim((other,)))
            assert (await desk.ask(Spend(first.lease, (one,)))).fate == "done"
        await desk.again()
        async with running(desk):
            assert await desk.ask(Spend(first.lease, (one,))) == DONE, "that very lease had it committed"
            assert (await desk.ask(Spend(second.lease, (other,)))).fate == "done", "nobody else has it"
            assert (await desk.ask(Spend(first.lease, (other,)))).fate == "refused", "another's lease had it committed"
            assert (await desk.ask(Release(first.lease, (one,)))).items == (one,)
            assert desk.store.unspent(A, (one,)) == (one,)

    tell(story, run=False)


def test_a_lease_of_a_former_agent_s_is_refused_if_another_reads_by_now(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        former = (await desk.ask(Claim((item,)))).lease
        await desk.again()
        async with running(desk):
            mine = await desk.ask(Claim((item,)), reader="w2")
            assert mine.items == (item,)
            assert (await desk.ask(Spend(former, (item,)))).fate == "refused"
            assert (await desk.ask(Spend(mine.lease, (item,)), reader="w2")).fate == "done"

    tell(story, run=False)


def test_a_worker_that_dies_has_read_nothing_though_it_said_so_before_its_turn(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        lease = (await desk.ask(Claim((item,)))).lease
        waiting = desk.send(Claim((item,)), reader="w2")
        async with desk.writing:
            spending, other = desk.send(Spend(lease, (item,))), desk.send(Put("guest/a", b"1"))
            await asyncio.sleep(0)
            desk.writes.gone("w1")
            assert (await waiting).items == (item,)
        assert (await other).fate == "done" and not spending.done()
        assert (await desk.ask(Spend((await waiting).lease, (item,)), reader="w2")).fate == "done"
        assert desk.writes._queued_bytes == 0

    tell(story)


def test_a_guest_that_goes_while_it_reads_does_not_take_the_item_with_it(tell: Tell) -> None:
    """Its tap is gone when the worker says that it broke off; it comes back by another one, and asks again."""

    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        lease = (await desk.ask(Claim((item,)))).lease
        desk.ports = {5: port(5, A, 3)}
        again = desk.send(Claim((item,)), slot=5, generation=3)
        assert not again.done()
        assert (await desk.ask(Spend(lease, (item,)))).fate == "refused"
        assert (await desk.ask(Release(lease, (item,)), reader="w2")).fate == "refused", "it is not that worker's"
        assert not again.done()
        assert (await desk.ask(Release(lease, (item,)))).fate == "done"
        assert (await again).items == (item,)

    tell(story)


def test_confirmed_is_used_up_and_only_what_was_to_be_confirmed(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        waits, plain = secret(desk.store, Reads.CONFIRM), secret(desk.store, Reads.MANY, "host/plain")
        desk.store.put_source(Source(HOST, "s", b"x", reads=Reads.CONFIRM))
        source = desk.store.source(HOST, "s")
        assert source is not None
        items = (waits, plain, source.item, "kv host/none 5")
        assert (await desk.ask(Confirm(items))).items == (waits, source.item)
        assert await desk.ask(Confirm(items)) == DONE
        assert [row.detail for row in desk.store.audits()] == [waits, source.item]
        assert len(desk.store.sources_for([HOST], A)) == 0 and len(desk.store.sources_for([HOST], B)) == 1

    tell(story)


# The store fails.


def test_a_store_that_another_holds_is_unavailable_and_comes_back(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_file, "BUSY_SECONDS", 0.02)

    async def story(desk: Desk) -> None:
        other = sqlite3.connect(desk.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            outcome = await desk.ask(Put("guest/a", b"1"))
            assert (outcome.fate, outcome.words) == ("unavailable", "the store cannot be written")
        assert caplog.text.count("cannot be written") == 1, "said once"
        other.execute("ROLLBACK")
        other.close()
        assert (await desk.ask(Put("guest/a", b"1"))).fate == "done"

    tell(story)


def test_a_full_store_is_told_and_what_is_small_enough_is_written(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        assert (await desk.ask(Put("guest/a", b"x"))).fate == "done"
        limit_full(desk, 20_000)
        asks: list[Ask] = [Put("guest/b", b"1"), Put("guest/large", b"x" * 100_000), Lock("kv"), Put("guest/c", b"2")]
        outcomes = await asyncio.gather(*(desk.send(ask) for ask in asks))
        assert [one.fate for one in outcomes] == ["done", "full", "done", "done"]
        assert outcomes[1].words == "no room is left on the host"
        assert sorted(desk.store.values(A)) == ["guest/a", "guest/b", "guest/c"]
        assert desk.store.latches() == {A: ("kv",)}
        assert (await desk.ask(Put("guest/large", b"x" * 100_000))).fate == "full"
        limit_full(desk, 1 << 30)
        assert (await desk.ask(Put("guest/large", b"x" * 100_000))).fate == "done"

    tell(story)


def limit_full(desk: Desk, room: int) -> None:
    """Leaves so many bytes for the writer's file to grow; beyond it SQLite says that it is full."""

    def limit() -> None:
        store = desk.writes._store
        assert store is not None
        pages = store._db.execute("PRAGMA page_count").fetchone()[0] + room // 4096
        store._db.execute(f"PRAGMA max_page_count = {pages}")

    desk.writes._thread.submit(limit).result()


def test_a_disk_that_fails_in_the_middle_changes_nothing_and_is_over_when_it_is(
    tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    """No file may grow any more: the kernel's own error, in the middle of a batch."""

    async def story(desk: Desk) -> None:
        assert (await desk.ask(Put("guest/a", b"x"))).fate == "done"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        log = Path(f"{desk.path}-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10_000, hard))
        try:
            asks = [Put("guest/b", b"1"), *(Put(f"guest/l{number}", b"x" * 50_000) for number in range(3)), Ready()]
            outcomes = await asyncio.gather(*(desk.send(ask) for ask in asks))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {one.fate for one in outcomes} <= {"unavailable", "full"}
        assert list(desk.store.values(A)) == ["guest/a"] and desk.store.reports(A) == {}
        outcomes = await asyncio.gather(*(desk.send(ask) for ask in asks))
        assert {one.fate for one in outcomes} == {"done"} and len(desk.store.values(A)) == 5

    tell(story)


def test_a_store_that_is_not_there_yet_and_one_that_cannot_be_looked_up(tell: Tell, tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        item = secret(desk.store)
        desk.store.close()
        outcome = await desk.ask(Claim((item,)))
        assert (outcome.fate, outcome.lease) == ("unavailable", 0)
        for name in ("m.db", "m.db-wal", "m.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "m.db").mkdir()
        assert (await desk.ask(Put("guest/a", b"1"))).fate == "unavailable"
        (tmp_path / "m.db").rmdir()
        assert (await desk.ask(Put("guest/a", b"1"))).fate == "done", "it is opened when it can be"

    tell(story)


def test_its_end_waits_for_what_is_being_committed(tell: Tell) -> None:
    async def story(desk: Desk) -> None:
        run = asyncio.ensure_future(desk.writes.run())
        await asyncio.sleep(0)
        asked = desk.send(Put("guest/a", b"x" * 200_000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not asked.done() or asked.result().fate == "done"
        assert desk.writes._thread._shutdown
        desk.store.put_value(A, Value("host/a", b"1"))  # nothing holds it

    tell(story, run=False)


# Many.


def test_many_guests_at_once(tell: Tell) -> None:
    """4,000 writes of 200 guests: each a commit of its own would be 4,000 waits for the disk."""

    async def story(desk: Desk) -> None:
        desk.ports = {slot: port(slot, UUID(int=slot)) for slot in range(1, 201)}
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = [desk.send(Put(f"guest/{n}", b"x" * 100), slot) for n in range(20) for slot in desk.ports]
        outcomes = await asyncio.gather(*sent)
        took = loop.time() - began
        assert all(one.fate == "done" for one in outcomes)
        assert len(desk.batches) <= 4000 // BATCH + 2
        assert took < 20, f"{4000 / took:.0f} writes a second"
        assert desk.writes.counts == {("put", "done"): 4000}

    tell(story)
