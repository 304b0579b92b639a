"""Contract, section 8, as far as it is about tc: other users of it go on working, and keep what is theirs."""

from __future__ import annotations

import ctypes as ct
import os
import struct

import pytest

from shim.core.policy import Access, Policy
from shim.core.verdict import Verdict
from shim.datapath import bpf
from shim.errors import KernelError
from shim.netlink.tc import PRIORITY
from tests.bpf.frames import segment
from tests.bpf.loaded import SHOT, pins
from tests.bpf.test_bystanders import FRAMES
from tests.contract.rig import Bench
from tests.contract.test_service import stamped

pytestmark = pytest.mark.root

BYSTANDER = bytes(FRAMES["tcp4"])
SCHED_CLS, PROG_LOAD = 3, 5  # linux/bpf.h
CLOSED = Policy(Access.DROP, Access.DROP)


@pytest.fixture
def bench(ebpf_rig):
    return Bench(ebpf_rig)


def tc(bench, *words):
    return bench.rig.host.lab.host.run(["tc", *words]).stdout


@pytest.fixture
def other(bench):
    """Another user's program, which drops what it is given: what it does not see goes its own way."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, SHOT) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = SHOT; exit
    block, licence = ct.create_string_buffer(code), ct.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", SCHED_CLS, 2, ct.addressof(block), ct.addressof(licence))
    program, _ = bpf._bpf(PROG_LOAD, attr, "cannot load another's program")
    with pins("other") as folder:
        bpf.pin(program, folder / "program")
        os.close(program)
        yield lambda side="ingress": add_other(bench, folder / "program", side)


def add_other(bench, program, side):
    words = ["prio", "50", "bpf", "object-pinned", str(program), "direct-action"]
    tc(bench, "filter", "add", "dev", "tapa", side, "protocol", "all", *words)


def others_filter_is_there(bench, side="ingress"):
    return "pref 50 bpf" in tc(bench, "filter", "show", "dev", "tapa", side)


@pytest.mark.parametrize("qdisc", ["clsact", "ingress"])
class TestAnothersFilter:
    @pytest.fixture(autouse=True)
    def added(self, bench, qdisc, other):
        tc(bench, "qdisc", "add", "dev", "tapa", qdisc)
        other()

    def test_sees_bystanders_and_nothing_of_the_service(self, bench):
        bench.enrol("a")
        bench.send("a", BYSTANDER)
        assert bench.rig.bridge() == []
        assert bench.passes_to_gateway("a", segment(4)) == [stamped("a", 4)]

    def test_survives_every_change_of_ours(self, bench):
        for policy in (Policy(), CLOSED):
            bench.enrol("a", policy)
        bench.rig.restart()
        bench.enrol("a")
        bench.remove("a")
        assert others_filter_is_there(bench)
        bench.send("a", BYSTANDER)
        bench.assert_silence()

    def test_and_ours_is_found_after_a_restart(self, bench):
        port = bench.enrol("a", CLOSED)
        assert port.ifindex in {found.ifindex for found in bench.rig.restart()}

    def test_teardown_takes_off_ours_alone(self, bench):
        bench.enrol("a")
        bench.rig.run(bench.rig.datapath.teardown())
        assert others_filter_is_there(bench)
        assert "from_instance" not in tc(bench, "filter", "show", "dev", "tapa", "ingress")


def test_anothers_filter_at_our_place_is_not_overwritten(bench):
    """The place is taken: the port is refused to the agent with what to do, and the other's stays."""
    tc(bench, "qdisc", "add", "dev", "tapa", "clsact")
    place = ["prio", str(PRIORITY), "handle", "1", "bpf", "bytecode", "1,6 0 0 4294967295"]
    tc(bench, "filter", "add", "dev", "tapa", "ingress", "protocol", "all", *place)
    before = tc(bench, "filter", "show", "dev", "tapa", "ingress")
    with pytest.raises(KernelError):
        bench.enrol("a")
    assert tc(bench, "filter", "show", "dev", "tapa", "ingress") == before


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_a_filter_added_later_keeps_its_qdisc(bench, other, side):
    bench.enrol("a")
    other(side)
    bench.remove("a")
    assert others_filter_is_there(bench, side)


def test_nothing_of_ours_is_left_on_a_tap_that_nobody_else_uses(bench):
    bench.enrol("a")
    assert "clsact" in tc(bench, "qdisc", "show", "dev", "tapa")
    bench.remove("a")
    assert "clsact" not in tc(bench, "qdisc", "show", "dev", "tapa")


def test_a_filter_that_was_taken_off_is_put_back(bench):
    bench.enrol("a", CLOSED)
    tc(bench, "filter", "del", "dev", "tapa", "ingress")
    bench.rig.datapath.detached(bench.ports["a"].place)
    bench.enrol("a", CLOSED)
    bench.assert_refused("a", segment(4), Verdict.DISABLED_DROP)


def test_teardown_leaves_nothing(bench):
    bench.enrol("a")
    bench.enrol("b")
    bench.rig.run(bench.rig.datapath.teardown())
    for link in ("tapa", "tapb", bench.rig.host.gateway.link):
        assert "bpf" not in tc(bench, "filter", "show", "dev", link, "ingress")
    assert not bench.rig.host.pins.exists()
