"""The store's sources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from shim.core.source import DOCUMENT, Scope, Source, parse_name, parse_scope
from shim.errors import InputError
from shim.metadata.reads import SOURCE, source_of
from shim.metadata.schema import explained
from shim.metadata.store_file import StoreFile

DIRECTORY = "directory"
UNTIL_MAX = 1e12
"""Seconds since the epoch, some thousands of years on: what is beyond, or is no number, is a mistake."""

_PUT = f"INSERT INTO sources ({SOURCE}) VALUES ({', '.join('?' * 13)})"


class Replaced(NamedTuple):
    """How many of the directory's sources were added, changed and removed, and those that were not taken, as an
    operator has one of that scope and name."""

    added: int
    changed: int
    removed: int
    held: list[Source]


class SourceStore(StoreFile):
    """See Store."""

    def put_source(self, source: Source) -> int:
        """Keep a source, in the place of another of its scope and name; its new revision. What was used up of that
        other one is forgotten: it is new. Raises InputError for one that cannot be."""
        _check(source)
        with self.transaction(), explained(self.path):
            self._drop(source.scope, source.name)
            revision = self._note(source.scope.text)
            self._write(
                _PUT, source.scope.text, source.name, source.body, source.kind.value, source.owner, source.order,
                source.merge, source.template, source.reads.value, source.until, source.origin, revision, self._clock(),
            )  # fmt: skip
        return revision

    def delete_source(self, scope: Scope, name: str) -> bool:
        """Forget a source; whether there was one."""
        with self.transaction(), explained(self.path):
            if not self._drop(scope, name):
                return False
            self._note(scope.text)
        return True

    def source(self, scope: Scope, name: str) -> Source | None:
        """One source, whether it can be read or not."""
        rows = self._read(f"SELECT {SOURCE} FROM sources WHERE scope = ? AND name = ?", (scope.text, name))
        with explained(self.path):
            return source_of(rows[0]) if rows else None

    def sources(self, scope: Scope | None = None) -> list[Source]:
        """All sources (of a scope), whether they can be read or not, by scope and name."""
        where, values = ("", ()) if scope is None else ("WHERE scope = ?", (scope.text,))
        rows = self._read(f"SELECT {SOURCE} FROM sources {where} ORDER BY scope, name", values)
        with explained(self.path):
            return [source_of(row) for row in rows]

    def replace_directory(self, sources: Iterable[Source]) -> Replaced:
        """Let these be all sources of origin `directory`. One that is as it was keeps its revision, and what was used
        up of it. Raises InputError for one that cannot be, or that is given twice; then nothing was changed."""
        wanted = _by_key(sources)
        with self.transaction():
            before = {(one.scope, one.name): one for one in self.sources()}
            ours = {key: one for key, one in before.items() if one.origin == DIRECTORY}
            held = [one for key, one in wanted.items() if key in before and key not in ours]
            added = [one for key, one in wanted.items() if key not in before]
            changed = [one for key, one in wanted.items() if key in ours and not _same(ours[key], one)]
            removed = [key for key in ours if key not in wanted]
            for scope, name in removed:
                self.delete_source(scope, name)
            for source in (*added, *changed):
                self.put_source(source)
        return Replaced(len(added), len(changed), len(removed), held)

    def _drop(self, scope: Scope, name: str) -> bool:
        given = scope.text, name
        rows = self._read("SELECT revision FROM sources WHERE scope = ? AND name = ?", given)
        if rows:
            self._write("DELETE FROM spent WHERE revision = ?", rows[0][0])
            self._write("DELETE FROM sources WHERE scope = ? AND name = ?", *given)
        return bool(rows)


def check_until(until: float | None) -> None:
    """Raises InputError for a time that cannot be kept."""
    if until is not None and not 0 <= until < UNTIL_MAX:
        raise InputError("the deadline is no time that can be", "write Unix seconds")


def _check(source: Source) -> None:
    """What is written here must be readable, or nobody in its scope is served."""
    try:
        if parse_scope(source.scope.text) != source.scope:
            raise ValueError(f"{source.scope.text!r} is no scope")
        parse_name(source.name)
        for text in (source.owner, source.merge, source.origin):
            text.encode()  # which half of a surrogate pair cannot be
    except ValueError as error:
        raise InputError(str(error), "see what a source is in docs/live.md") from None
    if source.scope.kind == "instance" and source.name == DOCUMENT:
        raise InputError(f"{DOCUMENT} is the name of the instance's own document", "give it another name")
    if not 0 <= source.order <= 999:
        raise InputError(f"the order {source.order} is not within 0 to 999", "give it one that is")
    check_until(source.until)


def _by_key(sources: Iterable[Source]) -> dict[tuple[Scope, str], Source]:
    found: dict[tuple[Scope, str], Source] = {}
    for source in sources:
        _check(source)
        key = source.scope, source.name
        if key in found:
            raise InputError(f"the source {source.name} of {source.scope.text} is given twice", "rename one of the two")
        found[key] = replace(source, origin=DIRECTORY)
    return found


def _same(before: Source, after: Source) -> bool:
    return replace(after, revision=before.revision, changed=before.changed) == before
