"""Guests that ask for what cannot be, ask too often, wait without end, and never read; operators that mistype. Each is
told, the store holds nothing of it, no process ends, and the neighbour is served as before."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import string
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from shim.errors import InputError
from tests.lab import Lab, VethGuest
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, leave, reset, rest_of
from tests.netns.say import get, parse, request, say
from tests.netns.talk import ID, connect

A, B = uuid_of(1), uuid_of(2)
KV = "/metashim/v1/kv"
GCE = {"Metadata-Flavor": "Google"}
ATTRIBUTES = "/computeMetadata/v1/instance/guest-attributes"
DOCUMENT = b'{"meta": {"enable-guest-attributes": "TRUE"}, "user_data": "#!/bin/sh\\n"}'
SETTINGS = "[sources]\nlimit_bytes = 1048576\n[kv]\nwrites_per_second = 10000\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    settings = f"{PLENTY}flows_per_port = 4096\n{SETTINGS}"
    with Lab() as lab, Hypervisor(lab, settings, proxy="body_bytes = 4194304\n") as one:
        one.start()
        yield one


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    return enrol(site, "a", A, DOCUMENT), enrol(site, "b", B, DOCUMENT)


@pytest.fixture
def guest(guests: tuple[VethGuest, VethGuest]) -> VethGuest:
    return guests[0]


@pytest.fixture(autouse=True)
def unharmed(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> Iterator[None]:
    """Nothing ended, and the neighbour is served."""
    worker, agent = site.worker, site.agent
    yield
    assert site.worker == worker and agent is not None and agent.poll() is None
    assert "Traceback" not in site.log_text() and "makes no sense" not in site.log_text()
    assert get(guests[1], ID).body == str(B).encode()
    client = api(site)
    for one in client.sources():
        client.delete_source(one.scope, one.name)


def status_of(guest: VethGuest, raw: bytes) -> int:
    """The status of what is sent as it is; 0 where the connection ends without one."""
    with connect(guest) as sock:
        sock.sendall(raw)
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(rest_of(sock).split()[1])
    return 0


ODD = [
    "guest/../host/a", "guest/./a", "guest//a", "guest/", "guest", "", "host/a", "Guest/a", "guest/a/", "GUEST/a",
    "guest/%2e%2e/host/a", "guest/%2E%2E/%2e%2e/x", "guest/a%2fb", "guest/a%5cb", "guest/a%00b", "guest/%", "guest/%zz",
    "guest/a%0d%0aX:%20y", "guest/%c3%a4", "guest/%ff", "guest/a b", "guest/" + "a/" * 20 + "a", "guest/" + "x" * 129,
    "guest/" + "x" * 9_000, "guest/a;b=c", "guest/a?wait=1&etag=x", "../../../etc/passwd", "guest/*", "guest/'--",
    "guest/a#b", "guest/{{7*7}}", "host/../guest/x/../../host/a", "guest/confirm", "guest/%67uest/../a",
]  # fmt: skip


def test_odd_keys(site: Hypervisor, guest: VethGuest) -> None:
    """Whatever is written has a key below guest/ that `parse_key` takes; most of it is refused."""
    chance = random.Random(7)
    letters = string.printable + "äß\u2028\x00/%../"
    odd = [*ODD, *("guest/" + "".join(chance.choices(letters, k=chance.randint(1, 40))) for _ in range(150))]
    for key in odd:
        for method in ("PUT", "DELETE"):
            path = f"{KV}/{key}".encode("utf-8", "surrogateescape")
            head = b"%s %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"
            status = status_of(guest, head % (method.encode(), path))
            assert status in (0, 200, 201, 204, 400, 403, 404, 405, 409, 414, 431), (key, status)
    for namespace in ("..", "%2e%2e", "host", "a/b", "x" * 200, "a%00", ""):
        assert say(guest, "PUT", f"{ATTRIBUTES}/{namespace}/k", b"1", GCE).status in (200, 400, 404, 405)
    keys = list(api(site).values(A))
    assert all(one.startswith("guest/") and ".." not in one and len(one) <= 256 for one in keys), keys
    for one in keys:
        api(site).delete_key(A, one)


def test_what_is_too_large_or_too_many(site: Hypervisor, guest: VethGuest) -> None:
    for size, status in ((262_144, 201), (262_145, 413), (400_000, 413), (2_000_000, 413), (5_000_000, 413)):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is told before it has sent all
            assert say(guest, "PUT", f"{KV}/guest/large", b"x" * size).status == status
    assert say(guest, "PUT", f"{ATTRIBUTES}/a/b", b"x" * 600_000, GCE).status == 413
    tags = ", ".join(f'"{number:064}"' for number in range(16))
    assert say(guest, "PUT", f"{KV}/guest/large", b"x" * 262_144, {"If-Match": tags}).status == 412
    assert say(guest, "PUT", f"{KV}/guest/large", b"1", {"If-Match": tags + ', "17"'}).status == 400
    assert say(guest, "PUT", f"{KV}/guest/large", b"1", {"If-Match": f'"{"x" * 65}"'}).status == 400
    assert say(guest, "DELETE", f"{KV}/guest/large").status == 204


def test_more_that_is_read_once_than_can_be_claimed_is_refused_when_it_is_written(
    site: Hypervisor, guest: VethGuest
) -> None:
    for number in range(64):
        add(site, A if number % 2 else "host", f"s{number}", b"#!/bin/sh\n: %d\n" % number, reads="once")
    for scope in (A, "host"):
        with pytest.raises(InputError, match="read once"):
            add(site, scope, "one-more", b"#!/bin/sh\n", reads="once")
    assert get(guest, "/latest/user-data").body.count(b"#!/bin/sh") == 65
    assert get(guest, "/latest/user-data").body == b"#!/bin/sh\n"


@pytest.mark.parametrize("path", [f"{KV}/guest/", ID, "/latest/user-data", "/metashim/v1/sources/"])
def test_waits_that_make_no_sense(guest: VethGuest, path: str) -> None:
    assert say(guest, "PUT", f"{KV}/guest/a", b"1").status in (201, 204)
    for query, status in (
        ("wait=-1", 400), ("wait=NaN", 400), ("wait=inf", 400), ("wait=1e9", 400), ("wait=", 400), ("wait=0x5", 400),
        ("wait=1&wait=2", 400), ("wait=1&etag=a&etag=b", 400), ("wait=5;etag=x", 400), ("wait=%00", 400),
        ("wait=99999999999", 400), (f"wait=5&etag={'x' * 5000}", 200), ("wait=5&etag=%ff%fe", 200),
        ("wait=300&etag=W/%22x%22", 200), ("etag=x", 200), ("WAIT=5", 200), ("wait=0&etag=x", 200),
        ("wait_for_change=true&last_etag=x", 200), ("&&&=&=x", 200), ("%77ait=x", 400),
    ):  # fmt: skip
        began = time.monotonic()
        reply = get(guest, f"{path}?{query}")
        assert reply.status == status, (query, reply)
        assert time.monotonic() - began < 1, query
    gce = "/computeMetadata/v1/instance/attributes/?wait_for_change=true"
    for query in ("timeout_sec=-1", "timeout_sec=x", "timeout_sec=1&timeout_sec=2", "last_etag=a&last_etag=b"):
        assert say(guest, "GET", f"{gce}&{query}", headers=GCE).status == 400, query


def test_locks_that_make_no_sense_lock_nothing(guest: VethGuest) -> None:
    for query in (
        "prefix=", "prefix=latest", "prefix=/a/../b", "prefix=/%2e%2e", "prefix=/a&prefix=/b", "prefx=/a", "prefix=//",
        "prefix=/" + "x" * 300, "prefix=/a%00", "prefix=user_data", "prefix=/a%20b", "&x", "prefix=/%ff",
    ):  # fmt: skip
        assert say(guest, "POST", f"/metashim/v1/lock?{query}").status == 400, query
    assert say(guest, "POST", "/metashim/v1/lock", b'{"prefix": "/latest"}').status == 400
    assert say(guest, "POST", "/metashim/v1/lock", headers={"X-Forwarded-For": "10.0.0.9"}).status == 403
    assert get(guest, "/metashim/v1/lock").body == b""


def test_operators_who_mistype(site: Hypervisor, guest: VethGuest) -> None:
    """By the socket itself, as the client checks before it asks."""
    for method, path in (
        ("PUT", "/v1/sources/..%2f..%2fetc/passwd"), ("PUT", "/v1/sources/host/..%2fx"), ("PUT", "/v1/sources/host/.."),
        ("PUT", "/v1/sources/tag:x/name"), ("PUT", "/v1/sources/instance:1/name"), ("PUT", "/v1/sources/host/"),
        ("PUT", f"/v1/sources/{A}/document"), ("PUT", "/v1/sources/host/x?order=1000"), ("GET", "/v1/sources/host/%00"),
        ("PUT", "/v1/sources/host/x?until=nan"), ("PUT", "/v1/sources/host/x?seconds=-5"),
        ("PUT", "/v1/sources/host/x?n=1"), ("DELETE", "/v1/sources/host/no"),
        ("PUT", f"/v1/instances/{A}/kv/guest/../host"), ("PUT", f"/v1/instances/{A}/kv/other/a"),
        ("PUT", f"/v1/instances/{A}/kv/host/a%2f..%2fb"), ("PUT", "/v1/instances/../kv/host/a"),
        ("GET", "/v1/kv/changes?after=-1"), ("GET", "/v1/kv/changes?wait=x"), ("GET", "/v1/audit?limit=x"),
        ("GET", f"/v1/instances/{A}/kv/?wait=x"), ("POST", f"/v1/instances/{A}/unlock"),
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(site.run / "control.sock"))
            sock.sendall(request(method, path, b"#!/bin/sh\n" if method != "GET" else b""))
            reply = parse(rest_of(sock))
        assert reply.status in (400, 404, 405) and reply.json["error"], (method, path, reply)
    assert not api(site).sources() and not [key for key in api(site).values(A) if key.startswith("host/")]


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slowest(guest: VethGuest, times: int = 60) -> float:
    """Seconds, of so many requests on connections of their own; the slowest but two, as others share this machine."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        assert get(guest, ID).status == 200
        took.append(time.monotonic() - began)
    return sorted(took)[-3]


