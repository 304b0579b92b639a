"""The workers' side of the store. Cases that need another user or a killed writer use real processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.core.kv import Value
from shim.core.policy import Policy
from shim.core.source import HOST, Reads, Source, scopes_of
from shim.errors import StoreError
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import (
    GROUP,
    NOBODY,
    READ,
    A,
    Child,
    Clock,
    Hall,
    clock,
    hall,
    named,
    names_beside,
    path,
    prepare,
    store,
)

__all__ = ["clock", "hall", "path", "store"]


class TestReader:
    def test_a_store_that_comes_later(self, path: Path) -> None:
        reader = Reader(path)
        for read in (reader.version, lambda: reader.document(A)):
            with pytest.raises(StoreError):
                read()
        store = Store(path)
        store.put_document(A, named("a"))
        assert reader.document(A)[1] == Document(name="a")
        store.close()

    def test_the_version_changes_with_every_write_and_only_then(self, store: Store) -> None:
        reader = Reader(store.path)
        seen = [reader.version()]
        writes: list[Callable[[], object]] = [
            lambda: store.put_document(A, named("a")),
            lambda: store.put_document(A, named("a")),
            lambda: store.put_policy(A, Policy()),
            lambda: store.delete_document(A),
        ]
        for write in writes:
            write()
            assert reader.version() not in seen
            seen.append(reader.version())
            assert reader.version() == seen[-1]

    def test_a_file_put_in_its_place_is_noticed(self, store: Store, tmp_path: Path) -> None:
        other = Store(tmp_path / "copy.db")
        other.put_document(A, named("restored"))
        other.close()
        store.put_document(A, named("a"))
        reader = Reader(store.path)
        assert reader.document(A)[1] == Document(name="a")
        before = reader.version()
        store.close()
        for left in (f"{store.path}-wal", f"{store.path}-shm"):
            Path(left).unlink(missing_ok=True)
        (tmp_path / "copy.db").rename(store.path)
        assert reader.version() != before
        assert reader.document(A)[1] == Document(name="restored")


@pytest.mark.root
class TestUnprivilegedReader:
    def test_cannot_write_what_it_reads(self, hall: Hall) -> None:
        Store(hall.path, gid=GROUP).put_document(A, named("a"))
        script = READ.replace("reader = Reader", "open(sys.argv[1], 'r+b')\nreader = Reader")
        child = hall.child(script, hall.path, user=NOBODY)
        with pytest.raises(json.JSONDecodeError):  # it dies of PermissionError before it is ready
            child.hear()

    def test_reads_beside_a_writer(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        reader = hall.reader()
        assert reader.ask(A) == [0, None]
        for name in ("one", "two"):
            before = reader.ask("version")
            revision = store.put_document(A, named(name))
            assert reader.ask("version") != before
            assert reader.ask(A) == [revision, name]
        store.close()

    def test_sees_whole_commits_in_order_while_they_are_made(self, hall: Hall) -> None:
        readers = [hall.reader(), hall.reader()]
        writer = hall.writer(A, 1_500)
        assert writer.hear() == "writing"
        seen: list[int] = []
        for _ in range(20_000):  # how fast a disk is varies by a hundred
            for reader in readers:
                answer = reader.ask(A)
                assert isinstance(answer, list), answer
                assert answer[1] == f"n{answer[0] - 1}"
                seen.append(answer[0])
            if len(seen) >= 800 and len(set(seen)) > 5:
                break
        assert seen == sorted(seen)
        assert len(set(seen)) > 5, "the writer and the readers did not overlap"
        assert writer.hear() == "done"

    def test_a_checkpoint_goes_by_an_open_reader(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        reader = hall.reader()
        revision = store.put_document(A, named("a"))
        assert reader.ask(A) == [revision, "a"]
        with sqlite3.connect(hall.path) as db:
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        db.close()
        assert reader.ask(A) == [revision, "a"]
        revision = store.put_document(A, named("b"))
        assert reader.ask(A) == [revision, "b"]
        store.close()

    def test_a_killed_writer_leaves_its_last_commit(self, hall: Hall) -> None:
        early = hall.writer(A, 40)
        assert [early.hear(), early.hear()] == ["writing", "done"]
        reader = hall.reader()
        assert reader.ask(A) == [40, "n39"]
        early.kill()
        assert names_beside(hall.path) == {"metashim.db", "metashim.db-wal", "metashim.db-shm"}
        late = hall.reader()
        assert [reader.ask(A), late.ask(A)] == [[40, "n39"]] * 2
        store = Store(hall.path, gid=GROUP)
        assert store.put_document(A, named("after")) == 41
        assert [reader.ask(A), late.ask(A)] == [[41, "after"]] * 2
        store.close()

    def test_killed_at_any_moment(self, hall: Hall) -> None:
        reader, revision = None, 0
        for _ in range(8):
            writer = hall.writer(A, 100_000)
            assert writer.hear() == "writing"
            reader = reader or hall.reader()
            for _ in range(20):
                reader.ask(A)
            writer.kill()
            answer = reader.ask(A)
            assert isinstance(answer, list), answer
            assert answer[0] > revision
            revision = answer[0]

    def test_a_torn_index_is_left_alone(self, hall: Hall) -> None:
        writer = hall.writer(A, 3)
        assert [writer.hear(), writer.hear()] == ["writing", "done"]
        reader = hall.reader()
        assert reader.ask(A) == [3, "n2"]
        writer.kill()
        with Path(f"{hall.path}-shm").open("r+b") as index:
            index.write(b"\xff" * 96)  # both copies of its header (sqlite.org/walformat.html, 2.2)
        assert reader.ask(A) == [3, "n2"]
        assert hall.reader().ask(A) == [3, "n2"]

    def test_no_writer_and_no_log(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        revision = store.put_document(A, named("a"))
        store.close()
        assert names_beside(hall.path) == {"metashim.db"}
        reader = hall.reader()
        assert reader.ask(A) == [revision, "a"]
        rest = reader.ask("version")
        assert reader.ask("version") == rest
        assert names_beside(hall.path) == {"metashim.db"}
        again = Store(hall.path, gid=GROUP)
        revision = again.put_document(A, named("b"))
        assert reader.ask(A) == [revision, "b"]
        assert reader.ask("version") != rest
        again.close()
        assert reader.ask(A) == [revision, "b"]

    def test_a_writer_that_came_and_went_changed_the_version(self, hall: Hall) -> None:
        Store(hall.path, gid=GROUP).close()
        reader = hall.reader()
        rest = reader.ask("version")
        again = Store(hall.path, gid=GROUP)
        revision = again.put_document(A, named("b"))
        again.close()
        assert reader.ask("version") != rest
        assert reader.ask(A) == [revision, "b"]

    def test_a_store_that_it_may_not_read_or_that_is_away(self, hall: Hall) -> None:
        store = Store(hall.path, gid=GROUP)
        revision = store.put_document(A, named("a"))
        reader = hall.reader()
        hall.path.parent.chmod(0o700)
        answer = reader.ask(A)
        assert isinstance(answer, dict)
        assert answer["hint"]
        hall.path.parent.chmod(0o750)
        assert reader.ask(A) == [revision, "a"]
        store.close()


class TestWhatWorkersRead:
    def test_the_same_as_the_agent(self, store: Store, path: Path) -> None:
        prepare(store)
        reader = Reader(path, clock=lambda: 1_700_000_000.5)
        scopes = scopes_of(A, "blue", "", {})
        assert reader.body(A) == store.body(A)
        assert reader.sources_for(scopes, A) == store.sources_for(scopes, A) != []
        assert reader.values(A) == store.values(A) != {}
        assert reader.value(A, "host/many") == store.values(A)["host/many"] == store.value(A, "host/many")
        for since in range(store.revision() + 2):
            assert reader.changes(since) == store.changes(since)

    def test_by_its_own_clock(self, store: Store, path: Path, clock: Clock) -> None:
        store.put_value(A, Value("host/a", b"x", until=clock.now + 5))
        early, late = Reader(path, clock), Reader(path, lambda: clock.now + 5)
        assert set(early.values(A)) == {"host/a"}
        assert late.values(A) == {}
        assert late.value(A, "host/a") is None

    def test_a_store_that_is_away(self, path: Path) -> None:
        reader = Reader(path)
        for read in (lambda: reader.changes(0), lambda: reader.values(A), lambda: reader.value(A, "host/a"),
                     lambda: reader.sources_for([HOST])):  # fmt: skip
            with pytest.raises(StoreError):
                read()

    def test_after_the_agent(self, store: Store, path: Path) -> None:
        prepare(store)
        reader = Reader(path)
        before = reader.changes(0), reader.values(A), reader.sources_for([HOST], A)
        store.close()
        assert (reader.changes(0), reader.values(A), reader.sources_for([HOST], A)) == before
        late = Reader(path)
        assert (late.changes(0), late.values(A), late.sources_for([HOST], A)) == before


READ_ALL = """
reader = Reader(Path(sys.argv[1]))
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    try:
        revision, scopes = reader.changes(int(line))
        found = {key: value.body.decode() for key, value in reader.values(A).items()}
        answer = [revision, sorted(scopes), found, sorted(one.name for one in reader.sources_for([HOST], A))]
    except StoreError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.mark.root
