"""The leak guard on its own, without any datapath: what a tap that is not enrolled sends, and where it gets to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from shim.datapath import guard_rules
from shim.datapath.guard import Guard
from shim.netlink.nftables import Nftables
from shim.settings import Datapath
from tests.bpf.frames import (
    BROADCAST,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    GUEST_V4,
    GUEST_V6,
    NEIGHBOUR_MAC,
    NEIGHBOUR_V4,
    NEIGHBOUR_V6,
    SERVICE_GROUP,
    SERVICE_GROUP_MAC,
)
from tests.bpf.loaded import SERVICE_LINK_LOCAL, SERVICE_V4, SERVICE_V6
from tests.bpf.test_bystanders import FRAMES
from tests.lab import Lab, mentions, offloaded
from tests.netns.restless import Restless

NAME = "gt"
SETTINGS = Datapath()
MARKER = Ether(src=GUEST_MAC, dst=BROADCAST, type=0x88B5) / Raw(b"the last frame" * 4)

TAGS = {
    "plain": [],
    "vlan": [(0x8100, 7)],
    "priority": [(0x8100, 0)],
    "802.1ad": [(0x88A8, 7)],
    "qinq": [(0x88A8, 8), (0x8100, 9)],
    "stacked": [(0x8100, 5), (0x8100, 6)],
    "three": [(0x8100, 1), (0x8100, 2), (0x8100, 3)],
    "four": [(0x88A8, 1), (0x8100, 2), (0x8100, 3), (0x8100, 4)],
    "0x9100": [(0x9100, 5)],
    "0x9100 below": [(0x8100, 5), (0x9100, 6)],
    "four from 0x9100": [(0x9100, 1), (0x9100, 2), (0x88A8, 3), (0x8100, 4)],
}


def tagged(packet, tags):
    """The bytes of a packet with these tags, (ethertype, number)."""
    whole = bytes(packet)
    return whole[:12] + b"".join(kind.to_bytes(2) + vid.to_bytes(2) for kind, vid in tags) + whole[12:]


def unicast(*layers):
    frame = Ether(src=GUEST_MAC, dst=NEIGHBOUR_MAC)
    for layer in layers:
        frame = frame / layer
    return frame


def to4(**fields):
    return IP(**{"src": GUEST_V4, "dst": SERVICE_V4} | fields)


def to6(**fields):
    return IPv6(**{"src": GUEST_V6, "dst": SERVICE_V6} | fields)


def changed(packet, at, new):
    """The packet with other bytes at an offset of its frame."""
    whole = bytes(packet)
    return Raw(whole[:at] + new + whole[at + len(new) :])


def group(*layers, dst=SERVICE_GROUP, **fields):
    """Discovery speaks to groups, and with hop limit 255."""
    frame = Ether(src=GUEST_MAC, dst=SERVICE_GROUP_MAC) / IPv6(**{"src": GUEST_V6, "dst": dst, "hlim": 255} | fields)
    for layer in layers:
        frame = frame / layer
    return frame


# Of an address that ends as the service's does, the solicited-node group is the service's too.
NAMESAKE = "fd00:1::254"

ASK = ICMPv6ND_NS(tgt=SERVICE_V6)
LONG = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"x" * 40)])
SERVICE = {
    "tcp4": unicast(to4(), TCP(dport=80)),
    "udp4": unicast(to4(), UDP(dport=53)),
    "ping4": unicast(to4(), ICMP()),
    "broadcast4": Ether(src=GUEST_MAC, dst=BROADCAST) / to4() / TCP(dport=80),
    "options4": unicast(to4(options=[IPOption_NOP()] * 4), TCP()),
    "fragment4": unicast(to4(flags="MF"), Raw(b"x" * 16)),
    "last fragment4": unicast(to4(frag=100), Raw(b"x" * 16)),
    "malformed4": unicast(to4(ihl=2, len=7), Raw(b"x" * 30)),
    "from4": unicast(IP(src=SERVICE_V4, dst=NEIGHBOUR_V4), TCP(sport=80)),
    "tcp6": unicast(to6(), TCP(dport=80)),
    "tcp link-local": unicast(to6(src=GUEST_LINK_LOCAL, dst=SERVICE_LINK_LOCAL), TCP(dport=80)),
    "ping6": unicast(to6(), ICMPv6EchoRequest()),
    "fragment6": unicast(to6(), IPv6ExtHdrFragment(offset=100), Raw(b"x" * 16)),
    "extensions6": unicast(to6(), IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), TCP()),
    "malformed6": unicast(to6(plen=9999), Raw(b"x" * 8)),
    "from6": unicast(IPv6(src=SERVICE_V6, dst=NEIGHBOUR_V6), TCP(sport=80)),
    "from link-local": unicast(IPv6(src=SERVICE_LINK_LOCAL, dst="ff02::1"), UDP()),
    "arp request": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(psrc=GUEST_V4, pdst=SERVICE_V4),
    "arp unicast": unicast(ARP(psrc=GUEST_V4, pdst=SERVICE_V4)),
    "arp probe": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(psrc="0.0.0.0", pdst=SERVICE_V4),
    "arp claim": unicast(ARP(op=2, psrc=SERVICE_V4, pdst=NEIGHBOUR_V4)),
    "gratuitous arp": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(op=2, psrc=SERVICE_V4, pdst=SERVICE_V4),
    "arp cut behind its sender": Raw(bytes(unicast(ARP(op=2, psrc=SERVICE_V4)))[: 14 + 20]),
    "arp, addresses of a kind": unicast(ARP(hwlen=8, hwsrc=b"12345678", psrc=SERVICE_V4, hwdst=b"87654321")),
    "solicitation": group(ASK),
    "probe": group(ASK, src="::"),
    "solicitation link-local": group(ICMPv6ND_NS(tgt=SERVICE_LINK_LOCAL), dst="ff02::1:fffe:a9fe"),
    "solicitation of a namesake": group(ASK, src=NAMESAKE),
    "solicitation to all": group(ASK, dst="ff02::1"),
    "solicitation to one": unicast(IPv6(src=GUEST_V6, dst=NEIGHBOUR_V6, hlim=255), ASK),
    "advertisement": group(ICMPv6ND_NA(tgt=SERVICE_V6), dst="ff02::1"),
    "redirect": unicast(IPv6(dst=NEIGHBOUR_V6, hlim=255), ICMPv6ND_Redirect(tgt=SERVICE_V6, dst="fd00::9")),
    "redirected": unicast(IPv6(dst=NEIGHBOUR_V6, hlim=255), ICMPv6ND_Redirect(tgt="fe80::9", dst=SERVICE_V6)),
    "behind options": group(IPv6ExtHdrHopByHop(), ASK),
    "behind long options": group(LONG, ASK),
    "behind routing": group(IPv6ExtHdrRouting(), ASK),
    "behind three": group(IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(), ASK, dst="ff02::1"),
    "behind five": group(*[IPv6ExtHdrDestOpt()] * 5, ASK, dst="ff02::1"),
    "redirected behind options": group(
        IPv6ExtHdrDestOpt(), ICMPv6ND_Redirect(tgt="fe80::9", dst=SERVICE_V6), dst=NEIGHBOUR_V6
    ),
    "first fragment": unicast(IPv6(dst=NEIGHBOUR_V6, hlim=255), IPv6ExtHdrFragment(m=1), ASK),
    "fragment of what the group gets": group(IPv6ExtHdrFragment(offset=8, nh=58), Raw(b"x" * 16)),
}
NOT_READABLE = {
    "a solicitation that is cut": Raw(bytes(group(ASK))[:-1]),
    "options and a length that lies": group(IPv6ExtHdrHopByHop(), ASK, plen=9999),
    "long options below a tag": Raw(tagged(group(LONG, ASK, hlim=64), [(0x88A8, 1), (0x8100, 2)])),
    "five tags": Raw(tagged(unicast(to4(), TCP()), [(0x8100, vid) for vid in range(1, 6)])),
    "six tags": Raw(tagged(unicast(to4(), TCP()), [(0x88A8, vid) for vid in range(1, 7)])),
}

OF_OTHERS = {
    "namesake's solicitation": group(ICMPv6ND_NS(tgt=NAMESAKE)),
    "namesake's solicitation behind options": group(IPv6ExtHdrHopByHop(), ICMPv6ND_NS(tgt=NAMESAKE)),
    "namesake's report": group(
        IPv6ExtHdrHopByHop(options=[RouterAlert()]), ICMPv6MLReport(mladdr=SERVICE_GROUP), hlim=1
    ),
    "namesake's tcp": unicast(IPv6(src=NAMESAKE, dst="fd00:1::a9fe:a9fe"), TCP(dport=80)),
    "ping of a namesake": unicast(IPv6(src=GUEST_V6, dst=NAMESAKE), ICMPv6EchoRequest()),
    "udp to the group": group(UDP(dport=5000)),
    "redirect": unicast(IPv6(dst=NEIGHBOUR_V6, hlim=255), ICMPv6ND_Redirect(tgt="fe80::9", dst="fd00::9")),
    "options6": unicast(IPv6(dst=NEIGHBOUR_V6), IPv6ExtHdrDestOpt(), TCP()),
    "long options6": unicast(IPv6(dst=NEIGHBOUR_V6), LONG, UDP()),
    "fragment6": unicast(IPv6(dst=NEIGHBOUR_V6), IPv6ExtHdrFragment(offset=100), Raw(b"x" * 16)),
    "later fragment like a claim": unicast(
        IPv6(dst=NEIGHBOUR_V6), IPv6ExtHdrFragment(offset=100, nh=58), Raw(b"\x88" * 12)
    ),
    "no type": unicast(IPv6(dst=NEIGHBOUR_V6, nh=58)),
    "dhcp": Ether(src=GUEST_MAC, dst=BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
    "arp": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(psrc=GUEST_V4, pdst=NEIGHBOUR_V4),
    "arp probe": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(psrc="0.0.0.0", pdst=NEIGHBOUR_V4),
    "arp of another protocol": changed(SERVICE["arp unicast"], 16, b"\x12\x34"),
    "arp of another protocol and kind": changed(SERVICE["arp, addresses of a kind"], 16, b"\x12\x34"),
    "arp for longer addresses": changed(SERVICE["arp claim"], 19, b"\x10"),
    "arp for longer addresses of a kind": changed(SERVICE["arp, addresses of a kind"], 19, b"\x10"),
    "options6 and few bytes that begin as discovery does": unicast(
        IPv6(dst=NEIGHBOUR_V6), IPv6ExtHdrDestOpt(), UDP(sport=0x8700)
    ),
    "tcp4": unicast(IP(src=GUEST_V4, dst=NEIGHBOUR_V4), TCP(dport=80)),
}


class Site:
    """A hypervisor whose own kernel says nothing, with two taps and something else on a bridge, and a guard."""

    def __init__(self, lab: Lab, *, ipv6: bool = False) -> None:
        self.lab = lab
        for namespace in () if ipv6 else (lab.host, lab.wire):
            namespace.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.tables = {
            family: Nftables(guard_rules.table_name(NAME), family) for family in guard_rules.FAMILIES
        }
        addresses = SETTINGS.service_v4 + SETTINGS.service_v6
        self.rules = guard_rules.ruleset(NAME, SETTINGS.taps, addresses)
        self.guard = Guard(self.tables, self.rules)

    def ensure(self) -> None:
        self.lab.host.call(self.guard.ensure)

    def load(self) -> None:
        self.lab.host.run(["nft", "-f", "-"], input=self.rules.text, stdin=None)

    def stands(self) -> bool:
        return self.lab.host.call(self.guard.stands)

    def teardown(self) -> None:
        self.lab.host.call(self.guard.teardown)

    def nft(self, *words: str) -> str:
        return self.lab.host.run(["nft", *words]).stdout

    def close(self) -> None:
        for table in self.tables.values():
            table.close()


@contextlib.contextmanager
def made(**how) -> Iterator[Site]:
    with Lab() as lab:
        site = Site(lab, **how)
        try:
            yield site
        finally:
            site.close()


@pytest.fixture(scope="module")
def bridged() -> Iterator[Site]:
    """Guarded; three taps of which two are of the configured names."""
    with made() as site:
        site.ensure()
        site.tap, site.neighbour = site.lab.tap_guest("tap1"), site.lab.tap_guest("vnet2")
        site.foreign = site.lab.tap_guest("qtap3")
        yield site


def arrived(site, sender, frames):
    """What the wire, the bridge and the neighbour got of these frames; all has arrived when the marker has."""
    wires = [site.lab.capture("uplink", site.lab.wire), site.lab.capture("br0")]
    site.neighbour.recv(0)
    for frame in (*frames, bytes(MARKER)):
        sender.send(frame)
    is_marker = [lambda frame: bytes(frame) == bytes(MARKER)] * 3
    got = [wires[0].recv(2, is_marker[0]), wires[1].recv(2, is_marker[1]), site.neighbour.recv(2, is_marker[2])]
    for wire in wires:
        wire.close()
    assert all(bytes(place[-1]) == bytes(MARKER) for place in got)
    return [[bytes(frame) for frame in place[:-1]] for place in got]


@pytest.fixture
def site() -> Iterator[Site]:
    """Not guarded yet, nothing plugged in."""
    with made() as site:
        yield site


class TestBridge:
    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_whatever_is_for_the_service_gets_nowhere(self, bridged, tags):
        frames = {name: tagged(packet, tags) for name, packet in SERVICE.items()}
        got = arrived(bridged, bridged.tap, frames.values())
        assert [[name for name, frame in frames.items() if frame in place] for place in got] == [[], [], []]
        assert got == [[], [], []]

    @pytest.mark.parametrize("name", NOT_READABLE)
    def test_what_nobody_can_say_gets_nowhere_either(self, bridged, name):
        assert arrived(bridged, bridged.tap, [bytes(NOT_READABLE[name])]) == [[], [], []]

    @pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
    def test_other_frames_go_on_unchanged(self, bridged, tags):
        frames = {name: tagged(packet, tags) for name, packet in OF_OTHERS.items()}
        assert arrived(bridged, bridged.tap, frames.values())[0] == list(frames.values())

    @pytest.mark.parametrize("name", [name for name in FRAMES if name != "lldp"])  # which no bridge forwards
    def test_bystanders_go_on_unchanged(self, bridged, name):
        frame = bytes(FRAMES[name])
        assert arrived(bridged, bridged.tap, [frame])[0] == [frame]

    def test_an_interface_of_another_name_is_left_alone(self, bridged):
        """Which also shows that what is missed above would be seen."""
        for tags in TAGS.values():
            frames = [tagged(packet, tags) for packet in SERVICE.values()]
            assert arrived(bridged, bridged.foreign, frames)[0] == frames

    def test_a_segment_that_is_still_to_be_cut_is_seen_too(self, site):
        site.ensure()
        tap = site.neighbour = site.lab.tap_guest("tap7", vnet_hdr=True)
        frame, header = offloaded(bytes(unicast(to4(), TCP(dport=80), Raw(b"x" * 4000))), 1000)
        wire = site.lab.capture("uplink", site.lab.wire)
        tap.send(frame, vnet=header)
        tap.send(bytes(MARKER))
        assert [bytes(f) for f in wire.recv(2, lambda f: bytes(f) == bytes(MARKER))] == [bytes(MARKER)]


ASKED = {
    "arp": Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst=SERVICE_V4),
    "arp, tagged for priority": Ether(src=GUEST_MAC, dst=BROADCAST)
    / Dot1Q(vlan=0)
    / ARP(hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst=SERVICE_V4),
    "ping": Ether(src=GUEST_MAC) / IP(src=GUEST_V4, dst=SERVICE_V4) / ICMP(),
    "tcp": Ether(src=GUEST_MAC) / IP(src=GUEST_V4, dst=SERVICE_V4) / TCP(dport=80),
    "solicitation": group(ASK),
    "ping6": Ether(src=GUEST_MAC) / IPv6(src=GUEST_V6, dst=SERVICE_V6) / ICMPv6EchoRequest(),
    "tcp6": Ether(src=GUEST_MAC) / IPv6(src=GUEST_V6, dst=SERVICE_V6) / TCP(dport=80),
}


@pytest.fixture(scope="module")
def hosted() -> Iterator[Site]:
    """A tap on no bridge, on a host that has the service's addresses itself and answers for them."""
    with made(ipv6=True) as site:
        site.tap = site.lab.tap_guest("tap9", bridge=None)
        site.mac = site.lab.host.ip.get_links(site.tap.ifindex)[0].get_attr("IFLA_ADDRESS")
        for address, bits in (("10.0.0.1", 24), (SERVICE_V4, 32), ("fd00:1::1", 64), (SERVICE_V6, 128)):
            site.lab.host.ip.addr("add", index=site.tap.ifindex, address=address, prefixlen=bits)
        for place in ("all", "default", "tap9"):
            site.lab.host.sysctl(f"net.ipv4.conf.{place}.rp_filter", 0)
        for known in (GUEST_V4, GUEST_V6):
            site.lab.host.ip.neigh(
                "replace", dst=known, lladdr=GUEST_MAC, ifindex=site.tap.ifindex, state="permanent"
            )
        yield site


