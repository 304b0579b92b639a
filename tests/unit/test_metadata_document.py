"""Documents: what is taken, and that what is not taken is refused with the field, the rule and the remedy."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InputError
from shim.metadata.document import DOCUMENT_BYTES, Document, decode, restore

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d5mT1bG1lY3JldGtleWJ5dGVzMTIzNDU2Nzg5MDEy me@here"
NIC = {"mac": "fa:16:3e:00:00:01", "addresses": ["192.0.2.10/24", "2001:db8::5/64"]}


def made(**fields: Any) -> Document:
    return decode(json.dumps(fields).encode())


def refusal(raw: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(raw)
    assert caught.value.hint
    return caught.value


def nic(**fields: Any) -> dict[str, Any]:
    return {"networks": [NIC | fields]}


def test_everything_at_once() -> None:
    document = made(
        project_id="p1", name="web-1", hostname="web-1", fqdn="web-1.example.org", instance_type="m1.small",
        image_id="ami-1", availability_zone="nova", region="here", launch_index=3, meta={"role": "web"},
        tags={"Name": "a b", "k+-=.,_:@": ""}, tags_in_metadata=True, public_keys={"my key": KEY + "\n"},
        user_data="#!/bin/sh\n", vendor_data=[1, {"a": None}], vendor_data2="text",
        networks=[NIC | {
            "id": "lan", "mtu": 1280, "vlan": 4094, "gateway4": "192.0.2.1", "gateway6": "fe80::1",
            "routes": [{"to": "198.51.100.0/24", "via": "192.0.2.254"}], "dns": ["2001:db8::53"],
            "dns_search": ["example.org"],
        }],
    )  # fmt: skip
    assert document.networks[0].routes[0].via == "192.0.2.254"
    assert document.vendor_data == [1, {"a": None}]


def test_an_empty_one_is_the_default() -> None:
    assert decode(b"{}") == Document()


@pytest.mark.parametrize(
    ("fields", "host", "full"),
    [
        ({}, None, None),
        ({"name": "web-1"}, "web-1", "web-1"),
        ({"name": "My web server"}, None, None),
        ({"name": "x", "hostname": "web-1"}, "web-1", "web-1"),
        ({"fqdn": "web-1.example.org"}, "web-1", "web-1.example.org"),
        ({"hostname": "web-1", "fqdn": "web-1.example.org"}, "web-1", "web-1.example.org"),
    ],
)
def test_host_names(fields: dict[str, str], host: str | None, full: str | None) -> None:
    document = made(**fields)
    assert (document.host, document.full_host) == (host, full)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"name": "\xff"}', "not JSON"),
        (b'{"name": "\\ud800"}', "not JSON"),
        (b"[]", "not an object"),
        (b'"x"', "not an object"),
        (b"null", "not an object"),
        (b'{"vendor_data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"name": "' + b"x" * DOCUMENT_BYTES + b'"}', "are the most"),
        (b'{"vendor_data": NaN}', "not JSON"),
    ],
)
def test_not_a_document(raw: bytes, words: str) -> None:
    assert words in str(refusal(raw))


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"nmae": "x"}, "nmae: there is no such field", "did you mean name?"),
        ({"userdata": "x"}, "userdata:", "did you mean user_data?"),
        ({"zzzz": 1}, "zzzz:", "known fields: project_id, name,"),
        (nic(gatway4="192.0.2.1"), "networks[0].gatway4:", "did you mean gateway4?"),
        (nic(routes=[{"too": "::/0"}]), "networks[0].routes[0].too:", "did you mean to?"),
    ],
)
def test_an_unknown_field_names_the_nearest(fields: dict[str, Any], message: str, hint: str) -> None:
    error = refusal(json.dumps(fields).encode())
    assert message in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": 1}, "name: expected str | null, got int"),
        ({"launch_index": -1}, "launch_index: expected int >= 0"),
        ({"launch_index": True}, "launch_index: expected int"),
        ({"launch_index": 2**31}, "launch_index:"),
        ({"meta": {"a": 1}}, "meta[...]: expected str"),
        ({"meta": []}, "meta: expected object"),
        ({"tags_in_metadata": "yes"}, "tags_in_metadata: expected bool"),
        ({"networks": {}}, "networks: expected array"),
        ({"networks": ["x"]}, "networks[0]: expected object"),
        ({"networks": [{}]}, "networks[0]: object missing required field mac"),
        (nic(mtu="1500"), "networks[0].mtu: expected int"),
        (nic(mtu=67), "networks[0].mtu: expected int >= 68"),
        (nic(vlan=0), "networks[0].vlan: expected int >= 1"),
        (nic(vlan=4095), "networks[0].vlan: expected int <= 4094"),
        (nic(routes=[{"to": "10.0.0.0/8"}]), "networks[0].routes[0]: object missing required field via"),
    ],
)
def test_types_and_ranges(fields: dict[str, Any], message: str) -> None:
    assert str(refusal(json.dumps(fields).encode())).startswith(message)


PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("fields", "where", "word"),
    [
        ({"name": ""}, "name", "empty"),
        ({"name": "a\nb"}, "name", "line end"),
        ({"project_id": "a\0"}, "project_id", "control"),
        ({"image_id": " x"}, "image_id", "space"),
        ({"hostname": "web_1"}, "hostname", "not a host name"),
        ({"hostname": "-web"}, "hostname", "not a host name"),
        ({"hostname": ""}, "hostname", "not a host name"),
        ({"fqdn": "a..b"}, "fqdn", "not a host name"),
        ({"fqdn": "a" * 64 + ".b"}, "fqdn", "not a host name"),
        ({"tags": {"a b": ""}}, "tags", "not allowed"),
        ({"tags": {"a/b": ""}}, "tags", "not allowed"),
        ({"tags": {"": ""}}, "tags", "not allowed"),
        ({"tags": {"..": ""}}, "tags", "not allowed"),
        ({"tags": {"_index": ""}}, "tags", "not allowed"),
        ({"tags": {"é": ""}}, "tags", "not allowed"),
        ({"tags": {"a" * 129: ""}}, "tags", "not allowed"),
        ({"tags": {"a": "b" * 257}}, "tags", "257"),
        ({"tags": {"a": "b\nc"}}, "tags", "control"),
        ({"tags": {"0=a": "b"}}, "tags", "a number and ="),
        ({"public_keys": {"a": "ssh-rsa"}}, "public_keys.a", "not a public key"),
        ({"public_keys": {"a": "ssh-rsa AAAA"}}, "public_keys.a", "not a public key"),
        ({"public_keys": {"a": KEY.replace("ed25519", "rsa")}}, "public_keys.a", "not a public key"),
        ({"public_keys": {"a": KEY + "\n" + KEY}}, "public_keys.a", "not a public key"),
        ({"public_keys": {"a": PRIVATE}}, "public_keys.a", "private key"),
        ({"public_keys": {"a/b": KEY}}, "public_keys", "slash"),
        ({"public_keys": {"a\n": KEY}}, "public_keys", "line end"),
        ({"public_keys": {"": KEY}}, "public_keys", "empty"),
        ({"user_data": "a", "user_data_base64": "YQ=="}, "user_data_base64", "beside user_data"),
        ({"user_data_base64": "not base64!"}, "user_data_base64", "not base64"),
        ({"user_data_base64": "YQ"}, "user_data_base64", "not base64"),
        ({"user_data_base64": "é"}, "user_data_base64", "not base64"),
        (nic(mac="fa-16-3e-00-00-01"), "networks[0].mac", "not a MAC"),
        (nic(mac="fa:16:3e:00:00"), "networks[0].mac", "not a MAC"),
        (nic(mac="01:00:5e:00:00:01"), "networks[0].mac", "multicast"),
        (nic(id="a b"), "networks[0].id", "not a link's id"),
        (nic(id="parent@nic0"), "networks[0].id", "not a link's id"),
        (nic(mtu=1279), "networks[0].mtu", "too small for the IPv6"),
        (nic(addresses=["192.0.2.10"]), "networks[0].addresses[0]", "prefix length"),
        (nic(addresses=["192.0.2.10/255.255.255.0"]), "networks[0].addresses[0]", "prefix length"),
        (nic(addresses=["192.0.2.10/33"]), "networks[0].addresses[0]", "prefix length"),
        (nic(addresses=["192.0.2.300/24"]), "networks[0].addresses[0]", "prefix length"),
        (nic(addresses=["192.0.2.0/24"]), "networks[0].addresses[0]", "names the subnet"),
        (nic(addresses=["192.0.2.255/24"]), "networks[0].addresses[0]", "broadcast"),
        (nic(addresses=["2001:db8::/64"]), "networks[0].addresses[0]", "names the subnet"),
        (nic(addresses=["224.0.0.5/24"]), "networks[0].addresses[0]", "no unicast"),
        (nic(addresses=["127.0.0.1/8"]), "networks[0].addresses[0]", "no unicast"),
        (nic(addresses=["::/0"]), "networks[0].addresses[0]", "no unicast"),
        (nic(addresses=["255.255.255.255/32"]), "networks[0].addresses[0]", "no unicast"),
        (nic(addresses=["fe80::1%eth0/64"]), "networks[0].addresses[0]", "zone"),
        (nic(addresses=["::ffff:192.0.2.1/120"]), "networks[0].addresses[0]", "IPv4 address inside"),
        (nic(addresses=["192.0.2.10/24", "192.0.2.10/25"]), "networks[0].addresses", "twice"),
        (nic(gateway4="192.0.3.1"), "networks[0].gateway4", "none of the network's subnets"),
        (nic(gateway4="192.0.2.10"), "networks[0].gateway4", "own address"),
        (nic(gateway4="2001:db8::1"), "networks[0].gateway4", "is IPv6"),
        (nic(gateway4="192.0.2.1/24"), "networks[0].gateway4", "not an IP address"),
        (nic(gateway6="2001:db9::1"), "networks[0].gateway6", "none of the network's subnets"),
        (nic(gateway6="192.0.2.1"), "networks[0].gateway6", "is IPv4"),
        (nic(addresses=[], gateway4="192.0.2.1"), "networks[0].gateway4", "no IPv4 address"),
        (nic(addresses=[], gateway6="fe80::1"), "networks[0].gateway6", "no IPv6 address"),
        (nic(routes=[{"to": "10.0.0.1/8", "via": "192.0.2.1"}]), "networks[0].routes[0].to", "not a subnet"),
        (nic(routes=[{"to": "10.0.0.0", "via": "192.0.2.1"}]), "networks[0].routes[0].to", "not a subnet"),
        (nic(routes=[{"to": "10.0.0.0/8", "via": "10.0.0.1"}]), "networks[0].routes[0].via", "none of"),
        (nic(routes=[{"to": "10.0.0.0/8", "via": "fe80::1"}]), "networks[0].routes[0]", "IPv4 via IPv6"),
        (nic(routes=[{"to": "0.0.0.0/0", "via": "192.0.2.1"}]), "networks[0].routes[0].to", "default route"),
        (nic(dns=["ns.example.org"]), "networks[0].dns[0]", "not an IP address"),
        (nic(dns_search=["exa mple"]), "networks[0].dns_search[0]", "not a host name"),
        ({"networks": [NIC, NIC]}, "networks.mac", "twice"),
        ({"networks": [NIC, NIC | {"mac": "FA:16:3E:00:00:01"}]}, "networks.mac", "twice"),
        ({"networks": [NIC | {"vlan": 5}, NIC | {"vlan": 5}]}, "networks.mac", "(vlan 5)"),
        ({"networks": [NIC | {"id": "nic1"}, NIC | {"vlan": 5}]}, "networks.id", "twice"),
    ],
)
def test_values(fields: dict[str, Any], where: str, word: str) -> None:
    error = refusal(json.dumps(fields).encode())
    assert str(error).startswith(f"{where}: ")
    assert word in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        nic(gateway6="fe80::1"),
        nic(addresses=["192.0.2.10/32"]),
        nic(addresses=["192.0.2.0/31"], gateway4="192.0.2.1"),
        nic(addresses=["2001:db8::/127"]),
        nic(addresses=["192.0.2.10/24"], mtu=68),
        nic(addresses=["169.254.1.1/16"]),
        {"networks": [NIC, NIC | {"vlan": 5}, NIC | {"vlan": 6}]},
        {"tags": {"a" * 128: "b" * 256}},
        {"tags": {"a=0": "b", "10": "c"}},
        {"public_keys": {"ключ": KEY}},
        {"user_data": ""},
    ],
)
def test_what_is_unusual_but_right(fields: dict[str, Any]) -> None:
    made(**fields)


def test_secrets_are_not_in_messages() -> None:
    for fields in ({"public_keys": {"a": PRIVATE}}, {"user_data_base64": "c2VjcmV0!"}):
        error = refusal(json.dumps(fields).encode())
        assert "AAAA" not in f"{error} {error.hint}"
        assert "c2Vj" not in f"{error} {error.hint}"


class TestUserData:
    def test_absent_empty_and_text(self) -> None:
        assert made().user_bytes is None
        assert made(user_data="").user_bytes == b""
        assert made(user_data="é\n").user_bytes == "é\n".encode()

    @given(raw=st.binary(max_size=300))
    def test_any_bytes(self, raw: bytes) -> None:
        assert made(user_data_base64=base64.b64encode(raw).decode()).user_bytes == raw

    def test_the_lines_that_base64_writes(self) -> None:
        raw = gzip.compress(bytes(range(256)) * 8)
        assert made(user_data_base64=base64.encodebytes(raw).decode()).user_bytes == raw

    # 65,535 is no multiple of four: 65,532 bytes of base64 are the most, which 49,149 bytes make.
    @pytest.mark.parametrize("field", ["user_data", "user_data_base64"])
    def test_novas_limit(self, field: str) -> None:
        def value(size: int) -> str:
            return "x" * size if field == "user_data" else base64.b64encode(b"x" * size).decode()

        assert len(made(**{field: value(49_149)}).user_bytes or b"") == 49_149
        error = refusal(json.dumps({field: value(49_150)}).encode())
        assert "65536" in str(error)
        assert "65535 are the most" in str(error)
        assert "gzip" in error.hint


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
anything = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=9), scalars, max_size=3)
fields = st.sampled_from([*Document.__struct_fields__, "mac", "unknown"])


@given(st.dictionaries(fields, anything | st.lists(anything, max_size=2), max_size=4))
def test_any_json_is_taken_or_refused_with_a_hint(plain: dict[str, Any]) -> None:
    raw = json.dumps(plain).encode()
    try:
        document = decode(raw)
    except InputError as error:
        assert error.hint
    else:
        assert decode(msgspec.json.encode(document)) == document
        assert restore(raw) == document


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_or_refused(raw: bytes) -> None:
    try:
        decode(raw)
    except InputError as error:
        assert error.hint


def test_what_others_know_completes_a_document_and_never_speaks_against_it() -> None:
    assert Document().completed("web-1", "m1.small") == Document(name="web-1", instance_type="m1.small")
    own = Document(name="own", instance_type="c5")
    assert own.completed("web-1", "m1.small") is own
    assert Document(name="own").completed("web-1", "m1.small") == Document(name="own", instance_type="m1.small")
    assert Document().completed("", "") == Document()
    assert Document().completed("two\nlines", "m1\0small") == Document(), "nothing that no document could hold"
