"""GCE's face, as Google's agent, its libraries and cloud-init ask it."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.core.kv import Value, clash, etag, parse_key
from shim.core.source import Reads
from shim.metadata.compose import Unready
from shim.metadata.document import Document, decode
from shim.metadata.gce_tree import Kept
from shim.metadata.view import Rendered, View
from tests.unit.faces_site import GOOGLE, KEY, A, get, header, source, view

V1 = "/computeMetadata/v1/"
RICH = Document(
    project_id="blue", name="web-1", fqdn="web-1.example.org", instance_type="m1.small", image_id="debian-12",
    availability_zone="az1", region="eu", tags={"team": "shop", "edge": ""}, tags_in_metadata=True,
    meta={"role": "web", "enable-guest-attributes": "true"}, public_keys={"ops": KEY + " ops\n", "a b:c": KEY},
    user_data="#cloud-config\n",
    networks=decode(json.dumps({"networks": [
        {"mac": "FA:16:3E:00:00:01", "mtu": 1450, "gateway4": "192.0.2.1", "gateway6": "fe80::1",
         "addresses": ["192.0.2.10/24", "2001:db8::5/64", "192.0.2.11/24"], "dns": ["192.0.2.53", "192.0.2.54"]},
        {"mac": "FA:16:3E:00:00:01", "vlan": 5, "addresses": ["203.0.113.2/29"]},
        {"mac": "FA:16:3E:00:00:02"},
    ]}).encode()).networks,
)  # fmt: skip


def ask(path: str, seen: View | None = None, method: bytes = b"GET") -> Rendered:
    return get(seen or view(RICH), V1 + path, GOOGLE, method)


def text(path: str, seen: View | None = None) -> str:
    rendered = ask(path, seen)
    assert rendered.response.status == 200, path
    assert header(rendered, b"content-type") == b"application/text"
    return rendered.response.body.decode()


def read(path: str, seen: View | None = None) -> Any:
    rendered = ask(path, seen)
    assert rendered.response.status == 200, path
    assert header(rendered, b"content-type") == b"application/json"
    return json.loads(rendered.response.body)


class TestRules:
    def test_the_knock_at_the_root(self) -> None:
        plain, knock = get(view(), "/"), get(view(), "/", GOOGLE)
        assert header(plain, b"metadata-flavor") is None
        assert b"computeMetadata" not in plain.response.body
        assert header(knock, b"metadata-flavor") == b"Google"
        assert knock.response.body == plain.response.body + b"\ncomputeMetadata/"
        assert header(get(view(), "/", (*GOOGLE, (b"x-forwarded-for", b"x"))), b"metadata-flavor") is None

    @pytest.mark.parametrize("path", ["", "instance/id", "nothing", "instance", "../", "%", "instance/attributes/"])
    @pytest.mark.parametrize(
        "headers",
        [(), ((b"metadata-flavor", b"google"),), ((b"metadata-flavor", b""),), (*GOOGLE, (b"x-forwarded-for", b""))],
    )
    def test_refused_without_the_header_or_through_a_proxy(self, path: str, headers: Any) -> None:
        rendered = get(view(RICH), V1 + path, headers)
        assert rendered.response.status == (400 if path == "%" else 403)
        assert header(rendered, b"metadata-flavor") == b"Google"
        assert rendered.etag == ""

    @pytest.mark.parametrize("path", ["instance/id", "", "instance/", "nothing", "instance", "%", "?recursive=true"])
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"PATCH"])
    def test_every_answer_says_who_speaks(self, path: str, method: bytes) -> None:
        rendered = ask(path, method=method)
        assert [value for name, value in rendered.response.headers if name == b"metadata-flavor"] == [b"Google"]

    @pytest.mark.parametrize(
        ("asked", "location"),
        [
            ("/computeMetadata", "/computeMetadata/"),
            ("/computeMetadata/v1", "/computeMetadata/v1/"),
            ("/computeMetadata/v1beta1/instance", "/computeMetadata/v1beta1/instance/"),
            ("/computeMetadata/v1/%69nstance", "/computeMetadata/v1/instance/"),
            (V1 + "instance?recursive=true&alt=json", V1 + "instance/?recursive=true&alt=json"),
            (V1 + "instance?x=\r\nset-cookie: a", V1 + "instance/"),
            (V1 + "instance?x=<script>", V1 + "instance/"),
            (V1 + "instance/network-interfaces/0", V1 + "instance/network-interfaces/0/"),
        ],
    )
    def test_a_directory_without_its_slash(self, asked: str, location: str) -> None:
        rendered = get(view(RICH), asked, GOOGLE)
        assert rendered.response.status == 301
        assert header(rendered, b"location") == location.encode()
        assert rendered.etag == ""

    @pytest.mark.parametrize(
        "path",
        [
            "x", "instance/x", "instance/id/x", "instance//id", "instance/network-interfaces/2/",
            "instance/service-accounts/default/token", "instance/attributes/x", "Instance/", "instance/attributes//",
            "instance/network-interfaces/0/ip-aliases/1",
        ],
    )  # fmt: skip
    def test_not_found(self, path: str) -> None:
        assert ask(path).response.status == 404

    @pytest.mark.parametrize("version", ["v2", "0.1", "V1"])
    def test_no_such_version(self, version: str) -> None:
        assert get(view(RICH), f"/computeMetadata/{version}/instance/id", GOOGLE).response.status == 404

    def test_the_beta_is_an_alias_and_not_listed(self) -> None:
        assert get(view(RICH), "/computeMetadata/v1beta1/instance/id", GOOGLE) == ask("instance/id")
        assert get(view(RICH), "/computeMetadata/", GOOGLE).response.body == b"v1/\n"

    def test_tags_are_bare_and_on_all_that_is_there(self) -> None:
        for path in ("instance/id", "instance/", "?recursive=true", "instance/tags?alt=text"):
            rendered = ask(path)
            assert header(rendered, b"etag") == rendered.etag.encode()
            assert len(rendered.etag) == 16
        assert ask("instance/name").etag == etag(b"web-1")


class TestTree:
    def test_listings(self) -> None:
        assert text("") == "instance/\nproject/\n"
        assert text("instance/").splitlines() == [
            "attributes/", "description", "guest-attributes/", "hostname", "id", "image", "machine-type",
            "maintenance-event", "name", "network-interfaces/", "preempted", "service-accounts/", "tags",
            "virtual-clock/", "zone",
        ]  # fmt: skip
        assert text("project/") == "attributes/\nnumeric-project-id\nproject-id\n"
        assert text("instance/service-accounts/") == ""
        assert text("instance/network-interfaces/") == "0/\n1/\n"
        assert read("instance/attributes/?alt=json") == ["enable-guest-attributes", "role", "ssh-keys", "user-data"]

    def test_leaves(self) -> None:
        number = text("project/numeric-project-id")
        assert text("instance/name") == "web-1"
        assert text("instance/hostname") == "web-1.example.org"
        assert text("instance/zone") == f"projects/{number}/zones/az1"
        assert text("instance/machine-type") == f"projects/{number}/machineTypes/m1.small"
        assert text("instance/image") == "debian-12"
        assert text("project/project-id") == "blue"
        assert text("instance/network-interfaces/0/mac") == "fa:16:3e:00:00:01"
        assert text("instance/network-interfaces/0/dns-servers") == "192.0.2.53\n192.0.2.54\n"
        assert text("instance/network-interfaces/0/ip-aliases/0") == "192.0.2.11/32"
        assert text("instance/attributes/role") == "web"

    def test_forms_of_leaves(self) -> None:
        assert read("instance/tags") == ["team=shop", "edge"]
        assert text("instance/tags?alt=text") == "team=shop\nedge\n"
        assert read("instance/name?alt=json") == "web-1"
        assert read("instance/id?alt=json") == int(text("instance/id"))
        assert read("instance/name?recursive=true") == "web-1"
        assert text("instance/name?recursive=true&alt=text") == "web-1"
        assert text("instance/name?alt=xml") == "web-1"

    @pytest.mark.parametrize("value", ["true", "True", "TRUE"])
    def test_recursive(self, value: str) -> None:
        found = read(f"?recursive={value}")
        assert found["project"] == {
            "attributes": {}, "projectId": "blue", "numericProjectId": int(text("project/numeric-project-id")),
        }  # fmt: skip
        instance = found["instance"]
        assert instance["id"] == int(text("instance/id"))
        assert instance["attributes"] == {
            "role": "web", "enable-guest-attributes": "true", "user-data": "#cloud-config\n",
            "ssh-keys": f"ops:{KEY} ops\na-b-c:{KEY}",
        }  # fmt: skip
        assert (instance["serviceAccounts"], instance["guestAttributes"]) == ({}, {})
        assert instance["virtualClock"] == {"driftToken": "0"}
        first, second = instance["networkInterfaces"]
        assert first == {
            "accessConfigs": [], "dnsServers": ["192.0.2.53", "192.0.2.54"], "forwardedIps": [],
            "gateway": "192.0.2.1", "gatewayIpv6": "fe80::1", "ip": "192.0.2.10", "ipAliases": ["192.0.2.11/32"],
            "ipv6s": ["2001:db8::5"], "mac": "fa:16:3e:00:00:01", "mtu": 1450, "subnetmask": "255.255.255.0",
            "targetInstanceIps": [], "network": f"projects/{found['project']['numericProjectId']}/networks/nic0",
        }  # fmt: skip
        assert second["mac"] == "fa:16:3e:00:00:02"
        assert "ip" not in second

    @pytest.mark.parametrize("query", ["?recursive=false", "?recursive", "?Recursive=true", ""])
    def test_not_recursive(self, query: str) -> None:
        assert text("project/" + query) == "attributes/\nnumeric-project-id\nproject-id\n"

    def test_recursive_as_text(self) -> None:
        lines = text("instance/network-interfaces/?recursive=true&alt=text").splitlines()
        assert "0/ip 192.0.2.10" in lines
        assert "0/ip-aliases/0 192.0.2.11/32" in lines
        assert [line for line in lines if line.startswith("0/dns-servers")] == [
            "0/dns-servers 192.0.2.53", "0/dns-servers 192.0.2.54",
        ]  # fmt: skip

    def test_what_all_clients_want_is_there_without_a_document(self) -> None:
        seen = view()
        assert text("instance/name", seen) == text("instance/hostname", seen) == str(A)
        assert text("instance/zone", seen) == "projects/0/zones/unknown"
        assert text("project/", seen) == "attributes/\n"
        assert 0 < int(text("instance/id", seen)) < 2**63
        assert read("instance/attributes/?recursive=true", seen) == {}

    def test_ids_are_numbers_that_stay(self) -> None:
        assert text("instance/id") == text("instance/id", view()) == "1978572931599074122"
        ids = {text("instance/id", View(UUID(int=n), Document(), now=0.0)) for n in range(100)}
        assert len(ids) == 100

    @pytest.mark.parametrize(
        ("project", "number"), [("708288290784", "708288290784"), ("9" * 19, None), ("0", None), ("٣", None)]
    )
    def test_a_project_that_is_a_number_is_that(self, project: str, number: str | None) -> None:
        found = text("project/numeric-project-id", view(project=project))
        assert 0 < int(found) < 2**63
        assert (found == project) is (number is not None)

    def test_the_identity_sources_project_counts(self) -> None:
        assert text("project/project-id", view(RICH, project="red")) == "red"


class TestAttributes:
    def test_meta_overrides(self) -> None:
        own = {"ssh-keys": "me:k", "user-data": "x", "user-data-encoding": "base64"}
        seen = view(Document(meta=own, user_data="no", public_keys={"ops": KEY}))
        assert read("instance/attributes/?recursive=true", seen) == own

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "\x7f", "\ud800"])
    def test_names_that_no_path_or_listing_can_have_are_left_out(self, name: str) -> None:
        seen = view(Document(meta={name: "x", "a b": "y"}))
        assert text("instance/attributes/", seen) == "a b\n"
        assert text("instance/attributes/a%20b", seen) == "y"

    @pytest.mark.parametrize("name", ["-o", "..", "", "a b:c\n", "é", "-"])
    def test_a_key_is_for_a_user_with_a_harmless_name(self, name: str) -> None:
        line = text("instance/attributes/ssh-keys", view(Document(public_keys={name: KEY})))
        user, _, key = line.partition(":")
        assert key == KEY
        assert user and user.isascii() and user[0] not in "-." and not set(user) & set(": \n/")

    @pytest.mark.parametrize("raw", [gzip.compress(b"#cloud-config\n", mtime=0), b"\xff\x00"])
    def test_user_data_that_is_no_text_is_in_base64(self, raw: bytes) -> None:
        seen = view(sources=[source("a", raw)])
        found = read("instance/attributes/?recursive=true", seen)
        assert found["user-data-encoding"] == "base64"
        assert b64decode(found["user-data"]) == b64decode(text("instance/attributes/user-data", seen)) == raw
        assert text("instance/attributes/user-data-encoding", seen) == "base64"

    def test_metas_encoding_does_not_spoil_composed_user_data(self) -> None:
        seen = view(Document(meta={"user-data-encoding": "base64"}, user_data="text"))
        assert read("instance/attributes/?recursive=true", seen) == {"user-data": "text"}

    def test_user_data_of_many(self) -> None:
        seen = view(RICH, sources=[source("a", b"#!/bin/sh\n")])
        found = text("instance/attributes/user-data", seen)
        assert found.encode() == get(seen, "/latest/user-data").response.body
        assert "multipart/mixed" in found

    @pytest.mark.parametrize("raw", [b"ONE-SHOT", b"\xff\x00"])
    def test_what_is_read_once_is_in_no_recursive_answer(self, raw: bytes) -> None:
        seen = view(Document(meta={"a": "b"}), sources=[source("a", raw, Reads.ONCE)])
        for path in ("instance/attributes/?recursive=true", "instance/attributes/?recursive=true&alt=text"):
            rendered = ask(path, seen)
            assert (rendered.claims, b"user-data" in rendered.response.body) == ((), False)
        assert "user-data" in text("instance/attributes/", seen).splitlines()
        read_once = ask("instance/attributes/user-data", seen)
        assert read_once.claims == ("source host/a 7",)
        head = ask("instance/attributes/user-data", seen, b"HEAD")
        assert (head.claims, head.response.body) == ((), b"")
        assert head.response.length == len(read_once.response.body)
        if raw == b"\xff\x00":
            assert ask("instance/attributes/user-data-encoding", seen).claims == ()

    def test_what_is_not_ready_spoils_nothing_else(self) -> None:
        seen = view(Document(meta={"a": "b"}), sources=[source("t", b"{{ nothing }}", template=True)])
        assert read("?recursive=true", seen)["instance"]["attributes"] == {"a": "b"}
        assert text("instance/attributes/", seen) == "a\n"
        with pytest.raises(Unready):
            ask("instance/attributes/user-data", seen)

    def test_what_fails_is_tried_once_a_request(self) -> None:
        tried: list[int] = []

        def fail() -> None:
            tried.append(1)
            raise Unready("host/t", "no such variable")

        kept = Kept(fail)
        for _ in range(3):
            with pytest.raises(Unready, match="no such variable"):
                kept()
        assert tried == [1]

    def test_sources_and_keys_are_not_looked_at_for_what_does_not_need_them(self) -> None:
        def never() -> Any:
            raise AssertionError

        seen = View(A, RICH, now=0.0, load_sources=never, load_values=never)
        assert text("instance/id", seen)
        assert text("instance/attributes/role", seen) == "web"


class TestGuestAttributes:
    VALUES = (
        Value("guest/hostkeys/ssh-rsa", b"AAAA"), Value("guest/hostkeys/ed", b"\xff"), Value("guest/alone", b"1"),
        Value("guest/deep/a/b", b"2"), Value("host/x/y", b"hidden"),
    )  # fmt: skip

    def seen(self, switch: str = "TRUE", **more: Any) -> View:
        return view(Document(meta={"enable-guest-attributes": switch}), values=self.VALUES, **more)

    def test_as_they_are_read(self) -> None:
        seen = self.seen()
        assert text("instance/guest-attributes/", seen) == "deep/\nhostkeys/\n"
        assert text("instance/guest-attributes/hostkeys/", seen) == "ed\nssh-rsa\n"
        assert text("instance/guest-attributes/hostkeys/ssh-rsa", seen) == "AAAA"
        assert ask("instance/guest-attributes/hostkeys/ed", seen).response.body == b"\xff"
        assert read("instance/guest-attributes/?recursive=true", seen) == {
            "hostkeys": {"ssh-rsa": "AAAA", "ed": "�"}, "deep": {"a": {"b": "2"}},
        }  # fmt: skip

    @pytest.mark.parametrize("switch", ["TRUE", "true", " True "])
    def test_switched_on(self, switch: str) -> None:
        assert text("instance/guest-attributes/", self.seen(switch))

    @pytest.mark.parametrize("switch", ["FALSE", "", "1", "yes"])
    @pytest.mark.parametrize("path", ["", "/", "/hostkeys/ssh-rsa", "/nothing"])
    def test_switched_off(self, switch: str, path: str) -> None:
        rendered = ask("instance/guest-attributes" + path, self.seen(switch))
        assert rendered.response.status == 403
        assert b"Guest attributes endpoint access is disabled" in rendered.response.body
        assert "guestAttributes" not in read("?recursive=true", self.seen(switch))["instance"]

    def test_closed_in_part(self) -> None:
        seen = self.seen(closed=("/computeMetadata/v1/instance/guest-attributes/hostkeys/ed",))
        assert text("instance/guest-attributes/hostkeys/", seen) == "ssh-rsa\n"


NAMES = st.text(alphabet="a0-_. /%?é\n", max_size=4) | st.text(max_size=3)
KEYS = st.lists(st.text(alphabet="a0~:.", min_size=1, max_size=2), min_size=1, max_size=3).map("/".join)


class TestCrawl:
    def crawl(self, seen: View, path: str) -> Any:
        """What a client finds that goes by the listings."""
        found = {}
        for name in read(f"{path}?alt=json", seen):
            inner = path + quote(name, safe="/")
            found[name.removesuffix("/")] = (
                self.crawl(seen, inner) if name.endswith("/") else read(f"{inner}?alt=json", seen)
            )
        return found

    @given(meta=st.dictionaries(NAMES, st.text(max_size=4), max_size=4), keys=st.sets(KEYS, max_size=4))
    @settings(deadline=None)
    def test_listings_and_recursive_answers_tell_the_same(self, meta: dict[str, str], keys: set[str]) -> None:
        values = []
        for key in sorted(keys):
            try:
                parse_key(f"guest/{key}")
            except ValueError:
                continue
            if clash(f"guest/{key}", [one.key for one in values]) is None:
                values.append(Value(f"guest/{key}", b"\xff" + key.encode()))
        seen = view(Document(meta={**meta, "enable-guest-attributes": "TRUE"}), values=values)
        for path in ("instance/attributes/", "instance/guest-attributes/"):
            assert self.crawl(seen, path) == read(f"{path}?recursive=true", seen)
            assert ask(path, seen).response.body.count(b"\n") == len(read(f"{path}?alt=json", seen))


class TestWatched:
    """Google's agent watches `/computeMetadata/v1/` as a whole."""

    PATHS = ("", "instance/", "instance/attributes/", "?recursive=true", "?recursive=true&alt=text")

    def tags(self, seen: View) -> list[str]:
        return [ask(path, seen).etag for path in self.PATHS]

    def test_what_changes_below_changes_the_tag(self) -> None:
        states = [
            view(),
            view(Document(meta={"a": "b"})),
            view(Document(meta={"a": "c"})),
            view(sources=[source("a", b"1")]),
            view(sources=[source("a", b"2")]),
            view(sources=[source("a", b"2", Reads.ONCE)]),
            view(Document(public_keys={"ops": KEY})),
        ]
        for number in range(len(self.PATHS)):
            assert len({self.tags(seen)[number] for seen in states}) == len(states)

    def test_what_does_not_change_keeps_it_in_all_forms(self) -> None:
        assert ask("").etag == ask("?recursive=true").etag == ask("?alt=json").etag == ask("", view(RICH)).etag

    def test_a_guests_writes_are_seen_from_above(self) -> None:
        on = Document(meta={"enable-guest-attributes": "TRUE"})
        one, two = (view(on, values=[Value("guest/a/b", body)]) for body in (b"1", b"2"))
        assert ask("", one).etag != ask("", two).etag

    def test_the_tag_of_what_is_read_once_tells_nothing_of_it(self) -> None:
        one, two = (view(sources=[source("a", body, Reads.ONCE)]) for body in (b"1111", b"2222"))
        path = "instance/attributes/user-data"
        assert ask(path, one).etag == ask(path, two).etag != etag(b"1111")
        assert self.tags(one) == self.tags(two)


