"""What a guest gets: the grammar of paths and listings, and the EC2 face as its clients read it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.core.closure import parse_prefix
from shim.core.exchange import Request, Response
from shim.core.kv import etag
from shim.errors import InputError
from shim.metadata import ec2
from shim.metadata.document import Document, decode
from shim.metadata.faces import respond, split
from shim.metadata.tree import Directory, text
from shim.metadata.view import View

A = UUID("6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60")
KEYS = {
    f"key {n}": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0d5mT1bG1lY3JldGtleWJ5dGVzMTIzNDU2Nzg5MDEy {n}"
    for n in range(11)
}
RICH: dict[str, Any] = {
    "project_id": "p1", "name": "web-1", "fqdn": "web-1.example.org", "instance_type": "m1.small",
    "image_id": "ami-1", "availability_zone": "nova", "region": "here", "launch_index": 3,
    "tags": {"Name": "a b", "a=b@c": "d", "10": "x"}, "tags_in_metadata": True,
    "public_keys": {name: f"{key}\n" for name, key in KEYS.items()},
    "user_data": "#!/bin/sh\n",
    "networks": [
        {"mac": "FA:16:3E:00:00:01", "addresses": ["2001:db8::5/64", "192.0.2.10/24", "192.0.2.11/24"]},
        {"mac": "fa:16:3e:00:00:01", "vlan": 5, "addresses": ["203.0.113.2/29"]},
        {"mac": "fa:16:3e:00:00:02"},
    ],
}  # fmt: skip


def made(**fields: Any) -> Document:
    return decode(json.dumps(fields).encode())


def ask(path: str | bytes, document: Document | None = None, method: bytes = b"GET") -> Response:
    raw = path.encode() if isinstance(path, str) else path
    return respond(View(A, document or Document(), now=0.0), Request(method, raw)).response


def body(path: str, document: Document | None = None) -> str:
    response = ask(path, document)
    assert response.status == 200, path
    return response.body.decode()


def lines(path: str, document: Document | None = None) -> list[str]:
    return body(path, document).split("\n")


def kind(response: Response) -> bytes:
    return dict(response.headers)[b"content-type"]


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "segments"),
        [
            (b"/", ()),
            (b"/a", ("a",)),
            (b"/a/", ("a",)),
            (b"/a/b", ("a", "b")),
            (b"//", ("",)),
            (b"/a//", ("a", "")),
            (b"//a", ("", "a")),
            (b"/a%20%c3%A9", ("a é",)),
            (b"/%2525", ("%25",)),
            (b"/a%2fb", ("a/b",)),
        ],
    )
    def test_split(self, path: bytes, segments: tuple[str, ...]) -> None:
        assert split(path) == segments

    @pytest.mark.parametrize(
        "path", ["/%", "/%4", "/%zz", "/%00", "/a%0a", "/%7f", "/%ff", "/%c3", "", "latest"]
    )
    def test_bad_paths(self, path: str) -> None:
        response = ask(path)
        assert (response.status, kind(response), response.body) == (400, b"text/plain", b"bad path\n")

    @pytest.mark.parametrize(
        "path",
        [
            "//", "//latest", "/latest//meta-data", "/latest/meta-data//", "/latest/./meta-data",
            "/latest/..", "/latest/%2e%2e/latest", "/latest%2fmeta-data", "/Latest",
            "/latest/meta-data/instance-id/more",
            "/latest/meta-data/nothing", "/latest/user-data", "/latest/meta-data/public-keys", "/nothing",
            "/latest/api/token", "/latest/meta-data/tags", "/openstack/content/0000",
            "/openstack/latest/user_data",
            "/openstack//", "/openstack/2014-01-01", "/openstack/latest/nothing", "/openstackx",
        ],
    )  # fmt: skip
    def test_not_found(self, path: str) -> None:
        response = ask(path)
        assert (response.status, kind(response), response.body) == (404, b"text/plain", b"not found\n")

    @given(st.binary(max_size=40))
    def test_any_path_gets_an_answer(self, path: bytes) -> None:
        assert ask(b"/" + path).status in (200, 400, 404)

    @pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"get"])
    @pytest.mark.parametrize("path", ["/latest/api/token", "/openstack/latest/password", "/nothing"])
    def test_other_methods(self, method: bytes, path: str) -> None:
        response = ask(path, method=method)
        assert response.status == 405
        assert dict(response.headers)[b"allow"] == b"GET, HEAD"

    @pytest.mark.parametrize("path", ["/", "/latest/meta-data/instance-id", "/openstack", "/nothing"])
    def test_head_is_answered_as_get(self, path: str) -> None:
        assert ask(path, method=b"HEAD") == ask(path)


class TestTree:
    def test_a_listing_sorts_numbers_by_value_and_marks_directories(self) -> None:
        tree = Directory({"b": text(""), "10": text(""), "9": text(""), "a": Directory()})
        assert tree.listing() == b"a/\nb\n9\n10"

    def test_nothing_is_planted_under_a_leaf(self) -> None:
        tree = Directory({"a": text("x")})
        with pytest.raises(ValueError, match="leaf"):
            tree.plant("a/b", text("y"))


def crawled(read: Callable[[str], bytes], base: str) -> dict[str, Any]:
    """The tree below `base` as cloud-init's MetadataMaterializer takes it: every listed name must resolve."""
    found: dict[str, Any] = {}
    for field in read(base).decode().splitlines():
        name = field.strip()
        index, equals, rest = name.partition("=")
        if name.endswith("/"):
            found[name[:-1]] = crawled(read, f"{base}{quote(name[:-1], safe='/:')}/")
        elif equals and index.lstrip("+-").isdigit():
            found[rest] = read(f"{base}{int(index)}/openssh-key").decode()
        else:
            found[name] = read(f"{base}{quote(name, safe='/:')}").decode()
    return found


