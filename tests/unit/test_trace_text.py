"""A packet as a line: what is said of each kind, and what never is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from shim.control.trace_shapes import PacketView
from shim.control.trace_text import PATH_SHOWN, fields, line, seen

GUEST, SERVICE, SERVICE6 = "10.0.0.5", "169.254.169.254", "fd00:ec2::254"
SHOWN = 256
ETHER = Ether(src="02:00:00:00:00:05", dst="02:00:a9:fe:a9:fe")


def tell(packet, *, to_guest=False, extra=b""):
    frame = bytes(packet) + extra
    return seen(frame[:SHOWN], len(frame), to_guest=to_guest)


def tcp(payload=b"", *, flags="PA", family=4, **fields):
    ip = IP(src=GUEST, dst=SERVICE) if family == 4 else IPv6(src="fd00:1::5", dst=SERVICE6)
    return ETHER / ip / TCP(**{"sport": 40000, "dport": 80, "flags": flags, "seq": 7, "ack": 9} | fields) / payload


class TestTcp:
    def test_ends_flags_numbers_and_length(self):
        found = tell(tcp(b"12345"))
        assert found.text == "10.0.0.5:40000 > 169.254.169.254:80 PA seq 7 ack 9 len 5"
        assert (found.protocol, found.source, found.destination, found.plain) == ("TCP", GUEST, SERVICE, 54)

    def test_over_ipv6(self):
        found = tell(tcp(b"12345", family=6))
        assert found.text == "[fd00:1::5]:40000 > [fd00:ec2::254]:80 PA seq 7 ack 9 len 5"
        assert found.plain == 74

    def test_options_are_no_data(self):
        found = tell(tcp(flags="S", options=[("MSS", 1400), ("NOP", None)]))
        assert found.text.endswith(" S seq 7 ack 9 len 0")
        assert found.plain == 54 + 8

    def test_padding_is_no_data(self):
        assert tell(tcp(), extra=bytes(6)).text.endswith("len 0")

    def test_the_length_of_what_was_cut(self):
        assert tell(tcp(bytes(1000))).text.endswith("len 1000")

    def test_a_large_segment_that_says_no_length(self):
        packet = tcp(bytes(3000))
        packet[IP].len = 0
        assert seen(bytes(packet)[:SHOWN], len(packet), to_guest=False).text.endswith("len 3000")

    def test_behind_tags(self):
        found = tell(ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=8) / tcp(b"x").payload)
        assert found.text.startswith("vlan 7 vlan 8 10.0.0.5:40000")
        assert found.plain == 62

    def test_behind_an_extension_header(self):
        found = tell(ETHER / IPv6(dst=SERVICE6) / IPv6ExtHdrDestOpt() / TCP(dport=80) / b"data")
        assert found.protocol == "TCP"
        assert found.plain == 14 + 40 + 8 + 20


class TestHttp:
    def test_a_requests_method_and_path(self):
        found = tell(tcp(b"GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\nX-Token: sesame\r\n\r\n"))
        assert found.text.endswith("GET /latest/meta-data/")

    def test_no_query(self):
        found = tell(tcp(b"GET /a?token=sesame HTTP/1.1\r\n\r\n"))
        assert found.text.endswith("GET /a?…")

    def test_a_line_that_goes_on_in_the_next_segment(self):
        assert tell(tcp(b"PUT /latest/api/tok")).text.endswith("PUT /latest/api/tok")

    def test_an_answers_status_alone(self):
        found = tell(tcp(b"HTTP/1.1 404 sesame\r\nX: sesame\r\n\r\nsesame"), to_guest=True)
        assert found.text.endswith("len 40 HTTP 404")

    def test_each_only_in_its_direction(self):
        assert tell(tcp(b"GET /a HTTP/1.1\r\n\r\n"), to_guest=True).text.endswith("len 19")
        assert tell(tcp(b"HTTP/1.1 200 OK\r\n\r\n")).text.endswith("len 19")

    @pytest.mark.parametrize("body", [b"password=sesame", b"\x16\x03\x01", b"get / http/1.1", b"GET sesame", b""])
    def test_nothing_of_anything_else(self, body):
        assert tell(tcp(body)).text.endswith(f"len {len(body)}")

    def test_a_long_path_is_cut(self):
        assert tell(tcp(b"GET /" + b"a" * 150 + b" HTTP/1.1\r\n\r\n")).text.endswith("a…")
        assert len(tell(tcp(b"GET /" + b"a" * 150)).text) < 80 + PATH_SHOWN

    def test_what_could_steer_a_terminal_is_escaped(self):
        found = tell(tcp(b"GET /\x1b[2J\x07\xe2\x80\xae HTTP/1.1\r\n\r\n"))
        assert found.text.endswith("GET /\\x1b[2J\\x07\\xe2\\x80\\xae")


@pytest.mark.parametrize(
    ("packet", "protocol", "text", "plain"),
    [
        (ARP(op=1, psrc=GUEST, pdst=SERVICE), "ARP", f"who-has {SERVICE} tell {GUEST}", 42),
        (ARP(op=2, psrc=SERVICE, hwsrc="02:00:00:00:00:09"), "ARP", f"{SERVICE} is-at 02:00:00:00:00:09", 42),
        (ARP(op=9, psrc=GUEST, pdst=SERVICE), "ARP", f"{GUEST} > {SERVICE} operation 9", 42),
        (
            IP(src=GUEST, dst=SERVICE) / ICMP(id=3, seq=4) / b"sesame",
            "ICMP", f"{GUEST} > {SERVICE} echo request id 3 seq 4", 42,
        ),
        (IP(src=GUEST, dst=SERVICE) / ICMP(type=13), "ICMP", f"{GUEST} > {SERVICE} type 13 code 0", 42),
        (
            IPv6(src="fd00::5", dst=SERVICE6) / ICMPv6EchoRequest(id=3, seq=4, data=b"sesame"),
            "ICMP6", f"fd00::5 > {SERVICE6} echo request id 3 seq 4", 62,
        ),
        (
            IPv6(src="fd00::5", dst="ff02::1:ff00:254") / ICMPv6ND_NS(tgt=SERVICE6),
            "ICMP6", f"fd00::5 > ff02::1:ff00:254 who-has {SERVICE6}", 86 - 8,
        ),
        (
            IPv6(src="fd00::5", dst="ff02::1") / ICMPv6ND_NA(tgt=SERVICE6),
            "ICMP6", f"fd00::5 > ff02::1 is-at {SERVICE6}", 86 - 8,
        ),
        (
            IP(src=GUEST, dst=SERVICE) / UDP(sport=9, dport=53) / b"sesame",
            "UDP", f"{GUEST}:9 > {SERVICE}:53 len 6", 42,
        ),
        (IP(src=GUEST, dst=SERVICE, frag=3) / b"sesame", "IP", f"{GUEST} > {SERVICE} fragment at 24", 34),
        (
            IPv6(src="fd00::5", dst=SERVICE6) / IPv6ExtHdrFragment(offset=3, nh=6) / b"sesame",
            "IP6", f"fd00::5 > {SERVICE6} fragment at 24", 62,
        ),
        (IP(src=GUEST, dst=SERVICE, proto=47) / b"sesame", "IP", f"{GUEST} > {SERVICE} protocol 47", 34),
    ],
)  # fmt: skip
def test_other_kinds(packet, protocol, text, plain):
    found = tell(ETHER / packet)
    assert (found.protocol, found.text, found.plain) == (protocol, text, plain)


def test_what_is_inside_a_tunnel_is_not_told():
    found = tell(ETHER / IP(src=GUEST, dst=SERVICE) / IP(src="1.1.1.1", dst="2.2.2.2") / TCP() / b"sesame")
    assert found.text == f"{GUEST} > {SERVICE} protocol 4"


@given(st.binary(max_size=300), st.booleans())
def test_anything_is_told_somehow(frame, to_guest):
    found = seen(frame, len(frame), to_guest=to_guest)
    assert 0 <= found.plain <= len(frame)
    assert found.text.isprintable()


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([4, 6]))
def test_no_control_character_comes_through(payload, to_guest, family):
    assert tell(tcp(payload, family=family), to_guest=to_guest).text.isprintable()


def view(**fields):
    given = {
        "time": 1_790_000_000.25, "tap": "tap1", "netns": "", "to_guest": False, "verdict": "opened", "refused": False,
        "length": 54, "frame": "",
    }  # fmt: skip
    return PacketView(**given | fields)


def test_a_line():
    clock = time.strftime("%H:%M:%S", time.localtime(1_790_000_000))
    packet = tell(tcp())
    assert line(view(), packet) == f"{clock}.250000 tap1 → TCP {packet.text}  opened"
    assert " rack/t ← TCP " in line(view(tap="t", netns="rack", to_guest=True), packet)
    assert "\x1b" not in line(view(tap="t\x1b[2J"), packet)


def test_fields_for_programs():
    packet = tell(tcp())
    assert fields(view(refused=True, verdict="no_flow"), packet) == {
        "time": 1_790_000_000.25, "tap": "tap1", "netns": "", "direction": "from_guest", "verdict": "no_flow",
        "refused": True, "length": 54, "protocol": "TCP", "source": GUEST, "destination": SERVICE,
        "summary": packet.text,
    }  # fmt: skip
