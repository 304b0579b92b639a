"""The client against the API on real Unix sockets, under the plain server and under metashim's own."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shim.control import kv_resources
from shim.control.api import MAX_BODY, Api
from shim.control.client import Client
from shim.control.live_client import LiveClient
from shim.core.kv import etag
from shim.core.policy import Access, Composition, Family, Policy, Tokens
from shim.errors import (
    ConflictError,
    InputError,
    KernelError,
    MetashimError,
    NotFoundError,
    StoreError,
    UnreachableError,
)
from shim.http.limits import Limits
from shim.http.server import Server
from tests.unit.control_memory import NOBODY, ONE, TWO, Host, Memory


@contextmanager
def own_server(
    path: Path, memory: Memory, limits: Limits = Limits(body_bytes=MAX_BODY, whole_bytes=MAX_BODY)  # noqa: B008
) -> Iterator[None]:
    """The API under shim.http's server, as the agent has it."""
    api, loop, ready = Api(memory), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        server: Server[str] = Server(
            lambda _caller, request: api.handle(request), limits, lambda *_: "operator", limit_key=lambda c: c
        )
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        await server.serve([sock])
        ready.set()
        await stop.wait()
        await server.drain(1)

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture(params=[Host, own_server], ids=["plain", "own"])
def client(request: pytest.FixtureRequest, tmp_path: Path, memory: Memory) -> Iterator[LiveClient]:
    path = tmp_path / "control.sock"
    with request.param(path, memory):
        yield LiveClient(path, 5)


def test_a_round_trip_of_everything(client: Client, memory: Memory) -> None:
    assert client.status().uptime_seconds == 11530.5
    assert [p.tap for p in client.ports()] == ["tap10", "tap2", "tap9"]
    assert [i.instance for i in client.instances()] == [ONE, TWO]
    assert client.put_document(ONE, b'{"hostname": "w\xc3\xa9"}') == 1
    assert client.instance(ONE).document == {"hostname": "w\u00e9"}
    policy = client.set_policy(TWO, Access.DROP, [Family.V6], 3)
    assert (policy.v4, policy.v6, policy.hop_limit, policy.own) == ("open", "drop", 3, True)
    assert memory.policies == {TWO: Policy(Access.OPEN, Access.DROP, 3)}
    client.set_policy(TWO, None, [], 9)
    assert memory.policies == {TWO: Policy(Access.OPEN, Access.DROP, 9)}
    assert client.set_tokens(TWO, Tokens.REQUIRED).tokens == "required"
    assert client.set_routes(TWO, {"/": "nova"}).routes == {"/": "nova"} == client.policy(TWO).routes
    assert [(i.instance, i.mode, i.with_token) for i in client.tokens().instances] == [
        (ONE, "optional", 5), (TWO, "required", 0)
    ]  # fmt: skip
    client.set_tokens(TWO, None)
    client.set_routes(TWO, None)
    assert memory.policies == {TWO: Policy(Access.OPEN, Access.DROP, 9)}
    assert (client.rotate_keys().keys, client.rotate_keys(drop=True).keys) == (3, 1)
    assert [c.tap for c in client.counters(TWO)] == ["tap9"]
    assert [c.tap for c in client.counters(tap="tap9", netns="rack1")] == ["tap9"]
    assert len(client.counters()) == 3
    assert client.events(7, 2).events == [] and memory.waited == [2]


