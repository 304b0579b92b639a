"""Traces: operators who look on while an instance's packets are judged. See `metashim trace`.

The datapath shows packets of a port while its flag is on, which is while somebody looks on. The agent takes what it is
shown to whoever asked, and looks at none of it: guests wrote it. A reader who is slow loses packets, and is told so.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

from shim.control.trace_shapes import PacketView, TraceView
from shim.core.port import Port
from shim.core.verdict import Traced
from shim.datapath.base import Datapath
from shim.errors import KernelError

log = logging.getLogger(__name__)

KEPT = 2000
"""Packets that wait for one reader: under 2 MB."""

TICK_SECONDS = 1.0


class _Reader:
    """One who looks on: what waits for them, and what they lost."""

    def __init__(self, left_out: Callable[[Port], int]) -> None:
        self._left_out = left_out
        self._packets: deque[PacketView] = deque()
        self._dropped = 0
        self._counted: dict[tuple[int, int], int] = {}
        self._taps: list[str] | None = None
        self.news = asyncio.Event()

    def give(self, packet: PacketView) -> None:
        """A packet for them."""
        if len(self._packets) < KEPT:
            self._packets.append(packet)
        else:
            self._dropped += 1
        self.news.set()

    def begin(self, port: Port) -> None:
        """What was left out of a port before is nothing that they lost."""
        self._counted.setdefault((port.slot, port.generation), self._left_out(port))

    def take(self, ports: Sequence[Port]) -> TraceView:
        """All that waits."""
        self.news.clear()
        packets = list(self._packets)
        self._packets.clear()
        missed, self._dropped = self._dropped, 0
        for port in ports:
            missed += self._lost(port)
        taps = sorted(port.tap for port in ports)
        changed, self._taps = taps != self._taps, taps
        return TraceView(packets, missed, taps if changed else None)

    def _lost(self, port: Port) -> int:
        owner, by_now = (port.slot, port.generation), self._left_out(port)
        lost = by_now - self._counted.get(owner, 0)
        self._counted[owner] = by_now
        return max(lost, 0)


class Tracing:
    """Who traces what. `ports_of` are an instance's ports, `port_of` is what a slot's owner is."""

    def __init__(
        self,
        datapath: Datapath,
        ports_of: Callable[[UUID], list[Port]],
        port_of: Callable[[int, int], Port | None],
    ) -> None:
        self._datapath = datapath
        self._ports_of = ports_of
        self._port_of = port_of
        self._readers: dict[UUID, set[_Reader]] = {}

    async def packets(self, instance: UUID) -> AsyncGenerator[TraceView, None]:
        """What is to be shown, whenever there is something, and at least once a second. The first one says that the
        trace has begun. Raises KernelError."""
        with self._reading(instance) as reader:
            while True:
                yield reader.take(self._ports_of(instance))
                with suppress(TimeoutError):  # wait_for would swallow a cancellation that comes with a packet
                    async with asyncio.timeout(TICK_SECONDS):
                        await reader.news.wait()

    @contextmanager
    def _reading(self, instance: UUID) -> Iterator[_Reader]:
        reader = _Reader(lambda port: self._datapath.left_out(port.slot))
        readers = self._readers.setdefault(instance, set())
        readers.add(reader)
        try:
            for port in self._ports_of(instance):
                reader.begin(port)
                self._datapath.trace(port, True)
            yield reader
        finally:
            readers.discard(reader)
            if not readers:
                self._end(instance)

    def _end(self, instance: UUID) -> None:
        self._readers.pop(instance, None)
        for port in self._ports_of(instance):
            self._flag(port, False)

    def port_changed(self, port: Port, here: bool) -> None:
        """A port comes, goes, or has another policy."""
        if port.instance in self._readers:
            for reader in self._readers[port.instance]:
                reader.begin(port)
            self._flag(port, here)

    def _flag(self, port: Port, on: bool) -> None:
        try:
            self._datapath.trace(port, on)
        except KernelError as error:
            log.warning("%s: its trace cannot be %s: %s", port.tap, "begun" if on else "ended", error)

    def hear(self) -> None:
        """Takes what the datapath shows to whoever looks on. Called when its descriptor is readable."""
        for packet in self._datapath.traced():
            port = self._port_of(packet.slot, packet.generation)
            readers = self._readers.get(port.instance) if port and port.instance else None
            if port and readers:
                view = _view(packet, port)
                for reader in readers:
                    reader.give(view)


def _view(packet: Traced, port: Port) -> PacketView:
    return PacketView(
        time=time.time() - (time.monotonic_ns() - packet.ns) / 1e9,
        tap=port.tap,
        netns=port.netns,
        to_guest=packet.to_guest,
        verdict=packet.verdict.label,
        refused=packet.verdict.refusal,
        length=packet.length,
        frame=base64.b64encode(packet.frame).decode(),
    )
