"""What is kept outside the tree: built once for a recipe, by one at a time, whole or not at all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.vm import cache


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METASHIM_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def written(text: str):
    return lambda path: path.write_text(text) and None


def test_built_once_for_a_recipe_and_the_former_one_goes(kept):
    first = cache.made("image", "one", written("first"))
    assert cache.made("image", "one", written("again")) == first and first.read_text() == "first"
    other, longer = cache.made("other", "one", written("other")), cache.made("image-x", "one", written("longer"))
    second = cache.made("image", "two", written("second"))
    assert second.read_text() == "second" and not first.exists()
    assert other.exists() and longer.exists(), "names that only begin like it"
    assert sorted(path for path in kept.iterdir() if not path.name.startswith(".")) == sorted([second, other, longer])


def test_folders_too(kept):
    def build(path: Path) -> None:
        path.mkdir()
        (path / "file").write_text("x")

    first = cache.made("box", b"one", build)
    assert (cache.made("box", b"two", build) / "file").exists() and not first.exists()


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(kept):
    def breaks(path: Path) -> None:
        path.write_text("half")
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        cache.made("image", "one", breaks)
    assert [path.name for path in kept.iterdir()] == [".image.lock"]
    assert cache.made("image", "one", written("whole")).read_text() == "whole"


def test_what_a_killed_build_left_goes(kept):
    kept.mkdir()
    left = kept / f".image-{cache.key('zero')}.new"
    left.mkdir()
    cache.made("image", "one", written("whole"))
    assert not left.exists()


def test_two_at_once_build_once():
    builds, paths = [], []

    def build(path: Path) -> None:
        builds.append(path)
        time.sleep(0.1)
        path.write_text("x")

    threads = [threading.Thread(target=lambda: paths.append(cache.made("image", "one", build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and len(set(paths)) == 1 and len(paths) == 4


def test_no_room_is_said_before_anything_is_built(kept):
    with pytest.raises(cache.DiskShortError, match=rf"image needs \d+ MiB in {kept}.* METASHIM_CACHE"):
        cache.made("image", "one", lambda path: pytest.fail("it was built"), needs_mib=1 << 40)


def test_the_folder_without_a_setting(monkeypatch):
    monkeypatch.setenv("METASHIM_CACHE", "")
    assert cache.folder() == Path("/var/cache/metashim")
