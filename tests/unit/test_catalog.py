"""The store as a worker reads it: what is kept is as it is in the store, whatever was written, and bounded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim import catalog as catalog_module
from shim.catalog import ALL, NOTHING, Catalog, Kept
from shim.core.kv import Value
from shim.core.policy import Access, Composition, Policy
from shim.core.source import HOST, Reads, Scope, Source
from shim.errors import StoreError
from shim.forward.identify import Entry
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.reads import CHANGES_KEPT
from shim.metadata.store import Store

A, B = UUID(int=1), UUID(int=2)
PROJECT, IMAGE, TAG = Scope("project", "p"), Scope("image", "i"), Scope("tag", "role=web")
OWN, OTHER = Scope("instance", str(A)), Scope("instance", str(B))
NOW = 1_700_000_000.0


class Room:
    """A store, and a catalog that reads it. `look` is what a worker does once the agent said that it changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "m.db"
        self.store = Store(self.path, clock=lambda: NOW)
        self.reader = Reader(self.path, clock=lambda: NOW)
        self.catalog = Catalog(self.reader, "merged", 49_149, lambda: NOW)

    def look(self) -> frozenset[str]:
        self.catalog.doubt()
        return self.catalog.news()

    def entry(self, instance: UUID = A, project: str = "", policy: Policy = Policy()) -> Entry:  # noqa: B008
        return Entry(instance.int, 1, instance, policy, project)

    def names(self, instance: UUID = A, project: str = "") -> list[str]:
        return [f"{one.scope.text}/{one.name}" for one in self.catalog.view(self.entry(instance, project)).sources]

    def close(self) -> None:
        self.store.close()
        self.reader.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.close()


def source(name: str, scope: Scope = HOST, body: bytes = b"x", **more: object) -> Source:
    return Source(scope, name, body, **more)  # type: ignore[arg-type]


def count(monkeypatch: pytest.MonkeyPatch, room: Room) -> list[str]:
    """The reads of documents and sources from now on."""
    made: list[str] = []
    document, sources_for = room.reader.document, room.reader.sources_for
    monkeypatch.setattr(room.reader, "document", lambda one: (made.append(f"document {one.int}"), document(one))[1])
    monkeypatch.setattr(
        room.reader,
        "sources_for",
        lambda scopes, one=None: (made.append(" ".join(s.text for s in scopes)), sources_for(scopes, one))[1],
    )
    return made


def test_what_is_kept_is_not_read_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.store.put_document(A, b'{"name": "a", "project_id": "p"}')
    room.store.put_source(source("base"))
    made = count(monkeypatch, room)
    for _ in range(3):
        room.look()
        assert room.catalog.document(A).name == "a" and room.names() == ["host/base"]
    assert sorted(made) == ["document 1", "host", OWN.text, "project:p"]


CHANGES: list[tuple[str, Callable[[Store], object], set[str]]] = [
    ("a document", lambda s: s.put_document(A, b'{"name": "b"}'), {OWN.text}),
    ("its end", lambda s: s.delete_document(A), {OWN.text}),
    ("a policy", lambda s: s.put_policy(A, Policy(Access.DROP)), {OWN.text}),
    ("a key", lambda s: s.put_value(A, Value("guest/a", b"1")), {OWN.text}),
    ("a key's end", lambda s: s.delete_value(A, "host/there"), {OWN.text}),
    ("a lock", lambda s: s.latch(A, "kv"), {OWN.text}),
    ("a source of its own", lambda s: s.put_source(source("new", OWN)), {OWN.text}),
    ("another's", lambda s: s.put_source(source("new", OTHER)), {OTHER.text}),
    ("the host's", lambda s: s.put_source(source("new")), {"host"}),
    ("the end of one", lambda s: s.delete_source(HOST, "base"), {"host"}),
    ("a project's", lambda s: s.put_source(source("new", PROJECT)), {"project:p"}),
    ("an image's", lambda s: s.put_source(source("new", IMAGE)), {"image:i"}),
    ("a tag's", lambda s: s.put_source(source("new", TAG)), {"tag:role=web"}),
    ("what is used up", lambda s: s.spend(A, [once(s)], 7), {OWN.text}),
    ("what is forgotten", lambda s: s.forget(A), {OWN.text}),
    ("a folder's", lambda s: s.replace_directory([source("f"), source("g", PROJECT)]), {"host", "project:p"}),
    ("the trail alone", lambda s: s.audit("me", "did"), set()),
    ("a report alone", lambda s: s.report(A, "ready"), set()),
]


