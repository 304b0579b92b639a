"""The contract's verdicts, executable: what either datapath must say of any frame, and make of it. PURE.

Bytes and a clock in, an outcome out. It is written to be read beside rules/README.md, not to be fast; a
differential test holds the kernel's programs to it. `now` is in ns and only ever compared.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from shim.core.policy import Access
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath import abi
from shim.datapath import model_answers as answers
from shim.datapath import model_frames as frames
from shim.datapath.model_frames import Frame, Packet, RefusedError, Segment
from shim.datapath.model_state import Flow, Rules, Slot, State

ND_EXTENSIONS = 4
SOLICIT, REDIRECT = 135, 137
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
ANSWERED_BY_RESET = (Verdict.DISABLED_RESET, Verdict.NO_FLOW)

Reader = Callable[[Frame], Packet]


class Whereto(enum.Enum):
    """Where a frame goes on."""

    PASSED = "on, as if nothing were here"
    DROPPED = "nowhere"
    GUEST = "to the guest"
    GATEWAY = "to the gateway namespace"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a frame. `verdict` is None for a frame that is not ours."""

    whereto: Whereto
    verdict: Verdict | None
    frame: bytes


@dataclass
class Inspection:
    """A guest's frame, and what was found out about it by now."""

    slot: int
    raw: bytes
    now: int
    frame: Frame | None = None
    packet: Packet | None = None
    segment: Segment | None = None
    arp: tuple[bytes, bytes] | None = None


