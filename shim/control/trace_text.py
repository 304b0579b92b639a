"""A packet as a line for people, by scapy. What it shows of a guest's words is a request's method and path, and of an
answer its status: no query, no header, no body, since secrets are in those."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrFragment,
    _IPv6ExtHdr,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from shim.control.text import clean, coloured
from shim.control.trace_shapes import PacketView

PATH_SHOWN = 100
_ETHERNET = 14
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE|PATCH|OPTIONS) (/[^ ?\r\n]*)(\?[^ \r\n]*)?( HTTP/1\.[01]\r?\n)?")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})\b")
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet taken apart. `plain` is how much of the frame may be shown to anybody: its headers."""

    protocol: str
    source: str
    destination: str
    text: str
    plain: int


def seen(frame: bytes, length: int, *, to_guest: bool) -> Seen:
    """What the beginning of a frame of `length` bytes is. It may be anything at all."""
    try:
        return _seen(Ether(frame), frame, length, to_guest)
    except Exception:  # noqa: BLE001 - scapy's dissectors raise what they like, and a guest chose what they are given
        return Seen("?", "", "", "cannot be taken apart", min(len(frame), _ETHERNET))


def _seen(packet: Packet, frame: bytes, length: int, to_guest: bool) -> Seen:
    tags, at, inner = "", _ETHERNET, packet.payload
    while isinstance(inner, Dot1Q):
        tags, at, inner = f"{tags}vlan {inner.vlan} ", at + 4, inner.payload
    if isinstance(inner, ARP):
        return Seen("ARP", str(inner.psrc), str(inner.pdst), tags + _arp(inner), min(at + 28, len(frame)))
    if not isinstance(inner, IP | IPv6):
        kind = inner.underlayer.type if inner.underlayer is not None else 0
        return Seen("?", packet.src, packet.dst, f"{tags}type {kind:#06x}", min(at, len(frame)))
    end, upper, at = _whole(inner, at, length), inner.payload, at + _header(inner)
    while isinstance(upper, _IPv6ExtHdr):
        upper, at = upper.payload, at + _header(upper)
    source, destination = str(inner.src), str(inner.dst)
    plain = min(at + _header(upper), len(frame))
    if isinstance(upper, TCP | UDP):
        kind, more = "UDP", ""
        if isinstance(upper, TCP):
            kind, more = "TCP", f"{upper.flags} seq {upper.seq} ack {upper.ack} "
        ends = f"{_end(source, upper.sport)} > {_end(destination, upper.dport)}"
        http = _http(frame[plain:], to_guest) if kind == "TCP" else ""
        return Seen(kind, source, destination, f"{tags}{ends} {more}len {max(end - plain, 0)}{http}", plain)
    kind, what = _other(inner, upper)
    return Seen(kind, source, destination, f"{tags}{source} > {destination} {what}", plain)


def _arp(arp: Packet) -> str:
    if arp.op == 1:
        return f"who-has {arp.pdst} tell {arp.psrc}"
    return f"{arp.psrc} is-at {arp.hwsrc}" if arp.op == 2 else f"{arp.psrc} > {arp.pdst} operation {arp.op}"


def _whole(ip: Packet, at: int, length: int) -> int:
    """Where the packet ends, by its own word; without one (a large segment) where the frame does."""
    if isinstance(ip, IPv6):
        return int(at + 40 + ip.plen) if ip.plen else length
    return int(at + ip.len) if ip.len else length


def _header(layer: Packet) -> int:
    """The bytes of a layer that are its header, and no data of anybody's."""
    if isinstance(layer, IP):
        return max(int(layer.ihl) * 4, 20)
    if isinstance(layer, TCP):
        return max(int(layer.dataofs) * 4, 20)
    if isinstance(layer, _IPv6ExtHdr):
        return 8 if isinstance(layer, IPv6ExtHdrFragment) else (int(layer.len) + 1) * 8
    known = {IPv6: 40, UDP: 8, ICMP: 8, ICMPv6EchoRequest: 8, ICMPv6EchoReply: 8, ICMPv6ND_NS: 32, ICMPv6ND_NA: 32}
    return known.get(type(layer), 0)


def _other(ip: Packet, upper: Packet) -> tuple[str, str]:
    """What is neither TCP nor UDP."""
    if isinstance(upper, ICMP):
        name = _ICMP.get(upper.type, f"type {upper.type} code {upper.code}")
        return "ICMP", f"{name} id {upper.id} seq {upper.seq}" if upper.type in (0, 8) else name
    if isinstance(upper, ICMPv6ND_NS | ICMPv6ND_NA):
        return "ICMP6", f"{'who-has' if isinstance(upper, ICMPv6ND_NS) else 'is-at'} {upper.tgt}"
    if isinstance(upper, ICMPv6EchoRequest | ICMPv6EchoReply):
        name = "request" if isinstance(upper, ICMPv6EchoRequest) else "reply"
        return "ICMP6", f"echo {name} id {upper.id} seq {upper.seq}"
    fragment = upper.underlayer if isinstance(upper.underlayer, IPv6ExtHdrFragment) else None
    offset = (fragment.offset if fragment else getattr(ip, "frag", 0)) * 8
    number = ip.proto if isinstance(ip, IP) else (upper.underlayer or ip).nh
    return ("IP" if isinstance(ip, IP) else "IP6"), f"fragment at {offset}" if offset else f"protocol {number}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _http(data: bytes, to_guest: bool) -> str:
    """A request's method and path without its query, or an answer's status; nothing of anything else."""
    if to_guest:
        status = _STATUS.match(data)
        return f" HTTP {status[1].decode()}" if status else ""
    request = _REQUEST.match(data)
    if request is None:
        return ""
    path = _shown(request[2])
    return f" {request[1].decode()} {path}{'?…' if request[3] else ''}"


def _shown(path: bytes) -> str:
    """A path that a guest wrote, so that it can neither steer a terminal nor pass for anything else."""
    text = "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"\\x{byte:02x}" for byte in path[:PATH_SHOWN])
    return text + ("…" if len(path) > PATH_SHOWN else "")


def line(view: PacketView, packet: Seen) -> str:
    """One line, as on a terminal."""
    clock = time.strftime("%H:%M:%S", time.localtime(view.time)) + f".{int(view.time % 1 * 1e6):06d}"
    tap = f"{view.netns}/{view.tap}" if view.netns else view.tap
    arrow = "←" if view.to_guest else "→"
    verdict = coloured(view.verdict, "red" if view.refused else "green")
    return f"{clock} {clean(tap)} {arrow} {packet.protocol} {clean(packet.text)}  {verdict}"


def fields(view: PacketView, packet: Seen) -> dict[str, object]:
    """The same for programs."""
    return {
        "time": round(view.time, 6),
        "tap": view.tap,
        "netns": view.netns,
        "direction": "to_guest" if view.to_guest else "from_guest",
        "verdict": view.verdict,
        "refused": view.refused,
        "length": view.length,
        "protocol": packet.protocol,
        "source": packet.source,
        "destination": packet.destination,
        "summary": packet.text,
    }
