"""What is refused, by which reason, and what the guest hears of it."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6ND_RS,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    BOTH,
    BROADCAST,
    GUEST_MAC,
    GUEST_OF,
    GUEST_PORT,
    HOST_MAC,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
    ROUTER_MAC,
    SERVICE_MAC,
    SERVICE_OF,
    SLOT_V4,
    TAGS,
    echo_request,
    ethernet,
    lengths,
    network,
    reply,
    segment,
    tcp,
)
from tests.bpf.loaded import REDIRECT, SERVICE_LINK_LOCAL, SERVICE_V4, SERVICE_V6, SHOT, port

NEIGHBOUR_OF = {4: NEIGHBOUR_V4, 6: NEIGHBOUR_V6}
RESET = Policy(Access.RESET, Access.RESET, hop_limit=9)
DROP = Policy(Access.DROP, Access.DROP)


def refused(run, verdict):
    assert run.counted == {verdict: 1}
    assert run.action == SHOT


def reset(family, *, seq=0, ack=0, flags="RA", hop_limit=9, mac=ROUTER_MAC, tags=None):
    """The reset that the guest gets: nothing but what RFC 9293 says."""
    if family == 4:
        ip = network(4, src=SERVICE_V4, dst=GUEST_OF[4], ttl=hop_limit, flags="DF", id=0)
    else:
        ip = network(6, src=SERVICE_V6, dst=GUEST_OF[6], hlim=hop_limit)
    told = TCP(sport=80, dport=GUEST_PORT, seq=seq, ack=ack, flags=flags, window=0)
    return bytes(ethernet(src=mac, dst=GUEST_MAC, tags=tags) / ip / told)


@pytest.mark.parametrize("family", BOTH)
class TestReset:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_a_syn_is_reset(self, kernel, family, tags):
        kernel.enrol(port(RESET))
        run = kernel.from_instance(segment(family, "S", tags=tags))
        assert run.action == REDIRECT
        assert run.frame == reset(family, ack=1001, tags=tags)
        assert run.counted == {Verdict.DISABLED_RESET: 1}

    @pytest.mark.parametrize(
        ("flags", "payload", "expected"),
        [
            ("S", b"early data", {"ack": 1011}),
            ("", b"four", {"ack": 1004}),
            ("F", b"", {"ack": 1001}),
            ("P", b"x" * 1000, {"ack": 2000}),
            ("A", b"", {"seq": 77, "flags": "R"}),
            ("FA", b"bye", {"seq": 77, "flags": "R"}),
            ("PA", b"y" * 1001, {"seq": 77, "flags": "R"}),
            ("SA", b"", {"seq": 77, "flags": "R"}),
        ],
    )
    def test_every_other_segment_too_by_its_numbers(self, kernel, family, flags, payload, expected):
        kernel.enrol(port(RESET))
        assert kernel.from_instance(segment(family, flags, payload)).frame == reset(family, **expected)

    def test_numbers_go_around(self, kernel, family):
        kernel.enrol(port(RESET))
        run = kernel.from_instance(segment(family, "S", b"four", seq=0xFFFFFFFE))
        assert run.frame == reset(family, ack=3)

    def test_options_and_padding_go(self, kernel, family):
        kernel.enrol(port(RESET))
        sent = segment(family, "S", options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7), ("NOP", None)])
        assert kernel.from_instance(sent + b"padding").frame == reset(family, ack=1001)

    def test_comes_from_the_services_mac_if_a_group_was_asked(self, kernel, family):
        kernel.enrol(port(RESET))
        assert kernel.from_instance(segment(family, "S", dst=BROADCAST)).frame == reset(
            family, ack=1001, mac=SERVICE_MAC
        )

    @pytest.mark.parametrize("flags", ["R", "RA"])
    def test_a_reset_is_answered_by_nothing(self, kernel, family, flags):
        kernel.enrol(port(RESET))
        refused(kernel.from_instance(segment(family, flags)), Verdict.DISABLED_RESET)
        kernel.enrol(port())
        refused(kernel.from_instance(segment(family, flags)), Verdict.NO_FLOW)

    @pytest.mark.parametrize("flags", ["S", "A", "F", "R"])
    def test_drop_is_silent(self, kernel, family, flags):
        kernel.enrol(port(DROP))
        refused(kernel.from_instance(segment(family, flags)), Verdict.DISABLED_DROP)

    def test_an_open_connection_is_reset_at_its_next_segment(self, kernel, family):
        kernel.from_instance(segment(family, "S"))
        kernel.enrol(port(RESET))
        run = kernel.from_instance(segment(family, "A"))
        assert run.frame == reset(family, seq=77, flags="R")

    def test_replies_to_a_refused_port_are_dropped_but_for_resets(self, kernel, family):
        kernel.from_instance(segment(family, "S"))
        kernel.enrol(port(RESET))
        refused(kernel.to_instance(reply(family, "PA", b"secret")), Verdict.REPLY_DISABLED)
        assert kernel.to_instance(reply(family, "R")).action == REDIRECT
        kernel.enrol(port(DROP))
        refused(kernel.to_instance(reply(family, "R")), Verdict.REPLY_DISABLED)


@pytest.mark.parametrize("family", BOTH)
class TestNobody:
    @pytest.mark.parametrize("flags", ["S", "A", "R"])
    def test_no_identity(self, kernel, family, flags):
        kernel.enrol(port(instance=None))
        refused(kernel.from_instance(segment(family, flags)), Verdict.NO_IDENTITY)

    def test_not_enrolled(self, kernel, family):
        kernel.enrol(None)
        refused(kernel.from_instance(segment(family)), Verdict.NOT_ENROLLED)
        refused(kernel.from_instance(bytes(echo_request(family))), Verdict.NOT_ENROLLED)

    def test_replies_find_no_port(self, kernel, family):
        kernel.from_instance(segment(family))
        for nobody in (port(instance=None), None):
            kernel.enrol(nobody)
            refused(kernel.to_instance(reply(family)), Verdict.REPLY_NO_PORT)


@pytest.mark.parametrize("family", BOTH)
class TestProtocols:
    @pytest.mark.parametrize("number", [0, 22, 79, 81, 443, 8774, 20480, 65535])
    @pytest.mark.parametrize("flags", ["S", "A"])
    def test_other_ports(self, kernel, family, number, flags):
        refused(kernel.from_instance(segment(family, flags, dport=number)), Verdict.WRONG_PORT)

    @pytest.mark.parametrize("payload", [UDP(dport=80), UDP(dport=53), SCTP(dport=80), Raw(b"x" * 40)])
    def test_other_protocols(self, kernel, family, payload):
        ip = network(family)
        if isinstance(payload, Raw):
            ip.overload_fields = {}
            ip.fields["proto" if family == 4 else "nh"] = 47
        refused(kernel.from_instance(bytes(ethernet() / ip / payload)), Verdict.WRONG_PROTOCOL)

    def test_the_other_familys_icmp(self, kernel, family):
        ip = network(4, proto=58) if family == 4 else network(6, nh=1)
        refused(kernel.from_instance(bytes(ethernet() / ip / ICMP())), Verdict.WRONG_PROTOCOL)

    @pytest.mark.parametrize("dst", [NEIGHBOUR_OF, SERVICE_OF, {4: "255.255.255.255", 6: "ff02::1"}])
    @pytest.mark.parametrize("payload", [tcp("SA", sport=80), UDP(sport=68, dport=67), Raw(b"x" * 30)])
    def test_a_source_that_is_the_services(self, kernel, family, dst, payload):
        sources = (SERVICE_V4,) if family == 4 else (SERVICE_V6, SERVICE_LINK_LOCAL)
        for source in sources:
            ip = network(family, src=source, dst=dst[family])
            refused(kernel.from_instance(bytes(ethernet() / ip / payload)), Verdict.SPOOFED_SOURCE)


@pytest.mark.parametrize("kind", [0, 3, 5, 13, 17])
def test_other_icmp(kernel, kind):
    refused(kernel.from_instance(bytes(ethernet() / network(4) / ICMP(type=kind))), Verdict.WRONG_PROTOCOL)


@pytest.mark.parametrize("message", [ICMPv6EchoReply(), ICMPv6DestUnreach(), ICMPv6ND_RS()])
def test_other_icmp6(kernel, message):
    refused(kernel.from_instance(bytes(ethernet() / network(6) / message)), Verdict.WRONG_PROTOCOL)


def test_an_echo_request_with_a_code(kernel):
    refused(kernel.from_instance(bytes(ethernet() / network(4) / ICMP(code=1))), Verdict.WRONG_PROTOCOL)


class TestFormat:
    @pytest.mark.parametrize("options", [[IPOption_NOP()], [IPOption_RR()], [IPOption_NOP()] * 40])
    def test_ip_options(self, kernel, options):
        refused(kernel.from_instance(segment(4, ip={"options": options})), Verdict.IP_OPTIONS)

    @pytest.mark.parametrize(
        "ip", [{"flags": "MF"}, {"flags": "MF", "frag": 100}, {"frag": 100}, {"frag": 8191}], ids=str
    )
    def test_fragments(self, kernel, ip):
        refused(kernel.from_instance(segment(4, ip=ip)), Verdict.FRAGMENT)

    def test_dont_fragment_is_no_fragment(self, kernel):
        assert kernel.from_instance(segment(4, ip={"flags": "DF"})).action == REDIRECT

    @pytest.mark.parametrize(("offset", "more"), [(0, 1), (100, 1), (100, 0), (0, 0)])
    def test_fragment_headers(self, kernel, offset, more):
        frame = ethernet() / network(6) / IPv6ExtHdrFragment(offset=offset, m=more) / tcp()
        refused(kernel.from_instance(bytes(frame)), Verdict.FRAGMENT)

    @pytest.mark.parametrize("header", [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting])
    def test_extension_headers(self, kernel, header):
        refused(kernel.from_instance(bytes(ethernet() / network(6) / header() / tcp())), Verdict.EXTENSION_HEADER)

    @pytest.mark.parametrize("number", [0, 43, 50, 51, 60, 135, 139, 140, 253, 254])
    def test_extension_headers_by_number(self, kernel, number):
        frame = ethernet() / network(6, nh=number) / Raw(b"\x06" + bytes(47))
        refused(kernel.from_instance(bytes(frame)), Verdict.EXTENSION_HEADER)

    @pytest.mark.parametrize("ihl", range(5))
    def test_a_short_header_length(self, kernel, ihl):
        refused(kernel.from_instance(segment(4, ip={"ihl": ihl})), Verdict.MALFORMED)

    @pytest.mark.parametrize("version", [*range(4), *range(5, 16)])
    def test_another_version_in_ip4(self, kernel, version):
        refused(kernel.from_instance(segment(4, ip={"version": version})), Verdict.MALFORMED)

    @pytest.mark.parametrize("version", [*range(6), *range(7, 16)])
    def test_another_version_in_ip6(self, kernel, version):
        refused(kernel.from_instance(segment(6, ip={"version": version})), Verdict.MALFORMED)

    @pytest.mark.parametrize("total", [0, 1, 19, 20, 39, 41, 1500, 65535])
    def test_an_ip4_length_that_lies(self, kernel, total):
        refused(kernel.from_instance(segment(4, ip={"len": total})), Verdict.MALFORMED)

    @pytest.mark.parametrize("length", [0, 1, 19, 21, 1500, 65535])
    def test_an_ip6_length_that_lies(self, kernel, length):
        refused(kernel.from_instance(segment(6, ip={"plen": length})), Verdict.MALFORMED)

    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("offset", [0, 4, 6, 15])
    def test_a_data_offset_that_lies(self, kernel, family, offset):
        refused(kernel.from_instance(segment(family, dataofs=offset)), Verdict.MALFORMED)

    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("flags", ["SF", "SR", "SFA", "SRA", "SFR", "FSRPAU"])
    def test_flags_that_contradict(self, kernel, family, flags):
        refused(kernel.from_instance(segment(family, flags)), Verdict.MALFORMED)

    @pytest.mark.parametrize("family", BOTH)
    def test_an_echo_request_without_its_numbers(self, kernel, family):
        whole = bytes(echo_request(family, b""))
        sized = {4: {"len": 24, "proto": 1}, 6: {"plen": 4, "nh": 58}}[family]
        short = bytes(ethernet() / network(family, **sized)) + whole[-8:-4]
        refused(kernel.from_instance(short), Verdict.MALFORMED)

    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("depth", [3, 4, 5, 9])
    def test_more_tags_than_are_understood(self, kernel, family, depth):
        tags = [Dot1Q(vlan=v + 1) for v in range(depth)]
        refused(kernel.from_instance(segment(family, tags=tags)), Verdict.VLAN_DEPTH)

    @pytest.mark.parametrize("family", BOTH)
    @pytest.mark.parametrize("at", [0, 1])
    def test_a_tag_that_the_kernel_cannot_undo(self, kernel, family, at):
        kind = [0x8100, 0x8100]
        kind[at] = 0x9100
        frame = bytearray(segment(family, tags=[Dot1Q(vlan=1), Dot1Q(vlan=2)]))
        frame[12:14], frame[16:18] = (k.to_bytes(2) for k in kind)
        refused(kernel.from_instance(bytes(frame)), Verdict.VLAN_DEPTH)


class TestForeignReplies:
    """What comes from the gateway namespace and is no segment to a slot ends on the host's side, uncounted."""

    @pytest.mark.parametrize(
        "frame",
        [
            ethernet(src=SERVICE_MAC, dst=BROADCAST) / Raw(b"x" * 40),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / IP(src=SERVICE_V4, dst=SLOT_V4) / ICMP(),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / IP(src=SERVICE_V4, dst=SLOT_V4) / UDP(sport=80),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / IP(src=SERVICE_V4, dst="10.0.0.5") / tcp("A", sport=80),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / IP(src=SERVICE_V4, dst="100.128.0.0") / tcp("A", sport=80),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / network(6, src=SERVICE_V6, dst="fd00:1::5") / tcp("A"),
            ethernet(src=SERVICE_MAC, dst=HOST_MAC) / ICMPv6ND_RS(),
        ],
    )
    def test_end_here(self, kernel, frame):
        run = kernel.to_instance(bytes(frame))
        assert (run.action, run.counted) == (SHOT, {})

    def test_tagged_or_cut_ones_end_here(self, kernel):
        kernel.from_instance(segment(4))
        whole = reply(4)
        tagged = whole[:12] + b"\x81\0\0\1" + whole[12:]
        for frame in (tagged, *(whole[:length] for length in lengths(whole))):
            assert kernel.to_instance(frame).action == SHOT
        assert kernel.to_instance(whole).action == REDIRECT
