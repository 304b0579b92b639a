"""What the store's file looks like, and what to say when SQLite refuses it.

A file is ours by its application id, and readable by its schema number (`user_version`); both are looked
at before anything is written, so that no other program's file, and no newer metashim's, is ever touched.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import StoreError

APPLICATION_ID = 0x6D736869  # "mshi"

SCHEMA = 3
"""This version's schema number. A change of the tables raises it and brings the older ones along.

What a worker of an earlier version does when the agent raises it beneath: it goes on with the file that it has open, as
documents are all it reads and they are as they were. Should it have to open the file anew, it sees the number and
serves 503 rather than guess; the agent ends such a worker as soon as it is heard (see feed.PROTOCOL).
"""

_SINCE_3 = (
    """CREATE TABLE sources (
        scope TEXT NOT NULL,        -- Scope.text
        name TEXT NOT NULL,
        kind TEXT NOT NULL,         -- values of shim.core.source.Kind
        owner TEXT NOT NULL,
        place INTEGER NOT NULL,     -- Source.order
        merge TEXT NOT NULL,
        template INTEGER NOT NULL,
        reads TEXT NOT NULL,        -- of shim.core.source.Reads
        until REAL,                 -- seconds since the epoch; NULL: no such time
        origin TEXT NOT NULL,
        revision INTEGER NOT NULL,
        changed REAL NOT NULL,
        body BLOB NOT NULL,         -- last: what is before it is read without it
        PRIMARY KEY (scope, name)
    )""",
    """CREATE TABLE kv (
        instance TEXT NOT NULL,
        key TEXT NOT NULL,
        reads TEXT NOT NULL,
        until REAL,
        revision INTEGER NOT NULL,
        changed REAL NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (instance, key)
    )""",
    # What an instance has used up, by the revision of the source or key: no two of them ever have the same.
    """CREATE TABLE spent (
        instance TEXT NOT NULL,
        revision INTEGER NOT NULL,
        at REAL NOT NULL,
        lease INTEGER NOT NULL DEFAULT 0,  -- of the one reader that it was given to; 0: confirmed
        PRIMARY KEY (instance, revision)
    ) WITHOUT ROWID""",
    "CREATE INDEX spent_revision ON spent (revision)",
    # What a guest closed (shim.core.closure).
    """CREATE TABLE latches (
        instance TEXT NOT NULL,
        prefix TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (instance, prefix)
    ) WITHOUT ROWID""",
    # What a guest let us know once: `ready`, or (by doing it) `read`.
    """CREATE TABLE reports (
        instance TEXT NOT NULL,
        kind TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (instance, kind)
    ) WITHOUT ROWID""",
    """CREATE TABLE audit (
        seq INTEGER PRIMARY KEY,    -- the newest row is never deleted, so none comes again
        at REAL NOT NULL,
        who TEXT NOT NULL,
        instance TEXT,
        what TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX audit_instance ON audit (instance)",
    # When what an instance may see of a scope was last written. Older rows go: see reads.CHANGES_KEPT.
    """CREATE TABLE changes (
        scope TEXT PRIMARY KEY,     -- Scope.text
        revision INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX changes_revision ON changes (revision)",
)

TABLES = (
    # One row. last: the last revision given out. Revisions grow over all that is written and survive deletions,
    # so an instance never gets a revision that it had before with other content. beginning: of what was written
    # up to this revision it is not known which scopes it concerned.
    "CREATE TABLE counter (last INTEGER NOT NULL, beginning INTEGER NOT NULL DEFAULT 0)",
    "INSERT INTO counter VALUES (0, 0)",
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
        routes TEXT,                -- JSON, backend by path prefix; NULL: as the host has them
        composition TEXT,           -- of shim.core.policy.Composition; NULL: as the host has it
        closed TEXT,                -- JSON, prefixes and topics; NULL: none
        auto TEXT                   -- JSON, fields of shim.core.policy.Auto; NULL: never
    ) WITHOUT ROWID""",
    """CREATE TABLE attachments (
        netns TEXT NOT NULL,        -- empty: the host's own
        tap TEXT NOT NULL,
        instance TEXT NOT NULL,
        PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID""",
    *_SINCE_3,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)

