"""One ABI, written once a side: structs, constants and addresses are equal in C and in Python."""

from __future__ import annotations

import ctypes as ct
import json
import re
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.policy import Access, Policy
from shim.core.port import Port
from shim.core.verdict import COUNTERS, Verdict
from shim.datapath import abi, model_answers, model_frames, model_state
from shim.forward import identify
from shim.netlink import gateway
from tests.bpf.loaded import pins

ROOT = Path(__file__).parents[2]
LIB = ROOT / "rules/bpf/lib"
STRUCTS = {
    "ports": abi.PortRecord,
    "port_states": abi.PortState,
    "counters": abi.Counters,
    "flows": abi.Flow,
    "event_shape": abi.EventRecord,
    "tracings": abi.Tracing,
    "trace_shape": abi.TraceRecord,
}
KEYS = {"flows": abi.FlowKey, "rings": abi.RingKey}

# Compiles the programs' source, and tells the layout that the compiler gave every struct, as bcc reads it.
CHILD = """
import ctypes, json, os, sys
from pathlib import Path
from shim.datapath import compile
from shim.datapath.ebpf import RULES
os.environ["BCC_KERNEL_SOURCE"] = str(RULES / "kernel")
import bcc
def layout(kind):
    if hasattr(kind, "_fields_"):
        named = [(f[0], getattr(kind, f[0]).offset, layout(f[1])) for f in kind._fields_ if "pad_" not in f[0]]
        return [ctypes.sizeof(kind), named]
    if hasattr(kind, "_length_"):
        return [ctypes.sizeof(kind), kind._length_]
    return [ctypes.sizeof(kind), None]
extra = "BPF_ARRAY(event_shape, struct event, 1);BPF_ARRAY(trace_shape, struct trace, 1);" + sys.argv[2]
module = bcc.BPF(text=(compile.source(RULES) + extra).encode(), cflags=compile._flags(Path(sys.argv[1])))
names = ["ports", "port_states", "counters", "flows", "rings", "event_shape", "tracings", "trace_shape"]
print(json.dumps({name: {"key": layout(module[name].Key), "leaf": layout(module[name].Leaf)} for name in names}))
"""


def layout(kind: type) -> list[object]:
    """The same of a ctypes class of ours, as JSON would have it."""
    if issubclass(kind, ct.Structure):
        fields = [[f[0], getattr(kind, f[0]).offset, layout(f[1])] for f in kind._fields_]
        return [ct.sizeof(kind), fields]
    return [ct.sizeof(kind), getattr(kind, "_length_", None)]


def asserts(name: str, kind: type[ct.Structure]) -> str:
    """For the compiler itself to compare, since bcc misreads an array of arrays: sizes and offsets of a struct."""
    said = [f"sizeof(struct {name}) == {ct.sizeof(kind)}"]
    for field in kind._fields_:
        said.append(f"__builtin_offsetof(struct {name}, {field[0]}) == {getattr(kind, field[0]).offset}")
        said.append(f"sizeof(((struct {name} *)0)->{field[0]}) == {ct.sizeof(field[1])}")
    return "".join(f'_Static_assert({each}, "{name}");' for each in said)


def compile_with(extra: str) -> subprocess.CompletedProcess[str]:
    with pins("abi") as folder:
        argv = [sys.executable, "-c", CHILD, str(folder), extra]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, object]]:
    run = compile_with(asserts("settings", abi.Settings) + asserts("event", abi.EventRecord))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.root
def test_the_compiler_would_say_if_settings_differed(compiled):
    class Other(ct.Structure):
        _fields_ = [("service6", ct.c_uint32), *[f for f in abi.Settings._fields_ if f[0] != "service6"]]

    run = compile_with(asserts("settings", Other))
    assert run.returncode != 0
    assert f"sizeof(struct settings) == {ct.sizeof(Other)}" in run.stderr


@pytest.mark.root
@pytest.mark.parametrize("name", STRUCTS)
def test_values_are_laid_out_alike(compiled, name):
    assert compiled[name]["leaf"] == layout(STRUCTS[name])


@pytest.mark.root
@pytest.mark.parametrize("name", KEYS)
def test_keys_are_laid_out_alike(compiled, name):
    assert compiled[name]["key"] == layout(KEYS[name])


