"""Copies of the store while it is written: what is in them, and what is refused."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import msgspec
import pytest

from shim.errors import ConflictError, InputError, StoreError
from shim.metadata import archive
from shim.metadata.archive import backup
from shim.metadata.schema import SCHEMA
from shim.metadata.store import Store
from tests.unit.store_hall import (
    A,
    Hall,
    clock,
    copy,
    everything,
    hall,
    names_beside,
    path,
    prepare,
    store,
)

__all__ = ["clock", "copy", "hall", "path", "store"]


class TestBackup:
    def test_is_one_file_of_all_there_is(self, store: Store, path: Path, copy: Path) -> None:
        prepare(store)
        copied = backup(path, copy)
        assert copied == archive.Copied(copy.stat().st_size, store.revision())
        assert msgspec.to_builtins(copied) == {"bytes": copied.bytes, "revision": copied.revision}
        assert copy.stat().st_mode & 0o777 == 0o600
        assert everything(copy) == everything(path)
        assert names_beside(copy) == {"copy.db"}
        shell = sqlite3.connect(copy)
        assert shell.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        shell.close()

    def test_of_a_store_at_rest(self, store: Store, path: Path, copy: Path) -> None:
        prepare(store)
        before = everything(path)
        store.close()
        backup(path, copy)
        assert everything(copy) == before
        Store(path).close()

    def test_nothing_is_overwritten_unless_told(self, store: Store, path: Path, copy: Path) -> None:
        copy.write_bytes(b"precious")
        with pytest.raises(ConflictError, match="there already") as caught:
            backup(path, copy)
        assert caught.value.hint
        assert copy.read_bytes() == b"precious"
        backup(path, copy, overwrite=True)
        assert everything(copy) == everything(path)
        assert names_beside(copy) == {"copy.db"}

    def test_nor_a_link_or_the_store(self, store: Store, path: Path, copy: Path, tmp_path: Path) -> None:
        copy.symlink_to(tmp_path / "nowhere")
        with pytest.raises(ConflictError):
            backup(path, copy)
        (tmp_path / "other").symlink_to(path)
        for target in (path, tmp_path / "other", Path(f"{path}-wal"), Path(f"{path}-shm")):
            with pytest.raises(ConflictError, match=r"of the store|itself"):
                backup(path, target, overwrite=True)
        store.put_document(A, b"{}")

    def test_one_that_comes_meanwhile_is_not_overwritten(
        self, store: Store, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = os.link

        def late(*names: object) -> None:
            copy.write_bytes(b"precious")
            link(*names)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "link", late)
        with pytest.raises(ConflictError):
            backup(path, copy)
        assert copy.read_bytes() == b"precious"
        assert names_beside(copy) == {"copy.db"}

    @pytest.mark.parametrize("case", ["folder", "no folder", "no store", "foreign", "empty", "damaged", "newer"])
    def test_what_cannot_be(self, store: Store, path: Path, copy: Path, case: str) -> None:
        prepare(store)
        store.close()
        source, target = path, copy
        if case == "folder":
            target = copy.parent
        elif case == "no folder":
            target = copy.parent / "none" / "copy.db"
        elif case == "no store":
            source = path.with_name("none.db")
        elif case == "empty":
            source = path.with_name("empty.db")
            source.touch()
        elif case == "foreign":
            source = path.with_name("theirs.db")
            with sqlite3.connect(source) as db:
                db.execute("CREATE TABLE theirs (a)")
            db.close()
        elif case == "damaged":
            with path.open("r+b") as file:
                file.seek(8_192)
                file.write(b"\xff" * 30_000)
        else:
            with sqlite3.connect(path) as db:
                db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
            db.close()
        with pytest.raises((StoreError, InputError)) as caught:
            backup(source, target)
        assert caught.value.hint
        assert list(copy.parent.iterdir()) == []

    def test_is_of_one_moment_while_it_is_written(self, hall: Hall, copy: Path) -> None:
        script = """
store = Store(Path(sys.argv[1]))
for number in range(100_000):
    with store.transaction():
        for instance in (1, 2):
            store.put_document(UUID(int=instance), json.dumps({"vendor_data": [number, "x" * 20_000]}).encode())
    if number == 0:
        print(json.dumps("writing"), flush=True)
"""
        writer = hall.child(script, hall.path)
        assert writer.hear() == "writing"
        seen = []
        for number in range(6):
            backup(hall.path, copy.with_name(f"{number}.db"))
            bodies = {row[1] for row in everything(copy.with_name(f"{number}.db"))["documents"]}
            assert len(bodies) == 1
            seen.append(json.loads(bodies.pop())["vendor_data"][0])  # type: ignore[arg-type]
        assert seen == sorted(seen)
        assert seen[-1] > seen[0], "it was not held up"
        writer.kill()
