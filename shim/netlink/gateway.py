"""The gateway namespace: where stamped packets meet the proxy's listening sockets, and nothing else does.

    host:  <name>0  ══ veth ══  gw0 :gateway namespace <name>
           to_instance            service addresses; routes to all slots, over one neighbour

There is one neighbour for all slots (10,000 would overflow the kernel's neighbour table), and no ARP
or discovery on the link: its host end drops both.
"""

from __future__ import annotations

import contextlib
import errno
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from pyroute2 import AsyncIPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from shim.errors import KernelError
from shim.netlink import inside
from shim.netlink.tc import kernel_errors

GATEWAY_LINK = "gw0"
LINK_NUMBERS, BRANCHES = 1 << 30, 1 << 16
"""Where the numbers of gateway links begin, and how many of them one gateway may have."""

GATEWAY_MAC = "02:00:a9:fe:a9:fe"
"""The same as SERVICE_MAC in rules/bpf/lib/abi.h: what frames for the gateway are addressed to."""

HOST_MAC = "02:00:00:00:00:01"
NEIGHBOUR_V4 = "100.127.255.254"
NEIGHBOUR_V6 = "fe80::1"
BACKLOG = 4096

SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/LINK/rp_filter": 0,
    "net/ipv6/conf/LINK/accept_ra": 0,
    "net/ipv6/conf/LINK/accept_dad": 0,
    "net/ipv6/conf/LINK/addr_gen_mode": 1,
    "net/core/somaxconn": BACKLOG,
    # Connections that a listening socket had not given to anybody when it was closed go to another one of that port.
    "net/ipv4/tcp_migrate_req": 1,
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway is made of: its namespace's name, and what lies in it."""

    name: str
    service_addresses: tuple[str, ...]
    slots_v4: str
    slots_v6: str

    @property
    def link(self) -> str:
        """The host's end of the link."""
        return f"{self.name}0"

    @property
    def base(self) -> int:
        """The number of the host's end; those in other namespaces have the next ones (branches.py). No two are the
        same, and all are far from what the kernel gives out: what is sent to the wrong namespace's end goes nowhere."""
        return LINK_NUMBERS + (zlib.crc32(self.name.encode()) & 0x3FFF) * BRANCHES

    @property
    def path(self) -> Path:
        """The namespace, as `ip netns` has it."""
        return Path("/run/netns") / self.name


async def ensure(route: AsyncIPRoute, gateway: Gateway) -> tuple[int, bool]:
    """Makes what is missing: (the ifindex of the host's end, whether the namespace is a new one). Idempotent."""
    fresh = not is_namespace(gateway.path)
    if fresh:
        # What may be left of a former one cannot be used: its other end is in a namespace without a name.
        await _remove_link(route, gateway)
        gateway.path.unlink(missing_ok=True)
        netns.create(gateway.name)
    ifindex = await _ensure_link(route, gateway)
    async with AsyncIPRoute(fileno=inside.netlink_in(lambda: entered(gateway.path))) as route_inside:
        await _furnish(route_inside, gateway)
    return ifindex, fresh


def is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted there (a crash may leave the bare file)."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


async def _ensure_link(route: AsyncIPRoute, gateway: Gateway) -> int:
    with kernel_errors(f"cannot make the link {gateway.link}"):
        try:
            peer = {"ifname": GATEWAY_LINK, "net_ns_fd": gateway.name, "address": GATEWAY_MAC}
            await route.link("add", ifname=gateway.link, index=gateway.base, kind="veth", address=HOST_MAC, peer=peer)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        ifindex = int((await route.link_lookup(ifname=gateway.link))[0])
        set_sysctl(f"net/ipv6/conf/{gateway.link}/disable_ipv6", 1)
        await route.link("set", index=ifindex, state="up", arp=False)
    return ifindex


async def _furnish(route: AsyncIPRoute, gateway: Gateway) -> None:
    with kernel_errors(f"cannot furnish the namespace {gateway.name}"):
        found = await route.link_lookup(ifname=GATEWAY_LINK)
        if not found:
            raise KernelError(
                f"{gateway.link} is there, but its other end is not in the namespace {gateway.name}",
                "run `metashim teardown`, then start again",
            )
        await route.link("set", index=1, state="up")
        await furnish_link(route, gateway, GATEWAY_LINK, found[0])
        for slots, neighbour in ((gateway.slots_v4, NEIGHBOUR_V4), (gateway.slots_v6, NEIGHBOUR_V6)):
            await route.route("replace", dst=slots, gateway=neighbour, oif=found[0], flags=["onlink"])


async def furnish_link(route: AsyncIPRoute, gateway: Gateway, link: str, ifindex: int) -> None:
    """A link's end inside: it is up, answers to the service's addresses and says nothing of its own."""
    with entered(gateway.path):
        for key, value in SYSCTLS.items():
            set_sysctl(key.replace("LINK", link), value)
    await route.link("set", index=ifindex, state="up", arp=False)
    for address in gateway.service_addresses:
        await _ensure_address(route, ifindex, address)


async def _ensure_address(route: AsyncIPRoute, ifindex: int, text: str) -> None:
    address: IPv4Address | IPv6Address = ip_address(text)
    scope = 253 if address.is_link_local else 0
    await route.addr("replace", index=ifindex, address=text, prefixlen=address.max_prefixlen, scope=scope)


def set_sysctl(key: str, value: int) -> None:
    """Sets a sysctl of the namespace that this thread is in, where the kernel has it."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path("/proc/sys", key).write_text(str(value))


async def remove(route: AsyncIPRoute, gateway: Gateway) -> None:
    """Removes the link and the namespace."""
    await _remove_link(route, gateway)
    if gateway.path.exists():
        with contextlib.suppress(OSError):
            netns.remove(gateway.name)


async def _remove_link(route: AsyncIPRoute, gateway: Gateway) -> None:
    with kernel_errors(f"cannot remove {gateway.link}"):
        for ifindex in await route.link_lookup(ifname=gateway.link):
            await route.link("del", index=ifindex)


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Moves this thread into a namespace and back. No awaiting inside: others would find themselves there."""
    with path.open("rb") as there, inside.entered(there.fileno()):
        yield
