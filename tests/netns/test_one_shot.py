"""What can be read once is read once: by many at a time, whatever breaks, and whoever is killed at whatever instant."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.say import Reply, at_once, get, parse, request, say
from tests.netns.talk import ID, connect

A = uuid_of(1)
SECRET = b"s3cret-" + b"x" * 2000
PATH = "/metashim/v1/sources/instance/secret"
KEY = "/metashim/v1/kv/host/secret"


@pytest.fixture
def guest(site: Hypervisor) -> VethGuest:
    site.configure("[datapath]\nconnection_rate = 100000\nconnection_burst = 100000\nflows_per_port = 1024\n",
                   proxy="connections_per_instance = 256\n")  # fmt: skip
    site.start()
    made = site.lab.veth_guest("one", "tapone", mac="02:00:00:00:00:07", v4="10.0.0.7/24")
    site.api.attach(made.tap, A)
    site.await_port(made.tap, A)
    return made


def put_secret(site: Hypervisor, body: bytes = SECRET, name: str = "secret") -> None:
    (site.folder / "secret").write_bytes(body)
    site.verb("userdata", "add", str(A), name, str(site.folder / "secret"), "--once")


def put_large(site: Hypervisor) -> bytes:
    """A key of more than any socket's buffers take, to be read once."""
    body = os.urandom(800_000)
    (site.folder / "large").write_bytes(body)
    site.verb("kv", "set", str(A), "host/secret", f"@{site.folder / 'large'}", "--once")
    return body


def bodies(found: list[Reply | Exception]) -> list[bytes]:
    return [one.body for one in found if isinstance(one, Reply) and one.status == 200]


def test_a_hundred_readers_at_once_get_it_once(site: Hypervisor, guest: VethGuest) -> None:
    put_secret(site)
    found = at_once([guest], PATH, 100)
    assert bodies(found) == [SECRET]
    others = [one.status for one in found if isinstance(one, Reply) and one.status != 200]
    assert len(others) == 99 and set(others) <= {410, 404}, "who waited for it, and who came later"
    assert get(guest, PATH).status == 404


def test_a_key_too_and_one_written_again_is_new(site: Hypervisor, guest: VethGuest) -> None:
    for text in ("first", "second"):
        site.verb("kv", "set", str(A), "host/secret", text, "--once")
        assert bodies(at_once([guest], KEY, 50)) == [text.encode()]
    assert site.verb("kv", "list", str(A)).stdout.count("host/secret") == 0


def test_with_two_workers(site: Hypervisor, guest: VethGuest) -> None:
    site.end(signal.SIGTERM)
    site.configure("[datapath]\nconnection_rate = 100000\nconnection_burst = 100000\n",
                   proxy="workers = 2\nconnections_per_instance = 256\n")  # fmt: skip
    site.start()
    site.await_port(guest.tap, A)
    for _ in range(3):
        put_secret(site)
        assert bodies(at_once([guest], PATH, 60)) == [SECRET]


def test_composed_user_data_holds_it_once_and_goes_on_without(site: Hypervisor, guest: VethGuest) -> None:
    (site.folder / "base").write_text("#cloud-config\npackages: [base]\n")
    site.verb("userdata", "add", "host", "base", str(site.folder / "base"))
    put_secret(site, b"#!/bin/sh\necho hunter2\n")
    found = at_once([guest], "/latest/user-data", 20)
    texts = [one.body for one in found if isinstance(one, Reply)]
    assert [one.status for one in found if isinstance(one, Reply)] == [200] * 20
    assert sum(b"hunter2" in text for text in texts) == 1
    assert texts.count(b"#cloud-config\npackages: [base]\n") == 19
    assert b"hunter2" not in get(guest, "/openstack/latest/user_data").body


def test_head_listings_and_304_use_nothing_up(site: Hypervisor, guest: VethGuest) -> None:
    put_secret(site)
    for path in ("/metashim/v1/sources/", "/metashim/v1/sources/?alt=json", "/latest/", "/metashim/v1/"):
        assert SECRET not in get(guest, path).body
    with connect(guest) as sock:
        sock.sendall(request("HEAD", PATH))
        head = b""
        while more := sock.recv(65536):
            head += more
    assert b" 200 " in head and SECRET not in head
    assert get(guest, PATH).body == SECRET


