"""Contract, sections 1 and 2: neighbours are answered, TCP is stamped and delivered, replies come back restored."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether

from shim.core.verdict import Verdict
from tests.bpf.frames import (
    BOTH,
    BROADCAST,
    GUEST_MAC,
    GUEST_OF,
    GUEST_PORT,
    HOST_MAC,
    ROUTER_MAC,
    SERVICE_MAC,
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
from tests.contract.rig import SLOTS

SLOT_NET = {4: "100.64.0.{}", 6: "fd6d:7368:696d::{}"}


def stamped(tap, family, flags="S", payload=b""):
    """A segment of frames.segment as the gateway namespace gets it."""
    source = SLOT_NET[family].format(SLOTS[tap])
    return bytes(ethernet(src=HOST_MAC, dst=SERVICE_MAC) / network(family, src=source) / tcp(flags) / payload)


def reply(tap, family, flags="SA", payload=b""):
    """What the service sends to a tap's slot."""
    limit = {"ttl": 64} if family == 4 else {"hlim": 64}
    ip = network(family, src=SERVICE_OF[family], dst=SLOT_NET[family].format(SLOTS[tap]), **limit)
    return bytes(ethernet(src=SERVICE_MAC, dst=HOST_MAC) / ip / tcp(flags, sport=80, dport=GUEST_PORT) / payload)


def restored(family, flags="SA", payload=b"", *, tags=None, hop_limit=64):
    """That reply as the guest gets it."""
    limit = {"ttl": hop_limit} if family == 4 else {"hlim": hop_limit}
    ip = network(family, src=SERVICE_OF[family], dst=GUEST_OF[family], **limit)
    frame = ethernet(src=ROUTER_MAC, dst=GUEST_MAC, tags=tags)
    return bytes(frame / ip / tcp(flags, sport=80, dport=GUEST_PORT) / payload)


@pytest.fixture
def served(bench):
    """Taps a and b are ports, open."""
    bench.enrol("a")
    bench.enrol("b")
    return bench


class TestNeighbours:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_arp_is_answered_from_a_fixed_mac_to_the_asker_alone(self, served, tags):
        if served.refuses_tags("a", bytes(arp_request(tags=tags)), tags):
            return
        (told,) = served.answer("a", bytes(arp_request(tags=tags)))
        assert Ether(told).src == Ether(told)[ARP].hwsrc == SERVICE_MAC
        assert (Ether(told)[ARP].op, Ether(told)[ARP].pdst) == (2, "10.0.0.5")
        assert served.counters("a") == {Verdict.ARP_ANSWERED: 1}
        served.assert_silence()

    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_a_solicitation_is_answered_to_the_asker_alone(self, served, tags):
        if served.refuses_tags("a", bytes(solicitation(tags=tags)), tags):
            return
        (told,) = served.answer("a", bytes(solicitation(tags=tags)))
        assert Ether(told)[ICMPv6ND_NA].tgt == "fd00:ec2::254"
        assert Ether(told).src == SERVICE_MAC
        assert served.counters("a") == {Verdict.ND_ANSWERED: 1}
        served.assert_silence()

    def test_a_guest_without_any_address_is_answered(self, served):
        (told,) = served.answer("a", bytes(arp_request(sender="0.0.0.0")))
        assert Ether(told)[ARP].psrc == "169.254.169.254"

    def test_who_claims_a_service_address_is_refused(self, served):
        for op in ("who-has", "is-at"):
            claim = ARP(op=op, hwsrc=GUEST_MAC, psrc="169.254.169.254", pdst="169.254.169.254")
            served.assert_refused("a", bytes(ethernet(dst=BROADCAST) / claim), Verdict.SPOOFED_ARP)
        advert = network(6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="fe80::a9fe:a9fe", O=1)
        served.assert_refused("a", bytes(ethernet(dst="33:33:00:00:00:01") / advert), Verdict.SPOOFED_ND)
        for family in BOTH:
            spoofed = segment(family, "SA", ip={"src": SERVICE_OF[family], "dst": GUEST_OF[family]})
            served.assert_refused("a", spoofed, Verdict.SPOOFED_SOURCE)


@pytest.mark.parametrize("family", BOTH)
class TestTcp:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_there_and_back_with_the_tags_put_back(self, served, family, tags):
        if served.refuses_tags("a", segment(family, tags=tags), tags):
            return
        assert served.passes_to_gateway("a", segment(family, tags=tags)) == [stamped("a", family)]
        served.rig.reply(reply("a", family))
        assert served.rig.guest("a", expect=1) == [restored(family, tags=tags)]
        data = b"GET / HTTP/1.1\r\n\r\n"
        assert served.passes_to_gateway("a", segment(family, "PA", data, tags=tags)) == [
            stamped("a", family, "PA", data)
        ]
        served.rig.reply(reply("a", family, "PA", b"HTTP/1.1 200 OK\r\n\r\n"))
        assert served.rig.guest("a", expect=1) == [restored(family, "PA", b"HTTP/1.1 200 OK\r\n\r\n", tags=tags)]
        served.assert_silence()

    @pytest.mark.parametrize("dst", [SERVICE_MAC, BROADCAST, "02:de:ad:be:ef:00", "33:33:00:00:00:01"])
    def test_whatever_mac_it_is_sent_to(self, served, family, dst):
        assert served.passes_to_gateway("a", segment(family, dst=dst)) == [stamped("a", family)]
        served.assert_silence()

    def test_guests_of_equal_address_and_mac_are_told_apart(self, served, family):
        for tap in ("a", "b"):
            assert served.passes_to_gateway(tap, segment(family)) == [stamped(tap, family)]
        for tap, other in (("a", "b"), ("b", "a")):
            served.rig.reply(reply(tap, family, "PA", tap.encode()))
            assert served.rig.guest(tap, expect=1) == [restored(family, "PA", tap.encode())]
            assert served.rig.guest(other) == []

    def test_one_guests_connection_is_none_of_the_others(self, served, family):
        served.passes_to_gateway("a", segment(family))
        (told,) = served.answer("b", segment(family, "A"))
        assert Ether(told)["TCP"].flags == "R"
        served.rig.reply(reply("b", family))
        served.assert_silence()
        assert served.counters("b") == {Verdict.NO_FLOW: 1, Verdict.REPLY_NO_FLOW: 1}

    def test_an_echo_is_answered(self, served, family):
        (told,) = served.answer("a", bytes(echo_request(family)))
        back = Ether(told)[1]
        assert (back.src, back.dst) == (SERVICE_OF[family], GUEST_OF[family])
        assert served.counters("a") == {Verdict.ECHO_ANSWERED: 1}
        served.assert_silence()
