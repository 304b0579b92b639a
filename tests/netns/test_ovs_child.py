"""The child that follows Open vSwitch, by itself, as the agent starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.identity.ovs import NO_LIBRARY
from shim.identity.said import decode
from tests.netns.followed import MODULE, ids, tap
from tests.netns.hypervisor import ROOT, uuid_of
from tests.netns.ovsdb_server import OvsdbServer


@contextlib.contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=environment
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_ends_with_its_input_and_has_no_privileges(ovsdb):
    with started("-m", MODULE, ovsdb.remote) as child:
        assert decode(child.stdout.readline()).whole
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        )
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")} == {0}
        assert status["NoNewPrivs"] == "1"
        child.stdin.close()
        assert child.wait(5) == 0


def test_says_first_the_whole_and_then_what_changed(ovsdb):
    ovsdb.plug_many({tap(n): ids(n) for n in range(100)})
    with started("-m", MODULE, ovsdb.remote) as child:
        said = decode(child.stdout.readline())
        assert (said.whole, len(said.claims), said.gone, said.trouble) == (True, 100, (), "")
        ovsdb.plug("tap1", uuid_of(1))
        said = decode(child.stdout.readline())
        assert (said.whole, [claim.tap for claim in said.claims], said.gone) == (False, ["tap1"], ())
        ovsdb.unplug("tap1")
        said = decode(child.stdout.readline())
        assert (said.whole, said.claims, said.gone) == (False, (), (("", "tap1"),))


def test_what_does_not_concern_it_is_not_said(ovsdb):
    ovsdb.plug("tap1", uuid_of(1))
    with started("-m", MODULE, ovsdb.remote) as child:
        child.stdout.readline()
        for number in range(20):
            ovsdb.say("tap1", iface_status="active" if number % 2 else "inactive")
        ovsdb.vsctl("set", "Interface", "tap1", "mtu_request=1400")
        ovsdb.plug("tap2", uuid_of(2))
        assert [claim.tap for claim in decode(child.stdout.readline()).claims] == ["tap2"]


def test_an_owner_of_the_socket_that_is_not_root(ovsdb):
    """As Open vSwitch runs in Fedora: who is root without CAP_DAC_OVERRIDE could not even connect."""
    os.chown(ovsdb.socket, 65534, 65534)
    ovsdb.socket.chmod(0o700)
    with started("-m", MODULE, ovsdb.remote) as child:
        assert decode(child.stdout.readline()).whole
        child.stdin.close()
        assert child.wait(5) == 0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_over_tcp():
    port = free_port()
    with OvsdbServer(f"--remote=ptcp:{port}:127.0.0.1") as ovsdb:
        ovsdb.plug("tap1", uuid_of(1))
        with started("-m", MODULE, f"tcp:127.0.0.1:{port}") as child:
            assert [claim.tap for claim in decode(child.stdout.readline()).claims] == ["tap1"]


@pytest.fixture
def pki(tmp_path) -> Path:
    """Two strangers, each with a certificate that only it trusts."""
    for name in ("ours", "others"):
        folder = tmp_path / name
        folder.mkdir()
        words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
        subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
        (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())
    return tmp_path


def test_over_tls(pki):
    """Who is not trusted, or has no key, is told in words and rests between its tries."""
    port, ours = free_port(), pki / "ours"
    files = {"private-key": "key.pem", "certificate": "cert.pem", "ca-cert": "ca.pem"}
    options = [f"--{option}={ours / name}" for option, name in files.items()]
    with OvsdbServer(f"--remote=pssl:{port}:127.0.0.1", *options) as ovsdb:
        ovsdb.plug("tap1", uuid_of(1))
        remote = f"ssl:127.0.0.1:{port}"
        with started("-m", MODULE, remote, str(ours)) as child:
            assert [claim.tap for claim in decode(child.stdout.readline()).claims] == ["tap1"]
        for folder, word in ((pki / "others", "CERTIFICATE_VERIFY_FAILED"), (pki / "nowhere", "No such file")):
            with started("-m", MODULE, remote, str(folder)) as child:
                assert word in decode(child.stdout.readline()).trouble
                began = processor_seconds(child.pid)
                time.sleep(2)
                assert processor_seconds(child.pid) - began < 0.5


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_the_library():
    without = f"import runpy, sys; sys.modules['ovs'] = None; runpy.run_module({MODULE!r}, run_name='__main__')"
    with started("-c", without, "unix:/run/openvswitch/db.sock") as child:
        assert decode(child.stdout.readline()).trouble == NO_LIBRARY
        child.stdin.close()
        assert child.wait(5) == 0
