# Invariants, on a real tap, for every frame and policy: nothing goes on to the bridge but what the model of the
# contract (shim/datapath/model.py) calls a bystander, unchanged, and all of those do; what reaches the gateway is
# what it would deliver, as the same bytes; nobody is answered whom it would not answer.
"""Differential fuzzing of the nftables datapath: batches of frames near those that are served, on a tap of a bridge."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.verdict import Verdict
from shim.datapath import model_frames
from shim.datapath.model import Outcome, Whereto
from tests.contract.kernel import KernelRig
from tests.contract.rig import INSTANCES, FakeRig
from tests.fuzz.test_packets_fuzz import guests_frame
from tests.lab import mentions

pytestmark = pytest.mark.root

ACCESSES = st.sampled_from([Access.OPEN] * 4 + [Access.RESET, Access.DROP])
POLICIES = st.builds(Policy, v4=ACCESSES, v6=ACCESSES)
SEEDS = st.integers(0, (1 << 32) - 1)
BATCHES = st.lists(SEEDS.map(guests_frame), min_size=20, max_size=40)

LAST = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:1a:57:1a:57:1a", type=0x88B5) / b"that is all")

_generations = count(1)


class Pair:
    """A tap guarded by nftables, and the model: in both, an owner of its own for each batch."""

    def __init__(self, rig: KernelRig) -> None:
        self.rig = rig
        self.model = FakeRig()

    def own(self, policy: Policy) -> None:
        generation = next(_generations)
        for rig in (self.rig, self.model):
            port = Port(1, generation, rig.ifindex("a"), "tapa", "", INSTANCES["a"], policy)
            rig.run(rig.datapath.ensure(port))
        self.send("a", [])  # takes away what an example before has left, that failed

    def judge(self, frame: bytes) -> Outcome:
        return self.model.datapath.deliver(self.model.ifindex("a"), frame)

    def send(self, tap: str, frames: list[bytes], delivered: int = 0) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """What the gateway, the guest and the bridge got; the last frame, a bystander, says that all have come."""
        for frame in [*frames, LAST]:
            self.rig.send(tap, frame)
        bridge = self.rig.passed_until(LAST)
        return self.rig.gateway(delivered), self.rig.guest("a"), bridge


@pytest.fixture(scope="module")
def pair(nft_host) -> Iterator[Pair]:
    rig = KernelRig(nft_host)
    try:
        yield Pair(rig)
    finally:
        rig.close()


def has_tags(frame: bytes) -> bool:
    return int.from_bytes(frame[12:14], "big") in (*model_frames.UNDERSTOOD_TAGS, *model_frames.OTHER_TAGS)


def is_sent(frame: bytes) -> bool:
    """Whether a device and a bridge take it: no noise with a group as its source."""
    return not frame[6] & 1


def is_reset(frame: bytes) -> bool:
    """TCP with the flag RST: nftables forgets the connection at once, the model (and eBPF) keeps it until its place is
    needed, so they say different things of what comes after it."""
    at = {b"\x08\x00": 47, b"\x86\xdd": 67}.get(frame[12:14], 0)
    return bool(at) and frame[at : at + 1] != b"" and bool(frame[at] & model_frames.RST)


def is_wrapped(frame: bytes) -> bool:
    """IPv6 with headers before what it is."""
    return frame[12:14] == b"\x86\xdd" and frame[20:21] in (b"\0", b"\x2b", b"\x2c", b"\x3c")


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(policy=POLICIES, frames=BATCHES)
def test_nftables_and_the_model_agree_on_frames_without_tags(pair, policy, frames):
    """What the model calls malformed is left out: nftables leaves some of it to the gateway's own stack. So are IPv6
    frames with headers before what they are: one of both looks deeper here, the other there."""
    pair.own(policy)
    plain = [f for f in frames if is_sent(f) and not (has_tags(f) or is_wrapped(f) or is_reset(f))]
    judged = [(frame, pair.judge(frame)) for frame in plain]
    judged = [(frame, outcome) for frame, outcome in judged if outcome.verdict is not Verdict.MALFORMED]
    of = {where: [o.frame for _, o in judged if o.whereto is where] for where in Whereto}
    gateway, guest, bridge = pair.send("a", [frame for frame, _ in judged], len(of[Whereto.GATEWAY]))
    assert gateway == of[Whereto.GATEWAY]
    assert len(guest) <= len(of[Whereto.GUEST])
    stricter = [frame for frame in of[Whereto.PASSED] if frame not in bridge]
    assert bridge == [frame for frame in of[Whereto.PASSED] if frame not in stricter]
    assert pair.send("c", stricter)[2] == []  # a bridge has a taste of its own


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(policy=POLICIES, frames=BATCHES)
def test_nothing_of_the_service_passes_whatever_it_is_wrapped_in(pair, policy, frames):
    pair.own(policy)
    frames = [frame for frame in frames if is_sent(frame)]
    bystanders = {frame for frame in frames if pair.judge(frame).whereto is Whereto.PASSED}
    gateway, guest, bridge = pair.send("a", frames)
    assert [frame for frame in bridge if frame not in bystanders and mentions(frame)] == []
    assert [frame for frame in [*gateway, *guest] if has_tags(frame)] == []
