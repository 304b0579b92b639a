"""A guest that opens connections without end, and none whole: `python -m bench.syns IFNAME SECONDS`.

SYNs from all source ports in turn, as fast as the kernel takes them; their senders answer to nothing. Prints how many a
second it sent.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import time
from ipaddress import IPv4Address

from bench.batch import Batch, packet_socket

MAC, GATEWAY = bytes.fromhex("02be00000001"), bytes.fromhex("02be00000002")
SOURCE, SERVICE = IPv4Address("10.66.0.5"), IPv4Address("169.254.169.254")
PORTS = range(1024, 65536)
BATCH = 64

IPV4 = struct.Struct("!BBHHHBBH4s4s")
TCP = struct.Struct("!HHIIBBHHH")
SYN = 0x02


def syn(port: int) -> bytes:
    """The frame by which a guest opens a connection from that port, whole and right."""
    tcp = TCP.pack(port, 80, port << 16, 0, TCP.size // 4 << 4, SYN, 64240, 0, 0)
    pseudo = SOURCE.packed + SERVICE.packed + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    address = (SOURCE.packed, SERVICE.packed)
    ip = IPV4.pack(0x45, 0, IPV4.size + len(tcp), port, 0x4000, 64, socket.IPPROTO_TCP, 0, *address)
    ip = ip[:10] + _checksum(ip) + ip[12:]
    return GATEWAY + MAC + b"\x08\x00" + ip + tcp


def _checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", total ^ 0xFFFF)


def main(ifname: str, seconds: float) -> None:
    """Floods for so long."""
    batches = [Batch([syn(port) for port in PORTS[at : at + BATCH]]) for at in range(0, len(PORTS), BATCH)]
    sent = 0
    with packet_socket(ifname) as sock:
        end = time.monotonic() + seconds
        for batch in itertools.cycle(batches):
            sent += max(0, batch.send(sock))
            if time.monotonic() > end:
                break
    print(sent / seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
