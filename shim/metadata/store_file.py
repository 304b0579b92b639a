"""One connection of the agent's to the store's file: opening, transactions, and what every write tells of itself."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shim.errors import StoreError
from shim.metadata.reads import CHANGES_KEPT, Reading, Row
from shim.metadata.schema import (
    SCHEMA,
    TABLES,
    bring_along,
    examine,
    explain,
    explained,
    is_fresh,
    look_over,
    pragma,
)

BUSY_SECONDS = 2.0
"""How long a write waits for another process's. The agent is alone, so this is for an operator's sqlite3."""
PRUNE_EVERY = 1024


class _Undone(Exception):
    """Ends what was only tried out."""


class StoreFile(Reading):
    """The file, made if it is not there: mode 0640 (a new folder's 0750), group `gid` if given.

    For the thread that makes it. `check`: read all of it first, and refuse one that is broken; the second of a process
    need not. Raises StoreError if the file is not a store, is a newer one, or cannot be used.
    """

    def __init__(self, path: Path, gid: int | None, clock: Callable[[], float], check: bool) -> None:
        self.path = path
        self._clock = clock
        self._begun = False
        with explained(path):
            _create(path, gid)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with explained(path):
                self._set_up(gid, check)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, gid: int | None, check: bool) -> None:
        fresh = is_fresh(self._db, self.path)
        if check and not fresh:
            examine(self._db, self.path)
        _share(self.path, gid)
        if self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            what = f"the store {self.path}: its file system cannot share memory"
            raise StoreError(what, "set state_dir to a local disk")
        self._db.execute("PRAGMA synchronous = FULL")
        if fresh:
            with self.transaction():
                for statement in TABLES:
                    self._db.execute(statement)
        elif pragma(self._db, "user_version") < SCHEMA:
            with self.transaction():
                bring_along(self._db)
        if check:
            look_over(self._db, self.path)
        _share(self.path, gid)

    def close(self) -> None:
        """End the use of the file. Readers go on."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all writes inside one: all of them or, if the block raises, none. One inside another is part of it.

        For "apply to the kernel, then commit": write first inside the block, so that what the store would
        refuse is refused before the kernel is touched. A StoreError from the block's end (the commit)
        says that the store has the old state while the kernel has the new one.
        """
        if self._begun:
            self._must_be_open()
            yield
            return
        with explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
        self._begun = True
        try:
            yield
            self._must_be_open()
            with explained(self.path):
                self._db.execute("COMMIT")
        except BaseException:
            self._undo()
            raise
        finally:
            self._begun = False

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """A part of a transaction that is undone alone if its block raises: so one bad write of many spoils no other.
        A transaction of its own where there is none."""
        with self.transaction():
            with explained(self.path):
                self._db.execute("SAVEPOINT part")
            try:
                yield
                self._must_be_open()
                with explained(self.path):
                    self._db.execute("RELEASE part")
            except BaseException:
                self._undo_part()
                raise

    @contextmanager
    def undone(self) -> Iterator[None]:
        """To try out what may be written: whatever the block writes is not kept."""
        with suppress(_Undone), self.savepoint():
            yield
            raise _Undone

    def _must_be_open(self) -> None:
        """A disk that is full, or broken, may have ended the transaction: what follows must not be kept without what
        went before."""
        if not self._db.in_transaction:
            raise StoreError(f"the store {self.path}: an earlier failure ended the transaction", "nothing was changed")

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _undo_part(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK TO part")
                self._db.execute("RELEASE part")
            except sqlite3.Error as error:  # then all of it
                self._undo()
                raise explain(self.path, error) from error

    def revision(self) -> int:
        """The last revision that was given out: every change of anything that guests may see has one of its own."""
        return int(self._read("SELECT last FROM counter")[0][0])

    def _note(self, scope: str) -> int:
        """A new revision, for a write that concerns this scope (Scope.text). Within a transaction."""
        (revision,) = self._db.execute("UPDATE counter SET last = last + 1 RETURNING last").fetchall()[0]
        self._db.execute(
            "INSERT INTO changes VALUES (?, ?) ON CONFLICT (scope) DO UPDATE SET revision = excluded.revision",
            (scope, revision),
        )
        if revision % PRUNE_EVERY == 0:
            self._db.execute("DELETE FROM changes WHERE revision <= ?", (revision - CHANGES_KEPT,))
        return int(revision)

    def _read(self, statement: str, values: Any = ()) -> list[Row]:
        try:  # not `explained`, which takes a tenth of the time of a small read
            return self._db.execute(statement, values).fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise explain(self.path, error) from error

    def _write(self, statement: str, *values: object) -> int:
        """How many rows it concerned. Within a transaction."""
        try:
            return self._db.execute(statement, values).rowcount
        except (sqlite3.Error, ValueError) as error:
            raise explain(self.path, error) from error


def _create(path: Path, gid: int | None) -> None:
    """An empty file with its final mode, before SQLite makes -wal and -shm in that file's likeness."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o750)  # whatever the umask
        if gid is not None:
            os.chown(path.parent, -1, gid)
    if path.exists():
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    os.close(descriptor)


def _share(path: Path, gid: int | None) -> None:
    """Let the group read the file and its two companions, and nobody else."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if name.exists():
            if gid is not None:
                os.chown(name, -1, gid)
            name.chmod(0o640)
