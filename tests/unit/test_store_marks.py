"""What guests used up, locked and reported, and the audit trail."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.closure import TOPICS
from shim.core.kv import Value
from shim.core.source import HOST, Reads, Scope, Source
from shim.errors import InputError, StoreError
from shim.metadata import store_marks
from shim.metadata.store import Store
from shim.metadata.store_marks import LATCHES_MAX, AuditRow
from tests.unit.store_hall import A, B, Clock, clock, path, reopened, store

__all__ = ["clock", "path", "store"]


def source(
    store: Store, scope: Scope = HOST, name: str = "s", reads: Reads = Reads.ONCE, until: float | None = None
) -> str:
    store.put_source(Source(scope, name, b"x", reads=reads, until=until))
    found = store.source(scope, name)
    assert found is not None
    return found.item


def key(store: Store, instance: UUID = A, name: str = "host/k", reads: Reads = Reads.ONCE) -> str:
    store.put_value(instance, Value(name, b"x", reads))
    return store.values(instance)[name].item


class TestSpent:
    def test_once_and_for_one_instance(self, store: Store) -> None:
        items = [source(store), key(store), source(store, name="t", reads=Reads.CONFIRM)]
        assert store.unspent(A, items) == tuple(items)
        assert store.spend(A, items[:2]) == tuple(items[:2])
        assert store.spend(A, items) == (items[2],), "only what was not before"
        assert store.spend(A, items) == store.unspent(A, items) == ()
        assert store.unspent(B, items) == (items[0], items[2]), "the key is not theirs"
        again = reopened(store)
        assert again.unspent(A, items) == ()
        again.close()

    def test_the_same_one_twice(self, store: Store) -> None:
        item = source(store)
        assert store.unspent(A, [item, item]) == (item,)
        assert store.spend(A, [item, item]) == (item,)

    def test_taken_back(self, store: Store) -> None:
        items = [source(store), key(store)]
        store.spend(A, items, 7)
        before = store.revision()
        assert store.unspend(A, [*items, items[0]], 7) == tuple(items)
        assert store.unspent(A, items) == tuple(items)
        assert store.changes(before) == (before + 1, {f"instance:{A}"})
        assert store.unspend(A, items, 7) == ()
        assert store.revision() == before + 1

    @pytest.mark.parametrize("lease", [0, 8, -1, -7, 1 << 62, 1 << 63, 10**30, -(10**30)])
    def test_taken_back_by_nobody_else(self, store: Store, lease: int) -> None:
        items = [source(store), key(store), source(store, name="confirmed", reads=Reads.CONFIRM)]
        store.spend(A, items[:2], 7)
        store.spend(A, items[2:])
        assert store.unspend(A, items, lease) == ()
        assert store.unspent(A, items) == ()
        assert store.spent_by(A, items[:2], 7)
        assert not store.spent_by(A, items[:2], lease)
        assert not store.spent_by(A, items, 7)

    def test_by_whom(self, store: Store) -> None:
        items = [source(store), key(store)]
        assert not store.spent_by(A, items, 7)
        store.spend(A, items[:1], 7)
        assert store.spent_by(A, items[:1], 7)
        assert not store.spent_by(A, items, 7)
        store.spend(A, items, 8)
        assert not store.spent_by(A, items, 7)
        assert store.spent_by(A, items[1:], 8)
        assert not store.spent_by(B, items[:1], 7)
        source(store)
        assert not store.spent_by(A, items[:1], 7), "written again"

    def test_it_tells_once_for_all(self, store: Store) -> None:
        items = [source(store), key(store)]
        before = store.revision()
        store.spend(A, items)
        assert store.changes(before) == (before + 1, {f"instance:{A}"})
        store.spend(A, items)
        assert store.revision() == before + 1

    def test_not_what_can_be_read_many_times(self, store: Store) -> None:
        items = [source(store, reads=Reads.MANY), key(store, reads=Reads.MANY)]
        assert store.spend(A, items) == ()
        assert store.unspent(A, items) == tuple(items)

    def test_not_another_instances(self, store: Store) -> None:
        theirs = [source(store, Scope("instance", str(B))), key(store, B)]
        assert store.spend(A, theirs) == store.unspent(A, theirs) == ()
        assert store.unspent(B, theirs) == tuple(theirs)
        store.spend(B, theirs, 7)
        store.unspend(A, theirs, 7)
        assert store.unspent(B, theirs) == ()

    def test_not_what_was_written_again_or_is_gone(self, store: Store) -> None:
        old = [source(store), key(store)]
        new = [source(store), key(store)]
        assert store.spend(A, old) == store.unspent(A, old) == ()
        assert store.spend(A, new) == tuple(new)
        store.delete_source(HOST, "s")
        store.delete_value(A, "host/k")
        assert store.spend(A, new) == store.unspent(A, new) == ()
        assert store._read("SELECT count(*) FROM spent") == [(0,)], "nothing is left behind"

    def test_what_is_written_again_is_new_for_all_who_used_it_up(self, store: Store) -> None:
        item = source(store)
        for number in range(50):
            store.spend(UUID(int=number), [item])
        assert store._read("SELECT count(*) FROM spent") == [(50,)]
        again = source(store)
        assert store._read("SELECT count(*) FROM spent") == [(0,)]
        assert store.unspent(UUID(int=7), [item, again]) == (again,)

    def test_after_its_deadline(self, store: Store, clock: Clock) -> None:
        item = source(store, until=clock.now + 5)
        assert store.unspent(A, [item]) == (item,)
        clock.now += 5
        assert store.unspent(A, [item]) == ()
        assert store.spend(A, [item]) == (item,), "its last byte is about to go out"

    @pytest.mark.parametrize("item", [
        "", "source", "kv", "source host/s", "source host/s ", "source host/s x", "source host/s -1", "kv host/k 2 ",
        "source host/s 1 ", "source host/s 01x", "source host/s 99999999999999999999", "source  1", "kv  1",
        "other host/s 1", "source s 1",
        "kv host/k ١", "source host/s 1\n", "source \ud800/s 1", "kv host/k\0 2", "' OR 1=1 -- 1", "source %/s 1",
        "source instance:/s 1", "kv " + "a" * 10_000 + " 1",
    ])  # fmt: skip
    def test_garbage(self, store: Store, item: str) -> None:
        good = source(store), key(store)
        assert good == ("source host/s 1", "kv host/k 2")
        assert store.spend(A, [item]) == store.unspent(A, [item]) == ()
        assert store.unspend(A, [item], 7) == ()
        assert store.spend(A, [item, *good]) == good

    def test_a_scope_with_slashes_and_spaces_in_words(self, store: Store) -> None:
        item = source(store, Scope("tag", "a=/b/c:d"), "n")
        assert store.spend(A, [item]) == (item,)


class TestLatches:
    def test_are_kept_by_instance(self, store: Store) -> None:
        assert store.latch(A, "/latest/user-data") is True
        assert store.latch(A, "kv") is True
        assert store.latch(B, "/") is True
        again = reopened(store)
        assert again.latches() == {A: ("/latest/user-data", "kv"), B: ("/",)}
        again.close()

    def test_one_that_is_closed_stays_so(self, store: Store) -> None:
        store.latch(A, "/2009-04-04/user-data")
        before = store.revision()
        assert store.latch(A, "/latest/user-data/") is False, "every version is one"
        assert store.revision() == before
        assert store.latch(A, "/latest/user-data/x") is True

    @pytest.mark.parametrize("prefix", ["", "user-date", "user_data", "//", "/a b", "/../x", "/\ud800", "/a" * 150])
    def test_what_is_no_prefix(self, store: Store, prefix: str) -> None:
        for act in (store.latch, store.unlatch):
            with pytest.raises(InputError) as caught:
                act(A, prefix)
            assert not prefix or prefix not in str(caught.value)
        assert store.latches() == {}

    def test_so_many_and_no_more(self, store: Store) -> None:
        for number in range(LATCHES_MAX):
            assert store.latch(A, f"/latest/{number}")
        with pytest.raises(InputError, match="32"):
            store.latch(A, "/latest/more")
        assert store.latch(A, "/latest/0") is False
        assert store.latch(B, "/latest/more") is True
        store.unlatch(A, "/latest/0")
        assert store.latch(A, "/latest/more") is True

    def test_opened(self, store: Store) -> None:
        for prefix in ("/latest/meta-data", *TOPICS):
            store.latch(A, prefix)
        store.latch(B, "kv")
        assert store.unlatch(A, "/latest/other") == ()
        assert store.unlatch(A, "/2009-04-04/meta-data/") == ("/latest/meta-data",)
        before = store.revision()
        assert store.unlatch(A, None) == tuple(sorted(TOPICS))
        assert store.changes(before) == (before + 1, {f"instance:{A}"})
        assert store.unlatch(A, None) == ()
        assert store.latches() == {B: ("kv",)}


class TestReports:
    def test_the_first_time(self, store: Store, clock: Clock) -> None:
        assert store.report(A, "ready") is True
        clock.now += 1
        assert store.report(A, "ready") is False
        assert store.report(A, "read") is True
        assert store.reports(A) == {"ready": clock.now - 1, "read": clock.now}
        assert store.reports(B) == {}
        store.forget_reports(A)
        assert store.reports(A) == {}
        assert store.report(A, "ready") is True


class TestAudit:
    def test_who_what_when(self, store: Store, clock: Clock) -> None:
        store.audit("root (uid 0)", "disable", A, "IPv4")
        store.audit("guest", "lock")
        rows = [
            AuditRow(1, clock.now, "root (uid 0)", A, "disable", "IPv4"),
            AuditRow(2, clock.now, "guest", None, "lock", ""),
        ]
        assert store.audits() == rows
        again = reopened(store)
        assert again.audits(A) == rows[:1]
        assert again.audits(B) == []
        again.close()

    def test_pages(self, store: Store) -> None:
        with store.transaction():
            for number in range(10):
                store.audit("me", str(number), A if number % 2 else B)
        assert [row.what for row in store.audits(after=0, limit=3)] == ["0", "1", "2"]
        assert [row.what for row in store.audits(after=3, limit=3)] == ["3", "4", "5"]
        assert [row.what for row in store.audits(A, after=4)] == ["5", "7", "9"]
        assert [row.what for row in store.audits(after=None, limit=3)] == ["7", "8", "9"]
        assert [row.what for row in store.audits(B, after=None, limit=2)] == ["6", "8"]
        assert store.audits(after=10) == store.audits(after=10**40) == []
        assert store.audits(limit=0) == store.audits(limit=-1) == []
        assert len(store.audits(after=-(10**40), limit=10**40)) == 10

    def test_the_newest_stay(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_marks, "AUDITS_KEPT", 5)
        for number in range(12):
            store.audit("me", str(number))
        assert [row.seq for row in store.audits()] == [8, 9, 10, 11, 12]
        again = reopened(store)
        again.audit("me", "more")
        assert [row.seq for row in again.audits()] == [9, 10, 11, 12, 13]
        again.close()

    def test_any_text_is_taken(self, store: Store) -> None:
        store.audit("é\ud800\0", "a\nb", A, "x" * 5_000)
        (row,) = store.audits()
        assert (row.who, row.what, row.detail) == ("é?\0", "a\nb", "x" * 1_000)

    def test_it_is_part_of_its_transaction(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.audit("me", "did")
            raise ZeroDivisionError
        assert store.audits() == []

    def test_a_row_edited_by_hand(self, store: Store, path: Path) -> None:
        store.audit("me", "did", A)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE audit SET instance = 'x'")
        db.close()
        with pytest.raises(StoreError, match="cannot read"):
            store.audits()