def test_sixty_four_who_wait_and_never_read(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """Streams that are not read, of a large value that changes again and again: the neighbour notices nothing, and the
    worker keeps little of it."""
    guest, other = guests
    client = api(site)
    client.put_key(A, "host/large", b"x" * 200_000, {})
    before, quick = resident(site.worker), slowest(other)
    socks = []
    for number in range(63):
        sock = guest.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("169.254.169.254", 80))
        accept = {"Accept": "text/event-stream"} if number % 2 else {}
        sock.sendall(request("GET", f"{KV}/host/large?wait=300&etag=none", headers=accept))
        socks.append(sock)
    for number in range(30):
        client.put_key(A, "host/large", b"%d" % number + b"x" * 200_000, {})
    assert slowest(other) < max(10 * quick, 0.25)
    assert resident(site.worker) - before < 63 * 400_000
    with connect(guest) as last:
        last.sendall(request("GET", ID))
        assert b" 200 " in rest_of(last), "its own 64th"
        with connect(guest) as more:
            more.sendall(request("GET", ID))
            assert more.recv(100)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 429")
    for sock in socks:
        reset(sock)
    assert get(guest, f"{KV}/host/large").body.startswith(b"29x")


def test_sixty_four_idle_watches(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    guest, other = guests
    api(site).put_key(A, "host/idle", b"1", {})
    quick = slowest(other)
    etag = get(guest, f"{KV}/host/idle").etag.strip('"')
    socks = [connect(guest, timeout=5) for _ in range(64)]
    for sock in socks:
        sock.sendall(request("GET", f"{KV}/host/idle?wait=60&etag={etag}"))
    assert slowest(other) < max(10 * quick, 0.25)
    with connect(guest) as more:
        assert b" 429 " in more.recv(1000)
    api(site).put_key(A, "host/idle", b"2", {})
    assert [parse(rest_of(sock)).body for sock in socks] == [b"2"] * 64


def slow_reader(guest: VethGuest) -> socket.socket:
    """One that has begun to read a secret, and goes no further."""
    slow = guest.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("169.254.169.254", 80))
    slow.sendall(request("GET", f"{KV}/host/secret"))
    assert slow.recv(1)
    return slow


