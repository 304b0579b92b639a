"""A program on a link's tc ingress: attach, see, detach. Only filters of our own name are ever touched."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from shim.errors import KernelError

PRIORITY = 7
"""Ahead of what other users of tc commonly take, and not the first place, which some of them insist on."""

HANDLE = 1
INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3
CLSACT_PARENT = 0xFFFFFFF1
GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""What the kernel answers for a link, a qdisc or a filter that is not there (any more)."""


@contextmanager
def kernel_errors(doing: str) -> Iterator[None]:
    """Turns pyroute2's errors into ours."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{doing}: {error}", errno=error.code) from error


class Filters:
    """The filters of one namespace's links, over one netlink socket."""

    def __init__(self, route: AsyncIPRoute) -> None:
        self._route = route

    async def attach(self, ifindex: int, program: int, name: str, classid: int) -> None:
        """Puts a program on the link's ingress, or in place of the one of ours that is there, in one step."""
        with kernel_errors(f"cannot attach {name} to interface {ifindex}"):
            try:
                await self._route.tc("add", "clsact", ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            await self._route.tc(
                "replace-filter",
                "bpf",
                ifindex,
                handle=HANDLE,
                prio=PRIORITY,
                parent=INGRESS,
                fd=program,
                name=name,
                classid=classid,
                direct_action=True,
            )

    async def slot_of(self, ifindex: int, name: str) -> int | None:
        """The class id of our filter on the link's ingress, if it is there."""
        try:
            async for message in await self._route.get_filters(index=ifindex, parent=INGRESS):
                options = message.get_attr("TCA_OPTIONS")
                if options is not None and options.get_attr("TCA_BPF_NAME") == name:
                    return int(options.get_attr("TCA_BPF_CLASSID") or 0)
        except NetlinkError as error:
            if error.code not in GONE:
                raise KernelError(f"cannot list the filters of interface {ifindex}: {error}", "", error.code) from error
        return None

    async def slots(self, name: str) -> dict[int, int]:
        """ifindex → class id of our filters of that name, on every link."""
        with kernel_errors("cannot list the queueing disciplines"):
            indexes = [
                message["index"]
                async for message in await self._route.get_qdiscs()
                if message.get_attr("TCA_KIND") == "clsact"
            ]
        found = {ifindex: await self.slot_of(ifindex, name) for ifindex in indexes}
        return {ifindex: slot for ifindex, slot in found.items() if slot is not None}

    async def detach(self, ifindex: int, name: str) -> None:
        """Takes our filter off the link, and the clsact with it unless somebody else uses it."""
        if await self.slot_of(ifindex, name) is None:
            return
        try:
            await self._route.tc("del-filter", "bpf", ifindex, handle=HANDLE, prio=PRIORITY, parent=INGRESS)
            if not await self._in_use(ifindex):
                await self._route.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in GONE:
                raise KernelError(f"cannot detach from interface {ifindex}: {error}", "", error.code) from error

    async def _in_use(self, ifindex: int) -> bool:
        for parent in (INGRESS, EGRESS):
            async for message in await self._route.get_filters(index=ifindex, parent=parent):
                if message.get_attr("TCA_KIND"):
                    return True
        return False
