"""What the kernel and the agent share: shapes, constants, maps. PURE.

The same as rules/bpf/lib/abi.h, field by field; a test compares both. Addresses and ports are in
network byte order (held here as bytes), the rest in the host's.
"""

from __future__ import annotations

import ctypes as ct
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal
from uuid import UUID

from shim.core.policy import Access
from shim.core.port import Port
from shim.core.verdict import COUNTERS, Event, Traced, Verdict

VERSION = 2
"""Grows with every change of a shape here: the pins of each version have a folder of their own. The map whose record
is another one says so (`since`), and former.py says what it was."""

SERVICES = 4
SERVICE_PORTS = 4
TAGS = 2

ABSENT, SERVED, ANONYMOUS = 0, 1, 2
ACCESS = {Access.OPEN: 1, Access.RESET: 2, Access.DROP: 3, Access.FORBID: 1}
"""How the kernel is told of an access. FORBID is the proxy's to refuse, so its packets pass."""

NO_ADDRESS4 = IPv4Address("127.255.255.255")
NO_ADDRESS6 = IPv6Address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
"""What fills the places of a family without service addresses: no packet of a guest's carries it lawfully."""

AnyAddress = IPv4Address | IPv6Address

EVENT_BURST = 10
EVENT_RING_BYTES = 65536
TRACE_BYTES = 256
TRACE_RING_BYTES = 262144
"""Some 900 packets: what one port may be shown in nearly a second."""


class Settings(ct.Structure):
    """struct settings"""

    _fields_ = [
        ("service4", ct.c_uint32 * SERVICES),
        ("service6", (ct.c_uint32 * 4) * SERVICES),
        ("service_port", ct.c_uint16 * SERVICE_PORTS),
        ("connection_ns", ct.c_uint64),
        ("connection_burst_ns", ct.c_uint64),
        ("event_ns", ct.c_uint64),
        ("event_burst_ns", ct.c_uint64),
        ("endings4", ct.c_uint64),
        ("endings6", ct.c_uint64),
        ("flows_per_port", ct.c_uint32),
        ("pad", ct.c_uint32),
    ]


class PortRecord(ct.Structure):
    """struct port"""

    _fields_ = [
        ("gateway_ifindex", ct.c_uint32),
        ("generation", ct.c_uint32),
        ("state", ct.c_uint8),
        ("access4", ct.c_uint8),
        ("access6", ct.c_uint8),
        ("hop_limit", ct.c_uint8),
        ("instance", ct.c_uint8 * 16),
        ("traced", ct.c_uint8),
        ("pad", ct.c_uint8 * 3),
    ]


class PortState(ct.Structure):
    """struct port_state"""

    _fields_ = [
        ("connections_ns", ct.c_uint64),
        ("events_ns", ct.c_uint64),
        ("ring_next", ct.c_uint32),
        ("pad", ct.c_uint32),
    ]


class Tracing(ct.Structure):
    """struct tracing"""

    _fields_ = [("spent_ns", ct.c_uint64), ("left_out", ct.c_uint64)]


class Counters(ct.Structure):
    """struct counters"""

    _fields_ = [("packets", ct.c_uint64 * COUNTERS)]


class Tag(ct.Structure):
    """struct tag"""

    _fields_ = [("protocol", ct.c_uint16), ("tci", ct.c_uint16)]


class FlowKey(ct.Structure):
    """struct flow_key"""

    _fields_ = [
        ("slot", ct.c_uint32),
        ("guest_port", ct.c_uint16),
        ("service_port", ct.c_uint16),
        ("service", ct.c_uint32 * 4),
    ]


class Flow(ct.Structure):
    """struct flow"""

    _fields_ = [
        ("guest", ct.c_uint32 * 4),
        ("guest_mac", ct.c_uint8 * 6),
        ("asked_mac", ct.c_uint8 * 6),
        ("tag", Tag * TAGS),
        ("generation", ct.c_uint32),
        ("tags", ct.c_uint8),
        ("ended", ct.c_uint8),
        ("pad", ct.c_uint8 * 6),
        ("seen_ns", ct.c_uint64),
    ]