@pytest.mark.root
def test_a_rings_value_is_a_flows_key(compiled):
    assert compiled["rings"]["leaf"] == compiled["flows"]["key"] == layout(abi.FlowKey)


@pytest.mark.root
def test_a_tag_is_laid_out_alike():
    run = compile_with(asserts("tag", abi.Tag))
    assert run.returncode == 0, run.stderr


def test_every_struct_of_ours_is_compared():
    ours = {v for v in vars(abi).values() if isinstance(v, type) and issubclass(v, ct.Structure)}
    assert ours == {*STRUCTS.values(), *KEYS.values(), abi.Settings, abi.Tag}


def defines(name: str) -> dict[str, str]:
    """Every `#define NAME value` of a header, comments aside."""
    found = re.findall(r"^#define (\w+) +(.+?)(?: */\*.*)?$", (LIB / name).read_text(), re.MULTILINE)
    return dict(found)


def number(text: str) -> int:
    return int(text.rstrip("ul"), 0)


def octets(text: str) -> bytes:
    return bytes(int(part, 0) for part in text.strip("{}").split(","))


def test_the_constants_are_equal():
    c = defines("abi.h")
    python = {
        "SERVICES": abi.SERVICES,
        "SERVICE_PORTS": abi.SERVICE_PORTS,
        "TAGS": abi.TAGS,
        "TRACE_BYTES": abi.TRACE_BYTES,
        "ABSENT": abi.ABSENT,
        "SERVED": abi.SERVED,
        "ANONYMOUS": abi.ANONYMOUS,
        "OPEN": abi.ACCESS[Access.OPEN],
        "RESET": abi.ACCESS[Access.RESET],
        "DROP": abi.ACCESS[Access.DROP],
        "SLOT_BASE_V4": identify.V4_BASE,
    }
    assert {name: number(c[name]) for name in python} == python
    assert number(c["CLOSED"]) == 0, "a zeroed record must be closed"
    assert abi.ABSENT == 0, "a zeroed record must serve nobody"
    assert abi.ACCESS[Access.FORBID] == abi.ACCESS[Access.OPEN], "a 403 is the proxy's to say"


def test_the_addresses_are_equal():
    c = defines("abi.h")
    service_mac = octets(c["SERVICE_MAC"])
    assert bytes.fromhex(gateway.GATEWAY_MAC.replace(":", "")) == service_mac == model_answers.SERVICE_MAC
    assert bytes.fromhex(gateway.HOST_MAC.replace(":", "")) == model_answers.HOST_MAC
    prefix = octets(c["SLOT_PREFIX_V6"]).ljust(12, b"\0")
    assert IPv6Address(identify.V6_BASE).packed == prefix + bytes(4)
    assert prefix == model_answers.SLOTS_V6
    assert IPv4Address(identify.V4_BASE) == IPv4Address(model_answers.SLOTS_V4) == IPv4Address("100.64.0.0")
    assert "0x3fffff" in (ROOT / "rules/bpf/to_instance.c").read_text()
    assert identify.SLOTS == 0x3FFFFF + 1


def test_the_models_numbers_are_the_programs():
    tcp, frame, nd = defines("tcp.h"), defines("frame.h"), defines("nd.h")
    assert number(tcp["FLOW_QUIET_NS"]) == model_state.FLOW_QUIET_NS
    assert number(tcp["RING_TRIES"]) == model_state.RING_TRIES
    assert number(frame["TAGS_SEEN"]) == model_frames.TAGS_SEEN
    assert abi.TAGS == model_frames.TAGS
    assert number(nd["ND_EXTENSIONS"]) == 4


def test_the_maps_fit_the_sizes_that_are_asked_for():
    shapes = {shape.name: shape for shape in abi.maps(100, 16)}
    declared = re.findall(r'BPF_TABLE_PINNED\("(\w+)", [^,]+, [^,]+, (\w+),', (LIB / "abi.h").read_text())
    kinds = {"array": abi.ARRAY, "hash": abi.HASH, "devmap": abi.DEVMAP}
    assert {name: kinds[kind] for kind, name in declared} | {"events": abi.RINGBUF, "traces": abi.RINGBUF} == {
        name: shape.kind for name, shape in shapes.items()
    }
    assert {shapes[name].entries for name in ("ports", "port_states", "counters", "taps", "tracings")} == {101}
    assert {shapes[name].entries for name in ("flows", "rings")} == {1600}
    for ring in ("events", "traces"):
        assert shapes[ring].entries & (shapes[ring].entries - 1) == 0, "a ring buffer's size is a power of two"


