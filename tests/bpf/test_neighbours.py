"""ARP and neighbour discovery: answered by the host, or refused, and in either case seen by nobody else."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    ALL_NODES,
    ALL_NODES_MAC,
    BROADCAST,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_V4,
    GUEST_V6,
    LINK_LOCAL_GROUP,
    LINK_LOCAL_GROUP_MAC,
    NEIGHBOUR_MAC,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
    SERVICE_GROUP,
    SERVICE_GROUP_MAC,
    SERVICE_MAC,
    TAGS,
    arp_request,
    ethernet,
    solicitation,
)
from tests.bpf.loaded import PASSED, REDIRECT, SERVICE_LINK_LOCAL, SERVICE_V4, SERVICE_V6, SHOT, port

CLOSED = Policy(Access.RESET, Access.DROP)


def arp_reply(sender=GUEST_V4, tags=None):
    told = ARP(op="is-at", hwsrc=SERVICE_MAC, psrc=SERVICE_V4, hwdst=GUEST_MAC, pdst=sender)
    return bytes(ethernet(src=SERVICE_MAC, dst=GUEST_MAC, tags=tags) / told)


def advertisement(target, dst, mac=GUEST_MAC, solicited=1, tags=None):
    told = ICMPv6ND_NA(tgt=target, R=0, S=solicited, O=1) / ICMPv6NDOptDstLLAddr(lladdr=SERVICE_MAC)
    return bytes(ethernet(src=SERVICE_MAC, dst=mac, tags=tags) / IPv6(src=target, dst=dst, hlim=255) / told)


def refused(run, verdict):
    assert run.action == SHOT
    assert run.counted == {verdict: 1}


class TestArp:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_a_request_is_answered(self, kernel, tags):
        run = kernel.from_instance(bytes(arp_request(tags=tags)))
        assert run.action == REDIRECT
        assert run.frame == arp_reply(tags=tags)
        assert run.counted == {Verdict.ARP_ANSWERED: 1}

    def test_what_lies_behind_stays(self, kernel):
        run = kernel.from_instance(bytes(arp_request()) + b"\xaa" * 18)
        assert run.frame == arp_reply() + b"\xaa" * 18

    def test_a_unicast_request_and_a_probe_without_a_sender_are_answered(self, kernel):
        asked = arp_request(sender="0.0.0.0")
        asked[Ether].dst = SERVICE_MAC
        assert kernel.from_instance(bytes(asked)).frame == arp_reply(sender="0.0.0.0")

    def test_a_disabled_port_hears_it_too_so_that_resets_reach_it(self, kernel):
        kernel.enrol(port(CLOSED))
        assert kernel.from_instance(bytes(arp_request())).frame == arp_reply()

    def test_one_for_a_neighbour_passes(self, kernel):
        frame = bytes(arp_request(target=NEIGHBOUR_V4))
        run = kernel.from_instance(frame)
        assert (run.action, run.frame, run.counted) == (PASSED, frame, {})

    @pytest.mark.parametrize("op", ["who-has", "is-at"])
    @pytest.mark.parametrize("target", [SERVICE_V4, GUEST_V4, NEIGHBOUR_V4])
    def test_a_claim_to_be_the_service_is_refused(self, kernel, op, target):
        claim = ARP(op=op, hwsrc=GUEST_MAC, psrc=SERVICE_V4, hwdst=BROADCAST, pdst=target)
        refused(kernel.from_instance(bytes(ethernet(dst=BROADCAST) / claim)), Verdict.SPOOFED_ARP)

    def test_a_reply_to_the_service_is_refused(self, kernel):
        told = ARP(op="is-at", hwsrc=GUEST_MAC, psrc=GUEST_V4, hwdst=SERVICE_MAC, pdst=SERVICE_V4)
        refused(kernel.from_instance(bytes(ethernet() / told)), Verdict.WRONG_PROTOCOL)

    @pytest.mark.parametrize("size", [0, 5, 7, 8])
    def test_hardware_addresses_of_another_size_are_refused(self, kernel, size):
        asked = arp_request()
        asked[ARP].hwlen = size
        refused(kernel.from_instance(bytes(asked)), Verdict.MALFORMED)

    def test_another_protocols_resolution_passes(self, kernel):
        asked = arp_request()
        asked[ARP].ptype, asked[ARP].plen = 0x86DD, 4
        assert kernel.from_instance(bytes(asked)).action == PASSED


class TestDiscovery:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    @pytest.mark.parametrize(
        ("target", "group", "mac"),
        [
            (SERVICE_V6, SERVICE_GROUP, SERVICE_GROUP_MAC),
            (SERVICE_LINK_LOCAL, LINK_LOCAL_GROUP, LINK_LOCAL_GROUP_MAC),
        ],
    )
    @pytest.mark.parametrize("sender", [GUEST_V6, GUEST_LINK_LOCAL])
    def test_a_solicitation_is_answered(self, kernel, target, group, mac, sender, tags):
        asked = solicitation(target, src=sender, dst=group, mac=mac, tags=tags)
        run = kernel.from_instance(bytes(asked))
        assert run.action == REDIRECT
        assert run.frame == advertisement(target, sender, tags=tags)
        assert run.counted == {Verdict.ND_ANSWERED: 1}

    def test_one_to_the_address_itself_is_answered(self, kernel):
        run = kernel.from_instance(bytes(solicitation(dst=SERVICE_V6, mac=SERVICE_MAC)))
        assert run.frame == advertisement(SERVICE_V6, GUEST_V6)

    def test_a_probe_whether_the_address_is_free_is_told_no(self, kernel):
        run = kernel.from_instance(bytes(solicitation(src="::")))
        assert run.frame == advertisement(SERVICE_V6, ALL_NODES, mac=ALL_NODES_MAC, solicited=0)

    def test_a_long_one_is_answered_by_a_short_one(self, kernel):
        asked = solicitation() / Raw(b"\x0e\x04" + b"nonce of an option of 32 bytes")
        assert kernel.from_instance(bytes(asked)).frame == advertisement(SERVICE_V6, GUEST_V6)

    def test_a_disabled_port_hears_it_too_so_that_resets_reach_it(self, kernel):
        kernel.enrol(port(CLOSED))
        assert kernel.from_instance(bytes(solicitation())).action == REDIRECT

    def test_one_for_a_neighbour_passes_also_to_the_same_group(self, kernel):
        same_group = bytes(solicitation("fd00:1::ff00:254"))
        other = bytes(solicitation(NEIGHBOUR_V6, dst="ff02::1:ff00:6", mac="33:33:ff:00:00:06"))
        for frame in (same_group, other):
            run = kernel.from_instance(frame)
            assert (run.action, run.frame, run.counted) == (PASSED, frame, {})

    @pytest.mark.parametrize(("dst", "mac"), [(ALL_NODES, ALL_NODES_MAC), (NEIGHBOUR_V6, NEIGHBOUR_MAC)])
    @pytest.mark.parametrize("target", [SERVICE_V6, SERVICE_LINK_LOCAL])
    def test_an_advertisement_of_the_service_is_refused(self, kernel, dst, mac, target):
        claim = ICMPv6ND_NA(tgt=target, O=1) / ICMPv6NDOptDstLLAddr(lladdr=GUEST_MAC)
        frame = ethernet(dst=mac) / IPv6(src=GUEST_LINK_LOCAL, dst=dst, hlim=255) / claim
        refused(kernel.from_instance(bytes(frame)), Verdict.SPOOFED_ND)

    @pytest.mark.parametrize(("tgt", "dst"), [(GUEST_LINK_LOCAL, SERVICE_V6), (SERVICE_V6, "fd00:2::1")])
    def test_a_redirect_of_the_service_is_refused(self, kernel, tgt, dst):
        claim = ICMPv6ND_Redirect(tgt=tgt, dst=dst)
        frame = ethernet(dst=NEIGHBOUR_MAC) / IPv6(src=GUEST_LINK_LOCAL, dst=NEIGHBOUR_V6, hlim=255) / claim
        refused(kernel.from_instance(bytes(frame)), Verdict.SPOOFED_ND)

    def test_a_redirect_of_others_passes(self, kernel):
        told = ICMPv6ND_Redirect(tgt=GUEST_LINK_LOCAL, dst="fd00:2::1")
        frame = ethernet(dst=NEIGHBOUR_MAC) / IPv6(src=GUEST_LINK_LOCAL, dst=NEIGHBOUR_V6, hlim=255) / told
        assert kernel.from_instance(bytes(frame)).action == PASSED

    @pytest.mark.parametrize("headers", [1, 2, 3])
    @pytest.mark.parametrize("extension", [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt])
    def test_discovery_behind_extension_headers_is_refused(self, kernel, extension, headers):
        for message, verdict in (
            (ICMPv6ND_NS(tgt=SERVICE_V6) / ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC), Verdict.EXTENSION_HEADER),
            (ICMPv6ND_NA(tgt=SERVICE_V6), Verdict.SPOOFED_ND),
        ):
            frame = ethernet(dst=ALL_NODES_MAC) / IPv6(src=GUEST_V6, dst=ALL_NODES, hlim=255)
            for _ in range(headers):
                frame = frame / extension()
            refused(kernel.from_instance(bytes(frame / message)), verdict)

    def test_more_extension_headers_than_are_walked_are_refused_to_the_services_group(self, kernel):
        for group, action in ((SERVICE_GROUP, SHOT), (ALL_NODES, PASSED)):
            frame = ethernet(dst=SERVICE_GROUP_MAC) / IPv6(src=GUEST_V6, dst=group, hlim=255)
            for _ in range(4):
                frame = frame / IPv6ExtHdrDestOpt()
            assert kernel.from_instance(bytes(frame / ICMPv6ND_NS(tgt=NEIGHBOUR_V6))).action == action

    def test_a_fragment_to_the_services_group_is_refused(self, kernel):
        for group, action in ((SERVICE_GROUP, SHOT), ("ff02::1:ff00:6", PASSED)):
            frame = ethernet(dst=SERVICE_GROUP_MAC) / IPv6(src=GUEST_V6, dst=group, hlim=255)
            frame = frame / IPv6ExtHdrFragment(m=1) / ICMPv6ND_NS(tgt=SERVICE_V6)
            assert kernel.from_instance(bytes(frame)).action == action

    def test_a_code_that_is_not_0_is_refused(self, kernel):
        asked = solicitation()
        asked[ICMPv6ND_NS].code = 1
        refused(kernel.from_instance(bytes(asked)), Verdict.MALFORMED)


@pytest.mark.parametrize("asked", [arp_request, solicitation])
class TestWhereNobodyIsServed:
    def test_a_port_without_an_instance_is_told_nothing(self, kernel, asked):
        kernel.enrol(port(instance=None))
        refused(kernel.from_instance(bytes(asked())), Verdict.NO_IDENTITY)

    def test_a_tap_without_a_port_is_told_nothing(self, kernel, asked):
        kernel.enrol(None)
        refused(kernel.from_instance(bytes(asked())), Verdict.NOT_ENROLLED)

    @pytest.mark.parametrize("tags", [[Dot1Q(vlan=v) for v in (1, 2, 3)], [Dot1Q(vlan=1, type=0x9100), Dot1Q(vlan=2)]])
    def test_tags_that_are_not_understood_are_refused(self, kernel, asked, tags):
        refused(kernel.from_instance(bytes(asked(tags=tags))), Verdict.VLAN_DEPTH)
