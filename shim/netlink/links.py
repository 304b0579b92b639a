"""Which links there are, kept up to date by the kernel's own messages.

A message only says that something changed; the table is what counts. When messages were lost
(ENOBUFS) or the socket broke, everything is read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK, RTMGRP_TC

log = logging.getLogger(__name__)

DUMP_TRIES = 5
AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """One link as far as we care."""

    ifindex: int
    name: str
    alias: str | None


class Links:
    """The table of links of one namespace. `wake` is called after any change of it, and with an ifindex when a
    filter or a queueing discipline of that link was removed by somebody."""

    def __init__(self, wake: Callable[[int | None], None]) -> None:
        self.table: dict[int, Link] = {}
        self.resyncs = 0
        self._wake = wake

    async def run(self, ready: asyncio.Event) -> None:
        """Watches until cancelled. `ready` is set when the table is complete for the first time."""
        while True:
            try:
                async with AsyncIPRoute() as route:
                    await route.bind(groups=RTMGRP_LINK | RTMGRP_TC)
                    found = await dump()
                    self.table.clear()
                    self.table.update(found)
                    self._wake(None)
                    ready.set()
                    await self._follow(route)
            except (OSError, NetlinkError) as error:
                log.warning("watching links failed (%s): reading all of them again", error)
            self.resyncs += 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def _follow(self, route: AsyncIPRoute) -> None:
        while True:
            async for message in route.get():
                self._take(message)

    def _take(self, message: object) -> None:
        event = message.get("event")  # type: ignore[attr-defined]  # pyroute2 has no name for some of tc's
        if event == "RTM_NEWLINK":
            link = _link(message)
            if self.table.get(link.ifindex) != link:
                self.table[link.ifindex] = link
                self._wake(None)
        elif event == "RTM_DELLINK" and not _is_bridge_port_message(message):
            if self.table.pop(message["index"], None):  # type: ignore[index]
                self._wake(None)
        elif event in ("RTM_DELTFILTER", "RTM_DELQDISC"):
            self._wake(message["index"])  # type: ignore[index]


def _is_bridge_port_message(message: object) -> bool:
    """A port that leaves a bridge is announced by a RTM_DELLINK of family AF_BRIDGE: the link lives on."""
    return bool(message["family"] == 7)  # type: ignore[index]


def _link(message: object) -> Link:
    get = message.get_attr  # type: ignore[attr-defined]
    return Link(message["index"], get("IFLA_IFNAME"), get("IFLA_IFALIAS"))  # type: ignore[index]


async def dump() -> dict[int, Link]:
    """Every link of the namespace this process is in; a dump that was interrupted is made again."""
    for _ in range(DUMP_TRIES):
        try:
            async with AsyncIPRoute() as route:
                return {m["index"]: _link(m) async for m in await route.get_links()}
        except NetlinkDumpInterrupted:
            continue
    raise OSError("the list of links changed too fast to be read")
