"""A port: one tap of one instance in one network namespace, and the slot that the kernel knows it by. PURE."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

from shim.core.link import Place
from shim.core.policy import Policy

SLOT_QUARANTINE = 65.0
"""Seconds for which a slot that was given back is given to nobody.

The generation already keeps a former owner's packets from a later one. This covers what has no
generation: connections that stand in the gateway namespace, which lingers over closed ones for 60 s.
"""


@dataclass(frozen=True, slots=True)
class Port:
    """What is enrolled on one tap. `instance` is None for a guarded tap that no source knows.

    `project`, `address` (the instance's IP address), `name` and `flavor` are what the source of its identity says of
    it, if it does.
    """

    slot: int
    generation: int
    ifindex: int
    tap: str
    netns: str
    instance: UUID | None
    policy: Policy
    project: str = ""
    address: str = ""
    name: str = ""
    flavor: str = ""

    @property
    def place(self) -> Place:
        """Where its tap is."""
        return Place(self.netns, self.ifindex)


@dataclass
class Slots:
    """Which slots are taken, and which rest. Slots are 1 to `size`; 0 is nobody's."""

    size: int
    generations: dict[int, int] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)
    _resting: deque[tuple[float, int]] = field(default_factory=deque)
    _fresh: int = 1

    def adopt(self, slot: int, generation: int) -> None:
        """Marks a slot as taken that the kernel already has."""
        self._taken.add(slot)
        self.generations[slot] = generation

    def remember(self, slot: int, generation: int, now: float) -> None:
        """Marks a slot as free that the kernel had; it rests first, as any that was given back."""
        self.adopt(slot, generation)
        self.give_back(slot, now)

    def take(self, now: float) -> tuple[int, int] | None:
        """A (slot, generation) for a new owner, or None when all are taken or resting."""
        if self._resting and self._resting[0][0] <= now:
            slot = self._resting.popleft()[1]
        else:
            while self._fresh in self._taken or self._fresh in self.generations:
                self._fresh += 1
            if self._fresh > self.size:
                return None
            slot = self._fresh
        self._taken.add(slot)
        self.generations[slot] = self.generations.get(slot, 0) + 1
        return slot, self.generations[slot]

    def give_back(self, slot: int, now: float, *, served: bool = True) -> None:
        """Ends a slot's use; it rests for SLOT_QUARANTINE seconds, unless nobody was ever `served` on it."""
        if slot not in self._taken:
            return
        self._taken.remove(slot)
        if served:
            self._resting.append((now + SLOT_QUARANTINE, slot))
        else:
            self._resting.appendleft((now, slot))

    @property
    def taken(self) -> int:
        """How many slots have an owner."""
        return len(self._taken)
