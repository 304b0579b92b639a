"""Whose a request is, as a backend is told: from the identity source, and where that is silent from the document."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from uuid import UUID

from shim.core.exchange import Subject
from shim.errors import StoreError
from shim.forward.fresh import Freshness
from shim.forward.identify import Entry

MOST = 16_384  # instances remembered at a time


class Subjects:
    """`documented` reads what an instance's document says of it; it may raise StoreError, as `version` may."""

    def __init__(self, version: Callable[[], Hashable], documented: Callable[[UUID], Subject]) -> None:
        self._freshness = Freshness(version)
        self._documented = documented
        self._known: dict[UUID, Subject] = {}

    def of(self, entry: Entry) -> Subject:
        """The subject of an entry's requests. What cannot be read is left empty."""
        if entry.project and entry.address:
            return Subject(entry.instance, entry.project, entry.address)
        try:
            said = self._read(entry.instance)
        except StoreError:
            return Subject(entry.instance, entry.project, entry.address)
        if not entry.project and not entry.address:
            return said
        return Subject(entry.instance, entry.project or said.project, entry.address or said.address)

    def _read(self, instance: UUID) -> Subject:
        if self._freshness.is_over() or len(self._known) >= MOST:
            self._known.clear()
        said = self._known.get(instance)
        if said is None:
            said = self._known[instance] = self._documented(instance)
        return said
