"""What is changed piece by piece in an nftables table, while its rules stay: set elements, chains on devices. PURE.

Keys and data are as the kernel compares them: marks and interface indexes in the host's byte order, addresses
and ports in the network's, each part of a concatenation padded to four bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set; of a map with `data`; of a verdict map with `jump`, the chain it jumps to."""

    set: str
    key: bytes
    data: bytes | None = None
    jump: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """A base chain at the ingress of one device, whose only rule goes to another chain. Lower priorities are first."""

    chain: str
    device: str
    goto: str
    priority: int


Piece = Element | Hook
