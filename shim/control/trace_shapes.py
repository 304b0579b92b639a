"""What the control API shows of the packets of an instance that is traced."""

from __future__ import annotations

import msgspec


class PacketView(msgspec.Struct, frozen=True):
    """One packet.

    time      Unix seconds
    to_guest  as it leaves for the guest; else as the guest sent it
    verdict   what was made of it, by its label; `refused` if it went no further
    length    the whole frame's, in bytes
    frame     how it begins, in base64. The agent looks at none of it
    """

    time: float
    tap: str
    netns: str
    to_guest: bool
    verdict: str
    refused: bool
    length: int
    frame: str


class MissedView(msgspec.Struct, frozen=True):
    """Packets that were not shown: they came too fast, or whoever looks on reads too slowly."""

    missed: int


class TapsView(msgspec.Struct, frozen=True):
    """The taps that are traced from here on."""

    taps: list[str]


class TraceView(msgspec.Struct, frozen=True):
    """What there was to show since the last time; `taps` where they are others than before."""

    packets: list[PacketView]
    missed: int = 0
    taps: list[str] | None = None
