"""Who is behind a tap: ordered sources, the first that knows wins. PURE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from shim.core.exchange import Subject
from shim.core.link import Link


class Source(Protocol):
    """One origin of the mapping from (namespace, tap) to instances.

    What it watches only wakes whoever asks: `refresh` takes over what is new.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""

    @property
    def known(self) -> bool:
        """Whether it could be read since this run began: before that, its silence says nothing."""

    def subject_of(self, link: Link) -> Subject | None:
        """Who is behind a tap as of the last refresh, None when not known here. Never raises."""

    def namespaces(self) -> frozenset[str]:
        """The other network namespaces in which it names taps one by one."""

    def health(self) -> str | None:
        """What is wrong with this source and what to do, or None when it is well."""

    def refresh(self) -> bool:
        """Takes over what is new, without waiting; True when any answer may have changed. Never raises."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Calls `changed` whenever a refresh is worth it, until cancelled. Returns at once when it never is."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the sources say of one tap. `others` are later sources that name another instance.

    `project` to `mac` are as the source says that wins, empty where that one says none. `rank` is that source's place
    in the order. `waits` is an earlier source that has not been read yet: it may say otherwise, so nobody wins.
    `elsewhere` says in words why nobody is behind this tap though a source names one: the instance is on another tap.
    """

    instance: UUID | None = None
    source: str = ""
    others: tuple[tuple[str, UUID], ...] = ()
    project: str = ""
    address: str = ""
    name: str = ""
    flavor: str = ""
    port: str = ""
    mac: str = ""
    rank: int = 0
    waits: str = ""
    elsewhere: str = ""

    @property
    def conflict(self) -> str:
        """The disagreement in words, or nothing."""
        if self.elsewhere:
            return self.elsewhere
        if self.waits:
            return f"{self.waits} could not be read since the agent started: what it knows of this tap is waited for"
        claims = ", ".join(f"{name} says {instance}" for name, instance in self.others)
        return f"{self.source} says {self.instance} and wins; {claims}" if claims else ""


class Resolver:
    """Asks the sources in the configured order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)

    @property
    def known(self) -> bool:
        """Whether every source could be read."""
        return all(source.known for source in self.sources)

    def resolve(self, link: Link) -> Resolution:
        """Who is behind a tap, which source said so, and which say otherwise."""
        claims: list[tuple[int, str, Subject]] = []
        for rank, source in enumerate(self.sources):
            found = source.subject_of(link)
            if found is not None:
                claims.append((rank, source.name, found))
            elif not claims and not source.known:
                return Resolution(waits=source.name)
        if not claims:
            return Resolution()
        rank, name, won = claims[0]
        others = tuple((other, claim.instance) for _, other, claim in claims[1:] if claim.instance != won.instance)
        return Resolution(
            won.instance, name, others, won.project, won.address, won.name, won.flavor, won.port, won.mac, rank
        )

    def namespaces(self) -> frozenset[str]:
        """The other network namespaces in which any source names taps."""
        return frozenset().union(*(source.namespaces() for source in self.sources))

    def refresh(self) -> bool:
        """Refresh every source; True when any may answer otherwise than before."""
        changed = [source.refresh() for source in self.sources]
        return any(changed)

    def health(self) -> dict[str, str]:
        """What is wrong, by source; empty when all are well."""
        return {s.name: what for s in self.sources if (what := s.health())}
