"""A datapath in memory: the Datapath Protocol over the model of the contract.

For tests of whoever uses a datapath, and one of the implementations that the contract suite runs against.
What a kernel does around it is `deliver` (a guest sends), `reply` (the gateway namespace sends) and `unplug`.
"""

from __future__ import annotations

from collections.abc import Callable

from shim.core.link import OWN_NETNS, Place
from shim.core.port import Port
from shim.core.verdict import Event, Traced, Verdict
from shim.datapath.base import Enrolled, Inside
from shim.datapath.model import Model, Outcome, Whereto
from shim.datapath.model_state import Rules


class Fake:
    """One datapath; see Datapath for the methods.

    `settings` is what abi.pack_settings made; `clock` gives ns, never going back.
    """

    name = "fake"
    lacks: tuple[str, ...] = ()
    cut = False
    fd = -1

    def __init__(self, settings: bytes, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._clock = clock
        self._model = Model(Rules.read(settings))
        self._guarded: dict[Place, int] = {}

    async def open(self, gateway_ifindex: int) -> None:
        """There is nothing to make; a gateway it has none."""

    async def join(self, inside: Inside, gateway_ifindex: int) -> None:
        """Any place is as good as another."""

    async def leave(self, netns: str) -> None:
        """It holds nothing of one."""

    async def observe(self) -> list[Enrolled]:
        slots = self._model.state.slots
        for slot in slots.values():
            slot.traced = False  # it ends with the agent
        alive = [self._enrolled(place, number) for place, number in self._guarded.items()]
        vacant = {number for number, slot in slots.items() if slot.generation} - {found.slot for found in alive}
        for number in vacant:
            self._model.state.forget(number)
        return alive + [Enrolled(number, slots[number].generation, 0, None) for number in sorted(vacant)]

    def _enrolled(self, place: Place, number: int) -> Enrolled:
        slot = self._model.state.slot(number)
        if slot.port is None or slot.port.place != place or not slot.tap:
            return Enrolled(0, 0, place.ifindex, None, place.netns)
        return Enrolled(number, slot.port.generation, place.ifindex, slot.port.instance, place.netns)

    async def ensure(self, port: Port) -> None:
        slot = self._model.state.slot(port.slot)
        if slot.generation != port.generation:
            slot.renew(self._model.rules)
        slot.port, slot.generation, slot.tap = port, port.generation, port.ifindex
        self._guarded[port.place] = port.slot

    async def remove(self, port: Port) -> None:
        slot = self._model.state.slot(port.slot)
        if slot.generation == port.generation:
            self._model.state.forget(port.slot)
        elif slot.tap == port.ifindex:
            return  # the tap, too, is another owner's of the slot by now
        if port.slot in (0, self._guarded.get(port.place)):
            self._guarded.pop(port.place, None)

    def counters(self, slot: int) -> dict[Verdict, int]:
        return dict(self._model.state.slot(slot).counters)

    def events(self) -> list[Event]:
        events, self._model.events = self._model.events, []
        return events

    def trace(self, port: Port, on: bool) -> None:
        self._model.state.slot(port.slot).traced = on

    def traced(self) -> list[Traced]:
        traced, self._model.traced = self._model.traced, []
        return traced

    def left_out(self, slot: int) -> int:
        return self._model.state.slot(slot).left_out

    def detached(self, place: Place) -> None:
        self.unplug(place.ifindex, place.netns)

    async def recheck(self) -> None:
        """Nobody else has hands on it."""

    async def prune(self) -> None:
        """There is no older version."""

    def left(self) -> bool:
        return bool(self._guarded)

    def close(self) -> None:
        """It holds nothing."""

    async def teardown(self) -> None:
        self._guarded.clear()
        self._model = Model(Rules.read(self._settings))

    def deliver(self, ifindex: int, frame: bytes) -> Outcome:
        """What becomes of a frame that arrives by a tap; one that nobody guards lets everything pass."""
        slot = self._guarded.get(Place(OWN_NETNS, ifindex))
        if slot is None:
            return Outcome(Whereto.PASSED, None, frame)
        return self._model.from_instance(slot, frame, self._clock())

    def reply(self, frame: bytes) -> tuple[int, Outcome]:
        """What becomes of a frame that the gateway namespace sends, and the ifindex that it leaves by."""
        return self._model.to_instance(frame, self._clock())

    def unplug(self, ifindex: int, netns: str = OWN_NETNS) -> None:
        """The device is gone. The kernel forgets with it what was attached to it, and where replies go."""
        number = self._guarded.pop(Place(netns, ifindex), None)
        if number is not None and self._model.state.slot(number).tap == ifindex:
            self._model.state.slot(number).tap = 0
