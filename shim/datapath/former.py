"""Records of maps as earlier versions of the ABI had them, and what they are today. PURE.

A version that changes a record says so in abi.maps (`since`), and puts here what it was before. What is neither
unchanged nor here cannot be carried over, and the new version begins anew: see pins.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Former:
    """A value as it was from version `since` on: how long, and what it is today."""

    since: int
    value_bytes: int
    translate: Callable[[bytes], bytes]


def _port_1(raw: bytes) -> bytes:
    """Before a port could be traced: what there was lies where it lay."""
    return raw + bytes(4)


RECORDS: Mapping[str, Sequence[Former]] = {"ports": (Former(1, 28, _port_1),)}
"""By map, oldest first. Keys never change, or the map is another one."""

RENEWED = frozenset({"settings", "events", "tracings", "traces"})
"""What an agent writes anew as it starts, or may lose: these need no translation."""


def record_of(name: str, version: int, records: Mapping[str, Sequence[Former]]) -> Former | None:
    """What a map's value was in a version, before it became today's; None: that is not known, or there was none."""
    known = [one for one in records.get(name, ()) if one.since <= version]
    return known[-1] if known else None
