"""The store as a worker reads it: what is known of an instance now, and what changed since it was last looked at.

Documents and sources are kept until they change, within bounds: when one source of the host's is written, hundreds of
instances are looked at again at once, and all else of theirs is as it was.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from shim.core.instance import parse_instance
from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import Reads, Scope, Source, scopes_of
from shim.errors import StoreError
from shim.forward.fresh import Freshness
from shim.forward.identify import Entry
from shim.metadata.document import Document
from shim.metadata.reader import Reader
from shim.metadata.reads import CHANGES_KEPT
from shim.metadata.view import View

logger = logging.getLogger("shim.catalog")

INSTANCE = "instance:"
"""What the scope of one instance alone begins with."""

NOTHING: frozenset[str] = frozenset()
ALL: frozenset[str] = frozenset({"*"})
"""Scopes that changed where the store does not say which: it is another file, or this is the first look."""

KEPT_BYTES = 4 << 20
"""Of documents, and as much of sources."""

_OVERHEAD = 1_000  # bytes that a document or a scope takes in memory beside its text

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """What was read before, within `most` bytes; who has not been asked for longest goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: K) -> V | None:
        """What is kept under a key."""
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def keep(self, key: K, value: V, size: int) -> V:
        """Keep it, if there is room at all; the value."""
        cost = size + _OVERHEAD
        self.drop(key)
        if cost <= self._most:
            self._held[key] = (value, cost)
            self.bytes += cost
            while self.bytes > self._most:
                self.drop(next(iter(self._held)))
        return value

    def drop(self, key: K) -> None:
        """Forget one."""
        found = self._held.pop(key, None)
        if found is not None:
            self.bytes -= found[1]

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
        self.bytes = 0


class Catalog:
    """`composition` is the host's; `limit` the bytes of user-data that a guest may be given. Whatever reads raises
    StoreError where the store cannot be read."""

    def __init__(
        self, reader: Reader, composition: str, limit: int, now: Callable[[], float] = time.time
    ) -> None:
        self._reader = reader
        self._composition = Composition(composition)
        self._limit = limit
        self._now = now
        self._freshness = Freshness(reader.version)
        self._is_behind = False  # it changed, and it is not yet known what
        self.is_old = self._freshness.is_due
        """Whether it is time to look for news: every request asks."""
        self._file: object = None
        self._revision = -1
        self._news = NOTHING
        self._documents: Kept[UUID, Document] = Kept(KEPT_BYTES)
        self._sources: Kept[str, list[Source]] = Kept(KEPT_BYTES)

    def news(self) -> frozenset[str]:
        """The scopes (Scope.text) that changed since this was last asked."""
        self._look()
        news, self._news = self._news, NOTHING
        return news

    def doubt(self) -> None:
        """Look at the store the next time: somebody says that it has changed."""
        self._freshness.doubt()

    def _look(self) -> None:
        self._is_behind |= self._freshness.is_over()
        if not self._is_behind:
            return
        revision, scopes = self._reader.changes(self._revision)
        file = _file_of(self._freshness.version)
        known = self._revision >= 0 and file == self._file and 0 <= revision - self._revision < CHANGES_KEPT
        scopes = scopes if known else ALL
        self._file, self._revision, self._is_behind = file, revision, False
        self._forget(scopes)
        self._news |= scopes

    def _forget(self, scopes: frozenset[str]) -> None:
        if scopes is ALL:
            self._documents.clear()
            self._sources.clear()
        for scope in scopes:
            self._sources.drop(scope)
            if scope.startswith(INSTANCE):
                self._documents.drop(parse_instance(scope.removeprefix(INSTANCE)))

    def document(self, instance: UUID) -> Document:
        """An instance's document; an empty one where there is none."""
        try:
            self._look()
            kept = self._documents.get(instance)
            if kept is not None:
                return kept
            _, document = self._reader.document(instance)
        except StoreError as error:
            logger.error("%s", error)
            raise
        document = document or Document()
        return self._documents.keep(instance, document, _size_of(document))

    def view(self, entry: Entry) -> View:
        """All that is known of an instance."""
        instance, policy = entry.instance, entry.policy
        document = self.document(instance).completed(entry.name, entry.flavor)
        return View(
            instance,
            document,
            now=self._now(),
            project=entry.project,
            load_sources=lambda: self._sources_for(entry, document),
            load_values=lambda: self._values(instance),
            closed=policy.closed,
            composition=policy.composition or self._composition,
            limit=self._limit,
        )

    def _values(self, instance: UUID) -> dict[str, Value]:
        return self._reader.values(instance)

    def _sources_for(self, entry: Entry, document: Document) -> list[Source]:
        project = entry.project or document.project_id or ""
        scopes = _scopes(entry.instance.int, project, document.image_id or "", tuple(document.tags.items()))
        found = [source for scope in scopes for source in self._of_scope(scope)]
        if all(source.reads is Reads.MANY for source in found):
            return found
        return self._reader.sources_for(scopes, entry.instance)  # without those that it has used up

    def _of_scope(self, scope: Scope) -> list[Source]:
        kept = self._sources.get(scope.text)
        if kept is not None:
            return kept
        found = self._reader.sources_for([scope])
        return self._sources.keep(scope.text, found, sum(len(one.body) + _OVERHEAD for one in found))


@lru_cache(2048)
def _scopes(instance: int, project: str, image: str, tags: tuple[tuple[str, str], ...]) -> tuple[Scope, ...]:
    return scopes_of(UUID(int=instance), project, image, dict(tags))


def _size_of(document: Document) -> int:
    """Bytes that a document takes in memory, about. What vendor data is, is many small objects."""
    vendor = sum(len(msgspec.json.encode(one)) for one in (document.vendor_data, document.vendor_data2))
    return 2 * len(msgspec.json.encode(document)) + 6 * vendor


def _file_of(version: object) -> object:
    """What of the reader's version tells that it is another file, or one that was opened anew."""
    return version[0] if isinstance(version, tuple) and len(version) == 2 else version
