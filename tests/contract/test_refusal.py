"""Contract, sections 3 to 7 and 9: what is refused, how the guest hears of it, what is counted, how it fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    BOTH,
    GUEST_OF,
    SERVICE_OF,
    TAGS,
    arp_request,
    echo_request,
    ethernet,
    network,
    segment,
    solicitation,
    tcp,
)
from tests.contract.rig import BURST, FLOWS, INSTANCES, SLOTS
from tests.contract.test_service import reply, restored, stamped


def refusing(access, family=None):
    """A policy with that access over one family, or both."""
    return Policy(
        v4=access if family in (4, None) else Access.OPEN, v6=access if family in (6, None) else Access.OPEN
    )


def with_checksums(frame):
    """The same frame with scapy's own checksums."""
    fresh = Ether(frame)
    del fresh[TCP].chksum
    if fresh.haslayer("IP"):
        del fresh["IP"].chksum
    return bytes(fresh)


def is_reset(frame, family, acknowledged=1001):
    back = Ether(frame)[TCP]
    ip = Ether(frame).getlayer({4: "IP", 6: "IPv6"}[family])
    return (ip.src, ip.dst, back.flags, back.ack) == (SERVICE_OF[family], GUEST_OF[family], "RA", acknowledged)


@pytest.mark.parametrize("family", BOTH)
class TestDisabled:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_reset_answers_at_once(self, bench, family, tags):
        bench.enrol("a", refusing(Access.RESET))
        if bench.refuses_tags("a", segment(family, tags=tags), tags):
            return
        (told,) = bench.answer("a", segment(family, tags=tags))
        assert is_reset(told, family)
        assert bytes(Ether(told))[12:].startswith(bytes(ethernet(tags=tags))[12:14] if tags else told[12:14])
        assert bench.counters("a") == {Verdict.DISABLED_RESET: 1}
        bench.assert_silence()

    @pytest.mark.parametrize("number", [0, 1, 0x7FFF, 0xFFFF, 0x00FFFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF], ids=hex)
    def test_a_reset_acknowledges_any_number(self, bench, family, number):
        """The checksum right, and with the instance's hop limit."""
        bench.enrol("a", replace(refusing(Access.RESET), hop_limit=7))
        (told,) = bench.answer("a", segment(family, seq=number, ack=0))
        assert is_reset(told, family, (number + 1) % 2**32)
        assert Ether(told)[TCP].seq == 0
        assert told == with_checksums(told)
        assert getattr(Ether(told).payload, "ttl" if family == 4 else "hlim") == 7

    def test_a_reset_is_answered_by_none(self, bench, family):
        bench.enrol("a", refusing(Access.RESET))
        bench.assert_refused("a", segment(family, "R"), Verdict.DISABLED_RESET)
        bench.assert_refused("a", segment(family, "RA"), Verdict.DISABLED_RESET)

    def test_drop_is_silent(self, bench, family):
        bench.enrol("a", refusing(Access.DROP))
        bench.assert_refused("a", segment(family), Verdict.DISABLED_DROP)
        bench.assert_refused("a", bytes(echo_request(family)), Verdict.DISABLED_DROP)

    def test_403_lets_packets_pass_to_the_proxy(self, bench, family):
        bench.enrol("a", refusing(Access.FORBID))
        assert bench.passes_to_gateway("a", segment(family)) == [stamped("a", family)]

    def test_one_family_is_refused_without_the_other(self, bench, family):
        bench.enrol("a", refusing(Access.DROP, family))
        bench.assert_refused("a", segment(family), Verdict.DISABLED_DROP)
        assert bench.passes_to_gateway("a", segment(10 - family)) == [stamped("a", 10 - family)]

    def test_an_open_connection_ends_too(self, bench, family):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(family))
        bench.enrol("a", refusing(Access.RESET))
        (told,) = bench.answer("a", segment(family, "A"))
        assert Ether(told)[TCP].flags == "R"
        bench.rig.reply(reply("a", family, "PA", b"secret"))
        bench.assert_silence()
        assert bench.counters("a")[Verdict.REPLY_DISABLED] == 1

    def test_the_services_own_reset_still_reaches_the_guest(self, bench, family):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(family))
        bench.enrol("a", refusing(Access.RESET))
        bench.rig.reply(reply("a", family, "R"))
        assert bench.rig.guest("a", expect=1) == [restored(family, "R")]

    def test_enabled_again_it_is_served_again(self, bench, family):
        bench.enrol("a", refusing(Access.DROP))
        bench.enrol("a")
        assert bench.passes_to_gateway("a", segment(family)) == [stamped("a", family)]

    def test_a_neighbour_is_not_touched(self, bench, family):
        bench.enrol("a", refusing(Access.RESET))
        bench.enrol("b")
        assert bench.passes_to_gateway("b", segment(family)) == [stamped("b", family)]
        assert bench.counters("b") == {Verdict.OPENED: 1, Verdict.DELIVERED: 1}

    def test_neighbours_are_still_answered_so_that_a_reset_can_be_asked_for(self, bench, family):
        bench.enrol("a", refusing(Access.RESET))
        assert len(bench.answer("a", bytes(arp_request() if family == 4 else solicitation()))) == 1


