"""Debian 12 with its own cloud-init (22.4.2), systemd, netplan and sshd, as its cloud images have them, on a tap.

    tap = Tap(lab.host, "tap1")
    with Debian(lab.host, [Nic("tap1", MAC)], smbios=OPENSTACK, prepared=PREPARED).start() as machine:
        machine.await_line(r"login:", 120)

The disk is made once and never written to: a guest's writes go with its machine, unless it has a copy (`copied`).
What an operator would put into the image of a guest without DHCP is `prepared`: it is laid upon the disk as it boots.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab import Namespace
from tests.vm import cache, image
from tests.vm.initramfs import Entry, archive, file, folder, link
from tests.vm.machine import Machine, Nic

RECIPE = Path(__file__).with_name("debian")
MODULES = ("virtio_pci", "virtio_blk")
FOLDERS = ("bin", "dev", "disk", "lib", "lib/modules", "proc", "sys")
VERSION = 1
"""Raise it to have the packages of today."""

QUIET = "quiet loglevel=3 root=/dev/vda rw net.ifnames=0 panic=-1"
"""`net.ifnames=0`: the interface is eth0, whatever slot it is in, which a link-local URL has to name."""


@functools.cache
def disk() -> Path:
    """The image; built in about 40 s if it is not there."""
    script, modules = RECIPE / "build.sh", image.kernel_modules()
    recipe = f"{VERSION} {modules} {script.read_text()}"

    def build(path: Path) -> None:
        # In a mount namespace: of a build that is killed, nothing stays mounted below a folder that is then removed.
        aside = ["unshare", "--mount", "--fork", "--kill-child"]
        subprocess.run([*aside, script, path, modules], check=True)

    return cache.made("debian", recipe, build, needs_mib=1600) / "disk"


def copied(path: Path) -> Path:
    """A copy of the disk, for a guest that boots more than once."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", disk(), path], check=True)
    return path


@functools.cache
def initrd() -> Path:
    """An initramfs that mounts the disk: busybox, and the modules for that."""
    linux, box, init = image.kernel_modules(), image.busybox(), RECIPE / "init"
    recipe = f"2 {linux} {box} {MODULES} {init.read_text()}"

    def build(path: Path) -> None:
        path.write_bytes(archive(image.contents(linux, box, init, MODULES, FOLDERS)))

    return cache.made("debian-initrd", recipe, build, needs_mib=50)


def laid(prepared: Mapping[str, str]) -> list[Entry]:
    """What the initramfs lays upon the disk: text by absolute path; `-> TARGET` is a symbolic link, and what begins
    with `#!` can be run. PURE."""
    found: dict[str, Entry] = {}
    for path, text in sorted(prepared.items()):
        parts = Path("prepared" + path)
        for parent in reversed(parts.parents[:-1]):
            found.setdefault(str(parent), folder(str(parent)))
        found[str(parts)] = _laid(str(parts), text)
    return list(found.values())


def _laid(path: str, text: str) -> Entry:
    if text.startswith("-> "):
        return link(path, text.removeprefix("-> "))
    return file(path, text.encode(), 0o755 if text.startswith("#!") else 0o644)


class Debian:
    """What a guest is; each `start` boots one. Further arguments are `Hardware`'s."""

    def __init__(
        self,
        host: Namespace,
        nics: Sequence[Nic],
        *,
        prepared: Mapping[str, str],
        append: str = "",
        memory: int = 512,
        **hardware: Any,
    ) -> None:
        self.host, self.prepared = host, prepared
        self._hardware = {"nics": nics, "append": f"{QUIET} {append}".strip(), "memory": memory, **hardware}

    def start(self, own_disk: Path | None = None) -> Machine:
        """Boot one, to be closed; if from a disk of its own (`copied`), it finds there what it wrote before."""
        whence = own_disk or disk()
        aside = Path(tempfile.mkdtemp(prefix="debian-"))
        own = aside / "initrd"
        own.write_bytes(initrd().read_bytes() + archive(laid(self.prepared)))
        kept = own_disk is not None
        return Machine(
            self.host, aside, kernel=image.kernel(), initrd=own, disk=whence, own_disk=kept, **self._hardware
        )