def once(store: Store) -> str:
    found = store.source(HOST, "once")
    assert found is not None
    return found.item


@pytest.mark.parametrize(("change", "scopes"), [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES])
def test_every_change_is_told_once_and_seen(room: Room, change: Callable[[Store], object], scopes: set[str]) -> None:
    facts = {"name": "a", "project_id": "p", "image_id": "i", "tags": {"role": "web"}}
    for instance in (A, B):
        room.store.put_document(instance, json.dumps(facts).encode())
    room.store.put_source(source("base"))
    room.store.put_source(source("once", reads=Reads.ONCE))
    room.store.put_value(A, Value("host/there", b"1"))
    assert room.look() == ALL
    for instance in (A, B):
        assert seen(room, instance) == truth(room, instance)
    change(room.store)
    assert room.look() == scopes
    assert room.look() == NOTHING == frozenset()
    for instance in (A, B):
        assert seen(room, instance) == truth(room, instance)


def seen(room: Room, instance: UUID) -> object:
    """What the catalog has of an instance."""
    view = room.catalog.view(room.entry(instance))
    return view.document, view.sources, dict(view.values)


def truth(room: Room, instance: UUID) -> object:
    """The same, by one who never looked before."""
    reader = Reader(room.path, clock=lambda: NOW)
    try:
        view = Catalog(reader, "merged", 49_149, lambda: NOW).view(room.entry(instance))
        return view.document, view.sources, dict(view.values)
    finally:
        reader.close()


def test_an_instance_moves_between_scopes_as_its_document_says(room: Room) -> None:
    for scope in (PROJECT, IMAGE, TAG, OWN):
        room.store.put_source(source("s", scope))
    assert room.names() == [f"{OWN.text}/s"]
    assert room.names(project="p") == ["project:p/s", f"{OWN.text}/s"], "its tap says the project"
    room.store.put_document(A, b'{"project_id": "p", "image_id": "i", "tags": {"role": "web"}}')
    room.look()
    assert room.names() == ["project:p/s", "image:i/s", "tag:role=web/s", f"{OWN.text}/s"]
    assert room.names(project="other") == ["image:i/s", "tag:role=web/s", f"{OWN.text}/s"]


def test_what_one_has_used_up_another_has_yet(room: Room) -> None:
    room.store.put_source(source("once", reads=Reads.ONCE))
    room.store.put_source(source("base"))
    assert room.names(A) == room.names(B) == ["host/base", "host/once"]
    room.store.spend(A, [once(room.store)], 7)
    room.look()
    assert (room.names(A), room.names(B)) == (["host/base"], ["host/base", "host/once"])
    room.store.unspend(A, [once(room.store)], 7)
    room.look()
    assert room.names(A) == ["host/base", "host/once"]


