"""The nftables datapath's text, and what it holds of a port: pure, no kernel."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.table import Element, Hook
from shim.core.verdict import Verdict
from shim.datapath import nft_ports, nft_rules
from shim.datapath.nft import ruleset

SETTINGS = nft_rules.Settings(
    table="datapath-test",
    addresses=("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"),
    service_ports=(80,),
    rate=50,
    burst=200,
    event_rate=10,
    max_ports=64,
    patience=80,
    group=7,
)
PORT = Port(5, 3, 17, "tap5", "", UUID(int=1), Policy())
TEXT = ruleset(SETTINGS).text


class TestText:
    def test_every_verdict_is_counted_and_every_refusal_of_a_guests_frame_can_be_given(self):
        for verdict in Verdict:
            assert f"set {verdict.label} {{" in TEXT
        gone_to = set(re.findall(r"goto refuse_(\w+)", TEXT))
        unused = {v.label for v in Verdict if v.refusal} - gone_to
        assert unused == {"reply_foreign"}  # nobody's, so counted for nobody

    def test_every_chain_that_is_gone_to_is_there_once(self):
        chains = re.findall(r"^\tchain (\S+) \{$", TEXT, re.MULTILINE)
        assert len(set(chains)) == len(chains)
        assert set(re.findall(r"\b(?:goto|jump) (\w+)", TEXT)) <= set(chains)

    def test_nothing_is_left_to_fill_in(self):
        assert "$" not in TEXT

    def test_limits_and_the_group_of_events_are_the_settings(self):
        assert "limit rate 50/second burst 200 packets } goto admit4" in TEXT
        assert "limit rate 10/second burst 10 packets" in TEXT
        assert "group 7 " in TEXT
        assert "snaplen 64" in TEXT
        assert "snaplen 64" not in ruleset(replace(SETTINGS, event_rate=0)).text

    def test_no_port_can_take_anothers_room(self):
        each = SETTINGS.flows // SETTINGS.max_ports
        assert each >= SETTINGS.burst + (2 * nft_rules.OPENING_SECONDS + SETTINGS.patience) * SETTINGS.rate

    def test_the_version_is_of_all_that_is_loaded(self):
        others = [replace(SETTINGS, rate=51), replace(SETTINGS, group=8), replace(SETTINGS, addresses=("169.254.1.1",))]
        assert len({ruleset(settings).version for settings in [SETTINGS, *others]}) == 4
        assert ruleset(replace(SETTINGS)).version == ruleset(SETTINGS).version
        assert f"set {ruleset(SETTINGS).version} {{" in TEXT

    @pytest.mark.parametrize("name", ["metashim", "0day", "a-b"])
    def test_nft_takes_the_tables_name(self, name):
        assert re.fullmatch(r"[a-zA-Z][\w-]*", nft_rules.table_name(name))


def difference(one, other):
    return {piece.set for piece in nft_ports.pieces(one) ^ nft_ports.pieces(other)}


class TestPorts:
    def test_a_toggle_touches_nothing_but_the_ways(self):
        reset = replace(PORT, policy=Policy(Access.RESET, Access.OPEN))
        assert difference(PORT, reset) == {"open4", "reset4"}
        assert difference(PORT, replace(PORT, policy=Policy(v6=Access.DROP))) == {"open6"}
        assert difference(PORT, replace(PORT, policy=Policy(Access.FORBID, Access.FORBID))) == set()
        assert difference(PORT, replace(PORT, policy=Policy(hop_limit=9))) == {"hop_limits"}

    def test_a_port_of_nobody_has_no_way_in(self):
        there = {p.set for p in nft_ports.pieces(replace(PORT, instance=None)) if isinstance(p, Element)}
        assert there.isdisjoint({"served", "open4", "open6", "reset4", "reset6"})

    def test_slot_0_only_guards(self):
        (hook,) = nft_ports.pieces(replace(PORT, slot=0))
        assert hook == Hook("tap17", "tap5", "from_instance", nft_ports.PRIORITY)
        assert nft_ports.owner(replace(PORT, slot=0)) == frozenset()

    def test_another_owner_has_nothing_of_the_formers_but_the_tap(self):
        second = replace(PORT, generation=4)
        assert nft_ports.pieces(PORT) & nft_ports.pieces(second) == {nft_ports.hook(PORT)}
        assert nft_ports.owner(PORT).isdisjoint(nft_ports.owner(second))

    @given(st.integers(1, 65535), st.integers(1, 1 << 31))
    def test_a_mark_holds_the_slot_and_no_service_address(self, slot, generation):
        mark = nft_ports.mark_of(slot, generation)
        assert nft_ports.slot_of(mark) == slot
        assert 0 < mark <= nft_rules.OWNER_MASK
        assert mark != nft_ports.mark_of(slot, generation + 1)

    @pytest.mark.parametrize("instance", [UUID(int=7), None])
    def test_an_owner_is_read_as_it_was_written(self, instance):
        (element,) = (e for e in nft_ports.owner(replace(PORT, instance=instance)) if e.set == "owners4")
        assert nft_ports.read_owner(element) == (5, 3, instance)

    def test_pieces_as_text(self):
        port = replace(PORT, policy=Policy(hop_limit=9))
        said = {nft_ports.text("t", piece) for piece in nft_ports.pieces(port) | nft_ports.owner(port)}
        mark = 5 | 3 << 16
        assert said == {
            'add chain netdev t tap17 { type filter hook ingress device "tap5" priority -150; }\n'
            "add rule netdev t tap17 goto from_instance",
            f"add element netdev t slots {{ 17 : {mark} }}",
            f"add element netdev t stamps4 {{ {mark} : 100.64.0.5 }}",
            f"add element netdev t stamps6 {{ {mark} : fd6d:7368:696d::5 }}",
            f"add element netdev t taps {{ {mark} : 17 }}",
            f"add element netdev t served {{ {mark} }}",
            f"add element netdev t open4 {{ {mark} }}",
            f"add element netdev t open6 {{ {mark} }}",
            f"add element netdev t hop_limits {{ {mark} : jump hop9 }}",
            f'add element netdev t owners4 {{ 100.64.0.5 comment "3 {PORT.instance}" : {mark} }}',
            f"add element netdev t owners6 {{ fd6d:7368:696d::5 : {mark} }}",
        }


def event(verdict, packet):
    return nft_ports.read_event(99, str(int(verdict)), nft_ports.mark_of(5, 3) | 6 << 29, 3, bytes(packet))


class TestEvents:
    def test_of_tcp_has_ports(self):
        found = event(Verdict.NO_FLOW, IP(src="10.0.0.5", dst="169.254.169.254") / TCP(sport=4000, dport=80))
        assert (found.ns, found.slot, found.generation, found.verdict) == (99, 5, 3, Verdict.NO_FLOW)
        assert (found.source, found.source_port) == ("10.0.0.5", 4000)
        assert (found.destination, found.destination_port) == ("169.254.169.254", 80)
        found = event(Verdict.WRONG_PORT, IPv6(src="fd00::5", dst="fd00:ec2::254") / TCP(sport=4000, dport=22))
        assert (found.source, found.source_port) == ("fd00::5", 4000)
        assert (found.destination, found.destination_port) == ("fd00:ec2::254", 22)

    def test_of_others_has_none(self):
        found = event(Verdict.WRONG_PROTOCOL, IP(src="10.0.0.5", dst="169.254.169.254") / UDP(sport=53) / (b"x" * 20))
        assert (found.source, found.source_port, found.destination_port) == ("10.0.0.5", 0, 0)

    def test_of_arp_has_sender_and_target(self):
        found = event(Verdict.SPOOFED_ARP, ARP(psrc="169.254.169.254", pdst="10.0.0.9"))
        assert (found.source, found.destination) == ("169.254.169.254", "10.0.0.9")

    @given(st.sampled_from(sorted(v for v in Verdict if v.refusal)), st.binary(max_size=64))
    def test_of_anything_is_told_all_the_same(self, verdict, packet):
        found = event(verdict, packet)
        assert (found.slot, found.verdict) == (5, verdict)
        for address in filter(None, (found.source, found.destination)):
            assert IPv6Address(address) if ":" in address else IPv4Address(address)

    @pytest.mark.parametrize("prefix", ["", "x", "-5", "1", "999", "17 "])
    def test_of_a_prefix_that_is_not_ours_is_none(self, prefix):
        assert nft_ports.read_event(99, prefix, 5, 3, b"") is None


class TestTraces:
    HEADER = bytes(range(14))

    def read(self, packet, prefix="trace 33", header=HEADER):
        return nft_ports.read_trace(99, prefix, nft_ports.mark_of(5, 3) | 6 << 29, 3, header, bytes(packet))

    def test_a_packet_with_what_is_before_it(self):
        packet = IP(src="10.0.0.5", dst="169.254.169.254") / TCP(dport=80)
        found = self.read(packet)
        assert (found.slot, found.generation, found.verdict, found.to_guest) == (5, 3, Verdict.VLAN_DEPTH, False)
        assert (found.frame, found.length) == (self.HEADER + bytes(packet), 14 + 40)

    @pytest.mark.parametrize("ip", [IP(), IPv6()])
    def test_one_that_was_cut_is_as_long_as_it_says(self, ip):
        whole = bytes(ip / TCP() / bytes(1000))
        found = self.read(whole[:256])
        assert (found.frame, found.length) == ((self.HEADER + whole)[:256], 14 + len(whole))

    def test_one_of_arp_is_here_whole(self):
        assert self.read(bytes(28)).length == 14 + 28

    def test_a_reply_is_to_the_guest(self):
        assert self.read(b"", "trace 2").to_guest
        assert self.read(b"", "trace 42").to_guest

    @given(st.sampled_from(sorted(Verdict)), st.binary(max_size=300))
    def test_anything_is_shown_all_the_same(self, verdict, packet):
        found = self.read(packet, f"trace {verdict.value}")
        assert (found.verdict, found.frame) == (verdict, (self.HEADER + packet)[:256])
        assert found.length >= len(found.frame)

    @pytest.mark.parametrize("prefix", ["", "33", "trace ", "trace x", "trace 0", "trace 999", "trace -2"])
    def test_of_a_prefix_that_is_not_ours_is_none(self, prefix):
        assert self.read(b"", prefix) is None