class TestPacking:
    def port(self, **fields):
        return Port(**{"slot": 3, "generation": 9, "ifindex": 7, "tap": "t", "netns": ""} | fields)

    def test_a_port_is_read_as_it_was_written(self):
        uuid = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
        raw = abi.pack_port(self.port(instance=uuid, policy=Policy(Access.RESET, Access.FORBID, 5)), 42)
        record = abi.PortRecord.from_buffer_copy(raw)
        assert (record.gateway_ifindex, record.hop_limit, record.access4, record.access6) == (42, 5, 2, 1)
        assert abi.read_port(raw) == (abi.SERVED, 9, uuid)

    def test_one_without_an_instance_serves_nobody(self):
        raw = abi.pack_port(self.port(instance=None, policy=Policy()), 42)
        assert abi.read_port(raw) == (abi.ANONYMOUS, 9, None)

    def test_a_vacant_one_keeps_its_generation(self):
        assert abi.read_port(abi.pack_vacant(9)) == (abi.ABSENT, 9, None)
        record = abi.PortRecord.from_buffer_copy(abi.pack_vacant(9))
        assert (record.access4, record.access6) == (0, 0)

    def test_settings_hold_addresses_and_ports_in_the_order_of_the_wire(self):
        addresses = ["169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"]
        raw = abi.pack_settings(addresses, [80, 8775], rate=100, burst=20, event_rate=4, flows_per_port=64)
        record = abi.Settings.from_buffer_copy(raw)
        assert bytes(record.service4) == IPv4Address(addresses[0]).packed * 4
        v6 = [IPv6Address(text).packed for text in addresses[1:]]
        assert bytes(record.service6) == v6[0] + v6[1] + v6[0] * 2
        assert bytes(record.service_port) == bytes.fromhex("0050 2247 0050 0050")
        assert (record.connection_ns, record.connection_burst_ns) == (10_000_000, 200_000_000)
        assert (record.event_ns, record.event_burst_ns) == (250_000_000, 250_000_000 * abi.EVENT_BURST)
        assert record.flows_per_port == 64

    def test_no_event_is_ever_paid_for_at_a_rate_of_0(self):
        raw = abi.pack_settings(["169.254.169.254"], [80], rate=1, burst=1, event_rate=0, flows_per_port=1)
        record = abi.Settings.from_buffer_copy(raw)
        assert record.event_ns > record.event_burst_ns

    def test_a_family_without_addresses_has_one_that_nobody_sends_to(self):
        raw = abi.pack_settings(["169.254.169.254"], [80], rate=1, burst=1, event_rate=0, flows_per_port=1)
        assert bytes(abi.Settings.from_buffer_copy(raw).service6) == b"\xff" * 64

    def test_counters_leave_out_zeros_and_numbers_of_other_versions(self):
        record = abi.Counters()
        record.packets[Verdict.OPENED] = 3
        record.packets[COUNTERS - 1] = 8
        assert abi.read_counters(bytes(record)) == {Verdict.OPENED: 3}

    def test_an_event_is_read_by_its_family(self):
        record = abi.EventRecord(ns=5, slot=1, generation=2, verdict=Verdict.WRONG_PORT, family=6)
        record.source[:] = abi.words(IPv6Address("fd00:1::5"))
        record.destination[:] = abi.words(IPv6Address("fd00:ec2::254"))
        record.source_port, record.destination_port = abi.network_short(40000), abi.network_short(22)
        event = abi.read_event(bytes(record))
        assert (event.source, event.source_port) == ("fd00:1::5", 40000)
        assert (event.destination, event.destination_port) == ("fd00:ec2::254", 22)
        assert (event.ns, event.slot, event.generation, event.verdict) == (5, 1, 2, Verdict.WRONG_PORT)
