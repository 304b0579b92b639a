"""The nftables datapath: rules that stay, in one table of our own, and what is of one port as pieces in its sets.

What a port needs is a set of pieces (nft_ports.py). The table's present ones are known here, so a change is the
difference of two sets, carried out as one transaction.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from shim.core.link import Place
from shim.core.port import Port
from shim.core.table import Element, Hook, Piece
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath import nft_ports, nft_rules
from shim.datapath.base import Enrolled, Inside, Logs, Tables
from shim.datapath.nft_ports import PRIORITY, mark_of, number, slot_of, word
from shim.errors import KernelError

RULES = Path(__file__).parents[2] / "rules" / "nft"
GATEWAY_CHAIN = "gateway_link"
SOMEBODY_ELSE = (errno.ENOENT, errno.EEXIST, errno.EBUSY)
"""What the kernel answers when the table is not as it was left."""


def name_of(ifindex: int) -> str | None:
    """The name of a link of this network namespace, None when it has gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return None


def ruleset(settings: nft_rules.Settings) -> nft_rules.Ruleset:
    """What is loaded, before any port is there."""
    texts = [(RULES / name).read_text() for name in ("datapath.nft", "family.nft")]
    return nft_rules.ruleset(settings, *texts)


NOTHING: frozenset[Piece] = frozenset()


