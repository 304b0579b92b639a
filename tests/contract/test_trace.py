"""What an operator who traces a port is shown (`metashim trace`): its packets about the service, with verdicts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from shim.datapath.abi import TRACE_BYTES
from tests.bpf.frames import BOTH, arp_request, echo_request, segment, solicitation
from tests.bpf.test_bystanders import FRAMES
from tests.contract.test_service import reply, restored

PATIENCE = 2.0
RATE, BURST = 1000, 200


def shown(bench, expect):
    """(verdict, to the guest, frame) since the last look; waits for as many as are expected."""
    end = time.monotonic() + PATIENCE
    time.sleep(0.05)
    found = bench.rig.datapath.traced()
    while len(found) < expect and time.monotonic() < end:
        time.sleep(0.01)
        found += bench.rig.datapath.traced()
    return [(one.verdict, one.to_guest, one.frame) for one in found]


@pytest.fixture
def port(bench):
    """Tap a's port, traced; tap b is served beside it."""
    port = bench.enrol("a")
    bench.enrol("b")
    bench.rig.datapath.trace(port, True)
    return port


@pytest.mark.parametrize("family", BOTH)
class TestShows:
    def test_a_connection_with_both_directions(self, bench, port, family):
        asked = segment(family, "PA", b"GET / HTTP/1.1\r\n\r\n")
        bench.passes_to_gateway("a", segment(family, "S"))
        bench.rig.reply(reply("a", family, "SA"))
        bench.rig.guest("a", expect=1)
        bench.passes_to_gateway("a", asked)
        assert shown(bench, 3) == [
            (Verdict.OPENED, False, segment(family, "S")),
            (Verdict.REPLIED, True, restored(family, "SA")),
            (Verdict.DELIVERED, False, asked),
        ]

    def test_what_is_refused_and_why(self, bench, port, family):
        bench.assert_refused("a", segment(family, "S", dport=22), Verdict.WRONG_PORT)
        assert shown(bench, 1) == [(Verdict.WRONG_PORT, False, segment(family, "S", dport=22))]

    def test_what_is_refused_by_policy(self, bench, port, family):
        bench.enrol("a", Policy(Access.DROP, Access.DROP))
        bench.assert_refused("a", segment(family, "S"), Verdict.DISABLED_DROP)
        assert shown(bench, 1) == [(Verdict.DISABLED_DROP, False, segment(family, "S"))]

    def test_replies_that_are_refused(self, bench, port, family):
        bench.rig.reply(reply("a", family))
        ((verdict, to_guest, _),) = shown(bench, 1)
        assert (verdict, to_guest) == (Verdict.REPLY_NO_FLOW, True)

    def test_questions_that_are_answered_here(self, bench, port, family):
        neighbour = bytes(arp_request() if family == 4 else solicitation())
        bench.answer("a", neighbour)
        bench.answer("a", bytes(echo_request(family)))
        kind = Verdict.ARP_ANSWERED if family == 4 else Verdict.ND_ANSWERED
        assert shown(bench, 2) == [
            (kind, False, neighbour), (Verdict.ECHO_ANSWERED, False, bytes(echo_request(family))),
        ]  # fmt: skip

    def test_the_beginning_of_what_is_long(self, bench, port, family):
        bench.passes_to_gateway("a", segment(family, "S"))
        shown(bench, 1)
        long = segment(family, "PA", bytes(n % 251 for n in range(1000)))
        bench.passes_to_gateway("a", long)
        end = time.monotonic() + PATIENCE
        while not (found := bench.rig.datapath.traced()) and time.monotonic() < end:
            time.sleep(0.01)
        assert [(one.frame, one.length) for one in found] == [(long[:TRACE_BYTES], len(long))]


class TestShowsNothing:
    def test_of_another_port(self, bench, port):
        bench.passes_to_gateway("b", segment(4, "S"))
        bench.assert_refused("b", segment(6, "S", dport=22), Verdict.WRONG_PORT)
        assert shown(bench, 0) == []

    def test_of_bystanders(self, bench, port):
        bench.send("a", bytes(FRAMES["tcp4"]))
        bench.rig.bridge(expect=1)
        assert shown(bench, 0) == []

    def test_after_the_end(self, bench, port):
        bench.rig.datapath.trace(port, False)
        bench.passes_to_gateway("a", segment(4, "S"))
        bench.rig.reply(reply("a", 4, "SA"))
        bench.rig.guest("a", expect=1)
        assert shown(bench, 0) == []

    def test_of_the_slots_next_owner(self, bench, port):
        bench.remove("a")
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4, "S"))
        assert shown(bench, 0) == []
        assert bench.rig.datapath.left_out(port.slot) == 0


def test_goes_on_whatever_becomes_of_the_policy(bench, port):
    for policy in (Policy(Access.DROP, Access.DROP), Policy(hop_limit=3)):
        bench.enrol("a", policy)
    bench.passes_to_gateway("a", segment(4, "S"))
    assert shown(bench, 1) == [(Verdict.OPENED, False, segment(4, "S"))]


def test_ends_with_the_agent(bench, port):
    bench.rig.restart()
    bench.enrol("a")
    bench.passes_to_gateway("a", segment(4, "S"))
    assert shown(bench, 0) == []


def test_may_begin_before_the_port_is_there(bench, port):
    bench.remove("a")
    bench.rig.datapath.trace(replace(port, generation=port.generation + 1), True)
    bench.enrol("a")
    bench.passes_to_gateway("a", segment(4, "S"))
    assert shown(bench, 1) == [(Verdict.OPENED, False, segment(4, "S"))]


def test_twice_on_is_on_and_twice_off_is_off(bench, port):
    bench.rig.datapath.trace(port, True)
    bench.rig.datapath.trace(port, False)
    bench.rig.datapath.trace(port, False)
    bench.passes_to_gateway("a", segment(4, "S"))
    assert shown(bench, 0) == []


def test_a_flood_is_shown_at_a_bounded_rate_and_the_rest_is_counted(bench, port):
    frame, began = segment(4, "S", dport=22), time.monotonic()
    for _ in range(3000):
        bench.send("a", frame)
    seconds = time.monotonic() - began
    found = len(shown(bench, BURST)) + len(shown(bench, 0)) + len(shown(bench, 0))
    assert BURST * 0.9 <= found <= BURST + RATE * (seconds + 0.1) + 10
    assert found + bench.rig.datapath.left_out(port.slot) == 3000
