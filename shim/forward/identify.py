"""From the address that the kernel stamped to the instance that speaks. PURE.

A slot n is 100.64.0.0 + n over IPv4 and fd6d:7368:696d:: + n over IPv6 (shim's datapaths stamp them). Slot 0
is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from uuid import UUID

from shim.core.exchange import Caller
from shim.core.policy import Family, Policy

V4_BASE = int(IPv4Address("100.64.0.0"))
V6_BASE = int(IPv6Address("fd6d:7368:696d::"))
SLOTS = 1 << 22
"""What 100.64.0.0/10 has room for; IPv6 has more, but a slot is one number for both."""


def slot_of(address: str) -> int | None:
    """The slot behind a peer's address (as `getpeername` gives it); None if no kernel of ours stamped it.

    An IPv4 address inside an IPv6 one is refused: the listening sockets are of one family each.
    """
    parsed = _parse(address)
    if parsed is None:
        return None
    slot = int(parsed) - (V4_BASE if parsed.version == 4 else V6_BASE)
    return slot if 0 < slot < SLOTS else None


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return None if isinstance(parsed, IPv6Address) and parsed.scope_id else parsed


def address_of(slot: int, family: Family) -> str:
    """The address that a slot's packets are stamped with. Raises ValueError beyond 1 to SLOTS - 1."""
    if not 0 < slot < SLOTS:
        raise ValueError(f"slot {slot} is not within 1 to {SLOTS - 1}")
    return str(IPv4Address(V4_BASE + slot) if family is Family.V4 else IPv6Address(V6_BASE + slot))


@dataclass(frozen=True, slots=True)
class Entry:
    """Who has a slot. `generation` tells two owners of one slot apart. What follows the policy is what the source of
    the identity says of the instance, each empty where it does not."""

    slot: int
    generation: int
    instance: UUID
    policy: Policy
    project: str = ""
    address: str = ""
    name: str = ""
    flavor: str = ""


class Table:
    """Slot → entry, kept up by what the agent says."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[int, Entry] = {}
        self.replace(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def replace(self, entries: Iterable[Entry]) -> frozenset[tuple[int, int]]:
        """Take a whole new table. The (slot, generation) pairs that are gone: their connections must end."""
        before = self._owners()
        self._entries = {entry.slot: entry for entry in entries}
        return before - self._owners()

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace the one of its slot."""
        self._entries[entry.slot] = entry

    def remove(self, slot: int, generation: int) -> bool:
        """Remove an entry, unless its slot has another owner by now; whether it was there."""
        entry = self._entries.get(slot)
        if entry is None or entry.generation != generation:
            return False
        del self._entries[slot]
        return True

    def entry(self, caller: Caller) -> Entry | None:
        """The caller's entry as of now; None when the slot is free or another owner's."""
        entry = self._entries.get(caller.slot)
        return entry if entry is not None and entry.generation == caller.generation else None

    def caller(self, address: str) -> Caller | None:
        """Who speaks from a peer's address; None when nobody known does."""
        slot = slot_of(address)
        entry = self._entries.get(slot) if slot is not None else None
        if entry is None:
            return None
        family = Family.V6 if ":" in address else Family.V4
        return Caller(entry.slot, entry.generation, entry.instance, family)

    def _owners(self) -> frozenset[tuple[int, int]]:
        return frozenset((entry.slot, entry.generation) for entry in self._entries.values())