def test_a_round_trip_of_sources_keys_and_switches(client: LiveClient, memory: Memory) -> None:
    scope, every = "image:a/b?c#d&e=%2F+", bytes(range(256))
    written = client.put_source(scope, "s", every, {"order": 3, "merge": "", "template": "true", "until": None})
    assert (written.created, written.source.scope, written.source.merge) == (True, scope, "")
    found = client.source(scope, "s")
    assert base64.b64decode(found.body_base64 or "") == every and found.source == written.source
    assert client.sources() == client.sources(scope) == [written.source]
    assert client.sources(instance=ONE) == [] == client.preview(ONE).user.parts
    client.delete_source(scope, "s")
    assert memory.kept == {}

    key = "guest/a~b:@+=,-._/c"
    made = client.put_key(ONE, key, every, {"reads": "once", "seconds": 60.0})
    assert client.values(ONE)[key].etag == client.values(ONE, key)[key].etag == made.etag
    with pytest.raises(ConflictError):
        client.put_key(ONE, key, b"", {}, "x")
    client.put_key(ONE, key, b"2", {}, made.etag)
    client.delete_key(ONE, key, etag(b"2"))
    assert client.values(ONE) == {}
    assert [(c.op, c.bytes) for c in client.changes(0, 0, ONE, "guest").changes] == [
        ("put", 256), ("put", 1), ("delete", 0)
    ]  # fmt: skip
    assert client.changes(3, 1).changes == []

    assert client.set_closed(ONE, ["kv"]).closed == ["kv"]
    assert client.set_closed(ONE, open=["kv"]).closed == []
    auto = client.set_auto(ONE, {"how": "drop", "on_read": True}).auto
    assert auto and (auto.how, auto.on_read, auto.until) == ("drop", True, None)
    assert client.set_auto(ONE, None).auto is None
    assert client.set_composition(ONE, Composition.VENDOR).own_composition
    assert not client.set_composition(ONE, None).own_composition
    memory.policies[ONE] = Policy(latched=("/", "kv"))
    assert client.unlock(ONE, "kv").policy.latched == ["/"]
    assert client.unlock(ONE).opened == ["/"]
    assert [row.what for row in client.audit(ONE, limit=2).rows] == ["unlock", "unlock"]
    assert client.audit(after=0, limit=1).rows[0].what == "source put"


def test_what_is_far_too_large_is_not_sent(client: LiveClient, memory: Memory) -> None:
    with pytest.raises(InputError, match=str(MAX_BODY + 1)):
        client.put_source("host", "x", b" " * (MAX_BODY + 1), {})
    with pytest.raises(InputError, match=str(MAX_BODY + 1)):
        client.put_key(ONE, "host/x", b" " * (MAX_BODY + 1), {})
    assert (memory.kept, memory.stored) == ({}, {})


