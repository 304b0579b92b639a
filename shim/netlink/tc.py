"""A program on a link's tc ingress: attach, see, detach. Only filters of our own name are ever touched."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from shim.errors import KernelError
from shim.netlink import rtnl

PRIORITY = 7
"""Ahead of what other users of tc commonly take, and not the first place, which some of them insist on."""

HANDLE = 1
INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3
HOLDERS = ("clsact", "ingress")
"""Kinds of queueing disciplines that our filters lie in: another user may have made the older one before us."""
GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""What the kernel answers for a link, a qdisc or a filter that is not there (any more)."""

TRIES = 5

# linux/rtnetlink.h and linux/pkt_cls.h
_TCMSG = struct.Struct("=BxxxiIII")
_IFINDEX = struct.Struct("=4xi")
_KIND, _OPTIONS = 1, 2
_CLASSID, _NAME = 3, 7


@contextmanager
def kernel_errors(doing: str) -> Iterator[None]:
    """Turns pyroute2's errors and the system's into ours."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{doing}: {error}", errno=error.code) from error
    except OSError as error:
        raise KernelError(f"{doing}: {error.strerror or error}", errno=error.errno or 0) from error


@contextmanager
def _unless(*codes: int) -> Iterator[None]:
    """Lets these errors of the kernel's pass."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


class Filters:
    """The filters of one namespace's links. Changes go through pyroute2; what is there is read by rtnl.py, since
    an agent that looks at ten thousand taps would spend seconds on it otherwise."""

    def __init__(self, route: AsyncIPRoute, enter: rtnl.Enter = nullcontext) -> None:
        self._route = route
        self._rtnl = rtnl.Rtnl(enter)

    def close(self) -> None:
        """Lets go of the socket that it opened itself."""
        self._rtnl.close()

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Puts a program on the link's ingress, or in place of the one of ours that is there, in one step."""
        place = {"index": ifindex, "handle": HANDLE, "prio": PRIORITY, "parent": INGRESS}
        filled = place | {"fd": program, "name": name, "classid": classid, "direct_action": True}
        with kernel_errors(f"cannot attach {name} to interface {ifindex}"):
            with _unless(errno.EEXIST):
                await self._route.tc("add", "clsact", ifindex)
            try:
                await self._route.tc("add-filter", "bpf", **filled)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                await self._must_be_ours(ifindex, name)
                await self._route.tc("replace-filter", "bpf", **filled)

    async def _must_be_ours(self, ifindex: int, name: str) -> None:
        if await self.slot_of(ifindex, name) is None:
            what = f"interface {ifindex} has another's filter at priority {PRIORITY}, handle {HANDLE}"
            raise KernelError(what, "give the other one another priority: see `tc filter show dev TAP ingress`")

    async def slot_of(self, ifindex: int, name: str) -> int | None:
        """The class id of our filter on the link's ingress, if it is there."""
        for found in self._filters(ifindex, INGRESS):
            options = rtnl.attributes(found.get(_OPTIONS, b""))
            if rtnl.text(options.get(_NAME, b"")) == name:
                return int(struct.unpack("=I", options.get(_CLASSID, bytes(4)))[0])
        return None

    def _filters(self, ifindex: int, parent: int) -> list[dict[int, bytes]]:
        """The filters of one side of a link; none of a link that is gone."""
        question = _TCMSG.pack(0, ifindex, 0, parent, 0)
        try:
            return [rtnl.attributes(body[_TCMSG.size :]) for body in self._dump(rtnl.GETTFILTER, question)]
        except OSError as error:
            if error.errno in GONE:
                return []
            doing = f"cannot list the filters of interface {ifindex}"
            raise KernelError(f"{doing}: {error.strerror or error}", errno=error.errno or 0) from error

    def _dump(self, kind: int, question: bytes) -> list[bytes]:
        for _ in range(TRIES):
            with suppress(rtnl.InterruptedDumpError):
                return list(self._rtnl.dump(kind, question))
        raise OSError(errno.EBUSY, "the list changed too fast to be read")

    async def slots(self, name: str) -> dict[int, int]:
        """ifindex → class id of our filters of that name, on every link."""
        with kernel_errors("cannot list the queueing disciplines"):
            bodies = self._dump(rtnl.GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
        kinds = [(_IFINDEX.unpack_from(body)[0], rtnl.attributes(body[_TCMSG.size :])) for body in bodies]
        indexes = [ifindex for ifindex, found in kinds if rtnl.text(found.get(_KIND, b"")) in HOLDERS]
        slots = {}
        for ifindex in indexes:
            slot = await self.slot_of(ifindex, name)
            if slot is not None:
                slots[ifindex] = slot
        return slots

    async def detach(self, ifindex: int, name: str) -> None:
        """Takes our filter off the link, and the clsact with it unless somebody else uses it."""
        if await self.slot_of(ifindex, name) is None:
            return
        with kernel_errors(f"cannot detach from interface {ifindex}"), _unless(*GONE):
            await self._route.tc("del-filter", "bpf", ifindex, handle=HANDLE, prio=PRIORITY, parent=INGRESS)
            if not self._in_use(ifindex):
                await self._route.tc("del", "clsact", ifindex)

    def _in_use(self, ifindex: int) -> bool:
        return any(_KIND in found for parent in (INGRESS, EGRESS) for found in self._filters(ifindex, parent))
