"""An instance: a guest by its uuid, and how operators may spell that. PURE."""

from __future__ import annotations

from uuid import UUID


def parse_instance(text: str) -> UUID:
    """The uuid that an operator or a source wrote, with dashes or without, in any case.

    Raises ValueError for anything else (urn: prefixes and braces, which UUID() lets pass, among it).
    """
    plain = text.strip().lower()
    if len(plain) in (32, 36) and not plain.startswith(("urn:", "{")):
        try:
            return UUID(plain)
        except ValueError:
            pass
    raise ValueError(
        f"{text!r} is not an instance id: write its uuid, as in 6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"
    )
