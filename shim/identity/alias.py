"""The link's alias as the origin of identity: `ip link set tap1 alias metashim:<uuid>`, or `metashim:<uuid>/<project>`.

Others use aliases too, so the mark may be one of several words; two different marks are none.
"""

from __future__ import annotations

from collections.abc import Callable

from shim.core.exchange import Subject
from shim.core.instance import parse_instance
from shim.core.link import Link
from shim.core.names import parse_project

MARK = "metashim:"


class Alias:
    """Knows only what the kernel reports of the link (IFLA_IFALIAS), so there is nothing to refresh."""

    name = "alias"
    known = True

    def subject_of(self, link: Link) -> Subject | None:
        """The instance, and its project if any, that the alias names."""
        words = {word.removeprefix(MARK) for word in (link.alias or "").split() if word.startswith(MARK)}
        try:
            found = {_parse(word) for word in words}
        except ValueError:
            return None
        return found.pop() if len(found) == 1 else None

    def health(self) -> str | None:
        """Always well."""
        return None

    def refresh(self) -> bool:
        """Never changes by itself: a new alias is a netlink event."""
        return False

    def namespaces(self) -> frozenset[str]:
        """None."""
        return frozenset()

    async def watch(self, changed: Callable[[], None]) -> None:
        """There is nothing that the links' own events do not tell."""


def _parse(text: str) -> Subject:
    """What follows the mark. Raises ValueError."""
    instance, slash, project = text.partition("/")
    if slash and not project:
        raise ValueError("no project after the slash")
    return Subject(parse_instance(instance), parse_project(project))