def curl(path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-si", "--unix-socket", str(path), *arguments], capture_output=True, check=True)


def test_curl_is_a_client(tmp_path: Path, memory: Memory) -> None:
    (tmp_path / "base.yaml").write_bytes(b"#cloud-config\n" + b"# \xff\n" * 40_000)
    path = tmp_path / "s"
    with own_server(path, memory):
        put = curl(path, "-T", str(tmp_path / "base.yaml"), "http://metashim/v1/sources/host/base?order=10&owner=net")
        assert b"HTTP/1.1 201 " in put.stdout
        kept = memory.kept["host", "base"]
        assert (kept.order, kept.owner, kept.body) == (10, "net", (tmp_path / "base.yaml").read_bytes())
        got = curl(path, "http://metashim/v1/sources/host/base").stdout
        assert got.endswith(kept.body) and b"X-Metashim-Owner: net\r\n".lower() in got.lower()
        key = f"http://metashim/v1/instances/{ONE}/kv/host/role"
        assert b" 201 " in curl(path, "-X", "PUT", "-d", "web", key).stdout
        assert curl(path, key).stdout.endswith(b"\r\n\r\nweb")
        assert b" 304 " in curl(path, f"{key}?wait=1&etag={etag(b'web')}").stdout
        assert b" 412 " in curl(path, "-X", "DELETE", "-H", 'If-Match: "x"', key).stdout
        assert b" 204 " in curl(path, "-X", "DELETE", key).stdout


def test_a_stream_comes_as_it_happens_and_outlives_the_server_s_patience(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_resources, "KEEP_ALIVE_SECONDS", 0.3)
    limits = Limits(body_bytes=MAX_BODY, whole_bytes=MAX_BODY, idle_seconds=0.2, body_seconds=0.2, head_seconds=0.2)
    stream = ["curl", "-sN", "-H", "Accept: text/event-stream", "--unix-socket", str(tmp_path / "s")]
    with own_server(tmp_path / "s", memory, limits):
        with subprocess.Popen([*stream, "http://metashim/v1/kv/changes?prefix=guest"], stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert [child.stdout.readline() for _ in range(4)] == [b": changes\n", b"\n", b":\n", b"\n"]
            LiveClient(tmp_path / "s", 5).put_key(TWO, "guest/x", b"1", {})
            while (line := child.stdout.readline()) in (b":\n", b"\n"):
                pass
            assert line == b"id: 1\n" and b'"key":"guest/x"' in child.stdout.readline()
            child.terminate()
        assert Client(tmp_path / "s", 5).status()


def test_names_that_need_quoting(client: Client, memory: Memory) -> None:
    name, netns = "t\u00e9%2e?#&+", "r a&b"
    client.attach(name, ONE, netns)
    assert memory.attached[netns, name] == ONE
    client.detach(name, netns)
    assert (netns, name) not in memory.attached


@pytest.mark.parametrize(
    "error",
    [
        InputError("w\n\u2028", "h"),
        NotFoundError("w"),
        ConflictError("w", "h"),
        KernelError("w", "h"),
        StoreError("w", "h"),
    ],
)
def test_the_agent_s_errors_keep_their_family(client: Client, memory: Memory, error: MetashimError) -> None:
    memory.fail = error
    with pytest.raises(type(error)) as caught:
        client.status()
    assert (type(caught.value), str(caught.value), caught.value.hint) == (type(error), str(error), error.hint)


def test_errors_of_every_operation(client: Client) -> None:
    calls: list[tuple[type[MetashimError], Callable[[], object]]] = [
        (NotFoundError, lambda: client.instance(NOBODY)),
        (InputError, lambda: client.put_document(ONE, b"nonsense")),
        (InputError, lambda: client.put_document(ONE, b'{"hostnam": "x"}')),
        (InputError, lambda: client.set_policy(ONE, None, [])),
        (InputError, lambda: client.set_policy(ONE, None, [], 65)),
        (InputError, lambda: client.attach("a/b", ONE)),
        (ConflictError, lambda: client.attach("tap9", ONE, "rack1")),
        (NotFoundError, lambda: client.detach("tap0")),
        (NotFoundError, lambda: client.counters(NOBODY)),
    ]
    for family, operation in calls:
        with pytest.raises(family) as caught:
            operation()
        assert caught.value.hint


def test_a_document_that_is_far_too_large(client: Client, memory: Memory) -> None:
    with pytest.raises(InputError, match=str(MAX_BODY + 1)):
        client.put_document(ONE, b" " * (MAX_BODY + 1))
    assert memory.documents == {}
    client.put_document(ONE, b"{" + b" " * (MAX_BODY - 2) + b"}")
    assert len(memory.documents[ONE]) == MAX_BODY


def unreachable(path: Path) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        Client(path, 0.2).status()
    assert caught.value.hint
    return caught.value


def test_no_agent(tmp_path: Path) -> None:
    error = unreachable(tmp_path / "none.sock")
    assert "no agent answers on" in str(error) and "metashim agent" in error.hint


def test_an_agent_that_left_its_socket_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
    assert "no agent answers on" in str(unreachable(tmp_path / "s"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="root changes to a user without permission")
def test_no_permission(tmp_path: Path, memory: Memory) -> None:
    path = tmp_path / "s"
    with Host(path, memory):
        path.chmod(0o600)
        tmp_path.chmod(0o700)
        os.seteuid(65534)
        try:
            error = unreachable(path)
        finally:
            os.seteuid(0)
    assert "no permission" in str(error) and "root" in error.hint


@contextmanager
def answering(path: Path, raw: bytes | None, take: int = 65536) -> Iterator[None]:
    """A server that takes `take` bytes, says `raw` and hangs up; without `raw` it says nothing and holds on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        held = []

        def serve() -> None:
            peer, _ = sock.accept()
            held.append(peer)
            if raw is not None:
                peer.recv(take)
                peer.sendall(raw)
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
        for peer in held:
            peer.close()


def test_an_answer_before_the_whole_request_was_taken(tmp_path: Path) -> None:
    raw = b'HTTP/1.1 503 x\r\ncontent-length: 33\r\n\r\n{"error": "full", "hint": "wait"}'
    with answering(tmp_path / "s", raw, take=10), pytest.raises(StoreError, match="full"):
        Client(tmp_path / "s", 5).put_document(ONE, b" " * MAX_BODY)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (None, "did not answer in time"),
        (b"", "broke off"),
        (b"SSH-2.0-x\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not understood"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"version":"\xff"}', "not understood"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater", "status 503"),
        (b"HTTP/1.1 500 x\r\ncontent-length: 2\r\n\r\n\xff{", "status 500"),
    ],
)
def test_answers_that_make_no_sense(tmp_path: Path, raw: bytes | None, what: str) -> None:
    with answering(tmp_path / "s", raw):
        assert what in str(unreachable(tmp_path / "s"))
