"""What is built once and kept outside the tree: kernels, images, boxes. CI may keep the folder between runs.

    image = made("debian", recipe, build, needs_mib=2000)

A recipe is all that decides what comes out, as text or bytes. While it stays the same, what was built is used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

KEY_DIGITS = 12


class DiskShortError(RuntimeError):
    """The disk has no room for what is to be built."""


def folder() -> Path:
    """Where it is all kept: $METASHIM_CACHE, or /var/cache/metashim."""
    return Path(os.environ.get("METASHIM_CACHE") or "/var/cache/metashim")


def key(recipe: bytes | str) -> str:
    """The short name of a recipe."""
    data = recipe.encode() if isinstance(recipe, str) else recipe
    return hashlib.sha256(data).hexdigest()[:KEY_DIGITS]


def made(name: str, recipe: bytes | str, build: Callable[[Path], None], *, needs_mib: int = 300) -> Path:
    """What `build` makes at the path that it is given, a file or a folder: built if it is not there for this recipe.

    Several processes may ask at once: one builds, the others wait for it. What was built by former recipes of that
    name goes, and so does what a build that failed left. DiskShortError with less than `needs_mib` MiB free.
    """
    path = folder() / f"{name}-{key(recipe)}"
    folder().mkdir(parents=True, exist_ok=True)
    with _locked(folder() / f".{name}.lock"):
        if not path.exists():
            _drop_others(name)
            _check_room(name, needs_mib)
            aside = path.with_name(f".{path.name}.new")
            try:
                build(aside)
                aside.rename(path)
            finally:
                _drop(aside)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _drop_others(name: str) -> None:
    """Remove former ones. Who has one of them open, as a running QEMU does, goes on with it."""
    kept = re.compile(rf"\.?{re.escape(name)}-[0-9a-f]{{{KEY_DIGITS}}}(\.new)?")
    for path in folder().iterdir():
        if kept.fullmatch(path.name):
            _drop(path)


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_room(name: str, needs_mib: int) -> None:
    free = shutil.disk_usage(folder()).free >> 20
    if free < needs_mib:
        raise DiskShortError(
            f"{name} needs {needs_mib} MiB in {folder()}, and {free} MiB are free: make room, or set METASHIM_CACHE "
            "to a folder on a larger disk"
        )