def answers(site, name):
    """What with a service address in it the guest gets for its question."""
    packet = ASKED[name].copy()
    if packet.dst not in (BROADCAST, SERVICE_GROUP_MAC):
        packet.dst = site.mac
    site.tap.recv(0.02)
    site.tap.send(bytes(packet))
    return [bytes(f) for f in site.tap.recv(0.3, mentions) if mentions(f)]


class TestOwnStack:
    @pytest.mark.parametrize("name", ASKED)
    def test_hears_nothing_and_would_have_answered(self, hosted, name):
        hosted.ensure()
        assert answers(hosted, name) == []
        hosted.teardown()
        assert answers(hosted, name) != []

    def test_other_addresses_of_the_host_answer(self, hosted):
        hosted.ensure()
        asks = Ether(src=GUEST_MAC, dst=BROADCAST) / ARP(hwsrc=GUEST_MAC, psrc=GUEST_V4, pdst="10.0.0.1")
        hosted.tap.send(bytes(asks))
        assert hosted.tap.recv(1, lambda f: ARP in Ether(f) and Ether(f)[ARP].psrc == "10.0.0.1")


SENT = [bytes(SERVICE[kind]) for kind in ("tcp4", "arp request", "solicitation")]


def leaks_of_restless_taps(site, rounds):
    wires = [site.lab.capture("uplink", site.lab.wire), site.lab.capture("br0")]
    for round_ in range(rounds):
        guest = Restless(site.lab, f"tap{round_}", SENT)
        try:
            index = site.lab.host.index(f"tap{round_}")
            site.lab.host.set_up(index, site.lab.host.index("br0"))
            site.lab.host.await_up(index)
            time.sleep(0.05)  # a while as its bridge's port, which is what is looked at
        finally:
            guest.close()
        assert guest.sent > 100
    leaked = [frame for wire in wires for frame in wire.frames(0.05) if mentions(frame)]
    for wire in wires:
        wire.close()
    return leaked


