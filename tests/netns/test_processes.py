"""Starting, stopping, what the processes may do, and stores and files that are not as they should be."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.core.policy import Access
from shim.datapath import abi
from shim.errors import StoreError
from tests.lab import Lab, VethGuest
from tests.lab.namespace import wait_until
from tests.lab.proc import descriptors
from tests.netns.conftest import PLENTY
from tests.netns.hypervisor import BPFFS, Hypervisor, uuid_of
from tests.netns.talk import Talk, await_outcome, outcome

A = uuid_of(1)
FACE = {"mac": "02:00:00:00:00:05", "v4": "10.0.0.5/24"}
NOBODY = 65534


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Hypervisor, VethGuest]]:
    """One served guest. Tests may restart the agent, and leave it running."""
    with Lab() as lab, Hypervisor(lab, PLENTY, host="", proxy="") as site:
        guest = lab.veth_guest("one", "tap1", **FACE)
        site.start()
        site.api.attach("tap1", A)
        yield site, guest


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


class TestWorkerPrivileges:
    def test_none_is_left(self, place):
        site, _ = place
        status = status_of(site.worker)
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["Gid"].split() == [str(NOBODY)] * 4
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        assert [int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5

    def test_descriptors_are_those_it_needs(self, place):
        site, _ = place
        held = descriptors(site.worker)
        assert not [t for t in held.values() if "bpf" in t or "/dev/net" in t or t.startswith("net:")]
        inodes = {t[8:-1] for t in held.values() if t.startswith("socket:")}
        netlink = Path(f"/proc/{site.worker}/net/netlink").read_text().splitlines()
        assert not inodes & {line.split()[-1] for line in netlink}
        notes = [Path(f"/proc/{site.worker}/fdinfo/{fd}") for fd, what in held.items() if str(site.state) in what]
        flags = [int(note.read_text().split()[3], 8) for note in notes]
        assert not [f for f in flags if f & os.O_ACCMODE != os.O_RDONLY]

    def test_it_can_do_no_more_than_its_user(self, place):
        """As that user, without capabilities: the store, the sockets and the other namespaces are out of reach."""
        site, _ = place
        script = f"""
import ctypes, os, socket
def tries(what, act):
    try: act()
    except OSError as error: print(what, error.errno)
    else: print(what, 'DONE')
tries('write', lambda: open({str(site.state / "metashim.db")!r}, 'r+'))
tries('create', lambda: open({str(site.state / "x")!r}, 'w'))
tries('control', lambda: socket.socket(socket.AF_UNIX).connect({str(site.run / "control.sock")!r}))
tries('pins', lambda: os.listdir({str(next((BPFFS / site.name).iterdir()))!r}))
tries('lock', lambda: open({str(site.run / "agent.lock")!r}, 'r+'))
tries('note', lambda: open({str(site.run / "worker0.pid")!r}, 'r+'))
def enter():
    fd = os.open('/run/netns/{site.name}', os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0): raise OSError(ctypes.get_errno(), '')
