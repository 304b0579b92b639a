"""The link's alias as the origin of identity: `ip link set tap1 alias metashim:<uuid>`.

Others use aliases too, so the mark may be one of several words; two different marks are none.
"""

from __future__ import annotations

from uuid import UUID

from shim.core.instance import parse_instance

MARK = "metashim:"


class Alias:
    """Knows only what the kernel reports of the link (IFLA_IFALIAS), so there is nothing to refresh."""

    name = "alias"

    def instance_of(self, netns: str, tap: str, alias: str | None) -> UUID | None:
        """The instance that the alias names."""
        words = {word.removeprefix(MARK) for word in (alias or "").split() if word.startswith(MARK)}
        try:
            found = {parse_instance(word) for word in words}
        except ValueError:
            return None
        return found.pop() if len(found) == 1 else None

    def health(self) -> str | None:
        """Always well."""
        return None

    def refresh(self) -> bool:
        """Never changes by itself: a new alias is a netlink event."""
        return False
