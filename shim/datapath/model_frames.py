"""Frames as bytes: bounds first, then fields; checksums. PURE.

The part of the model (see model.py) that knows formats. Sources: IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293.
All numbers are read in the order of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.core.verdict import Verdict

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
UNDERSTOOD_TAGS = (0x8100, 0x88A8)
"""802.1Q and 802.1ad: what the kernel can take off and put back."""

OTHER_TAGS = (0x9100,)
"""Looked under, since a switch may; not understood."""

TAGS = 2  # served
TAGS_SEEN = 4  # looked under

ICMP, TCP, ICMP6 = 1, 6, 58
FRAGMENT_HEADER = 44
WALKED_EXTENSIONS = (0, 43, 60)
"""Hop-by-hop, routing, destination: those whose length is where discovery behind them can be found."""

EXTENSIONS = (*WALKED_EXTENSIONS, 50, 51, 135, 139, 140, 253, 254)
"""And ESP, AH, mobility, host identity, shim6, experiments (RFC 6564, RFC 7045)."""

ETHERNET, IPV4_HEADER, IPV6_HEADER, TCP_HEADER = 14, 20, 40, 20
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class RefusedError(Exception):
    """A frame is refused; `verdict` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.label)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Frame:
    """An Ethernet frame. `tags` are (ethertype, tci), outer first; `l3` is the network header's offset."""

    raw: bytes
    tags: tuple[tuple[int, int], ...]
    ethertype: int
    l3: int

    @property
    def destination(self) -> bytes:
        """The MAC that the frame goes to."""
        return self.raw[:6]

    @property
    def source(self) -> bytes:
        """The MAC that the frame comes from."""
        return self.raw[6:12]

    @property
    def understood(self) -> bool:
        """Whether replies could be given these tags back."""
        return len(self.tags) <= TAGS and all(kind in UNDERSTOOD_TAGS for kind, _ in self.tags)

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes at an offset from the frame's begin. Refused as malformed where the frame ends before."""
        if offset + size > len(self.raw):
            raise RefusedError(Verdict.MALFORMED)
        return self.raw[offset : offset + size]


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet whose sizes are sound. `l4` is an offset from the frame's begin, `length` what follows there.

    `refused` is why nobody should look further, if so: a fragment, options, extension headers.
    """

    family: int
    protocol: int
    source: bytes
    destination: bytes
    l4: int
    length: int
    refused: Verdict | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP header."""

    source: int
    destination: int
    sequence: bytes
    acknowledged: bytes
    header: int
    flags: int


def number(data: bytes) -> int:
    """An unsigned integer in the order of the wire."""
    return int.from_bytes(data, "big")


def read_frame(raw: bytes) -> Frame:
    """The frame, down to what lies behind its tags. Refused: cut within them, or more than TAGS_SEEN."""
    bare = Frame(raw, (), 0, 0)
    ethertype, l3 = number(bare.at(12, 2)), ETHERNET
    tags: list[tuple[int, int]] = []
    while ethertype in UNDERSTOOD_TAGS or ethertype in OTHER_TAGS:
        if len(tags) == TAGS_SEEN:
            raise RefusedError(Verdict.VLAN_DEPTH)
        inside = bare.at(l3, 4)
        tags.append((ethertype, number(inside[:2])))
        ethertype, l3 = number(inside[2:]), l3 + 4
    return Frame(raw, tuple(tags), ethertype, l3)


def read_ip4(frame: Frame) -> Packet:
    """The IPv4 packet in a frame."""
    ip = frame.at(frame.l3, IPV4_HEADER)
    header, total = (ip[0] & 15) * 4, number(ip[2:4])
    sizes_fit = IPV4_HEADER <= header <= total <= len(frame.raw) - frame.l3
    if ip[0] >> 4 != 4 or not sizes_fit:
        raise RefusedError(Verdict.MALFORMED)
    refused = Verdict.IP_OPTIONS if header > IPV4_HEADER else None
    if number(ip[6:8]) & 0x3FFF:  # more fragments, or an offset
        refused = Verdict.FRAGMENT
    return Packet(4, ip[9], ip[12:16], ip[16:20], frame.l3 + IPV4_HEADER, total - IPV4_HEADER, refused)


def read_ip6(frame: Frame) -> Packet:
    """The IPv6 packet in a frame."""
    ip = frame.at(frame.l3, IPV6_HEADER)
    length, following = number(ip[4:6]), ip[6]
    if ip[0] >> 4 != 6 or frame.l3 + IPV6_HEADER + length > len(frame.raw):
        raise RefusedError(Verdict.MALFORMED)
    refused = Verdict.EXTENSION_HEADER if following in EXTENSIONS else None
    if following == FRAGMENT_HEADER:
        refused = Verdict.FRAGMENT
    return Packet(6, following, ip[8:24], ip[24:40], frame.l3 + IPV6_HEADER, length, refused)


def read_segment(frame: Frame, packet: Packet) -> Segment:
    """The TCP header of a packet, its sizes and flags sound."""
    if packet.length < TCP_HEADER:
        raise RefusedError(Verdict.MALFORMED)
    tcp = frame.at(packet.l4, TCP_HEADER)
    header, flags = (tcp[12] >> 4) * 4, tcp[13]
    contradicts = flags & SYN and flags & (FIN | RST)
    if not TCP_HEADER <= header <= packet.length or contradicts:
        raise RefusedError(Verdict.MALFORMED)
    return Segment(number(tcp[:2]), number(tcp[2:4]), tcp[4:8], tcp[8:12], header, flags)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with other bytes at an offset, its length unchanged."""
    return data[:at] + new + data[at + len(new) :]


def ones_sum(data: bytes) -> int:
    """The sum of 16-bit words (RFC 1071), not folded; an odd byte at the end counts as a high one."""
    data += b"\0" * (len(data) % 2)
    return sum(number(data[at : at + 2]) for at in range(0, len(data), 2))


def _complement(total: int) -> bytes:
    """Folded and inverted. The fold of what is not all zeros is never 0, so neither is this ever 0xffff."""
    return (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2, "big")


def checksum(data: bytes) -> bytes:
    """The checksum over all of `data`, whose checksum field is zero (RFC 1071)."""
    return _complement(ones_sum(data))


def transport_checksum(source: bytes, destination: bytes, protocol: int, data: bytes) -> bytes:
    """The checksum of `data` behind the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1)."""
    pseudo = source + destination + len(data).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    return checksum(pseudo + data)


def adjusted(field: bytes, old: bytes, new: bytes) -> bytes:
    """A checksum after `old` became `new` in what it covers (RFC 1624, equation 3): a wrong one stays wrong."""
    inverted = bytes(0xFF - byte for byte in old)
    return _complement(0xFFFF - number(field) + ones_sum(inverted) + ones_sum(new))
