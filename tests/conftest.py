"""What the tests of every tier share."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab

KERNEL_TIERS = {"bpf", "netns", "clients", "vm"}
HOME = pytest.StashKey[Path]()
RUN_NETNS, BPFFS = Path("/run/netns"), Path("/sys/fs/bpf")


def pytest_configure(config: pytest.Config) -> None:
    """A runner in the background may ignore SIGINT, and what it starts would inherit that: the tests send some. What
    programs keep in the user's home, they keep in a folder of the run's own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # those that run tests side by side inherit it
        config.stash[HOME] = Path(tempfile.mkdtemp(prefix="home-"))
        os.environ["HOME"] = str(config.stash[HOME])
        for name in [name for name in os.environ if name.startswith("XDG_")]:
            del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever uses a lab or is in a kernel tier needs root; without it, it is skipped and says so."""
    tests = config.rootpath / "tests"
    for item in items:
        tier = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if tier in KERNEL_TIERS or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A hypervisor's network of the test's own, removed with all that is in it."""
    with Lab() as lab:
        yield lab


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test leaves in the environment is left to all that come after it in that process."""
    found = _environment()
    yield
    assert _environment() == found


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(scope="session", autouse=True)
def mounts() -> Iterator[None]:
    """What is mounted here for the first time since boot is unmounted again, unless others use it by now."""
    found = _mounted()
    yield
    made = _mounted() - found
    if BPFFS in made and not any(path for path in BPFFS.iterdir() if path.suffix != ".debug"):  # the kernel's own
        subprocess.run(["umount", BPFFS], check=False)
    if RUN_NETNS in made:
        _restore_netns()


def _mounted() -> set[Path]:
    """Which of the two are mounts: field 5 of proc_pid_mountinfo(5)."""
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {path for path in (RUN_NETNS, BPFFS) if str(path) in points}


def _restore_netns() -> None:
    lock = os.open(RUN_NETNS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as iproute2 does
        if any(RUN_NETNS.iterdir()):
            return
        subprocess.run(["umount", "--lazy", RUN_NETNS], check=False)
    finally:
        os.close(lock)
    with contextlib.suppress(OSError):
        RUN_NETNS.rmdir()


def pytest_unconfigure(config: pytest.Config) -> None:
    """pytest removes what is in its folder when all went well, but not the folder."""
    if HOME in config.stash:
        shutil.rmtree(config.stash[HOME], ignore_errors=True)
    with contextlib.suppress(OSError):
        Path(tempfile.gettempdir(), f"pytest-of-{getpass.getuser()}").rmdir()