class TestUnprivilegedWatcher:
    @pytest.fixture
    def watcher(self, hall: Hall) -> Child:
        imports = "from shim.core.source import HOST\nfrom tests.unit.store_hall import A\n"
        watcher = hall.child(READ_ALL, hall.path, user=NOBODY, imports=imports)
        assert watcher.hear() == "ready"
        return watcher

    def test_sees_what_changed(self, hall: Hall, watcher: Child) -> None:
        store = Store(hall.path, GROUP)
        assert watcher.ask(-1) == [0, ["host"], {}, []]
        store.put_value(A, Value("guest/a", b"1"))
        assert watcher.ask(0) == [1, [f"instance:{A}"], {"guest/a": "1"}, []]
        store.put_source(Source(HOST, "base", b"x", reads=Reads.ONCE))
        assert watcher.ask(1) == [2, ["host"], {"guest/a": "1"}, ["base"]]
        store.spend(A, ["source host/base 2"])
        assert watcher.ask(2) == [3, [f"instance:{A}"], {"guest/a": "1"}, []]
        store.close()
        assert watcher.ask(3) == [3, [], {"guest/a": "1"}, []]

    def test_a_log_of_no_bytes_is_none(self, hall: Hall) -> None:
        """As a restore that was killed leaves it, for a moment: the main file is all there is."""
        store = Store(hall.path, GROUP)
        store.put_document(A, named("a"))
        store.close()
        Path(f"{hall.path}-wal").touch()
        reader = hall.reader()
        assert reader.ask(A) == [1, "a"]
        assert names_beside(hall.path) == {"metashim.db", "metashim.db-wal"}

    def test_an_index_that_is_replaced_is_noticed(self, hall: Hall) -> None:
        """Else all that is written from then on would pass by a reader that has the old one open."""
        store = Store(hall.path, GROUP)
        store.put_document(A, named("a"))
        reader = hall.reader()
        assert reader.ask(A) == [1, "a"]
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.close()
        Path(f"{hall.path}-shm").unlink()
        again = Store(hall.path, GROUP)
        again.put_document(A, named("b"))
        assert reader.ask(A) == [2, "b"]
        again.put_document(A, named("c"))
        assert reader.ask(A) == [3, "c"]
        again.close()
