"""The network namespaces that have a name, as `ip netns` keeps them: each is mounted on a file in /run/netns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from shim.netlink import rtnl
from shim.netlink.nsid import nsid_of

FOLDER = Path("/run/netns")
_OWN = Path("/proc/self/ns/net")
_MOUNTS = Path("/proc/self/mountinfo")


def path_of(name: str) -> Path:
    """Where the namespace of that name is mounted."""
    return FOLDER / name


def names() -> dict[str, int]:
    """Every name but those of the agent's own namespace, and the inode of its namespace, which tells two of one name
    apart."""
    found: dict[str, int] = {}
    own = _OWN.stat().st_ino
    try:
        folder = FOLDER.stat().st_dev
        with os.scandir(FOLDER) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    about = entry.stat(follow_symlinks=False)
                    # On the folder's own device nothing is mounted there, yet or any more.
                    if about.st_dev != folder and about.st_ino != own:
                        found[entry.name] = about.st_ino
    except FileNotFoundError:
        pass
    return found


async def changes() -> AsyncIterator[None]:
    """Yields at first, and then whenever something was mounted or unmounted anywhere: proc_pid_mountinfo(5)."""
    loop = asyncio.get_running_loop()
    with _MOUNTS.open("rb") as mounts, select.epoll() as poll:
        poll.register(mounts.fileno(), select.EPOLLPRI | select.EPOLLERR)
        woken = asyncio.Event()
        loop.add_reader(poll.fileno(), woken.set)
        try:
            while True:
                woken.clear()
                poll.poll(0)
                yield
                await woken.wait()
        finally:
            loop.remove_reader(poll.fileno())


class Peers:
    """Which named namespace the agent's own knows by which number.

    Numbers are given anew once a namespace has gone, so what was found is asked again before it is believed.
    """

    def __init__(self) -> None:
        self._asked = rtnl.Rtnl()
        self._found: dict[int, str] = {}

    def name_of(self, number: int) -> str | None:
        """The namespace of that number; None when it has no name."""
        known = self._found.get(number)
        if known is not None and self._number(known) == number:
            return known
        self._found.pop(number, None)
        there = names()
        seen = set(self._found.values())
        return self._search(number, there.keys() - seen) or self._search(number, there.keys() & seen)

    def _search(self, number: int, among: Iterable[str]) -> str | None:
        for name in among:
            found = self._number(name)
            if found is not None:
                self._found[found] = name
            if found == number:
                return name
        return None

    def _number(self, name: str) -> int | None:
        try:
            fd = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return nsid_of(self._asked, fd)
        except OSError:  # no namespace is mounted there
            return None
        finally:
            os.close(fd)
