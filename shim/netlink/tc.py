"""A program on a link's tc ingress: attach, see, detach. Only filters of our own name are ever touched."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Filter:
    """One of our filters as the kernel shows it; `classid` carries the slot."""

    ifindex: int
    name: str
    classid: int


@contextmanager
def kernel_errors(doing: str) -> Iterator[None]:
    """Turns pyroute2's errors into ours."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{doing}: {error}", errno=error.code) from error


async def attach(route: AsyncIPRoute, ifindex: int, program: int, name: str, classid: int) -> None:
    """Puts a program on the link's ingress, or in place of the one of ours that is there, in one step."""
    with kernel_errors(f"cannot attach {name} to interface {ifindex}"):
        try:
            await route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        await route.tc(
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


async def attached(route: AsyncIPRoute, ifindex: int, name: str) -> Filter | None:
    """Our filter on the link's ingress, if it is there."""
    try:
        async for message in await route.get_filters(index=ifindex, parent=INGRESS):
            options = message.get_attr("TCA_OPTIONS")
            if options is not None and options.get_attr("TCA_BPF_NAME") == name:
                return Filter(ifindex, name, options.get_attr("TCA_BPF_CLASSID") or 0)
    except NetlinkError as error:
        if error.code not in GONE:
            raise KernelError(f"cannot list the filters of interface {ifindex}: {error}", errno=error.code) from error
    return None


async def all_attached(route: AsyncIPRoute, name: str) -> list[Filter]:
    """Our filters of that name on every link of the namespace."""
    with kernel_errors("cannot list the queueing disciplines"):
        indexes = [
            message["index"]
            async for message in await route.get_qdiscs()
            if message.get_attr("TCA_KIND") == "clsact"
        ]
    found = [await attached(route, ifindex, name) for ifindex in indexes]
    return [filter for filter in found if filter is not None]


async def detach(route: AsyncIPRoute, ifindex: int, name: str) -> None:
    """Takes our filter off the link, and the clsact with it unless somebody else uses it."""
    if await attached(route, ifindex, name) is None:
        return
    try:
        await route.tc("del-filter", "bpf", ifindex, handle=HANDLE, prio=PRIORITY, parent=INGRESS)
        if not await _in_use(route, ifindex):
            await route.tc("del", "clsact", ifindex)
    except NetlinkError as error:
        if error.code not in GONE:
            raise KernelError(f"cannot detach from interface {ifindex}: {error}", errno=error.code) from error


async def _in_use(route: AsyncIPRoute, ifindex: int) -> bool:
    for parent in (INGRESS, EGRESS):
        async for message in await route.get_filters(index=ifindex, parent=parent):
            if message.get_attr("TCA_KIND"):
                return True
    return False
