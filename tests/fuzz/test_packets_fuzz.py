# Invariant: for every frame and every policy, the eBPF programs and the model of the contract (shim/datapath/model.py)
# say the same verdict, count the same, send the frame on to the same place, and as the same bytes.
"""Differential fuzzing of the datapath: sequences of frames near those that are served, tagged, cut, bent.

Hypothesis chooses the sequence, the owners and a seed a frame; what a seed means is rolled here, with weights that
let connections open and go on, as values of hypothesis' own liking seldom would.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.datapath.model import Model, Outcome, Whereto
from shim.datapath.model_state import Rules
from tests.bpf import loaded
from tests.bpf.frames import BOTH, GUEST_MAC, HOST_MAC, NEIGHBOUR_MAC, ROUTER_MAC, SERVICE_MAC, lengths
from tests.bpf.frames import segment as syn
from tests.bpf.loaded import INSTANCE, PASSED, REDIRECT, SHOT, Loaded

pytestmark = pytest.mark.root

T = TypeVar("T")

GROUP_MACS = ["ff:ff:ff:ff:ff:ff", "33:33:ff:00:02:54"]
OTHERS4 = ["10.0.0.6", "169.254.169.126", "255.255.255.255", "127.255.255.255"]
OTHERS6 = ["ff02::1", "ff02::1:ff00:254", "ff02::1:fffe:a9fe", "ff02::1:ff00:6", "fd00:1::6"]
FLAGS = [0x02, 0x02, 0x02, 0x02, 0x10, 0x18, 0x18, 0x11, 0x04, 0x12]


class Dice(random.Random):
    """Rolls of one seed."""

    def mostly(self, usual: T, others: list[T], of: int = 10) -> T:
        """`usual`, but one time in `of` one of the others."""
        return usual if self.randrange(of) else self.choice(others)

    def payload(self) -> bytes:
        return self.randbytes(self.randrange(40))


def segment(dice: Dice) -> Packet:
    short, offset = dice.randrange(1 << 16), dice.randrange(16)
    fields = {
        "sport": dice.randrange(40000, 40002),
        "dport": dice.mostly(80, [8775, 22, short]),
        "flags": dice.mostly(dice.choice(FLAGS), [dice.randrange(256)]),
        "seq": dice.randrange(1 << 32),
        "ack": dice.randrange(1 << 32),
        "chksum": dice.mostly(None, [short]),
        "dataofs": dice.mostly(None, [offset], of=25),
    }
    return TCP(**fields) / dice.payload()


def datagram(dice: Dice) -> Packet:
    return UDP(sport=dice.choice([53, 80]), dport=80) / dice.payload()


def echo4(dice: Dice) -> Packet:
    kind = {"type": dice.mostly(8, [0, 3]), "code": dice.mostly(0, [1])}
    return ICMP(**kind, id=7, chksum=dice.mostly(None, [0, 0xFFFF, 0x1234])) / dice.payload()


def echo6(dice: Dice) -> Packet:
    return ICMPv6EchoRequest(data=dice.payload(), cksum=dice.mostly(None, [0, 0xFFFF, 0x1234]))


def target6(dice: Dice) -> str:
    return dice.mostly(dice.mostly("fd00:ec2::254", ["fe80::a9fe:a9fe"], of=3), OTHERS6, of=6)


def discovery(dice: Dice) -> Packet:
    target = target6(dice)
    asked = ICMPv6ND_NS(tgt=target, code=dice.mostly(0, [1]))
    told = [ICMPv6ND_NA(tgt=target), ICMPv6ND_Redirect(tgt=target, dst=target6(dice)), ICMPv6ND_RS()]
    return dice.mostly(asked, told, of=3)


def packet4(dice: Dice) -> Packet:
    fields = {
        "src": dice.mostly("10.0.0.5", ["10.0.0.6", "0.0.0.0", "169.254.169.254"]),
        "dst": dice.mostly("169.254.169.254", OTHERS4),
        "ttl": dice.randrange(256),
        "flags": dice.mostly("", ["DF", "MF"], of=20),
        "options": dice.mostly([], [[IPOption_NOP()]], of=25),
        "len": dice.mostly(None, [20, 39, 60], of=25),
        "ihl": dice.mostly(None, [4, 6], of=25),
    }
    return IP(**fields) / dice.mostly(segment, [datagram, echo4], of=3)(dice)


def packet6(dice: Dice) -> Packet:
    source = dice.mostly("fd00:1::5", ["::", "fe80::1", "fd00:ec2::254", "fe80::a9fe:a9fe"])
    packet = IPv6(src=source, dst=target6(dice), hlim=dice.randrange(256), tc=dice.randrange(256))
    packet.plen = dice.mostly(None, [dice.randrange(80)], of=25)
    for _ in range(dice.mostly(0, [1, 2, 3, 4, 5])):
        packet = packet / dice.choice([IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment(m=1)])
    return packet / dice.mostly(segment, [datagram, echo6, discovery, discovery], of=2)(dice)


def arp(dice: Dice) -> Packet:
    return ARP(
        op=dice.mostly(1, [2, 3], of=4),
        psrc=dice.mostly("10.0.0.5", ["0.0.0.0", "169.254.169.254"]),
        pdst=dice.mostly("169.254.169.254", OTHERS4, of=4),
        hwsrc=dice.mostly(GUEST_MAC, [NEIGHBOUR_MAC]),
        hwlen=dice.mostly(6, [5, 8]),
        plen=dice.mostly(4, [16]),
    )


def guests_frame(seed: int) -> bytes:
    """A frame near those that are served, tagged at times, and perhaps bent. Or noise."""
    dice = Dice(seed)
    if not dice.randrange(30):
        return dice.randbytes(dice.randrange(15, 100))
    packet = dice.choice([packet4, packet4, packet6, packet6, arp])(dice)
    source, target = dice.mostly(GUEST_MAC, [NEIGHBOUR_MAC], of=25), dice.mostly(ROUTER_MAC, GROUP_MACS, of=4)
    frame = bytes(Ether(src=source, dst=target) / packet)
    tags = b""
    for _ in range(dice.mostly(0, [1, 1, 2, 2, 3, 4, 5], of=4)):
        tags += dice.mostly(b"\x81\0", [b"\x88\xa8", b"\x91\0"], of=4) + dice.choice([b"\0\5", b"\0\6", b"\xff\xff"])
    return bend(dice, frame[:12] + tags + frame[12:])


def services_frame(seed: int) -> bytes:
    """A frame near those that the gateway namespace sends."""
    dice = Dice(seed)
    tcp = segment(dice)
    tcp.sport, tcp.dport = tcp.dport, tcp.sport
    if dice.randrange(2):
        packet = IP(src="169.254.169.254", dst=dice.mostly("100.64.0.0", ["100.128.0.0"])) / tcp
    else:
        packet = IPv6(src=target6(dice), dst=dice.mostly("fd6d:7368:696d::", ["fd6d:7368:696d:1::"])) / tcp
    return bend(dice, bytes(Ether(src=SERVICE_MAC, dst=HOST_MAC) / packet))


def bend(dice: Dice, frame: bytes) -> bytes:
    """Cut, padded, some bytes changed, or most often left alone."""
    how = dice.mostly("", ["cut", "pad", "change", "change"], of=8)
    if how == "cut":
        return frame[: dice.randrange(15, len(frame))]
    if how == "pad":
        return frame + dice.payload()
    for _ in range(dice.randrange(3) if how == "change" else 0):
        at = dice.randrange(12, len(frame))
        frame = frame[:at] + bytes([dice.randrange(256)]) + frame[at + 1 :]
    return frame


ACCESSES = st.sampled_from([Access.OPEN] * 6 + list(Access))
OWNERS = st.builds(
    lambda generation, instance, **policy: loaded.port(Policy(**policy), generation=generation, instance=instance),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([INSTANCE] * 7 + [None]),
    v4=ACCESSES,
    v6=ACCESSES,
    hop_limit=st.integers(1, 64),
)
SEEDS = st.integers(0, (1 << 32) - 1)
FROM = st.tuples(st.just("from_instance"), SEEDS.map(guests_frame))
TO = st.tuples(st.just("to_instance"), SEEDS.map(services_frame))
OWN = st.tuples(st.just("own"), OWNERS | OWNERS | OWNERS | st.none())
STEPS = st.sampled_from([FROM] * 8 + [TO] * 4 + [OWN]).flatmap(lambda step: step)


class Pair:
    """The programs and the model, of equal state."""

    def __init__(self, kernel: Loaded) -> None:
        kernel.reset()
        self.kernel = kernel
        self.model = Model(Rules.read(loaded.settings()))
        self.now = 1
        self.own(loaded.port())

    def own(self, port: Port | None) -> None:
        self.kernel.enrol(port)
        slot = self.model.state.slot(0)
        slot.port, slot.tap, slot.generation = port, loaded.LOOPBACK, port.generation if port else 0

    def from_instance(self, frame: bytes) -> None:
        said = self.kernel.from_instance(frame)
        outcome = self.model.from_instance(0, frame, self.now)
        self.compare(said.action, said.frame, outcome)

    def to_instance(self, frame: bytes) -> None:
        said = self.kernel.to_instance(frame)
        _, outcome = self.model.to_instance(frame, self.now)
        self.compare(said.action, said.frame, outcome, self.tag_beside(frame))

    def tag_beside(self, frame: bytes) -> bool:
        """Whether the reply gets a tag, whose outermost a test run puts beside the frame, so shows not."""
        return any(flow.tags for flow in self.model.state.flows.values())

    def compare(self, action: int, frame: bytes, outcome: Outcome, tag_beside: bool = False) -> None:
        expected = {Whereto.PASSED: PASSED, Whereto.DROPPED: SHOT}.get(outcome.whereto, REDIRECT)
        assert action == expected, outcome
        if outcome.whereto is not Whereto.DROPPED:
            shown = {outcome.frame}
            if tag_beside:
                shown.add(outcome.frame[:12] + outcome.frame[16:])
            assert frame in shown, outcome
        assert self.kernel.counters() == {v: n for v, n in self.model.state.slot(0).counters.items() if n}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Loaded]:
    with loaded.loaded("fuzz") as made:
        yield made


def acceptable(frame: bytes) -> bool:
    """Whether a test run takes the frame."""
    return lengths(frame).start <= len(frame)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(opened=st.booleans(), steps=st.lists(STEPS, min_size=15, max_size=40))
def test_the_programs_and_the_model_agree(kernel, opened, steps):
    pair = Pair(kernel)
    for family in BOTH if opened else []:
        pair.from_instance(syn(family, sport=40000))
    for what, argument in steps:
        if what == "own" or acceptable(argument):
            getattr(pair, what)(argument)
