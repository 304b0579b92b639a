"""What the nftables datapath holds of one port, as pieces of its table; and those pieces as text. PURE.

See rules/nft/datapath.nft for what each set means.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

from shim.core.policy import HOP_LIMIT_DEFAULT, Access, Policy
from shim.core.port import Port
from shim.core.table import Element, Hook, Piece
from shim.core.verdict import REFUSALS_START, Event, Traced, Verdict
from shim.datapath.abi import TRACE_BYTES

PRIORITY = -150
"""Before what others commonly have at netdev ingress."""

SLOT_BITS, GENERATION_BITS = 16, 13
SLOTS_V4 = int(IPv4Address("100.64.0.0"))
SLOTS_V6 = int(IPv6Address("fd6d:7368:696d::"))
OF_PORT = ("stamps4", "stamps6", "taps", "served", "open4", "open6", "reset4", "reset6", "hop_limits", "traced")
"""The sets whose key is a port's mark."""

COUNTED = ("new_connections", "reports", "tracings", "left_out", *(verdict.label for verdict in Verdict))
"""The sets to which packets add a port's mark."""

TRACED = "trace "
"""What the prefix of a packet that is shown begins with; the verdict's number follows."""

OPEN = (Access.OPEN, Access.FORBID)
"""FORBID is the proxy's to refuse, so its packets pass."""

WITH_PORTS = frozenset({
    Verdict.DISABLED_RESET, Verdict.DISABLED_DROP, Verdict.RATE_LIMITED, Verdict.FLOW_LIMIT, Verdict.FLOW_CLASH,
    Verdict.NO_FLOW, Verdict.WRONG_PORT,
})  # fmt: skip


TO_GUEST = (
    Verdict.REPLIED, Verdict.REPLY_FOREIGN, Verdict.REPLY_NO_PORT, Verdict.REPLY_NO_FLOW, Verdict.REPLY_DISABLED,
)  # fmt: skip


def word(value: int) -> bytes:
    """A mark or an interface index as the kernel holds it."""
    return struct.pack("=I", value)


def number(raw: bytes) -> int:
    """The reverse."""
    return int(struct.unpack("=I", raw[:4])[0])


def mark_of(slot: int, generation: int) -> int:
    """How packets of a port are marked: its slot, and as much of the generation as fits."""
    return slot | (generation % (1 << GENERATION_BITS)) << SLOT_BITS


def slot_of(mark: int) -> int:
    """The slot in a mark."""
    return mark % (1 << SLOT_BITS)


def chain_of(ifindex: int) -> str:
    """The chain that is on a tap."""
    return f"tap{ifindex}"


def hook(port: Port) -> Hook:
    """What guards a tap. Without its elements nobody is served there."""
    return Hook(chain_of(port.ifindex), port.tap, "from_instance", PRIORITY)


def pieces(port: Port) -> frozenset[Piece]:
    """All that there is of a port while it has its tap; of slot 0, only what guards the tap."""
    if not port.slot:
        return frozenset({hook(port)})
    mark = mark_of(port.slot, port.generation)
    key = word(mark)
    found: set[Piece] = {
        hook(port),
        Element("slots", word(port.ifindex), key),
        Element("stamps4", key, (SLOTS_V4 + port.slot).to_bytes(4, "big")),
        Element("stamps6", key, (SLOTS_V6 + port.slot).to_bytes(16, "big")),
        Element("taps", key, word(port.ifindex)),
    }
    if port.instance is not None:
        found |= {Element("served", key)} | _access(key, port.policy)
    if port.policy.hop_limit != HOP_LIMIT_DEFAULT:
        found.add(Element("hop_limits", key, jump=f"hop{port.policy.hop_limit}"))
    return frozenset(found)


def _access(key: bytes, policy: Policy) -> set[Piece]:
    """Which ways are open, and which are answered by a reset; in neither set, packets are dropped."""
    sets = {f"open{family}": access in OPEN for family, access in ((4, policy.v4), (6, policy.v6))}
    sets |= {f"reset{family}": access is Access.RESET for family, access in ((4, policy.v4), (6, policy.v6))}
    return {Element(name, key) for name, there in sets.items() if there}