tries('setns', enter)
"""
        argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
        done = site.lab.host.run([*argv, "--no-new-privs", "/usr/bin/python3", "-c", script])
        assert dict(line.split() for line in done.stdout.splitlines()) == dict.fromkeys(
            ("write", "create", "control", "pins", "lock", "note"), "13"
        ) | {"setns": "1"}

    def test_sockets_are_of_their_owners(self, place):
        site, _ = place
        control, feed = ((site.run / f"{name}.sock").stat() for name in ("control", "feed"))
        assert (stat.S_IMODE(control.st_mode), control.st_uid, control.st_gid) == (0o660, 0, 0)
        assert (stat.S_IMODE(feed.st_mode), feed.st_uid) == (0o600, NOBODY)
        assert stat.S_IMODE((site.state / "metashim.db").stat().st_mode) == 0o640


class TestLyingWorker:
    def test_the_feed_takes_nothing_amiss(self, place):
        """From a process that is no worker: closed before anything is heard of it. The agent goes on."""
        site, guest = place
        for line in (b"", b"garbage\n", b'{"type":"Hello","pid":1}\n', b"x" * 300_000, b"\x00\xff\n"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(2)
                sock.connect(str(site.run / "feed.sock"))
                try:
                    sock.sendall(line)
                    assert sock.recv(100) == b""
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert site.api.status().ailments == []
        assert outcome(guest) == str(A)

    @pytest.mark.parametrize(
        "lie", ["b'garbage'", "b'x' * 300_000", "b'{\"type\":\"Load\",\"connections\":1' + b'0' * 400"]
    )
    def test_a_worker_that_makes_no_sense_is_replaced(self, site, lab, lie):
        guest = self.with_liar(site, lab, lie)
        await_outcome(guest, str(A), seconds=8)
        assert site.verb("status").returncode == 0

    def test_a_worker_that_says_all_is_done_cannot_keep_the_kernel_from_refusing(self, site, lab):
        said = b'{"type":"Done","number":%d}' % 2**62
        guest = self.with_liar(site, lab, repr(said))
        time.sleep(1)
        json.loads(site.verb("status", "--json").stdout)
        site.disable(A)
        assert outcome(guest) == "refused"

    def with_liar(self, site, lab, lie: str) -> VethGuest:
        """An agent that took over, as its worker, a process which greets and then says the line `lie` (Python)."""
        guest = lab.veth_guest("one", "tap1", **FACE)
        site.start()
        site.api.attach("tap1", A)
        worker = site.worker
        site.end(signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        path = str(site.run / "feed.sock")
        script = (
            f"import socket, time\ntime.sleep(1.5)\ns = socket.socket(socket.AF_UNIX)\ns.connect({path!r})\n"
            f'hello = b\'{{"type":"Hello","pid":1}}\'\ns.sendall(hello + b"\\n" + {lie} + b"\\n")\ntime.sleep(60)\n'
        )
        liar = lab.run_in_host(["/usr/bin/python3", "-c", script])
        began = Path(f"/proc/{liar.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (site.run / "worker0.pid").write_text(f"{liar.pid} {began}")
        site.start()
        return guest


class TestStarting:
    def test_a_second_agent(self, place):
        site, guest = place
        done = site.verb("agent", check=False)
        assert done.returncode == 6
        assert "an agent runs already" in done.stderr
        assert outcome(guest) == str(A)

    @pytest.mark.parametrize("note", [b"", b"garbage", b"1 2 3", b"-1 5", b"1 1", b"\xff\xfe", b"999999999 1"])
    def test_with_garbage_where_a_pid_was(self, place, note):
        site, guest = place
        assert site.end(signal.SIGTERM) == 0
        site.run.mkdir(exist_ok=True)
        (site.run / "worker0.pid").write_bytes(note)
        (site.run / "worker7.pid").write_bytes(note)
        (site.run / "control.sock").write_bytes(note)
        (site.run / "feed.sock").write_bytes(note)
        site.start()
        await_outcome(guest, str(A))
        assert not (site.run / "worker7.pid").exists()
        assert Path("/proc/1").exists()

    def test_with_another_size_of_maps(self, place):
        """The pins of the other shape are cut over from, and go; a refused guest is never served meanwhile."""
        site, guest = place
        site.disable(A)
        assert site.end(signal.SIGQUIT) == 0
        site.configure(PLENTY + "max_ports = 100\n")
        agent = site.begin()
        while not (site.run / "control.sock").exists() and agent.poll() is None:
            assert outcome(guest) in ("refused", "timeout")
        wait_until(lambda: site.verb("status", check=False).returncode == 0, "the agent")
        site.await_workers()
        assert outcome(guest) == "refused"
        assert [path.name for path in (BPFFS / site.name).iterdir()] == [f"v{abi.VERSION}-100-128"]
        site.enable(A)
        await_outcome(guest, str(A))
        site.configure(PLENTY)
        site.end(signal.SIGTERM)
        site.start()
        await_outcome(guest, str(A))

    def test_with_a_setting_that_is_wrong(self, lab):
        with Hypervisor(lab, '[control]\ngroup = "no-such-group"\n') as site:
            done = site.verb("agent", check=False)
            assert done.returncode == 3
            assert "no-such-group" in done.stderr
            assert "Traceback" not in done.stderr


class TestStore:
    def test_damaged(self, place):
        site, guest = place
        self.refused_to_start(site, lambda path: path.write_bytes(b"not a database " * 1000), "file is not a database")
        await_outcome(guest, str(A))

    def test_newer(self, place):
        def grow(path: Path) -> None:
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")
            db.close()

        site, guest = place
        self.refused_to_start(site, grow, "newer metashim")
        await_outcome(guest, str(A))

    def refused_to_start(self, site, spoil, what: str) -> None:
        """With the store as `spoil` leaves it; afterwards all is as before."""
        site.end(signal.SIGTERM)
        store = site.state / "metashim.db"
        before = store.read_bytes()
        spoil(store)
        spoilt = store.read_bytes()
        done = site.verb("agent", check=False)
        assert done.returncode == 8
        assert what in done.stderr
        assert "Traceback" not in done.stderr
        assert store.read_bytes() == spoilt
        for path in site.state.iterdir():
            path.unlink()
        store.write_bytes(before)
        site.start()

    def test_full_disk(self, lab):
        """What is said to have failed has failed: the guest's state is what is reported, then and after a restart."""
        with Hypervisor(lab, PLENTY) as site:
            site.state.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=755", "tmpfs", site.state], check=True)
            try:
                guest = lab.veth_guest("one", "tap1", **FACE)
                site.start()
                site.api.attach("tap1", A)
                filler = site.state / "filler"
                with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                    while True:
                        file.write(bytes(4096))
                failures = 0
                for how in (Access.RESET, Access.OPEN, Access.DROP, Access.FORBID) * 30:
                    try:
                        site.disable(A, how)
                    except StoreError as error:
                        failures += 1
                        assert "full" in str(error)
                    expected = {"open": str(A), "reset": "refused", "drop": "timeout", "403": "403"}
                    reported = site.api.instance(A).policy
                    assert outcome(guest, timeout=0.1) == expected[reported.v4]
                    if failures > 8:
                        break
                assert failures
                site.end(signal.SIGKILL)
                filler.unlink()
                site.start()
                assert site.api.instance(A).policy == reported
                assert outcome(guest, timeout=0.1) == expected[reported.v4]
            finally:
                site.kill()
                subprocess.run(["umount", "-l", site.state], check=True)

    def test_the_disk_turns_read_only(self, lab):
        with Hypervisor(lab, PLENTY) as site:
            site.state.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", site.state], check=True)
            try:
                guest = lab.veth_guest("one", "tap1", **FACE)
                site.start()
                site.api.attach("tap1", A)
                site.end(signal.SIGTERM)
                subprocess.run(["mount", "-o", "remount,ro", site.state], check=True)
                done = site.verb("agent", check=False)
                assert done.returncode == 8
                assert "Traceback" not in done.stderr
                subprocess.run(["mount", "-o", "remount,rw", site.state], check=True)
                site.start()
                with Talk(guest) as talk:
                    assert talk.ask().body == str(A)
            finally:
                site.kill()
                subprocess.run(["umount", "-l", site.state], check=True)
