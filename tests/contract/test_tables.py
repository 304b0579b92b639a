"""Contract, section 8, as far as it is about nftables: others' tables, others' hands on ours, changed rules, taps
that are renamed or come back; and what on nftables takes the place of a limit of connections."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from shim.datapath import nft_rules
from shim.datapath.nft import Nft, ruleset
from shim.errors import KernelError
from shim.netlink import gateway
from shim.netlink.nflog import NfLog
from shim.netlink.nftables import Nftables, Watch, subscribe
from tests.bpf.frames import GUEST_OF, SERVICE_OF, TAGS, ethernet, network, segment, solicitation, tcp
from tests.bpf.test_bystanders import FRAMES
from tests.contract.kernel import KernelRig, hypervisor
from tests.contract.rig import NFT_SETTINGS, Bench
from tests.contract.test_service import reply, stamped

pytestmark = pytest.mark.root

BYSTANDER = bytes(FRAMES["tcp4"])
CLOSED = Policy(Access.DROP, Access.DROP)
KNOWN_BY_NAMES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 16)
FORGOTTEN = nft_rules.OPENING_SECONDS + 1.5


@pytest.fixture
def bench(nft_rig):
    return Bench(nft_rig)


def nft(bench, text):
    """What somebody else does; what nft(8) prints."""
    return bench.rig.host.lab.host.run(["nft", "-f", "-"], input=text, stdin=None).stdout


def table(bench):
    return nft_rules.table_name(bench.rig.host.gateway.name)


def again(bench):
    """An audit, as the agent makes it."""
    datapath = bench.rig.datapath
    bench.rig.run(datapath.open(bench.rig.host.link))
    bench.rig.run(datapath.recheck())


class TestOthers:
    @pytest.fixture(params=[-500, 500])
    def other(self, bench, request):
        """Another's chain on the tap, before ours or behind it; what it counted of the service, and of bystanders."""
        hook = f'type filter hook ingress device "tapa" priority {request.param};'
        rules = "ip daddr 169.254.169.254 counter\nip daddr != 169.254.169.254 counter"
        nft(bench, f"table netdev other {{\nchain c {{\n{hook}\n{rules}\n}}\n}}")
        yield lambda: nft(bench, "list table netdev other").count("packets 1 ")
        nft(bench, "delete table netdev other")

    def test_go_on_seeing_what_is_not_ours(self, bench, other):
        bench.enrol("a")
        bench.send("a", BYSTANDER)
        assert bench.rig.bridge(expect=1) == [BYSTANDER]
        assert other() == 1

    def test_are_left_alone_by_every_change_of_ours(self, bench, other):
        before = nft(bench, "list table netdev other")
        for policy in (Policy(), CLOSED, Policy(hop_limit=1)):
            bench.enrol("a", policy)
        again(bench)
        bench.remove("a")
        bench.rig.run(bench.rig.datapath.teardown())
        assert nft(bench, "list table netdev other") == before
        assert table(bench) not in nft(bench, "list tables")


HARM = [
    "flush ruleset",
    "delete table netdev {}",
    "flush chain netdev {} see_ip4",
    "flush chain netdev {} {}",
    "delete chain netdev {} {}",
    "flush set netdev {} served",
    "flush map netdev {} slots",
    "flush chain netdev {} gateway_link",
]


@pytest.mark.parametrize("harm", HARM)
def test_what_somebody_undid_is_made_again(bench, harm):
    bench.enrol("a", CLOSED)
    port = bench.enrol("b")
    nft(bench, harm.format(table(bench), f"tap{port.ifindex}"))
    again(bench)
    bench.enrol("a", CLOSED)
    bench.enrol("b")
    bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)
    assert bench.passes_to_gateway("b", segment(6)) == [stamped("b", 6)]
    bench.rig.reply(reply("b", 6))
    assert len(bench.rig.guest("b", expect=1)) == 1


