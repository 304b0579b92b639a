"""`metashim check` of backends: secrets, certificates, who can be reached right now, and the keys of tokens."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.check_backends import backends
from shim.config import Config, parse
from shim.finding import Finding
from shim.keys import KeyFile

USER = next(user.pw_name for user in pwd.getpwall() if user.pw_uid)
pytestmark = [
    pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="secrets are root's")
]  # fmt: skip


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class Site:
    """A folder with a secret, and a configuration with these settings of Nova's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text("s3cret\n")
        self.secret.chmod(0o600)

    def config(self, *addresses: str, more: str = "") -> Config:
        listed = ", ".join(f'"{one}"' for one in addresses)
        text = f"""
            [host]\nstate_dir = "{self.folder}"
            [proxy]\nuser = "{USER}"
            [nova]\naddresses = [{listed}]\nsecret_file = "{self.secret}"\n{more}"""
        return parse(text.encode(), "m.toml")

    def found(self, *addresses: str, more: str = "") -> list[Finding]:
        found = list(backends(self.config(*addresses, more=more)))
        assert all(one.hint for one in found if one.level != "ok")
        assert "s3cret" not in repr(found)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_nothing_is_said_of_what_is_not_configured(tmp_path: Path) -> None:
    assert list(backends(parse(f'[host]\nstate_dir = "{tmp_path}"\n'.encode(), "m.toml"))) == []


def test_all_is_well(site: Site, listener: socket.socket) -> None:
    KeyFile(site.folder / "token.keys", 0.0)
    assert [(one.level, one.what) for one in site.found(address(listener))] == [
        ("ok", "nova: its secret"),
        ("ok", f"nova: {address(listener)} can be reached"),
        ("ok", f"{site.folder}/token.keys: for root alone"),
    ]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_secret_that_others_may_read(site: Site, listener: socket.socket, mode: int) -> None:
    site.secret.chmod(mode)
    (about,) = [one for one in site.found(address(listener)) if "others" in one.what]
    assert (about.level, about.hint) == ("warn", f"chmod 600 {site.secret}")


def test_a_secret_that_is_empty_or_not_there(site: Site, listener: socket.socket) -> None:
    site.secret.write_text(" \n")
    empty = site.found(address(listener))[0]
    assert empty.level == "fail" and "empty" in empty.what
    site.secret.unlink()
    gone = site.found(address(listener))[0]
    assert gone.level == "fail" and f"{site.secret}: No such file" in gone.what


def test_certificates_are_read(site: Site) -> None:
    key, certificate = site.folder / "key.pem", site.folder / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made = [*make, "-subj", "/CN=a", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    key.chmod(0o604)
    own = f'certificate_file = "{certificate}"\nkey_file = "{key}"\n'
    good = site.found("https://127.0.0.1:1", more=own + f'ca_file = "{certificate}"\n')
    assert good[0] == Finding("ok", "nova: its secret and certificates")
    (loose,) = [one.what for one in good if "others" in one.what]
    assert loose == f"nova.key_file: {key} has mode 0604: others may read it"
    key.write_text("nonsense")
    bad = site.found("https://127.0.0.1:1", more=own)[0]
    assert bad.level == "fail" and str(key) in bad.what
    absent = site.found("https://127.0.0.1:1", more='ca_file = "/nowhere/ca.pem"\n')[0]
    assert absent.level == "fail" and "/nowhere/ca.pem: No such file" in absent.what


def test_who_cannot_be_reached_is_named(site: Site, listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = address(gone)
    found = site.found(closed, address(listener), "http://no-such-host.invalid:1", "unix:/nowhere/sock")
    about = {one.what.split()[1]: one for one in found if "reached" in one.what}
    assert {where: one.level for where, one in about.items()} == {
        closed: "warn", address(listener): "ok", "http://no-such-host.invalid:1": "warn", "unix:/nowhere/sock": "warn"
    }  # fmt: skip
    assert about[closed].what.endswith("cannot be reached: Connection refused")
    assert about["unix:/nowhere/sock"].what.endswith("No such file or directory")


def test_one_that_does_not_answer_takes_a_second(site: Site) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):  # the queue is full now
            silent = address(full)
            found = site.found(silent)
    assert [one.what for one in found if one.level == "warn"] == [f"nova: {silent} cannot be reached: timed out"]


def test_a_unix_socket_is_tried_as_the_proxy_s_user(site: Site) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as sock:
        Path(folder).chmod(0o711)  # tmp_path is root's alone, all the way
        path = Path(folder) / "sock"
        sock.bind(str(path))
        sock.listen()
        path.chmod(0o660)
        refused = site.found(f"unix:{path}")[-1]
        assert refused.level == "warn" and refused.what.endswith("Permission denied")
        path.chmod(0o666)
        assert site.found(f"unix:{path}")[-1].level == "ok"
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_keys_that_others_could_have_read(site: Site, listener: socket.socket) -> None:
    keys = site.folder / "token.keys"
    KeyFile(keys, 0.0)
    for spoil in (lambda: keys.chmod(0o640), lambda: (keys.chmod(0o600), os.chown(keys, 1, 1))):
        spoil()
        about = site.found(address(listener))[-1]
        assert about.level == "fail" and about.what.startswith(f"{keys}: mode 06") and f"rm {keys}" in about.hint
    keys.unlink()
    keys.symlink_to(site.secret)
    assert site.found(address(listener))[-1].level == "fail"
