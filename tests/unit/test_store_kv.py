"""The store's keys: conditions, limits, folders, and what can be read no more."""

from __future__ import annotations

import itertools
from math import nan
from pathlib import Path

import pytest

from shim.core.ask import Outcome
from shim.core.kv import KvLimits, Value, etag
from shim.core.source import Reads
from shim.errors import InputError
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import A, B, Clock, clock, path, reopened, store

__all__ = ["clock", "path", "store"]

KEY = "guest/app/state"
ONE, TWO = etag(b"1"), etag(b"2")
SMALL = KvLimits(keys=3, value_bytes=10, total_bytes=40)


def put(store: Store, key: str, body: bytes = b"1", **conditions: object) -> Outcome:
    return store.put_value(A, Value(key, body), **conditions)  # type: ignore[arg-type]


class TestKept:
    def test_over_a_restart_with_all_its_fields(self, store: Store, clock: Clock) -> None:
        value = Value("host/x", b"\0\xff", Reads.CONFIRM, clock.now + 60)
        assert store.put_value(A, value) == Outcome("done", etag=value.etag, created=True)
        again = Store(store.path, clock=clock)
        kept = Value("host/x", b"\0\xff", Reads.CONFIRM, clock.now + 60, 1, clock.now)
        assert again.value(A, "host/x") == kept
        assert again.values(A) == {"host/x": kept}
        assert again.kv_instances() == {A}
        again.close()

    def test_instances_are_apart(self, store: Store) -> None:
        put(store, KEY)
        assert store.value(B, KEY) is None
        assert store.values(B) == {}
        assert store.delete_value(B, KEY).fate == "absent"
        assert store.value(A, KEY) is not None

    def test_prefixes(self, store: Store, path: Path) -> None:
        keys = ["guest/a", "guest/a.b", "guest/ab/c", "guest/b", "host/a", "host/~"]
        for key in keys:
            put(store, key)
        reader = Reader(path)
        for prefix in ("", "g", "guest/", "guest/a", "guest/a/", "host/~", "x", "_", "%", "guest/_", "\0", "g\0", "é"):
            found = [key for key in keys if key.startswith(prefix)]
            assert list(store.values(A, prefix)) == list(reader.values(A, prefix)) == found, prefix

    @pytest.mark.parametrize("key", ["", "guest", "guest/", "other/a", "guest/a//b", "guest/../a", "guest/a b", "é",
                                     "guest/\ud800", "guest/a\0", "guest/" + "a" * 260])
    def test_what_is_no_key(self, store: Store, key: str) -> None:
        with pytest.raises(InputError) as caught:
            put(store, key)
        assert not key or key == "guest" or key not in str(caught.value)
        assert store.value(A, key) is None
        assert Reader(store.path).value(A, key) is None
        assert store.delete_value(A, key).fate == "absent"
        assert store.revision() == 0

    def test_no_deadline_that_is_none(self, store: Store) -> None:
        for until in (nan, -1.0, 10**400):
            with pytest.raises(InputError):
                store.put_value(A, Value(KEY, b"", until=until))

    def test_written_and_deleted_it_tells(self, store: Store) -> None:
        first = put(store, KEY)
        second = put(store, KEY, b"2")
        gone = store.delete_value(A, KEY)
        assert [first, second, gone] == [
            Outcome("done", etag=ONE, created=True), Outcome("done", etag=TWO), Outcome("done")
        ]  # fmt: skip
        assert store.delete_value(A, KEY).fate == "absent"
        assert store.revision() == 3
        assert store.kv_instances() == frozenset()