@dataclass(frozen=True, slots=True)
class Held:
    """What the table has of one tap; slot 0 is nobody's."""

    slot: int = 0
    generation: int = 0
    pieces: frozenset[Piece] = NOTHING

    @property
    def device(self) -> str:
        """The name of the tap."""
        return next((piece.device for piece in self.pieces if isinstance(piece, Hook)), "")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has a slot, or had it last, and what the table remembers of that."""

    generation: int = 0
    instance: UUID | None = None
    pieces: frozenset[Piece] = NOTHING


class Nft:
    """One datapath; see Datapath for the methods. `link_name` tells a link's name by its ifindex; None: it has gone."""

    name = "nft"
    lacks: tuple[str, ...] = (
        "guests that tag their frames (802.1Q, 802.1ad) are refused: nftables cannot put tags on replies",
        "a guest that probes whether a service address is free (RFC 4862) is not answered",
        "datapath.flows_per_port has no effect: the service's own connections are what is bounded",
    )
    cut = False

    def __init__(
        self,
        tables: Tables,
        logs: Logs,
        settings: nft_rules.Settings,
        link_name: Callable[[int], str | None] = name_of,
    ) -> None:
        self._tables = tables
        self._logs = logs
        self._table = settings.table
        self._ruleset = ruleset(settings)
        self._known = False
        self._generation = 0  # of the tables, if nobody else has changed any since they were read
        self._link_name = link_name
        self._held: dict[int, Held] = {}
        self._owners: dict[int, Owner] = {}
        self._gateway = 0
        self._traced: set[int] = set()
        self._heard: list[Event] = []
        self._shown: list[Traced] = []

    @property
    def fd(self) -> int:
        return self._logs.fd

    async def open(self, gateway_ifindex: int) -> None:
        self._logs.open()
        if not self._known:
            self._read()
        elif self._is_known() and self._gateway == gateway_ifindex and self._hears_gateway():
            return
        self._gateway = gateway_ifindex
        if not self._is_whole():
            self._load()
        self._place_gateway()

    def _is_known(self) -> bool:
        """Whether nobody else has been at any table since ours was read."""
        return self._known and self._tables.generation() == self._generation

    def _hears_gateway(self) -> bool:
        """Whether replies are seen: a link that is made anew, even with the same ifindex, may have no chain on it."""
        return self._tables.device_of(GATEWAY_CHAIN) == self._link_name(self._gateway)

    def _is_whole(self) -> bool:
        """Whether just these rules are there, each of them: a rule in the place of another is not seen."""
        expected = self._ruleset.rules + len(self._tables.hooks())
        return self._tables.elements(self._ruleset.version) is not None and self._tables.rules() == expected

    def _load(self) -> None:
        """The rules, and in the same transaction every port that is known of: none is open in between."""
        alive = [held for ifindex, held in self._held.items() if self._link_name(ifindex) == held.device]
        pieces = [piece for held in alive for piece in held.pieces]
        pieces += [piece for owner in self._owners.values() for piece in owner.pieces]
        renewed = f"table netdev {self._table}\ndelete table netdev {self._table}\n{self._ruleset.text}"
        self._tables.load("\n".join([renewed, *(nft_ports.text(self._table, piece) for piece in pieces)]))
        self._read()

    def _change(self, remove: Iterable[Piece], add: Iterable[Piece]) -> None:
        remove, add = list(remove), list(add)
        if remove or add:
            self._tables.change(remove, add)
            self._generation += 1

    def _place_gateway(self) -> None:
        """Where delivered segments go, and where replies come from: the host's end of the gateway's link."""
        device = self._link_name(self._gateway) or ""
        wanted: set[Piece] = {
            Element("gateway", word(0), word(self._gateway)),
            Hook(GATEWAY_CHAIN, device, "to_instance", PRIORITY),
        }
        there: set[Piece] = set(self._tables.elements("gateway") or ())
        on = self._tables.hooks().get(GATEWAY_CHAIN)
        if on is not None:
            there.add(Hook(GATEWAY_CHAIN, on, "to_instance", PRIORITY))
        self._change(there - wanted, wanted - there)

    async def observe(self) -> list[Enrolled]:
        if not self._is_known():
            self._read()
        found = [self._enrolled(ifindex, held) for ifindex, held in self._held.items()]
        alive = {each.slot for each in found}
        vacant = [Enrolled(slot, of.generation, 0, None) for slot, of in self._owners.items() if slot not in alive]
        return found + vacant

    def _enrolled(self, ifindex: int, held: Held) -> Enrolled:
        instance = self._owners[held.slot].instance if held.slot else None
        return Enrolled(held.slot, held.generation, ifindex, instance)

    def _read(self) -> None:
        """Learns what the table has, and takes out what is nobody's, or of taps that have gone or have another name:
        who can say that they are the same?"""
        self._known, self._generation = True, self._tables.generation()
        self._owners = self._read_owners()
        of_mark: dict[bytes, set[Piece]] = {}
        for name in nft_ports.OF_PORT:
            for element in self._tables.elements(name) or ():
                of_mark.setdefault(element.key, set()).add(element)
        slots = {number(element.key): element for element in self._tables.elements("slots") or ()}
        self._held = {}
        for chain, device in self._hooks():
            ifindex = int(chain.removeprefix("tap"))
            hook = Hook(chain, device, "from_instance", PRIORITY)
            self._held[ifindex] = self._read_tap(hook, slots.pop(ifindex, None), of_mark)
        strays = [piece for pieces in of_mark.values() for piece in pieces]
        self._change([*strays, *slots.values()], ())
        for ifindex in [ifindex for ifindex, of in self._held.items() if self._link_name(ifindex) != of.device]:
            self._release(ifindex)

    def _hooks(self) -> list[tuple[str, str]]:
        return [(chain, device) for chain, device in self._tables.hooks().items() if chain != GATEWAY_CHAIN]

    def _read_owners(self) -> dict[int, Owner]:
        found: dict[int, Owner] = {}
        twins = {element.data: element for element in self._tables.elements("owners6") or ()}
        for element in self._tables.elements("owners4") or ():
            slot, generation, instance = nft_ports.read_owner(element)
            twin = twins.get(element.data)
            found[slot] = Owner(generation, instance, frozenset({element, twin} if twin else {element}))
        return found

    def _read_tap(self, hook: Hook, slot: Element | None, of_mark: dict[bytes, set[Piece]]) -> Held:
        """What there is of one tap: its chain, and the pieces of the mark that its frames get."""
        if slot is None or slot.data is None:
            return Held(pieces=frozenset({hook}))
        pieces = frozenset({hook, slot, *of_mark.pop(slot.data, ())})
        number_of_slot = slot_of(number(slot.data))
        owner = self._owners.get(number_of_slot, Owner())
        if word(mark_of(number_of_slot, owner.generation)) != slot.data:
            return Held(pieces=pieces)
        return Held(number_of_slot, owner.generation, pieces)

    async def ensure(self, port: Port) -> None:
        port = replace(port, tap=port.tap or self._link_name(port.ifindex) or "")
        try:
            self._change_to(port)
        except KernelError as error:
            if error.errno not in SOMEBODY_ELSE:
                raise
            self._read()
            self._change_to(port)

    def _change_to(self, port: Port) -> None:
        """One transaction: the tap's former pieces go, the port's come."""
        wanted, owned = self._with_trace(nft_ports.pieces(port), port.slot, port.generation), nft_ports.owner(port)
        held, owner = self._held.get(port.ifindex, Held()), self._owners.get(port.slot, Owner())
        remove = (held.pieces - wanted) | (owner.pieces - owned)
        if owner.generation not in (0, port.generation):
            remove |= self._counted(mark_of(port.slot, owner.generation))
        self._change(remove, (wanted - held.pieces) | (owned - owner.pieces))
        self._held[port.ifindex] = Held(port.slot, port.generation, wanted)
        if port.slot:
            self._owners[port.slot] = Owner(port.generation, port.instance, owned)

    def _with_trace(self, pieces: frozenset[Piece], slot: int, generation: int) -> frozenset[Piece]:
        """A port's pieces, with or without the one that has its packets shown."""
        piece = nft_ports.traced(slot, generation)
        return pieces | {piece} if slot in self._traced else pieces - {piece}

    def _counted(self, mark: int) -> frozenset[Piece]:
        """What a slot's former owner left in counters and limits."""
        counted = [Element(name, word(mark)) for name in nft_ports.COUNTED]
        return frozenset(each for each in counted if self._tables.packets(each.set, each.key) is not None)

    async def remove(self, port: Port) -> None:
        held = self._held.get(port.ifindex)
        if held is not None and (not port.slot or (port.slot, port.generation) == (held.slot, held.generation)):
            self._release(port.ifindex)

    def _release(self, ifindex: int) -> None:
        """Takes a tap's pieces out; some may be gone already, as its chain may go with the device."""
        held = self._held.pop(ifindex)
        self._traced.discard(held.slot)
        try:
            self._change(held.pieces, ())
        except KernelError as error:
            if error.errno not in SOMEBODY_ELSE:
                self._held[ifindex] = held
                raise
            for piece in held.pieces:
                with contextlib.suppress(KernelError):
                    self._change({piece}, ())

    def counters(self, slot: int) -> dict[Verdict, int]:
        key = word(mark_of(slot, self._owners.get(slot, Owner()).generation))
        counted = {verdict: self._tables.packets(verdict.label, key) for verdict in Verdict}
        return {verdict: packets for verdict, packets in counted.items() if packets}

    def events(self) -> list[Event]:
        self._hear()
        events, self._heard = self._heard, []
        return events

    def traced(self) -> list[Traced]:
        self._hear()
        traced, self._shown = self._shown, []
        return traced

    def _hear(self) -> None:
        """Both come by one group: whoever is not asked for waits."""
        now = time.monotonic_ns()
        for prefix, mark, packet, header in self._logs.read():
            generation = self._owners.get(slot_of(mark), Owner()).generation
            event = nft_ports.read_event(now, prefix, mark, generation, packet)
            shown = nft_ports.read_trace(now, prefix, mark, generation, header, packet)
            self._heard += [event] if event else []
            self._shown += [shown] if shown else []

    def trace(self, port: Port, on: bool) -> None:
        (self._traced.add if on else self._traced.discard)(port.slot)
        held = self._held.get(port.ifindex, Held())
        if (held.slot, held.generation) == (port.slot, port.generation):
            wanted = self._with_trace(held.pieces, port.slot, port.generation)
            self._change(held.pieces - wanted, wanted - held.pieces)
            self._held[port.ifindex] = replace(held, pieces=wanted)

    def left_out(self, slot: int) -> int:
        key = word(mark_of(slot, self._owners.get(slot, Owner()).generation))
        return self._tables.packets("left_out", key) or 0

    async def join(self, inside: Inside, gateway_ifindex: int) -> None:
        raise KernelError(f"{inside.netns}: nftables has its tables in each namespace: see Spread")

    async def leave(self, netns: str) -> None:
        """It is in one alone."""

    def detached(self, place: Place) -> None:
        ifindex = place.ifindex
        if ifindex in self._held and self._link_name(ifindex) is None:
            with contextlib.suppress(KernelError):  # then it is still held, and the next pass removes it
                self._release(ifindex)

    async def recheck(self) -> None:
        if self._is_known():
            return
        if not self._is_whole():
            self._load()
            self._place_gateway()
        self._read()

    async def prune(self) -> None:
        """There is nothing: an older version's rules were replaced when this one's came."""

    def left(self) -> bool:
        try:
            return self._tables.elements("slots") is not None
        except KernelError:  # a kernel without nftables
            return False

    async def teardown(self) -> None:
        self._tables.delete()
        self._held, self._owners = {}, {}

    def close(self) -> None:
        self._logs.close()
