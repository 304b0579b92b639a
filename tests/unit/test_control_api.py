"""The control API over the reference operations: every resource, every error, and a fuzzer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.control.api import MAX_BODY, Api
from shim.core.exchange import Request, Response
from shim.core.policy import Access, Policy, Tokens
from shim.errors import (
    ConfigError,
    ConflictError,
    InputError,
    KernelError,
    MetashimError,
    NotFoundError,
    StoreError,
)
from tests.unit.control_memory import NOBODY, ONE, TWO, Memory


def call(memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"") -> Response:
    path, _, query = target.partition("?")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(method.encode("latin-1"), path.encode(), query.encode(), (), raw)
    return asyncio.run(Api(memory).handle(request))


def good(memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"") -> Any:
    answer = call(memory, method, target, body)
    assert answer.status in (200, 201), answer.body
    assert (b"content-type", b"application/json") in answer.headers and answer.body.endswith(b"\n")
    return json.loads(answer.body)


def bad(memory: Memory, method: str, target: str, body: bytes | dict[str, Any] = b"") -> tuple[int, str, str]:
    answer = call(memory, method, target, body)
    assert (b"content-type", b"application/json") in answer.headers
    problem = json.loads(answer.body)
    assert set(problem) == {"error", "hint"} and problem["error"]
    return answer.status, problem["error"], problem["hint"]


def test_status() -> None:
    view = good(Memory(), "GET", "/v1/status")
    assert (view["version"], view["datapath"], view["states"]["serving"]) == ("0.1.0", "ebpf", 2)
    assert view["ailments"] == [{"part": "identity", "what": "file: bad", "hint": "mend it"}]


def test_ports_and_instances() -> None:
    ports = good(Memory(), "GET", "/v1/ports/")["ports"]
    assert {(p["netns"], p["tap"], p["instance"]) for p in ports} == {
        ("", "tap10", str(ONE)),
        ("", "tap2", None),
        ("rack1", "tap9", str(TWO)),
    }
    found = good(Memory(), "GET", "/v1/instances")["instances"]
    assert {i["instance"]: i["taps"] for i in found} == {str(ONE): ["tap10"], str(TWO): ["tap9"]}


def test_a_document_is_kept_shown_and_forgotten() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE.hex.upper()}"
    assert good(memory, "PUT", target, b'{"hostname": "w"}') == {"instance": str(ONE), "revision": 1}
    assert memory.documents == {ONE: b'{"hostname": "w"}'}, "the bytes that were sent"
    view = good(memory, "GET", target)
    assert (view["document"], view["revision"]) == ({"hostname": "w"}, 1)
    gone = call(memory, "DELETE", target)
    assert (gone.status, gone.body) == (204, b"")
    assert good(memory, "GET", target)["document"] is None
    assert bad(memory, "DELETE", target)[0] == 404


def test_policy_changes_only_what_is_named() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/policy"
    assert good(memory, "GET", target) == {
        "v4": "open", "v6": "open", "hop_limit": 64, "own": False, "tokens": "optional", "routes": {"/": "embedded"},
        "own_tokens": False, "own_routes": False, "closed": [], "latched": [], "auto": None, "composition": "merged",
        "own_composition": False,
    }  # fmt: skip
    assert good(memory, "PUT", target, {"access": "drop", "families": ["6"]})["v6"] == "drop"
    assert good(memory, "PUT", target, {"hop_limit": 2})["hop_limit"] == 2
    assert memory.policies[ONE] == Policy(Access.OPEN, Access.DROP, 2)
    good(memory, "PUT", target, {"access": "403"})
    assert memory.policies[ONE] == Policy(Access.FORBID, Access.FORBID, 2)
    good(memory, "PUT", target, {"access": "open", "families": ["4", "6"], "hop_limit": 64})
    assert memory.policies[ONE] == Policy()


def test_tokens_and_routes_of_a_policy() -> None:
    memory = Memory()
    target = f"/v1/instances/{ONE}/policy"
    good(memory, "PUT", target, {"access": "drop"})
    view = good(memory, "PUT", target, {"tokens": "required"})
    assert (view["tokens"], view["own_tokens"], view["v4"]) == ("required", True, "drop")
    routes = {"/": "nova", "/latest/user-data": "embedded"}
    view = good(memory, "PUT", target, {"routes": routes})
    assert (view["routes"], view["own_routes"], view["tokens"]) == (routes, True, "required")
    assert memory.policies[ONE] == Policy(
        Access.DROP, Access.DROP, tokens=Tokens.REQUIRED, routes=tuple(routes.items())
    )
    good(memory, "PUT", target, {"tokens": None})
    assert memory.policies[ONE].tokens is None and memory.policies[ONE].routes
    view = good(memory, "PUT", target, {"routes": None, "hop_limit": 3})
    assert memory.policies[ONE] == Policy(Access.DROP, Access.DROP, 3)
    assert (view["own_tokens"], view["own_routes"]) == (False, False)


def test_token_counts() -> None:
    memory = Memory()
    good(memory, "PUT", f"/v1/instances/{TWO}/policy", {"tokens": "off"})
    assert good(memory, "GET", "/v1/tokens") == {
        "mode": "optional",
        "instances": [
            {"instance": str(ONE), "mode": "optional", "own": False, "with_token": 5, "without_token": 2,
             "token_refused": 1},
            {"instance": str(TWO), "mode": "off", "own": True, "with_token": 0, "without_token": 0,
             "token_refused": 0},
        ],
    }  # fmt: skip


def test_keys_are_rotated() -> None:
    memory = Memory()
    assert good(memory, "POST", "/v1/tokens/rotate") == {"keys": 3, "begins_seconds": 60.0}
    assert good(memory, "POST", "/v1/tokens/rotate/", {"drop": True})["keys"] == 1
    assert bad(memory, "POST", "/v1/tokens/rotate", {"drop": "yes"})[0] == 400
    assert bad(memory, "POST", "/v1/tokens/rotate", {"now": True})[0] == 400
    assert bad(memory, "GET", "/v1/tokens/rotate")[0] == 405
    assert bad(memory, "POST", "/v1/tokens")[0] == 405
    assert bad(memory, "POST", "/v1/tokens/other")[0] == 404
    assert bad(memory, "POST", "/v1/tokens/rotate/x")[0] == 404
    assert memory.keys == 1


ROUTES = [
    ({}, 'no backend for "/"'),
    ({"/latest": "nova"}, 'no backend for "/"'),
    ({"/": "nova", "latest": "nova"}, "'latest' is no path prefix"),
    ({"/": "nova", "/a b": "nova"}, "'/a b' is no path prefix"),
    ({"/": "nova", "/%61": "nova"}, "'/%61' is no path prefix"),
    ({"/": "nova", "/a\n": "nova"}, "is no path prefix"),
    ({"/": "nova", "/a": "nova", "/a/": "embedded"}, "'/a' is there twice"),
    ({"/": "nova", "/a/../b": "nova"}, "segment of dots"),
    ({"/": "swift"}, "there is no backend 'swift'"),
    ({"/": 1}, "expected str"),
    ("nova", "expected"),
    ({"/": "nova"} | {f"/{n}": "nova" for n in range(32)}, "33 routes"),
    ({"/": "http"}, "the backend http is not set up"),
]


@pytest.mark.parametrize(("routes", "what"), ROUTES, ids=str)
def test_wrong_routes_change_nothing(routes: object, what: str) -> None:
    memory = Memory()
    status, error, hint = bad(memory, "PUT", f"/v1/instances/{ONE}/policy", {"access": "drop", "routes": routes})
    assert status == 400 and hint and what in error
    assert memory.policies == {}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"tokens": "on"}', "on"),
        (b'{"tokens": ["off"]}', "tokens"),
        (b'{"access": null}', "nothing to change"),
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "expected object"),
        (b"null", "expected object"),
        (b"\xff", "malformed"),
        (b'{"access": "open"} x', "trailing"),
        (b'{"access": "\xff"}', "utf-8"),
        (b'{"access": "closed"}', "closed"),
        (b'{"access": 403}', "access"),
        (b'{"access": "open", "family": "4"}', "family"),
        (b'{"access": "open", "families": "4"}', "families"),
        (b'{"access": "open", "families": [4]}', "families"),
        (b'{"access": "open", "families": ["5"]}', "families"),
        (b'{"access": "open", "families": []}', "empty"),
        (b'{"families": ["4"]}', "without"),
        (b"{}", "nothing to change"),
        (b'{"hop_limit": 0}', "hop_limit"),
        (b'{"hop_limit": 65}', "hop_limit"),
        (b'{"hop_limit": true}', "hop_limit"),
        (b'{"hop_limit": 1.5}', "hop_limit"),
        (b'{"hop_limit": 99999999999999999999999}', "hop_limit|integer|number"),
        (b'{"access": "reset", "hop_limit": 0}', "hop_limit"),
    ],
)
def test_wrong_policies_change_nothing(body: bytes, what: str) -> None:
    memory = Memory()
    status, error, hint = bad(memory, "PUT", f"/v1/instances/{ONE}/policy", body)
    assert status == 400 and hint
    assert any(word in error for word in what.split("|")), error
    assert memory.policies == {}


def test_attach_and_detach() -> None:
    memory = Memory()
    body = {"tap": "tap2", "instance": ONE.hex}
    answer = call(memory, "POST", "/v1/attachments", json.dumps(body).encode())
    assert answer.status == 201
    assert json.loads(answer.body) == {"tap": "tap2", "instance": str(ONE), "netns": ""}
    assert memory.attached["", "tap2"] == ONE
    assert {"tap": "tap9", "instance": str(TWO), "netns": "rack1"} in good(memory, "GET", "/v1/attachments")[
        "attachments"
    ]
    assert bad(memory, "POST", "/v1/attachments", {**body, "instance": str(TWO)})[0] == 409
    assert call(memory, "DELETE", "/v1/attachments/tap2").status == 204
    assert bad(memory, "DELETE", "/v1/attachments/tap9")[0] == 404, "another namespace's"
    assert call(memory, "DELETE", "/v1/attachments/tap9?netns=rack1").status == 204
    assert memory.attached == {}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"tap": "tap2"}, "instance"),
        ({"instance": str(ONE)}, "tap"),
        ({"tap": "a/b", "instance": str(ONE)}, "'a/b'"),
        ({"tap": "tap2", "instance": "x"}, "'x'"),
        ({"tap": "tap2", "instance": str(ONE), "netns": ".."}, "'..'"),
        ({"tap": "tap2", "instance": str(ONE), "ns": ""}, "ns"),
        ({"tap": 2, "instance": str(ONE)}, "tap"),
    ],
)
def test_wrong_attachments_change_nothing(body: dict[str, Any], what: str) -> None:
    memory = Memory()
    before = dict(memory.attached)
    status, error, hint = bad(memory, "POST", "/v1/attachments", body)
    assert status == 400 and what in error and hint
    assert memory.attached == before


def test_counters_of_all_of_an_instance_and_of_a_tap() -> None:
    def taps(query: str) -> list[str]:
        return [p["tap"] for p in good(Memory(), "GET", f"/v1/counters{query}")["ports"]]

    assert taps("") == ["tap10", "tap2", "tap9"]
    assert taps(f"?instance={TWO}") == ["tap9"]
    assert taps("?tap=tap2") == ["tap2"]
    assert taps("?tap=tap9&netns=rack1") == ["tap9"]
    assert bad(Memory(), "GET", "/v1/counters?tap=tap9")[0] == 404
    assert bad(Memory(), "GET", f"/v1/counters?instance={NOBODY}")[0] == 404


def test_events_wait_at_most_half_a_minute() -> None:
    memory = Memory()
    good(memory, "GET", "/v1/events?after=3&wait=9")
    good(memory, "GET", "/v1/events?wait=100000")
    good(memory, "GET", "/v1/events")
    assert memory.waited == [9, 30, 0]


@pytest.mark.parametrize(
    ("target", "status", "what"),
    [
        ("/", 404, "no such resource"),
        ("/v1", 404, "no such resource"),
        ("/v2/status", 404, "no such resource"),
        ("/v1/statuses", 404, "no such resource"),
        ("/v1/status/x", 404, "no such resource"),
        (f"/v1/instances/{ONE}/policy/x", 404, "no such resource"),
        (f"/v1/instances/{ONE}/secrets", 404, "no such resource"),
        ("/v1/instances//policy", 404, "no such resource"),
        (f"/v1/instances/{NOBODY}", 404, "not known"),
        ("/v1/instances/web1", 400, "'web1'"),
        ("/v1/instances/%ff", 400, "UTF-8"),
        ("/v1/status?verbose=1", 400, "verbose"),
        ("/v1/counters?tab=tap1", 400, "tab"),
        ("/v1/counters?tap=a&tap=b", 400, "twice"),
        (f"/v1/counters?tap=a&instance={ONE}", 400, "both"),
        ("/v1/counters?netns=x", 400, "without tap"),
        ("/v1/counters?tap=", 400, "''"),
        ("/v1/events?after=-1", 400, "after"),
        ("/v1/events?after=1e3", 400, "after"),
        ("/v1/events?wait=%C2%B2", 400, "wait"),
        (f"/v1/events?after={'9' * 40}", 400, "after"),
    ],
)
def test_wrong_addresses(target: str, status: int, what: str) -> None:
    answer = bad(Memory(), "GET", target)
    assert answer[0] == status and what in answer[1] and answer[2]


def test_near_misses_are_named() -> None:
    assert bad(Memory(), "GET", "/v1/counters?tab=tap1")[2] == "did you mean tap?"
    assert "/v1/attachments, /v1/audit, /v1/counters, /v1/events" in bad(Memory(), "GET", "/v1/x")[2]


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/v1/status", b"GET"),
        ("PATCH", f"/v1/instances/{ONE}", b"GET, PUT, DELETE"),
        ("DELETE", f"/v1/instances/{ONE}/policy", b"GET, PUT"),
        ("PUT", "/v1/attachments", b"GET, POST"),
        ("GET", "/v1/attachments/tap1", b"DELETE"),
        ("get", "/v1/ports", b"GET"),
    ],
)
def test_a_method_that_is_not_for_the_resource(method: str, target: str, allow: bytes) -> None:
    answer = call(Memory(), method, target)
    assert answer.status == 405 and (b"allow", allow) in answer.headers


def test_a_body_that_is_too_large() -> None:
    memory = Memory()
    status, error, _ = bad(memory, "PUT", f"/v1/instances/{ONE}", b" " * (MAX_BODY + 1))
    assert status == 413 and str(MAX_BODY + 1) in error
    assert memory.documents == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("w", "h"), 400),
        (NotFoundError("w", "h"), 404),
        (ConflictError("w", "h"), 409),
        (KernelError("w", "h", 1), 500),
        (ConfigError("w", "h"), 500),
        (MetashimError("w", "h"), 500),
        (StoreError("w", "h"), 503),
    ],
)
def test_what_the_agent_raises_is_told(error: MetashimError, status: int) -> None:
    memory = Memory()
    memory.fail = error
    assert bad(memory, "GET", "/v1/status") == (status, "w", "h")


def test_a_document_nested_beyond_reason() -> None:
    deep = b'{"networks": ' + b"[" * 50000 + b"]" * 50000 + b"}"
    assert bad(Memory(), "PUT", f"/v1/instances/{ONE}", deep)[0] == 400


# Invariant: whatever the method, address, query or body, the API answers, never with a fault of its own
# (5xx), and every refusal is {"error", "hint"} and has changed nothing.

_NAMES = st.sampled_from(["status", "ports", "instances", "attachments", "counters", "events", "policy", "x"])
_ITEMS = st.one_of(st.sampled_from([str(ONE), str(NOBODY), "tap2", "%2e%2e", "%00", ""]), st.text(max_size=6))
_PATHS = st.lists(st.one_of(_NAMES, _ITEMS), max_size=4).map(lambda parts: "/v1/" + "/".join(parts))
_PAIRS = st.tuples(st.sampled_from(["after", "tap", "netns", "instance"]), st.text("0a/%&=", max_size=5))
_QUERIES = st.one_of(
    st.text(max_size=20),
    st.lists(_PAIRS, max_size=3).map(lambda pairs: "&".join(f"{k}={v}" for k, v in pairs)),
)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("reset")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_MEMBERS = st.sampled_from(["access", "families", "hop_limit", "tap", "instance", "netns", "hostname", "x"])
_BODIES = st.one_of(
    st.binary(max_size=40),
    _VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(_MEMBERS, _VALUES, max_size=4).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b'{"access": "\\ud800"}', b'{"tap": "\\u0000", "instance": "x"}', b"\xef\xbb\xbf{}"]),
)
_METHODS = st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"HEAD", b"\xff"])


@settings(max_examples=600, deadline=None)
@given(_METHODS, _PATHS, _QUERIES, _BODIES)
def test_fuzz(method: bytes, path: str, query: str, body: bytes) -> None:
    memory, untouched = Memory(), Memory()
    request = Request(method, path.encode(), query.encode(), (), body)
    answer = asyncio.run(Api(memory).handle(request))
    assert 200 <= answer.status < 500
    if answer.status >= 400:
        assert set(json.loads(answer.body)) == {"error", "hint"}
        changed = (memory.documents, memory.policies, memory.attached)
        assert changed == (untouched.documents, untouched.policies, untouched.attached)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [("PUT", f"/v1/instances/{ONE}/policy"), ("PUT", f"/v1/instances/{ONE}"), ("POST", "/v1/attachments")]
    ),
    _BODIES,
)
def test_fuzz_bodies(operation: tuple[str, str], body: bytes) -> None:
    memory = Memory()
    answer = call(memory, *operation, body)
    assert answer.status in (200, 201, 400, 409)