class RingKey(ct.Structure):
    """struct ring_key"""

    _fields_ = [("slot", ct.c_uint32), ("place", ct.c_uint32)]


class EventRecord(ct.Structure):
    """struct event"""

    _fields_ = [
        ("ns", ct.c_uint64),
        ("slot", ct.c_uint32),
        ("generation", ct.c_uint32),
        ("source", ct.c_uint32 * 4),
        ("destination", ct.c_uint32 * 4),
        ("source_port", ct.c_uint16),
        ("destination_port", ct.c_uint16),
        ("verdict", ct.c_uint8),
        ("family", ct.c_uint8),
        ("pad", ct.c_uint16),
    ]


class TraceRecord(ct.Structure):
    """struct trace"""

    _fields_ = [
        ("ns", ct.c_uint64),
        ("slot", ct.c_uint32),
        ("generation", ct.c_uint32),
        ("length", ct.c_uint32),
        ("kept", ct.c_uint16),
        ("tag_protocol", ct.c_uint16),
        ("tag_tci", ct.c_uint16),
        ("verdict", ct.c_uint8),
        ("to_guest", ct.c_uint8),
        ("frame", ct.c_uint8 * TRACE_BYTES),
        ("pad", ct.c_uint8 * 4),
    ]


@dataclass(frozen=True, slots=True)
class MapShape:
    """One map: what bpf(2) is asked for when it is made, and the version since which its record is as it is."""

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int = 0
    since: int = 1


HASH, ARRAY, DEVMAP, RINGBUF = 1, 2, 14, 27
NO_PREALLOC = 1


def maps(max_ports: int, flows_per_port: int) -> list[MapShape]:
    """Every map of the datapath, sized for slots 1 to `max_ports`. Slot 0 is nobody's."""
    slots = max_ports + 1
    flows = max_ports * flows_per_port
    u32 = ct.sizeof(ct.c_uint32)

    def sized(
        name: str, kind: int, key: int, value: type[ct.Structure], entries: int, flags: int = 0, since: int = 1
    ) -> MapShape:
        return MapShape(name, kind, key, ct.sizeof(value), entries, flags, since)

    return [
        sized("settings", ARRAY, u32, Settings, 1),
        sized("ports", ARRAY, u32, PortRecord, slots, since=2),
        sized("port_states", ARRAY, u32, PortState, slots),
        sized("counters", ARRAY, u32, Counters, slots),
        MapShape("taps", DEVMAP, u32, u32, slots),
        sized("flows", HASH, ct.sizeof(FlowKey), Flow, flows, NO_PREALLOC),
        sized("rings", HASH, ct.sizeof(RingKey), FlowKey, flows, NO_PREALLOC),
        MapShape("events", RINGBUF, 0, 0, EVENT_RING_BYTES),
        sized("tracings", ARRAY, u32, Tracing, slots, since=2),
        MapShape("traces", RINGBUF, 0, 0, TRACE_RING_BYTES, since=2),
    ]


def words(address: IPv4Address | IPv6Address) -> list[int]:
    """An address as the words of 32 bits that the kernel compares, in the order of the wire."""
    packed = address.packed
    return [int.from_bytes(packed[i : i + 4], _NATIVE) for i in range(0, len(packed), 4)]


_NATIVE: Literal["little", "big"] = "little" if ct.c_uint16.from_buffer_copy(b"\1\0").value == 1 else "big"


def network_short(value: int) -> int:
    """A port number as the kernel holds it: two bytes in the order of the wire, read natively."""
    return int.from_bytes(value.to_bytes(2, "big"), _NATIVE)


def pack_settings(
    addresses: list[str], ports: list[int], *, rate: int, burst: int, event_rate: int, flows_per_port: int
) -> bytes:
    """The one `settings` record. `rate` and `event_rate` are per second and port."""
    parsed = [ip_address(text) for text in addresses]
    v4 = [a for a in parsed if isinstance(a, IPv4Address)]
    v6 = [a for a in parsed if isinstance(a, IPv6Address)]
    record = Settings(
        connection_ns=1_000_000_000 // rate,
        connection_burst_ns=1_000_000_000 // rate * burst,
        # A price that no burst covers: no event ever.
        event_ns=1_000_000_000 // event_rate if event_rate else 1,
        event_burst_ns=1_000_000_000 // event_rate * EVENT_BURST if event_rate else 0,
        endings4=_endings(v4),
        endings6=_endings(v6),
        flows_per_port=flows_per_port,
    )
    for place in range(SERVICES):
        record.service4[place] = words(_at(v4, place, NO_ADDRESS4))[0]
        record.service6[place][:] = words(_at(v6, place, NO_ADDRESS6))
    for place in range(SERVICE_PORTS):
        record.service_port[place] = network_short(ports[place] if place < len(ports) else ports[0])
    return bytes(record)


