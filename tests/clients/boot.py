"""A guest's first boot with cloud-init: what it made of the metadata that it found."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import Namespace

SCRIPT = Path(__file__).with_name("cloudinit_guest.py")
PYTHON = "/usr/bin/python3"
MACHINE = tuple(map(Path, ("/var/lib/cloud", "/run/cloud-init", "/var/log/cloud-init.log", "/etc/cloud")))
"""Where cloud-init writes on a machine that it sets up: not on this one."""


def is_installed() -> bool:
    return subprocess.run([PYTHON, "-c", "import cloudinit.stages"], capture_output=True, check=False).returncode == 0


needs_cloud_init = pytest.mark.skipif(
    not is_installed(), reason="Debian's package cloud-init is not installed: ./setup.sh cloud-init"
)


@dataclass(frozen=True)
class Boot:
    """What cloud-init made of it.

    raw      the user-data as it came
    user     the cloud-config of all user-data, vendor that of all vendor data; merged: both, as its modules see it
    scripts  by the names that it keeps them under
    """

    instance: str
    datasource: str
    raw: bytes
    user: dict[str, Any]
    vendor: dict[str, Any]
    merged: dict[str, Any]
    scripts: dict[str, str]
    warnings: list[str]


def boot(guest: Namespace, datasource: str, folder: Path, urls: Sequence[str]) -> Boot:
    """A first boot in the guest's namespace with the data source `OpenStack` or `Ec2`, which is told these addresses;
    everything that it keeps goes to `folder`, which is made."""
    folder.mkdir()
    before = _machine()
    done = guest.run([PYTHON, str(SCRIPT), datasource, str(folder), *urls], timeout=60)
    assert _machine() == before, "it wrote outside of its folder"
    told = json.loads(done.stdout)
    return Boot(
        told["instance"], told["datasource"], base64.b64decode(told["raw"]), _config(told["user"]),
        _config(told["vendor"]), told["merged"], told["scripts"], told["warnings"],
    )  # fmt: skip


def _config(text: str | None) -> dict[str, Any]:
    return yaml.safe_load(text or "") or {}


def _machine() -> dict[Path, float]:
    found = [path for top in MACHINE if top.exists() for path in (top, *top.rglob("*"))]
    return {path: path.lstat().st_mtime for path in found}
