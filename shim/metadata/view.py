"""What a face is rendered from: all that is known of one instance at one moment. PURE.

Sources and keys are loaded when they are first looked at, as most requests look at neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from math import inf
from uuid import UUID

from shim.core.closure import is_closed, prefixes
from shim.core.exchange import Rendered
from shim.core.kv import Value
from shim.core.policy import Composition
from shim.core.source import Source, in_order
from shim.metadata.document import Document

__all__ = ["Rendered", "View"]


class View:
    """One instance as of `now` (Unix seconds).

    load_sources  all sources of the instance's scopes that were not used up, in any order; expired ones may be among
                  them. The document's own user-data and vendor data are not: see shim.metadata.compose
    load_values   its keys by name, those that were not used up
    closed        prefixes and topics that operators or the guest closed
    limit         bytes of user-data that the guest may be given
    """

    def __init__(
        self,
        instance: UUID,
        document: Document,
        *,
        now: float,
        project: str = "",
        load_sources: Callable[[], list[Source]] = list,
        load_values: Callable[[], dict[str, Value]] = dict,
        closed: tuple[str, ...] = (),
        composition: Composition = Composition.MERGED,
        limit: int = 49_149,
    ) -> None:
        self.instance = instance
        self.document = document
        self.now = now
        self.project = project or document.project_id or ""
        self.closed = prefixes(closed)
        self.composition = composition
        self.limit = limit
        self.until = inf
        """Until when what was looked at so far is true."""
        self._load_sources = load_sources
        self._load_values = load_values

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Those that can be read now, as they are composed."""
        return in_order(one for one in self._load_sources() if self._holds(one.until))

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """The keys that can be read now, by name."""
        return {key: one for key, one in sorted(self._load_values().items()) if self._holds(one.until)}

    def is_closed(self, folded: str) -> bool:
        """Whether a folded path is closed for the guest: no listing and no recursive answer may show it."""
        return bool(self.closed) and is_closed(folded, self.closed)

    def _holds(self, until: float | None) -> bool:
        if until is None:
            return True
        if until > self.now:
            self.until = min(self.until, until)
            return True
        return False
