"""Three taps of one hypervisor, two of them to be guarded, with a datapath under test between them and the gateway.

A rig sends what a guest sends or what the gateway namespace sends, and tells what each side got since it was
last asked. `FakeRig` is the datapath in memory; `KernelRig` is real: tap devices on a bridge, the gateway's
namespace with nobody in it who answers, captures on its link, on the bridge and on the wire behind it.
Another datapath joins by one more rig, and its name in `RIGS` (conftest.py).
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar
from uuid import UUID

from shim.core.policy import Policy
from shim.core.port import Port
from shim.core.verdict import Event, Verdict
from shim.datapath import abi, nft_rules
from shim.datapath.base import Datapath, Enrolled
from shim.datapath.fake import Fake
from shim.datapath.model import Whereto

T = TypeVar("T")

GUARDED = ("a", "b")
TAPS = (*GUARDED, "c")
INSTANCES = {"a": UUID("aaaaaaaa-0000-4000-8000-00000000000a"), "b": UUID("bbbbbbbb-0000-4000-8000-00000000000b")}
SLOTS = {"a": 1, "b": 2}
MAX_PORTS, FLOWS, BURST = 8, 32, 50
SETTINGS = abi.pack_settings(
    ["169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"],
    [80, 8775],
    rate=1,
    burst=BURST,
    event_rate=1,
    flows_per_port=FLOWS,
)
NFT_SETTINGS = nft_rules.Settings(
    table="",
    addresses=("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"),
    service_ports=(80, 8775),
    rate=1,
    burst=BURST,
    event_rate=1,
    max_ports=MAX_PORTS,
    patience=9,
    group=4242,
)


class Rig(Protocol):
    """What the contract's tests do and see. Taps are "a", "b" and, never guarded, "c"."""

    datapath: Datapath
    netns: str

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Calls the datapath."""

    def ifindex(self, tap: str) -> int:
        """The tap's ifindex."""

    def replug(self, tap: str) -> None:
        """The tap goes, and one of the same name comes."""

    def restart(self) -> list[Enrolled]:
        """The agent dies and another one starts: what that finds."""

    def send(self, tap: str, frame: bytes) -> None:
        """The guest on a tap sends."""

    def reply(self, frame: bytes) -> None:
        """The gateway namespace sends."""

    def guest(self, tap: str, expect: int = 0) -> list[bytes]:
        """What the guest got since the last call; waits for as many as are expected, and a little for more."""

    def gateway(self, expect: int = 0) -> list[bytes]:
        """What the gateway namespace got."""

    def bridge(self, expect: int = 0) -> list[bytes]:
        """What went on to where the bridge's other ports and the wire are."""


class Bench:
    """A rig with the ports on it: what the tests are written against."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.ports: dict[str, Port] = {}
        self._generations = {found.slot: found.generation for found in rig.restart()}
        rig.datapath.events()

    def enrol(
        self,
        tap: str,
        policy: Policy | None = None,
        *,
        known: bool = True,
        slot: int | None = None,
        instance: UUID | None = None,
    ) -> Port:
        """Makes a tap a port; a new generation of its slot unless the port is there already."""
        former = self.ports.get(tap)
        slot = slot or (former.slot if former else SLOTS[tap])
        whose = (instance or INSTANCES[tap]) if known else None
        ifindex = self.rig.ifindex(tap)
        if former is None or (former.slot, former.ifindex, former.instance) != (slot, ifindex, whose):
            generation = self._generations.get(slot, 0) + 1
            self._generations[slot] = generation
        else:
            generation = former.generation
        port = Port(slot, generation, ifindex, f"tap{tap}", self.rig.netns, whose, policy or Policy())
        self.rig.run(self.rig.datapath.ensure(port))
        self.ports[tap] = port
        return port

    def remove(self, tap: str) -> None:
        """Forgets the port on a tap."""
        self.rig.run(self.rig.datapath.remove(self.ports.pop(tap)))

    def counters(self, tap: str) -> dict[Verdict, int]:
        """The port's counters."""
        return self.rig.datapath.counters(self.ports[tap].slot)

    def events(self) -> list[Event]:
        """Refusals since the last call."""
        return self.rig.datapath.events()

    def send(self, tap: str, *frames: bytes) -> None:
        """Lets a guest send some frames."""
        for frame in frames:
            self.rig.send(tap, bytes(frame))

    def passes_to_gateway(self, tap: str, frame: bytes) -> list[bytes]:
        """Sends a frame and tells what the gateway namespace gets."""
        self.send(tap, frame)
        return self.rig.gateway(expect=1)

    def answer(self, tap: str, frame: bytes) -> list[bytes]:
        """Sends a frame and tells what the same guest gets."""
        self.send(tap, frame)
        return self.rig.guest(tap, expect=1)

    def assert_refused(self, tap: str, frame: bytes, verdict: Verdict) -> None:
        """A frame goes nowhere, and is counted once, as what it is."""
        before = self.counters(tap)
        self.send(tap, frame)
        after = self.counters(tap)
        assert {v: n - before.get(v, 0) for v, n in after.items() if n != before.get(v, 0)} == {verdict: 1}
        self.assert_silence()

    def refuses_tags(self, tap: str, frame: bytes, tags: object) -> bool:
        """Whether the frame is a tagged one on nftables, which can serve none: it is refused then, and counted."""
        if not tags or self.rig.datapath.name != "nft":
            return False
        self.assert_refused(tap, frame, Verdict.VLAN_DEPTH)
        return True

    def assert_silence(self) -> None:
        """Nobody got anything."""
        assert self.rig.gateway() == []
        assert self.rig.bridge() == []
        assert [self.rig.guest(tap) for tap in TAPS] == [[], [], []]


class FakeRig:
    """The datapath in memory. What passes is only noted: there is no bridge that would flood it."""

    netns = ""

    def __init__(self) -> None:
        self.datapath = Fake(SETTINGS, time.monotonic_ns)
        self.run(self.datapath.open(1))
        self._indexes = {tap: number for number, tap in enumerate(TAPS, 10)}
        self._got: dict[object, list[bytes]] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """It never waits, so one step ends it."""
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        raise AssertionError("the fake waited")

    def ifindex(self, tap: str) -> int:
        return self._indexes[tap]

    def replug(self, tap: str) -> None:
        self.datapath.unplug(self._indexes[tap])
        self._indexes[tap] += 10

    def restart(self) -> list[Enrolled]:
        return self.run(self.datapath.observe())

    def send(self, tap: str, frame: bytes) -> None:
        outcome = self.datapath.deliver(self._indexes[tap], frame)
        where = {Whereto.GUEST: tap, Whereto.GATEWAY: "gateway", Whereto.PASSED: "bridge"}.get(outcome.whereto)
        self._got.setdefault(where, []).append(outcome.frame)

    def reply(self, frame: bytes) -> None:
        ifindex, outcome = self.datapath.reply(frame)
        taps = [tap for tap, index in self._indexes.items() if index == ifindex]
        for tap in taps:
            self._got.setdefault(tap, []).append(outcome.frame)

    def guest(self, tap: str, expect: int = 0) -> list[bytes]:
        return self._got.pop(tap, [])

    def gateway(self, expect: int = 0) -> list[bytes]:
        return self._got.pop("gateway", [])

    def bridge(self, expect: int = 0) -> list[bytes]:
        return self._got.pop("bridge", [])
