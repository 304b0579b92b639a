"""Transactions and their parts, two stores on one file, and what is kept of an instance in all."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.kv import Value
from shim.core.policy import Access, Auto, Composition, Policy
from shim.core.source import HOST, Reads, Scope, Source
from shim.errors import InputError, MetashimError, StoreError
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import (
    TABLES,
    WRITES,
    A,
    B,
    Clock,
    clock,
    everything,
    named,
    path,
    prepare,
    reopened,
    store,
)

__all__ = ["clock", "path", "store"]

writes = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


class TestParts:
    def test_a_bad_one_spoils_no_other(self, store: Store) -> None:
        with store.transaction():
            for number in range(6):
                try:
                    with store.savepoint():
                        store.put_value(A, Value(f"guest/{number}", b"x"))
                        if number % 2:
                            raise InputError("no")
                except MetashimError:
                    pass
        assert set(store.values(A)) == {"guest/0", "guest/2", "guest/4"}
        assert store.revision() == 3
        assert [value.revision for value in store.values(A).values()] == [1, 2, 3]

    def test_one_in_another(self, store: Store) -> None:
        with store.transaction(), store.savepoint():
            store.put_document(A, named("a"))
            with pytest.raises(ZeroDivisionError), store.savepoint():
                store.put_document(A, named("b"))
                with store.savepoint():
                    store.put_document(B, named("b"))
                raise ZeroDivisionError
        assert store.instances() == {A}
        assert store.body(A) == (1, named("a"))

    def test_the_whole_is_taken_back_with_its_parts(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.transaction():
            with store.savepoint():
                store.put_document(A, named("a"))
            raise ZeroDivisionError
        assert (store.instances(), store.revision()) == (frozenset(), 0)

    def test_alone_it_is_a_transaction(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.savepoint():
            store.put_document(A, named("a"))
            raise ZeroDivisionError
        assert store.instances() == frozenset()
        with store.savepoint():
            store.put_document(A, named("a"))
        assert store.instances() == {A}

    def test_others_see_none_of_it_before_its_end(self, store: Store, path: Path) -> None:
        reader = Reader(path)
        with store.transaction():
            with store.savepoint():
                store.put_value(A, Value("guest/a", b"x"))
            assert reader.values(A) == {}
            assert reader.changes(0) == (0, frozenset())
        assert set(reader.values(A)) == {"guest/a"}

    @pytest.mark.parametrize("part", [False, True])
    def test_nothing_follows_what_was_ended_beneath(self, store: Store, part: bool) -> None:
        """As SQLite itself does on a full disk: who goes on must not commit the rest alone."""
        within = store.savepoint if part else store.transaction
        with pytest.raises(StoreError, match="ended"), store.transaction():
            store.put_document(A, named("a"))
            try:
                with within():
                    store._db.execute("ROLLBACK")
            except StoreError:
                pass
            with pytest.raises(StoreError, match="ended"):
                store.put_document(B, named("b"))
        assert store.instances() == frozenset()
        store.put_document(B, named("b"))
        assert store.instances() == {B}

    @writes
    def test_each_write_is_taken_back_whole(self, store: Store, path: Path, write: Callable[[Store], object]) -> None:
        prepare(store)
        before = everything(path)
        with pytest.raises(ZeroDivisionError), store.transaction():
            write(store)
            raise ZeroDivisionError
        assert everything(path) == before
        with store.transaction(), pytest.raises(ZeroDivisionError), store.savepoint():
            write(store)
            raise ZeroDivisionError
        assert everything(path) == before
        write(store)
        assert everything(path) != before

    @writes
    def test_a_write_that_fails_half_way_leaves_nothing(
        self, store: Store, path: Path, write: Callable[[Store], object]
    ) -> None:
        prepare(store)
        before, refused = everything(path), 0
        for table, event in itertools.product(TABLES, ("INSERT", "UPDATE", "DELETE")):
            store._db.execute(
                f"CREATE TRIGGER refuse AFTER {event} ON {table} BEGIN SELECT raise(ABORT, 'no more'); END"
            )
            if self.concerned(store, write):
                with pytest.raises(StoreError, match="no more"):
                    write(store)
                assert everything(path) == before
                refused += 1
            store._db.execute("DROP TRIGGER refuse")
        assert refused

    def concerned(self, store: Store, write: Callable[[Store], object]) -> bool:
        """Whether the trigger stops it."""
        try:
            with store.transaction():
                write(store)
                raise ZeroDivisionError
        except ZeroDivisionError:
            return False
        except StoreError:
            return True


class TestTwoStores:
    def test_one_reads_while_the_other_commits(self, store: Store, path: Path, clock: Clock) -> None:
        store.attach("", "tap1", A)
        store.attachments()
        stop, trouble = threading.Event(), []

        def commit() -> None:
            try:
                other = Store(path, clock=clock, check=False)
                for number in range(300):
                    with other.transaction():
                        other.put_value(A, Value("guest/a", b"%d" % number))
                        other.put_value(A, Value("guest/b", b"%d" % number))
                other.attach("", "tap2", B)
                other.close()
            except (StoreError, AssertionError) as error:
                trouble.append(error)
            stop.set()

        thread = threading.Thread(target=commit)
        thread.start()
        seen = 0
        while not stop.is_set():
            bodies = {value.body for value in store.values(A).values()}
            assert len(bodies) <= 1, "a commit is seen whole"
            seen += 1
        thread.join()
        assert trouble == []
        assert seen > 5
        assert store.values(A)["guest/b"].body == b"299"
        assert set(store.attachments()) == {("", "tap1"), ("", "tap2")}
        assert store.revision() == 600

    def test_they_write_in_turn(self, store: Store, path: Path) -> None:
        other = Store(path, check=False)
        for number in range(20):
            for one in (store, other):
                one.put_value(A, Value(f"guest/{number}", b"x"))
        assert store.revision() == other.revision() == 40
        assert store.values(A) == other.values(A)
        other.close()

    def test_it_is_for_the_thread_that_made_it(self, store: Store) -> None:
        found = []

        def use() -> None:
            with pytest.raises(StoreError) as caught:
                store.revision()
            found.append(str(caught.value))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert "thread" in found[0]


class TestLocked:
    @writes
    def test_somebody_else_holds_it(
        self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Store], object]
    ) -> None:
        prepare(store)
        monkeypatch.setattr("shim.metadata.store_file.BUSY_SECONDS", 0.01)
        impatient, reader = Store(path), Reader(path)
        before = everything(path)
        shell = sqlite3.connect(path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as caught:
            write(impatient)
        assert "second agent" in caught.value.hint
        assert reader.document(A)[1] is not None
        assert everything(path) == before
        shell.execute("ROLLBACK")
        shell.close()
        write(impatient)
        assert everything(path) != before
        impatient.close()


class TestPolicies:
    def test_all_fields_are_kept_but_what_is_latched(self, store: Store) -> None:
        whole = Policy(
            Access.FORBID, composition=Composition.VENDOR, closed=("kv", "/latest/meta-data"),
            auto=Auto(Access.DROP, 1_800_000_000.5, on_read=True, on_ready=True),
        )  # fmt: skip
        store.put_policy(A, whole.with_latches(("user-data",)))
        store.put_policy(B, Policy(auto=Auto()))
        again = reopened(store)
        assert again.policies() == {A: whole, B: Policy(auto=Auto())}
        again.close()

    @pytest.mark.parametrize(("column", "value"), [
        ("composition", "mixed"), ("closed", "{}"), ("closed", "[1]"), ("closed", '["nowhere"]'), ("closed", "["),
        ("closed", '["/latest/x/"]'), ("auto", "[]"), ("auto", '{"how": "ajar"}'), ("auto", '{"until": "soon"}'),
    ])  # fmt: skip
    def test_what_makes_no_sense_is_refused(self, store: Store, path: Path, column: str, value: str) -> None:
        store.put_policy(A, Policy())
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE policies SET {column} = ?", (value,))
        db.close()
        with pytest.raises(StoreError, match="cannot read"):
            store.policies()

    def test_a_deadline_that_is_none(self, store: Store) -> None:
        with pytest.raises(InputError):
            store.put_policy(A, Policy(auto=Auto(until=float("nan"))))
        assert store.policies() == {}

    def test_they_tell(self, store: Store) -> None:
        store.put_policy(A, Policy(composition=Composition.VENDOR))
        assert store.changes(0) == (1, {f"instance:{A}"})
        store.delete_policy(A)
        store.delete_policy(A)
        assert store.changes(1) == (2, {f"instance:{A}"})


class TestInstances:
    def test_all_that_anything_is_kept_of(self, store: Store) -> None:
        ids = [UUID(int=number) for number in range(6)]
        store.put_document(ids[0], b"{}")
        store.put_policy(ids[1], Policy())
        store.attach("", "tap1", ids[2])
        store.put_value(ids[3], Value("host/a", b""))
        store.latch(ids[4], "/")
        store.put_source(Source(Scope("instance", str(ids[5])), "a", b""))
        store.put_source(Source(Scope("project", "blue"), "a", b""))
        assert store.instances() == set(ids)

    def test_forgotten(self, store: Store, path: Path) -> None:
        prepare(store)
        own = Scope("instance", str(A))
        store.put_source(Source(own, "mine", b"x", reads=Reads.ONCE))
        (mine,) = store.sources(own)
        store.spend(A, [mine.item])
        store.put_document(B, named("b"))
        store.spend(B, [one.item for one in store.sources(HOST) if one.name == "once"])
        before, revision = everything(path), store.revision()
        assert store.forget(A) is True
        after = everything(path)
        for table in ("documents", "policies", "kv", "spent", "latches", "reports"):
            assert [row for row in after[table] if str(A) in row] == [], table
        assert [row for row in after["documents"] + after["spent"] if str(B) in row] == [
            row for row in before["documents"] + before["spent"] if str(B) in row
        ]
        assert store.sources(own) == []
        assert after["attachments"] == before["attachments"]
        assert after["audit"] == before["audit"]
        assert store.changes(revision) == (revision + 1, {f"instance:{A}"})
        assert store.forget(A) is False
        assert store.instances() == {A, B}, "whose tap it is is another matter"

    @pytest.mark.parametrize("write", ["latch", "report", "spend"])
    def test_little_is_something_to_forget(self, store: Store, write: str) -> None:
        if write == "latch":
            store.latch(A, "/")
        elif write == "report":
            store.report(A, "read")
        else:
            store.put_source(Source(HOST, "once", b"x", reads=Reads.ONCE))
            store.spend(A, [store.sources()[0].item])
        assert store.forget(A) is True
        assert store.forget(A) is False
