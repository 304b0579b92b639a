"""Another network namespace: what the agent has there, with sockets of its own. See Inside in shim/datapath/base.py.

A namespace lives as long as anybody holds it, and these sockets do: `close` lets it go.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import AsyncIPRoute, netns

from shim.netlink import rtnl
from shim.netlink.nflog import NfLog
from shim.netlink.nftables import Nftables
from shim.netlink.tc import Filters


@contextlib.contextmanager
def entered(fd: int) -> Iterator[None]:
    """Moves this thread into the namespace behind a descriptor, and back. No awaiting inside: others would find
    themselves there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.setns(fd)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def netlink_in(enter: rtnl.Enter) -> int:
    """A netlink socket inside a namespace.

    pyroute2's `netns=` has a forked child open it and ends that child by SIGTERM. The child still has our
    event loop's wakeup descriptor, so now and then its SIGTERM arrived here as ours, and the agent stopped.
    """
    with enter():
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE).detach()


class Inside:
    """The namespace `netns`, mounted at `path`. To be made and closed within the running loop. Raises OSError."""

    def __init__(self, netns: str, path: Path) -> None:
        self.netns = netns
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._tables: list[Nftables] = []
        try:
            self.route = AsyncIPRoute(fileno=netlink_in(self.entered))
        except OSError:
            os.close(self._fd)
            raise
        self.filters = Filters(self.entered)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Moves this thread there and back. No awaiting inside."""
        return entered(self._fd)

    def table(self, name: str, family: str = "netdev") -> Nftables:
        """A table of nftables there."""
        made = Nftables(name, family, self.entered)
        self._tables.append(made)
        return made

    def logs(self, group: int) -> NfLog:
        """A group of nflog there; whoever asks for it closes it."""
        return NfLog(group, enter=self.entered)

    def link_name(self, ifindex: int) -> str | None:
        """The name of a link there; None when it has gone."""
        with self.entered():
            try:
                return socket.if_indextoname(ifindex)
            except OSError:
                return None

    def link_index(self, name: str) -> int:
        """The number of a link there; 0 where there is none."""
        with self.entered():
            try:
                return socket.if_nametoindex(name)
            except OSError:
                return 0

    def close(self) -> None:
        """Lets go of it."""
        for table in self._tables:
            table.close()
        self.filters.close()
        self.route.close()
        os.close(self._fd)
