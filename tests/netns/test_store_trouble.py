"""A disk that is full, or read-only, under an agent that runs: who reads goes on, who writes is told, and nothing that
was acknowledged or is secret is lost; with room again all goes on by itself."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, trail
from tests.netns.say import get, say
from tests.netns.talk import ID, await_outcome, outcome
from tests.netns.test_live import Waiting, tag

A, B = uuid_of(1), uuid_of(2)
KV = "/metashim/v1/kv"
SECRET = "/metashim/v1/sources/instance/secret"
HUNTER = b"#!/bin/sh\necho hunter2\n"
FULL_SETTINGS = "[kv]\nwrites_per_second = 1000\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    """Its store is on a small disk of its own."""
    with Lab() as lab, Hypervisor(lab, PLENTY + FULL_SETTINGS) as made:
        made.state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0755", "tmpfs", str(made.state)]
        subprocess.run(mount, check=True)
        try:
            made.start()
            yield made
        finally:
            made.kill()
            made.lab.host.run(["true"])
            with contextlib.suppress(subprocess.CalledProcessError):
                remount(made, "rw")
            subprocess.run(["umount", "-l", str(made.state)], check=True)


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    return enrol(site, "a", A), enrol(site, "b", B)


def remount(site: Hypervisor, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(site.state)], check=True, capture_output=True)


@contextlib.contextmanager
def full(site: Hypervisor) -> Iterator[None]:
    """No byte is left on the store's disk; there is room again at the end."""
    ballast = site.state / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


def fill_log(guest: VethGuest) -> int:
    """Writes until the log's own room is used up too; the status that ends it."""
    for number in range(200):
        status = say(guest, "PUT", f"{KV}/guest/filler", b"%d" % number + b"x" * 30_000).status
        if status not in (201, 204):
            return status
    raise AssertionError("the disk is never full")


def fails(site: Hypervisor, *words: str) -> None:
    done = site.verb(*words, check=False)
    assert done.returncode == 8 and str(site.state) in done.stderr and done.stderr.count("\n") >= 2, done


def test_a_full_disk(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    guest, other = guests
    add(site, "host", "base", b"#!/bin/sh\n: base\n")
    add(site, A, "secret", HUNTER, reads="once", order=900)
    api(site).put_key(A, "host/role", b"web", {})
    assert say(guest, "PUT", f"{KV}/guest/kept", b"kept").status == 201
    waiting = Waiting(guest, f"{KV}/host/role?wait=60&etag={tag(get(guest, f'{KV}/host/role'))}")
    new = site.folder / "new"
    new.write_bytes(b"#!/bin/sh\n" + b": new\n" * 5000)
    with full(site):
        assert fill_log(guest) == 507
        assert say(other, "PUT", f"{KV}/guest/mine", b"x" * 30_000).status == 507
        fails(site, "userdata", "add", "host", "new", str(new))
        fails(site, "kv", "set", str(A), "host/role", f"@{new}")
        fails(site, "backup", str(site.state / "copy.db"))
        assert get(guest, ID).body == str(A).encode()
        assert get(guest, f"{KV}/guest/kept").body == b"kept" and get(guest, f"{KV}/host/role").body == b"web"
        assert get(other, "/latest/user-data").body == b"#!/bin/sh\n: base\n"
        once(guest)
        assert outcome(other) == str(B)
        assert [one.part for one in site.api.status().ailments] == ["store"]
    assert say(guest, "PUT", f"{KV}/guest/kept", b"more").status == 204
    assert say(other, "PUT", f"{KV}/guest/mine", b"x" * 30_000).status == 201
    assert not site.api.status().ailments
    assert get(guest, SECRET).body == HUNTER and get(guest, SECRET).status == 404, "it was not lost, and is read once"
    api(site).put_key(A, "host/role", b"db", {})
    assert waiting.result().body == b"db"
    assert "Traceback" not in site.log_text()
    assert not [one for one in trail(site) if "new" in one.detail], "what failed is not in the trail"


def once(guest: VethGuest) -> None:
    """What cannot be kept to have been read is not read: told by a status, or by a connection that breaks."""
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError, ValueError):
            reply = get(guest, SECRET)
            assert reply.status == 503 and HUNTER not in reply.body, reply


def test_what_ends_by_being_read_ends_once_that_can_be_kept(
    site: Hypervisor, guests: tuple[VethGuest, VethGuest]
) -> None:
    """An access that is to end with the first reading of user-data does not go on because the disk was full then."""
    guest, _ = guests
    add(site, "host", "base", b"#!/bin/sh\n: base\n")
    site.verb("auto", str(A), "--on-read")
    with full(site):
        assert fill_log(guest) == 507
        assert get(guest, "/latest/user-data").status == 200
        time.sleep(0.7)
    await_outcome(guest, "refused", seconds=8)
    site.enable(A)
    await_outcome(guest, str(A))


def test_a_guest_that_cannot_lock_is_told_so(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    guest, _ = guests
    with full(site):
        assert fill_log(guest) == 507
        assert say(guest, "POST", "/metashim/v1/lock?prefix=kv").status == 507
        assert get(guest, "/metashim/v1/lock").body == b"", "neither told so nor so"
    assert say(guest, "POST", "/metashim/v1/lock?prefix=kv").status == 204
    assert get(guest, f"{KV}/").status == 403
    site.verb("unlock", str(A))
    assert get(guest, f"{KV}/").status == 200


def test_a_disk_that_became_read_only(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """As the kernel remounts one that fails: the store's open files go with it."""
    guest, other = guests
    add(site, A, "secret", HUNTER, reads="once")
    assert say(guest, "PUT", f"{KV}/guest/kept", b"kept").status in (201, 204)
    site.kill()  # a remount waits for those who write
    subprocess.run(["fuser", "-s", str(site.state)], check=False)
    with contextlib.ExitStack() as stack:
        try:
            remount(site, "ro")
        except subprocess.CalledProcessError:
            pytest.skip("the kernel does not remount it while a worker reads")
        stack.callback(remount, site, "rw")
        assert get(guest, ID).body == str(A).encode()
        assert get(guest, f"{KV}/guest/kept").body == b"kept"
        assert get(guest, SECRET).status == 503
        agent = site.begin()
        assert agent.wait(10) == 8
        said = site.log_text()[-400:]
        assert str(site.state) in said and "Traceback" not in said
    site.start()
    assert get(guest, SECRET).body == HUNTER
    wait_until(lambda: outcome(other) == str(B), "all to go on")


def test_a_state_folder_that_went(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """Somebody removes the store under a running agent: guests get 503, nobody else's and no made-up data."""
    guest, _ = guests
    (store,) = site.state.glob("*.db")
    away = Path(f"{store}.away")
    store.rename(away)
    try:
        wait_until(lambda: get(guest, ID).status == 503, "the workers to see it", 3)
    finally:
        away.rename(store)
    wait_until(lambda: get(guest, ID).status == 200, "it to be there again", 3)