@pytest.mark.parametrize("how", ["disable", "close", "detach", "rewrite", "delete"])
def test_a_slow_reader_is_in_nobodys_way_once_it_may_read_no_more(
    site: Hypervisor, guest: VethGuest, how: str
) -> None:
    secret = os.urandom(200_000)
    api(site).put_key(A, "host/secret", secret, {"reads": "once"})
    slow = slow_reader(guest)
    if how == "disable":
        site.disable(A)
        site.enable(A)
    elif how == "close":
        site.api.set_closed(A, close=["kv"])
        with pytest.raises(ConnectionResetError):  # it reads on, but to no end
            rest_of(slow)
        site.api.set_closed(A, open=["kv"])
    elif how == "detach":
        site.api.detach(guest.tap)
        site.await_port(guest.tap, None)
        site.api.attach(guest.tap, A)
        site.await_port(guest.tap, A)
    elif how == "rewrite":
        secret = os.urandom(1_000)
        api(site).put_key(A, "host/secret", secret, {"reads": "once"})
    else:
        api(site).delete_key(A, "host/secret")
        api(site).put_key(A, "host/secret", secret, {"reads": "once"})
    began = time.monotonic()
    assert get(guest, f"{KV}/host/secret", timeout=10).body == secret
    assert time.monotonic() - began < 2
    assert get(guest, f"{KV}/host/secret").status == 404
    slow.close()


