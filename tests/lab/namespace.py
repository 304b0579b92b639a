"""One network namespace: make it, move into it, run things in it, end what runs in it, remove it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute

RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h
MS_BIND = 4096  # linux/mount.h
MS_REC, MS_SHARED = 16384, 1 << 20
MNT_DETACH = 2
IFF_LOWER_UP = 0x10000  # linux/if.h
BR_STATE_FORWARDING = 3  # linux/if_bridge.h
STOP_SECONDS = 3.0
READY_SECONDS = 10.0

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


@contextlib.contextmanager
def _entered(path: Path) -> Iterator[None]:
    """Move the calling thread into a namespace, and back."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _must(_libc.setns(there, CLONE_NEWNET), "setns")
        finally:
            os.close(there)
        try:
            yield
        finally:
            _must(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def _share_folder(folder: Path) -> None:
    """Make the folder a shared mount on itself, as the first `ip netns add` on a machine does.

    Were it left to a later `ip netns add` (or metashim's), the mounts made before would lie twice, and stay.
    """
    if _libc.mount(b"", bytes(folder), b"none", MS_SHARED | MS_REC, None):
        _must(_libc.mount(bytes(folder), bytes(folder), b"none", MS_BIND | MS_REC, None), f"mount {folder}")
        _must(_libc.mount(b"", bytes(folder), b"none", MS_SHARED | MS_REC, None), f"share {folder}")


def _create(path: Path) -> None:
    """A new namespace, bound to `path`, in a thread of its own, which stays in it (pyroute2 would fork)."""
    path.parent.mkdir(exist_ok=True)
    _share_folder(path.parent)
    path.touch(mode=0o444, exist_ok=False)
    try:
        _must(_libc.unshare(CLONE_NEWNET), "unshare")
        _must(_libc.mount(b"/proc/thread-self/ns/net", bytes(path), None, MS_BIND, None), f"mount {path}")
    except BaseException:
        path.unlink()
        raise


def _remove(path: Path) -> None:
    _must(_libc.umount2(bytes(path), MNT_DETACH), f"umount {path}")
    path.unlink()


def wait_until(condition: Callable[[], bool], what: str, seconds: float | None = None) -> None:
    """Poll until `condition` holds. TimeoutError after `seconds` (READY_SECONDS unless given)."""
    end = time.monotonic() + (READY_SECONDS if seconds is None else seconds)
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.005)


def _carries(link: Any) -> bool:
    """Whether a link, as dumped, has a carrier that its queues and its bridge know of."""
    port = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
    forwards = port is None or port.get_attr("IFLA_BRPORT_STATE") == BR_STATE_FORWARDING
    known = link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN")  # a tap's stays unknown
    return bool(link["flags"] & IFF_LOWER_UP) and known and forwards


class Netlink:
    """pyroute2's IPRoute in a namespace, usable from any thread and within a running event loop.

    Its calls drive an event loop, so they are made on one thread of their own. Dumps come as tuples.
    """

    _thread = ThreadPoolExecutor(1, thread_name_prefix="lab-netlink")

    def __init__(self, namespace: Path) -> None:
        def connect() -> IPRoute:
            with _entered(namespace):
                return IPRoute()

        self._route = self._thread.submit(connect).result()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = getattr(self._route, name)(*args, **kwargs)
            return tuple(answer) if isinstance(answer, Iterator) else answer

        return lambda *args, **kwargs: self._thread.submit(call, *args, **kwargs).result()


class Namespace:
    """A named network namespace, visible to `ip netns`. Its loopback is up, and IPv6 does no DAD in it.

    `ip` is a netlink handle inside it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = RUN_NETNS / name
        self._processes: list[subprocess.Popen[Any]] = []
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_create, self.path).result()
        try:
            self.ip = Netlink(self.path)
            self.sysctl("net.ipv6.conf.default.accept_dad", 0)
            self.sysctl("net.ipv6.conf.all.accept_dad", 0)
            self.ip.link("set", index=1, state="up")
        except BaseException:
            _remove(self.path)
            raise

    def index(self, ifname: str) -> int:
        """The ifindex of a link in here. LookupError if there is none of that name."""
        found = self.ip.link_lookup(ifname=ifname)
        if not found:
            raise LookupError(f"no link {ifname} in namespace {self.name}")
        return int(found[0])

    def links(self) -> set[str]:
        """The names of all links in here, `lo` among them."""
        return {link.get_attr("IFLA_IFNAME") for link in self.ip.get_links()}

    def set_up(self, index: int, master: int | None = None) -> None:
        """Plug a link into the bridge `master`, if given, and set it up; `await_up` says when it is."""
        if master is not None:
            self.ip.link("set", index=index, master=master)
        self.ip.link("set", index=index, state="up")

    def await_up(self, index: int) -> None:
        """Wait until a link carries frames, as a bridge's port too: some time after it was set up.

        Until then it loses what is sent, in silence. TimeoutError after `READY_SECONDS`.
        """
        wait_until(lambda: _carries(self.ip.get_links(index)[0]), f"link {index} of {self.name} to be up")

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread in, and back at the end: sockets opened meanwhile stay in here."""
        with _entered(self.path):
            yield

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`function(*args, **kwargs)`, called in here by this thread."""
        with self.enter():
            return function(*args, **kwargs)

    def sysctl(self, key: str, value: object) -> None:
        """Set `net.ipv4.tcp_tw_reuse` and its like in here (for interfaces without dots in their names)."""
        with self.enter():
            Path("/proc/sys", *key.split(".")).write_text(str(value))

    def argv(self, argv: Sequence[str]) -> list[str]:
        """`argv`, to be run in here.

        nsenter and not `ip netns exec`: that one makes a mount namespace with a /sys of its own, which hides
        bpffs.
        """
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, argv: Sequence[str], *, timeout: float = 30, check: bool = True, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and capture what it writes, which the RuntimeError tells if it fails."""
        kwargs = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | kwargs
        done = subprocess.run(self.argv(argv), timeout=timeout, check=False, **kwargs)
        if check and done.returncode:
            raise RuntimeError(f"{list(argv)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a process in a session of its own (no Ctrl-C reaches it), to be ended with the namespace."""
        kwargs = {"stdin": subprocess.DEVNULL, "start_new_session": True} | kwargs
        process = subprocess.Popen(self.argv(argv), **kwargs)
        self._processes.append(process)
        return process

    def pids(self) -> list[int]:
        """The processes in here, whoever started them, but this one."""
        inode = self.path.stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if (entry / "ns/net").stat().st_ino == inode:
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End every process in here and every one started through here: SIGTERM, then SIGKILL."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            if self._wait_all_gone():
                break
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _alive(self) -> set[int]:
        started = {process.pid for process in self._processes if process.poll() is None}
        return started | set(self.pids())

    def _wait_all_gone(self) -> bool:
        try:
            wait_until(lambda: not self._alive(), "processes to end", STOP_SECONDS)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End what runs in here and remove the namespace, with every link in it. May be called twice."""
        if self.path.exists():
            self.stop()
            self.ip.close()
            _remove(self.path)
