"""What the model remembers: slots and their owners, connections, token buckets. PURE.

The part of the model (see model.py) that has a past. `now` is in ns and only ever compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.verdict import Verdict
from shim.datapath import abi
from shim.datapath.model_frames import FIN, RST, RefusedError

FLOW_QUIET_NS = 120_000_000_000
RING_TRIES = 8
TRACE_COST = (1_000_000, 200_000_000)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is the same for every port; `read` takes it from the record that the kernel is given."""

    service4: frozenset[bytes]
    service6: frozenset[bytes]
    ports: frozenset[int]
    connection: tuple[int, int]
    event: tuple[int, int]
    flows_per_port: int

    @classmethod
    def read(cls, settings: bytes) -> Rules:
        """From what abi.pack_settings made."""
        record = abi.Settings.from_buffer_copy(settings)
        return cls(
            frozenset(bytes(record)[at : at + 4] for at in range(0, 4 * abi.SERVICES, 4)),
            frozenset(bytes(words) for words in record.service6),
            frozenset(abi.network_short(port) for port in record.service_port),
            (record.connection_ns, record.connection_burst_ns),
            (record.event_ns, record.event_burst_ns),
            record.flows_per_port,
        )

    def serves(self, address: bytes) -> bool:
        """Whether an address is the service's."""
        return address in (self.service4 if len(address) == 4 else self.service6)


@dataclass
class Bucket:
    """A token bucket: the time up to which tokens are spent. `cost` is (price of one, burst) in ns."""

    cost: tuple[int, int]
    spent: int = 0

    def spend(self, now: int) -> bool:
        """Takes a token, if there is one."""
        price, burst = self.cost
        ahead = max(self.spent - now, 0)
        if ahead + price > burst:
            return False
        self.spent = now + ahead + price
        return True


FlowKey = tuple[int, bytes, int, int]
"""Slot, service address, service port, guest's port: a connection, as the gateway namespace sees it."""


@dataclass
class Flow:
    """What must be put back into a connection's replies, and whether it is over."""

    guest: bytes
    macs: bytes  # the guest's, then the one that it asked
    tags: tuple[tuple[int, int], ...]
    generation: int
    seen: int
    fins: frozenset[str] = frozenset()
    reset: bool = False

    def over(self, generation: int, now: int) -> bool:
        """Whether its place may be taken."""
        quiet = now - self.seen > FLOW_QUIET_NS
        return self.generation != generation or self.reset or len(self.fins) == 2 or quiet

    def of_same_guest(self, other: Flow) -> bool:
        """Whether both would be restored alike (the router's MAC may change meanwhile)."""
        tcis = [[tci for _, tci in flow.tags] for flow in (self, other)]
        return (self.guest, self.macs[:6], tcis[0]) == (other.guest, other.macs[:6], tcis[1])

    def note(self, flags: int, side: str, now: int) -> None:
        """A segment of this connection passed."""
        self.seen = now
        if flags & RST:
            self.reset = True
        elif flags & FIN:
            self.fins |= {side}


@dataclass
class Slot:
    """One slot: its owner and what belongs to it."""

    connections: Bucket
    reports: Bucket
    port: Port | None = None
    generation: int = 0
    tap: int = 0
    counters: Counter[Verdict] = field(default_factory=Counter)
    ring: dict[int, FlowKey] = field(default_factory=dict)
    ring_next: int = 0
    traced: bool = False
    traces: Bucket = field(default_factory=lambda: Bucket(TRACE_COST))
    left_out: int = 0

    def renew(self, rules: Rules) -> None:
        """Another owner: counting and paying begin again."""
        self.counters.clear()
        self.connections, self.reports = Bucket(rules.connection), Bucket(rules.event)
        self.traces, self.left_out = Bucket(TRACE_COST), 0
        self.ring_next = 0

    @property
    def policy(self) -> Policy:
        """The owner's, or a closed one."""
        return self.port.policy if self.port else Policy(Access.DROP, Access.DROP)

    @property
    def refused(self) -> Verdict | None:
        """Why nobody is served here, if so."""
        if self.port is None:
            return Verdict.NOT_ENROLLED
        return None if self.port.instance else Verdict.NO_IDENTITY

    def access(self, family: int) -> Access:
        """What the kernel knows of it: a 403 is the proxy's, so its packets pass."""
        access = self.policy.v4 if family == 4 else self.policy.v6
        return Access.OPEN if access is Access.FORBID else access


class State:
    """Every slot and connection of one datapath."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.slots: dict[int, Slot] = {}
        self.flows: dict[FlowKey, Flow] = {}

    def slot(self, number: int) -> Slot:
        """The slot of that number."""
        if number not in self.slots:
            self.slots[number] = Slot(Bucket(self.rules.connection), Bucket(self.rules.event))
        return self.slots[number]

    def open_flow(self, slot: Slot, key: FlowKey, fresh: Flow, now: int) -> Verdict:
        """Every SYN pays, also one sent again: a flood of equal ones is a flood too."""
        flow = self.flows.get(key)
        if flow is not None and not flow.over(slot.generation, now) and not flow.of_same_guest(fresh):
            raise RefusedError(Verdict.FLOW_CLASH)
        if not slot.connections.spend(now):
            raise RefusedError(Verdict.RATE_LIMITED)
        if flow is None:
            self._take_place(slot, key, now)
        self.flows[key] = fresh
        return Verdict.OPENED

    def _take_place(self, slot: Slot, key: FlowKey, now: int) -> None:
        """The next place of the slot's ring whose flow is over; not all are looked at."""
        for _ in range(RING_TRIES):
            place = slot.ring_next % self.rules.flows_per_port
            slot.ring_next += 1
            former = slot.ring.get(place)
            flow = self.flows.get(former) if former else None
            if flow is not None and not flow.over(slot.generation, now):
                continue
            if former is not None:
                self.flows.pop(former, None)
            slot.ring[place] = key
            return
        raise RefusedError(Verdict.FLOW_LIMIT)

    def follow_flow(self, slot: Slot, key: FlowKey, fresh: Flow, flags: int, now: int) -> Verdict:
        """A segment of a connection that is there, or the guest hears that it is not."""
        flow = self.flows.get(key)
        if flow is None or flow.generation != slot.generation or not flow.of_same_guest(fresh):
            raise RefusedError(Verdict.NO_FLOW)
        flow.note(flags, "guest", now)
        return Verdict.DELIVERED

    def forget(self, number: int) -> None:
        """Nobody owns the slot any more; what it counted stays to be read."""
        slot = self.slot(number)
        slot.port, slot.tap, slot.traced = None, 0, False
        for key in slot.ring.values():
            self.flows.pop(key, None)
        slot.ring.clear()
