"""When which taps are settled: one at once and alone, all when a source or an audit says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from uuid import UUID

import pytest

from shim import rounds
from shim.core.exchange import Subject
from shim.core.link import Link, Place
from shim.core.policy import Policy
from shim.core.port import Port, Slots
from shim.datapath import abi
from shim.datapath.base import Datapath
from shim.datapath.fake import Fake
from shim.enrolment import Enrolment
from shim.errors import KernelError
from shim.identity.resolve import Resolver
from shim.netlink.links import ALL
from shim.rounds import Rounds

GATEWAY = 7
SETTINGS = abi.pack_settings(["169.254.169.254"], [80], rate=50, burst=200, event_rate=10, flows_per_port=8)
TURNS = 5000
"""Of the event loop, until a story gives up; no clock is waited for."""


def own(ifindex: int) -> Place:
    return Place("", ifindex)


class Slow(Fake):
    """A datapath on which everyone gets a turn between two changes."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, lambda: 0)
        self.ensured: list[int] = []
        self.held = asyncio.Event()  # as long as it is not set, `ensure` of the tap `stuck` waits
        self.stuck = 0

    async def ensure(self, port: Port) -> None:
        if port.ifindex == self.stuck:
            await self.held.wait()
        self.ensured.append(port.ifindex)
        await super().ensure(port)


class Names:
    """A source that knows what it is told, and counts what it is asked."""

    name = "names"
    known = True

    def __init__(self) -> None:
        self.of: dict[str, UUID] = {}
        self.asked: list[str] = []
        self.changed = False

    def subject_of(self, link: Link) -> Subject | None:
        self.asked.append(link.name)
        instance = self.of.get(link.name)
        return Subject(instance) if instance else None

    def health(self) -> str | None:
        return None

    def refresh(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def namespaces(self) -> frozenset[str]:
        return frozenset()

    async def watch(self, changed: Callable[[], None]) -> None:
        pass


class Bedrock:
    """What lies beneath, as far as rounds ask for it."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self.audits = 0
        self.stood = True
        self.ill = False

    def is_gateway(self, place: Place) -> bool:
        return place == own(GATEWAY)

    def stands(self, links: Mapping[Place, Link]) -> bool:
        return self.stood

    async def audit(self) -> bool:
        self.audits += 1
        if self.ill:
            raise KernelError("no memory")
        self.stood = True
        return False

    async def hand_over(self, failed: Collection[Place]) -> None:
        pass


class Host:
    """A hundred taps, settled already."""

    def __init__(self) -> None:
        self.entered = 0
        self.datapath = Slow()
        self.names = Names()
        self.ground = Bedrock(self.datapath)
        self.links = {own(n): Link(n, f"tap{n}", None) for n in range(100, 200)}
        resolver = Resolver([self.names])
        self.enrolment = Enrolment(
            self.datapath, Slots(1000), resolver, self.links, ("tap*",),
            lambda _: Policy(), lambda *_: None, lambda: 0.0,
        )  # fmt: skip
        self.rounds = Rounds(self.ground, self.enrolment, resolver, self.links, lambda: None, self.enter)

    async def enter(self) -> None:
        self.entered += 1

    def plug(self, ifindex: int) -> None:
        self.links[own(ifindex)] = Link(ifindex, f"tap{ifindex}", None)
        self.rounds.wake(own(ifindex), False)

    def unplug(self, ifindex: int) -> None:
        del self.links[own(ifindex)]
        self.rounds.wake(own(ifindex), True)

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(TURNS):
            if true():
                return
            await asyncio.sleep(0)
        raise AssertionError("it does not come true")


def story(tell: Callable[[Host], Awaitable[None]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Makes a test of a story told with a host of its own, whose clock never lets a round fall due."""

    async def run() -> None:
        host = Host()
        await host.enrolment.settle()
        host.datapath.ensured.clear()
        host.names.asked.clear()
        stop = asyncio.Event()
        running = asyncio.ensure_future(host.rounds.run(stop))
        try:
            await tell(host)
        finally:
            stop.set()
            host.datapath.held.set()
            await running

    def test(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rounds, "AGAIN_SECONDS", 3600)
        asyncio.run(run())

    test.__name__ = tell.__name__
    return test


@story
async def test_a_tap_that_comes_is_settled_and_no_other_is_looked_at(host: Host) -> None:
    host.plug(5)
    await host.until(lambda: own(5) in host.enrolment.ports)
    assert (host.datapath.ensured, host.names.asked, host.ground.audits) == ([5], ["tap5"], 0)


@story
async def test_a_tap_that_goes_takes_no_other_along(host: Host) -> None:
    host.unplug(150)
    await host.until(lambda: own(150) not in host.enrolment.ports)
    assert (len(host.enrolment.ports), host.datapath.ensured, host.names.asked) == (99, [], [])


@story
async def test_what_was_taken_off_a_tap_is_put_back(host: Host) -> None:
    host.rounds.wake(own(150), True)
    await host.until(lambda: bool(host.datapath.ensured))
    assert host.datapath.ensured == [150]


@story
async def test_a_tap_that_comes_does_not_wait_for_an_audit(host: Host) -> None:
    host.datapath.stuck = 120
    host.rounds.wake(own(ALL), True)
    await host.until(lambda: 119 in host.datapath.ensured)
    before = list(host.datapath.ensured)
    host.plug(5)
    await asyncio.sleep(0)
    assert 5 not in host.datapath.ensured, "one change at a time"
    host.datapath.held.set()
    await host.until(lambda: 5 in host.datapath.ensured)
    assert len(host.datapath.ensured) - len(before) < 10, "before the other eighty"
    await host.until(lambda: 199 in host.datapath.ensured)


@story
async def test_a_source_that_says_otherwise_has_all_resolved_again(host: Host) -> None:
    host.names.of = {"tap5": UUID(int=5), "tap150": UUID(int=150)}
    host.names.changed = True
    host.plug(5)  # written just before the tap came: nothing else wakes it
    await host.until(lambda: host.enrolment.ports[own(150)].instance == UUID(int=150))
    assert host.enrolment.ports[own(5)].instance == UUID(int=5)
    assert sorted(host.datapath.ensured) == [5, 150]
    assert host.entered == 1, "it may name taps in other namespaces too"


@pytest.mark.parametrize("ifindex,undone,audits", [(ALL, True, 1), (GATEWAY, True, 1), (GATEWAY, False, 0)])
def test_an_audit_when_all_or_the_gateway_may_be_undone(ifindex, undone, audits, monkeypatch):
    @story
    async def tell(host: Host) -> None:
        host.rounds.wake(own(ifindex), undone)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert host.ground.audits == audits
        assert host.datapath.ensured == [place.ifindex for place in host.links] * audits

    tell(monkeypatch)


@story
async def test_a_gateway_that_changed_is_looked_at(host: Host) -> None:
    host.ground.stood = False
    host.rounds.wake(own(GATEWAY), False)
    await host.until(lambda: host.ground.audits == 1)


@story
async def test_a_pass_that_fails_is_followed_by_an_audit_and_ends_nothing(host: Host) -> None:
    host.ground.ill = True
    host.rounds.wake(own(ALL), True)
    await host.until(lambda: host.ground.audits == 1)
    host.ground.ill = False
    host.rounds.wake(own(GATEWAY), False)
    await host.until(lambda: host.ground.audits == 2)
    host.plug(5)
    await host.until(lambda: own(5) in host.enrolment.ports)
