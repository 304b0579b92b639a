"""A file that is watched: every way in which it can become another one is told, by a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from asyncinotify import Inotify

from shim.identity import watched
from shim.identity.file import StaticFile
from shim.identity.watched import changes

PATIENCE = 5.0


@contextlib.asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Callable[[], asyncio.Future[None]]]:
    """`next()` is the next time that the file is worth a look, after the first."""
    told = changes(path)
    await anext(told)
    try:
        yield lambda: asyncio.ensure_future(asyncio.wait_for(anext(told), PATIENCE))  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(RuntimeError):
            await told.aclose()  # type: ignore[attr-defined]


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("b")
    fresh.rename(path)


def through_another_folder(path: Path) -> None:
    """As Kubernetes writes a configuration: the name is a link to a link to a folder, which is exchanged."""
    (path.parent / "..2").mkdir()
    (path.parent / "..2" / "f").write_text("b")
    (path.parent / "..new").symlink_to("..2")
    (path.parent / "..new").rename(path.parent / "..data")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.write_text("b"),
        replace,
        lambda p: p.unlink(),
        lambda p: os.utime(p, (1, 1)),
        lambda p: p.chmod(0o600),
    ],
)
def test_what_happens_to_the_file_itself(tmp_path: Path, change: Callable[[Path], None]) -> None:
    async def tell() -> None:
        path = tmp_path / "i.toml"
        path.write_text("a")
        async with watching(path) as once_more:
            coming = once_more()
            await asyncio.sleep(0)
            change(path)
            await coming

    asyncio.run(tell())


def test_a_folder_that_comes_later_goes_and_comes_again(tmp_path: Path) -> None:
    async def tell() -> None:
        path = tmp_path / "etc" / "metashim" / "i.toml"
        async with watching(path) as once_more:
            for step in (
                lambda: (tmp_path / "etc").mkdir(),
                lambda: path.parent.mkdir(),
                lambda: path.write_text("a"),
                lambda: path.parent.rename(tmp_path / "away"),
                lambda: (tmp_path / "away").rename(path.parent),
                lambda: path.write_text("b"),
            ):
                coming = once_more()
                await asyncio.sleep(0.05)
                step()
                await coming

    asyncio.run(tell())


def test_links_on_the_way_are_followed(tmp_path: Path) -> None:
    async def tell() -> None:
        path = tmp_path / "i.toml"
        (tmp_path / "..1").mkdir()
        (tmp_path / "..1" / "f").write_text("a")
        (tmp_path / "..data").symlink_to("..1")
        path.symlink_to("..data/f")
        async with watching(path) as once_more:
            for step in (lambda: (tmp_path / "..1" / "f").write_text("c"), lambda: through_another_folder(path)):
                coming = once_more()
                await asyncio.sleep(0.05)
                step()
                await coming
        assert path.read_text() == "b"

    asyncio.run(tell())


def test_links_in_a_circle_are_no_trap(tmp_path: Path) -> None:
    async def tell() -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        async with watching(tmp_path / "a") as once_more:
            coming = once_more()
            await asyncio.sleep(0.05)
            (tmp_path / "b").unlink()
            await coming

    asyncio.run(tell())


def test_where_the_kernel_does_not_watch_it_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when fs.inotify.max_user_instances is used up."""

    def full() -> Inotify:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watched, "Inotify", full)
    monkeypatch.setattr(watched, "POLL_SECONDS", 0.01)

    async def tell() -> None:
        async with watching(tmp_path / "i.toml") as once_more:
            await once_more()

    asyncio.run(tell())


def test_a_file_that_was_broken_from_the_start_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "i.toml"
    source = StaticFile(path)
    source.refresh()
    assert source.known, "there is none, which says that it names nobody"
    path.write_text("[[port]\n")
    source = StaticFile(path)
    source.refresh()
    assert not source.known
    path.write_text("")
    assert source.refresh() is False and source.known
    path.write_text("[[port]\n")
    source.refresh()
    assert source.known, "the last good one holds"


def test_the_source_wakes_whoever_asks_it(tmp_path: Path) -> None:
    async def tell() -> None:
        path = tmp_path / "i.toml"
        source, woken = StaticFile(path), asyncio.Event()
        watch = asyncio.ensure_future(source.watch(woken.set))
        await asyncio.wait_for(woken.wait(), PATIENCE)
        woken.clear()
        path.write_text('[[port]]\ninterface = "tap1"\ninstance = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"\n')
        await asyncio.wait_for(woken.wait(), PATIENCE)
        assert source.refresh() is True
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(tell())
