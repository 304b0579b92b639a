"""What all workers counted, as one: sums that never go down while somebody is left to count for. PURE.

A worker tells sums since it began. What they grew by since it was last heard is added here, so a worker that is
replaced, which begins at 0 again, takes nothing away. One that the agent took over from a former agent counts whole.
What a worker tells is believed of nobody but the owners of slots, and the addresses, that the agent knows itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from shim import feed
from shim.settings import EMBEDDED

WHY_CHARACTERS = 200

Owner = tuple[int, int]
"""Slot and generation."""


class Usage(NamedTuple):
    """What guests had: feed.COUNTS by name."""

    success: int = 0
    redirected: int = 0
    refused: int = 0
    failed: int = 0
    other: int = 0
    bytes: int = 0
    with_token: int = 0
    without_token: int = 0
    token_refused: int = 0
    limited: int = 0

    @property
    def codes(self) -> dict[str, int]:
        """Requests by class of status."""
        return dict(zip(feed.CODES, self, strict=False))

    @property
    def tokens(self) -> dict[str, int]:
        """Requests by what became of their token."""
        return dict(zip(feed.TOKENS, (self.with_token, self.without_token, self.token_refused), strict=True))


class Spent(NamedTuple):
    """What one backend was asked: requests by class of status, seconds in all, requests by feed.BUCKETS and beyond."""

    codes: dict[str, int]
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """What all workers did. Backend "" is the proxy itself."""

    usage: Usage
    backends: dict[str, Spent]
    malformed: int
    accepted: int
    turned_away: int


@dataclass(frozen=True, slots=True)
class AddressView:
    """One address of a backend: not well if any worker says so, `why` as the first of them has it."""

    backend: str
    address: str
    healthy: bool
    why: str = ""


class Ledger:
    """One per agent. `owner` says whose a slot is, None if nobody's; `addresses` are the configured ones by backend."""

    def __init__(
        self, owner: Callable[[int, int], UUID | None], addresses: Mapping[str, Sequence[str]]
    ) -> None:
        self._owner = owner
        self._addresses = [(name, address) for name, some in addresses.items() for address in some]
        self._names = {"", EMBEDDED, *addresses}
        self._last: defaultdict[int, dict[Hashable, Sequence[int]]] = defaultdict(dict)
        self._states: dict[int, dict[tuple[str, str], feed.AddressHealth]] = {}
        self._host: tuple[int, ...] = (0,) * len(feed.COUNTS)
        self._events: tuple[int, ...] = (0, 0, 0)  # malformed, accepted, turned away
        self._spent: dict[str, tuple[int, ...]] = {}
        self._instances: dict[UUID, tuple[int, ...]] = {}
        self._owners: dict[Owner, UUID] = {}
        self._owned: dict[UUID, set[Owner]] = {}

    def hear(self, worker: int, message: feed.Load | feed.Totals | feed.Usage | feed.Backends) -> None:
        """What the worker of that number says."""
        if isinstance(message, feed.Load):
            growth = self._growth(worker, "load", (0, message.accepted, message.turned_away))
            self._events = _sum(self._events, growth)
        elif isinstance(message, feed.Totals):
            self._hear_totals(worker, message)
        elif isinstance(message, feed.Usage):
            for slot, generation, counts in message.owners:
                self._hear_owner(worker, (slot, generation), counts)
        else:
            self._states[worker] = {(one.backend, one.address): one for one in message.addresses}

    def _hear_totals(self, worker: int, message: feed.Totals) -> None:
        self._host = _sum(self._host, self._growth(worker, "host", message.counts))
        self._events = _sum(self._events, self._growth(worker, "malformed", (message.malformed, 0, 0)))
        for name in message.backends.keys() & self._names:
            growth = self._growth(worker, (name,), message.backends[name])
            self._spent[name] = _sum(self._spent.get(name), growth)

    def _hear_owner(self, worker: int, owner: Owner, counts: Sequence[int]) -> None:
        instance = self._owners.get(owner) or self._owner(*owner)
        if instance is None:
            return
        self._owners[owner] = instance
        self._owned.setdefault(instance, set()).add(owner)
        growth = self._growth(worker, owner, counts)
        self._instances[instance] = _sum(self._instances.get(instance), growth)

    def _growth(self, worker: int, key: Hashable, now: Sequence[int]) -> Sequence[int]:
        last = self._last[worker].get(key)
        if last is None:
            self._last[worker][key] = now
            return now
        self._last[worker][key] = tuple(map(max, last, now))
        return [max(0, n - before) for before, n in zip(last, now, strict=True)]

    def ended(self, worker: int) -> None:
        """Whoever has that number next begins at 0."""
        self._last.pop(worker, None)
        self._states.pop(worker, None)

    def moved(self, worker: int, number: int) -> None:
        """The worker has another number now."""
        self._last[number] = self._last.pop(worker, {})
        self._states.pop(worker, None)

    def gone(self, slot: int, generation: int) -> None:
        """The slot is nobody's any more. An instance without any is forgotten."""
        owner = (slot, generation)
        for last in self._last.values():
            last.pop(owner, None)
        instance = self._owners.pop(owner, None)
        if instance is None:
            return
        self._owned[instance].discard(owner)
        if not self._owned[instance]:
            del self._owned[instance], self._instances[instance]

    def usage(self) -> dict[UUID, Usage]:
        """By instance; those that asked nothing yet are not in it."""
        return {instance: Usage(*counts) for instance, counts in self._instances.items()}

    def usage_of(self, instance: UUID) -> Usage:
        """Of one instance."""
        return Usage(*self._instances.get(instance, ()))

    def totals(self) -> Totals:
        """Of all guests together."""
        backends = {name: _spent(numbers) for name, numbers in self._spent.items()}
        return Totals(Usage(*self._host), backends, *self._events)

    def backends(self) -> list[AddressView]:
        """Every configured address. One that no worker has looked at yet is thought well, as workers do."""
        return [self._address(*key) for key in self._addresses]

    def _address(self, backend: str, address: str) -> AddressView:
        states = (heard.get((backend, address)) for heard in self._states.values())
        unwell = next((state for state in states if state is not None and not state.healthy), None)
        if unwell is None:
            return AddressView(backend, address, True)
        return AddressView(backend, address, False, unwell.why[:WHY_CHARACTERS])


def _sum(one: Sequence[int] | None, other: Sequence[int]) -> tuple[int, ...]:
    return tuple(other) if one is None else tuple(map(int.__add__, one, other))


def _spent(numbers: Sequence[int]) -> Spent:
    codes, rest = numbers[: len(feed.CODES)], numbers[len(feed.CODES) :]
    return Spent(dict(zip(feed.CODES, codes, strict=True)), rest[0] / 1e6, tuple(rest[1:]))
