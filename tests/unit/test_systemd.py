"""What is said to systemd, and what is taken from it, over real sockets and the environment of a real process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shim import systemd

TAKES = """
import json, os, sys
from shim import systemd
os.environ.update(json.loads(sys.argv[1]))
if sys.argv[2] == "own":
    os.environ["LISTEN_PID"] = str(os.getpid())
found = [(name, os.fstat(fd).st_ino, os.get_inheritable(fd)) for name, fd in systemd.kept()]
print(json.dumps([found, systemd.kept(), [name for name in os.environ if name.startswith("LISTEN_")]]))
"""


def kept(environment: dict[str, str], whose: str = "own") -> tuple[list[list[object]], list[int]]:
    """What a process takes that is given three pipes from 3 on, and the inodes of these."""
    pipes = [os.pipe()[0] for _ in range(3)]
    script = f"import os\nfor n, fd in enumerate({pipes}): os.dup2(fd, 90 + n)\n"
    script += "for n in range(3): os.dup2(90 + n, 3 + n)\n" + TAKES
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(environment), whose],
        pass_fds=pipes, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    found, again, left = json.loads(done.stdout)
    assert again == [], "it is asked once"
    assert left == [], "nothing of it is for children"
    return found, [os.fstat(fd).st_ino for fd in pipes]


def test_what_was_kept_comes_by_name_in_its_order_and_not_to_children() -> None:
    found, inodes = kept({"LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:a"})
    assert found == [["a", inodes[0], False], ["b", inodes[1], False], ["a", inodes[2], False]]


def test_names_may_be_missing() -> None:
    found, inodes = kept({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"})
    assert found == [["a", inodes[0], False], ["", inodes[1], False]]


@pytest.mark.parametrize("environment", [{}, {"LISTEN_FDS": "many"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDNAMES": "a"}])
def test_nothing_was_kept(environment: dict[str, str]) -> None:
    assert kept(environment)[0] == []


def test_what_is_another_process_s_is_left_alone() -> None:
    assert kept({"LISTEN_FDS": "3", "LISTEN_PID": "1"}, "another's")[0] == []


@pytest.mark.parametrize("abstract", [False, True])
def test_keep_and_drop(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@metashim-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as sock:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.keep("ipv4-80", sock.fileno())
        systemd.drop("ipv4-80")
        data, fds, _, _ = socket.recv_fds(manager, 500, 4)
        assert data == b"FDSTORE=1\nFDNAME=ipv4-80"
        assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(sock.fileno()).st_ino]
        os.close(fds[0])
        assert socket.recv_fds(manager, 500, 4)[:2] == (b"FDSTOREREMOVE=1\nFDNAME=ipv4-80", [])


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    systemd.notify("READY=1")
