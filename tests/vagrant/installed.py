"""What the tests do on a machine whose metashim is systemd's: units, the journal, guests on the machine's own taps."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from shim.control.live_client import LiveClient
from shim.control.shapes import PortView
from tests.lab import Namespace, TapGuest, VethGuest
from tests.lab.namespace import Netlink, wait_until
from tests.netns import ports
from tests.netns.talk import outcome

UNIT = "metashim.service"
CONFIGURATION = Path("/etc/metashim/metashim.toml")
SOCKET = Path("/run/metashim/control.sock")
GATEWAY = Path("/run/netns/metashim")
BRIDGE = "br0"
MAC, V4, V6 = "02:00:00:00:00:05", "10.0.0.5/24", "fd00:1::5/64"
SECONDS = 60.0
"""For whatever has to come: an emulated machine is ten times slower."""


class Host(Namespace):
    """This machine's own network namespace, with a bridge in it. Nothing in it is ended but what was started here."""

    def __init__(self) -> None:
        self.name, self.path = "hypervisor", Path("/proc/1/ns/net")
        self._processes: list[subprocess.Popen[Any]] = []
        self.ip = Netlink(self.path)
        if BRIDGE not in self.links():
            quick = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
            self.ip.link("add", ifname=BRIDGE, kind="bridge", **quick)
            self.sysctl(f"net.ipv6.conf.{BRIDGE}.addr_gen_mode", 1)
            self.set_up(self.index(BRIDGE))

    def argv(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def pids(self) -> list[int]:
        """What was started through here, not all that runs on the machine."""
        return [process.pid for process in self._processes if process.poll() is None]

    def close(self) -> None:
        self.stop()
        with contextlib.suppress(LookupError):
            self.ip.link("del", index=self.index(BRIDGE))
        self.ip.close()


class Installed:
    """The metashim of this machine. Guests made through it go with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._made = contextlib.ExitStack()

    @property
    def api(self) -> LiveClient:
        return LiveClient(SOCKET, SECONDS)

    def close(self) -> None:
        self._made.close()

    # systemd

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What systemctl says. RuntimeError with what the journal says, if it fails."""
        done = self.host.run(["systemctl", "--no-pager", *words], check=False, timeout=180)
        if check and done.returncode:
            raise RuntimeError(f"systemctl {words}: {done.stderr}\n{self.log_text()[-6000:]}")
        return done.stdout.strip()

    def shown(self, *names: str) -> dict[str, str]:
        """Properties of the unit."""
        said = self.systemctl("show", UNIT, *(f"--property={name}" for name in names))
        return dict(line.partition("=")[::2] for line in said.splitlines())

    def restart(self) -> None:
        self.systemctl("restart", UNIT)
        self.await_workers()

    def configure(self, text: str) -> None:
        """Write the configuration and start anew with it."""
        CONFIGURATION.write_text(text)
        self.restart()

    @property
    def agent(self) -> int:
        return int(self.shown("MainPID")["MainPID"])

    @property
    def worker(self) -> int:
        """The pid of the first worker."""
        return int(Path("/run/metashim/worker0.pid").read_text().split()[0])

    def await_workers(self) -> None:
        """Wait until every worker follows the agent."""
        wait_until(lambda: not [a for a in self.api.status().ailments if a.part == "proxy"], "the workers", SECONDS)

    def journal(self, since: float = 0.0) -> list[dict[str, str]]:
        """The unit's entries of the journal since a time (Unix seconds), oldest first."""
        argv = ["journalctl", "--unit", UNIT, "--output=json", "--no-pager", "--quiet", f"--since=@{since:.3f}"]
        return [json.loads(line) for line in self.host.run(argv).stdout.splitlines()]

    def log_text(self) -> str:
        """What the agent and its workers wrote last."""
        argv = ["journalctl", "--unit", UNIT, "--output=cat", "--no-pager", "--lines=200"]
        return self.host.run(argv, check=False).stdout

    def metashim(self, *words: str, check: bool = True) -> str:
        """A verb, as an operator has it on the PATH. What it writes; RuntimeError if it fails."""
        return self.host.run(["metashim", *words], check=check, timeout=SECONDS).stdout

    # guests

    def guest(self, name: str, instance: UUID | None, document: dict[str, Any] | None = None) -> VethGuest:
        """A guest on a tap of its own, served by now where it is an instance's; all have one MAC and one address."""
        made = VethGuest(f"guest-{name}", self.host, f"tap-{name}", mac=MAC, v4=V4, v6=V6)
        self._made.callback(made.close)
        if instance is not None:
            self.enrol(made.tap, instance, document)
            await_served(made, instance)
        return made

    def tap(self, name: str, instance: UUID, **kwargs: Any) -> TapGuest:
        """A real tap, whose guest's frames the test writes and reads."""
        made = TapGuest(self.host, f"tap-{name}", **kwargs)
        self._made.callback(made.close)
        self.enrol(made.tap, instance)
        return made

    def enrol(self, tap: str, instance: UUID, document: dict[str, Any] | None = None) -> PortView:
        """Say whose a tap is, and wait until it is."""
        if document is not None:
            self.api.put_document(instance, json.dumps(document).encode())
        self.api.attach(tap, instance)
        return self.await_port(tap, instance)

    def await_port(self, tap: str, instance: UUID | None) -> PortView:
        """Wait until a tap is the instance's, or nobody's."""
        return ports.await_port(self.api, tap, instance, SECONDS)


def await_served(guest: VethGuest, instance: UUID) -> None:
    """Ask, with patience, until the answer is the instance's."""
    met = ""

    def served() -> bool:
        nonlocal met
        met = outcome(guest, timeout=SECONDS / 10)
        return met == str(instance)

    try:
        wait_until(served, f"an answer for {instance}", SECONDS)
    except TimeoutError:
        raise AssertionError(f"{guest.name} met {met} and not {instance} for {SECONDS} s") from None


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