OTHER = {
    "port": (lambda family: segment(family, dport=22), Verdict.WRONG_PORT),
    "udp": (lambda family: bytes(ethernet() / network(family) / UDP(dport=53)), Verdict.WRONG_PROTOCOL),
    "fragment": (
        lambda family: segment(4, ip={"flags": "MF"})
        if family == 4
        else bytes(ethernet() / network(6) / IPv6ExtHdrFragment(m=1) / tcp()),
        Verdict.FRAGMENT,
    ),
    "ip options": (lambda family: segment(4, ip={"options": [IPOption_NOP()]}), Verdict.IP_OPTIONS),
    "extension header": (
        lambda family: bytes(ethernet() / network(6) / IPv6ExtHdrHopByHop() / tcp()),
        Verdict.EXTENSION_HEADER,
    ),
    "flags": (lambda family: segment(family, "SF"), Verdict.MALFORMED),
    "cut": (lambda family: segment(family)[:-1], Verdict.MALFORMED),
    "three tags": (lambda family: segment(family, tags=[Dot1Q(vlan=v) for v in (1, 2, 3)]), Verdict.VLAN_DEPTH),
    "five tags": (lambda family: segment(family, tags=[Dot1Q(vlan=v) for v in range(1, 6)]), Verdict.VLAN_DEPTH),
    "echo reply": (lambda family: bytes(ethernet() / network(4) / ICMP(type=0)), Verdict.WRONG_PROTOCOL),
}


class TestEverythingElse:
    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("what", OTHER)
    def test_is_dropped_and_counted_by_reason(self, bench, family, what):
        frame, verdict = OTHER[what]
        bench.enrol("a")
        bench.assert_refused("a", frame(family), verdict)

    def test_a_frame_cut_at_any_length_goes_nowhere(self, bench):
        """Down to the shortest that a device takes."""
        bench.enrol("a")
        for family in BOTH:
            whole = segment(family)
            bench.send("a", *(whole[:length] for length in range(14, len(whole))))
        bench.assert_silence()

    @pytest.mark.parametrize("family", BOTH)
    def test_what_comes_from_the_gateway_and_is_nobodys_reply_goes_nowhere(self, bench, family):
        bench.enrol("a")
        bench.send("a", segment(family))
        whole = reply("a", family)
        bench.rig.gateway(expect=1)
        to_nobody = ethernet() / network(family, src=SERVICE_OF[family], dst=GUEST_OF[family]) / tcp("SA", sport=80)
        for frame in (whole[:-1], reply("b", family), bytes(to_nobody)):
            bench.rig.reply(frame)
        bench.assert_silence()


