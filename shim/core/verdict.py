"""What the datapath may say of a packet, by number. PURE.

One number is one counter of a port. Numbers are never reused; rules/README.md explains each, and
rules/bpf/lib/verdict.h says the same to the kernel (a test holds all three together). Refusals start
at 16, away from the kernel's own TC_ACT_* values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

COUNTERS = 64
"""Size of a port's counter array: room for every number that may ever be given out."""

REFUSALS_START = 16


class Verdict(enum.IntEnum):
    """Why a packet was counted."""

    DELIVERED = 1  # a TCP segment of the guest's, stamped and handed to the gateway
    REPLIED = 2  # a segment of the service's, restored and sent to the guest
    OPENED = 3  # a SYN that opened a connection (also counted as DELIVERED)
    ARP_ANSWERED = 4
    ND_ANSWERED = 5
    ECHO_ANSWERED = 6

    DISABLED_RESET = 16
    DISABLED_DROP = 17
    NO_IDENTITY = 18
    NOT_ENROLLED = 19
    RATE_LIMITED = 20
    FLOW_LIMIT = 21
    FLOW_CLASH = 22
    NO_FLOW = 23
    SPOOFED_SOURCE = 24
    SPOOFED_ARP = 25
    SPOOFED_ND = 26
    WRONG_PORT = 27
    WRONG_PROTOCOL = 28
    FRAGMENT = 29
    IP_OPTIONS = 30
    EXTENSION_HEADER = 31
    MALFORMED = 32
    VLAN_DEPTH = 33
    REPLY_FOREIGN = 40
    REPLY_NO_PORT = 41
    REPLY_NO_FLOW = 42
    REPLY_DISABLED = 43
    KERNEL_FAILED = 44

    @property
    def label(self) -> str:
        """The name that operators see: `no_identity`."""
        return self.name.lower()

    @property
    def refusal(self) -> bool:
        """Whether the packet went no further."""
        return self >= REFUSALS_START


@dataclass(frozen=True, slots=True)
class Event:
    """One refused packet. `ns` is of the host's CLOCK_MONOTONIC; ports are 0 where there are none."""

    ns: int
    slot: int
    generation: int
    verdict: Verdict
    source: str
    destination: str
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Traced:
    """One packet of a port that is traced: what the guest sent, as it came, or what it is sent, as it leaves.

    `ns` is of the host's CLOCK_MONOTONIC; `length` is the whole frame's, of which `frame` is the beginning.
    """

    ns: int
    slot: int
    generation: int
    verdict: Verdict
    to_guest: bool
    length: int
    frame: bytes
