"""The systemd unit: the agent lives with what it is limited to, and nothing gives it mounts of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.netns.hypervisor import Hypervisor, uuid_of

UNIT = Path(__file__).parents[2] / "systemd" / "metashim.service"

MOUNT_NAMESPACE = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "InaccessiblePaths", "MountAPIVFS",
    "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateTmp", "ProcSubset",
    "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs", "ProtectKernelModules",
    "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths",
    "RootDirectory", "RootImage", "TemporaryFileSystem",
}  # fmt: skip
"""systemd.exec(5): each of these makes a mount namespace, which the kernel state must not be in."""


def settings() -> list[tuple[str, str]]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def values(name: str) -> list[str]:
    return [word for key, value in settings() if key == name for word in value.split()]


def test_makes_no_mount_namespace():
    assert not {name for name, _ in settings()} & MOUNT_NAMESPACE


def test_is_well_formed(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(values("ExecStart")[0], "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Limited(Hypervisor):
    """An agent with the unit's capabilities and no others."""

    @property
    def argv(self) -> list[str]:
        names = ["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in values("CapabilityBoundingSet"))]
        return ["setpriv", "--no-new-privs", f"--bounding-set={','.join(names)}", *super().argv]


def test_capabilities_suffice(lab):
    """Start, serve, disable, survive a crash, stop, teardown: all within the unit's limits."""
    alice = uuid_of(1)
    with Limited(lab) as site:
        guest = lab.veth_guest("alice", "tap1", mac="02:00:00:00:00:05", v4="10.0.0.5/24")
        site.start()
        status = Path(f"/proc/{site.agent.pid}/status").read_text()
        assert "CapBnd:\t000001ffffffffff" not in status and "NoNewPrivs:\t1" in status
        site.api.attach("tap1", alice)
        argv = ["curl", "-sS", "--max-time", "3", "http://169.254.169.254/latest/meta-data/instance-id"]
        assert guest.run(argv).stdout == str(alice)
        worker = site.worker
        site.kill()
        site.start()
        assert site.worker == worker
        assert "cannot be had" not in site.log_text(), "of what it listens on"
        site.disable(alice)
        assert guest.run(argv, check=False).returncode == 7
        assert site.end(signal.SIGTERM) == 0
        assert lab.host.pids() == []
