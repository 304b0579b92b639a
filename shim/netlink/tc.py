"""A program on a link's tc ingress: attach, see, detach. Only filters of our own name are ever touched."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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

# linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h
_TCMSG = struct.Struct("=BxxxiIII")
_IFINDEX = struct.Struct("=4xi")
_KIND, _OPTIONS = 1, 2
_CLASSID, _FD, _NAME, _FLAGS = 3, 6, 7, 8
_DIRECT_ACTION = 1
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL = 3
_NEW = rtnl.CREATE | rtnl.EXCLUSIVE


@contextmanager
def kernel_errors(doing: str) -> Iterator[None]:
    """Turns pyroute2's errors and the system's into ours."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{doing}: {error}", errno=error.code) from error
    except OSError as error:
        raise KernelError(f"{doing}: {error.strerror or error}", errno=error.errno or 0) from error


def _clsact(ifindex: int) -> bytes:
    """The queueing discipline that filters of both directions lie in."""
    return _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + rtnl.attribute(_KIND, b"clsact\0")


def _filter(ifindex: int) -> bytes:
    """Our filter on the link's ingress."""
    info = PRIORITY << 16 | socket.htons(_ETH_P_ALL)
    return _TCMSG.pack(0, ifindex, HANDLE, INGRESS, info) + rtnl.attribute(_KIND, b"bpf\0")


def _program(fd: int, name: str, classid: int) -> bytes:
    """What our filter runs."""
    inside = [rtnl.attribute(kind, struct.pack("=I", value)) for kind, value in (
        (_FD, fd), (_CLASSID, classid), (_FLAGS, _DIRECT_ACTION),
    )]  # fmt: skip
    return rtnl.attribute(_OPTIONS, b"".join(inside) + rtnl.attribute(_NAME, name.encode() + b"\0"))


class Filters:
    """The filters of the links of the network namespace that `enter` leads to."""

    def __init__(self, enter: rtnl.Enter = nullcontext) -> None:
        self._rtnl = rtnl.Rtnl(enter)

    def close(self) -> None:
        """Lets go of the socket."""
        self._rtnl.close()

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Puts a program on the link's ingress, or in place of the one of ours that is there, in one step."""
        filled = _filter(ifindex) + _program(program, name, classid)
        with kernel_errors(f"cannot attach {name} to interface {ifindex}"):
            holder, added = self._rtnl.change(
                (rtnl.NEWQDISC, _NEW, _clsact(ifindex)), (rtnl.NEWTFILTER, _NEW, filled)
            )
            rtnl.check(holder, errno.EEXIST)
            if added == errno.EEXIST:
                await self._must_be_ours(ifindex, name)
                (added,) = self._rtnl.change((rtnl.NEWTFILTER, rtnl.CREATE | rtnl.REPLACE, filled))
            rtnl.check(added)

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
            return [rtnl.attributes(body[_TCMSG.size :]) for body in self._rtnl.listed(rtnl.GETTFILTER, question)]
        except OSError as error:
            if error.errno in GONE:
                return []
            doing = f"cannot list the filters of interface {ifindex}"
            raise KernelError(f"{doing}: {error.strerror or error}", errno=error.errno or 0) from error

    async def slots(self, name: str) -> dict[int, int]:
        """ifindex → class id of our filters of that name, on every link."""
        with kernel_errors("cannot list the queueing disciplines"):
            bodies = self._rtnl.listed(rtnl.GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
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
        with kernel_errors(f"cannot detach from interface {ifindex}"):
            (code,) = self._rtnl.change((rtnl.DELTFILTER, 0, _filter(ifindex)))
            if not code and not self._in_use(ifindex):
                (code,) = self._rtnl.change((rtnl.DELQDISC, 0, _clsact(ifindex)))
            rtnl.check(code, *GONE)

    def _in_use(self, ifindex: int) -> bool:
        return any(_KIND in found for parent in (INGRESS, EGRESS) for found in self._filters(ifindex, parent))
