"""The store's sources: what is kept, what is new, who has used it up, and which scopes are told to have changed."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.source import HOST, Kind, Reads, Scope, Source, parse_scope, scopes_of
from shim.errors import InputError, StoreError
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import A, B, Clock, clock, path, reopened, store

__all__ = ["clock", "path", "store"]

BLUE = Scope("project", "blue")
OF_A = Scope("instance", str(A))
WHOLE = Source(
    Scope("tag", "role=web/a:b=c"), "nginx.yaml", b"\0\xff#cloud-config", Kind.VENDOR, "the web team", 7, "", True,
    Reads.CONFIRM, 1_800_000_000.25, "directory",
)  # fmt: skip


def names(sources: list[Source]) -> set[str]:
    return {f"{source.scope.text}/{source.name}" for source in sources}


class TestKept:
    def test_over_a_restart_with_all_its_fields(self, store: Store, clock: Clock) -> None:
        revision = store.put_source(WHOLE)
        again = reopened(store)
        kept = replace(WHOLE, revision=revision, changed=clock.now)
        assert again.source(WHOLE.scope, WHOLE.name) == kept
        assert again.sources() == again.sources(WHOLE.scope) == [kept]
        again.close()

    def test_in_the_place_of_another(self, store: Store) -> None:
        first = store.put_source(Source(HOST, "base", b"1"))
        second = store.put_source(Source(HOST, "base", b"2", order=3))
        assert second == first + 1 == store.revision()
        assert [(one.body, one.order) for one in store.sources()] == [(b"2", 3)]

    def test_by_scope_and_name(self, store: Store) -> None:
        for scope in (HOST, BLUE, OF_A):
            for name in ("a", "b"):
                store.put_source(Source(scope, name, b"x"))
        assert names(store.sources(BLUE)) == {"project:blue/a", "project:blue/b"}
        assert store.delete_source(BLUE, "a") is True
        assert store.delete_source(BLUE, "a") is False
        assert store.source(BLUE, "a") is None
        assert len(store.sources()) == 5

    def test_empty_and_large_bodies(self, store: Store) -> None:
        store.put_source(Source(HOST, "none", b""))
        store.put_source(Source(HOST, "large", bytes(range(256)) * 4_096))
        assert [one.body for one in store.sources()] == [bytes(range(256)) * 4_096, b""]

    @pytest.mark.parametrize(
        "change",
        [
            {"scope": Scope("instance", str(A).upper())},
            {"scope": Scope("instance", "a")},
            {"scope": Scope("host", "x")},
            {"scope": Scope("backend")},
            {"scope": Scope("project", "a b")},
            {"name": "a/b"},
            {"name": ""},
            {"name": "document", "scope": OF_A},
            {"order": -1},
            {"order": 1_000},
            {"until": nan},
            {"until": inf},
            {"until": -1.0},
            {"until": 10**400},
            {"owner": "\ud800"},
        ],
        ids=str,
    )
    def test_what_could_not_be_read_back_is_refused(self, store: Store, change: dict[str, object]) -> None:
        with pytest.raises(InputError) as caught:
            store.put_source(replace(Source(HOST, "base", b"x"), **change))  # type: ignore[arg-type]
        assert caught.value.hint
        assert (store.sources(), store.revision()) == ([], 0)

    def test_a_row_edited_by_hand(self, store: Store, path: Path) -> None:
        store.put_source(Source(HOST, "base", b"x"))
        for column, value in (("scope", "galaxy"), ("kind", "third"), ("reads", "often"), ("body", "text")):
            db = sqlite3.connect(path, isolation_level=None)
            db.execute(f"UPDATE sources SET {column} = ?", (value,))
            reads = [store.sources, lambda: Reader(path).sources_for([HOST, Scope("galaxy")])]
            for read in reads:
                with pytest.raises(StoreError, match="cannot read"):
                    read()
            db.execute("UPDATE sources SET scope = 'host', kind = 'user', reads = 'many', body = x'00'")
            db.close()


class TestForAnInstance:
    def test_those_of_its_scopes(self, store: Store, path: Path) -> None:
        scopes = scopes_of(A, "blue", "debian", {"role": "web", "a": "b"})
        others = [Scope("project", "red"), Scope("tag", "role=db"), Scope("instance", str(B))]
        for scope in (*scopes, *others):
            store.put_source(Source(scope, "one", b"x"))
        found = store.sources_for(scopes, A)
        assert names(found) == {f"{scope.text}/one" for scope in scopes}
        assert Reader(path).sources_for(scopes, A) == found
        assert store.sources_for([]) == []
        assert store.sources_for(iter(scopes), A) == found

    def test_without_those_that_it_used_up(self, store: Store, path: Path) -> None:
        store.put_source(Source(HOST, "often", b"x"))
        store.put_source(Source(HOST, "once", b"x", reads=Reads.ONCE))
        (once,) = (one for one in store.sources() if one.name == "once")
        assert store.spend(A, [once.item]) == (once.item,)
        reader = Reader(path)
        for read in (store.sources_for, reader.sources_for):
            assert names(read([HOST], A)) == {"host/often"}
            assert names(read([HOST], B)) == names(read([HOST])) == {"host/often", "host/once"}
        store.put_source(Source(HOST, "once", b"x", reads=Reads.ONCE))
        assert names(reader.sources_for([HOST], A)) == {"host/often", "host/once"}, "written again, it is new"

    def test_many_scopes(self, store: Store) -> None:
        scopes = [Scope("tag", f"k{number}=v") for number in range(3_000)]
        store.put_source(Source(scopes[-1], "one", b"x"))
        assert names(store.sources_for(scopes, A)) == {"tag:k2999=v/one"}

    def test_expired_ones_are_among_them(self, store: Store, clock: Clock) -> None:
        store.put_source(Source(HOST, "old", b"x", until=clock.now - 1))
        assert names(store.sources_for([HOST], A)) == {"host/old"}


class TestDirectory:
    def test_becomes_exactly_these(self, store: Store) -> None:
        one, two, three = (Source(HOST, name, b"1") for name in ("one", "two", "three"))
        assert store.replace_directory([one, two]) == (2, 0, 0, [])
        before = {source.name: source for source in store.sources()}
        assert {source.origin for source in before.values()} == {"directory"}
        assert store.replace_directory([one, replace(two, body=b"2"), three]) == (1, 1, 0, [])
        after = {source.name: source for source in store.sources()}
        assert after["one"] == before["one"], "as it was, it keeps its revision"
        assert after["two"].revision > before["two"].revision
        assert store.replace_directory([three]) == (0, 0, 2, [])
        assert store.replace_directory([]) == (0, 0, 1, [])
        assert store.sources() == []

    def test_nothing_new_is_no_change(self, store: Store) -> None:
        store.replace_directory([WHOLE])
        revision = store.revision()
        assert store.replace_directory([WHOLE, ]) == (0, 0, 0, [])
        assert store.revision() == revision
        assert store.changes(revision) == (revision, frozenset())

    def test_an_operators_own_is_left_alone(self, store: Store) -> None:
        store.put_source(Source(HOST, "base", b"operator"))
        (kept,) = store.sources()
        theirs = Source(HOST, "base", b"directory")
        replaced = store.replace_directory([theirs, Source(HOST, "more", b"x")])
        assert (replaced.added, replaced.changed, replaced.removed) == (1, 0, 0)
        assert [one.body for one in replaced.held] == [b"directory"]
        assert store.source(HOST, "base") == kept
        store.replace_directory([])
        assert store.sources() == [kept]

    @pytest.mark.parametrize("field", ["body", "kind", "owner", "order", "merge", "template", "reads", "until"])
    def test_a_change_of_any_field_is_one(self, store: Store, field: str) -> None:
        plain = Source(WHOLE.scope, WHOLE.name, b"x")
        store.replace_directory([plain])
        changed = replace(plain, **{field: getattr(WHOLE, field)})
        assert store.replace_directory([changed])[:3] == (0, 1, 0)
        assert getattr(store.sources()[0], field) == getattr(WHOLE, field)

    def test_what_was_used_up_stays_so_unless_it_changes(self, store: Store) -> None:
        once = Source(HOST, "once", b"x", reads=Reads.ONCE)
        store.replace_directory([once])
        store.spend(A, [store.sources()[0].item])
        store.replace_directory([once, Source(HOST, "other", b"x")])
        assert names(store.sources_for([HOST], A)) == {"host/other"}
        store.replace_directory([replace(once, body=b"y")])
        assert names(store.sources_for([HOST], A)) == {"host/once"}

    def test_a_wrong_one_changes_nothing(self, store: Store) -> None:
        one = Source(HOST, "one", b"1")
        store.replace_directory([one])
        for wrong in ([replace(one, body=b"2"), replace(one, body=b"3")], [Source(HOST, "a/b", b"")]):
            with pytest.raises(InputError):
                store.replace_directory(wrong)
        assert [(source.body, source.revision) for source in store.sources()] == [(b"1", 1)]


class TestChanges:
    def test_each_write_tells_its_scope(self, store: Store, path: Path) -> None:
        reader, since = Reader(path), store.revision()
        for write, scope in (
            (lambda: store.put_source(Source(BLUE, "a", b"x")), "project:blue"),
            (lambda: store.put_source(Source(HOST, "a", b"x")), "host"),
            (lambda: store.delete_source(BLUE, "a"), "project:blue"),
            (lambda: store.put_document(A, b"{}"), f"instance:{A}"),
            (lambda: store.latch(B, "/"), f"instance:{B}"),
            (lambda: store.delete_document(A), f"instance:{A}"),
        ):
            write()
            assert store.changes(since) == reader.changes(since) == (since + 1, {scope})
            since += 1
        assert store.changes(0)[1] == {"host", "project:blue", f"instance:{A}", f"instance:{B}"}

    def test_what_changes_nothing_is_none(self, store: Store) -> None:
        store.delete_source(BLUE, "a")
        store.delete_document(A)
        store.delete_value(A, "guest/a")
        store.unspend(A, ["kv guest/a 1"], 1)
        store.unlatch(A, None)
        store.forget(A)
        store.report(A, "ready")
        store.audit("me", "looked")
        assert store.changes(0) == (0, frozenset())

    def test_a_long_time_ago_is_all(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shim.metadata.reads.CHANGES_KEPT", 8)
        monkeypatch.setattr("shim.metadata.store_file.CHANGES_KEPT", 8)
        monkeypatch.setattr("shim.metadata.store_file.PRUNE_EVERY", 4)
        for number in range(20):
            store.put_document(UUID(int=number), b"{}")
        rows = store._read("SELECT count(*) FROM changes")
        assert rows == [(8,)], "however many instances come and go"
        assert store.changes(12) == (20, {f"instance:{UUID(int=number)}" for number in range(12, 20)})
        assert "host" in store.changes(11)[1], "it is not known any more what else there was"

    @pytest.mark.parametrize("since", [-1, 1, 10**30, -(10**30)])
    def test_of_another_file_is_all(self, store: Store, since: int) -> None:
        assert store.changes(since) == (0, {"host"})


def test_scopes_are_kept_as_they_are_written(store: Store) -> None:
    for text in ("host", "project:a:b/c=d", "image:x", "tag:=", "tag:k=", "tag:k=a=b", f"instance:{A}"):
        try:
            scope = parse_scope(text)
        except ValueError:
            continue
        store.put_source(Source(scope, "a", b""))
        assert store.sources(scope)[0].scope == scope
    assert len(store.sources()) > 5