def is_gone(guest: VethGuest) -> bool:
    """Whether nothing is left to be read there; a worker that was just killed cannot say."""
    with contextlib.suppress(OSError, ValueError):
        return get(guest, PATH).status == 404
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_who_breaks_off_before_the_last_byte_leaves_it_to_the_next(site: Hypervisor, guest: VethGuest) -> None:
    """A guest that takes a part of it: what is larger than its window cannot have arrived."""
    body = put_large(site)
    for _ in range(5):
        sock = guest.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("169.254.169.254", 80))
        sock.sendall(request("GET", KEY))
        sock.recv(1000)
        reset(sock)
    assert get(guest, KEY).body == body
    assert get(guest, KEY).status == 404


def test_who_waits_gets_it_when_the_first_breaks_off(site: Hypervisor, guest: VethGuest) -> None:
    body = put_large(site)
    first = guest.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    first.connect(("169.254.169.254", 80))
    first.sendall(request("GET", KEY))
    first.recv(1000)
    with connect(guest) as second:
        second.sendall(request("GET", KEY))
        time.sleep(0.2)
        reset(first)
        raw = b""
        while more := second.recv(65536):
            raw += more
    assert parse(raw).body == body


def test_without_an_agent_it_cannot_be_read_and_is_not_lost(site: Hypervisor, guest: VethGuest) -> None:
    put_secret(site)
    site.end(signal.SIGKILL)
    assert get(guest, PATH).status == 503
    assert get(guest, ID).body == str(A).encode(), "all else is served"
    site.start()
    assert get(guest, PATH).body == SECRET


def test_confirmed_is_gone_and_until_then_it_stays(site: Hypervisor, guest: VethGuest) -> None:
    (site.folder / "secret").write_bytes(SECRET)
    site.verb("userdata", "add", str(A), "secret", str(site.folder / "secret"), "--confirm")
    assert [get(guest, PATH).body for _ in range(3)] == [SECRET] * 3
    assert say(guest, "POST", f"{PATH}/confirm").status == 204
    assert get(guest, PATH).status == 404
    assert "confirm" in site.verb("audit", str(A)).stdout


def test_a_deadline_ends_it(site: Hypervisor, guest: VethGuest) -> None:
    (site.folder / "secret").write_bytes(SECRET)
    site.verb("userdata", "add", str(A), "secret", str(site.folder / "secret"), "--for", "2s")
    assert get(guest, PATH).body == SECRET
    with connect(guest, timeout=10) as sock:  # who waits is told at that time
        began = time.monotonic()
        sock.sendall(request("GET", f"{PATH}?wait=30&etag={get(guest, PATH).etag.strip(chr(34))}"))
        raw = b""
        while more := sock.recv(65536):
            raw += more
    assert parse(raw).status == 404 and time.monotonic() - began < 4
    assert get(guest, PATH).status == 404


@pytest.mark.timeout(300)
def test_whoever_is_killed_at_whatever_instant_nobody_reads_it_twice(site: Hypervisor, guest: VethGuest) -> None:
    """Agent and workers are killed at random instants while guests read, and secret follows secret. One that was read
    whole is never read again; one that was not is read in the end, unless a process was killed between the commit and
    the last byte, which the audit trail tells."""
    chance = random.Random(4)
    whole: list[bytes] = []
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, ValueError):
                reply = get(guest, PATH, timeout=3)
                if reply.status == 200:
                    whole.append(reply.body)

    readers = [threading.Thread(target=read_on) for _ in range(4)]
    for one in readers:
        one.start()
    written = []
    try:
        for number in range(25):
            body = b"%d " % number + os.urandom(3000)
            written.append(body)
            put_secret(site, body)
            time.sleep(chance.random() * 0.03)
            if number % 2:
                site.end(signal.SIGKILL)
                site.start()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(site.worker, signal.SIGKILL)
                site.await_workers()
        wait_until(lambda: is_gone(guest), "the last one to be read", 10)
    finally:
        stop.set()
        for one in readers:
            one.join()
    assert len(whole) == len(set(whole)), "one was delivered twice"
    assert set(whole) <= set(written)
    assert len(whole) >= len(written) - 3, "more than a few were overtaken by the next, or lost"
