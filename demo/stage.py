"""What the demonstration puts into the host, all of it by names of its own, and how it goes away again.

There is one way out. Whatever ended the story (its end, a failure, a signal, kill -9), `strike` ends every
process that descends from this one and removes what bears the stage's names. So nothing has to be undone
step by step, and there is no instant at which an interruption leaves something behind. Two stages at the
same time have different names, folders and BPF file systems, and never meet.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_NETNS = Path("/run/netns")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
MNT_DETACH = 2  # linux/mount.h
ROOT = Path(__file__).parents[1]
END_SECONDS = 5.0

CONFIG = """\
# Made by the demonstration, for it alone.
[host]
name = "{name}"
run_dir = "{folder}/run"
state_dir = "{folder}/state"
bpffs = "{folder}/bpf"

[datapath]
datapath = "{datapath}"
taps = ["tap-*"]

[identity]
file = "{folder}/instances.toml"

[proxy]
user = "{user}"
request_rate = 100000
request_burst = 100000
"""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Stage:
    """The names. `name` is the agent's (namespace, link, pins), `prefix` the lab's namespaces'."""

    name: str
    prefix: str
    folder: Path
    datapath: str
    """`ebpf` or `nft`: never the one for the other."""
    proxy_user: str
    netns_found: bool
    """Whether /run/netns was a mount already, as the first `ip netns add` since boot makes it one."""

    @property
    def config(self) -> Path:
        """The agent's configuration file."""
        return self.folder / "metashim.toml"

    @property
    def log(self) -> Path:
        """What the agent and the proxy write."""
        return self.folder / "agent.log"

    @property
    def notify(self) -> Path:
        """Where the agent says that it is ready: sd_notify(3)."""
        return self.folder / "notify.sock"

    @property
    def pins(self) -> Path:
        """The agent's folder on the stage's own BPF file system."""
        return self.folder / "bpf" / self.name

    @property
    def gateway(self) -> Path:
        """The agent's gateway namespace."""
        return RUN_NETNS / self.name

    def argv(self, verb: str) -> list[str]:
        """`metashim <verb>` of this tree, as a process of its own."""
        return [sys.executable, "-m", "shim", "--config", str(self.config), verb]


def plan(name: str, datapath: str) -> Stage:
    """The names of a stage; nothing is made yet. `name` is at most 12 characters: host.name has no more room."""
    folder = Path(tempfile.gettempdir(), f"metashim-{name}-{secrets.token_hex(4)}")
    return Stage(name, f"{name}x", folder, datapath, _proxy_user(), _is_mounted(RUN_NETNS))


def build(stage: Stage) -> None:
    """Its folder and the agent's configuration, and what namespaces need."""
    stage.folder.mkdir()
    stage.folder.chmod(0o755)  # the proxy, which is not root, reads the store in it
    (stage.folder / "bpf").mkdir()
    names = {"name": stage.name, "folder": stage.folder, "datapath": stage.datapath, "user": stage.proxy_user}
    stage.config.write_text(CONFIG.format(**names))
    if not stage.netns_found:
        with _netns_lock():
            _mount_netns()


def _proxy_user() -> str:
    try:
        return pwd.getpwnam("metashim").pw_name
    except KeyError:
        return "nobody"


@contextlib.contextmanager
def _netns_lock() -> Iterator[None]:
    """The lock that iproute2 takes too."""
    RUN_NETNS.mkdir(exist_ok=True)
    lock = os.open(RUN_NETNS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _mount_netns() -> None:
    """As `ip netns add` does, and before the first namespace: those made earlier could not be unmounted."""
    if not _is_mounted(RUN_NETNS):
        subprocess.run(["mount", "--bind", RUN_NETNS, RUN_NETNS], check=True)
        subprocess.run(["mount", "--make-shared", RUN_NETNS], check=True)


def _is_mounted(path: Path) -> bool:
    """Whether a mount is there, bind mounts of the same device included, which Path.is_mount() does not see."""
    return str(path) in _mounts()


def _mounts() -> list[str]:
    """Where mounts are: field 5 of proc_pid_mountinfo(5)."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def adopt_orphans() -> None:
    """From now on whatever descends from this process becomes its child when its parent ends."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def strike(stage: Stage) -> list[str]:
    """Remove all of it. What is left even so, in words; that is nothing, unless the kernel refused."""
    left = [] if _end_descendants() else ["a process that does not end"]
    for path in _namespaces(stage):
        _unmount(path)
        path.unlink(missing_ok=True)
    _unmount(stage.folder / "bpf")
    shutil.rmtree(stage.folder, ignore_errors=True)
    if not stage.netns_found:
        _restore_netns()
    return left + remains(stage)


def _end_descendants() -> bool:
    """Kill children until there are none: those of a killed one become ours, and are next."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(0.005)
    return False


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _namespaces(stage: Stage) -> list[Path]:
    return [path for path in RUN_NETNS.glob(f"{stage.name}*") if path.name == stage.name or _is_lab(stage, path)]


def _is_lab(stage: Stage, path: Path) -> bool:
    return path.name.startswith(f"{stage.prefix}-")


def _unmount(path: Path) -> None:
    _libc.umount2(bytes(path), MNT_DETACH)


def _restore_netns() -> None:
    """Take the mount away again that `build` made, unless others use it by now."""
    with _netns_lock():
        if any(RUN_NETNS.iterdir()):
            return
    _unmount(RUN_NETNS)
    with contextlib.suppress(OSError):
        RUN_NETNS.rmdir()


def remains(stage: Stage) -> list[str]:
    """What of the stage is there: namespaces, links, mounts, files."""
    links = [name for _, name in socket.if_nameindex() if name.startswith(stage.name)]
    found = [f"the namespace {path.name}" for path in _namespaces(stage)]
    found += [f"the link {name}" for name in links]
    found += [f"the mount {mount}" for mount in _mounts() if mount.startswith(f"{stage.folder}/")]
    return found + ([f"the folder {stage.folder}"] if stage.folder.exists() else [])
