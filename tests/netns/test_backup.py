"""A copy of the store, made while guests and operators write, and put back: what guests did is not undone by it."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.lab import Lab, VethGuest
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, trail
from tests.netns.say import get, say
from tests.netns.talk import ID, await_outcome, outcome
from tests.netns.test_live import Waiting, tag

A, B = uuid_of(1), uuid_of(2)
KV = "/metashim/v1/kv"
SECRET = "/metashim/v1/sources/instance/secret"
USER = "/latest/user-data"


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, PLENTY) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def guests(site: Hypervisor) -> tuple[VethGuest, VethGuest]:
    document = b'{"user_data": "#!/bin/sh\\n: own\\n"}'
    return enrol(site, "a", A, document), enrol(site, "b", B, document)


@pytest.fixture(autouse=True)
def open_again(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> Iterator[None]:
    """Each test leaves an agent that runs, and finds both guests served, without sources."""
    yield
    for one in (A, B):
        site.api.set_auto(one, None)
        site.enable(one)
    client = api(site)
    for source in client.sources():
        client.delete_source(source.scope, source.name)
    copy_of(site).unlink(missing_ok=True)


def copy_of(site: Hypervisor) -> Path:
    return site.folder / "copy.db"


def restore(site: Hypervisor, *words: str) -> str:
    return site.verb("restore", str(copy_of(site)), *words).stdout


def test_it_is_of_one_moment_while_guests_and_operators_write(
    site: Hypervisor, guests: tuple[VethGuest, VethGuest]
) -> None:
    """The guest counts in one key, then in the other: no copy has them more than one apart, and no write fails."""
    guest, stop, statuses = guests[0], threading.Event(), set()

    def write_on() -> None:
        for number in range(1, 100_000):
            for key in ("first", "second"):
                if stop.is_set():
                    return
                status = say(guest, "PUT", f"{KV}/guest/{key}", b"%d" % number).status
                statuses.add(status)
                while status == 429:
                    time.sleep(0.05)
                    status = say(guest, "PUT", f"{KV}/guest/{key}", b"%d" % number).status

    def edit_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            add(site, "host", "base", b"#!/bin/sh\n: %d\n" % number + b"#" * 20_000)

    threads = [threading.Thread(target=write_on), threading.Thread(target=edit_on)]
    for one in threads:
        one.start()
    pairs = []
    try:
        for number in range(3):
            target = site.folder / f"copy{number}.db"
            shown = site.verb("backup", str(target))
            assert str(target) in shown.stdout and target.stat().st_mode & 0o777 == 0o600
            with closing(sqlite3.connect(target)) as db:
                rows = db.execute("SELECT key, body FROM kv WHERE instance = ? ORDER BY key", (str(A),)).fetchall()
            found = {key: int(body) for key, body in rows}
            pairs.append((found["guest/first"], found["guest/second"]))
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert statuses <= {201, 204, 429}
    assert all(0 <= first - second <= 1 for first, second in pairs) and pairs == sorted(pairs)
    assert pairs[0] != pairs[-1], "the guest wrote meanwhile"

    done = site.verb("backup", str(site.folder / "copy0.db"), check=False)
    assert done.returncode == 6 and "there already" in done.stderr
    site.verb("backup", str(site.folder / "copy0.db"), "--force")
    done = site.verb("backup", "/proc/copy.db", check=False)
    assert done.returncode == 8 and done.stderr.count("\n") >= 1
    assert not list(site.folder.glob(".copy*"))


def test_what_guests_did_is_not_undone(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    guest, other = guests
    add(site, A, "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
    api(site).put_key(A, "host/token", b"t0ken", {"reads": "once"})
    api(site).put_key(A, "host/role", b"before", {})
    add(site, A, "sure", b"#!/bin/sh\n: sure\n", reads="confirm")
    site.verb("backup", str(copy_of(site)))

    assert get(guest, SECRET).status == get(guest, f"{KV}/host/token").status == 200
    assert say(guest, "POST", "/metashim/v1/sources/instance/sure/confirm").status == 204
    assert say(guest, "POST", "/metashim/v1/lock?prefix=/latest/meta-data").status == 204
    api(site).put_key(A, "host/role", b"after", {})
    add(site, "host", "late", b"#!/bin/sh\n: late\n")
    assert say(other, "POST", "/metashim/v1/lock").status == 204
    await_outcome(other, "refused")
    waiting = Waiting(guest, f"{KV}/host/role?wait=60&etag={tag(get(guest, f'{KV}/host/role'))}")
    before = trail(site)

    refused = site.verb("restore", str(copy_of(site)), check=False)
    assert refused.returncode == 6 and "systemctl stop" in refused.stderr
    assert get(guest, f"{KV}/host/role").body == b"after", "and it changed nothing"

    site.end(signal.SIGQUIT)
    worker = site.worker
    words = restore(site)
    assert "lock" in words
    assert outcome(other) == "refused", "what is in the kernel stays"
    assert get(guest, f"{KV}/host/role").body == b"before", "the workers that went on see it"
    assert get(guest, SECRET).status == 404 and get(guest, ID).status == 403

    site.start()
    assert site.worker == worker, "the same process"
    assert waiting.result().body == b"before"
    assert get(guest, SECRET).status == get(guest, f"{KV}/host/token").status == 404
    assert get(guest, "/metashim/v1/sources/instance/sure").status == 404
    assert get(guest, ID).status == get(guest, "/2009-04-04/meta-data/").status == 403
    assert get(guest, "/metashim/v1/sources/host/late").status == 404
    assert outcome(other) == "refused", "what it locked"
    after = trail(site)
    assert [row.what for row in before] == [row.what for row in after][: len(before)]
    (restored,) = [row for row in after if row.what == "restore"]
    assert restored.who == "root (uid 0)" and str(copy_of(site)) in restored.detail

    assert say(guest, "PUT", f"{KV}/guest/a", b"1").status == 201, "and all goes on"
    api(site).put_key(A, "host/role", b"again", {})
    assert get(guest, f"{KV}/host/role").body == b"again"
    site.verb("unlock", str(A), "/latest/meta-data")
    site.api.unlock(B)
    assert get(guest, ID).body == str(A).encode()
    await_outcome(other, str(B))


def test_copies_and_stores_that_are_none(site: Hypervisor, guests: tuple[VethGuest, VethGuest]) -> None:
    """Refused in words, and the store that was there is in force. If that is broken, no agent starts with it, what was
    refused stays so, and a good copy helps."""
    guest, other = guests
    add(site, "host", "base", b"#!/bin/sh\n: base\n")
    site.disable(B)
    site.verb("backup", str(copy_of(site)))
    site.end(signal.SIGQUIT)
    whole = copy_of(site).read_bytes()
    for name, body, status in (
        ("absent", None, 4),
        ("text", b"no database at all\n" * 500, 8),
        ("broken", whole[:4096] + b"\xa5" * 4096 + whole[8192:], 8),
    ):
        path = site.folder / name
        if body is not None:
            path.write_bytes(body)
        done = site.verb("restore", str(path), check=False)
        assert done.returncode == status and done.stderr.strip() and "Traceback" not in done.stderr, (name, done)
    assert b"base" in get(guest, USER).body, "from the workers that went on"

    (store,) = site.state.glob("*.db")
    store.write_bytes(b"\xa5" * 20_000)
    agent = site.begin()
    assert agent.wait(10) == 8
    said = site.log_text().splitlines()[-2:]
    assert any("metashim restore" in line for line in said) and str(store) in "".join(said), said
    assert "Traceback" not in site.log_text()
    assert outcome(other) == "refused", "in the kernel still"
    restore(site)
    site.start()
    await_outcome(guest, str(A))
    assert outcome(other) == "refused"
