"""A whole metashim on a lab's hypervisor: a real agent and its workers, with folders and a name of their own.

    with Lab() as lab, Hypervisor(lab) as site:
        site.start()
        site.api.set_policy(...)

Readiness is learnt as systemd does, by sd_notify. At the end of the `with` the agent is ended, `teardown` run,
and whatever is left then (namespace, link, pin, process, file of the run folder) is an error of the test.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from uuid import UUID

from shim.control.live_client import LiveClient
from shim.control.shapes import PortView
from shim.core.policy import Access, Family
from tests.lab import Lab
from tests.lab.namespace import wait_until
from tests.netns import ports

ROOT = Path(__file__).parents[2]
BPFFS = Path("/sys/fs/bpf")
START_SECONDS = 40.0
STOP_SECONDS = 12.0
BOTH = frozenset(Family)

HAND_OVER = """
import os, sys
names, fds, *argv = sys.argv[1:]
aside = [os.dup2(int(fd), 500 + place) for place, fd in enumerate(fds.split(","))]
for place, fd in enumerate(aside):
    os.dup2(fd, 3 + place)
os.closerange(3 + len(aside), 1000)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(aside)), "LISTEN_FDNAMES": names}
os.execvp(argv[0], argv)
"""
"""Runs a command with descriptors from 3 on, of which the environment tells, as systemd does."""

_counter = itertools.count(1)
_compiled: dict[str, bytes] = {}  # files that an agent keeps its programs in


def uuid_of(number: int) -> UUID:
    """The instance of that number: easy to tell apart in a failure."""
    return UUID(f"{number:08d}-aaaa-4aaa-8aaa-{number:012d}")


def unhurried(proxy: str) -> str:
    """Settings of the proxy with room for guests that ask as fast as they can, unless they say otherwise."""
    wide = "request_rate = 1000000\nrequest_burst = 1000000\n"
    return proxy if "request_rate" in proxy else wide + proxy


class Hypervisor:
    """An agent of its own in `lab`'s hypervisor. `settings` is TOML put behind what is set here; `datapath` is what
    the agent is started with, empty for what the settings say. If it `keeps`, descriptors are kept for the agent from
    one run to the next, as systemd does by the unit; else not, as where there is no systemd."""

    def __init__(
        self, lab: Lab, settings: str = "", host: str = "", proxy: str = "", identity: str = "", datapath: str = ""
    ) -> None:
        self.lab, self.datapath = lab, datapath
        self.keeps = False
        self._kept: list[tuple[str, int]] = []
        self.name = f"e{os.getpid() % 100000}x{next(_counter)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.folder.chmod(0o755)
        self.config = self.folder / "metashim.toml"
        self.run, self.state = self.folder / "run", self.folder / "state"
        self.mapping, self.log = self.folder / "instances.toml", self.folder / "log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.tree = ROOT  # whose agents and verbs are started: another version's, if that is set
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.folder / "notify"))
        self.configure(settings, host=host, proxy=proxy, identity=identity)

    def configure(self, settings: str = "", *, host: str = "", proxy: str = "", identity: str = "") -> None:
        """Write the configuration; it holds from the next start."""
        self.config.write_text(
            f'[host]\nname = "{self.name}"\nrun_dir = "{self.run}"\nstate_dir = "{self.state}"\n{host}\n'
            f'[identity]\nfile = "{self.mapping}"\n{identity}\n'
            f'[proxy]\nuser = "nobody"\n{unhurried(proxy)}\n{settings}\n'
        )

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.kill()
            done = self.verb("teardown", check=False)
            left = self.left_behind()
            if kind is None:
                assert done.returncode == 0, done.stderr
                assert not left, left
                assert "Traceback" not in self.log_text(), self.log_text()
            elif self.log.exists():
                print(self.log_text()[-8000:])
        finally:
            self.forget()
            self._notify.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def left_behind(self) -> list[str]:
        """What a teardown should have removed and did not."""
        paths = [Path("/run/netns") / self.name, BPFFS / self.name, self.run]
        links = self.lab.host.links() & {f"{self.name}0"}
        shown = self.lab.host.run(["nft", "list", "tables"], check=False).stdout.splitlines()
        tables = [line for line in shown if self.name in line]
        processes = [f"process {pid}" for pid in self.lab.host.pids()]
        return [str(path) for path in paths if path.exists()] + tables + sorted(links) + processes

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", "shim", "--config", str(self.config)]

    def verb(self, *words: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """A verb of the command line, run on the hypervisor."""
        return self.lab.host.run([*self.argv, *words], check=check, cwd=str(self.tree), timeout=timeout)

    @property
    def api(self) -> LiveClient:
        return LiveClient(self.run / "control.sock", 15.0)

    def begin(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start an agent without waiting for it. All but a session's first find what was compiled once, as on a host
        where one has run before."""
        if _compiled and not self.state.exists():
            self.state.mkdir()
            for name, programs in _compiled.items():
                (self.state / name).touch(0o600)
                (self.state / name).write_bytes(programs)
        variables = [f"{name}={value}" for name, value in environment.items()]
        variables.append(f"NOTIFY_SOCKET={self.folder / 'notify'}")
        options = ["--datapath", self.datapath] if self.datapath else []
        argv, fds = ["env", *variables, *self.argv, "agent", *options], [fd for _, fd in self._kept]
        if fds:
            argv = [sys.executable, "-c", HAND_OVER, ":".join(name for name, _ in self._kept), str(fds)[1:-1], *argv]
        with self.log.open("ab") as log:
            self.agent = self.lab.run_in_host(argv, cwd=str(self.tree), stdout=log, stderr=log, pass_fds=fds)
        return self.agent

    def forget(self) -> None:
        """Close what is kept, as systemd does for a unit that is stopped."""
        for _, fd in self._kept:
            os.close(fd)
        self._kept = []

    def _hear(self) -> str:
        """What the agent tells systemd next, after it was done. TimeoutError, BlockingIOError."""
        data, fds, _, _ = socket.recv_fds(self._notify, 500, 8)
        said = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        if "FDSTOREREMOVE" in said:
            for one in [one for one in self._kept if one[0] == said["FDNAME"]]:
                self._kept.remove(one)
                os.close(one[1])
        for fd in fds:
            if self.keeps and os.fstat(fd).st_ino not in [os.fstat(known).st_ino for _, known in self._kept]:
                self._kept.append((said["FDNAME"], fd))
            else:
                os.close(fd)
        return data.decode()

    def start(self, **environment: str) -> None:
        """Start an agent and wait until it says that it is ready."""
        self.begin(**environment)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until the agent that was begun says that it is ready."""
        assert self.agent is not None
        agent = self.agent
        self._notify.settimeout(0.1)
        end = time.monotonic() + START_SECONDS
        while agent.poll() is None and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                if self._hear() == "READY=1":
                    self.await_workers()
                    if not _compiled and self.tree == ROOT:
                        _compiled.update((path.name, path.read_bytes()) for path in self.state.glob("programs-*"))
                    return
        raise AssertionError(f"the agent is not ready (status {agent.poll()}):\n{self.log_text()}")

    def await_workers(self) -> None:
        """Wait until every worker follows the agent."""
        wait_until(lambda: not [a for a in self.api.status().ailments if a.part == "proxy"], "the workers")

    def end(self, number: int) -> int:
        """Send the agent a signal and wait for its end; its status."""
        assert self.agent is not None
        self.agent.send_signal(number)
        status = self.agent.wait(STOP_SECONDS)
        with contextlib.suppress(BlockingIOError):
            self._notify.setblocking(False)
            while self._hear():
                pass
        return status

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self.agent is not None and self.agent.poll() is None:
            self.end(signal.SIGKILL)

    def log_text(self) -> str:
        """What the agent and its workers wrote."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def worker(self) -> int:
        """The pid of the first worker."""
        return int((self.run / "worker0.pid").read_text().split()[0])

    def disable(self, instance: UUID, how: Access = Access.RESET, families: frozenset[Family] = BOTH) -> None:
        self.api.set_policy(instance, how, list(families))

    def enable(self, instance: UUID) -> None:
        self.api.set_policy(instance, Access.OPEN, list(BOTH))

    def port(self, tap: str) -> PortView | None:
        """The port of a tap, if it is guarded."""
        return ports.port_of(self.api, tap)

    def await_port(self, tap: str, instance: UUID | None, seconds: float = 5.0) -> PortView:
        """Wait until a tap is the instance's, or nobody's."""
        return ports.await_port(self.api, tap, instance, seconds)

    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """A process that does nothing for a while (SIGSTOP)."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
