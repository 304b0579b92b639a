"""What is not ours goes on, unchanged and uncounted, whatever the port's policy: TC_ACT_UNSPEC, not OK."""

from __future__ import annotations

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Raw

from shim.core.policy import Access, Policy
from tests.bpf.frames import (
    BROADCAST,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_V4,
    GUEST_V6,
    NEIGHBOUR_MAC,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
)
from tests.bpf.loaded import PASSED, SERVICE_V4, port

TO = Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC)
ALL = Ether(src=GUEST_MAC, dst=BROADCAST)
IP4 = IP(src=GUEST_V4, dst=NEIGHBOUR_V4)
IP6 = IPv6(src=GUEST_V6, dst=NEIGHBOUR_V6)
FRAMES = {
    "tcp4": TO / IP4 / TCP(dport=80) / b"GET /",
    "udp4": TO / IP4 / UDP(dport=53) / b"query",
    "icmp4": TO / IP4 / ICMP(),
    "options4": TO / IP(src=GUEST_V4, dst=NEIGHBOUR_V4, options=[IPOption_RR()]) / UDP(),
    "fragment4": TO / IP(src=GUEST_V4, dst=NEIGHBOUR_V4, flags="MF", frag=5) / Raw(b"x" * 16),
    "bad version 4": TO / IP(src=GUEST_V4, dst=NEIGHBOUR_V4, version=7) / UDP(),
    "dhcp": ALL
    / IP(src="0.0.0.0", dst="255.255.255.255")
    / UDP(sport=68, dport=67)
    / BOOTP()
    / DHCP(options=["end"]),
    "near by address": TO / IP(src=GUEST_V4, dst="169.254.169.253") / TCP(dport=80),
    "other link-local": TO / IP(src="169.254.7.7", dst="169.254.255.255") / UDP(),
    "multicast4": Ether(src=GUEST_MAC, dst="01:00:5e:00:00:fb") / IP(src=GUEST_V4, dst="224.0.0.251") / UDP(),
    "gre": TO / IP4 / GRE() / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(),
    "tcp6": TO / IP6 / TCP(dport=80) / b"GET /",
    "udp6": TO / IP6 / UDP(dport=53) / b"query",
    "icmp6": TO / IP6 / ICMPv6EchoRequest(),
    "fragment6": TO / IP6 / IPv6ExtHdrFragment(m=1) / Raw(b"x" * 16),
    "near by address 6": TO / IPv6(src=GUEST_V6, dst="fd00:ec2::255") / TCP(dport=80),
    "arp request": ALL / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst=NEIGHBOUR_V4),
    "arp reply": TO / ARP(op=2, hwsrc=GUEST_MAC, psrc=GUEST_V4, hwdst=NEIGHBOUR_MAC, pdst=NEIGHBOUR_V4),
    "gratuitous arp": ALL / ARP(op=2, hwsrc=GUEST_MAC, psrc=GUEST_V4, hwdst=BROADCAST, pdst=GUEST_V4),
    "rarp": Ether(src=GUEST_MAC, dst=BROADCAST, type=0x8035) / Raw(bytes(28)),
    "solicitation": TO / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::1:ff00:6", hlim=255) / ICMPv6ND_NS(tgt=NEIGHBOUR_V6),
    "advertisement": TO / IPv6(src=GUEST_V6, dst=NEIGHBOUR_V6, hlim=255) / ICMPv6ND_NA(tgt=GUEST_V6),
    "router solicitation": TO / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
    "mld": TO
    / IPv6(src=GUEST_LINK_LOCAL, dst="ff02::16", hlim=1)
    / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    / ICMPv6MLReport2(),
    "vlan": TO / Dot1Q(vlan=5) / IP4 / TCP(dport=80),
    "qinq": TO / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP6 / UDP(),
    "three tags": TO / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP4 / UDP(),
    "four tags": TO / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / Dot1Q(vlan=4) / IP4 / UDP(),
    "vlan arp": ALL / Dot1Q(vlan=5) / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst=NEIGHBOUR_V4),
    "priority tag, other protocol": TO / Dot1Q(vlan=0, type=0x88B5) / Raw(b"x" * 10),
    "0x9100": Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC, type=0x9100) / Dot1Q(vlan=5, type=0x0800) / IP4 / UDP(),
    "lldp": Ether(src=GUEST_MAC, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\x02\x07\x04" + bytes(20)),
    "stp": Dot3(src=GUEST_MAC, dst="01:80:c2:00:00:00") / LLC() / STP(),
    "snap": Dot3(src=GUEST_MAC, dst=NEIGHBOUR_MAC) / LLC() / SNAP(code=0x809B) / Raw(b"x" * 20),
    "mpls": TO / MPLS(label=5) / IP4 / UDP(),
    "pppoe": Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC, type=0x8864) / Raw(bytes(40)),
    "experimental": Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC, type=0x88B5) / Raw(b"169.254.169.254"),
    "unknown with the address": Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC, type=0x1234) / Raw(bytes(20)),
    "nothing inside": Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC, type=0x88B5) / Raw(b"\0"),
}
POLICIES = {"open": Policy(), "reset": Policy(Access.RESET, Access.RESET), "drop": Policy(Access.DROP, Access.DROP)}


@pytest.mark.parametrize("name", FRAMES)
def test_passes_unchanged(kernel, name):
    frame = bytes(FRAMES[name])
    owners = [port(policy) for policy in POLICIES.values()] + [port(instance=None), None]
    for owner in owners:
        kernel.enrol(owner)
        run = kernel.from_instance(frame)
        assert (run.action, run.frame, run.counted) == (PASSED, frame, {})


def test_a_service_address_elsewhere_in_a_packet_is_nobodys_business(kernel):
    frame = bytes(TO / IP4 / UDP(dport=53) / (SERVICE_V4.encode() + bytes([169, 254, 169, 254]) * 9))
    assert kernel.from_instance(frame).action == PASSED
