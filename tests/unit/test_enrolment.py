"""The agent's bookkeeping over the shipped fake datapath: links and identities in, guarded taps out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import pytest

from shim.core.exchange import Subject
from shim.core.link import Link, Place
from shim.core.policy import Access, Policy
from shim.core.port import SLOT_QUARANTINE, Port, Slots
from shim.datapath import abi
from shim.datapath.base import Enrolled
from shim.datapath.fake import Fake
from shim.enrolment import Enrolment, together
from shim.errors import KernelError
from shim.identity.alias import Alias
from shim.identity.resolve import Resolver, Source

ONE, TWO = UUID(int=1), UUID(int=2)
SETTINGS = abi.pack_settings(["169.254.169.254"], [80], rate=50, burst=200, event_rate=10, flows_per_port=8)


def own(ifindex: int) -> Place:
    return Place("", ifindex)


class Sick(Fake):
    """A fake whose kernel refuses to guard some taps."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, lambda: 0)
        self.refuses: set[UUID] = set()
        self.asked: list[int] = []
        self.removed: list[tuple[int, int]] = []

    async def ensure(self, port: Port) -> None:
        self.asked.append(port.ifindex)
        if port.instance in self.refuses:
            raise KernelError(f"cannot attach to {port.tap}")
        await super().ensure(port)

    async def remove(self, port: Port) -> None:
        self.removed.append((port.slot, port.generation))
        await super().remove(port)


class Host:
    """An enrolment with links to set, a clock to turn, and what the proxy was told."""

    def __init__(self, datapath: Sick | None = None, slots: int = 8, sources: Sequence[Source] = ()) -> None:
        self.links: dict[Place, Link] = {}
        self.policies: dict[UUID | None, Policy] = {}
        self.told: list[tuple[UUID | None, bool]] = []
        self.now = 0.0
        self.datapath = datapath or Sick()
        self.leads: dict[int, str] = {}
        self.enrolment = Enrolment(
            self.datapath,
            Slots(slots),
            Resolver(sources or [Alias()]),
            self.links,
            ("tap*",),
            lambda instance: self.policies.get(instance, Policy()),
            lambda port, here: self.told.append((port.instance, here)),
            lambda: self.now,
            self._lead,
        )

    async def _lead(self, slot: int, netns: str) -> None:
        self.leads[slot] = netns

    def link(self, ifindex: int, instance: UUID | None = None, name: str = "") -> None:
        alias = f"metashim:{instance}" if instance else None
        self.links[own(ifindex)] = Link(ifindex, name or f"tap{ifindex}", alias)

    @property
    def owners(self) -> dict[int, UUID | None]:
        return {port.ifindex: port.instance for port in self.enrolment.ports.values()}

    async def kernel(self) -> dict[int, UUID | None]:
        return {found.ifindex: found.instance for found in await self.datapath.observe() if found.ifindex}


def story(tell: Callable[[Host], Awaitable[None]]) -> Callable[[], None]:
    """Makes a test of a story told with a host of its own."""

    def run() -> None:
        asyncio.run(tell(Host()))

    run.__name__ = tell.__name__
    return run


@story
async def test_taps_come_and_go(host: Host) -> None:
    host.link(1, ONE)
    host.link(2)
    host.link(3, name="eth0")
    await host.enrolment.settle()
    assert await host.kernel() == host.owners == {1: ONE, 2: None}
    assert [port.tap for port in host.enrolment.ports_of(ONE)] == ["tap1"]
    host.links.clear()
    await host.enrolment.settle()
    assert await host.kernel() == host.owners == {}
    assert host.enrolment.ports_of(ONE) == []
    assert host.told == [(ONE, True), (None, True), (ONE, False), (None, False)]


@story
async def test_a_tap_with_an_identity_is_guarded_whatever_its_name(host: Host) -> None:
    host.link(3, ONE, name="eth0")
    await host.enrolment.settle()
    assert host.owners == {3: ONE}


@story
async def test_what_is_said_of_an_owner_is_told_again_when_it_alone_changes(host: Host) -> None:
    host.link(1, ONE)
    await host.enrolment.settle()
    before = host.enrolment.ports[own(1)]
    host.links[own(1)] = Link(1, "tap1", f"metashim:{ONE}/p")
    await host.enrolment.settle()
    after = host.enrolment.ports[own(1)]
    assert (after.slot, after.generation, after.project) == (before.slot, before.generation, "p")
    assert host.told == [(ONE, True), (ONE, True)]
    await host.enrolment.settle()
    assert len(host.told) == 2, "and only then"


