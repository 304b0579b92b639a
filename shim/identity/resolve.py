"""Which instance is behind a tap: ordered sources, the first that knows wins. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


class Source(Protocol):
    """One origin of the mapping from (namespace, tap) to instance. `netns` is empty for the agent's own."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    def instance_of(self, netns: str, tap: str, alias: str | None) -> UUID | None:
        """The instance behind a tap as of the last refresh, None when not known here. Never raises."""

    def health(self) -> str | None:
        """What is wrong with this source and what to do, or None when it is well."""

    def refresh(self) -> bool:
        """Read the origin again; True when any answer may have changed. Never raises: see `health`."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the sources say of one tap. `others` are later sources that name another instance."""

    instance: UUID | None = None
    source: str = ""
    others: tuple[tuple[str, UUID], ...] = ()

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
        """The instance behind a tap, who said so, and who says otherwise."""
        claims = [(s.name, found) for s in self._sources if (found := s.instance_of(netns, tap, alias))]
        if not claims:
            return Resolution()
        source, instance = claims[0]
        return Resolution(instance, source, tuple(c for c in claims[1:] if c[1] != instance))

    def refresh(self) -> bool:
        """Refresh every source; True when any may answer otherwise than before."""
        changed = [source.refresh() for source in self._sources]
        return any(changed)

    def health(self) -> dict[str, str]:
        """What is wrong, by source; empty when all are well."""
        return {s.name: what for s in self._sources if (what := s.health())}
