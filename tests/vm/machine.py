"""One QEMU process on taps of a lab's hypervisor, with a serial console that can be read while it runs.

    tap = Tap(lab.host, "tap1")
    with Machine(lab.host, kernel=image.kernel(), initrd=..., nics=[Nic("tap1", MAC)]) as machine:
        machine.await_line(r"login:", 60)
"""

from __future__ import annotations

import errno
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from tests.lab import Namespace, TapGuest
from tests.vm import accel

TAIL_LINES = 40
CONSOLE = "console=ttyS0 no_timer_check"  # an emulated timer may be late: a kernel that checks it would panic


class MachineError(AssertionError):
    """The guest did not do what was waited for; the text ends with what its console and QEMU said last."""


class Tap:
    """A tap device in `host`, up and plugged into a bridge, that stays when no machine holds it.

    A machine that uses several queues needs it made with as many.
    """

    def __init__(
        self, host: Namespace, name: str, *, queues: int = 1, mtu: int = 1500, bridge: str | None = "br0"
    ) -> None:
        self.host, self.name, self.queues, self.mtu = host, name, queues, mtu
        made = TapGuest(host, name, bridge=None, queues=queues, vnet_hdr=True, persistent=True)
        self.ifindex = made.ifindex
        made.close()
        host.ip.link("set", index=self.ifindex, mtu=mtu)
        host.set_up(self.ifindex, None if bridge is None else host.index(bridge))

    def remove(self) -> None:
        """May be called twice."""
        try:
            self.host.ip.link("del", index=self.ifindex)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


@dataclass(frozen=True, slots=True)
class Nic:
    """A guest's interface on a tap that is there. `mtu` is what the device tells the guest, 0: nothing;
    `options` are virtio-net-pci's own, such as {"csum": "off", "host_tso4": "off"}."""

    tap: str
    mac: str
    queues: int = 1
    mtu: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    vhost: bool = False

    def argv(self, number: int) -> list[str]:
        """QEMU's options for it, as the guest's interface of that number."""
        netdev = {"id": f"net{number}", "ifname": self.tap, "script": "no", "downscript": "no"}
        netdev["vhost"] = "on" if self.vhost else "off"
        # Without a boot ROM: it would speak on the tap before the guest does.
        device = {"netdev": f"net{number}", "mac": self.mac, "romfile": ""}
        if self.queues > 1:
            netdev["queues"] = str(self.queues)
            device |= {"mq": "on", "vectors": str(2 * self.queues + 2)}  # one a ring, control, configuration
        if self.mtu:
            device["host_mtu"] = str(self.mtu)
        return ["-netdev", worded("tap", netdev), "-device", worded("virtio-net-pci", device | dict(self.options))]


def worded(first: str, words: Mapping[str, str]) -> str:
    """An option of QEMU's; a comma in a value is written twice."""
    return ",".join([first, *(f"{name}={value.replace(',', ',,')}" for name, value in words.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a machine is, but for where its files lie. `disk` is a raw image that stays as it is: what the guest
    writes is lost with the machine, unless the disk is its `own_disk`. `smbios` are words such as
    "type=1,product=OpenStack Nova"."""

    kernel: Path
    initrd: Path | None = None
    disk: Path | None = None
    own_disk: bool = False
    nics: Sequence[Nic] = ()
    append: str = ""
    memory: int = 128  # MiB
    cpus: int = 1
    smbios: Sequence[str] = ()
    reboots: bool = False  # else a reboot, and a panic with panic=-1, ends it
    more: Sequence[str] = ()  # further options of QEMU's

    def argv(self) -> list[str]:
        argv = ["-M", "q35", "-m", str(self.memory), "-smp", str(self.cpus), "-nodefaults", "-display", "none"]
        argv += ["-no-user-config", "-kernel", str(self.kernel), "-append", f"{CONSOLE} {self.append}".strip()]
        argv += ["-initrd", str(self.initrd)] if self.initrd else []
        if self.disk:
            drive = {"file": str(self.disk), "format": "raw", "if": "virtio"}
            drive["snapshot"] = "off" if self.own_disk else "on"
            argv += ["-drive", worded("", drive).removeprefix(",")]
        for number, nic in enumerate(self.nics):
            argv += nic.argv(number)
        for words in self.smbios:
            argv += ["-smbios", words]
        return [*argv, *([] if self.reboots else ["-no-reboot"]), *self.more]


class Machine:
    """A QEMU that runs in `host`, from its making until it ends, or `close`. Arguments as of `Hardware`.
    Its files are in `folder`, which goes with it, or in one of its own.

    It dies with the thread that made it, so not one of a pool that ends before it: then, too, nothing is left.
    """

    def __init__(self, host: Namespace, folder: Path | None = None, **hardware: Any) -> None:
        self.hardware = Hardware(**hardware)
        self.folder = folder or Path(tempfile.mkdtemp(prefix="machine-"))
        self.serial, self._said = self.folder / "serial", self.folder / "qemu"
        self._told: socket.socket | None = None
        self.started = time.monotonic()
        try:
            # The second serial port is for what the host tells the guest.
            ports = ["-serial", f"file:{self.serial}", "-serial", f"unix:{self.folder}/told,server=on,wait=off"]
            argv = [accel.QEMU, *accel.options(), *self.hardware.argv(), *ports]
            with self._said.open("wb") as said:
                self._process = host.popen(["setpriv", "--pdeathsig", "KILL", *argv], stdout=said, stderr=said)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        """What the console said so far."""
        found = self.serial.read_bytes() if self.serial.exists() else b""
        return found.decode(errors="replace").replace("\r\n", "\n")

    def await_line(self, pattern: str, seconds: float, since: int = 0) -> re.Match[str]:
        """Wait until the console has said it (re.MULTILINE) behind its first `since` characters. MachineError."""
        wanted = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + seconds
        while True:
            ended = not self.alive  # asked first: what it said before its end is all there
            if found := wanted.search(self.text(), since):
                return found
            if ended:
                raise self._error(f"it ended before it said {pattern!r}")
            if time.monotonic() > end:
                raise self._error(f"it did not say {pattern!r} within {seconds:.0f} s")
            time.sleep(0.02)

    def tell(self, word: str) -> None:
        """A line for the guest to read from /dev/ttyS1."""
        if self._told is None:
            self._told = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._told.connect(str(self.folder / "told"))
        self._told.sendall(f"{word}\n".encode())

    def wait(self, seconds: float) -> None:
        """Wait until it has powered off. MachineError where it does not, or QEMU failed."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._error(f"it did not power off within {seconds:.0f} s") from None
        if status:
            raise self._error(f"QEMU ended with {status}")

    def kill(self) -> None:
        """kill -9, as the kernel does when memory is short."""
        if self.alive:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it, and remove its files. May be called twice."""
        self.kill()
        if self._told is not None:
            self._told.close()
            self._told = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _error(self, what: str) -> MachineError:
        said = self._said.read_text(errors="replace").splitlines() if self._said.exists() else []
        tail = [*self.text().splitlines()[-TAIL_LINES:], *said[-TAIL_LINES:]]
        return MachineError("\n".join([f"after {time.monotonic() - self.started:.1f} s: {what}; last words:", *tail]))