@story
async def test_a_tap_that_changes_hands_changes_slots(host: Host) -> None:
    host.link(1, ONE)
    await host.enrolment.settle()
    first = host.enrolment.ports[own(1)]
    host.link(1, TWO)
    await host.enrolment.settle()
    second = host.enrolment.ports[own(1)]
    assert (first.slot, first.instance) != (second.slot, second.instance)
    assert host.enrolment.port_of(first.slot, first.generation) is None
    assert host.enrolment.port_of(second.slot, second.generation) == second
    assert host.told == [(ONE, True), (ONE, False), (TWO, True), (None, False)]


@story
async def test_a_tap_that_changes_hands_and_fails_serves_nobody(host: Host) -> None:
    host.link(1, ONE)
    await host.enrolment.settle()
    host.datapath.refuses = {TWO}
    host.link(1, TWO)
    await host.enrolment.settle()
    assert await host.kernel() == host.owners == {1: None}
    assert "cannot attach" in str(host.enrolment.failures[own(1)])
    assert host.told == [(ONE, True), (ONE, False), (TWO, True), (TWO, False)]
    host.datapath.refuses = set()
    await host.enrolment.settle()
    assert host.owners == {1: TWO} and not host.enrolment.failures


@story
async def test_a_tap_that_goes_while_it_is_enrolled_leaves_nothing(host: Host) -> None:
    """The kernel may have been told of its slot already, and of the way there."""
    place = Place("elsewhere", 1)
    host.links[place] = Link(1, "tap1", f"metashim:{ONE}", netns="elsewhere")
    host.datapath.refuses = {ONE}
    await host.enrolment.settle()
    assert host.datapath.removed[0] == (1, 1)
    assert host.leads == {1: ""}
    assert host.told[-1] == (ONE, False)
    host.now = SLOT_QUARANTINE
    host.datapath.refuses = set()
    await host.enrolment.settle()
    assert host.enrolment.ports[place].slot == 1
    assert host.leads == {1: "elsewhere"}
    del host.links[place]
    await host.enrolment.settle()
    assert host.leads == {1: ""}


@story
async def test_who_is_not_served_yet_comes_first(host: Host) -> None:
    for ifindex in range(1, 7):
        host.link(ifindex, UUID(int=ifindex))
    await host.enrolment.settle()
    for ifindex in (0x101, 0x102):
        host.link(ifindex, UUID(int=ifindex))
    host.datapath.asked.clear()
    await host.enrolment.settle(again=True)
    assert set(host.datapath.asked[:2]) == {0x101, 0x102}
    assert len(host.datapath.asked) == 8


@story
async def test_one_tap_that_fails_stands_in_nobodys_way(host: Host) -> None:
    host.datapath.refuses = {ONE}
    host.link(1, ONE)
    host.link(2, TWO)
    await host.enrolment.settle()
    assert host.owners == {2: TWO} and list(host.enrolment.failures) == [own(1)]
    host.links.pop(own(1))
    await host.enrolment.settle()
    assert not host.enrolment.failures


@story
async def test_a_policy_is_settled_for_one_tap(host: Host) -> None:
    host.link(1, ONE)
    await host.enrolment.settle()
    host.policies[ONE] = Policy(Access.RESET, Access.DROP, 2)
    await host.enrolment.settle([own(1)])
    assert host.enrolment.ports[own(1)].policy == host.policies[ONE]


@story
async def test_slots_run_out_and_come_back(_: Host) -> None:
    host = Host(slots=1)
    host.link(1, ONE)
    host.link(2, TWO)
    await host.enrolment.settle()
    assert "no slot is left for tap2" in str(host.enrolment.failures[own(2)])
    host.links.pop(own(1))
    await host.enrolment.settle()
    assert host.owners == {}, "the slot rests"
    host.now = SLOT_QUARANTINE
    await host.enrolment.settle()
    assert host.owners == {2: TWO}
    assert host.enrolment.ports[own(2)].generation == 2


@story
async def test_a_tap_that_changes_hands_when_no_slot_is_left_serves_nobody(_: Host) -> None:
    host = Host(slots=1)
    host.link(1, ONE)
    await host.enrolment.settle()
    host.link(1, TWO)
    await host.enrolment.settle()
    assert await host.kernel() == host.owners == {1: None}
    assert host.told == [(ONE, True), (ONE, False)]


