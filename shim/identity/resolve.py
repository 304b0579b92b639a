"""Who is behind a tap: ordered sources, the first that knows wins. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from shim.core.exchange import Subject


class Source(Protocol):
    """One origin of the mapping from (namespace, tap) to instances. `netns` is empty for the agent's own."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    def subject_of(self, netns: str, tap: str, alias: str | None) -> Subject | None:
        """Who is behind a tap as of the last refresh, None when not known here. Never raises."""

    def health(self) -> str | None:
        """What is wrong with this source and what to do, or None when it is well."""

    def refresh(self) -> bool:
        """Read the origin again; True when any answer may have changed. Never raises: see `health`."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the sources say of one tap. `others` are later sources that name another instance.

    `project` and `address` are as the source says that wins, empty where that one says none.
    """

    instance: UUID | None = None
    source: str = ""
    others: tuple[tuple[str, UUID], ...] = ()
    project: str = ""
    address: str = ""

    @property
    def conflict(self) -> str:
        """The disagreement in words, or nothing."""
        claims = ", ".join(f"{name} says {instance}" for name, instance in self.others)
        return f"{self.source} says {self.instance} and wins; {claims}" if claims else ""


class Resolver:
    """Asks the sources in the configured order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    def resolve(self, netns: str, tap: str, alias: str | None) -> Resolution:
        """Who is behind a tap, which source said so, and which say otherwise."""
        claims = [(s.name, found) for s in self._sources if (found := s.subject_of(netns, tap, alias))]
        if not claims:
            return Resolution()
        source, won = claims[0]
        others = tuple((name, claim.instance) for name, claim in claims[1:] if claim.instance != won.instance)
        return Resolution(won.instance, source, others, won.project, won.address)

    def refresh(self) -> bool:
        """Refresh every source; True when any may answer otherwise than before."""
        changed = [source.refresh() for source in self._sources]
        return any(changed)

    def health(self) -> dict[str, str]:
        """What is wrong, by source; empty when all are well."""
        return {s.name: what for s in self._sources if (what := s.health())}