def test_thousands_who_ask_for_a_secret_and_leave(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """One reads it as slowly as it can; all others wait for that, but those who gave up are forgotten, and who is left
    has it as soon as the slow one has gone."""
    guest, other = guests
    secret = os.urandom(200_000)
    api(site).put_key(A, "host/secret", secret, {"reads": "once"})
    slow = slow_reader(guest)
    leave(guest, f"{KV}/host/secret", 1500, step=0)
    with connect(guest, timeout=15) as patient:
        patient.sendall(request("GET", f"{KV}/host/secret"))
        assert slowest(other) < 0.25, "the neighbour"
        assert say(guest, "PUT", f"{KV}/guest/a", b"1").status in (201, 204), "its own writes"
        began = time.monotonic()
        reset(slow)
        reply = parse(rest_of(patient))
        assert reply.body == secret and time.monotonic() - began < 3
    assert get(guest, f"{KV}/host/secret").status == 404


def test_the_same_secret_by_other_ways_while_it_is_read(site: Hypervisor, guest: VethGuest) -> None:
    """Pipelined, by streams and waits, with conditions, in all faces: never twice."""
    secret = b"#!/bin/sh\necho hunter2\n"
    path = "/latest/user-data"
    for _ in range(3):
        add(site, A, "secret", secret, reads="once")
        one = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        raws = [
            one * 5 + request("GET", path),
            request("GET", f"{path}?wait=1&etag=x"),
            request("GET", "/openstack/latest/user_data", headers={"If-None-Match": '"x"', "Range": "bytes=0-5"}),
            request("GET", "/computeMetadata/v1/instance/attributes/user-data?alt=json", headers=GCE),
            request("GET", "/computeMetadata/v1/?recursive=true", headers=GCE),
            request("GET", "/computeMetadata/v1/instance/attributes/user-data?wait_for_change=true&timeout_sec=1",
                    headers=GCE),
            request("GET", "/metashim/v1/user-data"),
            request("GET", "/metashim/v1/sources/instance/secret"),
            request("HEAD", path),
            request("GET", path, headers={"Accept": "text/event-stream"}),
        ]  # fmt: skip
        socks = [connect(guest, timeout=5) for _ in raws]
        for sock, raw in zip(socks, raws, strict=True):
            sock.sendall(raw)
        found = b""
        for sock in socks:
            sock.settimeout(3 if sock is not socks[-1] else 0.3)  # a stream has no end
            with contextlib.suppress(OSError):
                while more := sock.recv(65536):
                    found += more
            sock.close()
        assert found.count(b"hunter2") == 1



def test_names_that_are_no_names_of_sources(guest: VethGuest) -> None:
    for name in ("../kv/host/a", "host/../../kv", "%2e%2e/x", "host/" + "x" * 5000, "tag:a/b", "host/a%2fconfirm", "*"):
        path = f"/metashim/v1/sources/{quote(name, safe='/%')}"
        assert get(guest, path).status in (400, 404, 414), name
        assert say(guest, "POST", f"{path}/confirm").status in (400, 404, 405, 414), name