@story
async def test_a_slot_that_nobody_was_served_on_needs_no_rest(_: Host) -> None:
    host = Host(slots=2)
    host.link(1)
    await host.enrolment.settle()
    host.link(1, ONE)
    await host.enrolment.settle()
    host.link(2, TWO)
    await host.enrolment.settle()
    assert host.owners == {1: ONE, 2: TWO}


@story
async def test_a_slot_that_was_silenced_rests_like_any_other(_: Host) -> None:
    host = Host(slots=1)
    host.link(1, ONE)
    await host.enrolment.settle()
    host.link(1, TWO)
    await host.enrolment.settle()
    host.links.pop(own(1))
    host.link(2, TWO)
    await host.enrolment.settle()
    assert host.owners == {}


@story
async def test_an_agent_that_starts_goes_on_where_the_last_one_ended(before: Host) -> None:
    for ifindex, instance in ((1, ONE), (2, TWO), (3, None)):
        before.link(ifindex, instance)
    await before.enrolment.settle()
    before.datapath.unplug(2)
    after = Host(before.datapath)
    after.link(1, ONE)
    after.link(4, TWO)
    await after.enrolment.adopt()
    assert after.enrolment.ports[own(1)] == before.enrolment.ports[own(1)]
    gone = before.enrolment.ports[own(2)]
    assert after.enrolment.ports[own(4)].slot not in {port.slot for port in before.enrolment.ports.values()}
    assert await after.kernel() == {1: ONE, 4: TWO}
    assert after.enrolment.port_of(gone.slot, gone.generation) is None


@pytest.mark.parametrize("instance", [ONE, None])
def test_generations_outlive_an_agent(instance: UUID | None) -> None:
    async def story() -> None:
        before = Host(slots=1)
        before.link(1, instance)
        await before.enrolment.settle()
        before.datapath.unplug(1)
        after = Host(before.datapath, slots=1)
        after.link(2, instance)
        await after.enrolment.adopt()
        assert after.owners == {}, "a slot that was somebody's rests first"
        after.now = SLOT_QUARANTINE
        await after.enrolment.settle()
        assert after.enrolment.ports[own(2)].generation == 2

    asyncio.run(story())


@story
async def test_another_datapath_goes_on_in_the_same_slots(before: Host) -> None:
    for ifindex, instance in ((1, ONE), (2, TWO), (3, None), (4, TWO)):
        before.link(ifindex, instance)
    await before.enrolment.settle()
    before.datapath.unplug(2)
    after = Host()
    for ifindex, instance in ((1, ONE), (3, None), (4, TWO), (5, ONE)):
        after.link(ifindex, instance)
    await after.enrolment.adopt(await before.datapath.observe())
    for ifindex in (1, 3, 4):
        assert after.enrolment.ports[own(ifindex)] == before.enrolment.ports[own(ifindex)]
    assert await after.kernel() == {1: ONE, 3: None, 4: TWO, 5: ONE}
    assert after.enrolment.ports[own(5)].slot not in {port.slot for port in before.enrolment.ports.values()}


@story
async def test_where_both_datapaths_hold_a_tap_the_new_one_is_believed(host: Host) -> None:
    """A hand-over that was cut short: the new one has some taps already, one of which changed hands since."""
    former = [Enrolled(1, 1, 1, ONE), Enrolled(2, 1, 2, TWO), Enrolled(9, 1, 3, ONE), Enrolled(0, 0, 4, None)]
    host.link(1, TWO)
    await host.enrolment.settle()
    assert host.enrolment.ports[own(1)].slot == 1
    after = Host(host.datapath)
    for ifindex, instance in ((1, TWO), (2, TWO), (3, ONE), (4, ONE)):
        after.link(ifindex, instance)
    await after.enrolment.adopt(former)
    ports = after.enrolment.ports
    assert {place.ifindex: port.instance for place, port in ports.items()} == {1: TWO, 2: TWO, 3: ONE, 4: ONE}
    assert (ports[own(1)].slot, ports[own(2)].slot) == (1, 2)
    assert ports[own(3)].slot <= 8, "there is no slot 9 here"
    assert len({port.slot for port in ports.values()}) == 4


