"""A watched folder of sources: what is wrong in it, who may write there, where links lead, and what is too much."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shim import listing
from shim.metadata.folder import FILE_BYTES
from tests.unit.directory_site import Site, as_root, put, source_folder, until, watched


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return source_folder(tmp_path)


class TestFaults:
    def test_the_last_good_version_holds(self, folder):
        put(folder / "host/a", "good")
        put(folder / "host/b", "b")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"good", "host/b": b"b"})
            put(folder / "host/a.options.toml", "oder = 3")
            assert await site.fault("host/a.options.toml: there is no option oder") == "did you mean order?"
            put(folder / "host/a", "newer")
            put(folder / "host/b", "b2")
            await site.bodies({"host/a": b"good", "host/b": b"b2"})
            assert site.force.told == site.directory.faults
            put(folder / "host/a.options.toml", "order = 3")
            await site.bodies({"host/a": b"newer", "host/b": b"b2"})
            await site.well()

        watched(folder, body)

    def test_it_holds_from_one_run_to_the_next(self, folder):
        put(folder / "host/a", "good")
        put(folder / "host/b", "b")

        async def first(site: Site) -> None:
            await site.bodies({"host/a": b"good", "host/b": b"b"})

        kept = [replace(one, revision=7, changed=5.0) for one in watched(folder, first).force.sources]
        put(folder / "host/a", "")
        (folder / "host/b").unlink()

        async def second(site: Site) -> None:
            await site.bodies({"host/a": b"good"})
            assert site.force.sources[0].revision == 0
            await site.fault("host/a: it is empty; its last good version holds")

        watched(folder, second, kept)

    def test_a_file_too_large(self, folder):
        put(folder / "host/a", "a" * FILE_BYTES)

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"a" * FILE_BYTES})
            put(folder / "host/a", "a" * (FILE_BYTES + 1))
            await site.fault(f"host/a: {FILE_BYTES + 1} bytes; {FILE_BYTES} are the most")
            assert site.force.bodies == {"host/a": b"a" * FILE_BYTES}

        watched(folder, body)

    def test_what_is_no_file(self, folder):
        os.mkfifo(folder / "host/fifo")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder / "host/sock"))

        async def body(site: Site) -> None:
            await site.fault("host/fifo: it is no file")
            await site.fault("host/sock: it is no file")

        watched(folder, body)

    def test_options_of_nothing(self, folder):
        put(folder / "host/a.options.toml", "")

        async def body(site: Site) -> None:
            await site.fault("host/a.options.toml: there is no a, whose options these are")
            put(folder / "host/a", "1")
            await site.well()

        watched(folder, body)

    def test_a_folder_of_a_wrong_name_is_told_once(self, folder):
        for name in ("a", "b", "c"):
            put(folder / "projects/blue" / name)

        async def body(site: Site) -> None:
            assert "did you mean project?" in await site.fault("projects/: no sources are looked for there")
            assert len(site.directory.faults) == 1
            (folder / "projects").rename(folder / "project")
            await until(lambda: len(site.force.bodies) == 3)
            await site.well()

        watched(folder, body)

    def test_names_of_any_bytes(self, folder):
        (folder / os.fsdecode(b"\xff\n")).mkdir()
        (folder / os.fsdecode(b"host/\xff\n")).write_text("x")

        async def body(site: Site) -> None:
            await until(lambda: len(site.directory.faults) == 2)
            assert all(what.isprintable() for what, _ in site.directory.faults)

        watched(folder, body)


@as_root
class TestTrust:
    def test_a_file_that_others_may_write(self, folder):
        put(folder / "host/a", "good")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"good"})
            (folder / "host/a").chmod(0o664)
            (folder / "host/a").write_text("bad")
            assert "chmod" in await site.fault("host/a: others than its owner may write to it (mode 0664)")
            (folder / "host/a").chmod(0o644)
            await site.bodies({"host/a": b"bad"})
            os.chown(folder / "host/a", 1, 1)
            await site.fault("host/a: it belongs to user 1; its last good version holds")
            os.chown(folder / "host/a", 0, 0)
            await site.well()

        watched(folder, body)

    def test_options_that_others_may_write(self, folder):
        put(folder / "host/a", "good")
        put(folder / "host/a.options.toml", "order = 1")
        (folder / "host/a.options.toml").chmod(0o666)

        async def body(site: Site) -> None:
            await site.fault("host/a.options.toml: others than its owner may write to it")
            assert site.force.bodies == {}

        watched(folder, body)

    def test_a_folder_that_others_may_write(self, folder):
        put(folder / "project/blue/a", "1")
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1", "project:blue/a": b"1"})
            (folder / "project").chmod(0o1777)
            put(folder / "project/blue/a", "2")
            put(folder / "host/a", "2")
            await site.fault("project/: others than its owner may write to it (mode 1777); the last good versions")
            await site.bodies({"host/a": b"2", "project:blue/a": b"1"})
            (folder / "project").chmod(0o755)
            await site.bodies({"host/a": b"2", "project:blue/a": b"2"})
            os.chown(folder / "project/blue", 1, 1)
            await site.fault("project/blue/: it belongs to user 1")
            await site.still({"host/a": b"2", "project:blue/a": b"2"})

        watched(folder, body)

    def test_the_folder_itself(self, folder):
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            folder.chmod(0o775)
            put(folder / "host/a", "2")
            await site.fault(f"{folder}: others than its owner may write to it (mode 0775)")
            await site.still({"host/a": b"1"})
            folder.chmod(0o755)
            await site.bodies({"host/a": b"2"})

        watched(folder, body)

    def test_a_folder_above(self, folder):
        """Who can write there can put another folder in its place."""
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            folder.parent.chmod(0o777)
            await site.fault(f"{folder.parent}: others than its owner may write to it (mode 0777)")
            folder.parent.chmod(0o1777)  # as /tmp
            await site.well()

        watched(folder, body)


class TestLinks:
    def test_to_a_file_within(self, folder):
        put(folder / ".shared/base.yaml", "1")
        (folder / "host/10-base.yaml").symlink_to("../.shared/base.yaml")

        async def body(site: Site) -> None:
            await site.bodies({"host/base.yaml": b"1"})
            put(folder / ".shared/base.yaml", "2")  # a folder that is watched for the link alone
            await site.bodies({"host/base.yaml": b"2"})
            (folder / ".shared/base.yaml").unlink()
            await site.fault("host/10-base.yaml: a link that leads nowhere; its last good version holds")
            assert site.force.bodies == {"host/base.yaml": b"2"}

        watched(folder, body)

    def test_a_release_that_is_switched(self, folder):
        """As Kubernetes mounts a ConfigMap: one link is replaced, and all files are others."""
        for release in ("1", "2"):
            put(folder / f"..r{release}/a", release)
        (folder / "..data").symlink_to("..r1")
        (folder / "host/a").symlink_to("../..data/a")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            (folder / "..new").symlink_to("..r2")
            (folder / "..new").replace(folder / "..data")
            await site.bodies({"host/a": b"2"})

        watched(folder, body)

    @pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "loop", "../../sources2/host/a", "/dev/zero"])
    def test_out_of_the_folder_or_nowhere(self, folder, target):
        put(folder.parent / "secret", "secret")
        put(folder.parent / "sources2/host/a", "secret")
        (folder / "host/loop").symlink_to(target)

        async def body(site: Site) -> None:
            await site.fault("host/loop: a link that leads nowhere" if target == "loop" else "a link that leads out of")
            assert site.force.bodies == {}

        watched(folder, body)

    def test_to_a_folder(self, folder):
        put(folder / "project/blue/a", "1")
        put(folder / "project/red/a", "1")
        put(folder / "host/b/c", "1")

        async def body(site: Site) -> None:
            await site.bodies({"project:blue/a": b"1", "project:red/a": b"1"})
            shutil.rmtree(folder / "project/red")
            (folder / "project/red").symlink_to("blue")
            (folder / "host/link").symlink_to("../project/blue")
            (folder / "image").symlink_to("project")
            await site.fault("project/red: a link to a folder is not followed")
            await site.fault("image: a link to a folder is not followed")
            await site.fault("host/link: it is no file")
            await site.still({"project:blue/a": b"1", "project:red/a": b"1"})

        watched(folder, body)

    @as_root
    def test_through_a_folder_that_others_may_write(self, folder):
        put(folder / ".open/a", "1")
        (folder / ".open").chmod(0o777)
        (folder / "host/a").symlink_to("../.open/a")

        async def body(site: Site) -> None:
            await site.fault("host/a: the folder .open where it leads: others than its owner may write to it")
            assert site.force.bodies == {}

        watched(folder, body)

    def test_the_folder_itself_may_be_one(self, folder):
        put(folder / "host/a", "1")
        link = folder.parent / "link"
        link.symlink_to(folder)

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            put(folder / "host/a", "2")
            await site.bodies({"host/a": b"2"})
            put(folder.parent / "next/host/a", "3")
            link.unlink()
            link.symlink_to("next")
            await site.bodies({"host/a": b"3"})
            put(folder.parent / "next/host/a", "4")
            await site.bodies({"host/a": b"4"})

        watched(link, body)

    def test_a_path_that_leads_back_to_where_it_lies(self, folder):
        put(folder / "host/a", "1")
        (folder / "self").symlink_to(".")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            (folder / "project").mkdir()
            put(folder / "project/p/b", "2")
            await site.bodies({"host/a": b"1", "project:p/b": b"2"})

        watched(folder / "self", body)


class TestBounds:
    def test_too_many_files(self, folder, monkeypatch):
        monkeypatch.setattr(listing, "FILES_MAX", 3)
        self._too_much(folder, "more than 3 files")

    def test_too_many_of_anything(self, folder, monkeypatch):
        monkeypatch.setattr(listing, "ENTRIES_MAX", 5)  # host, and four files
        self._too_much(folder, "more than 5 files and folders")

    def test_too_many_bytes(self, folder, monkeypatch):
        monkeypatch.setattr(listing, "TOTAL_BYTES", 3)
        self._too_much(folder, "more than 3 bytes in all")

    def _too_much(self, folder: Path, what: str) -> None:
        for name in "abc":
            put(folder / "host" / name, "1")

        async def body(site: Site) -> None:
            want = {f"host/{name}": b"1" for name in "abc"}
            await site.bodies(want)
            put(folder / "host/d")
            put(folder / "project/p/e")
            await site.fault(f"{folder}: {what}")
            await site.still(want)
            (folder / "host/d").unlink()
            shutil.rmtree(folder / "project")
            await site.well()

        watched(folder, body)

    def test_ten_thousand_files(self, folder):
        for number in range(10_000):
            path = folder / f"tag/n={number % 100}/f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#cloud-config\n")

        async def body(site: Site) -> None:
            lags = []
            began = time.monotonic()
            while not site.force.calls:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                lags.append(time.monotonic() - before)
            assert len(site.force.sources) == 10_000
            assert time.monotonic() - began < 10
            assert max(lags) < 1.0, "the agent waits"

        watched(folder, body)


_LIMITED = """
import asyncio
from pathlib import Path
from shim import directory
directory.RESCAN_SECONDS = 0.3
async def main():
    folder, seen = Path({folder!r}), []
    async def apply(sources, faults):
        seen.append([source.body for source in sources])
    watched = directory.Directory(folder, apply)
    task = asyncio.create_task(watched.run())
    while not seen:
        await asyncio.sleep(0.01)
    (folder / "host/b").write_text("2")
    while len(seen[-1]) < 2:
        await asyncio.sleep(0.01)
    print(watched.faults)
    assert len(watched.faults) == 1
    task.cancel()