class Model:
    """The whole datapath: verdicts, what is made of frames, counters and events."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.state = State(rules)
        self.events: list[Event] = []
        self.traced: list[Traced] = []

    def from_instance(self, slot: int, raw: bytes, now: int) -> Outcome:
        """A frame that the guest on a slot's tap sends."""
        seen = Inspection(slot, raw, now)
        try:
            verdict = self._judge(seen)
        except RefusedError as error:
            verdict = error.verdict
        if verdict is None:
            return Outcome(Whereto.PASSED, None, raw)
        counters = self.state.slot(slot).counters
        counters.update({verdict, Verdict.DELIVERED} if verdict is Verdict.OPENED else {verdict})
        if verdict.refusal:
            self._report(seen, verdict)
        self._show(slot, verdict, raw, now)
        return self._carry_out(seen, verdict)

    def _judge(self, seen: Inspection) -> Verdict | None:
        """None: not ours. Otherwise what is done, or refused."""
        seen.frame = frames.read_frame(seen.raw)
        if seen.frame.ethertype == frames.ARP:
            return self._judge_arp(seen, seen.frame)
        if seen.frame.ethertype == frames.IPV4:
            return self._judge_ip4(seen, seen.frame)
        if seen.frame.ethertype == frames.IPV6:
            return self._judge_ip6(seen, seen.frame)
        return None

    def _judge_arp(self, seen: Inspection, frame: Frame) -> Verdict | None:
        arp = frame.at(frame.l3, 28)
        if arp[2:4] != b"\x08\x00" or arp[5] != 4:
            return None
        if arp[4] != 6:  # where the addresses are would be a guess
            raise RefusedError(Verdict.MALFORMED)
        sender, target = seen.arp = arp[14:18], arp[24:28]
        if self.rules.serves(sender):
            raise RefusedError(Verdict.SPOOFED_ARP)
        if not self.rules.serves(target):
            return None
        if not frame.understood:
            raise RefusedError(Verdict.VLAN_DEPTH)
        if arp[6:8] != b"\0\1":
            raise RefusedError(Verdict.WRONG_PROTOCOL)
        return self._answer_neighbour(seen, Verdict.ARP_ANSWERED)

    def _answer_neighbour(self, seen: Inspection, verdict: Verdict) -> Verdict:
        """Nobody is told where the service is on a port that nobody is served on."""
        return self.state.slot(seen.slot).refused or verdict

    def _judge_ip4(self, seen: Inspection, frame: Frame) -> Verdict | None:
        addresses = frame.at(frame.l3 + 12, 8)
        spoofed = self.rules.serves(addresses[:4])
        if not spoofed and not self.rules.serves(addresses[4:]):
            return None
        return self._judge_read(seen, frame, frames.read_ip4, spoofed=spoofed)

    def _judge_ip6(self, seen: Inspection, frame: Frame) -> Verdict | None:
        ip = frame.at(frame.l3, frames.IPV6_HEADER)
        spoofed, ours = self.rules.serves(ip[8:24]), self.rules.serves(ip[24:40])
        if not spoofed:
            discovery = self._discovery(frame, ip[6], ip[24:40])
            if discovery is not None:
                return self._judge_discovery(seen, frame, discovery)
            if not ours:
                return None
        return self._judge_read(seen, frame, frames.read_ip6, spoofed=spoofed)

    def _judge_read(self, seen: Inspection, frame: Frame, read: Reader, *, spoofed: bool) -> Verdict:
        """A packet from or to a service address."""
        try:
            seen.packet = packet = read(frame)
        except RefusedError:
            if spoofed:
                raise RefusedError(Verdict.SPOOFED_SOURCE) from None
            raise
        refused = Verdict.SPOOFED_SOURCE if spoofed else packet.refused
        if refused is None and not frame.understood:
            refused = Verdict.VLAN_DEPTH
        refused = refused or self.state.slot(seen.slot).refused
        if refused is not None:
            raise RefusedError(refused)
        return self._judge_packet(seen, frame, packet)

    def _judge_packet(self, seen: Inspection, frame: Frame, packet: Packet) -> Verdict:
        """A sound packet to a service address, on a port that is served."""
        if packet.protocol == frames.TCP:
            return self._judge_tcp(seen, frame, packet)
        echo = {4: (frames.ICMP, b"\x08\0"), 6: (frames.ICMP6, b"\x80\0")}[packet.family]
        if packet.protocol != echo[0]:
            raise RefusedError(Verdict.WRONG_PROTOCOL)
        if self.state.slot(seen.slot).access(packet.family) is not Access.OPEN:
            raise RefusedError(Verdict.DISABLED_DROP)  # no reset for what is not TCP
        if packet.length < 8:
            raise RefusedError(Verdict.MALFORMED)
        return Verdict.ECHO_ANSWERED if frame.at(packet.l4, 2) == echo[1] else Verdict.WRONG_PROTOCOL

    def _discovery(self, frame: Frame, following: int, destination: bytes) -> Verdict | None:
        """Neighbour discovery of or for a service address, looked for behind extension headers too (RFC 4861)."""
        group = destination[:13] == SOLICITED_NODE and any(
            destination[13:] == service[13:] for service in self.rules.service6
        )
        at = frame.l3 + frames.IPV6_HEADER
        for walked in range(ND_EXTENSIONS):
            if following == frames.ICMP6:
                return self._discovery_message(frame, at, plain=walked == 0)
            if following == frames.FRAGMENT_HEADER:
                return Verdict.FRAGMENT if group else None
            if following not in frames.WALKED_EXTENSIONS or at + 2 > len(frame.raw):
                return None
            following, at = frame.raw[at], at + (frame.raw[at + 1] + 1) * 8
        return Verdict.EXTENSION_HEADER if group else None

    def _discovery_message(self, frame: Frame, at: int, *, plain: bool) -> Verdict | None:
        kind = frame.raw[at : at + 1]
        if not kind or not SOLICIT <= kind[0] <= REDIRECT:
            return None
        message = frame.at(at, 24)
        redirected = frame.raw[at + 24 : at + 40] if kind[0] == REDIRECT else b""
        if not self.rules.serves(message[8:24]) and not (len(redirected) == 16 and self.rules.serves(redirected)):
            return None
        if kind[0] != SOLICIT:
            return Verdict.SPOOFED_ND
        if not plain:
            return Verdict.EXTENSION_HEADER
        return Verdict.ND_ANSWERED if message[1] == 0 else Verdict.MALFORMED

    def _judge_discovery(self, seen: Inspection, frame: Frame, discovery: Verdict) -> Verdict:
        try:
            seen.packet = frames.read_ip6(frame)
        except RefusedError:
            if not discovery.refusal:
                raise
        if discovery.refusal:
            raise RefusedError(discovery)
        if not frame.understood:
            raise RefusedError(Verdict.VLAN_DEPTH)
        return self._answer_neighbour(seen, discovery)

    def _judge_tcp(self, seen: Inspection, frame: Frame, packet: Packet) -> Verdict:
        tcp = seen.segment = frames.read_segment(frame, packet)
        slot = self.state.slot(seen.slot)
        if tcp.destination not in self.rules.ports:
            raise RefusedError(Verdict.WRONG_PORT)
        access = slot.access(packet.family)
        if access is not Access.OPEN:
            raise RefusedError(Verdict.DISABLED_RESET if access is Access.RESET else Verdict.DISABLED_DROP)
        key = (seen.slot, packet.destination, tcp.destination, tcp.source)
        macs = frame.source + frame.destination
        fresh = Flow(packet.source, macs, frame.tags, slot.generation, seen.now)
        if tcp.flags & frames.SYN and not tcp.flags & frames.ACK:
            return self.state.open_flow(slot, key, fresh, seen.now)
        return self.state.follow_flow(slot, key, fresh, tcp.flags, seen.now)

    def _carry_out(self, seen: Inspection, verdict: Verdict) -> Outcome:
        frame, packet, segment = seen.frame, seen.packet, seen.segment
        hop_limit = self.state.slot(seen.slot).policy.hop_limit
        if frame is not None and verdict is Verdict.ARP_ANSWERED:
            return Outcome(Whereto.GUEST, verdict, answers.answer_arp(frame))
        if frame is None or packet is None:
            return Outcome(Whereto.DROPPED, verdict, seen.raw)
        if verdict is Verdict.ND_ANSWERED:
            return Outcome(Whereto.GUEST, verdict, answers.answer_solicitation(frame, packet))
        if verdict is Verdict.ECHO_ANSWERED:
            return Outcome(Whereto.GUEST, verdict, answers.answer_echo(frame, packet, hop_limit))
        if verdict in (Verdict.OPENED, Verdict.DELIVERED):
            return Outcome(Whereto.GATEWAY, verdict, answers.stamped(frame, packet, seen.slot))
        if segment is not None and verdict in ANSWERED_BY_RESET and not segment.flags & frames.RST:
            return Outcome(Whereto.GUEST, verdict, answers.answer_reset(frame, packet, segment, hop_limit))
        return Outcome(Whereto.DROPPED, verdict, seen.raw)

    def _report(self, seen: Inspection, verdict: Verdict) -> None:
        slot = self.state.slot(seen.slot)
        if not slot.reports.spend(seen.now):
            return
        source, destination = seen.arp or (bytes(4), bytes(4))
        if seen.packet is not None:
            source, destination = seen.packet.source, seen.packet.destination
        ports = (seen.segment.source, seen.segment.destination) if seen.segment else (0, 0)
        texts = (_text(source), _text(destination))
        self.events.append(Event(seen.now, seen.slot, slot.generation, verdict, *texts, *ports))

    def _show(self, number: int, verdict: Verdict, raw: bytes, now: int, *, to_guest: bool = False) -> None:
        """To an operator who traces the port."""
        slot = self.state.slot(number)
        if not slot.traced:
            return
        if not slot.traces.spend(now):
            slot.left_out += 1
            return
        kept = raw[: abi.TRACE_BYTES]
        self.traced.append(Traced(now, number, slot.generation, verdict, to_guest, len(raw), kept))

    def to_instance(self, raw: bytes, now: int) -> tuple[int, Outcome]:
        """A frame that the gateway namespace sends: (the ifindex it leaves by, what becomes of it)."""
        dropped = Outcome(Whereto.DROPPED, Verdict.REPLY_FOREIGN, raw)
        try:
            frame = frames.read_frame(raw)
            read = {frames.IPV4: frames.read_ip4, frames.IPV6: frames.read_ip6}.get(frame.ethertype)
            packet = read(frame) if read and not frame.tags else None
            slot = answers.slot_of(packet.destination) if packet else None
            if packet is None or slot is None or packet.refused or packet.protocol != frames.TCP:
                return 0, dropped
            tcp = frame.at(packet.l4, frames.TCP_HEADER)
        except RefusedError:
            return 0, dropped  # there is no port to count it under
        owner = self.state.slots.get(slot)
        if owner is None:
            return 0, dropped
        key = (slot, packet.source, frames.number(tcp[:2]), frames.number(tcp[2:4]))
        flow = self.state.flows.get(key)
        verdict = _judge_reply(owner, flow, packet.family, tcp[13])
        owner.counters[verdict] += 1
        if verdict is not Verdict.REPLIED or flow is None:
            self._show(slot, verdict, raw, now, to_guest=True)
            return 0, Outcome(Whereto.DROPPED, verdict, raw)
        flow.note(tcp[13], "service", now)
        hop_limit = owner.policy.hop_limit
        restored = answers.restored(frame, packet, flow.guest, flow.macs, flow.tags, hop_limit)
        self._show(slot, verdict, restored, now, to_guest=True)
        return owner.tap, Outcome(Whereto.GUEST, verdict, restored)


def _judge_reply(owner: Slot, flow: Flow | None, family: int, flags: int) -> Verdict:
    """A refused port still gets the reset with which its open connections end."""
    if owner.refused or not owner.tap:
        return Verdict.REPLY_NO_PORT
    if flow is None or flow.generation != owner.generation:
        return Verdict.REPLY_NO_FLOW
    access = owner.access(family)
    if access is Access.OPEN or (access is Access.RESET and flags & frames.RST):
        return Verdict.REPLIED
    return Verdict.REPLY_DISABLED


def _text(address: bytes) -> str:
    return str(IPv4Address(address) if len(address) == 4 else IPv6Address(address))
