"""Who did what, and when: every switch, write of a source, lock and one-shot reading is in the trail, in order."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from shim.core.policy import Tokens
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.live import add, api, enrol, trail
from tests.netns.say import get, say
from tests.netns.talk import await_outcome

A, B = uuid_of(1), uuid_of(2)
ROOT, GAMES = "root (uid 0)", "games (uid 5)"
GUEST = "guest on tap-a"


@pytest.fixture(scope="module")
def site() -> Iterator[Hypervisor]:
    with Lab() as lab, Hypervisor(lab, PLENTY + '[control]\ngroup = "games"\n') as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def guest(site: Hypervisor) -> VethGuest:
    enrol(site, "b", B)
    return enrol(site, "a", A, b'{"user_data": "#!/bin/sh\\n"}')


def since(site: Hypervisor, mark: int) -> list[tuple[str, str, str]]:
    """Rows after a number, as (who, what, detail)."""
    return [(row.who, row.what, row.detail) for row in trail(site, after=mark)]


def mark_of(site: Hypervisor) -> int:
    return site.api.audit(limit=1).next


def as_user(site: Hypervisor, user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """curl to the control socket as another user of the host."""
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "curl", "-s", "-f", "--unix-socket"]
    socket = str(site.run / "control.sock")
    return subprocess.run([*command, socket, *arguments], capture_output=True, text=True, check=False)


def test_operators_switches_and_sources(site: Hypervisor, guest: VethGuest) -> None:
    mark, began = mark_of(site), time.time()
    (site.folder / "base").write_text("#!/bin/sh\n")
    site.verb("disable", str(A))
    site.enable(A)
    site.verb("disable", str(A), "--path", "user-data")
    site.api.set_closed(A, open=["user-data"])
    site.verb("auto", str(A), "--after", "1h", "--on-ready")
    site.api.set_auto(A, None)
    site.api.set_tokens(A, Tokens.REQUIRED)
    site.api.set_tokens(A, None)
    site.verb("userdata", "add", "host", "base", str(site.folder / "base"), "--owner", "net")
    api(site).delete_source("host", "base")
    api(site).put_key(A, "host/secret", b"hunter2", {"reads": "once"})
    site.verb("kv", "delete", str(A), "host/secret")
    site.api.put_document(A, b'{"user_data": "#!/bin/sh\\n"}')
    site.api.rotate_keys(drop=True)
    rows = since(site, mark)
    assert {who for who, _, _ in rows} == {ROOT}
    assert [what for _, what, _ in rows] == [
        *["policy"] * 8, "source put", "source remove", "key put", "key remove", "document", "rotate keys",
    ]  # fmt: skip
    details = [detail for _, _, detail in rows]
    assert "reset" in details[0] and "open" in details[1] and "user-data" in details[2]
    assert "auto reset at " in details[4] and "once ready" in details[4] and "auto" not in details[5]
    assert "tokens required" in details[6] and "host/base" in details[8] and "host/secret" in details[10]
    assert not any("hunter2" in detail for detail in details)
    times = [row.time for row in trail(site, after=mark)]
    assert times == sorted(times) and began <= times[0] and times[-1] <= time.time()


def test_what_guests_do(site: Hypervisor, guest: VethGuest) -> None:
    add(site, A, "secret", b"#!/bin/sh\necho hunter2\n", reads="once")
    add(site, A, "sure", b"#!/bin/sh\n", reads="confirm")
    api(site).put_key(A, "host/token", b"t0ken", {"reads": "once"})
    mark = mark_of(site)
    assert get(guest, "/metashim/v1/sources/instance/secret").status == 200
    assert get(guest, "/metashim/v1/kv/host/token").status == 200
    assert say(guest, "POST", "/metashim/v1/sources/instance/sure/confirm").status == 204
    assert say(guest, "POST", "/metashim/v1/ready").status == 204
    assert say(guest, "POST", "/metashim/v1/ready").status == 204
    assert say(guest, "PUT", "/metashim/v1/kv/guest/a", b"1").status == 201
    assert say(guest, "POST", "/metashim/v1/lock?prefix=/2009-04-04/user-data").status == 204
    assert say(guest, "POST", "/metashim/v1/lock").status == 204
    await_outcome(guest, "refused")
    site.verb("unlock", str(A))
    wait_until(lambda: len(since(site, mark)) >= 7, "the rows")
    rows = since(site, mark)
    assert [(who, what) for who, what, _ in rows] == [
        (GUEST, "read once"), (GUEST, "read once"), (GUEST, "confirm"), (GUEST, "ready"),
        (GUEST, "lock"), (GUEST, "lock"), (ROOT, "unlock"), (ROOT, "unlock"),
    ]  # fmt: skip
    details = [detail for _, _, detail in rows]
    assert "instance/secret" in details[0].replace(f":{A}", "") and "host/token" in details[1]
    assert details[4:6] == ["/latest/user-data", "/"] and set(details[6:]) == {"/latest/user-data", "/"}
    assert all(row.instance == A for row in trail(site, after=mark))
    assert not since(site, mark)[len(rows) :] and not [one for one in trail(site, B) if one.seq > mark]


def test_what_comes_about_by_itself(site: Hypervisor, guest: VethGuest) -> None:
    for option, cause, act in (
        ({"on_ready": True}, "ready", lambda: say(guest, "POST", "/metashim/v1/ready")),
        ({"on_read": True}, "read", lambda: get(guest, "/latest/user-data")),
        ({"seconds": 0.5}, "time", lambda: None),
    ):
        site.api.set_auto(A, {"how": "reset", **option})
        mark = mark_of(site)
        act()
        await_outcome(guest, "refused")
        wait_until(lambda mark=mark: "disable" in [what for _, what, _ in since(site, mark)], "the row")
        who, what, detail = since(site, mark)[-1]
        assert who.startswith("agent: ") and cause in who and what == "disable" and "reset" in detail
        site.enable(A)
        await_outcome(guest, str(A))


def test_a_member_of_the_group_is_named(site: Hypervisor, guest: VethGuest) -> None:
    mark = mark_of(site)
    policy = f"http://x/v1/instances/{A}/policy"
    assert as_user(site, "games", "-X", "PUT", "-d", '{"access": "403"}', policy).returncode == 0
    assert as_user(site, "games", "-X", "PUT", "-d", '{"access": "open"}', policy).returncode == 0
    put = ["-X", "PUT", "-d", "#!/bin/sh", "http://x/v1/sources/host/theirs?owner=root"]
    assert as_user(site, "games", *put).returncode == 0
    assert as_user(site, "games", "-X", "DELETE", "http://x/v1/sources/host/theirs").returncode == 0
    assert [(who, what) for who, what, _ in since(site, mark)] == [
        (GAMES, "policy"), (GAMES, "policy"), (GAMES, "source put"), (GAMES, "source remove"),
    ]  # fmt: skip
    assert as_user(site, "daemon", policy).returncode == 7, "who is no member cannot connect"
    assert GAMES in site.verb("audit", str(A)).stdout


def test_what_is_refused_is_not_there_and_all_outlives_the_agent(site: Hypervisor, guest: VethGuest) -> None:
    mark = mark_of(site)
    (site.folder / "bad").write_text("#cloud-config\n{")
    assert site.verb("userdata", "add", "host", "bad", str(site.folder / "bad"), check=False).returncode == 4
    assert site.verb("userdata", "remove", "host", "bad", check=False).returncode == 5
    assert say(guest, "PUT", "/metashim/v1/kv/host/a", b"1").status == 403
    assert say(guest, "POST", "/metashim/v1/lock?prefix=nonsense").status == 400
    assert since(site, mark) == []
    whole = [row.seq for row in trail(site)]
    site.end(signal.SIGKILL)
    site.start()
    assert [row.seq for row in trail(site)][: len(whole)] == whole
    follow = site.lab.run_in_host(
        [*site.argv, "audit", str(A), "--follow", "--json", "-n", "1"], cwd=".", stdout=subprocess.PIPE
    )
    try:
        assert follow.stdout is not None
        follow.stdout.readline()
        say(guest, "POST", "/metashim/v1/lock?prefix=keys")
        row = json.loads(follow.stdout.readline())
        assert (row["who"], row["what"], row["detail"], row["instance"]) == (GUEST, "lock", "keys", str(A))
    finally:
        follow.kill()
        follow.wait()
