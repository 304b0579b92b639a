"""A guest with a kernel of its own: a namespace behind a veth pair."""

from __future__ import annotations

import errno
import socket

from pyroute2.netlink.exceptions import NetlinkError

from tests.lab.namespace import Namespace, wait_until
from tests.lab.wire import Wire

ETH0 = "eth0"
RT_SCOPE_LINK = 253
IFA_F_TENTATIVE = 0x40
ON_LINK = ("169.254.0.0/16", "fd00:ec2::254/128")


class VethGuest(Namespace):
    """A guest: `eth0` in its own namespace, whose other end is the port `tap` in `host`.

    No DHCP and no default route: the guest has the addresses given (`v4`, `v6` as "10.0.0.5/24"), a
    link-local one made from its MAC unless `link_local` is false, and on-link routes for the service
    addresses and for `extra_routes`. With neither address and `link_local=False` the guest's kernel says
    nothing of its own, which suits frames made by hand (`guest.raw()`).
    """

    def __init__(
        self,
        name: str,
        host: Namespace,
        tap: str,
        *,
        mac: str,
        v4: str | None = None,
        v6: str | None = None,
        link_local: bool = True,
        bridge: str | None = "br0",
        mtu: int = 1500,
        extra_routes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name)
        self.host, self.tap, self.mac = host, tap, mac
        self.tap_ifindex = 0
        try:
            ipv6 = link_local or v6 is not None
            self._plug(bridge, mtu, ipv6=ipv6, link_local=link_local)
            self._address(v4, v6)
            expected = int(link_local) + int(v6 is not None)
            wait_until(lambda: self._usable(expected), f"the IPv6 addresses of {name}")
            for route in (*ON_LINK, *extra_routes):
                if ipv6 if ":" in route else v4 is not None:
                    self.ip.route("replace", dst=route, oif=self.ifindex, scope=RT_SCOPE_LINK)
        except BaseException:
            self.close()
            raise

    def _plug(self, bridge: str | None, mtu: int, *, ipv6: bool, link_local: bool) -> None:
        """The pair, named in both namespaces as it is made, so that no name is ever in use elsewhere."""
        peer = {"ifname": ETH0, "net_ns_fd": str(self.path), "address": self.mac, "mtu": mtu}
        self.host.ip.link("add", ifname=self.tap, kind="veth", mtu=mtu, peer=peer)
        self.tap_ifindex = self.host.index(self.tap)
        self.ifindex = self.index(ETH0)
        self.sysctl(f"net.ipv6.conf.{ETH0}.disable_ipv6", int(not ipv6))
        if not link_local:
            self.sysctl(f"net.ipv6.conf.{ETH0}.addr_gen_mode", 1)
        self.host.set_up(self.tap_ifindex, None if bridge is None else self.host.index(bridge))
        self.set_up(self.ifindex)
        self.host.await_up(self.tap_ifindex)
        self.await_up(self.ifindex)

    def _usable(self, count: int) -> bool:
        """Whether it has so many IPv6 addresses, none tentative (for a while they are, even without DAD)."""
        found = self.ip.get_addr(family=socket.AF_INET6, index=self.ifindex)
        return len(found) >= count and not any(a.get_attr("IFA_FLAGS") & IFA_F_TENTATIVE for a in found)

    def _address(self, *addresses: str | None) -> None:
        for address in filter(None, addresses):
            plain, _, length = address.partition("/")
            self.ip.addr("add", index=self.ifindex, address=plain, prefixlen=int(length))

    def raw(self) -> Wire:
        """The guest's side of its wire: send frames made by hand, and see what the host sends it."""
        return Wire(self, ETH0, incoming=True)

    def close(self) -> None:
        """Remove the guest, its port in the host with it."""
        if self.path.exists():
            if self.tap_ifindex:
                self._unplug()
            super().close()

    def _unplug(self) -> None:
        """By index, not by name: the name may be another's, if making this one failed on it."""
        try:
            self.host.ip.link("del", index=self.tap_ifindex)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
