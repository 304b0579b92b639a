"""A program on a link's tc ingress: attach, see, detach. Only filters of our own name are ever touched."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyroute2.netlink.exceptions import NetlinkError

from shim.errors import KernelError
from shim.netlink import rtnl

PRIORITY = 7
"""Ahead of what other users of tc commonly take, and not the first place, which some of them insist on."""

HANDLE = 1
INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3
CLSACT_PARENT = 0xFFFFFFF1
CLSACT_HANDLE = 0xFFFF0000
HOLDERS = ("clsact", "ingress")
"""Kinds of queueing disciplines that our filters lie in: another user may have made the older one before us."""
GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""What the kernel answers for a link, a qdisc or a filter that is not there (any more)."""

TRIES = 5

# linux/rtnetlink.h and linux/pkt_cls.h
_TCMSG = struct.Struct("=BxxxiIII")
_IFINDEX = struct.Struct("=4xi")
_KIND, _OPTIONS = 1, 2
_CLASSID, _FD, _NAME, _FLAGS = 3, 6, 7, 8
_DIRECT_ACTION = 1
_ALL_PROTOCOLS = 0x0300 if struct.pack("=H", 1) == b"\1\0" else 0x0003  # htons(ETH_P_ALL)


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
    return _TCMSG.pack(0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0) + rtnl.attribute(_KIND, b"clsact\0")


def _place(ifindex: int) -> bytes:
    """The place of our filter on a link."""
    return _TCMSG.pack(0, ifindex, HANDLE, INGRESS, PRIORITY << 16 | _ALL_PROTOCOLS) + rtnl.attribute(_KIND, b"bpf\0")


def _u32(kind: int, value: int) -> bytes:
    return rtnl.attribute(kind, struct.pack("=I", value))


class Filters:
    """The filters of the links of one namespace: that of the thread which first asks."""

    def __init__(self) -> None:
        self._rtnl = rtnl.Rtnl()

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Puts a program on the link's ingress, or in place of the one of ours that is there, in one step."""
        options = (
            _u32(_CLASSID, classid)
            + _u32(_FD, program)
            + rtnl.attribute(_NAME, name.encode() + b"\0")
            + _u32(_FLAGS, _DIRECT_ACTION)
        )
        with kernel_errors(f"cannot attach {name} to interface {ifindex}"):
            with suppress(FileExistsError):
                self._rtnl.request(rtnl.NEWQDISC, rtnl.CREATE | rtnl.EXCLUSIVE, _clsact(ifindex))
            filled = _place(ifindex) + rtnl.attribute(_OPTIONS, options)
            try:
                self._rtnl.request(rtnl.NEWTFILTER, rtnl.CREATE | rtnl.EXCLUSIVE, filled)
            except FileExistsError:
                await self._must_be_ours(ifindex, name)
                self._rtnl.request(rtnl.NEWTFILTER, rtnl.CREATE, filled)

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
        slots = {ifindex: await self.slot_of(ifindex, name) for ifindex in indexes}
        return {ifindex: slot for ifindex, slot in slots.items() if slot is not None}

    async def detach(self, ifindex: int, name: str) -> None:
        """Takes our filter off the link, and the clsact with it unless somebody else uses it."""
        if await self.slot_of(ifindex, name) is None:
            return
        try:
            self._rtnl.request(rtnl.DELTFILTER, 0, _place(ifindex))
            if not self._in_use(ifindex):
                self._rtnl.request(rtnl.DELQDISC, 0, _clsact(ifindex))
        except OSError as error:
            if error.errno not in GONE:
                doing = f"cannot detach from interface {ifindex}"
                raise KernelError(f"{doing}: {error.strerror or error}", errno=error.errno or 0) from error

    def _in_use(self, ifindex: int) -> bool:
        return any(_KIND in found for parent in (INGRESS, EGRESS) for found in self._filters(ifindex, parent))