def owner(port: Port) -> frozenset[Piece]:
    """What stays of a slot when its port has gone, so that its next owner gets another generation."""
    if not port.slot:
        return frozenset()
    key, comment = word(mark_of(port.slot, port.generation)), f"{port.generation} {port.instance or '-'}"
    return frozenset({
        Element("owners4", (SLOTS_V4 + port.slot).to_bytes(4, "big"), key, comment=comment),
        Element("owners6", (SLOTS_V6 + port.slot).to_bytes(16, "big"), key),
    })  # fmt: skip


def read_owner(element: Element) -> tuple[int, int, UUID | None]:
    """(slot, generation, instance) of an element of owners4."""
    generation, _, instance = element.comment.partition(" ")
    slot = int.from_bytes(element.key, "big") - SLOTS_V4
    return slot, int(generation), UUID(instance) if instance != "-" else None


def text(table: str, piece: Piece) -> str:
    """The nft command that adds a piece."""
    if isinstance(piece, Hook):
        place = f'type filter hook ingress device "{piece.device}" priority {piece.priority};'
        chain = f"netdev {table} {piece.chain}"
        return f"add chain {chain} {{ {place} }}\nadd rule {chain} goto {piece.goto}"
    key = _key_text(piece)
    comment = f' comment "{piece.comment}"' if piece.comment else ""
    data = f" : {_data_text(piece)}" if piece.data is not None or piece.jump else ""
    return f"add element netdev {table} {piece.set} {{ {key}{comment}{data} }}"


def _key_text(element: Element) -> str:
    if element.set == "owners4":
        return str(IPv4Address(element.key))
    return str(IPv6Address(element.key)) if element.set == "owners6" else str(number(element.key))


def _data_text(element: Element) -> str:
    if element.jump:
        return f"jump {element.jump}"
    data = element.data or b""
    if element.set == "stamps4":
        return str(IPv4Address(data))
    return str(IPv6Address(data)) if element.set == "stamps6" else str(number(data))


def traced(slot: int, generation: int) -> Element:
    """What has a port's packets shown."""
    return Element("traced", word(mark_of(slot, generation)))


def read_trace(ns: int, prefix: str, mark: int, generation: int, header: bytes, packet: bytes) -> Traced | None:
    """A packet that the rules showed. How long it is in all, the IP header says; without one it is here whole."""
    number = prefix.removeprefix(TRACED)
    if number == prefix or not number.isdigit() or int(number) not in Verdict._value2member_map_:
        return None
    verdict = Verdict(int(number))
    length = len(header) + max(_length(packet), len(packet))
    frame = (header + packet)[:TRACE_BYTES]
    return Traced(ns, slot_of(mark), generation, verdict, verdict in TO_GUEST, length, frame)


def _length(packet: bytes) -> int:
    """What an IP header says of it; of anything else nothing."""
    kind = packet[0] >> 4 if len(packet) >= 20 else 0
    if kind == 4:
        return int.from_bytes(packet[2:4], "big")
    return 40 + int.from_bytes(packet[4:6], "big") if kind == 6 else 0


def read_event(ns: int, prefix: str, mark: int, generation: int, packet: bytes) -> Event | None:
    """What the rules logged. Addresses and ports are copied from where they lie in a header without options."""
    if not prefix.isdigit() or not REFUSALS_START <= int(prefix) <= max(Verdict):
        return None
    verdict = Verdict(int(prefix))
    source, destination, transport = _addresses(packet)
    ports = packet[transport : transport + 4] if verdict in WITH_PORTS and transport else b""
    first, second = (int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big"))
    return Event(ns, slot_of(mark), generation, verdict, source, destination, first, second)


def _addresses(packet: bytes) -> tuple[str, str, int]:
    """Source, destination, and where TCP begins; of ARP, sender and target."""
    kind = packet[0] >> 4 if len(packet) >= 40 or packet[:1] == b"\0" else -1
    if kind == 6:
        return str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40])), 40 if packet[6] == 6 else 0
    at = {4: (12, 16), 0: (14, 24)}.get(kind, (0, 0))
    first, second = packet[at[0] : at[0] + 4], packet[at[1] : at[1] + 4]
    if kind not in (0, 4) or len(second) < 4:
        return "", "", 0
    return str(IPv4Address(first)), str(IPv4Address(second)), 20 if kind == 4 and packet[9] == 6 else 0
