"""A link as far as identity and enrolment care, and the place that tells it from every other on the host. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OWN_NETNS = ""
"""The agent's own network namespace, where others have the name that `ip netns` lists them by."""


class Place(NamedTuple):
    """Where a link is: its number is its namespace's own."""

    netns: str
    ifindex: int


@dataclass(frozen=True, slots=True)
class Link:
    """One link. `peer` is the id by which the link's namespace knows the one that its other end is in, where it has
    one there (IFLA_LINK_NETNSID)."""

    ifindex: int
    name: str
    alias: str | None = None
    up: bool = True
    netns: str = OWN_NETNS
    peer: int | None = None

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.netns, self.ifindex)