class TestConditions:
    @pytest.mark.parametrize(
        ("there", "match", "none_match", "goes"),
        [
            (False, None, None, True),
            (False, ("*",), None, False),
            (False, (ONE,), None, False),
            (False, (), None, False),
            (False, None, ("*",), True),
            (False, None, (ONE,), True),
            (True, None, None, True),
            (True, ("*",), None, True),
            (True, (ONE,), None, True),
            (True, (TWO, ONE), None, True),
            (True, (TWO,), None, False),
            (True, (), None, False),
            (True, ("",), None, False),
            (True, None, ("*",), False),
            (True, None, (ONE,), False),
            (True, None, (TWO,), True),
            (True, None, (), True),
            (True, (ONE,), (TWO,), True),
            (True, (ONE,), (ONE,), False),
        ],
    )
    def test_put(
        self, store: Store, there: bool, match: tuple[str, ...] | None, none_match: tuple[str, ...] | None, goes: bool
    ) -> None:
        if there:
            put(store, KEY, b"1")
        before = store.value(A, KEY)
        outcome = put(store, KEY, b"3", if_match=match, if_none_match=none_match)
        assert outcome.fate == ("done" if goes else "changed")
        after = store.value(A, KEY)
        assert after == before if not goes else after is not None and after.body == b"3"

    @pytest.mark.parametrize(("match", "fate"), [
        (None, "done"), (("*",), "done"), ((ONE,), "done"), ((TWO,), "changed"), ((), "changed"),
    ])  # fmt: skip
    def test_delete(self, store: Store, match: tuple[str, ...] | None, fate: str) -> None:
        assert store.delete_value(A, KEY, if_match=match).fate == "absent"
        put(store, KEY)
        assert store.delete_value(A, KEY, if_match=match).fate == fate
        assert (store.value(A, KEY) is None) == (fate == "done")

    def test_a_refusal_costs_no_revision(self, store: Store) -> None:
        put(store, KEY)
        put(store, KEY, if_none_match=("*",))
        put(store, KEY + "/x")
        put(store, KEY, b"x" * 11, limits=SMALL)
        store.delete_value(A, KEY, if_match=(TWO,))
        assert store.revision() == 1


class TestFolders:
    @pytest.mark.parametrize(("first", "second", "fate"), [
        ("guest/a", "guest/a/b", "clash"), ("guest/a/b", "guest/a", "clash"), ("guest/a/b/c", "guest/a", "clash"),
        ("guest/a", "guest/a/b/c", "clash"), ("guest/a", "guest/ab", "done"), ("guest/a/b", "guest/a/c", "done"),
        ("guest/a.b", "guest/a", "done"), ("guest/a-b", "guest/a", "done"), ("host/a", "guest/a/b", "done"),
        ("guest/a0", "guest/a", "done"),
    ])  # fmt: skip
    def test_a_key_is_no_folder(self, store: Store, first: str, second: str, fate: str) -> None:
        put(store, first)
        outcome = put(store, second)
        assert outcome.fate == fate
        assert "guest/a" not in outcome.words
        assert set(store.values(A)) == ({first, second} if fate == "done" else {first})

    def test_another_instances_is_in_no_way(self, store: Store) -> None:
        store.put_value(B, Value("guest/a", b""))
        assert put(store, "guest/a/b").fate == "done"


class TestLimits:
    def test_bytes_of_a_value(self, store: Store) -> None:
        assert put(store, "guest/a", b"x" * 11, limits=SMALL).fate == "quota"
        assert put(store, "guest/a", b"x" * 10, limits=SMALL).fate == "done"

    def test_keys(self, store: Store) -> None:
        fates = [put(store, f"guest/{name}", limits=SMALL).fate for name in "abcd"]
        assert fates == ["done", "done", "done", "quota"]
        assert put(store, "guest/a", b"2", limits=SMALL).fate == "done", "that one is there already"
        store.delete_value(A, "guest/a")
        assert put(store, "guest/d", limits=SMALL).fate == "done"

    def test_bytes_of_all_keys_and_values(self, store: Store) -> None:
        assert put(store, "guest/a", b"x" * 10, limits=SMALL).fate == "done"  # 17 bytes
        assert put(store, "guest/b", b"x" * 10, limits=SMALL).fate == "done"  # 34
        assert put(store, "guest/c", b"", limits=SMALL).fate == "quota"  # 41
        assert put(store, "guest/b", b"x" * 9, limits=SMALL).fate == "done"
        assert put(store, "guest/c", b"", limits=SMALL).fate == "done"  # 40
        assert put(store, "guest/c", b"x", limits=SMALL).fate == "quota"

    def test_what_is_written_over_counts_once(self, store: Store) -> None:
        put(store, "guest/a", b"x" * 10, limits=SMALL)  # 17 bytes
        put(store, "guest/b", b"x" * 5, limits=SMALL)  # 29
        assert put(store, "guest/b", b"x" * 10, limits=SMALL).fate == "done"  # 34

    def test_what_is_too_large_already_may_shrink(self, store: Store) -> None:
        for name in "abcd":
            put(store, f"guest/{name}", b"x" * 50)
        assert put(store, "guest/a", b"x" * 8, limits=SMALL).fate == "done"
        assert put(store, "guest/a", b"x" * 9, limits=SMALL).fate == "quota"
        assert put(store, "guest/a", b"x" * 8, limits=SMALL).fate == "done"
        assert put(store, "guest/a", b"", limits=SMALL).fate == "done"

    def test_only_the_guests_own_count(self, store: Store) -> None:
        for name in "abcd":
            put(store, f"host/{name}", b"x" * 100, limits=SMALL)
            store.put_value(B, Value(f"guest/{name}", b"x" * 100))
        assert put(store, "guest/a", b"x", limits=SMALL).fate == "done"
        assert put(store, "guest/b", b"x" * 100).fate == "done", "none were given"

    def test_bytes_not_characters(self, store: Store) -> None:
        assert put(store, "guest/a", b"\0" * 11, limits=SMALL).fate == "quota"
        put(store, "guest/a", b"\0" * 33)
        assert put(store, "guest/b", b"", limits=SMALL).fate == "quota", "NUL ends no length"


