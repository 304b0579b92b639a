"""An agent with its proxy in a Lab, for the rows that need one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import UUID

from shim import config as configs
from shim.control.client import Client
from shim.control.shapes import StatusView
from shim.errors import UnreachableError
from tests.lab import Lab, Namespace, VethGuest

ROOT = Path(__file__).parents[1]
READY_SECONDS = 120.0
DATAPATHS = ("ebpf", "nft")
MAC = "02:be:00:00:00:01"
GUEST = "10.66.0.5/24"

SETTINGS = """\
[host]
name = "{name}"
run_dir = "{folder}/run"
state_dir = "{folder}/state"

[identity]
{identity}
file = "{folder}/instances.toml"

[log]
level = "warning"
"""

FILE = 'sources = ["file"]'

DEFAULTS = """
[proxy]
user = "nobody"
"""
RAISED = """
[datapath]
max_ports = 16384
connection_rate = 1000000
connection_burst = 1000000
event_rate = 1000

[proxy]
user = "nobody"
request_rate = 1000000
request_burst = 1000000
"""
"""Limits as they come, and such that one guest, asking as fast as it can, does not reach."""


def forwarded(port: int, requests: int = 16) -> str:
    """Settings by which all is forwarded to a port of the host's loopback, as to Nova, and what begins with /signed as
    to any HTTP service, whose requests are signed each; so many requests of an instance at a time (16: as it comes)."""
    return f"""
[forward]
routes = {{{{ "/" = "nova", "/signed" = "http" }}}}
requests_per_instance = {requests}

[nova]
addresses = ["http://127.0.0.1:{port}"]
secret_file = "{{folder}}/secret"

[http]
addresses = ["http://127.0.0.1:{port}"]
secret_file = "{{folder}}/secret"
"""


def instance_of(number: int) -> UUID:
    """The instance behind the tap of that number."""
    return UUID(f"be000000-0000-4000-8000-{number:012x}")


def configuration(name: str, folder: Path, settings: str, identity: str = FILE) -> str:
    """A site's: what SETTINGS has, with that in the table of identity, and these tables."""
    return (SETTINGS + settings).replace("{identity}", identity).format(name=name, folder=folder)


