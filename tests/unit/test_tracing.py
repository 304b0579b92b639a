"""Who traces what: the flag in the datapath, readers of their own, and what is told of what was left out."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from uuid import UUID

import pytest

from shim import tracing
from shim.core.policy import Policy
from shim.core.port import Port
from shim.core.verdict import Traced
from shim.datapath.fake import Fake
from shim.errors import KernelError
from shim.tracing import Tracing
from tests.bpf.frames import segment
from tests.contract.rig import SETTINGS

A, B = UUID(int=0xA), UUID(int=0xB)
PORT = Port(1, 1, 10, "tap1", "", A, Policy())
STRANGE = segment(4, "S", dport=22)


class Site:
    """A datapath in memory with some ports, and a trace of them."""

    def __init__(self) -> None:
        self.datapath = Fake(SETTINGS, time.monotonic_ns)
        self.ports: dict[int, Port] = {}
        self.tracing = Tracing(self.datapath, self._ports_of, self._port_of)

    def _ports_of(self, instance: UUID) -> list[Port]:
        return [port for port in self.ports.values() if port.instance == instance]

    def _port_of(self, slot: int, generation: int) -> Port | None:
        port = self.ports.get(slot)
        return port if port and port.generation == generation else None

    async def enrol(self, port: Port) -> None:
        """As the enrolment does: who looks on is told before the kernel."""
        self.tracing.port_changed(port, True)
        await self.datapath.ensure(port)
        self.ports[port.slot] = port

    def send(self, frames: int = 1, ifindex: int = 10) -> None:
        for _ in range(frames):
            self.datapath.deliver(ifindex, STRANGE)
        self.tracing.hear()

    def is_on(self, slot: int = 1) -> bool:
        return self.datapath._model.state.slot(slot).traced


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    asyncio.run(site.enrol(PORT))
    yield site
    assert site.tracing._readers == {}


async def until(stream, enough: Callable[[list], bool] = bool):
    """Views until there are enough packets; they, and what was missed meanwhile."""
    packets, missed = [], 0
    async for view in stream:
        packets += view.packets
        missed += view.missed
        if enough(packets):
            break
    return packets, missed


def test_a_packet_is_told_with_its_tap_and_verdict(site):
    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            first = await anext(stream)
            site.send()
            return first, await until(stream)

    first, ((packet,), missed) = asyncio.run(look())
    assert (first.packets, first.taps, missed) == ([], ["tap1"], 0)
    assert (packet.tap, packet.verdict, packet.refused, packet.to_guest) == ("tap1", "wrong_port", True, False)
    assert base64.b64decode(packet.frame) == STRANGE
    assert packet.length == len(STRANGE)
    assert abs(packet.time - time.time()) < 5


def test_the_flag_is_on_while_somebody_looks_on(site):
    async def look():
        assert not site.is_on()
        async with aclosing(site.tracing.packets(A)) as first:
            await anext(first)
            async with aclosing(site.tracing.packets(A)) as second:
                await anext(second)
                assert site.is_on()
            assert site.is_on()
        assert not site.is_on()

    asyncio.run(look())


def test_the_flag_goes_with_who_is_cancelled(site):
    async def look():
        async def follow():
            async for _ in site.tracing.packets(A):
                pass

        task = asyncio.ensure_future(follow())
        await asyncio.sleep(0.01)
        assert site.is_on()
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0.01)
        assert not site.is_on()

    asyncio.run(look())


def test_the_flag_goes_with_who_is_cancelled_as_a_packet_comes(site):
    """Both in one turn of the loop, as when a client that is flooded goes."""

    async def look():
        async def follow():
            async for _ in site.tracing.packets(A):
                pass

        task = asyncio.ensure_future(follow())
        await asyncio.sleep(0.01)
        site.send()
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.done()
        await asyncio.sleep(0.01)
        assert not site.is_on()
        task.cancel()

    asyncio.run(look())


def test_all_who_look_on_see_all(site):
    async def look():
        async with aclosing(site.tracing.packets(A)) as first, aclosing(site.tracing.packets(A)) as second:
            await anext(first)
            await anext(second)
            site.send()
            return [len((await until(stream))[0]) for stream in (first, second)]

    assert asyncio.run(look()) == [1, 1]


def test_nobody_sees_another_instances(site):
    async def look():
        await site.enrol(Port(2, 1, 11, "tap2", "", B, Policy()))
        async with aclosing(site.tracing.packets(A)) as one, aclosing(site.tracing.packets(B)) as other:
            await anext(one)
            await anext(other)
            site.send(ifindex=11)
            site.send()
            return [[packet.tap for packet in (await until(stream))[0]] for stream in (one, other)]

    assert asyncio.run(look()) == [["tap1"], ["tap2"]]


def test_a_port_that_comes_later_is_traced_from_its_first_packet(site):
    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            await anext(stream)
            await site.enrol(Port(2, 1, 11, "tap2", "", A, Policy()))
            site.send(ifindex=11)
            view = await anext(stream)
            return [packet.tap for packet in view.packets], view.taps

    assert asyncio.run(look()) == (["tap2"], ["tap1", "tap2"])


def test_a_port_that_becomes_anothers_is_not_traced_any_more(site):
    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            await anext(stream)
            site.tracing.port_changed(PORT, False)
            await site.datapath.remove(site.ports.pop(1))
            await site.enrol(replace(PORT, generation=2, instance=B))
            assert not site.is_on()

    asyncio.run(look())


def test_what_the_datapath_leaves_out_is_told(site):
    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            await anext(stream)
            site.send(1000)
            return await until(stream)

    packets, missed = asyncio.run(look())
    assert len(packets) + missed == 1000
    assert missed > 0


def test_what_was_left_out_before_is_nobodys_loss(site):
    async def look(frames):
        async with aclosing(site.tracing.packets(A)) as stream:
            await anext(stream)
            site.send(frames)
            return await until(stream)

    asyncio.run(look(1000))
    time.sleep(0.05)
    assert asyncio.run(look(1))[1] == 0


def test_who_does_not_read_loses_packets_and_no_memory_grows(site, monkeypatch):
    monkeypatch.setattr(tracing, "KEPT", 50)

    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            await anext(stream)
            site.send(120)
            return await until(stream)

    packets, missed = asyncio.run(look())
    assert (len(packets), missed) == (50, 70)


def test_time_passes_without_packets_too(site, monkeypatch):
    monkeypatch.setattr(tracing, "TICK_SECONDS", 0.01)

    async def look():
        async with aclosing(site.tracing.packets(A)) as stream:
            return [await anext(stream) for _ in range(3)]

    assert [view.packets for view in asyncio.run(look())] == [[], [], []]


def test_a_packet_of_nobody_is_dropped(site):
    site.datapath._model.traced.append(Traced(1, 5, 5, 17, False, 0, b""))
    site.tracing.hear()


def test_a_datapath_that_refuses_is_told_to_who_asks_and_nothing_stays(site, monkeypatch):
    def refuse(port: Port, on: bool) -> None:
        if on:
            raise KernelError("no memory")

    monkeypatch.setattr(site.datapath, "trace", refuse)

    async def look():
        await anext(site.tracing.packets(A))

    with pytest.raises(KernelError, match="no memory"):
        asyncio.run(look())
