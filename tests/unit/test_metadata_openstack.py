"""The OpenStack face: each file in each version, and network_data.json as cloud-init reads it.

The shapes asserted here were run through cloud-init 22.4.2's own convert_net_json and its netplan, eni and
networkd renderers: links need no name, VLANs a parent link, routes a netmask each.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from shim.core.exchange import Request, Response
from shim.metadata.document import Document, decode
from shim.metadata.faces import respond
from shim.metadata.view import View

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d5mT1bG1lY3JldGtleWJ5dGVzMTIzNDU2Nzg5MDEy"
VERSIONS = [
    "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22",
    "2018-08-27", "2020-10-14", "2025-04-04", "latest",
]  # fmt: skip
SINCE = {
    "meta_data.json": "2012-08-10",
    "user_data": "2012-08-10",
    "password": "2013-04-04",
    "vendor_data.json": "2013-10-17",
    "network_data.json": "2015-10-15",
    "vendor_data2.json": "2016-10-06",
}
MAC = "fa:16:3e:00:00:01"


def made(**fields: Any) -> Document:
    return decode(json.dumps(fields).encode())


FULL = made(user_data="x", networks=[{"mac": MAC, "addresses": ["192.0.2.10/24"]}])


def ask(path: str, document: Document) -> Response:
    return respond(View(A, document, now=0.0), Request(b"GET", f"/openstack{path}".encode())).response


def read(path: str, document: Document) -> Any:
    response = ask(path, document)
    assert response.status == 200
    assert dict(response.headers)[b"content-type"] == b"application/json"
    return json.loads(response.body)


def network_data(*networks: dict[str, Any]) -> Any:
    return read("/latest/network_data.json", made(networks=networks))


def test_versions() -> None:
    assert ask("", Document()).body.decode().split("\n") == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_a_version(version: str) -> None:
    present = [name for name, since in SINCE.items() if version >= since]
    assert ask(f"/{version}/", FULL).body.decode().split("\n") == sorted(present)
    for name in SINCE:
        assert ask(f"/{version}/{name}", FULL).status == (200 if name in present else 404)


@pytest.mark.parametrize("name", ["user_data", "network_data.json"])
def test_what_is_absent_is_neither_there_nor_listed(name: str) -> None:
    assert ask(f"/latest/{name}", Document()).status == 404
    assert name not in ask("/latest", Document()).body.decode()


def test_an_empty_password() -> None:
    response = ask("/latest/password", Document())
    assert (response.status, response.body) == (200, b"")


class TestMetaData:
    def test_of_an_instance_without_a_document(self) -> None:
        assert read("/2012-08-10/meta_data.json", Document()) == {"uuid": str(A), "launch_index": 0}

    def test_in_full(self) -> None:
        document = made(
            project_id="p1", name="My web", fqdn="web-1.example.org", availability_zone="nova",
            launch_index=2, meta={"role": "web"}, public_keys={"mine": KEY + "\n"},
        )  # fmt: skip
        assert read("/latest/meta_data.json", document) == {
            "uuid": str(A),
            "name": "My web",
            "hostname": "web-1.example.org",
            "availability_zone": "nova",
            "launch_index": 2,
            "meta": {"role": "web"},
            "project_id": "p1",
            "public_keys": {"mine": KEY},
            "keys": [{"name": "mine", "type": "ssh", "data": KEY}],
            "devices": [],
        }

    @pytest.mark.parametrize(("field", "since"), [("project_id", "2015-10-15"), ("devices", "2016-06-30")])
    @pytest.mark.parametrize("version", VERSIONS)
    def test_fields_by_version(self, version: str, field: str, since: str) -> None:
        found = read(f"/{version}/meta_data.json", made(project_id="p1"))
        assert (field in found) is (version >= since)


@pytest.mark.parametrize("name", ["vendor_data", "vendor_data2"])
@pytest.mark.parametrize("value", [{"cloud-init": "#cloud-config\n"}, [1, None], "text", 0, {"é": []}])
def test_vendor_data_is_any_json(name: str, value: Any) -> None:
    assert read(f"/latest/{name}.json", made(**{name: value})) == value
    assert read(f"/latest/{name}.json", Document()) == {}


class TestNetworkData:
    def test_one_interface(self) -> None:
        found = network_data({
            "mac": MAC.upper(), "mtu": 1450,
            "addresses": ["192.0.2.10/24", "2001:db8::5/64", "192.0.2.11/25"],
            "gateway4": "192.0.2.1", "gateway6": "fe80::1", "dns": ["192.0.2.53", "192.0.2.53"],
            "routes": [
                {"to": "198.51.100.0/24", "via": "192.0.2.9"},
                {"to": "2001:db8:1::/48", "via": "fe80::2"},
            ],
        })  # fmt: skip
        dns = [{"type": "dns", "address": "192.0.2.53"}]
        assert found == {
            "links": [
                {"id": "nic0", "type": "phy", "vif_id": "nic0", "ethernet_mac_address": MAC, "mtu": 1450},
            ],
            "networks": [
                {
                    "id": "nic0-ipv4-0", "network_id": "nic0-ipv4-0", "link": "nic0", "type": "ipv4",
                    "ip_address": "192.0.2.10", "netmask": "255.255.255.0", "services": dns,
                    "routes": [
                        {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.0.2.1"},
                        {"network": "198.51.100.0", "netmask": "255.255.255.0", "gateway": "192.0.2.9"},
                    ],
                },
                {
                    "id": "nic0-ipv4-1", "network_id": "nic0-ipv4-1", "link": "nic0", "type": "ipv4",
                    "ip_address": "192.0.2.11", "netmask": "255.255.255.128", "services": dns, "routes": [],
                },
                {
                    "id": "nic0-ipv6-0", "network_id": "nic0-ipv6-0", "link": "nic0", "type": "ipv6",
                    "ip_address": "2001:db8::5", "netmask": "ffff:ffff:ffff:ffff::", "services": dns,
                    "routes": [
                        {"network": "::", "netmask": "::", "gateway": "fe80::1"},
                        {"network": "2001:db8:1::", "netmask": "ffff:ffff:ffff::", "gateway": "fe80::2"},
                    ],
                },
            ],
            "services": dns,
        }  # fmt: skip

    def test_a_vlan_is_upon_the_interface_with_its_mac(self) -> None:
        vlan = {"mac": MAC.upper(), "vlan": 7, "id": "seven", "mtu": 1400, "addresses": ["192.0.2.10/24"]}
        found = network_data(vlan, {"mac": MAC, "id": "lan"})
        assert found["links"] == [
            {
                "id": "seven", "type": "vlan", "vif_id": "seven", "vlan_link": "lan", "vlan_id": 7,
                "vlan_mac_address": MAC, "mtu": 1400,
            },
            {"id": "lan", "type": "phy", "vif_id": "lan", "ethernet_mac_address": MAC},
        ]  # fmt: skip
        assert [entry["link"] for entry in found["networks"]] == ["seven"]

    def test_vlans_without_their_interface_get_one(self) -> None:
        found = network_data({"mac": MAC, "vlan": 7}, {"mac": MAC, "vlan": 8})
        parent = {"id": "parent@nic0", "type": "phy", "vif_id": "parent@nic0", "ethernet_mac_address": MAC}
        assert found["links"][0] == parent
        assert [link["vlan_link"] for link in found["links"][1:]] == ["parent@nic0"] * 2

    def test_search_domains_come_with_their_servers_once(self) -> None:
        nic = {"mac": MAC, "addresses": ["192.0.2.10/24", "2001:db8::5/64"], "dns_search": ["example.org"]}
        first, second = network_data(nic | {"dns": ["192.0.2.53"]})["networks"]
        assert (first["dns_search"], first["dns_nameservers"]) == (["example.org"], ["192.0.2.53"])
        assert not {"dns_search", "dns_nameservers"} & set(second)

    def test_servers_of_all_networks_are_services_once(self) -> None:
        other = {"mac": "fa:16:3e:00:00:02", "dns": ["2001:db8::53", "192.0.2.53"]}
        found = network_data({"mac": MAC, "dns": ["192.0.2.53"]}, other)
        assert [service["address"] for service in found["services"]] == ["192.0.2.53", "2001:db8::53"]