def test_a_gateway_link_that_is_made_anew_has_its_chain():
    """With the same name and ifindex as before, so that nothing but the chain tells. Before Linux 6.16 that goes with
    the link, and is no change that nftables speaks of."""
    with hypervisor("nft", Path("/nowhere")) as host:
        datapath = host.datapath()
        host.run(gateway.remove(host.route, host.gateway))
        link, _ = host.run(gateway.ensure(host.route, host.gateway))
        host.run(datapath.open(link))
        listed = ["nft", "list", "chain", "netdev", nft_rules.table_name(host.gateway.name), "gateway_link"]
        assert f'device "{host.gateway.link}"' in host.lab.host.run(listed).stdout
        datapath.close()


def test_what_was_flushed_is_back_with_the_audit_alone(bench):
    """In one transaction, policies and all: no tap is open while the agent goes from one to the next."""
    bench.enrol("a", CLOSED)
    bench.enrol("b")
    nft(bench, "flush ruleset")
    again(bench)
    bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)
    assert bench.passes_to_gateway("b", segment(4)) == [stamped("b", 4)]


class TestWatch:
    def hear(self, bench, action):
        heard = []
        with bench.rig.host.lab.host.enter(), subscribe() as events:
            watch = Watch(frozenset({table(bench)}), lambda: heard.append(True))
            action()
            while True:
                try:
                    watch.take(events.recv(1 << 18))
                except BlockingIOError:
                    return len(heard)

    def test_hears_of_others_at_our_table(self, bench):
        bench.enrol("a")
        assert self.hear(bench, lambda: nft(bench, "flush ruleset")) == 1
        again(bench)

    def test_does_not_hear_ourselves(self, bench):
        assert self.hear(bench, lambda: bench.enrol("a", CLOSED)) == 0

    def test_does_not_hear_of_others_tables(self, bench):
        assert self.hear(bench, lambda: nft(bench, "table netdev other\ndelete table netdev other")) == 0


def test_changed_rules_take_the_place_of_former_ones_with_every_port(bench):
    """An upgrade, or a changed setting: who was refused is refused before anything is ensured again."""
    bench.enrol("a", CLOSED)
    bench.enrol("b", Policy(hop_limit=3))
    settings = replace(NFT_SETTINGS, table=table(bench), service_ports=(80, 22))
    bench.rig.datapath.close()
    bench.rig.datapath = Nft(Nftables(settings.table), NfLog(settings.group), settings)
    bench.rig.run(bench.rig.datapath.open(bench.rig.host.link))
    bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)
    assert len(bench.passes_to_gateway("b", segment(4, dport=22))) == 1
    found = bench.rig.run(bench.rig.datapath.observe())
    assert {(f.slot, f.generation, f.instance) for f in found if f.ifindex} == {
        (p.slot, p.generation, p.instance) for p in bench.ports.values()
    }


def test_a_renamed_tap_is_guarded_under_its_new_name(bench):
    port = bench.enrol("a", CLOSED)
    bench.rig.host.lab.host.run(["ip", "link", "set", "tapa", "down"])
    bench.rig.host.lab.host.run(["ip", "link", "set", "tapa", "name", "tapz", "up"])
    bench.rig.taps["a"].tap = "tapz"
    bench.rig.run(bench.rig.datapath.ensure(replace(port, tap="tapz")))
    time.sleep(0.05)
    bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)


def test_a_tap_that_comes_back_while_nobody_runs_is_nobodys(bench):
    """Its name is the former's, and where chains are known by names (Linux 6.16) it is guarded at once; else by the
    leak guard alone, which is not here. But never as the former."""
    bench.enrol("a")
    bench.passes_to_gateway("a", segment(4))
    rig = bench.rig
    assert isinstance(rig, KernelRig)
    rig.taps["a"].close()
    rig.taps["a"] = rig.host.lab.tap_guest("tapa")
    bench.send("a", segment(4, "A"))
    rig.reply(reply("a", 4, "PA", b"the former's"))
    assert rig.gateway() == []
    assert rig.guest("a") == []
    if KNOWN_BY_NAMES:
        assert rig.leaks() == []


