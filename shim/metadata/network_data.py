"""network_data.json: a guest's static addresses as OpenStack describes them. PURE.

Shape: links (interfaces, and VLANs upon them), networks (an address each), services (name servers); as
Nova's `netutils.get_network_metadata` writes and cloud-init's `convert_net_json` reads them. Two things are
cloud-init's own: it takes a link's `name` for the guest's interface name, so there is none here; and it
copies `dns_search` from a network, which OpenStack's schema does not know. A network with search domains must
then carry `dns_nameservers` too, or cloud-init's netplan output has the domains without the servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from shim.metadata.network import Network, link_ids
from shim.metadata.rules import Interface

Json = dict[str, Any]

_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def network_data(networks: Sequence[Network]) -> Json:
    """The whole file, for at least one network."""
    ids = link_ids(networks)
    parents = {one.link_mac: name for name, one in zip(ids, networks, strict=True) if one.vlan is None}
    links: list[Json] = []
    for name, one in zip(ids, networks, strict=True):
        if one.link_mac not in parents:
            # A VLAN needs the interface that it is upon, though nothing is configured there.
            parents[one.link_mac] = f"parent@{name}"  # an operator's id has no @
            links.append(_physical(parents[one.link_mac], one.link_mac, None))
        links.append(_link(name, one, parents[one.link_mac]))
    return {
        "links": links,
        "networks": [entry for pair in zip(ids, networks, strict=True) for entry in _networks(*pair)],
        "services": _services([server for one in networks for server in one.dns]),
    }


def _link(name: str, network: Network, parent: str) -> Json:
    if network.vlan is None:
        return _physical(name, network.link_mac, network.mtu)
    link = {
        "id": name,
        "type": "vlan",
        "vif_id": name,
        "vlan_link": parent,
        "vlan_id": network.vlan,
        "vlan_mac_address": network.link_mac,
    }
    return link | ({"mtu": network.mtu} if network.mtu else {})


def _physical(name: str, mac: str, mtu: int | None) -> Json:
    link: Json = {"id": name, "type": "phy", "vif_id": name, "ethernet_mac_address": mac}
    return link | ({"mtu": mtu} if mtu else {})


def _networks(link: str, network: Network) -> list[Json]:
    """One entry an address; routes go with the first of their IP version, so that none is there twice."""
    entries = []
    for version in (4, 6):
        for number, one in enumerate(network.interfaces(version)):
            entry = _network(f"{link}-ipv{version}-{number}", link, one)
            entry["routes"] = _routes(network, version) if number == 0 else []
            entry["services"] = _services(network.dns)
            entries.append(entry)
    if entries and network.dns_search:
        entries[0]["dns_nameservers"] = list(network.dns)
        entries[0]["dns_search"] = list(network.dns_search)
    return entries


def _network(name: str, link: str, one: Interface) -> Json:
    return {
        "id": name,
        "network_id": name,
        "link": link,
        "type": f"ipv{one.version}",
        "ip_address": str(one.ip),
        "netmask": str(one.netmask),
    }


def _routes(network: Network, version: int) -> list[Json]:
    gateway = network.gateway4 if version == 4 else network.gateway6
    routes = [(_DEFAULT[version], gateway)] if gateway else []
    routes += [(route.to, route.via) for route in network.routes]
    subnets = [(ip_network(to), via) for to, via in routes]
    return [
        {"network": str(to.network_address), "netmask": str(to.netmask), "gateway": via}
        for to, via in subnets
        if to.version == version
    ]


def _services(servers: Sequence[str]) -> list[Json]:
    return [{"type": "dns", "address": server} for server in dict.fromkeys(servers)]
