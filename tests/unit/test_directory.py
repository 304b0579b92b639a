"""A watched folder of sources, on a real file system with the kernel's own events: what changes there, when, and what
becomes of it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shim import directory, listing
from shim.core.source import HOST, Source
from shim.errors import InputError, StoreError
from tests.unit.directory_site import QUIET, Site, put, source_folder, until, watched


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return source_folder(tmp_path)


class TestChanges:
    def test_what_is_there_at_the_start(self, folder):
        put(folder / "host/10-base.yaml", "base")
        put(folder / "project/blue/20-agent.yaml.j2", "agent")
        put(folder / "project/blue/20-agent.yaml.j2.options.toml", 'owner = "blue"\nkind = "vendor"\n')

        async def body(site: Site) -> None:
            await site.bodies({"host/base.yaml": b"base", "project:blue/agent.yaml": b"agent"})
            assert [one.name for one in site.force.sources] == ["base.yaml", "agent.yaml"], "in order"
            agent = site.force.sources[1]
            assert (agent.owner, agent.kind.value, agent.template, agent.order) == ("blue", "vendor", True, 20)
            await site.well()

        watched(folder, body)

    def test_a_file_comes_changes_and_goes(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            put(folder / "host/a", "1")
            await site.bodies({"host/a": b"1"})
            (folder / "host/a").write_text("2")
            await site.bodies({"host/a": b"2"})
            put(folder / "host/a.options.toml", "order = 3")
            await until(lambda: site.force.sources[0].order == 3)
            (folder / "host/a.options.toml").unlink()
            await until(lambda: site.force.sources[0].order == 500)
            (folder / "host/a").rename(folder / "host/7-b")
            await site.bodies({"host/b": b"2"})
            assert site.force.sources[0].order == 7
            (folder / "host/7-b").unlink()
            await site.bodies({})

        watched(folder, body)

    def test_it_is_quick(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            began = time.monotonic()
            put(folder / "host/a", "1")
            await site.bodies({"host/a": b"1"})
            assert directory.SETTLE_SECONDS <= time.monotonic() - began < 1.0

        watched(folder, body)

    def test_folders_made_meanwhile_are_watched_too(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            put(folder / "project/blue/a", "1")  # made before anybody can watch
            await site.bodies({"project:blue/a": b"1"})
            await asyncio.sleep(QUIET)
            put(folder / "project/blue/b", "2")
            await site.bodies({"project:blue/a": b"1", "project:blue/b": b"2"})
            (folder / "project/blue").rename(folder / "project/red")
            await site.bodies({"project:red/a": b"1", "project:red/b": b"2"})
            await asyncio.sleep(QUIET)
            (folder / "project/red/a").unlink()
            await site.bodies({"project:red/b": b"2"})
            shutil.rmtree(folder / "project")
            await site.bodies({})

        watched(folder, body)

    def test_a_tree_that_is_moved_in(self, folder, tmp_path):
        put(tmp_path / "beside/blue/a", "1")

        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            (tmp_path / "beside").rename(folder / "project")
            await site.bodies({"project:blue/a": b"1"})
            (folder / "project").rename(tmp_path / "beside")
            await site.bodies({})
            calls = site.force.calls
            put(tmp_path / "beside/blue/b", "2")  # is not ours any more
            await site.still({})
            assert site.force.calls == calls

        watched(folder, body)

    def test_many_at_once_are_one_change(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            calls = site.force.calls
            for number in range(200):
                put(folder / f"host/{number:03d}-n{number}", str(number))
            await until(lambda: len(site.force.bodies) == 200)
            await site.still({f"host/n{number}": str(number).encode() for number in range(200)})
            assert site.force.calls <= calls + 3

        watched(folder, body)

    def test_what_editors_leave_wakes_but_is_not_there(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            for name in (".a.swp", "a~", "a.tmp", "a.dpkg-new", "a.rpmsave", "#a#"):
                (folder / "host" / name).write_text("x")
            (folder / ".git").mkdir()
            (folder / ".git/host").write_text("x")
            await site.still({})
            await site.well()
            assert site.force.calls == 1, "it is not called where nothing changed"

        watched(folder, body)

    def test_a_steady_change_is_not_waited_out(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            end = time.monotonic() + 2 * directory.SETTLE_MOST
            while time.monotonic() < end and not site.force.sources:
                put(folder / "host/a", "1")
                await asyncio.sleep(0.01)
            assert site.force.sources

        watched(folder, body)

    def test_nothing_is_lost_under_steady_change(self, folder):
        """Files come and go all the time, in folders old and new; what is there at the end is what is in force."""
        script = """
