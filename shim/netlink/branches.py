"""Links from other namespaces to the gateway, one each, for the taps that lie there:

    <netns>:  <name>0  ══ veth ══  gw<n> :gateway namespace <name>
              to_instance          service addresses; a route to each slot of that namespace's taps

The other ends have the host's name, and the number `base` + n (gateway.py). All slots are routed to the host's link
gw0, but for those that `lead` was called for.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_network

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from shim.core.link import OWN_NETNS
from shim.errors import KernelError
from shim.netlink import gateway as gateways
from shim.netlink import rtnl
from shim.netlink.gateway import BRANCHES, GATEWAY_MAC, HOST_MAC, NEIGHBOUR_V4, NEIGHBOUR_V6, Gateway
from shim.netlink.inside import Inside, netlink_in
from shim.netlink.nsid import nsid_of
from shim.netlink.tc import kernel_errors

GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)

# linux/rtnetlink.h
_RTMSG = struct.Struct("=BBBBBBBBI")
_DST, _OIF, _GATEWAY = 1, 4, 5
_MAIN, _STATIC, _UNICAST, _NOWHERE, _ONLINK = 254, 4, 1, 255, 4
_IPV4, _IPV6 = 2, 10


class Branches:
    """All links of one gateway but the host's own. Raises KernelError."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._route: AsyncIPRoute | None = None  # inside the gateway
        self._rtnl = rtnl.Rtnl(self._entered)
        self._ends: dict[str, int] = {}  # numbers of the ends inside, by what is at the other
        self._led: dict[int, str] = {}

    def _entered(self) -> AbstractContextManager[None]:
        return gateways.entered(self._gateway.path)

    def _inside(self) -> AsyncIPRoute:
        if self._route is None:
            self._route = AsyncIPRoute(fileno=netlink_in(self._entered))
        return self._route

    def renew(self) -> None:
        """The gateway is another one: nothing leads to it yet."""
        self.close()
        self._ends.clear()
        self._led.clear()

    def close(self) -> None:
        """Lets go of the gateway's namespace."""
        self._rtnl.close()
        if self._route is not None:
            self._route.close()
            self._route = None

    async def ensure(self, inside: Inside) -> int:
        """Makes the link of a namespace; the number of its end there. Idempotent."""
        with kernel_errors(f"cannot link the namespace {inside.netns} to the gateway"):
            number = await self._standing(inside) or await self._make(inside)
            ifindex = self._gateway.base + number
            with inside.entered():
                gateways.set_sysctl(f"net/ipv6/conf/{self._gateway.link}/disable_ipv6", 1)
            await inside.route.link("set", index=ifindex, state="up", arp=False)
            found = await self._inside().link_lookup(ifname=_name(number))
            await gateways.furnish_link(self._inside(), self._gateway, _name(number), found[0])
        self._ends[inside.netns] = found[0]
        return ifindex

    async def _standing(self, inside: Inside) -> int:
        """The number of a link that is there and leads here; 0 where there is none. Another's, or one that leads to a
        former gateway, is removed."""
        found = await inside.route.link_lookup(ifname=self._gateway.link)
        if not found:
            return 0
        number = found[0] - self._gateway.base
        if 0 < number < BRANCHES and await self._leads_here(inside, found[0]):
            return int(number)
        await _unless_gone(inside.route.link("del", index=found[0]))  # as the former gateway goes, so does it
        return 0

    async def _leads_here(self, inside: Inside, ifindex: int) -> bool:
        asked = rtnl.Rtnl(inside.entered)
        there = os.open(self._gateway.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            links = [link async for link in await inside.route.get_links(ifindex)]
            number = nsid_of(asked, there)
            return number is not None and bool(links[0].get_attr("IFLA_LINK_NETNSID") == number)
        except NetlinkError as error:
            if error.code not in GONE:
                raise
            return False
        finally:
            os.close(there)
            asked.close()

    async def _make(self, inside: Inside) -> int:
        self._forget(inside.netns)
        taken = {link.get_attr("IFLA_IFNAME") async for link in await self._inside().get_links()}
        number = next(n for n in range(1, BRANCHES) if _name(n) not in taken)
        peer = {"ifname": _name(number), "net_ns_fd": self._gateway.name, "address": GATEWAY_MAC}
        index = self._gateway.base + number
        await inside.route.link(
            "add", ifname=self._gateway.link, index=index, kind="veth", address=HOST_MAC, peer=peer
        )
        return number

    async def remove(self, inside: Inside) -> None:
        """Removes the link of a namespace; with it go the routes by it."""
        self._forget(inside.netns)
        with kernel_errors(f"cannot remove the link of the namespace {inside.netns}"):
            for ifindex in await inside.route.link_lookup(ifname=self._gateway.link):
                await _unless_gone(inside.route.link("del", index=ifindex))

    def _forget(self, netns: str) -> None:
        """Its link has gone, and with it every route by it."""
        self._ends.pop(netns, None)
        self._led = {slot: other for slot, other in self._led.items() if other != netns}

    async def learn(self) -> None:
        """Which slots an earlier run led where: a link that is none of this run's leads nowhere that is wanted."""
        with kernel_errors("cannot read the gateway's routes"):
            for table, length, route in self._routes():
                if table == _MAIN and length == 32 and _DST in route:
                    self._led[_slot(route[_DST])] = f"link {struct.unpack('=I', route[_OIF])[0]}"

    def _routes(self) -> list[tuple[int, int, dict[int, bytes]]]:
        """(table, prefix length, attributes) of all routes of IPv4."""
        bodies = self._rtnl.listed(rtnl.GETROUTE, _RTMSG.pack(_IPV4, 0, 0, 0, 0, 0, 0, 0, 0))
        return [(body[4], body[1], rtnl.attributes(body[_RTMSG.size :])) for body in bodies]

    async def lead(self, slot: int, netns: str) -> None:
        """Replies for a slot go to that namespace from now on."""
        if self._led.get(slot, OWN_NETNS) == netns:
            return
        end = self._ends.get(netns)
        if netns != OWN_NETNS and end is None:
            raise KernelError(f"the namespace {netns} has no link to the gateway", "the agent tries again soon")
        with kernel_errors(f"cannot lead slot {slot} to the namespace {netns or 'of the host'}"):
            self._lead(slot, end)
        if netns == OWN_NETNS:
            del self._led[slot]
        else:
            self._led[slot] = netns

    def _lead(self, slot: int, end: int | None) -> None:
        """By the link whose end inside is `end`; without one, by the route that all slots have."""
        kind, flags = (rtnl.DELROUTE, 0) if end is None else (rtnl.NEWROUTE, rtnl.CREATE | rtnl.REPLACE)
        for code in self._rtnl.change(*((kind, flags, body) for body in self._slot_routes(slot, end))):
            rtnl.check(code, *(GONE if end is None else ()))

    def _slot_routes(self, slot: int, end: int | None) -> Iterator[bytes]:
        """The routes to a slot, in both families: as they are made, or, without `end`, as they are removed."""
        v4, v6 = self._gateway.slots_v4, self._gateway.slots_v6
        for family, slots, neighbour in ((_IPV4, v4, NEIGHBOUR_V4), (_IPV6, v6, NEIGHBOUR_V6)):
            address = ip_network(slots)[slot]
            how = (_STATIC, 0, _UNICAST, _ONLINK) if end is not None else (0, _NOWHERE, 0, 0)
            head = _RTMSG.pack(family, address.max_prefixlen, 0, 0, _MAIN, *how)
            body = head + rtnl.attribute(_DST, address.packed)
            if end is not None:
                body += rtnl.attribute(_GATEWAY, ip_address(neighbour).packed)
                body += rtnl.attribute(_OIF, struct.pack("=I", end))
            yield body


async def _unless_gone(change: Awaitable[object]) -> None:
    try:
        await change
    except NetlinkError as error:
        if error.code not in GONE:
            raise


def _name(number: int) -> str:
    return f"gw{number}"


def _slot(address: bytes) -> int:
    return int.from_bytes(address, "big") & 0x3FFFFF