class TestReadNoMore:
    """Used up, or after its deadline: as if it were not there."""

    @pytest.fixture(params=["spent", "expired"])
    def over(self, request: pytest.FixtureRequest, store: Store, clock: Clock) -> Store:
        store.put_value(A, Value("guest/a", b"1" * 30, Reads.ONCE, clock.now + 10))
        if request.param == "spent":
            value = store.value(A, "guest/a")
            assert value is not None
            assert store.spend(A, [value.item]) == (value.item,)
        else:
            clock.now += 10
        return store

    def test_it_is_not_read(self, over: Store, path: Path, clock: Clock) -> None:
        reader = Reader(path, clock)
        assert over.value(A, "guest/a") is reader.value(A, "guest/a") is None
        assert over.values(A) == reader.values(A) == {}

    def test_it_matches_no_condition(self, over: Store) -> None:
        assert put(over, "guest/a", if_match=("*",)).fate == "changed"
        assert put(over, "guest/a", if_match=(etag(b"1" * 30),)).fate == "changed"
        assert put(over, "guest/a", b"2", if_none_match=("*",)) == Outcome("done", etag=TWO, created=True)
        assert over.values(A)["guest/a"].body == b"2", "written again, it is new"
        assert over._read("SELECT count(*) FROM spent") == [(0,)]

    def test_it_counts_for_no_limit(self, over: Store) -> None:
        assert put(over, "guest/b", b"x" * 10, limits=SMALL).fate == "done"
        assert put(over, "guest/c", b"x" * 10, limits=SMALL).fate == "done"

    @pytest.mark.parametrize("key", ["guest/a/b", "guest/a/b/c"])
    def test_it_gives_way_to_a_folder(self, over: Store, key: str) -> None:
        assert put(over, key).fate == "done"
        assert set(over.values(A)) == {key}
        assert over._read("SELECT (SELECT count(*) FROM kv), (SELECT count(*) FROM spent)") == [(1, 0)]

    @pytest.mark.parametrize("refused", [{"limits": KvLimits(value_bytes=0)}, {"if_match": ("*",)}])
    def test_not_to_what_is_refused(self, over: Store, refused: dict[str, object]) -> None:
        before = over._read("SELECT * FROM kv"), over._read("SELECT * FROM spent")
        assert put(over, "guest/a/b", **refused).fate != "done"
        assert (over._read("SELECT * FROM kv"), over._read("SELECT * FROM spent")) == before

    def test_one_that_is_read_stays_in_the_way(self, over: Store) -> None:
        put(over, "guest/b/c")
        assert put(over, "guest/b").fate == "clash"

    def test_deleted_it_is_gone(self, over: Store) -> None:
        assert over.delete_value(A, "guest/a", if_match=("*",)).fate == "absent"
        assert over.kv_instances() == frozenset()
        assert over._read("SELECT count(*) FROM spent") == [(0,)]


def test_every_write_has_a_revision_of_its_own(store: Store) -> None:
    with store.transaction():
        for number in range(5):
            put(store, f"guest/{number}")
            store.put_document(A, b"{}")
    revisions = [value.revision for value in store.values(A).values()]
    assert len(set(revisions)) == 5
    assert store.revision() == 10
    assert all(one < two for one, two in itertools.pairwise(revisions))
    again = reopened(store)
    put(again, "guest/x")
    assert again.revision() == 11
    again.close()
