"""Our own face as it is read: docs/live.md's table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shim.core.kv import Value, etag
from shim.core.policy import Composition
from shim.core.source import Kind, Reads, Scope
from shim.metadata.compose import Unready
from shim.metadata.document import Document, decode
from shim.metadata.view import Rendered, View
from tests.unit.faces_site import GOOGLE, NOW, A, get, header, source, vendor, view

V1 = "/metashim/v1/"
TAG = Scope("tag", "role=web")


def ask(path: str, seen: View | None = None, method: bytes = b"GET") -> Rendered:
    return get(seen or view(), V1 + path, method=method)


def text(path: str, seen: View | None = None) -> str:
    rendered = ask(path, seen)
    assert (rendered.response.status, header(rendered, b"content-type")) == (200, b"text/plain"), path
    return rendered.response.body.decode()


def read(path: str, seen: View | None = None) -> Any:
    rendered = ask(path, seen)
    assert (rendered.response.status, header(rendered, b"content-type")) == (200, b"application/json"), path
    return json.loads(rendered.response.body)


def test_what_there_is() -> None:
    for path in ("/metashim", "/metashim/"):
        assert get(view(), path).response.body == b"v1/\n"
    assert text("") == "kv/\nlock\nmeta-data\nsources/\nvendor-data\n"
    assert text("", view(Document(user_data=""))) == "kv/\nlock\nmeta-data\nsources/\nuser-data\nvendor-data\n"


@pytest.mark.parametrize(
    "path",
    [
        "/metashim/v2", "/metashim/v2/kv", V1 + "x", V1 + "meta-data/x", V1 + "lock/x", V1 + "user-data",
        V1 + "sources/host/", V1 + "sources/host/x", V1 + "kv/host/x", V1 + "kv/other/", V1 + "kv//", V1 + "ready",
        V1 + "confirm", V1 + "sources//", V1 + "kv/host//", V1 + "kv/gues",
    ],
)  # fmt: skip
def test_not_found(path: str) -> None:
    assert get(view(), path).response.status == 404


def test_no_header_decides() -> None:
    seen = view(values=[Value("host/a", b"1")])
    headers = (*GOOGLE, (b"x-forwarded-for", b"x"), (b"accept", b"application/json"))
    for path in ("", "kv/", "kv/host/a", "meta-data"):
        assert get(seen, V1 + path, headers) == ask(path, seen)


class TestMetaData:
    def test_in_full(self) -> None:
        document = decode(json.dumps({
            "name": "web-1", "fqdn": "web-1.example.org", "tags": {"role": "web"}, "tags_in_metadata": True,
            "networks": [{"mac": "fa:16:3e:00:00:01", "addresses": ["2001:db8::5/64", "192.0.2.10/24"]}],
        }).encode())  # fmt: skip
        assert read("meta-data", view(document, project="blue")) == {
            "instance_id": str(A), "project_id": "blue", "name": "web-1", "hostname": "web-1.example.org",
            "tags": {"role": "web"}, "addresses": ["2001:db8::5", "192.0.2.10"],
        }  # fmt: skip

    def test_of_nothing(self) -> None:
        assert read("meta-data") == {"instance_id": str(A), "addresses": []}

    def test_tags_are_off_unless_switched_on(self) -> None:
        assert "tags" not in read("meta-data", view(Document(tags={"a": "b"})))


class TestComposed:
    def test_user_data_as_on_the_other_faces(self) -> None:
        seen = view(Document(user_data="#!/bin/sh\n"), sources=[source("a", b"#cloud-config\n")])
        mine, theirs = ask("user-data", seen), get(seen, "/latest/user-data")
        assert mine == theirs == get(seen, "/openstack/latest/user_data")
        assert header(mine, b"etag") == f'"{etag(mine.response.body)}"'.encode()

    def test_vendor_data_as_on_the_other_faces(self) -> None:
        seen = view(Document(vendor_data={"cloud-init": "#!/bin/sh\n", "x": 1}), sources=[vendor("a", b"#!/bin/sh\n")])
        assert ask("vendor-data", seen) == get(seen, "/openstack/latest/vendor_data.json")
        assert read("vendor-data", seen)["x"] == 1
        assert read("vendor-data") == {}

    @pytest.mark.parametrize("path", ["/latest/user-data", "/openstack/latest/user_data", V1 + "user-data"])
    def test_reading_it_once_is_claimed(self, path: str) -> None:
        seen = view(Document(user_data="#!/bin/sh\n"), sources=[source("a", b"#!/bin/sh\nonce", Reads.ONCE)])
        rendered = get(seen, path)
        assert rendered.claims == ("source host/a 7",)
        assert b"once" in rendered.response.body
        head = get(seen, path, method=b"HEAD")
        assert (head.claims, head.response.body, head.etag) == ((), b"", rendered.etag)
        assert head.response.length == len(rendered.response.body)
        assert head.response.headers == rendered.response.headers

    def test_the_tag_of_vendor_data_read_once_tells_nothing_of_it(self) -> None:
        one, two = (view(sources=[vendor("a", body, Reads.ONCE)]) for body in (b"#!a", b"#!b"))
        other = view(Document(vendor_data={"x": 1}), sources=[vendor("a", b"#!a", Reads.ONCE)])
        assert ask("vendor-data", one).claims == ("source host/a 7",)
        assert ask("vendor-data", one).etag == ask("vendor-data", two).etag != ask("vendor-data", other).etag

    def test_what_is_not_ready_is_raised_where_it_is_asked_for_alone(self) -> None:
        seen = view(sources=[source("t", b"{{ nothing }}", template=True)])
        for path in ("/latest/user-data", "/openstack/latest/user_data", V1 + "user-data", V1 + "sources/host/t"):
            with pytest.raises(Unready):
                get(seen, path)
        for path in ("/latest/", "/latest/meta-data/", "/openstack/latest/", V1, V1 + "sources/", V1 + "meta-data"):
            assert get(seen, path).response.status == 200
        assert "user-data" in text("", seen)


class TestSources:
    SEEN = view(
        Document(user_data="#!/bin/sh\n"),
        sources=[
            source("base", b"#cloud-config\n", owner="ops, Ü\r\n"), source("late", b"#!/bin/sh\n", order=900),
            source("motd", b"#!/bin/sh\n# {{ instance_id }}\n", scope=TAG, template=True),
            source("gone", b"{{ nothing }}", template=True, order=1, reads=Reads.CONFIRM),
            vendor("v", b"#!v", Reads.ONCE),
        ],
    )  # fmt: skip

    def test_listings(self) -> None:
        assert text("sources/", self.SEEN) == "host/\ninstance/\ntag:role/\n"
        assert text("sources/host/", self.SEEN) == "base\ngone\nlate\nv\n"
        assert text("sources/tag:role", self.SEEN) == "motd\n"
        assert text("sources/") == ""

    def test_as_json(self) -> None:
        found = {one["id"]: one for one in read("sources/?alt=json", self.SEEN)}
        assert list(found) == ["host/base", "tag:role/motd", "instance/document", "host/late", "host/v", "host/gone"]
        assert found["host/base"] == {
            "id": "host/base", "owner": "ops, Ü\r\n", "kind": "user", "order": 500, "etag": etag(b"#cloud-config\n"),
            "reads": "many", "bytes": 14,
        }  # fmt: skip
        assert found["tag:role/motd"]["bytes"] == len(f"#!/bin/sh\n# {A}\n")
        assert (found["host/gone"]["etag"], found["host/gone"]["bytes"]) == (None, None)
        assert (found["host/v"]["kind"], found["host/v"]["reads"]) == ("vendor", "once")
        assert found["host/v"]["etag"] != etag(b"#!v")
        assert [one["id"] for one in read("sources/tag:role/?alt=json", self.SEEN)] == ["tag:role/motd"]

    def test_one_as_it_is(self) -> None:
        rendered = ask("sources/host/base", self.SEEN)
        assert rendered.response.body == b"#cloud-config\n"
        assert header(rendered, b"content-type") == b"application/octet-stream"
        assert header(rendered, b"x-metashim-owner") == b"ops, ???"
        assert rendered.claims == ()
        assert ask("sources/tag:role/motd", self.SEEN).response.body == f"#!/bin/sh\n# {A}\n".encode()
        assert ask("sources/instance/document", self.SEEN).response.body == b"#!/bin/sh\n"
        assert ask("sources/tag%3Arole/motd", self.SEEN) == ask("sources/tag:role/motd", self.SEEN)

    def test_one_that_is_read_once(self) -> None:
        rendered = ask("sources/host/v", self.SEEN)
        assert rendered.claims == ("source host/v 7",)
        listed = {one["id"]: one for one in read("sources/?alt=json", self.SEEN)}
        assert rendered.etag == listed["host/v"]["etag"]

    def test_the_documents_vendor_data(self) -> None:
        seen = view(Document(vendor_data={"cloud-init": "#!/bin/sh\n"}))
        assert ask("sources/instance/document", seen).response.body == b"#!/bin/sh\n"
        assert read("sources/?alt=json", seen)[0]["kind"] == "vendor"

    def test_composed_as_vendor_data_they_are_of_that_kind(self) -> None:
        seen = view(
            Document(user_data="x"), sources=[source("a", b"#!a")], composition=Composition.VENDOR
        )
        assert {one["id"]: one["kind"] for one in read("sources/?alt=json", seen)} == {
            "instance/document": "user", "host/a": "vendor",
        }  # fmt: skip

    def test_a_directorys_tag_is_that_of_what_is_below(self) -> None:
        states = [
            view(), view(sources=[source("a", b"1")]), view(sources=[source("a", b"2")]),
            view(sources=[source("a", b"2", owner="else")]), view(sources=[source("a", b"2", order=3)]),
            view(Document(user_data="x"), sources=[source("a", b"2")]),
            view(sources=[source("a", b"2", reads=Reads.ONCE)]),
        ]  # fmt: skip
        assert len({ask("sources/", seen).etag for seen in states}) == len(states)
        assert ask("sources/", states[1]).etag == ask("sources/?alt=json", states[1]).etag

    def test_closed_in_part(self) -> None:
        seen = view(sources=[source("a", b"1"), source("b", b"2")], closed=(V1 + "sources/host/a",))
        assert text("sources/host/", seen) == "b\n"
        assert [one["id"] for one in read("sources/?alt=json", seen)] == ["host/b"]
        assert ask("sources/host/a", seen).response.status == 404

    @pytest.mark.parametrize("topic", ["user-data", "vendor-data"])
    def test_closed_by_topic(self, topic: str) -> None:
        seen = view(Document(user_data="x"), sources=[source("a", b"1")], closed=(topic,))
        assert {"sources/", topic} & set(text("", seen).splitlines()) == set()
        for path in ("sources/", "sources/host/a", topic):
            assert ask(path, seen).response.status == 404


class TestKeys:
    VALUES = (
        Value("host/a/b", b"1"), Value("host/a/c", b"\xff"), Value("host/pin", b"4711", reads=Reads.ONCE, revision=3),
        Value("guest/x", b"yes\n"), Value("guest/10", b""), Value("guest/9", b"", reads=Reads.CONFIRM),
    )  # fmt: skip
    SEEN = view(values=VALUES)

    def test_listings(self) -> None:
        assert text("kv/", self.SEEN) == text("kv/") == "guest/\nhost/\n"
        assert text("kv/guest/", self.SEEN) == "x\n9\n10\n"
        assert text("kv/host", self.SEEN) == "a/\npin\n"
        assert text("kv/host/a/", self.SEEN) == "b\nc\n"
        assert text("kv/host/") == ""

    def test_values(self) -> None:
        rendered = ask("kv/guest/x", self.SEEN)
        assert (rendered.response.body, rendered.etag, rendered.claims) == (b"yes\n", etag(b"yes\n"), ())
        assert header(rendered, b"etag") == b'"' + etag(b"yes\n").encode() + b'"'
        assert header(rendered, b"content-type") == b"application/octet-stream"
        assert ask("kv/host/a/c", self.SEEN).response.body == b"\xff"
        assert ask("kv/guest/9", self.SEEN).response.status == 200

    def test_one_that_is_read_once(self) -> None:
        rendered = ask("kv/host/pin", self.SEEN)
        assert (rendered.response.body, rendered.claims) == (b"4711", ("kv host/pin 3",))
        assert rendered.etag == etag(b"kv host/pin 3")
        head = ask("kv/host/pin", self.SEEN, b"HEAD")
        assert (head.response.body, head.response.length, head.claims) == (b"", 4, ())

    def test_recursive(self) -> None:
        found = read("kv/?recursive=true", self.SEEN)
        assert found["host/a/b"] == {"value": "1", "etag": etag(b"1")}
        assert found["host/a/c"] == {"base64": "/w==", "etag": etag(b"\xff")}
        assert found["host/pin"] == {"etag": etag(b"kv host/pin 3")}
        assert set(read("kv/guest/?recursive=true", self.SEEN)) == {"guest/x", "guest/9", "guest/10"}
        assert set(read("kv/host/a?recursive=TRUE", self.SEEN)) == {"host/a/b", "host/a/c"}
        assert read("kv/?recursive=true") == {}

    def test_a_key_is_a_key_whatever_is_asked_of_it(self) -> None:
        assert ask("kv/guest/x?recursive=true&alt=json", self.SEEN) == ask("kv/guest/x", self.SEEN)

    def test_a_directorys_tag_is_that_of_what_is_below(self) -> None:
        states = [
            view(), view(values=[Value("host/a", b"1")]), view(values=[Value("host/a", b"2")]),
            view(values=[Value("host/a", b"2"), Value("guest/a", b"2")]),
            *(view(values=[Value("host/a", b"2", reads=Reads.ONCE, revision=n)]) for n in (1, 2)),
        ]  # fmt: skip
        for path in ("kv/", "kv/?recursive=true"):
            assert len({ask(path, seen).etag for seen in states}) == len(states)
        assert ask("kv/guest/", states[1]).etag == ask("kv/guest/", states[2]).etag

    def test_closed_in_part(self) -> None:
        seen = view(values=self.VALUES, closed=(V1 + "kv/host/a/b", V1 + "kv/guest"))
        assert text("kv/", seen) == "host/\n"
        assert set(read("kv/?recursive=true", seen)) == {"host/a/c", "host/pin"}
        assert ask("kv/guest/", seen).response.status == ask("kv/guest/x", seen).response.status == 404

    def test_closed_by_topic(self) -> None:
        seen = view(values=self.VALUES, closed=("kv",))
        assert "kv/" not in text("", seen).splitlines()
        assert ask("kv/", seen).response.status == 404


def test_what_is_locked() -> None:
    assert text("lock") == ""
    assert text("lock", view(closed=("/latest/user-data", "keys"))).splitlines()[:2] == [
        "/latest/user-data", "/latest/meta-data/public-keys",
    ]  # fmt: skip


def test_until_when_it_is_so() -> None:
    seen = view(values=[Value("host/a", b"1", until=NOW + 60), Value("host/b", b"1", until=NOW)])
    assert ask("kv/host/", seen).until == NOW + 60
    assert text("kv/host/", seen) == "a\n"
    assert ask("user-data", view(sources=[source("a", b"#!", until=NOW + 5)])).until == NOW + 5
    assert ask("meta-data", view(sources=[source("a", b"#!", until=NOW + 5)])).until == float("inf")


def test_kinds_are_both() -> None:
    assert {one.value for one in Kind} == {"user", "vendor"}
