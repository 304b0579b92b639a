"""Whole frames with named addresses, made by scapy, so that checksums and lengths are scapy's and not ours."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from tests.bpf.loaded import SERVICE_V4, SERVICE_V6

GUEST_MAC = "02:11:22:33:44:55"
GUEST_V4 = "10.0.0.5"
GUEST_V6 = "fd00:1::5"
GUEST_LINK_LOCAL = "fe80::11:22ff:fe33:4455"
ROUTER_MAC = "02:99:99:99:99:99"
NEIGHBOUR_MAC = "02:66:66:66:66:66"
NEIGHBOUR_V4 = "10.0.0.6"
NEIGHBOUR_V6 = "fd00:1::6"
SERVICE_MAC = "02:00:a9:fe:a9:fe"
HOST_MAC = "02:00:00:00:00:01"
SLOT_V4 = "100.64.0.0"
SLOT_V6 = "fd6d:7368:696d::"
BROADCAST = "ff:ff:ff:ff:ff:ff"
GUEST_PORT = 40000

SERVICE_GROUP = "ff02::1:ff00:254"
SERVICE_GROUP_MAC = "33:33:ff:00:02:54"
LINK_LOCAL_GROUP = "ff02::1:fffe:a9fe"
LINK_LOCAL_GROUP_MAC = "33:33:ff:fe:a9:fe"
ALL_NODES = "ff02::1"
ALL_NODES_MAC = "33:33:00:00:00:01"

BOTH = [4, 6]
SERVICE_OF = {4: SERVICE_V4, 6: SERVICE_V6}
GUEST_OF = {4: GUEST_V4, 6: GUEST_V6}
SLOT_OF = {4: SLOT_V4, 6: SLOT_V6}
TAGS = {
    "plain": [],
    "vlan": [Dot1Q(vlan=7, prio=3)],
    "qinq": [Dot1AD(vlan=8), Dot1Q(vlan=9, prio=1)],
    "stacked": [Dot1Q(vlan=5), Dot1Q(vlan=6)],
}


def ethernet(*, dst: str = ROUTER_MAC, src: str = GUEST_MAC, tags: list[Packet] | None = None) -> Packet:
    """The layers below IP, from the guest to its router unless told otherwise."""
    frame = Ether(src=src, dst=dst)
    for tag in tags or []:
        frame = frame / tag.copy()
    return frame


def network(family: int, **fields: Any) -> Packet:
    """An IP header from the guest to the service."""
    if family == 4:
        return IP(**{"src": GUEST_V4, "dst": SERVICE_V4, "id": 0x1234} | fields)
    return IPv6(**{"src": GUEST_V6, "dst": SERVICE_V6} | fields)


def tcp(flags: str = "S", **fields: Any) -> Packet:
    """A segment from the guest to the service's port."""
    return TCP(**{"sport": GUEST_PORT, "dport": 80, "flags": flags, "seq": 1000, "ack": 77} | fields)


def segment(
    family: int,
    flags: str = "S",
    payload: bytes = b"",
    *,
    tags: list[Packet] | None = None,
    dst: str = ROUTER_MAC,
    ip: dict[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """A whole frame with a segment from the guest to the service."""
    return bytes(ethernet(dst=dst, tags=tags) / network(family, **(ip or {})) / tcp(flags, **fields) / payload)


def reply(family: int, flags: str = "A", payload: bytes = b"", **fields: Any) -> bytes:
    """A whole frame with a segment from the service to slot 0, as the gateway namespace sends it."""
    to = {"src": SERVICE_OF[family], "dst": SLOT_OF[family]}
    ports = {"sport": 80, "dport": GUEST_PORT} | fields
    return bytes(ethernet(src=SERVICE_MAC, dst=HOST_MAC) / network(family, **to) / tcp(flags, **ports) / payload)


def arp_request(target: str = SERVICE_V4, sender: str = GUEST_V4, tags: list[Packet] | None = None) -> Packet:
    """A broadcast ARP request."""
    ask = ARP(op="who-has", hwsrc=GUEST_MAC, psrc=sender, hwdst="00:00:00:00:00:00", pdst=target)
    return ethernet(dst=BROADCAST, tags=tags) / ask


def solicitation(
    target: str = SERVICE_V6,
    *,
    src: str = GUEST_V6,
    dst: str = SERVICE_GROUP,
    mac: str = SERVICE_GROUP_MAC,
    tags: list[Packet] | None = None,
) -> Packet:
    """A neighbour solicitation, to the service address's group unless told otherwise."""
    ask = ICMPv6ND_NS(tgt=target)
    if src != "::":
        ask = ask / ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
    return ethernet(dst=mac, tags=tags) / IPv6(src=src, dst=dst, hlim=255) / ask


def lengths(frame: bytes) -> range:
    """Where a frame can be cut for a test run: kernels since 6.14 take no IP without its whole first header."""
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)
    return range(shortest, len(frame))


def echo_request(family: int, payload: bytes = b"is anybody there?", tags: list[Packet] | None = None) -> Packet:
    """What `ping` sends."""
    ask = ICMP(id=7, seq=1) if family == 4 else ICMPv6EchoRequest(id=7, seq=1)
    return ethernet(tags=tags) / network(family) / ask / payload


