"""What a configuration asks of this host: users, the gateway, the datapath, file systems, systemd."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import socket
import subprocess
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from shim.config import Config
from shim.core.kv import KvLimits
from shim.core.policy import Access, Policy
from shim.datapath import abi, compile, guard_rules, nft_rules
from shim.datapath.base import Datapath, Inside
from shim.datapath.ebpf import RULES, Ebpf
from shim.datapath.guard import Guard
from shim.datapath.nft import Nft, ruleset
from shim.datapath.spread import Spread
from shim.errors import ConfigError, ConflictError, KernelError
from shim.netlink import gateway as gateways
from shim.netlink import inside as netlink_inside
from shim.netlink.nflog import NfLog
from shim.netlink.nftables import Nftables
from shim.netlink.tc import Filters
from shim.settings import SLOTS_V4, SLOTS_V6

NFLOG_GROUP_MAX = 0xFFFF

Kind = Literal["ebpf", "nft"]
OTHER: dict[str, Kind] = {"ebpf": "nft", "nft": "ebpf"}


@contextlib.contextmanager
def alone(config: Config) -> Iterator[None]:
    """Holds the lock that makes this the only one who changes what an agent of this name has. Raises ConflictError."""
    if os.geteuid() != 0:
        raise KernelError("this needs root", "use sudo, or systemd for the agent")
    Path(config.host.run_dir).mkdir(parents=True, exist_ok=True, mode=0o755)
    with config.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"an agent runs already (it holds {config.lock})", "stop it first") from None
        yield


def kv_limits(config: Config) -> KvLimits:
    """What each instance's guest may keep and write."""
    kv = config.kv
    return KvLimits(kv.keys, kv.value_bytes, kv.total_bytes, kv.writes_per_second)


def operator_of(uid: int) -> str:
    """Who speaks on the control socket, in a few words."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def gateway_of(config: Config) -> gateways.Gateway:
    """The gateway that a configuration asks for."""
    return gateways.Gateway(config.host.name, config.datapath.service_addresses, str(SLOTS_V4), str(SLOTS_V6))


def datapath_of(config: Config, kind: Kind) -> Datapath:
    """A datapath of that kind, with the configured settings."""
    if kind == "ebpf":
        return _ebpf(config)
    return Spread(_nft(config), lambda inside: _nft(config, inside))


def _ebpf(config: Config) -> Ebpf:
    path = config.datapath
    settings = abi.pack_settings(
        list(path.service_addresses),
        list(path.service_ports),
        rate=path.connection_rate,
        burst=path.connection_burst,
        event_rate=path.event_rate,
        flows_per_port=path.flows_per_port,
    )
    kept = Path(config.host.state_dir)
    return Ebpf(Filters(), config.pins, settings, path.max_ports, path.flows_per_port, kept)


def _nft(config: Config, inside: Inside | None = None) -> Nft:
    settings = nft_settings(config)
    if inside is None:
        return Nft(Nftables(settings.table), NfLog(settings.group), settings)
    return Nft(inside.table(settings.table), inside.logs(settings.group), settings, inside.link_name)


def nft_settings(config: Config) -> nft_rules.Settings:
    """What the rules of the nftables datapath are made for."""
    path, name = config.datapath, config.host.name
    return nft_rules.Settings(
        table=nft_rules.table_name(name),
        addresses=path.service_addresses,
        service_ports=path.service_ports,
        rate=path.connection_rate,
        burst=path.connection_burst,
        event_rate=path.event_rate,
        max_ports=path.max_ports,
        patience=max(config.proxy.head_seconds, config.proxy.idle_seconds) + 5,
        group=zlib.crc32(name.encode()) & NFLOG_GROUP_MAX or 1,
    )


def guard_of(config: Config, inside: netlink_inside.Inside | None = None) -> Guard:
    """The leak guard for the configured taps and addresses, of the agent's own namespace unless told otherwise."""
    name = guard_rules.table_name(config.host.name)
    table = partial(Nftables, name) if inside is None else partial(inside.table, name)
    return Guard({family: table(family) for family in guard_rules.FAMILIES}, _guard_rules(config))


def _guard_rules(config: Config) -> guard_rules.Ruleset:
    path = config.datapath
    return guard_rules.ruleset(config.host.name, path.taps, [*path.service_v4, *path.service_v6])


def tables_of(config: Config) -> frozenset[str]:
    """What the nftables tables are called that are ours."""
    return frozenset({nft_rules.table_name(config.host.name), guard_rules.table_name(config.host.name)})


def rules_of(config: Config) -> dict[str, str]:
    """What the agent would load, by what it is: the source or the ruleset of the datapath, then the leak guard's.
    Of `auto`, what it prefers."""
    if config.datapath.datapath == "nft":
        datapath = {"nft": ruleset(nft_settings(config)).text}
    else:
        datapath = {"ebpf": compile.source(RULES)}
    return datapath | {"guard": _guard_rules(config).text}


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


def unix_socket(path: Path, gid: int) -> socket.socket:
    """A socket bound to `path` that root and a group may connect to. Raises OSError; what is no socket stays there."""
    if path.is_socket():
        path.unlink()  # of an earlier run
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        os.chown(path, 0, gid)
        path.chmod(0o660)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def mount_bpffs(path: Path) -> None:
    """Mounts the BPF file system where it is not; any tool of the field would."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    if any(line.split()[1:3] == [str(path), "bpf"] for line in mounts):
        return
    done = subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"no BPF file system at {path}: {done.stderr.strip()}", "see `metashim check`")