# The characters that matter to cloud-init, those that a URL needs escaped, and any others.
NAMES = st.text(alphabet="a0=+-._:@ ,/%\n", min_size=1, max_size=5) | st.text(min_size=1, max_size=4)


class TestCrawl:
    def crawl(self, document: Document, base: str) -> dict[str, Any]:
        def read(path: str) -> bytes:
            response = ask(path, document)
            assert response.status == 200, f"{path} is listed and not there"
            return response.body

        return crawled(read, base)

    @pytest.mark.parametrize("version", [*ec2.VERSIONS, "latest", "2012-01-12", "2099-12-31"])
    @pytest.mark.parametrize("fields", [{}, RICH])
    def test_every_listed_name_is_there(self, version: str, fields: dict[str, Any]) -> None:
        found = self.crawl(made(**fields), f"/{version}/")
        assert found["meta-data"]["instance-id"] == str(A)

    def test_the_whole_tree_of_one(self) -> None:
        assert self.crawl(made(**RICH), "/latest/meta-data/") == {
            "ami-id": "ami-1",
            "ami-launch-index": "3",
            "hostname": "web-1.example.org",
            "instance-action": "none",
            "instance-id": str(A),
            "instance-type": "m1.small",
            "ipv6": "2001:db8::5",
            "local-hostname": "web-1.example.org",
            "local-ipv4": "192.0.2.10",
            "mac": "fa:16:3e:00:00:01",
            "network": {"interfaces": {"macs": {
                "fa:16:3e:00:00:01": {
                    "device-number": "0",
                    "ipv6s": "2001:db8::5",
                    "local-hostname": "web-1.example.org",
                    "local-ipv4s": "192.0.2.10\n192.0.2.11",
                    "mac": "fa:16:3e:00:00:01",
                    "owner-id": "p1",
                    "subnet-ipv4-cidr-block": "192.0.2.0/24",
                    "subnet-ipv6-cidr-blocks": "2001:db8::/64",
                },
                "fa:16:3e:00:00:02": {
                    "device-number": "1",
                    "local-hostname": "web-1.example.org",
                    "mac": "fa:16:3e:00:00:02",
                    "owner-id": "p1",
                },
            }}},
            "placement": {"availability-zone": "nova", "region": "here"},
            "public-hostname": "web-1.example.org",
            "public-keys": KEYS,
            "reservation-id": "r-6f1c5a0e",
            "tags": {"instance": {"Name": "a b", "a=b@c": "d", "10": "x"}},
        }  # fmt: skip

    def test_the_whole_tree_without_a_document(self) -> None:
        assert self.crawl(Document(), "/latest/meta-data/") == {
            "ami-launch-index": "0",
            "instance-action": "none",
            "instance-id": str(A),
            "reservation-id": "r-6f1c5a0e",
        }

    @given(name=NAMES, value=st.text(max_size=6), key=NAMES)
    def test_whatever_names_a_document_may_hold(self, name: str, value: str, key: str) -> None:
        plain = {"tags": {key: value}, "tags_in_metadata": True, "public_keys": {name: KEYS["key 0"]}}
        try:
            document = decode(json.dumps(plain).encode())
        except InputError:
            return
        found = self.crawl(document, "/latest/meta-data/")
        assert found["tags"] == {"instance": {key: value}}
        assert found["public-keys"] == {name: KEYS["key 0"]}


