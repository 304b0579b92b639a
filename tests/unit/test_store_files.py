"""Files that are not a store, not one of this version, or damaged: what is refused, and what is brought along."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.kv import Value
from shim.core.policy import Access, Policy, Tokens
from shim.core.source import HOST, Source
from shim.errors import StoreError
from shim.metadata import schema
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.store import Store
from tests.unit.store_hall import A, B, clock, named, path, reopened, store

__all__ = ["clock", "path", "store"]


class TestForeignFiles:
    def refused(self, path: Path) -> str:
        before = path.read_bytes()
        with pytest.raises(StoreError) as writing:
            Store(path)
        with pytest.raises(StoreError) as reading:
            Reader(path).document(A)
        assert writing.value.hint
        assert reading.value.hint
        assert path.read_bytes() == before
        return str(writing.value)

    def test_garbage(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        path.write_bytes(b"not a database, but long enough for SQLite to look at it\n" * 40)
        assert "not a database" in self.refused(path)

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE theirs (a)")
        db.close()
        assert "another program" in self.refused(path)

    def test_a_newer_schema(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a"))
        store.close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
        db.close()
        assert f"newer metashim (schema {schema.SCHEMA + 1}" in self.refused(path)

    def test_a_truncated_store(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a" * 200))
        store.close()
        os.truncate(path, 6_000)
        with pytest.raises(StoreError) as caught:
            Store(path).body(A)
        assert caught.value.hint

    def test_a_folder_in_the_files_place(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="unable to open"):
            Store(tmp_path)

    def test_a_row_edited_by_hand(self, store: Store, path: Path) -> None:
        store.put_policy(A, Policy())
        with sqlite3.connect(path) as db:
            db.execute("UPDATE policies SET v4 = 'ajar'")
        db.close()
        with pytest.raises(StoreError, match="ajar"):
            store.policies()

    def test_a_document_of_a_newer_version(self, store: Store, path: Path) -> None:
        store.put_document(A, named("a"))
        with sqlite3.connect(path) as db:
            db.execute("UPDATE documents SET body = ?", (b'{"novelty": 1}',))
        db.close()
        for read in (store.document, Reader(path).document):
            with pytest.raises(StoreError, match="novelty"):
                read(A)


class TestDamage:
    """Looked for before anything is served, and named with what to do."""

    @pytest.fixture
    def full(self, store: Store, path: Path) -> Path:
        for number in range(60):
            store.put_value(A, Value(f"guest/{number:03}", bytes(3_000)))
            store.put_document(UUID(int=number), named("x" * 40))
        store.close()
        return path

    def refused(self, path: Path) -> StoreError:
        before = path.read_bytes()
        with pytest.raises(StoreError) as caught:
            Store(path)
        assert "metashim restore FILE" in caught.value.hint
        assert path.read_bytes() == before, "it is left for who wants to rescue something"
        return caught.value

    def test_a_page_of_zeros(self, full: Path) -> None:
        pages = full.stat().st_size // 4_096
        with full.open("r+b") as file:
            for page in range(1, pages, 7):
                file.seek(page * 4_096)
                file.write(bytes(4_096))
        assert "damaged" in str(self.refused(full))

    def test_any_page_of_noise(self, full: Path) -> None:
        whole = full.read_bytes()
        noise = bytes(range(255, -1, -1)) * 16
        found = 0
        for page in range(1, len(whole) // 4_096):
            full.write_bytes(whole[: page * 4_096] + noise + whole[(page + 1) * 4_096 :])
            try:
                store = Store(full)
            except StoreError as error:
                assert "metashim restore FILE" in error.hint
                found += 1
            else:  # a page of a value's middle: its bytes are what they are, and all else can be read
                assert len(store.values(A)) == 60
                assert len(store.documents()) == 60
                store.close()
        assert found > 20

    def test_cut_short(self, full: Path) -> None:
        size = full.stat().st_size
        for cut in (100, 4_096, 6_000, size // 2, size - 4_096):
            copy = full.with_name("cut.db")
            copy.write_bytes(full.read_bytes()[:cut])
            self.refused(copy)

    @pytest.mark.parametrize("statement", [
        "DROP TABLE kv", "ALTER TABLE sources DROP COLUMN owner", "DELETE FROM counter", "DROP TABLE counter",
        "INSERT INTO counter VALUES (9, 9)",
    ])  # fmt: skip
    def test_something_is_gone(self, full: Path, statement: str) -> None:
        with sqlite3.connect(full) as db:
            db.execute(statement)
        db.close()
        with pytest.raises(StoreError, match="damaged") as caught:
            Store(full)
        assert "metashim restore FILE" in caught.value.hint

    def test_the_second_of_a_process_need_not_look(self, full: Path) -> None:
        with full.open("r+b") as file:
            file.seek(full.stat().st_size - 4_096)
            file.write(b"\xff" * 4_096)
        with pytest.raises(StoreError):
            Store(full)
        Store(full, check=False).close()

    def test_more_than_what_is_needed_is_no_damage(self, full: Path) -> None:
        with sqlite3.connect(full) as db:
            db.execute("CREATE VIEW mine AS SELECT * FROM kv")
        db.close()
        Store(full).close()


SCHEMA_1 = (
    "CREATE TABLE counter (last INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (7)",
    """CREATE TABLE documents (
        instance TEXT PRIMARY KEY,
        body BLOB NOT NULL,
        revision INTEGER NOT NULL,
        changed REAL NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE policies (
        instance TEXT PRIMARY KEY,
        v4 TEXT NOT NULL,
        v6 TEXT NOT NULL,
        hop_limit INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE attachments (
        netns TEXT NOT NULL,
        tap TEXT NOT NULL,
        instance TEXT NOT NULL,
        PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID""",
    f"INSERT INTO documents VALUES ('{A}', CAST('{{\"name\": \"a\"}}' AS BLOB), 7, 1.5)",
    f"INSERT INTO policies VALUES ('{A}', 'reset', '403', 2)",
    f"INSERT INTO attachments VALUES ('', 'tap1', '{B}')",
    "PRAGMA application_id = 1836279913",
    "PRAGMA user_version = 1",
)
"""What version 0.1.0 wrote at first, and some rows."""


SCHEMA_2 = (
    """CREATE TABLE attachments (
        netns TEXT NOT NULL,        -- empty: the host's own
        tap TEXT NOT NULL,
        instance TEXT NOT NULL,
        PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID""",
    f"INSERT INTO attachments VALUES ('', 'tap1', '{B}')",
    "CREATE TABLE counter (last INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (3)",
    """CREATE TABLE documents (
        instance TEXT PRIMARY KEY,
        body BLOB NOT NULL,         -- the JSON as the operator wrote it
        revision INTEGER NOT NULL,
        changed REAL NOT NULL       -- seconds since the epoch
    ) WITHOUT ROWID""",
    f"INSERT INTO documents VALUES ('{A}', X'7B226E616D65223A20226132227D', 3, 1.5)",
    f"INSERT INTO documents VALUES ('{B}', X'7B226E616D65223A202262227D', 2, 1.5)",
    """CREATE TABLE policies (
        instance TEXT PRIMARY KEY,
        v4 TEXT NOT NULL,           -- values of shim.core.policy.Access
        v6 TEXT NOT NULL,
        hop_limit INTEGER NOT NULL,
        tokens TEXT,                -- of shim.core.policy.Tokens; NULL: as the host has it
        routes TEXT                 -- JSON, backend by path prefix; NULL: as the host has them
    ) WITHOUT ROWID""",
    f"""INSERT INTO policies VALUES
        ('{A}', 'reset', '403', 2, 'required', '{{"/": "nova", "/latest/user-data": "embedded"}}')""",
    "PRAGMA application_id = 1836279913",
    "PRAGMA user_version = 2",
)
"""What the version before sources and keys wrote: a dump of its file."""


def made(path: Path, statements: tuple[str, ...]) -> Path:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    for statement in statements:
        db.execute(statement)
    db.close()
    return path


def shape(path: Path) -> set[tuple[object, ...]]:
    """All tables, indexes and columns, with their types and defaults."""
    db = sqlite3.connect(path)
    columns = "SELECT m.type, m.name, c.* FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c"
    found = db.execute(columns).fetchall()
    db.close()
    return set(found)


class TestUpgradeFrom2:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        return made(tmp_path / "old.db", SCHEMA_2)

    def test_everything_is_brought_along(self, old: Path, store: Store) -> None:
        brought = Store(old)
        routes = (("/", "nova"), ("/latest/user-data", "embedded"))
        assert brought.policies() == {A: Policy(Access.RESET, Access.FORBID, 2, Tokens.REQUIRED, routes)}
        assert brought.document(A) == (3, Document(name="a2"))
        assert brought.document(B) == (2, Document(name="b"))
        assert brought.attachments() == {("", "tap1"): B}
        assert brought.revision() == 3
        assert brought.changes(2) == (3, {"host"}), "what was written before is not known"
        assert brought.changes(3) == (3, frozenset())
        assert brought.put_source(Source(HOST, "base", b"x")) == 4
        assert brought.changes(3) == (4, {"host"})
        again = reopened(brought)
        assert [one.name for one in again.sources_for([HOST], A)] == ["base"]
        again.close()
        assert shape(old) == shape(store.path)

    def test_a_reader_of_the_version_before_goes_on(self, old: Path) -> None:
        """It read documents, by this statement."""
        former = sqlite3.connect(f"file:{old}?mode=ro", uri=True, isolation_level=None)
        statement = "SELECT revision, body FROM documents WHERE instance = ?"
        assert former.execute(statement, (str(A),)).fetchall() == [(3, b'{"name": "a2"}')]
        brought = Store(old)
        assert former.execute(statement, (str(A),)).fetchall() == [(3, b'{"name": "a2"}')]
        brought.put_document(A, named("new"))
        assert former.execute(statement, (str(A),)).fetchall() == [(4, named("new"))]
        former.close()
        brought.close()

    def test_a_reader_before_the_agent(self, old: Path) -> None:
        reader = Reader(old)
        assert reader.document(A)[0] == 3
        for read in (lambda: reader.changes(0), lambda: reader.values(A), lambda: reader.sources_for([HOST], A)):
            with pytest.raises(StoreError, match="no such"):
                read()
        Store(old).close()
        assert reader.values(A) == {}
        assert reader.changes(0) == (3, {"host"})

    @pytest.mark.parametrize("statement", range(len(schema.MIGRATIONS[2])))
    def test_all_of_it_or_nothing(self, old: Path, monkeypatch: pytest.MonkeyPatch, statement: int) -> None:
        before = old.read_bytes()
        broken = (*schema.MIGRATIONS[2][:statement], "ALTER TABLE nowhere ADD COLUMN a")
        monkeypatch.setitem(schema.MIGRATIONS, 2, broken)
        with pytest.raises(StoreError, match="nowhere"):
            Store(old)
        assert old.read_bytes() == before


class TestUpgrade:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        return made(tmp_path / "old.db", SCHEMA_1)

    def test_everything_is_brought_along(self, old: Path) -> None:
        store = Store(old)
        assert store.policies() == {A: Policy(Access.RESET, Access.FORBID, 2)}
        assert store.document(A) == (7, Document(name="a"))
        assert store.attachments() == {("", "tap1"): B}
        changed = Policy(Access.RESET, tokens=Tokens.OPTIONAL, routes=(("/", "embedded"),))
        store.put_policy(A, changed)
        again = reopened(store)
        assert again.policies() == {A: changed}, "and the second start has nothing to bring along"
        again.close()
        with sqlite3.connect(old) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA,)
        db.close()

    def test_it_looks_like_a_new_store_afterwards(self, old: Path, store: Store) -> None:
        Store(old).close()
        assert shape(old) == shape(store.path)

    def test_a_reader_that_has_it_open_goes_on(self, old: Path) -> None:
        reader = Reader(old)
        assert reader.document(A)[0] == 7
        store = Store(old)
        assert reader.document(A)[0] == 7
        store.put_document(A, named("b"))
        assert reader.document(A)[1] == Document(name="b")
        reader.close()
        store.close()

    def test_all_of_it_or_nothing(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = old.read_bytes()
        monkeypatch.setitem(schema.MIGRATIONS, 1, (schema.MIGRATIONS[1][0], "ALTER TABLE nowhere ADD COLUMN a"))
        with pytest.raises(StoreError, match="nowhere"):
            Store(old)
        assert old.read_bytes() == before
        monkeypatch.undo()
        Store(old).close()

    def test_two_that_come_at_once_bring_it_along_once(self, old: Path) -> None:
        first, second = sqlite3.connect(old, isolation_level=None), sqlite3.connect(old, isolation_level=None)
        for db in (first, second):
            db.execute("BEGIN IMMEDIATE")
            schema.bring_along(db)
            db.execute("COMMIT")
            db.close()
        Store(old).close()
