"""Session tokens through the whole of it: what operators say holds when the verb returns, and over restarts."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

from shim.core.policy import Tokens
from tests.lab import VethGuest
from tests.lab.namespace import wait_until
from tests.netns.hypervisor import Hypervisor, uuid_of
from tests.netns.talk import ID, V4, V6, connect

TTL = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "x-aws-ec2-metadata-token"


@pytest.fixture
def guest(site: Hypervisor) -> VethGuest:
    site.start()
    made = site.lab.veth_guest("tokens", "taptokens", mac="02:00:00:00:00:07", v4="10.0.0.7/24")
    made.instance = uuid_of(1)
    site.api.attach(made.tap, made.instance)
    site.await_port(made.tap, made.instance)
    return made


def say(guest: VethGuest, method: str, path: str, address: str = V4, **headers: str) -> tuple[int, str]:
    """Status and body of one request."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with connect(guest, address) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: metadata\r\nconnection: close\r\n{lines}\r\n".encode())
        raw = b""
        while more := sock.recv(65536):
            raw += more
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def token_of(guest: VethGuest, address: str = V4) -> str:
    status, token = say(guest, "PUT", "/latest/api/token", address, **{TTL: "600"})
    assert status == 200 and token
    return token


def seen(guest: VethGuest, token: str | None = None, address: str = V4) -> int:
    return say(guest, "GET", ID, address, **({TOKEN: token} if token else {}))[0]


def test_modes_keys_and_counts(site: Hypervisor, guest: VethGuest) -> None:
    assert (seen(guest), seen(guest, token_of(guest)), seen(guest, "A" * 44)) == (200, 200, 401)
    assert "tokens required after" in site.verb("tokens", "required", str(guest.instance)).stdout
    token = token_of(guest)
    assert [seen(guest), seen(guest, token), seen(guest, token, V6)] == [401, 200, 200]
    site.verb("rotate-keys")
    assert seen(guest, token) == 200
    site.verb("rotate-keys", "--drop")
    assert (seen(guest, token), seen(guest, token_of(guest))) == (401, 200)
    site.verb("tokens", "off", str(guest.instance))
    assert (seen(guest), say(guest, "PUT", "/latest/api/token", **{TTL: "600"})[0]) == (200, 404)

    def counted() -> bool:
        (use,) = [one for one in site.api.tokens().instances if one.instance == guest.instance]
        return use.with_token >= 5 and use.without_token >= 1 and use.token_refused >= 3 and use.mode == "off"

    wait_until(counted, "the counts")
    assert site.verb("tokens").stdout.splitlines()[1].split()[:2] == [str(guest.instance), "off"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT])
def test_tokens_and_modes_outlive_the_agent(site: Hypervisor, guest: VethGuest, number: signal.Signals) -> None:
    site.api.set_tokens(guest.instance, Tokens.REQUIRED)
    token = token_of(guest)
    site.end(number)
    site.start()
    site.await_port(guest.tap, guest.instance)
    assert (seen(guest), seen(guest, token), seen(guest, token_of(guest))) == (401, 200, 200)
    keys = site.state / "token.keys"
    assert (keys.stat().st_mode & 0o777, keys.stat().st_uid) == (0o600, 0)


def test_a_store_of_the_first_schema_is_brought_along(site: Hypervisor, guest: VethGuest) -> None:
    site.api.set_policy(guest.instance, None, [], 9)
    site.end(signal.SIGTERM)
    make_first_schema(site.state / "metashim.db")
    site.start()
    site.await_port(guest.tap, guest.instance)
    assert site.api.policy(guest.instance).hop_limit == 9
    site.api.set_tokens(guest.instance, Tokens.REQUIRED)
    assert (seen(guest), seen(guest, token_of(guest))) == (401, 200)


FIRST_SCHEMA = """
    CREATE TABLE counter (last INTEGER NOT NULL);
    INSERT INTO counter VALUES (0);
    CREATE TABLE documents (
        instance TEXT PRIMARY KEY, body BLOB NOT NULL, revision INTEGER NOT NULL, changed REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE policies (
        instance TEXT PRIMARY KEY, v4 TEXT NOT NULL, v6 TEXT NOT NULL, hop_limit INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE attachments (
        netns TEXT NOT NULL, tap TEXT NOT NULL, instance TEXT NOT NULL, PRIMARY KEY (netns, tap)
    ) WITHOUT ROWID;
    PRAGMA application_id = 1836279913;
    PRAGMA user_version = 1;
"""


def make_first_schema(path: Path) -> None:
    """The store as the first version of metashim would have it, with these policies and attachments."""
    former = sqlite3.connect(path)
    policies = former.execute("SELECT instance, v4, v6, hop_limit FROM policies").fetchall()
    attachments = former.execute("SELECT netns, tap, instance FROM attachments").fetchall()
    former.close()
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.unlink(missing_ok=True)
    first = sqlite3.connect(path)
    first.executescript(FIRST_SCHEMA)
    first.executemany("INSERT INTO policies VALUES (?, ?, ?, ?)", policies)
    first.executemany("INSERT INTO attachments VALUES (?, ?, ?)", attachments)
    first.commit()
    first.close()


def test_damaged_keys_are_said_and_nobody_is_let_in(site: Hypervisor, guest: VethGuest) -> None:
    site.api.set_tokens(guest.instance, Tokens.REQUIRED)
    token = token_of(guest)
    site.end(signal.SIGTERM)
    (site.state / "token.keys").write_text("nonsense")
    site.start()
    site.await_port(guest.tap, guest.instance)
    assert seen(guest, token) == 401
    assert say(guest, "PUT", "/latest/api/token", **{TTL: "600"})[0] == 503
    (ailment,) = [one for one in site.api.status().ailments if one.part == "tokens"]
    assert "damaged" in ailment.what and ailment.hint