class TestLimits:
    def test_exactly_the_burst_of_new_connections_passes_of_both_families(self, bench):
        bench.enrol("a")
        bench.send("a", *(segment(4 + 2 * (n % 2)) for n in range(BURST + 5)))
        assert len(bench.rig.gateway(expect=BURST)) == BURST
        assert bench.counters("a") == {Verdict.OPENED: BURST, Verdict.DELIVERED: BURST, Verdict.RATE_LIMITED: 5}

    def test_a_busy_neighbour_costs_nothing(self, bench):
        bench.enrol("a")
        bench.enrol("b")
        bench.send("a", *([segment(4)] * (2 * BURST)))
        bench.rig.gateway(expect=BURST)
        assert bench.passes_to_gateway("b", segment(4)) == [stamped("b", 4)]

    def test_no_more_connections_than_a_port_may_have(self, bench):
        """On nftables what nobody answers is forgotten soon instead: test_tables.py."""
        bench.enrol("a")
        if bench.rig.datapath.name == "nft":
            bench.send("a", *(segment(4, sport=20000 + n) for n in range(BURST + 1)))
            assert len(bench.rig.gateway(expect=BURST)) == BURST
            assert bench.counters("a")[Verdict.RATE_LIMITED] == 1
            return
        bench.send("a", *(segment(4, sport=20000 + n) for n in range(FLOWS + 1)))
        assert len(bench.rig.gateway(expect=FLOWS)) == FLOWS
        assert bench.counters("a")[Verdict.FLOW_LIMIT] == 1
        bench.send("a", *(segment(4, "R", sport=20000 + n) for n in range(FLOWS)))
        assert len(bench.rig.gateway(expect=FLOWS)) == FLOWS
        assert len(bench.passes_to_gateway("a", segment(4, sport=30000))) == 1

    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("hop_limit", [1, 2, 64])
    def test_replies_have_the_instances_hop_limit(self, bench, family, hop_limit):
        bench.enrol("a", Policy(hop_limit=hop_limit))
        bench.passes_to_gateway("a", segment(family))
        bench.rig.reply(reply("a", family))
        assert bench.rig.guest("a", expect=1) == [restored(family, hop_limit=hop_limit)]


class TestCounting:
    def test_counters_are_of_one_port_and_one_owner(self, bench):
        bench.enrol("a")
        bench.enrol("b")
        bench.send("a", segment(4, dport=22), segment(6, dport=22), segment(4))
        assert bench.counters("a") == {Verdict.WRONG_PORT: 2, Verdict.OPENED: 1, Verdict.DELIVERED: 1}
        assert bench.counters("b") == {}
        bench.enrol("a", instance=INSTANCES["b"])
        assert bench.counters("a") == {}
        assert len(bench.rig.gateway(expect=1)) == 1

    def test_a_change_of_policy_keeps_them(self, bench):
        bench.enrol("a")
        bench.send("a", segment(4, dport=22))
        bench.enrol("a", refusing(Access.DROP))
        assert bench.counters("a") == {Verdict.WRONG_PORT: 1}

    def test_events_tell_of_refusals_at_a_bounded_rate(self, bench):
        port = bench.enrol("a", refusing(Access.RESET))
        bench.send("a", *([segment(4)] * 40))
        events = bench.events()
        assert len(events) == 10
        first = events[0]
        assert (first.slot, first.generation, first.verdict) == (1, port.generation, Verdict.DISABLED_RESET)
        assert (first.source, first.source_port) == (GUEST_OF[4], 40000)
        assert (first.destination, first.destination_port) == (SERVICE_OF[4], 80)
        assert bench.events() == []
        assert bench.counters("a") == {Verdict.DISABLED_RESET: 40}
        assert len(bench.rig.guest("a", expect=40)) == 40

    def test_one_ports_noise_does_not_hide_anothers(self, bench):
        bench.enrol("a", refusing(Access.DROP))
        bench.enrol("b", refusing(Access.DROP))
        bench.send("a", *([segment(4)] * 40))
        bench.events()
        bench.send("b", segment(4))
        assert [event.slot for event in bench.events()] == [SLOTS["b"]]


