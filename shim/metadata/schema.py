"""What the store's file looks like, and what to say when SQLite refuses it.

A file is ours by its application id, and readable by its schema number (`user_version`); both are looked
at before anything is written, so that no other program's file, and no newer metashim's, is ever touched.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import StoreError

APPLICATION_ID = 0x6D736869  # "mshi"

SCHEMA = 2
"""This version's schema number. A change of the tables raises it and brings the older ones along.

What a worker of an earlier version does when the agent raises it beneath: it goes on with the file that it has open, as
documents are all it reads and they are as they were. Should it have to open the file anew, it sees the number and
serves 503 rather than guess; the agent ends such a worker as soon as it is heard (see feed.PROTOCOL).
"""

TABLES = (
    # One row: the last revision given out. Revisions grow over all documents and survive deletions,
    # so an instance never gets a revision that it had before with other content.
    "CREATE TABLE counter (last INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (0)",
    """CREATE TABLE documents (
        instance TEXT PRIMARY KEY,
        body BLOB NOT NULL,         -- the JSON as the operator wrote it
        revision INTEGER NOT NULL,
        changed REAL NOT NULL       -- seconds since the epoch
    ) WITHOUT ROWID""",
    """CREATE TABLE policies (
        instance TEXT PRIMARY KEY,
        v4 TEXT NOT NULL,           -- values of shim.core.policy.Access
        v6 TEXT NOT NULL,
        hop_limit INTEGER NOT NULL,
        tokens TEXT,                -- of shim.core.policy.Tokens; NULL: as the host has it
        routes TEXT                 -- JSON, backend by path prefix; NULL: as the host has them
    ) WITHOUT ROWID""",
    """CREATE TABLE attachments (
        netns TEXT NOT NULL,        -- empty: the host's own
        tap TEXT NOT NULL,
        instance TEXT NOT NULL,
        PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)

MIGRATIONS = {
    # schema number → what makes the next one of it
    1: ("ALTER TABLE policies ADD COLUMN tokens TEXT", "ALTER TABLE policies ADD COLUMN routes TEXT"),
}

_HINTS = {
    sqlite3.SQLITE_FULL: "free some space there; nothing was changed",
    sqlite3.SQLITE_BUSY: "another process holds it; is a second agent or an sqlite3 shell at work?",
    sqlite3.SQLITE_READONLY: "check the permissions of the file and its folder, and how the disk is mounted",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and that this user may use it",
    sqlite3.SQLITE_NOTADB: "move the file away (metashim never overwrites it), or put back a copy",
    sqlite3.SQLITE_CORRUPT: "move the file away (metashim never overwrites it), or put back a copy",
    sqlite3.SQLITE_IOERR: "check the disk: see the kernel's log",
}


def is_fresh(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty; False when it is a store of ours. Raises StoreError when it is neither."""
    application, version = pragma(db, "application_id"), pragma(db, "user_version")
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == version == tables == 0:
        return True
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is another program's database", "move it away or set another state_dir")
    if version > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer metashim (schema {version}; this one knows {SCHEMA})",
            "upgrade metashim, or put back a copy from before",
        )
    return False


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a numeric pragma."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def bring_along(db: sqlite3.Connection) -> None:
    """Make this version's tables of an earlier one's. Within a transaction: all of it or nothing."""
    for version in range(pragma(db, "user_version"), SCHEMA):
        for statement in MIGRATIONS[version]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def explain(path: Path, error: Exception) -> StoreError:
    """A StoreError for what SQLite or the system said, or for a row that makes no sense (ValueError)."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, of an extended one
        return StoreError(f"the store {path}: {error}", _HINTS.get(code, ""))
    if isinstance(error, OSError):
        return StoreError(f"the store {path}: {error.strerror}", _HINTS[sqlite3.SQLITE_CANTOPEN])
    return StoreError(f"the store {path} holds what this version cannot read: {error}", "upgrade metashim")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn failures of the store into StoreErrors."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise explain(path, error) from error
