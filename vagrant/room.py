"""A room of its own for a libvirtd and all that it starts: mounts, network, processes. The host's own libvirt, where
there is one, and the host's network see nothing of it.

Process 1 of the room takes the orphans' ends, as libvirt waits for those of emulators that it tried. When it ends
itself, the kernel ends all others, and their network goes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import libvirt_folders
from tests.libvirt_folders import FOLDERS, USERS
from vagrant import boxes, inside
from vagrant.progress import Progress

ENTER = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
START_SECONDS = 60.0
FAILED = 2


def main(argv: Sequence[str]) -> int:
    """FOLDER RESULTS DRIVER BEGAN [--keep] [TEST...], in the namespaces of ENTER."""
    worker = os.fork()
    if worker == 0:
        folder, results, driver, began, *words = argv
        return work(folder, results, driver, began, words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the worker has it too, from the terminal
    while True:
        ended, status = os.wait()
        if ended == worker:
            return os.waitstatus_to_exitcode(status)


def work(folder: str, results: str, driver: str, began: str, words: Sequence[str]) -> int:
    try:
        furnish(Path(folder))
        with daemons(Path(folder)):
            return inside.run(Path(folder), Path(results), driver, Progress(float(began)), words)
    except RuntimeError as error:
        print(f"vagrant/run: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def furnish(folder: Path) -> None:
    """Hide the host's folders of state behind the run's own, but for the tree and the cache where they lie in one."""
    libvirt_folders.furnish(folder)
    for name in USERS:
        _mount("--bind", folder / name, Path("/etc", name))
    for name, hidden in FOLDERS.items():
        for kept in (folder.parent, boxes.TREE):
            if kept.is_relative_to(hidden):
                place = folder / name / kept.relative_to(hidden)
                place.mkdir(parents=True, exist_ok=True)
                _mount("--bind", kept, place)
        Path(hidden).mkdir(exist_ok=True)
        _mount("--rbind", folder / name, Path(hidden))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _mount(how: str, what: Path, where: Path) -> None:
    subprocess.run(["mount", how, str(what), str(where)], check=True)


@contextlib.contextmanager
def daemons(folder: Path) -> Iterator[None]:
    """virtlogd and libvirtd, which answer. They write to a file: they would hold the caller's output open."""
    with (folder / "daemons.log").open("ab") as log, contextlib.ExitStack() as running:
        for argv in (["/usr/sbin/virtlogd"], ["/usr/sbin/libvirtd"]):
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            running.callback(process.wait)
            running.callback(process.kill)
        end = time.monotonic() + START_SECONDS
        virsh = ["virsh", "--quiet", "--connect", "qemu:///system", "list"]
        while subprocess.run(virsh, stdout=log, stderr=log, check=False).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"libvirtd does not answer: {(folder / 'daemons.log').read_text()[-1000:]}")
            time.sleep(0.1)
        yield


if __name__ == "__main__":
    os.chdir(boxes.TREE)
    sys.exit(main(sys.argv[1:]))
