"""Frames cut at every length. What would be served or refused is refused; a cut bystander passes if it can be read."""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from tests.bpf.frames import (
    BOTH,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
    arp_request,
    echo_request,
    ethernet,
    lengths,
    network,
    segment,
    solicitation,
    tcp,
)
from tests.bpf.loaded import PASSED, REDIRECT, SHOT, port

QINQ = [Dot1AD(vlan=8), Dot1Q(vlan=9)]
SERVED = {
    "tcp4": segment(4, "S", b"payload"),
    "tcp6": segment(6, "S", b"payload"),
    "tcp4 with options": segment(4, "S", options=[("MSS", 1460)]),
    "tcp4 vlan": segment(4, "S", tags=QINQ[1:]),
    "tcp6 vlan": segment(6, "S", tags=QINQ[1:]),
    "tcp4 qinq": segment(4, "S", tags=QINQ),
    "tcp6 qinq": segment(6, "S", tags=QINQ),
    "echo4": bytes(echo_request(4, b"abc")),
    "echo6": bytes(echo_request(6, b"abc", QINQ)),
    "arp": bytes(arp_request()),
    "arp qinq": bytes(arp_request(tags=QINQ)),
}
REFUSED = {
    "udp4": ethernet() / network(4) / UDP(dport=53) / b"query",
    "udp6 qinq": ethernet(tags=QINQ) / network(6) / UDP(dport=53),
    "hop by hop": ethernet() / network(6) / IPv6ExtHdrHopByHop() / tcp(),
    "three tags": ethernet(tags=[Dot1Q(vlan=1)] * 3) / network(4) / tcp(),
    "spoofed": ethernet(tags=QINQ) / network(4, src="169.254.169.254", dst=NEIGHBOUR_V4) / tcp(),
}
NEIGHBOUR_OF = {4: NEIGHBOUR_V4, 6: NEIGHBOUR_V6}


@pytest.mark.parametrize("name", SERVED)
def test_what_would_be_served_is_refused_when_cut(kernel, name):
    whole = SERVED[name]
    for length in lengths(whole):
        run = kernel.from_instance(whole[:length])
        assert (length, run.action, run.counted) == (length, SHOT, {Verdict.MALFORMED: 1})
    assert kernel.from_instance(whole).action == REDIRECT


@pytest.mark.parametrize("name", SERVED)
def test_resets_answer_whole_segments_only(kernel, name):
    kernel.enrol(port(Policy(Access.RESET, Access.RESET)))
    whole = SERVED[name]
    assert {kernel.from_instance(whole[:length]).action for length in lengths(whole)} == {SHOT}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_refused_is_refused_when_cut(kernel, name):
    whole = bytes(REFUSED[name])
    assert {kernel.from_instance(whole[:length]).action for length in lengths(whole)} == {SHOT}
    assert kernel.from_instance(whole).action == SHOT


@pytest.mark.parametrize("tags", [[], QINQ], ids=["plain", "qinq"])
def test_a_solicitation_is_refused_from_its_first_byte_on(kernel, tags):
    whole = bytes(solicitation(tags=tags))
    message = len(whole) - 32
    for length in lengths(whole):
        run = kernel.from_instance(whole[:length])
        assert (length, run.action) == (length, PASSED if length == message else SHOT)


@pytest.mark.parametrize("tags", [[], QINQ], ids=["plain", "qinq"])
@pytest.mark.parametrize("family", BOTH)
def test_a_bystander_passes_once_its_addresses_are_there(kernel, family, tags):
    """Where they are not, nobody could say that they are not the service's."""
    whole = bytes(ethernet(tags=tags) / network(family, dst=NEIGHBOUR_OF[family]) / UDP() / b"payload")
    addresses_end = 14 + 4 * len(tags) + (20 if family == 4 else 40)
    for length in lengths(whole):
        run = kernel.from_instance(whole[:length])
        assert (length, run.action) == (length, PASSED if length >= addresses_end else SHOT)
