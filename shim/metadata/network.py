"""The networks of a document: what an operator writes about a guest's static addresses. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_interface
from typing import Annotated

from msgspec import Meta, Struct

from shim.metadata import rules
from shim.metadata.rules import Address, Interface

Mtu = Annotated[int, Meta(ge=68, le=65_535)]
VlanId = Annotated[int, Meta(ge=1, le=4_094)]

MTU_V6 = 1_280
"""The least that a link needs to carry IPv6 (RFC 8200 section 5)."""


class Route(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A route of the guest's: `to` a subnet (`198.51.100.0/24`), `via` a neighbour's address."""

    to: str
    via: str


class Network(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One interface of the guest's, or one VLAN upon it, with its static addresses.

    `mac` names the interface. `id` names it in network_data.json; `nic0`, `nic1`, ... without it.
    `vlan` is an 802.1Q id that the guest itself tags with. `addresses` carry their prefix length.
    """

    mac: str
    id: str = ""
    mtu: Mtu | None = None
    vlan: VlanId | None = None
    addresses: tuple[str, ...] = ()
    gateway4: str | None = None
    gateway6: str | None = None
    routes: tuple[Route, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()

    @property
    def link_mac(self) -> str:
        """The MAC as guests compare it: in lower case."""
        return self.mac.lower()

    def interfaces(self, version: int) -> list[Interface]:
        """The addresses of one IP version, in the document's order."""
        parsed = map(_parsed, self.addresses)
        return [one for one in parsed if one.version == version]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Interface:
    """An address that was checked before: a face asks for each several times an answer."""
    return ip_interface(text)


def link_ids(networks: Sequence[Network]) -> list[str]:
    """Each network's id, the default ones filled in."""
    return [network.id or f"nic{number}" for number, network in enumerate(networks)]


def check(networks: Sequence[Network]) -> None:
    """Refuse what contradicts itself. Raises InputError."""
    for number, network in enumerate(networks):
        _check_one(f"networks[{number}]", network)
    rules.unique("networks.id", link_ids(networks))
    rules.unique(
        "networks.mac",
        (f"{one.link_mac} (vlan {one.vlan})" if one.vlan else one.link_mac for one in networks),
    )


def _check_one(where: str, network: Network) -> None:
    rules.mac(f"{where}.mac", network.mac)
    if network.id:
        rules.link_id(f"{where}.id", network.id)
    interfaces = [rules.interface(f"{where}.addresses[{n}]", one) for n, one in enumerate(network.addresses)]
    rules.unique(f"{where}.addresses", (one.ip for one in interfaces))
    _check_mtu(f"{where}.mtu", network.mtu, interfaces)
    _check_gateway(f"{where}.gateway4", network.gateway4, 4, interfaces)
    _check_gateway(f"{where}.gateway6", network.gateway6, 6, interfaces)
    for n, route in enumerate(network.routes):
        _check_route(f"{where}.routes[{n}]", route, interfaces)
    for n, server in enumerate(network.dns):
        rules.address(f"{where}.dns[{n}]", server)
    for n, domain in enumerate(network.dns_search):
        rules.host_name(f"{where}.dns_search[{n}]", domain)


def _check_mtu(where: str, mtu: int | None, interfaces: Sequence[Interface]) -> None:
    if mtu is not None and mtu < MTU_V6 and any(one.version == 6 for one in interfaces):
        rules.refuse(where, f"{mtu} is too small for the IPv6 addresses", f"IPv6 needs {MTU_V6} or more")


def _check_gateway(where: str, text: str | None, version: int, interfaces: Sequence[Interface]) -> None:
    if text is None:
        return
    gateway = rules.address(where, text)
    if gateway.version != version:
        rules.refuse(where, f"{text} is IPv{gateway.version}", f"put it into gateway{gateway.version}")
    _check_neighbour(where, gateway, interfaces)


def _check_route(where: str, route: Route, interfaces: Sequence[Interface]) -> None:
    subnet = rules.subnet(f"{where}.to", route.to)
    via = rules.address(f"{where}.via", route.via)
    if subnet.version != via.version:
        what = f"leads to IPv{subnet.version} via IPv{via.version}"
        rules.refuse(where, what, "use one IP version for both")
    if subnet.prefixlen == 0:
        rules.refuse(f"{where}.to", "is the default route", f"write it as gateway{subnet.version}")
    _check_neighbour(f"{where}.via", via, interfaces)


def _check_neighbour(where: str, neighbour: Address, interfaces: Sequence[Interface]) -> None:
    """A next hop must be reached without a hop: in a subnet of the network's, or link-local."""
    mine = [one for one in interfaces if one.version == neighbour.version]
    if any(one.ip == neighbour for one in mine):
        rules.refuse(where, f"{neighbour} is the guest's own address", "write the router's")
    if not mine:
        rules.refuse(
            where,
            f"the network has no IPv{neighbour.version} address",
            "add one to addresses, or leave this out",
        )
    if neighbour.version == 6 and neighbour.is_link_local:
        return
    if not any(neighbour in one.network for one in mine):
        rules.refuse(
            where,
            f"{neighbour} is in none of the network's subnets",
            "give the address the prefix length of its subnet, as in 192.0.2.10/24, or correct the router",
        )
