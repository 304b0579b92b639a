"""The operator's own `attach` as the origin of identity, read from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from shim.core.exchange import Subject
from shim.core.link import OWN_NETNS, Link
from shim.errors import StoreError

Attachments = Mapping[tuple[str, str], UUID]
"""(namespace, tap) → instance; the namespace is empty for the agent's own."""


class Operator:
    """Asks `read` for the attachments; while the store is unwell the last ones hold."""

    name = "operator"
    known = True

    def __init__(self, read: Callable[[], Attachments]) -> None:
        self._read = read
        self._known: Attachments = {}
        self._error: StoreError | None = None

    def subject_of(self, link: Link) -> Subject | None:
        """The instance that an operator attached."""
        instance = self._known.get((link.netns, link.name))
        return Subject(instance) if instance else None

    def health(self) -> str | None:
        """The store's error, or None."""
        return str(self._error) if self._error else None

    def refresh(self) -> bool:
        """Read the attachments again."""
        try:
            now = dict(self._read())
        except StoreError as error:
            self._error = error
            return False
        self._error, before, self._known = None, self._known, now
        return now != before

    def namespaces(self) -> frozenset[str]:
        """Those with a tap that an operator attached."""
        return frozenset(netns for netns, _ in self._known if netns != OWN_NETNS)

    async def watch(self, changed: Callable[[], None]) -> None:
        """There is nothing to watch: who attaches has it refreshed."""
