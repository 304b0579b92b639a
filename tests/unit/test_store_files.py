"""Files that are not a store, not one of this version, or damaged: what is refused, and what is brought along."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from shim.core.policy import Access, Policy, Tokens
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


class TestUpgrade:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        path = tmp_path / "old.db"
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        for statement in SCHEMA_1:
            db.execute(statement)
        db.close()
        return path

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

        def columns(path: Path) -> list[tuple[object, ...]]:
            db = sqlite3.connect(path)
            found = db.execute("PRAGMA table_info(policies)").fetchall()
            db.close()
            return found

        assert columns(old) == columns(store.path)

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