class TestEc2:
    def test_the_root_lists_versions(self) -> None:
        found = lines("/")
        assert found == [*ec2.VERSIONS, "latest"]
        assert found[:9] == [
            "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01",
            "2008-09-01", "2009-04-04",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "version", ["2016-09-02", "2018-09-24", "2020-11-01", "2021-01-03", "2021-03-23"]
    )
    def test_versions_that_clients_ask_for_are_listed(self, version: str) -> None:
        assert version in lines("/")

    @pytest.mark.parametrize("version", ["2007-01-20", "2011-05-01", "2024-02-29", "2099-01-01"])
    def test_any_later_date_is_a_version(self, version: str) -> None:
        assert body(f"/{version}/meta-data/instance-id") == str(A)

    @pytest.mark.parametrize(
        "version",
        ["2.0", "2007-01-18", "2006-12-31", "2023-02-29", "20210323", "2021-W12-2", "newest", "2021-3-23"],
    )
    def test_what_is_no_version(self, version: str) -> None:
        assert ask(f"/{version}/meta-data/instance-id").status == 404

    @pytest.mark.parametrize(
        ("since", "before", "path"),
        [
            ("2007-01-19", "1.0", "meta-data/local-hostname"),
            ("2007-08-29", "2007-08-28", "meta-data/instance-type"),
            ("2008-02-01", "2008-01-31", "meta-data/placement/availability-zone"),
            ("2009-04-04", "2009-04-03", "dynamic/instance-identity/document"),
            ("2011-01-01", "2010-12-31", "meta-data/mac"),
            ("2011-01-01", "2010-12-31", "meta-data/network/interfaces/macs/fa:16:3e:00:00:01/local-ipv4s"),
            ("2016-06-30", "2016-06-29", "meta-data/network/interfaces/macs/fa:16:3e:00:00:01/ipv6s"),
            ("2020-08-24", "2020-08-23", "meta-data/placement/region"),
            ("2021-01-03", "2021-01-02", "meta-data/ipv6"),
            ("2021-03-23", "2021-03-22", "meta-data/tags/instance/Name"),
        ],
    )
    def test_a_key_is_there_since_its_version(self, since: str, before: str, path: str) -> None:
        document = made(**RICH)
        assert ask(f"/{since}/{path}", document).status == 200
        assert ask(f"/latest/{path}", document).status == 200
        assert ask(f"/{before}/{path}", document).status == 404

    @pytest.mark.parametrize(
        "path",
        [
            "/latest", "/latest/meta-data", "/latest/meta-data/instance-id", "/latest/user-data",
            "/latest/meta-data/public-keys", "/latest/meta-data/public-keys/0",
            "/latest/meta-data/public-keys/0/openssh-key", "/latest/meta-data/placement/availability-zone",
            "/openstack", "/openstack/latest", "/openstack/latest/meta_data.json",
        ],
    )  # fmt: skip
    def test_a_trailing_slash_makes_no_difference(self, path: str) -> None:
        document = made(**RICH)
        assert ask(path, document).status == 200
        assert ask(f"{path}/", document) == ask(path, document)

    def test_listings(self) -> None:
        document = made(**RICH)
        assert lines("/latest", document) == ["dynamic/", "meta-data/", "user-data"]
        assert lines("/latest") == ["dynamic/", "meta-data/"]
        assert lines("/1.0", document) == ["meta-data/", "user-data"]
        assert lines("/latest/meta-data/placement", document) == ["availability-zone", "region"]
        assert lines("/latest/meta-data/public-keys/", document) == [f"{n}=key {n}" for n in range(11)]
        assert lines("/latest/meta-data/public-keys/10", document) == ["openssh-key"]
        assert kind(ask("/latest/meta-data/")) == b"text/plain"

    def test_tags_are_off_unless_switched_on(self) -> None:
        document = made(tags={"a": "b"})
        assert ask("/latest/meta-data/tags/instance/a", document).status == 404
        assert "tags/" not in lines("/latest/meta-data/", document)

    def test_a_tags_key_may_come_escaped(self) -> None:
        assert body("/latest/meta-data/tags/instance/a%3Db%40c", made(**RICH)) == "d"

    def test_the_query_does_not_matter(self) -> None:
        request = Request(b"GET", b"/latest/meta-data/instance-id", b"x=%zz")
        assert respond(View(A, Document(), now=0.0), request).response.body == str(A).encode()

    def test_the_identity_document(self) -> None:
        response = ask("/latest/dynamic/instance-identity/document", made(**RICH))
        found = json.loads(response.body)
        assert kind(response) == b"text/plain"
        assert found["instanceId"] == str(A)
        assert found["privateIp"] == "192.0.2.10"
        assert (found["accountId"], found["region"], found["kernelId"]) == ("p1", "here", None)

    @pytest.mark.parametrize(
        "raw",
        [b"", b"#!/bin/sh\n", bytes(range(256)), gzip.compress(b"#cloud-config\n" * 500, mtime=0), b"\xff\xfe\r\n\0"],
    )
    @pytest.mark.parametrize(
        "path", ["/latest/user-data", "/1.0/user-data/", "/openstack/2012-08-10/user_data"]
    )
    def test_user_data_byte_for_byte(self, raw: bytes, path: str) -> None:
        response = ask(path, made(user_data_base64=base64.b64encode(raw).decode()))
        assert (response.status, response.body) == (200, raw)
        assert kind(response) == b"application/octet-stream"
        assert b"content-encoding" not in dict(response.headers)


