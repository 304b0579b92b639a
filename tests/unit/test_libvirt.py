"""The child that follows libvirt, on the library's own driver for tests and on state files, without a libvirtd.

tests/netns/test_libvirt.py has a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import pytest

from shim.core.exchange import Subject
from shim.core.link import Link
from shim.identity.child import Child
from tests.unit.test_domain import NOVA, A
from tests.unit.test_domain import ONE as INSTANCE

ONE = UUID(INSTANCE)
NOWHERE = "qemu+unix:///system?socket=/nonexistent/libvirt-sock-ro"
TAP = "tap6e2bf5d4-22"
SUBJECT = Subject(ONE, A.project, A.address, A.name, A.flavor, A.port, A.mac)
STATUS = f"<domstatus state='running' reason='booted' pid='1'>{NOVA}</domstatus>"


class Source:
    """A child that runs, and what the test waits for."""

    def __init__(self, uri: str, folder: str) -> None:
        self.child = Child("libvirt", "shim.identity.libvirt", uri, folder)

    def who(self, tap: str) -> Subject | None:
        return self.child.subject_of(Link(7, tap))

    @property
    def health(self) -> str:
        return self.child.health() or ""

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, self.health
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def following(uri: str, folder: Path | str) -> AsyncIterator[Source]:
    source = Source(uri, str(folder))
    task = asyncio.ensure_future(source.child.watch(lambda: None))
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.wait({task})


def write(folder: Path, name: str, text: str) -> None:
    """As libvirtd does: a new file, put in the other's place."""
    (folder / f"{name}.xml.new").write_text(text)
    (folder / f"{name}.xml.new").rename(folder / f"{name}.xml")


def test_another_driver_which_lacks_much(tmp_path):
    """The one within the library has no keepalive, no close callback, no state files; it makes ids itself."""
    pytest.importorskip("libvirt")
    metadata = NOVA[NOVA.index("<metadata>") : NOVA.index("<memory")]
    interface = f"<interface type='ethernet'><mac address='{A.mac}'/><target dev='{TAP}'/></interface>"
    domain = (
        f"<domain type='test'><name>one</name><uuid>{ONE}</uuid>{metadata}<memory>8192</memory><vcpu>1</vcpu>"
        f"<os><type arch='i686'>hvm</type></os><devices>{interface}</devices></domain>"
    )
    (tmp_path / "node.xml").write_text(f"<node>{domain}</node>")

    async def steps() -> None:
        async with following(f"test://{tmp_path}/node.xml", "") as source:
            await source.until(lambda: source.child.known)
            assert source.who(TAP) == SUBJECT
            assert source.child.health() is None

    asyncio.run(steps())


def test_state_files_alone(tmp_path):
    async def steps() -> None:
        folder = tmp_path / "qemu"
        async with following(NOWHERE, folder) as source:
            await source.until(lambda: "nor can" in source.health)
            assert not source.child.known
            assert "/nonexistent/libvirt-sock-ro" in source.health
            folder.mkdir()
            await source.until(lambda: source.child.known)
            assert "its state files tell of domains meanwhile" in source.health
            write(folder, "one", STATUS)
            await source.until(lambda: source.who(TAP) == SUBJECT)
            write(folder, "one", STATUS.replace(TAP, "tap7"))
            await source.until(lambda: source.who(TAP) is None)
            assert source.who("tap7") is not None
            write(folder, "one", STATUS.replace("id='3'", ""))
            await source.until(lambda: source.who("tap7") is None)
            write(folder, "one", STATUS)
            await source.until(lambda: source.who(TAP))
            (folder / "one.xml").unlink()
            await source.until(lambda: source.who(TAP) is None)

    asyncio.run(steps())


def test_what_else_may_lie_among_the_files(tmp_path):
    """A pipe that nobody writes to, a link, a folder, bytes of any kind: each costs itself, in words."""

    async def steps() -> None:
        os.mkfifo(tmp_path / "pipe.xml")
        (tmp_path / "link.xml").symlink_to("/etc/passwd")
        (tmp_path / "folder.xml").mkdir()
        (tmp_path / "bytes.xml").write_bytes(b"\xff\xfe<domain/>")
        (tmp_path / "large.xml").write_bytes(b" " * ((1 << 22) + 1))
        (tmp_path / "one.pid").write_text("7")
        write(tmp_path, "one", STATUS)
        async with following(NOWHERE, tmp_path) as source:
            await source.until(lambda: source.child.known)
            assert source.who(TAP) == SUBJECT
            for words in ("pipe.xml: it is no file", "bytes.xml: it is not UTF-8", "large.xml: it has more than"):
                assert words in source.health
            assert "folder.xml: it is no file" in source.health
            assert "link.xml: Too many levels of symbolic links" in source.health
            for name in ("pipe", "link", "bytes", "large"):
                (tmp_path / f"{name}.xml").unlink()
            (tmp_path / "folder.xml").rmdir()
            await source.until(lambda: "it is" not in source.health)

    asyncio.run(steps())


def test_without_the_library_files_tell(tmp_path, monkeypatch):
    """It may be installed while the agent runs."""
    folder = tmp_path / "state"
    folder.mkdir()
    write(folder, "one", STATUS)
    script = tmp_path / "sitecustomize.py"
    script.write_text("import sys\nsys.modules['libvirt'] = None\n")
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))

    async def steps() -> None:
        async with following(NOWHERE, folder) as source:
            await source.until(lambda: source.child.known)
            assert source.who(TAP) == SUBJECT
            assert source.health.startswith("the libvirt library is not here: apt install python3-libvirt; its state")

    asyncio.run(steps())