import os, pathlib, random, sys, time
root, end, rng = pathlib.Path(sys.argv[1]), time.monotonic() + 1.2, random.Random(4)
while time.monotonic() < end:
    path = root / rng.choice(["host", "project/p%d" % rng.randrange(5), "tag/a=%d" % rng.randrange(5)]) / ("n%d" % rng.randrange(20))
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.3:
        path.unlink(missing_ok=True)
        if path.parent != root / "host":
            try: path.parent.rmdir()
            except OSError: pass
    elif rng.random() < 0.5:
        path.write_text(str(rng.random()))
    else:
        beside = path.with_name(".new"); beside.write_text(str(rng.random())); beside.rename(path)
    time.sleep(rng.random() * 0.01)
"""  # noqa: E501

        async def body(site: Site) -> None:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(folder))
            assert await process.wait() == 0
            files = [path for path in folder.glob("*/*/*") if path.is_file()]
            want = {f"{p.parts[-3]}:{p.parts[-2]}/{p.name}": p.read_bytes() for p in files}
            want |= {f"host/{path.name}": path.read_bytes() for path in (folder / "host").iterdir()}
            await site.bodies(want)
            await site.well()

        watched(folder, body)


class TestHalfWritten:
    def test_it_is_read_when_it_is_closed(self, folder):
        put(folder / "host/a", "old")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"old"})
            with (folder / "host/a").open("w") as file:
                for number in range(30):  # 0.6 s: as scp of a large file over a slow line
                    file.write("x" * 100)
                    file.flush()
                    await asyncio.sleep(0.02)
                    assert site.force.bodies["host/a"] == b"old"
                    if number == 10:
                        put(folder / "host/b", "another")  # wakes it meanwhile
                assert "closed" in await site.fault("host/a: somebody has it open for writing")
                assert site.force.bodies == {"host/a": b"old", "host/b": b"another"}
            await site.bodies({"host/a": b"x" * 3000, "host/b": b"another"})
            await site.well()

        watched(folder, body)

    def test_a_new_one_is_not_there_before(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            with (folder / "host/a").open("w") as file:
                file.write("#cloud-config\nusers: [")
                file.flush()
                await site.fault("somebody has it open for writing; there is no source of it")
                file.write("x]")
            await site.bodies({"host/a": b"#cloud-config\nusers: [x]"})

        watched(folder, body)

    def test_nobody_who_writes_is_disturbed(self, folder):
        """The lease that tells of a writer must neither hold one up for long, nor end the reader by its signal."""
        script = "import sys\nfor n in range(1000):\n    with open(sys.argv[1], 'w') as f: f.write(str(n))\n"

        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            argv = [sys.executable, "-c", script, str(folder / "host/a")]
            process = await asyncio.create_subprocess_exec(*argv)
            while process.returncode is None:
                listing.read(folder, lambda path: None)
                await asyncio.sleep(0)
            assert process.returncode == 0
            await site.bodies({"host/a": b"999"})

        watched(folder, body)


class TestTheFolderItself:
    def test_it_goes_and_comes_again(self, folder):
        put(folder / "host/a", "1")
        away = folder.with_name("away")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            folder.rename(away)
            await site.fault(f"{folder}: No such file or directory")
            put(away / "host/a", "2")
            await site.still({"host/a": b"1"})
            away.rename(folder)
            await site.bodies({"host/a": b"2"})
            await site.well()
            shutil.rmtree(folder)
            await site.fault(f"{folder}: No such file or directory")
            await site.still({"host/a": b"2"})
            put(folder / "host/a", "3")
            await site.bodies({"host/a": b"3"})

        watched(folder, body)

    def test_it_comes_late_and_its_parents_too(self, tmp_path):
        folder = tmp_path / "not/yet/sources"
        known = [Source(HOST, "a", b"old")]

        async def body(site: Site) -> None:
            await site.fault("No such file or directory")
            await asyncio.sleep(QUIET)
            assert not site.force.calls, "nothing is known: nothing is to be changed"
            (tmp_path / "not").mkdir()
            await asyncio.sleep(QUIET)
            put(tmp_path / "not/yet/sources/host/a", "1")
            await site.bodies({"host/a": b"1"})

        watched(folder, body, known)

    def test_empty_it_is_as_if_it_were_not_mounted(self, folder):
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            shutil.rmtree(folder / "host")
            assert "keep an empty folder host" in await site.fault(f"{folder}: it is empty")
            await site.still({"host/a": b"1"})
            (folder / "host").mkdir()
            await site.bodies({})
            await site.well()

        watched(folder, body)

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "sources").write_text("x")

        async def body(site: Site) -> None:
            await site.fault("Not a directory")
            assert not site.force.calls

        watched(tmp_path / "sources", body)

    def test_others_beside_it_do_not_wake(self, folder, monkeypatch):
        looks = []
        real = listing.read
        monkeypatch.setattr(listing, "read", lambda *args: looks.append(1) or real(*args))

        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            for number in range(50):
                put(folder.parent / f"beside{number}")
                await asyncio.sleep(0.002)
            await asyncio.sleep(QUIET)
            assert len(looks) == 1

        watched(folder, body)


class TestApply:
    @pytest.mark.parametrize("error", [InputError("too large", "shorten it"), StoreError("disk full", "make room")])
    def test_what_is_refused_is_a_fault_and_tried_again(self, folder, error):
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            site.force.refuse = error
            put(folder / "host/a", "2")
            assert await site.fault(str(error)) == error.hint
            put(folder / "host/a", "1")
            await until(lambda: site.force.calls == 3)  # whatever became of the one that was refused
            site.force.refuse = None
            put(folder / "host/a", "2")
            put(folder / "host/b", "b")
            await site.bodies({"host/a": b"2", "host/b": b"b"})
            await site.well()

        watched(folder, body)

    def test_it_is_tried_again_some_time(self, folder, monkeypatch):
        monkeypatch.setattr(directory, "RESCAN_SECONDS", 0.1)
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            site.force.refuse = StoreError("disk full", "make room")
            await site.fault("disk full")
            await until(lambda: site.force.calls > 2)
            site.force.refuse = None
            await site.bodies({"host/a": b"1"})
            await site.well()
            calls = site.force.calls
            await asyncio.sleep(0.3)
            assert site.force.calls == calls, "not where nothing changed"

        watched(folder, body)

    def test_the_last_good_version_is_the_one_in_force(self, folder):
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            site.force.refuse = InputError("too large", "")
            put(folder / "host/a", "2")
            await site.fault("too large")
            site.force.refuse = None
            put(folder / "host/a", "")
            await site.fault("it is empty")
            assert site.force.bodies == {"host/a": b"1"}

        watched(folder, body)

    def test_what_is_left_out_is_a_fault_of_its_own(self, folder):
        put(folder / "host/a", "1")
        put(folder / "host/b", "1")

        async def body(site: Site) -> None:
            site.force.others = {"a"}
            put(folder / "host/b", "2")
            assert await site.fault("a is an operator's") == "rename it"
            await site.bodies({"host/b": b"2"})
            put(folder / "host/b", "")
            await site.fault("host/b: it is empty")
            assert site.force.bodies == {"host/b": b"2"}, "what was taken beside it is the last good version"
            site.force.others = set()
            site.directory.wake()
            await site.bodies({"host/a": b"1", "host/b": b"2"})
            assert len(site.directory.faults) == 1

        watched(folder, body)

    def test_who_wakes_it_while_it_is_applied_is_heard(self, folder):
        put(folder / "host/a", "1")

        async def body(site: Site) -> None:
            await site.bodies({"host/a": b"1"})
            assert site.force.calls == 1
            site.force.during = lambda: site.directory.wake() if site.force.calls == 2 else None
            site.directory.wake()
            await until(lambda: site.force.calls == 3)
            await asyncio.sleep(QUIET)
            assert site.force.calls == 3

        watched(folder, body)

    def test_an_error_of_our_own_ends_nothing(self, folder, caplog):
        async def body(site: Site) -> None:
            site.force.refuse = RuntimeError("a bug")
            await site.fault("it could not be taken over")
            site.force.refuse = None
            put(folder / "host/a", "1")
            await site.bodies({"host/a": b"1"})
            await site.well()

        watched(folder, body)
        assert "a bug" in caplog.text

    def test_a_fault_is_logged_once(self, folder, caplog):
        put(folder / "host/bad name", "1")

        async def body(site: Site) -> None:
            await site.fault("bad name")
            for number in range(3):
                put(folder / f"host/n{number}")
                await until(lambda number=number: f"host/n{number}" in site.force.bodies)

        watched(folder, body)
        assert caplog.text.count("bad name' is no name") == 1


class TestTheWatch:
    def test_no_descriptor_is_left(self, folder):
        def open_files() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            await asyncio.sleep(QUIET)
            before = open_files()
            for number in range(10):
                put(folder / f"host/n{number}")
                await until(lambda number=number: f"host/n{number}" in site.force.bodies)
            await asyncio.sleep(QUIET)
            assert open_files() == before

        before = open_files()
        watched(folder, body)
        assert open_files() == before

    def test_it_is_inherited_by_nobody(self, folder):
        async def body(site: Site) -> None:
            await until(lambda: site.force.calls)
            script = "import os, sys; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')])"  # noqa: E501
            done = subprocess.run(
                [sys.executable, "-c", script], close_fds=False, capture_output=True, text=True, check=True
            )
            assert "inotify" not in done.stdout

        watched(folder, body)

    def test_under_uvloop(self, folder):
        uvloop = pytest.importorskip("uvloop")
        site = Site(folder)

        async def run() -> None:
            task = asyncio.create_task(site.directory.run())
            await until(lambda: site.force.calls)
            for number in range(5):
                put(folder / "host/a", str(number))
                await site.bodies({"host/a": str(number).encode()})
            task.cancel()
            await asyncio.wait({task})

        uvloop.run(run())