asyncio.run(asyncio.wait_for(main(), 20))
"""


class TestKernelLimits:
    def test_events_that_were_lost(self, folder):
        """More events than the queue holds, while nobody reads them."""
        most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            path = folder / "host/a"
            path.write_text("1")
            for number in range(most + 1000):  # no two in a row alike, or the kernel makes one of them
                path.chmod(0o644) if number % 2 else os.utime(folder / "host")
            (folder / "host/last").write_text("2")
            await site.bodies({"host/a": b"1", "host/last": b"2"})

        watched(folder, body)

    @pytest.mark.parametrize(("limit", "value"), [("watches", 2), ("instances", 0)])
    def test_without_watches_it_is_looked_at_now_and_then(self, folder, limit, value, tmp_path):
        """In a user namespace, which has limits of its own (fs.inotify are the first one's, wherever they are set)."""
        put(folder / "host/a", "1")
        script = tmp_path / "run.py"
        script.write_text(_LIMITED.format(folder=str(folder)))
        command = f"echo {value} > /proc/sys/user/max_inotify_{limit} && exec {sys.executable} {script}"
        argv = ["unshare", "--user", "--map-root-user", "sh", "-c", command]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], timeout=60
        )
        if "unshare" in done.stderr or "cannot create" in done.stderr:
            pytest.skip(f"no user namespace with a limit of its own here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        assert "no sooner" in done.stdout
        assert f"fs.inotify.max_user_{limit}" in done.stdout
