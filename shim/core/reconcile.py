"""What must be done so that the kernel guards the taps as it should. PURE.

Level-triggered: it looks at what is wanted and at what is there, never at what happened in between,
so it may run at any time, for all taps or for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from shim.core.link import Place
from shim.core.policy import Access, Policy, Tokens
from shim.core.port import Port, Slots


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tap that must be guarded, whose it is, and what that instance may do."""

    tap: str
    instance: UUID | None
    policy: Policy
    project: str = ""
    address: str = ""
    name: str = ""
    flavor: str = ""


@dataclass(frozen=True, slots=True)
class Ensure:
    """Make the kernel hold `port`."""

    port: Port


@dataclass(frozen=True, slots=True)
class Cut:
    """End what `port` serves: its connections, and all that would come. Its tap stays guarded, as nobody's."""

    port: Port


@dataclass(frozen=True, slots=True)
class Remove:
    """Make the kernel forget `port`."""

    port: Port


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A tap for which no slot is left."""

    wanted: Wanted


Action = Ensure | Cut | Remove | Unplaced


def reconcile(
    wanted: Mapping[Place, Wanted], held: Mapping[Place, Port], slots: Slots, now: float, *, again: bool = False
) -> Iterator[Action]:
    """The actions, in an order that never leaves a wanted tap unguarded, nor serves two owners of one.

    `again` asks for an Ensure of ports that look right too, since somebody may have touched the kernel's
    side. `now` is in seconds, of the clock that `slots` rest by.
    """
    for place, port in held.items():
        if place not in wanted:
            yield Remove(port)
    for place, want in wanted.items():
        former = held.get(place)
        if former is not None and former.instance == want.instance:
            port = replace(
                former, tap=want.tap, policy=want.policy, project=want.project, address=want.address, name=want.name,
                flavor=want.flavor,
            )  # fmt: skip
            if again or port != former:
                yield Ensure(port)
            continue
        if former is not None and former.instance is not None:
            yield Cut(former)
            former = replace(former, instance=None)
        given = slots.take(now)
        if given is None:
            yield Unplaced(want)
            continue
        # The new owner's record replaces the former's on the tap in one step; only then is the former's slot freed.
        yield Ensure(
            Port(
                *given, place.ifindex, want.tap, place.netns, want.instance, want.policy, want.project, want.address,
                want.name, want.flavor,
            )
        )  # fmt: skip
        if former is not None:
            yield Remove(former)


def closing(before: Policy, after: Policy) -> Policy:
    """What may be put in force of a change before it is on disk: only what closes.

    So at no instant, whatever crashes, is the kernel more open than the store says. A 403 opens the
    kernel's side (the proxy refuses then), so a refusal in the kernel stays until the change is kept.
    """

    def of(old: Access, new: Access) -> Access:
        opens = new is Access.OPEN or (new is Access.FORBID and old is not Access.OPEN)
        return old if opens else new

    tokens = after.tokens if after.tokens is Tokens.REQUIRED else before.tokens
    closed = tuple(dict.fromkeys((*before.closed, *after.closed)))
    return replace(before, v4=of(before.v4, after.v4), v6=of(before.v6, after.v6), tokens=tokens, closed=closed)