class TestLife:
    def test_a_tap_that_appears_and_sends_at_once_leaks_nothing(self, site):
        assert leaks_of_restless_taps(site, 1) != []
        site.ensure()
        assert leaks_of_restless_taps(site, 6) == []

    def test_it_stands_when_it_was_loaded_and_can_be_loaded_again(self, site):
        assert not site.stands()
        site.ensure()
        once = site.nft("list", "ruleset")
        assert site.stands()
        site.load()
        assert site.nft("list", "ruleset") == once
        assert site.stands()

    @pytest.mark.parametrize(
        "harm",
        [
            ["flush", "ruleset"],
            ["delete", "table", "arp", "guard-gt"],
            ["flush", "table", "inet", "guard-gt"],
            ["flush", "chain", "bridge", "guard-gt", "ipv4_0"],
            ["flush", "set", "bridge", "guard-gt", "loaded"],
        ],
        ids=" ".join,
    )
    def test_what_others_did_to_it_is_seen_and_mended(self, site, harm):
        site.ensure()
        whole = site.nft("list", "ruleset")
        site.nft(*harm)
        assert not site.stands()
        site.ensure()
        assert site.stands()
        parts = [sorted(text.split("\ntable ")) for text in (f"\n{whole}", "\n" + site.nft("list", "ruleset"))]
        assert parts[0] == parts[1]

    def test_other_settings_take_the_place_of_the_former(self, site):
        site.ensure()
        site.rules = guard_rules.ruleset(NAME, ("vnet*",), SETTINGS.service_v4)
        site.guard = Guard(site.tables, site.rules)
        assert not site.stands()
        site.ensure()
        assert site.stands()
        assert '"tap*"' not in site.nft("list", "ruleset")

    def test_teardown_leaves_nothing_and_may_be_called_again(self, site):
        site.ensure()
        site.teardown()
        assert site.nft("list", "ruleset") == ""
        site.teardown()
        assert not site.stands()

    def test_tables_of_others_stay_and_go_on_seeing_packets(self, site):
        for family, hook in (("bridge", "prerouting"), ("inet", "prerouting"), ("arp", "input")):
            chain = f"add chain {family} guard seen {{ type filter hook {hook} priority 0; }}"
            site.nft(f"add table {family} guard; {chain}; add rule {family} guard seen counter")
        site.nft("add rule bridge guard seen ip daddr 169.254.169.254 counter")
        before = site.nft("list", "ruleset")
        site.ensure()
        site.tap, site.neighbour = site.lab.tap_guest("tap1"), site.lab.tap_guest("vnet2")
        frame = bytes(OF_OTHERS["tcp4"])
        assert arrived(site, site.tap, [bytes(SERVICE["tcp4"]), frame])[0] == [frame]
        seen = site.nft("list", "table", "bridge", "guard")
        assert "counter packets 2 " in seen  # the frame and the marker
        assert "169.254.169.254 counter packets 0 " in seen
        site.teardown()
        after = site.nft("list", "ruleset")
        assert [line for line in after.splitlines() if "counter" not in line] == [
            line for line in before.splitlines() if "counter" not in line
        ]

    @pytest.mark.parametrize("pattern", ["drop;}{$taps", "a,b", "#x", "'", "tap*", "x" * 15, "x" * 14 + "*", "ip", "0"])
    def test_odd_names_can_be_loaded_as_names(self, site, pattern):
        site.rules = guard_rules.ruleset("0-a", (pattern,), SETTINGS.service_v6)
        assert guard_rules.uncovered([pattern]) == []
        site.load()
        assert f'iifname "{pattern}"' in site.nft("list", "chain", "inet", "guard-0-a", "from_taps")
