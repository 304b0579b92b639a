"""What a configuration asks of this host: users, the gateway, the datapath, file systems, systemd."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import subprocess
from pathlib import Path

from pyroute2 import AsyncIPRoute

from shim.config import SLOTS_V4, SLOTS_V6, Config
from shim.core.policy import Access, Policy
from shim.datapath import abi
from shim.datapath.ebpf import Ebpf
from shim.errors import ConfigError, KernelError
from shim.netlink import gateway as gateways
from shim.netlink.tc import Filters


def notify(state: str) -> None:
    """Tells systemd (sd_notify(3)), if it asked."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def gateway_of(config: Config) -> gateways.Gateway:
    """The gateway that a configuration asks for."""
    return gateways.Gateway(config.host.name, config.datapath.service_addresses, str(SLOTS_V4), str(SLOTS_V6))


def datapath_of(config: Config, route: AsyncIPRoute) -> Ebpf:
    """The datapath that a configuration asks for."""
    path = config.datapath
    settings = abi.pack_settings(
        list(path.service_addresses),
        list(path.service_ports),
        rate=path.connection_rate,
        burst=path.connection_burst,
        event_rate=path.event_rate,
        flows_per_port=path.flows_per_port,
    )
    return Ebpf(Filters(route), config.pins, settings, path.max_ports, path.flows_per_port)


def default_policy(config: Config) -> Policy:
    """What holds for an instance that no operator gave a policy."""
    access = Access.OPEN if config.policy.enabled else Access.RESET
    return Policy(access, access, config.datapath.hop_limit)


def proxy_user(config: Config) -> tuple[int, int]:
    """(uid, gid) of the proxy. Raises ConfigError for root and for a user that is not there."""
    try:
        user = pwd.getpwnam(config.proxy.user)
    except KeyError:
        hint = f"useradd --system --shell /usr/sbin/nologin {config.proxy.user}"
        raise ConfigError(f"proxy.user: there is no user {config.proxy.user}", hint) from None
    if user.pw_uid == 0:
        raise ConfigError("proxy.user: root would keep its privileges", "name an unprivileged user")
    return user.pw_uid, user.pw_gid


def control_group(config: Config) -> int:
    """The gid that may use the control socket. Raises ConfigError."""
    if not config.control.group:
        return 0
    try:
        return grp.getgrnam(config.control.group).gr_gid
    except KeyError:
        raise ConfigError(f"control.group: there is no group {config.control.group}", "groupadd it") from None


def mount_bpffs(path: Path) -> None:
    """Mounts the BPF file system where it is not; any tool of the field would."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    if any(line.split()[1:3] == [str(path), "bpf"] for line in mounts):
        return
    done = subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"no BPF file system at {path}: {done.stderr.strip()}", "see `metashim check`")
