"""What is let through: stamped for the gateway, restored for the guest, echoes answered. Whole frames."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, IPv6
from scapy.layers.l2 import Ether

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    ALL_NODES_MAC,
    BOTH,
    BROADCAST,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_OF,
    GUEST_PORT,
    HOST_MAC,
    ROUTER_MAC,
    SERVICE_MAC,
    SERVICE_OF,
    SLOT_OF,
    SLOT_V6,
    TAGS,
    echo_request,
    ethernet,
    network,
    reply,
    segment,
    tcp,
)
from tests.bpf.loaded import REDIRECT, SERVICE_LINK_LOCAL, SHOT, port


def stamped(family, flags, payload=b"", **ip):
    """The segment as the gateway namespace gets it: by scapy, so with right checksums."""
    return bytes(
        ethernet(src=HOST_MAC, dst=SERVICE_MAC) / network(family, src=SLOT_OF[family], **ip) / tcp(flags) / payload
    )


def restored(family, flags, payload=b"", *, hop_limit=64, mac=ROUTER_MAC, dst=None, src=None):
    """A reply as the guest gets it."""
    limit = {"ttl": hop_limit} if family == 4 else {"hlim": hop_limit}
    ip = {"src": src or SERVICE_OF[family], "dst": dst or GUEST_OF[family]} | limit
    return bytes(
        ethernet(src=mac, dst=GUEST_MAC) / network(family, **ip) / tcp(flags, sport=80, dport=GUEST_PORT) / payload
    )


@pytest.mark.parametrize("family", BOTH)
class TestStamping:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_a_segment_comes_from_the_slot_and_without_tags(self, kernel, family, tags):
        run = kernel.from_instance(segment(family, "S", tags=tags))
        assert run.action == REDIRECT
        assert run.frame == stamped(family, "S")
        assert run.counted == {Verdict.OPENED: 1, Verdict.DELIVERED: 1}
        run = kernel.from_instance(segment(family, "PA", b"GET / HTTP/1.1\r\n\r\n", tags=tags))
        assert run.frame == stamped(family, "PA", b"GET / HTTP/1.1\r\n\r\n")
        assert run.counted == {Verdict.DELIVERED: 1}

    @pytest.mark.parametrize("dst", [SERVICE_MAC, BROADCAST, ALL_NODES_MAC, "00:00:00:00:00:00"])
    def test_whatever_mac_it_is_sent_to(self, kernel, family, dst):
        assert kernel.from_instance(segment(family, "S", dst=dst)).frame == stamped(family, "S")

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 1399, 1400])
    def test_checksums_are_right_at_every_length(self, kernel, family, size):
        payload = bytes(range(256)) * 6
        kernel.from_instance(segment(family, "S"))
        assert kernel.from_instance(segment(family, "A", payload[:size])).frame == stamped(family, "A", payload[:size])

    def test_a_wrong_checksum_stays_wrong_by_as_much(self, kernel, family):
        right, wrong = (kernel.from_instance(segment(family, "S", **f)).frame for f in ({}, {"chksum": 0xBAD}))
        at = 14 + (20 if family == 4 else 40) + 16
        assert right != wrong
        assert right[:at] + right[at + 2 :] == wrong[:at] + wrong[at + 2 :]
        sent = segment(family, "S")[at : at + 2]
        given = [int.from_bytes(data) for data in (sent, b"\x0b\xad", right[at : at + 2], wrong[at : at + 2])]
        assert (given[0] - given[1]) % 0xFFFF == (given[2] - given[3]) % 0xFFFF

    def test_padding_behind_the_packet_stays(self, kernel, family):
        run = kernel.from_instance(segment(family, "S") + b"\xee" * 6)
        assert run.frame == stamped(family, "S") + b"\xee" * 6

    def test_the_second_port_is_served_too(self, kernel, family):
        assert kernel.from_instance(segment(family, "S", dport=8775)).action == REDIRECT

    def test_403_is_the_proxys_so_packets_pass(self, kernel, family):
        kernel.enrol(port(Policy(Access.FORBID, Access.FORBID)))
        assert kernel.from_instance(segment(family, "S")).frame == stamped(family, "S")

    def test_a_family_is_judged_by_its_own_access(self, kernel, family):
        access = {4: Policy(v6=Access.DROP), 6: Policy(v4=Access.DROP)}[family]
        kernel.enrol(port(access))
        assert kernel.from_instance(segment(family, "S")).action == REDIRECT
        assert kernel.from_instance(segment(10 - family, "S")).action == SHOT


def test_the_link_local_service_address_is_served(kernel):
    sent = segment(6, "S", ip={"src": GUEST_LINK_LOCAL, "dst": SERVICE_LINK_LOCAL})
    assert kernel.from_instance(sent).frame == stamped(6, "S", dst=SERVICE_LINK_LOCAL)
    back = bytes(
        ethernet(src=SERVICE_MAC, dst=HOST_MAC)
        / network(6, src=SERVICE_LINK_LOCAL, dst=SLOT_V6)
        / tcp("SA", sport=80, dport=GUEST_PORT)
    )
    assert kernel.to_instance(back).frame == restored(6, "SA", src=SERVICE_LINK_LOCAL, dst=GUEST_LINK_LOCAL)


@pytest.mark.parametrize("family", BOTH)
class TestRestoring:
    @pytest.mark.parametrize("payload", [b"", b"x", b"HTTP/1.1 200 OK\r\n\r\n", bytes(1400)])
    def test_a_reply_goes_to_who_asked_from_what_was_asked(self, kernel, family, payload):
        kernel.from_instance(segment(family, "S"))
        run = kernel.to_instance(reply(family, "A", payload))
        assert run.action == REDIRECT
        assert run.frame == restored(family, "A", payload)
        assert run.counted == {Verdict.REPLIED: 1}

    @pytest.mark.parametrize("hop_limit", [1, 2, 64])
    def test_with_the_instances_hop_limit(self, kernel, family, hop_limit):
        kernel.enrol(port(Policy(hop_limit=hop_limit)))
        kernel.from_instance(segment(family, "S"))
        assert kernel.to_instance(reply(family)).frame == restored(family, "A", hop_limit=hop_limit)

    def test_from_the_services_mac_if_a_group_was_asked(self, kernel, family):
        kernel.from_instance(segment(family, "S", dst=BROADCAST))
        assert kernel.to_instance(reply(family)).frame == restored(family, "A", mac=SERVICE_MAC)

    def test_the_inner_of_two_tags_is_put_back(self, kernel, family):
        """The outer one stands beside the packet, where a test run shows nothing."""
        kernel.from_instance(segment(family, "S", tags=TAGS["qinq"]))
        plain, inner = restored(family, "A"), bytes(TAGS["qinq"][1])[:2]
        assert kernel.to_instance(reply(family)).frame == plain[:12] + b"\x81\x00" + inner + plain[12:]

    def test_two_service_ports_are_two_connections(self, kernel, family):
        kernel.from_instance(segment(family, "S"))
        assert kernel.to_instance(reply(family, sport=8775)).action == SHOT


@pytest.mark.parametrize("family", BOTH)
class TestEcho:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    @pytest.mark.parametrize("payload", [b"", b"odd", bytes(range(200))])
    def test_is_answered(self, kernel, family, tags, payload):
        kernel.enrol(port(Policy(hop_limit=3)))
        run = kernel.from_instance(bytes(echo_request(family, payload, tags)))
        back = {"src": SERVICE_OF[family], "dst": GUEST_OF[family]}
        if family == 4:
            told = IP(**back, id=0x1234, ttl=3) / ICMP(type=0, id=7, seq=1)
        else:
            told = IPv6(**back, hlim=3) / ICMPv6EchoReply(id=7, seq=1)
        assert run.action == REDIRECT
        assert run.frame == bytes(ethernet(src=ROUTER_MAC, dst=GUEST_MAC, tags=tags) / told / payload)
        assert run.counted == {Verdict.ECHO_ANSWERED: 1}

    def test_comes_from_the_services_mac_if_a_group_was_asked(self, kernel, family):
        asked = echo_request(family)
        asked[Ether].dst = BROADCAST
        assert Ether(kernel.from_instance(bytes(asked)).frame).src == SERVICE_MAC

    def test_is_not_answered_to_who_is_refused(self, kernel, family):
        for access in (Access.RESET, Access.DROP):
            kernel.enrol(port(Policy(access, access)))
            run = kernel.from_instance(bytes(echo_request(family)))
            assert (run.action, run.counted) == (SHOT, {Verdict.DISABLED_DROP: 1})


def test_an_address_that_no_guest_has_may_ask(kernel):
    """A guest with nothing but what it made up is told apart by its tap alone."""
    sent = segment(4, "S", ip={"src": "0.0.0.0"})
    assert kernel.from_instance(sent).frame == stamped(4, "S")
    assert kernel.to_instance(reply(4)).frame == restored(4, "A", dst="0.0.0.0")