class TestClosed:
    @pytest.mark.parametrize(
        ("closed", "gone", "stays"),
        [
            ("keys", "ssh-keys", "user-data"),
            ("user-data", "user-data", "ssh-keys"),
            ("/computeMetadata/v1/instance/attributes/role", "role", "ssh-keys"),
        ],
    )
    def test_attributes(self, closed: str, gone: str, stays: str) -> None:
        seen = view(RICH, closed=(closed,))
        assert gone not in text("instance/attributes/", seen).splitlines()
        assert gone not in read("?recursive=true", seen)["instance"]["attributes"]
        assert ask(f"instance/attributes/{gone}", seen).response.status == 404
        assert stays in read("?recursive=true", seen)["instance"]["attributes"]

    def test_no_encoding_is_left_without_its_user_data(self) -> None:
        own = {"user-data": "x", "user-data-encoding": "y"}
        for document in (Document(user_data_base64="/wA="), Document(meta=own)):
            seen = view(document, closed=("user-data",))
            assert read("instance/attributes/?recursive=true", seen) == {}

    def test_an_interface(self) -> None:
        seen = view(RICH, closed=("/computeMetadata/v1/instance/network-interfaces/0",))
        assert text("instance/network-interfaces/", seen) == "1/\n"
        assert ask("instance/network-interfaces/0/ip", seen).response.status == 404

    @pytest.mark.parametrize("closed", ["/", "/computeMetadata", "/computeMetadata/v1"])
    def test_all(self, closed: str) -> None:
        seen = view(RICH, closed=(closed,))
        assert ask("instance/id", seen).response.status == 404
        assert get(seen, "/computeMetadata/", GOOGLE).response.body == b""
        if closed != "/computeMetadata/v1":
            assert b"computeMetadata" not in get(seen, "/", GOOGLE).response.body


def test_as_cloud_init_reads_it() -> None:
    """What its read_md takes for this datasource, and how."""
    for path in ("instance/id", "instance/zone", "instance/hostname"):
        assert text(path)
    found = read("instance/attributes/?recursive=True")
    keys = [line.split(":", 1) for line in found["ssh-keys"].splitlines()]
    assert [user for user, _ in keys] == ["ops", "a-b-c"]
    assert read("project/attributes/?recursive=True") == {}
    assert "user-data-encoding" not in found


def test_as_googles_libraries_ask() -> None:
    """google.auth asks so for service accounts, and takes 404 for none."""
    assert ask("instance/service-accounts/default/?recursive=true").response.status == 404
    assert ask("project/project-id").response.status == 200
    assert read("instance/service-accounts/?recursive=true") == {}
