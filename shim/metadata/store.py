"""The agent's side of the store: documents, policies and attachments in one SQLite file.

The write-ahead log lets the unprivileged proxy read (see reader.py) without ever waiting for a writer, and
leaves the last committed state behind a `kill -9` at any moment; FULL synchronous keeps it over a power cut.
One Store is for one thread. Failures are StoreErrors, after which nothing is half done.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from shim.core.policy import Access, Policy, Routes, Tokens
from shim.errors import ConflictError, InputError, StoreError
from shim.metadata.document import Document, decode, restore
from shim.metadata.schema import SCHEMA, TABLES, bring_along, explained, is_fresh, pragma

BUSY_SECONDS = 2.0
"""How long a write waits for another process's. The agent is alone, so this is for an operator's sqlite3."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a document was written: its revision, and the time in seconds since the epoch."""

    revision: int
    changed: float


class Store:
    """A store, made if it is not there: file mode 0640 (a new folder's 0750), group `gid` if given.

    Raises StoreError if the file is not a store, is a newer one, or cannot be used.
    """

    def __init__(self, path: Path, gid: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._attached: dict[tuple[str, str], UUID] = {}
        self._attached_as_of: tuple[int, int] | None = None
        with explained(path):
            _create(path, gid)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with explained(path):
                self._set_up(gid)
        except BaseException:
            self._db.close()
            raise

    def _set_up(self, gid: int | None) -> None:
        fresh = is_fresh(self._db, self.path)
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
        _share(self.path, gid)

    def close(self) -> None:
        """End the use of the file. Readers go on."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all writes inside one: all of them or, if the block raises, none.

        For "apply to the kernel, then commit": write first inside the block, so that what the store would
        refuse is refused before the kernel is touched. A StoreError from the block's end (the commit)
        says that the store has the old state while the kernel has the new one.
        """
        if self._db.in_transaction:
            yield
            return
        with explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            with explained(self.path):
                self._db.execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        if self._db.in_transaction:  # a full disk may have ended it already
            self._db.execute("ROLLBACK")

    def put_document(self, instance: UUID, raw: bytes) -> int:
        """Keep an instance's document (JSON); its new revision. Raises InputError for a wrong one."""
        decode(raw)
        with self.transaction(), explained(self.path):
            (revision,) = self._rows("UPDATE counter SET last = last + 1 RETURNING last")[0]
            self._db.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)",
                (str(instance), raw, revision, self._clock()),
            )
        return int(revision)

    def body(self, instance: UUID) -> tuple[int, bytes | None]:
        """The document's revision and its JSON as written; (0, None) when there is none."""
        with explained(self.path):
            rows = self._rows("SELECT revision, body FROM documents WHERE instance = ?", str(instance))
        return (rows[0][0], rows[0][1]) if rows else (0, None)

    def document(self, instance: UUID) -> tuple[int, Document | None]:
        """The document's revision and itself; (0, None) when there is none."""
        return parsed(self.path, *self.body(instance))

    def documents(self) -> dict[UUID, Stamp]:
        """Which instances have a document, and since when."""
        with explained(self.path):
            rows = self._rows("SELECT instance, revision, changed FROM documents")
            return {UUID(instance): Stamp(revision, changed) for instance, revision, changed in rows}

    def delete_document(self, instance: UUID) -> bool:
        """Forget a document; whether there was one."""
        return self._delete("DELETE FROM documents WHERE instance = ?", str(instance))

    def instances(self) -> frozenset[UUID]:
        """All instances that anything is kept of."""
        tables = ("documents", "policies", "attachments")
        with explained(self.path):
            rows = self._rows(" UNION ".join(f"SELECT instance FROM {table}" for table in tables))
            return frozenset(UUID(instance) for (instance,) in rows)

    def put_policy(self, instance: UUID, policy: Policy) -> None:
        """Keep an instance's policy."""
        tokens = policy.tokens.value if policy.tokens else None
        routes = json.dumps(dict(policy.routes)) if policy.routes is not None else None
        with self.transaction(), explained(self.path):
            self._db.execute(
                "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?, ?)",
                (str(instance), policy.v4.value, policy.v6.value, policy.hop_limit, tokens, routes),
            )

    def policies(self) -> dict[UUID, Policy]:
        """The policies of the instances that have one of their own."""
        with explained(self.path):
            rows = self._rows("SELECT instance, v4, v6, hop_limit, tokens, routes FROM policies")
            return {UUID(instance): _policy(*row) for instance, *row in rows}

    def delete_policy(self, instance: UUID) -> bool:
        """Let the default policy hold again; whether there was another."""
        return self._delete("DELETE FROM policies WHERE instance = ?", str(instance))

    def attach(self, netns: str, tap: str, instance: UUID) -> None:
        """Say whose a tap is. Raises ConflictError if it is said to be another instance's."""
        with self.transaction():
            owner = self.attachments().get((netns, tap), instance)
            if owner != instance:
                raise ConflictError(f"{tap} is attached to {owner}", f"`metashim detach {tap}` first")
            with explained(self.path):
                self._db.execute(
                    "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?)", (netns, tap, str(instance))
                )

    def detach(self, netns: str, tap: str) -> bool:
        """Take back an attach; whether there was one."""
        return self._delete("DELETE FROM attachments WHERE netns = ? AND tap = ?", netns, tap)

    def attachments(self) -> Mapping[tuple[str, str], UUID]:
        """(namespace, tap) → instance; not to be changed. Asked for at every change of a link, so it is read again
        only after a write: `data_version` tells of others', `total_changes` of our own."""
        with explained(self.path):
            written = self._rows("PRAGMA data_version")[0][0], self._db.total_changes
            if written != self._attached_as_of or self._db.in_transaction:  # which may yet be taken back
                rows = self._rows("SELECT netns, tap, instance FROM attachments")
                self._attached = {(netns, tap): UUID(instance) for netns, tap, instance in rows}
                self._attached_as_of = None if self._db.in_transaction else written
            return self._attached

    def _rows(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        return self._db.execute(statement, values).fetchall()

    def _delete(self, statement: str, *values: str) -> bool:
        with self.transaction(), explained(self.path):
            return self._db.execute(statement, values).rowcount > 0


def _policy(v4: str, v6: str, hop_limit: int, tokens: str | None, routes: str | None) -> Policy:
    """A stored policy. Raises ValueError if it makes no sense here."""
    return Policy(Access(v4), Access(v6), hop_limit, Tokens(tokens) if tokens else None, _routes(routes))


def _routes(raw: str | None) -> Routes | None:
    found = json.loads(raw) if raw is not None else None
    if found is not None and not (isinstance(found, dict) and all(isinstance(each, str) for each in found.values())):
        raise ValueError(f"{raw!r} are not routes")
    return tuple(found.items()) if found is not None else None


def parsed(path: Path, revision: int, body: bytes | None) -> tuple[int, Document | None]:
    """A stored document. Raises StoreError if it makes no sense here: a newer metashim wrote it."""
    if body is None:
        return revision, None
    try:
        return revision, restore(body)
    except InputError as error:
        what = f"the store {path} holds a document that cannot be served: {error}"
        raise StoreError(what, error.hint) from error


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
