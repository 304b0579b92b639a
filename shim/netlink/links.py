"""Which links there are in one network namespace, kept up to date by the kernel's own messages.

A message only says that something changed; the table is what counts. When messages were lost
(ENOBUFS) or the socket broke, everything is read again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import nullcontext

from shim.core.link import OWN_NETNS, Link, Place
from shim.netlink import rtnl

log = logging.getLogger(__name__)

DUMP_TRIES = 3
AGAIN_SECONDS = 1.0

# linux/rtnetlink.h, linux/if_link.h
_GROUPS = 0x1 | 0x8  # RTMGRP_LINK, RTMGRP_TC
_IFINFO = struct.Struct("=BxHiII")
_TCM_IFINDEX = struct.Struct("=4xi")
_NAME, _ALIAS, _EXT_MASK, _PEER_NETNS = 3, 20, 29, 37
_SKIP_STATS = 8
_AF_BRIDGE = 7
_IFF_UP = 1
_RECEIVE_BYTES = 1 << 16


ALL = 0
"""In place of an ifindex: messages were lost, so anything may have happened to any link."""


class Links:
    """Keeps the links of one namespace in `table`, which may hold others' too. `wake(place, undone)` is called after a
    change of that link. `undone`: it went (another may have its number and its name before anybody looks), or a filter
    or a queueing discipline was removed from it. With ALL, any of that may have happened to every link there.

    `enter` leads into the namespace; without it, it is the one that the calls are made in.
    """

    def __init__(
        self,
        table: dict[Place, Link],
        wake: Callable[[Place, bool], None],
        netns: str = OWN_NETNS,
        enter: rtnl.Enter = nullcontext,
    ) -> None:
        self.resyncs = 0
        self._table = table
        self._wake = wake
        self._netns = netns
        self._enter = enter

    async def run(self, ready: asyncio.Event) -> None:
        """Watches until cancelled. `ready` is set when the table is complete for the first time."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                with self._subscribed() as events:
                    self._replace()
                    if self.resyncs:
                        self._wake(Place(self._netns, ALL), True)
                    ready.set()
                    while True:
                        self.take(await loop.sock_recv(events, _RECEIVE_BYTES))
            except OSError as error:
                log.warning("watching links%s failed (%s): reading all of them again", self._where(), error)
            self.resyncs += 1
            await asyncio.sleep(AGAIN_SECONDS)

    def _where(self) -> str:
        return f" of {self._netns}" if self._netns else ""

    def _subscribed(self) -> socket.socket:
        return rtnl.subscribe(_GROUPS, enter=self._enter)

    def _replace(self) -> None:
        """All of the namespace's links, as they are."""
        found = dump(self._netns, self._enter)
        self.forget()
        self._table.update(found)

    def forget(self) -> list[Place]:
        """Takes the namespace's links out of the table; which these were."""
        gone = [place for place in self._table if place.netns == self._netns]
        for place in gone:
            del self._table[place]
        return gone

    def take(self, data: bytes) -> None:
        """Learns from what the kernel sent."""
        for kind, _, _, body in rtnl.messages(data):
            if kind in (rtnl.DELTFILTER, rtnl.DELQDISC):
                self._wake(Place(self._netns, _TCM_IFINDEX.unpack_from(body)[0]), True)
            # A bridge tells of its ports in messages of its own family, which lack the alias; and of one that left by
            # a DELLINK, though the link lives on.
            elif kind in (rtnl.NEWLINK, rtnl.DELLINK) and body[0] != _AF_BRIDGE:
                self._take_link(_link(body, self._netns), here=kind == rtnl.NEWLINK)

    def _take_link(self, link: Link, *, here: bool) -> None:
        before = self._table.get(link.place)
        if here and before != link:
            self._table[link.place] = link
            self._wake(link.place, False)
        elif not here and before is not None:
            del self._table[link.place]
            self._wake(link.place, True)


def _link(body: bytes, netns: str) -> Link:
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(body)
    found = rtnl.attributes(body[_IFINFO.size :])
    alias, peer = found.get(_ALIAS), found.get(_PEER_NETNS)
    return Link(
        ifindex,
        rtnl.text(found.get(_NAME, b"")),
        rtnl.text(alias) if alias is not None else None,
        bool(flags & _IFF_UP),
        netns,
        struct.unpack("=i", peer)[0] if peer is not None else None,
    )


def dump(netns: str = OWN_NETNS, enter: rtnl.Enter = nullcontext) -> dict[Place, Link]:
    """Every link of a namespace, which is called `netns`. A dump that was interrupted is made again.

    Where a thousand taps are while others come and go, none is ever whole. Then what all of them together showed is
    taken: for who subscribed to changes before, what went meanwhile is corrected by the messages that wait.
    """
    asked = rtnl.Rtnl(enter)
    question = _IFINFO.pack(0, 0, 0, 0, 0) + rtnl.attribute(_EXT_MASK, struct.pack("=I", _SKIP_STATS))
    shown: dict[Place, Link] = {}
    try:
        for _ in range(DUMP_TRIES):
            seen: dict[Place, Link] = {}
            try:
                for body in asked.dump(rtnl.GETLINK, question):
                    link = _link(body, netns)
                    seen[link.place] = link
                return seen
            except rtnl.InterruptedDumpError:
                shown |= seen
    finally:
        asked.close()
    return shown
