"""Connections: whose they are, how many there may be, how fast they may come, and when they end."""

from __future__ import annotations

import time

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Dot1Q, Ether

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    BOTH,
    GUEST_V4,
    GUEST_V6,
    NEIGHBOUR_MAC,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
    ROUTER_MAC,
    SERVICE_MAC,
    arp_request,
    reply,
    segment,
)
from tests.bpf.loaded import FLOWS, REDIRECT, SERVICE_V4, SHOT, port, settings

MINUTE = 60_000_000_000


def syn(number, family=4):
    return segment(family, "S", sport=20000 + number)


def open_all(kernel, numbers=range(FLOWS)):
    for number in numbers:
        assert kernel.from_instance(syn(number)).counted == {Verdict.OPENED: 1, Verdict.DELIVERED: 1}


class TestWhose:
    @pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA", "F", ""])
    def test_a_segment_of_no_connection_is_reset(self, kernel, flags):
        run = kernel.from_instance(segment(4, flags))
        assert run.action == REDIRECT
        assert run.counted == {Verdict.NO_FLOW: 1}
        assert Ether(run.frame)[TCP].flags & 4

    @pytest.mark.parametrize("family", BOTH)
    def test_two_addresses_of_a_guest_cannot_share_a_port(self, kernel, family):
        """The gateway namespace knows both by the slot alone."""
        kernel.from_instance(segment(family))
        other = {4: NEIGHBOUR_V4, 6: NEIGHBOUR_V6}[family]
        run = kernel.from_instance(segment(family, ip={"src": other}))
        assert (run.action, run.counted) == (SHOT, {Verdict.FLOW_CLASH: 1})
        run = kernel.from_instance(segment(family, "A", ip={"src": other}))
        assert run.counted == {Verdict.NO_FLOW: 1}
        back = kernel.to_instance(reply(family)).frame
        assert Ether(back).payload.dst == {4: GUEST_V4, 6: GUEST_V6}[family]

    def test_neither_can_two_macs_or_two_vlans(self, kernel):
        kernel.from_instance(segment(4, tags=[Dot1Q(vlan=5)]))
        clashing = [
            segment(4),
            segment(4, tags=[Dot1Q(vlan=6)]),
            segment(4, tags=[Dot1Q(vlan=5), Dot1Q(vlan=6)]),
            bytes(Ether(src=NEIGHBOUR_MAC, dst=ROUTER_MAC) / Ether(segment(4, tags=[Dot1Q(vlan=5)])).payload),
        ]
        for frame in clashing:
            assert kernel.from_instance(frame).counted == {Verdict.FLOW_CLASH: 1}

    def test_a_tag_of_zeros_is_a_tag(self, kernel):
        kernel.from_instance(segment(4))
        assert kernel.from_instance(segment(4, tags=[Dot1Q(vlan=0)])).counted == {Verdict.FLOW_CLASH: 1}

    def test_a_router_may_change_its_mac(self, kernel):
        kernel.from_instance(segment(4, dst=ROUTER_MAC))
        assert kernel.from_instance(segment(4, "A", dst=SERVICE_MAC)).action == REDIRECT

    def test_families_ports_and_addresses_are_apart(self, kernel):
        for frame in (segment(4), segment(6), segment(4, dport=8775), segment(4, sport=1)):
            assert kernel.from_instance(frame).counted == {Verdict.OPENED: 1, Verdict.DELIVERED: 1}
        assert len(kernel.flows()) == 4

    def test_another_generation_has_no_connections(self, kernel):
        kernel.from_instance(segment(4))
        kernel.enrol(port(generation=2))
        refused = kernel.to_instance(reply(4))
        assert (refused.action, refused.counted) == (SHOT, {Verdict.REPLY_NO_FLOW: 1})
        assert kernel.from_instance(segment(4, "A")).counted == {Verdict.NO_FLOW: 1}
        assert kernel.from_instance(segment(4, ip={"src": NEIGHBOUR_V4})).action == REDIRECT
        assert Ether(kernel.to_instance(reply(4)).frame)[IP].dst == NEIGHBOUR_V4

    def test_a_reply_of_no_connection_is_dropped(self, kernel):
        run = kernel.to_instance(reply(4))
        assert (run.action, run.counted) == (SHOT, {Verdict.REPLY_NO_FLOW: 1})


