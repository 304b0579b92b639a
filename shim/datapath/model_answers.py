"""What becomes of a frame: answers to the guest, stamping for the gateway, restoring for the guest. PURE.

The part of the model (see model.py) that makes frames. What is rewritten in place keeps what lies behind it.
"""

from __future__ import annotations

from shim.datapath.model_frames import (
    ACK,
    FIN,
    ICMP6,
    IPV4,
    IPV6,
    RST,
    SYN,
    TCP,
    TCP_HEADER,
    Frame,
    Packet,
    Segment,
    adjusted,
    checksum,
    number,
    replaced,
    transport_checksum,
)

SERVICE_MAC = bytes.fromhex("0200a9fea9fe")
HOST_MAC = bytes.fromhex("020000000001")
SLOTS_V4 = 0x64400000  # 100.64.0.0
SLOTS_V6 = bytes.fromhex("fd6d7368696d000000000000")

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC = bytes.fromhex("333300000001")
ADVERTISEMENT, SOLICITED, OVERRIDE = 136, 0x40, 0x20


def slot_address(slot: int, family: int) -> bytes:
    """Who speaks, inside the gateway namespace."""
    return (SLOTS_V4 + slot).to_bytes(4, "big") if family == 4 else SLOTS_V6 + slot.to_bytes(4, "big")


def slot_of(address: bytes) -> int | None:
    """The slot that an address in the gateway namespace stands for."""
    if len(address) == 4:
        slot = number(address) - SLOTS_V4
        return slot if 0 <= slot < 1 << 22 else None
    return number(address[12:]) if address[:12] == SLOTS_V6 else None


def answer_arp(frame: Frame) -> bytes:
    """The ARP reply to a request (RFC 826)."""
    arp = frame.raw[frame.l3 : frame.l3 + 28]
    sender, target = arp[8:18], arp[24:28]
    reply = arp[:6] + b"\0\2" + SERVICE_MAC + target + sender
    return replaced(replaced(frame.raw, 0, sender[:6] + SERVICE_MAC), frame.l3, reply)


def answer_solicitation(frame: Frame, packet: Packet) -> bytes:
    """The neighbour advertisement (RFC 4861, 4.4 and 7.2.4).

    A solicitation without a sender tries whether the address is free; all nodes are told that it is not.
    """
    probe = not any(packet.source)
    target = frame.raw[packet.l4 + 8 : packet.l4 + 24]
    flags = (0 if probe else SOLICITED) | OVERRIDE
    reserved = frame.raw[packet.l4 + 5 : packet.l4 + 8]
    option = b"\2\1" + SERVICE_MAC
    message = bytes([ADVERTISEMENT, 0, 0, 0, flags]) + reserved + target + option
    receiver = ALL_NODES if probe else packet.source
    message = replaced(message, 2, transport_checksum(target, receiver, ICMP6, message))
    first = frame.raw[frame.l3 : frame.l3 + 4]
    header = first + len(message).to_bytes(2, "big") + bytes([ICMP6, 255]) + target + receiver
    macs = (ALL_NODES_MAC if probe else frame.source) + SERVICE_MAC
    return macs + frame.raw[12 : frame.l3] + header + message


def answer_echo(frame: Frame, packet: Packet, hop_limit: int) -> bytes:
    """The echo reply (RFC 792, RFC 4443), where the request stood."""
    ip = frame.raw[frame.l3 : packet.l4]
    if packet.family == 4:
        kind = b"\0\0"
        ip = ip[:8] + bytes([hop_limit, ip[9], 0, 0]) + packet.destination + packet.source
        ip = replaced(ip, 10, checksum(ip))
    else:
        kind = b"\x81\0"
        ip = ip[:7] + bytes([hop_limit]) + packet.destination + packet.source
    asked = frame.raw[packet.l4 : packet.l4 + 4]
    reply = kind + adjusted(asked[2:], asked[:2], kind)
    return replaced(replaced(turned(frame), frame.l3, ip), packet.l4, reply)


def turned(frame: Frame) -> bytes:
    """The frame, back to where it came from; it comes from where it went, unless that was a group."""
    source = SERVICE_MAC if frame.destination[0] & 1 else frame.destination
    return replaced(frame.raw, 0, frame.source + source)


def answer_reset(frame: Frame, packet: Packet, asked: Segment, hop_limit: int) -> bytes:
    """The reset to a segment (RFC 9293, 3.10.7.1)."""
    occupied = packet.length - asked.header + bool(asked.flags & SYN) + bool(asked.flags & FIN)
    sequence, acknowledged, flags = asked.acknowledged, bytes(4), RST
    if not asked.flags & ACK:
        end = (number(asked.sequence) + occupied) % (1 << 32)
        sequence, acknowledged, flags = bytes(4), end.to_bytes(4, "big"), RST | ACK
    ports = asked.destination.to_bytes(2, "big") + asked.source.to_bytes(2, "big")
    tcp = ports + sequence + acknowledged + bytes([TCP_HEADER // 4 << 4, flags]) + bytes(6)
    tcp = replaced(tcp, 16, transport_checksum(packet.destination, packet.source, TCP, tcp))
    return turned(frame)[: frame.l3] + _reset_header(packet, hop_limit) + tcp


def _reset_header(packet: Packet, hop_limit: int) -> bytes:
    addresses = packet.destination + packet.source
    if packet.family == 6:
        return b"\x60\0\0\0\0\x14" + bytes([TCP, hop_limit]) + addresses
    header = b"\x45\0\0\x28\0\0\x40\0" + bytes([hop_limit, TCP, 0, 0]) + addresses
    return replaced(header, 10, checksum(header))


def stamped(frame: Frame, packet: Packet, slot: int) -> bytes:
    """The segment as the gateway namespace gets it: without tags, from the slot's address."""
    source = slot_address(slot, packet.family)
    at = 12 if packet.family == 4 else 8
    body = _readdressed(frame.raw[frame.l3 :], packet, at, packet.source, source)
    return SERVICE_MAC + HOST_MAC + _ethertype(packet) + body


def restored(
    frame: Frame, packet: Packet, guest: bytes, macs: bytes, tags: tuple[tuple[int, int], ...], hop_limit: int
) -> bytes:
    """The service's segment as the guest gets it. `macs` are the guest's and the one that it had asked."""
    at = 16 if packet.family == 4 else 24
    body = _readdressed(frame.raw[frame.l3 :], packet, at, packet.destination, guest)
    if packet.family == 4:
        old, new = body[8:10], bytes([hop_limit, body[9]])
        body = replaced(replaced(body, 10, adjusted(body[10:12], old, new)), 8, new)
    else:
        body = replaced(body, 7, bytes([hop_limit]))
    source = SERVICE_MAC if macs[6] & 1 else macs[6:]
    tagged = b"".join(kind.to_bytes(2, "big") + tci.to_bytes(2, "big") for kind, tci in tags)
    return macs[:6] + source + tagged + _ethertype(packet) + body


def _ethertype(packet: Packet) -> bytes:
    return (IPV4 if packet.family == 4 else IPV6).to_bytes(2, "big")


def _readdressed(body: bytes, packet: Packet, at: int, old: bytes, new: bytes) -> bytes:
    """An IP packet with TCP in it, one of its addresses replaced and its checksums kept as right as they were."""
    tcp = 20 if packet.family == 4 else 40
    body = replaced(body, tcp + 16, adjusted(body[tcp + 16 : tcp + 18], old, new))
    if packet.family == 4:
        body = replaced(body, 10, adjusted(body[10:12], old, new))
    return replaced(body, at, new)
