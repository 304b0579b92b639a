"""What every datapath does for the agent. The contract suite runs against each implementation of this."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from shim.core.link import OWN_NETNS, Place
from shim.core.port import Port
from shim.core.table import Element, Piece
from shim.core.verdict import Event, Traced, Verdict


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an agent that starts finds in the kernel: a port; or, with ifindex 0, a slot that was somebody's
    and is free; or, with slot 0, a tap that is guarded in a way that this datapath cannot go on with."""

    slot: int
    generation: int
    ifindex: int
    instance: UUID | None
    netns: str = OWN_NETNS

    @property
    def place(self) -> Place:
        """Where its tap is."""
        return Place(self.netns, self.ifindex)


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


class Tables(Protocol):
    """One nftables table. Raises KernelError, also when nft(8) is not there."""

    def load(self, text: str) -> None:
        """Hands a ruleset to `nft -f -`, as one transaction."""

    def change(self, remove: Iterable[Piece], add: Iterable[Piece]) -> None:
        """One transaction, whose time does not depend on how much the table holds otherwise."""

    def elements(self, name: str) -> list[Element] | None:
        """All elements of a set or map; None when there is none of that name, or no table."""

    def hooks(self) -> dict[str, str]:
        """Base chain → the device that it is on; a chain whose device has gone may be missing or not."""

    def device_of(self, chain: str) -> str | None:
        """The device that a base chain is on; None when there is no such chain, empty when it is on none."""

    def rules(self) -> int:
        """How many rules the table has; 0 without a table."""

    def generation(self) -> int:
        """A number that every transaction on any table of this host, whoever made it, makes greater by one. A
        chain that goes with its device, as it does before Linux 6.16, is no transaction."""

    def packets(self, name: str, key: bytes) -> int | None:
        """What the counter of a set's element says; None when there is no such element."""

    def delete(self) -> None:
        """Removes the table, if it is there."""


class Logs(Protocol):
    """What the rules log to one nflog group."""

    @property
    def fd(self) -> int:
        """Readable when `read` has something; -1 while it is not open."""

    def open(self) -> None:
        """Begins to listen. Raises KernelError when somebody else does."""

    def read(self) -> list[tuple[str, int, bytes, bytes]]:
        """(prefix, mark, packet from its network header, what is before that) of what came since the last call. Never
        waits."""

    def close(self) -> None:
        """Ends it."""


class Inside(Protocol):
    """Another network namespace, as far as a datapath needs it. What is had of it has its sockets there."""

    @property
    def netns(self) -> str:
        """What it is called."""

    @property
    def filters(self) -> Filters:
        """Of its links."""

    def entered(self) -> AbstractContextManager[None]:
        """Moves this thread there and back. No awaiting inside."""

    def table(self, name: str) -> Tables:
        """Its table of the family netdev of that name."""

    def logs(self, group: int) -> Logs:
        """Its nflog group of that number."""

    def link_name(self, ifindex: int) -> str | None:
        """The name of one of its links; None when it has gone."""


class Datapath(Protocol):
    """Takes service traffic off taps, by each port's policy. Everything it makes outlives the process.

    `ensure` and `remove` are idempotent; every failure is a KernelError, and leaves the port refused.
    """

    name: str
    lacks: tuple[str, ...]
    """What of the contract it cannot do, a sentence each for operators; see rules/README.md."""

    @property
    def cut(self) -> bool:
        """Whether `open` found what it could not go on with: connections that stand in the gateway are nobody's then,
        and its namespace is to be made anew, and `open` called again, before any port is ensured."""

    @property
    def fd(self) -> int:
        """Readable when `events` or `traced` has something; -1 while the datapath is not open, or has no such thing."""

    async def open(self, gateway_ifindex: int) -> None:
        """Makes or takes over the kernel's side; `gateway_ifindex` is the host's end of the gateway link."""

    async def join(self, inside: Inside, gateway_ifindex: int) -> None:
        """Serves taps in another namespace too; `gateway_ifindex` is that one's end of a gateway link of its own.
        Idempotent. Before `observe`, for all that are known of then."""

    async def leave(self, netns: str) -> None:
        """Lets go of another namespace, which has no port any more."""

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

    def trace(self, port: Port, on: bool) -> None:
        """Begins or ends to show a port's packets, which may be ensured later. It ends with the port too, and with the
        agent."""

    def traced(self) -> list[Traced]:
        """The packets of such ports since the last call, at a bounded rate for each. Never waits."""

    def left_out(self, slot: int) -> int:
        """How many packets of a slot's port were not shown while it was traced, by now."""

    def detached(self, place: Place) -> None:
        """The device went, or somebody took what guards it off: nothing is sent there until the next `ensure`."""

    async def recheck(self) -> None:
        """Looks whether all is still as it was made: the next `ensure` makes again what is not."""

    async def prune(self) -> None:
        """Removes what older versions and other settings left, once every tap is guarded by this one."""

    def left(self) -> bool:
        """Whether a run of this datapath left anything in the kernel."""

    async def teardown(self) -> None:
        """Removes everything that any run of this datapath made."""

    def close(self) -> None:
        """Lets go of every descriptor. What is in the kernel stays."""