def _at(addresses: Sequence[AnyAddress], place: int, none: AnyAddress) -> AnyAddress:
    """The address of a place; the first, where there are fewer; `none`, where there is none."""
    return addresses[place if place < len(addresses) else 0] if addresses else none


def _endings(addresses: Sequence[IPv4Address | IPv6Address]) -> int:
    bits = 0
    for address in addresses:
        bits |= 1 << (address.packed[-1] & 63)
    return bits


def pack_port(port: Port, gateway_ifindex: int, *, traced: bool = False) -> bytes:
    """A port's record: an instance that is not known makes it one that nobody is served on."""
    known = port.instance is not None
    record = PortRecord(
        gateway_ifindex=gateway_ifindex,
        generation=port.generation,
        state=SERVED if known else ANONYMOUS,
        access4=ACCESS[port.policy.v4],
        access6=ACCESS[port.policy.v6],
        hop_limit=port.policy.hop_limit,
        traced=traced,
    )
    if port.instance is not None:
        record.instance[:] = port.instance.bytes
    return bytes(record)


def with_traced(raw: bytes, on: bool) -> bytes:
    """A port's record, the same but for whether its packets are shown."""
    record = PortRecord.from_buffer_copy(raw)
    record.traced = on
    return bytes(record)


def pack_vacant(generation: int) -> bytes:
    """The record of a slot that serves nobody; its generation stays, for the next owner to have another."""
    return bytes(PortRecord(generation=generation))


def read_port(raw: bytes) -> tuple[int, int, UUID | None]:
    """(state, generation, instance) of a port's record."""
    record = PortRecord.from_buffer_copy(raw)
    instance = UUID(bytes=bytes(record.instance)) if record.state == SERVED else None
    return record.state, record.generation, instance


def read_gateway(raw: bytes) -> int:
    """The end of the gateway's link that a port's packets are handed to: it tells in which namespace its tap is."""
    return int(PortRecord.from_buffer_copy(raw).gateway_ifindex)


def read_counters(raw: bytes) -> dict[Verdict, int]:
    """The counters that are not zero. Numbers that this version does not know are left out."""
    packets = Counters.from_buffer_copy(raw).packets
    return {verdict: packets[verdict] for verdict in Verdict if packets[verdict]}


def read_event(raw: bytes) -> Event:
    """One event as the kernel wrote it."""
    record = EventRecord.from_buffer_copy(raw)
    return Event(
        ns=record.ns,
        slot=record.slot,
        generation=record.generation,
        verdict=Verdict(record.verdict),
        source=_address(record.family, bytes(record.source)),
        destination=_address(record.family, bytes(record.destination)),
        source_port=network_short(record.source_port),
        destination_port=network_short(record.destination_port),
    )


def read_trace(raw: bytes) -> Traced:
    """One packet as the kernel wrote it. The tag that stood beside it is put back to where it was on the wire."""
    record = TraceRecord.from_buffer_copy(raw)
    frame, length = bytes(record.frame[: record.kept]), record.length
    if record.tag_protocol:
        frame = frame[:12] + struct.pack("=HH", record.tag_protocol, record.tag_tci) + frame[12:]
        length += 4
    return Traced(
        record.ns, record.slot, record.generation, Verdict(record.verdict), bool(record.to_guest), length, frame
    )


def read_left_out(raw: bytes) -> int:
    """How many packets of a traced port were not shown."""
    return int(Tracing.from_buffer_copy(raw).left_out)


def _address(family: int, packed: bytes) -> str:
    return str(IPv6Address(packed) if family == 6 else IPv4Address(packed[:4]))