@pytest.mark.parametrize(
    ("found", "former", "want"),
    [
        ([], [Enrolled(3, 2, 7, ONE)], [Enrolled(3, 2, 7, ONE)]),
        ([Enrolled(3, 1, 8, TWO)], [Enrolled(3, 2, 7, ONE)], [Enrolled(3, 1, 8, TWO)]),  # the slot is taken
        ([Enrolled(4, 1, 7, TWO)], [Enrolled(3, 2, 7, ONE)], [Enrolled(4, 1, 7, TWO)]),  # the tap is known
        ([Enrolled(3, 5, 0, None)], [Enrolled(3, 2, 7, ONE)], [Enrolled(3, 5, 0, None)]),  # that owner is over
        ([Enrolled(3, 1, 0, None)], [Enrolled(3, 2, 7, ONE)], [Enrolled(3, 2, 7, ONE)]),
        ([Enrolled(3, 1, 0, None)], [Enrolled(3, 2, 0, None)], [Enrolled(3, 2, 0, None)]),
        ([Enrolled(3, 2, 0, None)], [Enrolled(4, 2, 0, None)], [Enrolled(3, 2, 0, None), Enrolled(4, 2, 0, None)]),
        ([Enrolled(0, 0, 7, None)], [Enrolled(3, 2, 7, ONE)], [Enrolled(0, 0, 7, None), Enrolled(3, 2, 7, ONE)]),
        ([], [Enrolled(0, 0, 7, None), Enrolled(9, 1, 7, ONE)], []),
    ],
)
def test_what_two_datapaths_hold_together(
    found: list[Enrolled], former: list[Enrolled], want: list[Enrolled]
) -> None:
    assert together(found, former, 8) == want


class Told:
    """A source that says what it is told to say, of taps by name."""

    def __init__(self, name: str, **of: UUID) -> None:
        self.name, self.known, self.of = name, True, of

    def subject_of(self, link: Link) -> Subject | None:
        instance = self.of.get(link.name)
        return Subject(instance) if instance else None

    def namespaces(self) -> frozenset[str]:
        return frozenset()

    def health(self) -> str | None:
        return None

    def refresh(self) -> bool:
        return True

    async def watch(self, changed: Callable[[], None]) -> None:
        pass


def host_of(*sources: Told, datapath: Sick | None = None) -> Host:
    host = Host(datapath, sources=sources)
    for ifindex in (1, 2, 3):
        host.link(ifindex)
    return host


def test_of_two_taps_the_better_source_s_is_the_instance_s() -> None:
    async def tell() -> None:
        first, second = Told("first"), Told("second", tap1=ONE, tap2=ONE, tap3=TWO)
        host = host_of(first, second)
        await host.enrolment.settle()
        assert host.owners == {1: ONE, 2: ONE, 3: TWO}, "one source may name several taps of one instance"
        first.of["tap3"] = ONE
        await host.enrolment.settle([own(3)])
        assert host.owners == {1: None, 2: None, 3: ONE}, "the others are settled with it"
        conflict = host.enrolment.resolutions[own(1)].conflict
        assert conflict == f"first says that {ONE} is on tap3 and wins; second says it is here"
        del first.of["tap3"]
        await host.enrolment.settle([own(3)])
        assert host.owners == {1: ONE, 2: ONE, 3: TWO}

    asyncio.run(tell())


def test_an_instance_that_moves_to_another_tap_by_a_better_source_is_never_served_on_both() -> None:
    async def tell() -> None:
        first, second = Told("first", tap1=ONE), Told("second", tap2=ONE)
        host = host_of(first, second)
        await host.enrolment.settle()
        assert host.owners == {1: ONE, 2: None, 3: None}
        host.links.pop(own(1))
        await host.enrolment.settle([own(1)])
        assert host.owners == {2: ONE, 3: None}

    asyncio.run(tell())


def test_what_the_kernel_holds_is_believed_until_its_source_has_spoken() -> None:
    async def tell() -> None:
        before = host_of(Told("slow", tap1=ONE))
        await before.enrolment.settle()
        slow, quick = Told("slow"), Told("quick", tap1=TWO, tap2=TWO)
        slow.known = False
        after = host_of(slow, quick, datapath=before.datapath)
        await after.enrolment.adopt()
        assert after.owners == {1: ONE, 2: None, 3: None}, "a later source does not speak before an earlier one"
        assert "slow could not be read" in after.enrolment.resolutions[own(2)].conflict
        assert after.told == [(ONE, True), (None, True), (None, True)]
        slow.known = True
        await after.enrolment.settle()
        assert after.owners == {1: TWO, 2: TWO, 3: None}

    asyncio.run(tell())
