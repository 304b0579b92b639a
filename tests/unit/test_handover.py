"""One datapath's end where another takes over: whole, or tap by tap where some fail. Both are the shipped fake."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from shim.core.link import Place
from shim.core.policy import Policy
from shim.core.port import Port
from shim.datapath.base import Enrolled
from shim.datapath.fake import Fake
from shim.errors import KernelError
from shim.handover import Handover
from tests.unit.test_enrolment import ONE, SETTINGS, TWO, Host


class Former(Fake):
    """One that may have become unreadable, or hard to remove; `open` says whether its descriptors are."""

    name = "former"

    def __init__(self, *, unreadable: bool = False) -> None:
        super().__init__(SETTINGS, lambda: 0)
        self.unreadable, self.stuck, self.is_open = unreadable, False, True

    async def observe(self) -> list[Enrolled]:
        if self.unreadable:
            raise KernelError("the maps have another shape")
        return await super().observe()

    async def teardown(self) -> None:
        if self.stuck:
            raise KernelError("the kernel is busy")
        await super().teardown()

    def close(self) -> None:
        self.is_open = False


async def former_with(owners: dict[int, UUID | None], *, unreadable: bool = False) -> Former:
    former = Former(unreadable=unreadable)
    for ifindex, instance in owners.items():
        await former.ensure(Port(ifindex + 10, 3, ifindex, f"tap{ifindex}", "", instance, Policy()))
    return former


def guarded(former: Former) -> set[int]:
    return {place.ifindex for place in former._guarded}


def test_it_ends_when_all_taps_are_in_the_new_one() -> None:
    async def story() -> None:
        former = await former_with({1: ONE, 2: None})
        handover, host = Handover(former), Host(slots=20)
        for ifindex, instance in ((1, ONE), (2, None), (3, TWO)):
            host.link(ifindex, instance)
        await host.enrolment.adopt(await handover.observe())
        ports = [port for port in host.enrolment.ports.values() if port.ifindex < 3]
        assert {port.ifindex: (port.slot, port.generation) for port in ports} == {1: (11, 3), 2: (12, 3)}
        assert guarded(former) == {1, 2}, "it guards on while the new one is filled"
        await handover.go_on(host.enrolment.failures.keys())
        assert not former.left() and not former.is_open
        assert await host.kernel() == {1: ONE, 2: None, 3: TWO}

    asyncio.run(story())


def test_a_tap_that_fails_in_the_new_one_keeps_the_former_there_only() -> None:
    async def story() -> None:
        former = await former_with({1: ONE, 2: TWO})
        handover, host = Handover(former), Host(slots=20)
        host.link(1, ONE)
        host.link(2, TWO)
        host.datapath.refuses = {TWO}
        await host.enrolment.adopt(await handover.observe())
        for _ in range(2):
            with pytest.raises(KernelError, match="1 taps fail in the new datapath; former refuses all there"):
                await handover.go_on(host.enrolment.failures.keys())
            assert guarded(former) == {2} and former.is_open
        host.datapath.refuses = set()
        await host.enrolment.settle(list(host.enrolment.failures))
        assert host.enrolment.ports[Place("", 2)].slot == 12
        await handover.go_on(host.enrolment.failures.keys())
        assert not former.left()

    asyncio.run(story())


def test_a_failure_on_a_tap_that_the_former_never_had_is_no_reason_to_stay() -> None:
    async def story() -> None:
        former = await former_with({1: ONE})
        handover = Handover(former)
        await handover.observe()
        await handover.go_on({2})
        assert not former.left()

    asyncio.run(story())


def test_one_that_cannot_be_read_is_removed_all_the_same() -> None:
    async def story() -> None:
        former = await former_with({1: ONE}, unreadable=True)
        handover = Handover(former)
        assert await handover.observe() == []
        await handover.go_on({1})
        assert not former.left()

    asyncio.run(story())


def test_one_that_cannot_be_removed_is_tried_again() -> None:
    async def story() -> None:
        former = await former_with({1: ONE})
        former.stuck = True
        handover = Handover(former)
        await handover.observe()
        with pytest.raises(KernelError, match="busy"):
            await handover.go_on(())
        assert former.left() and former.is_open
        former.stuck = False
        await handover.go_on(())
        assert not former.left()

    asyncio.run(story())
