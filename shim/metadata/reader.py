"""The proxy's side of the store: read-only, without the right to write anything there.

The file is in write-ahead-log mode, and SQLite needs care to read that as another user. What happens, each a
test (tests/unit/test_store.py):

- A writer is there: its -shm and -wal can be read and locked for reading, and that is enough.
- It was killed with a log not yet in the main file: SQLite sees that nobody holds -shm, which it may not
  repair, and reads the log with an index of its own in memory.
- It was killed in the middle of an update of -shm: our own connection keeps the torn index in use. So a
  failed read closes the connection and tries once more. Where a second worker still has the torn index open,
  that fails too: then there is an error (guests get a 503) until the agent opens the store again.
- It went in good order: the log was moved into the main file and -wal removed, and SQLite, which could not
  make them anew, refuses to open. Without a log and a writer the main file alone is the database, and
  does not change: it is read as `immutable`, in a connection for that one read, and the answer counts
  only if there is no log and the same file afterwards as well.
- The file was replaced (a copy was put back): its inode tells, and it is opened anew.
- Its -shm was replaced, while this side had it open (a restore that was killed just then): all that is written
  from now on would pass us by. That inode is looked at too.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shim.errors import StoreError
from shim.metadata.reads import Reading, Row
from shim.metadata.schema import explain, is_fresh

BUSY_SECONDS = 0.2
"""How long a read waits for a lock: it stands in a guest's way, and is never held up by a write as such."""

# What SQLite says where -wal is missing and this user may not make it, by version and file system.
_NO_LOG_TO_BE_MADE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY_DIRECTORY)

Mark = tuple[int, int, int, int]


class Reader(Reading):
    """Reads a store that may not be there yet, may go, and may come back. For one thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._index = f"{path}-shm"
        self._db: sqlite3.Connection | None = None
        self._files = (0, 0, 0)
        self._opened = 0

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def version(self) -> Hashable:
        """A token that is another one after any change of the store. Raises StoreError."""
        (row,) = self._read("PRAGMA data_version")
        # SQLite's number counts within one connection only; without one, the file's own marks tell.
        return (self._opened, *row) if self._db else self._mark()

    def _read(self, statement: str, values: Any = ()) -> list[Row]:
        try:
            return self._attempt(statement, values)
        except (sqlite3.Error, OSError):
            self.close()
        try:
            return self._attempt(statement, values)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise explain(self.path, error) from error

    def _attempt(self, statement: str, values: Any) -> list[Row]:
        if self._db is not None and self._files != self._files_now():
            self.close()
        if self._db is None:
            try:
                self._open()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in _NO_LOG_TO_BE_MADE or self._has_log():
                    raise
                return self._read_at_rest(statement, values)
        assert self._db is not None
        return self._db.execute(statement, values).fetchall()

    def _files_now(self) -> tuple[int, int, int]:
        """Which file it is, and which index of its log (0: there is none)."""
        status = os.stat(self.path)  # noqa: PTH116 - Path.stat takes twice as long, and every request waits for it
        try:
            index = os.stat(self._index).st_ino  # noqa: PTH116
        except FileNotFoundError:
            index = 0
        return status.st_dev, status.st_ino, index

    def _open(self) -> None:
        main = self._files_now()[:2]
        db = self._connect("mode=ro")
        try:
            self._recognize(db)
        except BaseException:
            db.close()
            raise
        # The index is there now, if it was not: who may make one has made it.
        self._db, self._files = db, (*main, self._files_now()[2])
        self._opened += 1

    def _read_at_rest(self, statement: str, values: Any) -> list[Row]:
        """Read the main file when there is no log and no writer; sqlite3.OperationalError if one came."""
        before = self._mark()
        db = self._connect("mode=ro&immutable=1")
        try:
            self._recognize(db)
            rows = db.execute(statement, values).fetchall()
        finally:
            db.close()
        if self._has_log() or self._mark() != before:
            raise sqlite3.OperationalError("a writer came meanwhile")
        return rows

    def _connect(self, options: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path))}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)

    def _recognize(self, db: sqlite3.Connection) -> None:
        if is_fresh(db, self.path):
            raise StoreError(f"the store {self.path} is empty", "the agent fills it: is it running?")

    def _has_log(self) -> bool:
        """Whether there is a log with anything in it: without, the main file alone is the database."""
        try:
            return Path(f"{self.path}-wal").stat().st_size > 0
        except FileNotFoundError:
            return False

    def _mark(self) -> Mark:
        status = self.path.stat()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
