"""Which taps an instance is claimed for, and by how good a source: see `Claims`. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from shim.core.link import Place


@dataclass
class Claims:
    """Who says which tap is whose. A source's rank is its place in the configured order; 0 is the first.

    An instance may have any number of taps, as guests have several interfaces; but of its taps only those count that
    its best source names. What a later source says of another tap is a disagreement about where the instance is.
    """

    _ranks: dict[UUID, dict[Place, int]] = field(default_factory=dict)
    _of: dict[Place, UUID] = field(default_factory=dict)

    def put(self, place: Place, instance: UUID | None, rank: int) -> set[Place]:
        """The tap is that instance's now, or nobody's: the other taps whose standing this may have changed."""
        former = self._of.get(place)
        disturbed = self._take(place, former) if former not in (None, instance) else set()
        if instance is None:
            return disturbed
        ranks = self._ranks.setdefault(instance, {})
        before = min(ranks.values(), default=rank)
        ranks[place] = rank
        self._of[place] = instance
        if min(ranks.values()) != before:
            disturbed |= ranks.keys() - {place}
        return disturbed

    def _take(self, place: Place, instance: UUID | None) -> set[Place]:
        if instance is None:
            return set()
        del self._of[place]
        ranks = self._ranks[instance]
        rank = ranks.pop(place)
        if not ranks:
            del self._ranks[instance]
        return set(ranks) if ranks and min(ranks.values()) > rank else set()

    def better(self, place: Place) -> Place | None:
        """Another tap of the same instance which a better source names, if there is one: then this one does not
        count."""
        instance = self._of.get(place)
        if instance is None:
            return None
        ranks = self._ranks[instance]
        best = min(ranks, key=lambda other: (ranks[other], other))
        return best if ranks[best] < ranks[place] else None