MIGRATIONS = {
    # schema number → what makes the next one of it
    1: ("ALTER TABLE policies ADD COLUMN tokens TEXT", "ALTER TABLE policies ADD COLUMN routes TEXT"),
    2: (
        "ALTER TABLE counter ADD COLUMN beginning INTEGER NOT NULL DEFAULT 0",
        "UPDATE counter SET beginning = last",
        "ALTER TABLE policies ADD COLUMN composition TEXT",
        "ALTER TABLE policies ADD COLUMN closed TEXT",
        "ALTER TABLE policies ADD COLUMN auto TEXT",
        *_SINCE_3,
    ),
}

RESTORE = "`metashim restore FILE` puts a backup in its place; or move it away (metashim never overwrites it)"

_HINTS = {
    sqlite3.SQLITE_FULL: "free some space there; nothing was changed",
    sqlite3.SQLITE_BUSY: "another process holds it; is a second agent or an sqlite3 shell at work?",
    sqlite3.SQLITE_READONLY: "check the permissions of the file and its folder, and how the disk is mounted",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and that this user may use it",
    sqlite3.SQLITE_NOTADB: RESTORE,
    sqlite3.SQLITE_CORRUPT: RESTORE,
    sqlite3.SQLITE_IOERR: "check the disk: is there room on it, and what does the kernel's log say?",
}


class StoreFullError(StoreError):
    """There is no room for what was to be written."""


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


def examine(db: sqlite3.Connection, path: Path, check: str = "quick_check") -> None:
    """Read the whole file (100 MB: 0.1 to 0.25 s, and the disk's own time). Raises StoreError if it is broken,
    RESTORE its hint. `integrity_check` compares indexes with their tables too."""
    (found,) = db.execute(f"PRAGMA {check}(1)").fetchone()
    if found != "ok":
        words = found.replace("*** in database main ***", "").strip()
        raise StoreError(f"the store {path} is damaged: {words}", RESTORE)


def look_over(db: sqlite3.Connection, path: Path) -> None:
    """Whether a store of this schema has all that it must have. Raises StoreError."""
    model = sqlite3.connect(":memory:")
    try:
        for statement in TABLES:
            model.execute(statement)
        lacking = _columns(model) - _columns(db)
    finally:
        model.close()
    if lacking:
        raise StoreError(f"the store {path} is damaged: it has no {', '.join(sorted(lacking)[:3])}", RESTORE)
    if db.execute("SELECT count(*) FROM counter").fetchone() != (1,):
        raise StoreError(f"the store {path} is damaged: its counter is gone", RESTORE)


def _columns(db: sqlite3.Connection) -> set[str]:
    """All columns (`kv.key`), and all indexes that were made by name."""
    columns = db.execute("SELECT m.name || '.' || i.name FROM sqlite_master m, pragma_table_info(m.name) i")
    return {name for (name,) in columns}


def explain(path: Path, error: Exception) -> StoreError:
    """A StoreError for what SQLite or the system said, or for a row that makes no sense (ValueError)."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, of an extended one
        family = StoreFullError if code == sqlite3.SQLITE_FULL else StoreError
        return family(f"the store {path}: {error}", _HINTS.get(code, ""))
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFullError(f"the store {path}: {error.strerror}", _HINTS[sqlite3.SQLITE_FULL])
        return StoreError(f"the store {path}: {error.strerror}", _HINTS[sqlite3.SQLITE_CANTOPEN])
    return StoreError(f"the store {path} holds what this version cannot read: {error}", "upgrade metashim")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn failures of the store into StoreErrors."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise explain(path, error) from error
