"""What the boxes are made of. PURE.

A machine has no network of its own: all that metashim and its tests need there is in the box. What decides how a box
comes out is its recipe, which is long; the cache goes by it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

VERSION = 1
"""Raise it to have the packages of today."""

SETUP = ("python3-bpfcc", "nftables", "linux-libc-dev", "python3-venv", "iproute2")  # as in setup.sh
SYSTEM = ("systemd-sysv", "udev", "dbus", "kmod", "openssh-server", "sudo", "rsync", "ca-certificates")
TOOLS = ("make", "git", "curl", "wget", "jq", "procps", "iputils-ping", "tcpdump", "qemu-system-x86", "busybox-static")
BOOT = ("linux-image-cloud-amd64", "cpio", "xz-utils")
PACKAGES = (*SYSTEM, *SETUP, *TOOLS, *BOOT)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A release of Debian's, with the kernel that it has; `python` is its own Python's version."""

    suite: str
    python: str


@dataclass(frozen=True, slots=True)
class Machine:
    """One that vagrant/Vagrantfile has; `address` is on the network between them; `nested`: it has a guest of its own,
    which on an emulated processor takes as long as all else there."""

    name: str
    address: str
    distribution: Distribution
    nested: bool = False


HYPERVISOR = Machine("hypervisor", "192.168.57.10", Distribution("bookworm", "3.11"), nested=True)
OTHER = Machine("other", "192.168.57.11", Distribution("trixie", "3.13"))
MACHINES = (HYPERVISOR, OTHER)
BOTH = "both"
REPORTS = (HYPERVISOR.name, OTHER.name, BOTH)
"""What the tests of each, and of both, leave as NAME.xml."""


def requirements(pyproject: str) -> list[str]:
    """All that `pip install -e .[dev]` asks an index for, its build included, from pyproject.toml's text."""
    read = tomllib.loads(pyproject)
    project = read["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"], *read["build-system"]["requires"]]


def wheels(distribution: Distribution, pyproject: str) -> str:
    """The recipe of a folder of wheels."""
    return "\n".join([str(VERSION), distribution.python, *requirements(pyproject)])


def box(distribution: Distribution, files: Mapping[str, str]) -> str:
    """The recipe of a box; `files` are the texts, by name, of all that it is built by: scripts, and what setup.sh
    goes by, whose virtual environment is in it."""
    texts = [f"--- {name}\n{files[name]}" for name in sorted(files)]
    asked = wheels(distribution, files["pyproject.toml"])
    return "\n".join([str(VERSION), distribution.suite, *PACKAGES, asked, *texts])
