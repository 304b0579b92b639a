"""vagrant/run: from nothing to a report."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tests.vm import accel, cache, image
from vagrant import boxes, ground, recipe, report, room
from vagrant.progress import Progress

RESULTS = boxes.TREE / "build/vagrant"
PREFIX = "vagrant-run-"
USAGE = 2


def main(argv: Sequence[str]) -> int:
    """The exit status is that of the tests; 2 where they could not be run."""
    words = arguments().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    say = Progress()
    needed = ground.complaints(ground.found(cache.folder()))
    if needed:
        for line in needed:
            print(f"vagrant/run: {line}", file=sys.stderr)
        return USAGE
    try:
        return _run(words, say)
    except KeyboardInterrupt:
        say("interrupted: all is gone")
        return 128 + signal.SIGINT
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"vagrant/run: {error}", file=sys.stderr)
        return USAGE


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vagrant/run", description="Hypervisors in virtual machines, tested inside.")
    parser.add_argument("--keep", action="store_true", help="keep the machines until Ctrl-C, for vagrant/shell")
    parser.add_argument("--only", nargs="+", metavar="TEST", default=[], help="these, as pytest takes them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for reports (build/vagrant)")
    parser.add_argument("--boxes", action="store_true", help="build the boxes, if they are not there, and nothing else")
    return parser


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(words: argparse.Namespace, say: Progress) -> int:
    driver, why = accel.choice()
    say(f"virtualisation: {driver} ({why})")
    made = boxes.made([one.distribution for one in recipe.MACHINES], say)
    if words.boxes:
        return 0
    _drop_left_ones()
    words.results.mkdir(parents=True, exist_ok=True)
    for old in words.results.iterdir():
        old.unlink()
    with _folder() as folder:
        boxes.known(folder / "home", folder / "lib/libvirt/images", made)
        (folder / "tiny").write_text("\n".join(map(str, tiny_guest())))
        status = _in_room(folder, words, driver, say)
    say("nothing is left of the machines")
    return judged(words.results, [] if words.only else recipe.REPORTS, status)


def judged(results: Path, wanted: Sequence[str], status: int) -> int:
    """Print what the reports say. The status is 0 only where each report that is wanted is there and green."""
    suites = []
    for path in sorted(results.glob("*.xml")):
        try:
            suites += report.read(path.read_text())
        except ValueError as error:
            print(f"RED    {path}: {error}")
            status = status or 1
    print("\n".join(report.summary(suites)))
    for name in wanted:
        if not (results / f"{name}.xml").exists():
            print(f"RED    {name}: no report")
            status = status or 1
    return status or int(not all(suite.green for suite in suites))


def tiny_guest() -> list[Path]:
    """The files that a machine needs for guests of its own, as it cannot fetch them; a folder stands for itself."""
    return [image.kernel(), image.kernel_modules(), image.busybox(), image.initrd()]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """One for all that a run makes, beside the boxes: their disks are linked there. It is locked while it is in use."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=cache.folder()))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _drop_left_ones() -> None:
    """Folders of runs that were killed."""
    for folder in cache.folder().glob(f"{PREFIX}*"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _in_room(folder: Path, words: argparse.Namespace, driver: str, say: Progress) -> int:
    """All that runs, runs in namespaces whose first process is a child of this one: they end with it."""
    inner = [sys.executable, "-m", "vagrant.room", str(folder), str(words.results.resolve()), driver, str(say.began)]
    inner += ["--keep"] * words.keep + words.only
    with subprocess.Popen([*room.ENTER, *inner], cwd=boxes.TREE) as process:
        try:
            (folder / "pid").write_text(str(process.pid))
            return process.wait()
        finally:
            process.kill()  # and with it, by the kernel, the first process there, and so all of them
            process.wait()
