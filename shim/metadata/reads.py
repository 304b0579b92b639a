"""What the agent and the workers both read of a store, in the same words of SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from shim.core.kv import Value
from shim.core.source import HOST, Kind, Reads, Scope, Source, parse_scope
from shim.errors import InputError, StoreError
from shim.metadata.document import Document, restore
from shim.metadata.schema import explained

Row = tuple[Any, ...]

CHANGES_KEPT = 16_384
"""So many revisions back it is known which scopes were written: some megabytes, however many instances come and go."""

SOURCE = "scope, name, body, kind, owner, place, merge, template, reads, until, origin, revision, changed"
"""The columns that `source_of` takes."""

_NOT_SPENT = "NOT EXISTS (SELECT 1 FROM spent s WHERE s.instance = ? AND s.revision = {table}.revision)"
_SOURCES_FOR = f"SELECT {SOURCE} FROM sources WHERE scope IN ({{marks}}) AND {_NOT_SPENT.format(table='sources')}"

LIVE = """(until IS NULL OR until > :now) AND NOT EXISTS
    (SELECT 1 FROM spent s WHERE s.instance = kv.instance AND s.revision = kv.revision)"""
"""Of a row of kv: whether it can be read at `now`. What cannot is as if it were not there."""

_VALUE = "SELECT key, body, reads, until, revision, changed FROM kv WHERE instance = :instance"
_VALUES = f"{_VALUE} AND key >= :prefix AND substr(key, 1, length(:prefix)) = :prefix AND {LIVE}"
_ONE_VALUE = f"{_VALUE} AND key = :key AND {LIVE}"

# One statement, so that both are of one moment.
_CHANGES = """SELECT max(last), max(beginning), NULL FROM counter
    UNION ALL SELECT NULL, NULL, scope FROM changes WHERE revision > ?"""

_scope = lru_cache(4096)(parse_scope)


class Reading:
    """To be read from, by whoever has `_read`: rows of a statement and its values, or StoreError."""

    path: Path
    _clock: Callable[[], float]

    def _read(self, statement: str, values: Any = ()) -> list[Row]:
        raise NotImplementedError

    def body(self, instance: UUID) -> tuple[int, bytes | None]:
        """The document's revision and its JSON as written; (0, None) when there is none. Raises StoreError."""
        rows = self._read("SELECT revision, body FROM documents WHERE instance = ?", (str(instance),))
        return (rows[0][0], rows[0][1]) if rows else (0, None)

    def document(self, instance: UUID) -> tuple[int, Document | None]:
        """The document's revision and itself; (0, None) when there is none. Raises StoreError."""
        revision, body = self.body(instance)
        if body is None:
            return revision, None
        try:
            return revision, restore(body)
        except InputError as error:
            what = f"the store {self.path} holds a document that cannot be served: {error}"
            raise StoreError(what, error.hint) from error

    def changes(self, since: int) -> tuple[int, frozenset[str]]:
        """The last revision, and the scopes (Scope.text) that were written after the revision `since`.

        Where that is not known (`since` is long ago, or of another file) `host` is among them, which is all instances'.
        Raises StoreError.
        """
        rows = self._read(_CHANGES, (max(-1, min(since, 1 << 62)),))
        last, beginning, _ = next(row for row in rows if row[2] is None)
        scopes = {scope for _, _, scope in rows if scope is not None}
        if since > last or since < max(beginning, last - CHANGES_KEPT):
            scopes.add(HOST.text)
        return last, frozenset(scopes)

    def sources_for(self, scopes: Iterable[Scope], instance: UUID | None = None) -> list[Source]:
        """The sources of any of these scopes, in no order, without those that the instance has used up; expired ones
        may be among them. Raises StoreError."""
        texts = [scope.text for scope in scopes]
        statement = _SOURCES_FOR.format(marks=",".join("?" * len(texts)))
        rows = self._read(statement, (*texts, str(instance)))
        with explained(self.path):
            return [source_of(row) for row in rows]

    def values(self, instance: UUID, prefix: str = "") -> dict[str, Value]:
        """An instance's keys that begin with `prefix`, by name: those that can be read now. Raises StoreError."""
        if not prefix.isascii():  # no key has such a one, and SQLite does not take all of them
            return {}
        given = {"instance": str(instance), "prefix": prefix, "now": self._clock()}
        rows = self._read(_VALUES, given)
        with explained(self.path):
            return {row[0]: value_of(row) for row in rows}

    def value(self, instance: UUID, key: str) -> Value | None:
        """What a key holds, if it can be read now. Raises StoreError."""
        if not key.isascii():
            return None
        rows = self._read(_ONE_VALUE, {"instance": str(instance), "key": key, "now": self._clock()})
        with explained(self.path):
            return value_of(rows[0]) if rows else None


def source_of(row: Row) -> Source:
    """A stored source, of a row of SOURCE. Raises ValueError if it makes no sense here."""
    scope, name, body, kind, owner, place, merge, template, reads, until, origin, revision, changed = row
    return Source(
        _scope(scope), name, _bytes(body), Kind(kind), owner, place, merge, bool(template), Reads(reads), until, origin,
        revision, changed,
    )  # fmt: skip


def value_of(row: Row) -> Value:
    """A stored value, of a row of key, body, reads, until, revision and changed. Raises ValueError as `source_of`."""
    key, body, reads, until, revision, changed = row
    return Value(key, _bytes(body), Reads(reads), until, revision, changed)


def _bytes(body: object) -> bytes:
    if not isinstance(body, bytes):
        raise ValueError("a body is not bytes")
    return body