class TestConnections:
    def test_what_nobody_answers_is_forgotten_whatever_the_guest_sends(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        end = time.monotonic() + FORGOTTEN
        while time.monotonic() < end:
            bench.send("a", segment(4, "A"))
            time.sleep(0.2)
        bench.rig.gateway()
        (told,) = bench.answer("a", segment(4, "A"))[-1:]
        assert bench.counters("a")[Verdict.NO_FLOW] >= 1
        assert bench.rig.gateway() == []
        assert told

    def test_what_the_service_answers_is_kept(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(6))
        bench.rig.reply(reply("a", 6, "A"))
        bench.rig.guest("a", expect=1)
        time.sleep(FORGOTTEN)
        assert bench.passes_to_gateway("a", segment(6, "A")) == [stamped("a", 6, "A")]

    def test_a_client_may_wait_before_it_asks(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.rig.reply(reply("a", 4, "SA"))
        bench.rig.guest("a", expect=1)
        bench.passes_to_gateway("a", segment(4, "A"))
        time.sleep(FORGOTTEN)
        assert len(bench.passes_to_gateway("a", segment(4, "PA", b"GET /"))) == 1

    def test_a_port_may_be_used_again_by_another_address_once_the_guest_reset_it(self, bench):
        bench.enrol("a")
        bench.passes_to_gateway("a", segment(4))
        bench.assert_refused("a", segment(4, ip={"src": "10.0.0.9"}), Verdict.FLOW_CLASH)
        bench.passes_to_gateway("a", segment(4, "R"))
        bench.passes_to_gateway("a", segment(4, ip={"src": "10.0.0.9"}))
        bench.rig.reply(reply("a", 4))
        (told,) = bench.rig.guest("a", expect=1)
        assert told[30:34] == bytes([10, 0, 0, 9])


@pytest.mark.parametrize("tags", [TAGS["vlan"], TAGS["qinq"]], ids=["vlan", "qinq"])
def test_tagged_frames_about_the_service_are_refused_whatever_they_are(bench, tags):
    bench.enrol("a")
    frames = [
        bytes(ethernet(tags=tags) / network(6, src=SERVICE_OF[6], dst=GUEST_OF[6]) / tcp("SA")),
        bytes(solicitation(tags=tags)),
        segment(4, tags=tags),
    ]
    for frame in frames:
        bench.send("a", frame)
    bench.assert_silence()


def test_a_group_that_somebody_else_listens_to_is_said(bench):
    with pytest.raises(KernelError, match="nflog group"), bench.rig.host.lab.host.enter():
        NfLog(NFT_SETTINGS.group).open()


def test_nothing_is_left_after_teardown(bench):
    bench.enrol("a")
    datapath = bench.rig.datapath
    with bench.rig.host.lab.host.enter():
        assert datapath.left()
        asyncio.run(datapath.teardown())
        assert not datapath.left()
    assert table(bench) not in nft(bench, "list ruleset")
    bench.rig.run(datapath.open(bench.rig.host.link))


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ("169.254.169.254",)},
        {"addresses": ("fe80::a9fe:a9fe",)},
        {"addresses": (*(f"169.254.1.{n}" for n in range(4)), *(f"fd00::{n}:1" for n in range(4)))},
        {"service_ports": (80, 81, 82, 83)},
        {"event_rate": 0},
        {"rate": 1_000_000, "burst": 1_000_000, "event_rate": 10_000, "max_ports": 65535},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nft_takes_the_rules_of_any_settings(bench, change):
    text = ruleset(replace(NFT_SETTINGS, table="datapath-trial", **change)).text
    bench.rig.host.lab.host.run(["nft", "--check", "--file", "-"], input=text, stdin=None)