def test_between_two_looks_it_is_at_most_two_milliseconds_behind(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(room.catalog._freshness, "_clock", lambda: clock[0])
    room.look()
    assert room.names() == []
    room.store.put_source(source("base"))
    assert room.names() == [] and room.catalog.news() == NOTHING
    clock[0] += 0.0021
    assert room.names() == ["host/base"]
    assert room.catalog.news() == {"host"}, "what a document's reader saw is news all the same"


def test_a_look_that_failed_halfway_is_made_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's version was seen, and what changed was not: it must not be taken for known."""
    room.look()
    assert room.names() == []
    room.store.put_source(source("base"))
    changes = room.reader.changes

    def fail(since: int) -> tuple[int, frozenset[str]]:
        raise StoreError("gone")

    monkeypatch.setattr(room.reader, "changes", fail)
    for _ in range(2):
        with pytest.raises(StoreError):
            room.look()
        with pytest.raises(StoreError):
            room.catalog.document(A)
    monkeypatch.setattr(room.reader, "changes", changes)
    assert room.catalog.news() == {"host"} and room.names() == ["host/base"]


def test_a_copy_that_was_put_back_is_another_store(room: Room, tmp_path: Path) -> None:
    room.store.put_document(A, b'{"name": "copied"}')
    room.store.put_source(source("copied"))
    room.store.close()
    shutil.copy(room.path, tmp_path / "copy.db")
    room.store = Store(room.path, clock=lambda: NOW)
    for name in ("later", "latest"):  # so that the copy's revisions are lower than those that were seen
        room.store.put_document(A, json.dumps({"name": name}).encode())
        room.store.put_source(source(name))
        room.look()
        assert seen(room, A) == truth(room, A)
    room.store.close()
    (tmp_path / "copy.db").replace(room.path)
    for companion in ("-wal", "-shm"):
        Path(f"{room.path}{companion}").unlink(missing_ok=True)
    assert room.look() == ALL
    assert room.catalog.document(A).name == "copied" and room.names() == ["host/copied"]
    room.store = Store(room.path, clock=lambda: NOW)
    room.store.put_document(A, b'{"name": "new"}')
    assert room.look() in (ALL, {OWN.text})
    assert room.catalog.document(A).name == "new"


def test_another_store_with_the_same_revisions_is_another(room: Room, tmp_path: Path) -> None:
    other = Store(tmp_path / "other.db", clock=lambda: NOW)
    for store, name in ((room.store, "one"), (other, "other")):
        store.put_document(A, json.dumps({"name": name}).encode())
        store.put_source(source(name))
        store.close()
    room.look()
    assert room.catalog.document(A).name == "one" and room.names() == ["host/one"]
    for companion in ("-wal", "-shm"):
        Path(f"{room.path}{companion}").unlink(missing_ok=True)
    (tmp_path / "other.db").replace(room.path)
    assert room.look() == ALL
    assert room.catalog.document(A).name == "other" and room.names() == ["host/other"]
    room.store = Store(room.path)


def test_news_wait_for_who_asks(room: Room) -> None:
    room.look()
    for scope in (HOST, PROJECT, OWN):
        room.store.put_source(source("s", scope))
        room.catalog.doubt()
        room.catalog.document(A)
    assert room.catalog.news() == {"host", "project:p", OWN.text}


def test_one_that_has_slept_long_starts_over(room: Room) -> None:
    room.store.put_document(A, b'{"name": "a"}')
    room.look()
    assert room.catalog.document(A).name == "a"
    room.store.put_document(A, b'{"name": "b"}')
    with room.store.transaction():
        room.store._db.execute("UPDATE counter SET last = last + ?", (CHANGES_KEPT,))
        room.store.put_source(source("base", OTHER))
    assert room.look() == ALL
    assert room.catalog.document(A).name == "b"


def test_a_store_that_is_not_there_is_told_and_comes(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "m.db", clock=lambda: NOW)
    catalog = Catalog(reader, "merged", 49_149, lambda: NOW)
    for _ in range(2):
        with pytest.raises(StoreError):
            catalog.news()
        with pytest.raises(StoreError):
            catalog.document(A)
    store = Store(tmp_path / "m.db", clock=lambda: NOW)
    store.put_document(A, b'{"name": "a"}')
    assert catalog.news() == ALL and catalog.document(A).name == "a"
    store.close()
    reader.close()


def test_a_document_that_cannot_be_served_is_in_the_log_and_harms_no_other(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    for instance in (A, B):
        room.store.put_document(instance, b'{"name": "x"}')
    room.store._db.execute("UPDATE documents SET body = ? WHERE instance = ?", (b'{"nam', str(A)))
    with pytest.raises(StoreError):
        room.catalog.document(A)
    assert "cannot be served" in caplog.text and room.catalog.document(B).name == "x"


def test_the_view_has_what_the_policy_says(room: Room) -> None:
    view = room.catalog.view(room.entry(policy=Policy(closed=("user-data",))))
    assert view.is_closed("/latest/user-data") and view.composition is Composition.MERGED and view.limit == 49_149
    view = room.catalog.view(room.entry(project="p", policy=Policy(composition=Composition.VENDOR)))
    assert (view.composition, view.project, view.now) == (Composition.VENDOR, "p", NOW)


class TestKept:
    def test_who_was_not_asked_for_longest_goes_first(self) -> None:
        kept: Kept[str, int] = Kept(3 * 1_000 + 30)
        for number, key in enumerate("abc"):
            kept.keep(key, number, 10)
        assert kept.get("a") == 0
        kept.keep("d", 3, 10)
        assert [kept.get(key) for key in "abcd"] == [0, None, 2, 3]

    def test_one_that_is_too_large_is_not_kept_and_leaves_no_former(self) -> None:
        kept: Kept[str, int] = Kept(2_000)
        kept.keep("a", 1, 10)
        assert kept.keep("a", 2, 1_001) == 2
        assert kept.get("a") is None and kept.bytes == 0

    @given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3_000), st.sampled_from("kgdc"))))
    def test_it_is_bounded_and_never_wrong(self, steps: list[tuple[str, int, str]]) -> None:
        kept: Kept[str, int] = Kept(5_000)
        truth: dict[str, int] = {}
        for key, size, step in steps:
            if step == "k":
                kept.keep(key, size, size)
                truth[key] = size
            elif step == "g":
                assert kept.get(key) in (None, truth.get(key))
            elif step == "d":
                kept.drop(key)
                truth.pop(key, None)
            else:
                kept.clear()
                truth.clear()
            assert 0 <= kept.bytes <= 5_000
            assert kept.bytes == sum(cost for _, cost in kept._held.values())


