"""What is taken over from a store when a backup is put in its place: as much as can be read of it, damaged or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from shim.core.closure import parse_prefix
from shim.core.source import Source
from shim.metadata.reads import SOURCE, source_of
from shim.metadata.schema import APPLICATION_ID, explain, pragma

Row = tuple[Any, ...]

_SPENT = """SELECT s.instance, t.scope, t.name, s.revision, s.at FROM spent s JOIN sources t ON t.revision = s.revision
    UNION ALL SELECT s.instance, '', t.key, s.revision, s.at FROM spent s
    JOIN kv t ON t.revision = s.revision AND t.instance = s.instance"""
_FILES = f"""SELECT {SOURCE} FROM sources WHERE origin = 'directory'
    AND EXISTS (SELECT 1 FROM spent s WHERE s.revision = sources.revision)"""
_AUDIT = """SELECT seq, at || who || coalesce(instance, '') || what || detail, at, who, instance, what, detail
    FROM audit WHERE seq < (1 << 60) ORDER BY seq"""
_ONCE = """SELECT '', scope, name, revision FROM sources WHERE reads <> 'many'
    UNION ALL SELECT instance, '', key, revision FROM kv WHERE reads <> 'many'"""


class Spent(NamedTuple):
    """That an instance used up a source (`scope`), or a key of its own (empty) called `name`."""

    instance: str
    scope: str
    name: str
    revision: int
    at: float


@dataclass(slots=True)
class Former:
    """Rows as the tables have them. `last` is the last revision, None where it cannot be read; `once` are the sources
    and keys that can be read only once; `files` the watched folder's of which somebody used one up; `lost` says what
    could not be read."""

    exists: bool = False
    last: int | None = None
    latches: list[Row] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    reports: list[Row] = field(default_factory=list)
    audit: list[Row] = field(default_factory=list)
    once: set[Row] = field(default_factory=set)
    files: list[Source] = field(default_factory=list)
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Former:
        """What can be read of a store. Raises nothing for one that is not there, or damaged."""
        former = cls(exists=path.exists())
        if not former.exists or path.stat().st_size == 0:
            return cls()
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)) as db:
                former._take_all(db, path)
        except sqlite3.Error as error:
            former._miss("all of it", path, error)
        return former

    def _take_all(self, db: sqlite3.Connection, path: Path) -> None:
        if pragma(db, "application_id") != APPLICATION_ID:
            self.lost = (f"{path} is another program's database",)
            return

        def take(what: str, statement: str, take: Callable[[Row], None]) -> None:
            try:
                for row in db.execute(statement):
                    take(row)
            except (sqlite3.Error, ValueError, TypeError) as error:
                self._miss(what, path, error)

        take("the last revision", "SELECT last FROM counter", self._take_last)
        if pragma(db, "user_version") < 3:
            return
        take("what guests locked", "SELECT instance, prefix, at FROM latches", self._take_latch)
        take("what was used up", _SPENT, lambda row: self.spent.append(Spent(str(UUID(row[0])), *row[1:])))
        take("what was used up", _ONCE, self.once.add)
        take("what was used up", _FILES, lambda row: self.files.append(source_of(row)))
        take("what guests reported", "SELECT instance, kind, at FROM reports", self._take_report)
        take("the audit trail", _AUDIT, self._take_audit)

    def _miss(self, what: str, path: Path, error: Exception) -> None:
        words = str(error) if not isinstance(error, sqlite3.Error) else str(explain(path, error))
        self.lost = (*self.lost, f"{what}: {words}")

    def _take_last(self, row: Row) -> None:
        if not 0 <= int(row[0]) < 1 << 60:
            raise ValueError("it is out of all bounds")
        self.last = int(row[0])

    def _take_latch(self, row: Row) -> None:
        instance, prefix, at = row
        if parse_prefix(prefix) != prefix:
            raise ValueError("a prefix is none")
        self.latches.append((str(UUID(instance)), prefix, float(at)))

    def _take_report(self, row: Row) -> None:
        instance, kind, at = row
        self.reports.append((str(UUID(instance)), str(kind), float(at)))

    def _take_audit(self, row: Row) -> None:
        if row[4] is not None:
            UUID(row[4])
        self.audit.append(row)
