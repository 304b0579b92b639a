"""The control API of sources, keys, switches and the audit trail, over the operations in memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.control import kv_resources
from shim.control.api import MAX_BODY, Api
from shim.control.operations import CLOSED_MAX, PolicyChange
from shim.core.exchange import Request, Response
from shim.core.kv import Value, etag
from shim.core.policy import Access, Auto, Composition, Policy
from shim.core.source import HOST, MERGE_DEFAULT, Kind, Reads, Scope, Source
from shim.errors import InputError
from tests.unit.control_memory import ONE, TWO, Memory

T = TypeVar("T")
NOW = 1_790_000_000.0
BASE = b"#cloud-config\npackages: [nginx]\n"


def ask(method: str, target: str, body: bytes | dict[str, Any] = b"", **headers: str) -> Request:
    path, _, query = target.partition("?")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return Request(method.encode(), path.encode(), query.encode(), given, raw)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def call(
    memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"", **headers: str
) -> Response:
    return run(Api(memory, lambda: NOW).handle(ask(method, target, body, **headers), "ops (uid 1)"))


def good(memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"", **headers: str) -> Any:
    answer = call(memory, method, target, body, **headers)
    assert answer.status in (200, 201), answer.body
    return json.loads(answer.body)


def bad(memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"", **headers: str) -> str:
    answer = call(memory, method, target, body, **headers)
    problem = json.loads(answer.body)
    assert set(problem) == {"error", "hint"} and problem["error"] and problem["hint"]
    return f"{answer.status} {problem['error']}"


def header(answer: Response, name: bytes) -> str:
    (value,) = [value for key, value in answer.headers if key == name]
    return value.decode()


# --- sources


def test_a_source_is_kept_shown_and_taken_back() -> None:
    memory = Memory()
    target = "/v1/sources/host/base"
    query = "?kind=vendor&owner=net%20ops&order=10&merge=list(prepend)&template=true&reads=confirm&until=1790000900"
    made = call(memory, "PUT", target + query, BASE)
    assert made.status == 201 and header(made, b"etag") == f'"{etag(BASE)}"'
    assert json.loads(made.body) == {
        "created": True,
        "problems": [],
        "source": {
            "scope": "host", "name": "base", "kind": "vendor", "owner": "net ops", "order": 10,
            "merge": "list(prepend)", "template": True, "reads": "confirm", "until": 1790000900.0,
            "origin": "operator", "bytes": len(BASE), "etag": etag(BASE), "revision": 1, "changed": NOW,
        },
    }  # fmt: skip
    raw = call(memory, "GET", target)
    assert (raw.body, header(raw, b"content-type")) == (BASE, "application/octet-stream")
    assert (header(raw, b"etag"), header(raw, b"x-metashim-owner")) == (f'"{etag(BASE)}"', "net ops")
    assert call(memory, "PUT", target, BASE).status == 200
    assert memory.kept["host", "base"] == Source(HOST, "base", BASE, revision=2, changed=NOW), "all as by default"
    assert call(memory, "DELETE", target).status == 204
    assert bad(memory, "GET", target).startswith("404 no source host/base")
    assert bad(memory, "DELETE", target).startswith("404")
    assert [(row.who, row.what) for row in memory.trail][::2] == [
        ("ops (uid 1)", "source put"), ("ops (uid 1)", "source delete")
    ]  # fmt: skip


def test_the_owner_is_not_who_asks() -> None:
    memory = Memory()
    good(memory, "PUT", "/v1/sources/host/base", BASE)
    assert memory.kept["host", "base"].owner == "operator", "guests are shown it"


def test_a_source_as_json() -> None:
    memory = Memory()
    good(memory, "PUT", "/v1/sources/host/base", BASE)
    good(memory, "PUT", "/v1/sources/host/bin", b"\xff\x00")
    view = good(memory, "GET", "/v1/sources/host/base", accept="text/html, application/json;q=0.5")
    assert view["body"] == BASE.decode() and "body_base64" not in view and view["source"]["name"] == "base"
    assert good(memory, "GET", "/v1/sources/host/bin", accept="Application/JSON")["body_base64"] == "/wA="
    assert call(memory, "GET", "/v1/sources/host/bin", accept="*/*").body == b"\xff\x00", "as curl asks"


SCOPES = [
    ("host", Scope("host")),
    ("project:blue", Scope("project", "blue")),
    ("image:debian%3A12%2Fx", Scope("image", "debian:12/x")),
    ("tag:role%3Dweb%252F", Scope("tag", "role=web%2F")),
    ("tag:role=web", Scope("tag", "role=web")),
    (ONE.hex.upper(), Scope("instance", str(ONE))),
    (f"instance:{ONE}", Scope("instance", str(ONE))),
]


@pytest.mark.parametrize(("text", "scope"), SCOPES, ids=[text for text, _ in SCOPES])
def test_scopes(text: str, scope: Scope) -> None:
    memory = Memory()
    good(memory, "PUT", f"/v1/sources/{text}/base", BASE)
    assert list(memory.kept) == [(scope.text, "base")]
    assert call(memory, "GET", f"/v1/sources/{text}/base/").body == BASE
    assert [one["scope"] for one in good(memory, "GET", f"/v1/sources?scope={text}")["sources"]] == [scope.text]


def test_sources_are_listed_as_they_are_composed_without_bodies() -> None:
    memory = Memory()
    for target in ("project:blue/a?order=5", "host/z?order=5", f"{ONE}/b", "host/late?order=999"):
        good(memory, "PUT", f"/v1/sources/{target}", BASE)
    listed = good(memory, "GET", "/v1/sources")["sources"]
    assert [(one["scope"], one["name"]) for one in listed] == [
        ("host", "z"), ("project:blue", "a"), (f"instance:{ONE}", "b"), ("host", "late")
    ]  # fmt: skip
    assert not any("body" in one for one in listed)
    assert [one["name"] for one in good(memory, "GET", f"/v1/sources?instance={ONE}")["sources"]] == ["z", "b", "late"]
    assert bad(memory, "GET", f"/v1/sources?instance={ONE}&scope=host").startswith("400 both")


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("hosts/base", "'hosts' is no scope"),
        ("host:x/base", "'host:x' is no scope"),
        ("project:/base", "is no scope"),
        ("tag:role/base", "is no scope"),
        ("tag:=x/base", "is no scope"),
        ("project:a%20b/base", "is no scope"),
        ("instance:x/base", "'x' is not an instance id"),
        ("backend/user-data", "is no scope"),
        ("host/-base", "no name of a source"),
        ("host/a%2Fb", "no name of a source"),
        ("host/..", "no name of a source"),
        (f"host/{'a' * 65}", "no name of a source"),
        ("host/base%0a", "no name of a source"),
        (f"{ONE}/document", "is its document's own"),
        ("host/base?kind=users", "kind='users'"),
        ("host/base?order=1000", "order='1000'"),
        ("host/base?order=-1", "order='-1'"),
        ("host/base?order=%C2%B2", "order="),
        ("host/base?order=", "order=''"),
        ("host/base?owner=", "no owner"),
        ("host/base?owner=%20a", "no owner"),
        ("host/base?owner=a%0d%0ax:y", "no owner"),
        ("host/base?owner=%C3%A9", "no owner"),
        (f"host/base?owner={'a' * 65}", "no owner"),
        ("host/base?merge=lst(append)", "no merge type"),
        ("host/base?merge=list(append)%0a", "no merge type"),
        ("host/base?merge=list(append", "no merge type"),
        ("host/base?merge=list(append)+", "no merge type"),
        ("host/base?template=yes", "template='yes'"),
        ("host/base?reads=twice", "reads='twice'"),
        ("host/base?until=1790000000", "that time is over"),
        ("host/base?until=0", "that time is over"),
        ("host/base?until=1e9", "until='1e9'"),
        ("host/base?until=inf", "until='inf'"),
        ("host/base?until=99999999999.5", "no time"),
        ("host/base?seconds=99999999999", "no time"),
        ("host/base?seconds=0", "that time is over"),
        ("host/base?seconds=-1", "seconds='-1'"),
        ("host/base?seconds=1&until=1790000900", "both until and seconds"),
        ("host/base?merg=x", "unknown parameter 'merg'"),
        ("host/base?order=1&order=2", "order is there twice"),
    ],
)
def test_wrong_sources_change_nothing(target: str, what: str) -> None:
    memory = Memory()
    told = bad(memory, "PUT", f"/v1/sources/{target}", BASE)
    assert told.startswith("400 ") and what in told
    assert memory.kept == {}


@pytest.mark.parametrize("merge", ["", MERGE_DEFAULT, "dict(replace)+list()", "list(no_replace,append)"])
def test_merge_types(merge: str) -> None:
    memory = Memory()
    good(memory, "PUT", f"/v1/sources/host/base?merge={merge}", BASE)
    assert memory.kept["host", "base"].merge == merge


def test_seconds_count_from_now() -> None:
    memory = Memory()
    good(memory, "PUT", "/v1/sources/host/base?seconds=90.5&reads=once", BASE)
    kept = memory.kept["host", "base"]
    assert (kept.until, kept.reads) == (NOW + 90.5, Reads.ONCE)


def test_a_watched_file_s_source_is_the_file_s() -> None:
    memory = Memory()
    memory.kept["host", "base"] = Source(HOST, "base", BASE, origin="directory")
    assert bad(memory, "PUT", "/v1/sources/host/base", b"x").startswith("409 ")
    assert bad(memory, "DELETE", "/v1/sources/host/base").startswith("409 ")


def test_a_source_that_is_too_large() -> None:
    memory = Memory()
    assert bad(memory, "PUT", "/v1/sources/host/base", b"x" * (MAX_BODY + 1)).startswith("413 ")
    assert memory.kept == {}
    good(memory, "PUT", "/v1/sources/host/base", b"x" * MAX_BODY)
    good(memory, "PUT", "/v1/sources/host/empty", b"")


def test_preview() -> None:
    memory = Memory()
    good(memory, "PUT", "/v1/sources/host/base", BASE)
    good(memory, "PUT", "/v1/sources/host/v?kind=vendor", b"\xff")
    view = good(memory, "GET", f"/v1/instances/{ONE}/userdata")
    assert [part["id"] for part in view["user"]["parts"]] == ["host/base"]
    assert [part["text"] for part in view["vendor"]["parts"]] == [None]
    assert (view["limit"], view["composition"]) == (49149, "merged")
    assert bad(memory, "PUT", f"/v1/instances/{ONE}/userdata").startswith("405 ")


# --- keys


def test_a_key_is_kept_shown_and_removed() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/kv/host/app/role"
    made = call(memory, "PUT", f"{target}?reads=once&seconds=60", b"\x00web")
    tag = etag(b"\x00web")
    assert made.status == 201 and header(made, b"etag") == f'"{tag}"'
    assert json.loads(made.body) == {"key": "host/app/role", "etag": tag, "revision": 1, "created": True}
    assert memory.stored[ONE, "host/app/role"] == Value(
        "host/app/role", b"\x00web", Reads.ONCE, NOW + 60, 1, NOW
    )
    memory.stored[ONE, "host/app/role"] = Value("host/app/role", b"\x00web", revision=1, changed=NOW)
    raw = call(memory, "GET", target)
    assert (raw.status, raw.body, header(raw, b"etag")) == (200, b"\x00web", f'"{tag}"')
    assert header(raw, b"content-type") == "application/octet-stream"
    listed = {"host/app/role": {"etag": tag, "revision": 1, "changed": NOW, "value": "\x00web"}}
    assert good(memory, "GET", target, accept="application/json") == listed
    for prefix in ("", "/", "/host", "/host/", "/host/app", "/host/app/"):
        assert good(memory, "GET", f"/v1/instances/{ONE}/kv{prefix}") == listed
    assert good(memory, "GET", f"/v1/instances/{ONE}/kv/guest") == {}
    assert good(memory, "GET", f"/v1/instances/{TWO}/kv") == {}
    assert call(memory, "PUT", target, b"").status == 200
    assert call(memory, "GET", target).body == b""
    assert call(memory, "DELETE", target).status == 204
    assert bad(memory, "GET", target).startswith("404 no key host/app/role")
    assert bad(memory, "DELETE", target).startswith("404 ")
    assert {(row.who, row.instance) for row in memory.trail} == {("ops (uid 1)", ONE)}


def test_a_value_that_is_no_text_is_listed_in_base64() -> None:
    memory = Memory()
    good(memory, "PUT", f"/v1/instances/{ONE}/kv/guest/x?reads=confirm&until=99999999999", b"\xff")
    view = good(memory, "GET", f"/v1/instances/{ONE}/kv")["guest/x"]
    assert view["value_base64"] == "/w==" and "value" not in view
    assert (view["reads"], view["until"]) == ("confirm", 99999999999.0)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("a", "begins with host/ or guest/"),
        ("host", "begins with host/ or guest/"),
        ("host//x", "segments are"),
        ("host/../guest/x", "segments are"),
        ("host/a%20b", "segments are"),
        ("host/%00", "segments are"),
        ("host/a%0a", "segments are"),
        ("host/%C3%A9", "segments are"),
        ("host/" + "/".join("abcdefghi"), "8 segments"),
        ("host/" + "a" * 129, "1 to 128"),
        ("host/x?reads=never", "reads='never'"),
        ("host/x?until=1", "that time is over"),
        ("host/x?wait=1", "unknown parameter 'wait'"),
    ],
)
def test_wrong_keys_change_nothing(key: str, what: str) -> None:
    memory = Memory()
    told = bad(memory, "PUT", f"/v1/instances/{ONE}/kv/{key}", b"x")
    assert told.startswith("400 ") and what in told
    assert memory.stored == {}


def test_a_key_is_no_folder() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/kv/host/a"
    good(memory, "PUT", target, b"x")
    assert bad(memory, "PUT", f"{target}/b", b"y").startswith("409 ")
    assert bad(memory, "PUT", f"/v1/instances/{ONE}/kv", b"y").startswith("405 ")
    assert bad(memory, "DELETE", f"/v1/instances/{ONE}/kv/").startswith("405 ")


def test_conditions() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/kv/host/n"
    assert bad(memory, "PUT", target, b"1", if_match="*").startswith("412 ")
    good(memory, "PUT", target, b"1", if_none_match="*")
    assert bad(memory, "PUT", target, b"2", if_none_match="*").startswith("412 ")
    one, two = etag(b"1"), etag(b"2")
    assert bad(memory, "PUT", target, b"2", if_match=f'"{two}"').startswith("412 ")
    assert bad(memory, "DELETE", target, if_match=f'"{two}"').startswith("412 ")
    assert memory.stored[ONE, "host/n"].body == b"1"
    good(memory, "PUT", target, b"2", if_match=f'"abc", "{one}"')
    assert call(memory, "DELETE", target, if_match=two).status == 204, "without quotes, as a shell has it"


@pytest.mark.parametrize("value", ["", "W/\"a\"", '"a b"', "a,", ",".join("a" * 17), "\u00e9", '"' + "a" * 65 + '"'])
def test_conditions_that_are_none(value: str) -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/kv/host/n"
    for condition in ("if_match", "if_none_match"):
        assert bad(memory, "PUT", target, b"1", **{condition: value}).startswith("400 a condition")
    assert memory.stored == {}


# --- waiting


def waiting(memory: Memory, target: str, then: Any, **headers: str) -> tuple[Response, float]:
    """The answer to a GET during which `then` happens, after 50 ms, and the seconds that it took."""

    async def both() -> tuple[Response, float]:
        began = time.monotonic()
        asked = asyncio.ensure_future(Api(memory).handle(ask("GET", target, **headers)))
        await asyncio.sleep(0.05)
        done = then()
        if asyncio.iscoroutine(done):
            await done
        return await asked, time.monotonic() - began

    return run(both())


def together(*waits: Callable[[], tuple[Response, float]]) -> list[tuple[Response, float]]:
    """What comes of several that wait, at the same time."""
    with ThreadPoolExecutor(len(waits)) as threads:
        return [one.result() for one in [threads.submit(wait) for wait in waits]]


def put(memory: Memory, key: str, body: bytes, instance: Any = ONE, until: float | None = None) -> Any:
    return memory.put_key(instance, Value(key, body, until=until), None, None, who="t")


KV = f"/v1/instances/{ONE}/kv"


def test_a_wait_ends_with_a_change() -> None:
    memory = Memory()
    run(put(memory, "guest/a", b"1"))
    answer, took = waiting(memory, f"{KV}/guest/a?wait=9&etag={etag(b'1')}", lambda: put(memory, "guest/a", b"2"))
    assert (answer.status, answer.body) == (200, b"2") and took < 2
    answer, took = waiting(memory, f"{KV}/guest?wait=9", lambda: put(memory, "guest/b", b"3"))
    assert list(json.loads(answer.body)) == ["guest/a", "guest/b"] and took < 2, "no tag: a change from now on"
    tag = header(call(memory, "GET", f"{KV}/guest"), b"etag").strip('"')
    target = f"{KV}/guest?wait=9&etag={tag}"
    again, _ = waiting(memory, target, lambda: memory.delete_key(ONE, "guest/b", None, who="t"))
    assert list(json.loads(again.body)) == ["guest/a"]


def test_a_wait_for_what_changed_already_ends_at_once() -> None:
    memory = Memory()
    run(put(memory, "guest/a", b"1"))
    answer = call(memory, "GET", f"{KV}/guest/a?wait=30&etag=0")
    assert (answer.status, answer.body) == (200, b"1")


def test_a_wait_that_is_over() -> None:
    one, two = Memory(), Memory()
    for memory in (one, two):
        run(put(memory, "guest/a", b"1"))
    tag = etag(b"1")
    (answer, took), (same, _) = together(
        lambda: waiting(one, f"{KV}/guest/a?wait=1&etag={tag}", lambda: put(one, "guest/b", b"2")),
        lambda: waiting(two, f"{KV}/guest/a?wait=1&etag={tag}", lambda: put(two, "guest/a", b"1")),
    )
    assert (answer.status, answer.body, header(answer, b"etag")) == (304, b"", f'"{tag}"')
    assert 0.9 < took < 3
    assert same.status == 304, "written again with the same bytes"


def test_without_a_wait_a_known_tag_is_304() -> None:
    memory = Memory()
    run(put(memory, "guest/a", b"1"))
    tag = etag(b"1")
    assert call(memory, "GET", f"{KV}/guest/a?etag={tag}").status == 304
    assert call(memory, "GET", f"{KV}/guest/a?etag=%22{tag}%22").status == 304
    assert call(memory, "GET", f"{KV}/guest/a", if_none_match=f'"x", "{tag}"').status == 304
    assert call(memory, "GET", f"{KV}/guest/a?etag=x").status == 200
    assert bad(memory, "GET", f"{KV}/guest/a?etag=x%20y").startswith("400 ")
    assert bad(memory, "GET", f"{KV}/guest/a?wait=-1").startswith("400 ")


def test_what_is_not_there_can_be_waited_for() -> None:
    memory = Memory()
    answer, took = waiting(memory, f"{KV}/guest/a?wait=9&etag=0", lambda: put(memory, "guest/a", b"1"))
    assert (answer.status, answer.body) == (200, b"1") and took < 2
    gone, took = waiting(
        memory, f"{KV}/guest/a?wait=9&etag={etag(b'1')}", lambda: memory.delete_key(ONE, "guest/a", None, who="t")
    )
    assert gone.status == 404 and took < 2
    one, two = Memory(), Memory()
    (still, _), (other, _) = together(
        lambda: waiting(one, f"{KV}/guest/a?wait=1&etag=0", lambda: put(one, "guest/ab", b"1")),
        lambda: waiting(two, f"{KV}/guest/a?wait=1&etag=0", lambda: put(two, "guest/a", b"1", TWO)),
    )
    assert still.status == 304
    assert other.status == 304, "another instance's"


def test_a_wait_sees_what_expires() -> None:
    memory = Memory()
    run(put(memory, "host/a", b"1", until=time.time() + 0.4))
    answer, took = waiting(memory, f"{KV}/host/a?wait=9&etag={etag(b'1')}", lambda: None)
    assert answer.status == 404 and took < 3


def test_a_wait_is_half_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    waits: list[float] = []
    answered = memory.kv_changes

    async def changes(after: int, wait: float, *rest: Any) -> Any:
        waits.append(wait)
        memory.stored[ONE, "host/a"] = Value("host/a", b"2")
        return await answered(after, 0, *rest)

    monkeypatch.setattr(memory, "kv_changes", changes)
    assert call(memory, "GET", f"{KV}/host/a?wait=100000&etag=0").body == b"2"
    good(memory, "GET", "/v1/kv/changes?wait=100000")
    assert 29 < waits[0] <= 30 == waits[1]


# --- changes


def test_changes_of_all_instances() -> None:
    memory = Memory()
    run(put(memory, "guest/a", b"1"))
    run(put(memory, "guest/ab", b"1"))
    run(put(memory, "guest/a", b"22", TWO))
    run(memory.delete_key(ONE, "guest/a", None, who="t"))
    view = good(memory, "GET", "/v1/kv/changes")
    assert [(c["seq"], c["instance"], c["key"], c["op"], c["bytes"]) for c in view["changes"]] == [
        (1, str(ONE), "guest/a", "put", 1), (2, str(ONE), "guest/ab", "put", 1), (3, str(TWO), "guest/a", "put", 2),
        (4, str(ONE), "guest/a", "delete", 0),
    ]  # fmt: skip
    assert (view["next"], view["missed"]) == (4, 0)
    assert view["changes"][2]["etag"] == etag(b"22") and view["changes"][3]["etag"] == ""

    def seqs(query: str) -> list[int]:
        return [change["seq"] for change in good(memory, "GET", f"/v1/kv/changes?{query}")["changes"]]

    assert seqs("after=2") == [3, 4]
    assert seqs(f"instance={TWO.hex}") == [3]
    assert seqs("prefix=guest/a") == [1, 3, 4], "whole segments"
    assert seqs("prefix=guest/") == [1, 2, 3, 4] and seqs("prefix=host") == []
    assert seqs("after=99") == [1, 2, 3, 4], "from before a restart"
    memory.forgotten = 2
    assert good(memory, "GET", "/v1/kv/changes?after=1")["missed"] == 1


@pytest.mark.parametrize("query", ["after=x", "wait=x", "instance=web1", "prefix=x", "prefix=/host", "key=host/a"])
def test_wrong_changes(query: str) -> None:
    assert bad(Memory(), "GET", f"/v1/kv/changes?{query}").startswith("400 ")


async def parts_of(answer: Response, count: int) -> list[bytes]:
    assert answer.parts is not None
    found = []
    async for part in answer.parts:
        found.append(part)
        if len(found) == count:
            break
    return found


def test_changes_as_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_resources, "KEEP_ALIVE_SECONDS", 0.05)
    memory = Memory()

    async def follow() -> None:
        await put(memory, "guest/a", b"1")
        api = Api(memory)
        answer = await api.handle(ask("GET", "/v1/kv/changes", accept="text/event-stream"))
        assert header(answer, b"content-type") == "text/event-stream"
        hello, first, alive = await parts_of(answer, 3)
        assert (hello, alive) == (b": changes\n\n", b":\n\n")
        identity, data, *rest = first.split(b"\n")
        assert identity == b"id: 1" and rest == [b"", b""]
        assert json.loads(data.removeprefix(b"data: "))["key"] == "guest/a"
        await put(memory, "guest/b", b"1")
        await put(memory, "guest/c", b"1")
        memory.forgotten = 2
        again = ask("GET", "/v1/kv/changes?after=3", accept="text/event-stream", last_event_id="1")
        _, missed, third = await parts_of(await api.handle(again), 3)
        assert missed == b'event: missed\ndata: {"missed":1}\n\n' and third.startswith(b"id: 3\n")
        for wrong in ("x", "-1", "9" * 19, ""):
            refused = ask("GET", "/v1/kv/changes", accept="text/event-stream", last_event_id=wrong)
            assert (await api.handle(refused)).status == 400

    run(follow())


# --- switches


def test_paths_are_closed_and_opened() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/policy"
    view = good(memory, "PUT", target, {"close": ["/2009-04-04/user-data/", "user-data", "/latest/user-data"]})
    assert view["closed"] == ["/latest/user-data", "user-data"] and view["v4"] == "open"
    assert good(memory, "PUT", target, {"close": ["kv"], "open": ["user-data"]})["closed"] == [
        "/latest/user-data", "kv"
    ]  # fmt: skip
    assert good(memory, "PUT", target, {"closed": ["keys"], "access": "drop"})["closed"] == ["keys"]
    assert good(memory, "PUT", target, {"closed": []})["closed"] == []
    assert memory.policies[ONE] == Policy(Access.DROP, Access.DROP)


def test_auto_and_composition() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/policy"
    view = good(memory, "PUT", target, {"auto": {"seconds": 900, "on_read": True, "how": "403"}})
    assert view["auto"] == {"how": "403", "until": NOW + 900, "on_read": True, "on_ready": False}
    good(memory, "PUT", target, {"auto": {"until": NOW + 5}, "composition": "vendor"})
    assert memory.policies[ONE] == Policy(
        auto=Auto(Access.RESET, NOW + 5), composition=Composition.VENDOR
    )
    view = good(memory, "PUT", target, {"auto": None, "composition": None})
    assert (view["auto"], view["composition"], view["own_composition"]) == (None, "merged", False)
    assert memory.policies[ONE] == Policy()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"close": []}, "nothing to change"),
        ({"close": ["user"]}, "no prefix"),
        ({"close": ["/a//b"]}, "no prefix"),
        ({"close": ["/a/../b"]}, "no prefix"),
        ({"close": ["/a%20b"]}, "no prefix"),
        ({"close": ["/\u00e9"]}, "no prefix"),
        ({"close": ["/" + "a" * 256]}, "no prefix"),
        ({"close": "user-data"}, "close"),
        ({"closed": None}, "closed"),
        ({"closed": ["kv"], "close": ["keys"]}, '"closed" with'),
        ({"close": ["kv"], "open": ["kv"]}, "kv is to be closed and opened"),
        ({"close": ["/1.0/x"], "open": ["/latest/x/"]}, "/latest/x is to be closed and opened"),
        ({"closed": [f"/{n}" for n in range(CLOSED_MAX + 1)]}, f"{CLOSED_MAX + 1} closed prefixes"),
        ({"auto": {}}, "without a time"),
        ({"auto": {"how": "open", "on_read": True}}, "cannot open"),
        ({"auto": {"how": "off", "on_read": True}}, "off"),
        ({"auto": {"until": NOW}}, "that time is over"),
        ({"auto": {"seconds": 0}}, "that time is over"),
        ({"auto": {"seconds": 1e300}}, "no time"),
        ({"auto": {"seconds": 1, "until": NOW + 1}}, "both until and seconds"),
        ({"auto": {"seconds": "1"}}, "seconds"),
        ({"auto": {"after": 1}}, "after"),
        ({"composition": "both"}, "both"),
    ],
)
def test_wrong_switches_change_nothing(change: dict[str, Any], what: str) -> None:
    memory = Memory()
    told = bad(memory, "PUT", f"/v1/instances/{ONE}/policy", {"access": "drop", **change} if change != {"close": []}
               else change)  # fmt: skip
    assert told.startswith("400 ") and what in told
    assert memory.policies == {}


def test_more_than_may_be_closed_is_refused_in_steps_too() -> None:
    many = tuple(f"/{n}" for n in range(CLOSED_MAX))
    full = PolicyChange(closed=many).of(Policy())
    assert PolicyChange(close=("/0",)).of(full) == full, "closed already"
    assert PolicyChange(close=("kv",), open=("/0",)).of(full).closed == (*many[1:], "kv")
    with pytest.raises(InputError):
        PolicyChange(close=("kv",)).of(full)


def test_unlock() -> None:
    memory = Memory()
    memory.policies[ONE] = Policy(latched=("user-data", "/", "/latest/x"))
    target = f"/v1/instances/{ONE}/unlock"
    assert good(memory, "GET", f"/v1/instances/{ONE}/policy")["v4"] == "reset"
    found = good(memory, "POST", target, {"prefix": "/1.0/x"})
    assert found["opened"] == ["/latest/x"] and found["policy"]["latched"] == ["user-data", "/"]
    assert good(memory, "POST", target, {"prefix": "kv"})["opened"] == []
    found = good(memory, "POST", target)
    assert found["opened"] == ["user-data", "/"] and found["policy"]["v4"] == "open"
    assert good(memory, "POST", target, {"prefix": None})["opened"] == []
    assert bad(memory, "POST", target, {"prefix": "x"}).startswith("400 no prefix")
    assert bad(memory, "POST", target, {"prefixes": []}).startswith("400 ")
    assert bad(memory, "POST", target, b"[]").startswith("400 ")
    assert bad(memory, "GET", target).startswith("405 ")
    assert [row.detail for row in memory.trail] == ["/latest/x", "user-data /"]


def test_audit() -> None:
    memory = Memory()
    good(memory, "PUT", f"/v1/instances/{ONE}/policy", {"access": "drop"})
    good(memory, "PUT", f"/v1/instances/{TWO}/policy", {"access": "drop"})
    view = good(memory, "GET", "/v1/audit")
    assert view["rows"][0] == {
        "seq": 1, "time": NOW + 0.5, "who": "ops (uid 1)", "instance": str(ONE), "what": "policy", "detail": ""
    }  # fmt: skip

    def seqs(query: str) -> list[int]:
        return [row["seq"] for row in good(memory, "GET", f"/v1/audit?{query}")["rows"]]

    assert seqs("limit=1") == [2] and seqs("limit=1&after=0") == [1]
    assert seqs(f"instance={ONE}") == [1] and seqs("after=1") == [2] and seqs("after=2") == []
    for wrong in ("limit=x", "after=x", "instance=x", "wait=x", "since=1"):
        assert bad(memory, "GET", f"/v1/audit?{wrong}").startswith("400 ")


def test_audit_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, asked = Memory(), []
    answered = memory.audit

    async def audit(instance: Any, after: Any, limit: Any, wait: Any) -> Any:
        asked.append((instance, after, limit, wait))
        return await answered(instance, after, limit, 0)

    monkeypatch.setattr(memory, "audit", audit)
    good(memory, "GET", "/v1/audit?limit=99999&wait=99999&after=0")
    good(memory, "GET", "/v1/audit?limit=0")
    assert asked == [(None, 0, 1000, 30), (None, None, 100, 0)]


def test_an_instance_s_reports_sources_and_keys() -> None:
    memory = Memory()
    good(memory, "PUT", "/v1/sources/host/base", BASE)
    run(put(memory, "guest/a", b"1"))
    view = good(memory, "GET", f"/v1/instances/{ONE}")
    assert (view["sources"], view["reports"], view["keys"]) == (["host/base"], {"ready": None, "read": None}, 1)


def test_who_asks_is_told() -> None:
    memory = Memory()
    run(Api(memory).handle(ask("PUT", f"/v1/instances/{ONE}/policy", {"access": "drop"})))
    assert memory.trail[0].who == "operator"


# Invariant: whatever the method, address, query, headers or body, the API answers, never with a fault of its own (5xx),
# and every refusal is {"error", "hint"} and has changed nothing.

_PATHS = st.one_of(
    st.tuples(st.sampled_from(["host", "project:p", "tag:a=b", str(ONE), "x", ""]), st.text("ab/-%0.", max_size=5)).map(
        lambda pair: f"/v1/sources/{pair[0]}/{pair[1]}"
    ),
    st.text("abhostguest/%20.~", max_size=14).map(lambda key: f"{KV}/{key}"),
    st.sampled_from([f"{KV}/host/a", f"{KV}/guest", "/v1/kv/changes", f"/v1/instances/{ONE}/unlock", "/v1/audit"]),
)
_PARAMETERS = st.sampled_from(["kind", "owner", "order", "merge", "template", "reads", "until", "seconds", "etag", "x"])
_QUERIES = st.lists(
    st.tuples(_PARAMETERS, st.one_of(st.sampled_from(["once", "user", "7", "true"]), st.text("0.e%-", max_size=4))),
    max_size=3,
).map(lambda pairs: "&".join(f"{key}={value}" for key, value in pairs))
_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"if-match", b"if-none-match", b"accept", b"last-event-id"]),
        st.one_of(st.binary(max_size=8), st.sampled_from([b"*", b'"a"', b"application/json", b"text/event-stream"])),
    ),
    max_size=2,
).map(tuple)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE"]), _PATHS, _QUERIES, _HEADERS, st.binary(max_size=9))
def test_fuzz(method: bytes, path: str, query: str, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
    memory = Memory()
    memory.kept["host", "a"] = Source(HOST, "a", b"x", Kind.USER)
    memory.stored[ONE, "host/a"] = Value("host/a", b"x")
    before = dict(memory.kept), dict(memory.stored), dict(memory.policies)
    answer = run(Api(memory, lambda: NOW).handle(Request(method, path.encode(), query.encode(), headers, body)))
    assert 200 <= answer.status < 500
    if answer.status >= 400:
        assert set(json.loads(answer.body)) == {"error", "hint"}
        assert before == (memory.kept, memory.stored, memory.policies)
    for _, value in answer.headers:
        assert not {b"\r"[0], b"\n"[0], 0} & set(value)


def test_a_kept_source_with_an_owner_from_elsewhere_makes_no_header_of_two_lines() -> None:
    memory = Memory()
    memory.kept["host", "a"] = replace(Source(HOST, "a", b"x"), owner="n\u00e9t\r\nx: y")
    assert header(call(memory, "GET", "/v1/sources/host/a"), b"x-metashim-owner") == "n?t??x: y"