class TestHowMany:
    def test_no_more_than_the_port_may_have(self, kernel):
        open_all(kernel)
        run = kernel.from_instance(syn(FLOWS))
        assert (run.action, run.counted) == (SHOT, {Verdict.FLOW_LIMIT: 1})
        assert len(kernel.flows()) == FLOWS
        for number in range(FLOWS):
            assert kernel.from_instance(segment(4, "A", sport=20000 + number)).action == REDIRECT

    def test_a_syn_sent_again_takes_no_second_place(self, kernel):
        open_all(kernel, [0] * 20)
        open_all(kernel, range(1, FLOWS))
        assert kernel.from_instance(syn(FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}

    @pytest.mark.parametrize("end", ["guest resets", "service resets", "both finish"])
    def test_an_ended_connections_place_is_taken_again(self, kernel, end):
        open_all(kernel)
        ends = {
            "guest resets": [(kernel.from_instance, segment(4, "R", sport=20003))],
            "service resets": [(kernel.to_instance, reply(4, "R", dport=20003))],
            "both finish": [
                (kernel.to_instance, reply(4, "FA", dport=20003)),
                (kernel.from_instance, segment(4, "FA", sport=20003)),
            ],
        }[end]
        for run, frame in ends:
            assert kernel.from_instance(syn(FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}
            run(frame)
        open_all(kernel, [FLOWS])
        assert kernel.from_instance(syn(FLOWS + 1)).counted == {Verdict.FLOW_LIMIT: 1}
        assert kernel.from_instance(segment(4, "A", sport=20003)).counted == {Verdict.NO_FLOW: 1}

    def test_a_connection_that_one_side_finished_goes_on(self, kernel):
        open_all(kernel, [0])
        kernel.from_instance(segment(4, "FA", sport=20000))
        kernel.from_instance(segment(4, "FA", sport=20000))
        assert kernel.to_instance(reply(4, "PA", b"late", dport=20000)).action == REDIRECT
        open_all(kernel, range(1, FLOWS))
        assert kernel.from_instance(syn(FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}

    def test_quiet_connections_give_way(self, kernel):
        open_all(kernel)
        kernel.age_flows(2 * MINUTE - 5_000_000_000)
        assert kernel.from_instance(syn(FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}
        kernel.age_flows(5_000_000_001)
        kernel.from_instance(segment(4, "A", sport=20002))
        open_all(kernel, range(FLOWS, 2 * FLOWS - 1))
        assert kernel.from_instance(syn(2 * FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}
        assert kernel.from_instance(segment(4, "A", sport=20002)).action == REDIRECT

    def test_a_connection_that_another_cpu_saw_just_now_does_not_give_way(self, kernel):
        """Its time is ahead of the one that was taken before: that is no silence of centuries."""
        open_all(kernel)
        kernel.age_flows(-1_000_000_000)
        assert kernel.from_instance(syn(FLOWS)).counted == {Verdict.FLOW_LIMIT: 1}
        assert kernel.from_instance(segment(4, "A", sport=20000)).action == REDIRECT

    def test_a_former_owners_connections_give_way(self, kernel):
        open_all(kernel)
        kernel.enrol(port(generation=2))
        open_all(kernel, range(FLOWS, 2 * FLOWS))
        assert len(kernel.flows()) == FLOWS

    def test_the_ring_goes_around_many_times(self, kernel):
        for number in range(5 * FLOWS):
            open_all(kernel, [number])
            kernel.from_instance(segment(4, "R", sport=20000 + number))
        assert len(kernel.flows()) == FLOWS


class TestHowFast:
    @pytest.mark.parametrize("burst", [1, 5, 50])
    def test_exactly_the_burst_passes(self, kernel, burst):
        kernel.reset(settings=settings(rate=1, burst=burst))
        said = [kernel.from_instance(syn(0, 4 if n % 2 else 6)).counted for n in range(burst + 10)]
        assert said == [{Verdict.OPENED: 1, Verdict.DELIVERED: 1}] * burst + [{Verdict.RATE_LIMITED: 1}] * 10

    def test_open_connections_pay_nothing(self, kernel):
        kernel.reset(settings=settings(rate=1, burst=1))
        open_all(kernel, [0])
        for _ in range(10):
            assert kernel.from_instance(segment(4, "A", sport=20000)).action == REDIRECT
        assert kernel.from_instance(syn(1)).counted == {Verdict.RATE_LIMITED: 1}

    def test_refused_ones_pay_nothing(self, kernel):
        kernel.reset(Policy(v4=Access.DROP), settings=settings(rate=1, burst=1))
        for _ in range(10):
            assert kernel.from_instance(syn(0)).action == SHOT
        assert kernel.from_instance(syn(0, family=6)).action == REDIRECT

    def test_tokens_come_back_with_time(self, kernel):
        kernel.reset(settings=settings(rate=500, burst=1))
        until = 0
        for _ in range(200):
            until += kernel.from_instance(syn(0)).action == REDIRECT
        assert until >= 1
        kernel.reset(settings=settings(rate=1_000_000, burst=1))
        assert sum(kernel.from_instance(syn(0)).action == REDIRECT for _ in range(20)) == 20


class TestEvents:
    def test_say_who_sent_what_to_whom(self, kernel):
        kernel.reset(Policy(v4=Access.RESET), settings=settings(event_rate=1))
        kernel.enrol(port(Policy(v4=Access.RESET), generation=7))
        kernel.from_instance(segment(4))
        kernel.from_instance(segment(6, dport=22))
        kernel.from_instance(bytes(arp_request(sender=SERVICE_V4, target=NEIGHBOUR_V4)))
        told = [
            (e.slot, e.generation, e.verdict, e.source, e.destination, e.source_port, e.destination_port)
            for e in kernel.events()
        ]
        assert told == [
            (0, 7, Verdict.DISABLED_RESET, GUEST_V4, SERVICE_V4, 40000, 80),
            (0, 7, Verdict.WRONG_PORT, GUEST_V6, "fd00:ec2::254", 40000, 22),
            (0, 7, Verdict.SPOOFED_ARP, SERVICE_V4, NEIGHBOUR_V4, 0, 0),
        ]

    def test_are_bounded_while_counters_are_exact(self, kernel):
        """Ten at once, and one a second."""
        kernel.reset(settings=settings(event_rate=1))
        began = time.monotonic()
        for _ in range(100):
            kernel.from_instance(segment(4, dport=22))
        assert 10 <= len(kernel.events()) <= 10 + int(time.monotonic() - began)
        assert kernel.counters() == {Verdict.WRONG_PORT: 100}

    def test_may_be_switched_off(self, kernel):
        kernel.reset(settings=settings(event_rate=0))
        kernel.from_instance(segment(4, dport=22))
        assert kernel.events() == []

    def test_are_of_refusals_only(self, kernel):
        kernel.reset(settings=settings(event_rate=1))
        kernel.from_instance(segment(4))
        kernel.from_instance(bytes(arp_request()))
        kernel.to_instance(reply(4))
        assert kernel.events() == []
