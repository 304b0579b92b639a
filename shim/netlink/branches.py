"""Links from other namespaces to the gateway, one each, for the taps that lie there:

    <netns>:  <name>0  ══ veth ══  gw<n> :gateway namespace <name>
              to_instance          service addresses; a route to each slot of that namespace's taps

The other ends have the host's name, and the number `base` + n (gateway.py). All slots are routed to the host's link
gw0, but for those that `lead` was called for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from shim.core.link import OWN_NETNS
from shim.errors import KernelError
from shim.netlink import gateway as gateways
from shim.netlink.gateway import BRANCHES, GATEWAY_MAC, HOST_MAC, NEIGHBOUR_V4, NEIGHBOUR_V6, Gateway
from shim.netlink.inside import Inside, netlink_in
from shim.netlink.nsid import Numbers
from shim.netlink.tc import kernel_errors

GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)


class Branches:
    """All links of one gateway but the host's own. Raises KernelError."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._route: AsyncIPRoute | None = None  # inside the gateway
        self._numbers: dict[str, int] = {OWN_NETNS: 0}
        self._led: dict[int, str] = {}

    def _inside(self) -> AsyncIPRoute:
        if self._route is None:
            self._route = AsyncIPRoute(fileno=netlink_in(lambda: gateways.entered(self._gateway.path)))
        return self._route

    def renew(self) -> None:
        """The gateway is another one: nothing leads to it yet."""
        self.close()
        self._numbers = {OWN_NETNS: 0}
        self._led.clear()

    def close(self) -> None:
        """Lets go of the gateway's namespace."""
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
        self._numbers[inside.netns] = number
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
        await inside.route.link("del", index=found[0])
        return 0

    async def _leads_here(self, inside: Inside, ifindex: int) -> bool:
        asked = Numbers(inside.entered)
        there = os.open(self._gateway.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            links = [link async for link in await inside.route.get_links(ifindex)]
            return bool(links[0].get_attr("IFLA_LINK_NETNSID") == asked.of(there))
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
        self._numbers.pop(netns, None)
        self._led = {slot: other for slot, other in self._led.items() if other != netns}

    async def learn(self) -> None:
        """Which slots an earlier run led where: a link that is none of this run's leads nowhere that is wanted."""
        with kernel_errors("cannot read the gateway's routes"):
            async for route in await self._inside().get_routes(family=2, table=254):
                address = route.get_attr("RTA_DST")
                if address and route["dst_len"] == 32:
                    self._led[_slot(address)] = f"link {route.get_attr('RTA_OIF')}"

    async def lead(self, slot: int, netns: str) -> None:
        """Replies for a slot go to that namespace from now on."""
        if self._led.get(slot, OWN_NETNS) == netns:
            return
        number = self._numbers.get(netns)
        if number is None:
            raise KernelError(f"the namespace {netns} has no link to the gateway", "the agent tries again soon")
        with kernel_errors(f"cannot lead slot {slot} to the namespace {netns or 'of the host'}"):
            await self._lead(slot, number)
        self._led[slot] = netns

    async def _lead(self, slot: int, number: int) -> None:
        route = self._inside()
        oif = (await route.link_lookup(ifname=_name(number)))[0] if number else 0
        for family, neighbour in ((4, NEIGHBOUR_V4), (6, NEIGHBOUR_V6)):
            address = self._gateway.slot_address(slot, family)
            if number:
                await route.route("replace", dst=address, gateway=neighbour, oif=oif, flags=["onlink"])
            else:
                await _unless_gone(route.route("del", dst=address))


async def _unless_gone(change: Awaitable[object]) -> None:
    try:
        await change
    except NetlinkError as error:
        if error.code not in GONE:
            raise


def _name(number: int) -> str:
    return f"gw{number}"


def _slot(address: str) -> int:
    high, mid, low = (int(part) for part in address.split(".")[1:])
    return (high & 0x3F) << 16 | mid << 8 | low
