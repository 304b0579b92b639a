"""The machine itself, and the metashim that is installed on it. Refuses any machine but a VM made for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Wire
from tests.vagrant.installed import CONFIGURATION, Host, Installed

MINE = "METASHIM_HYPERVISOR"
OTHER = "METASHIM_OTHER"
HOW = "`make test-vagrant` makes a VM for them"

wanted = bool(os.environ.get(MINE))
collect_ignore_glob = [] if wanted else ["test_*.py"]


def pytest_report_header() -> str:
    if not wanted:
        return f"tests/vagrant change the machine that they run on: not collected, as {MINE} is not set ({HOW})"
    return f"hypervisor: {os.uname().release}"


def pytest_collection_modifyitems() -> None:
    """Says no before any test has touched anything."""
    if wanted and (why := unfit()):
        raise pytest.UsageError(f"{why}, and tests/vagrant change services and taps of the machine they run on: {HOW}")


def unfit() -> str:
    """Why this machine is none for these tests; empty where it is one."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/run/systemd/system").is_dir():
        return "systemd does not run here"
    if subprocess.run(["systemd-detect-virt", "--vm", "--quiet"], check=False).returncode:
        return "this is no VM"
    if subprocess.run(["systemctl", "is-enabled", "--quiet", "metashim"], check=False).returncode:
        return "metashim is not installed here: vagrant/install.sh does that"
    return ""


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """This machine's own network, with a bridge for guests."""
    made = Host()
    yield made
    made.close()


@pytest.fixture(scope="session")
def site(host: Host) -> Iterator[Installed]:
    """The metashim that systemd runs here; in the end it is as it was found."""
    found = CONFIGURATION.read_bytes() if CONFIGURATION.exists() else None
    made = Installed(host)
    made.await_workers()
    yield made
    made.close()
    if found is None:
        CONFIGURATION.unlink(missing_ok=True)
    else:
        CONFIGURATION.write_bytes(found)


@pytest.fixture
def behind(host: Host) -> Iterator[Wire]:
    """A capture of what guests' frames become behind their taps: on the host's bridge."""
    with Wire(host, "br0") as wire:
        yield wire