class Site:
    """A lab whose host runs an agent. Guests and taps are numbered: `tap<number>`, `instance_of(number)`.

    `settings` are tables of the configuration beside those that SETTINGS has; `{folder}` in them is the site's.
    `identity` is what is to be in that table.
    """

    def __init__(self, lab: Lab, folder: Path, settings: str = RAISED, identity: str = FILE) -> None:
        self.lab = lab
        self._folder = folder
        path = folder / "metashim.toml"
        path.write_text(configuration(f"bench{os.getpid()}", folder, settings, identity))
        secret = folder / "secret"
        secret.touch(0o600)
        secret.write_text("bench-shared-secret")
        self.config = configs.load(path)
        self.client = Client(self.config.control_socket)
        self._command = [sys.executable, "-m", "shim", "--config", str(path)]
        self._log = folder / "agent.log"
        # As an installed one has after its first start: modules that are compiled.
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        everything = "import shim.agent, shim.cli, shim.proxy, shim.datapath.compile, shim.identity.speaker"
        subprocess.run([sys.executable, "-c", everything], cwd=ROOT, env=self._environment, check=True)
        self._agent: subprocess.Popen[bytes] | None = None

    def guest(self, number: int) -> VethGuest:
        """One more guest with a kernel of its own; all have the same addresses."""
        return self.lab.veth_guest(f"g{number}", tap=f"tap{number}", mac=MAC, v4=GUEST)

    def quiet_guest(self, number: int) -> VethGuest:
        """One more guest, whose kernel has no address and says nothing of its own."""
        return self.lab.veth_guest(f"g{number}", tap=f"tap{number}", mac=MAC, link_local=False)

    def taps(self, numbers: range) -> None:
        """So many real tap devices, which nobody holds."""
        lines = "".join(f"tuntap add dev tap{number} mode tap\n" for number in numbers)
        self.lab.host.run(["ip", "-batch", "-"], timeout=120, input=lines, stdin=None)

    def know(self, numbers: Iterable[int]) -> None:
        """Write the identity of the taps of these numbers."""
        entries = (
            f'[[port]]\ninterface = "tap{n}"\ninstance = "{instance_of(n)}"\nproject = "bench"\n'
            for n in numbers
        )
        fresh = self._folder / "instances.new"
        fresh.write_text("".join(entries))
        fresh.rename(self._folder / "instances.toml")

    def begin(self, datapath: str = "ebpf") -> None:
        """Starts the agent, without waiting for it."""
        command = [*self._command, "agent", "--datapath", datapath]
        with self._log.open("ab") as log:
            self._agent = self.lab.run_in_host(command, cwd=ROOT, stdout=log, stderr=log, env=self._environment)

    def start(self, ports: int, datapath: str = "ebpf") -> float:
        """Starts the agent; the seconds until it serves operators and so many ports and its workers are up."""
        began = time.monotonic()
        self.begin(datapath)
        self.await_ready()
        took = time.monotonic() - began
        self._settled_status()
        self.must_serve(ports)
        return took

    def must_serve(self, ports: int) -> None:
        """RuntimeError unless so many ports are served, and no other is there."""
        states = self.client.status().states
        if states != {"serving": ports}:
            raise RuntimeError(f"{ports} ports were to be serving, but there are {states}")

    def await_ready(self) -> None:
        """Until the agent serves operators."""
        began = time.monotonic()
        while not self._is_ready():
            if self._agent is None or self._agent.poll() is not None or time.monotonic() - began > READY_SECONDS:
                raise RuntimeError(f"the agent does not get ready:\n{self.log_text()}")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.status().pid)
        except UnreachableError:
            return False

    def _settled_status(self) -> StatusView:
        end = time.monotonic() + 10
        while (status := self.client.status()).ailments and time.monotonic() < end:
            time.sleep(0.05)
        return status

    @property
    def pid(self) -> int:
        """The agent's."""
        return self.client.status().pid

    @property
    def worker_pids(self) -> list[int]:
        """The proxy's."""
        return [worker.pid for worker in self.client.status().workers]

    @property
    def other_pids(self) -> list[int]:
        """The agent's other children: those that identity sources have."""
        agent = self.pid
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return sorted(set(map(int, children)) - set(self.worker_pids))

    @property
    def pins(self) -> Path:
        """Where the maps and programs in use are pinned."""
        return next(self.config.pins.glob("v*"))

    @property
    def program(self) -> Path:
        """The pinned program of taps."""
        return next(self.pins.glob("from_instance-*"))

    def log_text(self) -> str:
        """The end of what the agent and its workers logged."""
        return self._log.read_text()[-2000:] if self._log.exists() else ""

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends agent and proxy; the kernel's side stays."""
        if self._agent is not None:
            self._agent.send_signal(number)
            self._agent.wait(30)
            self._agent = None

    def leave(self) -> None:
        """Ends the agent alone: the proxy serves on."""
        self.stop(signal.SIGQUIT)

    def forget(self) -> None:
        """Ends all and removes the kernel's side, so that the next start is a cold one."""
        self.stop()
        self.lab.host.run([*self._command, "teardown"], cwd=ROOT, timeout=120)


def plain_link(guest: Namespace, peer: Namespace, ifname: str, addresses: tuple[str, str]) -> None:
    """A veth pair between two namespaces that metashim has no part in: `eth1` of the guest, `ifname` of the peer, with
    these addresses."""
    guest.ip.link("add", ifname="eth1", kind="veth", peer={"ifname": ifname, "net_ns_fd": str(peer.path)})
    for namespace, link, address in ((guest, "eth1", addresses[0]), (peer, ifname, addresses[1])):
        index = namespace.index(link)
        namespace.ip.addr("add", index=index, address=address, prefixlen=24)
        namespace.set_up(index)


def _mount_netns() -> None:
    """As the first `ip netns add` since boot does: made a mount later, /run/netns would hide what is in it by then."""
    if not Path("/run/netns").is_mount():
        name = f"bench{os.getpid()}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def site(settings: str = RAISED, identity: str = FILE) -> Iterator[Site]:
    """A site of its own with these settings, removed at the end, also after a failure or Ctrl-C."""
    _mount_netns()
    folder = Path(tempfile.mkdtemp(prefix="metashim-bench-"))
    folder.chmod(0o755)  # the proxy is nobody, and reads the store
    try:
        with Lab(f"bench{os.getpid()}") as lab:
            made = Site(lab, folder, settings, identity)
            try:
                yield made
            except Exception as error:
                error.add_note(f"the agent said:\n{made.log_text()}")
                raise
            finally:
                made.forget()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
