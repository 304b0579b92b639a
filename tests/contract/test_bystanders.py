"""Contract, section 8: what is not ours goes on unchanged, by guarded taps as by others; and comes back."""

from __future__ import annotations

import pytest

from shim.core.policy import Access, Policy
from tests.bpf.test_bystanders import FRAMES

KINDS = [
    "tcp4", "fragment4", "dhcp", "near by address", "udp6", "arp request", "gratuitous arp", "solicitation",
    "mld", "vlan", "qinq", "three tags", "stp", "snap", "mpls", "experimental",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_goes_on_unchanged(bench, name):
    bench.enrol("a", Policy(Access.DROP, Access.DROP))
    frame = bytes(FRAMES[name])
    bench.send("a", frame)
    assert bench.rig.bridge(expect=1) == [frame]
    assert bench.counters("a") == {}


def test_an_unguarded_tap_is_left_alone(bench):
    bench.enrol("a")
    frame = bytes(FRAMES["tcp4"])
    bench.send("c", frame)
    assert bench.rig.bridge(expect=1) == [frame]
    assert bench.counters("a") == {}


def test_a_tap_is_left_alone_after_its_port_is_removed(bench):
    bench.enrol("a")
    bench.remove("a")
    frame = bytes(FRAMES["vlan"])
    bench.send("a", frame)
    assert bench.rig.bridge(expect=1) == [frame]
