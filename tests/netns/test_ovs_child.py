"""The child that follows Open vSwitch, by itself, as the agent starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


def test_over_tcp():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with OvsdbServer(f"ptcp:{port}:127.0.0.1") as ovsdb:
        ovsdb.plug("tap1", uuid_of(1))
        with started("-m", MODULE, f"tcp:127.0.0.1:{port}") as child:
            assert [claim.tap for claim in decode(child.stdout.readline()).claims] == ["tap1"]


def test_without_the_library():
    without = f"import runpy, sys; sys.modules['ovs'] = None; runpy.run_module({MODULE!r}, run_name='__main__')"
    with started("-c", without, "unix:/run/openvswitch/db.sock") as child:
        assert decode(child.stdout.readline()).trouble == NO_LIBRARY
        child.stdin.close()
        assert child.wait(5) == 0