class TestTags:
    @pytest.mark.parametrize(
        "path", ["/", "/latest/", "/latest/meta-data/instance-id", "/openstack/", "/latest/user-data"]
    )
    def test_each_answer_has_that_of_its_bytes(self, path: str) -> None:
        rendered = respond(View(A, made(**RICH), now=0.0), Request(b"GET", path.encode()))
        assert rendered.etag == etag(rendered.response.body)
        assert dict(rendered.response.headers)[b"etag"] == b'"' + rendered.etag.encode() + b'"'

    @pytest.mark.parametrize("path", ["/nothing", "/%", "/openstack/nothing"])
    def test_errors_have_none(self, path: str) -> None:
        rendered = respond(View(A, Document(), now=0.0), Request(b"GET", path.encode()))
        assert rendered.etag == ""
        assert b"etag" not in dict(rendered.response.headers)


class TestClosed:
    @pytest.mark.parametrize(
        ("closed", "path", "listed", "gone"),
        [
            ("user-data", "/2009-04-04/", ["dynamic/", "meta-data/"], "/2009-04-04/user-data"),
            ("user-data", "/openstack/2012-08-10/", ["meta_data.json"], "/openstack/2012-08-10/user_data"),
            ("keys", "/openstack/2012-08-10/", ["user_data"], "/openstack/latest/meta_data.json"),
            ("/latest/meta-data/placement/region", "/latest/meta-data/placement/", ["availability-zone"],
             "/2021-03-23/meta-data/placement/region"),
            ("/2009-04-04/meta-data", "/latest/", ["dynamic/", "user-data"], "/latest/meta-data/instance-id"),
            ("/latest", "/", [""], "/1.0/meta-data/instance-id"),
            ("/openstack", "/openstack/", [""], "/openstack/latest/"),
        ],
    )  # fmt: skip
    def test_it_is_neither_listed_nor_there(self, closed: str, path: str, listed: list[str], gone: str) -> None:
        seen = View(A, made(**RICH), now=0.0, closed=(parse_prefix(closed),))
        assert respond(seen, Request(b"GET", path.encode())).response.body.decode().split("\n") == listed
        answer = respond(seen, Request(b"GET", gone.encode())).response
        assert answer.status == 404 or answer.body == b""
        assert respond(View(A, made(**RICH), now=0.0), Request(b"GET", gone.encode())).response.status == 200

    def test_keys(self) -> None:
        seen = View(A, made(**RICH), now=0.0, closed=("keys",))
        names = respond(seen, Request(b"GET", b"/latest/meta-data/")).response.body.decode().split("\n")
        assert "public-keys/" not in names and "hostname" in names
        assert respond(seen, Request(b"GET", b"/latest/meta-data/public-keys/0/openssh-key")).response.status == 404
