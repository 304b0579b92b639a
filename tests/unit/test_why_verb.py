"""The verb `why`, against the API on a real Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.control.live_client import LiveClient
from shim.control.why_shapes import WhyView
from shim.core.prospect import Course, Prospect, Question, Rule
from shim.errors import InputError
from tests.unit.cli_shell import Shell, complete
from tests.unit.control_memory import NOBODY, ONE, Host, Memory

WORKERS = Course((Rule("backend", "embedded", "200 OK", decides=True),), Prospect("answered", "200 OK", 200))




@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def run(tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with Host(tmp_path / "s", memory):
        yield Shell(tmp_path / "s", capsys)


def test_the_verb(run: Shell, memory: Memory) -> None:
    memory.courses[ONE] = WhyView(
        ONE, "4", "GET", "/latest/user-data",
        (
            Rule("tap", "identity", "tap7 is its, as alias says", "identity source alias"),
            Rule("proxy", "token", "optional: it has none, and needs none", "tokens.mode"),
            Rule("backend", "embedded", "200 OK\x1b[2J", decides=True),
        ),
        Prospect("answered", "200 OK", 200, "embedded", "text/plain", 12, "abc", ("source instance/x 4",)),
        "tap7", "red",
    )  # fmt: skip
    done = run("why", ONE, "/latest/user-data")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"GET /latest/user-data of {ONE}, by red/tap7, over IPv4",
        "  tap      identity  tap7 is its, as alias says  [identity source alias]",
        "  proxy    token     optional: it has none, and needs none  [tokens.mode]",
        "> backend  embedded  200 OK?[2J",
        "= 200 OK, from embedded, 12 bytes, text/plain, etag abc",
        "  a guest that reads it uses up source instance/x 4",
    ]
    assert run("why", ONE, "/latest/user-data", "--json").json["prospect"]["status"] == 200


def test_what_the_verb_asks(run: Shell, memory: Memory) -> None:
    headers = ("--header", "X-A: b:c", "--header", "x-a:d")
    asked = ("--method", "put", *headers, "--data", "v", "--with-token", "--family", "6")
    assert run("why", ONE, "/latest/?x=1", *asked).code == 0
    assert memory.questions == [Question("/latest/?x=1", "6", "PUT", (("X-A", "b:c"), ("x-a", "d")), "v", True)]
    assert run("why", NOBODY, "/").code == 5
    assert run("why", ONE, "latest").code == 4
    assert run("why", ONE, "/", "--header", "nothing").code == 4
    assert run("why", ONE, "/", "--family", "5").code == 2
    assert run("why", ONE, "/", "--method", "G T").code == 4


def test_without_a_tap(run: Shell, memory: Memory) -> None:
    memory.courses[ONE] = WhyView(
        ONE, "6", "GET", "/", (Rule("tap", "identity", "no tap", decides=True),), Prospect("dropped", "nothing"),
        supposed=WORKERS,
    )  # fmt: skip
    assert run("why", ONE, "/", "--family", "6").out.splitlines() == [
        f"GET / of {ONE}, by no tap, over IPv6",
        "> tap      identity  no tap",
        "= nothing",
        "",
        "If it had a tap here:",
        "> backend  embedded  200 OK",
        "= it would get 200 OK",
    ]


def test_completion(run: Shell) -> None:
    assert str(ONE) in complete(run.path, "why ")
    assert "/latest/user-data" in complete(run.path, f"why {ONE} /latest/us")
    assert complete(run.path, f"why {ONE} / --family ") == ["4", "6"]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"path": "x"}, {"path": "/\r\nx"}, {"path": "/" + "x" * 8192}, {"path": "/", "family": "5"},
        {"path": "/", "method": ""}, {"path": "/", "method": "a b"}, {"path": "/", "headers": [["a b", "c"]]},
        {"path": "/", "headers": [["a", "b\r\nc: d"]]}, {"path": "/", "headers": [["a", "b"]] * 65},
        {"path": "/", "headers": {"a": "b"}}, {"path": "/", "body": "x" * 262_145}, {"path": "/", "x": 1},
    ],
)  # fmt: skip
def test_what_is_no_question(run: Shell, memory: Memory, body: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LiveClient(run.path).why(ONE, body)
    assert memory.questions == []
