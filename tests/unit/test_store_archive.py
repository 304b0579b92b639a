"""Copies put back: what comes back, what guests did since, what readers see, and what is refused."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from shim.core.kv import Value
from shim.core.source import HOST, Reads, Source
from shim.errors import ConflictError, InputError, StoreError
from shim.metadata import archive
from shim.metadata.archive import backup, restore
from shim.metadata.reader import Reader
from shim.metadata.schema import SCHEMA, StoreFullError
from shim.metadata.store import Store
from tests.unit.store_hall import (
    GROUP,
    A,
    B,
    Clock,
    Hall,
    clock,
    copy,
    everything,
    hall,
    named,
    names_beside,
    path,
    prepare,
    store,
)

__all__ = ["clock", "copy", "hall", "path", "store"]


class TestRestore:
    def test_puts_back_what_was(self, store: Store, path: Path, copy: Path, clock: Clock) -> None:
        prepare(store)
        before = everything(path)
        backup(path, copy)
        store.put_document(A, named("later"))
        store.put_source(Source(HOST, "later", b"x"))
        store.delete_value(A, "host/many")
        later, last = everything(path), store.revision()
        store.close()
        restored = restore(copy, path, clock=clock)
        assert names_beside(path) == {"metashim.db", Path(restored.kept).name}
        assert restored.revision == last + 1
        assert Path(restored.kept) == path.with_name(f"metashim.db.before-restore-{int(clock.now)}")
        assert everything(Path(restored.kept)) == later
        assert Path(restored.kept).stat().st_mode & 0o777 == 0o600
        now = everything(path)
        for table in ("documents", "policies", "attachments", "sources", "kv", "spent", "latches", "reports"):
            assert now[table] == before[table], table
        again = Store(path)
        assert again.revision() == last + 1
        assert again.changes(last) == (last + 1, {"host"}), "all is to be looked at anew"
        assert [row.what for row in again.audits()] == ["prepared", "restore"]
        again.close()
        assert everything(copy) == before, "it is as it was"

    def test_what_guests_did_stays(self, store: Store, path: Path, copy: Path) -> None:
        prepare(store)
        store.audit("me", "before")
        backup(path, copy)
        items = [one.item for one in (*store.sources(), *store.values(A).values()) if one.reads is not Reads.MANY]
        spent = store.spend(A, items)
        assert len(spent) == 3
        store.spend(B, [item for item in items if "source" in item])
        store.latch(A, "/")
        store.latch(B, "keys")
        store.report(A, "read")
        store.audit("guest", "lock", A)
        latches, reports = store.latches(), store.reports(A)
        store.close()
        restored = restore(copy, path, who="root (uid 0)")
        assert (restored.locks, restored.used_up, restored.reports, restored.audit) == (2, 5, 1, 1)
        assert (restored.lost, restored.again) == ((), ())
        again = Store(path)
        assert again.latches() == latches
        assert again.unspent(A, items) == ()
        assert again.unspent(B, [item for item in items if "source" in item]) == ()
        assert again.reports(A) == reports
        assert [(row.seq, row.who, row.what) for row in again.audits()] == [
            (1, "me", "prepared"), (2, "me", "before"), (3, "guest", "lock"), (4, "root (uid 0)", "restore")
        ]  # fmt: skip
        again.close()

    def test_what_was_written_again_since_can_be_read_again_and_is_told(
        self, store: Store, path: Path, copy: Path
    ) -> None:
        prepare(store)
        backup(path, copy)
        store.spend(A, [one.item for one in store.sources()])
        store.put_source(Source(HOST, "once", b"new", reads=Reads.ONCE))
        store.delete_value(A, "host/confirm")
        store.close()
        restored = restore(copy, path)
        assert restored.again == (f"{A} host/confirm", "host/once")
        again = Store(path)
        assert {one.name for one in again.sources_for([HOST], A)} == {"many", "once", "file"}
        again.close()

    def test_revisions_go_on_above_both(self, store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
        other = Store(tmp_path / "other.db")
        for _ in range(50):
            other.put_document(B, b"{}")
        other.close()
        backup(tmp_path / "other.db", copy)
        store.put_document(A, b"{}")
        store.close()
        assert restore(copy, path).revision == 51
        backup(path, copy, overwrite=True)
        again = Store(path)
        for _ in range(50):
            again.put_document(B, b"{}")
        again.close()
        assert restore(copy, path).revision == 102

    def test_the_trails_of_two_hosts(self, store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
        other = Store(tmp_path / "other.db")
        for what in ("a", "b", "c"):
            other.audit("them", what)
        other.close()
        backup(tmp_path / "other.db", copy)
        store.audit("me", "x")
        store.audit("me", "y")
        store.close()
        assert restore(copy, path).audit == 2
        again = Store(path)
        assert [(row.seq, row.what) for row in again.audits()] == [
            (1, "a"), (2, "b"), (3, "c"), (4, "x"), (5, "y"), (6, "restore")
        ]  # fmt: skip
        again.close()

    def test_where_there_is_no_store(self, store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
        prepare(store)
        backup(path, copy)
        new = tmp_path / "new" / "metashim.db"
        restored = restore(copy, new, os.getgid())
        assert (restored.kept, restored.lost, restored.revision) == ("", (), store.revision() + 1)
        assert new.stat().st_mode & 0o777 == 0o640
        assert new.parent.stat().st_mode & 0o777 == 0o750
        assert names_beside(new) == {"metashim.db"}
        again = Store(new)
        assert again.values(A) == store.values(A)
        again.close()

    def test_a_log_whose_store_was_moved_away_is_kept_and_not_read(
        self, hall: Hall, copy: Path, tmp_path: Path
    ) -> None:
        hall.writer(A, 20).hear()
        for child in hall._children:
            child.kill()
        away = hall.path.rename(hall.path.with_name("moved.db"))
        other = Store(tmp_path / "other.db")
        other.put_document(B, named("restored"))
        other.close()
        backup(tmp_path / "other.db", copy)
        restore(copy, hall.path, GROUP)
        again = Store(hall.path)
        assert again.instances() == {B}
        again.close()
        (log,) = (name for name in hall.path.parent.iterdir() if "before-restore" in name.name)
        log.rename(f"{away}-wal")
        assert Store(away).document(A)[1] is not None

    def test_readers_see_it_by_its_inode(self, hall: Hall, copy: Path) -> None:
        store = Store(hall.path, GROUP)
        store.put_document(A, named("old"))
        backup(hall.path, copy)
        store.put_document(A, named("new"))
        readers = [hall.reader(), hall.reader()]
        assert [reader.ask(A) for reader in readers] == [[2, "new"]] * 2
        versions = [reader.ask("version") for reader in readers]
        store.close()
        restored = restore(copy, hall.path, GROUP)
        assert all(reader.ask("version") != before for reader, before in zip(readers, versions, strict=True))
        assert [reader.ask(A) for reader in readers] == [[1, "old"]] * 2
        assert hall.reader().ask(A) == [1, "old"]
        again = Store(hall.path, GROUP)
        assert again.put_document(A, named("newer")) == restored.revision + 1
        assert [reader.ask(A) for reader in readers] == [[restored.revision + 1, "newer"]] * 2
        again.close()

    @pytest.mark.parametrize("larger", [False, True])
    def test_beside_readers_that_have_the_former_one_open_and_are_silent(
        self, hall: Hall, copy: Path, larger: bool
    ) -> None:
        """They hold its -shm, in which its size stands: the agent must not go by that."""
        sizes = {False: 3, True: 200}
        store = Store(hall.path, GROUP)
        for number in range(sizes[larger]):
            store.put_document(UUID(int=number), named("x" * 4_000))
        store.put_document(A, named("old"))
        backup(hall.path, copy)
        for number in range(1_000, 1_000 + sizes[not larger]):
            store.put_document(UUID(int=number), named("x" * 4_000))
        for number in range(200 if larger else 0):
            store.delete_document(UUID(int=number))
        store._db.execute("VACUUM")
        readers = [hall.reader(), hall.reader()]
        assert [reader.ask(A)[1] for reader in readers] == ["old"] * 2  # type: ignore[index]
        store.close()
        restore(copy, hall.path, GROUP)
        again = Store(hall.path, GROUP)
        assert again.document(A)[1] is not None
        revision = 0
        for number in range(50):
            revision = again.put_document(UUID(int=2_000 + number), named("y" * 4_000))
        revision = again.put_document(A, named("new"))
        assert [reader.ask(A) for reader in readers] == [[revision, "new"]] * 2
        assert len(again.documents()) == sizes[larger] + 51
        again.close()
        Store(hall.path, GROUP).close()

    def test_by_a_reader_that_watches(self, store: Store, path: Path, copy: Path) -> None:
        prepare(store)
        backup(path, copy)
        store.put_value(A, Value("guest/late", b"x"))
        reader = Reader(path)
        since, _ = reader.changes(0)
        store.close()
        restore(copy, path)
        revision, scopes = reader.changes(since)
        assert revision > since
        assert "host" in scopes
        assert "guest/late" not in reader.values(A)

    def test_of_an_older_schema(self, path: Path, copy: Path, store: Store) -> None:
        from tests.unit.test_store_files import SCHEMA_1, SCHEMA_2, made

        store.latch(A, "kv")
        store.close()
        for number, old in enumerate((SCHEMA_1, SCHEMA_2)):
            source = made(copy.with_name(f"{number}.db"), old)
            restored = restore(source, path)
            assert restored.locks == 1
            again = Store(path)
            assert again.document(A)[1] is not None
            assert again.latches() == {A: ("kv",)}
            again.close()

    def test_over_an_older_schema(self, path: Path, copy: Path, store: Store, tmp_path: Path) -> None:
        from tests.unit.test_store_files import SCHEMA_1, made

        prepare(store)
        backup(path, copy)
        old = made(tmp_path / "old.db", SCHEMA_1)
        restored = restore(copy, old)
        assert restored.lost == ()
        assert restored.revision == max(7, store.revision()) + 1
        again = Store(old)
        assert again.values(A) == store.values(A)
        again.close()

    @pytest.mark.parametrize("case", ["none", "itself", "foreign", "garbage", "empty", "damaged", "newer", "held"])
    def test_what_cannot_be(
        self, store: Store, path: Path, copy: Path, case: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archive, "BUSY_SECONDS", 0.05)
        prepare(store)
        backup(path, copy)
        source = copy
        shell = sqlite3.connect(path, isolation_level=None)
        if case == "none":
            source = copy.with_name("none.db")
        elif case == "itself":
            source = path
        elif case == "foreign":
            source = copy.with_name("theirs.db")
            with sqlite3.connect(source) as db:
                db.execute("CREATE TABLE theirs (a)")
            db.close()
        elif case == "garbage":
            source.write_bytes(b"no database at all, but long enough to look like one" * 50)
        elif case == "empty":
            source.write_bytes(b"")
        elif case == "damaged":
            with source.open("r+b") as file:
                file.seek(8_192)
                file.write(b"\xff" * 30_000)
        elif case == "newer":
            with sqlite3.connect(source) as db:
                db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
            db.close()
        else:
            store.put_document(A, b"{}")
            shell.execute("BEGIN")
            shell.execute("SELECT * FROM documents").fetchone()
            store.put_document(A, b"{}")
        before, names = everything(path), {name for name in names_beside(path) if "-" not in name}
        store.close()
        with pytest.raises((StoreError, ConflictError, InputError)) as caught:
            restore(source, path)
        assert caught.value.hint
        assert "metashim restore" not in caught.value.hint
        shell.close()
        assert everything(path) == before
        assert {name for name in names_beside(path) if "-" not in name} == names
        Store(path).close()

    @pytest.mark.parametrize("damage", ["all", "a table", "latches", "audit", "foreign", "empty", "newer"])
    def test_over_one_that_cannot_be_read(self, store: Store, path: Path, copy: Path, damage: str) -> None:
        prepare(store)
        backup(path, copy)
        store.latch(A, "/")
        last = store.revision()
        store.close()
        with sqlite3.connect(path) as db:
            if damage == "a table":
                db.execute("DROP TABLE kv")
            elif damage == "latches":
                db.execute("UPDATE latches SET prefix = 'nonsense' WHERE prefix = '/'")
            elif damage == "audit":
                db.execute("UPDATE audit SET instance = 'nonsense', who = 'x'")
            elif damage == "newer":
                db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
            elif damage == "foreign":
                db.execute("PRAGMA application_id = 1")
        db.close()
        if damage == "all":
            path.write_bytes(path.read_bytes()[:100] + os.urandom(40_000))
        elif damage == "empty":
            path.write_bytes(b"")
        before = path.read_bytes()
        restored = restore(copy, path)
        assert Path(restored.kept).read_bytes() == before
        assert bool(restored.lost) == (damage not in ("empty", "newer"))
        again = Store(path)
        assert len(again.values(A)) == 3
        assert restored.revision > (last if damage != "empty" else last - 1)
        if damage in ("a table", "audit", "newer"):
            assert again.latches() == {A: ("/", "/latest/user-data")}, "what can be read is taken over"
        assert again.audits()[-1].what == "restore"
        again.close()

    def test_again_and_again(self, store: Store, path: Path, copy: Path, clock: Clock) -> None:
        prepare(store)
        backup(path, copy)
        store.close()
        kept = {restore(copy, path, clock=clock).kept for _ in range(4)}
        assert len(kept) == 4, "within one second"
        assert len([name for name in names_beside(path) if "before-restore" in name]) == 4
        again = Store(path)
        assert [row.what for row in again.audits()] == ["prepared", *["restore"] * 4]
        again.close()

    def test_of_what_was_kept(self, store: Store, path: Path, copy: Path) -> None:
        backup(path, copy)
        store.put_document(A, named("late"))
        store.close()
        kept = restore(copy, path).kept
        restore(Path(kept), path)
        again = Store(path)
        assert again.document(A)[1] is not None
        again.close()

    def test_behind_a_link(self, store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
        prepare(store)
        before = everything(path)
        backup(path, copy)
        store.close()
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "metashim.db"
        link.symlink_to(path)
        restored = restore(copy, link)
        assert link.is_symlink()
        assert Path(restored.kept).parent == path.parent
        assert everything(path)["kv"] == before["kv"]

    def test_no_room(self, store: Store, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare(store)
        backup(path, copy)
        before = everything(path)
        store.close()

        def full(*names: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "link", full)
        with pytest.raises(StoreFullError):
            restore(copy, path)
        monkeypatch.undo()
        assert everything(path) == before
        assert not [name for name in names_beside(path) if "restor" in name]


def test_what_is_told_is_plain(store: Store, path: Path, copy: Path) -> None:
    prepare(store)
    backup(path, copy)
    store.close()
    told = msgspec.to_builtins(restore(copy, path))
    assert set(told) == {"revision", "kept", "locks", "used_up", "reports", "audit", "lost", "again"}
