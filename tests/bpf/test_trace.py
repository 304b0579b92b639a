"""What an operator who traces a port is shown of its packets, by the programs themselves."""

from __future__ import annotations

import pytest

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from shim.datapath import abi
from tests.bpf.frames import (
    BOTH,
    NEIGHBOUR_V4,
    TAGS,
    arp_request,
    echo_request,
    ethernet,
    network,
    reply,
    segment,
    solicitation,
    tcp,
)
from tests.bpf.loaded import SHOT, port
from tests.bpf.test_served import restored

BURST = 200


@pytest.fixture
def traced(kernel):
    """The same, with a port whose packets are shown."""
    kernel.enrol(port(generation=7), traced=True)
    return kernel


def shown(kernel):
    """(verdict, to the guest, frame) of what was shown since the last look."""
    return [(one.verdict, one.to_guest, one.frame) for one in kernel.traced()]


@pytest.mark.parametrize("family", BOTH)
class TestWhatTheGuestSends:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_is_shown_as_it_came(self, traced, family, tags):
        """And not as it was stamped, whatever became of it."""
        syn = segment(family, "S", tags=tags)
        asked = segment(family, "PA", b"GET / HTTP/1.1\r\n\r\n", tags=tags)
        for frame in (syn, asked):
            traced.from_instance(frame)
        assert shown(traced) == [(Verdict.OPENED, False, syn), (Verdict.DELIVERED, False, asked)]

    def test_is_shown_with_the_reason_when_it_is_refused(self, traced, family):
        strange, unknown = segment(family, "S", dport=22), segment(family, "A")
        for frame in (strange, unknown):
            traced.from_instance(frame)
        assert shown(traced) == [(Verdict.WRONG_PORT, False, strange), (Verdict.NO_FLOW, False, unknown)]

    @pytest.mark.parametrize(
        ("access", "verdict"), [(Access.RESET, Verdict.DISABLED_RESET), (Access.DROP, Verdict.DISABLED_DROP)]
    )
    def test_is_shown_when_the_instance_is_disabled(self, kernel, family, access, verdict):
        kernel.enrol(port(Policy(access, access)), traced=True)
        kernel.from_instance(segment(family, "S"))
        assert shown(kernel) == [(verdict, False, segment(family, "S"))]

    def test_is_shown_as_the_question_and_not_the_answer(self, traced, family):
        frame = bytes(echo_request(family))
        traced.from_instance(frame)
        assert shown(traced) == [(Verdict.ECHO_ANSWERED, False, frame)]

    def test_is_shown_if_it_is_spoofed(self, traced, family):
        frame = segment(family, "S", ip={"src": {4: "169.254.169.254", 6: "fd00:ec2::254"}[family]})
        traced.from_instance(frame)
        assert shown(traced) == [(Verdict.SPOOFED_SOURCE, False, frame)]


def test_discovery_is_shown(traced):
    frames = [bytes(arp_request()), bytes(solicitation())]
    for frame in frames:
        traced.from_instance(frame)
    assert shown(traced) == [
        (Verdict.ARP_ANSWERED, False, frames[0]), (Verdict.ND_ANSWERED, False, frames[1]),
    ]  # fmt: skip


@pytest.mark.parametrize("family", BOTH)
class TestWhatTheServiceSends:
    def test_is_shown_as_the_guest_gets_it(self, traced, family):
        traced.from_instance(segment(family, "S"))
        traced.traced()
        traced.to_instance(reply(family, "SA"))
        assert shown(traced) == [(Verdict.REPLIED, True, restored(family, "SA"))]

    def test_is_shown_with_the_tag_beside_it(self, traced, family):
        traced.from_instance(segment(family, "S", tags=TAGS["qinq"]))
        traced.traced()
        traced.to_instance(reply(family, "SA"))
        plain, tags = restored(family, "SA"), b"".join(bytes(tag)[:2] for tag in TAGS["qinq"])
        ((verdict, to_guest, frame),) = shown(traced)
        assert (verdict, to_guest) == (Verdict.REPLIED, True)
        assert frame == plain[:12] + b"\x88\xa8" + tags[:2] + b"\x81\x00" + tags[2:] + plain[12:]

    def test_is_shown_when_it_is_refused(self, traced, family):
        assert traced.to_instance(reply(family)).action == SHOT
        assert shown(traced) == [(Verdict.REPLY_NO_FLOW, True, reply(family))]


class TestHowMuch:
    @pytest.mark.parametrize("size", [0, 1, 100, 201, 202, 203, 1000])
    def test_of_a_frame(self, traced, size):
        traced.from_instance(segment(4, "S"))
        traced.traced()
        frame = segment(4, "PA", bytes(n % 251 for n in range(size)))
        traced.from_instance(frame)
        (one,) = traced.traced()
        assert (one.frame, one.length) == (frame[: abi.TRACE_BYTES], len(frame))

    def test_of_whom(self, traced):
        traced.from_instance(segment(4, "S"))
        (one,) = traced.traced()
        assert (one.slot, one.generation) == (0, 7)
        assert one.ns > 0

    def test_a_bounded_number_and_the_rest_is_counted(self, traced):
        for _ in range(1000):
            traced.from_instance(segment(4, "S", dport=22))
        shown, left_out = len(traced.traced()), traced.left_out()
        assert BURST <= shown < 1000
        assert shown + left_out == 1000

    def test_a_flood_takes_no_refusals_place(self, kernel):
        from tests.bpf.loaded import settings

        kernel.reset(settings=settings(event_rate=1))
        kernel.enrol(port(), traced=True)
        for _ in range(2000):
            kernel.from_instance(segment(4, "S", dport=22))
        assert len(kernel.events()) >= abi.EVENT_BURST

    def test_a_ring_that_nobody_reads_costs_nobody_anything(self, traced):
        state = traced.maps["tracings"]
        for _ in range(2 * abi.TRACE_RING_BYTES // 288):
            state.update(b"\0" * 4, bytes(8) + (state.lookup(b"\0" * 4) or b"")[8:])  # as if time had passed
            assert traced.from_instance(segment(4, "S", dport=22)).counted == {Verdict.WRONG_PORT: 1}
        assert traced.left_out() > 0
        assert len(traced.traced()) == abi.TRACE_RING_BYTES // (288 + 8)


class TestNothing:
    def test_of_a_port_that_is_not_traced(self, kernel):
        for frame in (segment(4, "S"), segment(6, "S", dport=22), bytes(arp_request())):
            kernel.from_instance(frame)
        kernel.to_instance(reply(4, "SA"))
        assert kernel.traced() == []
        assert kernel.left_out() == 0

    def test_of_what_is_not_for_the_service(self, traced):
        others = [
            bytes(ethernet() / network(4, dst=NEIGHBOUR_V4) / tcp("S")),
            bytes(arp_request(target=NEIGHBOUR_V4)),
            bytes(ethernet() / network(6, dst="fd00:1::6") / tcp("S")),
        ]
        for frame in others:
            assert traced.from_instance(frame).counted == {}
        assert traced.traced() == []

    def test_of_a_slot_that_is_nobodys(self, traced):
        traced.enrol(None)
        traced.from_instance(segment(4, "S"))
        assert traced.traced() == []