def test_what_is_kept_is_bounded(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "KEPT_BYTES", 200_000)
    catalog = Catalog(room.reader, "merged", 49_149, lambda: NOW)
    large = {"user_data": "x" * 10_000, "meta": {"m": "y" * 10_000}, "vendor_data": {"v": list(range(2_000))}}
    assert catalog_module._size_of(Document(vendor_data=large["vendor_data"])) > 2_000 * 30, "a number takes 32 bytes"
    with room.store.transaction():
        for number in range(50):
            room.store.put_document(UUID(int=number), json.dumps(large).encode())
            room.store.put_source(source("s", Scope("instance", str(UUID(int=number))), b"x" * 20_000))
    for number in range(50):
        view = catalog.view(room.entry(UUID(int=number)))
        assert len(view.sources) == 1
    assert 0 < catalog._documents.bytes <= 200_000 and 0 < catalog._sources.bytes <= 200_000
    assert len(catalog._documents._held) < 5, "what is large in it is reckoned, wherever it is"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("document"), st.sampled_from((A, B)), st.sampled_from(("p", "q", ""))),
        st.tuples(st.just("source"), st.sampled_from((HOST, PROJECT, OWN, OTHER)), st.sampled_from(tuple(Reads))),
        st.tuples(st.just("delete"), st.sampled_from((HOST, PROJECT, OWN, OTHER)), st.none()),
        st.tuples(st.just("spend"), st.sampled_from((A, B)), st.none()),
        st.tuples(st.just("forget"), st.sampled_from((A, B)), st.none()),
        st.tuples(st.just("look"), st.sampled_from((A, B)), st.none()),
    ),
    max_size=25,
)


@given(STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_worker_sees_is_what_is_in_the_store(shared: Room, steps: list[tuple[str, object, object]]) -> None:
    """Whatever is written in whatever order, looked at at any time."""
    for step, what, more in steps:
        if step == "document":
            shared.store.put_document(what, json.dumps({"project_id": more} if more else {}).encode())  # type: ignore[arg-type]
        elif step == "source":
            shared.store.put_source(source("s", what, reads=more))  # type: ignore[arg-type]
        elif step == "delete":
            shared.store.delete_source(what, "s")  # type: ignore[arg-type]
        elif step == "spend":
            shared.store.spend(what, [one.item for one in shared.store.sources()], 7)  # type: ignore[arg-type]
        elif step == "forget":
            shared.store.forget(what)  # type: ignore[arg-type]
        else:
            shared.look()
            seen(shared, what)  # type: ignore[arg-type]
    shared.look()
    for instance in (A, B):
        assert seen(shared, instance) == truth(shared, instance)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """One store for all examples: its catalog goes on from what the former left."""
    room = Room(tmp_path_factory.mktemp("catalog"))
    room.store._db.execute("PRAGMA synchronous = OFF")  # of this test's own connection
    yield room
    room.close()


def test_what_the_source_of_an_identity_says_stands_in_where_the_document_says_nothing(room: Room) -> None:
    entry = Entry(1, 1, A, Policy(), name="web-1", flavor="m1.small")
    said = room.catalog.view(entry).document
    assert (said.name, said.instance_type, said.host) == ("web-1", "m1.small", "web-1")
    room.store.put_document(A, b'{"name": "own"}')
    room.look()
    said = room.catalog.view(entry).document
    assert (said.name, said.instance_type) == ("own", "m1.small")
    assert room.catalog.view(room.entry()).document.instance_type is None, "what is kept is the document alone"
