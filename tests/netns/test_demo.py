"""The demonstration as a test: it comes out well, and the host is as it was, whenever it is ended."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATAPATHS = ("ebpf", "nft")
STORY_SECONDS = 90
RUN_NETNS = Path("/run/netns")
Demo = subprocess.Popen[str]


def mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def processes() -> list[str]:
    """The command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return found


class Host:
    """Demonstrations under names of this test's own, as others may run some meanwhile, and what they leave."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.name = f"td{secrets.token_hex(3)}"
        self._started: list[Demo] = []

    def start(self, datapath: str = "ebpf") -> Demo:
        name = f"{self.name}{len(self._started)}"
        argv = [sys.executable, "-m", "demo.run", "--datapath", datapath, "--name", name]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        demo = subprocess.Popen(argv, cwd=ROOT, start_new_session=True, env=environment, **pipes)
        self._started.append(demo)
        return demo

    def traces(self) -> dict[str, list[str]]:
        """What there is under our names; nothing, before and after."""
        found: dict[str, Iterable[str]] = {
            "namespaces": entries(RUN_NETNS),
            "links": [name for _, name in socket.if_nameindex()],
            "mounts": mounts(),
            "pins": entries(Path("/sys/fs/bpf")),
            "files": entries(self.temporary) + entries(Path("/run")),
            "processes": processes(),
        }
        ours = {kind: [name for name in names if self.name in name] for kind, names in found.items()}
        return {kind: names for kind, names in ours.items() if names}


@pytest.fixture
def host():
    with tempfile.TemporaryDirectory(prefix="metashim-test-") as folder:
        Path(folder).chmod(0o755)  # the proxy's user reads the store in there
        yield from watched(Host(Path(folder)))


def watched(host: Host) -> Iterator[Host]:
    times = mounts().count(str(RUN_NETNS))
    yield host
    assert host.traces() == {}
    # Bound to itself again, a shared mount doubles, and at the 17th time the mount table is full.
    assert mounts().count(str(RUN_NETNS)) <= max(times, 1)


def read_to(demo: Demo, words: str) -> None:
    """Read what it writes, to the line with these words."""
    assert any(words in line for line in demo.stdout)


def stop(demo: Demo, number: int) -> tuple[int, str]:
    os.kill(demo.pid, number)
    output, _ = demo.communicate(timeout=20)
    return demo.returncode, output


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_comes_out_well(host, datapath):
    demo = host.start(datapath)
    read_to(demo, "the agent is up")
    assert set(host.traces()) == {"namespaces", "mounts", "files", "processes"}, "else the others prove nothing"
    output, _ = demo.communicate(timeout=STORY_SECONDS)
    assert demo.returncode == 0, output
    assert "nothing is left behind" in output.splitlines()[-1]
    assert "✗" not in output and output.count("✓") > 20


def test_two_at_the_same_time(host):
    both = [host.start(datapath) for datapath in DATAPATHS]
    for demo in both:
        output, _ = demo.communicate(timeout=STORY_SECONDS)
        assert demo.returncode == 0, output


@pytest.mark.parametrize("third", [0, 1, 2])
@pytest.mark.parametrize("datapath", DATAPATHS)
def test_interrupted(host, datapath, third):
    """At a moment of each third of the story, wherever it falls; printed so that one that fails can be had again."""
    moment = 0.4 + (third + random.random()) * 4.1 / 3
    print(f"after {moment:.3f} s")
    demo = host.start(datapath)
    time.sleep(moment)
    status, output = stop(demo, signal.SIGINT)
    assert status == 128 + signal.SIGINT, output
    assert output.splitlines()[-1].startswith("  ✗ ended by SIGINT; nothing is left behind")


def test_terminated_in_the_middle_of_a_step(host):
    demo = host.start()
    read_to(demo, "tap that no source knows")
    status, output = stop(demo, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, output
    assert "ended by SIGTERM; nothing is left behind" in output


def test_the_story_is_killed(host):
    """Whatever ends the story, the process that outlives it clears up."""
    demo = host.start()
    read_to(demo, "two guests, both")
    (story,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    os.kill(int(story), signal.SIGKILL)
    output, _ = demo.communicate(timeout=20)
    assert demo.returncode == 1
    assert "a step came out wrong; nothing is left behind" in output


def test_needs_root():
    # Another user may not be able to read this checkout: so it is imported by root first.
    script = "import os; from demo import run; os.setresuid(65534, 65534, 65534); raise SystemExit(run.main())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run it as root" in done.stderr
