"""What every datapath does for the agent. The contract suite runs against each implementation of this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from shim.core.port import Port
from shim.core.verdict import Event, Verdict


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an agent that starts finds in the kernel: a port; or, with ifindex 0, a slot that was somebody's
    and is free; or, with slot 0, a tap that is guarded in a way that this datapath cannot go on with."""

    slot: int
    generation: int
    ifindex: int
    instance: UUID | None


class Filters(Protocol):
    """Programs on the tc ingress of links; only filters of the given name are touched. Raises KernelError."""

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Puts a program there, or in place of the one of that name, in one step."""

    async def slot_of(self, ifindex: int, name: str) -> int | None:
        """The class id of the filter, None when there is none."""

    async def slots(self, name: str) -> dict[int, int]:
        """ifindex → class id, for every link."""

    async def detach(self, ifindex: int, name: str) -> None:
        """Takes the filter off, if it is there."""


class Datapath(Protocol):
    """Takes service traffic off taps, by each port's policy. Everything it makes outlives the process.

    `ensure` and `remove` are idempotent; every failure is a KernelError, and leaves the port refused.
    """

    name: str

    async def open(self, gateway_ifindex: int) -> None:
        """Makes or takes over the kernel's side; `gateway_ifindex` is the host's end of the gateway link."""

    async def observe(self) -> list[Enrolled]:
        """What earlier runs left. Slots whose tap has gone serve nobody any more afterwards."""

    async def ensure(self, port: Port) -> None:
        """Makes the kernel treat the port's tap as `port` says. When this returns, it does."""

    async def remove(self, port: Port) -> None:
        """Forgets the port: its slot serves nobody, its tap is as others left it. Slot 0: whatever guards the tap."""

    def counters(self, slot: int) -> dict[Verdict, int]:
        """What was counted on a slot since its present owner got it."""

    def events(self) -> list[Event]:
        """The refusals that were reported since the last call. Never waits."""

    async def teardown(self) -> None:
        """Removes everything that any run of this datapath made."""