EVERYTHING = [bytes(arp_request()), bytes(solicitation()), *map(segment, BOTH), bytes(echo_request(4))]


class TestFailsClosed:
    def test_a_tap_that_no_source_knows_is_refused_everything(self, bench):
        bench.enrol("a", known=False)
        for frame in EVERYTHING:
            bench.assert_refused("a", frame, Verdict.NO_IDENTITY)

    def test_an_identity_lost_ends_connections(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.enrol("a", known=False)
        bench.assert_refused("a", segment(4, "A"), Verdict.NO_IDENTITY)
        bench.rig.reply(reply("a", 4))
        bench.assert_silence()

    def test_another_instance_on_the_tap_gets_nothing_of_the_formers(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.enrol("a", instance=INSTANCES["b"])
        bench.rig.reply(reply("a", 4, "PA", b"the former's"))
        bench.assert_silence()
        assert bench.counters("a") == {Verdict.REPLY_NO_FLOW: 1}

    def test_a_tap_that_comes_back_gets_nothing_of_the_formers(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.rig.replug("a")
        bench.rig.reply(reply("a", 4, "PA", b"the former's"))
        assert bench.rig.guest("a") == []
        assert bench.counters("a")[Verdict.REPLY_NO_PORT] == 1
        bench.enrol("a")
        bench.rig.reply(reply("a", 4, "PA", b"the former's"))
        bench.assert_silence()
        assert bench.passes_to_gateway("a", segment(4)) == [stamped("a", 4)]

    def test_a_slot_given_to_another_tap_serves_that_one_only(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.remove("a")
        bench.enrol("b", slot=1)
        bench.rig.reply(reply("a", 4, "PA", b"the former's"))
        bench.assert_silence()

    def test_ensuring_twice_changes_nothing(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.enrol("a")
        assert bench.passes_to_gateway("a", segment(4, "A")) == [stamped("a", 4, "A")]

    def test_removing_twice_or_what_is_not_there_does_no_harm(self, bench):
        port = bench.enrol("a")
        bench.remove("a")
        bench.rig.run(bench.rig.datapath.remove(port))
        bench.enrol("a")
        bench.rig.run(bench.rig.datapath.remove(port))  # another generation is there by now
        assert bench.passes_to_gateway("a", segment(4)) == [stamped("a", 4)]

    def test_a_restart_finds_the_ports_and_keeps_their_connections(self, bench):
        port = bench.enrol("a")
        anonymous = bench.enrol("b", known=False)
        bench.passes_to_gateway("a", segment(4))
        found = {f.slot: f for f in bench.rig.restart() if f.ifindex}
        assert {f.slot: (f.generation, f.ifindex, f.instance) for f in found.values()} == {
            1: (port.generation, port.ifindex, port.instance),
            2: (anonymous.generation, anonymous.ifindex, None),
        }
        for again in (False, True):
            if again:
                bench.enrol("a")
            assert bench.passes_to_gateway("a", segment(4, "A")) == [stamped("a", 4, "A")]
            bench.rig.reply(reply("a", 4))
            assert bench.rig.guest("a", expect=1) == [restored(4)]
        assert bench.counters("a")[Verdict.DELIVERED] == 3

    def test_what_was_refused_stays_refused_while_nobody_runs_and_after(self, bench):
        bench.enrol("a", refusing(Access.DROP))
        bench.rig.restart()
        bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)

    def test_a_restart_finds_slots_whose_tap_went_vacant(self, bench):
        port = bench.enrol("a")
        bench.rig.replug("a")
        found = [f for f in bench.rig.restart() if f.slot == port.slot]
        assert [(f.generation, f.ifindex, f.instance) for f in found] == [(port.generation, 0, None)]
