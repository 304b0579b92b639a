"""Whatever a guest asks of the faces: there is an answer, it shows nothing that is closed, and nothing that is read
once but with its claim. Fixed instances hold secrets that are told apart by their bytes."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shim.core.ask import Confirm, Delete, Lock, Outcome, Put, Ready
from shim.core.closure import TOPICS, fold
from shim.core.exchange import Request, Response
from shim.core.kv import Value, parse_key
from shim.core.policy import Composition
from shim.core.source import Reads, Scope
from shim.metadata.compose import Unready
from shim.metadata.document import Document
from shim.metadata.faces import respond
from shim.metadata.guest_writes import told, write_of
from shim.metadata.target import split
from shim.metadata.view import Rendered, View
from shim.metadata.waits import Wait, event, wait_of
from tests.unit.faces_site import KEY, source, vendor, view

DOCUMENT = Document(
    project_id="blue", name="web-1", meta={"enable-guest-attributes": "TRUE", "a b": "x"},
    public_keys={"ops": f"{KEY} TOPIC-KEYS"}, user_data="#cloud-config\n# TOPIC-USER-DATA\n",
    vendor_data={"cloud-init": "#!/bin/sh\n# TOPIC-VENDOR-DATA", "more": "TOPIC-VENDOR-DATA"},
    tags={"role": "web"}, tags_in_metadata=True, vendor_data2={"x": "TOPIC-VENDOR-DATA"},
)  # fmt: skip
SOURCES = (
    source("base", b"#!/bin/sh\n# TOPIC-USER-DATA"),
    source("once", b"#!/bin/sh\n# TOPIC-USER-DATA ONCE-USER", Reads.ONCE),
    source("raw", b"\xffTOPIC-USER-DATA ONCE-RAW", Reads.ONCE, Scope("tag", "role=web")),
    source("wait", b"#!/bin/sh\n# TOPIC-USER-DATA", Reads.CONFIRM),
    vendor("once2", b"#!/bin/sh\n# TOPIC-VENDOR-DATA ONCE-VENDOR", Reads.ONCE),
)
BROKEN = source("broken", b"{{ nothing }} TOPIC-USER-DATA", template=True)
VALUES = (
    Value("host/a", b"TOPIC-KV"), Value("host/b/c", b"TOPIC-KV ONCE-HOST", Reads.ONCE, revision=1),
    Value("guest/ns/k", b"TOPIC-KV"), Value("guest/ns/pin", b"TOPIC-KV ONCE-GUEST", Reads.ONCE, revision=1),
    Value("guest/ns/raw", b"\xffTOPIC-KV"), Value("guest/one", b"TOPIC-KV", Reads.CONFIRM),
)  # fmt: skip
ONCE = {
    b"ONCE-USER": "source host/once 7", b"ONCE-RAW": "source tag:role=web/raw 7",
    b"ONCE-VENDOR": "source host/once2 7", b"ONCE-HOST": "kv host/b/c 1", b"ONCE-GUEST": "kv guest/ns/pin 1",
}  # fmt: skip


def instance(closed: tuple[str, ...] = (), *, broken: bool = False, merged: bool = True) -> View:
    sources = (*SOURCES, BROKEN) if broken else SOURCES
    composition = Composition.MERGED if merged else Composition.VENDOR
    return view(DOCUMENT, sources=sources, values=VALUES, closed=closed, composition=composition)


PATHS = (
    "", "latest", "2009-04-04", "latest/meta-data", "latest/meta-data/public-keys", "1.0/user-data", "latest/user-data",
    "latest/meta-data/public-keys/0", "latest/meta-data/public-keys/0/openssh-key", "latest/meta-data/tags/instance",
    "openstack", "openstack/latest", "openstack/latest/meta_data.json", "openstack/2012-08-10/user_data",
    "openstack/latest/vendor_data.json", "openstack/latest/vendor_data2.json", "openstack/latest/password",
    "computeMetadata", "computeMetadata/v1", "computeMetadata/v1/instance",
    "computeMetadata/v1beta1/instance/attributes",
    "computeMetadata/v1/instance/attributes/ssh-keys", "computeMetadata/v1/instance/attributes/user-data",
    "computeMetadata/v1/instance/attributes/user-data-encoding", "computeMetadata/v1/instance/guest-attributes",
    "computeMetadata/v1/instance/guest-attributes/ns", "computeMetadata/v1/instance/guest-attributes/ns/k",
    "computeMetadata/v1/instance/guest-attributes/ns/pin", "computeMetadata/v1/project",
    "computeMetadata/v1/instance/id",
    "metashim", "metashim/v1", "metashim/v1/meta-data", "metashim/v1/user-data", "metashim/v1/vendor-data",
    "metashim/v1/lock", "metashim/v1/ready", "metashim/v1/confirm", "metashim/v1/sources", "metashim/v1/sources/host",
    "metashim/v1/sources/host/once", "metashim/v1/sources/host/once/confirm", "metashim/v1/sources/host/wait/confirm",
    "metashim/v1/sources/instance/document", "metashim/v1/sources/tag:role/raw", "metashim/v1/sources/host/broken",
    "metashim/v1/kv", "metashim/v1/kv/host", "metashim/v1/kv/host/b", "metashim/v1/kv/host/b/c", "metashim/v1/kv/guest",
    "metashim/v1/kv/guest/ns", "metashim/v1/kv/guest/ns/pin", "metashim/v1/kv/guest/one/confirm",
)  # fmt: skip
QUERIES = (
    "", "recursive=true", "recursive=true&alt=text", "alt=json", "alt=text", "recursive=TRUE&alt=json", "wait=1&etag=a",
    "wait_for_change=true", "wait=x", "prefix=user-data", "prefix=x", "recursive=true&recursive=false", "%zz=%&==&",
)  # fmt: skip
HEADERS = (
    (b"metadata-flavor", b"Google"), (b"metadata-flavor", b"x"), (b"x-forwarded-for", b"1"), (b"forwarded", b"for=1"),
    (b"accept", b"text/event-stream"), (b"accept", b",;;="), (b"if-match", b'"a"'), (b"if-match", b"x"),
    (b"if-none-match", b"*"), (b"last-event-id", b"\xff"),
)  # fmt: skip
METHODS = (b"GET", b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"PATCH", b"get")


@st.composite
def spelt(draw: st.DrawFn) -> bytes:
    """A path that is there, in one of its spellings; or another."""
    if draw(st.integers(0, 9)) == 0:
        return b"/" + draw(st.binary(max_size=30))
    end = draw(st.sampled_from(("", "", "/", "/", "//", "/x", "/.", "/%2e%2e", "%")))
    path = "/" + draw(st.sampled_from(PATHS)) + end
    if draw(st.booleans()):
        at = draw(st.integers(1, max(1, len(path) - 1)))
        if path[at : at + 1] not in ("", "/", "%"):
            path = path[:at] + f"%{ord(path[at]):02x}" + path[at + 1 :]
    return path.encode()


REQUESTS = st.builds(
    Request,
    method=st.sampled_from(METHODS),
    path=spelt(),
    query=st.sampled_from(QUERIES).map(str.encode) | st.binary(max_size=20),
    headers=st.lists(st.sampled_from(HEADERS[:1]) | st.sampled_from(HEADERS), max_size=4).map(tuple),
    body=st.sampled_from((b"", b"x")),
)
INSTANCES = st.builds(
    instance,
    st.lists(st.sampled_from((*TOPICS, "/", "/latest", "/metashim/v1/kv/host")), max_size=3).map(tuple),
    broken=st.booleans(),
    merged=st.booleans(),
)


def told_of(seen: View, request: Request) -> Rendered | None:
    try:
        return respond(seen, request)
    except Unready:
        return None


def shown(rendered: Rendered) -> Iterator[bytes]:
    """All that an answer tells: headers, body, and what is in base64 in that."""
    response = rendered.response
    yield from (value for _, value in response.headers)
    yield response.body
    yield event(rendered) if response.status == 200 and not rendered.claims else b""
    for word in response.body.replace(b'"', b" ").replace(b"\n", b" ").split():
        try:
            yield b64decode(word, validate=True)
        except ValueError:
            pass


@given(INSTANCES, REQUESTS)
@settings(max_examples=600, deadline=None)
def test_there_is_always_an_answer(seen: View, request: Request) -> None:
    rendered = told_of(seen, request)
    waits = wait_of(request)
    asked = write_of(seen, request)
    assert isinstance(waits, Wait | Response | None)
    assert isinstance(asked, Put | Delete | Lock | Ready | Confirm | Response | None)
    if isinstance(asked, Put | Delete):
        assert parse_key(asked.key).startswith("guest/")
    if isinstance(asked, Put | Delete | Lock | Ready | Confirm):
        assert told(asked, Outcome("done", etag="a"), request).status in (200, 201, 204)
        assert not any(name in (b"x-forwarded-for", b"forwarded") for name, _ in request.headers)
    for answer in (rendered.response if rendered else None, waits, asked):
        if isinstance(answer, Response):
            assert all(b"\r" not in value and b"\n" not in value and b"\0" not in value for _, value in answer.headers)
    if rendered is not None:
        tags = [value.strip(b'"') for name, value in rendered.response.headers if name == b"etag"]
        assert tags == ([rendered.etag.encode()] if rendered.etag else [])
        assert bool(rendered.etag) is (rendered.response.status == 200)


@given(INSTANCES, REQUESTS)
@settings(max_examples=600, deadline=None)
def test_what_is_read_once_comes_with_its_claim(seen: View, request: Request) -> None:
    rendered = told_of(seen, request)
    if rendered is None:
        return
    assert request.method == b"GET" or not rendered.claims
    for part in shown(rendered):
        for secret, item in ONCE.items():
            assert secret not in part or item in rendered.claims


@given(REQUESTS, st.sampled_from(sorted(TOPICS)), st.booleans(), st.booleans())
@settings(max_examples=800, deadline=None)
def test_what_is_closed_is_in_no_answer(request: Request, topic: str, broken: bool, merged: bool) -> None:
    if topic == "user-data" and not merged:
        return  # sources are vendor data then
    rendered = told_of(instance((topic,), broken=broken, merged=merged), request)
    secret = f"TOPIC-{topic.upper()}".encode()
    if rendered is not None:
        assert not any(secret in part for part in shown(rendered))


@given(REQUESTS, st.sampled_from(PATHS[1:]))
@settings(max_examples=600, deadline=None)
@example(Request(b"GET", b"/computeMetadata/v1/", b"recursive=true", HEADERS[:1]), "computeMetadata/v1/instance")
def test_what_is_closed_is_not_there(request: Request, prefix: str) -> None:
    """At and below a closed prefix there is nothing, in any spelling, even if nobody refuses it before."""
    closed = fold("/" + prefix)
    rendered = told_of(instance((closed,)), request)
    try:
        asked = fold("/" + "/".join(split(request.path)))
    except ValueError:
        return
    if rendered is not None and (asked == closed or asked.startswith(closed + "/")):
        empty = (b"", b"\n", b"[]", b"{}")
        assert rendered.response.status != 200 or rendered.response.body in empty
    if rendered is not None and rendered.response.status == 200 and closed.startswith(asked.rstrip("/") + "/"):
        name = closed[len(asked.rstrip("/")) + 1 :].partition("/")[0]
        if "/" not in closed[len(asked.rstrip("/")) + 1 :]:
            assert name.encode() not in rendered.response.body.replace(b"/", b"").split(b"\n")


def test_the_secrets_are_there_to_be_shown() -> None:
    """Without that the tests above could not fail."""
    flavor = HEADERS[:1]
    every: list[bytes] = []
    for path in PATHS:
        for query in (b"", b"recursive=true"):
            for end in ("", "/"):
                rendered = told_of(instance(), Request(b"GET", f"/{path}{end}".encode(), query, flavor))
                assert rendered is not None
                every += shown(rendered)
    for secret in (*ONCE, *(f"TOPIC-{topic.upper()}".encode() for topic in TOPICS)):
        assert any(secret in part for part in every), secret


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_a_topic_closes_all_that_it_names(topic: str) -> None:
    """Every path of PATHS, every form: with its header, so that GCE's face is reached."""
    seen: Any = instance((topic,))
    secret = f"TOPIC-{topic.upper()}".encode()
    for path in PATHS:
        for query in QUERIES:
            for end in ("", "/"):
                rendered = told_of(seen, Request(b"GET", quote(f"/{path}{end}").encode(), query.encode(), HEADERS[:1]))
                assert rendered is None or not any(secret in part for part in shown(rendered)), path
    assert b64encode(secret)  # what is in base64 as a whole word is looked into by `shown`
