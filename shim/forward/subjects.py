"""Whose a request is, as a backend is told: from the identity source, and where that is silent from the document."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from uuid import UUID

from shim.core.exchange import Subject
from shim.errors import StoreError
from shim.forward.fresh import Freshness
from shim.forward.identify import Entry


class Subjects:
    """`documented` reads what an instance's document says of it; it may raise StoreError, as `version` may.

    As long as nothing changes an entry has one and the same Subject, by which backends know it again.
    """

    def __init__(self, version: Callable[[], Hashable], documented: Callable[[UUID], Subject]) -> None:
        self._freshness = Freshness(version)
        self._documented = documented
        self._known: dict[int, tuple[Entry, Subject]] = {}  # by slot

    def of(self, entry: Entry) -> Subject:
        """The subject of an entry's requests. What cannot be read is left empty."""
        try:
            if not (entry.project and entry.address) and self._freshness.is_over():
                self._known.clear()
            known = self._known.get(entry.slot)
            if known is None or known[0] is not entry:
                known = self._known[entry.slot] = entry, self._completed(entry)
        except StoreError:
            return Subject(entry.instance, entry.project, entry.address)
        return known[1]

    def _completed(self, entry: Entry) -> Subject:
        if entry.project and entry.address:
            return Subject(entry.instance, entry.project, entry.address)
        said = self._documented(entry.instance)
        return Subject(entry.instance, entry.project or said.project, entry.address or said.address)
