"""What the machine must have, found out before anything is begun."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

TUN = Path("/dev/net/tun")
COMMANDS = {
    "vagrant": "vagrant",
    "/usr/sbin/libvirtd": "libvirt-daemon",
    "/usr/sbin/virtlogd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
MEMORY_MIB = 4000  # two machines of 1536 and their emulators
DISK_MIB = 4000  # what they write, and the boxes


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is."""

    root: bool
    tun: bool
    memory_mib: int
    disk_mib: int
    cache: Path
    missing: tuple[str, ...]  # commands


def found(cache: Path) -> Ground:
    """Look; `cache` or the nearest of its parents that is there tells the disk."""
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return Ground(
        root=os.geteuid() == 0,
        tun=TUN.exists(),
        memory_mib=available(Path("/proc/meminfo").read_text()),
        disk_mib=shutil.disk_usage(there).free >> 20,
        cache=cache,
        missing=tuple(command for command in COMMANDS if shutil.which(command) is None),
    )


def available(meminfo: str) -> int:
    """MiB, by /proc/meminfo. PURE."""
    return next(int(line.split()[1]) >> 10 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))


def complaints(ground: Ground, *, disk_mib: int = DISK_MIB) -> list[str]:
    """What is missing, and what to do about it; none where all is well. PURE."""
    said = []
    if not ground.root:
        said.append("not root: it makes namespaces, taps and a libvirtd of its own; run it as root")
    if ground.missing:
        packages = " ".join(sorted({COMMANDS[command] for command in ground.missing}))
        said.append(f"not installed: {', '.join(ground.missing)}; as root: ./setup.sh {packages}")
    if not ground.tun:
        said.append(f"there is no {TUN}: load the module (modprobe tun), or let this container have the device")
    if ground.memory_mib < MEMORY_MIB:
        said.append(f"{ground.memory_mib} MiB of memory are free, and two machines take {MEMORY_MIB}: end something")
    if ground.disk_mib < disk_mib:
        said.append(
            f"{ground.disk_mib} MiB are free in {ground.cache}, and {disk_mib} are needed: make room, or set "
            "METASHIM_CACHE to a folder on a larger disk"
        )
    return said
