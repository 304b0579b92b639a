"""Which links there are, kept up to date by the kernel's own messages.

A message only says that something changed; the table is what counts. When messages were lost
(ENOBUFS) or the socket broke, everything is read again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass

from shim.netlink import rtnl

log = logging.getLogger(__name__)

DUMP_TRIES = 5
AGAIN_SECONDS = 1.0

# linux/rtnetlink.h, linux/if_link.h
_GROUPS = 0x1 | 0x8  # RTMGRP_LINK, RTMGRP_TC
_IFINFO = struct.Struct("=BxHiII")
_TCM_IFINDEX = struct.Struct("=4xi")
_NAME, _ALIAS, _EXT_MASK = 3, 20, 29
_SKIP_STATS = 8
_AF_BRIDGE = 7
_IFF_UP = 1
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Link:
    """One link as far as we care."""

    ifindex: int
    name: str
    alias: str | None
    up: bool = True


ALL = 0
"""In place of an ifindex: messages were lost, so anything may have happened to any link."""


class Links:
    """The table of links of one namespace. `wake(ifindex, undone)` is called after a change of that link. `undone`: it
    went (another may have its number and its name before anybody looks), or a filter or a queueing discipline was
    removed from it. With ALL, any of that may have happened to every link."""

    def __init__(self, wake: Callable[[int, bool], None]) -> None:
        self.table: dict[int, Link] = {}
        self.resyncs = 0
        self._wake = wake

    async def run(self, ready: asyncio.Event) -> None:
        """Watches until cancelled. `ready` is set when the table is complete for the first time."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                with rtnl.subscribe(_GROUPS) as events:
                    found = dump()
                    self.table.clear()
                    self.table.update(found)
                    if self.resyncs:
                        self._wake(ALL, True)
                    ready.set()
                    while True:
                        self.take(await loop.sock_recv(events, _RECEIVE_BYTES))
            except OSError as error:
                log.warning("watching links failed (%s): reading all of them again", error)
            self.resyncs += 1
            await asyncio.sleep(AGAIN_SECONDS)

    def take(self, data: bytes) -> None:
        """Learns from what the kernel sent."""
        for kind, _, _, body in rtnl.messages(data):
            if kind in (rtnl.DELTFILTER, rtnl.DELQDISC):
                self._wake(_TCM_IFINDEX.unpack_from(body)[0], True)
            # A bridge tells of its ports in messages of its own family, which lack the alias; and of one that left by
            # a DELLINK, though the link lives on.
            elif kind in (rtnl.NEWLINK, rtnl.DELLINK) and body[0] != _AF_BRIDGE:
                self._take_link(_link(body), here=kind == rtnl.NEWLINK)

    def _take_link(self, link: Link, *, here: bool) -> None:
        before = self.table.get(link.ifindex)
        if here and before != link:
            self.table[link.ifindex] = link
            self._wake(link.ifindex, False)
        elif not here and before is not None:
            del self.table[link.ifindex]
            self._wake(link.ifindex, True)


def _link(body: bytes) -> Link:
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(body)
    found = rtnl.attributes(body[_IFINFO.size :])
    alias = found.get(_ALIAS)
    name, up = rtnl.text(found.get(_NAME, b"")), bool(flags & _IFF_UP)
    return Link(ifindex, name, rtnl.text(alias) if alias is not None else None, up)


def dump() -> dict[int, Link]:
    """Every link of the namespace this process is in; a dump that was interrupted is made again."""
    asked = rtnl.Rtnl()
    question = _IFINFO.pack(0, 0, 0, 0, 0) + rtnl.attribute(_EXT_MASK, struct.pack("=I", _SKIP_STATS))
    try:
        for _ in range(DUMP_TRIES):
            try:
                links = map(_link, asked.dump(rtnl.GETLINK, question))
                return {link.ifindex: link for link in links}
            except rtnl.InterruptedDumpError:
                continue
    finally:
        asked.close()
    raise OSError("the list of links changed too fast to be read")
