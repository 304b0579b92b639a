"""The name of a network namespace as the origin of identity: `ip netns add guest-<uuid>`.

It names the instance behind a veth of the agent's own namespace whose other end is in there, and behind taps that lie
in there themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from fnmatch import fnmatchcase
from uuid import UUID

from shim.core.exchange import Subject
from shim.core.instance import parse_instance
from shim.core.link import OWN_NETNS, Link


class NetnsName:
    """`prefix` is what stands before the uuid in a name; `taps` are patterns of the taps within a namespace.

    `name_of` tells the name of the namespace that a veth's other end is in by its number, `changes` when any may have
    become another's.
    """

    name = "netns"
    known = True

    def __init__(
        self,
        prefix: str,
        taps: tuple[str, ...],
        name_of: Callable[[int], str | None],
        changes: Callable[[], AsyncIterator[None]],
    ) -> None:
        self._prefix = prefix
        self._taps = taps
        self._name_of = name_of
        self._changes = changes
        self._changed = False

    def subject_of(self, link: Link) -> Subject | None:
        """The instance that the namespace is named after."""
        if link.netns != OWN_NETNS:
            is_tap = any(fnmatchcase(link.name, pattern) for pattern in self._taps)
            instance = self._instance(link.netns) if is_tap else None
        else:
            instance = self._instance(self._name_of(link.peer)) if link.peer is not None else None
        return Subject(instance) if instance else None

    def _instance(self, netns: str | None) -> UUID | None:
        if netns is None or not netns.startswith(self._prefix):
            return None
        try:
            return parse_instance(netns.removeprefix(self._prefix))
        except ValueError:
            return None

    def namespaces(self) -> frozenset[str]:
        """None: which are entered is a matter of `datapath.namespaces`."""
        return frozenset()

    def health(self) -> str | None:
        """Always well."""
        return None

    def refresh(self) -> bool:
        """Names are looked up as they are asked for."""
        changed, self._changed = self._changed, False
        return changed

    async def watch(self, changed: Callable[[], None]) -> None:
        """The kernel tells of every mount."""
        async for _ in self._changes():
            self._changed = True
            changed()
